"""What an agent opens once for questions about the network, and how netsetup's nouns become ours.

The netlink thread imports pyroute2 when it is first asked, which takes longer than all the rest of
a probe: whoever is going to probe asks for `NetworkHere` early, beside other work.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from netsetup import homes, segment_sysfs
from netsetup.errors import NetsetupError
from netsetup.links import IFF_UP, pvid_of
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import GROUP, Part, Tunnel, mark_of, part_named
from qmigrate.agent import host
from qmigrate.agent.protocol import structure_untrusted
from qmigrate.agent.requests import OnNetwork
from qmigrate.agent.server import AgentContext
from qmigrate.core.errors import HostError, ProtocolError
from qmigrate.core.home import Home
from qmigrate.core.network import BridgeHere, NetworkHere, Port, TunnelHere
from qmigrate.core.network_requests import GetNetwork

if TYPE_CHECKING:
    from netsetup.prober import Prober

_AF_BRIDGE = 7
_RTEXT_FILTER_BRVLAN = 0x2


_SEGMENTS, _TUNNELS = "qmigrate.core.network_requests", "qmigrate.core.tunnel_requests"
# A request's name → the module of its type, that of its handler and the function; all of them are
# imported when they are first needed.
_HANDLERS: dict[str, tuple[str, str, str]] = {
    "GetNetwork": (_SEGMENTS, "network", "get_network"),
    "OpenProbe": (_SEGMENTS, "probing", "open_probe"),
    "AskProbe": (_SEGMENTS, "probing", "ask_probe"),
    "ReportProbe": (_SEGMENTS, "probing", "report_probe"),
    "JudgeProbe": (_SEGMENTS, "probing", "judge_probe"),
    "ReachGuest": (_SEGMENTS, "probing", "reach_guest"),
    "GetSources": (_TUNNELS, "paths", "get_sources"),
    "AnswerPath": (_TUNNELS, "paths", "answer_path"),
    "MeasurePaths": (_TUNNELS, "paths", "measure_paths"),
    "GetAbilities": (_TUNNELS, "tunnelling", "get_abilities"),
    "ChooseTunnel": (_TUNNELS, "tunnelling", "choose_tunnel"),
    "MakeTunnel": (_TUNNELS, "tunnelling", "make_tunnel"),
    "ReleaseTunnels": (_TUNNELS, "tunnelling", "release_tunnels"),
    "RepairTunnels": (_TUNNELS, "tunnelling", "repair_tunnels"),
    "TurnSegment": (_TUNNELS, "tunnelling", "turn_segment"),
}


async def on_network(ctx: AgentContext, request: OnNetwork) -> Any:
    """Answer what is in an `OnNetwork`."""
    if request.name not in _HANDLERS:
        raise ProtocolError(f"no request {request.name!r} about the network")
    types, module, function = _HANDLERS[request.name]
    kind = getattr(import_module(types), request.name)
    handler = getattr(import_module(f"qmigrate.agent.{module}"), function)
    return await handler(ctx, structure_untrusted(request.body, kind))


@dataclass(slots=True)
class OpenNetwork:
    """The netlink thread of an agent and the probers that are open there, by nonce."""

    rtnl: Rtnl
    probers: "dict[str, Prober]" = field(default_factory=dict)


@asynccontextmanager
async def open_network() -> AsyncIterator[OpenNetwork]:
    """Open what `AgentContext.shared.once` keeps for all calls of an agent."""
    async with Rtnl() as rtnl:
        yield OpenNetwork(rtnl)


@contextmanager
def as_host_errors() -> Iterator[None]:
    """Raise what netsetup says as `HostError`, with its way out."""
    try:
        yield
    except NetsetupError as exc:
        raise HostError(exc.what, next_step=exc.next_step) from exc


async def get_network(ctx: AgentContext, _request: GetNetwork) -> NetworkHere:
    """Answer `GetNetwork`."""
    network = await ctx.shared.once(open_network)
    with as_host_errors():
        told = _bridges_in_sysfs()
        if told is None:
            told = await network.rtnl.run("describe the bridges", _bridges)
        bridges, ports, marked = told
        tunnels: tuple[Tunnel, ...] = ()
        if marked:
            from netsetup.tunnels import list_tunnels  # 30 ms that most hosts need not wait

            tunnels = await list_tunnels(network.rtnl)
    return NetworkHere(
        host.boot_id(), host.addresses(), bridges, ports, tuple(map(tunnel_here, tunnels))
    )


def tunnel_here(tunnel: Tunnel) -> TunnelHere:
    """Return netsetup's tunnel as ours."""
    return TunnelHere(
        id=tunnel.id,
        end=str(tunnel.end),
        home=home_here(tunnel.home),
        owner=tunnel.tag.owner,
        job=tunnel.tag.job,
        backend=tunnel.backend,
        kind=tunnel.kind,
        local=None if tunnel.local is None else str(tunnel.local),
        remote=None if tunnel.remote is None else str(tunnel.remote),
        key=tunnel.key,
        mtu_bytes=tunnel.mtu_bytes,
        manner=None if tunnel.manner is None else str(tunnel.manner),
        port=tunnel.port,
        bridge=tunnel.bridge,
        guests=tunnel.guests,
        taps=tunnel.taps,
        problems=tunnel.problems,
        notes=tunnel.notes,
    )


