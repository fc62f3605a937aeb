"""TLS that carries bytes one way, in large pieces, for a thread that blocks.

`SSLSocket` makes a system call for every 16 KiB record. Here a whole chunk is encrypted in memory
and goes out by one send(), and what one recv() brings is decrypted piece by piece: 28 % less CPU
(facts/transport §3). OpenSSL promises nothing to two threads on one connection, so after the
greeting only one side sends, and there are no messages after the handshake that would need an
answer (no tickets; Python never asks for new keys).
"""

import fcntl
import os
import socket
import ssl
import struct
import time
from typing import cast

import trio

from qmigrate.core.secret import Identity
from qmigrate.transport.identity import client_context, is_pinned, server_context
from qmigrate.transport.records import Decoder, Hello, encode_hello, parse_hello_untrusted

RAW_BYTES = 256 * 1024  # ciphertext taken by one recv()
HANDSHAKE_BYTES = 64 * 1024
TLS_RECORD_BYTES = 16 * 1024  # RFC 8446 5.1
# AES-GCM is safe for 2^24.5 records under one key (RFC 8446 5.5), and Python cannot change keys:
# a third of that, 128 GiB in large pieces, and the connection is made anew.
RENEW_RECORDS = 1 << 23

# A silent wire costs a stall until it is noticed, and making it anew costs milliseconds.
WIRE_USER_TIMEOUT_MS = 4_000
WIRE_KEEPALIVE_IDLE_S = 1
WIRE_KEEPALIVE_INTERVAL_S = 1
WIRE_KEEPALIVE_COUNT = 4

_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that TCP has not sent yet
_INT = struct.Struct("i")


class Wire:
    """A connection of a relay's, greeted. One thread sends, or one receives; any may break it."""

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLObject, came: ssl.MemoryBIO, goes: ssl.MemoryBIO
    ) -> None:
        self._sock, self._tls, self._came, self._goes = sock, tls, came, goes
        self._raw = memoryview(bytearray(RAW_BYTES))
        self.wire_bytes = 0
        self.records = 0
        self.sending_s = 0.0  # in send(): where a full wire makes us wait

    def send(self, data: bytes | memoryview) -> None:
        """Return when the kernel has all of `data`; raises OSError."""
        self._tls.write(data)
        ciphertext = self._goes.read()
        began_s = time.monotonic()
        self._sock.sendall(ciphertext)
        self.sending_s += time.monotonic() - began_s
        self.wire_bytes += len(ciphertext)
        self.records += -(-len(data) // TLS_RECORD_BYTES)

    def receive_into(self, room: memoryview) -> int:
        """Return how many bytes were put into `room`; 0: the peer ended it. Raises OSError."""
        while True:
            try:
                return _read(self._tls, room)
            except ssl.SSLWantReadError:
                count = self._sock.recv_into(self._raw)
                if not count:
                    return 0
                self.wire_bytes += count
                self._came.write(self._raw[:count])

    def limit_unsent(self, count: int) -> None:
        """Have TCP take no more than `count` bytes that it cannot send yet."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, count)

    def unsent_bytes(self) -> int:
        """Return what TCP was given and has not sent; 0 if the connection is gone."""
        try:
            answer = fcntl.ioctl(self._sock.fileno(), _SIOCOUTQNSD, bytes(_INT.size))
        except (OSError, ValueError):
            return 0
        return int(_INT.unpack(answer)[0])

    def break_off(self) -> None:
        """Wake whoever waits in `send` or `receive_into`, with an error or an end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is gone already

    async def wait_end(self) -> None:
        """Return when the peer has ended it, or we; for the side that sends and never listens.

        Nothing is ever said to it: whatever can be read is an end. While it has nothing to send it
        would not notice otherwise.
        """
        try:
            fd = os.dup(self._sock.fileno())  # whoever uses the wire may close it meanwhile
        except OSError:
            return  # and has
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the descriptor back; nobody may be using it any more."""
        self._sock.close()


def _read(tls: ssl.SSLObject, room: memoryview) -> int:
    """Return how many bytes were put into `room` (typeshed knows the other form only)."""
    return cast(int, tls.read(len(room), cast(bytearray, room)))


class WireError(Exception):
    """A connection that came to nothing."""


async def greet(
    sock: socket.socket, identity: Identity, hello: Hello, *, dialled: bool
) -> tuple[Wire, Hello]:
    """Return a wire to exactly the pinned peer and what it said; `sock` is ours whatever comes.

    Raises `WireError`, and `ProtocolError` for a peer that speaks another language. The caller
    limits the time; when cancelled `sock` is closed.
    """
    stream = trio.socket.from_stdlib_socket(sock)
    done = False
    try:
        _prepare(sock)
        context = client_context(identity) if dialled else server_context(identity)
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(came, goes, server_side=not dialled)
        await _shake_hands(stream, tls, came, goes)
        if not is_pinned(tls.getpeercert(binary_form=True), identity):
            raise WireError("the certificate is not the peer's own")
        if dialled:
            await _say(stream, tls, goes, hello)
        theirs = await _hear(stream, tls, came)
        if not dialled:
            await _say(stream, tls, goes, hello)
        done = True
    except OSError as exc:  # ssl.SSLError too
        raise WireError(str(exc) or type(exc).__name__) from exc
    finally:
        if not done:
            stream.close()
    blocking = socket.socket(fileno=stream.detach())
    blocking.setblocking(True)
    return Wire(blocking, tls, came, goes), theirs


def _prepare(sock: socket.socket) -> None:
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, WIRE_USER_TIMEOUT_MS),
        (socket.TCP_KEEPIDLE, WIRE_KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, WIRE_KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, WIRE_KEEPALIVE_COUNT),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def _shake_hands(
    stream: trio.socket.SocketType, tls: ssl.SSLObject, came: ssl.MemoryBIO, goes: ssl.MemoryBIO
) -> None:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await _flush(stream, goes)
            await _fill(stream, came)
        except ssl.SSLError:
            await _flush(stream, goes)  # the alert says why
            raise
        else:
            await _flush(stream, goes)
            return


async def _flush(stream: trio.socket.SocketType, goes: ssl.MemoryBIO) -> None:
    data = goes.read()
    while data:
        data = data[await stream.send(data) :]


async def _fill(stream: trio.socket.SocketType, came: ssl.MemoryBIO) -> None:
    data = await stream.recv(HANDSHAKE_BYTES)
    if not data:
        raise WireError("the peer closed it")
    came.write(data)


async def _say(
    stream: trio.socket.SocketType, tls: ssl.SSLObject, goes: ssl.MemoryBIO, hello: Hello
) -> None:
    tls.write(encode_hello(hello))
    await _flush(stream, goes)


async def _hear(stream: trio.socket.SocketType, tls: ssl.SSLObject, came: ssl.MemoryBIO) -> Hello:
    decoder = Decoder()
    while True:
        room = decoder.room()
        try:
            count = _read(tls, room)
        except ssl.SSLWantReadError:
            await _fill(stream, came)
            continue
        if not count:
            raise WireError("the peer ended it")
        record = decoder.took_untrusted(count)
        if record is not None:
            return parse_hello_untrusted(record)
