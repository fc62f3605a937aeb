"""One migration: agents, facts, preflight, plan, keys, two jobs, watch.

Once both jobs are started the agents need nobody: the controller only watches, and may be gone.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import trio

from qmigrate.agent.requests import CancelJob, PointJob, StartJob, WatchJob
from qmigrate.controller.carry import carry
from qmigrate.controller.keys import JobKeys, make_keys
from qmigrate.controller.moving import MoveNetwork
from qmigrate.controller.plan import Plan, Wish, find_source, make_plan
from qmigrate.controller.remote import Agent, open_agents
from qmigrate.controller.result import Result, come_back, exit_code, explain_unstarted, lost
from qmigrate.controller.routing import Routing, tunnels_of, turns_of
from qmigrate.core.errors import (
    AgentLostError,
    BlockedError,
    HostError,
    Problem,
    QmigrateError,
    UsageError,
)
from qmigrate.core.job import (
    Announced,
    DestinationSpec,
    GuestTap,
    JobNote,
    JobReport,
    JobSpec,
    NetworkSpec,
    Outcome,
    SourceSpec,
)
from qmigrate.core.model import Address, Finding, HostFacts, HostSpec, Progress, Side
from qmigrate.core.network_rules import At
from qmigrate.core.preflight import blockers

START_DEADLINE_S = 120.0  # for a job's agent and its QEMU, whose own deadlines say more

UNKNOWN_PATIENCE_S = 15.0  # after the source said that it cannot know: links come back in seconds


class View(Protocol):
    """Whoever shows how it goes."""

    def progress(self, progress: Progress) -> None:
        """Show how far it is."""

    def warn(self, text: str) -> None:
        """Show a sentence that does not stop anything."""

    def started(self, job: str) -> None:
        """Show that the job exists now."""


@dataclass(slots=True)
class Reins:
    """How the user holds a move that is under way: cancel it, or leave it to itself."""

    cancel: trio.Event
    leave: trio.Event


class Move:
    """One migration from the user's wish to its result."""

    def __init__(self, wish: Wish, view: View, reins: Reins, *, detach: bool = False) -> None:
        self.wish = wish
        self.view = view
        self.reins = reins
        self.detach = detach
        self.began_s = perf_counter()
        self.connect_s = 0.0
        self.plan_s = 0.0
        self.plan: Plan | None = None
        self.network: MoveNetwork | None = None
        self.opened: tuple[Agent, ...] = ()
        self.keys = _Making()
        self._unknown = trio.Event()
        self._apart = trio.Event()  # the agents have no link, as far as the source knows
        self._why_unknown: Problem | None = None

    def _phase(self, name: str, text: str | None = None) -> None:
        elapsed_s = round(perf_counter() - self.began_s, 3)
        self.view.progress(Progress(name, None, None, None, None, None, None, elapsed_s, text))

    async def run(self, *, plan_only: bool = False) -> Result | Plan:
        """Do it; raises `QmigrateError` for what went wrong before anything was touched."""
        self._phase("connect")
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            if not plan_only:
                nursery.start_soon(self.keys.make)
            source, spec, destination = await self._connect(stack)
            self.connect_s = perf_counter() - self.began_s
            self._phase("preflight")
            ends = (spec, source), (self.wish.destination, destination)
            routing = Routing(self.wish.network, *ends, nursery)
            stack.callback(routing.close)
            self.plan = await make_plan(self.wish, source, spec, destination, routing)
            self.network = MoveNetwork(routing, self.plan.routes, self.plan.twin.plan.tag)
            self.plan_s = perf_counter() - self.began_s - self.connect_s
            if plan_only:
                return self.plan
            blocking = blockers(self.plan.findings)
            if blocking:
                raise BlockedByFindings(self.plan.findings)
            # Whoever reads --json must know the job before it can be lost sight of.
            self._phase("prepare", f"job {self.plan.job}")
            return await self._move(self.plan, await self.keys.get(), self.network)

    async def _connect(self, stack: AsyncExitStack) -> tuple[Agent, HostSpec, Agent]:
        """Open all agents side by side; a host that may not have the guest may also fail."""
        wish = self.wish
        sources = [s for s in wish.sources if s.name != wish.destination.name]
        if not sources:
            raise UsageError(
                f"there is no other host than {wish.destination.name} to look for {wish.guest} on",
                next_step=f"say where it is, if not on {wish.destination.name}: --from HOST",
            )
        opened = await stack.enter_async_context(open_agents((wish.destination, *sources)))
        destination, *others = opened
        if not isinstance(destination, Agent):
            raise destination
        agents = [agent for agent in others if isinstance(agent, Agent)]
        self.opened = (destination, *agents)
        failed = [error for error in others if isinstance(error, HostError)]
        if failed and len(sources) == 1:
            raise failed[0]
        for error in failed:
            self.view.warn(f"{error.problem.host}: {error.problem.what}")
        source = agents[0] if len(sources) == 1 else await find_source(wish.guest, agents)
        spec = next(s for s in sources if s.name == source.host)
        return source, spec, destination

    async def _move(self, plan: Plan, keys: JobKeys, network: MoveNetwork) -> Result:
        source, destination = network.agents
        self.view.started(plan.job)
        async with network.build():
            try:
                there = await destination.call(
                    StartJob(destination_spec(plan, keys)), deadline_s=START_DEADLINE_S
                )
                here = await source.call(
                    StartJob(source_spec(plan, keys, there.addresses)),
                    deadline_s=START_DEADLINE_S,
                )
            except QmigrateError as exc:
                explain_unstarted(exc, plan.job)
                await _quietly(destination.call(CancelJob(plan.job)))
                raise
        await _quietly(destination.call(PointJob(plan.job, here.addresses)))
        if self.detach:
            return self._result(Outcome.DETACHED, _left(plan), None)
        return await self._watch(plan, network)

    async def _watch(self, plan: Plan, network: MoveNetwork) -> Result:
        """Follow the job to its end, or until the user leaves."""
        source, destination = network.agents
        report: JobReport | None = None
        problem: Problem | None = None
        outcome = Outcome.DETACHED
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal report, problem, outcome
                try:
                    report = await self._follow(plan, source)
                except HostError as exc:  # also when nobody works at the job there any more
                    outcome, problem = Outcome.UNKNOWN, lost(plan.job, plan.source.name, exc)
                nursery.cancel_scope.cancel()

            async def leave() -> None:
                await self.reins.leave.wait()
                nursery.cancel_scope.cancel()

            async def lose_patience() -> None:
                nonlocal outcome, problem
                await self._unknown.wait()
                await trio.sleep(UNKNOWN_PATIENCE_S)
                outcome, problem = Outcome.UNKNOWN, self._why_unknown
                nursery.cancel_scope.cancel()

            async def stand_between() -> None:
                while True:
                    await self._apart.wait()
                    self._apart = trio.Event()
                    await _quietly(carry(source, destination, plan.job, met=self._say_met))

            async def cancel() -> None:
                await self.reins.cancel.wait()
                done = await source.call(CancelJob(plan.job))
                self.view.warn(f"cancelling: {done.text}")

            nursery.start_soon(watch)
            nursery.start_soon(leave)
            nursery.start_soon(lose_patience)
            nursery.start_soon(stand_between)
            nursery.start_soon(_or_warn, self.view, cancel)
        if report is None:
            return self._result(outcome, problem or _left(plan), None)
        await network.finish(report)
        return self._result(report.outcome, report.problem, report)

    async def _follow(self, plan: Plan, source: Agent) -> JobReport:
        async with aclosing(source.stream(WatchJob(plan.job))) as notes:
            async for note in notes:
                if isinstance(note, JobReport):
                    return note
                if isinstance(note, JobNote):
                    self._show(note)
        raise AgentLostError("the job's agent ended without a report", host=source.host)

    def _show(self, note: JobNote) -> None:
        if note.progress:
            self.view.progress(note.progress)
        if note.warning:
            self.view.warn(note.warning)
        if note.unknown or note.linked is False:
            self._apart.set()
        if note.unknown:
            self._why_unknown = note.unknown
            self._unknown.set()
            self.view.warn(f"{note.unknown.what}; {note.unknown.next_step}")

    def _say_met(self) -> None:
        self.view.warn("the hosts have lost each other: what the agents say goes through here")

    def _result(
        self, outcome: Outcome, problem: Problem | None, report: JobReport | None
    ) -> Result:
        plan = self.plan
        network = self.network
        routes = plan.routes if plan else ()
        reached = network.reached if network else None
        left = network.left if network else ()
        incomplete = bool(left) or (report is not None and bool(report.leftovers))
        if reached is False and any(route.tunnel for route in routes):
            incomplete = True
        return Result(
            job=plan.job if plan else None,
            guest=(plan.guest.name if plan else None) or self.wish.guest,
            source=plan.source.name if plan else None,
            destination=self.wish.destination.name,
            mode=self.wish.mode,
            transport=self.wish.transport,
            outcome=outcome,
            exit_code=exit_code(outcome, problem, incomplete=incomplete),
            wall_s=perf_counter() - self.began_s,
            connect_s=self.connect_s,
            plan_s=self.plan_s,
            problem=problem,
            findings=plan.findings if plan else (),
            report=report,
            routes=routes,
            reached=reached,
            left=left,
        )


