"""What a relay's threads share: QEMU's sockets, the slots, and the one lock that guards it all.

A wire's number (`carrier`) makes a cut harmless: what is taken under an older number than the
slot's present one is offered again, because `Outgoing.lose` has seen it.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.rate import CHUNK_BYTES, Budget, Ladder
from qmigrate.transport.records import CHUNK_LIMIT_BYTES, HEADER_BYTES, fresh_buffer
from qmigrate.transport.streams import Incoming, Outgoing
from qmigrate.transport.wires import Wire

POOL_BUFFERS = 128  # kept for the next chunks; beyond, memory is given back
BUFFER_BYTES = HEADER_BYTES + CHUNK_BYTES
SMALL = 2  # what fills less than this part of a buffer gets one of its own size
STALL_S = 0.5  # without an acknowledgement: a stall that is counted


@dataclass(slots=True, eq=False)
class Stream:
    """QEMU's end of a stream and both its directions."""

    number: int
    sock: socket.socket  # blocking
    out: Outgoing
    into: Incoming
    arrived: threading.Condition  # something for the deliverer
    dead: bool = False  # QEMU's end is, or the peer's; nothing more is moved
    owes_ack: bool = False
    owes_reset: bool = False  # it died here: the peer must know

    @property
    def finished(self) -> bool:
        """Tell if both directions have come to their ends, or it has died."""
        return self.dead or (self.out.finished and self.into.finished)


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one wire after the other, all of one direction."""

    index: int
    sends: bool
    changed: threading.Condition
    wire: Wire | None = None
    using: Wire | None = None  # by its thread, which closes it
    carrier: int = 0  # the present wire's number
    generation: int = 0  # of the last HELLO
    made: int = 0  # wires so far


@dataclass(slots=True)
class Count:
    """What the writers have done; closed wires' bytes too."""

    wire_sent: int = 0
    wire_received: int = 0
    stalls: int = 0
    stalled_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)
    payload: int = 0
    wire: int = 0
    sending_s: float = 0.0
    packing_s: float = 0.0


class Traffic:
    """See the module."""

    def __init__(
        self,
        slots: list[tuple[bool, int]],
        levels: tuple[int, ...],
        budget: Budget,
        window_bytes: int,
        on_change: Callable[[], None],
    ) -> None:
        self.lock = threading.RLock()
        self.streams: dict[int, Stream] = {}
        self.slots = [Slot(index, sends, threading.Condition(self.lock)) for sends, index in slots]
        self.over = False
        self.budget = budget
        self.ladder = Ladder(levels)
        self.count = Count()
        self.on_change = on_change
        self.woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._window_bytes = window_bytes
        self._carriers = count(1)
        self._free: list[memoryview] = []

    def add_stream(self, number: int, sock: socket.socket) -> Stream:
        """Return the stream of QEMU's socket, which is ours from now on."""
        sock.setblocking(True)
        with self.lock:
            stream = self.streams[number] = Stream(
                number,
                sock,
                Outgoing(self._window_bytes),
                Incoming(self._window_bytes),
                threading.Condition(self.lock),
            )
        return stream

    def next_carrier(self) -> int:
        """Return a number that no wire has had."""
        return next(self._carriers)

    def is_current(self, slot: Slot, carrier: int) -> bool:
        """Tell, with the lock held, if what is sent over this wire still counts."""
        return slot.carrier == carrier and slot.wire is not None and not self.over

    def wires(self) -> list[tuple[bool, Wire]]:
        """Return the wires that there are, each with whether we send by it; with the lock held."""
        return [(slot.sends, slot.wire) for slot in self.slots if slot.wire is not None]

    def wake(self) -> None:
        """Have whoever waits at QEMU's sockets look at everything again."""
        os.eventfd_write(self.woken, 1)

    def acknowledged_untrusted(self, number: int, offset: int) -> None:
        """Forget what the peer has handed on, with the lock held; raises `ProtocolError`."""
        stream = self.streams.get(number)
        if stream is None:
            raise ProtocolError(f"bytes of stream {number}, unknown, are acknowledged")
        now_s = time.monotonic()
        stalled_s = stream.out.stalled_s(now_s)
        full = not stream.out.room_bytes
        forgotten = stream.out.acknowledge_untrusted(offset, now_s=now_s)
        if forgotten and stalled_s > STALL_S and not stream.dead:
            self.count.stalls += 1
            self.count.stalled_s += stalled_s
        for chunk in forgotten:
            if not chunk.senders:  # else it is let go, and never used again
                self.give_back(chunk.record)
        if full:
            self.wake()
        if stream.finished:
            self.on_change()

    def die(self, stream: Stream, *, say: bool) -> None:
        """End a stream whose end here is dead (`say`), or the peer's."""
        with self.lock:
            if stream.dead:
                return
            stream.dead, stream.owes_reset = True, say
            shut(stream.sock)
            stream.arrived.notify_all()
        self.wake()
        self.on_change()

    def buffer(self, length: int) -> memoryview:
        """Return room for `length` bytes; all that is pooled fits a chunk of ours."""
        if length > BUFFER_BYTES:
            return fresh_buffer(min(length, CHUNK_LIMIT_BYTES))
        if length < BUFFER_BYTES // SMALL:
            return fresh_buffer(length)
        try:
            return self._free.pop()  # a list's pop and append are atomic
        except IndexError:
            return fresh_buffer(BUFFER_BYTES)

    def give_back(self, view: memoryview) -> None:
        """Let the buffer behind `view` be used again, if it is one of ours."""
        whole = view.obj
        if not isinstance(whole, bytearray) or len(whole) != BUFFER_BYTES:
            return
        if len(self._free) < POOL_BUFFERS:
            self._free.append(memoryview(whole))


def shut(sock: socket.socket) -> None:
    """Wake whoever waits at it, here and at its other end."""
    with contextlib.suppress(OSError):  # its other end has gone
        sock.shutdown(socket.SHUT_RDWR)
