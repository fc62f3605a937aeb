"""What a segment is and what this host's kernel says about it; pure.

What netlink says explains a verdict and never makes one: it knows nothing of the switches and
routers between two hosts, and a port that "forwards" may lead nowhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from netsetup.errors import UsageError
from netsetup.links import OUR_ALIAS, Message, check_name

TUNNEL_KINDS = frozenset({"vxlan", "gretap", "ip6gretap", "geneve", "gtp", "l2tp_eth"})
TUNNEL_WORD = "tunnel"  # in an alias of ours: the port of a tunnel that has no kind of its own
_CHANGING = frozenset({"listening", "learning"})
_RANGE_BEGIN, _RANGE_END = 0x08, 0x10  # of struct bridge_vlan_info (linux/if_bridge.h)


@dataclass(frozen=True, slots=True)
class Segment:
    """A bridge of a host, and a VLAN of it; None is what an untagged guest gets."""

    bridge: str
    vlan: int | None = None

    def __post_init__(self) -> None:
        check_name(self.bridge)
        if self.vlan is not None and not 1 <= self.vlan <= 4094:
            raise UsageError(f"VLAN {self.vlan} is not between 1 and 4094")

    def __str__(self) -> str:
        return self.bridge if self.vlan is None else f"{self.bridge} VLAN {self.vlan}"


class View(StrEnum):
    """Where on the bridge a prober sits."""

    BRIDGE = "bridge"  # the bridge's own interface: nothing is changed
    PORT = "port"  # a port of its own for a moment, which sees exactly what a guest's would


@dataclass(frozen=True, slots=True)
class VlanRange:
    """VLANs `first` to `last` that a port of a filtering bridge is in."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port of the segment's bridge, or another interface that frames came in by."""

    name: str
    kind: str | None  # as `Link.kind`
    bridge: str | None  # that it is a port of
    state: str | None  # as `BridgePort.state`; None for what is no port
    up: bool
    carrier: bool
    mtu_bytes: int
    isolated: bool
    alias: str | None
    vlans: tuple[VlanRange, ...] | None = None  # None: not filtered, or not asked
    pvid: int | None = None

    @property
    def is_tunnel(self) -> bool:
        """Whether it is the end of a tunnel: by its kind, or because we marked it so."""
        return self.kind in TUNNEL_KINDS or (self.is_ours and TUNNEL_WORD in (self.alias or ""))

    @property
    def leads_out(self) -> bool:
        """Whether other hosts may be behind it: behind a guest's tap is the guest."""
        return self.kind != "tun" or self.is_tunnel

    @property
    def is_ours(self) -> bool:
        """Whether qmigrate made it."""
        return (self.alias or "").startswith(OUR_ALIAS)

    @property
    def changing(self) -> bool:
        """Whether it does not forward now and will by itself.

        STP holds it back; or it has a carrier that the kernel has yet to notice, up to a second.
        """
        return self.state in _CHANGING or (self.state == "disabled" and self.up and self.carrier)

    def carries(self, vlan: int | None) -> bool:
        """Whether the bridge lets the VLAN (None: the port's own) in and out here."""
        return _within(self.pvid if vlan is None else vlan, self.vlans)


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """A bridge as netlink describes it."""

    bridge: str
    index: int
    mac: str
    mtu_bytes: int
    up: bool
    stp: bool
    forward_delay_s: float
    vlan_filtering: bool
    default_pvid: int | None = None  # that a new port is given; only where it filters
    ports: tuple[PortFacts, ...] = ()  # all of them, or those that were asked for
    own_vlans: tuple[VlanRange, ...] | None = None  # of the bridge's own interface
    guest_port: str | None = None  # where it believes the guest's MAC

    def bridge_carries(self, vlan: int | None) -> bool:
        """Whether the bridge's own interface is in the VLAN (None: the default one)."""
        return _within(self.default_pvid if vlan is None else vlan, self.own_vlans)

    def port(self, name: str) -> PortFacts | None:
        """Return the port `name` if it was looked at."""
        return next((port for port in self.ports if port.name == name), None)


def _within(vlan: int | None, ranges: tuple[VlanRange, ...] | None) -> bool:
    if ranges is None:
        return True
    return vlan is not None and any(r.first <= vlan <= r.last for r in ranges)


def choose_view(facts: SegmentFacts, *, isolated: bool, mtu_bytes: int) -> View:
    """Return from where to probe: the bridge itself unless it would see otherwise than a guest.

    A bridge that filters VLANs has a membership of its own; its interface knows no isolation, and
    is as narrow as the narrowest port. Under STP a new port listens for half a minute and makes
    every switch forget what it learned, so there it stays the bridge.
    """
    differs = facts.vlan_filtering or isolated or mtu_bytes > facts.mtu_bytes
    return View.PORT if differs and not facts.stp else View.BRIDGE


def view_tag(segment: Segment, facts: SegmentFacts, view: View) -> int | None:
    """Return the VLAN tag that frames bear at the prober: a filtering bridge takes it off."""
    if view is View.PORT and facts.vlan_filtering:
        return None
    return segment.vlan


def vlans_of(message: Message) -> tuple[tuple[VlanRange, ...], int | None]:
    """Return the VLANs and the PVID in an AF_BRIDGE link message with compressed VLANs."""
    found: list[VlanRange] = []
    pvid, first = None, 0
    for flags, vid in _vlan_entries(message):
        if flags & 0x2:
            pvid = vid
        if flags & _RANGE_BEGIN:
            first = vid
        elif flags & _RANGE_END:
            found.append(VlanRange(first, vid))
        else:
            found.append(VlanRange(vid, vid))
    return tuple(found), pvid


def _vlan_entries(message: Message) -> Iterable[tuple[int, int]]:
    spec = message.get("af_spec")
    for _, entry in spec["attrs"] if spec else ():
        if isinstance(entry, dict) and "vid" in entry:
            yield entry.get("flags", 0), int(entry["vid"])
