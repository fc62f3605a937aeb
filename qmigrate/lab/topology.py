"""What a lab consists of, as data, and the iproute2 lines that make it.

Nothing here does anything: the lines are fed to ``ip -batch``, ``bridge -batch`` and ``tc -batch``
by others. The labs that have a name are in `topologies`.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from qmigrate.core.errors import UsageError

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,14}")
FORWARD_DELAY_S: Final = range(2, 31)  # what IEEE 802.1D 8.10.2 allows, and the kernel with STP on
STP_HELLO_S: Final = 1  # the shortest that the kernel takes, as is the age
STP_MAX_AGE_S: Final = 6
VLAN_IDS: Final = range(1, 4095)
NATIVE_VLAN: Final = 1  # a port of a VLAN-aware bridge is in it, untagged, unless told otherwise
_INTERFACE_MAX: Final = 15  # IFNAMSIZ - 1
FIRST_INDEX: Final = 1000  # of near ends; far ones count from 2
MTU_MIN: Final = 1280  # IPv6 does not work over less (RFC 8200 §5)
MTU_MAX: Final = 65535
BURST_MIN_BYTES: Final = 256 * 1024  # four of the largest GSO frames, else tbf drops them whole
BURST_S: Final = 0.005  # what may pass at once; over the 4 ms between ticks of a slow kernel
TBF_LATENCY_MS: Final = 50  # the longest that a frame may queue: a switch port's worth of buffer


class NodeKind(StrEnum):
    """What a node is for; it decides what runs there."""

    HOST = "host"  # runs guests, answers ssh
    CLIENT = "client"  # runs the controller and the probes
    SWITCH = "switch"  # joins its ports
    ROUTER = "router"  # forwards between its ports


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix length on an interface of a node."""

    interface: str
    address: str  # "10.77.0.1/24"


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a node."""

    to: str  # prefix or "default"
    via: str


@dataclass(frozen=True, slots=True)
class Vlan:
    """A port's place in a VLAN of a VLAN-aware bridge."""

    port: str
    vid: int
    access: bool = False  # untagged and in this VLAN only; else tagged, beside others


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of a node; ports forward at once unless it speaks STP.

    With a `forward_delay_s` it does, and a new port forwards after twice that. With `vlans` it is
    VLAN-aware, which the kernel must have been built for (BRIDGE_VLAN_FILTERING); without, it
    forwards tagged frames as they are, whatever their VLAN.
    """

    name: str
    ports: tuple[str, ...] = ()
    mtu: int = 1500
    forward_delay_s: int | None = None
    vlans: tuple[Vlan, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A host, client, switch or router."""

    name: str
    kind: NodeKind
    bridges: tuple[Bridge, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def address(self) -> str | None:
        """The first address, without its prefix length."""
        return self.addresses[0].address.partition("/")[0] if self.addresses else None


@dataclass(frozen=True, slots=True)
class End:
    """Where a cable is plugged in."""

    node: str
    interface: str


@dataclass(frozen=True, slots=True)
class Cable:
    """Two ends; the rate holds each way, None is as fast as the kernel copies."""

    ends: tuple[End, End]
    rate_bps: int | None = None
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Topology:
    """A lab before it stands; raises `UsageError` if it cannot stand."""

    name: str
    nodes: tuple[Node, ...]
    cables: tuple[Cable, ...] = field(default=())
    about: str = ""  # a line for who has to choose

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise UsageError(f"topology {self.name}: " + "; ".join(problems))

    def node(self, name: str) -> Node:
        """Return the node called `name`; raises `UsageError` naming those that there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise UsageError(f"the lab has no host {name!r}", next_step=f"it has: {names}")

    @property
    def hosts(self) -> tuple[Node, ...]:
        """The nodes that run guests and answer ssh."""
        return tuple(node for node in self.nodes if node.kind is NodeKind.HOST)

    def cables_of(self, name: str) -> tuple[Cable, ...]:
        """Return the cables with an end in the node called `name`."""
        return tuple(c for c in self.cables if any(end.node == name for end in c.ends))

    def with_mtu(self, mtu: int) -> "Topology":
        """Return the same with `mtu` bytes on every cable and bridge: the underlay's MTU."""
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise UsageError(f"MTU {mtu} is not between {MTU_MIN} and {MTU_MAX}")
        nodes = tuple(
            replace(n, bridges=tuple(replace(b, mtu=mtu) for b in n.bridges)) for n in self.nodes
        )
        return replace(self, nodes=nodes, cables=tuple(replace(c, mtu=mtu) for c in self.cables))

    def with_rate(self, rate_bps: int | None) -> "Topology":
        """Return the same with `rate_bps` on every cable."""
        if rate_bps is not None and rate_bps <= 0:
            raise UsageError(f"a cable cannot carry {rate_bps} bit/s")
        return replace(self, cables=tuple(replace(c, rate_bps=rate_bps) for c in self.cables))


def _problems(topology: Topology) -> Iterator[str]:
    names = [node.name for node in topology.nodes]
    yield from (
        f"two nodes are called {n}" for n in sorted({n for n in names if names.count(n) > 1})
    )
    yield from (f"{n!r} is no name for a node" for n in names if not _NAME.fullmatch(n))
    plugged = [end for cable in topology.cables for end in cable.ends]
    for end in plugged:
        if end.node not in names:
            yield f"a cable ends in {end.node}, which does not exist"
        if plugged.count(end) > 1:
            yield f"two cables are plugged into {end.node} {end.interface}"
        if not 0 < len(end.interface) <= _INTERFACE_MAX or not end.interface.isascii():
            yield f"{end.interface!r} is no name for an interface"
    for node in topology.nodes:
        interfaces = {end.interface for end in plugged if end.node == node.name}
        ports = [port for bridge in node.bridges for port in bridge.ports]
        yield from (f"{node.name} has no {port} to bridge" for port in set(ports) - interfaces)
        yield from (f"{node.name}: {words}" for b in node.bridges for words in _bridge_problems(b))
        interfaces |= {bridge.name for bridge in node.bridges} | {"lo"}
        for address in node.addresses:
            if address.interface not in interfaces:
                yield f"{node.name} has no {address.interface} for {address.address}"
            try:
                ipaddress.ip_interface(address.address)
            except ValueError as exc:
                yield f"{node.name}: {exc}"
        if node.kind is NodeKind.HOST and not node.addresses:
            yield f"{node.name} has no address to reach it by"


def _bridge_problems(bridge: Bridge) -> Iterator[str]:
    if bridge.forward_delay_s not in (None, *FORWARD_DELAY_S):
        least, most = FORWARD_DELAY_S[0], FORWARD_DELAY_S[-1]
        yield f"{bridge.name}'s forward delay is not between {least} and {most} s"
    for vlan in bridge.vlans:
        if vlan.port not in bridge.ports:
            yield f"{bridge.name} has no port {vlan.port} for VLAN {vlan.vid}"
        if vlan.vid not in VLAN_IDS:
            yield f"{vlan.vid} is no VLAN"


def mac(node_index: int, bridge_index: int) -> str:
    """Return the address of a bridge: a fixed one, or it would change with every tap plugged in."""
    return f"02:71:6d:00:{node_index:02x}:{bridge_index:02x}"


def port_mac(topology: Topology, end: End) -> str:
    """Return the address of a cable's end: a card keeps its own when its machine reboots.

    Else the neighbours of a router would go on sending to the one that it had before.
    """
    node_index = [node.name for node in topology.nodes].index(end.node)
    plugged = [e for cable in topology.cables_of(end.node) for e in cable.ends]
    own = [e for e in plugged if e.node == end.node]
    return f"02:71:6d:01:{node_index:02x}:{own.index(end):02x}"


def cable_lines(
    topology: Topology, cables: tuple[Cable, ...], namespace: Callable[[str], str]
) -> list[str]:
    """Return ``ip -batch`` lines that lay `cables`; `namespace` names a node's netns for ip(8).

    Both ends are born in their node: a killed ``ip`` leaves no link in the machine's own namespace.

    The index is there to differ from the far end's. Where both are equal Linux takes the link for
    one that stands alone and tells nobody of its carrier for up to a second (net/core/link_watch.c,
    `linkwatch_urgent_event`): so long a bridge drops what comes by it.
    """
    lines = []
    for cable in cables:
        near, far = cable.ends
        index = FIRST_INDEX + topology.cables.index(cable)
        lines.append(
            f"link add {near.interface} index {index} netns {namespace(near.node)} "
            f"address {port_mac(topology, near)} mtu {cable.mtu} type veth "
            f"peer name {far.interface} netns {namespace(far.node)} "
            f"address {port_mac(topology, far)} mtu {cable.mtu}"
        )
    return lines


def bridge_lines(topology: Topology, name: str) -> list[str]:
    """Return ``ip -batch`` lines, for within the node, that make its bridges."""
    index = [node.name for node in topology.nodes].index(name)
    lines = ["link set lo up"]
    for number, bridge in enumerate(topology.nodes[index].bridges):
        options = f"mtu {bridge.mtu} address {mac(index, number)} type bridge"
        lines += [
            f"link add {bridge.name} {options} {_bridge_options(bridge)}",
            f"link set {bridge.name} up",
        ]
    return lines


def _bridge_options(bridge: Bridge) -> str:
    words = "stp_state 0 forward_delay 0"
    if bridge.forward_delay_s is not None:
        words = (  # in hundredths of a second
            f"stp_state 1 forward_delay {bridge.forward_delay_s * 100} "
            f"hello_time {STP_HELLO_S * 100} max_age {STP_MAX_AGE_S * 100}"
        )
    if bridge.vlans:
        words += f" vlan_filtering 1 vlan_default_pvid {NATIVE_VLAN}"
    return f"{words} mcast_snooping 0"


def vlan_lines(topology: Topology, name: str, cables: tuple[Cable, ...]) -> list[str]:
    """Return ``bridge -batch`` lines, for within the node, that put its ports into their VLANs."""
    plugged = {end.interface for cable in cables for end in cable.ends if end.node == name}
    lines = []
    for vlan in (v for b in topology.node(name).bridges for v in b.vlans if v.port in plugged):
        access = " pvid untagged" if vlan.access else ""
        lines.append(f"vlan add dev {vlan.port} vid {vlan.vid}{access}")
        if vlan.access and vlan.vid != NATIVE_VLAN:
            lines.append(f"vlan del dev {vlan.port} vid {NATIVE_VLAN}")
    return lines


def port_lines(topology: Topology, name: str, cables: tuple[Cable, ...]) -> list[str]:
    """Return ``ip -batch`` lines, for within the node, that plug in its ends of `cables`."""
    masters = {port: b.name for b in topology.node(name).bridges for port in b.ports}
    lines = []
    for end in (end for cable in cables for end in cable.ends if end.node == name):
        master = masters.get(end.interface)
        lines.append(f"link set {end.interface} {f'master {master} ' if master else ''}up")
    return lines


def working_links(topology: Topology, name: str, cables: tuple[Cable, ...]) -> list[str]:
    """Return what must have a carrier in a node before its `cables` carry anything."""
    plugged = [end.interface for cable in cables for end in cable.ends if end.node == name]
    bridges = topology.node(name).bridges
    return [*plugged, *(b.name for b in bridges if not set(plugged).isdisjoint(b.ports))]


def address_lines(
    topology: Topology, name: str, replugged: tuple[Cable, ...] | None = None
) -> list[str]:
    """Return ``ip -batch`` lines, for within the node, that give it its addresses and routes.

    With `replugged` only those that were lost with the links of these cables.
    """
    node = topology.node(name)
    lost = {end.interface for cable in replugged or () for end in cable.ends if end.node == name}
    addresses = [a for a in node.addresses if replugged is None or a.interface in lost]
    return [
        *(f"address add {a.address} dev {a.interface}" for a in addresses),
        *(f"route replace {r.to} via {r.via}" for r in node.routes if addresses),
    ]


def egress_lines(interface: str, rate_bps: int | None, *, cut: bool = False) -> list[str]:
    """Return ``tc -batch`` lines for what leaves by `interface`: at most `rate_bps`, or nothing.

    A cut cable keeps its carrier, as when it breaks behind the next switch, and its rate.
    """
    lines = [f"qdisc replace dev {interface} root noqueue"]
    if rate_bps is not None:
        burst_bytes = max(BURST_MIN_BYTES, round(rate_bps / 8 * BURST_S))
        lines.append(
            f"qdisc replace dev {interface} root handle 1: tbf rate {rate_bps}bit "
            f"burst {burst_bytes}b latency {TBF_LATENCY_MS}ms"
        )
    if cut:
        place = "root" if rate_bps is None else "parent 1:1"
        lines.append(f"qdisc replace dev {interface} {place} blackhole")
    return lines


@dataclass(frozen=True, slots=True)
class Egress:
    """What becomes of frames that leave by an interface."""

    rate_bps: int | None = None
    cut: bool = False


def read_egress(qdiscs: Iterable[Mapping[str, Any]]) -> dict[str, Egress]:
    """Return what the output of ``tc -j qdisc show`` says of each interface (`egress_lines`)."""
    found: dict[str, Egress] = {}
    for qdisc in qdiscs:
        before = found.get(qdisc["dev"], Egress())
        if qdisc["kind"] == "tbf":
            found[qdisc["dev"]] = replace(before, rate_bps=qdisc["options"]["rate"] * 8)
        elif qdisc["kind"] == "blackhole":
            found[qdisc["dev"]] = replace(before, cut=True)
    return found


def rate_lines(name: str, cables: tuple[Cable, ...]) -> list[str]:
    """Return the ``tc -batch`` lines of a node for those of its cables that have a rate."""
    return [
        line
        for cable in cables
        if cable.rate_bps is not None
        for end in cable.ends
        if end.node == name
        for line in egress_lines(end.interface, cable.rate_bps)
    ]
