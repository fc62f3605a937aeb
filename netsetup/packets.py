"""Packet sockets that hear only what a filter lets by, and the VLAN tag that the kernel took off.

Sources: packet(7), Documentation/networking/filter.rst, struct tpacket_auxdata.
"""

import ctypes
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import ENODEV
from functools import partial

from netsetup.errors import NoSuchLinkError, RefusedError
from netsetup.links import check_name

Program = Sequence[tuple[int, int, int, int]]

_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_TP_STATUS_VLAN_VALID = 0x10
# struct tpacket_auxdata: | status 4 | len 4 | snaplen 4 | mac 2 | net 2 | tci 2 | tpid 2 |
_AUXDATA = struct.Struct("=III4xHxx")
CONTROL_BYTES = socket.CMSG_SPACE(_AUXDATA.size)


def attach_filter(program: Program, attach: Callable[[bytes], object]) -> None:
    """Call `attach` with the program as the kernel takes it, a `sock_fprog`, good for this call."""
    octets = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(octets, len(octets))
    attach(struct.pack("HP", len(program), ctypes.addressof(code)))


def listen(interface: str | None, program: Program, *, buffer_bytes: int) -> socket.socket:
    """Return a non-blocking socket that hears what comes in by `interface`, None: by any.

    Raises `NoSuchLinkError`, and `RefusedError` without privilege.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    # Protocol 0, deaf, until the filter is on it. Python cannot bind to every interface later.
    protocol = socket.htons(_ETH_P_ALL) if interface is None else 0
    try:
        sock = socket.socket(socket.AF_PACKET, kind, protocol)
    except OSError as exc:
        raise RefusedError("open a packet socket", exc.errno or 0) from exc
    try:
        attach_filter(program, partial(sock.setsockopt, socket.SOL_SOCKET, _SO_ATTACH_FILTER))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        if interface is None:
            _discard(sock)
        else:
            # All protocols: a socket bound to one sees tagged frames with the tag already lost.
            sock.bind((check_name(interface), _ETH_P_ALL))
    except OSError as exc:
        sock.close()
        if exc.errno == ENODEV:
            raise NoSuchLinkError(f"there is no interface {interface}") from exc
        raise RefusedError(f"listen on {interface or 'every interface'}", exc.errno or 0) from exc
    return sock


def _discard(sock: socket.socket) -> None:
    """Throw away what came before the filter; it is at most one buffer full."""
    with suppress(BlockingIOError):
        while True:
            sock.recv(1)


def stripped_vlan(control: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return the VLAN id of the tag that the kernel took off the frame."""
    for level, kind, octets in control:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(octets) >= _AUXDATA.size:
            status, _, _, tci = _AUXDATA.unpack_from(octets)
            if status & _TP_STATUS_VLAN_VALID:
                return tci & 0xFFF or None
    return None
