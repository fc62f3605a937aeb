"""From a QEMU process to its open monitor, with proof on the way that it is that process's own.

::

    command line      which QMP monitors it asks for, and by what name
    /proc             the process holds a listening socket of that name         (a candidate)
    connect           nothing is written yet
    SO_PEERCRED       the process that listens there is this very pid           (the proof)
    open_monitor      greeting, capabilities

A stranger's socket gets a connect and a close, not one byte.
"""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import trio

from qmigrate.agent import process
from qmigrate.agent.process import Process
from qmigrate.core.argv import CommandLine
from qmigrate.core.errors import (
    HostError,
    MonitorBusyError,
    MonitorError,
    MonitorUnreachableError,
)
from qmigrate.core.guestline import MonitorLine, Reach, monitors_of, name_of
from qmigrate.qmp.client import Monitor, QmpThread, open_monitor
from qmigrate.qmp.peer import dial, find_holder, peer_pid

GREETING_DEADLINE_S = 2.0  # a free monitor greets in milliseconds; less than a guest gets in all
_PATH_BYTES = 107  # sockaddr_un.sun_path without its final zero


@dataclass(frozen=True, slots=True)
class Candidate:
    """A listening socket that the process holds and that its command line calls a QMP monitor."""

    name: str  # as it was bound: a path, maybe relative, or "@" and an abstract name
    held: bool  # somebody is connected


@dataclass(frozen=True, slots=True)
class Opened:
    """A monitor that answers, and the address by which `dial` reaches it from here."""

    path: str
    monitor: Monitor


def how_to_give_one(line: CommandLine) -> str:
    """Return the sentence that says how the guest gets a monitor of its own for qmigrate."""
    name = (name_of(line) or "guest").replace("/", "-").replace(",", "-")
    taken = {monitor.address for monitor in monitors_of(line)}
    paths = (f"/run/{name}{number or ''}.qmp" for number in ("", *range(2, len(taken) + 3)))
    path = next(path for path in paths if path not in taken)
    return (
        f"start it with one more option: -qmp unix:{path},server=on,wait=off "
        "(QEMU before 11.1 cannot be given a monitor while it runs)"
    )


def find_candidates(guest: Process, line: CommandLine) -> tuple[Candidate, ...]:
    """Return the QMP monitors that may be tried, free ones first.

    Raises `MonitorUnreachableError` that says why there is none and how to give it one.
    """
    asked = monitors_of(line)
    control = [monitor for monitor in asked if monitor.control]
    sockets = process.unix_sockets(guest.pid)
    listening = {s.descriptor: s.name for s in sockets if s.listening}
    held = {s.name for s in sockets if not s.listening}
    names = []
    for monitor in filter(_usable, control):
        name = _bound_name(monitor, listening)
        if name in listening.values():
            names.append(name)
    if not names:
        raise MonitorUnreachableError(
            _why_none(guest.pid, asked, control), next_step=how_to_give_one(line)
        )
    found = (Candidate(name, name in held) for name in dict.fromkeys(names))
    return tuple(sorted(found, key=lambda candidate: candidate.held))


def _bound_name(monitor: MonitorLine, listening: dict[int, str]) -> str:
    if monitor.reach is Reach.FD and monitor.address.isdecimal():
        return listening.get(int(monitor.address), "")
    if monitor.reach is Reach.ABSTRACT:
        return "@" + monitor.address
    return monitor.address if monitor.reach is Reach.UNIX and monitor.server else ""


def _usable(monitor: MonitorLine) -> bool:
    return monitor.control and not monitor.pretty  # qemu.qmp reads a line a message


def _why_none(pid: int, asked: tuple[MonitorLine, ...], control: list[MonitorLine]) -> str:
    if not asked:
        return "it has no monitor"
    if not control:
        return f"its only monitor is for humans (HMP, on {_where(asked[0])})"
    first = control[0]
    if not first.server:
        return (
            f"its QMP monitor connects to {_where(first)} itself: it serves whoever listens there"
        )
    if first.pretty:
        return f"its QMP monitor on {_where(first)} is pretty-printed, for people to read"
    if first.reach in (Reach.TCP, Reach.OTHER):
        return (
            f"its QMP monitor is on {_where(first)}, where nothing proves that it is process {pid}"
        )
    return f"process {pid} does not listen on {_where(first)}, which its command line names"


