"""What an agent is asked about paths and tunnels, and answers; as `core.network_requests`."""

from dataclasses import dataclass

from qmigrate.core.home import Home, ReleaseTunnels, TunnelsReleased, TurnWish
from qmigrate.core.network import TunnelHere
from qmigrate.core.tunnels import Ability, Path, TunnelChoice, TunnelEnd


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


REPLIES: dict[type, type] = {
    GetSources: Sources,
    AnswerPath: PathOpen,  # never: it is cancelled
    MeasurePaths: PathMtus,
    GetAbilities: Abilities,
    ChooseTunnel: TunnelChoice,
    MakeTunnel: TunnelMade,
    ReleaseTunnels: TunnelsReleased,
    RepairTunnels: TunnelsRepaired,
    TurnSegment: Turned,
}
NOTES: dict[type, type] = {AnswerPath: PathOpen}
