"""What one prober sent, heard and was answered, kept frame by frame; pure."""

from dataclasses import dataclass, field

from netsetup.errors import FrameError
from netsetup.probe_frames import (
    MIN_PAYLOAD_BYTES,
    SENDER_BYTES,
    Probe,
    ProbeKind,
    check_nonce,
    decode_untrusted,
    encode,
    looks_like_a_probe,
)
from netsetup.probe_report import Heard, Place

# Of one prober's frames some fifty are heard, in a loop without end: enough to know, and no storm.
MAX_ANSWERS = 1000
MAX_TALLIES = 64


@dataclass(slots=True)
class _Tally:
    probe: Probe
    frames: int = 0
    longest_bytes: int = 0


@dataclass(slots=True)
class Ledger:
    """The memory of a prober whose own frames bear `sender` and leave from `mac`."""

    nonce: bytes
    mac: bytes
    sender: bytes
    vlan_tag: int | None
    first_sequence: int = 0
    asked_frames: int = 0
    answered_bytes: int | None = None
    latency_s: float | None = None
    peer_mac: bytes | None = None
    last_heard_s: float | None = None
    repeated: int = 0
    strangers: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)  # sizes
    came_back: set[str] = field(default_factory=set)
    _asked_at: dict[int, tuple[int, float]] = field(default_factory=dict)
    _seen: set[tuple[bytes, int, int]] = field(default_factory=set)
    _tallies: dict[tuple[Place, str, bytes, int | None], _Tally] = field(default_factory=dict)
    _answers: int = 0

    def __post_init__(self) -> None:
        check_nonce(self.nonce)
        assert len(self.sender) == SENDER_BYTES  # noqa: S101

    def ask(self, size_bytes: int, *, now_s: float, to: bytes | None = None) -> bytes:
        """Return the next frame to send, of `size_bytes` of payload, to all unless to one."""
        sequence = (self.first_sequence + len(self._asked_at)) & 0xFFFFFFFF
        self._asked_at[sequence] = (size_bytes, now_s)
        aim = {} if to is None else {"destination": to}
        return encode(
            self.nonce,
            ProbeKind.ASK,
            source=self.mac,
            sender=self.sender,
            sequence=sequence,
            size_bytes=size_bytes,
            vlan=self.vlan_tag,
            **aim,
        )

    def hear(
        self,
        frame: bytes,
        *,
        interface: str,
        place: Place,
        now_s: float,
        stripped_vlan: int | None = None,
    ) -> bytes | None:
        """Note a frame from the network; return the answer to send, if it asks for one."""
        try:
            probe = decode_untrusted(frame, self.nonce, stripped_vlan=stripped_vlan)
        except FrameError:
            self.strangers += looks_like_a_probe(frame)
            return None
        if probe.sender == self.sender:
            self.came_back.add(interface)
            return None
        self.last_heard_s = now_s
        self._count(probe, interface, place)
        if place is not Place.VIEW or probe.arrived_vlan != self.vlan_tag:
            return None
        mark = (probe.sender, probe.sequence, probe.kind)
        if mark in self._seen:
            self.repeated += 1
            return None  # which would double again in a loop
        if len(self._seen) < MAX_ANSWERS:
            self._seen.add(mark)
        if probe.kind is ProbeKind.ANSWER:
            self._note_answer(probe, now_s)
            return None
        self.peer_mac = probe.source
        if self._answers >= MAX_ANSWERS:
            return None
        self._answers += 1
        return encode(
            self.nonce,
            ProbeKind.ANSWER,
            source=self.mac,
            sender=self.sender,
            sequence=probe.sequence,
            size_bytes=probe.size_bytes,
            vlan=self.vlan_tag,
            destination=probe.source,
        )

    def heard(self) -> tuple[Heard, ...]:
        """Return the tallies, in the order in which they began."""
        return tuple(
            Heard(
                place=place,
                interface=interface,
                sender=sender.hex(),
                vlan=vlan,
                sent_vlan=tally.probe.vlan,
                source_mac=tally.probe.source.hex(":"),
                frames=tally.frames,
                longest_bytes=tally.longest_bytes,
            )
            for (place, interface, sender, vlan), tally in self._tallies.items()
        )

    def _count(self, probe: Probe, interface: str, place: Place) -> None:
        key = (place, interface, probe.sender, probe.arrived_vlan)
        if key not in self._tallies and len(self._tallies) >= MAX_TALLIES:
            return
        tally = self._tallies.setdefault(key, _Tally(probe))
        tally.frames += 1
        size = probe.size_bytes if probe.kind is ProbeKind.ASK else MIN_PAYLOAD_BYTES
        tally.longest_bytes = max(tally.longest_bytes, size)

    def _note_answer(self, probe: Probe, now_s: float) -> None:
        asked = self._asked_at.get(probe.sequence)
        if asked is None or asked[0] != probe.size_bytes:
            return  # to another prober's ask
        size_bytes, asked_s = asked
        self.peer_mac = probe.source
        self.answered.add(size_bytes)
        self.answered_bytes = max(self.answered_bytes or 0, size_bytes)
        took_s = now_s - asked_s
        self.latency_s = took_s if self.latency_s is None else min(took_s, self.latency_s)