def home_here(home: homes.Home) -> Home:
    """Return netsetup's home as ours."""
    return Home(home.host, home.bridge, home.vlan)


def home_there(home: Home) -> homes.Home:
    """Return our home as netsetup's; raise its `UsageError` for one that cannot be."""
    return homes.Home(home.host, home.bridge, home.vlan)


def _bridges_in_sysfs() -> tuple[tuple[BridgeHere, ...], tuple[Port, ...], bool] | None:
    """Return the same as `_bridges`; None where only netlink tells, as of VLANs."""
    bridges: list[BridgeHere] = []
    ports: list[Port] = []
    try:
        for name in segment_sysfs.bridges():
            found = segment_sysfs.describe_bridge(name)
            if found is None:
                return None
            # A private bridge is marked by an alias that only its name lets expect.
            part = part_named(name)
            private = part is not None and part[1] is Part.BRIDGE
            bridges.append(BridgeHere(name, found.mtu_bytes, found.up, found.stp, private))
            for port in map(segment_sysfs.describe_port, segment_sysfs.ports_of(name)):
                home = homes.home_of(port.alias)
                ports.append(
                    Port(
                        name=port.name,
                        bridge=name,
                        mtu_bytes=port.mtu_bytes,
                        tap=port.kind == "tun",
                        isolated=port.isolated,
                        home=None if home is None else home_here(home),
                    )
                )
        return tuple(bridges), tuple(ports), segment_sysfs.has_group(GROUP)
    except (OSError, ValueError):
        return None


def _bridges(ip: Any) -> tuple[tuple[BridgeHere, ...], tuple[Port, ...], bool]:
    """Return the bridges, their ports, and whether anything of a tunnel of ours is there."""
    messages = list(ip.link("dump"))
    bridges = {m["index"]: m for m in messages if m.get(("linkinfo", "kind")) == "bridge"}
    filtering = any(m.get(("linkinfo", "data", "br_vlan_filtering")) for m in bridges.values())
    flags = {"family": _AF_BRIDGE, "ext_mask": _RTEXT_FILTER_BRVLAN}
    vlans = list(ip.link("dump", **flags)) if filtering else []
    ports = []
    for message in messages:
        bridge = bridges.get(message.get("master"))
        if bridge is None:
            continue
        own = pvid_of(vlans, message["index"])
        usual = bridge.get(("linkinfo", "data", "br_vlan_default_pvid"))
        home = homes.home_of(message.get("ifalias"))
        ports.append(
            Port(
                name=message.get("ifname"),
                bridge=bridge.get("ifname"),
                mtu_bytes=message.get("mtu"),
                tap=message.get(("linkinfo", "kind")) == "tun",
                isolated=bool(message.get(("linkinfo", "slave_data", "IFLA_BRPORT_ISOLATED"))),
                vlan=None if own == usual else own,
                home=None if home is None else home_here(home),
            )
        )
    marked = any(m.get("group") == GROUP for m in messages)
    return tuple(map(_bridge, bridges.values())), tuple(ports), marked


def _bridge(message: Any) -> BridgeHere:
    mark = mark_of(message.get("ifalias"))
    return BridgeHere(
        name=message.get("ifname"),
        mtu_bytes=message.get("mtu"),
        up=bool(message["flags"] & IFF_UP),
        stp=bool(message.get(("linkinfo", "data", "br_stp_state"))),
        private=mark is not None and mark.part is Part.BRIDGE,
    )
