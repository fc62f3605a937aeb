"""What an agent opens once for questions about the network, and how netsetup's nouns become ours.

The netlink thread imports pyroute2 when it is first asked, which takes longer than all the rest of
a probe: whoever is going to probe asks for `NetworkHere` early, beside other work.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from netsetup import homes
from netsetup.errors import NetsetupError
from netsetup.links import IFF_UP, pvid_of
from netsetup.prober import Prober
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import Part, Tunnel, mark_of
from netsetup.tunnels import list_tunnels
from qmigrate.agent import host
from qmigrate.agent.server import AgentContext
from qmigrate.core.errors import HostError
from qmigrate.core.network import BridgeHere, Home, NetworkHere, Port, TunnelHere
from qmigrate.core.network_requests import GetNetwork

_AF_BRIDGE = 7
_RTEXT_FILTER_BRVLAN = 0x2


@dataclass(slots=True)
class OpenNetwork:
    """The netlink thread of an agent and the probers that are open there, by nonce."""

    rtnl: Rtnl
    probers: dict[str, Prober] = field(default_factory=dict)


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
        tunnels = await list_tunnels(network.rtnl)
        bridges, ports = await network.rtnl.run("describe the bridges", _bridges)
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


def _bridges(ip: Any) -> tuple[tuple[BridgeHere, ...], tuple[Port, ...]]:
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
    return tuple(_bridge(message) for message in bridges.values()), tuple(ports)


def _bridge(message: Any) -> BridgeHere:
    mark = mark_of(message.get("ifalias"))
    return BridgeHere(
        name=message.get("ifname"),
        mtu_bytes=message.get("mtu"),
        up=bool(message["flags"] & IFF_UP),
        stp=bool(message.get(("linkinfo", "data", "br_stp_state"))),
        private=mark is not None and mark.part is Part.BRIDGE,
    )
