"""What netlink tells of a segment's bridge and ports, asked in the thread of `netsetup.rtnl`.

`ip` is its `IPRoute`. A message costs pyroute2 half a millisecond, so only what is needed is asked
for: the bridge alone before a probe, the interfaces that frames came in by after one that went
well, all ports after one that did not.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from netsetup.errors import NoSuchLinkError
from netsetup.links import IFF_LOWER_UP, IFF_UP, PORT_STATES, bridge_of
from netsetup.segments import PortFacts, SegmentFacts, VlanRange, vlans_of
from netsetup.taps import get_link

_AF_BRIDGE = 7
_RTEXT_FILTER_BRVLAN_COMPRESSED = 0x4
_NUD_PERMANENT = 0x80  # an address of the bridge's or of a port's own

_Vlans = dict[int, tuple[tuple[VlanRange, ...], int | None]]


def describe_bridge(ip: Any, bridge: str) -> SegmentFacts:
    """Return the bridge without its ports; raise `NoSuchLinkError` if it is none."""
    message = get_link(ip, bridge)
    if message is None or message.get(("linkinfo", "kind")) != "bridge":
        links = list(ip.link("dump"))
        others = [m.get("ifname") for m in links if m.get(("linkinfo", "kind")) == "bridge"]
        raise NoSuchLinkError(
            f"there is no bridge {bridge}", next_step=f"bridges here: {', '.join(others) or 'none'}"
        )
    found = bridge_of(message, ())
    return SegmentFacts(
        bridge=bridge,
        index=found.index,
        mac=found.mac or "",
        mtu_bytes=found.mtu_bytes,
        up=found.up,
        stp=bool(found.stp),
        forward_delay_s=found.forward_delay_s or 0.0,
        vlan_filtering=bool(found.vlan_filtering),
        default_pvid=message.get(("linkinfo", "data", "br_vlan_default_pvid")) or None,
    )


def describe_segment(
    ip: Any, bridge: str, names: Collection[str] = (), *, guest_mac: str | None = None
) -> SegmentFacts:
    """Return the bridge as it is now, with all its ports and `names`; raise `NoSuchLinkError`."""
    facts = describe_bridge(ip, bridge)
    guest = None if guest_mac is None else _guest_port(ip, facts.index, guest_mac)
    links = ip.link("dump")
    messages = [m for m in links if m.get("master") == facts.index or m.get("ifname") in names]
    return _with_ports(ip, replace(facts, guest_port=guest), messages)


def describe_ways(
    ip: Any, facts: SegmentFacts, names: Iterable[str], *, guest_mac: str | None = None
) -> SegmentFacts:
    """Return `facts` with the interfaces `names` and the guest's port, and no others."""
    guest = None if guest_mac is None else _guest_port(ip, facts.index, guest_mac)
    wanted = dict.fromkeys([*names, *([] if guest is None else [guest])])
    messages = [m for m in (get_link(ip, name) for name in wanted) if m is not None]
    return _with_ports(ip, replace(facts, guest_port=guest), messages)


def _with_ports(ip: Any, facts: SegmentFacts, messages: list[Any]) -> SegmentFacts:
    vlans: _Vlans = {}
    if facts.vlan_filtering:
        dump = ip.link("dump", family=_AF_BRIDGE, ext_mask=_RTEXT_FILTER_BRVLAN_COMPRESSED)
        vlans = {message["index"]: vlans_of(message) for message in dump}
    masters = {facts.index: facts.bridge}
    return replace(
        facts,
        ports=tuple(_port(ip, message, masters, vlans) for message in messages),
        own_vlans=vlans.get(facts.index, ((), None))[0] if facts.vlan_filtering else None,
    )


def _guest_port(ip: Any, bridge_index: int, mac: str) -> str | None:
    """Return the port where the bridge believes `mac`, in whatever VLAN."""
    for entry in ip.fdb("dump"):
        mine = entry.get("master") == bridge_index and entry.get("lladdr") == mac
        if mine and not entry["state"] & _NUD_PERMANENT:
            return _name(ip, entry["ifindex"])
    return None


def _name(ip: Any, index: int) -> str:
    name: str = ip.link("get", index=index)[0].get("ifname")
    return name


def _port(ip: Any, message: Any, masters: dict[int, str], vlans: _Vlans) -> PortFacts:
    slave = ("linkinfo", "slave_data")
    flags, master = message["flags"], message.get("master")
    is_port = message.get(("linkinfo", "slave_kind")) == "bridge"
    if is_port and master not in masters:
        masters[master] = _name(ip, master)
    state = message.get((*slave, "IFLA_BRPORT_STATE"))
    ranges, pvid = vlans.get(message["index"], (None, None))
    return PortFacts(
        name=message.get("ifname"),
        kind=message.get(("linkinfo", "kind")),
        bridge=masters[master] if is_port else None,
        state=PORT_STATES[state] if is_port and state in range(len(PORT_STATES)) else None,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        mtu_bytes=message.get("mtu"),
        isolated=bool(message.get((*slave, "IFLA_BRPORT_ISOLATED"))),
        alias=message.get("ifalias"),
        vlans=ranges if is_port else None,
        pvid=pvid,
    )
