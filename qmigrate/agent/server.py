"""Answers the controller's calls: many at once, each cancellable, each ended by one message.

::

    reader ── Call ───► a task a call ── handler(ctx, request) ──► Answer | Failure ──► stdout
           ── Cancel ─► that task's scope                       Note …
           ── end ────► everything is cancelled, the agent is done

A handler raises `QmigrateError` for what the user should read; anything else is a defect of ours:
the controller gets one sentence, stderr the traceback.
"""

import os
import platform
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import trio

from qmigrate.agent.protocol import (
    LINE_LIMIT,
    PROTOCOL,
    Answer,
    Call,
    Cancel,
    Failure,
    FromAgent,
    FromController,
    Hello,
    LineSplitter,
    Note,
    codec,
    decode_untrusted,
    encode,
)
from qmigrate.agent.requests import (
    NOTES,
    REPLIES,
    BringFrame,
    CancelJob,
    CarryLink,
    Echo,
    GetHostFacts,
    InspectGuest,
    ListBelongings,
    ListGuests,
    ListJobs,
    OnNetwork,
    PointJob,
    ProveDisks,
    ReadLogs,
    RekeyJob,
    RemoveBelongings,
    ReviveJob,
    SeeDisks,
    SetJob,
    StartJob,
    TellJob,
    WatchJob,
)
from qmigrate.core.copies import FindCopies, ForgetJob, LookAtTraces, QuitCopy, RunCopy
from qmigrate.core.errors import Problem, ProtocolError, QmigrateError
from qmigrate.core.throwaway import EndTiny, LookAround, LookTiny, PlaceTiny, StartTiny

READ_BYTES = 64 * 1024  # what a pipe holds
CANCELLED = Problem("cancelled", "the call was cancelled")

T = TypeVar("T")
SendNote = Callable[[Any], Awaitable[None]]


