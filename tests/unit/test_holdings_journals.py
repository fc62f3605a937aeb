"""What an agent reads of the jobs on its host; only the directories are a test's own."""

import json
import os
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from qmigrate.agent import clearing, holdings, locks, places
from qmigrate.agent.codec import codec
from qmigrate.agent.journal import VERSION, Entry, Journal
from qmigrate.agent.requests import ListJobs
from qmigrate.agent.server import AgentContext, Shared
from qmigrate.core.belongings import BareJob, LockFile
from qmigrate.core.errors import HostError
from qmigrate.core.handover import Record
from qmigrate.core.job import JobReport, Outcome
from qmigrate.core.model import RunState, Side

ENTRY = Entry(
    version=VERSION,
    number=0,
    job="web1-0000aa",
    side="destination",
    record=Record.GO,
    boot_id=holdings.boot_id(),
    peer_boot_id=None,
    guest="web1",
    uuid="6f2c",
    had=RunState.RUNNING,
    stopped_by_us=False,
    pid=None,
    start_ticks=None,
    monitor=None,
    made=("tap qmigrate:guest=6f2c nic=n0",),
    boottime_s=0.0,
    note="a reason",
)
SPEC = {
    "guest": "web1",
    "peer_host": "alpha",
    "disks": ["/srv/web1.img"],
    "destination": {"twin": {"tag": "6f2c"}},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where /run/qmigrate is for this test; /var/log/qmigrate is beside it."""
    for module in (holdings, places, locks):
        monkeypatch.setattr(module, "RUN_DIRECTORY", str(tmp_path / "run"))
    for module in (holdings, places):
        monkeypatch.setattr(module, "LOG_DIRECTORY", str(tmp_path / "log"))
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "run" / "locks").mkdir()
    (tmp_path / "log").mkdir()
    return tmp_path / "run"


def journal(run: Path, entry: Entry | None, *, job: str = ENTRY.job) -> Path:
    directory = run / "jobs" / job
    directory.mkdir()
    with Journal.create(directory / "journal") as written:
        if entry:
            written.write(entry)
    return directory


def test_a_journal_and_the_spec_beside_it_tell_a_job(run: Path) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    own = os.getpid()
    ticks = holdings.twin.start_ticks(own)
    entry = replace(ENTRY, boottime_s=now - 5, pid=own, start_ticks=ticks)
    (journal(run, entry) / "spec.json").write_text(json.dumps(SPEC))
    [job], bare = holdings.read_jobs()
    assert bare == ()
    assert (job.job, job.side, job.record) == (ENTRY.job, Side.DESTINATION, Record.GO)
    assert (job.peer_host, job.disks, job.note) == ("alpha", ("/srv/web1.img",), "a reason")
    assert job.age_s == pytest.approx(5, abs=4)
    assert (job.qemu_here, job.worked_at) == (True, False)
    assert job.made == ENTRY.made


@pytest.mark.parametrize("spec", [None, "", "[]", "{", '{"disks": "x", "source": 7}', "\xff"])
def test_a_spec_that_is_not_there_or_is_anothers_costs_nothing_but_what_it_says(
    run: Path, spec: str | None
) -> None:
    directory = journal(run, ENTRY)
    if spec is not None:
        (directory / "spec.json").write_text(spec, encoding="latin-1")
    [job], _ = holdings.read_jobs()
    assert (job.peer_host, job.disks) == (None, ())


def test_a_record_of_another_boot_has_no_age_and_no_process(run: Path) -> None:
    own = os.getpid()
    ticks = holdings.twin.start_ticks(own)
    journal(run, replace(ENTRY, boot_id="another", pid=own, start_ticks=ticks))
    [job], _ = holdings.read_jobs()
    assert (job.age_s, job.qemu_here) == (None, False)


def test_a_journal_that_says_nothing_is_told_from_one_that_cannot_be_read(run: Path) -> None:
    journal(run, None, job="blank-000001")
    journal(run, ENTRY, job="garbled-000001")
    (run / "jobs" / "garbled-000001" / "journal").write_bytes(b"x" * 100)
    (run / "jobs" / "none-000001").mkdir()
    (run / "jobs" / "none-000001" / "spec.json").write_text(json.dumps(SPEC))
    (run / "jobs" / "..strange").mkdir()  # no job's id
    jobs, bare = holdings.read_jobs()
    assert jobs == ()
    assert bare == (
        BareJob("blank-000001", garbled=False),
        BareJob("garbled-000001", garbled=True),
        BareJob("none-000001", garbled=False, guest="web1", tag="6f2c"),
    )


def test_a_job_is_worked_at_while_a_lock_that_names_it_is_held(run: Path) -> None:
    journal(run, ENTRY)
    path = run / "locks" / "guest-6f2c"
    path.write_text(ENTRY.job)
    assert holdings.read_locks() == (LockFile("guest-6f2c", ENTRY.job, held=False),)
    assert not holdings.read_jobs()[0][0].worked_at
    descriptor = os.open(path, os.O_RDWR)
    try:
        locks.fcntl.flock(descriptor, locks.fcntl.LOCK_EX)
        assert holdings.read_jobs()[0][0].worked_at
    finally:
        os.close(descriptor)


def test_a_look_at_a_lock_keeps_no_job_from_taking_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "locks" / "guest-6f2c"
    path.write_text("")
    monkeypatch.setattr(locks, "secure_directory", lambda path, **_: Path(path))
    looker = os.open(path, os.O_RDONLY)
    locks.fcntl.flock(looker, locks.fcntl.LOCK_SH)
    looks = [looker]
    monkeypatch.setattr(os, "sched_yield", lambda: os.close(looks.pop()))
    taken = locks.take("guest-6f2c", "web1-0000aa")
    try:
        assert looks == []  # it waited for the look to end
        with pytest.raises(HostError, match="already in job web1-0000aa"):
            locks.take("guest-6f2c", "web1-0000bb")
    finally:
        locks.remove("guest-6f2c", taken)


def test_a_host_on_which_we_never_were_has_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RUN_DIRECTORY", "LOG_DIRECTORY"):
        monkeypatch.setattr(holdings, name, "/nowhere")
    assert (holdings.read_jobs(), holdings.read_locks()) == (((), ()), ())
    assert holdings.read_ended(5) == ()


def test_jobs_that_ended_are_told_from_their_reports_the_newest_first(run: Path) -> None:
    for number, job in enumerate(("a-000001", "b-000001", "c-000001")):
        directory = run.parent / "log" / job
        directory.mkdir()
        report = JobReport(job, Outcome.CANCELLED, None, RunState.RUNNING)
        (directory / "report.json").write_text(json.dumps(codec.unstructure(report)))
        os.utime(directory / "report.json", (1000 + number, 1000 + number))
    (run.parent / "log" / "b-000001" / "report.json").write_text("{}")  # of another version
    (run.parent / "log" / "d-000001").mkdir()  # a destination keeps none
    assert [e.job for e in holdings.read_ended(9)] == ["c-000001", "a-000001"]
    assert [e.job for e in holdings.read_ended(0)] == []


async def test_an_agent_that_stands_still_keeps_nobody_waiting(
    run: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    journal(run, ENTRY)
    monkeypatch.setattr(
        holdings, "read_locks", lambda: (LockFile("guest-6f2c", ENTRY.job, held=True),)
    )

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(holdings, "ask", hang)
    async with trio.open_nursery() as nursery:
        ctx = AgentContext(Shared(nursery, AsyncExitStack()), hang)
        began = trio.current_time()
        [job] = (await holdings.list_jobs(ctx, ListJobs())).jobs
    assert (job.worked_at, job.state) == (True, None)
    assert trio.current_time() - began == pytest.approx(holdings.ASK_DEADLINE_S)


def test_words_that_grew_too_long_are_cut_to_their_end_while_they_are_written(
    tmp_path: Path,
) -> None:
    log = tmp_path / "qemu.log"
    with log.open("ab", buffering=0) as qemu:
        qemu.write(b"old\n" * 100_000 + b"last words\n")
        clearing._cut(log)
        qemu.write(b"and on\n")
    text = log.read_bytes()
    assert text.endswith(b"last words\nand on\n")
    assert len(text) == clearing.KEPT_WORDS_BYTES + len(b"and on\n")
