"""What is known of segments and tunnels, and what is asked about them, as plain data.

`netsetup` has nouns of its own; `agent.probing` and `agent.tunnelling` turn them into these, and
nothing above the agents knows it. A bridge and its VLAN on a named host are a segment; a guest's
home is the segment that its neighbours are on.
"""

from dataclasses import dataclass
from enum import StrEnum

AUTO = "auto"  # of a tunnel's kind: what both hosts can do
NONE = "none"  # no tunnel: a segment that is not adjacent is a blocker
OWNER = "qmigrate"  # in the tag of a tunnel that is ours


@dataclass(frozen=True, slots=True)
class Home:
    """A segment of a host; `vlan` is None for what an untagged guest gets."""

    host: str  # as the inventory calls it
    bridge: str
    vlan: int | None = None

    def __str__(self) -> str:
        vlan = "" if self.vlan is None else f" VLAN {self.vlan}"
        return f"{self.host}'s {self.bridge}{vlan}"


class Adjacency(StrEnum):
    """Whether two segments are one; `netsetup.adjacency` says what proves it."""

    ADJACENT = "adjacent"
    NOT_ADJACENT = "not-adjacent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trap:
    """A named obstacle, where it is and in words (`netsetup.traps.TrapKind`)."""

    kind: str
    host: str
    text: str


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a probe."""

    source: str
    destination: str
    passage: str  # "passes", "silent", "unknown"
    mtu_bytes: int | None
    ports: tuple[str, ...]  # by which frames came in


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two segments are one, for a guest of `wanted_bytes` of MTU, and why."""

    adjacency: Adjacency
    why: str
    forth: Way
    back: Way
    wanted_bytes: int
    mtu_bytes: int | None  # of the narrower direction
    latency_us: float | None  # there and back
    through_tunnel: str | None  # the mark of a tunnel of ours
    traps: tuple[Trap, ...] = ()
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """A bridge's port as netlink tells; `home` is what a tap's alias remembers."""

    name: str
    bridge: str
    mtu_bytes: int
    tap: bool
    isolated: bool
    vlan: int | None = None  # its own, where it is not the one that every new port gets
    home: Home | None = None


@dataclass(frozen=True, slots=True)
class BridgeHere:
    """A bridge of a host."""

    name: str
    mtu_bytes: int
    up: bool
    stp: bool
    private: bool  # a tunnel's own, of ours


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """One end of a tunnel, to be made; what `netsetup.tunnel_spec.TunnelSpec` says."""

    kind: str
    backend: str
    local: str
    remote: str
    home: Home
    end: str  # "home" or "away"
    key: int
    mtu_bytes: int
    manner: str
    guest: str  # whose claim is added: the guest's tag
    job: str


@dataclass(frozen=True, slots=True)
class TunnelHere:
    """One end of a tunnel that is there; what is missing is None, and told in `problems`."""

    id: str
    end: str
    home: Home
    owner: str
    job: str
    backend: str
    kind: str | None
    local: str | None
    remote: str | None
    key: int | None
    mtu_bytes: int | None
    manner: str | None
    port: str | None
    bridge: str | None
    guests: tuple[str, ...]  # tags of those who claim it
    taps: tuple[str, ...]  # guests' taps in its private bridge
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """The wire format and what carries it out, such as "vxlan (kernel)"."""
        return f"{self.kind or 'tunnel'} ({self.backend})"


@dataclass(frozen=True, slots=True)
class NetworkHere:
    """A host's bridges, their ports, and our tunnels."""

    boot_id: str
    bridges: tuple[BridgeHere, ...]
    ports: tuple[Port, ...]
    tunnels: tuple[TunnelHere, ...]

    def port(self, name: str | None) -> Port | None:
        """Return the port `name`; None if it is none."""
        return next((port for port in self.ports if port.name == name), None)

    def has_bridge(self, name: str) -> bool:
        """Say whether there is a bridge that is nobody's private one."""
        return any(b.name == name and not b.private for b in self.bridges)


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a host can carry a kind over an IP version; `why_not` is None if it can."""

    kind: str
    backend: str
    family: int
    why_not: str | None


@dataclass(frozen=True, slots=True)
class Path:
    """Two hosts' addresses that reach each other; the MTU is None if nobody could measure it."""

    local: str
    remote: str
    mtu_bytes: int | None


@dataclass(frozen=True, slots=True)
class TunnelChoice:
    """A tunnel as it would be built: both ends, why this one, and what it costs."""

    id: str
    home_end: TunnelEnd
    away_end: TunnelEnd
    private_bridge: str
    home_port: str
    why: str
    cost: str
    whole: bool  # nothing has to be cut or told on the way
    passed_over: tuple[str, ...]

    @property
    def described(self) -> str:
        """As `TunnelHere.described`, of the end where the guest will be."""
        return f"{self.away_end.kind} ({self.away_end.backend})"


@dataclass(frozen=True, slots=True)
class TurnWish:
    """Frames for `mac` are to go to `port` of its bridge as soon as the guest runs elsewhere."""

    mac: str
    port: str
    vlan: int | None = None


# What is asked of an agent


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
    """Answer to `GetAbilities`, and the keys that tunnels here have already."""

    abilities: tuple[Ability, ...]
    keys: tuple[int, ...]


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

    Those of `only` if it is not None, but not of `keep`; with `end` those of that end only.
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


NetworkRequest = (
    GetNetwork
    | OpenProbe
    | AskProbe
    | ReportProbe
    | JudgeProbe
    | GetSources
    | AnswerPath
    | MeasurePaths
    | GetAbilities
    | ChooseTunnel
    | MakeTunnel
    | ReleaseTunnels
    | RepairTunnels
    | TurnSegment
    | ReachGuest
)

NETWORK_REPLIES: dict[type, type] = {
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

NETWORK_NOTES: dict[type, type] = {OpenProbe: ProbeOpen, AnswerPath: PathOpen}
