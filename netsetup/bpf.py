"""The few BPF programs that a tunnel's port needs, as the octets that bpf(2) takes; pure.

They are classifiers of ``direct-action`` kind: what they return is the verdict. A frame that is
too short for a load ends the program with 0, which accepts it; none shorter than 14 octets
reaches a filter.
"""

from collections.abc import Iterator
from hashlib import sha256

from netsetup.bpf_asm import (
    BYTE,
    HALF,
    R0,
    R1,
    R2,
    R6,
    WORD,
    Line,
    assemble,
    call,
    copy,
    frame,
    jump,
    jump_if,
    leave,
    leave_with,
    mask,
    move,
)
from netsetup.frames import ETHERTYPE_IPV4, ETHERTYPE_IPV6

NEXT_FILTER = -1  # TC_ACT_UNSPEC
ACCEPT = 0  # TC_ACT_OK
DROP = 2  # TC_ACT_SHOT
REDIRECTED = 7  # TC_ACT_REDIRECT

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


def start() -> Iterator[Line]:
    """Keep the context where loads from the frame want it."""
    yield copy(R6, R1)


def jump_if_of_one_wire(to: str, *, at: int = 0) -> Iterator[Line]:
    """Go to `to` with BPDUs and the like; all else goes on behind this.

    The Ethernet header begins at octet `at`.
    """
    yield frame(WORD, at)
    yield jump_if("==", R0, _IEEE, "ieee")
    yield jump_if("!=", R0, _CISCO, "other")
    yield frame(HALF, at + 4)
    yield mask(R0, _CISCO_MASK)
    yield jump_if("==", R0, _CISCO_REST, to)
    yield jump("other")
    yield "ieee"
    yield frame(HALF, at + 4)
    yield mask(R0, _IEEE_MASK)
    yield jump_if("==", R0, _IEEE_REST, to)
    yield "other"


def _redirect(ifindex: int) -> Iterator[Line]:
    yield move(R1, ifindex)
    yield move(R2, 0)
    yield call(_BPF_REDIRECT)
    yield leave()


def drop_link_local() -> bytes:
    """Drop BPDUs and the like; leave all else to the next filter."""
    return assemble(
        (
            *start(),
            *jump_if_of_one_wire("drop"),
            *leave_with(NEXT_FILTER),
            "drop",
            *leave_with(DROP),
        )
    )


def drop_link_local_and_redirect(ifindex: int) -> bytes:
    """Drop BPDUs and the like; send all else out of interface `ifindex`."""
    return assemble(
        (
            *start(),
            *jump_if_of_one_wire("drop"),
            *_redirect(ifindex),
            "drop",
            *leave_with(DROP),
        )
    )


def accept_too_big() -> bytes:
    """Accept ICMP "fragmentation needed" and "packet too big"; leave all else to the next."""
    return assemble(
        (
            *start(),
            frame(HALF, _ETHERTYPE_AT),
            jump_if("==", R0, ETHERTYPE_IPV6, "ipv6"),
            jump_if("!=", R0, ETHERTYPE_IPV4, "other"),
            frame(BYTE, _IPV4_AT),
            jump_if("!=", R0, _NO_OPTIONS, "other"),
            frame(BYTE, _IPV4_PROTOCOL_AT),
            jump_if("!=", R0, _ICMP, "other"),
            frame(HALF, _ICMP_AT),
            jump_if("==", R0, _FRAGMENTATION_NEEDED, "accept"),
            jump("other"),
            "ipv6",
            frame(BYTE, _IPV6_NEXT_AT),
            jump_if("!=", R0, _ICMPV6, "other"),
            frame(HALF, _ICMPV6_AT),
            jump_if("!=", R0, _PACKET_TOO_BIG, "other"),
            "accept",
            *leave_with(ACCEPT),
            "other",
            *leave_with(NEXT_FILTER),
        )
    )


def drop_all() -> bytes:
    """Drop what no filter before has taken."""
    return assemble(leave_with(DROP))


def name_of(program: bytes) -> str:
    """Return a name that tells the program's text when the kernel lists it; 11 characters."""
    return "qm-" + sha256(program).hexdigest()[:8]
