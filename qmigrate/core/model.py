"""The nouns: hosts, guests and what is known of them, as plain data.

Everything here crosses the wire between agent and controller, so the types are frozen, flat and
made of str, int, float, bool, None, tuples and each other. None means "not known", never zero.
"""

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """QEMU's run state (QAPI `RunState`), as far as the handover tells them apart."""

    RUNNING = "running"
    PAUSED = "paused"
    PRELAUNCH = "prelaunch"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    GUEST_PANICKED = "guest-panicked"
    IO_ERROR = "io-error"
    INTERNAL_ERROR = "internal-error"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    WATCHDOG = "watchdog"
    DEBUG = "debug"
    COLO = "colo"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "RunState":
        return cls.UNKNOWN


RUNS = frozenset((RunState.RUNNING, RunState.SUSPENDED))  # what `cont` leads to


class Owner(StrEnum):
    """Who else looks after a QEMU process and might start it again."""

    NONE = "none"
    LIBVIRT = "libvirt"
    PROXMOX = "proxmox"
    INCUS = "incus"
    UNIT = "unit"  # a systemd unit with Restart=, named in `Guest.unit`
    SUPERVISOR = "supervisor"  # a parent process known to restart its children


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device of a guest (QMP `query-block`, `query-named-block-nodes`)."""

    device: str  # the guest device's id or QOM path
    node: str | None  # node name of the format layer
    path: str | None  # host file or device; None for what is not a file
    driver: str | None  # "raw", "qcow2", …
    read_only: bool
    size_bytes: int | None  # virtual size
    backing: tuple[str, ...] = ()  # backing files, nearest first
    share_rw: bool = False


@dataclass(frozen=True, slots=True)
class Nic:
    """A guest's network card and what it hangs on."""

    device: str  # id or QOM path
    model: str  # "virtio-net-pci", "e1000", …
    mac: str | None
    netdev: str | None  # the backend's id
    backend: str | None  # "tap", "user", "bridge", "socket", …
    tap: str | None  # host interface
    bridge: str | None  # its master


@dataclass(frozen=True, slots=True)
class Guest:
    """One QEMU process on a host, as `qmigrate list` shows it.

    What needs the monitor is None when `monitor_problem` says why it could not be asked.
    """

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat: with the pid it names the process for ever
    executable: str
    argv: tuple[str, ...]  # secrets redacted in listings
    name: str | None
    uuid: str | None
    state: RunState | None
    memory_bytes: int | None
    vcpus: int | None
    qemu_version: str | None
    accelerator: str | None  # "kvm", "tcg", …
    machine: str | None  # versioned: "pc-q35-10.0"
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    monitor: str | None  # path of a QMP unix socket that this very pid listens on
    monitor_problem: str | None  # why the monitor could not be used, as a sentence
    monitor_fix: str | None  # what to do about it
    owner: Owner = Owner.NONE
    unit: str | None = None  # the systemd unit that it runs in, if any
    job: str | None = None  # the qmigrate job that it is part of, if any
    owner_reason: str | None = None  # how the owner was recognised, as a sentence


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """How a QEMU process was started: what the twin must be given (DESIGN §7)."""

    user: str
    group: str
    groups: tuple[str, ...]  # supplementary, by name
    cwd: str
    umask: int
    limits: tuple[tuple[str, int, int], ...]  # RLIMIT name, soft, hard; -1 for unlimited
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class CpuShape:
    """A vCPU as the guest sees it."""

    type: str  # "qemu64-x86_64-cpu"
    features: tuple[int, ...]  # CPUID words (qom `feature-words`), in QEMU's order


@dataclass(frozen=True, slots=True)
class RamBlock:
    """A RAM block that travels in the stream; ids and sizes must equal."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device on a bus: place and type must equal on both sides."""

    place: str  # "pci 0000:00:02.0", "isa serial0", …
    type: str  # QOM type


@dataclass(frozen=True, slots=True)
class Shape:
    """What must equal in two QEMUs before a byte moves; asked over QMP on each side."""

    qemu_version: str
    machine: str
    accelerator: str
    cpus: tuple[CpuShape, ...]
    ram: tuple[RamBlock, ...]
    devices: tuple[Device, ...]
    macs: tuple[tuple[str, str], ...]  # place or id, MAC
    disks: tuple[tuple[str, int], ...]  # guest device, virtual size in bytes


