"""Programs beside `netsetup.encap_program`: out of the tunnel, and segments that fit it; pure.

`decap_program` classifies what comes in by the underlay's interface, which belongs to others: what
is not from the peer to our address goes on to the next filter, untouched. It runs before netfilter:
no rule of INPUT sees the tunnel's packets. What it does not take, fragments first, IP delivers to
the relay's raw socket, where there is one.

`trim_program` classifies what the bridge sends into the tunnel's port, before it is cut: where the
path is too narrow for the guests' segments it makes them smaller, so that none needs fragments,
also of connections that were opened before the guest moved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from netsetup.bpf import ACCEPT, DROP, NEXT_FILTER, jump_if_of_one_wire, start
from netsetup.bpf_asm import (
    BYTE,
    HALF,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    WORD,
    Line,
    add,
    add_register,
    assemble,
    call,
    copy,
    frame,
    jump,
    jump_if,
    jump_if_register,
    leave,
    leave_with,
    load,
    mask,
    move,
    move_word,
    negate,
    shift_right,
)
from netsetup.encap_program import (
    ADJUST_ROOM,
    FIXED_SEGMENTS,
    INGRESS_FLAG,
    LENGTH,
    LOAD_BYTES,
    PROTOCOL,
    REDIRECT,
    ROOM_MAC,
    SEGMENT,
    STORE_BYTES,
    TAG_PRESENT,
    count,
    host_half,
    move_bytes,
)
from netsetup.frames import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from netsetup.mtu import ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, VLAN_TAG_BYTES
from netsetup.wire import FRAGMENT_MASK, GRETAP, NO_OPTIONS, Fate, Wire

_CHANGE_TAIL = 38
_IP_AT = ETHERNET_BYTES
_SHIM_AT = _IP_AT + IPV4_BYTES
_SAVED_AT = -24
_TCP = 6
_TCP_LENGTH_AT = 12
_LONGEST_TCP_BYTES = 60
_LONGEST_STEP_BYTES = 0xFFF  # that bpf_skb_adjust_room makes


@dataclass(frozen=True, slots=True)
class Decapsulation:
    """The constants of one tunnel's program.

    A packet of many segments is handed to the port as come in there. Single frames are sent out of
    the inner end, so that the port may merge them: it pays where the wire knows single ones only.
    """

    wire: Wire
    port: int
    inner: int


def decap_program(tunnel: Decapsulation) -> bytes:
    """Return the program, for ingress of the underlay's interface."""
    return assemble(_decap(tunnel))


def _decap(tunnel: Decapsulation) -> Iterator[Line]:
    wire = tunnel.wire
    inner_at = ETHERNET_BYTES + wire.outer_bytes
    yield from start()
    yield load(WORD, R0, R6, PROTOCOL)
    yield jump_if("!=", R0, host_half(ETHERTYPE_IPV4), "not ours")
    for size, at, wanted in (
        (BYTE, _IP_AT, NO_OPTIONS),
        (BYTE, _IP_AT + 9, wire.protocol),
        (WORD, _IP_AT + 12, int(wire.remote)),
        (WORD, _IP_AT + 16, int(wire.local)),
    ):
        yield frame(size, at)
        yield jump_if("!=", R0, wanted, "not ours")
    yield load(WORD, R7, R6, LENGTH)
    yield frame(HALF, _IP_AT + 6)
    yield mask(R0, FRAGMENT_MASK)
    yield jump_if("!=", R0, 0, "fragment")
    yield from _check_shim(wire)
    yield load(WORD, R0, R6, SEGMENT)
    yield jump_if("!=", R0, 0, "length right")
    yield from _set_length(inner_at)
    yield "length right"
    yield from jump_if_of_one_wire("one wire", at=inner_at)
    yield from move_bytes(LOAD_BYTES, inner_at, _SAVED_AT, ETHERNET_BYTES)
    yield copy(R1, R6)
    yield move(R2, -inner_at)
    yield move(R3, ROOM_MAC)
    yield move(R4, FIXED_SEGMENTS)
    yield call(ADJUST_ROOM)
    yield jump_if("!=", R0, 0, "failed")
    yield from move_bytes(STORE_BYTES, 0, _SAVED_AT, ETHERNET_BYTES)
    yield add(R7, -inner_at)
    yield from count(Fate.PASSED)
    merged = wire.kind != GRETAP
    yield move(R1, tunnel.inner if merged else tunnel.port)
    yield move(R2, 0 if merged else INGRESS_FLAG)
    yield call(REDIRECT)
    yield leave()
    yield "fragment"
    yield from count(Fate.FRAGMENT)
    yield "not ours"
    yield from leave_with(NEXT_FILTER)
    if wire.kind != GRETAP:  # the verifier refuses what nobody goes to
        yield "bad header"
        yield from count(Fate.BAD_HEADER)
        yield jump("drop")
    for label, fate in (
        ("short", Fate.SHORT),
        ("one wire", Fate.OF_ONE_WIRE),
        ("failed", Fate.FAILED),
    ):
        yield label
        yield from count(fate)
        yield jump("drop")
    yield "drop"
    yield from leave_with(DROP)


