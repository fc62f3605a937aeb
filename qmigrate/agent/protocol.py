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
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union
from cattrs.v import format_exception

from qmigrate.core.errors import Problem, ProtocolError
from qmigrate.core.job import JobNote, JobReport, JobSpec
from qmigrate.core.model import Address, Guest, GuestDetail, HostFacts
from qmigrate.core.secret import Secret

PROTOCOL = 1
LINE_LIMIT = 4 * 1024 * 1024  # bytes; the largest honest line is a big guest's GuestDetail

T = TypeVar("T")


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
    SetJob: Done,
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


def _exactly(cls: type) -> Callable[[Any, Any], Any]:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is cls or (cls is float and type(value) is int):
            return value
        raise TypeError(f"expected {cls.__name__}, got {type(value).__name__} {value!r:.40}")

    return hook


def make_codec() -> cattrs.Converter:
    """Return a strict converter for frozen dataclasses; cattrs' own default coerces silently."""
    codec = make_converter(forbid_extra_keys=True)
    for kind in (str, int, float, bool):
        codec.register_structure_hook(kind, _exactly(kind))
    codec.register_structure_hook(StrEnum, _member)  # else the hook of str takes its subclasses
    codec.register_structure_hook_factory(_is_tuple, _tuple_hook)
    codec.register_structure_hook_func(_is_secret, _structure_secret)
    codec.register_unstructure_hook_func(_is_secret, Secret.reveal)
    return codec


def _member(value: Any, cls: type[StrEnum]) -> StrEnum:
    if type(value) is not str and not isinstance(value, cls):
        raise TypeError(f"expected a word, got {type(value).__name__} {value!r:.40}")
    return cls(value)


def _is_secret(cls: Any) -> bool:
    return cls is Secret or get_origin(cls) is Secret


def _structure_secret(value: Any, _: Any) -> Secret[str]:
    """Take a plain string; what came instead is not quoted, as it might be one."""
    if type(value) is not str:
        raise TypeError(f"expected a secret string, got {type(value).__name__}")
    return Secret(value)


def _is_tuple(cls: Any) -> bool:
    origin: object = get_origin(cls)
    return origin is tuple


def _tuple_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Refuse what merely can be iterated: a string would become a tuple of its letters."""
    kinds = get_args(cls)
    homogenous = len(kinds) == 2 and kinds[1] is Ellipsis
    inner = homogenous_tuple_structure_factory(cls, converter) if homogenous else None

    def hook(value: Any, _: Any) -> Any:
        if type(value) not in (list, tuple):  # tuple: before json has turned it into a list
            raise TypeError(f"expected a list, got {type(value).__name__} {value!r:.40}")
        if inner:
            return inner(value, cls)
        if len(value) != len(kinds):
            raise TypeError(f"expected {len(kinds)} items, got {len(value)}")
        return tuple(converter.structure(v, k) for v, k in zip(value, kinds, strict=True))

    return hook


codec = make_codec()
for _union in (Request, FromController, FromAgent):
    configure_tagged_union(_union, codec, tag_name="op")


def _sentence(exc: BaseException, cls: type | None) -> str:
    """Return our own words where we refused, else cattrs' ("required field missing")."""
    return str(exc) if isinstance(exc, TypeError) else format_exception(exc, cls)


def structure_untrusted(value: Any, cls: type[T]) -> T:
    """Return JSON's plain `value` as `cls`; raise `ProtocolError` that names every fault."""
    try:
        return codec.structure(value, cls)
    except Exception as exc:
        faults = "; ".join(cattrs.transform_error(exc, format_exception=_sentence))
        name = getattr(cls, "__name__", "message")
        raise ProtocolError(f"not a {name}: {faults or exc!r}") from exc


def parse_json_untrusted(line: bytes, *, limit: int = LINE_LIMIT) -> Any:
    """Return the JSON value in `line`; raise `ProtocolError` if there is none."""
    if len(line) > limit:
        raise ProtocolError(f"a line of {len(line)} bytes, more than the {limit} allowed")
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"not JSON: {line[:80]!r}") from exc


class LineSplitter:
    """Turns chunks of bytes into lines; holds at most one line of `limit` bytes."""

    def __init__(self, *, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed_untrusted(self, chunk: bytes | bytearray) -> list[bytes]:
        """Return the lines that `chunk` ends, without newlines; `ProtocolError` if too long."""
        start = len(self._rest)
        self._rest += chunk
        end = self._rest.rfind(b"\n", start)
        lines = [] if end < 0 else bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        if max(map(len, lines), default=0) > self._limit or len(self._rest) > self._limit:
            raise ProtocolError(f"a line of more than the {self._limit} bytes allowed")
        return lines

    @property
    def rest(self) -> bytes:
        """What came after the last newline."""
        return bytes(self._rest)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def encode(message: FromController | FromAgent) -> bytes:
    """Return `message` as one line with its newline."""
    union: Any = FromController if isinstance(message, get_args(FromController)) else FromAgent
    return json.dumps(codec.unstructure(message, union), separators=(",", ":")).encode() + b"\n"


def decode_untrusted(line: bytes, union: Any) -> Any:
    """Return the message in `line`, one of `union`; raise `ProtocolError` otherwise."""
    return structure_untrusted(parse_json_untrusted(line), union)
