"""What a relay's writers do: take turns at QEMU's sockets, pack and encrypt side by side.

Turns fix the offsets. Whoever has the turn waits in poll(), and is woken by an eventfd for whatever
else is to be sent.
"""

import contextlib
import os
import select
import socket
import threading
import time

from qmigrate.transport.packing import Codec, Packer, try_rungs
from qmigrate.transport.rate import OFF, SPAN_S, Span, chunk_bytes, unsent_bytes
from qmigrate.transport.records import (
    HEADER_BYTES,
    Kind,
    data_header,
    encode_bare,
    parse_header_untrusted,
)
from qmigrate.transport.streams import Chunk
from qmigrate.transport.traffic import BUFFER_BYTES, SMALL, Slot, Stream, Traffic
from qmigrate.transport.wires import Wire

PACK_LEAST_BYTES = 4096  # a smaller chunk is sent as it is


class Sender:
    """Shared by all writers of a relay."""

    def __init__(self, traffic: Traffic, codec: Codec | None) -> None:
        self._traffic = traffic
        self._codec = codec
        self._turn = threading.Lock()  # at QEMU's sockets
        self._spare: memoryview | None = None  # of whoever has the turn

    def next(self, slot: Slot, carrier: int) -> bytes | Chunk | None:
        """Return what to send next; None: this wire is not the slot's any more."""
        while True:
            with self._traffic.lock:
                if not self._traffic.is_current(slot, carrier):
                    return None
                owed = self._owed()
                if owed:
                    return owed
                for stream in self._traffic.streams.values():
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
        for stream in self._traffic.streams.values():
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
        with self._traffic.lock:
            pause_s = self._traffic.budget.wait_s(now_s)
            streams = self._traffic.streams.values()
            readable = [s for s in streams if s.out.room_bytes and not s.dead]
            if not self._traffic.is_current(slot, carrier):
                return None
        if not pause_s:
            for stream in readable:
                chunk = self._receive_local(stream, slot, carrier)
                if chunk is not None:
                    return chunk
                if stream.out.ended:
                    return None  # its EOF waits
        poll = select.poll()
        poll.register(self._traffic.woken, select.POLLIN)
        for stream in readable if not pause_s else ():
            poll.register(stream.sock, select.POLLIN)
        poll.poll(pause_s * 1000 if pause_s else None)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._traffic.woken)
        return None

    def _receive_local(self, stream: Stream, slot: Slot, carrier: int) -> Chunk | None:
        room = min(stream.out.room_bytes, chunk_bytes(self._traffic.ladder.payload_bps))
        buffer = self._spare = self._spare or self._traffic.buffer(BUFFER_BYTES)
        view = buffer[HEADER_BYTES : HEADER_BYTES + room]
        try:
            received = stream.sock.recv_into(view, room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            received = 0  # QEMU has closed it without reading all: what it said was said
        now_s = time.monotonic()
        with self._traffic.lock:
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

    def send(self, wire: Wire, chunk: Chunk, packer: Packer | None) -> None:
        """Send a chunk, packed if that pays, and count what it took."""
        record: bytes | memoryview = chunk.record
        began_s, sent_before, sending_before = time.monotonic(), wire.wire_bytes, wire.sending_s
        level = self._traffic.ladder.level
        if packer is not None and level != OFF and chunk.length >= PACK_LEAST_BYTES:
            packed = packer.pack(chunk.record[HEADER_BYTES:], level)
            if packed is not None:
                stream = parse_header_untrusted(chunk.record[:HEADER_BYTES]).stream
                record = data_header(stream, chunk.offset, len(packed), packer.coding) + packed
        packed_s = time.monotonic()
        wire.send(record)
        now_s = time.monotonic()
        sent = wire.wire_bytes - sent_before
        with self._traffic.lock:
            self._traffic.budget.spend(sent, now_s)
            counted = self._traffic.count
            counted.payload += chunk.length
            counted.wire += sent
            counted.sending_s += wire.sending_s - sending_before
            counted.packing_s += packed_s - began_s if level != OFF else 0.0
            self._close_span(now_s)
            wanted = packer is not None and self._traffic.ladder.wants_trial(now_s)
            if wanted:  # by us: nobody else begins one meanwhile
                self._traffic.ladder = self._traffic.ladder.tried(self._traffic.ladder.rungs, now_s)
        if (
            wanted
            and packer is not None
            and self._codec is not None
            and chunk.length >= PACK_LEAST_BYTES
        ):
            data = chunk.record[HEADER_BYTES:]
            rungs = try_rungs(packer, self._codec.ladder, data, time.monotonic)
            with self._traffic.lock:
                self._traffic.ladder = self._traffic.ladder.tried(rungs, now_s)

    def _close_span(self, now_s: float) -> None:
        counted = self._traffic.count
        seconds = now_s - counted.began_s
        if seconds < SPAN_S:
            return
        wires = [wire for sends, wire in self._traffic.wires() if sends]
        before = unsent_bytes(self._traffic.ladder.link_bps)
        self._traffic.ladder = self._traffic.ladder.after(
            Span(
                seconds=seconds,
                writers=max(1, len(wires)),
                payload_bytes=counted.payload,
                wire_bytes=counted.wire,
                sending_s=counted.sending_s,
                packing_s=counted.packing_s,
            )
        )
        counted.payload, counted.wire, counted.sending_s, counted.packing_s = 0, 0, 0.0, 0.0
        counted.began_s = now_s
        limit = unsent_bytes(self._traffic.ladder.link_bps)
        if limit != before:
            for wire in wires:
                with contextlib.suppress(OSError):  # its own thread will find out
                    wire.limit_unsent(limit)
