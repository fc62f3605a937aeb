"""A job's agent and its peer: one direct link after the other, or a carried one meanwhile.

A direct link is dialled for as long as the job lives. While there is none, a controller may carry
what the agents say (`agent.carrying`): enough to decide who runs the guest, and for nothing else. A
direct link that comes back ends that. What a new link, of either kind, makes necessary to be said
again is `connected()`'s to know.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from qmigrate.agent import peer
from qmigrate.agent.carrying import CarriedLink
from qmigrate.agent.relaying import RELAY_FEATURES
from qmigrate.agent.requests import Frame
from qmigrate.core.errors import HostError, LinkBrokenError, Problem, ProtocolError, QmigrateError
from qmigrate.core.job import JobNote
from qmigrate.core.secret import Identity
from qmigrate.core.timeline import ClockOffset
from qmigrate.transport.endpoint import FEATURES, Endpoint, EndpointSpec, open_endpoint
from qmigrate.transport.link import DEAD_PEER_S, Link
from qmigrate.transport.relay import Relay

if TYPE_CHECKING:
    from qmigrate.agent.job import JobAgent

REDIAL_PAUSE_S = 0.25  # between attempts to have the link back; a dial has its own deadline
STALE_LINK_S = DEAD_PEER_S + 2.0  # a link that is dead was noticed to be by then: pings and a bit
LINKED, OVER = "linked", "over"  # what ends the carrying: a direct link, or the job


class Linking:
    """All that an agent has to do with its peer's agent; `agent` hears what is said."""

    def __init__(self, agent: "JobAgent") -> None:
        self._agent = agent
        self.endpoint: Endpoint | None = None
        self.direct: Link | None = None
        self.relay: Relay | None = None  # what memory travels by, if not by a plain socket
        self._carrier: CarriedLink | None = None  # a controller is at the door
        self._carried: CarriedLink | None = None  # and the peer has been met by it
        self._linked = trio.Event()
        self._unlinked = trio.Event()
        self._unlinked.set()

    @property
    def link(self) -> Link | CarriedLink | None:
        """The way to the peer that there is: the direct one if it stands."""
        return self.direct if self.direct is not None else self._carried

    @asynccontextmanager
    async def listening(self, boot_id: str) -> AsyncIterator[Endpoint]:
        """Own this side of the link while the block runs."""
        agent = self._agent
        spec = EndpointSpec(
            identity=agent.spec.identity,
            side=agent.side,
            job=agent.spec.job,
            boot_id=boot_id,
            listen_addresses=agent.spec.listen_addresses,
            port_range=agent.spec.port_range,
            incarnation=agent.entry().number + 1,
            features=FEATURES | RELAY_FEATURES | ({"faults"} if agent.spec.faults else set()),
        )
        async with open_endpoint(spec, agent.nursery) as endpoint:
            self.endpoint = endpoint
            yield endpoint

    async def keep(self, endpoint: Endpoint, deadline_s: float) -> None:
        """Have a link, read it, have another when it breaks; for ever."""
        agent = self._agent
        first = True
        while True:
            try:
                link = await endpoint.connect(deadline_s)
            except QmigrateError as exc:
                self._lost(exc.problem, first=first)
                await trio.sleep(REDIAL_PAUSE_S)
                continue
            self.direct, first = link, False
            agent.peer_boot_id = link.peer.boot_id
            agent.mark("linked")
            generation = link.generation
            agent.say(f"linked, generation {generation.incarnation}.{generation.count}")
            self._unlinked = trio.Event()
            self._linked.set()
            if self._carrier is not None:
                self._carrier.end(LINKED)
            try:
                problem = await self._read(link)
            finally:
                self.direct = None
                self._linked = trio.Event()
                self._unlinked.set()
                with trio.CancelScope(shield=True):
                    await link.aclose()
            self._lost(problem, first=False)

    async def _read(self, link: Link | CarriedLink) -> Problem:
        """Hear the peer until the link ends; return why it did."""
        try:
            await self._agent.connected()
            while True:
                await self._agent.heard(peer.decode_untrusted(await link.receive()))
        except (LinkBrokenError, ProtocolError) as exc:
            self._agent.say(f"the link broke: {exc}")
            return exc.problem

    def _lost(self, problem: Problem, *, first: bool) -> None:
        self._agent.tell(JobNote(linked=False))
        self._agent.unlinked(problem, first=first)

    async def wait_linked(self) -> None:
        """Return when there is a direct link: memory travels beside no other."""
        await self._linked.wait()

    async def wait_unlinked(self) -> None:
        """Return when there is no direct link, or none any more."""
        if self.direct is not None:
            await self._unlinked.wait()

    async def send(self, message: peer.Message) -> bool:
        """Send a message if there is a link; whoever waits for an answer has a deadline."""
        link = self.link
        if link is None:
            return False
        try:
            await link.send(peer.encode(message))
        except (LinkBrokenError, trio.ClosedResourceError):  # they ended it, or we did meanwhile
            return False
        return True

    def clock_offset(self, *, at_us: int) -> ClockOffset | None:
        """Return the peer's clock minus ours, from what all direct links so far have measured."""
        return self.endpoint.clock_offset(at_us=at_us) if self.endpoint else None

    # By a controller's hands

    async def carry(self, note: Callable[[Frame], Awaitable[None]]) -> str:
        """Let a controller carry, by `note`, what is said to the peer; return what ended it.

        A link that seems to stand may be dead and not known to be: it is given the time to show.
        """
        agent = self._agent
        await agent.ready.wait()
        with trio.move_on_after(STALE_LINK_S):
            await self._unlinked.wait()
        if self.direct is not None:
            return LINKED
        if self._carrier is not None:
            self._carrier.end("another controller carries from now on")
        self._carrier = carrier = CarriedLink()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_carried, carrier)
                nursery.start_soon(self._end_with_job, carrier)
                await carrier.carry(note)
                nursery.cancel_scope.cancel()
        finally:
            carrier.end("the controller has gone")
            if self._carrier is carrier:
                self._carrier = None
            met = self._carried is carrier
            if met:
                self._carried = None
            if met and self.link is None and not agent.over.is_set():
                agent.unlinked(agent.trouble("link-broken", carrier.why_ended or ""), first=False)
        return carrier.why_ended or ""

    async def _read_carried(self, carrier: CarriedLink) -> None:
        await carrier.wait_met()
        self._agent.say("a controller carries what is said to the peer")
        self._carried = carrier
        carrier.end((await self._read(carrier)).what)

    async def _end_with_job(self, carrier: CarriedLink) -> None:
        await self._agent.over.wait()
        carrier.end(OVER)

    def bring(self, frame: Frame) -> None:
        """Take a frame of the peer's; raises `HostError` if nobody carries, or not any more."""
        if self._carrier is None:
            raise HostError("nobody carries for the job's agent", next_step="ask it to: CarryLink")
        self._carrier.bring(frame)

    # New keys

    def rekey(self, identity: Identity) -> Endpoint:
        """Know the peer by its new certificate from now on, and show a new one of our own."""
        if self.endpoint is None:
            raise HostError("the job's agent listens nowhere")
        self.endpoint.rekey(identity)
        return self.endpoint
