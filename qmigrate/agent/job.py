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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from qmigrate.agent import log, peer
from qmigrate.agent.carrying import CarriedLink
from qmigrate.agent.journal import VERSION, Entry, Journal
from qmigrate.agent.linking import Linking
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.protocol import codec
from qmigrate.core.errors import (
    GuestEndedError,
    HostError,
    Problem,
)
from qmigrate.core.handover import Effect, ImpossibleEventError, Record, Word, Write
from qmigrate.core.job import JobNote, JobReport, JobSpec, Mark
from qmigrate.core.model import Address, RunState, Side
from qmigrate.core.secret import Identity
from qmigrate.qmp.client import QmpThread
from qmigrate.transport.endpoint import Endpoint
from qmigrate.transport.link import Link

WORD_DEADLINE_S = 15.0  # for the reader to come to a word: an effect may wait for QEMU meanwhile


@dataclass(slots=True)
class Told:
    """A word from outside on its way through the inbox, and what has become of it."""

    settled: trio.Event = field(default_factory=trio.Event)
    taken: bool = False
    withdrawn: bool = False  # whoever said it has been told that nothing was done

    def take(self) -> None:
        """Say that the table has taken it."""
        self.taken = True
        self.settled.set()


@dataclass(frozen=True, slots=True)
class Posted:
    """What is in the inbox: an event of the table and, where there is one, the reason."""

    event: Any
    problem: Problem | None = None
    told: Told | None = None


class JobAgent(ABC):
    """What both sides share: inbox, journal, notes, words from outside; see the module."""

    side: Side
    words: Mapping[Word, Any]  # what this side can be told, and the event that it is

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
        self.peer_boot_id: str | None = None  # as of the last link
        self.linking = Linking(self)
        self.started_s = time.monotonic()
        self.marks: list[Mark] = []
        self.ready = trio.Event()  # this side can be reached by its peer, or has failed
        self.over = trio.Event()  # the effect END was carried out
        self._send_inbox, self._inbox = trio.open_memory_channel[Posted](float("inf"))
        self.let_go: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # of lock and door
        self.keep_told: Callable[[JobSpec], None] = lambda _: None  # where the next agent reads it
        self.unheard = False  # the peer may still ask: the journal must stay
        self._points = {f.moment: f.action for f in spec.faults if f.side is self.side}
        self._watchers: set[trio.MemorySendChannel[JobNote]] = set()
        self._latest: JobNote | None = None
        self.attended = trio.Event()  # somebody follows the job at its door
        self.deserted = trio.Event()  # nobody does any more
        self.nursery: trio.Nursery

    # The inbox

    def post(self, event: Any, problem: Problem | None = None) -> None:
        """Put an event of the table into the inbox; the first problem is kept as the reason."""
        self._send_inbox.send_nowait(Posted(event, problem))

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
                posted = self._inbox.receive_nowait()
            except trio.WouldBlock:
                posted = await self._inbox.receive()
            if posted.told is not None and posted.told.withdrawn:
                continue
            event, problem = posted.event, posted.problem
            try:
                following, effects = self.step(event)
            except ImpossibleEventError as exc:
                self.say(f"nothing was done: {exc}")
                if posted.told is not None:
                    posted.told.settled.set()
                continue
            if problem is not None:
                self.say(f"{event}: {problem.what}" + _words(problem))
                # A guest's own end explains whatever was seen of it before.
                if self.problem is None or problem.code == GuestEndedError.code:
                    self.problem = problem
            before, self.state = self.state, following
            if posted.told is not None:
                posted.told.take()
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
        known = self.entry()
        entry = replace(
            known,
            record=record,
            peer_boot_id=self.peer_boot_id or known.peer_boot_id,
            had=known.had if self.had is RunState.UNKNOWN else self.had,
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

    # The peer

    @property
    def link(self) -> Link | CarriedLink | None:
        """The way to the peer that there is, direct or carried."""
        return self.linking.link

    @property
    def endpoint(self) -> Endpoint | None:
        """Our end of the direct link, once there is one."""
        return self.linking.endpoint

    async def send(self, message: peer.Message) -> bool:
        """Send a message if there is a link; whoever waits for an answer has a deadline."""
        return await self.linking.send(message)

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

    def point(self, addresses: tuple[Address, ...]) -> None:
        """Learn where the peer listens."""
        self.record(self.entry().record, peer=addresses)
        if self.endpoint is not None:
            self.endpoint.set_peer(addresses)

    def rekey(self, identity: Identity, addresses: tuple[Address, ...]) -> Endpoint:
        """Go on with new keys, since the peer was revived with such."""
        spec = replace(self.spec, identity=identity)
        endpoint = self.linking.rekey(identity)
        self.spec = spec
        self.keep_told(spec)  # for the agent after this one
        if addresses:
            self.point(addresses)
        self.say("new keys, and a new peer")
        return endpoint

    async def hear_word(self, word: Word) -> str:
        """Take a word from outside as an event; return what it came to.

        Raises `HostError` where the table holds no such event, and nothing has happened.
        """
        event = self.words.get(word)
        if event is None:
            raise HostError(
                f"{word} is nothing that a {self.side} can be told",
                next_step=f"it can be told: {', '.join(self.words)}",
            )
        told = Told()
        before = self.state
        self._send_inbox.send_nowait(Posted(event, self.why_told(word), told))
        try:
            with trio.move_on_after(WORD_DEADLINE_S):
                await told.settled.wait()
        finally:
            told.withdrawn = not told.settled.is_set()
        if told.taken:
            return f"{word}: {before}, then {self.state}"
        busy = "has not come to it" if not told.settled.is_set() else "has no use for it"
        raise HostError(
            f"{word}: the {self.side}'s agent is {self.state} and {busy}; nothing was done",
            next_step=f"see where it stands: qmigrate watch {self.spec.job}@{self.spec.host}",
        )

    def why_told(self, word: Word) -> Problem | None:
        """Return the reason that is kept, if the word brings the job to an end."""
        match word:
            case Word.RUN_HERE:
                what = "somebody vouched that the guest runs nowhere else"
            case Word.REFUSE:
                what = "somebody said that the source will never hand the guest over"
            case Word.NO_RECORD:
                what = f"{self.spec.peer_host} knows nothing of the job"
            case Word.PEER_IS_DEAD:
                what = f"somebody vouched that {self.spec.peer_host} is dead"
        return self.trouble("rolled-back", what)

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
        if note.linked is None:  # that is news for who is here, and soon none
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
