"""The program that puts a guest's frame into EtherIP or GRE and sends it to the peer; pure.

It classifies what the bridge sends into the tunnel's port and comes out of the port's other end,
and takes every frame: sent, or dropped and counted. The next hop is not written into it:
``bpf_redirect_neigh`` (Linux 5.10) asks the routes and neighbours of the underlay's interface for
each packet. It sends past netfilter: no rule of OUTPUT or POSTROUTING sees the packet.

Two ways to make room for headers, for neither does it all:

- ``bpf_skb_change_head`` takes any frame (ARP, RARP, LLC), but knows nothing of several segments in
  one packet. The kernel then still believes in the inner protocol, and ``bpf_redirect_neigh`` wants
  IPv4: the packet is sent once through the port's own ingress, which looks again; a mark tells it
  apart when it is back.
- ``bpf_skb_adjust_room`` takes IP only, and leaves a packet of many segments whole, for whoever
  cuts it in the end to know that each segment needs headers of its own. Only for GRE: no kernel
  has that for protocol 97.

A VLAN tag is beside the frame at this hook, not in it, and is put back first.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from netsetup.bpf import DROP, jump_if_of_one_wire, start
from netsetup.bpf_asm import (
    DOUBLE,
    FRAME,
    HALF,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
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
    flip,
    jump,
    jump_if,
    jump_if_null,
    leave,
    leave_with,
    load,
    map_pointer,
    mask,
    move,
    move_long,
    move_word,
    network_half,
    shift_right,
    store,
    store_value,
)
from netsetup.frames import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from netsetup.mtu import ETHERNET_BYTES, IPV4_BYTES, VLAN_TAG_BYTES
from netsetup.wire import DO_NOT_FRAGMENT, GRETAP, IPV4, NO_OPTIONS, TTL, Fate, Wire

# enum bpf_func_id
LOOKUP, RANDOM, STORE_BYTES, VLAN_POP, REDIRECT, LOAD_BYTES = 1, 7, 9, 19, 23, 26
CHANGE_HEAD, ADJUST_ROOM, REDIRECT_NEIGH = 43, 50, 152
# struct __sk_buff
LENGTH, MARK, PROTOCOL, TAG_PRESENT, TAG, TAG_PROTOCOL, SEGMENT = 0, 8, 16, 20, 24, 28, 176
INGRESS_FLAG = 1
ROOM_MAC = 1  # BPF_ADJ_ROOM_MAC
FIXED_SEGMENTS = 1 << 0  # BPF_F_ADJ_ROOM_FIXED_GSO
_OUTER_IPV4, _OUTER_GRE, _INNER_ETHERNET = 1 << 1, 1 << 3, 1 << 6
_INNER_LENGTH_SHIFT = 56

OUTER_MARK = 0x714D4F55  # it has its headers, and is back to be sent; cleared at once
_MAX_TAGS = 2
_MACS = 12
_LEAST_HEADERS = ETHERNET_BYTES + IPV4_BYTES + 8  # of a segment: what is longer with them is lost
# The stack, below its end: headers; addresses and tags; a counter's number.
_HEADER_AT, _SAVED_AT, _SLOT_AT = -80, -32, -4


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """The constants of one tunnel's program; indexes are of interfaces."""

    wire: Wire
    limit_bytes: int  # the longest frame that still passes the path whole
    underlay: int
    inner: int  # the interface that the program is on
    fragment: bool  # the path's routers may cut

    @property
    def segments(self) -> bool:
        """Whether packets of many segments are left whole."""
        return self.wire.kind == GRETAP


def encap_program(tunnel: Encapsulation) -> bytes:
    """Return the program, for ingress of the port's other end."""
    return assemble(encap_lines(tunnel))


