"""How a relay is doing, for people and for the job's record. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """How a relay is doing; bytes and seconds since it was opened."""

    payload_sent_bytes: int
    payload_received_bytes: int
    wire_sent_bytes: int
    wire_received_bytes: int
    unacknowledged_bytes: int
    unsent_bytes: int  # taken from QEMU and not yet sent by TCP
    reconnects: int
    stalls: int
    stalled_s: float
    level: int  # of packing; 0: none
    link_bps: float | None
    connected: bool

    @property
    def ratio(self) -> float | None:
        """Return wire bytes a payload byte sent; None: nothing was."""
        if not self.payload_sent_bytes:
            return None
        return self.wire_sent_bytes / self.payload_sent_bytes