@dataclass(frozen=True, slots=True)
class GuestDetail:
    """Everything preflight and the plan need of one guest; asked of the source only."""

    guest: Guest
    process: ProcessFacts
    shape: Shape | None
    blocked_reasons: tuple[str, ...]  # QMP query-migrate `blocked-reasons`
    hotplugged: tuple[str, ...]  # ids of devices that the command line does not explain
    migration_status: str | None  # a migration already runs or has ended
    tap_aliases: tuple[tuple[str, str], ...] = ()  # tap, alias
    fdset_paths: tuple[tuple[int, str], ...] = ()  # descriptor inherited at start, what it is


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host as preflight sees it."""

    hostname: str
    boot_id: str
    machine_id: str | None
    kernel: str
    arch: str
    cpus: int
    memory_available_bytes: int | None
    uid: int
    python: str
    clock_synchronised: bool | None
    qemu_path: str | None
    qemu_version: str | None
    accelerators: tuple[str, ...]  # what really works: "tcg", and "kvm" if a guest was seen to boot
    machines: tuple[str, ...]  # versioned machine types that the QEMU knows
    bridges: tuple[str, ...]
    users: tuple[str, ...] = ()  # of the names that were asked about, those that exist
    groups: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # global addresses, for the link
    systemd: bool = False
    run_free_bytes: int | None = None


class Severity(StrEnum):
    """How much a finding weighs."""

    BLOCKER = "blocker"  # the move is refused
    UNKNOWN = "unknown"  # could not be asked: refused like a blocker
    WARNING = "warning"  # said, and the move goes on


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that preflight says; `rule` is its stable kebab-case name for --force."""

    rule: str
    severity: Severity
    host: str
    message: str
    fix: str


class SshClient(StrEnum):
    """Who speaks SSH for the controller."""

    AUTO = "auto"  # paramiko, or the system's ssh for what only that can do
    PARAMIKO = "paramiko"
    OPENSSH = "openssh"


@dataclass(frozen=True, slots=True)
class HostSpec:
    """How the controller reaches a host and what the inventory says of it."""

    name: str  # as the user calls it
    ssh: str | None  # ssh destination, "[user@]host" or "ssh://…"; None: this machine, no SSH
    ssh_config: str | None = None  # as `ssh -F`; None: the user's own
    python: str | None = None  # interpreter there; None: python3, else the newest python3.x
    sudo: bool = True  # use `sudo -n` when the login is not root
    migration_addresses: tuple[str, ...] = ()  # tried first by the link
    port_range: tuple[int, int] | None = None  # first and last port that the link may listen on
    ssh_client: SshClient = SshClient.AUTO


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """What a relay has done for the memory stream so far; forward, from source to destination."""

    payload_bytes: int  # QEMU's
    wire_bytes: int  # with TLS and all that was sent again, without TCP's headers
    unsent_bytes: int  # taken from QEMU, and not on the wire yet
    reconnects: int  # connections that were made in the place of one that broke, both ways
    stalls: int  # times that nothing was acknowledged for half a second or more
    stalled_s: float
    level: int  # of packing; 0: none

    @property
    def ratio(self) -> float | None:
        """Return wire bytes a payload byte; None: there were none."""
        return self.wire_bytes / self.payload_bytes if self.payload_bytes else None


@dataclass(frozen=True, slots=True)
class Progress:
    """News of a job on its way, as a view shows it; what is not known is None."""

    phase: str  # DESIGN §6: "connect" first
    percent: float | None
    transferred_bytes: int | None
    remaining_bytes: int | None
    rate_bps: float | None  # bytes/s, as all `_bps`
    dirty_rate_bps: float | None
    passes: int | None  # walks over dirty RAM, QMP `dirty-sync-count`
    elapsed_s: float  # since the job's start, on the reporter's clock
    text: str | None  # a sentence for people
    link: LinkFigures | None = None  # None: nothing of ours is between the QEMUs


class Side(StrEnum):
    """A host's role in one job."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def other(self) -> "Side":
        """Return the peer's side."""
        return Side.DESTINATION if self is Side.SOURCE else Side.SOURCE


@dataclass(frozen=True, slots=True)
class Address:
    """Where the link can be dialled: a numeric IPv4 or IPv6 address and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a job's time (DESIGN §6); `start_s` counts from the job's first mark."""

    name: str
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Outage:
    """What the network saw of a move, measured from outside with numbered probes."""

    lost_ms: float | None  # span of the probes that were never answered
    lost_probes: int | None
    longest_gap_ms: float | None  # between two answers
    noise_floor_ms: float | None  # longest gap of a control period without a move
