"""The messages between controller and agent: JSON lines over the agent's stdin and stdout.

One line, one message, at most `LINE_LIMIT` bytes. The agent speaks first::

    agent       {"op": "Hello", "protocol": 1, "version": "0.1.0", …}
    controller  {"op": "Call", "id": 1, "request": {"op": "ListGuests", …}}
    agent       {"op": "Note", "id": 1, "note": {…}}            any number, for calls that stream
    agent       {"op": "Answer", "id": 1, "value": {…}}         or
    agent       {"op": "Failure", "id": 1, "problem": {…}}
    controller  {"op": "Cancel", "id": 1}                       answered by Failure "cancelled"

A request is a frozen dataclass; `REPLIES` says what each is answered with. The same lines go over
a job's door. Decoding is strict: no coercion, no unknown or missing keys; it raises
`ProtocolError` and nothing else.
"""

import json
from dataclasses import dataclass
from typing import Any, get_args

from cattrs.strategies import configure_tagged_union

from qmigrate.agent.codec import (
    LINE_LIMIT,
    LineSplitter,
    codec,
    make_codec,
    parse_json_untrusted,
    structure_untrusted,
)
from qmigrate.core.errors import Problem
from qmigrate.core.job import JobNote, JobReport, JobSpec, Limits
from qmigrate.core.model import Address, Guest, GuestDetail, HostFacts

__all__ = [
    "LINE_LIMIT",
    "NOTES",
    "PROTOCOL",
    "REPLIES",
    "Answer",
    "AwaitReady",
    "Call",
    "Cancel",
    "CancelJob",
    "DiskProof",
    "DiskProofs",
    "Done",
    "Echo",
    "Failure",
    "FromAgent",
    "FromController",
    "GetHostFacts",
    "GuestList",
    "Hello",
    "InspectGuest",
    "JobStarted",
    "LineSplitter",
    "ListGuests",
    "LogFile",
    "Logs",
    "Note",
    "PointJob",
    "ProveDisks",
    "ReadLogs",
    "Request",
    "SeeDisks",
    "SetJob",
    "StartJob",
    "WatchJob",
    "codec",
    "decode_untrusted",
    "encode",
    "make_codec",
    "parse_json_untrusted",
    "structure_untrusted",
]

PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The agent's first line: who answers, and in which language."""

    protocol: int
    version: str
    hostname: str
    boot_id: str
    python: str
    uid: int
    pid: int


@dataclass(frozen=True, slots=True)
class GetHostFacts:
    """Ask for `HostFacts`; `users` and `groups` are names to look up there."""

    qemu: str | None = None  # the executable to ask; None: qemu-system-x86_64 in PATH
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    accelerator: str | None = None  # what a guest runs under: only for kvm, or None, is it probed


@dataclass(frozen=True, slots=True)
class ListGuests:
    """Ask for every QEMU on the host."""


@dataclass(frozen=True, slots=True)
class GuestList:
    """Answer to `ListGuests`."""

    guests: tuple[Guest, ...]


@dataclass(frozen=True, slots=True)
class InspectGuest:
    """Ask for the `GuestDetail` of one guest, by its name, uuid, pid or monitor path."""

    guest: str


@dataclass(frozen=True, slots=True)
class Echo:
    """Ask for the same text back: a round trip, for tests and measurement."""

    text: str
    notes: int = 0  # how many times to send it as a note first


@dataclass(frozen=True, slots=True)
class ProveDisks:
    """Leave a nonce file beside each of `paths` while the peer looks for it (DESIGN §7).

    Streams one note, `DiskProofs`, when the nonces are in place; they go when the call is
    cancelled or the agent ends. Of `files` only size and identity are told.
    """

    paths: tuple[str, ...]
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskProof:
    """An image on one host: its size and inode or device, and the nonce left beside it.

    What is not there or could not be made is None, with the reason in `problem`.
    """

    path: str
    nonce: str | None = None  # file name beside the image
    size_bytes: int | None = None
    identity: str | None = None  # "inode 4711", "serial WD-…": equal on hosts that share it
    problem: str | None = None
    seen: bool | None = None  # in an answer to SeeDisks: the nonce is there


@dataclass(frozen=True, slots=True)
class SeeDisks:
    """Look for nonces that the peer left, and for the images themselves."""

    proofs: tuple[DiskProof, ...]


@dataclass(frozen=True, slots=True)
class DiskProofs:
    """Answer to `SeeDisks`, note and answer of `ProveDisks`; in the order that was asked."""

    proofs: tuple[DiskProof, ...]


@dataclass(frozen=True, slots=True)
class StartJob:
    """Start one side of a job; answered when it is ready for its peer, or has failed."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class JobStarted:
    """Answer to `StartJob`: where this side listens."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Ask a job's own agent, through its door, to answer `JobStarted` or why not."""


@dataclass(frozen=True, slots=True)
class PointJob:
    """Tell a job where its peer listens, so that it may dial as well."""

    job: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class WatchJob:
    """Follow a job: notes until its `JobReport`; an ended one is answered from its log."""

    job: str


@dataclass(frozen=True, slots=True)
class SetJob:
    """Change a running job's limits; None leaves one as it is."""

    job: str
    downtime_ms: int | None = None
    max_downtime_ms: int | None = None
    bandwidth_bps: int | None = None


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Ask a job to stop: granted until migrate-continue, then answered "being decided"."""

    job: str


@dataclass(frozen=True, slots=True)
class Done:
    """Answer to what has no other; `text` says what it came to."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class ReadLogs:
    """Ask for what was said in a job on this host."""

    job: str


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a job's logs, its end if it is long."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Logs:
    """Answer to `ReadLogs`."""

    files: tuple[LogFile, ...]


Request = (
    GetHostFacts
    | ListGuests
    | InspectGuest
    | Echo
    | ProveDisks
    | SeeDisks
    | StartJob
    | AwaitReady
    | PointJob
    | WatchJob
    | SetJob
    | CancelJob
    | ReadLogs
)

REPLIES: dict[type, type] = {
    GetHostFacts: HostFacts,
    ListGuests: GuestList,
    InspectGuest: GuestDetail,
    Echo: Echo,
    ProveDisks: DiskProofs,
    SeeDisks: DiskProofs,
    StartJob: JobStarted,
    AwaitReady: JobStarted,
    PointJob: Done,
    WatchJob: JobReport,
    SetJob: Limits,
    CancelJob: Done,
    ReadLogs: Logs,
}

NOTES: dict[type, Any] = {  # what the notes of a streaming request are; a union must be tagged
    Echo: Echo,
    ProveDisks: DiskProofs,
    WatchJob: JobNote,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request with the number that its answer will carry."""

    id: int
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up the call `id`."""

    id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The call succeeded; `value` is the unstructured reply, typed by `REPLIES`."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Note:
    """News of a call that streams."""

    id: int
    note: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The call failed."""

    id: int
    problem: Problem


FromController = Call | Cancel
FromAgent = Hello | Answer | Note | Failure


for _union in (Request, FromController, FromAgent):
    configure_tagged_union(_union, codec, tag_name="op")


def encode(message: FromController | FromAgent) -> bytes:
    """Return `message` as one line with its newline."""
    union: Any = FromController if isinstance(message, get_args(FromController)) else FromAgent
    return json.dumps(codec.unstructure(message, union), separators=(",", ":")).encode() + b"\n"


def decode_untrusted(line: bytes, union: Any) -> Any:
    """Return the message in `line`, one of `union`; raise `ProtocolError` otherwise."""
    return structure_untrusted(parse_json_untrusted(line), union)
