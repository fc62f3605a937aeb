"""The labs that have a name; each is there for something that networks do to a move.

Hosts have a bridge ``br0`` for guests with the host's own address and, as a port, ``uplink``.

::

    same-segment                   two-subnets                      small-mtu
    alpha ─┐                       alpha ──┐                        alpha ───────┐
    beta ──┼ switch                client ─┼ switch ─ router        client ──────┼ switch ─ router
    client ┘                                          │             beta ─ 1400 ─┘          │ 1400
                                   gamma ─────────────┘             gamma ───────────── far-router

    stp                            vlan
    alpha ── switch ── client      alpha, beta, client, each with a cable a VLAN to the switch:
              ║ two cables         br0 ─ uplink, br10 ─ uplink10, br20 ─ uplink20
    beta ─── switch2

A segment is 10.77.N.0/24 and fd71:6d69:6772:N::/64; guests take the numbers from 10 up.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from qmigrate.core.errors import UsageError
from qmigrate.lab.topology import (
    Address,
    Bridge,
    Cable,
    End,
    Node,
    NodeKind,
    Route,
    Topology,
    Vlan,
)

FIRST_GUEST: Final = 10
CLIENT: Final = 3
GATEWAY: Final = 254
JUMBO_MTU: Final = 9000
SMALL_MTU: Final = 1400  # as within a VPN; a guest's 1500 do not pass, IPv6's 1280 do
FORWARD_DELAY_S: Final = 2  # the shortest with STP on: `up` waits twice that for every port
VLANS: Final = (10, 20)


@dataclass(frozen=True, slots=True)
class Subnet:
    """The addresses of one segment: a private prefix (RFC 1918) and a unique local (RFC 4193).

    Labs' namespaces never meet, so all share them.
    """

    number: int

    def addresses(self, interface: str, number: int) -> tuple[Address, Address]:
        """Return both addresses of the node `number`, on `interface`."""
        v6 = ipaddress.ip_address(f"fd71:6d69:6772:{self.number:x}::{number:x}")
        return (
            Address(interface, f"10.77.{self.number}.{number}/24"),
            Address(interface, f"{v6.compressed}/64"),
        )

    def through(self, gateway: int = GATEWAY, to: "Subnet | None" = None) -> tuple[Route, Route]:
        """Return the routes by the node `gateway` in here to the subnet `to`, or to everywhere."""
        v4, v6 = (a.address.partition("/")[0] for a in self.addresses("", gateway))
        if to is None:
            return (Route("0.0.0.0/0", v4), Route("::/0", v6))
        nets = (str(ipaddress.ip_interface(a.address).network) for a in to.addresses("", 1))
        to_v4, to_v6 = nets
        return (Route(to_v4, v4), Route(to_v6, v6))


SEGMENT: Final = Subnet(0)


def guest_addresses(topology: Topology, host: str, number: int = FIRST_GUEST) -> tuple[str, ...]:
    """Return the addresses, with prefix lengths, of a guest that is born on `host`'s br0.

    Raises `UsageError` if there is no such host.
    """
    found = (
        ipaddress.ip_interface(address.address)
        for address in topology.node(host).addresses
        if address.interface == "br0"
    )
    return tuple(f"{a.network[number]}/{a.network.prefixlen}" for a in found)


def find(name: str) -> Topology:
    """Return the topology called `name`; raises `UsageError` naming those that there are."""
    if name not in TOPOLOGIES:
        step = f"there is: {', '.join(TOPOLOGIES)}"
        raise UsageError(f"no topology {name!r}", next_step=step)
    return TOPOLOGIES[name]


def _host(name: str, subnet: Subnet, number: int, *, routed: bool = False) -> Node:
    return Node(
        name,
        NodeKind.HOST,
        (Bridge("br0", ("uplink",)),),
        subnet.addresses("br0", number),
        subnet.through() if routed else (),
    )


def _client(subnet: Subnet, *, routed: bool = False) -> Node:
    routes = subnet.through() if routed else ()
    return Node("client", NodeKind.CLIENT, (), subnet.addresses("uplink", CLIENT), routes)


def _port(name: str) -> str:
    return f"port-{name}"


def _switched(nodes: Iterable[str], switch: str = "switch") -> tuple[Node, tuple[Cable, ...]]:
    """Return a switch and a cable to the uplink of each of `nodes`."""
    names = tuple(nodes)
    ports = tuple(map(_port, names))
    cables = (Cable((End(n, "uplink"), End(switch, p))) for n, p in zip(names, ports, strict=True))
    return Node(switch, NodeKind.SWITCH, (Bridge("br0", ports),)), tuple(cables)


def _same_segment() -> Topology:
    nodes = (_host("alpha", SEGMENT, 1), _host("beta", SEGMENT, 2), _client(SEGMENT))
    switch, cables = _switched(node.name for node in nodes)
    about = "two hosts and a client on one segment"
    return Topology("same-segment", (*nodes, switch), cables, about)


def _sites(name: str, hosts: tuple[str, ...], about: str) -> Topology:
    """Each host in a subnet of its own, one router between; the client is at the first's."""
    subnets = {host: Subnet(number) for number, host in enumerate(hosts, 1)}
    first, *others = hosts
    nodes = [_host(host, subnet, 1, routed=True) for host, subnet in subnets.items()]
    client = _client(subnets[first], routed=True)
    switch, cables = _switched((first, client.name))
    [bridge] = switch.bridges
    bridge = replace(bridge, ports=(*bridge.ports, _port("router")))
    router = Node(
        "router",
        NodeKind.ROUTER,
        (),
        tuple(a for host, net in subnets.items() for a in net.addresses(_port(host), GATEWAY)),
    )
    joined = (
        Cable((End("switch", _port("router")), End("router", _port(first)))),
        *(Cable((End(host, "uplink"), End("router", _port(host)))) for host in others),
    )
    switch = replace(switch, bridges=(bridge,))
    return Topology(name, (*nodes, client, switch, router), (*cables, *joined), about)


