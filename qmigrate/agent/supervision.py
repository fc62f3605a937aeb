"""Who else looks after a QEMU: whoever would start it again after we have quit it.

Evidence is gathered here (control group, ancestors, command line, systemd's own word) and judged
by `judge`, which is pure. A shell's ``while true`` leaves no trace and is not found. Evidence that
could not be had counts against: a unit that cannot be asked is taken to restart.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import trio

from qmigrate.agent import process
from qmigrate.core.errors import HostError
from qmigrate.core.model import Owner

SYSTEMCTL_DEADLINE_S = 2.0  # systemd answers in milliseconds; one that hangs must not hang the list
ANCESTORS = 32  # deeper is a fork bomb, not a supervisor

# Names of processes (15 letters at most: TASK_COMM_LEN) that start their children again.
SUPERVISORS = frozenset(
    (
        *("runsv", "s6-supervise", "supervise", "supervisord", "supervise-daemo", "dinit", "perpd"),
        *("monit", "circusd", "god", "nomad", "immortal", "horust", "process-compose"),
    )
)
# Where somebody's session begins: what is above has started the session, not the guest.
SESSIONS = frozenset(
    (
        *("sshd", "sshd-session", "dropbear", "login", "agetty", "cron", "crond", "atd"),
        *("tmux: server", "screen", "SCREEN", "systemd"),
    )
)
_LOGIN_UNIT = re.compile(r"(sshd?|dropbear|cron|crond|cronie|atd|(serial-)?getty)(@.*)?\.service")

# What only that owner's command lines and control groups have.
_LIBVIRT = re.compile(
    r"/libvirt/qemu/(lib/|channel/|save/|ram/)?domain-|/libvirt/qemu/.*master-key|masterKey0"
)
_PROXMOX = re.compile(
    r"^(unix:|socket,.*path=|/)?(/var)?/?run/qemu-server/\d+\.|/qemu-server/\d+\.qmp"
)
_INCUS = re.compile(r"/(run|var/log|var/lib|var/snap)/(incus|lxd)/")
_GANETI = re.compile(r"/run/ganeti/kvm-hypervisor/")


@dataclass(frozen=True, slots=True)
class Unit:
    """The systemd unit that a process runs in, and what systemd said of it."""

    name: str
    user: int | None = None  # uid, if a user's own manager runs it
    restart: str | None = None  # Restart=; None: could not be asked
    main_pid: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen around a QEMU process."""

    pid: int
    executable: str
    argv: tuple[str, ...]
    cgroup: str = ""  # path in systemd's hierarchy
    ancestors: tuple[tuple[int, str], ...] = ()  # pid and name, nearest first, up to the session
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Supervision:
    """The verdict: who, in which unit, and the reason as the end of a sentence."""

    owner: Owner = Owner.NONE
    unit: str | None = None
    reason: str | None = None


def judge(seen: Evidence) -> Supervision:
    """Return who looks after the process; the most particular owner wins."""
    unit = seen.unit.name if seen.unit else None
    for owner, reason in (_by_names(seen), _by_ancestors(seen)):
        if owner is not Owner.NONE:
            return Supervision(owner, unit, reason)
    restarts = _by_unit(seen)
    if restarts:
        return Supervision(Owner.UNIT, unit, restarts)
    return Supervision(unit=unit)


def _by_names(seen: Evidence) -> tuple[Owner, str | None]:
    words = seen.argv
    if "machine-qemu" in seen.cgroup:
        return Owner.LIBVIRT, f"its control group is {seen.cgroup}"
    if any(map(_LIBVIRT.search, words)):
        return Owner.LIBVIRT, "its command line is libvirt's"
    if re.search(r"/qemu\.slice/\d+\.scope", seen.cgroup):
        return Owner.PROXMOX, f"its control group is {seen.cgroup}"
    if any(map(_PROXMOX.search, words)):
        return Owner.PROXMOX, "its command line is Proxmox's"
    if any(map(_INCUS.search, words)) or re.match(r"/opt/incus/", seen.executable):
        return Owner.INCUS, "its command line is Incus' or LXD's"
    if any(map(_GANETI.search, words)):
        return Owner.SUPERVISOR, "its command line is Ganeti's, whose watcher starts it again"
    return Owner.NONE, None


