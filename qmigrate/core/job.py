"""One attempt to move one guest, as data: what the agents are told, and what they report.

A `JobSpec` is all that an agent gets: the controller may be gone the moment after it was handed
over. A `JobReport` is all that a source's agent says at the end; it is kept on both hosts.
"""

from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.errors import Problem
from qmigrate.core.model import Address, Finding, ProcessFacts, Progress, RunState, Shape, Side
from qmigrate.core.secret import Identity

RUN_DIRECTORY = "/run/qmigrate"
LOG_DIRECTORY = "/var/log/qmigrate"
CACHE_DIRECTORY = "/var/cache/qmigrate"


class Mode(StrEnum):
    """The user's two words for how."""

    LIVE = "live"
    OFFLINE = "offline"  # the guest is stopped first


class Outcome(StrEnum):
    """How a job ended (DESIGN §6)."""

    MIGRATED = "migrated"
    ROLLED_BACK = "rolled-back"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # preflight: nothing was touched
    GUEST_ENDED = "guest-ended"
    DETACHED = "detached"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows the move; all may be changed while it runs."""

    downtime_ms: int = 20  # QEMU's `downtime-limit` at the start
    max_downtime_ms: int = 300  # how far it may be raised for a guest that does not converge
    bandwidth_bps: int = 0  # bytes/s; 0: unlimited
    timeout_s: float | None = None  # of the copy; None: as long as it converges


@dataclass(frozen=True, slots=True)
class FaultPoint:
    """For tests only, and said in HELLO: what the agent does to itself at a named moment."""

    moment: str  # an effect or record of core/handover: "record away", "send-go", …
    action: str  # "kill", "stop", "hang"


@dataclass(frozen=True, slots=True)
class TapPlan:
    """A tap that the destination makes for one of the guest's cards."""

    netdev: str  # the netdev's id; `tap_token(netdev)` stands for the name in the argv
    wanted: str | None  # the name it had on the source; taken if free
    bridge: str
    mac: str | None
    queues: int = 1
    vnet_hdr: bool = True
    mtu: int | None = None


def tap_token(netdev: str) -> str:
    """Return what stands in a planned argv for the name of the tap that will be made."""
    return f"@qmigrate-tap:{netdev}@"


MONITOR_TOKEN = "@qmigrate-monitor@"  # noqa: S105 - stands for the descriptor number of our monitor


@dataclass(frozen=True, slots=True)
class Announced:
    """An address that the guest is known to have, and who said so."""

    mac: str
    address: str  # IPv4 or IPv6
    origin: str  # "option", "inventory", "seen"


@dataclass(frozen=True, slots=True)
class TwinPlan:
    """How the guest's twin is started on the destination."""

    executable: str
    argv: tuple[str, ...]  # with tokens, see above
    process: ProcessFacts
    run_directory: str  # `/run/qmigrate/guests/<uuid>`: sockets and pid file
    taps: tuple[TapPlan, ...]
    tag: str  # alias of taps and name in run directory: the guest's id


@dataclass(frozen=True, slots=True)
class GuestTap:
    """An interface of the host that a guest's card hangs on."""

    name: str
    mac: str | None


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What only the source's agent is told."""

    pid: int
    start_ticks: int
    monitor: str
    taps: tuple[GuestTap, ...]  # where addresses are learned, and announced after a rollback
    tag: str
    peer_addresses: tuple[Address, ...]  # where the destination listens
    unit: str | None = None  # stop this unit instead of `quit`


@dataclass(frozen=True, slots=True)
class DestinationSpec:
    """What only the destination's agent is told."""

    twin: TwinPlan
    addresses: tuple[Announced, ...]  # known beforehand


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything that one side's agent needs; kept in a memfd, since it holds a key."""

    job: str
    side: Side
    guest: str  # as people call it
    uuid: str | None
    mode: Mode
    identity: Identity
    listen_addresses: tuple[str, ...]
    port_range: tuple[int, int] | None
    limits: Limits
    host: str  # as the user calls this host
    peer_host: str
    source: SourceSpec | None = None
    destination: DestinationSpec | None = None
    faults: tuple[FaultPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class QemuFigures:
    """QEMU's own figures of the move (QAPI `MigrationInfo`)."""

    total_ms: int | None = None
    setup_ms: int | None = None
    downtime_ms: int | None = None
    passes: int | None = None
    transferred_bytes: int | None = None
    mbps: float | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of the job on one host's CLOCK_MONOTONIC, relative to the job's start there."""

    name: str
    at_s: float


@dataclass(frozen=True, slots=True)
class AnnounceReport:
    """What the destination sent, or the source after a rollback."""

    interface: str | None
    sent: tuple[str, ...]  # "garp 192.0.2.7", "rarp 52:54:…", "na 2001:db8::7"
    first_ms: float | None  # after RESUME
    addresses: tuple[Announced, ...]
    note: str | None = None  # what could not be announced, as a sentence


@dataclass(frozen=True, slots=True)
class Costs:
    """What the switchover was spent on, in ms; None where it did not happen."""

    pause_ms: float | None = None  # STOP to migrate-continue: checks and the journal
    qemu_ms: float | None = None  # migrate-continue to completed
    go_ms: float | None = None  # completed to RESUME: journal, GO, look, journal, cont


@dataclass(frozen=True, slots=True)
class JobReport:
    """How the job ended, as the source's agent knows it."""

    job: str
    outcome: Outcome
    problem: Problem | None
    had: RunState | None
    stop_us: int | None = None  # QEMU's stamp on the source
    resume_us: int | None = None  # QEMU's stamp on the destination
    clock_offset_us: float | None = None  # destination's clock minus source's
    clock_error_us: float | None = None
    clock_stepped: bool = False
    qemu: QemuFigures = QemuFigures()
    marks: tuple[Mark, ...] = ()
    costs: Costs = Costs()
    announced: AnnounceReport | None = None
    findings: tuple[Finding, ...] = ()
    guest_events: tuple[str, ...] = ()  # "reset by the guest", …
    still_enabled: str | None = None  # what would start a second copy at the next boot
    leftovers: tuple[str, ...] = ()  # what could not be removed, and where


@dataclass(frozen=True, slots=True)
class JobNote:
    """News of a running job; whichever field is not None."""

    progress: Progress | None = None
    warning: str | None = None
    unknown: Problem | None = None  # the outcome cannot be known yet
    report: JobReport | None = None  # the last note


@dataclass(frozen=True, slots=True)
class TwinFacts:
    """What the destination's agent tells of the QEMU it has started."""

    pid: int
    shape: Shape
    taps: tuple[tuple[str, str], ...]  # netdev, interface
