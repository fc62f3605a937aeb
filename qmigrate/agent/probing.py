"""Segments probed and a guest looked for, as the controller asks.

A probe needs both hosts at once, and only the controller talks to both: it opens a prober on each
with one nonce, lets both ask, takes both halves and has either agent judge them.
"""

import json
from ipaddress import ip_address

import cattrs
import trio

from netsetup import adjacency, traps
from netsetup.errors import NetsetupError
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
    AskProbe,
    JudgeProbe,
    OpenProbe,
    ProbeHalf,
    ProbeOpen,
    Reached,
    ReachGuest,
    ReportProbe,
)

_CONVERTER = cattrs.Converter()


def nonce_of(text: str) -> bytes:
    """Return a nonce's octets; raise `HostError` for what is none."""
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
            nonce_of(request.nonce),
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
