"""Programs loaded, tried and found again, and their counters read: bpf(2), without libbpf.

Source: linux/bpf.h, `union bpf_attr`. A program that mentions a map gets one of its own, an array
of `Counter`s for each processor; both live as long as tc holds the program. The kernel names a
program's id when it lists the filter, and by that its map is found again: nothing is pinned.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EPERM
from pathlib import Path
from struct import Struct

from netsetup.bpf_asm import INSTRUCTION_BYTES, mentions_map, with_map
from netsetup.errors import HostError, RefusedError

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALL_NUMBER = {
    "x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280,
    "loongarch64": 280,
}  # fmt: skip
_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _TEST_RUN = 0, 1, 5, 10
_PROG_BY_ID, _MAP_BY_ID, _INFO_BY_DESCRIPTOR = 13, 14, 15
CLASSIFIER, SOCKET_FILTER = 3, 1  # BPF_PROG_TYPE_SCHED_CLS, _SOCKET_FILTER
_ARRAY_FOR_EACH_PROCESSOR = 6
_SLOTS = 16
_NAME_BYTES = 15
_LOG_BYTES = 1 << 18

# type, instructions, their address, the licence's; log level, size and address; kernel version,
# flags, name
_LOAD = Struct("=IIQQIIQII16s")
_MAP = Struct("=IIIIIII16s")  # type, sizes of key and value, entries, flags, inner map, node, name
_ELEMENT = Struct("=IxxxxQQQ")  # map, address of the key, of the value, flags
# program, answer; octets in and out, their addresses; times, duration; context in and out
_TEST = Struct("=IIIIQQIIIIQQ")
_BY_ID = Struct("=III")
_INFO = Struct("=IIQ")
# The beginning of struct bpf_prog_info: type, id, tag, two lengths, two addresses, time, user,
# how many maps, where their numbers go.
_PROG_INFO = Struct("=IIQIIQQQIIQ")
_COUNTER = Struct("=QQ")
# The end of struct __sk_buff that we set: gso_segs, an address, gso_size.
_SEGMENTS = Struct("=IQI")
_SEGMENTS_AT, _CONTEXT_BYTES = 164, 180


@dataclass(frozen=True, slots=True)
class Counter:
    """Frames and their octets."""

    frames: int
    octets: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What a program made of a frame."""

    verdict: int
    octets: bytes