def encap_lines(tunnel: Encapsulation) -> Iterator[Line]:
    """Return the program's lines, the context in r1."""
    yield from start()
    yield load(WORD, R0, R6, MARK)
    yield jump_if("==", R0, OUTER_MARK, "outer")
    yield load(WORD, R7, R6, LENGTH)
    yield load(WORD, R9, R6, PROTOCOL)
    yield from jump_if_of_one_wire("one wire")
    yield load(WORD, R8, R6, TAG_PRESENT)
    yield jump_if("==", R8, 0, "length known")
    yield add(R7, VLAN_TAG_BYTES)
    yield "length known"  # r7 of the frame with its tags
    if tunnel.segments:
        yield from _leave_whole_if_possible(tunnel)
    yield load(WORD, R0, R6, SEGMENT)
    yield jump_if("!=", R0, 0, "segments")
    yield jump_if(">", R7, tunnel.limit_bytes, "too big")
    yield jump_if("!=", R8, 0, "tag 1")
    yield from _make_head(tunnel, 0)
    yield from _write_header(tunnel, "")
    yield jump_if("==", R9, host_half(ETHERTYPE_IPV4), "send")
    yield "look again"
    yield move_word(R1, OUTER_MARK)
    yield store(WORD, R6, MARK, R1)
    yield move(R1, tunnel.inner)
    yield move(R2, INGRESS_FLAG)
    yield call(REDIRECT)
    yield leave()
    yield "outer"
    yield move(R1, 0)
    yield store(WORD, R6, MARK, R1)
    yield "send"
    yield from _send(tunnel)
    for tags in range(1, _MAX_TAGS + 1):
        yield f"tag {tags}"
        yield from _take_tag(tags)
        yield load(WORD, R0, R6, TAG_PRESENT)
        yield jump_if("!=", R0, 0, f"tag {tags + 1}")
        yield from _make_head(tunnel, tags)
        yield from move_bytes(STORE_BYTES, _head_bytes(tunnel), _SAVED_AT, _MACS + 4 * tags)
        yield from _write_header(tunnel, f" {tags}")
        yield jump("look again")
    yield f"tag {_MAX_TAGS + 1}"
    for label, fate in (
        ("", Fate.TAGS),
        ("one wire", Fate.OF_ONE_WIRE),
        ("too big", Fate.TOO_BIG),
        ("segments", Fate.SEGMENTS),
        ("failed", Fate.FAILED),
    ):
        if label:
            yield label
        yield from count(fate)
        yield jump("drop")
    yield "drop"
    yield from leave_with(DROP)


def host_half(value: int) -> int:
    """Return what 16 bits of the network's order are when loaded as a number."""
    return int.from_bytes(value.to_bytes(2, "big"), sys.byteorder)


def count(fate: Fate, where: str = "") -> Iterator[Line]:
    """Count a frame of r7 octets; spoils r0 to r5. `where` tells labels apart."""
    yield store_value(WORD, FRAME, _SLOT_AT, fate)
    yield from map_pointer(R1)
    yield copy(R2, FRAME)
    yield add(R2, _SLOT_AT)
    yield call(LOOKUP)
    yield jump_if_null(R0, f"counted {fate.name}{where}")
    yield load(DOUBLE, R1, R0, 0)
    yield add(R1, 1)
    yield store(DOUBLE, R0, 0, R1)
    yield load(DOUBLE, R1, R0, 8)
    yield add_register(R1, R7)
    yield store(DOUBLE, R0, 8, R1)
    yield f"counted {fate.name}{where}"


def move_bytes(function: int, offset: int, stack: int, octets: int) -> Iterator[Line]:
    """Load or store `octets` between the frame's `offset` and the stack; go to "failed" if not."""
    yield copy(R1, R6)
    yield move(R2, offset)
    yield copy(R3, FRAME)
    yield add(R3, stack)
    yield move(R4, octets)
    if function == STORE_BYTES:
        yield move(R5, 0)
    yield call(function)
    yield jump_if("!=", R0, 0, "failed")


def _send(tunnel: Encapsulation) -> Iterator[Line]:
    yield move(R1, tunnel.underlay)
    for unused in (R2, R3, R4):
        yield move(unused, 0)
    yield call(REDIRECT_NEIGH)
    yield leave()


def _head_bytes(tunnel: Encapsulation) -> int:
    return ETHERNET_BYTES + tunnel.wire.outer_bytes


def _make_head(tunnel: Encapsulation, tags: int) -> Iterator[Line]:
    yield copy(R1, R6)
    yield move(R2, _head_bytes(tunnel) + tags * VLAN_TAG_BYTES)
    yield move(R3, 0)
    yield call(CHANGE_HEAD)
    yield jump_if("!=", R0, 0, "failed")


def _take_tag(number: int) -> Iterator[Line]:
    """Save the tag beside the frame, with the first the addresses too, and take it off."""
    at = _SAVED_AT + _MACS + (number - 1) * VLAN_TAG_BYTES
    if number == 1:
        yield from move_bytes(LOAD_BYTES, 0, _SAVED_AT, _MACS)
    yield load(WORD, R0, R6, TAG)
    yield network_half(R0)
    yield load(WORD, R1, R6, TAG_PROTOCOL)
    yield store(HALF, FRAME, at, R1)
    yield store(HALF, FRAME, at + 2, R0)
    yield copy(R1, R6)
    yield call(VLAN_POP)
    yield jump_if("!=", R0, 0, "failed")


