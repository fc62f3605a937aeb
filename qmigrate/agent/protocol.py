"""The messages between controller and agent: JSON lines over the agent's stdin and stdout.

One line, one message, at most `LINE_LIMIT` bytes. The agent speaks first::

    agent       {"op": "Hello", "protocol": 1, "version": "0.1.0", …}
    controller  {"op": "Call", "id": 1, "request": {"op": "ListGuests", …}}
    agent       {"op": "Note", "id": 1, "note": {…}}            any number, for calls that stream
    agent       {"op": "Answer", "id": 1, "value": {…}}         or
    agent       {"op": "Failure", "id": 1, "problem": {…}}
    controller  {"op": "Cancel", "id": 1}                       answered by Failure "cancelled"

What can be asked is `agent.requests`. The same lines go over a job's door. Decoding is strict: no
coercion, no unknown or missing keys; it raises `ProtocolError` and nothing else.
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
from qmigrate.agent.requests import Request
from qmigrate.core.errors import Problem

__all__ = [
    "LINE_LIMIT",
    "PROTOCOL",
    "Answer",
    "Call",
    "Cancel",
    "Failure",
    "FromAgent",
    "FromController",
    "Hello",
    "LineSplitter",
    "Note",
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
