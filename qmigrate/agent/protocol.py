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
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union

from qmigrate.core.errors import Problem, ProtocolError
from qmigrate.core.model import Guest, GuestDetail, HostFacts

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


Request = GetHostFacts | ListGuests | InspectGuest | Echo

REPLIES: dict[type, type] = {
    GetHostFacts: HostFacts,
    ListGuests: GuestList,
    InspectGuest: GuestDetail,
    Echo: Echo,
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
    codec.register_structure_hook_factory(_is_tuple, _tuple_hook)
    return codec


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


def structure_untrusted(value: Any, cls: type[T]) -> T:
    """Return JSON's plain `value` as `cls`; raise `ProtocolError` that names every fault."""
    try:
        return codec.structure(value, cls)
    except Exception as exc:
        faults = "; ".join(cattrs.transform_error(exc, format_exception=lambda e, _: str(e)))
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


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def encode(message: FromController | FromAgent) -> bytes:
    """Return `message` as one line with its newline."""
    union: Any = FromController if isinstance(message, get_args(FromController)) else FromAgent
    return json.dumps(codec.unstructure(message, union), separators=(",", ":")).encode() + b"\n"


def decode_untrusted(line: bytes, union: Any) -> Any:
    """Return the message in `line`, one of `union`; raise `ProtocolError` otherwise."""
    return structure_untrusted(parse_json_untrusted(line), union)
