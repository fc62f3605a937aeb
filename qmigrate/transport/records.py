"""What a relay's connections carry: records with offsets, inside TLS. Pure: bytes in, values out.

A relay moves *streams*: number 0 is QEMU's main channel, the others are multifd's. Each direction
of a stream is a row of bytes that are counted from 0, and its end counts as one byte more, as TCP's
FIN does. A record is::

    0        1        2          4               8                16
    ┌────────┬────────┬──────────┬───────────────┬────────────────┬──────────────┐
    │ kind   │ coding │ stream   │ length        │ offset         │ length bytes │
    │ u8     │ u8     │ u16      │ u32           │ u64            │              │
    └────────┴────────┴──────────┴───────────────┴────────────────┴──────────────┘

    HELLO   stream: the slot; offset: the generation, which grows with every connection in a slot
            payload: "QMR", version u8, 0 or 1: whether whoever says it is the one who will send,
            count u16, and so many times: stream u16, offset u64 of the first byte not handed on yet
    DATA    offset: of the first byte. Coding 0: the bytes themselves. 1 zstd, 2 zlib: u32, how many
            bytes it becomes, and one whole frame; each record for itself, so that any may be sent
            again, over any connection
    ACK     offset: of the first byte that was not handed on to QEMU; all before may be forgotten
    EOF     offset: the length of the stream; acknowledged by one more
    RESET   the stream is over in both directions: QEMU's end of it is dead. Offset 0
    OPEN    the stream exists and is silent. Offset 0

A connection belongs to a slot, and a slot has one direction: once both have said HELLO (the dialler
first), only one side sends. K slots lead forward and one back; ACKs travel with the data of the
other direction. Within a connection records may come in any order of offsets, and twice; what is
more than a window (`WINDOW_LIMIT_BYTES`) ahead of what was handed on is refused. ACK, EOF and RESET
tell how things stand: after a new connection they are said again.

No record is longer than `CHUNK_LIMIT_BYTES`, neither on the wire nor unpacked. Everything read here
came over the network: what ends in `_untrusted` raises `ProtocolError` and nothing else.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from qmigrate.core.errors import ProtocolError

VERSION = 1
MAGIC = b"QMR"
CHUNK_LIMIT_BYTES = 1 << 20  # larger gains nothing (facts/transport §5), and one must be in memory
WINDOW_LIMIT_BYTES = 64 << 20  # unacknowledged bytes of a stream; the peer may hold as much
STREAM_LIMIT = 256  # QEMU's own bound of multifd channels is 255 (a u8), and the main one
SLOT_LIMIT = 16
OFFSET_LIMIT = 1 << 62

HEADER = struct.Struct("!BBHIQ")
HEADER_BYTES = HEADER.size
UNPACKED = struct.Struct("!I")  # in front of what was compressed
_GREETING = struct.Struct("!3sBBH")
_STANDING = struct.Struct("!HQ")
_HELLO_LIMIT_BYTES = _GREETING.size + STREAM_LIMIT * _STANDING.size


class Kind(IntEnum):
    """What a record is."""

    HELLO = 1
    DATA = 2
    ACK = 3
    EOF = 4
    RESET = 5
    OPEN = 6


class Coding(IntEnum):
    """How a DATA record's bytes are packed."""

    RAW = 0
    ZSTD = 1
    ZLIB = 2


@dataclass(frozen=True, slots=True)
class Header:
    """A record without its payload."""

    kind: Kind
    coding: Coding
    stream: int  # HELLO: the slot
    length: int  # of the payload, in bytes
    offset: int  # HELLO: the generation


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record; `payload` is whoever's it was given to."""

    header: Header
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Hello:
    """How a connection is introduced, by both sides."""

    slot: int
    generation: int
    sends: bool  # whoever says it
    standing: tuple[tuple[int, int], ...]  # stream, first byte not handed on


def pack_header(header: Header) -> bytes:
    """Return the sixteen bytes."""
    return HEADER.pack(header.kind, header.coding, header.stream, header.length, header.offset)


def data_header(stream: int, offset: int, length: int, coding: Coding = Coding.RAW) -> bytes:
    """Return what stands in front of a DATA record's `length` bytes."""
    return HEADER.pack(Kind.DATA, coding, stream, length, offset)


def encode_bare(kind: Kind, stream: int, offset: int = 0) -> bytes:
    """Return an ACK, EOF, RESET or OPEN."""
    return HEADER.pack(kind, Coding.RAW, stream, 0, offset)


