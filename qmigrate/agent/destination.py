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
from qmigrate.agent.job import JobAgent
from qmigrate.agent.monitoring import Looked, Watched
from qmigrate.core.errors import HostError, MonitorError, Problem, QmigrateError
from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    Record,
    destination_step,
)
from qmigrate.core.job import DestinationSpec, TwinFacts
from qmigrate.core.model import RUNS, Address, RunState, Side
from qmigrate.core.takeover import destination_after
from qmigrate.core.tuning import Options, Party
from qmigrate.qmp.events import Event, MigrationEvent, MigrationStatus, ResumeEvent
from qmigrate.qmp.introspect import shape

D, DE, E = Destination, DestinationEvent, Effect


class DestinationAgent(JobAgent):
    """See the module; `spec.destination` says what to start."""

    side = Side.DESTINATION

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
            async with self.listening() as endpoint:
                if again:  # what is heard meanwhile waits until it is known where we stand
                    await self._take_over()
                else:
                    await self._prepare()
                self.nursery.start_soon(self.read_inbox)
                if self._unstarted:
                    await self.over.wait()
                self.ready.set()
                if not self.over.is_set():
                    self._wait_for_peer("the source did not appear")
                    self.nursery.start_soon(self.keep_link, endpoint, self.spec.patience.link_s)
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
            self._fail(problem or self.trouble("host", str(exc)))

    def _fail(self, problem: Problem) -> None:
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
                self._fail(exc.problem)
                return
            looked = await self.qemu.look() if self.qemu else looked
        self.run_it = entry.had in RUNS or entry.had is RunState.UNKNOWN
        self.state, effects = destination_after(
            entry.record, looked.look, looked.state, run_it=self.run_it
        )
        if looked.completed:
            self.looked = looked
            self.loaded.set()
        await self.carry_out(effects)

    # The peer

    def point(self, addresses: tuple[Address, ...]) -> None:
        """Learn where the source listens."""
        self.record(self.entry().record, peer=addresses)
        if self.endpoint is not None:
            self.endpoint.set_peer(addresses)

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
                self.nursery.start_soon(self._load, message)
            case peer.AreYouReady():
                await self._say_ready(message)
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

    async def _load(self, request: peer.Load) -> None:
        """Hand QEMU its end of the memory stream."""
        if self.qemu is None or self.link is None or self.endpoint is None:
            return
        try:
            qemu = self.qemu.qemu
            await self.qemu.tune(Party.DESTINATION, Options())
            # Early: netlink takes milliseconds, and later the guest stands still.
            macs = {tap.netdev: tap.mac for tap in self.plan.twin.taps if tap.mac}
            await self.announcing.arm_twin(self._exits, self.taps, macs)
            name = request.socket
            data_s = self.spec.patience.data_s
            with await self.endpoint.data_socket(self.link, name, data_s) as data:
                await qemu.monitor.pass_fd(data.fileno(), name)
            await self.fault("at loading")
            await qemu.incoming_fd(request.socket)
            await self.send(peer.Loading())
        except QmigrateError as exc:
            self.complain()
            self._fail(exc.problem)

    async def _say_ready(self, request: peer.AreYouReady) -> None:
        """Take what the source has learned, and say that QEMU is alive: the guest is stopped."""
        self.announcing.add(request.addresses)
        await self.fault("at pre-switchover")
        if self.qemu is not None and not self.qemu.has_ended():
            await self.send(peer.Ready())
            await self.fault("at switchover")

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
                self._fail(await self._load_failure())
            case ResumeEvent():
                self.mark("resumed")
                if self.resume_us is None:
                    self.resume_us = event.timestamp_us
                self.resumed.set()
            case _:
                pass

    async def _load_failure(self) -> Problem:
        what = "the destination's QEMU could not load the guest"
        if self.qemu is None:
            return self.trouble("rolled-back", what)
        try:
            words = (await self.qemu.qemu.query_migrate()).error_desc
        except MonitorError:
            words = None
        return self.trouble("rolled-back", what, last_words=words)

    # The table's effects

    def step(self, event: Any) -> tuple[Destination, Effects]:
        """See `core.handover.DESTINATION`."""
        return destination_step(self.state, event)

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
                if self._unstarted:  # nor is the source's agent then: nobody will ask
                    self.over.set()
            case E.REPORT_UNKNOWN:
                self.say("the outcome cannot be known here; nothing is touched")
            case E.END:
                await self.send(peer.Farewell(self.left))
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
