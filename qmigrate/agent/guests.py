"""Finds the guests of a host and joins what /proc, the command line and QMP say of each."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qmigrate.agent import host, journal, locks, process
from qmigrate.agent.process import Process
from qmigrate.core import guestline
from qmigrate.core.argv import CommandLine
from qmigrate.core.errors import BlockedError, HostError, UsageError
from qmigrate.core.handover import OVER, Record
from qmigrate.core.job import RUN_DIRECTORY
from qmigrate.core.model import Disk, Guest, Nic, Side
from qmigrate.core.redact import redact
from qmigrate.core.tiny import probe_argv
from qmigrate.qmp.introspect import GuestFacts
from qmigrate.qmp.migration import Qemu

CONFIG_BYTES = 1 << 20  # of a -readconfig file: more than any guest's
_ASKS_ONLY = frozenset(("help", "h", "version"))


def find_guests() -> tuple[Process, ...]:
    """Return the QEMUs of this host, by pid; those that only answer a question are left out."""
    return tuple(seen for seen in process.find_qemus() if not _passes(seen))


def _passes(seen: Process) -> bool:
    line = CommandLine.parse(seen.argv)
    if any(o.flag in _ASKS_ONLY or o.value in ("help", "?") for o in line.options):
        return True
    kernel, accel = line.last("kernel"), line.last("accel")
    if not kernel or not accel:
        return False
    # Ours, or another agent's, that tries whether KVM works.
    return seen.argv[1:] == probe_argv("", kernel.value or "", accel.value or "")[1:]


def find_guest(wanted: str) -> Process:
    """Return the one guest of that name, UUID, pid or monitor path.

    Raises `UsageError` if there is none or more than one: with their pids, as only they differ.
    """
    named = [seen for seen in find_guests() if wanted in _names(seen)]
    proved = [seen for seen in named if process.distrust(seen) is None]
    if len(proved) == 1:
        return proved[0]
    if proved:
        pids = " and ".join(str(seen.pid) for seen in proved)
        raise UsageError(
            f"more than one guest is called {wanted}: the processes {pids}",
            next_step=f"say which by its pid: {proved[0].pid}",
        )
    if named:
        why = process.distrust(named[0])
        raise UsageError(f"process {named[0].pid} calls itself {wanted}, but {why}")
    raise UsageError(f"there is no guest {wanted} on this host{_what_else(wanted)}")


def _names(seen: Process) -> set[str | None]:
    line = read_line(seen)
    uuid = guestline.uuid_of(line)
    paths = {monitor.address for monitor in guestline.monitors_of(line)}
    return {str(seen.pid), guestline.name_of(line), uuid, uuid and uuid.upper(), *paths} - {None}


def _what_else(wanted: str) -> str:
    if wanted.isdecimal():
        with contextlib.suppress(HostError):
            return f": process {wanted} runs {process.look(int(wanted)).executable}"
    return ""


def read_line(seen: Process) -> CommandLine:
    """Return the guest's command line, its -readconfig files put in where they can be read."""
    line = CommandLine.parse(seen.argv)
    texts = {}
    for name in guestline.config_files(line):
        with contextlib.suppress(OSError):
            texts[name] = _read_config(seen.pid, name)
    try:
        return guestline.expand(line, texts)
    except BlockedError:
        return line  # preflight refuses it; a list still shows what else there is


