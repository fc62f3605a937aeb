"""QMP from trio: qemu.qmp on one asyncio loop in one thread, shared by every monitor of a process.

Measured against trio-asyncio and guest mode (stop → STOP in the trio task): no slower, and
`trio.run`, Ctrl-C and the asyncio policy stay what they are. The only asyncio in the tree.

A command that was sent and not answered may still take effect: the errors in `OUTCOME_UNKNOWN` say
so, and nothing may be concluded from them. The same holds for a cancelled `execute`.
"""

import asyncio  # noqa: TID251 - this is the file
import contextlib
import functools
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Self, TypeVar

import outcome
import trio
from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, Runstate
from qemu.qmp.error import QMPError
from qemu.qmp.protocol import ConnectError, StateError
from qemu.qmp.qmp_client import BadReplyError

from qmigrate.core.errors import (
    CommandError,
    MonitorGarbledError,
    MonitorLostError,
    MonitorSilentError,
)
from qmigrate.qmp import faults
from qmigrate.qmp.events import event_untrusted
from qmigrate.qmp.peer import dial, find_holder, is_stopped, peer_pid
from qmigrate.qmp.stream import EventStream

GREETING_DEADLINE_S = 3.0  # a free monitor greets in milliseconds; one that is held never does
COMMAND_DEADLINE_S = 10.0  # QEMU's main loop may hang in a disk flush for seconds and be well
CLOSE_DEADLINE_S = 1.0  # flushing what we wrote; a stopped QEMU with a full socket reads nothing
LINE_LIMIT_BYTES = 10 << 20  # of one answer; what libvirt allows
_PEEKED_BYTES = 200  # enough to tell QMP from what is not

# The command was sent, or may have been, and its outcome is not known.
OUTCOME_UNKNOWN = (MonitorSilentError, MonitorLostError, MonitorGarbledError)

T = TypeVar("T")

# All that qemu.qmp logs is raised here as an error, or is the late reply of a cancelled command.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.ERROR)  # "socket.send() raised exception."