def _bpf(command: int, attributes: bytes, doing: str) -> tuple[int, bytes]:
    """Return the call's answer and the attributes after it."""
    number = _SYSCALL_NUMBER.get(platform.machine())
    if number is None:
        raise HostError(f"bpf(2) has no number that is known here on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    answer = _libc.syscall(number, command, buffer, len(attributes))
    if answer < 0:
        errno = ctypes.get_errno()
        step = None
        if errno == EPERM:
            step = "it takes root, and a kernel that is not locked down to confidentiality"
        raise RefusedError(doing, errno, next_step=step)
    return answer, buffer.raw


@contextmanager
def loaded(program: bytes, name: str, kind: int = CLASSIFIER) -> Iterator[int]:
    """Yield a descriptor of `program`; who attaches it keeps it, and its map.

    Raises `HostError` on a machine whose call number is not known, `RefusedError`.
    """
    text = "".join(c if c.isalnum() else "_" for c in name).encode()[:_NAME_BYTES]
    map_descriptor = None
    try:
        if mentions_map(program):
            fields = (_ARRAY_FOR_EACH_PROCESSOR, 4, _COUNTER.size, _SLOTS, 0, 0, 0, text)
            map_descriptor, _ = _bpf(_MAP_CREATE, _MAP.pack(*fields), "make a map of counters")
            program = with_map(program, map_descriptor)
        instructions = ctypes.create_string_buffer(program, len(program))
        licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
        count = len(program) // INSTRUCTION_BYTES
        what = kind, count, ctypes.addressof(instructions), ctypes.addressof(licence)
        try:
            packed = _LOAD.pack(*what, 0, 0, 0, 0, 0, text)
            descriptor, _ = _bpf(_PROG_LOAD, packed, "load a BPF program")
        except RefusedError as exc:
            # Once more, for what the kernel's verifier has to say.
            log = ctypes.create_string_buffer(_LOG_BYTES)
            packed = _LOAD.pack(*what, 1, _LOG_BYTES, ctypes.addressof(log), 0, 0, text)
            with suppress(RefusedError):
                os.close(_bpf(_PROG_LOAD, packed, "load a BPF program")[0])
            said = log.value.decode(errors="replace").strip().splitlines()
            words = next((line for line in reversed(said) if not _is_statistics(line)), None)
            raise RefusedError(
                "load a BPF program" + (f" ({words})" if words else ""),
                exc.errno,
                next_step=exc.next_step,
            ) from None
    finally:
        if map_descriptor is not None:
            os.close(map_descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_statistics(line: str) -> bool:
    return line.startswith(("processed ", "verification time", "stack depth"))


def try_program(descriptor: int, frame: bytes, *, segment_bytes: int = 0) -> Trial:
    """Run a loaded program on a frame that comes from nowhere and goes nowhere.

    With `segment_bytes` it is a packet of many segments of that size.
    """
    given = ctypes.create_string_buffer(frame, len(frame))
    room = len(frame) + 256
    got = ctypes.create_string_buffer(room)
    addresses = ctypes.addressof(given), ctypes.addressof(got)
    context = bytearray(_CONTEXT_BYTES)
    if segment_bytes:
        _SEGMENTS.pack_into(context, _SEGMENTS_AT, 0, 0, segment_bytes)
    about = (ctypes.c_char * _CONTEXT_BYTES).from_buffer(context)
    packed = _TEST.pack(
        *(descriptor, 0, len(frame), room, *addresses, 1, 0),
        *(_CONTEXT_BYTES, 0, ctypes.addressof(about), 0),
    )
    _, answered = _bpf(_TEST_RUN, packed, "try a BPF program")
    _, verdict, _, length, *_ = _TEST.unpack(answered)
    return Trial(verdict - 2**32 if verdict >= 2**31 else verdict, got.raw[:length])


def counters_of(program_id: int) -> tuple[Counter, ...]:
    """Return what the program with this id has counted; empty if it has no map."""
    descriptor, _ = _bpf(_PROG_BY_ID, _BY_ID.pack(program_id, 0, 0), "find a BPF program")
    try:
        return counters(descriptor)
    finally:
        os.close(descriptor)


def counters(descriptor: int) -> tuple[Counter, ...]:
    """Return what a program has counted, of all processors; empty if it has no map."""
    numbers = (ctypes.c_uint32 * 1)()
    fields = [0] * 9 + [1, ctypes.addressof(numbers)]
    about = ctypes.create_string_buffer(_PROG_INFO.pack(*fields), _PROG_INFO.size)
    packed = _INFO.pack(descriptor, _PROG_INFO.size, ctypes.addressof(about))
    _bpf(_INFO_BY_DESCRIPTOR, packed, "describe a BPF program")
    if not _PROG_INFO.unpack(about.raw)[9]:
        return ()
    held, _ = _bpf(_MAP_BY_ID, _BY_ID.pack(numbers[0], 0, 0), "find a BPF map")
    try:
        return tuple(_counter(held, slot) for slot in range(_SLOTS))
    finally:
        os.close(held)


def _counter(held: int, slot: int) -> Counter:
    key = ctypes.c_uint32(slot)
    values = ctypes.create_string_buffer(_COUNTER.size * _possible_processors())
    packed = _ELEMENT.pack(held, ctypes.addressof(key), ctypes.addressof(values), 0)
    _bpf(_MAP_LOOKUP, packed, "read a BPF map")
    each = list(_COUNTER.iter_unpack(values.raw))
    return Counter(sum(frames for frames, _ in each), sum(octets for _, octets in each))


def _possible_processors() -> int:
    """Return for how many the kernel keeps values: up to the highest number there could be."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.rpartition(",")[2].rpartition("-")[2]) + 1
