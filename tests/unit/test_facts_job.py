"""A guest is known to be in a job by the journal that names its process, and by that only."""

from dataclasses import replace
from pathlib import Path

import pytest

from qmigrate.agent import guests
from qmigrate.agent.journal import VERSION, Entry, Journal
from qmigrate.agent.process import Process
from qmigrate.core.handover import Record
from qmigrate.core.model import RunState

SEEN = Process(4711, 99, "/usr/bin/qemu-system-x86_64", False, ("qemu",), False)
ENTRY = Entry(
    version=VERSION,
    number=0,
    job="j1",
    side="source",
    record=Record.PREPARED,
    boot_id="b",
    peer_boot_id=None,
    guest="web1",
    uuid=None,
    had=RunState.RUNNING,
    stopped_by_us=False,
    pid=4711,
    start_ticks=99,
    monitor=None,
    made=(),
    boottime_s=1.0,
)


@pytest.mark.parametrize(
    ("entry", "job"),
    [
        (ENTRY, None),  # prepared, and nobody holds its lock: it has done nothing and never will
        (replace(ENTRY, side="destination"), "j1"),
        (replace(ENTRY, record=Record.SWITCHING), "j1"),
        (replace(ENTRY, record=Record.AWAY), "j1"),
        (replace(ENTRY, record=Record.DONE), None),
        (replace(ENTRY, record=Record.RESTORED), None),
        (replace(ENTRY, record=Record.ENDED), None),
        (replace(ENTRY, start_ticks=98), None),
        (replace(ENTRY, pid=None, start_ticks=None), None),
        (None, None),
    ],
)
def test_only_a_journal_of_this_very_process_that_is_not_done_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Entry | None, job: str | None
) -> None:
    monkeypatch.setattr(guests, "RUN_DIRECTORY", str(tmp_path))
    for name in ("j0", "j1"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    (tmp_path / "jobs" / "j0" / "journal").write_bytes(b"garbage")
    with Journal.create(tmp_path / "jobs" / "j1" / "journal") as written:
        if entry:
            written.write(entry)
    assert guests.job_of(SEEN) == job


def test_a_job_that_is_prepared_counts_while_its_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "RUN_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(guests.locks, "is_held", lambda key: key == "pid-4711-99")
    (tmp_path / "jobs" / "j1").mkdir(parents=True)
    with Journal.create(tmp_path / "jobs" / "j1" / "journal") as written:
        written.write(ENTRY)
    assert guests.job_of(SEEN) == "j1"