class QmpThread:
    """The asyncio loop and its thread. A sync context manager; close all monitors first."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="qmp-asyncio", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    @trio.lowlevel.enable_ki_protection
    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            leftover = asyncio.all_tasks(self._loop)
            for task in leftover:
                task.cancel()
            if leftover:
                self._loop.run_until_complete(asyncio.wait(leftover))
        finally:
            self._loop.close()

    def soon(self, fn: Callable[..., object], *args: object) -> None:
        """Run `fn(*args)` on the loop; nothing happens if it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(fn, *args)

    # Without it, a Ctrl-C between start and wait lets this reply wake a later wait.
    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await ``fn(*args)`` on the loop. A cancel cancels its task and waits for its end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        token, me = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
        raise_cancel: Callable[[], Any] | None = None
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            task = self._loop.create_task(fn(*args))
            task.add_done_callback(finished)

        def finished(done: asyncio.Task[T]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(wake, done)

        def wake(done: asyncio.Task[T]) -> None:
            result: outcome.Outcome[Any]
            if done.cancelled() and raise_cancel is not None:
                result = outcome.capture(raise_cancel)
            else:
                result = outcome.capture(done.result)
            trio.lowlevel.reschedule(me, result)

        def abort(raise_: Callable[[], Any]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_
            self._loop.call_soon_threadsafe(lambda: task and task.cancel())
            return trio.lowlevel.Abort.FAILED

        self._loop.call_soon_threadsafe(start)
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result


class _Client(QMPClient):
    """qemu.qmp's client without its hoard of events and without its pretty-printing for a log."""

    def __init__(self, deliver: EventListener) -> None:
        super().__init__(readbuflen=LINE_LIMIT_BYTES)
        self.events.event_filter = lambda _: False  # else it keeps every event for ever
        self.register_listener(deliver)

    def _cb_inbound(self, msg: Message) -> Message:
        return msg  # the base class formats every message, whether it is logged or not

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def getfd(self, fd: int, name: str) -> None:
        """Send `fd` and, as the very next bytes, the command that takes it."""
        await self._bh_flush_writer()  # sendmsg goes past the transport: nothing may wait in there
        self.send_fd_scm(fd)
        await self.execute("getfd", {"fdname": name})

    def hang_up(self) -> None:
        """Begin to disconnect; `runstate_changed` tells."""
        self._schedule_disconnect()

    def abort(self) -> None:
        """Drop what could not be sent."""
        if self._writer is not None:
            self._writer.transport.abort()


class _Fan(EventListener):
    """Hands each event to every subscriber, on the asyncio thread."""

    def __init__(self, thread: QmpThread) -> None:
        super().__init__()
        self._thread = thread
        self._lock = threading.Lock()
        self._streams: tuple[EventStream, ...] = ()
        self._ended = False

    async def put(self, event: Message) -> None:
        typed = event_untrusted(event)
        for stream in self._streams:
            room = asyncio.Event()
            while not stream.offer(typed, functools.partial(self._thread.soon, room.set)):
                await room.wait()  # QEMU's socket is not read meanwhile
                room.clear()

    def add(self, stream: EventStream) -> None:
        with self._lock:
            self._streams += (stream,)
            if self._ended:
                stream.end()

    def remove(self, stream: EventStream) -> None:
        with self._lock:
            self._streams = tuple(s for s in self._streams if s is not stream)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for stream in self._streams:
                stream.end()


class Monitor:
    """One QEMU's monitor, greeted. Made by `open_monitor`; used from one trio run, many tasks.

    `lost` is set when the link has ended, for whatever reason; `peer_pid` is who listens there.
    """

    def __init__(self, thread: QmpThread, sock: socket.socket, name: str) -> None:
        self.name = name
        self.lost = trio.Event()
        self.peer_pid = peer_pid(sock) if sock.family == socket.AF_UNIX else None
        self._thread = thread
        self._sock = sock
        self._token = trio.lowlevel.current_trio_token()
        self._fan = _Fan(thread)
        self._client = _Client(self._fan)
        self._watcher: asyncio.Task[None] | None = None
        self._cause: Exception | None = None
        self._getfd_lock = trio.Lock()

    @property
    def qemu_version(self) -> tuple[int, int, int]:
        """The version that QEMU greeted us with; zeros where it said none."""
        greeting = self._client.greeting
        version: Any = greeting.QMP.version.get("qemu") if greeting else None
        numbers = version if isinstance(version, Mapping) else {}
        major, minor, micro = (numbers.get(key) for key in ("major", "minor", "micro"))
        return int(major or 0), int(minor or 0), int(micro or 0)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = COMMAND_DEADLINE_S,
        oob: bool = False,
    ) -> Any:
        """Return QEMU's answer to a QMP command.

        Raises `CommandError` when QEMU refuses, else one of `OUTCOME_UNKNOWN`. After a cancel the
        monitor is usable and the command may have taken effect: shield what must not be unknown.
        """
        try:
            # What cannot be encoded would kill qemu.qmp's writer; a lone surrogate, QEMU's parser,
            # which then answers without an id, and with that the whole connection.
            json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise CommandError(
                f"{self.name}: the arguments of {command} cannot be sent: {exc}"
            ) from exc
        return await self._within(
            deadline_s, command, self._client.execute, command, arguments, oob
        )

    async def pass_fd(self, fd: int, name: str) -> None:
        """Give QEMU a copy of `fd` under `name` (QMP ``getfd``); ours may be closed afterwards.

        Shielded: between the descriptor and the command that takes it nothing else may come. The
        name is this monitor's alone, gone after its first use; QEMU refuses one that begins with
        a digit. Raises as `execute`.
        """
        async with self._getfd_lock:
            with trio.CancelScope(shield=True):
                await self._within(COMMAND_DEADLINE_S, "getfd", self._client.getfd, fd, name)

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[EventStream]:
        """Open a stream of typed events. Subscribe first, then ask: nothing falls in between."""
        stream = EventStream()
        self._fan.add(stream)
        try:
            yield stream
        finally:
            self._fan.remove(stream)
            stream.end()

    async def _within(
        self, deadline_s: float, command: str, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> T:
        with trio.move_on_after(deadline_s):
            return await self._thread.call(self._explained, command, fn, *args)
        raise self._silent(command, deadline_s)

    async def _explained(
        self, command: str, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> T:
        """Await ``fn(*args)`` on the asyncio thread, its errors turned into ours."""
        try:
            return await fn(*args)
        except ExecuteError as exc:
            raise faults.refused(self.name, command, str(exc)) from None
        except BadReplyError as exc:
            raise faults.garbled(self.name, command, exc) from exc
        except BlockingIOError as exc:
            raise faults.deaf(self.name, command, exc) from exc
        except (ExecInterruptedError, StateError, ConnectionError) as exc:
            if self._watcher is not None:
                await asyncio.shield(self._watcher)  # it has the cause in a moment
            sent = isinstance(exc, ExecInterruptedError)
            raise faults.lost(self.name, command, self._cause, sent=sent) from exc
        except QMPError as exc:  # a descriptor over a monitor that is no unix socket
            raise faults.refused(self.name, command, str(exc)) from exc

    def _silent(self, command: str, deadline_s: float) -> MonitorSilentError:
        pid = self.peer_pid
        state = (
            f"its process {pid} is stopped by a signal"
            if is_stopped(pid)
            else "its main loop may hang, on a disk or on a migration socket"
        )
        return faults.silent(self.name, command, deadline_s, pid=pid, state=state)

    async def greet(self, deadline_s: float) -> None:
        """Wait for QEMU's greeting and negotiate; raise the `MonitorError` that fits."""
        heard = b""
        with trio.move_on_after(deadline_s):
            await trio.lowlevel.wait_readable(self._sock)
            # Looked at before asyncio has it: bytes that are not QMP need no deadline to tell.
            try:
                heard = self._sock.recv(_PEEKED_BYTES, socket.MSG_PEEK)
            except ConnectionError as exc:
                raise faults.closed_early(self.name, exc) from exc
            if heard.strip() and not heard.lstrip().startswith(b"{"):
                raise faults.garbled(self.name, "our connecting", ValueError(repr(heard)))
            await self._thread.call(self._negotiate)
            return
        if heard or is_stopped(self.peer_pid):
            raise faults.ungreeted(self.name, deadline_s, pid=self.peer_pid, heard=heard)
        holder = await trio.to_thread.run_sync(find_holder, self._sock)
        raise faults.busy(
            self.name,
            f"pid {holder.pid} ({holder.command}) holds it"
            if holder
            else "it accepts and greets nobody; or QEMU hangs",
        )

    async def _negotiate(self) -> None:
        try:
            await self._client.connect(self._sock)
        except ConnectError as exc:
            if faults.is_garbled(exc.exc):
                raise faults.garbled(self.name, "our connecting", exc.exc) from exc
            raise faults.closed_early(self.name, exc.exc) from exc
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Turn the end of the link into the end of everything that waits; qemu.qmp tells nobody."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        try:
            await self._client.disconnect()
        except Exception as exc:  # noqa: BLE001 - the reader's own, whatever it was
            self._cause = exc
        self._fan.end()
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.lost.set)

    async def _hang_up(self) -> None:
        if self._watcher is None or self._watcher.done():
            return
        self._fan.end()  # a full stream would keep the reader from its end
        self._client.hang_up()
        await asyncio.wait((self._watcher,), timeout=CLOSE_DEADLINE_S)
        if not self._watcher.done():
            self._client.abort()
            await asyncio.wait((self._watcher,))

    async def aclose(self) -> None:
        """Close the connection; safe at any stage, and twice."""
        with trio.CancelScope(shield=True):
            await self._thread.call(self._hang_up)
            self._sock.close()
        self.lost.set()


@contextlib.asynccontextmanager
async def open_monitor(
    thread: QmpThread,
    path: str,
    *,
    name: str,
    greeting_deadline_s: float = GREETING_DEADLINE_S,
    sock: socket.socket | None = None,
) -> AsyncIterator[Monitor]:
    """Connect to the QMP monitor at `path` and hold it; closed at the end, whatever happened.

    `sock`, if given, is connected already (`dial`), so that the caller could look at its peer
    first; it belongs to the monitor from now on. Raises `MonitorUnreachableError`,
    `MonitorBusyError`, `MonitorSilentError`, `MonitorGarbledError`, `MonitorLostError`.
    """
    sock = sock if sock is not None else dial(path, name=name)
    sock.setblocking(False)
    monitor = Monitor(thread, sock, name)
    try:  # from here on a cancel, even between greeting and yield, finds the way out
        await monitor.greet(greeting_deadline_s)
        yield monitor
    finally:
        await monitor.aclose()
