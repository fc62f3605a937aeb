"""One side of a job at work: events in, the table's answer, effects carried out by one reader.

::

    QEMU's events ─┐
    peer's messages ┼─► inbox ─► core.handover ─► effects, in order ─► journal, QMP, link, network
    door's requests ┤            (one table)
    deadlines      ─┘

Everything that waits does so in a task of its own and ends in the inbox, so that the reader is
never kept from the next event. `SourceAgent` and `DestinationAgent` say what the effects mean on
their side; what may follow what is decided nowhere but in the table.
"""

import json
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from qmigrate.agent import log, peer
from qmigrate.agent.journal import VERSION, Entry, Journal
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.protocol import codec
from qmigrate.core.errors import (
    GuestEndedError,
    LinkBrokenError,
    Problem,
    ProtocolError,
    QmigrateError,
)
from qmigrate.core.handover import Effect, ImpossibleEventError, Record, Write
from qmigrate.core.job import JobNote, JobReport, JobSpec, Mark
from qmigrate.core.model import Address, RunState, Side
from qmigrate.qmp.client import QmpThread
from qmigrate.transport.endpoint import FEATURES, Endpoint, EndpointSpec, open_endpoint
from qmigrate.transport.link import Link

REDIAL_PAUSE_S = 0.25  # between attempts to have the link back; a dial has its own deadline


