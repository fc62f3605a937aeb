"""What people and programs see of a move: its plan, its way, its result."""

import shlex
import time
from dataclasses import replace
from typing import Any

from qmigrate.cli.progress import ProgressView
from qmigrate.cli.render import Output, printable, problem_lines
from qmigrate.controller.plan import Plan
from qmigrate.controller.result import (
    Result,
    blackout_ms,
    document,
    error_document,
    exit_code,
    finding_documents,
    route_documents,
)
from qmigrate.core.job import JobNote, JobReport, Outcome
from qmigrate.core.model import Finding, Progress, Severity
from qmigrate.core.preflight import blockers
from qmigrate.core.quantities import human_bytes, human_seconds
from qmigrate.core.redact import redact

PLAN_SCHEMA = "qmigrate.plan/1"
RESULT_SCHEMA = "qmigrate.result/1"
CHECK_SCHEMA = "qmigrate.check/1"
REPORT_SCHEMA = "qmigrate.report/1"

_AS_WISHED = (Outcome.CANCELLED, Outcome.DETACHED)  # not a success, but no error either

PACKED = 0.95  # wire bytes a payload byte: above, TLS and the like, and not worth a word


class MoveView:
    """Shows a move on its way, by one clock: the job's own, if another command began it."""

    def __init__(self, out: Output, view: ProgressView) -> None:
        self._out = out
        self._view = view
        self._began_s = time.monotonic()
        self._job_began_s: float | None = None  # on that clock
        self.job: str | None = None

    def elapsed_s(self) -> float:
        """Return how long ago the command began."""
        return time.monotonic() - self._began_s

    def progress(self, progress: Progress) -> None:
        """Show how far it is; a job that began here counts from where it did."""
        if self.job and progress.phase != "prepare":
            if self._job_began_s is None:
                self._job_began_s = max(0.0, self.elapsed_s() - progress.elapsed_s)
            since_s = round(self._job_began_s + progress.elapsed_s, 3)
            progress = replace(progress, elapsed_s=since_s)
        self._view.show(progress)

    def ended(self) -> None:
        """Show that it is over, one way or the other."""
        self._view.end(self.elapsed_s())

    def warn(self, text: str) -> None:
        """Show a sentence that does not stop anything."""
        self._view.say(text)

    def note(self, note: JobNote) -> None:
        """Show whatever a job's note holds."""
        if note.progress:
            self.progress(note.progress)
        if note.warning:
            self.warn(note.warning)
        if note.unknown:
            self.warn(f"{note.unknown.what}; {note.unknown.next_step}")

    def started(self, job: str) -> None:
        """Remember the job's id; the phase that begins it shows it."""
        self.job = job


def show_findings(out: Output, findings: tuple[Finding, ...]) -> None:
    """Write findings for people, a paragraph each."""
    for finding in findings:
        out.say(printable(f"{finding.severity} [{finding.rule}] {finding.host}: {finding.message}"))
        out.say(printable(f"    → {finding.fix}"))


def show_check(out: Output, plan: Plan) -> int:
    """Write what preflight found; exit code 3 if it would refuse."""
    refused = bool(blockers(plan.findings))
    if out.json:
        out.document(
            CHECK_SCHEMA,
            {
                "guest": plan.guest.name,
                "source": plan.source.name,
                "destination": plan.wish.destination.name,
                "movable": not refused,
                "network": route_documents(plan.routes),
                "findings": finding_documents(plan.findings),
            },
        )
        return 3 if refused else 0
    show_findings(out, plan.findings)
    for route in plan.routes:
        if route.verdict is not None and route.tunnel is None and not refused:
            out.say(f"{route.card.tap}: {route.bridge} there is its segment: {route.verdict.why}")
    verdict = "cannot move" if refused else "can move"
    out.lines([f"{plan.guest.name} {verdict} to {plan.wish.destination.name}"])
    return 3 if refused else 0


def show_plan(out: Output, plan: Plan) -> int:
    """Write what a move would do, the new command line as changes to the old one."""
    refused = bool(blockers(plan.findings))
    argv = redact(plan.twin.plan.argv)
    if out.json:
        body: dict[str, Any] = {
            "guest": plan.guest.name,
            "source": plan.source.name,
            "destination": plan.wish.destination.name,
            "mode": str(plan.wish.mode),
            "movable": not refused,
            "findings": finding_documents(plan.findings),
            "argv": list(argv),
            "changes": [
                {"before": c.before, "after": c.after, "why": c.why} for c in plan.twin.changes
            ],
            "network": route_documents(plan.routes),
            "taps": [
                {"netdev": t.netdev, "bridge": t.bridge, "mac": t.mac} for t in plan.twin.plan.taps
            ],
        }
        out.document(PLAN_SCHEMA, body)
        return 3 if refused else 0
    lines = [
        f"{plan.guest.name}: {plan.source.name} → {plan.wish.destination.name}, {plan.wish.mode}",
        f"runs as {plan.twin.plan.process.user}, sockets in {plan.twin.plan.run_directory}",
    ]
    for change in plan.twin.changes:
        if change.before is not None:
            lines.append(f"- {change.before}")
        if change.after is not None:
            lines.append(f"+ {change.after}")
        lines.append(f"      {change.why}")
    lines.append(shlex.join(argv))
    out.lines(lines)
    show_findings(out, plan.findings)
    verdict = "would be refused" if refused else "would go ahead"
    out.say(f"the move {verdict}; nothing was touched")
    return 3 if refused else 0


