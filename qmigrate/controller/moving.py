"""A move's network while it happens: tunnels built before the job, and what is left to do after it.

The job's agents turn bridges and let go of claims on their own hosts, whoever is still there to
watch. What is left for the controller: a home on a third host, and the proof that the guest answers
from its new place.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from qmigrate.controller.network import Asked, ask, built, release_quietly
from qmigrate.controller.remote import Agent
from qmigrate.controller.routing import Routing, turns_of
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.home import ReleaseTunnels
from qmigrate.core.job import JobReport, Outcome
from qmigrate.core.model import RUNS
from qmigrate.core.network_requests import Reached, ReachGuest
from qmigrate.core.network_rules import At, Route
from qmigrate.core.tunnel_requests import TurnSegment

# Through a tunnel the answer is a proof that is owed: announcements repeat for half a second, and a
# guest under load answers late. In the same segment it is a bonus, and nobody waits long for it.
TUNNEL_PATIENCE_S = 3.0
SEGMENT_PATIENCE_S = 0.3


@dataclass(slots=True)
class MoveNetwork:
    """The network of one move that was planned."""

    routing: Routing
    routes: tuple[Route, ...]
    tag: str  # the guest's id
    reached: bool | None = None  # None: not asked, as no address is known or the guest stands still
    left: tuple[str, ...] = ()  # what could not be removed, a sentence each

    @property
    def agents(self) -> tuple[Agent, Agent]:
        """The source's and the destination's."""
        return self.routing.source[1], self.routing.destination[1]

    @asynccontextmanager
    async def build(self) -> AsyncIterator[None]:
        """Have every tunnel stand and proved; if the block raises, they are gone.

        Raises `HostError` if one cannot be built.
        """
        away: Asked = self.routing.destination[1]
        async with AsyncExitStack() as stack:
            for id_, route in {r.tunnel.id: r for r in self.routes if r.tunnel}.items():
                home = self.routing.stand_of(route.card.home)
                if route.tunnel is None or home is None:
                    raise HostError(f"tunnel {id_} has lost its home")
                ends = built(route.tunnel, home.agent, away, isolated=route.card.isolated)
                await stack.enter_async_context(ends)
            yield

    async def finish(self, report: JobReport) -> None:
        """Do what the job's agents could not; never raises `QmigrateError`."""
        moved = report.outcome is Outcome.MIGRATED
        with trio.CancelScope(shield=True):
            await self._settle(report.outcome)
        if moved and report.had in RUNS:
            await self._prove(report)

    async def _settle(self, outcome: Outcome) -> None:
        """Let a home on a third host keep what leads to where the guest is, and nothing else."""
        ids = tuple(r.tunnel.id for r in self.routes if r.tunnel is not None)
        third = {
            route.card.home.host: stand
            for route in self.routes
            if route.card.at is At.ELSEWHERE
            if (stand := self.routing.stand_of(route.card.home)) is not None
        }
        for host, stand in third.items():
            match outcome:
                case Outcome.MIGRATED:
                    mine = [r for r in self.routes if r.card.home.host == host]
                    await self._turn(stand.agent, mine)
                    void = ReleaseTunnels(self.tag, keep=ids)
                case Outcome.GUEST_ENDED:
                    void = ReleaseTunnels(self.tag)
                case Outcome.UNKNOWN | Outcome.DETACHED:
                    continue
                case Outcome.ROLLED_BACK | Outcome.CANCELLED | Outcome.REFUSED:
                    void = ReleaseTunnels(self.tag, only=ids)
            self.left += await release_quietly(stand.agent, void)

    async def _turn(self, agent: Asked, routes: list[Route]) -> None:
        """Make what home has learned from the announcements stay: a silent guest is not forgotten.

        Nothing is lost if it fails: home learns it again from whatever the guest sends.
        """
        turns = turns_of(routes, At.ELSEWHERE)
        if turns:
            try:
                await ask(agent, TurnSegment(turns))
            except QmigrateError as exc:
                self.left += (f"{agent.host}: its bridge is not turned: {exc.problem.what}",)

    async def _prove(self, report: JobReport) -> None:
        """Ask for the guest on its home segment, at the addresses it is known to have."""
        known = report.announced.addresses if report.announced is not None else ()
        answers: list[bool] = []

        async def prove(route: Route) -> None:
            home = self.routing.stand_of(route.card.home)
            mine = [a for a in known if a.mac == route.card.mac and a.vlan is None]
            if route.tunnel is None:  # an address that was only said may be wrong
                mine = [a for a in mine if a.origin == "seen"]
            if home is None or route.card.mac is None or not mine:
                return
            segment = route.card.home
            request = ReachGuest(
                segment.bridge,
                segment.vlan,
                route.card.mac,
                tuple(a.address for a in mine),
                TUNNEL_PATIENCE_S if route.tunnel is not None else SEGMENT_PATIENCE_S,
            )
            try:
                reached: Reached = await ask(home.agent, request)
            except QmigrateError as exc:
                reached = Reached(None, None, exc.problem.what)
            answers.append(reached.address is not None)

        async with trio.open_nursery() as nursery:
            for route in self.routes:
                nursery.start_soon(prove, route)
        self.reached = all(answers) if answers else None
