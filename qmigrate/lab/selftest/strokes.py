"""What is done to a lab from outside while an agent stands still: cables, power, room, locks."""

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qmigrate.core.errors import HostError
from qmigrate.lab.selftest.cells import Stroke
from qmigrate.lab.selftest.faulty import Faulty, Struck
from qmigrate.lab.selftest.site import HOSTS, command_line
from qmigrate.lab.syscalls import send_signal

SWITCH = "switch"
GUESTS_MEMORY_BYTES = 512 << 10  # less than a QEMU touches in its first step
LOCKED = (
    100,
    200,
)  # QEMU's lock bytes of an image begin here; as many as that (block/file-posix.c)
CUT_S = 1.0  # how long it is cut is what is tried
ROOM_BYTES = 4096  # the least that a tmpfs can be made smaller by
MEMORY_GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),  # version 1
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def strike(faulty: Faulty, stroke: Stroke, struck: Struck | None) -> Callable[[], None]:
    """Do it; return what mends what can be mended, to be called when the cell is decided.

    At the latest it is mended when the site closes. `struck` is None before a move began.
    """
    undo = contextlib.ExitStack()
    faulty.site.undo.callback(undo.close)
    source, destination = HOSTS
    match stroke:
        case Stroke.KILL_CONTROLLER:
            _of(struck).kill_controller()
        case Stroke.CUT_SSH_SOURCE:
            _cut_ssh(faulty, source)
        case Stroke.CUT_SSH_DESTINATION:
            _cut_ssh(faulty, destination)
        case Stroke.CUT_PATH | Stroke.CUT_PATH_1S:
            undo.enter_context(apart(faulty))
        case Stroke.CUT_CABLE:
            faulty.site.lab.cut(destination)
            undo.callback(faulty.site.lab.mend, destination)
        case Stroke.POWER_OFF_SOURCE:
            faulty.power_off(source)
            undo.callback(faulty.power_on, source)
        case Stroke.POWER_OFF_DESTINATION:
            faulty.power_off(destination)
            undo.callback(faulty.power_on, destination)
        case Stroke.FILL_SOURCE:
            undo.enter_context(_full(faulty, source))
        case Stroke.FILL_DESTINATION:
            undo.enter_context(_full(faulty, destination))
        case Stroke.SHORT_MEMORY:
            undo.enter_context(_short_of_memory(_launched(_of(struck), destination)))
        case Stroke.TAKE_LOCK:
            undo.enter_context(_locked(faulty.site.lab.images / DISK))
    return undo.close


DISK = "tiny1.img"


def after(stroke: Stroke | None, mend: Callable[[], None]) -> None:
    """Let what is cut for a while be whole again, once everybody goes on."""
    if stroke is Stroke.CUT_PATH_1S:
        time.sleep(CUT_S)  # noqa: TID251 - how long it is cut is what is tried
        mend()


def _of(struck: Struck | None) -> Struck:
    if struck is None:
        raise HostError("this is struck in a move only")
    return struck


def _cut_ssh(faulty: Faulty, host: str) -> None:
    """Kill the processes by which the host's sshd holds its connections."""
    found = False
    for pid in faulty.site.lab.pids(host):
        if command_line(pid).startswith(("sshd-session: ", "sshd: root@")):
            found = True
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
    if not found:
        raise HostError("there is no SSH connection to cut", host=host)


@contextlib.contextmanager
def apart(faulty: Faulty) -> Iterator[None]:
    """Let the hosts lose each other, both ways and without a word; the client sees both.

    The switch hands nothing from one isolated port to another (bridge(8), `isolated`).
    """

    def isolate(state: str) -> None:
        for host in HOSTS:
            words = ["bridge", "link", "set", "dev", f"port-{host}", "isolated", state]
            faulty.site.lab.run(SWITCH, words)

    isolate("on")
    try:
        yield
    finally:
        isolate("off")


@contextlib.contextmanager
def _full(faulty: Faulty, host: str) -> Iterator[None]:
    """Let the host's /run have no room at all: it is a tmpfs, and can be made as small as it is."""
    lab = faulty.site.lab

    def remount(size: str) -> None:
        lab.run(host, ["mount", "-o", f"remount,size={size}", "/run"])

    room = os.statvfs(faulty.site.path(host, "/run"))
    used_bytes = (room.f_blocks - room.f_bfree) * room.f_frsize
    remount(str(max(used_bytes, ROOM_BYTES)))
    try:
        yield
    finally:
        remount("50%")


def _launched(struck: Struck, host: str) -> int:
    """Return the pid of the twin, also before it has become QEMU."""
    try:
        return struck.qemu(host).pid
    except HostError:
        pids = [
            pid for pid in struck.faulty.site.lab.pids(host) if "/launch.py " in command_line(pid)
        ]
        if len(pids) != 1:
            raise HostError(f"no twin is being started: {pids}", host=host) from None
        return pids[0]


@contextlib.contextmanager
def _short_of_memory(pid: int) -> Iterator[None]:
    """Give a process next to no more memory: the kernel kills it, or it starts with nothing."""
    for root, limit in MEMORY_GROUPS:
        group = root / f"qmigrate-selftest-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            break
        group.rmdir()
    else:
        raise HostError("no control group for memory can be made on this machine")
    try:
        (group / limit).write_text(str(GUESTS_MEMORY_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        _dissolve(root, group)


def _dissolve(root: Path, group: Path) -> None:
    """Remove a group; what lives in it goes back to where all else is."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (root / "cgroup.procs").write_text(pid)
    group.rmdir()


@contextlib.contextmanager
def _locked(image: Path) -> Iterator[None]:
    """Hold the locks that a QEMU takes before it writes to an image, as another QEMU would."""
    descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        start, length = LOCKED
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(descriptor)
