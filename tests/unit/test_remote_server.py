"""The agent's side of the conversation, over streams in memory."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from qmigrate.agent.protocol import (
    PROTOCOL,
    Answer,
    Call,
    Cancel,
    Failure,
    FromAgent,
    Hello,
    LineSplitter,
    Note,
    decode_untrusted,
    encode,
)
from qmigrate.agent.requests import Echo
from qmigrate.agent.server import HANDLERS, AgentContext, Handler, Server
from qmigrate.core.errors import ProtocolError, SudoError

HELLO = Hello(PROTOCOL, "0", "h", "b", "3", 0, 1)


class Talk:
    """The controller's end, line by line."""

    def __init__(self, stream: trio.StapledStream) -> None:  # type: ignore[type-arg]
        self.stream = stream
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []
        self.ended = trio.Event()
        self.error: ProtocolError | None = None

    async def say(self, message: Any) -> None:
        await self.stream.send_all(encode(message))

    async def hear(self) -> Any:
        while not self._lines:
            chunk = await self.stream.receive_some()
            if not chunk:
                return None
            self._lines = self._splitter.feed_untrusted(chunk)
        return decode_untrusted(self._lines.pop(0), FromAgent)


@asynccontextmanager
async def serving(handlers: Mapping[type, Handler] = HANDLERS) -> AsyncIterator[Talk]:
    ours, theirs = memory_stream_pair()
    talk = Talk(ours)

    async def run() -> None:
        try:
            await Server(theirs, theirs, handlers=handlers).serve(HELLO)
        except ProtocolError as exc:
            talk.error = exc
        talk.ended.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            assert await talk.hear() == HELLO
            yield talk
            await ours.aclose()


async def test_notes_come_before_the_answer() -> None:
    async with serving() as talk:
        await talk.say(Call(3, Echo("x", notes=2)))
        value = {"text": "x", "notes": 2}
        assert [await talk.hear() for _ in range(3)] == [
            Note(3, value),
            Note(3, value),
            Answer(3, value),
        ]


async def test_a_slow_call_does_not_hold_up_a_quick_one() -> None:
    gate = trio.Event()

    async def echo(_: AgentContext, request: Echo) -> Echo:
        if request.text == "slow":
            await gate.wait()
        return request

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("slow")))
        await talk.say(Call(2, Echo("quick")))
        assert (await talk.hear()).id == 2
        gate.set()
        assert (await talk.hear()).id == 1


async def test_a_cancelled_call_unwinds_and_says_so() -> None:
    unwound = trio.Event()

    async def echo(_: AgentContext, __: Echo) -> Echo:
        try:
            await trio.sleep_forever()
        finally:
            unwound.set()

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("")))
        await talk.say(Cancel(1))
        failure = await talk.hear()
        assert isinstance(failure, Failure)
        assert failure.problem.code == "cancelled"
        assert unwound.is_set()
        await talk.say(Cancel(1))  # too late is no error
        await talk.say(Call(1, Echo("")))  # and the number is free again
        await talk.say(Cancel(1))
        assert (await talk.hear()).id == 1


async def test_an_error_of_ours_arrives_as_itself() -> None:
    async def echo(_: AgentContext, __: Echo) -> Echo:
        raise SudoError("no", next_step="yes")

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("")))
        assert await talk.hear() == Failure(1, SudoError("no", next_step="yes").problem)


async def test_a_defect_is_one_sentence_here_and_a_traceback_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def echo(_: AgentContext, __: Echo) -> Echo:
        return {}["nothing"]  # type: ignore[no-any-return]

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("")))
        problem = (await talk.hear()).problem
    assert (problem.code, problem.what) == (
        "qmigrate",
        "the agent failed in Echo: KeyError: 'nothing'",
    )
    assert "Traceback" in capsys.readouterr().err


async def test_what_is_opened_once_is_shared_and_closed_when_the_controller_hangs_up() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        log.append("open")
        yield "it"
        log.append("closed")

    async def echo(ctx: AgentContext, _: Echo) -> Echo:
        return Echo(await ctx.shared.once(resource))

    async with serving({Echo: echo}) as talk:
        for number in (1, 2):
            await talk.say(Call(number, Echo("")))
        assert {(await talk.hear()).value["text"] for _ in range(2)} == {"it"}
        assert log == ["open"]
    assert log == ["open", "closed"]


@pytest.mark.parametrize("garbage", [b"garbage\n", b'{"op":"Call"}\n', encode(HELLO)])
async def test_garbage_from_the_controller_ends_the_agent(garbage: bytes) -> None:
    async with serving() as talk:
        await talk.stream.send_all(garbage)
        assert await talk.hear() is None
        await talk.ended.wait()
        assert talk.error is not None


async def test_the_agent_ends_with_its_controller_whatever_it_is_doing() -> None:
    async def echo(_: AgentContext, __: Echo) -> Echo:
        await trio.sleep_forever()

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("")))
        await talk.stream.aclose()
        await talk.ended.wait()
        assert talk.error is None


async def test_an_answer_too_long_for_a_line_is_a_failure_of_its_call() -> None:
    async def echo(_: AgentContext, __: Echo) -> Echo:
        return Echo("x" * (5 << 20))

    async with serving({Echo: echo}) as talk:
        await talk.say(Call(1, Echo("")))
        assert (await talk.hear()).problem.code == "protocol"


async def test_a_cancel_never_cuts_a_line_in_two() -> None:
    """The stream takes its time; the cancel comes while a line is half sent."""
    ours, theirs = memory_stream_pair()
    half, go = trio.Event(), trio.Event()
    send_all = theirs.send_stream.send_all

    async def slowly(data: bytes) -> None:
        await send_all(data[:10])
        if b"Note" in data:
            half.set()
            await go.wait()
        await send_all(data[10:])

    theirs.send_stream.send_all = slowly  # type: ignore[method-assign]
    talk = Talk(ours)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server(theirs, theirs).serve, HELLO)
            assert await talk.hear() == HELLO
            await talk.say(Call(1, Echo("x", notes=1 << 30)))
            await half.wait()
            await talk.say(Cancel(1))
            await wait_all_tasks_blocked()
            go.set()
            assert isinstance(await talk.hear(), Note)
            while isinstance(message := await talk.hear(), Note):
                pass
            assert message.problem.code == "cancelled"
            await ours.aclose()