class JobAgent(ABC):
    """What both sides share: inbox, journal, link, notes; see the module."""

    side: Side

    def __init__(
        self, spec: JobSpec, places: JobPlaces, journal: Journal, qmp_thread: QmpThread
    ) -> None:
        self.spec = spec
        self.places = places
        self.journal = journal
        self.qmp_thread = qmp_thread
        self.state: Any = None
        self.problem: Problem | None = None  # the first one is the reason
        self.report: JobReport | None = None
        self.had = RunState.UNKNOWN  # the state to be found again at the end
        self.link: Link | None = None
        self.endpoint: Endpoint | None = None
        self.started_s = time.monotonic()
        self.marks: list[Mark] = []
        self.ready = trio.Event()  # this side can be reached by its peer, or has failed
        self.over = trio.Event()  # the effect END was carried out
        self._send_inbox, self._inbox = trio.open_memory_channel[tuple[Any, Problem | None]](
            float("inf")
        )
        self.let_go: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # of lock and door
        self.unheard = False  # the peer may still ask: the journal must stay
        self._points = {f.moment: f.action for f in spec.faults if f.side is self.side}
        self._watchers: set[trio.MemorySendChannel[JobNote]] = set()
        self._latest: JobNote | None = None
        self.attended = trio.Event()  # somebody follows the job at its door
        self.deserted = trio.Event()  # nobody does any more
        self._linked = trio.Event()
        self.nursery: trio.Nursery

    # The inbox

    def post(self, event: Any, problem: Problem | None = None) -> None:
        """Put an event of the table into the inbox; the first problem is kept as the reason."""
        self._send_inbox.send_nowait((event, problem))

    def post_later(self, deadline_s: float, event: Any, what: str) -> trio.CancelScope:
        """Post `event` when a deadline passes; return the scope that calls it off."""
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(deadline_s)
                self.post(event, self.trouble("deadline", f"{what} within {deadline_s:g} s"))

        self.nursery.start_soon(wait)
        return scope

    async def read_inbox(self) -> None:
        """Step through the table until END."""
        while not self.over.is_set():
            try:  # what an effect has posted follows at once: every turn of the loop takes time
                event, problem = self._inbox.receive_nowait()
            except trio.WouldBlock:
                event, problem = await self._inbox.receive()
            if problem is not None:
                self.say(f"{event}: {problem.what}" + _words(problem))
                # A guest's own end explains whatever was seen of it before.
                if self.problem is None or problem.code == GuestEndedError.code:
                    self.problem = problem
            try:
                following, effects = self.step(event)
            except ImpossibleEventError as exc:
                self.say(f"a defect, and nothing was done: {exc}")
                continue
            before, self.state = self.state, following
            await self.carry_out(effects)
            if before != following:
                self.say(f"{before} --{event}--> {following}")

    async def carry_out(self, effects: tuple[Effect | Write, ...]) -> None:
        """Carry out effects in order; one that raises is a defect, and those after it do not come.

        Then this agent ends, and its guardian starts another from the journal.
        """
        for effect in effects:
            name = f"record {effect.record}" if isinstance(effect, Write) else str(effect)
            await self.fault(f"before {name}")
            if isinstance(effect, Write):
                self.record(effect.record)
            else:
                await self.effect(effect)
            await self.fault(f"after {name}")

    @abstractmethod
    async def run(self, *, again: bool) -> None:
        """Be this side until END; `again`: the agent before this one died."""

    @abstractmethod
    def step(self, event: Any) -> tuple[Any, tuple[Effect | Write, ...]]:
        """Return the table's answer to `event` in the present state."""

    @abstractmethod
    async def effect(self, effect: Effect) -> None:
        """Carry out one effect."""

    async def fault(self, moment: str) -> None:
        """Do to this process what a test asked for at `moment` (never set in earnest), once."""
        action = self._points.pop(moment, None)
        if action is None:
            return
        self.say(f"fault point {moment}: {action}")
        from qmigrate.agent.striking import strike  # in earnest it is never imported

        await strike(self, moment, action)

    def spare(self) -> None:
        """Let no fault point strike: the agent before this one has had them."""
        self._points.clear()

    # The journal

    def record(self, record: Record, **changes: Any) -> None:
        """Make `record` durable, with what is known now."""
        entry = replace(
            self.entry(),
            record=record,
            had=self.had,
            boottime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
            note=self.problem.what if self.problem else None,
            **changes,
        )
        self.journal.write(entry)
        self.mark(f"record {record}")

    def entry(self) -> Entry:
        """Return the journal's last entry, or the one a fresh job begins with."""
        return self.journal.entry or Entry(
            version=VERSION,
            number=0,
            job=self.spec.job,
            side=self.side.value,
            record=Record.PREPARED,
            boot_id=boot_id(),
            peer_boot_id=None,
            guest=self.spec.guest,
            uuid=self.spec.uuid,
            had=RunState.UNKNOWN,
            stopped_by_us=False,
            pid=None,
            start_ticks=None,
            monitor=None,
            made=(),
            boottime_s=0.0,
        )

    # The link

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Endpoint]:
        """Own this side of the link while the block runs."""
        spec = EndpointSpec(
            identity=self.spec.identity,
            side=self.side,
            job=self.spec.job,
            boot_id=boot_id(),
            listen_addresses=self.spec.listen_addresses,
            port_range=self.spec.port_range,
            incarnation=self.entry().number + 1,
            features=FEATURES | ({"faults"} if self.spec.faults else set()),
        )
        async with open_endpoint(spec, self.nursery) as endpoint:
            self.endpoint = endpoint
            yield endpoint

    async def keep_link(self, endpoint: Endpoint, deadline_s: float) -> None:
        """Have a link, read it, have another when it breaks; for ever."""
        first = True
        while True:
            try:
                link = await endpoint.connect(deadline_s)
            except QmigrateError as exc:
                self.unlinked(exc.problem, first=first)
                await trio.sleep(REDIAL_PAUSE_S)
                continue
            self.link, first = link, False
            self.mark("linked")
            self.say(f"linked, generation {link.generation.incarnation}.{link.generation.count}")
            self._linked.set()
            try:
                await self.connected()
                while True:
                    await self.heard(peer.decode_untrusted(await link.receive()))
            except (LinkBrokenError, ProtocolError) as exc:
                self.say(f"the link broke: {exc}")
                problem = exc.problem
            finally:
                self.link = None
                self._linked = trio.Event()
                with trio.CancelScope(shield=True):
                    await link.aclose()
            self.unlinked(problem, first=False)

    async def wait_linked(self) -> None:
        """Return when there is a link."""
        await self._linked.wait()

    async def send(self, message: peer.Message) -> bool:
        """Send a message if there is a link; whoever waits for an answer has a deadline."""
        if self.link is None:
            return False
        try:
            await self.link.send(peer.encode(message))
        except (LinkBrokenError, trio.ClosedResourceError):  # they ended it, or we did meanwhile
            return False
        return True

    @abstractmethod
    async def connected(self) -> None:
        """Say what the peer must hear after every connection."""

    @abstractmethod
    async def heard(self, message: peer.Message) -> None:
        """Turn a message into an event."""

    @abstractmethod
    def unlinked(self, problem: Problem, *, first: bool) -> None:
        """Take note that there is no link; `first`: there never was one."""

    # The door

    @abstractmethod
    def point(self, addresses: tuple[Address, ...]) -> None:
        """Learn where the peer listens."""

    async def watch(self, note: Callable[[JobNote], Awaitable[None]]) -> JobReport | None:
        """Hand every note to `note` until the last one; return the report."""
        send, receive = trio.open_memory_channel[JobNote](256)
        if self._latest is not None:
            send.send_nowait(self._latest)
        if not self._watchers:
            self.deserted = trio.Event()
        self._watchers.add(send)
        self.attended.set()
        try:
            async for each in receive:
                await note(each)
                if each.report is not None:
                    break
        finally:
            self._watchers.discard(send)
            if not self._watchers:
                self.attended = trio.Event()
                self.deserted.set()
        return self.report

    def tell(self, note: JobNote) -> None:
        """Hand a note to whoever watches; a watcher that does not read misses progress only."""
        if note.report is None and self._latest is not None and self._latest.report is not None:
            return
        self._latest = note
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(note)
            except trio.WouldBlock:
                if note.report is not None:
                    self._watchers.discard(watcher)
                    watcher.close()
            except trio.BrokenResourceError:
                self._watchers.discard(watcher)

    def finish(self, report: JobReport) -> None:
        """Keep the report, on disk and for who watches."""
        self.report = report
        text = json.dumps(codec.unstructure(report), indent=1)
        kept = Path(self.places.logs, "report.json")
        fresh = kept.with_name(".report.json")
        try:  # whole or not at all; who watches is told all the same
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(kept)
        except OSError as exc:
            self.say(f"the report cannot be kept at {kept}: {exc.strerror}")
        self.tell(JobNote(report=report))

    # Words

    def trouble(
        self, code: str, what: str, *, next_step: str | None = None, last_words: str | None = None
    ) -> Problem:
        """Return a problem at this host in the present state."""
        return Problem(code, what, str(self.state), self.spec.host, last_words, next_step)

    def mark(self, name: str) -> None:
        """Remember when something happened."""
        self.marks.append(Mark(name, round(time.monotonic() - self.started_s, 6)))

    def say(self, text: str) -> None:
        """Write a line into the job's log (stderr, which the session redirected)."""
        log.write(f"{time.monotonic() - self.started_s:9.3f} {self.side}: {text}\n")

    def say_marks(self) -> None:
        """Write into the job's log when what happened."""
        words = ", ".join(f"{mark.name} {mark.at_s * 1e3:.2f}" for mark in self.marks)
        self.say(f"marks in ms: {words}")

    def complain(self) -> None:
        """Write the exception being handled into the job's log."""
        log.write(traceback.format_exc())


def boot_id() -> str:
    """Return this host's boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _words(problem: Problem) -> str:
    return f" ({problem.last_words})" if problem.last_words else ""
