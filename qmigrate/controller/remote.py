"""The controller's side of an agent: started on demand, asked by typed calls, ended by hanging up.

::

    open_agent(spec)   session ─┐
                       payload ─┴► python? root? ─► stage 0 ─► [push] ─► Hello ─► Agent.call
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any, overload

import trio

from qmigrate.agent.protocol import (
    Answer,
    Call,
    Cancel,
    Failure,
    FromAgent,
    FromController,
    Hello,
    Note,
    decode_untrusted,
    encode,
    structure_untrusted,
)
from qmigrate.agent.requests import (
    NOTES,
    REPLIES,
    Echo,
    GetHostFacts,
    GuestList,
    InspectGuest,
    ListGuests,
    OnNetwork,
)
from qmigrate.controller.payload import Payload, load_payload
from qmigrate.controller.session import Session, one_error, open_session
from qmigrate.controller.start import Lines, Start, StartSteps, last_words
from qmigrate.controller.timings import LoginTimings
from qmigrate.core.errors import AgentLostError, HostError, ProtocolError, QmigrateError
from qmigrate.core.model import GuestDetail, HostFacts, HostSpec

CALL_DEADLINE_S = 60  # the slowest honest call asks a silent monitor, whose deadline is shorter
SPANS_KEPT = 256  # of the last calls; a fleet's agent answers for hours
SEND_DEADLINE_S = 30  # longer than a dead host stays unnoticed (session.KEEPALIVE_ANSWER_S)


@dataclass(frozen=True, slots=True)
class StartTimings:
    """Where the start of an agent took its time; the payload is made beside the login."""

    login: LoginTimings
    payload_s: float
    steps: StartSteps
    total_s: float
    began_s: float = 0.0  # by `perf_counter`


@dataclass(frozen=True, slots=True)
class CallSpan:
    """One question to an agent, from its first byte to the answer's last, by `perf_counter`."""

    name: str  # of the request's class
    began_s: float
    ended_s: float


class Agent:
    """An agent that has said hello. Calls may run side by side."""

    def __init__(
        self, host: str, hello: Hello, timings: StartTimings, session: Session, lines: Lines
    ) -> None:
        self.host = host
        self.hello = hello
        self.timings = timings
        self._session = session
        self._lines = lines
        self._sending = trio.Lock()
        self._calls: dict[int, trio.MemorySendChannel[Answer | Note | Failure]] = {}
        self._last_id = 0
        self._lost: HostError | None = None
        self.spans: deque[CallSpan] = deque(maxlen=SPANS_KEPT)

    @overload
    async def call(self, request: GetHostFacts, *, deadline_s: float = ...) -> HostFacts: ...
    @overload
    async def call(self, request: ListGuests, *, deadline_s: float = ...) -> GuestList: ...
    @overload
    async def call(self, request: InspectGuest, *, deadline_s: float = ...) -> GuestDetail: ...
    @overload
    async def call(self, request: Echo, *, deadline_s: float = ...) -> Echo: ...
    @overload
    async def call(self, request: Any, *, deadline_s: float = ...) -> Any: ...

    async def call(self, request: Any, *, deadline_s: float = CALL_DEADLINE_S) -> Any:
        """Return the reply that `REPLIES` promises; notes on the way are dropped.

        Raises the agent's own error, or `AgentLostError` when it dies or `deadline_s` passes. After
        a cancel or a deadline the agent has been told to give up; it may have acted already.
        """
        with trio.move_on_after(deadline_s):
            async with aclosing(self._messages(request)) as messages:
                async for message in messages:
                    if isinstance(message, Answer):
                        return structure_untrusted(message.value, REPLIES[type(request)])
        what = f"the agent did not answer {type(request).__name__} within {deadline_s:g} s"
        raise AgentLostError(what, host=self.host)

    async def stream(self, request: Any) -> AsyncGenerator[Any, None]:
        """Yield each note, typed by `NOTES`, and last the reply, typed by `REPLIES`.

        No deadline: the caller knows how long silence is good. Use `aclosing`: leaving the loop
        early tells the agent to give up. Raises as `call`.
        """
        kind = type(request)
        async with aclosing(self._messages(request)) as messages:
            async for message in messages:
                if isinstance(message, Note):
                    yield structure_untrusted(message.note, NOTES[kind])
                else:
                    yield structure_untrusted(message.value, REPLIES[kind])

    async def _messages(self, request: Any) -> AsyncGenerator[Note | Answer, None]:
        self._last_id += 1
        number = self._last_id
        # Unbounded: a consumer that makes another call between two notes must not stop the reader.
        send, receive = trio.open_memory_channel[Answer | Note | Failure](math.inf)
        self._calls[number] = send
        ended = False
        began_s = perf_counter()
        try:
            await self._send(Call(number, request))
            async for message in receive:
                ended = not isinstance(message, Note)
                if isinstance(message, Failure):
                    raise QmigrateError.of(message.problem).at(host=self.host)
                yield message
                if ended:
                    return
            ended = True
            raise self._why_lost()
        finally:
            self.spans.append(CallSpan(_name_of(request), began_s, perf_counter()))
            self._calls.pop(number, None)
            send.close()
            receive.close()
            if not ended and not self._lost:
                with trio.CancelScope(shield=True):
                    await self._send(Cancel(number))

    async def _send(self, message: FromController) -> None:
        async with self._sending:
            if self._lost:
                raise self._why_lost()
            # Shielded: half a line would garble all that follow.
            with trio.move_on_after(SEND_DEADLINE_S, shield=True) as scope:
                try:
                    await self._lines.stream.send_all(encode(message))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the reader finds out why
            if scope.cancelled_caught:
                self._end(AgentLostError(f"the host took nothing for {SEND_DEADLINE_S} s"))

    def _why_lost(self) -> HostError:
        """Return a fresh copy: an exception raised twice grows two tracebacks."""
        lost = self._lost or AgentLostError("the agent was closed")
        error = QmigrateError.of(lost.problem).at(host=self.host)
        return error if isinstance(error, HostError) else lost

    def _end(self, why: HostError) -> None:
        self._lost = self._lost or why
        for channel in self._calls.values():
            channel.close()

    async def _read(self) -> None:
        """Hand messages to their calls until the agent ends; never raises."""
        try:
            while (line := await self._lines.next()) is not None:
                self._deliver(decode_untrusted(line, FromAgent))
        except ProtocolError as exc:
            self._end(exc)
            return
        status, words = await last_words(self._lines.stream, self._session)
        ended = f"ended with status {status}" if status is not None else "was cut off"
        self._end(AgentLostError(f"the agent {ended}", last_words=words or None))

    def _deliver(self, message: FromAgent) -> None:
        if isinstance(message, Hello):
            raise ProtocolError("the agent said hello twice")
        if channel := self._calls.get(message.id):  # else: given up, and answered all the same
            channel.send_nowait(message)


