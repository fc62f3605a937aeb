"""``qmigrate status`` and ``cleanup`` as people and programs see them; hosts are played."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from qmigrate.agent.requests import (
    JobList,
    ListBelongings,
    ListJobs,
    Removal,
    Removals,
    RemoveBelongings,
)
from qmigrate.cli import cleanup as cleanup_command
from qmigrate.cli.context import Context
from qmigrate.cli.parser import parse
from qmigrate.cli.render import Output
from qmigrate.cli.status import show
from qmigrate.controller import remote
from qmigrate.controller.remote import StartTimings
from qmigrate.controller.session import LoginTimings
from qmigrate.controller.start import StartSteps
from qmigrate.controller.status import Status, status
from qmigrate.core.belongings import Belongings, LockFile
from qmigrate.core.errors import LoginError, QmigrateError, UsageError
from qmigrate.core.handover import Record
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import Outcome
from qmigrate.core.model import HostSpec
from tests.support.jobs_seen import destination, source

TIMINGS = StartTimings(LoginTimings(0.01, 0.02, 0.03), 0.0, StartSteps(0.04, 0.0, 0.05), 0.15)
STALE = LockFile("pid-1-2", "old-000001", held=False)
ENDED = EndedJob("db-000001", Outcome.CANCELLED, 90.0)
HOSTS: dict[str, tuple[JobOnHost, ...]] = {
    "alpha": (source(Record.PREPARED, worked_at=True, state="copying", linked=True),),
    "beta": (destination(Record.PREPARED, worked_at=True, state="prepared", linked=True),),
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Played:
    """A host that answers; what it was asked to remove is kept."""

    timings = TIMINGS

    def __init__(self, host: str, stays: str | None = None) -> None:
        self.host = host
        self.stays = stays
        self.removed: list[RemoveBelongings] = []

    async def call(self, request: Any, *, deadline_s: float = 0.0) -> Any:
        await trio.lowlevel.checkpoint()
        jobs = HOSTS.get(self.host, ())
        match request:
            case ListJobs():
                return JobList("b", jobs, (ENDED,))
            case ListBelongings():
                return Belongings("b", jobs, locks=(STALE,), problems=("taps are not known",))
            case RemoveBelongings():
                self.removed.append(request)
                done = [Removal(t, removed=not self.stays, why=self.stays) for t in request.things]
                return Removals(tuple(done))


@asynccontextmanager
async def open_played(spec: HostSpec) -> AsyncIterator[Played]:
    if spec.name == "gamma":
        raise LoginError("nobody is let in")
    yield Played(spec.name)


async def asked(*names: str) -> Status:
    return await status(tuple(HostSpec(name, name) for name in names), open_played)


def output(*, json: bool = False, terminal: bool = False) -> Output:
    return Output(json=json, stdout=Terminal() if terminal else io.StringIO(), stderr=io.StringIO())


def said(out: Output) -> tuple[str, str]:
    assert isinstance(out.stdout, io.StringIO)
    assert isinstance(out.stderr, io.StringIO)
    return out.stdout.getvalue(), out.stderr.getvalue()


async def test_a_person_reads_a_paragraph_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = output(terminal=True)
    show(out, await asked("alpha", "beta"))
    text, trouble = said(out)
    assert text == (
        "web1: alpha → beta, job web1-3fa9c2, 3.0 s ago\n"
        "    its memory is being copied, the guest is on alpha\n"
        "    next: qmigrate watch web1-3fa9c2@alpha\n"
    )
    assert "alpha: 1 thing of ours serves nobody: qmigrate cleanup alpha\n" in trouble
    assert "beta: taps are not known\n" in trouble
    assert "db-000001" not in trouble


async def test_a_pipe_gets_a_table_and_trouble_hides_no_host() -> None:
    out = output()
    found = await asked("alpha", "gamma")
    show(out, found, verbose=True)
    text, trouble = said(out)
    [titles, row] = [line.split("\t") for line in text.splitlines()]
    assert dict(zip(titles, row, strict=True))["NEXT"] == "qmigrate watch web1-3fa9c2@alpha"
    assert "gamma: nobody is let in" in trouble
    assert "job db-000001 ended, 1:30 ago: cancelled" in trouble
    assert [host.answer.exit_code for host in found.hosts] == [0, 4]


async def test_a_program_gets_both_sides_and_the_leftovers() -> None:
    out = output(json=True)
    show(out, await asked("alpha", "beta", "gamma"))
    found = json.loads(said(out)[0])
    assert found["schema"] == "qmigrate.status/1"
    [job] = found["jobs"]
    assert [(s["host"], s["side"], s["state"]) for s in job["sides"]] == [
        ("alpha", "source", "copying"),
        ("beta", "destination", "prepared"),
    ]
    alpha, _, gamma = found["hosts"]
    assert [thing["kind"] for thing in alpha["leftovers"]] == ["lock"]
    assert (alpha["error"], gamma["error"]["code"]) == (None, "login")
    assert alpha["ended"] == [{"job": "db-000001", "outcome": "cancelled", "ended_s_ago": 90.0}]


async def test_nothing_at_all_is_said_to_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Played, request: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return JobList("b", ()) if isinstance(request, ListJobs) else Belongings("b")

    monkeypatch.setattr(Played, "call", nothing)
    out = output()
    show(out, await asked("alpha", "beta"))
    assert said(out) == ("", "no job is under way on alpha, beta, and nothing was left behind\n")


# cleanup


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Return the host alpha, which is what any command opens."""
    host = Played("delta")

    @asynccontextmanager
    async def opened(_: HostSpec) -> AsyncIterator[Played]:
        yield host

    monkeypatch.setattr(remote, "open_agent", opened)
    return host