def _two_subnets() -> Topology:
    about = "alpha and a client in one subnet, gamma in another; a router, no segment in common"
    return _sites("two-subnets", ("alpha", "gamma"), about)


def _three_sites() -> Topology:
    about = "alpha with a client, gamma and delta, each in its own subnet around one router"
    return _sites("three-sites", ("alpha", "gamma", "delta"), about)


def _jumbo() -> Topology:
    about = f"two-subnets with MTU {JUMBO_MTU} on every cable and bridge"
    return replace(_two_subnets().with_mtu(JUMBO_MTU), name="jumbo", about=about)


def _small_mtu() -> Topology:
    """Beta is on alpha's segment and gamma in another subnet, both by a path that is too narrow.

    The narrow cable to gamma lies between two routers: no host can tell it from its own links.
    """
    home, away, between = Subnet(1), Subnet(2), Subnet(3)
    alpha, client = _host("alpha", home, 1, routed=True), _client(home, routed=True)
    beta = _host("beta", home, 2, routed=True)
    # Its bridge is narrow as well: with 1500 its own TCP would fall into the hole.
    beta = replace(beta, bridges=tuple(replace(b, mtu=SMALL_MTU) for b in beta.bridges))
    gamma = _host("gamma", away, 1, routed=True)
    switch, cables = _switched(("alpha", "client", "beta"))
    cables = tuple(
        replace(cable, mtu=SMALL_MTU) if cable.ends[0].node == "beta" else cable for cable in cables
    )
    [bridge] = switch.bridges
    bridge = replace(bridge, ports=(*bridge.ports, _port("router")))
    routers = (
        Node(
            "router",
            NodeKind.ROUTER,
            (),
            (*home.addresses("port-home", GATEWAY), *between.addresses("wan", 1)),
            between.through(2, away),
        ),
        Node(
            "far-router",
            NodeKind.ROUTER,
            (),
            (*away.addresses("port-gamma", GATEWAY), *between.addresses("wan", 2)),
            between.through(1, home),
        ),
    )
    joined = (
        Cable((End("switch", _port("router")), End("router", "port-home"))),
        Cable((End("router", "wan"), End("far-router", "wan")), mtu=SMALL_MTU),
        Cable((End("gamma", "uplink"), End("far-router", "port-gamma"))),
    )
    nodes = (alpha, beta, gamma, client, replace(switch, bridges=(bridge,)), *routers)
    about = f"beta on alpha's segment, gamma in another subnet, both behind MTU {SMALL_MTU}"
    return Topology("small-mtu", nodes, (*cables, *joined), about)


