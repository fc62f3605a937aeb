"""An assembler for eBPF: instructions as data, labels made into offsets; pure.

An instruction is ``op:8 dst:4 src:4 off:16 imm:32`` in the machine's byte order, destination first
on little-endian machines (Documentation/bpf/standardization/instruction-set.rst). Constants of a
tunnel are immediates, so that no relocation is needed; a program that counts mentions one map, and
the descriptor is put in when it is loaded.

Comparisons are of 32 bits where an immediate may be large: the 64-bit ones extend its sign.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

_INSTRUCTION = Struct("=BBhi")
INSTRUCTION_BYTES = _INSTRUCTION.size

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = range(11)  # FRAME: the stack's end, read only

WORD, HALF, BYTE, DOUBLE = 0x00, 0x08, 0x10, 0x18  # sizes
_ABS, _MEM = 0x20, 0x60
_LDX, _ST, _STX = 0x01, 0x02, 0x03
_ALU, _ALU64, _JMP, _JMP32 = 0x04, 0x07, 0x05, 0x06
_REGISTER = 0x08  # the second operand is one
_ADD, _AND, _RSH, _NEG, _XOR, _MOV, _END = 0x00, 0x50, 0x70, 0x80, 0xA0, 0xB0, 0xD0
_JA, _JEQ, _JGT, _JSET, _JNE, _JLT, _CALL, _EXIT = (
    0x00, 0x10, 0x20, 0x40, 0x50, 0xA0, 0x80, 0x90,
)  # fmt: skip
_LOAD_64 = 0x18
_MAP_DESCRIPTOR = 1  # in `src` of `_LOAD_64`: the immediate is a descriptor


@dataclass(frozen=True, slots=True)
class Op:
    """One instruction; `to` is a jump's label."""

    op: int
    dst: int = 0
    src: int = 0
    imm: int = 0
    to: str = ""
    off: int = 0


Line = Op | str  # a string is the label of what follows


def assemble(lines: Iterable[Line]) -> bytes:
    """Return the octets that bpf(2) takes; raise `ValueError` for a label that is there twice."""
    labels: dict[str, int] = {}
    ops: list[Op] = []
    for line in lines:
        if isinstance(line, Op):
            ops.append(line)
        elif line in labels:
            raise ValueError(f"two labels {line!r}")
        else:
            labels[line] = len(ops)
    return b"".join(
        _INSTRUCTION.pack(
            each.op,
            each.src << 4 | each.dst if sys.byteorder == "little" else each.dst << 4 | each.src,
            labels[each.to] - at - 1 if each.to else each.off,
            _signed(each.imm),
        )
        for at, each in enumerate(ops)
    )


def mentions_map(program: bytes) -> bool:
    """Whether `program` is to be loaded with a map."""
    return any(True for _ in _map_places(program))


def with_map(program: bytes, descriptor: int) -> bytes:
    """Return `program` with the descriptor of its map in every place."""
    octets = bytearray(program)
    for at in _map_places(program):
        op, registers, off, _ = _INSTRUCTION.unpack_from(octets, at)
        _INSTRUCTION.pack_into(octets, at, op, registers, off, descriptor)
    return bytes(octets)


def _map_places(program: bytes) -> Iterator[int]:
    at = 0
    while at < len(program):
        op, registers, *_ = _INSTRUCTION.unpack_from(program, at)
        source = registers >> 4 if sys.byteorder == "little" else registers & 0xF
        if op == _LOAD_64 and source == _MAP_DESCRIPTOR:
            yield at
        at += INSTRUCTION_BYTES * (2 if op == _LOAD_64 else 1)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def move(dst: int, imm: int) -> Op:
    """Return ``dst = imm``, its sign extended to 64 bits."""
    return Op(_ALU64 | _MOV, dst, imm=imm)


def move_word(dst: int, imm: int) -> Op:
    """Return ``dst = imm``, the upper half 0."""
    return Op(_ALU | _MOV, dst, imm=imm)


