"""What stands in the way of a move: facts of both hosts → findings, all at once.

A rule is a generator of `Finding`; it never raises and never stops at the first. What could not be
asked is UNKNOWN, which blocks like a blocker: not knowing is no pass. `--force RULE` turns one
rule's findings into warnings, where that can be wished for at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from qmigrate.core.images import ImageEvidence, judge
from qmigrate.core.model import (
    Finding,
    Guest,
    GuestDetail,
    HostFacts,
    Owner,
    RunState,
    Severity,
)
from qmigrate.core.quantities import human_bytes

QEMU_OVERHEAD_BYTES = 128 << 20  # besides the guest's RAM: QEMU's heap, page tables, buffers
RUN_NEEDED_BYTES = 1 << 20  # journal, sockets and a margin, in /run
TCG_MINIMUM = (10, 0)  # QEMU 7.2 corrupts guests that it migrates under TCG (facts/measuring §0)

MOVABLE = frozenset(
    (
        RunState.RUNNING,
        RunState.PAUSED,
        RunState.PRELAUNCH,
        RunState.SHUTDOWN,
        RunState.SUSPENDED,
        RunState.GUEST_PANICKED,
    )
)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rules look at."""

    detail: GuestDetail
    source_name: str
    source: HostFacts
    destination_name: str
    destination: HostFacts
    destination_guests: tuple[Guest, ...]
    plan_findings: tuple[Finding, ...]  # of core.cmdline
    bridges: tuple[str, ...]  # wanted on the destination
    images: tuple[ImageEvidence, ...]
    stop_unit: bool = False

    @property
    def guest(self) -> Guest:
        """The guest that is to move."""
        return self.detail.guest


Findings = Iterator[Finding]
Rule = Callable[[Facts], Findings]


def same_host(facts: Facts) -> Findings:
    """Two names, one host."""
    if facts.source.boot_id == facts.destination.boot_id:
        yield Finding(
            "same-host",
            Severity.BLOCKER,
            facts.destination_name,
            f"{facts.source_name} and {facts.destination_name} are the same host",
            "name another destination",
        )


def architecture(facts: Facts) -> Findings:
    """One instruction set."""
    if facts.source.arch != facts.destination.arch:
        yield Finding(
            "architecture",
            Severity.BLOCKER,
            facts.destination_name,
            f"it is {facts.destination.arch}, the source {facts.source.arch}",
            "name a destination of the same architecture",
        )


def monitor(facts: Facts) -> Findings:
    """The guest can be spoken to."""
    if facts.guest.monitor is None or facts.guest.monitor_problem:
        yield Finding(
            "monitor",
            Severity.BLOCKER,
            facts.source_name,
            facts.guest.monitor_problem or "the guest has no QMP monitor",
            facts.guest.monitor_fix or "start it with -qmp unix:PATH,server=on,wait=off",
        )


def guest_state(facts: Facts) -> Findings:
    """The guest is in a state that can travel."""
    state = facts.guest.state
    if state is None and facts.guest.monitor and not facts.guest.monitor_problem:
        yield Finding(
            "guest-state",
            Severity.UNKNOWN,
            facts.source_name,
            "the guest's state is not known",
            "look at it: qmigrate list",
        )
    elif state is RunState.POSTMIGRATE:
        yield Finding(
            "guest-state",
            Severity.BLOCKER,
            facts.source_name,
            "the guest was already moved away by somebody, and this is what was left behind "
            "(state postmigrate)",
            "find out where it runs; if nowhere, continue this copy, then move it",
        )
    elif state is not None and state not in MOVABLE:
        yield Finding(
            "guest-state",
            Severity.BLOCKER,
            facts.source_name,
            f"the guest is in state {state}",
            "bring it to run, or pause it, first",
        )
    status = facts.detail.migration_status
    if status not in (None, "none", "completed", "failed", "cancelled"):
        yield Finding(
            "guest-state",
            Severity.BLOCKER,
            facts.source_name,
            f"somebody is already migrating the guest (status {status})",
            "wait for that migration's end, or cancel it there",
        )


def in_job(facts: Facts) -> Findings:
    """One job a guest."""
    if facts.guest.job:
        yield Finding(
            "in-job",
            Severity.BLOCKER,
            facts.source_name,
            f"the guest is already in job {facts.guest.job}",
            f"wait for it: qmigrate watch {facts.guest.job}",
        )


def already_there(facts: Facts) -> Findings:
    """No guest of that name or UUID on the destination."""
    for other in facts.destination_guests:
        same_uuid = facts.guest.uuid is not None and other.uuid == facts.guest.uuid
        same_name = facts.guest.name is not None and other.name == facts.guest.name
        if same_uuid or same_name:
            yield Finding(
                "already-there",
                Severity.BLOCKER,
                facts.destination_name,
                f"a guest with the same {'UUID' if same_uuid else 'name'} is there: "
                f"{other.name or 'unnamed'}, pid {other.pid}, "
                f"{other.state or 'state unknown'}",
                "end it there if it is a leftover, or name another destination",
            )


