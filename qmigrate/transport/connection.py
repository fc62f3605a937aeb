"""One connection between the agents, from the TLS handshake until both have said HELLO.

A `Connection` is authenticated but nothing yet: the source may choose it to be the link.
"""

import socket
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from qmigrate.core.errors import LinkRefusedError, ProtocolError
from qmigrate.core.model import Address
from qmigrate.core.secret import Identity
from qmigrate.transport.frames import (
    Frame,
    FrameDecoder,
    Generation,
    Hello,
    Kind,
    encode_hello,
    parse_generation_untrusted,
    parse_hello_untrusted,
)
from qmigrate.transport.identity import is_pinned
from qmigrate.transport.reach import Dial

READ_BYTES = 64 * 1024  # a TLS record is 16 KiB at most; some of them at once
WRITE_BYTES = 256 * 1024  # encrypted in one go, about 0.2 ms; the event loop waits so long


class GreetingError(Exception):
    """A connection that came to nothing, and how it looked from here."""

    def __init__(self, result: Dial, why: str) -> None:
        super().__init__(why)
        self.result = result


class Connection:
    """An authenticated connection that speaks frames.

    One task may read while another writes. After a cancelled or failed call it is good for
    `close` only. Every failure is a `GreetingError`.
    """

    def __init__(
        self, stream: trio.SSLStream[trio.SocketStream], *, dialled: bool, peer: Hello | None = None
    ) -> None:
        sock = stream.transport_stream.socket
        self._stream = stream
        self._decoder = FrameDecoder()
        self._frames: deque[Frame] = deque()
        self._peer = peer
        self.dialled = dialled  # by us
        self.local = _address(sock.getsockname())
        self.remote = _address(sock.getpeername())
        self.heard_at = trio.current_time()
        self.taken = False  # it is a link's now, who closes it

    @property
    def peer(self) -> Hello:
        """What the peer said of itself; only after `introduce`."""
        if self._peer is None:
            raise RuntimeError("no HELLO yet")
        return self._peer

    async def introduce(self, own: Hello) -> None:
        """Exchange HELLOs, the acceptor's first; raises `LinkRefusedError` if they do not fit.

        Both are sent before either is judged, so that each side can say why it did not work.
        """
        if not self.dialled:
            await self.send(encode_hello(own))
        try:
            frame = await self.next_frame()
        except GreetingError as exc:
            # In TLS 1.3 the server judges our certificate when we believe the handshake done, and
            # trio's SSLStream does not send the alert that would say so.
            raise GreetingError(Dial.DISOWNED if self.dialled else exc.result, str(exc)) from exc
        if self.dialled:
            await self.send(encode_hello(own))
        try:
            if frame.kind is not Kind.HELLO:
                raise ProtocolError(f"{frame.kind.name} instead of HELLO")
            peer = parse_hello_untrusted(frame.payload)
        except ProtocolError as exc:
            raise LinkRefusedError(f"the peer's agent at {self.remote}: {exc}") from exc
        misfit = _misfit(own, peer)
        if misfit:
            raise LinkRefusedError(f"the peer's agent at {self.remote} {misfit}")
        self._peer = peer

    async def send(self, frame: bytes) -> None:
        """Write a frame, or several at once."""
        view = memoryview(frame)
        with _named_failures():
            for start in range(0, len(view), WRITE_BYTES):
                await self._stream.send_all(view[start : start + WRITE_BYTES])

    async def next_frame(self) -> Frame:
        """Return the next frame; `heard_at` tells when the last bytes of any kind came."""
        while not self._frames:
            with _named_failures():
                chunk = await self._stream.receive_some(READ_BYTES)
            if not chunk:
                raise GreetingError(Dial.CUT, "the peer's agent closed the connection")
            self.heard_at = trio.current_time()
            try:
                self._frames.extend(self._decoder.feed_untrusted(chunk))
            except ProtocolError as exc:
                raise GreetingError(Dial.CUT, f"the peer's agent sent {exc}") from exc
        return self._frames.popleft()

    async def next_generation(self, kind: Kind) -> Generation:
        """Return what the next frame, a CHOOSE or CHOSEN, names."""
        frame = await self.next_frame()
        if frame.kind is not kind:
            raise GreetingError(Dial.CUT, f"{frame.kind.name} instead of {kind.name}")
        try:
            return parse_generation_untrusted(frame.payload)
        except ProtocolError as exc:
            raise GreetingError(Dial.CUT, str(exc)) from exc

    def end_writing(self) -> None:
        """Send a FIN: nothing follows. Whatever was written before still arrives."""
        try:
            self._stream.transport_stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it is gone already, which says as much

    def close(self) -> None:
        """Close at once, without a word."""
        self._stream.transport_stream.socket.close()


async def secure(
    sock: trio.socket.SocketType, context: ssl.SSLContext, identity: Identity, *, dialled: bool
) -> Connection:
    """Return a connection to exactly the peer that `identity` pins.

    Raises `GreetingError`. The caller owns `sock` until this returns.
    """
    stream = trio.SSLStream(
        trio.SocketStream(sock), context, server_side=not dialled, https_compatible=False
    )
    with _named_failures():
        await stream.do_handshake()
    if not is_pinned(stream.getpeercert(binary_form=True), identity):
        raise GreetingError(Dial.STRANGER, "the certificate is not the peer's own")
    try:
        return Connection(stream, dialled=dialled)
    except OSError as exc:  # getpeername: gone already
        raise GreetingError(Dial.CUT, str(exc)) from exc


def _misfit(own: Hello, peer: Hello) -> str | None:
    if peer.protocol != own.protocol:
        return f"speaks link protocol {peer.protocol}, this one {own.protocol}"
    if peer.job != own.job:
        return f"works on job {peer.job!r}, not on {own.job!r}"
    if peer.side is own.side:
        return f"is the {peer.side.value} too"
    return None


@contextmanager
def _named_failures() -> Iterator[None]:
    """Turn what trio and OpenSSL raise into a `GreetingError` that says who is to blame."""
    try:
        yield
    except trio.BrokenResourceError as exc:
        raise _why_broken(exc) from exc
    except (trio.ClosedResourceError, OSError) as exc:
        raise GreetingError(Dial.CUT, str(exc) or type(exc).__name__) from exc


def _why_broken(exc: trio.BrokenResourceError) -> GreetingError:
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, OSError):  # ssl.SSLError is an OSError
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return GreetingError(Dial.STRANGER, cause.verify_message)
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return GreetingError(Dial.CUT, str(cause or exc) or "cut")
    return GreetingError(Dial.STRANGER, cause.reason or str(cause))


def _address(name: tuple[str, int]) -> Address:
    return Address(name[0], name[1])
