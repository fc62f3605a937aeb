"""Preflight's rules about the guest itself: can it travel, and would a second copy come up?"""

from qmigrate.core.evidence import Facts, Findings
from qmigrate.core.model import (
    Finding,
    Owner,
    RunState,
    Severity,
)

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
    if facts.guest.job is None and status not in (None, "none", "completed", "failed", "cancelled"):
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
    """No guest of that name or UUID on the destination; one that a job brings is `in_job`'s."""
    for other in facts.destination_guests:
        if facts.guest.job is not None and other.job == facts.guest.job:
            continue
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