def show_result(out: Output, result: Result) -> int:
    """Write how it ended and return its exit code."""
    if out.json:
        out.document(RESULT_SCHEMA, document(result))
        return result.exit_code
    findings = result.findings + (result.report.findings if result.report else ())
    warnings = tuple(f for f in findings if f.severity is Severity.WARNING)
    show_findings(out, warnings if result.outcome is Outcome.MIGRATED else findings)
    if result.outcome is Outcome.MIGRATED:
        out.lines([_sentence(result)])
        _show_rest(out, result)
    elif result.outcome in _AS_WISHED and result.problem is not None:
        out.say("\n".join(problem_lines(result.problem)))
    elif result.problem is not None and not (findings and result.exit_code == 3):
        out.problem(result.problem)
    if result.outcome is Outcome.REFUSED:
        out.say(f"{result.guest} was not touched")
    if result.profile is not None:
        from qmigrate.cli.profile import show_profile

        show_profile(out, result.profile)
    return result.exit_code


def show_report(out: Output, report: JobReport) -> int:
    """Write how a job ended that another command began; return the exit code it had."""
    code = exit_code(report.outcome, report.problem, incomplete=bool(report.leftovers))
    blackout = blackout_ms(report)
    if out.json:
        body = {
            "job": report.job,
            "outcome": str(report.outcome),
            "exit": code,
            "blackout_ms": blackout,
            "leftovers": list(report.leftovers),
            "error": error_document(report.problem),
        }
        out.document(REPORT_SCHEMA, body)
        return code
    more = f", blackout {blackout:.1f} ms" if blackout is not None else ""
    out.lines([f"job {report.job}: {report.outcome}{more}"])
    if report.outcome in _AS_WISHED and report.problem is not None:
        out.say("\n".join(problem_lines(report.problem)))
    elif report.problem is not None:
        out.problem(report.problem)
    return code


def _sentence(result: Result) -> str:
    report = result.report
    way = f"from {result.source} to {result.destination}"
    words = [f"{result.guest} moved {way} in {human_seconds(result.wall_s)}"]
    if result.blackout_ms is not None:
        words.append(f"blackout {result.blackout_ms:.1f} ms")
    if report and report.qemu.downtime_ms is not None:
        words.append(f"QEMU's downtime {report.qemu.downtime_ms} ms")
    if report and report.qemu.transferred_bytes is not None:
        words.append(f"{human_bytes(report.qemu.transferred_bytes)} sent, {_by(result)}")
    if result.tunnel is not None:
        words.append(f"its network goes through {result.tunnel}, unencrypted")
    return ", ".join(words)


def _by(result: Result) -> str:
    """Return how memory travelled, with what became of the wire meanwhile."""
    if result.transport.plaintext:
        return "unencrypted"
    words = "encrypted"
    link = result.report.link if result.report else None
    if link is not None and link.ratio is not None and link.ratio < PACKED:
        words += f", packed to {100 * link.ratio:.0f} %"
    if link is not None and link.reconnects:
        words += f", over a link that broke and was made again ({link.stalled_s:.1f} s)"
    return words


def _show_rest(out: Output, result: Result) -> None:
    report = result.report
    if report is None:
        return
    if result.transport.plaintext:
        out.say("the memory travelled in plain text: move over wires that you trust")
    if report.announced and report.announced.note:
        sent = "announced" if report.announced.sent else "not announced"
        told = report.announced.addresses or not report.announced.sent
        hint = "" if told else " (name its addresses with --address)"
        out.say(f"{sent}: {report.announced.note}{hint}")
    if result.reached is False:
        out.say("seen from its home segment it does not answer at any address it is known to have")
    for event in report.guest_events:
        out.say(f"meanwhile the guest {event}")
    for left in (*report.leftovers, *result.left):
        out.say(f"left behind: {left}")
    if report.still_enabled:
        out.say(f"still enabled at boot: {report.still_enabled}")