def _check_shim(wire: Wire) -> Iterator[Line]:
    """Go on with the peer's frames. Of GRE another key or form may be another tunnel's."""
    if wire.kind == GRETAP:
        for at in range(0, len(wire.shim), 4):
            yield frame(WORD, _SHIM_AT + at)
            word = int.from_bytes(wire.shim[at : at + 4], "big")
            yield jump_if("!=", R0, word, "not ours")
        return
    yield frame(HALF, _SHIM_AT)
    for shim in wire.accepted:
        yield jump_if("==", R0, int.from_bytes(shim, "big"), "shim right")
    yield jump("bad header")
    yield "shim right"


def _set_length(inner_at: int) -> Iterator[Line]:
    """Cut off what an Ethernet padded, or pad as one would: r7 is the length from here on."""
    yield frame(HALF, _IP_AT + 2)
    yield copy(R8, R0)
    yield add(R8, ETHERNET_BYTES)
    yield jump_if_register(">", R8, R7, "short")
    yield jump_if("<", R8, inner_at + ETHERNET_BYTES, "short")
    yield jump_if_register("==", R8, R7, "cut")
    yield from _change_tail()
    yield "cut"
    # The kernel takes nothing off a packet of which less than an IPv4 header would be left.
    least = inner_at + ETHERNET_BYTES + IPV4_BYTES
    yield jump_if(">", R8, least - 1, "length right")
    yield move(R8, least)
    yield from _change_tail()


def _change_tail() -> Iterator[Line]:
    """Cut the frame to r8 octets, or add zeros."""
    yield copy(R1, R6)
    yield copy(R2, R8)
    yield move(R3, 0)
    yield call(_CHANGE_TAIL)
    yield jump_if("!=", R0, 0, "failed")
    yield copy(R7, R8)


def trim_program(limit_bytes: int) -> bytes:
    """Return the program that makes TCP segments at most `limit_bytes` long with all headers."""
    return assemble(_trim(limit_bytes))


def _trim(limit_bytes: int) -> Iterator[Line]:
    yield from start()
    yield load(WORD, R7, R6, SEGMENT)
    yield jump_if("==", R7, 0, "fits")
    yield load(WORD, R0, R6, PROTOCOL)
    yield jump_if("==", R0, host_half(ETHERTYPE_IPV4), "ipv4")
    yield jump_if("!=", R0, host_half(ETHERTYPE_IPV6), "fits")
    yield frame(BYTE, _IP_AT + 6)
    yield jump_if("!=", R0, _TCP, "long headers")
    yield from _headers(IPV6_BYTES)
    yield jump("headers known")
    yield "ipv4"
    yield frame(BYTE, _IP_AT + 9)
    yield jump_if("!=", R0, _TCP, "fits")
    yield frame(BYTE, _IP_AT)
    yield jump_if("!=", R0, NO_OPTIONS, "long headers")
    yield from _headers(IPV4_BYTES)
    yield jump("headers known")
    yield "long headers"
    yield move(R8, ETHERNET_BYTES + IPV4_BYTES + 40 + _LONGEST_TCP_BYTES)
    yield "headers known"
    yield load(WORD, R0, R6, TAG_PRESENT)
    yield jump_if("==", R0, 0, "no tag")
    yield add(R8, VLAN_TAG_BYTES)
    yield "no tag"
    yield add_register(R7, R8)  # a segment with all its headers
    yield jump_if("<", R7, limit_bytes + 1, "fits")
    yield add(R7, -limit_bytes)
    for step in (1, 2):  # of a guest with jumbo frames
        yield copy(R9, R7)
        yield jump_if("<", R9, _LONGEST_STEP_BYTES + 1, f"one step {step}")
        yield move_word(R9, _LONGEST_STEP_BYTES)
        yield f"one step {step}"
        # What grows lowers the segments' size; shrunk with a fixed size, it stays lower.
        yield copy(R2, R9)
        yield from _adjust(0)
        yield copy(R2, R9)
        yield negate(R2)
        yield from _adjust(FIXED_SEGMENTS)
        yield jump_if("<", R7, _LONGEST_STEP_BYTES + 1, "fits")
        yield add(R7, -_LONGEST_STEP_BYTES)
    yield "fits"
    yield from leave_with(ACCEPT)


def _headers(ip_bytes: int) -> Iterator[Line]:
    """Set r8 to the length of all headers, of a frame without a tag in it."""
    yield frame(BYTE, _IP_AT + ip_bytes + _TCP_LENGTH_AT)
    yield mask(R0, 0xF0)
    yield shift_right(R0, 2)
    yield copy(R8, R0)
    yield add(R8, ETHERNET_BYTES + ip_bytes)


def _adjust(flags: int) -> Iterator[Line]:
    yield copy(R1, R6)
    yield move(R3, 0)
    yield move(R4, flags)
    yield call(ADJUST_ROOM)
    yield jump_if("!=", R0, 0, "fits")
