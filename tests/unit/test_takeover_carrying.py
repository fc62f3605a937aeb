"""Two agents that have lost each other, and a controller that carries what they say.

The real `Linking` of both sides, the real `controller.carry`; what lies between them (doors,
sessions) is a function call.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from qmigrate.agent import peer
from qmigrate.agent.carrying import UNCARRIED_LIMIT, CarriedLink
from qmigrate.agent.linking import LINKED, OVER, Linking
from qmigrate.agent.requests import BringFrame, CarryLink, Done, Frame
from qmigrate.controller.carry import carry
from qmigrate.core.errors import AgentLostError, HostError, LinkBrokenError, Problem
from qmigrate.core.job import JobNote

DIED = "it died"  # what ends an agent's carrying that another goes on with


@dataclass
class Side:
    """A job's agent as `Linking` needs it: it notes what it is told."""

    name: str
    ready: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    heard_so_far: list[peer.Message] = field(default_factory=list)
    meetings: int = 0
    partings: list[str] = field(default_factory=list)
    notes: list[JobNote] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.linking = Linking(self)  # type: ignore[arg-type]
        self.ready.set()

    async def connected(self) -> None:
        self.meetings += 1

    async def heard(self, message: peer.Message) -> None:
        self.heard_so_far.append(message)

    def unlinked(self, problem: Problem, *, first: bool) -> None:
        self.partings.append(problem.what)

    def trouble(self, code: str, what: str) -> Problem:
        return Problem(code, what)

    def tell(self, note: JobNote) -> None:
        self.notes.append(note)

    def say(self, text: str) -> None:
        pass

    mark = say


class Remote:
    """A host's agent as `controller.carry` calls it."""

    def __init__(self, side: Side, nursery: trio.Nursery) -> None:
        self.side = side
        self.lost = False
        self._nursery = nursery

    async def stream(self, request: CarryLink) -> AsyncIterator[Frame | Done]:
        if self.lost:
            raise AgentLostError("the host is gone")
        scope = trio.CancelScope()
        send, receive = trio.open_memory_channel[Frame | Done](1000)

        async def run() -> None:
            with scope:
                # As `agent.jobs` relays: the agent that is started next is asked in its turn.
                while (why := await self.side.linking.carry(send.send)) == DIED:
                    pass
                send.send_nowait(Done(why))

        self._nursery.start_soon(run)
        try:
            async for each in receive:
                yield each
                if isinstance(each, Done):
                    break
        finally:
            scope.cancel()

    async def call(self, request: BringFrame, *, deadline_s: float) -> Done:
        if self.lost:
            raise AgentLostError("the host is gone")
        self.side.linking.bring(request.frame)
        return Done()


@dataclass
class Between:
    """Two sides and a controller between them."""

    a: Remote
    b: Remote
    ended: list[str | HostError] = field(default_factory=list)
    met: trio.Event = field(default_factory=trio.Event)

    async def carry(self) -> None:
        try:
            ended = await carry(self.a, self.b, "job-1", met=self.met.set)
        except HostError as exc:
            self.ended.append(exc)
        else:
            self.ended.append(ended)


@asynccontextmanager
async def between() -> AsyncIterator[Between]:
    async with trio.open_nursery() as nursery:
        found = Between(Remote(Side("a"), nursery), Remote(Side("b"), nursery))
        nursery.start_soon(found.carry)
        await found.met.wait()
        await until(lambda: found.a.side.meetings == found.b.side.meetings == 1)
        yield found
        nursery.cancel_scope.cancel()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110 - what is waited for is any of many things
            await trio.sleep(0.01)  # of a clock that jumps