def _name_of(request: Any) -> str:
    """Return a request's name, of one in an envelope its content's."""
    return request.name if isinstance(request, OnNetwork) else type(request).__name__


class _Loading:
    """The payload, made by a task of its own while the login is under way."""

    def __init__(self, payload: Payload | None) -> None:
        self._payload = payload
        self._ready = trio.Event()
        self.took_s = 0.0

    async def load(self) -> None:
        began = perf_counter()
        self._payload = self._payload or await trio.to_thread.run_sync(load_payload)
        self.took_s = perf_counter() - began
        self._ready.set()

    async def get(self) -> Payload:
        await self._ready.wait()
        assert self._payload  # noqa: S101 - load() has ended
        return self._payload


@asynccontextmanager
async def open_agent(
    spec: HostSpec, *, as_user: bool = False, payload: Payload | None = None
) -> AsyncIterator[Agent]:
    """Yield the agent of a host, started there as root; it ends with the block.

    `as_user` runs it as the login with a cache in its home: enough for tests, not for migrations.
    Raises the `HostError`s of a login and of a start, with the host's name.
    """
    began = perf_counter()
    loading = _Loading(payload)
    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loading.load)
            async with open_session(spec) as session:
                start = Start(spec, session, await loading.get())
                async with await session.run(start.argv(as_user=as_user)) as stream:
                    lines = Lines(stream)
                    try:
                        hello, steps = await start.greet(lines, version("qmigrate"))
                    except HostError as exc:
                        raise exc.at(host=spec.name, phase="connect") from exc.__cause__
                    total_s = perf_counter() - began
                    timings = StartTimings(session.timings, loading.took_s, steps, total_s, began)
                    agent = Agent(spec.name, hello, timings, session, lines)
                    # A nursery of its own: cancelled further out, the closing of the stream would
                    # raise Cancelled in place of what the block raised, and swallow it.
                    async with trio.open_nursery() as reading:
                        reading.start_soon(agent._read)
                        try:
                            yield agent
                        finally:
                            reading.cancel_scope.cancel()


@asynccontextmanager
async def open_agents(
    specs: Sequence[HostSpec], *, as_user: bool = False
) -> AsyncIterator[tuple[Agent | HostError, ...]]:
    """Yield the hosts' agents, started side by side, in order; an error where one did not start."""
    found: dict[int, Agent | HostError] = {}
    done = trio.Event()

    async def hold(
        number: int, spec: HostSpec, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            async with open_agent(spec, as_user=as_user) as agent:
                found[number] = agent
                task_status.started()
                await done.wait()
        except HostError as exc:
            if number in found:
                raise
            found[number] = exc
            task_status.started()

    with one_error():
        async with trio.open_nursery() as holding:
            async with trio.open_nursery() as starting:
                for number, spec in enumerate(specs):
                    starting.start_soon(holding.start, hold, number, spec)
            try:
                yield tuple(found[number] for number in range(len(specs)))
            finally:
                done.set()
