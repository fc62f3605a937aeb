"""A tunnel before it is built: what hosts can carry, on which path, and what was chosen."""

from dataclasses import dataclass

from qmigrate.core.home import Home


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
