"""What an agent is asked about the network, and what it answers: a frozen dataclass each.

`REPLIES` says what each request is answered with, `NOTES` what it streams. They travel inside of
`agent.requests.OnNetwork`.
"""

from dataclasses import dataclass

from qmigrate.core.home import Home, TurnWish
from qmigrate.core.network import (
    Ability,
    NetworkHere,
    Path,
    TunnelChoice,
    TunnelEnd,
    TunnelHere,
    Verdict,
)


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
class GetSources:
    """Ask from which addresses this host would send to each of `remotes`."""

    remotes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Answer to `GetSources`: pairs of local and remote, in the order asked, without dead ends."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AnswerPath:
    """Answer probes of a path's MTU at each of `addresses` until the call is cancelled.

    Streams one note, `PathOpen`; an address that is not here has port 0.
    """

    nonce: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PathOpen:
    """UDP ports, in the order of the addresses."""

    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasurePaths:
    """Ask for the largest packet that passes whole, for each (local, remote, remote port)."""

    nonce: str
    ways: tuple[tuple[str, str, int], ...]
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class PathMtus:
    """Answer to `MeasurePaths`, in its order; None: nothing arrived."""

    mtus: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class GetAbilities:
    """Ask which kinds of tunnel this host can carry between these addresses."""

    pairs: tuple[tuple[str, str], ...]  # local, remote


@dataclass(frozen=True, slots=True)
class Abilities:
    """Answer to `GetAbilities`, and the tunnels that are here already."""

    abilities: tuple[Ability, ...]
    tunnels: tuple[TunnelHere, ...]


@dataclass(frozen=True, slots=True)
class ChooseTunnel:
    """Ask for the `TunnelChoice` from `home`'s host to another; raises `HostError` for none."""

    home: Home
    home_abilities: Abilities
    away_abilities: Abilities
    paths: tuple[Path, ...]  # as home's host sees them
    mtu_bytes: int
    wanted: str  # a kind, or AUTO
    guest: str
    job: str
    tags: int = 0


@dataclass(frozen=True, slots=True)
class MakeTunnel:
    """Make one end, or finish and mend the one that is there; answered by `TunnelMade`."""

    end: TunnelEnd


@dataclass(frozen=True, slots=True)
class TunnelMade:
    """An end that is there now; `claimed`: the guest's claim is new."""

    tunnel: TunnelHere
    mended: tuple[str, ...]
    claimed: bool


@dataclass(frozen=True, slots=True)
class ReleaseTunnels:
    """Take a guest's claims away, and with the last of each the end of that tunnel.

    Those of `only` if it is not None, but not of `keep`; with `end` those of that end only. An end
    without any claim goes with them: its builder or its remover has died.
    """

    guest: str | None  # None: everybody's claims
    only: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    end: str | None = None


@dataclass(frozen=True, slots=True)
class TunnelsReleased:
    """Answer to `ReleaseTunnels`: interfaces that are gone, and sentences why others stay."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepairTunnels:
    """Mend every end here, and make the ends that mirror `lost`: the other host still has its."""

    lost: tuple[TunnelHere, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelsRepaired:
    """Answer to `RepairTunnels`."""

    made: tuple[TunnelMade, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnSegment:
    """Point frames for guests that are away to their tunnel's port."""

    turns: tuple[TurnWish, ...]


@dataclass(frozen=True, slots=True)
class Turned:
    """Answer to `TurnSegment`: what did not work, a sentence each."""

    problems: tuple[str, ...]


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
    GetSources: Sources,
    AnswerPath: PathOpen,  # never, likewise
    MeasurePaths: PathMtus,
    GetAbilities: Abilities,
    ChooseTunnel: TunnelChoice,
    MakeTunnel: TunnelMade,
    ReleaseTunnels: TunnelsReleased,
    RepairTunnels: TunnelsRepaired,
    TurnSegment: Turned,
    ReachGuest: Reached,
}

NOTES: dict[type, type] = {OpenProbe: ProbeOpen, AnswerPath: PathOpen}

REQUESTS: dict[str, type] = {kind.__name__: kind for kind in REPLIES}