def _leave_whole_if_possible(tunnel: Encapsulation) -> Iterator[Line]:
    """Send IP that carries one tag at most; all else goes on behind this."""
    yield jump_if("==", R9, host_half(ETHERTYPE_IPV4), "ip")
    yield jump_if("!=", R9, host_half(ETHERTYPE_IPV6), "no ip")
    yield "ip"
    yield load(WORD, R0, R6, SEGMENT)
    yield jump_if("!=", R0, 0, "many")
    yield jump_if(">", R7, tunnel.limit_bytes, "too big")
    yield jump("fits")
    yield "many"
    # What is not TCP has nobody who makes its segments smaller (`trim_program`).
    yield jump_if(">", R0, tunnel.limit_bytes - _LEAST_HEADERS, "segments")
    yield "fits"
    yield jump_if("!=", R8, 0, "ip with a tag")
    yield from move_bytes(LOAD_BYTES, 0, _SAVED_AT, ETHERNET_BYTES)
    yield from _make_room_and_send(tunnel, ETHERNET_BYTES)
    yield "ip with a tag"
    yield from _take_tag(1)
    yield store(HALF, FRAME, _SAVED_AT + _MACS + VLAN_TAG_BYTES, R9)
    yield from _make_room_and_send(tunnel, ETHERNET_BYTES + VLAN_TAG_BYTES)
    yield "no ip"


def _make_room_and_send(tunnel: Encapsulation, inner_bytes: int) -> Iterator[Line]:
    flags = FIXED_SEGMENTS | _OUTER_IPV4 | _OUTER_GRE | _INNER_ETHERNET
    yield copy(R1, R6)
    yield move(R2, tunnel.wire.outer_bytes + inner_bytes)
    yield move(R3, ROOM_MAC)
    yield from move_long(R4, flags | inner_bytes << _INNER_LENGTH_SHIFT)
    yield call(ADJUST_ROOM)
    yield jump_if("!=", R0, 0, "failed")
    yield from move_bytes(STORE_BYTES, _head_bytes(tunnel), _SAVED_AT, inner_bytes)
    yield from _write_header(tunnel, f" whole {inner_bytes}")
    yield jump("send")


def _write_header(tunnel: Encapsulation, where: str) -> Iterator[Line]:
    """Write all before the frame of r7 octets, and count it; spoils all registers but r6, r7, r9.

    The outer addresses are the neighbour's to fill in. A packet of many segments may be longer
    than the field: each segment gets its own when it is cut.
    """
    ends = tunnel.wire.local.packed, tunnel.wire.remote.packed
    flags = 0 if tunnel.fragment else DO_NOT_FRAGMENT
    fixed = IPV4.pack(NO_OPTIONS, 0, 0, 0, flags, TTL, tunnel.wire.protocol, 0, *ends)
    blob = bytes(_MACS) + ETHERTYPE_IPV4.to_bytes(2, "big") + fixed + tunnel.wire.shim
    for at in range(0, len(blob), 4):
        word = int.from_bytes(blob[at : at + 4].ljust(4, b"\0"), sys.byteorder)
        yield store_value(WORD, FRAME, _HEADER_AT + at, word)
    # Numbers without order: they matter to fragments only, and a counter would be one for all.
    yield call(RANDOM)
    yield mask(R0, 0xFFFF)
    yield copy(R8, R0)
    yield copy(R1, R7)
    yield add(R1, tunnel.wire.outer_bytes)
    yield mask(R1, 0xFFFF)
    yield move(R2, sum(int.from_bytes(fixed[at : at + 2], "big") for at in range(0, IPV4_BYTES, 2)))
    yield add_register(R2, R8)
    yield add_register(R2, R1)
    for _ in range(2):
        yield copy(R3, R2)
        yield shift_right(R3, 16)
        yield mask(R2, 0xFFFF)
        yield add_register(R2, R3)
    yield flip(R2, 0xFFFF)
    for register, offset in ((R1, 2), (R8, 4), (R2, 10)):
        yield network_half(register)
        yield store(HALF, FRAME, _HEADER_AT + ETHERNET_BYTES + offset, register)
    yield from move_bytes(STORE_BYTES, 0, _HEADER_AT, _head_bytes(tunnel))
    yield from count(Fate.PASSED, where)
