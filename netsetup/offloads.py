"""What the kernel may leave undone on frames that it sends into a tunnel's port: SIOCETHTOOL.

The port stands for a wire: where nobody behind it can cut or sum for a tunnel's packets, frames
must come out of it whole. Blocks; the calling thread must be in the port's network namespace.
Source: linux/ethtool.h.
"""

import ctypes
import fcntl
import socket
from struct import Struct

from netsetup.errors import RefusedError

_SIOCETHTOOL = 0x8946
_REQUEST = Struct("=16sQ16x")
_VALUE = Struct("=II")
# ETHTOOL_GTXCSUM and STXCSUM; GTSO, STSO; GGSO, SGSO. Sums first: the others need them.
_MERGE = 0x2C  # ETHTOOL_SGRO
_SUMS, _TCP_SEGMENTS, _SEGMENTS = (0x16, 0x17), (0x1E, 0x1F), (0x23, 0x24)


def cut_offloads(name: str) -> bool:
    """Let only whole frames with right sums into interface `name`; return whether that is new."""
    if not offloads(name):
        return False
    for _, setting in (_TCP_SEGMENTS, _SEGMENTS, _SUMS):
        _ethtool(name, setting, 0)
    return True


def offloads(name: str) -> bool:
    """Whether frames may come out of interface `name` unfinished."""
    return any(_ethtool(name, asking, 0) for asking, _ in (_SUMS, _TCP_SEGMENTS, _SEGMENTS))


def restore_offloads(name: str) -> None:
    """Let the kernel leave all undone that it can on interface `name`."""
    for _, setting in (_SUMS, _SEGMENTS, _TCP_SEGMENTS):
        _ethtool(name, setting, 1)


def merge_received(name: str) -> None:
    """Let the kernel merge a connection's segments that come in by interface `name`.

    A veth does that to what its other end sends finished (drivers/net/veth.c,
    `veth_skb_is_eligible_for_gro`); the bridge then handles one packet instead of forty.
    """
    _ethtool(name, _MERGE, 1)


def _ethtool(name: str, command: int, value: int) -> int:
    buffer = ctypes.create_string_buffer(_VALUE.pack(command, value), _VALUE.size)
    request = _REQUEST.pack(name.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        try:
            fcntl.ioctl(wire, _SIOCETHTOOL, request)
        except OSError as exc:
            raise RefusedError(f"set offloads of {name}", exc.errno or 0) from exc
    return int(_VALUE.unpack(buffer.raw)[1])