def blocked_by_qemu(facts: Facts) -> Findings:
    """QEMU's own reasons (QMP `query-migrate`, blocked-reasons)."""
    for reason in facts.detail.blocked_reasons:
        yield Finding(
            "qemu-blocks",
            Severity.BLOCKER,
            facts.source_name,
            f"QEMU says that the guest cannot migrate: {reason}",
            "unplug that device, or start the guest without it",
        )


def hot_plugged(facts: Facts) -> Findings:
    """Devices that the command line does not explain."""
    for device in facts.detail.hotplugged:
        yield Finding(
            "hot-plugged",
            Severity.BLOCKER,
            facts.source_name,
            f"{device} was plugged in since the guest was started",
            "unplug it first; hot-plugged devices are not rebuilt yet",
        )


def supervised(facts: Facts) -> Findings:
    """Nobody will start a second copy."""
    guest = facts.guest
    fix = {
        Owner.LIBVIRT: "move it with virsh, or undefine it there and start QEMU by hand",
        Owner.PROXMOX: "move it with qm migrate",
        Owner.INCUS: "move it with incus move",
        Owner.UNIT: f"let qmigrate stop {guest.unit} instead of QEMU: --stop-unit",
        Owner.SUPERVISOR: "take it out of its supervisor's care first",
    }
    if guest.owner is Owner.NONE or (guest.owner is Owner.UNIT and facts.stop_unit):
        return
    named = f"the unit {guest.unit}, which restarts it" if guest.unit else f"{guest.owner}"
    reason = f" ({guest.owner_reason})" if guest.owner_reason else ""
    yield Finding(
        "supervised",
        Severity.BLOCKER,
        facts.source_name,
        f"the guest is looked after by {named}{reason}: once it has left, a second copy would be "
        "started",
        fix[guest.owner],
    )


def account(facts: Facts) -> Findings:
    """The twin's user and groups are there."""
    process = facts.detail.process
    if process.user not in facts.destination.users:
        yield _no_account(facts, f"user {process.user}")
    for group in dict.fromkeys((process.group, *process.groups)):
        if group not in facts.destination.groups:
            yield _no_account(facts, f"group {group}")


def _no_account(facts: Facts, who: str) -> Finding:
    return Finding(
        "account-missing",
        Severity.BLOCKER,
        facts.destination_name,
        f"the guest's QEMU runs with {who}, which is not there",
        f"make {who} there",
    )


def bridge(facts: Facts) -> Findings:
    """The guest's bridges are there."""
    for name in dict.fromkeys(facts.bridges):
        if name and name not in facts.destination.bridges:
            there = ", ".join(facts.destination.bridges) or "none"
            yield Finding(
                "bridge-missing",
                Severity.BLOCKER,
                facts.destination_name,
                f"the guest's network card hangs on bridge {name}; there is no such bridge "
                f"(bridges there: {there})",
                f"make it there: ip link add {name} type bridge; ip link set {name} up",
            )


def memory(facts: Facts) -> Findings:
    """Enough memory is free on the destination."""
    needed, free = facts.guest.memory_bytes, facts.destination.memory_available_bytes
    if needed is None or free is None:
        yield Finding(
            "memory-short",
            Severity.UNKNOWN,
            facts.destination_name,
            "whether there is memory enough is not known",
            "look at free(1) there; to go on all the same: --force memory-short",
        )
    elif free < needed + QEMU_OVERHEAD_BYTES:
        yield Finding(
            "memory-short",
            Severity.BLOCKER,
            facts.destination_name,
            f"the guest needs {human_bytes(needed + QEMU_OVERHEAD_BYTES)}, "
            f"{human_bytes(free)} are available",
            "free memory there, or name another destination",
        )


def run_space(facts: Facts) -> Findings:
    """Journals can be kept on both hosts."""
    for name, host in (
        (facts.source_name, facts.source),
        (facts.destination_name, facts.destination),
    ):
        if host.run_free_bytes is None:
            yield Finding(
                "run-full",
                Severity.UNKNOWN,
                name,
                "how much space /run has is not known",
                "look at it: df /run",
            )
        elif host.run_free_bytes < RUN_NEEDED_BYTES:
            yield Finding(
                "run-full",
                Severity.BLOCKER,
                name,
                f"/run has {human_bytes(host.run_free_bytes)} left; a job's journal needs "
                f"{human_bytes(RUN_NEEDED_BYTES)}",
                "make room in /run",
            )


