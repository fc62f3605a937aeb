"""What a relay beside the programs is given of a port's frames, and what it has to finish; pure."""

from netsetup.bpf import start
from netsetup.bpf_asm import R0, R6, R7, WORD, add, assemble, jump_if, leave_with, load
from netsetup.encap_program import LENGTH, SEGMENT, TAG_PRESENT
from netsetup.frames import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from netsetup.mtu import IPV6_BYTES, VLAN_TAG_BYTES
from netsetup.wire import checksum

_TAGS = (0x8100, 0x88A8)
_SUM_AT = {6: 16, 17: 6}  # in TCP's and UDP's header
_WHOLE, _NOTHING = -1, 0  # how many octets the socket gets


def too_big_program(limit_bytes: int) -> bytes:
    """Return a socket's filter for single frames of more than `limit_bytes` with their tags."""
    return assemble(
        (
            *start(),
            load(WORD, R0, R6, SEGMENT),
            jump_if("!=", R0, 0, "not for us"),
            load(WORD, R7, R6, LENGTH),
            load(WORD, R0, R6, TAG_PRESENT),
            jump_if("==", R0, 0, "length known"),
            add(R7, VLAN_TAG_BYTES),
            "length known",
            jump_if("<", R7, limit_bytes + 1, "not for us"),
            *leave_with(_WHOLE),
            "not for us",
            *leave_with(_NOTHING),
        )
    )


def finish_checksum(frame: memoryview) -> bool:
    """Sum what the sender left to a card, in place; False for what is neither TCP nor UDP.

    The field holds the sum of the addresses already (CHECKSUM_PARTIAL, skbuff.h).
    """
    at = 12
    while (kind := int.from_bytes(frame[at : at + 2], "big")) in _TAGS:
        at += VLAN_TAG_BYTES
    at += 2
    if kind == ETHERTYPE_IPV4 and len(frame) > at + 20:
        end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
        protocol, at = frame[at + 9], at + (frame[at] & 0x0F) * 4
    elif kind == ETHERTYPE_IPV6 and len(frame) > at + IPV6_BYTES:
        end = at + IPV6_BYTES + int.from_bytes(frame[at + 4 : at + 6], "big")
        protocol, at = frame[at + 6], at + IPV6_BYTES
    else:
        return False
    field = at + _SUM_AT.get(protocol, 0)
    if field == at or not field + 2 <= end <= len(frame):
        return False
    octets = bytes(frame[at:end])
    # A sum of 0 is not sent: in UDP it would say that there is none (RFC 768).
    total = checksum(octets + b"\0" * (len(octets) % 2)) or 0xFFFF
    frame[field : field + 2] = total.to_bytes(2, "big")
    return True