class Shared:
    """What the calls of one agent open once and use together; closed when the agent ends."""

    def __init__(self, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        self.nursery = nursery
        self._stack = stack
        self._lock = trio.Lock()
        self._opened: dict[object, Any] = {}

    async def once(
        self, make: Callable[[], AbstractAsyncContextManager[T] | AbstractContextManager[T]]
    ) -> T:
        """Return what `make()` yields, entered by the first caller; `make` itself is the key."""
        async with self._lock:
            if make not in self._opened:
                manager = make()
                self._opened[make] = (
                    await self._stack.enter_async_context(manager)
                    if isinstance(manager, AbstractAsyncContextManager)
                    else self._stack.enter_context(manager)
                )
            return cast(T, self._opened[make])


class AgentContext:
    """What a handler is given besides its request."""

    def __init__(self, shared: Shared, note: SendNote) -> None:
        self.shared = shared
        self.note = note  # sends a note of this call, typed by `NOTES`

    @property
    def nursery(self) -> trio.Nursery:
        """Tasks that outlive the call; they are cancelled when the controller hangs up."""
        return self.shared.nursery


Handler = Callable[[AgentContext, Any], Awaitable[Any]]


async def _echo(ctx: AgentContext, request: Echo) -> Echo:
    for _ in range(request.notes):
        await ctx.note(request)
    return request


def _late(module: str, function: str) -> Handler:
    """Return a handler whose module is imported at its first call: a start must stay short."""

    async def handler(ctx: AgentContext, request: Any) -> Any:
        return await getattr(import_module(module), function)(ctx, request)

    return handler


HANDLERS: dict[type, Handler] = {
    Echo: _echo,
    GetHostFacts: _late("qmigrate.agent.facts", "host_facts"),
    ListGuests: _late("qmigrate.agent.facts", "list_guests"),
    InspectGuest: _late("qmigrate.agent.facts", "inspect_guest"),
    ProveDisks: _late("qmigrate.agent.disks", "prove_disks"),
    SeeDisks: _late("qmigrate.agent.disks", "see_disks"),
    StartJob: _late("qmigrate.agent.jobs", "start_job"),
    WatchJob: _late("qmigrate.agent.jobs", "watch_job"),
    PointJob: _late("qmigrate.agent.jobs", "relay"),
    SetJob: _late("qmigrate.agent.jobs", "relay"),
    CancelJob: _late("qmigrate.agent.jobs", "relay"),
    TellJob: _late("qmigrate.agent.jobs", "relay"),
    RekeyJob: _late("qmigrate.agent.jobs", "relay"),
    CarryLink: _late("qmigrate.agent.jobs", "relay"),
    BringFrame: _late("qmigrate.agent.jobs", "relay"),
    ReviveJob: _late("qmigrate.agent.reviving", "revive_job"),
    ReadLogs: _late("qmigrate.agent.jobs", "read_logs"),
    ListJobs: _late("qmigrate.agent.holdings", "list_jobs"),
    ListBelongings: _late("qmigrate.agent.clearing", "list_belongings"),
    RemoveBelongings: _late("qmigrate.agent.clearing", "remove_belongings"),
    PlaceTiny: _late("qmigrate.agent.throwaway", "place_tiny"),
    StartTiny: _late("qmigrate.agent.throwaway", "start_tiny"),
    LookTiny: _late("qmigrate.agent.throwaway", "look_tiny"),
    EndTiny: _late("qmigrate.agent.throwaway", "end_tiny"),
    LookAround: _late("qmigrate.agent.throwaway", "look_around"),
    FindCopies: _late("qmigrate.agent.evidence", "find_copies"),
    LookAtTraces: _late("qmigrate.agent.evidence", "look_at_traces"),
    RunCopy: _late("qmigrate.agent.returning", "run_copy"),
    QuitCopy: _late("qmigrate.agent.returning", "quit_copy"),
    ForgetJob: _late("qmigrate.agent.returning", "forget_job"),
    OnNetwork: _late("qmigrate.agent.network", "on_network"),
}


class Server:
    """One conversation with a controller; the same over stdio and over a job's door."""

    def __init__(
        self,
        incoming: trio.abc.ReceiveStream,
        outgoing: trio.abc.SendStream,
        *,
        handlers: Mapping[type, Handler] = HANDLERS,
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._handlers = handlers
        self._sending = trio.Lock()
        self._calls: dict[int, trio.CancelScope] = {}
        self._scope = trio.CancelScope()

    async def serve(self, hello: Hello) -> None:
        """Say hello and answer until the controller hangs up.

        Raises `ProtocolError` when it sends what is no message: nothing after that can be trusted.
        """
        broken: ProtocolError | None = None
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            shared = Shared(nursery, stack)
            await self._send(hello)
            try:
                await self._read(shared)
            except ProtocolError as exc:
                broken = exc  # raised outside of the nursery, which would wrap it
            finally:
                nursery.cancel_scope.cancel()
                await trio.aclose_forcefully(self._outgoing)  # frees who waits in _send
        if broken:
            raise broken

    async def _read(self, shared: Shared) -> None:
        splitter = LineSplitter()
        try:
            while chunk := await self._incoming.receive_some(READ_BYTES):
                for line in splitter.feed_untrusted(chunk):
                    self._dispatch(decode_untrusted(line, FromController), shared)
        except trio.BrokenResourceError:
            return  # a reset is a way to hang up

    def _dispatch(self, message: Call | Cancel, shared: Shared) -> None:
        if isinstance(message, Cancel):
            if scope := self._calls.get(message.id):
                scope.cancel()
        elif message.id in self._calls:
            raise ProtocolError(f"call {message.id} is already being answered")
        else:
            scope = self._calls[message.id] = trio.CancelScope()
            shared.nursery.start_soon(self._answer, message, scope, shared)

    async def _answer(self, call: Call, scope: trio.CancelScope, shared: Shared) -> None:
        kind = type(call.request)

        async def note(value: Any) -> None:
            await self._send(Note(call.id, codec.unstructure(value, NOTES[kind])))

        reply: Answer | Failure = Failure(call.id, CANCELLED)
        try:
            with scope:
                value = await self._handlers[kind](AgentContext(shared, note), call.request)
                reply = Answer(call.id, codec.unstructure(value, REPLIES[kind]))
        except QmigrateError as exc:
            reply = Failure(call.id, exc.problem)
        except Exception as exc:  # noqa: BLE001 - one broken handler must not end the others
            traceback.print_exc()
            what = f"the agent failed in {kind.__name__}: {type(exc).__name__}: {exc}"
            reply = Failure(call.id, Problem("qmigrate", f"{what:.400}"))
        finally:
            del self._calls[call.id]
        await self._send(reply)

    async def _send(self, message: FromAgent) -> None:
        line = encode(message)
        if len(line) > LINE_LIMIT and isinstance(message, Answer | Note):
            what = f"an answer of {len(line)} bytes, more than the {LINE_LIMIT} allowed"
            line = encode(Failure(message.id, Problem("protocol", what)))
        async with self._sending:
            # Shielded: a line cut short by a cancel would garble all that follow.
            with trio.CancelScope(shield=True):
                try:
                    await self._outgoing.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._scope.cancel()  # nobody listens any more


def make_hello(version: str) -> Hello:
    """Return who this agent is, asked of the kernel now."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Hello(
        protocol=PROTOCOL,
        version=version,
        hostname=socket.gethostname(),
        boot_id=boot_id,
        python=platform.python_version(),
        uid=os.geteuid(),
        pid=os.getpid(),
    )


async def serve_stdio(version: str, incoming: int, outgoing: int) -> int:
    """Serve over two descriptors, closing both at the end; return the process's exit status."""
    async with trio.lowlevel.FdStream(incoming) as reader, trio.lowlevel.FdStream(outgoing) as out:
        try:
            await Server(reader, out).serve(make_hello(version))
        except ProtocolError as exc:
            sys.stderr.write(f"the controller sent what is no message: {exc}\n")
            return 1
    return 0
