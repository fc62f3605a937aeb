"""The source's side of a job: it leads, and its report is the job's."""

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import trio

from netsetup.rtnl import Rtnl
from qmigrate.agent import peer, twin
from qmigrate.agent.announcing import Learning
from qmigrate.agent.copying import migrate, migrate_cancel, migrate_continue
from qmigrate.agent.ending import announce, clean, end, quit_qemu, return_guest, unknown
from qmigrate.agent.job import JobAgent, boot_id
from qmigrate.agent.monitoring import Looked, Watched
from qmigrate.agent.networking import Turning
from qmigrate.agent.pacing import Pace
from qmigrate.agent.preparing import Preparation
from qmigrate.core.errors import (
    GuestEndedError,
    HostError,
    MonitorError,
    Problem,
    QmigrateError,
)
from qmigrate.core.handover import (
    Effect,
    Effects,
    Record,
    Source,
    SourceEvent,
    source_step,
)
from qmigrate.core.job import (
    AnnounceReport,
    JobNote,
    Limits,
    Mark,
    SourceSpec,
)
from qmigrate.core.model import RUNS, RunState, Side
from qmigrate.core.rights import SOURCE_WORDS
from qmigrate.core.takeover import Look, source_after
from qmigrate.core.timeline import ClockOffset
from qmigrate.qmp.events import (
    Event,
    MigrationEvent,
    MigrationStatus,
    PassEvent,
    ResetEvent,
    ResumeEvent,
    ShutdownEvent,
    StopEvent,
)
from qmigrate.qmp.migration import MigrationProgress

PASSES_MARKED = 64  # a guest that does not converge has hundreds
MARKS_LIMIT = 128  # of the peer's; a move has 20
LEFTOVERS_LIMIT, WORDS_LIMIT, REASON_LIMIT = (
    16,
    400,
    4000,
)  # of the peer's; a report is a line that people read

S, SE, E = Source, SourceEvent, Effect


