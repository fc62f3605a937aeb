"""A relay over real connections that are cut, held and spoilt; nobody at its ends must notice."""

import os
import random
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.support.relay_pair import Ends, both, outcome, receive, relayed, send

pytestmark = pytest.mark.net

DEADLINE_S = 60.0  # for what takes seconds at most
SOME = 24 << 20


@pytest.mark.parametrize(("slots", "packing"), [(1, False), (3, False), (1, True), (2, True)])
async def test_what_goes_in_comes_out_both_ways(slots: int, packing: bool) -> None:
    payload = b"".join(os.urandom(3000) + bytes(5000) for _ in range(1500))
    answer = os.urandom(200_000)
    with trio.fail_after(DEADLINE_S):
        async with relayed(slots=slots, packing=packing) as ends:
            got: list[object] = [None, None]

            async def hear(index: int, sock: socket.socket) -> None:
                got[index] = await receive(sock)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear, 0, ends.destination)
                nursery.start_soon(hear, 1, ends.source)
                nursery.start_soon(send, ends.source, payload)
                nursery.start_soon(send, ends.destination, answer)
            assert got == [outcome(payload), outcome(answer)]
            assert await both(ends.a.wait_over, ends.b.wait_over) == [None, None]
            figures = ends.a.figures()
            assert figures.payload_sent_bytes == len(payload)
            assert figures.payload_received_bytes == len(answer)
            assert figures.unacknowledged_bytes == 0
            assert figures.reconnects == 0


async def _moved(ends: Ends, payload: bytes, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Move `payload` forward while something happens to the wire, and prove that it arrives."""
    got: list[tuple[int, str]] = []

    async def hear() -> None:
        got.append(await receive(ends.destination))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        nursery.start_soon(send, ends.source, payload)
        await meanwhile()
    assert got == [outcome(payload)]


async def _until_sent(ends: Ends, count: int) -> None:
    while ends.b.figures().payload_received_bytes < count:  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.001)


@pytest.mark.parametrize("seed", range(4))
async def test_a_wire_cut_at_any_moment_loses_and_doubles_nothing(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    payload = os.urandom(SOME)

    with trio.fail_after(DEADLINE_S):
        async with relayed(slots=1 + seed % 3) as ends:

            async def cuts() -> None:
                for moment in sorted(chance.randrange(SOME) for _ in range(6)):
                    await _until_sent(ends, moment)
                    ends.wire.cut(chance.choice((1, 2, None)))

            await _moved(ends, payload, cuts)
            assert ends.a.failure is None
            assert ends.a.figures().reconnects + ends.b.figures().reconnects > 0


async def test_a_flipped_bit_costs_a_connection_and_no_byte() -> None:
    payload = os.urandom(SOME)
    with trio.fail_after(DEADLINE_S):
        async with relayed() as ends:

            async def spoil() -> None:
                await _until_sent(ends, SOME // 3)
                ends.wire.spoil_at = 20_000

            await _moved(ends, payload, spoil)
            assert ends.wire.spoil_at is None
            assert ends.b.figures().reconnects > 0


async def test_a_silent_wire_holds_no_more_than_the_window_and_all_arrives_once_it_speaks() -> None:
    payload = os.urandom(SOME)
    window = 2 << 20
    full = window - (256 << 10)  # but for less than a chunk
    with trio.fail_after(DEADLINE_S):
        async with relayed(window_bytes=window) as ends:

            async def hold() -> None:
                await _until_sent(ends, SOME // 3)
                ends.wire.hold()
                with trio.move_on_after(1.0):
                    while ends.a.figures().unacknowledged_bytes < full:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert ends.a.figures().unacknowledged_bytes <= window
                ends.wire.mend()

            await _moved(ends, payload, hold)


async def test_a_wire_that_never_comes_back_ends_the_stream_after_the_grace_time() -> None:
    with trio.fail_after(DEADLINE_S):
        async with relayed(grace_s=0.5) as ends:
            await ends.a.wait_connected()
            ends.wire.lead_nowhere()
            why = "no connection for 0.5 s"
            assert await both(ends.a.wait_over, ends.b.wait_over) == [why, why]
            assert await receive(ends.destination) == outcome(b"")
            with pytest.raises(BrokenPipeError):
                ends.source.send(b"x")


async def test_qemu_that_dies_there_ends_the_stream_here_and_no_connection_is_made_anew() -> None:
    with trio.fail_after(DEADLINE_S):
        async with relayed() as ends:
            await ends.a.wait_connected()
            accepted = ends.wire.accepted
            ends.destination.close()
            with pytest.raises(trio.BrokenResourceError):
                await send(ends.source, bytes(SOME))
            assert await both(ends.a.wait_over, ends.b.wait_over) == [None, None]
            assert ends.wire.accepted == accepted


async def test_a_budget_holds_and_may_be_lifted_while_it_runs() -> None:
    payload = os.urandom(4 << 20)
    with trio.fail_after(DEADLINE_S):
        async with relayed(limit_bps=1e6) as ends:

            async def lift() -> None:
                began = trio.current_time()
                await _until_sent(ends, 500_000)
                spent = trio.current_time() - began
                assert ends.b.figures().payload_received_bytes <= 1e6 * spent + 600_000
                ends.a.set_limit(None)

            await _moved(ends, payload, lift)


async def test_bytes_on_wires_that_are_gone_are_counted_still() -> None:
    payload = os.urandom(SOME)
    with trio.fail_after(DEADLINE_S):
        async with relayed() as ends:

            async def cut() -> None:
                await _until_sent(ends, SOME // 2)
                ends.wire.cut()

            await _moved(ends, payload, cut)
            assert ends.a.figures().wire_sent_bytes > SOME
            assert ends.b.figures().wire_received_bytes > SOME
            assert ends.a.figures().ratio == pytest.approx(1.0, abs=0.9)
