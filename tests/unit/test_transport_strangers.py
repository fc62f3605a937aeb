"""Who is not the peer gets nowhere, keeps nobody out, and is told nothing."""

import socket
import ssl
from contextlib import suppress

import pytest
import trio
import trio.testing

from qmigrate.controller.keys import make_pair
from qmigrate.core.errors import LinkBrokenError, LinkError, LinkUnreachableError
from qmigrate.core.model import Address
from qmigrate.core.secret import Identity
from qmigrate.transport import data as data_module
from qmigrate.transport import listener as listener_module
from qmigrate.transport.endpoint import Endpoint
from qmigrate.transport.frames import TOKEN_BYTES, Kind, encode
from qmigrate.transport.identity import client_context, server_context
from qmigrate.transport.listener import PENDING_LIMIT, Pending
from qmigrate.transport.passing import QEMU_USER_TIMEOUT_MS, hand_over
from qmigrate.transport.tokens import GREETING
from tests.support.link_pair import (
    DEADLINE_S,
    authority,
    both,
    destination_spec,
    endpoints,
    job_keys,
    key_of,
    linked,
    open_descriptors,
    pair_signed_by,
    source_spec,
    stranger_context,
)
from tests.support.netns import eventually


def _other_job() -> Identity:
    certificate, key = make_pair("another job's")
    return Identity(certificate, key, job_keys().destination.certificate_pem)


CONTEXTS = {
    "no certificate": lambda: stranger_context(None),
    "another job's key": lambda: stranger_context(_other_job()),
    "TLS 1.2": lambda: stranger_context(job_keys().source, tls12=True),
    "our own certificate sent back": lambda: stranger_context(job_keys().destination),
}


@pytest.mark.parametrize("name", CONTEXTS)
async def test_a_stranger_never_hears_hello(name: str) -> None:
    async with endpoints() as (_, destination):
        with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            await _speak(destination.addresses[0], CONTEXTS[name]())


async def test_the_same_dial_with_the_right_key_hears_hello() -> None:
    async with endpoints() as (_, destination):
        said = await _speak(destination.addresses[0], stranger_context(job_keys().source))
        assert said[0] == Kind.HELLO


async def test_a_certificate_issued_by_the_peers_key_is_refused_by_the_pin_alone() -> None:
    issuer, issuer_pem = authority("careless")
    issued_pem, issued_key = pair_signed_by(issuer, "careless")
    pinned_to_issuer = Identity(
        job_keys().destination.certificate_pem, job_keys().destination.key, issuer_pem
    )
    with_issued = Identity(issued_pem, issued_key, job_keys().destination.certificate_pem)
    # OpenSSL alone would let it in: without this the test below would prove nothing.
    _handshake(client_context(with_issued), server_context(pinned_to_issuer))
    async with endpoints(None, destination_spec(identity=pinned_to_issuer)) as (_, destination):
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await _speak(destination.addresses[0], client_context(with_issued))
        itself = Identity(issuer_pem, key_of(issuer), job_keys().destination.certificate_pem)
        said = await _speak(destination.addresses[0], client_context(itself))
        assert said[0] == Kind.HELLO


async def test_an_expired_certificate_is_as_good_as_any_if_it_is_the_pinned_one() -> None:
    old_key, old_pem = authority("old", expired=True)
    source = Identity(old_pem, key_of(old_key), job_keys().destination.certificate_pem)
    destination = Identity(
        job_keys().destination.certificate_pem, job_keys().destination.key, old_pem
    )
    async with endpoints(source_spec(identity=source), destination_spec(identity=destination)) as (
        a,
        b,
    ):
        a.set_peer(b.addresses)
        await both(lambda: a.connect(DEADLINE_S), lambda: b.connect(DEADLINE_S))


async def test_a_dialler_that_meets_a_stranger_says_so_and_sends_nothing() -> None:
    certificate, key = make_pair("imposter")
    imposter = Identity(certificate, key, job_keys().source.certificate_pem)
    async with endpoints(None, destination_spec(identity=imposter)) as (source, destination):
        source.set_peer(destination.addresses)
        with pytest.raises(LinkUnreachableError, match="answered without the peer's certificate"):
            await source.connect(0.5)