def _by_ancestors(seen: Evidence) -> tuple[Owner, str | None]:
    known = {"libvirtd": Owner.LIBVIRT, "virtqemud": Owner.LIBVIRT, "incusd": Owner.INCUS}
    known |= {"lxd": Owner.INCUS} | dict.fromkeys(SUPERVISORS, Owner.SUPERVISOR)
    for pid, name in seen.ancestors:
        if name in SESSIONS:
            break
        if name in known:
            return known[name], f"process {pid} ({name}) started it and would start it again"
    return Owner.NONE, None


def _by_unit(seen: Evidence) -> str | None:
    unit = seen.unit
    if unit is None or not unit.name.endswith(".service"):
        return None  # a scope has no Restart=
    if _LOGIN_UNIT.fullmatch(unit.name):
        return None  # somebody logged in and started it by hand
    if unit.restart is None:
        return f"it runs in {unit.name}, and systemd could not be asked whether that restarts"
    if unit.restart in ("", "no"):
        return None
    ours = {seen.pid, *(pid for pid, _ in seen.ancestors)}
    # With no main process systemd goes by the control group, which ends with the guest.
    if unit.main_pid and unit.main_pid not in ours:
        return None
    return f"it runs in {unit.name}, which has Restart={unit.restart}"


def cgroup_of(text: str) -> str:
    """Return the path in systemd's hierarchy from the text of /proc/PID/cgroup, v1 or v2."""
    paths = dict(line.split(":", 2)[1:] for line in text.splitlines() if line.count(":") >= 2)
    named = paths.get("name=systemd", "")
    return named if named not in ("", "/") else paths.get("", "")


def unit_of(cgroup: str) -> Unit | None:
    """Return the innermost unit in a control group's path, as systemd lays them out."""
    user = re.search(r"/user@(\d+)\.service/", cgroup)
    for part in reversed(cgroup.split("/")):
        if part.endswith((".service", ".scope")):
            return Unit(part, int(user[1]) if user else None)
    return None


async def supervision_of(guest: process.Process) -> Supervision:
    """Gather the evidence and judge it; takes `SYSTEMCTL_DEADLINE_S` at most, never raises."""
    cgroup = ""
    with contextlib.suppress(OSError):
        path = process.PROC / str(guest.pid) / "cgroup"
        cgroup = cgroup_of(path.read_text(errors="replace"))
    unit = unit_of(cgroup)
    if unit and unit.name.endswith(".service"):
        unit = await _ask_systemd(unit)
    return judge(
        Evidence(guest.pid, guest.executable, guest.argv, cgroup, _ancestors(guest.pid), unit)
    )


def _ancestors(pid: int) -> tuple[tuple[int, str], ...]:
    found: list[tuple[int, str]] = []
    with contextlib.suppress(HostError):
        while (pid := process.parent(pid)) > 0 and len(found) < ANCESTORS:
            found.append((pid, process.command(pid)))
    return tuple(found)


async def _ask_systemd(unit: Unit) -> Unit:
    if not await trio.to_thread.run_sync(Path("/run/systemd/system").is_dir):
        return unit
    whose = (
        [] if unit.user is None else ["--user", f"--machine={process.user_name(unit.user)}@.host"]
    )
    answer = ""
    with trio.move_on_after(SYSTEMCTL_DEADLINE_S), contextlib.suppress(OSError):
        done = await trio.run_process(
            ["systemctl", *whose, "show", "--property=Restart,MainPID", "--", unit.name],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        answer = done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    said = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    main = said.get("MainPID", "")
    return Unit(unit.name, unit.user, said.get("Restart"), int(main) if main.isdecimal() else 0)