class SourceAgent(JobAgent):
    """See the module; `spec.source` says which guest."""

    side = Side.SOURCE
    words = SOURCE_WORDS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.spec.source is None:
            raise HostError("a source was started without its part of the job")
        self.guest: SourceSpec = self.spec.source
        self.state: Source = S.PREPARED
        self.limits: Limits = self.spec.limits
        self.stopped_by_us = False
        self.touched = False  # the copy began
        self.cancelled = False
        self._again = False  # the agent before this one died
        self._complete = False  # QEMU has sent everything and stands still
        self.qemu = Watched.none(self.spec.guest)
        self.rtnl: Rtnl
        self.figures = MigrationProgress(MigrationStatus.NONE)
        self.stop_us: int | None = None
        self.running: peer.Running | None = None
        self.offset: ClockOffset | None = None
        self.announced: AnnounceReport | None = None
        self.guest_events: list[str] = []
        self.left: tuple[str, ...] = ()
        self.peer_marks: tuple[Mark, ...] = ()
        self.still_enabled: str | None = None
        self.pace = Pace(self, lambda: self.state is S.COPYING)
        self.preparation = Preparation(self)
        self.learning = Learning(self.guest.taps, self.say)
        self.turning = Turning(self.spec.network.turns, self.say)
        self._farewell = trio.Event()
        self._deadline = trio.CancelScope()  # of whatever the present state waits for
        self._settled = trio.Event()  # whether the guest was paused by somebody is known
        self._settled.set()
        self._said_it_ran: bool | None = None  # to the destination, last

    async def run(self, *, again: bool) -> None:
        """Lead the job until END; raise only for a defect."""
        async with (
            AsyncExitStack() as self._exits,
            Rtnl() as self.rtnl,
            trio.open_nursery() as self.nursery,
        ):
            async with self.linking.listening(boot_id()) as endpoint:
                endpoint.set_peer(self.entry().peer or self.guest.peer_addresses)
                await self.turning.arm(self.rtnl, self._exits)
                if again:  # what is heard meanwhile waits until it is known where we stand
                    await self._take_over()
                else:
                    await self._open()
                self.nursery.start_soon(self.read_inbox)
                self.mark("ready")
                self.ready.set()
                if not self.over.is_set():
                    self.nursery.start_soon(self.linking.keep, endpoint, self.spec.patience.link_s)
                    if not again:
                        self.nursery.start_soon(self.preparation.run)
                        self.learning.start(self.nursery)
                    await self.over.wait()
            self.nursery.cancel_scope.cancel()

    # Before the first byte

    async def _open(self) -> None:
        """Take hold of the guest; what fails here is the job's problem, and nothing was touched."""
        # With all that a next agent needs to look: what it cannot look at it takes for gone.
        self.record(
            Record.PREPARED,
            pid=self.guest.pid,
            start_ticks=self.guest.start_ticks,
            monitor=self.guest.monitor,
        )
        try:
            await self._hold(self.guest.pid, self.guest.start_ticks, self.guest.monitor)
            self.had = await self.qemu.qemu.status()
            self.record(Record.PREPARED)
            await self.fault("at prepare")
        except QmigrateError as exc:
            self.post(SE.GIVE_UP, exc.problem)

    async def _hold(self, pid: int, start_ticks: int, monitor: str) -> None:
        pidfd = twin.open_process(pid, start_ticks)
        if pidfd is None:
            raise GuestEndedError(f"the guest's QEMU (pid {pid}) has ended")
        self.qemu = Watched(self.qmp_thread, pidfd, monitor, self.spec.guest, self.on_qemu)
        self.nursery.start_soon(self._follow, self.qemu)
        await self.qemu.wait_open(self.spec.patience.monitor_s)

    async def _follow(self, watched: Watched) -> None:
        await watched.follow()
        why = next((w for w in self.guest_events if w.startswith("shut down")), None)
        what = "the guest has " + why if why else "the guest's QEMU ended on the source"
        self.post(SE.QEMU_GONE, self.trouble(GuestEndedError.code, what))

    async def _take_over(self) -> None:
        """Go on from the journal of an agent that died."""
        self._again = True
        entry = self.entry()
        self.say(f"taking over at {entry.record}")
        self.had, self.stopped_by_us = entry.had, entry.stopped_by_us
        looked = Looked.gone()
        if entry.pid is not None and entry.start_ticks is not None and entry.monitor is not None:
            try:
                await self._hold(entry.pid, entry.start_ticks, entry.monitor)
                looked = await self.qemu.look()
            except GuestEndedError as exc:
                self.problem = exc.problem
        self.touched = looked.status is not MigrationStatus.NONE
        self._complete = looked.look is Look.COMPLETED
        what = "the source's agent died during the job and another went on"
        self.problem = self.problem or self.trouble("rolled-back", what)
        self.state, effects = source_after(entry.record, looked.look)
        self._wait_by_state()
        await self.carry_out(effects)

    # The peer

    async def connected(self) -> None:
        """A link stands (again): the table says what must be repeated."""
        if self.state is not S.PREPARED:
            self.post(SE.CONNECTED)

    def unlinked(self, problem: Problem, *, first: bool) -> None:
        """Give up while the guest still runs here; later QEMU or the answer decides."""
        problem = replace(
            problem,
            phase=problem.phase or str(self.state),
            host=problem.host or self.spec.peer_host,
        )
        if first or self.state is S.HELD:
            self.post(SE.GIVE_UP, problem)
        elif self.state in (S.PREPARED, S.COPYING):
            self.nursery.start_soon(self._give_up_unless_linked, problem)

    async def _give_up_unless_linked(self, problem: Problem) -> None:
        with trio.move_on_after(self.spec.patience.link_grace_s):
            await self.linking.wait_linked()
            return
        if self.state in (S.PREPARED, S.COPYING, S.HELD):
            self.post(SE.GIVE_UP, problem)

    async def heard(self, message: peer.Message) -> None:
        """Turn a message of the destination's into an event."""
        match message:
            case peer.Twin() | peer.Loading():
                self.preparation.heard(message)
            case peer.Ready():
                await self._settled.wait()
                if self._said_it_ran is (self.had in RUNS):
                    self.post(SE.CHECKED)
                else:  # it was paused a moment ago
                    await self._ask_ready()
            case peer.Loaded():
                self.post(SE.LOADED)
            case peer.Running():
                self.running = message
                self.nursery.start_soon(self.turning.turn)  # by a new agent, whose GO it was not
                if message.resume_us is not None:
                    self.offset = self.linking.clock_offset(at_us=message.resume_us)
                self.post(SE.RUNNING)
            case peer.Refused():
                self.post(SE.REFUSED, self._theirs(message.reason))
            case peer.Returned():
                self.post(SE.RETURNED, self._theirs(message.reason))
            case peer.Lost():
                self.post(SE.LOST, self._theirs(message.reason))
            case peer.Farewell():
                theirs = (what[:WORDS_LIMIT] for what in message.leftovers[:LEFTOVERS_LIMIT])
                self.left += tuple(f"{self.spec.peer_host}: {what}" for what in theirs)
                self.peer_marks = message.marks[:MARKS_LIMIT]
                self._farewell.set()
            case _:
                self.say(f"not for a source: {type(message).__name__}")

    async def _ask_ready(self) -> None:
        self._said_it_ran = self.had in RUNS
        await self.send(peer.AreYouReady(self.learning.addresses, ran=self._said_it_ran))

    def _theirs(self, reason: str) -> Problem:
        return Problem(
            "rolled-back", reason[:REASON_LIMIT], str(self.state), self.spec.peer_host, None, None
        )

    def cancel(self) -> None:
        """Take a person's wish to stop; the table says whether it can still be granted."""
        self.post(SE.CANCEL)

    # QEMU

    async def on_qemu(self, event: Event) -> None:
        """Turn an event of the guest's QEMU into one of the table's."""
        match event:
            case StopEvent():
                self.stop_us = event.timestamp_us
                self._settled = trio.Event()
                self.nursery.start_soon(self._who_stopped, self._settled)
            case ResumeEvent():
                self.stop_us = None
                if self.state in (S.PREPARED, S.COPYING):
                    self.had = RunState.RUNNING
                elif self._complete and self.state in (S.SWITCHING, S.LEFT, S.AWAY):
                    what = "somebody let the guest run on the source"
                    self.post(SE.QEMU_RUNS_ON, self.trouble("unknown-outcome", what))
            case ShutdownEvent() if self.state is not S.PROVED:  # then it is our own quit
                self.guest_events.append(f"shut down: {event.reason}")
            case ResetEvent():
                self.guest_events.append(f"was reset: {event.reason}")
            case PassEvent() if event.number <= PASSES_MARKED:
                self.mark(f"pass {event.number}")
            case MigrationEvent(status=MigrationStatus.PRE_SWITCHOVER):
                self.mark("pre-switchover")
                await self.fault("at pre-switchover")
                self.post(SE.PRE_SWITCHOVER)
            case MigrationEvent(status=MigrationStatus.COMPLETED):
                self.mark("completed")
                self._complete = True
                await self.fault("at completed")
                self.post(SE.QEMU_COMPLETED)
            case MigrationEvent(status=MigrationStatus.FAILED | MigrationStatus.CANCELLED):
                self.nursery.start_soon(self._runs_on, event.status)
            case _:
                pass

    async def _who_stopped(self, settled: trio.Event) -> None:
        """Find out whether QEMU stopped the guest for the switchover, or somebody paused it."""
        try:
            state = await self.qemu.qemu.status()
            if state in (RunState.PAUSED, RunState.SHUTDOWN) and not self.stopped_by_us:
                self.had = state
        except MonitorError as exc:
            self.say(f"why the guest stopped is not known: {exc}")
        settled.set()

    async def _runs_on(self, status: MigrationStatus) -> None:
        problem = None
        if status is MigrationStatus.FAILED:
            words = None
            try:
                words = (await self.qemu.qemu.query_migrate()).error_desc
            except MonitorError as exc:
                self.say(f"why QEMU failed is not known: {exc}")
            what = "QEMU on the source ended the migration"
            problem = self.trouble("rolled-back", what, last_words=words)
        self.post(SE.QEMU_RUNS_ON, problem)

    # The table's effects

    def step(self, event: Any) -> tuple[Source, Effects]:
        """See `core.handover.SOURCE`; a change of state calls off what the old one waited for."""
        following, effects = source_step(self.state, event)
        if event is SE.CANCEL and following in (S.BACK, S.CANCELLING):
            self.cancelled = self.cancelled or self.problem is None
        if following is not self.state or event is SE.STUCK:  # STUCK again, until it is not
            self._deadline.cancel()
            self._wait_by_state(following)
        return following, effects

    def _wait_by_state(self, state: Source | None = None) -> None:
        """Give the state that begins now an end, where it could wait for ever."""
        patience = self.spec.patience
        match state or self.state:
            case S.HELD:
                waits = (patience.ready_s, SE.GIVE_UP, "the destination was not ready")
            case S.SWITCHING:
                waits = (patience.verdict_s, SE.STUCK, "QEMU came to no verdict")
            case S.CANCELLING | S.RECALLING:
                waits = (patience.cancel_s, SE.STUCK, "QEMU did not end the migration")
            case S.AWAY | S.LEFT | S.MISSED | S.STRAYED:
                waits = (patience.answer_s, SE.NO_ANSWER, "the destination did not answer")
            case _:
                return
        self._deadline = self.post_later(*waits)

    async def effect(self, effect: Effect) -> None:
        """Carry out one effect on the source."""
        match effect:
            case E.MIGRATE:
                await migrate(self)
            case E.CHECK:
                await self._ask_ready()
            case E.MIGRATE_CONTINUE:
                await migrate_continue(self)
            case E.MIGRATE_CANCEL:
                await migrate_cancel(self)
            case E.SEND_GO:
                await self.send(peer.Go(run=self.had in RUNS, alone=self.qemu.has_ended()))
                self.mark("go sent")
                self.nursery.start_soon(self.turning.turn)
            case E.SEND_ASK:
                await self.send(peer.Ask())
            case E.SEND_REFUSE:
                await self.send(peer.Refuse(self._reason()))
            case E.SEND_FINISH:
                await self.send(peer.Finish())
            case E.QUIT_QEMU:
                self.nursery.start_soon(quit_qemu, self)
            case E.RETURN_GUEST:
                self.nursery.start_soon(return_guest, self)
            case E.ANNOUNCE:
                self.nursery.start_soon(announce, self)
            case E.CLEAN:
                await clean(self)
            case E.ANSWER_DECIDING:
                self.tell(JobNote(warning="too late to cancel: the handover is being decided"))
            case E.REPORT_UNKNOWN:
                self.tell(JobNote(unknown=unknown(self)))
            case E.END:
                self.nursery.start_soon(end, self)
            case _:
                raise HostError(f"a source cannot {effect}")

    def _reason(self) -> str:
        if self.problem is None:
            return "cancelled" if self.cancelled else "no reason is recorded"
        words = self.problem.last_words
        return f"{self.problem.what}: {words}" if words else self.problem.what