async def test_what_is_said_arrives_in_order_both_ways_and_the_last_words_too(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with between() as wires:
        a, b = wires.a.side, wires.b.side
        said: list[peer.Message] = [peer.Refuse(str(number)) for number in range(30)]
        for message in said:
            assert await a.linking.send(message)
        await until(lambda: b.heard_so_far == said)
        await b.linking.send(peer.Farewell(()))
        b.over.set()
        await until(lambda: wires.ended == [OVER])
        assert a.heard_so_far == [peer.Farewell(())]
        assert a.linking.link is None


class Direct:
    """A direct link that says nothing until it is cut."""

    generation = type("Generation", (), {"incarnation": 1, "count": 1})
    peer = type("Peer", (), {"boot_id": "the-peer-s-boot"})

    def __init__(self) -> None:
        self.cut = trio.Event()

    async def receive(self) -> bytes:
        await self.cut.wait()
        raise LinkBrokenError("cut")

    async def aclose(self) -> None:
        pass


class Finds:
    """An endpoint that finds the links that it is given, one after the other."""

    def __init__(self) -> None:
        self.give, self.links = trio.open_memory_channel[Direct](10)

    async def connect(self, deadline_s: float) -> Direct:
        return await self.links.receive()


async def test_a_direct_link_ends_the_carrying_and_one_that_breaks_is_told_of(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with between() as wires, trio.open_nursery() as nursery:
        side, endpoint, direct = wires.a.side, Finds(), Direct()
        nursery.start_soon(side.linking.keep, endpoint, 1.0)
        endpoint.give.send_nowait(direct)
        await until(lambda: wires.ended == [LINKED])
        assert side.linking.link is direct  # type: ignore[comparison-overlap]
        assert wires.b.side.partings == ["the controller has gone"]
        direct.cut.set()
        await until(lambda: side.linking.link is None)
        assert [note.linked for note in side.notes] == [False]
        nursery.cancel_scope.cancel()


async def test_a_link_that_is_dead_and_not_known_to_be_is_waited_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with trio.open_nursery() as nursery:
        wires = Between(Remote(Side("a"), nursery), Remote(Side("b"), nursery))
        endpoint, direct = Finds(), Direct()
        nursery.start_soon(wires.a.side.linking.keep, endpoint, 1.0)
        endpoint.give.send_nowait(direct)
        await until(lambda: wires.a.side.linking.direct is not None)
        nursery.start_soon(wires.carry)
        await trio.sleep(1.0)
        assert not wires.met.is_set()
        direct.cut.set()
        await wires.met.wait()
        assert wires.ended == []
        nursery.cancel_scope.cancel()


async def test_agents_that_have_a_link_are_not_carried_for(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        wires = Between(Remote(Side("a"), nursery), Remote(Side("b"), nursery))
        endpoint = Finds()
        nursery.start_soon(wires.a.side.linking.keep, endpoint, 1.0)
        endpoint.give.send_nowait(Direct())
        await wires.carry()
        assert wires.ended == [LINKED]
        nursery.cancel_scope.cancel()


async def test_an_agent_that_is_started_anew_is_met_again(autojump_clock: trio.abc.Clock) -> None:
    async with between() as wires:
        before, wires.b.side = wires.b.side, Side("b again")
        before.linking._carrier.end(DIED)  # type: ignore[union-attr]
        await until(lambda: wires.b.side.meetings == 1)
        await until(lambda: wires.a.side.meetings == 2)
        assert wires.ended == []


async def test_a_host_out_of_reach_is_an_error(autojump_clock: trio.abc.Clock) -> None:
    async with between() as wires:
        wires.b.lost = True
        await wires.a.side.linking.send(peer.Ask())
        await until(lambda: bool(wires.ended))
        assert isinstance(wires.ended[0], AgentLostError)


async def test_a_controller_that_leaves_is_noticed(autojump_clock: trio.abc.Clock) -> None:
    async with between() as wires:
        pass
    assert wires.a.side.partings == wires.b.side.partings == ["the controller has gone"]
    assert not await wires.a.side.linking.send(peer.Ask())
    with pytest.raises(HostError, match="nobody carries"):
        wires.a.side.linking.bring(Frame("{}"))


async def test_the_controller_that_comes_last_carries(autojump_clock: trio.abc.Clock) -> None:
    side = Side("a")
    notes: list[Frame] = []

    async def note(frame: Frame) -> None:
        notes.append(frame)

    ends: list[str] = []

    async def once() -> None:
        ends.append(await side.linking.carry(note))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(once)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(once)
        await until(lambda: ends == ["another controller carries from now on"])
        side.linking.bring(Frame(""))
        await until(lambda: side.linking.link is not None)
        nursery.cancel_scope.cancel()


async def test_a_controller_that_carries_nothing_away_is_given_up() -> None:
    link = CarriedLink()
    for _ in range(UNCARRIED_LIMIT):
        await link.send(b"{}")
    with pytest.raises(LinkBrokenError, match="nothing away"):
        await link.send(b"{}")


async def test_what_is_brought_after_the_end_is_refused() -> None:
    link = CarriedLink()
    link.end("over")
    link.end("a later reason")
    with pytest.raises(LinkBrokenError, match="over"):
        link.bring(Frame("{}"))
    with pytest.raises(LinkBrokenError):
        await link.receive()


async def test_a_frame_that_is_no_message_ends_it(autojump_clock: trio.abc.Clock) -> None:
    async with between() as wires:
        link: Any = wires.a.side.linking.link
        await link.send(b"{}")
        await until(lambda: bool(wires.b.side.partings))
        assert "Message" in wires.b.side.partings[0] or "not a" in wires.b.side.partings[0]
