"""The link: messages from agent to agent over one chosen connection, and what keeps it honest.

Three tasks a link. The reader takes frames apart and never waits for the owner until
`UNREAD_LIMIT_BYTES` are unread. The writer sends what is queued, so that a cancelled `send` cannot
leave half a frame behind. The pinger asks every second: any byte of the peer's proves it alive, and
the answers tell its clock.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import assert_never

import trio

from qmigrate.core.errors import LinkBrokenError, ProtocolError
from qmigrate.core.model import Address, Side
from qmigrate.core.timeline import ClockOffset, ClockSample, estimate_offset, sample_clock
from qmigrate.transport.connection import Connection, GreetingError
from qmigrate.transport.frames import (
    Frame,
    Generation,
    Hello,
    Kind,
    Offer,
    Pong,
    encode,
    encode_ping,
    encode_pong,
    parse_decline_untrusted,
    parse_offer_untrusted,
    parse_ping_untrusted,
    parse_pong_untrusted,
)

PING_INTERVAL_S = 1.0
PING_BURST = 8  # at first, quickly one after another: the clocks are wanted soon
PING_BURST_INTERVAL_S = 0.05
DEAD_PEER_S = 5.0  # of silence; the peer's agent may be stopped, or its host or the wire be gone
CLOSE_LIMIT_S = 1.0  # for the goodbye
UNREAD_LIMIT_BYTES = 32 * 1024 * 1024  # beyond, the peer is slowed down
PINGS_REMEMBERED = 64  # unanswered
SAMPLES_KEPT = 4096  # an hour of pings; older ones say nothing of the clock now
OFFERS_LIMIT = 64  # data sockets offered and not taken
GATHER_BYTES = 64 * 1024  # small frames that go into one TLS record's write
CLOCK_READS = 3  # tries to read two clocks with nothing in between
CLOCK_READ_US = 20  # apart at most, then it is good enough


class _Outgoing:
    """A frame in the queue and what became of it."""

    __slots__ = ("done", "frame", "sent")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.done = trio.Event()
        self.sent = False


class Link:
    """An authenticated, living way to the peer's agent.

    It ends once and for all: `send` and `receive` raise `LinkBrokenError` then (they did it), or
    `trio.ClosedResourceError` after our own `aclose` (you did it). `Endpoint.connect` makes the
    next one. Made by `Endpoint` only.
    """

    def __init__(
        self,
        connection: Connection,
        generation: Generation,
        *,
        side: Side,
        features: frozenset[str],
        samples: deque[ClockSample],
    ) -> None:
        connection.taken = True
        self._connection = connection
        self._side = side
        self.generation = generation
        self.features = features & connection.peer.features  # that both have
        self.note: str | None = None  # what did not work on the way here, for people
        self._samples = samples
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._finished = trio.Event()
        self._why: str | None = None
        self._closed = False
        self._queue: deque[_Outgoing] = deque()
        self._queued = trio.Event()
        self._into_inbox, self._inbox = trio.open_memory_channel[bytes](math.inf)
        self._unread_bytes = 0
        self._room = trio.Event()
        self._stuck = False  # the reader waits for our owner: the peer is not to blame for silence
        self._pings: dict[int, int] = {}  # number, own boot clock when sent
        self._offers: dict[str, Offer] = {}
        self._withdrawn: deque[int] = deque(maxlen=OFFERS_LIMIT)
        self._offered = trio.lowlevel.ParkingLot()  # several may wait, for a name each
        self._on_decline: dict[int, Callable[[str], None]] = {}
        self._watchers: set[trio.CancelScope] = set()

    @property
    def peer(self) -> Hello:
        """How the peer introduced itself: boot id, incarnation, features."""
        return self._connection.peer

    @property
    def local(self) -> Address:
        """Our end."""
        return self._connection.local

    @property
    def remote(self) -> Address:
        """The peer's end: where it listens, if it was us who dialled."""
        return self._connection.remote

    @property
    def dialled_by(self) -> Side:
        """Which side's packets opened the connection: data connections go the same way."""
        return self._side if self._connection.dialled else self._side.other

    @property
    def why_ended(self) -> str | None:
        """Why it is over, as a sentence; None while it lives."""
        return self._why

    async def wait_ended(self) -> str:
        """Return why it is over, once it is."""
        await self._ended.wait()
        return self._why or ""

    def clock_offset(self, *, at_us: int | None = None) -> ClockOffset | None:
        """Return the peer's CLOCK_REALTIME minus ours, at `at_us` of ours (None: lately).

        Pings of earlier links of this job count too. None: no ping was answered yet.
        """
        return estimate_offset(tuple(self._samples), at_us=at_us)

    async def send(self, message: bytes) -> None:
        """Return when the kernel has `message`; whether it arrives only an answer can tell.

        Raises `LinkBrokenError`, and ValueError for more than 16 MiB. Any number of tasks may send.
        When cancelled before its turn came it is not sent, after that it is; the link stays whole.
        """
        await self._send(encode(Kind.MESSAGE, message))

    async def receive(self) -> bytes:
        """Return the next message; what had arrived before the end is returned before raising.

        Raises `LinkBrokenError`. A cancelled call loses nothing.
        """
        try:
            message = await self._inbox.receive()
        except trio.EndOfChannel:
            raise self._error() from None
        self._unread_bytes -= len(message)
        self._room.set()
        return message

    async def aclose(self) -> None:
        """Say goodbye, so that the peer knows it for an end and not a break, and close.

        Takes at most a second; when cancelled the link is closed without the goodbye.
        """
        self._closed = True
        try:
            with trio.move_on_after(CLOSE_LIMIT_S):
                if self._why is None:
                    await self._send(encode(Kind.BYE))
                    self._connection.end_writing()
                    await self._ended.wait()
        except (LinkBrokenError, trio.ClosedResourceError):
            return  # it ended meanwhile
        finally:
            self.drop("closed")
            with trio.CancelScope(shield=True):
                await self._finished.wait()

    def drop(self, why: str) -> None:
        """End it now, without a word to the peer; the first reason given counts."""
        if self._why is not None:
            return
        self._why = why
        self._ended.set()
        self._into_inbox.close()
        for outgoing in self._queue:
            outgoing.done.set()
        self._queue.clear()
        for watcher in self._watchers:
            watcher.cancel()
        self._scope.cancel()

    def _error(self) -> LinkBrokenError | trio.ClosedResourceError:
        if self._closed:
            return trio.ClosedResourceError("the link was closed here")
        return LinkBrokenError(
            f"the link to the {self._side.other.value} ({self.remote}) ended: {self._why}"
        )

    @contextmanager
    def abandoned_when_ended(self) -> Iterator[None]:
        """Cancel the block when the link ends, and raise `LinkBrokenError` from it."""
        if self._why is not None:
            raise self._error()
        with trio.CancelScope() as watcher:
            self._watchers.add(watcher)
            try:
                yield
            finally:
                self._watchers.discard(watcher)
        if watcher.cancelled_caught:
            raise self._error()

    # -- what data connections say over the link ---------------------------------------------------

    def post(self, frame: bytes) -> None:
        """Queue a control frame and do not wait."""
        if self._why is None:
            self._queue.append(_Outgoing(frame))
            self._queued.set()

    async def take_offer(self, name: str) -> Offer:
        """Return the peer's offer of the data connection `name`, once it is there."""
        while name not in self._offers:
            await self._offered.park()
        return self._offers.pop(name)

    async def wait_withdrawn(self, number: int) -> None:
        """Return once the peer has withdrawn its offer `number`."""
        while number not in self._withdrawn:
            await self._offered.park()

    @contextmanager
    def told_of_decline(self, number: int, tell: Callable[[str], None]) -> Iterator[None]:
        """Call `tell` with the reason when the peer declines our offer `number`."""
        self._on_decline[number] = tell
        try:
            yield
        finally:
            del self._on_decline[number]

    # -- tasks -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the link alive until it ends; closes the connection. Run by the endpoint."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._ping)
        finally:
            self.drop("the job's endpoint was closed")
            self._connection.close()
            self._finished.set()

    async def _send(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._why is not None:
            raise self._error()
        outgoing = _Outgoing(frame)
        self._queue.append(outgoing)
        self._queued.set()
        try:
            await outgoing.done.wait()
        except trio.Cancelled:
            if outgoing in self._queue:
                self._queue.remove(outgoing)
            raise
        if not outgoing.sent:
            raise self._error()

    async def _write(self) -> None:
        while True:
            while not self._queue:
                self._queued = trio.Event()
                await self._queued.wait()
            batch = [self._queue.popleft()]
            size = len(batch[0].frame)
            while self._queue and size + len(self._queue[0].frame) <= GATHER_BYTES:
                batch.append(self._queue.popleft())
                size += len(batch[-1].frame)
            try:
                await self._connection.send(b"".join(outgoing.frame for outgoing in batch))
            except GreetingError as exc:
                self.drop(str(exc))
            else:
                for outgoing in batch:
                    outgoing.sent = True
            finally:
                for outgoing in batch:
                    outgoing.done.set()

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._connection.next_frame()
                self._take_untrusted(frame)
                while self._unread_bytes > UNREAD_LIMIT_BYTES:
                    self._stuck = True
                    self._room = trio.Event()
                    await self._room.wait()
                self._stuck = False
        except (GreetingError, ProtocolError) as exc:
            self.drop("closed" if self._closed else str(exc))

    def _take_untrusted(self, frame: Frame) -> None:
        if self._why is not None:  # another task has ended it, and the cancel is on its way here
            return
        match frame.kind:
            case Kind.MESSAGE:
                self._unread_bytes += len(frame.payload)
                self._into_inbox.send_nowait(frame.payload)
            case Kind.PING:
                wall_us, _, base_us = read_clocks()
                self.post(encode_pong(Pong(parse_ping_untrusted(frame.payload), wall_us, base_us)))
            case Kind.PONG:
                self._take_pong(parse_pong_untrusted(frame.payload))
            case Kind.OFFER:
                offer = parse_offer_untrusted(frame.payload)
                if len(self._offers) >= OFFERS_LIMIT:
                    raise ProtocolError("more data connections offered than are taken")
                self._offers[offer.name] = offer
                self._offered.unpark_all()
            case Kind.DECLINE:
                self._take_decline(*parse_decline_untrusted(frame.payload))
            case Kind.BYE:
                self.drop("the peer closed it")
            case Kind.HELLO | Kind.CHOOSE | Kind.CHOSEN:
                raise ProtocolError(f"{frame.kind.name} on a link that stands")
            case _:
                assert_never(frame.kind)

    def _take_decline(self, number: int, why: str) -> None:
        """Tell who offered; or it is the peer's own offer, which it withdraws."""
        tell = self._on_decline.get(number)
        if tell is not None:
            tell(f"the {self._side.other.value} says: {why}")
            return
        self._withdrawn.append(number)
        self._offered.unpark_all()
        for name in [name for name, offer in self._offers.items() if offer.number == number]:
            del self._offers[name]

    def _take_pong(self, pong: Pong) -> None:
        sent_boot_us = self._pings.pop(pong.number, None)
        if sent_boot_us is None:
            return  # older than we remember
        _, received_boot_us, own_base_us = read_clocks()
        self._samples.append(
            sample_clock(
                sent_boot_us=sent_boot_us,
                received_boot_us=received_boot_us,
                own_base_us=own_base_us,
                peer_wall_us=pong.wall_us,
                peer_base_us=pong.clock_base_us,
            )
        )

    async def _ping(self) -> None:
        number = 0
        forgiven_until = -math.inf
        while True:
            self._pings[number] = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            self._pings.pop(number - PINGS_REMEMBERED, None)
            self.post(encode_ping(number))
            number += 1
            interval_s = PING_BURST_INTERVAL_S if number < PING_BURST else PING_INTERVAL_S
            woken_at = trio.current_time() + interval_s
            await trio.sleep_until(woken_at)
            now = trio.current_time()
            if now - woken_at > PING_INTERVAL_S or self._stuck:
                # It was we who slept (SIGSTOP, a suspended host): what came meanwhile is unread.
                forgiven_until = now
            silent_s = now - max(self._connection.heard_at, forgiven_until)
            if silent_s > DEAD_PEER_S:
                self.drop(f"nothing was heard from the peer's agent for {silent_s:.1f} s")


def read_clocks() -> tuple[int, int, int]:
    """Return wall clock, boot clock and their difference, in us, read as close as can be."""
    best_apart_us, wall_us, boot_us = math.inf, 0, 0
    for _ in range(CLOCK_READS):
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        apart_us = (after_ns - before_ns) / 1000
        if apart_us < best_apart_us:
            best_apart_us = apart_us
            wall_us, boot_us = wall_ns // 1000, (before_ns + after_ns) // 2000
        if apart_us < CLOCK_READ_US:
            break
    return wall_us, boot_us, wall_us - boot_us
