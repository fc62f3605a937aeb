"""The BPF programs against frames, run by the kernel itself."""

import ctypes
import platform
import struct

import pytest

from netsetup.bpf import (
    ACCEPT,
    DROP,
    NEXT_FILTER,
    accept_too_big,
    drop_all,
    drop_link_local,
    drop_link_local_and_redirect,
    name_of,
)
from netsetup.bpf_load import loaded
from netsetup.errors import RefusedError

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the call's number is written here"),
]

_BPF, _TEST_RUN = 321, 10
_REDIRECT = 7
_libc = ctypes.CDLL(None, use_errno=True)


def verdict(program: bytes, frame: bytes) -> int:
    """Return what the kernel says that `program` returns for `frame`."""
    frame = frame.ljust(60, b"\0")
    octets = ctypes.create_string_buffer(frame, len(frame))
    with loaded(program, name_of(program)) as descriptor:
        where = ctypes.addressof(octets)
        asked = struct.pack("=IIIIQQII", descriptor, 0, len(frame), 0, where, 0, 1, 0)
        attributes = ctypes.create_string_buffer(asked + bytes(24))
        assert _libc.syscall(_BPF, _TEST_RUN, attributes, len(attributes)) == 0, ctypes.get_errno()
        (returned,) = struct.unpack_from("=i", attributes, 4)
    return int(returned)


@pytest.mark.parametrize(
    ("target", "mine"),
    [
        ("0180c2000000", True),
        ("0180c200000e", True),
        ("0180c200000f", True),
        ("0180c2000010", False),
        ("0180c2000020", True),
        ("0180c200002f", True),
        ("0180c2000030", False),
        ("0180c2000100", False),
        ("01000ccccccc", True),
        ("01000ccccccd", True),
        ("01000cccccce", False),
        ("01000ccccdcc", False),
        ("ffffffffffff", False),
        ("01005e000001", False),
        ("333300000001", False),
        ("525400123456", False),
    ],
)
def test_what_belongs_to_one_wire_is_dropped(target: str, mine: bool) -> None:
    frame = bytes.fromhex(target + "525400000001 0800")
    assert verdict(drop_link_local(), frame) == (DROP if mine else NEXT_FILTER)
    assert verdict(drop_link_local_and_redirect(1), frame) == (DROP if mine else _REDIRECT)
    assert verdict(drop_all(), frame) == DROP


ETHERNET = "525400000001 525400000002"


@pytest.mark.parametrize(
    ("frame", "accepted"),
    [
        (f"{ETHERNET} 0800 45{'00' * 8}01{'00' * 10} 0304", True),
        (f"{ETHERNET} 0800 45{'00' * 8}01{'00' * 10} 0303", False),
        (f"{ETHERNET} 0800 45{'00' * 8}01{'00' * 10} 0800", False),
        (f"{ETHERNET} 0800 45{'00' * 8}06{'00' * 10} 0304", False),
        (f"{ETHERNET} 0800 46{'00' * 8}01{'00' * 10} 0304", False),
        (f"{ETHERNET} 86dd 60{'00' * 5}3a{'00' * 33} 0200", True),
        (f"{ETHERNET} 86dd 60{'00' * 5}3a{'00' * 33} 0100", False),
        (f"{ETHERNET} 86dd 60{'00' * 5}06{'00' * 33} 0200", False),
        (f"{ETHERNET} 0806 45{'00' * 8}01{'00' * 10} 0304", False),
    ],
)
def test_only_what_tells_of_a_frame_too_big_is_accepted(frame: str, accepted: bool) -> None:
    said = verdict(accept_too_big(), bytes.fromhex(frame))
    assert said == (ACCEPT if accepted else NEXT_FILTER)


def test_a_program_that_the_kernel_does_not_accept_is_an_error_with_its_number() -> None:
    with pytest.raises(RefusedError) as caught, loaded(bytes(8), "nothing"):
        pass
    assert caught.value.errno
