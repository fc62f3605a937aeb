"""``qmigrate status``: every job on the hosts, both sides as one, and what was left behind."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qmigrate.cli.context import Context
from qmigrate.cli.render import Output, Table, printable

if TYPE_CHECKING:
    from qmigrate.controller.status import HostStatus, Status
    from qmigrate.core.joining import JobRow

NAME = "status"
HELP = "moves under way or cut short, where each stands and what to do next"
EXAMPLES = """\
qmigrate status                         the hosts of the inventory, else this machine
qmigrate status root@alpha root@beta
qmigrate status -v                      what ended lately, too
qmigrate status --json | jq -r '.jobs[] | select(.healthy | not) | .next_step'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    from qmigrate.cli.parser import complete_with

    hosts = parser.add_argument("hosts", nargs="*", metavar="HOST", help="instead of all known")
    complete_with(hosts, "host")


async def run(context: Context, args: argparse.Namespace) -> int:
    """Ask the hosts side by side; exit code 4 if one failed, the others are shown all the same."""
    hosts = context.inventory().select(args.hosts)

    from qmigrate.controller.remote import open_agent
    from qmigrate.controller.status import status

    found = await status(hosts, open_agent)
    show(context.out, found, verbose=context.verbose > 0)
    return max(host.answer.exit_code for host in found.hosts)


def show(out: Output, found: "Status", *, verbose: bool = False) -> None:
    """Write jobs to stdout: paragraphs for people, a table for a pipe; the rest to stderr."""
    if out.json:
        out.document("qmigrate.status/1", document(found))
        return
    if found.jobs:
        if out.fits_to_terminal():
            out.lines(line for row in found.jobs for line in paragraph(row))
        else:
            out.table(table(found.jobs))
    for host in found.hosts:
        if host.answer.problem:
            out.problem(host.answer.problem)
        for line in (*_left(host, found.jobs), *(_ended(host) if verbose else ())):
            out.say(printable(line))
    answered = [host for host in found.hosts if host.answer.value]
    if answered and not found.jobs and not any(host.left for host in answered):
        names = ", ".join(host.answer.host.name for host in answered)
        out.say(printable(f"no job is under way on {names}, and nothing was left behind"))


def paragraph(row: "JobRow") -> Iterator[str]:
    """Yield what a person reads of one job."""
    way = f"{row.source or '?'} → {row.destination or '?'}"
    yield f"{row.guest}: {way}, job {row.job}{_ago(row.age_s)}"
    yield f"    {row.standing}"
    if row.next_step:
        yield f"    next: {row.next_step}"


def table(rows: Sequence["JobRow"]) -> Table:
    """Return the jobs as a table, nothing cut."""
    titles = ("GUEST", "SOURCE", "DESTINATION", "JOB", "AGE", "STANDING", "NEXT")
    cells = (
        (r.guest, r.source, r.destination, r.job, _age(r.age_s), r.standing, r.next_step)
        for r in rows
    )
    return Table(titles, tuple(cells))


def _age(age_s: float | None) -> str | None:
    from qmigrate.core.quantities import human_seconds

    return None if age_s is None else human_seconds(age_s)


def _ago(age_s: float | None) -> str:
    age = _age(age_s)
    return f", {age} ago" if age else ""


def _left(host: "HostStatus", rows: Sequence["JobRow"]) -> Iterator[str]:
    from qmigrate.core.belongings import Verdict

    name = host.answer.host.name
    removable = sum(thing.verdict is Verdict.REMOVABLE for thing in host.left)
    if removable:
        what = "1 thing of ours serves" if removable == 1 else f"{removable} things of ours serve"
        yield f"{name}: {what} nobody: qmigrate cleanup {name}"
    shown = {row.job for row in rows}
    for thing in host.left:
        if thing.verdict is Verdict.RESOLVE and thing.job not in shown:
            yield f"{name}: {thing.kind} {thing.name}: {thing.why}: {thing.next_step}"
    if host.answer.value:
        yield from (f"{name}: {problem}" for problem in host.answer.value.belongings.problems)


def _ended(host: "HostStatus") -> Iterator[str]:
    for job in host.ended:
        yield f"{host.answer.host.name}: job {job.job} ended{_ago(job.ended_s_ago)}: {job.outcome}"


def document(found: "Status") -> dict[str, Any]:
    """Return the body of ``qmigrate.status/1``."""
    return {
        "jobs": [
            {
                "guest": row.guest,
                "job": row.job,
                "source": row.source,
                "destination": row.destination,
                "standing": row.standing,
                "healthy": row.healthy,
                "age_s": _rounded(row.age_s),
                "next_step": row.next_step,
                "sides": [
                    {
                        "host": side.host,
                        "side": str(side.job.side),
                        "record": side.job.record and str(side.job.record),
                        "state": side.job.state,
                        "linked": side.job.linked,
                        "worked_at": side.job.worked_at,
                        "qemu_here": side.job.qemu_here,
                        "age_s": _rounded(side.job.age_s),
                        "note": side.job.note,
                    }
                    for side in row.sides
                ],
            }
            for row in found.jobs
        ],
        "hosts": [
            {
                "host": host.answer.host.name,
                "error": asdict(host.answer.problem) if host.answer.problem else None,
                "exit": host.answer.exit_code,
                "leftovers": [
                    {"kind": str(t.kind), "name": t.name, "verdict": str(t.verdict), "why": t.why}
                    for t in host.left
                ],
                "ended": [
                    {
                        "job": job.job,
                        "outcome": str(job.outcome),
                        "ended_s_ago": _rounded(job.ended_s_ago),
                    }
                    for job in host.ended
                ],
            }
            for host in found.hosts
        ],
    }


def _rounded(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s, 1)