class BlockedByFindings(BlockedError):
    """Preflight's blockers, all of them; `findings` has the warnings too."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        first = blockers(findings)
        what = "; ".join(f"[{f.rule}] {f.host}: {f.message}" for f in first)
        fixes = "; ".join(dict.fromkeys(f.fix for f in first))
        super().__init__(what, phase="preflight", next_step=fixes)
        self.findings = findings


class _Making:
    """The job's keys, made while the logins are under way."""

    def __init__(self) -> None:
        self._keys: JobKeys | None = None
        self.made_s: float | None = None  # when, by `perf_counter`
        self._ready = trio.Event()

    async def make(self) -> None:
        self._keys = await make_keys("job")
        self.made_s = perf_counter()
        self._ready.set()

    async def get(self) -> JobKeys:
        await self._ready.wait()
        if self._keys is None:
            raise HostError("the job's keys were not made")
        return self._keys


async def _quietly(awaitable: Awaitable[object]) -> None:
    """Await what would only help: the job goes its way without it."""
    try:
        await awaitable
    except QmigrateError:
        return


async def _or_warn(view: View, act: Callable[[], Awaitable[None]]) -> None:
    try:
        await act()
    except QmigrateError as exc:
        view.warn(exc.problem.what)


def _left(plan: Plan) -> Problem:
    return Problem(
        "unknown-outcome",
        f"job {plan.job} goes on by itself",
        None,
        plan.source.name,
        None,
        come_back(plan.job, plan.source.name),
    )