def _where(monitor: MonitorLine) -> str:
    if monitor.reach is Reach.OTHER:
        return monitor.address or "nothing"
    return f"{monitor.reach} {monitor.address}"


def connect(guest: Process, candidate: Candidate) -> tuple[str, socket.socket]:
    """Return the socket's address here and a connection to it, proved to be `guest`'s own.

    Raises `MonitorUnreachableError`; one at which another process listens is named with its pid.
    """
    problem: MonitorError | None = None
    for path in _addresses(guest.pid, candidate.name):
        try:
            sock = dial(path, name=_called(guest))
        except MonitorUnreachableError as exc:
            problem = problem or MonitorUnreachableError(
                f"nothing answers at {path}, where process {guest.pid} listens",
                last_words=exc.problem.last_words,
                next_step=exc.problem.next_step,
            )
            continue
        other = peer_pid(sock)
        if other == guest.pid:
            return path, sock
        sock.close()
        problem = MonitorUnreachableError(
            f"at {path} listens process {other or 'of another namespace'}, not {guest.pid}",
            next_step="give each QEMU a monitor path of its own",
        )
    raise problem or MonitorUnreachableError(f"no way leads to the socket {candidate.name}")


def _called(guest: Process) -> str:
    return f"process {guest.pid}"


def _addresses(pid: int, name: str) -> Iterator[str]:
    """Yield the addresses by which a bound name may be reached from here, likeliest first.

    A QEMU that was told to chroot did so after it had bound its sockets, so both roots count.
    """
    here = process.PROC / str(pid)
    if name.startswith("@"):
        yield "\0" + name[1:]
    elif not name.startswith("/"):
        with contextlib.suppress(OSError):
            joined = str((here / "cwd").readlink() / name)
            if len(os.fsencode(joined)) <= _PATH_BYTES:
                yield joined
        yield f"{here}/cwd/{name}"
    else:
        with contextlib.suppress(OSError):
            root, ours = (here / "root").stat(), (process.PROC / "self" / "root").stat()
            if (root.st_dev, root.st_ino) != (ours.st_dev, ours.st_ino):
                yield f"{here}/root{name}"
        yield name


@contextlib.asynccontextmanager
async def open_guest(thread: QmpThread, guest: Process, line: CommandLine) -> AsyncIterator[Opened]:
    """Open the first monitor of `guest` that answers and hold it.

    Raises `MonitorError`, of the last one tried, with what to do about it; `HostError` when the
    process has ended. The executable, the start time and the listening pid have been checked, in
    that order, before a byte is written.
    """
    if why := await trio.to_thread.run_sync(process.distrust, guest):
        raise MonitorUnreachableError(f"{why}; it is not talked to")
    candidates = await trio.to_thread.run_sync(find_candidates, guest, line)
    async with contextlib.AsyncExitStack() as stack:
        # Held while we connect, so that the pid cannot become another's in between.
        pidfd = process.open_pidfd(guest.pid, guest.start_ticks)
        stack.callback(os.close, pidfd)
        problem: HostError | None = None
        for candidate in candidates:
            try:
                opened = await _open(stack, thread, guest, candidate, how_to_give_one(line))
                break
            except MonitorError as exc:
                problem = exc
        else:
            assert problem is not None  # noqa: S101 - there is a candidate at least
            raise problem
        yield opened


async def _open(
    stack: contextlib.AsyncExitStack,
    thread: QmpThread,
    guest: Process,
    candidate: Candidate,
    fix: str,
) -> Opened:
    path, sock = connect(guest, candidate)
    if candidate.held:
        try:
            holder = await trio.to_thread.run_sync(find_holder, sock)
        except BaseException:
            sock.close()
            raise
        if holder:
            sock.close()
            raise MonitorBusyError(
                f"its monitor {path} serves process {holder.pid} ({holder.command})",
                next_step=f"let that client go, or {fix}",
            )
    monitor = await stack.enter_async_context(
        open_monitor(
            thread, path, name=_called(guest), sock=sock, greeting_deadline_s=GREETING_DEADLINE_S
        )
    )
    return Opened(path, monitor)
