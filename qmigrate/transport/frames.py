"""What is said on the link: length-prefixed frames inside TLS. Pure: bytes in, values out.

A frame is::

    0        1                 5
    ┌────────┬─────────────────┬──────────────────┐
    │ kind   │ length (u32 BE) │ length bytes     │
    └────────┴─────────────────┴──────────────────┘

Whoever accepted the connection says HELLO first: a TLS 1.3 client is "done" before the server has
judged its certificate, so a client that spoke first would speak to nobody in particular.

::

    dialler                           acceptor
            ── TLS 1.3, both pinned ──
            ◄── HELLO
        HELLO ──►                     both HELLOs checked: version, job, side
    source: CHOOSE n ──►              (whichever of the two is the source)
            ◄── CHOSEN n              n grows; a link replaces one with a smaller n
    MESSAGE, PING, PONG, OFFER, DECLINE both ways; BYE ends

Several connections may be made side by side; the source chooses exactly one.
Everything that is read here came over the network: each reader ends in `_untrusted` and raises
`ProtocolError` and nothing else.
"""

import json
import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from qmigrate.core.errors import ProtocolError
from qmigrate.core.model import Side

LINK_PROTOCOL = 1
MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024  # a handover message is < 1 MiB; a device list of 1000 fits
CONTROL_LIMIT_BYTES = 4096  # every kind but MESSAGE; HELLO is the longest at some 500
FEATURES_LIMIT = 64  # words in a HELLO
TOKEN_BYTES = 32

