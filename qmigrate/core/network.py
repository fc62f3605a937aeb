"""What is known of segments and tunnels, and what is asked about them, as plain data.

`netsetup` has nouns of its own; `agent.probing` and `agent.tunnelling` turn them into these, and
nothing above the agents knows it. A bridge and its VLAN on a named host are a segment; a guest's
home is the segment that its neighbours are on.
"""

from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.home import Home

AUTO = "auto"  # of a tunnel's kind: what both hosts can do
NONE = "none"  # no tunnel: a segment that is not adjacent is a blocker
TUNNELS = (AUTO, NONE, "vxlan", "gretap", "etherip")  # what can be asked for
OWNER = "qmigrate"  # in the tag of a tunnel that is ours


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
    addresses: tuple[str, ...]  # beyond the link
    bridges: tuple[BridgeHere, ...]
    ports: tuple[Port, ...]
    tunnels: tuple[TunnelHere, ...]

    def port(self, name: str | None) -> Port | None:
        """Return the port `name`; None if it is none."""
        return next((port for port in self.ports if port.name == name), None)

    def has_bridge(self, name: str) -> bool:
        """Say whether there is a bridge that is nobody's private one."""
        return any(b.name == name and not b.private for b in self.bridges)
