"""``watch`` and ``cancel``: how a job ended is said with the exit code `migrate` would have."""

import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from qmigrate.agent.requests import CancelJob, Done, JobList, ListJobs
from qmigrate.cli import cancel, watch
from qmigrate.cli.context import Context
from qmigrate.cli.parser import parse
from qmigrate.cli.render import Output
from qmigrate.controller import remote
from qmigrate.core.errors import (
    AgentLostError,
    HostError,
    NoSuchJobError,
    Problem,
    QmigrateError,
    UnreachableError,
)
from qmigrate.core.handover import Record
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import JobNote, JobReport, Outcome
from qmigrate.core.model import HostSpec, RunState
from tests.support.jobs_seen import destination, source

R = Record
JOB = "web1-3fa9c2"
REPORT = JobReport(JOB, Outcome.MIGRATED, None, RunState.RUNNING)
UNKNOWN = JobNote(unknown=Problem("unknown-outcome", "not known", next_step="resolve it"))


class Played:
    """A host with jobs; what it says to a watcher is given, the last an error or a report."""

    def __init__(self, host: str, *jobs: JobOnHost, says: tuple[Any, ...] = ()) -> None:
        self.host = host
        self.jobs = jobs
        self.says = says
        self.after: tuple[JobOnHost, ...] | None = None  # what it knows once it was watched
        self.ended: tuple[EndedJob, ...] = ()
        self.cancels: list[CancelJob] = []
        self.refuses: HostError | None = None

    async def call(self, request: Any) -> Any:
        await trio.lowlevel.checkpoint()
        match request:
            case ListJobs():
                return JobList("b", self.jobs, self.ended)
            case CancelJob():
                self.cancels.append(request)
                if self.refuses:
                    raise self.refuses
                return Done()

    async def stream(self, _: Any) -> AsyncGenerator[Any, None]:
        await trio.lowlevel.checkpoint()
        for each in self.says:
            if isinstance(each, QmigrateError):
                self.jobs = self.jobs if self.after is None else self.after
                raise each
            yield each
        await trio.sleep_forever()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the hosts that any command opens: played ones, or the errors of those that fail."""
    found: dict[str, Any] = {}

    @asynccontextmanager
    async def opened(specs: tuple[HostSpec, ...]) -> AsyncIterator[tuple[Any, ...]]:
        yield tuple(found.values())

    monkeypatch.setattr(remote, "open_agents", opened)
    monkeypatch.setattr(remote, "Agent", Played)
    return found


async def run(
    command: Any, word: str = "web1", *, context: Context | None = None
) -> tuple[int, dict[str, Any]]:
    """Return exit code and document; an error counts as what it would end the program with."""
    out = context.out if context else output()
    args = parse([command], [command.NAME, word])
    try:
        code = await command.run(context or Context(out, config="/dev/null"), args)
    except QmigrateError as exc:
        return exc.exit_code, {"error": exc.problem.what, "next": exc.problem.next_step}
    assert isinstance(out.stdout, io.StringIO)
    return code, json.loads(out.stdout.getvalue())


def output() -> Output:
    return Output(json=True, stdout=io.StringIO(), stderr=io.StringIO())


def live(record: Record, **changes: Any) -> JobOnHost:
    return source(record, worked_at=True, **changes)


@pytest.mark.parametrize("command", [watch, cancel])
@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.MIGRATED, 0),
        (Outcome.ROLLED_BACK, 5),
        (Outcome.CANCELLED, 6),
        (Outcome.GUEST_ENDED, 9),
    ],
)
async def test_a_live_job_is_followed_at_its_source_to_its_end(
    hosts: dict[str, Any], command: Any, outcome: Outcome, code: int
) -> None:
    report = JobReport(JOB, outcome, None, RunState.RUNNING)
    hosts["beta"] = Played("beta", destination(R.PREPARED, worked_at=True))
    hosts["alpha"] = Played("alpha", live(R.PREPARED), says=(JobNote(warning="too late"), report))
    ended, document = await run(command)
    assert (ended, document["outcome"]) == (code, outcome)
    assert hosts["beta"].cancels == []
    assert hosts["alpha"].cancels == ([CancelJob(JOB)] if command is cancel else [])


@pytest.mark.parametrize("command", [watch, cancel])
async def test_a_job_that_has_ended_says_how(hosts: dict[str, Any], command: Any) -> None:
    hosts["alpha"] = Played("alpha", says=(REPORT,))
    hosts["alpha"].ended = (EndedJob(JOB, Outcome.MIGRATED, 3.0),)
    assert (await run(command))[0] == 0
    assert hosts["alpha"].cancels == []


# What journals say at which nobody works, and the exit code of `watch` and `cancel`.
LEFT = [
    (source(R.PREPARED), destination(R.PREPARED), 7),
    (source(R.AWAY), destination(R.GO), 7),
    (None, destination(R.REFUSED), 7),  # how it went on the source is not known
    (source(R.RESTORED), None, 5),
    (source(R.ENDED), destination(R.PREPARED), 9),
    (source(R.DONE), None, 0),
    (source(R.AWAY), destination(R.DONE), 0),
]


@pytest.mark.parametrize("command", [watch, cancel])
@pytest.mark.parametrize(("alpha", "beta", "code"), LEFT)
async def test_a_job_whose_agents_are_gone_ends_as_its_journals_say(
    hosts: dict[str, Any], command: Any, alpha: JobOnHost, beta: JobOnHost, code: int
) -> None:
    hosts["alpha"] = Played("alpha", *filter(None, [alpha]))
    hosts["beta"] = Played("beta", *filter(None, [beta]))
    ended, document = await run(command)
    assert ended == code, document
    if code == 7:
        assert document["next"] == "qmigrate resolve web1"


async def test_an_agent_that_dies_while_it_is_watched_is_resolved(hosts: dict[str, Any]) -> None:
    gone = HostError("the job's agent does not answer")
    hosts["alpha"] = Played("alpha", live(R.AWAY), says=(gone,))
    hosts["alpha"].after = (source(R.AWAY),)
    assert (await run(watch))[1]["next"] == "qmigrate resolve web1"


async def test_a_lost_connection_leaves_the_line_to_come_back_with(hosts: dict[str, Any]) -> None:
    hosts["alpha"] = Played("alpha", live(R.AWAY), says=(AgentLostError("cut off"),))
    code, document = await run(watch)
    assert (code, document["next"]) == (7, f"come back with: qmigrate watch {JOB}@alpha")


async def test_a_signal_leaves_the_job_alone(
    hosts: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    hosts["alpha"] = Played("alpha", live(R.AWAY))
    context = Context(output(), config="/dev/null")
    told: list[tuple[int, dict[str, Any]]] = []

    async def watching() -> None:
        told.append(await run(watch, context=context))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching)
        await trio.testing.wait_all_tasks_blocked()
        assert context.interrupts.deliver(2)
    [(code, document)] = told
    assert (code, document["next"]) == (7, f"come back with: qmigrate watch {JOB}@alpha")


async def test_what_cannot_be_known_ends_a_cancel_and_not_a_watch(hosts: dict[str, Any]) -> None:
    hosts["alpha"] = Played("alpha", live(R.AWAY), says=(UNKNOWN, REPORT))
    assert (await run(cancel))[0] == 7
    assert (await run(watch))[0] == 0


async def test_a_job_is_not_cancelled_where_its_source_is_not_seen(hosts: dict[str, Any]) -> None:
    hosts["beta"] = Played("beta", destination(R.PREPARED, worked_at=True))
    hosts["beta"].refuses = HostError("a job is cancelled at its source")
    assert await run(cancel) == (4, {"error": "a job is cancelled at its source", "next": None})


async def test_a_host_that_does_not_answer_may_know_what_the_others_do_not(
    hosts: dict[str, Any],
) -> None:
    hosts["alpha"] = Played("alpha")
    hosts["beta"] = UnreachableError("no route").at(host="beta")
    assert (await run(watch))[1]["error"] == "no route"
    del hosts["beta"]
    assert "no host that was asked knows a job of web1" in (await run(watch))[1]["error"]
    hosts["alpha"].says = (NoSuchJobError(f"there is no job {JOB} here"),)
    assert await run(watch, JOB) == (4, {"error": f"there is no job {JOB} here", "next": None})
