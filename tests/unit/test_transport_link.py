"""Two real endpoints over loopback: what the link promises its owner."""

import socket
import threading

import pytest
import trio
import trio.testing

from qmigrate.core.errors import (
    LinkBrokenError,
    LinkError,
    LinkRefusedError,
    LinkUnreachableError,
)
from qmigrate.core.model import Address, Side
from qmigrate.transport import endpoint as endpoint_module
from qmigrate.transport import link as link_module
from qmigrate.transport.endpoint import open_endpoint
from qmigrate.transport.frames import MESSAGE_LIMIT_BYTES, Generation
from tests.support.link_pair import (
    DEADLINE_S,
    both,
    destination_spec,
    endpoints,
    linked,
    open_descriptors,
    proxy,
    source_spec,
)
from tests.support.netns import eventually


async def test_messages_arrive_whole_in_order_and_both_ways() -> None:
    sizes = (0, 1, 5, 16 * 1024, 65_536, 300_000, MESSAGE_LIMIT_BYTES)
    async with linked() as pair:
        for sender, receiver in ((pair.a, pair.b), (pair.b, pair.a)):
            async with trio.open_nursery() as nursery:
                for index, size in enumerate(sizes):
                    nursery.start_soon(sender.send, bytes([index]) * size)
                    assert await receiver.receive() == bytes([index]) * size
        with pytest.raises(ValueError, match="MESSAGE"):
            await pair.a.send(bytes(MESSAGE_LIMIT_BYTES + 1))


async def test_each_side_knows_the_other_and_who_dialled() -> None:
    async with linked() as pair:
        assert (pair.a.peer.side, pair.b.peer.side) == (Side.DESTINATION, Side.SOURCE)
        assert (pair.a.peer.boot_id, pair.b.peer.boot_id) == ("boot-b", "boot-a")
        assert pair.a.dialled_by is pair.b.dialled_by is Side.SOURCE
        assert pair.a.generation == pair.b.generation == Generation(1, 1)
        assert pair.a.features == pair.b.features == {"direct"}
        assert pair.a.remote in pair.destination.addresses


async def test_a_goodbye_is_told_from_a_break() -> None:
    async with linked() as pair:
        await pair.a.send(b"last words")
        await pair.a.aclose()
        assert await pair.b.receive() == b"last words"
        with pytest.raises(LinkBrokenError, match="the peer closed it"):
            await pair.b.receive()
        with pytest.raises(trio.ClosedResourceError):
            await pair.a.receive()
        with pytest.raises(trio.ClosedResourceError):
            await pair.a.send(b"")


async def test_a_cut_raises_on_both_sides_after_what_had_arrived() -> None:
    async with endpoints() as (source, destination), proxy(destination.addresses[0]) as wire:
        source.set_peer((wire.address,))
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        await a.send(b"one")
        assert await b.receive() == b"one"
        wire.cut()
        for link in (a, b):
            with pytest.raises(LinkBrokenError):
                await link.receive()
            with pytest.raises(LinkBrokenError):
                await link.send(b"two")


async def test_a_flipped_bit_ends_the_link_and_no_message_comes_of_it() -> None:
    async with endpoints() as (source, destination), proxy(destination.addresses[0]) as wire:
        source.set_peer((wire.address,))
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        wire.spoil_after = 40_000  # well behind the handshake, inside the message
        with trio.move_on_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    try:
                        await b.send(bytes(200_000))
                    except LinkBrokenError:
                        return

                nursery.start_soon(send)
                with pytest.raises(LinkBrokenError):
                    await a.receive()
            return
        pytest.fail("nobody noticed")


async def test_after_a_break_the_same_keys_make_a_newer_link() -> None:
    async with endpoints() as (source, destination), proxy(destination.addresses[0]) as wire:
        source.set_peer((wire.address,))
        for count in (1, 2, 3):
            a, b = await both(
                lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
            )
            assert a.generation == b.generation == Generation(1, count)
            await a.send(b"again")
            assert await b.receive() == b"again"
            wire.cut()
            await a.wait_ended()


async def test_a_newer_link_replaces_one_that_the_destination_still_believes_in() -> None:
    async with linked() as pair:
        old = pair.b
        a, b = await both(
            lambda: pair.source.connect(DEADLINE_S), lambda: pair.destination.connect(DEADLINE_S)
        )
        assert "newer link" in await old.wait_ended()
        await b.send(b"fresh")
        assert await a.receive() == b"fresh"


