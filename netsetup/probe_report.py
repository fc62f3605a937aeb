"""One prober's half of the proof, as it travels to who compares both; pure."""

from dataclasses import dataclass
from enum import StrEnum

from netsetup.segments import PortFacts, Segment, SegmentFacts, View


class Place(StrEnum):
    """Where a frame was seen on this host."""

    VIEW = "view"  # by the prober itself, as a guest would have got it: the only proof
    INTERFACE = "interface"  # on its way in by an interface, before any bridge looked at it


@dataclass(frozen=True, slots=True)
class Heard:
    """Frames of one prober that came in at one place with one tag."""

    place: Place
    interface: str
    sender: str
    vlan: int | None  # the tag that they bore here
    sent_vlan: int | None  # and when they were sent
    source_mac: str
    frames: int
    longest_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A size that this host's own kernel did not send, and its word for why."""

    size_bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """One side's half of the proof; travels as plain data."""

    segment: Segment
    view: View
    vlan_tag: int | None  # that frames bear at the view
    isolated: bool  # looked from a port that is isolated as the guest's is
    mac: str
    sender: str
    asked_frames: int
    wanted_bytes: int  # the guest's MTU
    complete: bool  # asked until all was answered or the time was over
    answered_bytes: int | None  # the longest frame of ours that the other side says arrived
    latency_us: float | None  # there and back, both programs' wake-ups included; the least
    heard: tuple[Heard, ...]
    came_back: tuple[str, ...]  # interfaces by which our own frames came in again
    repeated: int  # frames that arrived more than once
    strangers: int  # frames that look like probes and were not sealed with the nonce
    refused: tuple[Refused, ...]
    facts: SegmentFacts
    early_ports: tuple[PortFacts, ...] = ()  # while it asked, if nobody had answered by then

    def heard_of(self, speaker: "ProbeReport | None") -> tuple[Heard, ...]:
        """Return what a guest in this place would have got of the speaker's frames; None: all."""
        return tuple(
            heard
            for heard in self._by(speaker)
            if heard.place is Place.VIEW and heard.vlan == self.vlan_tag
        )

    def unsettled_ports(self) -> tuple[PortFacts, ...]:
        """Return the ports to other hosts that did not forward all the time, and will or do now.

        A port that begins to forward after the last ask makes silence of what is none.
        """
        bridge = self.facts.bridge
        out = [p for p in self.facts.ports if p.bridge == bridge and p.leads_out]
        before = {port.name: port for port in self.early_ports}
        late = [p for p in out if not p.changing and self._began(before.get(p.name), p)]
        return (*(port for port in out if port.changing), *late)

    def _began(self, before: PortFacts | None, now: PortFacts) -> bool:
        return before is not None and before.state != "forwarding" and now.state == "forwarding"

    def ways_of(self, speaker: "ProbeReport | None") -> tuple[PortFacts, ...]:
        """Return the ports of this segment's bridge by which the speaker's frames came in."""
        names = dict.fromkeys(
            heard.interface for heard in self._by(speaker) if heard.place is Place.INTERFACE
        )
        ports = (self.facts.port(name) for name in names)
        return tuple(port for port in ports if port and port.bridge == self.facts.bridge)

    def _by(self, speaker: "ProbeReport | None") -> tuple[Heard, ...]:
        if speaker is None:
            return self.heard
        return tuple(heard for heard in self.heard if heard.sender == speaker.sender)
