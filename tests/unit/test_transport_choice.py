"""One side is real, the other's moves are made by hand: what a late or wrong move may do."""

import pytest
import trio
import trio.testing

from qmigrate.core.errors import ProtocolError
from qmigrate.core.model import Side
from qmigrate.core.secret import Identity
from qmigrate.transport import endpoint as endpoint_module
from qmigrate.transport.connection import Connection, GreetingError, secure
from qmigrate.transport.endpoint import Endpoint
from qmigrate.transport.frames import (
    LINK_PROTOCOL,
    NO_LINK,
    TOKEN_BYTES,
    Generation,
    Hello,
    Kind,
    encode,
    encode_generation,
)
from qmigrate.transport.identity import client_context
from qmigrate.transport.reach import Dial
from qmigrate.transport.tokens import GREETING, Expected
from tests.support.link_pair import DEADLINE_S, both, endpoints, job_keys


async def _dial(
    peer: Endpoint, identity: Identity, side: Side, *, last: Generation = NO_LINK
) -> Connection:
    """Come to `peer`'s door as `side` would, and say HELLO."""
    sock = trio.socket.socket()
    await sock.connect((peer.addresses[0].host, peer.addresses[0].port))
    connection = await secure(sock, client_context(identity), identity, dialled=True)
    await connection.introduce(
        Hello(LINK_PROTOCOL, "job-1", side, "boot-x", 1, frozenset({"unheard-of"}), last)
    )
    return connection


async def _choose(connection: Connection, generation: Generation) -> Generation:
    await connection.send(encode_generation(Kind.CHOOSE, generation))
    return await connection.next_generation(Kind.CHOSEN)


async def test_only_a_later_choice_counts_at_the_destination() -> None:
    async with endpoints() as (_, destination):
        keys = job_keys().source
        first, second, third = [await _dial(destination, keys, Side.SOURCE) for _ in range(3)]
        assert await _choose(first, Generation(1, 2)) == Generation(1, 2)
        link = await destination.connect(DEADLINE_S)
        for late in (Generation(1, 1), Generation(1, 2)):
            with pytest.raises(GreetingError):
                await _choose(second, late)
        assert link.why_ended is None
        assert await _choose(third, Generation(2, 1)) == Generation(2, 1)
        with trio.fail_after(DEADLINE_S):
            assert "newer link" in await link.wait_ended()
        for connection in (first, second, third):
            connection.close()


async def test_a_choice_overtaken_while_it_is_confirmed_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, real = trio.Event(), Connection.send

    async def send(self: Connection, frame: bytes) -> None:
        if frame == encode_generation(Kind.CHOSEN, Generation(1, 1)):
            await held.wait()
        await real(self, frame)

    async with endpoints() as (_, destination):
        keys = job_keys().source
        first, second = [await _dial(destination, keys, Side.SOURCE) for _ in range(2)]
        monkeypatch.setattr(Connection, "send", send)
        await first.send(encode_generation(Kind.CHOOSE, Generation(1, 1)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await _choose(second, Generation(1, 2))
        held.set()
        assert await first.next_generation(Kind.CHOSEN) == Generation(1, 1)
        with pytest.raises(GreetingError):
            await first.next_frame()
        link = await destination.connect(DEADLINE_S)
        assert link.generation == Generation(1, 2)
        assert link.why_ended is None
        first.close()
        second.close()


async def test_a_dial_of_the_destinations_that_was_overtaken_harms_no_link() -> None:
    async with endpoints() as (source, destination):
        source.set_peer(destination.addresses)
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        late = await _dial(source, job_keys().destination, Side.DESTINATION, last=NO_LINK)
        with pytest.raises(GreetingError):
            await late.next_frame()
        await b.send(b"still here")
        assert await a.receive() == b"still here"
        # The same dial by one who knew the link and has lost it: now the source lets go of it.
        news = await _dial(source, job_keys().destination, Side.DESTINATION, last=a.generation)
        assert "came back" in await a.wait_ended()
        late.close()
        news.close()


async def test_a_destination_that_does_not_confirm_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "CHOOSE_LIMIT_S", 0.05)
    async with endpoints() as (source, _):
        mute, good = [
            await _dial(source, job_keys().destination, Side.DESTINATION) for _ in range(2)
        ]

        async def confirm() -> Generation:
            generation = await good.next_generation(Kind.CHOOSE)
            await good.send(encode_generation(Kind.CHOSEN, generation))
            return generation

        link, generation = await both(lambda: source.connect(DEADLINE_S), confirm)
        assert getattr(link, "generation", None) == generation
        mute.close()
        good.close()


@pytest.mark.parametrize("said", [encode(Kind.BYE), encode(Kind.CHOSEN, b"x"), encode(Kind.HELLO)])
async def test_nonsense_instead_of_a_choice_makes_no_link(said: bytes) -> None:
    async with endpoints() as (_, destination):
        connection = await _dial(destination, job_keys().source, Side.SOURCE)
        await connection.send(said)
        with pytest.raises(GreetingError) as caught:
            await connection.next_frame()
        assert caught.value.result is Dial.CUT
        connection.close()


def test_a_token_is_claimed_once_and_by_nothing_like_it() -> None:
    expected = Expected()
    awaited = expected.add("ram")
    token = awaited.offer.dialler_token
    for wrong in (
        GREETING + bytes(TOKEN_BYTES),
        GREETING + awaited.offer.acceptor_token,
        GREETING + token[:-1],
        GREETING + token + b"\0",
        b"QMD\x02" + token,
    ):
        with pytest.raises(ProtocolError):
            expected.claim_untrusted(wrong)
    assert expected.claim_untrusted(GREETING + token) is awaited
    with pytest.raises(ProtocolError):
        expected.claim_untrusted(GREETING + token)
    assert token.hex() not in repr(awaited.offer)
