"""Which of a port's frames a relay beside the programs is given: those that they leave; pure."""

from netsetup.bpf import start
from netsetup.bpf_asm import R0, R6, R7, WORD, add, assemble, jump_if, leave_with, load
from netsetup.encap_program import LENGTH, SEGMENT, TAG_PRESENT
from netsetup.mtu import VLAN_TAG_BYTES

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
