"""Preflight's rules about the destination: is all that the guest needs there?"""

from qmigrate.core.evidence import Facts, Findings
from qmigrate.core.images import judge
from qmigrate.core.model import (
    Finding,
    Severity,
)
from qmigrate.core.quantities import human_bytes

QEMU_OVERHEAD_BYTES = 128 << 20  # besides the guest's RAM: QEMU's heap, page tables, buffers
RUN_NEEDED_BYTES = 1 << 20  # journal, sockets and a margin, in /run
TCG_MINIMUM = (10, 0)  # QEMU 7.2 corrupts guests that it migrates under TCG (facts/measuring §0)


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
    if facts.guest.monitor is None or facts.guest.monitor_problem:
        return  # what it is could not be asked: that is the rule `monitor`'s, said once
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
