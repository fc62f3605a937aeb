"""The other ends of a monitor's socket: QEMU's, and the client's that holds it.

QEMU serves one client a monitor; a second one's connect succeeds and then waits in silence. The
kernel knows both ends of every unix connection and tells them over netlink (unix_diag, as
``ss -xp`` asks), /proc tells whose they are. Best effort: None where either is not told.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qmigrate.qmp import faults

_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED = 1  # TCP_ESTABLISHED, unix_diag's word for connected
_SHOW_NAME, _SHOW_PEER = 1, 4
_ATTR_NAME, _ATTR_PEER = 0, 2
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req: family, protocol, pad, states, ino, show, …
_MESSAGE = struct.Struct("=BBBBIII")  # unix_diag_msg: family, type, state, pad, ino, cookie
_ATTRIBUTE = struct.Struct("=HH")  # length with header, type
_ANSWER_DEADLINE_S = 1.0  # the kernel answers at once; a netlink filter might drop the question


def dial(path: str, *, name: str) -> socket.socket:
    """Return a socket connected to the monitor at `path`, nothing said yet; never blocks.

    Raises `MonitorUnreachableError`, or `MonitorBusyError` when its queue is full already.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A unix socket connects at once or not at all; asyncio and trio would take the EAGAIN of
        # a full queue for "in progress" and the socket for connected.
        sock.connect(path)
    except BlockingIOError as exc:
        sock.close()
        raise faults.busy(name, "so many wait for it that none may join them") from exc
    except OSError as exc:
        sock.close()
        raise faults.unreachable(name, path, exc) from exc
    return sock


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that speaks with a QEMU's monitor."""

    pid: int
    command: str


def peer_pid(sock: socket.socket) -> int | None:
    """Return the pid that listens at the other end (SO_PEERCRED), None outside our namespace."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid or None


def is_stopped(pid: int | None) -> bool:
    """Tell whether process `pid` is stopped by a signal or a tracer."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] in (b"T", b"t")


def find_holder(sock: socket.socket) -> Holder | None:
    """Return who holds the monitor that `sock` waits for; blocks for some milliseconds."""
    try:
        name = sock.getpeername()
        server = peer_pid(sock)
        ends = tuple(_connections(os.fsencode(name)))
    except OSError:
        return None
    # Two QEMUs may have bound the same relative name: only ends in this one's hands count.
    served = None if server is None else _socket_inodes(server)
    peers = {peer for own, peer in ends if peer and (not served or own in served)}
    for entry in Path("/proc").iterdir():
        pid = int(entry.name) if entry.name.isdecimal() else None
        if pid is not None and pid != server and peers & _socket_inodes(pid):
            return Holder(pid, _command(pid))
    return None


def _connections(name: bytes) -> Iterator[tuple[int, int]]:
    """Yield (inode, peer's inode) of every accepted connection of the listener `name`."""
    for own, attributes in _dump():
        bound = attributes.get(_ATTR_NAME, b"").rstrip(b"\0")
        peer = attributes.get(_ATTR_PEER, b"")
        if own and bound == name.rstrip(b"\0") and len(peer) == 4:
            yield own, struct.unpack("=I", peer)[0]


def _dump() -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield inode and attributes of every connected unix socket in this network namespace."""
    body = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << _ESTABLISHED, 0, _SHOW_NAME | _SHOW_PEER, 0xFFFFFFFF, 0xFFFFFFFF
    )
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_ANSWER_DEADLINE_S)
        netlink.send(head + body)
        while True:
            data = netlink.recv(1 << 17)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                yield _MESSAGE.unpack_from(message)[4], _attributes(message[_MESSAGE.size :])


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def _socket_inodes(pid: int) -> set[int]:
    """Return the inodes of the sockets that `pid` has open; empty if it may not be looked at."""
    inodes = set()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(fd.readlink())
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
