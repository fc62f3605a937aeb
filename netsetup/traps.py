"""What stands in the way between two segments, named; from both reports, pure.

What frames did comes first (they reached a port that was blocked), what netlink says second (the
port has a small MTU). A trap explains a verdict, it does not make one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from netsetup.probe_report import Heard, Place, ProbeReport
from netsetup.segments import PortFacts


class TrapKind(StrEnum):
    """The traps that are known by name."""

    STP_NOT_FORWARDING = "stp-not-forwarding"  # frames reach a port that STP keeps shut
    VLAN_FILTER = "vlan-filter"  # a bridge does not let the VLAN in or out at a port
    VLAN_CHANGED = "vlan-changed"  # frames arrive with another tag than was meant
    MTU_TOO_SMALL = "mtu-too-small"
    GUEST_MAC_THERE = "guest-mac-there"  # somebody on the far segment has the guest's address
    PORT_ISOLATED = "port-isolated"  # isolated ports do not talk to each other
    OTHER_BRIDGE = "other-bridge"  # frames arrive, but not on the bridge that was named
    BRIDGE_DOWN = "bridge-down"
    NO_WAY_OUT = "no-way-out"  # the bridge has no port to other hosts that works
    LOOP = "loop"  # a side hears itself
    TWO_PATHS = "two-paths"  # frames arrive more than once
    SAME_MAC = "same-mac"  # both bridges have one address: unicast goes astray
    STRANGERS = "strangers"  # probe frames with another nonce: another job's, or forged


@dataclass(frozen=True, slots=True)
class Trap:
    """A named obstacle and where it is, in words."""

    kind: TrapKind
    host: str
    text: str


@dataclass(frozen=True, slots=True)
class Side:
    """A host's name and what its prober reported; None if that could not be had."""

    name: str
    report: ProbeReport | None


@dataclass(frozen=True, slots=True)
class Way:
    """One direction, with both ends' reports; `mtu_bytes` is None if nothing arrived."""

    source: str
    speaker: ProbeReport
    destination: str
    listener: ProbeReport
    mtu_bytes: int | None

    @property
    def ports(self) -> tuple[PortFacts, ...]:
        """The ports of the far bridge by which frames came in."""
        return self.listener.ways_of(self.speaker)

    @property
    def arrivals(self) -> tuple[Heard, ...]:
        """All that the far host got of the speaker's frames, wherever."""
        return tuple(h for h in self.listener.heard if h.sender == self.speaker.sender)


def traps_of(
    forth: Way, back: Way, *, mtu_bytes: int, guest_mac: str | None = None
) -> tuple[Trap, ...]:
    """Return the traps, those on the way to the guest's new place first, each once."""
    found: list[Trap] = []
    for way in (forth, back):
        if way.mtu_bytes is None:
            found += _at_arrival(way) if way.arrivals else _at_departure(way)
        elif way.mtu_bytes < mtu_bytes:
            found += _narrow(way, mtu_bytes)
    if guest_mac is not None:
        found += _guest_mac(forth, guest_mac)
        found += _guest_isolated(back)
    for way in (forth, back):
        found += _echoes(way)
    if forth.speaker.mac == back.speaker.mac:
        text = f"both bridges have the address {forth.speaker.mac}"
        found.append(Trap(TrapKind.SAME_MAC, forth.destination, text))
    return tuple(dict.fromkeys(found))


def _at_arrival(way: Way) -> Iterator[Trap]:
    """Frames reach the far host, and not the place where the guest would be."""
    host, facts = way.destination, way.listener.facts
    subject = f"{way.source}'s frames"
    if not facts.up:
        yield Trap(TrapKind.BRIDGE_DOWN, host, f"{host}'s {facts.bridge} is down")
        return
    inside = {port.name: port for port in way.ports}
    for heard in way.arrivals:
        port = inside.get(heard.interface)
        if heard.place is Place.VIEW or (port is not None and _forwards(port)):
            if trap := _vlan_trap(way, heard, port):
                yield trap
            elif port is not None and port.isolated:
                yield Trap(
                    TrapKind.PORT_ISOLATED,
                    host,
                    f"{subject} come in at {host}'s {port.name}, which is isolated as the guest's "
                    "port is: such ports do not talk to each other",
                )
        elif port is not None:
            yield Trap(
                TrapKind.STP_NOT_FORWARDING,
                host,
                f"{subject} reach {host}'s {port.name}, which is {_held(port)} in {facts.bridge}",
            )
    if not inside and not any(heard.place is Place.VIEW for heard in way.arrivals):
        name = way.arrivals[0].interface
        there = facts.port(name)
        where = f"a port of {there.bridge}" if there and there.bridge else "in no bridge"
        yield Trap(
            TrapKind.OTHER_BRIDGE,
            host,
            f"{subject} reach {host}'s {name}, which is {where}, not of {facts.bridge}",
        )


def _vlan_trap(way: Way, heard: Heard, port: PortFacts | None) -> Trap | None:
    host, listener = way.destination, way.listener
    if port is not None and not port.carries(heard.vlan):
        return Trap(
            TrapKind.VLAN_FILTER,
            host,
            f"{way.source}'s frames reach {host}'s {port.name} {_tagged(heard.vlan)}, and "
            f"{listener.facts.bridge} does not let that in there",
        )
    filtering = listener.facts.vlan_filtering
    expected = listener.segment.vlan if filtering else listener.vlan_tag
    comes_as = heard.vlan
    if filtering and port is not None and heard.vlan is None:
        comes_as = port.pvid
    if comes_as == expected or (filtering and (port is None or expected is None)):
        return None
    return Trap(
        TrapKind.VLAN_CHANGED,
        host,
        f"{way.source}'s frames, sent {_tagged(heard.sent_vlan)}, arrive on {host} "
        f"{_tagged(comes_as)}; expected {_tagged(expected)}",
    )


