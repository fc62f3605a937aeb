"""How large a packet may be that passes between two hosts whole, found by sending such packets.

The kernel's own answer is what its interface takes, less what routers have told it; a router that
tells nobody is found only by what does not arrive. So one host answers and the other sends UDP
packets that nobody may cut (RFC 8899 calls it packetization layer path MTU discovery). Each way is
measured from its own end: the answers are small.

A probe is ``nonce:16 size:2`` and padding up to `size`, the length of the IP packet; an answer is
the first 18 bytes with the nonce turned round, so that a reflector is no responder.
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from errno import EMSGSIZE

import trio

from netsetup.errors import HostError, RefusedError, UsageError
from netsetup.mtu import IPV4_BYTES, IPV6_BYTES, MIN_MTU_BYTES
from netsetup.tunnel_spec import Address

NONCE_BYTES = 16
_PROBE = struct.Struct(f"!{NONCE_BYTES}sH")
_UDP_BYTES = 8
_DISCARD_PORT = 9
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
_PMTUDISC_PROBE = 3  # DF set, and the kernel's own belief about the path not minded

# A first answer may need ARP on every hop; three times, as a lost packet is no silence.
HELLO_S = (0.3, 0.3, 0.6)
TRIES = 2
PATIENCE_TRIPS, PATIENCE_S = 8, (0.02, 0.3)  # for one size, at least and at most
# What paths are made of: jumbo, Ethernet under the headers of tunnels, PPPoE, IPv6's least.
USUAL_BYTES = (
    65535, 9216, 9000, 8950, 8900, 4000, 2000, 1600, 1570, 1554, 1550, 1538, 1504, 1500, 1492,
    1480, 1476, 1468, 1460, 1450, 1430, 1420, 1400, 1350, 1300, 1280,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The largest packet that arrived; None if none did, and `why` says what is known then."""

    mtu_bytes: int | None
    believed_bytes: int  # the kernel's own answer: an upper bound
    rtt_ms: float | None
    why: str


def believed_mtu(local: Address, remote: Address) -> int:
    """Return what the kernel believes to pass from `local` to `remote`; raise `HostError`."""
    with _socket(local) as wire:
        _connect(wire, remote, _DISCARD_PORT)
        value: int = wire.getsockopt(*_MTU[local.version])
        return value


@asynccontextmanager
async def open_responder(local: Address, nonce: bytes, port: int = 0) -> AsyncIterator[int]:
    """Answer probes that carry `nonce`; yields the UDP port, chosen by the kernel for 0."""
    _check(nonce)
    with trio.socket.from_stdlib_socket(_socket(local, port)) as wire:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_respond, wire, nonce)
            yield wire.getsockname()[1]
            nursery.cancel_scope.cancel()


async def measure(
    local: Address, remote: Address, port: int, nonce: bytes, *, limit_bytes: int = 65535
) -> PathMtu:
    """Return the largest of the usual sizes up to `limit_bytes` that reaches the responder.

    `limit_bytes` itself is tried too. Takes 1.2 s if nobody answers.
    """
    _check(nonce)
    believed = believed_mtu(local, remote)
    top = min(limit_bytes, believed)
    sizes = sorted({size for size in (*USUAL_BYTES, top, limit_bytes) if size <= top})
    if not sizes:
        raise UsageError(f"a path of {top} bytes carries no tunnel: {MIN_MTU_BYTES} at least")
    with _socket(local) as plain:
        _connect(plain, remote, port)
        wire = trio.socket.from_stdlib_socket(plain.dup())
    with wire:
        rtt_s = None
        for patience_s in HELLO_S:
            if (rtt_s := await _passes(wire, remote, nonce, MIN_MTU_BYTES, patience_s)) is not None:
                break
        if rtt_s is None:
            return PathMtu(
                None,
                believed,
                None,
                f"nobody answers at {remote} UDP port {port}: a firewall, or the wrong address",
            )
        patience_s = min(max(PATIENCE_TRIPS * rtt_s, PATIENCE_S[0]), PATIENCE_S[1])
        low, high = 0, len(sizes)  # sizes[low] passes, sizes[high] does not
        attempt = high - 1  # the largest first: mostly it passes
        while high - low > 1:
            arrived = False
            for _ in range(TRIES):
                if await _passes(wire, remote, nonce, sizes[attempt], patience_s) is not None:
                    arrived = True
                    break
            low, high = (attempt, high) if arrived else (low, attempt)
            attempt = (low + high) // 2
        found = sizes[low]
    narrower = "" if found >= top else f", though this host believes in {believed}"
    return PathMtu(found, believed, rtt_s * 1000, f"{found} bytes arrive whole{narrower}")


async def _passes(
    wire: trio.socket.SocketType, remote: Address, nonce: bytes, size: int, patience_s: float
) -> float | None:
    """Return the round trip's seconds if a packet of `size` arrives; None if not in time."""
    headers = (IPV4_BYTES if remote.version == 4 else IPV6_BYTES) + _UDP_BYTES
    started = trio.current_time()
    with suppress(OSError), trio.move_on_after(patience_s):
        await wire.send(_PROBE.pack(nonce, size).ljust(size - headers, b"\0"))
        while True:
            try:
                answer = await wire.recv(65536)
            except OSError as exc:
                if exc.errno == EMSGSIZE:  # a router says so; that it was about this one is likely
                    return None
                continue  # nobody listens yet, or any more
            if parse_untrusted(answer, nonce[::-1]) == size:
                return trio.current_time() - started
    return None


async def _respond(wire: trio.socket.SocketType, nonce: bytes) -> None:
    while True:
        try:
            octets, sender = await wire.recvfrom(65536)
        except OSError:  # somebody's ICMP about an answer of ours
            continue
        size = parse_untrusted(octets, nonce)
        if size is not None:
            with suppress(OSError):
                await wire.sendto(_PROBE.pack(nonce[::-1], size), sender)


def parse_untrusted(octets: bytes, nonce: bytes) -> int | None:
    """Return the size that a probe or an answer with `nonce` names; None for anything else."""
    if len(octets) < _PROBE.size:
        return None
    theirs, size = _PROBE.unpack_from(octets)
    return size if theirs == nonce else None


def _check(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES or nonce == nonce[::-1]:
        raise UsageError(f"a nonce has {NONCE_BYTES} random bytes")


def _socket(local: Address, port: int = 0) -> socket.socket:
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    wire = socket.socket(family, socket.SOCK_DGRAM)
    try:
        wire.setsockopt(*_MTU_DISCOVER[local.version], _PMTUDISC_PROBE)
        wire.bind((str(local), port))
    except OSError as exc:
        wire.close()
        raise RefusedError(f"use {local} UDP port {port or 'any'}", exc.errno or 0) from exc
    return wire


def _connect(wire: socket.socket, remote: Address, port: int) -> None:
    try:
        wire.connect((str(remote), port))  # UDP: nothing is sent
    except OSError as exc:
        raise HostError(
            f"this host has no route to {remote}: {exc.strerror}",
            next_step="give an address of the other host that it has a route to",
        ) from exc