def qemu(facts: Facts) -> Findings:
    """A QEMU that can take the guest is there."""
    there, name = facts.destination, facts.destination_name
    if there.qemu_path is None:
        yield Finding(
            "qemu-missing",
            Severity.BLOCKER,
            name,
            f"there is no {facts.guest.executable.rpartition('/')[2]} there",
            "install QEMU there",
        )
        return
    ours, theirs = _version(facts.guest.qemu_version), _version(there.qemu_version)
    if facts.guest.accelerator == "tcg":
        for host, version in ((facts.source_name, ours), (name, theirs)):
            if version is None:
                yield Finding(
                    "qemu-too-old",
                    Severity.UNKNOWN,
                    host,
                    "the version of QEMU is not known",
                    "run qemu-system-x86_64 --version there",
                )
            elif version < TCG_MINIMUM:
                yield Finding(
                    "qemu-too-old",
                    Severity.BLOCKER,
                    host,
                    f"QEMU {version[0]}.{version[1]} without KVM: versions before 10.0 corrupt "
                    "guests that they migrate under TCG (dirty bits are lost)",
                    "install QEMU >= 10.0 (Debian 12: from backports)",
                )
    if ours and theirs and theirs < ours:
        yield Finding(
            "qemu-older",
            Severity.WARNING,
            name,
            f"QEMU {there.qemu_version} there is older than {facts.guest.qemu_version} here; "
            "QEMU promises this direction for equal machine types only as a goal",
            "keep the destination's QEMU at least as new",
        )
    yield from _machine(facts)
    yield from _accelerator(facts)


def _machine(facts: Facts) -> Findings:
    machine, known = facts.guest.machine, facts.destination.machines
    if machine is None or not known:
        yield Finding(
            "machine-missing",
            Severity.UNKNOWN,
            facts.destination_name,
            "whether the guest's machine type is there is not known",
            "ask qemu-system-x86_64 -machine help on both hosts",
        )
    elif machine not in known:
        yield Finding(
            "machine-missing",
            Severity.BLOCKER,
            facts.destination_name,
            f"the guest's machine type is {machine}; QEMU {facts.destination.qemu_version} there "
            "does not have it",
            "install a QEMU that still (or already) has it",
        )


def _accelerator(facts: Facts) -> Findings:
    wanted = facts.guest.accelerator
    if wanted is None or not facts.destination.accelerators:
        yield Finding(
            "accelerator-missing",
            Severity.UNKNOWN,
            facts.destination_name,
            "whether the guest's accelerator works there is not known",
            "ask qemu-system-x86_64 -accel help there",
        )
    elif wanted not in facts.destination.accelerators:
        yield Finding(
            "accelerator-missing",
            Severity.BLOCKER,
            facts.destination_name,
            f"the guest runs under {wanted}, which does not work there "
            f"(what does: {', '.join(facts.destination.accelerators)})",
            "enable it there, or name another destination",
        )


def _version(text: str | None) -> tuple[int, int] | None:
    numbers = (text or "").split(".")
    if len(numbers) < 2 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        return None
    return int(numbers[0]), int(numbers[1])


def unlocked(facts: Facts) -> Findings:
    """Image locks, the last fence against a second copy, are on."""
    for disk in facts.guest.disks:
        if disk.share_rw and not disk.read_only:
            yield Finding(
                "share-rw",
                Severity.WARNING,
                facts.source_name,
                f"{disk.path or disk.device} is open to other writers (share-rw=on): no lock of "
                "QEMU's would stop a second copy that somebody starts by hand",
                "start the guest without share-rw, unless a cluster file system needs it",
            )


def images(facts: Facts) -> Findings:
    """See `core.images`."""
    return judge(facts.images, host=facts.destination_name)


RULES: tuple[Rule, ...] = (
    same_host,
    architecture,
    monitor,
    guest_state,
    in_job,
    already_there,
    blocked_by_qemu,
    hot_plugged,
    supervised,
    account,
    bridge,
    memory,
    run_space,
    qemu,
    unlocked,
    images,
)

# What cannot be wished away: without it there is nothing that could be moved, or two of it.
UNFORCEABLE = frozenset(
    ("same-host", "monitor", "guest-state", "in-job", "already-there", "qemu-missing", "run-full")
)

NAMES = frozenset(
    """
    same-host architecture monitor guest-state in-job already-there qemu-blocks hot-plugged
    supervised account-missing bridge-missing memory-short run-full qemu-missing qemu-too-old
    qemu-older machine-missing accelerator-missing disk-not-shared image-missing share-rw
    unmappable
    """.split()  # noqa: SIM905 - as in core/argv
)


def preflight(facts: Facts, *, force: frozenset[str] = frozenset()) -> tuple[Finding, ...]:
    """Return every finding, blockers first; those of a forced rule are warnings."""
    found = [finding for rule in RULES for finding in rule(facts)]
    found += facts.plan_findings
    found = [_forced(finding, force) for finding in found]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _forced(finding: Finding, force: frozenset[str]) -> Finding:
    forced = finding.rule in force and finding.rule not in UNFORCEABLE
    if not forced or finding.severity is Severity.WARNING:
        return finding
    message = f"{finding.message} (forced)"
    return replace(finding, severity=Severity.WARNING, message=message)


def blockers(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return those that refuse the move."""
    return tuple(f for f in findings if f.severity is not Severity.WARNING)
