"""One QEMU under watch: its process by pidfd, its monitor for as long as the process lives.

A monitor that closes while the process lives is opened again, and what was missed meanwhile is
asked for; only the pidfd says that QEMU has gone.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

import trio

from qmigrate.agent.twin import has_ended, pid_of, wait_end
from qmigrate.core.errors import (
    MonitorError,
    MonitorLostError,
    MonitorSilentError,
    MonitorUnreachableError,
)
from qmigrate.core.model import RunState
from qmigrate.core.takeover import Look
from qmigrate.core.tuning import Options, Party, Tuning, restore, tune
from qmigrate.qmp.client import QmpThread, open_monitor
from qmigrate.qmp.events import Event, MigrationEvent, MigrationStatus
from qmigrate.qmp.migration import Qemu
from qmigrate.qmp.peer import dial, peer_pid

REOPEN_PAUSE_S = 0.5  # before a monitor that closed is opened again
REOPEN_DEADLINE_S = 5.0  # for its greeting

_MIGRATING = {
    MigrationStatus.SETUP,
    MigrationStatus.ACTIVE,
    MigrationStatus.PRE_SWITCHOVER,
    MigrationStatus.WAIT_UNPLUG,
}
_RUNS_ON = {MigrationStatus.NONE, MigrationStatus.FAILED, MigrationStatus.CANCELLED}


@dataclass(frozen=True, slots=True)
class Looked:
    """What QEMU said when it was asked."""

    look: Look
    state: RunState
    status: MigrationStatus
    error: str | None = None

    @property
    def completed(self) -> bool:
        """Whether its migration, out or in, is complete."""
        return self.status is MigrationStatus.COMPLETED

    @classmethod
    def gone(cls) -> Self:
        """Return what is seen of a process that has ended."""
        return cls(Look.GONE, RunState.UNKNOWN, MigrationStatus.UNKNOWN)


class Watched:
    """A QEMU and its monitor; `follow` must run for anything else to work."""

    def __init__(
        self,
        thread: QmpThread,
        pidfd: int,
        monitor: str,
        name: str,
        on_event: Callable[[Event], Awaitable[None]],
    ) -> None:
        self.pidfd = pidfd
        self._thread = thread
        self._path = monitor
        self._name = name
        self._on_event = on_event
        self._qemu: Qemu | None = None
        self._opened = trio.Event()
        self._scope = trio.CancelScope()
        self._failure: MonitorError | None = None
        self._before: Tuning | None = None
        self._set: Tuning | None = None

    @classmethod
    def none(cls, name: str) -> Self:
        """Return what stands for a QEMU that is not there (any more)."""
        watched = cls.__new__(cls)
        watched.pidfd = -1
        watched._name = name
        watched._qemu = None
        watched._opened = trio.Event()
        watched._before = watched._set = watched._failure = None
        return watched

    def has_ended(self) -> bool:
        """Whether the process is gone, or never was."""
        return self.pidfd < 0 or has_ended(self.pidfd)

    @property
    def opened(self) -> bool:
        """Whether its monitor was ever spoken to."""
        return self._opened.is_set() and self._failure is None

    @property
    def qemu(self) -> Qemu:
        """The calls; raises `MonitorLostError` while there is no monitor."""
        if self._qemu is None:
            raise MonitorLostError(f"{self._name}: the monitor is not open")
        return self._qemu

    async def follow(self) -> None:
        """Hold the monitor and hand its events on, until the process has ended, or `let_go`."""
        with self._scope:
            await self._follow()

    def let_go(self) -> None:
        """Leave the monitor to others; `follow` returns."""
        self._scope.cancel()

    async def _follow(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hold)
            await wait_end(self.pidfd)
            # What QEMU said last is still in the buffer: hear it before its end is told.
            with trio.move_on_after(REOPEN_DEADLINE_S):
                await self._closed()
            nursery.cancel_scope.cancel()

    async def wait_open(self, deadline_s: float) -> None:
        """Return when QEMU has greeted; raise the `MonitorError` that says why not."""
        self._deadline_s = deadline_s
        with trio.move_on_after(deadline_s):
            await self._opened.wait()
        if self._qemu is None:
            raise self._failure or MonitorSilentError(
                f"{self._name}: QEMU did not greet within {deadline_s:g} s"
            )

    async def _closed(self) -> None:
        while self._qemu is not None:
            await self._qemu.monitor.lost.wait()
            await trio.lowlevel.checkpoint()

    async def _hold(self) -> None:
        first = True
        while True:
            try:
                deadline_s = self._deadline_s if first else REOPEN_DEADLINE_S
                await self._hold_once(deadline_s, first=first)
            except MonitorError as exc:
                self._failure = exc
                if first:
                    self._opened.set()
                    return
            first = False
            await trio.sleep(REOPEN_PAUSE_S)

    _deadline_s = REOPEN_DEADLINE_S

    async def _hold_once(self, deadline_s: float, *, first: bool) -> None:
        async with (
            open_monitor(
                self._thread,
                self._path,
                name=self._name,
                greeting_deadline_s=deadline_s,
                sock=self._dial(),
            ) as monitor,
            monitor.subscribe() as events,
        ):
            self._qemu = Qemu(monitor)
            self._opened.set()
            try:
                if not first:
                    await self._catch_up()
                async for event in events:
                    await self._on_event(event)
            finally:
                self._qemu = None

    def _dial(self) -> socket.socket:
        """Return a connection to this very process: its path may lead elsewhere by now.

        It lies in a directory of the guest's user, who could put a link to another guest's in its
        place. A twin's socket is listened at by this agent, which made it, until QEMU does.
        """
        sock = dial(self._path, name=self._name)
        other = peer_pid(sock)
        if other is not None and other in (pid_of(self.pidfd), os.getpid()):
            return sock
        sock.close()
        raise MonitorUnreachableError(
            f"{self._name}: at {self._path} listens process {other or 'of another namespace'}, "
            "not the guest's QEMU; it is not talked to",
            next_step=f"find out who has put it there: ls -la {self._path}; ss -xlp",
        )

    async def _catch_up(self) -> None:
        """Ask for what was said while nobody listened."""
        progress = await self.qemu.query_migrate()
        if progress.status is not MigrationStatus.NONE:
            await self._on_event(MigrationEvent(None, progress.status))

    async def look(self) -> Looked:
        """Ask QEMU what it is doing; raises `MonitorError` when it cannot be asked."""
        state = await self.qemu.status()
        progress = await self.qemu.query_migrate()
        if progress.status in _RUNS_ON:
            look = Look.RUNS_ON
        elif progress.status in _MIGRATING:
            look = Look.MIGRATING
        elif progress.status is MigrationStatus.COMPLETED:
            look = Look.COMPLETED if state is RunState.POSTMIGRATE else Look.RUNS_ON
        else:
            look = Look.DECIDING
        return Looked(look, state, progress.status, progress.error_desc)

    async def tune(self, party: Party, options: Options) -> None:
        """Set every capability and parameter of the table; what was before is remembered."""
        self._before = await self.qemu.query_tuning()
        self._set = tune(self._before, party, options)
        await self.qemu.set_tuning(self._set)

    async def restore(self) -> None:
        """Put the capabilities and parameters back that `tune` changed."""
        if self._before is not None and self._set is not None:
            await self.qemu.set_tuning(restore(self._before, self._set))
            self._before = self._set = None
