"""Paths between two hosts: which addresses lead there, and how large a packet passes whole."""

import socket
from contextlib import AsyncExitStack
from ipaddress import ip_address

import trio

from netsetup import path_mtu
from netsetup.errors import HostError as NetworkError
from netsetup.errors import NetsetupError, UsageError
from qmigrate.agent.probing import nonce_of
from qmigrate.agent.server import AgentContext
from qmigrate.core.tunnel_requests import (
    AnswerPath,
    GetSources,
    MeasurePaths,
    PathMtus,
    PathOpen,
    Sources,
)

_DISCARD_PORT = 9  # UDP: to connect sends nothing


async def get_sources(_ctx: AgentContext, request: GetSources) -> Sources:
    """Answer `GetSources`; no packet is sent."""
    pairs = []
    for remote in request.remotes:
        local = _source_for(remote)
        if local is not None and local != remote:
            pairs.append((local, remote))
    return Sources(tuple(pairs))


def _source_for(remote: str) -> str | None:
    """Return the address that the kernel's routes choose; None without a route."""
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as wire:
        try:
            wire.connect((remote, _DISCARD_PORT))
        except OSError:
            return None
        local: str = wire.getsockname()[0]
        return local


async def answer_path(ctx: AgentContext, request: AnswerPath) -> PathOpen:
    """Answer `AnswerPath`: probes of a path's MTU are answered until the call is cancelled."""
    async with AsyncExitStack() as stack:
        ports = []
        for address in request.addresses:
            try:
                responder = path_mtu.open_responder(ip_address(address), nonce_of(request.nonce))
                ports.append(await stack.enter_async_context(responder))
            except NetsetupError:
                ports.append(0)
        await ctx.note(PathOpen(tuple(ports)))
        await trio.sleep_forever()
    raise AssertionError("it sleeps until it is cancelled")


async def measure_paths(_ctx: AgentContext, request: MeasurePaths) -> PathMtus:
    """Answer `MeasurePaths`, all ways side by side; what cannot be measured is None."""
    mtus: list[int | None] = [None] * len(request.ways)
    nonce, limit = nonce_of(request.nonce), request.limit_bytes

    async def measure(index: int, local: str, remote: str, port: int) -> None:
        try:
            found = await path_mtu.measure(
                ip_address(local), ip_address(remote), port, nonce, limit_bytes=limit
            )
            mtus[index] = found.mtu_bytes
        except (NetworkError, UsageError):
            return

    async with trio.open_nursery() as nursery:
        for index, (local, remote, port) in enumerate(request.ways):
            if port:
                nursery.start_soon(measure, index, local, remote, port)
    return PathMtus(tuple(mtus))