def _stp() -> Topology:
    """Every bridge speaks STP, and of the two cables between the switches it shuts one."""
    hosts = (_host("alpha", SEGMENT, 1), _host("beta", SEGMENT, 2))
    client = _client(SEGMENT)
    first, cables = _switched(("alpha", "client"))
    second, more = _switched(("beta",), "switch2")
    ring = tuple(Cable((End("switch", n), End("switch2", n))) for n in ("ring1", "ring2"))
    switches = tuple(
        replace(s, bridges=tuple(replace(b, ports=(*b.ports, "ring1", "ring2")) for b in s.bridges))
        for s in (first, second)
    )
    # The first node's bridge has the lowest address (`topology.mac`): that makes it the root.
    nodes = tuple(
        replace(
            node,
            bridges=tuple(replace(b, forward_delay_s=FORWARD_DELAY_S) for b in node.bridges),
        )
        for node in (*switches, *hosts, client)
    )
    about = f"same-segment with STP everywhere, forward delay {FORWARD_DELAY_S} s, a ring"
    return Topology("stp", nodes, (*cables, *more, *ring), about)


def _vlan() -> Topology:
    """A VLAN is a bridge and a cable: what a kernel that cannot filter VLANs has of them.

    In br0 tagged frames pass as they are: guests that tag themselves are adjacent there.
    """
    places = ("", *map(str, VLANS))
    alike = [_host("alpha", SEGMENT, 1), _host("beta", SEGMENT, 2)]
    bridges = tuple(Bridge(f"br{vlan or 0}", (f"uplink{vlan}",)) for vlan in places)
    hosts = tuple(replace(host, bridges=bridges) for host in alike)
    own = (a for vlan in VLANS for a in Subnet(vlan).addresses(f"uplink{vlan}", CLIENT))
    client = _client(SEGMENT)
    client = replace(client, addresses=(*client.addresses, *own))
    nodes = (*hosts, client)
    cables = tuple(
        Cable((End(node.name, f"uplink{vlan}"), End("switch", f"{_port(node.name)}{vlan}")))
        for vlan in places
        for node in nodes
    )
    trunks = tuple(
        Bridge(f"br{vlan or 0}", tuple(f"{_port(node.name)}{vlan}" for node in nodes))
        for vlan in places
    )
    switch = Node("switch", NodeKind.SWITCH, trunks)
    about = "same-segment, and VLANs 10 and 20 as bridges br10 and br20: any kernel can do it"
    return Topology("vlan", (*nodes, switch), cables, about)


def _vlan_aware() -> Topology:
    """One VLAN-aware bridge a host; the switch's port to beta lacks a VLAN, as is often seen."""
    nodes = (_host("alpha", SEGMENT, 1), _host("beta", SEGMENT, 2), _client(SEGMENT))
    switch, cables = _switched(node.name for node in nodes)
    everywhere, alpha_only = VLANS
    [trunk] = switch.bridges
    trunk = replace(
        trunk,
        vlans=(
            *(Vlan(_port("alpha"), vid) for vid in VLANS),
            *(Vlan(_port(name), everywhere) for name in ("beta", "client")),
        ),
    )
    tagged = tuple(Vlan("uplink", vid) for vid in (everywhere, alpha_only))
    aware = tuple(
        replace(node, bridges=tuple(replace(b, vlans=tagged) for b in node.bridges))
        for node in nodes
    )
    about = "VLAN-aware bridges, trunks with VLAN 10; 20 ends before beta; not every kernel can"
    return Topology("vlan-aware", (*aware, replace(switch, bridges=(trunk,))), cables, about)


TOPOLOGIES: Final[Mapping[str, Topology]] = MappingProxyType(
    {
        topology.name: topology
        for topology in (
            _same_segment(),
            _two_subnets(),
            _three_sites(),
            _small_mtu(),
            _jumbo(),
            _stp(),
            _vlan(),
            _vlan_aware(),
        )
    }
)
