"""Chunks made smaller, each for itself: zstd where this Python has it, else zlib.

zstd is no part of what is pushed to a host: it is used if Python 3.14 brings it, or the host has
the package `zstandard`. Which of them both can unpack is said in the link's HELLO, by `features`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.rate import OFF, TRIAL_PARTS, WORTH, ZLIB_LADDER, ZSTD_LADDER, Rung
from qmigrate.transport.records import UNPACKED, Coding, unpacked_length_untrusted


@dataclass(frozen=True, slots=True)
class Codec:
    """One way of packing; `packer` gives every thread a function of its own."""

    coding: Coding
    ladder: tuple[int, ...]
    packer: Callable[[int], Callable[[memoryview], bytes]]
    unpack: Callable[[memoryview, int], bytes]  # at most so many bytes; any error is its own
    errors: tuple[type[Exception], ...]


def _zlib() -> Codec:
    def packer(level: int) -> Callable[[memoryview], bytes]:
        return lambda data: zlib.compress(data, level)

    def unpack(packed: memoryview, length: int) -> bytes:
        inflater = zlib.decompressobj()
        data = inflater.decompress(packed, length)
        if not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
            raise zlib.error("more than was said")
        if not inflater.eof or inflater.unused_data:
            raise zlib.error("not one whole frame")
        return data

    return Codec(Coding.ZLIB, ZLIB_LADDER, packer, unpack, (zlib.error,))


def _zstd_of_python() -> Codec | None:
    """The standard library's, since 3.14 (PEP 784)."""
    try:
        zstd: Any = import_module("compression.zstd")
    except ImportError:
        return None

    def packer(level: int) -> Callable[[memoryview], bytes]:
        return lambda data: bytes(zstd.compress(data, level))

    def unpack(packed: memoryview, length: int) -> bytes:
        inflater = zstd.ZstdDecompressor()
        data: bytes = inflater.decompress(packed, length)
        if not inflater.eof and inflater.decompress(b"", 1):
            raise zstd.ZstdError("more than was said")
        if not inflater.eof or inflater.unused_data:
            raise zstd.ZstdError("not one whole frame")
        return data

    return Codec(Coding.ZSTD, ZSTD_LADDER, packer, unpack, (zstd.ZstdError,))


def _zstd_of_package() -> Codec | None:
    try:
        zstd: Any = import_module("zstandard")
    except ImportError:
        return None

    def packer(level: int) -> Callable[[memoryview], bytes]:
        compress: Callable[[memoryview], bytes] = zstd.ZstdCompressor(level=level).compress
        return compress

    def unpack(packed: memoryview, length: int) -> bytes:
        # It trusts the size in the frame's header and makes room for it, whatever limit is given.
        if zstd.frame_content_size(packed) != length:
            raise zstd.ZstdError("a frame of another length than was said")
        data: bytes = zstd.ZstdDecompressor().decompress(
            packed, max_output_size=length, allow_extra_data=False
        )
        return data

    return Codec(Coding.ZSTD, ZSTD_LADDER, packer, unpack, (zstd.ZstdError,))


ZLIB = _zlib()
ZSTD = _zstd_of_python() or _zstd_of_package()
FEATURES = frozenset({"zlib", "zstd"} if ZSTD else {"zlib"})


def best_codec(features: frozenset[str]) -> Codec:
    """Return the best that both sides have; `features` are those of the link."""
    return ZSTD if ZSTD is not None and "zstd" in features else ZLIB


class Packer:
    """Packs for one thread."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._by_level: dict[int, Callable[[memoryview], bytes]] = {}
        self.coding = codec.coding

    def pack(self, data: memoryview, level: int) -> bytes | None:
        """Return the payload of a DATA record; None: not worth it."""
        pack = self._by_level.get(level)
        if pack is None:
            pack = self._by_level[level] = self._codec.packer(level)
        packed = pack(data)
        if len(packed) + UNPACKED.size >= WORTH * len(data):
            return None
        return UNPACKED.pack(len(data)) + packed


def unpack_untrusted(coding: Coding, payload: memoryview) -> memoryview:
    """Return what was packed; raises `ProtocolError` if it is not exactly as long as it says."""
    length = unpacked_length_untrusted(payload)
    codec = ZLIB if coding is Coding.ZLIB else ZSTD
    if codec is None:
        raise ProtocolError(f"{coding.name}, which this host cannot unpack")
    try:
        data = codec.unpack(payload[UNPACKED.size :], length)
    except codec.errors as exc:
        raise ProtocolError(f"{coding.name}: {exc}") from exc
    if len(data) != length:
        raise ProtocolError(f"{len(data)} bytes of {coding.name}, where {length} were said")
    return memoryview(data)


def try_rungs(
    packer: Packer, ladder: tuple[int, ...], data: memoryview, clock: Callable[[], float]
) -> tuple[Rung, ...]:
    """Return what every rung of a codec's ladder makes of `data`, by the clock that is told.

    A part at a time: the first is not counted, since it pays for the compressor's tables, and of
    the others the fastest counts. Other work must not make a rung look slow that was never used;
    once it is used, what it really does is known.
    """
    size = max(1, len(data) // TRIAL_PARTS)
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    rungs = []
    for level in ladder:
        if level == OFF:
            continue
        wire_bytes, fastest_bps = 0, 0.0
        for number, part in enumerate(parts):
            began_s = clock()
            packed = packer.pack(part, level)
            spent_s = max(clock() - began_s, 1e-9)
            wire_bytes += len(part if packed is None else packed)
            if number or len(parts) == 1:
                fastest_bps = max(fastest_bps, len(part) / spent_s)
        rungs.append(Rung(level, wire_bytes / len(data), fastest_bps))
    return tuple(rungs)
