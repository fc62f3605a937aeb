"""A relay's threads: a writer and a reader for each slot of their direction, a deliverer a stream.

What breaks at QEMU's end ends its stream and never a wire; the other way round a wire that breaks
is only news for `on_change`, and whoever hears that calls `install` with the next.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.figures import Figures
from qmigrate.transport.packing import Codec, Packer
from qmigrate.transport.rate import OFF, Budget, unsent_bytes
from qmigrate.transport.receiving import Receiver
from qmigrate.transport.records import Decoder, Hello
from qmigrate.transport.sending import Sender
from qmigrate.transport.traffic import STALL_S, Slot, Stream, Traffic, shut
from qmigrate.transport.wires import RENEW_RECORDS, Wire


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
        on_change: Callable[[], None],
    ) -> None:
        """Call `on_change` from any thread when a wire broke, a stream ended, or all is over."""
        self._traffic = Traffic(
            [(True, index) for index in range(send_slots)]
            + [(False, index) for index in range(receive_slots)],
            codec.ladder if codec else (OFF,),
            budget,
            window_bytes,
            on_change,
        )
        self._codec = codec
        self._sender = Sender(self._traffic, codec)
        self._receiver = Receiver(self._traffic)
        self.slots = self._traffic.slots
        self.defect: ProtocolError | None = None  # the peer speaks another language

    # -- from outside ------------------------------------------------------------------------------

    def add_stream(self, number: int, sock: socket.socket) -> Stream:
        """Move what comes from and goes to `sock`, which is ours from now on."""
        return self._traffic.add_stream(number, sock)

    def hello(self, slot: Slot, generation: int) -> Hello:
        """Return how a wire for `slot` is introduced."""
        with self._traffic.lock:
            standing = (
                ()
                if slot.sends
                else tuple(
                    (stream.number, stream.into.handed_on)
                    for stream in self._traffic.streams.values()
                )
            )
        return Hello(slot.index, generation, slot.sends, standing)

    def install(self, slot: Slot, wire: Wire, theirs: Hello, generation: int) -> None:
        """Go on over `wire`; what the one before carried and did not bring is sent again.

        Raises `ProtocolError`; then the wire is still the caller's.
        """
        if (theirs.slot, theirs.sends) != (slot.index, not slot.sends):
            raise ProtocolError("a connection for another slot")
        with self._traffic.lock:
            if self._traffic.over or generation <= slot.generation:
                raise ProtocolError(f"generation {generation} after {slot.generation}")
            self._drop(slot)
            if slot.sends:
                for number, offset in theirs.standing:
                    self._traffic.acknowledged_untrusted(number, offset)
                for stream in self._traffic.streams.values():
                    stream.owes_ack = stream.into.handed_on > 0  # the last may be lost
                    stream.owes_reset = stream.dead
                wire.limit_unsent(unsent_bytes(self._traffic.ladder.link_bps))
            slot.wire, slot.carrier = wire, self._traffic.next_carrier()
            slot.generation = generation
            slot.made += 1
            slot.changed.notify_all()
        self._traffic.wake()

    def _drop(self, slot: Slot) -> None:
        """Take the slot's wire away; call with the lock held."""
        wire, carrier = slot.wire, slot.carrier
        if wire is None:
            return
        wire.break_off()  # before its chunks are anybody else's: nothing of them may go out now
        if wire is not slot.using:
            wire.close()
        slot.wire = None
        counted = self._traffic.count  # now, though it may be in the middle of a last chunk
        if slot.sends:
            counted.wire_sent += wire.wire_bytes
        else:
            counted.wire_received += wire.wire_bytes
        if slot.sends:
            for stream in self._traffic.streams.values():
                stream.out.lose(carrier)

    def broken(self, slot: Slot, wire: Wire | None = None) -> None:
        """Take it that the wire is of no use; None: whichever it has."""
        with self._traffic.lock:
            if slot.wire is None or (wire is not None and slot.wire is not wire):
                return
            self._drop(slot)
        self._traffic.wake()
        self._traffic.on_change()

    def is_connected(self) -> bool:
        """Tell if bytes can go both ways."""
        with self._traffic.lock:
            return len({sends for sends, _ in self._traffic.wires()}) == 2

    def is_finished(self) -> bool:
        """Tell if every stream has come to its end, and there was one."""
        with self._traffic.lock:
            streams = self._traffic.streams.values()
            return bool(streams) and all(stream.finished for stream in streams)

    def change_budget(self, limit_bps: float | None) -> None:
        """Let another limit hold from now on."""
        with self._traffic.lock:
            self._traffic.budget.change(limit_bps, time.monotonic())
        self._traffic.wake()

    def reset(self, *, say: bool = True) -> None:
        """End every stream at both ends, as a dead connection would."""
        for stream in list(self._traffic.streams.values()):
            self._traffic.die(stream, say=say)

    def stop(self) -> None:
        """Have every thread return; wires and sockets are shut down."""
        with self._traffic.lock:
            self._traffic.over = True
            for slot in self._traffic.slots:
                self._drop(slot)
                slot.changed.notify_all()
            for stream in self._traffic.streams.values():
                shut(stream.sock)
                stream.arrived.notify_all()
        self._traffic.wake()

    def close(self) -> None:
        """Give all descriptors back; after `stop`, once every thread has returned."""
        for stream in self._traffic.streams.values():
            stream.sock.close()
        os.close(self._traffic.woken)

    def figures(self) -> Figures:
        """Return how it is going."""
        with self._traffic.lock:
            wires = self._traffic.wires()
            streams = list(self._traffic.streams.values())
            counted = self._traffic.count
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
                reconnects=sum(max(0, slot.made - 1) for slot in self._traffic.slots),
                stalls=stalls,
                stalled_s=stalled_s,
                level=self._traffic.ladder.level,
                link_bps=self._traffic.ladder.link_bps,
                connected=len({sends for sends, _ in wires}) == 2,
            )

    # -- wires and their threads ----------------------------------------------

    def _take_wire(self, slot: Slot) -> tuple[Wire, int] | None:
        """Return the slot's wire once it has one, and its number; None: all is over."""
        with self._traffic.lock:
            while slot.wire is None:
                if self._traffic.over:
                    return None
                slot.changed.wait()
            slot.using = slot.wire
            return slot.wire, slot.carrier

    def _let_go(self, slot: Slot, wire: Wire) -> None:
        self.broken(slot, wire)
        with self._traffic.lock:
            slot.using = None
            wire.close()

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
                while (item := self._sender.next(slot, carrier)) is not None:
                    if isinstance(item, bytes):
                        wire.send(item)
                    else:
                        try:
                            self._sender.send(wire, item, packer)
                        finally:
                            with self._traffic.lock:
                                item.senders -= 1
                    if wire.records >= RENEW_RECORDS:
                        break

    def read(self, slot: Slot) -> None:
        """Receive in `slot` until all is over; a thread's whole life."""
        while (taken := self._take_wire(slot)) is not None:
            wire, _ = taken
            decoder = Decoder(self._traffic.buffer)
            with self._held(slot, wire):
                while received := wire.receive_into(decoder.room()):
                    record = decoder.took_untrusted(received)
                    if record is not None:
                        self._receiver.take_untrusted(record)

    def deliver(self, stream: Stream) -> None:
        """Hand on to QEMU what has come; a thread's whole life."""
        self._receiver.deliver(stream)
