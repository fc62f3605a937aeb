"""What a job's agent may not forget: one small file, two slots, no allocation after the start.

`/run/qmigrate/jobs/<id>/journal` is tmpfs, so it protects against an agent's death; a host's death
shows by the boot id written in it. Both slots are filled with blanks when the file is made, so a
`/run` that fills up later cannot stop a record from being written::

    slot 0                             slot 1                            SLOT_BYTES each
    ┌──────────────┬──────┬─────────┐  ┌──────────────┬──────┬─────────┐
    │ sha256 (hex) │ "\n" │ JSON …  │  │ sha256 (hex) │ "\n" │ JSON …  │  padded with blanks
    └──────────────┴──────┴─────────┘  └──────────────┴──────┴─────────┘

The entry with the higher number whose checksum fits is the record; the next one goes into the
other slot, so a write cut short by SIGKILL leaves the one before it in force. This is why it is not
written anew and renamed: a rename needs space for a second file at the worst moment.
"""

import errno
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from qmigrate.agent.protocol import codec, parse_json_untrusted, structure_untrusted
from qmigrate.core.errors import HostError, ProtocolError
from qmigrate.core.handover import Record
from qmigrate.core.model import Address, RunState

SLOT_BYTES = 32 * 1024
VERSION = 1
_DIGEST_BYTES = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as its journal knows it; every field is as of the last record."""

    version: int
    number: int
    job: str
    side: str  # "source" or "destination"
    record: Record
    boot_id: str
    peer_boot_id: str | None
    guest: str
    uuid: str | None
    had: RunState  # the state to be found again at the end
    stopped_by_us: bool
    pid: int | None  # the guest's QEMU here
    start_ticks: int | None
    monitor: str | None
    made: tuple[str, ...]  # what this job made here: "tap NAME ALIAS", "directory PATH", …
    boottime_s: float  # CLOCK_BOOTTIME of the record
    peer: tuple[Address, ...] = ()  # where the other side listens
    note: str | None = None  # why, as a sentence, where there is one


class Journal:
    """An open journal; `write` returns when the record stands."""

    def __init__(self, descriptor: int, entry: Entry | None) -> None:
        self._descriptor = descriptor
        self.entry = entry

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file and fill it; raise `HostError` where the space is not to be had."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as exc:
            raise HostError(f"no journal can be kept at {path}: {exc.strerror}") from exc
        try:
            _write_whole(descriptor, b" " * (2 * SLOT_BYTES), 0)
        except OSError as exc:
            os.close(descriptor)
            path.unlink()
            raise HostError(
                f"no journal can be kept at {path}: {exc.strerror}",
                next_step="make room in /run, then try again",
            ) from exc
        return cls(descriptor, None)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing journal; its `entry` is None if nothing was ever recorded."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(descriptor, _latest(os.pread(descriptor, 2 * SLOT_BYTES, 0)))

    def write(self, entry: Entry) -> None:
        """Make `entry` the record in force; its number is set here."""
        number = self.entry.number + 1 if self.entry else 1
        entry = replace(entry, number=number)
        text = json.dumps(codec.unstructure(entry)).encode()
        content = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
        if len(content) > SLOT_BYTES:
            raise HostError(f"a journal entry of {len(content)} bytes, more than {SLOT_BYTES}")
        _write_whole(self._descriptor, content.ljust(SLOT_BYTES), (number % 2) * SLOT_BYTES)
        self.entry = entry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def read(path: Path) -> Entry | None:
    """Return what the journal at `path` says; None if nothing was recorded.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    return _latest(path.read_bytes())


def _write_whole(descriptor: int, content: bytes, at: int) -> None:
    """Write all of `content`; a short write means that there is no space (write(2))."""
    if os.pwrite(descriptor, content, at) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _latest(content: bytes) -> Entry | None:
    entries = (_slot_untrusted(content[:SLOT_BYTES]), _slot_untrusted(content[SLOT_BYTES:]))
    return max((e for e in entries if e), key=lambda e: e.number, default=None)


def _slot_untrusted(slot: bytes) -> Entry | None:
    digest, text = slot[:_DIGEST_BYTES], slot[_DIGEST_BYTES + 1 :].rstrip(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    try:
        return structure_untrusted(parse_json_untrusted(text), Entry)
    except ProtocolError:
        return None