async def test_a_destination_that_lost_the_link_makes_the_source_drop_its_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "REVERSE_DELAY_S", 0)
    async with endpoints() as (source, destination), proxy(destination.addresses[0]) as wire:
        source.set_peer((wire.address,))
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        destination.set_peer(source.addresses)
        wire.hold()  # the source hears nothing of what follows over the old link
        b.drop("the destination's agent noticed first")

        async def source_side() -> object:
            with pytest.raises(LinkBrokenError, match="came back"):
                await a.receive()
            wire.cut()
            return await source.connect(DEADLINE_S)

        await both(source_side, lambda: destination.connect(DEADLINE_S))


async def test_a_restarted_agent_of_either_side_gets_a_link() -> None:
    async with endpoints() as (source, destination):
        source.set_peer(destination.addresses)
        await both(lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S))
        async with endpoints(source_spec(incarnation=2)) as (restarted, _):
            restarted.set_peer(destination.addresses)
            a, b = await both(
                lambda: restarted.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
            )
            assert a.generation == b.generation == Generation(2, 1)
        async with endpoints(None, destination_spec(incarnation=2)) as (_, restarted):
            restarted.set_peer(source.addresses)
            source.set_peer(restarted.addresses)
            a, b = await both(
                lambda: source.connect(DEADLINE_S), lambda: restarted.connect(DEADLINE_S)
            )
            assert b.peer.boot_id == "boot-a"
            assert a.peer.incarnation == 2


async def test_the_destination_dials_where_the_source_cannot() -> None:
    async with endpoints() as (source, destination):
        destination.set_peer(source.addresses)
        source.set_peer((_dead_address(),))
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        assert a.dialled_by is b.dialled_by is Side.DESTINATION
        assert a.note is not None
        assert "refused the connection" in a.note
        first, second = await both(
            lambda: source.data_socket(a, "ram", DEADLINE_S),
            lambda: destination.data_socket(b, "ram", DEADLINE_S),
        )
        with first, second:
            assert second.getpeername()[1] == source.addresses[0].port


@pytest.mark.parametrize("round_number", range(10))
async def test_two_dials_that_race_make_one_link_and_leave_no_socket(
    round_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "REVERSE_DELAY_S", 0)
    monkeypatch.setattr(endpoint_module, "STAGGER_S", 0)
    with open_descriptors() as opened:
        async with endpoints(
            source_spec(listen_addresses=("127.0.0.1", "::1", "127.0.0.2")),
            destination_spec(listen_addresses=("127.0.0.1", "::1", "127.0.0.2")),
        ) as (source, destination):
            source.set_peer(destination.addresses)
            destination.set_peer(source.addresses)
            a, b = await both(
                lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
            )
            await a.send(b"one")
            assert await b.receive() == b"one"
            await b.send(b"link")
            assert await a.receive() == b"link"
            assert a.generation == b.generation
            listeners = len(source.addresses) + len(destination.addresses)
            await eventually(lambda: len(opened()) <= listeners + 2, "those that lost are closed")
            assert a.why_ended is b.why_ended is None
        assert not opened()


async def test_a_dead_address_before_a_good_one_costs_no_more_than_the_head_start() -> None:
    async with endpoints() as (source, destination):
        # 192.0.2.0/24 is for documentation: nobody answers, or no route.
        source.set_peer((Address("192.0.2.1", 9), *destination.addresses))
        a, _ = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        assert a.remote == destination.addresses[0]


async def test_all_addresses_get_one_port_where_it_is_free_on_all() -> None:
    async with endpoints(
        source_spec(listen_addresses=("127.0.0.1", "::1", "127.0.0.9", "192.0.2.77"))
    ) as (source, _):
        assert [address.host for address in source.addresses] == ["127.0.0.1", "::1", "127.0.0.9"]
        assert len({address.port for address in source.addresses}) == 1


async def test_a_port_range_is_kept_and_an_exhausted_one_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=f"ports {port}-{port}") as caught:
            async with endpoints(source_spec(port_range=(port, port))):
                pass
        assert caught.value.problem.last_words == "127.0.0.1: Address already in use"
    async with endpoints(source_spec(port_range=(port, port + 3))) as (source, _):
        assert port <= source.addresses[0].port <= port + 3


async def test_nobody_there_is_an_error_with_address_port_and_rule() -> None:
    dead = _dead_address()
    async with endpoints() as (source, _):
        source.set_peer((dead,))
        with pytest.raises(LinkUnreachableError) as caught:
            await source.connect(0.5)
    problem = caught.value.problem
    assert f"{dead} refused the connection" in problem.what
    assert "both directions are blocked" in problem.what
    assert problem.next_step is not None
    assert f"tcp dport {dead.port} accept" in problem.next_step
    assert "-s 127.0.0.1 -p tcp" in problem.next_step


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"job": "job-2"}, "works on job 'job-"),
        ({"side": Side.SOURCE}, "is the source too"),
    ],
)
async def test_a_peer_that_does_not_fit_is_refused_at_once_in_words(
    changes: dict[str, object], words: str
) -> None:
    async with endpoints(None, destination_spec(**changes)) as (source, destination):
        source.set_peer(destination.addresses)
        with pytest.raises(LinkRefusedError, match=words):
            await both(lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S))


