"""How a plain TCP connection proves that it is the peer's, before QEMU has its descriptor.

The acceptor makes two random tokens and offers them over the link. Then, on the new connection::

    dialler                                 acceptor
       "QMD" 1, dialler token (36 bytes) ──►   known, and not used before; else closed
       ◄── acceptor token (32 bytes)           checked by the dialler; else closed
       ACK (1 byte) ──►
       ◄── ACK (1 byte)                        each knows that the other has accepted

Not a byte more is read: what follows is QEMU's. The first byte tells this from TLS (0x16), so both
come to one port. Tokens are good once. Whoever can rewrite packets in flight can still take the
plain connection over afterwards: `direct` is for wires that are trusted.
"""

import hashlib
import hmac
import secrets
import socket
from itertools import count

import trio

from qmigrate.core.errors import LinkError, ProtocolError
from qmigrate.transport.frames import TOKEN_BYTES, Offer

GREETING = b"QMD\x01"
GREETING_BYTES = len(GREETING) + TOKEN_BYTES
ACK = b"\x06"


class Awaited:
    """A data socket that has been offered and is waited for."""

    def __init__(self, number: int, name: str) -> None:
        self.offer = Offer(
            number, name, secrets.token_bytes(TOKEN_BYTES), secrets.token_bytes(TOKEN_BYTES)
        )
        self._settled = trio.Event()
        self._sock: socket.socket | None = None
        self._why: str | None = None

    def deliver(self, sock: socket.socket) -> None:
        """Hand in the proved socket; closes it if nobody waits any more."""
        if self._settled.is_set():
            sock.close()
            return
        self._sock = sock
        self._settled.set()

    def fail(self, why: str) -> None:
        """Let the waiter go with an error; the first word counts."""
        if not self._settled.is_set():
            self._why = why
            self._settled.set()

    def abandon(self) -> None:
        """Give up waiting; a socket that was or will be delivered is closed."""
        self.fail("given up")
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def result(self) -> socket.socket:
        """Return the socket, which is the caller's then; raises `LinkError`."""
        await self._settled.wait()
        if self._sock is None:
            raise LinkError(f"data connection {self.offer.name}: {self._why}")
        sock, self._sock = self._sock, None
        return sock


class Expected:
    """The tokens that may be shown at our port, each once."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Awaited] = {}
        self._numbers = count(1)

    def add(self, name: str) -> Awaited:
        """Return a new entry with fresh tokens."""
        awaited = Awaited(next(self._numbers), name)
        self._by_digest[_digest(awaited.offer.dialler_token)] = awaited
        return awaited

    def remove(self, awaited: Awaited) -> None:
        """Forget its token, used or not."""
        self._by_digest.pop(_digest(awaited.offer.dialler_token), None)

    def claim_untrusted(self, greeting: bytes) -> Awaited:
        """Return whom `greeting` is for, and forget its token; raises `ProtocolError`.

        Looked up by digest: how long it takes says nothing of the token.
        """
        if len(greeting) != GREETING_BYTES or not greeting.startswith(GREETING):
            raise ProtocolError("not a data connection's greeting")
        awaited = self._by_digest.pop(_digest(greeting[len(GREETING) :]), None)
        if awaited is None:
            raise ProtocolError("a data connection with an unknown token")
        return awaited


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


async def accept_untrusted(sock: trio.socket.SocketType, expected: Expected) -> Awaited:
    """Run the acceptor's part; raises `ProtocolError`, or returns whom to deliver `sock` to.

    The caller limits the time and closes `sock` on an error; once a token was shown its waiter is
    told of the error as well.
    """
    awaited = expected.claim_untrusted(await read_exactly(sock, GREETING_BYTES))
    try:
        await _send_all(sock, awaited.offer.acceptor_token)
        if await read_exactly(sock, len(ACK)) != ACK:
            raise ProtocolError("a data connection that was not acknowledged")
        await _send_all(sock, ACK)
    except ProtocolError as exc:
        awaited.fail(str(exc))
        raise
    except trio.Cancelled:
        awaited.fail("the connection stalled in its greeting")
        raise
    return awaited


async def show_untrusted(sock: trio.socket.SocketType, offer: Offer) -> None:
    """Run the dialler's part; raises `ProtocolError` if this is not whom the offer came from."""
    await _send_all(sock, GREETING + offer.dialler_token)
    answer = await read_exactly(sock, TOKEN_BYTES)
    if not hmac.compare_digest(answer, offer.acceptor_token):
        raise ProtocolError("whoever answers there does not know the token")
    await _send_all(sock, ACK)
    if await read_exactly(sock, len(ACK)) != ACK:
        raise ProtocolError("the data connection was not acknowledged")


async def read_exactly(sock: trio.socket.SocketType, count: int) -> bytes:
    """Return `count` bytes and take none beyond; raises `ProtocolError` when it ends before."""
    got = bytearray()
    while len(got) < count:
        try:
            chunk = await sock.recv(count - len(got))
        except OSError as exc:
            raise ProtocolError(f"the data connection broke: {exc}") from exc
        if not chunk:
            raise ProtocolError("the data connection was closed")
        got += chunk
    return bytes(got)


async def _send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    try:
        while data:
            data = data[await sock.send(data) :]
    except OSError as exc:
        raise ProtocolError(f"the data connection broke: {exc}") from exc
