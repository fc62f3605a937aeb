"""What a move came to, in the form that scripts depend on (DESIGN §6, qmigrate.result/1). Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qmigrate.core.errors import AgentLostError, HostError, Problem, QmigrateError
from qmigrate.core.job import AnnounceReport, JobReport, Mode, Outcome, Transport
from qmigrate.core.model import Finding, LinkFigures, Phase
from qmigrate.core.network_rules import Route
from qmigrate.core.profile import Profile, Span, alone_s, idle_s
from qmigrate.core.timeline import ClockOffset, blackout

SCHEMA = "qmigrate.result/1"


@dataclass(frozen=True, slots=True)
class Result:
    """A move, ended or left; `report` is None where the source's agent was not heard to the end."""

    job: str | None
    guest: str
    source: str | None
    destination: str
    mode: Mode
    outcome: Outcome
    exit_code: int
    wall_s: float
    connect_s: float
    plan_s: float
    problem: Problem | None
    findings: tuple[Finding, ...]
    report: JobReport | None
    routes: tuple[Route, ...] = ()  # where the guest's cards went, or were to go
    reached: bool | None = None  # it answers from its new place, seen from its home segment
    left: tuple[str, ...] = ()  # what the controller itself could not remove
    transport: Transport = Transport.DIRECT
    profile: Profile | None = None  # where the time went, if that was asked for

    @property
    def tunnel(self) -> str | None:
        """The first tunnel that its cards go through."""
        return next((r.tunnel.described for r in self.routes if r.tunnel is not None), None)

    @property
    def blackout_ms(self) -> float | None:
        """STOP on the source → RESUME on the destination; None if either is not known."""
        return blackout_ms(self.report)


def blackout_ms(report: JobReport | None) -> float | None:
    """Return the blackout from QEMU's stamps, corrected by the clocks' offset."""
    if report is None or report.stop_us is None or report.resume_us is None:
        return None
    if report.outcome is not Outcome.MIGRATED or report.clock_offset_us is None:
        return None
    offset = ClockOffset(report.clock_offset_us, report.clock_error_us or 0.0, report.clock_stepped)
    return round(blackout(report.stop_us, report.resume_us, offset).blackout_ms, 3)


def exit_code(outcome: Outcome, problem: Problem | None, *, incomplete: bool = False) -> int:
    """Return DESIGN §6's exit code."""
    match outcome:
        case Outcome.MIGRATED:
            return 8 if incomplete else 0
        case Outcome.ROLLED_BACK:
            return 5
        case Outcome.CANCELLED:
            return 6
        case Outcome.GUEST_ENDED:
            return 9
        case Outcome.UNKNOWN | Outcome.DETACHED:
            return 7
        case Outcome.REFUSED:
            return QmigrateError.of(problem).exit_code if problem else 3


_STEPS = (  # phase, the mark that ends it
    ("prepare", "migrate"),
    ("copy", "pre-switchover"),
    ("switchover", "record proved"),
)
_BACK = "record back"  # ends whatever phase the job was in
_ENDS = ("record done", "record restored", "record ended")


def phases(result: Result) -> tuple[Phase, ...]:
    """Return where the time went, from the controller's clock and the source's marks."""
    found = [
        Phase("connect", 0.0, round(result.connect_s, 4)),
        Phase("preflight", round(result.connect_s, 4), round(result.plan_s, 4)),
    ]
    began_s = result.connect_s + result.plan_s
    last_s = 0.0
    for name, end_s in _ended(result.report):
        found.append(Phase(name, round(began_s + last_s, 4), round(end_s - last_s, 4)))
        last_s = end_s
    return tuple(found)


def _ended(report: JobReport | None) -> Iterator[tuple[str, float]]:
    """Yield the source's phases and when each ended, in seconds on its clock."""
    at = {mark.name: mark.at_s for mark in report.marks} if report else {}
    for name, end in _STEPS:
        if end in at:
            yield name, at[end]
        elif _BACK in at:
            yield name, at[_BACK]
            break
    over = next((at[end] for end in _ENDS if end in at), None)
    if over is not None:
        yield "finish", over


