"""One attempt to move one guest, as data: what the agents are told, and what they report.

A `JobSpec` is all that an agent gets: the controller may be gone the moment after it was handed
over. A `JobReport` is all that a source's agent says at the end; it is kept on both hosts.
"""

from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.errors import Problem
from qmigrate.core.home import Home, TurnWish
from qmigrate.core.model import (
    Address,
    Finding,
    LinkFigures,
    ProcessFacts,
    Progress,
    RunState,
    Shape,
    Side,
)
from qmigrate.core.secret import Identity

RUN_DIRECTORY = "/run/qmigrate"
LOG_DIRECTORY = "/var/log/qmigrate"
CACHE_DIRECTORY = "/var/cache/qmigrate"


class Mode(StrEnum):
    """The user's two words for how."""

    LIVE = "live"
    OFFLINE = "offline"  # the guest is stopped first


class Transport(StrEnum):
    """How memory travels (DESIGN §4)."""

    DIRECT = "direct"  # the plain socket is QEMU's
    RELAY = "relay"  # between the agents, in TLS; outlives connections that break
    RELAY_ZSTD = "relay+zstd"  # and packed while it pays

    @property
    def plaintext(self) -> bool:
        """Tell if whoever sees the wire sees the guest's memory."""
        return self is Transport.DIRECT


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
    """For tests only, and said in HELLO: what an agent does to itself at a named moment, once."""

    side: Side
    moment: str  # see `core.faults`: "before record away", "after send-go", "at loaded"
    action: str  # see `core.faults.Action`


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a job waits for what may never come, in seconds; each has an end of its own."""

    link_s: float = 10.0  # for both agents to find each other: several addresses, either direction
    # For a broken link to come back while the guest still runs here; an agent that is started anew
    # takes half a second, and then dials the source only after the source has had its chance.
    link_grace_s: float = 6.0
    monitor_s: float = 5.0  # for the guest's monitor to greet
    start_s: float = 30.0  # from exec to the twin's greeting: it may allocate and clear gigabytes
    twin_s: float = 40.0  # for the link and the destination's word: it may still be starting QEMU
    loading_s: float = 15.0  # for both QEMUs to hold the data socket
    data_s: float = 10.0  # for the data socket beside a link that stands
    ready_s: float = 5.0  # for the destination's word while the guest is stopped
    verdict_s: float = 60.0  # from migrate-continue to QEMU's verdict; device state on a slow wire
    cancel_s: float = 30.0  # from migrate_cancel to QEMU's terminal event
    look_s: float = 10.0  # for QEMU to say that it has everything; the source says it has
    resume_s: float = 10.0  # from cont to RESUME; it may activate images on a slow store
    answer_s: float = 10.0  # for the answer to GO, before people are told that it is not known
    quit_s: float = 20.0  # from quit to the end of the process; it flushes its images
    farewell_s: float = 5.0  # for the destination's last words
    peer_s: float = 60.0  # for a source to appear, or to come back before all is loaded
    linger_s: float = 60.0  # after a refusal: for the source to hear it


RELAY_GRACE_S = 30.0  # `link_grace_s` with a relay, which rides a broken link out


# For tests, where what is waited for is known not to come. Starting QEMU keeps its time.
SHORT_PATIENCE = Patience(
    link_s=4.0,
    link_grace_s=4.0,
    twin_s=10.0,
    loading_s=4.0,
    data_s=4.0,
    ready_s=2.0,
    verdict_s=4.0,
    cancel_s=4.0,
    look_s=2.0,
    resume_s=2.0,
    answer_s=2.0,
    farewell_s=2.0,
    peer_s=4.0,
    linger_s=2.0,
)


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
    vlan: int | None = None  # of a bridge that filters them; None: what a new port gets
    home: Home | None = None  # remembered in its alias; None: the bridge itself


TOKEN_MARK = "@qmigrate-"  # noqa: S105 - begins what stands for something else; no guest may say it


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
    vlan: int | None = None  # of the tag that the guest itself puts on


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
    unit: str | None = None  # that its QEMU is in
    stop_unit: bool = False  # instead of QMP `quit`


@dataclass(frozen=True, slots=True)
class DestinationSpec:
    """What only the destination's agent is told."""

    twin: TwinPlan
    addresses: tuple[Announced, ...]  # known beforehand


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What was built for the job, and what is to be turned when the guest runs elsewhere."""

    tunnels: tuple[str, ...] = ()  # their ids; every other claim of the guest is void once it moved
    turns: tuple[TurnWish, ...] = ()  # for the source, where it is the guest's home


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
    patience: Patience = Patience()
    disks: tuple[str, ...] = ()  # what the guest writes to: the same files on both hosts
    network: NetworkSpec = NetworkSpec()
    transport: Transport = Transport.DIRECT


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
    faults: tuple[FaultPoint, ...] = ()  # what a test asked for; empty in earnest
    link: LinkFigures | None = None  # of a relay
    destination_marks: tuple[Mark, ...] = ()  # as of its farewell, on its own clock


@dataclass(frozen=True, slots=True)
class JobNote:
    """News of a running job; whichever field is not None."""

    progress: Progress | None = None
    warning: str | None = None
    unknown: Problem | None = None  # the outcome cannot be known yet
    report: JobReport | None = None  # the last note
    linked: bool | None = None  # False: the agents have no link; a controller may carry (CarryLink)


@dataclass(frozen=True, slots=True)
class TwinFacts:
    """What the destination's agent tells of the QEMU it has started."""

    pid: int
    shape: Shape
    taps: tuple[tuple[str, str], ...]  # netdev, interface
