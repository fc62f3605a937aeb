"""The journal: whatever cuts a write short, the record before it stays in force."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.agent import journal
from qmigrate.agent.journal import SLOT_BYTES, VERSION, Entry, Journal
from qmigrate.core.errors import HostError
from qmigrate.core.handover import Record
from qmigrate.core.model import Address, RunState

ENTRY = Entry(
    version=VERSION,
    number=0,
    job="web1-abc",
    side="source",
    record=Record.PREPARED,
    boot_id="b",
    peer_boot_id=None,
    guest="web1",
    uuid=None,
    had=RunState.RUNNING,
    stopped_by_us=False,
    pid=7,
    start_ticks=8,
    monitor="/run/m",
    made=("tap t0 web1",),
    boottime_s=1.5,
    peer=(Address("192.0.2.1", 4000),),
)


def at(record: Record) -> Entry:
    return replace(ENTRY, record=record)


def slots(tmp_path: Path, *records: Record) -> bytes:
    path = tmp_path / "made"
    path.unlink(missing_ok=True)
    with Journal.create(path) as made:
        for record in records:
            made.write(at(record))
    return path.read_bytes()


def test_what_is_written_is_read_with_its_number(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "j") as made:
        assert made.entry is None
        for record in (Record.PREPARED, Record.SWITCHING, Record.AWAY):
            made.write(at(record))
    assert journal.read(tmp_path / "j") == replace(at(Record.AWAY), number=3)
    with Journal.open(tmp_path / "j") as again:
        assert again.entry == replace(at(Record.AWAY), number=3)
        again.write(at(Record.PROVED))
    assert journal.read(tmp_path / "j") == replace(at(Record.PROVED), number=4)


def test_an_empty_journal_says_nothing(tmp_path: Path) -> None:
    Journal.create(tmp_path / "j").__exit__(None, None, None)
    assert journal.read(tmp_path / "j") is None


@pytest.mark.parametrize("earlier", [(Record.PREPARED,), (Record.PREPARED, Record.SWITCHING)])
def test_a_write_cut_at_any_byte_leaves_the_record_before_it_in_force(
    tmp_path: Path, earlier: tuple[Record, ...]
) -> None:
    before = slots(tmp_path, *earlier)
    after = slots(tmp_path, *earlier, Record.AWAY)
    start = ((len(earlier) + 1) % 2) * SLOT_BYTES
    content = len(after[start : start + SLOT_BYTES].rstrip(b" "))
    path = tmp_path / "cut"
    for cut in range(content):
        path.write_bytes(before[:start] + after[start : start + cut] + before[start + cut :])
        found = journal.read(path)
        assert found is not None
        assert (found.record, found.number) == (earlier[-1], len(earlier)), f"cut at {cut}"
    path.write_bytes(after)
    found = journal.read(path)
    assert found is not None
    assert found.record is Record.AWAY


@given(st.binary(max_size=2 * SLOT_BYTES))
def test_garbage_is_no_record_and_raises_nothing(content: bytes) -> None:
    assert journal._latest(content) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return slots(tmp_path_factory.mktemp("journal"), Record.PREPARED, Record.SWITCHING)


@given(st.integers(0, 2 * SLOT_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_is_never_read_as_another_record(
    whole: bytes, place: int, change: int
) -> None:
    content = bytearray(whole)
    content[place] ^= change
    found = journal._latest(bytes(content))
    assert found in (
        replace(at(Record.PREPARED), number=1),
        replace(at(Record.SWITCHING), number=2),
    )


def test_a_journal_never_grows(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal.create(path) as made:
        assert path.stat().st_size == 2 * SLOT_BYTES
        blocks = path.stat().st_blocks
        for number in range(20):
            made.write(replace(at(Record.PREPARED), made=("x" * 100,) * number))
            assert (path.stat().st_size, path.stat().st_blocks) == (2 * SLOT_BYTES, blocks)


def test_an_entry_that_does_not_fit_is_refused_and_the_one_before_stays(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "j") as made:
        made.write(ENTRY)
        with pytest.raises(HostError, match="bytes"):
            made.write(replace(ENTRY, note="x" * SLOT_BYTES))
        assert made.entry == replace(ENTRY, number=1)
    assert journal.read(tmp_path / "j") == replace(ENTRY, number=1)


def test_a_journal_is_not_made_over_another_or_through_a_link(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal.create(path).__exit__(None, None, None)
    with pytest.raises(HostError, match="exists"):
        Journal.create(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        Journal.open(tmp_path / "link")


def test_no_space_at_the_start_is_an_error_that_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HostError, match="No space left") as caught:
        Journal.create(tmp_path / "j")
    assert caught.value.problem.next_step == "make room in /run, then try again"
    assert not (tmp_path / "j").exists()


def test_a_short_write_at_the_start_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:4096], at))
    with pytest.raises(HostError, match="no journal can be kept"):
        Journal.create(tmp_path / "j")
