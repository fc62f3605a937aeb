"""The threads between QEMU's sockets and a relay's wires, and the state that they share.

A writer for each slot that we send in, a reader for each that we hear from, and a deliverer for
each stream, so that a QEMU that does not read one stream holds up no other. Writers take turns at
QEMU's sockets, which fixes the offsets, and pack and encrypt side by side; whoever has the turn
waits in poll() and is woken by an eventfd for whatever else is to be sent.

One lock guards all state. A wire's number (`carrier`) makes a cut harmless: what is taken under an
older number than the slot's present one is offered again, because `Outgoing.lose` has seen it.
What breaks at QEMU's end ends its stream and never a wire; the other way round a wire that breaks
is only news for `on_change`, and whoever hears that calls `install` with the next.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.packing import Codec, Packer, Trial, unpack_untrusted
from qmigrate.transport.rate import (
    CHUNK_BYTES,
    OFF,
    SPAN_S,
    Budget,
    Ladder,
    Span,
    chunk_bytes,
    unsent_bytes,
)
from qmigrate.transport.records import (
    CHUNK_LIMIT_BYTES,
    HEADER_BYTES,
    Coding,
    Decoder,
    Hello,
    Kind,
    Record,
    data_header,
    encode_bare,
    fresh_buffer,
)
from qmigrate.transport.streams import ACK_DELAY_S, Chunk, Incoming, Outgoing
from qmigrate.transport.wires import RENEW_RECORDS, Wire

POOL_BUFFERS = 128  # kept for the next chunks; beyond, memory is given back
SMALL = 2  # a chunk that fills less than this part of its buffer gets one of its own size
PACK_LEAST_BYTES = 4096  # a smaller chunk is sent as it is
STALL_S = 0.5  # without an acknowledgement: a stall that is counted
Event = Callable[[], None]


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


@dataclass(frozen=True, slots=True)
class Figures:
    """How a relay is doing; bytes and seconds since it was opened."""

    payload_sent_bytes: int
    payload_received_bytes: int
    wire_sent_bytes: int
    wire_received_bytes: int
    unacknowledged_bytes: int
    unsent_bytes: int  # taken from QEMU and not yet sent by TCP
    reconnects: int
    stalls: int
    stalled_s: float
    level: int  # of packing; 0: none
    link_bps: float | None
    connected: bool

    @property
    def ratio(self) -> float | None:
        """Return wire bytes a payload byte sent; None: nothing was."""
        if not self.payload_sent_bytes:
            return None
        return self.wire_sent_bytes / self.payload_sent_bytes


@dataclass(slots=True)
class _Count:
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


class Pumps:
    """All of one side of a relay, but for making its wires."""

    def __init__(
        self,
        *,
        send_slots: int,
        receive_slots: int,
        window_bytes: int,
        codec: Codec | None,
        budget: Budget,
        on_change: Event,
    ) -> None:
        """Call `on_change` from any thread when a wire broke, a stream ended, or all is over."""
        self._lock = threading.RLock()
        self._turn = threading.Lock()  # at QEMU's sockets
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._window_bytes = window_bytes
        self._codec = codec
        self._budget = budget
        self._on_change = on_change
        self._carriers = count(1)
        self._streams: dict[int, Stream] = {}
        self._over = False
        self.defect: ProtocolError | None = None  # the peer speaks another language
        self._free: list[memoryview] = []
        self._spare: memoryview | None = None  # of whoever has the turn
        self._ladder = Ladder(codec.ladder if codec else (OFF,))
        self._count = _Count()
        self.slots = [
            Slot(index, sends, threading.Condition(self._lock))
            for sends, number in ((True, send_slots), (False, receive_slots))
            for index in range(number)
        ]

    # -- from outside ------------------------------------------------------------------------------

    def add_stream(self, number: int, sock: socket.socket) -> Stream:
        """Move what comes from and goes to `sock`, which is ours from now on."""
        sock.setblocking(True)
        with self._lock:
            stream = self._streams[number] = Stream(
                number,
                sock,
                Outgoing(self._window_bytes),
                Incoming(self._window_bytes),
                threading.Condition(self._lock),
            )
        return stream

    def hello(self, slot: Slot, generation: int) -> Hello:
        """Return how a wire for `slot` is introduced."""
        with self._lock:
            standing = (
                ()
                if slot.sends
                else tuple(
                    (stream.number, stream.into.handed_on) for stream in self._streams.values()
                )
            )
        return Hello(slot.index, generation, slot.sends, standing)

    def install(self, slot: Slot, wire: Wire, theirs: Hello, generation: int) -> None:
        """Go on over `wire`; what the one before carried and did not bring is sent again.

        Raises `ProtocolError`; then the wire is still the caller's.
        """
        if (theirs.slot, theirs.sends) != (slot.index, not slot.sends):
            raise ProtocolError("a connection for another slot")
        with self._lock:
            if self._over or generation <= slot.generation:
                raise ProtocolError(f"generation {generation} after {slot.generation}")
            self._drop(slot)
            if slot.sends:
                for number, offset in theirs.standing:
                    self._acknowledged_untrusted(number, offset)
                for stream in self._streams.values():
                    stream.owes_ack = stream.into.handed_on > 0  # the last may be lost
                    stream.owes_reset = stream.dead
                wire.limit_unsent(unsent_bytes(self._ladder.link_bps))
            slot.wire, slot.carrier = wire, next(self._carriers)
            slot.generation = generation
            slot.made += 1
            slot.changed.notify_all()
        self.wake()

    def _drop(self, slot: Slot) -> None:
        """Take the slot's wire away; call with the lock held."""
        wire, carrier = slot.wire, slot.carrier
        if wire is None:
            return
        wire.break_off()  # before its chunks are anybody else's: nothing of them may go out now
        if wire is not slot.using:
            self._close(slot, wire)
        slot.wire = None
        if slot.sends:
            for stream in self._streams.values():
                stream.out.lose(carrier)

    def broken(self, slot: Slot, wire: Wire | None = None) -> None:
        """Take it that the wire is of no use; None: whichever it has."""
        with self._lock:
            if slot.wire is None or (wire is not None and slot.wire is not wire):
                return
            self._drop(slot)
        self.wake()
        self._on_change()

    def is_connected(self) -> bool:
        """Tell if bytes can go both ways."""
        with self._lock:
            return {slot.sends for slot in self.slots if slot.wire is not None} == {True, False}

    def is_finished(self) -> bool:
        """Tell if every stream has come to its end, and there was one."""
        with self._lock:
            return bool(self._streams) and all(s.finished for s in self._streams.values())

    def change_budget(self, limit_bps: float | None) -> None:
        """Let another limit hold from now on."""
        with self._lock:
            self._budget.change(limit_bps, time.monotonic())
        self.wake()

    def reset(self, *, say: bool = True) -> None:
        """End every stream at both ends, as a dead connection would."""
        for stream in list(self._streams.values()):
            self._die(stream, say=say)

    def stop(self) -> None:
        """Have every thread return; wires and sockets are shut down."""
        with self._lock:
            self._over = True
            for slot in self.slots:
                self._drop(slot)
                slot.changed.notify_all()
            for stream in self._streams.values():
                _shut(stream.sock)
                stream.arrived.notify_all()
        self.wake()

    def close(self) -> None:
        """Give all descriptors back; after `stop`, once every thread has returned."""
        for stream in self._streams.values():
            stream.sock.close()
        os.close(self._wake)

    def wake(self) -> None:
        """Have whoever waits at QEMU's sockets look at everything again."""
        os.eventfd_write(self._wake, 1)

    def figures(self) -> Figures:
        """Return how it is going."""
        with self._lock:
            wires = [(slot.sends, slot.wire) for slot in self.slots if slot.wire is not None]
            streams = list(self._streams.values())
            counted = self._count
            stalls, stalled_s = counted.stalls, counted.stalled_s
            now_s = time.monotonic()
            present = max((s.out.stalled_s(now_s) for s in streams if not s.dead), default=0.0)
            if present > STALL_S:
                stalls, stalled_s = stalls + 1, stalled_s + present
            tcp = sum(wire.unsent_bytes() for sends, wire in wires if sends)
            return Figures(
                payload_sent_bytes=sum(s.out.next_offset - s.out.ended for s in streams),
                payload_received_bytes=sum(s.into.handed_on - s.into.finished for s in streams),
                wire_sent_bytes=counted.wire_sent + sum(w.wire_bytes for out, w in wires if out),
                wire_received_bytes=counted.wire_received
                + sum(w.wire_bytes for out, w in wires if not out),
                unacknowledged_bytes=sum(s.out.unacknowledged_bytes for s in streams),
                unsent_bytes=tcp + sum(s.out.waiting_bytes for s in streams),
                reconnects=sum(max(0, slot.made - 1) for slot in self.slots),
                stalls=stalls,
                stalled_s=stalled_s,
                level=self._ladder.level,
                link_bps=self._ladder.link_bps,
                connected={sends for sends, _ in wires} == {True, False},
            )

    # -- wires and their threads -------------------------------------------------------------------

    def _take_wire(self, slot: Slot) -> tuple[Wire, int] | None:
        """Return the slot's wire once it has one, and its number; None: all is over."""
        with self._lock:
            while slot.wire is None:
                if self._over:
                    return None
                slot.changed.wait()
            slot.using = slot.wire
            return slot.wire, slot.carrier

    def _let_go(self, slot: Slot, wire: Wire) -> None:
        self.broken(slot, wire)
        with self._lock:
            slot.using = None
            self._close(slot, wire)

    def _close(self, slot: Slot, wire: Wire) -> None:
        wire.close()
        if slot.sends:
            self._count.wire_sent += wire.wire_bytes
        else:
            self._count.wire_received += wire.wire_bytes

    @contextlib.contextmanager
    def _held(self, slot: Slot, wire: Wire) -> Iterator[None]:
        """Use a wire: an error of its own is no more than its end, one of the peer's is for all."""
        try:
            yield
        except OSError:
            return  # `_let_go` tells
        except ProtocolError as exc:
            self.defect = self.defect or exc
            self.reset(say=False)
        finally:
            self._let_go(slot, wire)

    def write(self, slot: Slot) -> None:
        """Send in `slot` until all is over; a thread's whole life."""
        packer = Packer(self._codec) if self._codec else None
        while (taken := self._take_wire(slot)) is not None:
            wire, carrier = taken
            with self._held(slot, wire):
                while (item := self._next(slot, carrier)) is not None:
                    if isinstance(item, bytes):
                        wire.send(item)
                    else:
                        try:
                            self._send(wire, item, packer)
                        finally:
                            with self._lock:
                                item.senders -= 1
                    if wire.records >= RENEW_RECORDS:
                        break

    def read(self, slot: Slot) -> None:
        """Receive in `slot` until all is over; a thread's whole life."""
        while (taken := self._take_wire(slot)) is not None:
            wire, _ = taken
            decoder = Decoder(self._buffer)
            with self._held(slot, wire):
                while received := wire.receive_into(decoder.room()):
                    record = decoder.took_untrusted(received)
                    if record is not None:
                        self._take_untrusted(record)

    # -- sending -----------------------------------------------------------------------------------

    def _next(self, slot: Slot, carrier: int) -> bytes | Chunk | None:
        """Return what to send next; None: this wire is not the slot's any more."""
        while True:
            with self._lock:
                if slot.carrier != carrier or slot.wire is None or self._over:
                    return None
                owed = self._owed()
                if owed:
                    return owed
                for stream in self._streams.values():
                    chunk = None if stream.dead else stream.out.take(carrier)
                    if chunk is not None:
                        chunk.senders += 1
                        return chunk
            with self._turn:
                fresh = self._read_local(slot, carrier)
            if fresh is not None:
                return fresh

    def _owed(self) -> bytes:
        """Return the records that tell how things stand, where that has changed."""
        owed = b""
        for stream in self._streams.values():
            if stream.owes_reset:
                stream.owes_reset = False
                owed += encode_bare(Kind.RESET, stream.number)
            elif stream.owes_ack:
                stream.owes_ack = False
                owed += encode_bare(Kind.ACK, stream.number, stream.into.acknowledge())
        return owed

    def _read_local(self, slot: Slot, carrier: int) -> Chunk | None:
        """Return fresh bytes of some stream; None: look at everything again."""
        now_s = time.monotonic()
        with self._lock:
            pause_s = self._budget.wait_s(now_s)
            readable = [s for s in self._streams.values() if s.out.room_bytes and not s.dead]
            if slot.carrier != carrier or slot.wire is None or self._over:
                return None
        if not pause_s:
            for stream in readable:
                chunk = self._receive_local(stream, slot, carrier)
                if chunk is not None:
                    return chunk
                if stream.out.ended:
                    return None  # its EOF waits
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for stream in readable if not pause_s else ():
            poll.register(stream.sock, select.POLLIN)
        poll.poll(pause_s * 1000 if pause_s else None)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return None

    def _receive_local(self, stream: Stream, slot: Slot, carrier: int) -> Chunk | None:
        room = min(stream.out.room_bytes, chunk_bytes(self._ladder.link_bps))
        buffer = self._spare = self._spare or self._buffer(HEADER_BYTES + CHUNK_BYTES)
        view = buffer[HEADER_BYTES : HEADER_BYTES + room]
        try:
            received = stream.sock.recv_into(view, room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            received = 0  # QEMU has closed it without reading all: what it said was said
        now_s = time.monotonic()
        with self._lock:
            if stream.dead:
                return None
            number, offset = stream.number, stream.out.next_offset
            if not received:
                eof = encode_bare(Kind.EOF, number, offset)
                stream.out.end(memoryview(eof), now_s=now_s)
                return None
            # Whole with its header, once: a wire that is given up may still be reading it.
            buffer[:HEADER_BYTES] = data_header(number, offset, received)
            record = buffer[: HEADER_BYTES + received]
            if received < len(buffer) // SMALL:
                record = memoryview(bytes(record))
            else:
                self._spare = None
            chunk = stream.out.accept(record, received, carrier=carrier, now_s=now_s)
            if slot.carrier != carrier or slot.wire is None:
                stream.out.lose(carrier)
                return None
            chunk.senders += 1
            return chunk

    def _send(self, wire: Wire, chunk: Chunk, packer: Packer | None) -> None:
        """Send a chunk, packed if that pays, and count what it took."""
        record: bytes | memoryview = chunk.record
        began_s, sent_before, sending_before = time.monotonic(), wire.wire_bytes, wire.sending_s
        level = self._ladder.level
        if packer is not None and level != OFF and chunk.length >= PACK_LEAST_BYTES:
            packed = packer.pack(chunk.record[HEADER_BYTES:], level)
            if packed is not None:
                number = chunk.record[2] << 8 | chunk.record[3]
                head = data_header(number, chunk.offset, len(packed), packer.coding)
                record = head + packed
        packed_s = time.monotonic()
        wire.send(record)
        now_s = time.monotonic()
        sent = wire.wire_bytes - sent_before
        with self._lock:
            self._budget.spend(sent, now_s)
            counted = self._count
            counted.payload += chunk.length
            counted.wire += sent
            counted.sending_s += wire.sending_s - sending_before
            counted.packing_s += packed_s - began_s if level != OFF else 0.0
            self._close_span(now_s)
            wanted = packer is not None and self._ladder.wants_trial(now_s)
            if wanted:  # by us: nobody else begins one meanwhile
                self._ladder = self._ladder.tried(self._ladder.rungs, now_s)
        if wanted and packer is not None and self._codec is not None and chunk.length:
            trial = Trial(packer, self._codec.ladder, time.monotonic)
            trial.add(chunk.record[HEADER_BYTES:])
            with self._lock:
                self._ladder = self._ladder.tried(trial.rungs(), now_s)

    def _close_span(self, now_s: float) -> None:
        counted = self._count
        seconds = now_s - counted.began_s
        if seconds < SPAN_S:
            return
        writers = max(1, sum(slot.sends and slot.wire is not None for slot in self.slots))
        before = unsent_bytes(self._ladder.link_bps)
        self._ladder = self._ladder.after(
            Span(
                seconds=seconds,
                writers=writers,
                payload_bytes=counted.payload,
                wire_bytes=counted.wire,
                sending_s=counted.sending_s,
                packing_s=counted.packing_s,
            )
        )
        counted.payload, counted.wire, counted.sending_s, counted.packing_s = 0, 0, 0.0, 0.0
        counted.began_s = now_s
        limit = unsent_bytes(self._ladder.link_bps)
        if limit != before:
            for slot in self.slots:
                if slot.sends and slot.wire is not None:
                    with contextlib.suppress(OSError):  # its own thread will find out
                        slot.wire.limit_unsent(limit)

    # -- receiving ---------------------------------------------------------------------------------

    def _take_untrusted(self, record: Record) -> None:
        header = record.header
        data = record.payload
        if header.kind is Kind.DATA and header.coding is not Coding.RAW:
            data = unpack_untrusted(header.coding, record.payload)
            self._give_back(record.payload)
        with self._lock:
            if header.kind is Kind.ACK:
                self._acknowledged_untrusted(header.stream, header.offset)
                return
            stream = self._streams.get(header.stream)
            if stream is None:
                raise ProtocolError(f"{header.kind.name} for stream {header.stream}, unknown")
            if header.kind is Kind.RESET:
                self._die(stream, say=False)
            elif stream.dead:
                self._give_back(data)
            elif header.kind is Kind.DATA:
                if stream.into.insert_untrusted(header.offset, data):
                    stream.arrived.notify()
                else:
                    self._give_back(data)
            elif header.kind is Kind.EOF:
                stream.into.end_untrusted(header.offset)
                stream.arrived.notify()
            elif header.kind is Kind.HELLO:
                raise ProtocolError("HELLO on a connection that stands")

    def _acknowledged_untrusted(self, number: int, offset: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            raise ProtocolError(f"bytes of stream {number}, unknown, are acknowledged")
        now_s = time.monotonic()
        stalled_s = stream.out.stalled_s(now_s)
        full = not stream.out.room_bytes
        forgotten = stream.out.acknowledge_untrusted(offset, now_s=now_s)
        if forgotten and stalled_s > STALL_S and not stream.dead:
            self._count.stalls += 1
            self._count.stalled_s += stalled_s
        for chunk in forgotten:
            if not chunk.senders:  # else it is let go, and never used again
                self._give_back(chunk.record)
        if full:
            self.wake()
        if stream.finished:
            self._on_change()

    def deliver(self, stream: Stream) -> None:
        """Hand on to QEMU what has come, until the stream is over; a thread's whole life."""
        while (head := self._await_head(stream)) is not None:
            try:
                sent = stream.sock.send(head)
            except OSError:
                self._die(stream, say=True)
                return
            with self._lock:
                done = stream.into.written(sent, now_s=time.monotonic())
                if done is not None:
                    self._give_back(done)
                self._ack_if_due(stream)

    def _await_head(self, stream: Stream) -> memoryview | None:
        """Return what to hand on next; None: there will be nothing more."""
        with self._lock:
            while not (self._over or stream.dead):
                head = stream.into.head()
                if head is not None:
                    return head
                if stream.into.at_end:
                    stream.into.hand_on_end(now_s=time.monotonic())
                    with contextlib.suppress(OSError):  # QEMU has closed its end meanwhile
                        stream.sock.shutdown(socket.SHUT_WR)
                self._ack_if_due(stream)
                if stream.into.finished:
                    self._on_change()
                    return None
                unsaid = stream.into.handed_on > stream.into.acknowledged
                if not stream.arrived.wait(ACK_DELAY_S if unsaid else None):
                    self._ack_if_due(stream)
        return None

    def _ack_if_due(self, stream: Stream) -> None:
        if not stream.owes_ack and stream.into.ack_due(now_s=time.monotonic()):
            stream.owes_ack = True
            self.wake()

    def _die(self, stream: Stream, *, say: bool) -> None:
        """End a stream whose end here is dead (`say`), or the peer's."""
        with self._lock:
            if stream.dead:
                return
            stream.dead, stream.owes_reset = True, say
            _shut(stream.sock)
            stream.arrived.notify_all()
        self.wake()
        self._on_change()

    # -- buffers -----------------------------------------------------------------------------------

    def _buffer(self, length: int) -> memoryview:
        """Return room for `length` bytes; all that is pooled fits a chunk of ours."""
        if length > HEADER_BYTES + CHUNK_BYTES:
            return fresh_buffer(min(length, CHUNK_LIMIT_BYTES))
        if length < (HEADER_BYTES + CHUNK_BYTES) // SMALL:
            return fresh_buffer(length)
        try:
            return self._free.pop()  # a list's pop and append are atomic
        except IndexError:
            return fresh_buffer(HEADER_BYTES + CHUNK_BYTES)

    def _give_back(self, view: memoryview) -> None:
        whole = view.obj
        if not isinstance(whole, bytearray) or len(whole) != HEADER_BYTES + CHUNK_BYTES:
            return
        if len(self._free) < POOL_BUFFERS:
            self._free.append(memoryview(whole))


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # its other end has gone
        sock.shutdown(socket.SHUT_RDWR)
