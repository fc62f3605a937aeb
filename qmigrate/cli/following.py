"""Follow a job at whatever host knows it to its end, and say how it ended as `migrate` would."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import trio

from qmigrate.agent.requests import JobList, ListJobs, WatchJob
from qmigrate.cli.context import Context
from qmigrate.cli.jobs import Known, telling
from qmigrate.cli.moving import MoveView, show_report
from qmigrate.cli.progress import open_progress
from qmigrate.core.belongings import resolve_line
from qmigrate.core.errors import (
    AgentLostError,
    GuestEndedError,
    HostError,
    NoSuchJobError,
    Problem,
    QmigrateError,
    RolledBackError,
    UnknownOutcomeError,
)
from qmigrate.core.handover import Record
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.job import JobNote, JobReport, Outcome

if TYPE_CHECKING:
    from qmigrate.controller.remote import Agent


async def follow(
    context: Context, job: str, places: Sequence[Known], *, until_unknown: bool = False
) -> int:
    """Show the job until its end and return the exit code that `migrate` would have ended with.

    `until_unknown`: leave when who runs the guest cannot be known for now. Raises
    `UnknownOutcomeError` then, when nobody works at it any more, and when a signal leaves it alone.
    """
    problem: QmigrateError | None = None
    for place in places:
        if place.side is not None and not place.side.worked_at:
            continue  # nobody is there to be asked
        try:
            report = await _watch(context, job, place.agent, until_unknown=until_unknown)
        except AgentLostError as exc:
            raise _goes_on(job, place.agent.host, str(exc)) from exc
        except HostError as exc:
            problem = telling(problem, exc)
            continue
        return show_report(context.out, report)
    sides = [(place.agent.host, place.side) for place in places if place.side]
    if problem is not None and not isinstance(problem, NoSuchJobError):
        sides = [side for place in places for side in await _now(job, place.agent)]
    return _say_left(context, job, sides, problem)


async def _watch(context: Context, job: str, agent: "Agent", *, until_unknown: bool) -> JobReport:
    """Return the job's report. A signal leaves the job alone and raises `UnknownOutcomeError`."""
    unknown: Problem | None = None
    with (
        open_progress(context.out) as progress,
        trio.CancelScope() as scope,
        context.interrupts.handled_by(lambda _count: scope.cancel()),
    ):
        view = MoveView(context.out, progress)
        async with aclosing(agent.stream(WatchJob(job))) as notes:
            async for note in notes:
                if isinstance(note, JobReport):
                    return note
                if isinstance(note, JobNote):
                    view.note(note)
                    unknown = note.unknown
                    if unknown is not None and until_unknown:
                        break
    if scope.cancelled_caught:
        raise _goes_on(job, agent.host, f"job {job} goes on by itself")
    if unknown is not None:
        error = QmigrateError.of(unknown)
        raise error
    raise HostError("the job's agent ended without a report", host=agent.host)


def _goes_on(job: str, host: str, why: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        why, host=host, next_step=f"come back with: qmigrate watch {job}@{host}"
    )


async def _now(job: str, agent: "Agent") -> list[tuple[str, JobOnHost]]:
    """Return what a host knows of the job now: its agent may have died while it was watched."""
    jobs: JobList = await agent.call(ListJobs())
    return [(agent.host, one) for one in jobs.jobs if one.job == job]


def _say_left(
    context: Context,
    job: str,
    sides: Sequence[tuple[str, JobOnHost]],
    problem: QmigrateError | None,
) -> int:
    """Say how a job has ended whose agents are gone, from what their journals say."""
    if any(side.worked_at for _, side in sides):
        raise problem or HostError(f"the agent of job {job} does not answer")
    for host, side in sides:
        match side.record:
            case Record.DONE:
                report = JobReport(job, Outcome.MIGRATED, None, side.had)
                return show_report(context.out, report)
            case Record.RESTORED:
                what = side.note or "its agents died after they had brought the guest back"
                raise RolledBackError(f"job {job}: {what}", host=host)
            case Record.ENDED:
                raise GuestEndedError(f"job {job}: {side.note or 'the guest ended'}", host=host)
            case _:
                continue
    if not sides:
        raise problem or NoSuchJobError(f"no host knows job {job}")
    said = "; ".join(f"the journal on {h} says {s.record or 'nothing'}" for h, s in sides)
    raise UnknownOutcomeError(
        f"nobody works at job {job} any more, and how it ended is not known: {said}",
        host=sides[0][0],
        next_step=resolve_line(sides[0][1].guest),
    )