async def test_a_dialler_that_the_peer_does_not_know_says_so() -> None:
    unknown = Identity(*make_pair("unknown"), job_keys().destination.certificate_pem)
    async with endpoints(source_spec(identity=unknown)) as (source, destination):
        source.set_peer(destination.addresses)
        with pytest.raises(LinkUnreachableError, match="does not know our certificate"):
            await source.connect(0.5)


@pytest.mark.parametrize("opening", [b"", b"\x16", b"\x16\x03\x01\x02\x00", GREETING + b"x"])
async def test_a_crowd_of_slow_strangers_delays_nobody(opening: bytes) -> None:
    async with endpoints() as (source, destination):
        source.set_peer(destination.addresses)
        crowd = [
            socket.create_connection((address.host, address.port))
            for address in destination.addresses
            for _ in range(40)
        ]
        try:
            for sock in crowd:
                sock.sendall(opening)
            # Less than any of them may take: a door that served them in turn would be too late.
            deadline_s = listener_module.HANDSHAKE_LIMIT_S / 2
            await both(lambda: source.connect(deadline_s), lambda: destination.connect(deadline_s))
        finally:
            for sock in crowd:
                sock.close()


async def test_silent_strangers_are_sent_away_when_their_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_module, "HANDSHAKE_LIMIT_S", 0.05)
    async with endpoints() as (_, destination):
        stream = await _open(destination.addresses[0])
        with trio.fail_after(DEADLINE_S):
            assert await stream.receive_some(1) == b""
        await stream.aclose()


def test_only_so_many_wait_at_the_door_and_the_oldest_stranger_goes_first() -> None:
    async def main() -> None:
        pending = Pending()
        peers = [pending.admit(known=True) for _ in range(3)]
        strangers = [pending.admit(known=False) for _ in range(PENDING_LIMIT - 3)]
        pending.admit(known=False)
        assert len(pending) == PENDING_LIMIT
        assert [scope.cancel_called for scope in strangers if scope][:2] == [True, False]
        for _ in range(PENDING_LIMIT):
            pending.admit(known=True)
        assert all(scope.cancel_called for scope in peers + strangers if scope)
        assert pending.admit(known=False) is None

    trio.run(main)


async def test_data_connections_are_proved_and_carry_what_comes_next_to_the_byte() -> None:
    async with linked() as pair:
        first, second = await pair.data_sockets("ram0")
        with first, second:
            for here, there in ((first, second), (second, first)):
                here.sendall(b"QEVM\x00\x00\x00\x03")
                assert there.recv(100) == b"QEVM\x00\x00\x00\x03"
            for sock in (first, second):
                assert sock.getblocking()
                for option, expected in (
                    (socket.TCP_NODELAY, 1),
                    (socket.TCP_USER_TIMEOUT, QEMU_USER_TIMEOUT_MS),
                ):
                    assert sock.getsockopt(socket.IPPROTO_TCP, option) == expected
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert second.getsockname()[1] == pair.b.local.port


async def test_several_data_connections_at_once_do_not_mix() -> None:
    async with linked() as pair:
        made: dict[str, list[socket.socket]] = {}

        async def make(name: str) -> None:
            made[name] = await pair.data_sockets(name)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(make, f"disk{number}")
        for name, (first, second) in made.items():
            with first, second:
                first.sendall(name.encode())
                assert second.recv(100) == name.encode()


async def test_a_data_connection_that_ends_early_is_seen_as_an_end_by_the_other() -> None:
    async with linked() as pair:
        first, second = await pair.data_sockets("ram0")
        with second:

            async def give(descriptor: int) -> None:
                assert descriptor == first.fileno()

            await hand_over(first, give)
            assert second.recv(1) == b""


@pytest.mark.parametrize(
    "greeting",
    [
        GREETING + bytes(TOKEN_BYTES),
        GREETING[:2],
        b"QEVM" + bytes(TOKEN_BYTES),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00",
    ],
)
async def test_a_stranger_at_the_data_port_is_dropped_and_disturbs_no_one(greeting: bytes) -> None:
    async with linked() as pair:
        stream = await _open(pair.destination.addresses[0])
        await stream.send_all(greeting)
        with suppress(OSError, trio.BrokenResourceError):  # it may be dropped by then
            await stream.send_eof()
        with trio.fail_after(DEADLINE_S):
            assert await _rest(stream) == b""
        await stream.aclose()
        first, second = await pair.data_sockets("ram0")
        first.close()
        second.close()