HEADER = struct.Struct("!BI")
_GENERATION = struct.Struct("!II")  # incarnation of the source's agent, count within it
_NUMBER = struct.Struct("!I")
_PING = struct.Struct("!Q")  # number
_PONG = struct.Struct("!Qqq")  # number, receiver's wall clock and base when it was read (us)
_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    CHOOSE = 2  # source: this connection is the link, with this generation
    CHOSEN = 3  # destination: agreed
    MESSAGE = 4  # a message of the owner's
    PING = 5
    PONG = 6
    BYE = 7  # nothing follows; an end without it is a break
    OFFER = 8  # a data socket is awaited: number, one-time tokens, name
    DECLINE = 9  # it will not be made: the offer's number, and why


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, taken apart no further."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """Which of a job's links; (0, 0) is none. Ordered, also when the source's agent restarts."""

    incarnation: int = 0
    count: int = 0


NO_LINK = Generation()


@dataclass(frozen=True, slots=True)
class Hello:
    """How an agent introduces itself, before anything else is said."""

    protocol: int
    job: str
    side: Side
    boot_id: str  # /proc/sys/kernel/random/boot_id: another one means the host was rebooted
    incarnation: int  # how often this job's agent was started on that host
    features: frozenset[str]  # what it can; unknown words are fine
    last: Generation  # the newest link that it knows of


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a data socket is awaited: what the dialler must say, and will hear."""

    number: int  # counted by whoever offers
    name: str
    dialler_token: bytes
    acceptor_token: bytes

    def __repr__(self) -> str:
        return f"Offer({self.number}, {self.name!r}, <secret>, <secret>)"


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping: the answering host's clocks (`clock_base_us`: wall minus boot time)."""

    number: int
    wall_us: int
    clock_base_us: int


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a frame; a payload over the kind's limit is the caller's error (ValueError)."""
    if len(payload) > _limit(kind):
        raise ValueError(f"{kind.name}: {len(payload)} bytes, more than {_limit(kind)}")
    return HEADER.pack(kind, len(payload)) + payload


def _limit(kind: Kind) -> int:
    return MESSAGE_LIMIT_BYTES if kind is Kind.MESSAGE else CONTROL_LIMIT_BYTES


class FrameDecoder:
    """Turns what was received, however cut up, into frames; never holds more than one frame.

    A length is judged as soon as its five bytes are there: nobody makes us wait for 4 GiB.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed_untrusted(self, chunk: bytes | bytearray) -> list[Frame]:
        """Return the frames that `chunk` completes; after a `ProtocolError` use it no more."""
        buffer = self._buffer
        buffer += chunk
        frames, at = [], 0
        while len(buffer) - at >= HEADER.size:
            word, length = HEADER.unpack_from(buffer, at)
            try:
                kind = Kind(word)
            except ValueError:
                raise ProtocolError(f"a frame of unknown kind {word}") from None
            if length > _limit(kind):
                raise ProtocolError(f"a {kind.name} of {length} bytes, more than {_limit(kind)}")
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(kind, bytes(buffer[at + HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished frame is held; 0 between frames."""
        return len(self._buffer)


def encode_hello(hello: Hello) -> bytes:
    """Return the HELLO frame."""
    fields = {
        "protocol": hello.protocol,
        "job": hello.job,
        "side": hello.side.value,
        "boot_id": hello.boot_id,
        "incarnation": hello.incarnation,
        "features": sorted(hello.features),
        "last": [hello.last.incarnation, hello.last.count],
    }
    return encode(Kind.HELLO, json.dumps(fields, separators=(",", ":")).encode())


def parse_hello_untrusted(payload: bytes) -> Hello:
    """Return the HELLO in `payload`; keys that it has beyond ours are a later version's."""
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("HELLO: not JSON") from exc
    if not isinstance(fields, dict):
        raise ProtocolError("HELLO: not an object")
    last = _field(fields, "last", list)
    if len(last) != 2 or not all(_is_u32(item) for item in last):
        raise ProtocolError("HELLO: last is not a generation")
    features = _field(fields, "features", list)
    if len(features) > FEATURES_LIMIT or not all(_is_word(word) for word in features):
        raise ProtocolError("HELLO: features are not words")
    side = _field(fields, "side", str)
    if side not in tuple(Side):
        raise ProtocolError(f"HELLO: no such side: {side[:20]!r}")
    incarnation = _field(fields, "incarnation", int)
    if not _is_u32(incarnation):
        raise ProtocolError("HELLO: incarnation out of range")
    return Hello(
        protocol=_field(fields, "protocol", int),
        job=_field(fields, "job", str),
        side=Side(side),
        boot_id=_field(fields, "boot_id", str),
        incarnation=incarnation,
        features=frozenset(features),
        last=Generation(*last),
    )


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"HELLO: {name} is not {kind.__name__}")
    return value


def _is_u32(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def encode_generation(kind: Kind, generation: Generation) -> bytes:
    """Return a CHOOSE or CHOSEN frame."""
    return encode(kind, _GENERATION.pack(generation.incarnation, generation.count))


def parse_generation_untrusted(payload: bytes) -> Generation:
    """Return what CHOOSE or CHOSEN names."""
    return Generation(*_unpack(_GENERATION, payload, "CHOOSE"))


def encode_ping(number: int) -> bytes:
    """Return a PING frame; its time of sending is kept by the sender."""
    return encode(Kind.PING, _PING.pack(number))


def parse_ping_untrusted(payload: bytes) -> int:
    """Return the ping's number."""
    number: int = _unpack(_PING, payload, "PING")[0]
    return number


def encode_pong(pong: Pong) -> bytes:
    """Return the PONG frame."""
    return encode(Kind.PONG, _PONG.pack(pong.number, pong.wall_us, pong.clock_base_us))


def parse_pong_untrusted(payload: bytes) -> Pong:
    """Return the answer to a ping."""
    return Pong(*_unpack(_PONG, payload, "PONG"))


def _unpack(layout: struct.Struct, payload: bytes, name: str) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"{name}: {len(payload)} bytes instead of {layout.size}")
    return layout.unpack(payload)


def encode_offer(offer: Offer) -> bytes:
    """Return the OFFER frame; ValueError for a name that is not a word."""
    if not _is_word(offer.name):
        raise ValueError(f"not a name for a data connection: {offer.name!r}")
    tokens = offer.dialler_token + offer.acceptor_token
    return encode(Kind.OFFER, _NUMBER.pack(offer.number) + tokens + offer.name.encode())


def parse_offer_untrusted(payload: bytes) -> Offer:
    """Return the offer of a data connection."""
    number, tokens = _numbered(payload, "OFFER")
    name = tokens[2 * TOKEN_BYTES :].decode("ascii", errors="replace")
    if not _is_word(name):
        raise ProtocolError("OFFER: the name is not a word")
    return Offer(number, name, tokens[:TOKEN_BYTES], tokens[TOKEN_BYTES : 2 * TOKEN_BYTES])


def encode_decline(number: int, why: str) -> bytes:
    """Return the DECLINE frame; `why` is cut if need be."""
    return encode(Kind.DECLINE, _NUMBER.pack(number) + why.encode()[:1000])


def parse_decline_untrusted(payload: bytes) -> tuple[int, str]:
    """Return the offer's number and why nothing comes of it."""
    number, why = _numbered(payload, "DECLINE")
    return number, why.decode(errors="replace")


def _numbered(payload: bytes, name: str) -> tuple[int, bytes]:
    if len(payload) < _NUMBER.size:
        raise ProtocolError(f"{name}: {len(payload)} bytes")
    number: int = _NUMBER.unpack_from(payload)[0]
    return number, payload[_NUMBER.size :]
