"""A QEMU process read from /proc: who it is, whether it may be trusted to be a QEMU, what it holds.

A pid alone names nothing: everything here goes by pid *and* start time, and whoever acts later
opens a pidfd first and compares again (`open_pidfd`). What a process says of itself (argv[0], its
name) proves nothing either; `/proc/PID/exe` is the kernel's word, and `distrust` judges it.

Functions raise `HostError` when the process has ended or may not be read.
"""

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qmigrate.core.errors import HostError
from qmigrate.core.model import ProcessFacts

PROC = Path("/proc")
_QEMU = re.compile(r"\.?(qemu-system-[a-z0-9_]+|qemu-kvm|kvm)(-wrapped)?")  # NixOS wraps
_DELETED = " (deleted)"
_LISTENING, _CONNECTED = "01", "03"  # SS_UNCONNECTED with __SO_ACCEPTCON; SS_CONNECTED
_SYS_PIDFD_GETFD = 438  # on every architecture
_SIOCGSKNS = 0x894C  # linux/sockios.h: the network namespace of a socket, or of a tap
_ACCEPTS = 0x10000  # __SO_ACCEPTCON, include/linux/net.h

_LIMITS = {  # the words of /proc/PID/limits (fs/proc/base.c)
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process whose executable is named like a QEMU; nothing is proved by that."""

    pid: int
    start_ticks: int
    executable: str  # without the kernel's " (deleted)"
    deleted: bool  # replaced since its start, by an upgrade most likely
    argv: tuple[str, ...]
    contained: bool  # in another PID namespace: a container's guest


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A named unix socket that a process has open."""

    descriptor: int
    inode: int
    name: str  # as it was bound: a path, maybe relative, or "@" and an abstract name
    listening: bool  # False: a connection that was accepted on a socket of this name


@contextlib.contextmanager
def _of(pid: int) -> Iterator[Path]:
    """Yield the process's directory; turn the end of the process into a sentence."""
    try:
        yield PROC / str(pid)
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise HostError(f"process {pid} has ended") from exc
    except PermissionError as exc:
        raise HostError(f"process {pid} may not be looked at by uid {os.geteuid()}") from exc


def start_ticks(pid: int) -> int:
    """Return when the process started, in clock ticks since boot (proc_pid_stat(5), field 22)."""
    with _of(pid) as at:
        # The name in field 2 may hold anything, parentheses and spaces too.
        return int((at / "stat").read_bytes().rpartition(b")")[2].split()[19])


def parent(pid: int) -> int:
    """Return the parent's pid; 0 above the first process of the namespace."""
    with _of(pid) as at:
        return int((at / "stat").read_bytes().rpartition(b")")[2].split()[1])


def command(pid: int) -> str:
    """Return the process's name, which it can set itself: for messages only."""
    with _of(pid) as at:
        return os.fsdecode((at / "comm").read_bytes()).strip()


def open_pidfd(pid: int, started: int) -> int:
    """Return a pidfd of the process that started at `started` ticks; the caller closes it.

    Compared after the opening: the pid cannot be another's any more.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError as exc:
        raise HostError(f"process {pid} has ended") from exc
    try:
        if start_ticks(pid) != started:
            raise HostError(f"process {pid} has ended, and its number was given to another")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def find_qemus() -> tuple[Process, ...]:
    """Return the processes whose executable is named like a QEMU, by pid."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(HostError, OSError):
                if named_like_qemu(str((entry / "exe").readlink()).removesuffix(_DELETED)):
                    found.append(look(int(entry.name)))
    return tuple(sorted(found, key=lambda process: process.pid))


def named_like_qemu(executable: str) -> bool:
    """Tell whether a path's last part is the name of a system emulator."""
    return _QEMU.fullmatch(Path(executable).name) is not None


def look(pid: int) -> Process:
    """Return what the kernel says of a process, all of it of the same one."""
    with _of(pid) as at:
        started = start_ticks(pid)
        path = str((at / "exe").readlink())
        argv = os.fsdecode((at / "cmdline").read_bytes()).removesuffix("\0").split("\0")
        deleted = (at / "exe").stat().st_nlink == 0
        process = Process(
            pid=pid,
            start_ticks=started,
            executable=path.removesuffix(_DELETED) if deleted else path,
            deleted=deleted,
            argv=tuple(argv),
            contained=not _same_namespace(at, "pid"),
        )
    if start_ticks(pid) != started:
        raise HostError(f"process {pid} has ended, and its number was given to another")
    return process


def _same_namespace(at: Path, kind: str) -> bool:
    return (at / "ns" / kind).stat().st_ino == (PROC / "self" / "ns" / kind).stat().st_ino


def distrust(process: Process) -> str | None:
    """Return why the process cannot be taken for a QEMU of this host, None if it can.

    Anybody can run a program under the name of a QEMU: a copy, a hard link, a bind mount in a
    namespace of his own. Only root can put one where every directory above it is root's.
    """
    path = process.executable
    if not named_like_qemu(path):
        return f"its executable is {path}, which is no QEMU"
    if process.contained:
        return "it runs in a container (another PID namespace)"
    with _of(process.pid) as at:
        facts = (at / "exe").stat()
        if _others_may_write(facts):
            return f"its executable {path} can be changed by others than root"
        if process.deleted:
            if not _same_namespace(at, "mnt"):
                return f"its executable {path} was replaced, in a mount namespace that is not ours"
        elif not _is_same_file(path, facts):
            return f"its executable {path} is not the file of that name on this host"
    return distrust_place(path)


def distrust_place(path: str) -> str | None:
    """Return why root should not run what stands at `path`; None if only root can put it there."""
    with contextlib.suppress(OSError):  # what is not there is run by nobody
        if _others_may_write(Path(path).stat()):
            return f"its executable {path} can be changed by others than root"
    for above in Path(path).parents:
        try:
            if _others_may_write(above.stat()):
                return f"its executable stands in {above}, where others than root can write"
        except OSError as exc:
            return f"its executable stands in {above}: {exc.strerror}"
    return None


def _others_may_write(facts: os.stat_result) -> bool:
    group = facts.st_mode & 0o020 and facts.st_gid != 0
    return bool(facts.st_uid != 0 or group or facts.st_mode & 0o002)


def _is_same_file(path: str, facts: os.stat_result) -> bool:
    try:
        here = Path(path).stat()
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (facts.st_dev, facts.st_ino)


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    with _of(pid) as at:
        entries = tuple((at / "fd").iterdir())
    for entry in entries:
        with contextlib.suppress(OSError):
            yield int(entry.name), str(entry.readlink())


def unix_sockets(pid: int) -> tuple[UnixSocket, ...]:
    """Return the named unix sockets that the process has open, in its network namespace.

    A name with a newline can forge lines of /proc/net/unix: what is found here is a candidate,
    and SO_PEERCRED of a connection is the proof.
    """
    with _of(pid) as at:
        table = os.fsdecode((at / "net" / "unix").read_bytes())
    named: dict[int, tuple[str, bool]] = {}
    for row in table.split("\n")[1:]:
        fields = row.split(None, 7)
        if len(fields) == 8 and fields[6].isdecimal():
            accepts = int(fields[3], 16) & _ACCEPTS != 0 and fields[5] == _LISTENING
            if accepts or fields[5] == _CONNECTED:
                named[int(fields[6])] = fields[7], accepts
    found = []
    for descriptor, target in _descriptors(pid):
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            inode = int(match[1])
            if inode in named:
                found.append(UnixSocket(descriptor, inode, *named[inode]))
    return tuple(sorted(found, key=lambda socket: socket.descriptor))


def taps(pid: int) -> tuple[tuple[int, str], ...]:
    """Return the process's descriptors of tun and tap devices, each with its interface.

    Of this network namespace only: in one of his own anybody can make a tap of any name.
    """
    found = []
    for descriptor, target in _descriptors(pid):
        if (
            target == "/dev/net/tun"
            and (interface := _fdinfo(pid, descriptor, "iff"))
            and _is_of_our_network(pid, descriptor)
        ):
            found.append((descriptor, interface))
    return tuple(sorted(found))


def _is_of_our_network(pid: int, descriptor: int) -> bool:
    """Ask a tap itself where it is; a kernel without pidfd_getfd (before 5.6) is not asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        tap = libc.syscall(_SYS_PIDFD_GETFD, pidfd, descriptor, 0)
    finally:
        os.close(pidfd)
    if tap < 0:
        return ctypes.get_errno() == errno.ENOSYS
    try:
        network = fcntl.ioctl(tap, _SIOCGSKNS)
    except OSError:
        return False
    finally:
        os.close(tap)
    try:
        theirs, ours = os.fstat(network), (PROC / "self" / "ns" / "net").stat()
    finally:
        os.close(network)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _fdinfo(pid: int, descriptor: int, key: str) -> str | None:
    try:
        text = (PROC / str(pid) / "fdinfo" / str(descriptor)).read_text(errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s*(\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def targets(pid: int) -> tuple[str, ...]:
    """Return what the process's descriptors are, as the kernel names it: paths, mostly."""
    return tuple(target for _, target in _descriptors(pid))


def working_directory(pid: int) -> str:
    """Return where the process works now."""
    with _of(pid) as at:
        return str((at / "cwd").readlink())


def descriptor_target(pid: int, descriptor: int) -> str | None:
    """Return what a descriptor is: a path, "tap:NAME", "unix:NAME"; None if it is closed."""
    target = dict(_descriptors(pid)).get(descriptor)
    if target == "/dev/net/tun":
        return f"tap:{_fdinfo(pid, descriptor, 'iff')}"
    for socket in unix_sockets(pid) if target else ():
        if socket.descriptor == descriptor:
            return f"unix:{socket.name}"
    return target


def runs_under_kvm(pid: int) -> bool:
    """Tell whether the process has a KVM machine open; it may have fallen back to TCG."""
    return any(target == "anon_inode:kvm-vm" for _, target in _descriptors(pid))


def process_facts(pid: int) -> ProcessFacts:
    """Return how the process runs, users and groups by name; blocks while NSS looks them up.

    An id without a name is given as its number.
    """
    with _of(pid) as at:
        status = dict(
            line.split(":", 1)
            for line in (at / "status").read_text(errors="replace").splitlines()
            if ":" in line
        )
        limits = (at / "limits").read_text().splitlines()
        adjusted = int((at / "oom_score_adj").read_text())
    return ProcessFacts(
        user=user_name(int(status["Uid"].split()[1])),
        group=group_name(int(status["Gid"].split()[1])),
        groups=tuple(sorted(group_name(int(gid)) for gid in status["Groups"].split())),
        cwd=working_directory(pid),
        umask=int(status["Umask"], 8),
        limits=tuple(filter(None, map(_limit, limits))),
        oom_score_adj=adjusted,
    )


def _limit(line: str) -> tuple[str, int, int] | None:
    name = _LIMITS.get(line[:25].strip())
    if name is None:
        return None
    soft, hard = (-1 if word == "unlimited" else int(word) for word in line[25:].split()[:2])
    return name, soft, hard


def user_name(uid: int) -> str:
    """Return the user's name, or the number as text."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the group's name, or the number as text."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