async def test_a_token_is_good_once_and_not_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[bytes] = []
    real = data_module.show_untrusted

    async def note(sock: trio.socket.SocketType, offer: object) -> None:
        shown.append(offer.dialler_token)  # type: ignore[attr-defined]
        await real(sock, offer)  # type: ignore[arg-type]

    monkeypatch.setattr(data_module, "show_untrusted", note)
    async with linked() as pair:
        for sock in await pair.data_sockets("ram0"):
            sock.close()
        with trio.move_on_after(0.05):
            await pair.destination.data_socket(pair.b, "ram1", DEADLINE_S)
        late = (await pair.a.take_offer("ram1")) if "ram1" in pair.a._offers else None
        for token in (shown[0], late.dialler_token if late else shown[0]):
            stream = await _open(pair.destination.addresses[0])
            await stream.send_all(GREETING + token)
            with trio.fail_after(DEADLINE_S):
                assert await _rest(stream) == b""
            await stream.aclose()


async def test_a_wrong_answer_makes_the_dialler_leave_and_both_sides_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lie(sock: trio.socket.SocketType, expected: object) -> object:
        await sock.recv(100)
        await sock.send(bytes(TOKEN_BYTES))
        await trio.sleep_forever()
        return None

    monkeypatch.setattr(data_module, "accept_untrusted", lie)
    with open_descriptors() as opened:
        async with linked() as pair:
            errors: list[str] = []

            async def attempt(endpoint: Endpoint, link: object) -> None:
                with pytest.raises(LinkError) as caught:
                    await endpoint.data_socket(link, "ram0", DEADLINE_S)  # type: ignore[arg-type]
                errors.append(caught.value.problem.what)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, pair.source, pair.a)
                nursery.start_soon(attempt, pair.destination, pair.b)
            assert all("does not know the token" in error for error in errors)
        await eventually(lambda: not opened(), "all sockets closed")


async def test_a_link_that_ends_ends_the_wait_for_a_data_connection() -> None:
    async with linked() as pair, trio.open_nursery() as nursery:
        for endpoint, link in ((pair.source, pair.a), (pair.destination, pair.b)):

            async def attempt(endpoint: Endpoint = endpoint, link: object = link) -> None:
                with pytest.raises(LinkBrokenError):
                    await endpoint.data_socket(
                        link,  # type: ignore[arg-type]
                        f"only-{endpoint.addresses[0].port}",
                        DEADLINE_S,
                    )

            nursery.start_soon(attempt)
        await trio.testing.wait_all_tasks_blocked()
        pair.a.drop("cut")


async def test_a_data_connection_that_one_side_never_asks_for_has_a_deadline() -> None:
    async with linked() as pair:
        for endpoint, link in ((pair.source, pair.a), (pair.destination, pair.b)):
            with pytest.raises(LinkError, match=r"ram0: not made within 0.05 s"):
                await endpoint.data_socket(link, "ram0", 0.05)
        for sock in await pair.data_sockets("ram0"):  # and the name can be used again
            sock.close()


async def test_frames_that_no_link_may_carry_end_it() -> None:
    for frame in (
        b"\x63" + bytes(4),
        encode(Kind.HELLO),
        b"\x04\xff\xff\xff\xff",
        b"\x05" + bytes(4),
    ):
        async with linked() as pair:
            pair.a.post(frame)
            with pytest.raises(LinkBrokenError):
                await pair.b.receive()


async def _open(address: Address) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def _speak(address: Address, context: ssl.SSLContext) -> bytes:
    """Return the first bytes that the door says to a TLS client."""
    stream = trio.SSLStream(await _open(address), context)
    try:
        with trio.fail_after(DEADLINE_S):
            await stream.do_handshake()
            said = bytes(await stream.receive_some(1000))
            if not said:  # how Python 3.11.2 reads an end without close_notify; later ones raise
                raise trio.BrokenResourceError("the door was shut")
            return said
    finally:
        await trio.aclose_forcefully(stream)


async def _rest(stream: trio.SocketStream) -> bytes:
    got = b""
    try:
        while chunk := await stream.receive_some(1000):
            got += chunk
    except trio.BrokenResourceError:
        pass  # reset: dropped all the same
    return got


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Run a handshake in memory; raises ssl.SSLError where OpenSSL itself refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert all(end.version() == "TLSv1.3" for end in ends)
