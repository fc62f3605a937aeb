"""Segments probed, paths measured and a guest looked for, as the controller asks.

A probe needs both hosts at once, and only the controller talks to both: it opens a prober on each
with one nonce, lets both ask, takes both halves and has either agent judge them.
"""

import json
import socket
from contextlib import AsyncExitStack
from ipaddress import ip_address

import cattrs
import trio

from netsetup import adjacency, path_mtu, traps
from netsetup.errors import HostError as NetworkError
from netsetup.errors import NetsetupError, UsageError
from netsetup.probe_report import ProbeReport
from netsetup.prober import open_prober
from netsetup.reach import reach
from netsetup.segments import Segment
from qmigrate.agent.network import as_host_errors, open_network
from qmigrate.agent.protocol import parse_json_untrusted
from qmigrate.agent.server import AgentContext
from qmigrate.core.errors import HostError, ProtocolError
from qmigrate.core.network import Adjacency, Trap, Verdict, Way
from qmigrate.core.network_requests import (
    AnswerPath,
    AskProbe,
    GetSources,
    JudgeProbe,
    MeasurePaths,
    OpenProbe,
    PathMtus,
    PathOpen,
    ProbeHalf,
    ProbeOpen,
    Reached,
    ReachGuest,
    ReportProbe,
    Sources,
)

_CONVERTER = cattrs.Converter()
_DISCARD_PORT = 9  # UDP: to connect sends nothing


def _nonce(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise HostError("a probe's nonce is 32 hex digits") from exc


async def open_probe(ctx: AgentContext, request: OpenProbe) -> ProbeOpen:
    """Answer `OpenProbe`: hear and answer until the call is cancelled."""
    network = await ctx.shared.once(open_network)
    segment = Segment(request.bridge, request.vlan)
    with as_host_errors():
        # In the agent's own nursery: an error of the block comes out as it is, in no group.
        async with open_prober(
            ctx.nursery,
            network.rtnl,
            segment,
            _nonce(request.nonce),
            isolated=request.isolated,
            mtu_bytes=request.mtu_bytes,
        ) as prober:
            network.probers[request.nonce] = prober
            try:
                await ctx.note(ProbeOpen(request.nonce))
                await trio.sleep_forever()
            finally:
                del network.probers[request.nonce]
    raise AssertionError("it sleeps until it is cancelled")


async def ask_probe(ctx: AgentContext, request: AskProbe) -> ProbeOpen:
    """Answer `AskProbe` once the prober has what it can have."""
    network = await ctx.shared.once(open_network)
    prober = network.probers.get(request.nonce)
    if prober is None:
        raise HostError("there is no prober of that nonce")
    with as_host_errors():
        await prober.ask(mtu_bytes=request.mtu_bytes)
    return ProbeOpen(request.nonce)


async def report_probe(ctx: AgentContext, request: ReportProbe) -> ProbeHalf:
    """Answer `ReportProbe`."""
    network = await ctx.shared.once(open_network)
    prober = network.probers.get(request.nonce)
    if prober is None:
        raise HostError("there is no prober of that nonce")
    with as_host_errors():
        report = await prober.report(guest_mac=request.guest_mac)
    return ProbeHalf(json.dumps(_CONVERTER.unstructure(report)))


async def judge_probe(_ctx: AgentContext, request: JudgeProbe) -> Verdict:
    """Answer `JudgeProbe`; it needs nothing of this host."""
    near = traps.Side(request.near, _report_untrusted(request.near_half))
    far = traps.Side(request.far, _report_untrusted(request.far_half))
    found = adjacency.judge(near, far, mtu_bytes=request.mtu_bytes, guest_mac=request.guest_mac)
    return verdict_here(found)


def _report_untrusted(half: str | None) -> ProbeReport | None:
    if half is None:
        return None
    try:
        return _CONVERTER.structure(parse_json_untrusted(half.encode()), ProbeReport)
    except (cattrs.BaseValidationError, NetsetupError, TypeError, ValueError) as exc:
        raise ProtocolError("this is no half of a probe") from exc


def verdict_here(found: adjacency.Verdict) -> Verdict:
    """Return netsetup's verdict as ours."""
    return Verdict(
        adjacency=Adjacency(found.adjacency),
        why=found.why,
        forth=_way(found.forth),
        back=_way(found.back),
        wanted_bytes=found.wanted_bytes,
        mtu_bytes=found.mtu_bytes,
        latency_us=found.latency_us,
        through_tunnel=found.through_tunnel,
        traps=tuple(Trap(str(trap.kind), trap.host, trap.text) for trap in found.traps),
        retry_after_s=found.retry_after_s,
    )


def _way(found: adjacency.Direction) -> Way:
    return Way(found.source, found.destination, str(found.passage), found.mtu_bytes, found.ways)


# Paths


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
                responder = path_mtu.open_responder(ip_address(address), _nonce(request.nonce))
                ports.append(await stack.enter_async_context(responder))
            except NetsetupError:
                ports.append(0)
        await ctx.note(PathOpen(tuple(ports)))
        await trio.sleep_forever()
    raise AssertionError("it sleeps until it is cancelled")


async def measure_paths(_ctx: AgentContext, request: MeasurePaths) -> PathMtus:
    """Answer `MeasurePaths`, all ways side by side; what cannot be measured is None."""
    mtus: list[int | None] = [None] * len(request.ways)
    nonce, limit = _nonce(request.nonce), request.limit_bytes

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


# The guest


async def reach_guest(ctx: AgentContext, request: ReachGuest) -> Reached:
    """Answer `ReachGuest`; what keeps this host from asking is in `problem`."""
    network = await ctx.shared.once(open_network)
    try:
        found = await reach(
            network.rtnl,
            Segment(request.bridge, request.vlan),
            request.mac,
            map(ip_address, request.addresses),
            patience_s=request.patience_s,
        )
    except NetsetupError as exc:
        return Reached(None, None, exc.what)
    if found is None:
        return Reached(None, None)
    return Reached(str(found[0]), round(found[1] * 1e3, 3))
