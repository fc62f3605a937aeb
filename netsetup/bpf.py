"""The few BPF programs that a tunnel's port needs, as the octets that bpf(2) takes; pure.

They are classifiers of ``direct-action`` kind: what they return is the verdict. An instruction is
``op:8 dst:4 src:4 off:16 imm:32`` in the machine's byte order, destination first on little-endian
machines (Documentation/bpf/standardization/instruction-set.rst). A frame that is too short for a
load ends the program with 0, which accepts it; none shorter than 14 octets reaches a filter.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct

from netsetup.frames import ETHERTYPE_IPV4, ETHERTYPE_IPV6

_INSTRUCTION = Struct("=BBhi")

NEXT_FILTER = -1  # TC_ACT_UNSPEC
ACCEPT = 0  # TC_ACT_OK
DROP = 2  # TC_ACT_SHOT

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # from the frame's octet `imm`, into r0
_MOVE_IMMEDIATE, _MOVE_REGISTER = 0xB7, 0xBF
_AND_IMMEDIATE = 0x57
_JUMP, _JUMP_EQUAL, _JUMP_NOT_EQUAL = 0x05, 0x15, 0x55
_CALL, _EXIT = 0x85, 0x95
_BPF_REDIRECT = 23  # bpf_redirect(ifindex, flags); flags 0: out of that interface

# Frames that belong to one wire and must not reach another site's switches.
# 01:80:c2:00:00:00-0f: STP, pause, LACP, 802.1X, LLDP (802.1D table 7-10); -20-2f: MVRP, GVRP.
# 01:00:0c:cc:cc:cc-cd: CDP, VTP, and Cisco's STP for each VLAN, which a Linux bridge does forward.
_IEEE, _IEEE_REST, _IEEE_MASK = 0x0180C200, 0x0000, 0xFFD0
_CISCO, _CISCO_REST, _CISCO_MASK = 0x01000CCC, 0xCCCC, 0xFFFE

_ETHERTYPE_AT, _IPV4_AT, _IPV6_AT = 12, 14, 14
_IPV4_PROTOCOL_AT, _ICMP_AT = _IPV4_AT + 9, _IPV4_AT + 20
_IPV6_NEXT_AT, _ICMPV6_AT = _IPV6_AT + 6, _IPV6_AT + 40
_NO_OPTIONS = 0x45  # IPv4, header of 20 octets
_ICMP, _ICMPV6 = 1, 58
_FRAGMENTATION_NEEDED, _PACKET_TOO_BIG = 0x0304, 0x0200  # type and code


@dataclass(frozen=True, slots=True)
class _Op:
    op: int
    dst: int = 0
    src: int = 0
    imm: int = 0
    to: str = ""  # a jump's label


_Line = _Op | str  # a string is the label of what follows


def _assemble(lines: Iterable[_Line]) -> bytes:
    labels: dict[str, int] = {}
    ops: list[_Op] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(ops)
        else:
            ops.append(line)
    return b"".join(
        _INSTRUCTION.pack(
            each.op,
            each.src << 4 | each.dst if sys.byteorder == "little" else each.dst << 4 | each.src,
            labels[each.to] - at - 1 if each.to else 0,
            each.imm,
        )
        for at, each in enumerate(ops)
    )


def _start() -> Iterator[_Line]:
    yield _Op(_MOVE_REGISTER, dst=6, src=1)  # loads from the frame want the context in r6


def _return(verdict: int) -> Iterator[_Line]:
    yield _Op(_MOVE_IMMEDIATE, imm=verdict)
    yield _Op(_EXIT)


def _redirect(ifindex: int) -> Iterator[_Line]:
    yield _Op(_MOVE_IMMEDIATE, dst=1, imm=ifindex)
    yield _Op(_MOVE_IMMEDIATE, dst=2)
    yield _Op(_CALL, imm=_BPF_REDIRECT)
    yield _Op(_EXIT)


def _drop_link_local() -> Iterator[_Line]:
    """Drop what belongs to one wire; all else goes on behind this."""
    yield _Op(_LOAD_WORD, imm=0)
    yield _Op(_JUMP_EQUAL, imm=_IEEE, to="ieee")
    yield _Op(_JUMP_NOT_EQUAL, imm=_CISCO, to="other")
    yield _Op(_LOAD_HALF, imm=4)
    yield _Op(_AND_IMMEDIATE, imm=_CISCO_MASK)
    yield _Op(_JUMP_EQUAL, imm=_CISCO_REST, to="drop")
    yield _Op(_JUMP, to="other")
    yield "ieee"
    yield _Op(_LOAD_HALF, imm=4)
    yield _Op(_AND_IMMEDIATE, imm=_IEEE_MASK)
    yield _Op(_JUMP_NOT_EQUAL, imm=_IEEE_REST, to="other")
    yield "drop"
    yield from _return(DROP)
    yield "other"


def drop_link_local() -> bytes:
    """Drop BPDUs and the like; leave all else to the next filter."""
    return _assemble((*_start(), *_drop_link_local(), *_return(NEXT_FILTER)))


def drop_link_local_and_redirect(ifindex: int) -> bytes:
    """Drop BPDUs and the like; send all else out of interface `ifindex`."""
    return _assemble((*_start(), *_drop_link_local(), *_redirect(ifindex)))


def accept_too_big() -> bytes:
    """Accept ICMP "fragmentation needed" and "packet too big"; leave all else to the next."""
    return _assemble(
        (
            *_start(),
            _Op(_LOAD_HALF, imm=_ETHERTYPE_AT),
            _Op(_JUMP_EQUAL, imm=ETHERTYPE_IPV6, to="ipv6"),
            _Op(_JUMP_NOT_EQUAL, imm=ETHERTYPE_IPV4, to="other"),
            _Op(_LOAD_BYTE, imm=_IPV4_AT),
            _Op(_JUMP_NOT_EQUAL, imm=_NO_OPTIONS, to="other"),
            _Op(_LOAD_BYTE, imm=_IPV4_PROTOCOL_AT),
            _Op(_JUMP_NOT_EQUAL, imm=_ICMP, to="other"),
            _Op(_LOAD_HALF, imm=_ICMP_AT),
            _Op(_JUMP_EQUAL, imm=_FRAGMENTATION_NEEDED, to="accept"),
            _Op(_JUMP, to="other"),
            "ipv6",
            _Op(_LOAD_BYTE, imm=_IPV6_NEXT_AT),
            _Op(_JUMP_NOT_EQUAL, imm=_ICMPV6, to="other"),
            _Op(_LOAD_HALF, imm=_ICMPV6_AT),
            _Op(_JUMP_NOT_EQUAL, imm=_PACKET_TOO_BIG, to="other"),
            "accept",
            *_return(ACCEPT),
            "other",
            *_return(NEXT_FILTER),
        )
    )


def drop_all() -> bytes:
    """Drop what no filter before has taken."""
    return _assemble(_return(DROP))


def name_of(program: bytes) -> str:
    """Return a name that tells the program's text when the kernel lists it; 11 characters."""
    return "qm-" + sha256(program).hexdigest()[:8]