async def test_a_cancelled_connect_leaves_nothing_and_can_be_called_again() -> None:
    async with endpoints() as (source, destination):
        source.set_peer((_dead_address(),))
        with trio.move_on_after(0.05):
            await source.connect(DEADLINE_S)
        source.set_peer(destination.addresses)
        await both(lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S))


async def test_a_cancelled_send_or_receive_breaks_no_frame() -> None:
    async with linked() as pair:
        for delay_s in (0, 0.0001, 0.001, 0.005):
            with trio.move_on_after(delay_s):
                await pair.b.receive()
            with trio.move_on_after(delay_s):
                await pair.a.send(bytes(4_000_000))
        await pair.a.send(b"end")
        with trio.fail_after(DEADLINE_S):
            while (message := await pair.b.receive()) != b"end":
                assert message == bytes(4_000_000)


async def test_an_owner_that_does_not_read_slows_the_peer_and_loses_nothing() -> None:
    async with linked() as pair:
        message = bytes(MESSAGE_LIMIT_BYTES)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(8):
                await pair.a.send(message)
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            limit = link_module.UNREAD_LIMIT_BYTES
            await eventually(lambda: pair.b._unread_bytes > limit, "the store is full")
            assert sent < 8
            for _ in range(8):
                assert await pair.b.receive() == message


async def test_a_send_cancelled_before_its_turn_is_not_sent() -> None:
    async with linked() as pair, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(pair.a.send, bytes(MESSAGE_LIMIT_BYTES))
        limit = link_module.UNREAD_LIMIT_BYTES
        await eventually(lambda: pair.b._unread_bytes > limit, "the store is full")
        with trio.move_on_after(0.05) as cancelled:
            await pair.a.send(b"never")
        assert cancelled.cancelled_caught
        for _ in range(6):
            assert len(await pair.b.receive()) == MESSAGE_LIMIT_BYTES
        await pair.a.send(b"end")
        assert await pair.b.receive() == b"end"


def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(link_module, "DEAD_PEER_S", 0.2)


async def test_an_owner_that_does_not_read_for_long_does_not_blame_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _impatient(monkeypatch)
    async with linked() as pair, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(pair.a.send, bytes(MESSAGE_LIMIT_BYTES))
        limit = link_module.UNREAD_LIMIT_BYTES
        await eventually(lambda: pair.b._unread_bytes > limit, "the store is full")
        since = trio.current_time()
        await eventually(lambda: trio.current_time() > since + 1, "five times the patience")
        for _ in range(6):
            await pair.b.receive()
        assert pair.a.why_ended is pair.b.why_ended is None


async def test_a_process_that_was_stopped_itself_does_not_blame_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _impatient(monkeypatch)
    async with linked() as pair:
        for _ in range(5):  # which of timer and socket is served first afterwards is chance
            threading.Event().wait(0.4)
            await pair.a.send(b"awake")
            assert await pair.b.receive() == b"awake"
            await trio.testing.wait_all_tasks_blocked()
        assert pair.a.why_ended is pair.b.why_ended is None


async def test_leaving_the_endpoint_refuses_ends_the_link_and_leaves_no_socket() -> None:
    with open_descriptors() as opened:
        async with linked() as pair:
            address = pair.destination.addresses[0]
            b = pair.b
        assert b.why_ended is not None
        assert not opened()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port))


async def test_an_error_in_the_block_comes_out_as_itself(nursery: trio.Nursery) -> None:
    with pytest.raises(LinkBrokenError):
        async with open_endpoint(source_spec(), nursery):
            raise LinkBrokenError("of the block")


async def test_a_cancelled_nursery_ends_the_endpoint() -> None:
    with open_descriptors() as opened:
        async with trio.open_nursery() as outer, open_endpoint(source_spec(), outer):
            assert opened()
            outer.cancel_scope.cancel()
        assert not opened()


async def test_the_offset_of_one_clock_to_itself_is_nothing_within_its_error() -> None:
    async with linked() as pair:
        await eventually(lambda: len(pair.a._samples) >= link_module.PING_BURST, "pongs")
        offset = pair.a.clock_offset()
        assert offset is not None
        assert abs(offset.offset_us) <= offset.error_us
        assert not offset.stepped


def _dead_address() -> Address:
    """An address where connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address(*server.getsockname())