def _read_config(pid: int, name: str) -> str:
    """Read a file as the process sees its name: a regular one only, and never waiting.

    Anybody can start a process of this name with these words, so the file is looked at before it
    is opened: to open /dev/watchdog as root is to reboot the host in a minute, a tape rewinds.
    """
    here = process.PROC / str(pid)
    if inherited := re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name):
        path = f"{here}/fd/{inherited[1]}"
    else:
        path = f"{here}/root{name}" if name.startswith("/") else f"{here}/cwd/{name}"
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise OSError(f"{name} is no regular file")
        own = f"/proc/self/fd/{seen}"
        descriptor = os.open(own, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(seen)
    with os.fdopen(descriptor, errors="replace") as file:
        return file.read(CONFIG_BYTES)


def from_command_line(seen: Process, line: CommandLine) -> Guest:
    """Return what is known of a guest without a word to it."""
    kvm = process.runs_under_kvm(seen.pid)
    return Guest(
        pid=seen.pid,
        start_ticks=seen.start_ticks,
        executable=seen.executable,
        argv=redact(seen.argv),
        name=guestline.name_of(line),
        uuid=guestline.uuid_of(line),
        state=None,
        memory_bytes=guestline.memory_bytes_of(line),
        vcpus=guestline.vcpus_of(line),
        qemu_version=None,
        accelerator="kvm" if kvm else guestline.accelerator_of(line),
        machine=guestline.machine_of(line),
        disks=tuple(map(_Paths(seen.pid).absolute, guestline.disks_of(line))),
        nics=place_nics(guestline.nics_of(line), seen.pid, _tap_descriptors(line)),
        monitor=None,
        monitor_problem=None,
        monitor_fix=None,
        job=job_of(seen),
    )


def with_answers(guest: Guest, seen: Process, told: GuestFacts, *, monitor: str) -> Guest:
    """Return the guest with what QEMU said in the place of what its command line let expect."""
    return replace(
        guest,
        name=told.name or guest.name,
        uuid=told.uuid or guest.uuid,
        state=told.state,
        memory_bytes=told.memory_bytes,
        vcpus=told.vcpus,
        qemu_version=told.qemu_version,
        accelerator=told.accelerator or guest.accelerator,
        machine=told.machine,
        disks=tuple(map(_Paths(seen.pid).absolute, told.disks)),
        nics=place_nics(told.nics, seen.pid, dict(told.tap_fds)),
        monitor=monitor,
    )


class _Paths:
    """Makes absolute what QEMU was given relative: it may have left that directory (-daemonize)."""

    def __init__(self, pid: int) -> None:
        self._open = {target for target in process.targets(pid) if target.startswith("/")}
        self._cwd = process.working_directory(pid)

    def absolute(self, disk: Disk) -> Disk:
        return replace(
            disk,
            path=disk.path and self._find(disk.path),
            backing=tuple(map(self._find, disk.backing)),
        )

    def _find(self, path: str) -> str:
        if path.startswith("/") or re.match(r"[a-z0-9+]+:", path):
            return path
        tail = "/" + path.removeprefix("./")
        files = [target for target in self._open if target.endswith(tail)]
        return files[0] if len(files) == 1 else f"{self._cwd.rstrip('/')}{tail}"


def _tap_descriptors(line: CommandLine) -> dict[str, int]:
    """Return the first descriptor of each -netdev that got its taps that way."""
    found = {}
    for opts in map(guestline.opts_of, line.every("netdev")):
        number = (opts.get("fd") or opts.get("fds") or "").split(":")[0]
        if number.isdecimal():
            found[opts.get("id") or ""] = int(number)
    return found


def place_nics(nics: tuple[Nic, ...], pid: int, given: Mapping[str, int]) -> tuple[Nic, ...]:
    """Fill in each card's tap, by its descriptor in `given` (netdev → number), and its bridge.

    What the guest's user says of either counts only as far as the kernel bears it out: the twin
    gets a tap in that bridge from root.
    """
    taps = dict(process.taps(pid))
    bridges = {host.bridge_of(tap) for tap in taps.values()}

    def place(nic: Nic) -> Nic:
        tap = nic.tap if nic.tap in taps.values() else taps.get(given.get(nic.netdev or "", -1))
        if tap is None and nic.backend in ("tap", "bridge") and len(taps) == len(nics) == 1:
            tap = next(iter(taps.values()))  # QEMU, or its helper, chose the name
        said = nic.bridge if nic.bridge in bridges else None
        return replace(nic, tap=tap, bridge=(host.bridge_of(tap) if tap else None) or said)

    return tuple(map(place, nics))


def job_of(seen: Process) -> str | None:
    """Return the qmigrate job on this host that the process is part of and that has not ended.

    A job whose agents have died for good counts as long as the guest may have left by it: one that
    never got past `prepared` has done nothing, and must not keep the guest here for ever.
    """
    for path in sorted(Path(RUN_DIRECTORY, "jobs").glob("*/journal")):
        with contextlib.suppress(OSError):
            entry = journal.read(path)
            same = entry and (entry.pid, entry.start_ticks) == (seen.pid, seen.start_ticks)
            if not entry or not same or entry.record in OVER:
                continue
            key = locks.source_key(seen.pid, seen.start_ticks)
            dead = entry.side == Side.SOURCE and not locks.is_held(key)
            if not (dead and entry.record is Record.PREPARED):
                return entry.job
    return None


async def ask_hotplugged(qemu: Qemu, line: CommandLine) -> tuple[str, ...]:
    """Return the ids of devices that were plugged or pulled since the start."""
    named = await _children(qemu, "/machine/peripheral")
    anonymous = await _children(qemu, "/machine/peripheral-anon")
    return guestline.changed_devices(line, named=named, anonymous=anonymous)


async def _children(qemu: Qemu, path: str) -> frozenset[str]:
    rows = await qemu.monitor.execute("qom-list", {"path": path})
    return frozenset(row["name"] for row in rows if str(row["type"]).startswith("child<"))