def _listen_addresses(spec: HostSpec, facts: HostFacts) -> tuple[str, ...]:
    """Return where a side listens: what the inventory says first, then all it has."""
    named = spec.migration_addresses
    return tuple(dict.fromkeys((*named, *facts.addresses))) or ("127.0.0.1",)


def destination_spec(plan: Plan, keys: JobKeys) -> JobSpec:
    """Return what the destination's agent is told."""
    wish = plan.wish
    macs = [tap.mac for tap in plan.twin.plan.taps if tap.mac]
    addresses = tuple(
        Announced(macs[0], address, origin) for address, origin in wish.addresses if macs
    )
    return JobSpec(
        job=plan.job,
        side=Side.DESTINATION,
        guest=plan.guest.name or wish.guest,
        uuid=plan.guest.uuid,
        mode=wish.mode,
        identity=keys.destination,
        listen_addresses=_listen_addresses(wish.destination, plan.destination_facts),
        port_range=wish.destination.port_range,
        limits=wish.limits,
        host=wish.destination.name,
        peer_host=plan.source.name,
        faults=wish.faults,
        patience=wish.patience,
        transport=wish.transport,
        disks=plan.images,
        network=NetworkSpec(tunnels_of(plan.routes)),
        destination=DestinationSpec(plan.twin.plan, addresses),
    )


def source_spec(plan: Plan, keys: JobKeys, peer: tuple[Address, ...]) -> JobSpec:
    """Return what the source's agent is told; `peer` is where the destination listens."""
    guest, wish = plan.guest, plan.wish
    if guest.monitor is None:
        raise HostError("the guest has no monitor")
    return JobSpec(
        job=plan.job,
        side=Side.SOURCE,
        guest=guest.name or wish.guest,
        uuid=guest.uuid,
        mode=wish.mode,
        identity=keys.source,
        listen_addresses=_listen_addresses(plan.source, plan.source_facts),
        port_range=plan.source.port_range,
        limits=wish.limits,
        host=plan.source.name,
        peer_host=wish.destination.name,
        faults=wish.faults,
        patience=wish.patience,
        transport=wish.transport,
        disks=plan.images,
        network=NetworkSpec(tunnels_of(plan.routes), turns_of(plan.routes, At.SOURCE)),
        source=SourceSpec(
            pid=guest.pid,
            start_ticks=guest.start_ticks,
            monitor=guest.monitor,
            taps=tuple(GuestTap(nic.tap, nic.mac) for nic in guest.nics if nic.tap),
            tag=plan.twin.plan.tag,
            peer_addresses=peer,
            unit=guest.unit,
            stop_unit=wish.stop_unit,
        ),
    )
