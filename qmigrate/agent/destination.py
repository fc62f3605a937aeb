"""The destination's side of a job: makes the twin, loads, and decides once whether it takes GO."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from netsetup.links import Tap
from netsetup.rtnl import Rtnl
from qmigrate.agent import peer, twin
from qmigrate.agent.announcing import Announcing
from qmigrate.agent.deciding import look, look_ahead, run_guest
from qmigrate.agent.job import JobAgent, boot_id
from qmigrate.agent.loading import load, load_failure, say_ready
from qmigrate.agent.monitoring import Looked, Watched
from qmigrate.agent.networking import release
from qmigrate.core.errors import HostError, MonitorError, Problem, QmigrateError
from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    Record,
    destination_step,
)
from qmigrate.core.home import ReleaseTunnels
from qmigrate.core.job import DestinationSpec, TwinFacts
from qmigrate.core.model import RUNS, RunState, Side
from qmigrate.core.rights import DESTINATION_WORDS
from qmigrate.core.takeover import destination_after
from qmigrate.qmp.events import Event, MigrationEvent, MigrationStatus, ResumeEvent
from qmigrate.qmp.introspect import shape

D, DE, E = Destination, DestinationEvent, Effect


class DestinationAgent(JobAgent):
    """See the module; `spec.destination` says what to start."""

    side = Side.DESTINATION
    words = DESTINATION_WORDS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.spec.destination is None:
            raise HostError("a destination was started without its part of the job")
        self.plan: DestinationSpec = self.spec.destination
        self.tag = self.plan.twin.tag
        self.state: Destination = D.PREPARED
        self.qemu: Watched | None = None
        self.rtnl: Rtnl
        self.facts: TwinFacts | None = None
        self.taps: tuple[tuple[str, Tap], ...] = ()
        self.run_it = True
        self.alone = False  # the source's copy is gone
        self.announcing: Announcing
        self.resume_us: int | None = None
        self.loaded = trio.Event()  # nothing more will come, for better or worse
        self.resumed = trio.Event()
        self.looked: Looked | None = None
        self.left: tuple[str, ...] = ()
        self._unstarted = False  # the twin could not be made
        self._patience: trio.CancelScope | None = None
        self._exits: AsyncExitStack

    @property
    def log(self) -> Path:
        """Where the twin's stderr goes."""
        return self.places.logs / "qemu.log"

    async def run(self, *, again: bool) -> None:
        """Be the destination until END; raise only for a defect."""
        async with (
            AsyncExitStack() as self._exits,
            Rtnl() as self.rtnl,
            trio.open_nursery() as self.nursery,
        ):
            self.announcing = Announcing(self.rtnl, self.plan.addresses, self.say)
            async with self.linking.listening(boot_id()) as endpoint:
                if again:  # what is heard meanwhile waits until it is known where we stand
                    await self._take_over()
                else:
                    await self._prepare()
                self.nursery.start_soon(self.read_inbox)
                if self._unstarted:
                    await self.over.wait()
                self.mark("ready")
                self.ready.set()
                if not self.over.is_set():
                    self._wait_for_peer("the source did not appear")
                    self.nursery.start_soon(self.linking.keep, endpoint, self.spec.patience.link_s)
                    await self.over.wait()
            self.say_marks()
            await self._announce_on()
            self.nursery.cancel_scope.cancel()

    async def _announce_on(self) -> None:
        """Keep to the announcer's schedule, holding nothing: the guest may move on meanwhile."""
        if self.qemu is None or self.announcing.complete:
            return
        self.qemu.let_go()
        await self.let_go()
        async with trio.open_nursery() as nursery:

            async def until_it_leaves(pidfd: int) -> None:
                await twin.wait_end(pidfd)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_it_leaves, self.qemu.pidfd)
            await self.announcing.wait_complete()
            nursery.cancel_scope.cancel()

    async def _prepare(self) -> None:
        """Make the twin; what fails takes everything down again and is the job's problem."""
        self.record(Record.PREPARED)
        try:
            owner = twin.account(self.plan.twin)
            self.taps = await twin.make_taps(self.rtnl, self.plan.twin, owner, self._made)
            with twin.start(self.plan.twin, owner, self.taps, self.log, self._made) as started:
                await self.fault("at start")
                self.record(
                    Record.PREPARED,
                    pid=started.pid,
                    start_ticks=started.start_ticks,
                    monitor=started.monitor,
                )
                self.mark("started")
            await self._hold(started, self.spec.patience.start_s)
            await self.fault("at prepare")
        except (QmigrateError, OSError) as exc:
            self.complain()
            problem = exc.problem if isinstance(exc, QmigrateError) else None
            self._unstarted = True
            if self.qemu is not None and self.qemu.has_ended():  # why it does not answer
                problem = self.trouble(
                    "host", "the destination's QEMU ended as soon as it was started"
                )
            self.fail(problem or self.trouble("host", str(exc)))

    def fail(self, problem: Problem) -> None:
        """Refuse for `problem`, with what QEMU has said last."""
        words = twin.last_words(self.log)
        self.post(
            DE.REFUSE,
            self.trouble(
                problem.code,
                problem.what,
                next_step=problem.next_step,
                last_words=words or problem.last_words,
            ),
        )

    async def _hold(self, started: twin.Twin, deadline_s: float) -> None:
        self.qemu = Watched(
            self.qmp_thread, started.pidfd, started.monitor, self.spec.guest, self.on_qemu
        )
        self.nursery.start_soon(self._follow, self.qemu)
        await self.qemu.wait_open(deadline_s)
        self.mark("greeted")
        self.facts = TwinFacts(
            started.pid,
            await shape(self.qemu.qemu),
            tuple((netdev, tap.name) for netdev, tap in self.taps),
        )

    async def _follow(self, watched: Watched) -> None:
        await watched.follow()
        if not watched.has_ended():
            return
        self.loaded.set()
        words = twin.last_words(self.log)
        problem = self.trouble("host", "the destination's QEMU ended", last_words=words)
        self.post(DE.QEMU_GONE, problem)

    def _made(self, what: str) -> None:
        entry = self.entry()
        self.record(entry.record, made=(*entry.made, what))

    async def _take_over(self) -> None:
        """Go on from the journal of an agent that died."""
        entry = self.entry()
        self.say(f"taking over at {entry.record}")
        if self.endpoint is not None:
            self.endpoint.set_peer(entry.peer)
        looked = Looked.gone()
        pidfd = twin.open_process(entry.pid, entry.start_ticks)
        if pidfd is not None and entry.pid is not None and entry.monitor is not None:
            started = twin.Twin(pidfd=pidfd, pid=entry.pid, start_ticks=0, monitor=entry.monitor)
            try:
                await self._hold(started, self.spec.patience.start_s)
            except QmigrateError as exc:
                self.fail(exc.problem)
                return
            looked = await self.qemu.look() if self.qemu else looked
        self.had = entry.had
        self.run_it = entry.had in RUNS or entry.had is RunState.UNKNOWN
        self.state, effects = destination_after(
            entry.record, looked.look, looked.state, run_it=self.run_it
        )
        if looked.completed:
            self.looked = looked
            self.loaded.set()
        await self.carry_out(effects)

    # The peer

    async def connected(self) -> None:
        """Introduce the twin; repeat what was decided."""
        if self._patience:
            self._patience.cancel()
            self._patience = None
        if self.facts is not None:
            await self.send(peer.Twin(self.facts))
        if self.state in (D.REFUSED, D.RETURNED):
            await self._answer_recorded()

    def unlinked(self, problem: Problem, *, first: bool) -> None:
        """Have patience with a source that was here before; each vain dial takes none away."""
        if self.link is not None:  # it is heard by a controller's hands
            return
        if not first and self._patience is None:
            self._wait_for_peer("the link to the source broke and it did not come back")

    def _wait_for_peer(self, what: str) -> None:
        """Give up if nobody comes, unless all is loaded: a loaded copy may be the last."""
        self._patience = scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(self.spec.patience.peer_s)
                if self.loaded.is_set() and self.state is D.PREPARED:
                    self.say("loaded, and no source: waiting for a GO, for as long as it takes")
                    return
                self.post(DE.REFUSE, self.trouble("unreachable", what))
                await trio.sleep(self.spec.patience.linger_s)
                if self.state in (D.REFUSED, D.RETURNED):
                    self.over.set()

        self.nursery.start_soon(wait)

    async def heard(self, message: peer.Message) -> None:
        """Turn a message of the source's into work or an event."""
        match message:
            case peer.Load():
                self.nursery.start_soon(load, self, message)
            case peer.AreYouReady():
                await say_ready(self, message)
            case peer.Go():
                self.mark("go heard")
                self.run_it, self.alone = message.run, message.alone
                self.had = RunState.RUNNING if message.run else RunState.PAUSED
                self.post(DE.GO)
            case peer.Ask():
                self.post(DE.ASK)
            case peer.Refuse():
                problem = self.trouble("rolled-back", f"the source gave up: {message.reason}")
                self.post(DE.REFUSE, problem)
            case peer.Finish():
                self.post(DE.FINISH)
            case _:
                self.say(f"not for a destination: {type(message).__name__}")

    # QEMU

    async def on_qemu(self, event: Event) -> None:
        """Turn an event of the twin's into what the table or a waiting task needs."""
        match event:
            case MigrationEvent(status=MigrationStatus.ACTIVE):
                await self.fault("at copying")
            case MigrationEvent(status=MigrationStatus.COMPLETED):
                self.mark("loaded")
                await self.fault("at loaded")
                self.nursery.start_soon(look_ahead, self)
            case MigrationEvent(status=MigrationStatus.FAILED):
                self.loaded.set()  # nothing more will come
                self.fail(await load_failure(self))
            case ResumeEvent():
                self.mark("resumed")
                if self.resume_us is None:
                    self.resume_us = event.timestamp_us
                self.resumed.set()
                if self.state in (D.PREPARED, D.DECIDING):  # not by us
                    self.post(DE.RUNS)
            case _:
                pass

    # The table's effects

    def step(self, event: Any) -> tuple[Destination, Effects]:
        """See `core.handover.DESTINATION`."""
        following, effects = destination_step(self.state, event)
        if event is DE.RUN_HERE and following is D.DECIDING:
            self.alone = True  # whoever vouches for it has seen to the source's copy
        return following, effects

    async def effect(self, effect: Effect) -> None:
        """Carry out one effect on the destination."""
        match effect:
            case E.LOOK:
                await look(self)
            case E.RUN:
                await run_guest(self)
            case E.ANNOUNCE:
                await self._announce()
                self.nursery.start_soon(self._restore)
            case E.ANSWER_LOADED:
                await self.send(peer.Loaded())
            case E.ANSWER_RUNNING:
                await self.send(peer.Running(self.resume_us, self.announcing.report()))
            case E.ANSWER_REFUSED:
                await self.send(peer.Refused(self._reason()))
            case E.ANSWER_RETURNED:
                await self.send(peer.Returned(self._reason()))
            case E.ANSWER_LOST:
                await self.send(peer.Lost(self._reason()))
            case E.QUIT_QEMU:
                await self._quit()
            case E.CLEAN:
                self.left += await twin.remove(self.rtnl, self.tag)
                void = ReleaseTunnels(self.tag, end="away")  # the guest is not here
                self.left += await release(self.rtnl, void, self.spec.host)
                if self._unstarted:  # nor is the source's agent then: nobody will ask
                    self.over.set()
            case E.REPORT_UNKNOWN:
                self.say("the outcome cannot be known here; nothing is touched")
            case E.END:
                if self.state is D.DONE:
                    void = ReleaseTunnels(self.tag, keep=self.spec.network.tunnels)
                    self.left += await release(self.rtnl, void, self.spec.host)
                await self.send(peer.Farewell(self.left, tuple(self.marks)))
                # Closed by us it would be reset, and words still under way with it.
                with trio.move_on_after(self.spec.patience.farewell_s):
                    await self.linking.wait_unlinked()
                self.over.set()
            case _:
                raise HostError(f"a destination cannot {effect}")

    def _reason(self) -> str:
        words = self.problem.last_words if self.problem else None
        what = self.problem.what if self.problem else "no reason is recorded"
        return f"{what}: {words}" if words else what

    async def _answer_recorded(self) -> None:
        answer = E.ANSWER_REFUSED if self.state is D.REFUSED else E.ANSWER_RETURNED
        await self.effect(answer)

    async def _announce(self) -> None:
        await self.announcing.fire(self.nursery)
        if self.qemu is not None and self.run_it:
            self.nursery.start_soon(self._announce_by_qemu, self.qemu)

    async def _announce_by_qemu(self, watched: Watched) -> None:
        """Have QEMU repeat its own: what it queued while paused left in one burst at cont."""
        try:
            await watched.qemu.announce_self()
        except MonitorError as exc:
            self.say(f"announce-self: {exc}")

    async def _restore(self) -> None:
        """Leave QEMU's migration parameters as a fresh one has them: they would stay set."""
        try:
            if self.qemu is not None:
                await self.qemu.restore()
        except MonitorError as exc:
            self.say(f"migration parameters were not restored: {exc}")

    def abandon(self) -> None:
        """Give up because the controller could not start the source."""
        self._unstarted = True
        self.post(DE.REFUSE, self.trouble("cancelled", "the source was not started"))

    async def _quit(self) -> None:
        """End the twin: it has never run, or is never to run again."""
        if self.qemu is None:
            return
        try:
            await twin.kill(self.qemu.pidfd)
        except QmigrateError as exc:
            self.left += (exc.problem.what,)
