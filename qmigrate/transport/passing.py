"""Sockets made ready for their work: the link's own, and those that QEMU gets.

QEMU inherits every option of a socket that it is given (SCM_RIGHTS passes the open file, not a
copy), and sets none of these itself, so they are set here before it has the descriptor.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

KEEPALIVE_IDLE_S = 5  # a quiet link (guest paused before the switchover) is asked after this
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 5  # unused where TCP_USER_TIMEOUT is set, but for kernels that count first

# The link is only control: a silence of this length is a break, and it is dialled anew.
LINK_USER_TIMEOUT_MS = 5_000

# A broken memory stream costs the whole copy, so a silent cut is ridden out for longer. The kernel
# counts a receiver that does not read as silence too: nothing may stop the destination for so long.
QEMU_USER_TIMEOUT_MS = 30_000

_BUDGET_S = 0.005  # bytes accepted and not yet sent add their sending time to the blackout
_SEND_BUFFER_LEAST_BYTES = 256 * 1024


class _HasOptions(Protocol):
    """A socket of the standard library's, or trio's."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


def prepare_for_link(sock: _HasOptions) -> None:
    """Set what the control connection needs: no delay, and death noticed in seconds."""
    _prepare(sock, LINK_USER_TIMEOUT_MS)


def prepare_for_qemu(sock: socket.socket, *, send_buffer: int | None = None) -> None:
    """Set what QEMU will inherit, and blocking mode, in which it expects a descriptor.

    `send_buffer` in bytes, see `send_buffer_bytes`; None leaves the size to the kernel.
    """
    _prepare(sock, QEMU_USER_TIMEOUT_MS)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.setblocking(True)


def _prepare(sock: _HasOptions, user_timeout_ms: int) -> None:
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, user_timeout_ms),
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def send_buffer_bytes(rate_bps: float | None) -> int | None:
    """Return SO_SNDBUF for a link of `rate_bps` bytes/s; None, unknown: the kernel's autotuning.

    5 ms of the link at least 256 KiB: 1 MiB at 200 Mbit/s turned a blackout of 10 ms into 84
    (facts/transport §5). The kernel doubles what it is told, so half is said.
    """
    if rate_bps is None:
        return None
    return max(_SEND_BUFFER_LEAST_BYTES, int(rate_bps * _BUDGET_S)) // 2


async def hand_over(sock: socket.socket, give: Callable[[int], Awaitable[None]]) -> None:
    """Await `give` with the descriptor, then close our end, whatever came of it.

    Once QEMU has it our copy must go: while it is open the peer would not see QEMU's end.
    """
    with sock:
        await give(sock.fileno())