def move_long(dst: int, value: int) -> tuple[Op, Op]:
    """Return ``dst = value`` of 64 bits."""
    return Op(_LOAD_64, dst, imm=value), Op(0, imm=value >> 32)


def copy(dst: int, src: int) -> Op:
    """Return ``dst = src``."""
    return Op(_ALU64 | _MOV | _REGISTER, dst, src)


def add(dst: int, imm: int) -> Op:
    """Return ``dst += imm``."""
    return Op(_ALU64 | _ADD, dst, imm=imm)


def add_register(dst: int, src: int) -> Op:
    """Return ``dst += src``."""
    return Op(_ALU64 | _ADD | _REGISTER, dst, src)


def mask(dst: int, imm: int) -> Op:
    """Return ``dst &= imm``."""
    return Op(_ALU64 | _AND, dst, imm=imm)


def flip(dst: int, imm: int) -> Op:
    """Return ``dst ^= imm``."""
    return Op(_ALU64 | _XOR, dst, imm=imm)


def negate(dst: int) -> Op:
    """Return ``dst = -dst``."""
    return Op(_ALU64 | _NEG, dst)


def shift_right(dst: int, bits: int) -> Op:
    """Return ``dst >>= bits``."""
    return Op(_ALU64 | _RSH, dst, imm=bits)


def network_half(dst: int) -> Op:
    """Return ``dst = htons(dst)``."""
    return Op(_ALU | _END | _REGISTER, dst, imm=16)


def load(size: int, dst: int, src: int, offset: int) -> Op:
    """Return ``dst = *(src + offset)``."""
    return Op(_LDX | size | _MEM, dst, src, off=offset)


def store(size: int, dst: int, offset: int, src: int) -> Op:
    """Return ``*(dst + offset) = src``."""
    return Op(_STX | size | _MEM, dst, src, off=offset)


def store_value(size: int, dst: int, offset: int, imm: int) -> Op:
    """Return ``*(dst + offset) = imm``."""
    return Op(_ST | size | _MEM, dst, imm=imm, off=offset)


def frame(size: int, offset: int) -> Op:
    """Return ``r0 = ntoh(the frame's octets there)``; wants the context in r6, spoils r1 to r5.

    A frame that is too short ends the program with 0.
    """
    return Op(size | _ABS, imm=offset)


def map_pointer(dst: int) -> tuple[Op, Op]:
    """Return ``dst = the program's map``."""
    return Op(_LOAD_64, dst, _MAP_DESCRIPTOR), Op(0)


def jump(to: str) -> Op:
    """Go to `to`."""
    return Op(_JMP | _JA, to=to)


def jump_if(comparison: str, dst: int, imm: int, to: str) -> Op:
    """Go to `to` if the lower half of `dst` compares so with `imm`, both unsigned."""
    return Op(_JMP32 | _COMPARISONS[comparison], dst, imm=imm, to=to)


def jump_if_register(comparison: str, dst: int, src: int, to: str) -> Op:
    """Go to `to` if the lower halves of `dst` and `src` compare so."""
    return Op(_JMP32 | _COMPARISONS[comparison] | _REGISTER, dst, src, to=to)


def jump_if_null(dst: int, to: str) -> Op:
    """Go to `to` if the pointer in `dst` is none."""
    return Op(_JMP | _JEQ, dst, to=to)


_COMPARISONS = {"==": _JEQ, "!=": _JNE, ">": _JGT, "<": _JLT, "&": _JSET}


def call(function: int) -> Op:
    """Call the kernel's function (`enum bpf_func_id`); the answer is in r0, r1 to r5 are spoilt."""
    return Op(_JMP | _CALL, imm=function)


def leave() -> Op:
    """End the program with r0."""
    return Op(_JMP | _EXIT)


def leave_with(verdict: int) -> tuple[Op, Op]:
    """End the program with `verdict`."""
    return move(R0, verdict), leave()
