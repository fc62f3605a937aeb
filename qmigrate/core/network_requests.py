"""What an agent is asked about segments and guests, and what it answers: a frozen dataclass each.

`REPLIES` says what each request is answered with, `NOTES` what it streams. They travel inside of
`agent.requests.OnNetwork`; those about tunnels are in `core.tunnel_requests`, which a move within
one segment need not wait for.
"""

from dataclasses import dataclass

from qmigrate.core.network import NetworkHere, Verdict


@dataclass(frozen=True, slots=True)
class GetNetwork:
    """Ask for `NetworkHere`."""


@dataclass(frozen=True, slots=True)
class OpenProbe:
    """Open a prober on a segment; it answers the other side's until the call is cancelled.

    Streams one note, `ProbeOpen`, when it hears.
    """

    nonce: str  # 32 hex digits, the same on both sides and nobody else's
    bridge: str
    vlan: int | None
    mtu_bytes: int
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class ProbeOpen:
    """The prober of that nonce hears and answers."""

    nonce: str


@dataclass(frozen=True, slots=True)
class AskProbe:
    """Have an open prober ask until it is answered, or its patience is over."""

    nonce: str
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class ReportProbe:
    """Ask for an open prober's half of the proof."""

    nonce: str
    guest_mac: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeHalf:
    """Answer to `ReportProbe`: for `JudgeProbe`, and nobody in between."""

    report: str


@dataclass(frozen=True, slots=True)
class JudgeProbe:
    """Ask for the `Verdict` on both halves; None: it could not be had."""

    near: str
    near_half: str | None
    far: str
    far_half: str | None
    mtu_bytes: int
    guest_mac: str | None = None


@dataclass(frozen=True, slots=True)
class ReachGuest:
    """Ask on a segment, by ARP and neighbour discovery, for a guest at any of its addresses."""

    bridge: str
    vlan: int | None
    mac: str
    addresses: tuple[str, ...]
    patience_s: float


@dataclass(frozen=True, slots=True)
class Reached:
    """Answer to `ReachGuest`: the address that answered with the guest's MAC; None: none did."""

    address: str | None
    took_ms: float | None
    problem: str | None = None


REPLIES: dict[type, type] = {
    GetNetwork: NetworkHere,
    OpenProbe: ProbeOpen,  # never: it is cancelled
    AskProbe: ProbeOpen,
    ReportProbe: ProbeHalf,
    JudgeProbe: Verdict,
    ReachGuest: Reached,
}
NOTES: dict[type, type] = {OpenProbe: ProbeOpen}
