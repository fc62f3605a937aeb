"""Inside a node: starting processes there, and what is to be seen of it from outside.

A process is put into a node by a thread that enters the node's namespaces and forks: it is born in
the node's PID namespace, so it dies with the node's power, and it is an ordinary child of ours.
That has one trap. A dying PID namespace waits until each of its processes has been reaped, also
those whose parent is outside: `reap` does that for the children of this very process.
"""

import contextlib
import json
import os
import subprocess
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from qmigrate.core.errors import HostError
from qmigrate.lab import syscalls

NODE_NAMESPACES: Final = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID
)
WATCHED: Final = ("/run/qmigrate", "/var/cache/qmigrate")  # what qmigrate may leave on a host
_TCP_LISTEN: Final = "0A"  # /proc/net/tcp `st`
_UNIX_LISTENING: Final = 0x10000  # /proc/net/unix `Flags`: SO_ACCEPTCON

_children: dict[tuple[str, str], weakref.WeakSet[subprocess.Popen[Any]]] = {}


def spawn(
    init_pidfd: int, lab_and_host: tuple[str, str], argv: Sequence[str], **options: Any
) -> subprocess.Popen[Any]:
    """Start `argv` in the node whose init is `init_pidfd`; `options` are those of `Popen`.

    Raises `HostError` if the node has no such command or has just lost its power.
    """

    def start() -> subprocess.Popen[Any]:
        syscalls.unshare(syscalls.CLONE_FS)  # a thread shares its root and cwd, which setns forbids
        syscalls.setns(init_pidfd, NODE_NAMESPACES)
        return subprocess.Popen(list(argv), **options)

    host = lab_and_host[1]
    try:
        process = syscalls.in_thread(start)
    except FileNotFoundError as exc:
        raise HostError(f"no such command or directory: {exc.filename}", host=host) from exc
    except OSError as exc:  # the namespaces of a dying init cannot be entered
        raise HostError(f"cannot start {argv[0]}: {exc.strerror}", host=host) from exc
    _children.setdefault(lab_and_host, weakref.WeakSet()).add(process)
    return process


def reap(lab: str, deadline_s: float, *, host: str | None = None) -> None:
    """Reap those of our children that ran in `host`, or anywhere in `lab`: just killed."""
    for place, processes in list(_children.items()):
        if place[0] != lab or host not in (None, place[1]):
            continue
        for process in list(processes):
            if process.poll() is not None:
                continue
            try:
                pidfd = os.pidfd_open(process.pid)
            except ProcessLookupError:  # another thread has just reaped it
                continue
            syscalls.wait_for_end(pidfd, deadline_s)
            os.close(pidfd)
            process.poll()


def pids_in(init: int) -> list[int]:
    """List the live processes in the PID namespace of `init`, itself included, by our numbers."""
    try:
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
    except OSError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if Path(entry.path, "ns/pid").readlink() == namespace and not is_zombie(entry.path):
                found.append(int(entry.name))
        except OSError:  # ended meanwhile
            continue
    return sorted(found)


def open_members(init: int) -> dict[int, int]:
    """Return a pidfd for each live process in the PID namespace of `init` but itself, by pid."""
    found = {}
    for pid in pids_in(init):
        if pid != init:
            with contextlib.suppress(ProcessLookupError):
                found[pid] = os.pidfd_open(pid)
    return found


def is_zombie(process: str) -> bool:
    """Tell whether the process at this /proc directory is dead and only waits for its parent."""
    stat = Path(process, "stat").read_text()
    return stat[stat.rindex(")") + 2] in "ZX"


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """What is on a host, to be compared with what was: see `added_since`."""

    processes: tuple[str, ...]  # command lines
    links: tuple[str, ...]  # "tap0 tun master br0"
    mounts: tuple[str, ...]  # "/run tmpfs"
    files: tuple[str, ...]  # below `WATCHED`
    listening: tuple[str, ...]  # "tcp 22", "unix /run/x.sock"

    def added_since(self, before: "HostSnapshot") -> tuple[str, ...]:
        """Return what is here and was not in `before`, each as ``kind: thing``."""
        return _difference(before, self)

    def gone_since(self, before: "HostSnapshot") -> tuple[str, ...]:
        """Return what was in `before` and is not here, each as ``kind: thing``."""
        return _difference(self, before)


def _difference(less: HostSnapshot, more: HostSnapshot) -> tuple[str, ...]:
    found = []
    for field in fields(HostSnapshot):
        had = list(getattr(less, field.name))
        for thing in getattr(more, field.name):
            if thing in had:
                had.remove(thing)  # two of a kind are not one
            else:
                found.append(f"{field.name}: {thing}")
    return tuple(found)


def snapshot(init: int, links_json: str) -> HostSnapshot:
    """Look at the node of `init` through /proc; `links_json` is its ``ip -j -d link show``."""
    root = Path(f"/proc/{init}/root")
    return HostSnapshot(
        processes=tuple(sorted(filter(None, map(_command_line, pids_in(init))))),
        links=tuple(sorted(map(_link, json.loads(links_json)))),
        mounts=tuple(sorted(_mounts(Path(f"/proc/{init}/mountinfo").read_text()))),
        files=tuple(sorted(f for top in WATCHED for f in _files(root, top))),
        listening=tuple(sorted(_listening(Path(f"/proc/{init}/net")))),
    )


def listens(init: int, port: int) -> bool:
    """Tell whether something in the node of `init` listens on TCP `port`."""
    return not {f"tcp {port}", f"tcp6 {port}"}.isdisjoint(_listening(Path(f"/proc/{init}/net")))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _link(link: Mapping[str, Any]) -> str:
    words = [link["ifname"], link.get("linkinfo", {}).get("info_kind", link["link_type"])]
    if master := link.get("master"):
        words += ["master", master]
    return " ".join(words)


def _mounts(mountinfo: str) -> Iterable[str]:
    """Yield ``mount point, type`` (proc(5) mountinfo: field 5, and the first after ``-``).

    Namespaces that others keep in this machine's /run/netns are no host's own: one that gets its
    power back has whichever there are then.
    """
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if not (kind == "nsfs" and point.startswith("/run/netns/")):
            yield f"{point} {kind}"


def _files(root: Path, top: str) -> Iterable[str]:
    for directory, subdirectories, names in os.walk(root / top.lstrip("/")):
        for name in (*subdirectories, *names):
            yield "/" + str(Path(directory, name).relative_to(root))


def _listening(net: Path) -> Iterable[str]:
    for kind in ("tcp", "tcp6"):
        for line in (net / kind).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _TCP_LISTEN:
                yield f"{kind} {int(local.rpartition(':')[2], 16)}"
    for line in (net / "unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if int(words[3], 16) & _UNIX_LISTENING and len(words) == 8:
            yield f"unix {words[7]}"