class Typed(io.StringIO):
    """A terminal at which somebody has typed something."""

    def isatty(self) -> bool:
        return True


async def clean(out: Output, *words: str) -> int:
    args = parse([cleanup_command], ["cleanup", "root@delta", *words])
    return await cleanup_command.run(Context(out, config="/dev/null"), args)


@pytest.mark.parametrize(
    ("typed", "removes"),
    [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)],
)
async def test_a_person_is_asked_and_only_a_yes_is_one(
    played: Played, monkeypatch: pytest.MonkeyPatch, typed: str, *, removes: bool
) -> None:
    monkeypatch.setattr(cleanup_command.sys, "stdin", Typed(typed))
    out = output()
    assert await clean(out) == 0
    assert bool(played.removed) is removes
    text, trouble = said(out)
    assert text == "lock pid-1-2: nobody holds it\n"
    assert "[y/N]" in trouble
    assert ("1 of 1 removed from root@delta" in trouble) is removes


@pytest.mark.parametrize("words", [(), ("--json",)])
async def test_where_nobody_can_be_asked_nothing_is_looked_at(
    played: Played, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(cleanup_command.sys, "stdin", Typed("y\n") if words else io.StringIO())
    with pytest.raises(UsageError, match="nobody can be asked"):
        await clean(output(json=bool(words)), *words)
    assert played.removed == []


async def test_a_dry_run_removes_nothing_and_says_what_it_would(played: Played) -> None:
    out = output(json=True)
    assert await clean(out, "--dry-run", "--json") == 0
    found = json.loads(said(out)[0])
    assert (found["schema"], found["dry_run"]) == ("qmigrate.cleanup/1", True)
    assert [(t["kind"], t["verdict"], t["removed"]) for t in found["things"]] == [
        ("lock", "removable", None)
    ]
    assert played.removed == []


async def test_what_stays_is_said_and_makes_the_exit_code_8(played: Played) -> None:
    played.stays = "it is held"
    out = output(json=True)
    assert await clean(out, "--yes", "--json") == 8
    [thing] = json.loads(said(out)[0])["things"]
    assert (thing["removed"], thing["problem"]) == (False, "it is held")
    out = output()
    assert await clean(out, "--yes") == 8
    assert "still there: lock pid-1-2: it is held" in said(out)[1]


@pytest.mark.parametrize("days", ["-1", "x", "nan", "1e9"])
def test_a_number_of_days_is_one(days: str) -> None:
    with pytest.raises(QmigrateError, match="no number of days"):
        parse([cleanup_command], ["cleanup", "alpha", f"--logs={days}"])