def _at_departure(way: Way) -> Iterator[Trap]:
    """Nothing reaches the far host: what the near bridge does with frames, as netlink tells."""
    host, speaker = way.source, way.speaker
    facts, vlan = speaker.facts, speaker.segment.vlan
    if not facts.up:
        yield Trap(TrapKind.BRIDGE_DOWN, host, f"{host}'s {facts.bridge} is down")
        return
    out = [p for p in facts.ports if p.bridge == facts.bridge and p.leads_out]
    alive = [port for port in out if port.up and port.carrier]
    shut = [port for port in alive if not _forwards(port)]
    closed = [port for port in alive if _forwards(port) and not port.carries(vlan)]
    if not alive:
        what = f": {', '.join(p.name for p in out)} has no carrier" if out else ""
        text = f"{host}'s {facts.bridge} has no working port to other hosts{what}"
        yield Trap(TrapKind.NO_WAY_OUT, host, text)
    for port in shut:  # with a carrier it is STP's doing, the kernel's or a daemon's
        text = f"{host}'s {port.name} is {_held(port)} in {facts.bridge}"
        yield Trap(TrapKind.STP_NOT_FORWARDING, host, text)
    for port in closed:
        text = f"{host}'s {facts.bridge} lets no {_tagged(vlan, noun=True)} out at {port.name}"
        yield Trap(TrapKind.VLAN_FILTER, host, text)
    if speaker.isolated and alive and all(port.isolated for port in alive):
        text = (
            f"every port of {host}'s {facts.bridge} to other hosts is isolated, as the guest's is"
        )
        yield Trap(TrapKind.PORT_ISOLATED, host, text)


def _narrow(way: Way, mtu_bytes: int) -> Iterator[Trap]:
    """Short frames pass, long ones do not: who is known to be narrow."""
    suspects = []
    if any(refused.size_bytes > (way.mtu_bytes or 0) for refused in way.speaker.refused):
        facts = way.speaker.facts
        suspects.append(f"{way.source}'s {facts.bridge} itself has MTU {facts.mtu_bytes}")
    for host, report in ((way.source, way.speaker), (way.destination, way.listener)):
        suspects += [
            f"{host}'s {port.name} has MTU {port.mtu_bytes}"
            for port in report.facts.ports
            if port.mtu_bytes < mtu_bytes and port.leads_out and port.up
        ]
    suspects += [f"they come through the tunnel {p.name}" for p in way.ports if p.is_tunnel]
    where = ", ".join(suspects) or "neither host's ports are: something between them is"
    yield Trap(
        TrapKind.MTU_TOO_SMALL,
        way.source,
        f"too narrow from {way.source} to {way.destination}: {where}",
    )


def _guest_mac(forth: Way, guest_mac: str) -> Iterator[Trap]:
    """The guest's address is known at the far bridge, and not where the near one's frames come."""
    port = forth.listener.facts.guest_port
    if port is None or port in {way.name for way in forth.ports}:
        return
    facts = forth.listener.facts
    text = f"{guest_mac} is already on {forth.destination}'s {facts.bridge}, at {port}"
    yield Trap(TrapKind.GUEST_MAC_THERE, forth.destination, text)


def _guest_isolated(back: Way) -> Iterator[Trap]:
    """The guest's own port is isolated, and so is every one where the far side's frames come in."""
    facts = back.listener.facts
    guest = facts.port(facts.guest_port) if facts.guest_port else None
    ports = back.ports
    if guest is None or not guest.isolated or not ports or back.listener.isolated:
        return
    if all(port.isolated for port in ports):
        names = ", ".join(port.name for port in ports)
        text = f"on {back.destination} the guest's port {guest.name} is isolated, and so is {names}"
        yield Trap(TrapKind.PORT_ISOLATED, back.destination, text)


def _echoes(way: Way) -> Iterator[Trap]:
    host, report = way.source, way.speaker
    facts = report.facts
    ports = {p.name for p in facts.ports if p.bridge == facts.bridge and _forwards(p)}
    if back := [name for name in report.came_back if name in ports | {facts.bridge}]:
        text = f"{host} hears its own frames by {', '.join(back)}: there is a loop"
        yield Trap(TrapKind.LOOP, host, text)
    if report.repeated:
        text = f"{report.repeated} frames reached {host} more than once: there are two paths"
        yield Trap(TrapKind.TWO_PATHS, host, text)
    if report.strangers:
        text = f"{host} got {report.strangers} probe frames that bear another nonce, or are forged"
        yield Trap(TrapKind.STRANGERS, host, text)


def _forwards(port: PortFacts) -> bool:
    return port.state in (None, "forwarding")


def _held(port: PortFacts) -> str:
    return f"{port.state}" if port.state == "disabled" else f"{port.state} (STP)"


def _tagged(vlan: int | None, *, noun: bool = False) -> str:
    if noun:
        return "untagged frames" if vlan is None else f"frames of VLAN {vlan}"
    return "untagged" if vlan is None else f"with VLAN {vlan}"