def document(result: Result) -> dict[str, Any]:
    """Return the result as JSON's plain objects; what is not known is None."""
    report = result.report
    qemu = report.qemu if report else None
    return {
        "job": result.job,
        "guest": result.guest,
        "source": result.source,
        "destination": result.destination,
        "mode": str(result.mode),
        "transport": str(result.transport),
        "plaintext": result.transport.plaintext,
        "tunnel": result.tunnel,
        "reached": result.reached,
        "network": route_documents(result.routes),
        "outcome": str(result.outcome),
        "exit": result.exit_code,
        "wall_s": round(result.wall_s, 4),
        "blackout_ms": result.blackout_ms,
        "blackout_error_ms": (
            round(report.clock_error_us / 1e3, 3)
            if report and report.clock_error_us is not None
            else None
        ),
        "clock_stepped": report.clock_stepped if report else None,
        "outage": None,
        "qemu": {
            "total_ms": qemu.total_ms if qemu else None,
            "setup_ms": qemu.setup_ms if qemu else None,
            "downtime_ms": qemu.downtime_ms if qemu else None,
            "passes": qemu.passes if qemu else None,
            "transferred_bytes": qemu.transferred_bytes if qemu else None,
            "mbps": qemu.mbps if qemu else None,
        },
        "link": _link(report.link) if report and report.link else None,
        "costs": {
            "pause_ms": report.costs.pause_ms if report else None,
            "qemu_ms": report.costs.qemu_ms if report else None,
            "go_ms": report.costs.go_ms if report else None,
        },
        "phases": [
            {"name": p.name, "start_s": p.start_s, "duration_s": p.duration_s}
            for p in phases(result)
        ],
        "announced": _announced(report.announced) if report else None,
        "findings": finding_documents(result.findings + (report.findings if report else ())),
        "guest_events": list(report.guest_events) if report else [],
        "still_enabled": report.still_enabled if report else None,
        "leftovers": [*(report.leftovers if report else ()), *result.left],
        "faults": [f"{f.side}:{f.moment}:{f.action}" for f in report.faults] if report else [],
        "profile": _profile(result.profile),
        "error": error_document(result.problem),
    }


def _link(link: LinkFigures) -> dict[str, Any]:
    ratio = link.ratio
    return {**asdict(link), "ratio": None if ratio is None else round(ratio, 4)}


def _profile(profile: Profile | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    alone = alone_s(profile.spans)
    return {
        "wall_s": round(profile.wall_s, 6),
        "idle_s": round(idle_s(profile), 6),
        "spans": [
            {**_span(span), "alone_s": round(only_s, 6)}
            for span, only_s in zip(profile.spans, alone, strict=True)
        ],
        "guest": [_span(span) for span in profile.guest],
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "host": span.where or None,
        "step": span.step,
        "start_s": round(span.start_s, 6),
        "duration_s": round(span.duration_s, 6),
    }


def finding_documents(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return findings as JSON's plain objects."""
    return [
        {
            "rule": f.rule,
            "severity": str(f.severity),
            "host": f.host,
            "message": f.message,
            "fix": f.fix,
        }
        for f in findings
    ]


def route_documents(routes: Sequence[Route]) -> list[dict[str, Any]]:
    """Return where each card goes as JSON's plain objects."""
    return [_route(route) for route in routes]


def _route(route: Route) -> dict[str, Any]:
    """Return where a card went."""
    verdict, tunnel = route.verdict, route.tunnel
    return {
        "mac": route.card.mac,
        "home": {
            "host": route.card.home.host,
            "bridge": route.card.home.bridge,
            "vlan": route.card.home.vlan,
        },
        "bridge": route.bridge,
        "adjacency": str(verdict.adjacency) if verdict else None,
        "why": verdict.why if verdict else None,
        "mtu_bytes": verdict.mtu_bytes if verdict else None,
        "latency_us": verdict.latency_us if verdict else None,
        "tunnel": None
        if tunnel is None
        else {
            "id": tunnel.id,
            "kind": tunnel.away_end.kind,
            "backend": tunnel.away_end.backend,
            "local": tunnel.home_end.local,
            "remote": tunnel.home_end.remote,
            "key": tunnel.home_end.key,
            "encrypted": False,
            "why": tunnel.why,
        },
    }


def _announced(report: AnnounceReport | None) -> dict[str, Any] | None:
    if report is None:
        return None
    return {
        "interface": report.interface,
        "sent": list(report.sent),
        "first_ms": report.first_ms,
        "addresses": [
            {"mac": a.mac, "address": a.address, "origin": a.origin} for a in report.addresses
        ],
        "note": report.note,
    }


def error_document(problem: Problem | None) -> dict[str, Any] | None:
    """Return an error as JSON's plain object."""
    if problem is None:
        return None
    return {
        "code": problem.code,
        "phase": problem.phase,
        "host": problem.host,
        "what": problem.what,
        "last_words": problem.last_words,
        "next_step": problem.next_step,
    }


def explain_unstarted(exc: QmigrateError, job: str) -> None:
    """Say of a job that was not started when that was, and what to do, where nobody has yet."""
    problem = exc.at(phase="prepare").problem
    step = f"the guest runs on; qmigrate logs {job} tells more, then try again"
    exc.problem = replace(problem, next_step=problem.next_step or step)


def come_back(job: str, host: str) -> str:
    """Return the line by which the user finds out how it ended."""
    return f"come back with: qmigrate watch {job}@{host}"


def lost(job: str, host: str, exc: HostError) -> Problem:
    """Return what is known of a job that was begun and is out of sight: it may end in any way."""
    what = f"job {job} cannot be followed on {host} any more: {exc}"
    if isinstance(exc, AgentLostError):
        what = f"the connection to {host} was lost; job {job} goes on by itself"
    words = exc.problem.last_words
    return Problem("unknown-outcome", what, "watch", host, words, come_back(job, host))
