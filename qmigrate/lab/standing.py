"""How a lab comes to stand and how it falls: starting the warden, ending all that is left.

Whoever calls `make`, `power_on` or `clear` holds the lab's lock (`state.changing`).
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.lab import hosts, syscalls, warden
from qmigrate.lab.state import (
    RUN,
    SYSTEM_PATH,
    Places,
    is_member,
    members,
    remove_contents,
    write_topology,
)
from qmigrate.lab.topology import Topology

UP_DEADLINE_S: Final = 60.0  # takes 0.15 s; each step within has a deadline of its own
POWER_ON_DEADLINE_S: Final = 60.0  # as `UP_DEADLINE_S`
END_DEADLINE_S: Final = 10.0  # for what was killed to be dead; takes 10 ms
BURIAL_DEADLINE_S: Final = 3.0  # for others to reap theirs; a lazy process 1 takes 2 s

_wardens: dict[str, int] = {}  # those that are children of this process: lab, pid


def need_machine() -> None:
    """Raise `HostError` unless we are root on the machine itself, outside every lab."""
    if os.geteuid() != 0:
        raise HostError(
            "only root can make and enter a lab's namespaces",
            next_step="run it as root, as in: sudo qmigrate lab up",
        )
    if f" {RUN}/" in Path("/proc/self/mountinfo").read_text():  # there its pids are not ours
        raise HostError("this is a host of a lab", next_step="run it on the machine itself")


def is_ready(places: Places) -> bool:
    """Tell whether the warden's door is open: then the lab is whole."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(places.warden_socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def power_on(places: Places, name: str) -> None:
    """Have the warden start the node `name` unless it has power; raises `HostError`."""
    if syscalls.holder(places.init_lock(name)) is not None:
        return
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(POWER_ON_DEADLINE_S)
        try:
            door.connect(str(places.warden_socket))
            door.sendall(json.dumps({"power_on": name}).encode() + b"\n")
            answer = _line(door)
        except OSError as exc:
            raise HostError(f"the lab's warden does not answer: {exc}", host=name) from exc
    _judge(places, answer)


def make(places: Places, topology: Topology) -> None:
    """Start the warden and wait until it says that the lab stands; we hold the lab's lock."""
    write_topology(places, topology)
    with contextlib.ExitStack() as open_here:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        alive = os.open(places.warden_lock, flags, 0o600)
        open_here.callback(os.close, alive)
        # The warden inherits this lock in its first instant: `_end_processes` can wait for it
        # even if it has not come to say who it is.
        syscalls.flock(alive, END_DEADLINE_S, f"lab {places.name}: an older warden has lived on")
        ours, theirs = socket.socketpair()
        open_here.enter_context(ours)
        with theirs:
            _start_warden(places, alive, theirs.fileno())
        ours.settimeout(UP_DEADLINE_S)
        try:
            answer = _line(ours)
        except TimeoutError as exc:
            raise HostError(f"lab {places.name} took over {UP_DEADLINE_S:g} s to make") from exc
    _judge(places, answer)


def _start_warden(places: Places, alive: int, door: int) -> None:
    home = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {home!r}); from qmigrate.lab.warden import main; "
    code += f"main({places.name!r}, {alive}, {door})"
    log = str(places.warden_log)
    for descriptor in (alive, door):
        os.set_inheritable(descriptor, True)
    _wardens[places.name] = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-c", code],
        {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "QMIGRATE_LAB": places.name},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _judge(places: Places, answer: bytes) -> None:
    """Raise what the warden reports, or its log if it died without a word."""
    if answer:
        if problem := warden.problem_in(answer):
            raise QmigrateError.of(problem)
        return
    log = places.warden_log.read_text().strip()
    raise HostError(f"the warden of lab {places.name} died", last_words=log[-2000:] or None)


def clear(places: Places) -> None:
    """End all that lives of the lab and remove its files but for its directory."""
    _end_processes(places)
    remove_contents(places)


def _end_processes(places: Places) -> None:
    """End the warden and with it every node; return when all are dead. We hold the lock."""
    _end_warden(places)
    _kill_members(places)  # a warden that was killed leaves them dying, or one day alive
    lock = places.warden_lock
    if lock.exists():
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            # One that was being born when its `up` was killed sees that and ends by itself.
            what = f"lab {places.name}: its warden does not end"
            syscalls.flock(descriptor, END_DEADLINE_S, what)
        finally:
            os.close(descriptor)
    if places.name in _wardens:
        with contextlib.suppress(ChildProcessError):  # somebody here waits for every child
            os.waitpid(_wardens.pop(places.name), 0)  # its files are closed: it is about to end
    _kill_members(places)  # what the last one's fork had not finished


def _kill_members(places: Places) -> None:
    """End whatever runs in the lab's nodes, whoever put it there; raises `HostError`."""
    with contextlib.ExitStack() as open_here:
        killed = {}
        for pid in members(places):
            with contextlib.suppress(ProcessLookupError):
                killed[pid] = open_here.enter_context(_pidfd(pid))
                if is_member(places, pid):  # else the number is another's already
                    syscalls.send_signal(killed[pid], signal.SIGKILL)
        hosts.reap(places.name, END_DEADLINE_S)
        for pid, pidfd in killed.items():
            # An init that waits for others to bury their dead is no member any more.
            if not syscalls.wait_for_end(pidfd, BURIAL_DEADLINE_S) and is_member(places, pid):
                raise HostError(f"lab {places.name}: process {pid} does not end")


def _end_warden(places: Places) -> None:
    pidfd = syscalls.open_holder(places.warden_lock)
    if pidfd is None:
        return
    try:
        syscalls.send_signal(pidfd, signal.SIGTERM)
        hosts.reap(places.name, END_DEADLINE_S)
        if not syscalls.wait_for_end(pidfd, BURIAL_DEADLINE_S):
            # It waits for a node whose dead another program does not bury, or it is stuck.
            syscalls.send_signal(pidfd, signal.SIGKILL)
            syscalls.wait_for_end(pidfd, END_DEADLINE_S)
    finally:
        os.close(pidfd)


def _line(door: socket.socket) -> bytes:
    """Read up to the newline, or to the end: empty if the other side died first."""
    received = b""
    while not received.endswith(b"\n") and (chunk := door.recv(warden.REQUEST_MAX)):
        received += chunk
    return received


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
