"""Two probers' memories and a wire that does what a test says; no sockets, no clock."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from netsetup.probe_frames import MIN_PAYLOAD_BYTES
from netsetup.probe_ledger import Ledger
from netsetup.probe_report import Place, ProbeReport, Refused
from netsetup.segments import PortFacts, Segment, SegmentFacts, View

NONCE = bytes(range(16))
TRIP_S = 0.0002
BR0 = Segment("br0")

Wire = Callable[[bytes], bool]  # whether a frame arrives


def passes(frame: bytes) -> bool:
    """A wire that loses nothing."""
    return True


def lost(frame: bytes) -> bool:
    """A cut wire."""
    return False


def up_to(payload_bytes: int) -> Wire:
    """A wire with an MTU."""
    return lambda frame: len(frame) <= 14 + payload_bytes


def port(name: str = "eth0", **facts: Any) -> PortFacts:
    """Return a port of br0 that works."""
    usual: dict[str, Any] = {
        "kind": None,
        "bridge": "br0",
        "state": "forwarding",
        "up": True,
        "carrier": True,
        "mtu_bytes": 1500,
        "isolated": False,
        "alias": None,
    }
    return PortFacts(name, **(usual | facts))


def bridge(*ports: PortFacts, **facts: Any) -> SegmentFacts:
    """Return a bridge with a port eth0, or with those given."""
    usual: dict[str, Any] = {
        "index": 2,
        "mac": "",
        "mtu_bytes": 1500,
        "up": True,
        "stp": False,
        "forward_delay_s": 15.0,
        "vlan_filtering": False,
    }
    return SegmentFacts("br0", ports=ports or (port(),), **(usual | facts))


@dataclass
class Speaker:
    """One side: what it is, and its ledger."""

    number: int
    facts: SegmentFacts = field(default_factory=bridge)
    segment: Segment = BR0
    vlan_tag: int | None = None
    view: View = View.BRIDGE
    isolated: bool = False
    complete: bool = True
    refuses: str | None = None  # the kernel's word for every frame
    strips: int | None = None  # the tag that the kernel takes off what arrives
    way_in: str = "eth0"
    blocked: bool = False  # frames reach the port, not the bridge
    mac: str = ""

    def __post_init__(self) -> None:
        self.mac = self.mac or f"02:00:00:00:00:0{self.number}"
        self.facts = replace(self.facts, mac=self.mac)
        self.ledger = Ledger(
            NONCE,
            mac=bytes.fromhex(self.mac.replace(":", "")),
            sender=bytes([self.number]) * 8,
            vlan_tag=self.vlan_tag,
            first_sequence=self.number * 1000,
        )

    def ask(self, size_bytes: int, now_s: float) -> bytes | None:
        """Return a frame that left, None if the kernel refused it."""
        frame = self.ledger.ask(size_bytes, now_s=now_s)
        if self.refuses:
            self.ledger.refused[size_bytes] = self.refuses
            return None
        self.ledger.asked_frames += 1
        return frame

    def get(self, frame: bytes, now_s: float) -> bytes | None:
        """Let a frame come in; return what is answered."""
        heard = {"now_s": now_s, "stripped_vlan": self.strips}
        self.ledger.hear(frame, interface=self.way_in, place=Place.INTERFACE, **heard)
        if self.blocked:
            return None
        answer = self.ledger.hear(frame, interface=self.segment.bridge, place=Place.VIEW, **heard)
        return None if self.refuses else answer

    def report(self, wanted_bytes: int = 1500) -> ProbeReport:
        """Return the report that a prober would make of it."""
        ledger = self.ledger
        return ProbeReport(
            segment=self.segment,
            view=self.view,
            vlan_tag=ledger.vlan_tag,
            isolated=self.isolated,
            mac=self.mac,
            sender=ledger.sender.hex(),
            asked_frames=ledger.asked_frames,
            wanted_bytes=wanted_bytes,
            complete=self.complete,
            answered_bytes=ledger.answered_bytes,
            latency_us=None if ledger.latency_s is None else ledger.latency_s * 1e6,
            heard=ledger.heard(),
            came_back=tuple(sorted(ledger.came_back)),
            repeated=ledger.repeated,
            strangers=ledger.strangers,
            refused=tuple(Refused(size, why) for size, why in ledger.refused.items()),
            facts=self.facts,
        )


def talk(
    a: Speaker,
    b: Speaker,
    forth: Wire = passes,
    back: Wire = passes,
    sizes: tuple[int, ...] = (MIN_PAYLOAD_BYTES, 1400, 1500),
) -> list[bytes]:
    """Let both ask in all `sizes`; return every frame that left, arrived or not."""
    frames: list[bytes] = []

    def carry(frame: bytes | None, wire: Wire, to: Speaker, now_s: float) -> bytes | None:
        if frame is None:
            return None
        frames.append(frame)
        return to.get(frame, now_s) if wire(frame) else None

    for near, far, out, home in ((a, b, forth, back), (b, a, back, forth)):
        for number, size in enumerate(sizes):
            answer = carry(near.ask(size, number), out, far, number + TRIP_S / 2)
            carry(answer, home, near, number + TRIP_S)
    return frames