def encode_hello(hello: Hello) -> bytes:
    """Return the record that introduces a connection."""
    payload = _GREETING.pack(MAGIC, VERSION, hello.sends, len(hello.standing))
    payload += b"".join(_STANDING.pack(*pair) for pair in hello.standing)
    return HEADER.pack(Kind.HELLO, Coding.RAW, hello.slot, len(payload), hello.generation) + payload


def parse_header_untrusted(header: bytes | memoryview) -> Header:
    """Return what sixteen bytes say; raises `ProtocolError` if anything is out of its bounds."""
    number, coding_number, stream, length, offset = HEADER.unpack(header)
    try:
        kind, coding = Kind(number), Coding(coding_number)
    except ValueError as exc:
        raise ProtocolError(f"a record of an unknown kind: {exc}") from exc
    if offset >= OFFSET_LIMIT:
        raise ProtocolError(f"a record at offset {offset}")
    if not _fits(kind, coding, length):
        raise ProtocolError(f"{kind.name} of {length} bytes, coding {coding.name}")
    if stream >= (SLOT_LIMIT if kind is Kind.HELLO else STREAM_LIMIT):
        raise ProtocolError(f"{kind.name} for number {stream}")
    if offset and kind in (Kind.RESET, Kind.OPEN):
        raise ProtocolError(f"{kind.name} at offset {offset}")
    return Header(kind, coding, stream, length, offset)


def _fits(kind: Kind, coding: Coding, length: int) -> bool:
    match kind:
        case Kind.DATA:
            least = 1 if coding is Coding.RAW else UNPACKED.size + 1
            return least <= length <= CHUNK_LIMIT_BYTES
        case Kind.HELLO:
            return coding is Coding.RAW and _GREETING.size <= length <= _HELLO_LIMIT_BYTES
        case Kind.ACK | Kind.EOF | Kind.RESET | Kind.OPEN:
            return coding is Coding.RAW and length == 0
        case _:
            assert_never(kind)


def parse_hello_untrusted(record: Record) -> Hello:
    """Return the greeting; raises `ProtocolError`, also for another version."""
    if record.header.kind is not Kind.HELLO:
        raise ProtocolError(f"{record.header.kind.name} instead of HELLO")
    magic, version, sends, count = _GREETING.unpack_from(record.payload)
    if magic != MAGIC or version != VERSION:
        raise ProtocolError(f"a relay of version {version}, this one is {VERSION}")
    if sends > 1 or len(record.payload) != _GREETING.size + count * _STANDING.size:
        raise ProtocolError("a HELLO that is not what it says")
    standing = tuple(_STANDING.iter_unpack(record.payload[_GREETING.size :]))
    if any(stream >= STREAM_LIMIT or offset >= OFFSET_LIMIT for stream, offset in standing):
        raise ProtocolError("a HELLO of what cannot be")
    return Hello(record.header.stream, record.header.offset, bool(sends), standing)


def unpacked_length_untrusted(payload: memoryview) -> int:
    """Return how many bytes a compressed payload says that it becomes; raises `ProtocolError`."""
    length: int = UNPACKED.unpack_from(payload)[0]
    if not 1 <= length <= CHUNK_LIMIT_BYTES:
        raise ProtocolError(f"a record that would become {length} bytes")
    return length


def fresh_buffer(length: int) -> memoryview:
    """Return room for `length` bytes that nobody else knows."""
    return memoryview(bytearray(length))


class Decoder:
    """Takes records apart where they arrive: the caller reads into `room`, so nothing is copied.

    ::

        count = read_into(decoder.room())
        record = decoder.took_untrusted(count)  # None: not whole yet
    """

    def __init__(self, buffer: Callable[[int], memoryview] = fresh_buffer) -> None:
        """Take rooms for payloads of at least so many bytes from `buffer`."""
        self._buffer = buffer
        self._head = fresh_buffer(HEADER_BYTES)
        self._header: Header | None = None
        self._payload = self._head[:0]
        self._filled = 0

    def room(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._header is None:
            return self._head[self._filled :]
        return self._payload[self._filled :]

    def took_untrusted(self, count: int) -> Record | None:
        """Return the record that `count` bytes, put into `room`, have completed, if any.

        Raises `ProtocolError`; the decoder is of no use after that.
        """
        self._filled += count
        header = self._header
        if header is None:
            if self._filled < HEADER_BYTES:
                return None
            header = parse_header_untrusted(self._head)
            self._filled = 0
            if not header.length:
                return Record(header, self._head[:0])
            self._header = header
            self._payload = self._buffer(header.length)[: header.length]
            return None
        if self._filled < header.length:
            return None
        record = Record(header, self._payload)
        self._header, self._filled = None, 0
        self._payload = self._head[:0]
        return record
