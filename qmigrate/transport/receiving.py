"""What a relay's readers and deliverers do: records to streams, streams to QEMU's sockets.

A deliverer for each stream, so that a QEMU that does not read one of them holds up no other.
"""

import contextlib
import socket
import time

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.packing import unpack_untrusted
from qmigrate.transport.records import Coding, Kind, Record
from qmigrate.transport.streams import ACK_DELAY_S
from qmigrate.transport.traffic import Stream, Traffic


class Receiver:
    """Shared by all readers and deliverers of a relay."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def take_untrusted(self, record: Record) -> None:
        """Do what a record says; raises `ProtocolError` for what no peer of ours would send."""
        header = record.header
        data = record.payload
        if header.kind is Kind.DATA and header.coding is not Coding.RAW:
            data = unpack_untrusted(header.coding, record.payload)
            self._traffic.give_back(record.payload)
        with self._traffic.lock:
            if header.kind is Kind.ACK:
                self._traffic.acknowledged_untrusted(header.stream, header.offset)
                return
            stream = self._traffic.streams.get(header.stream)
            if stream is None:
                raise ProtocolError(f"{header.kind.name} for stream {header.stream}, unknown")
            if header.kind is Kind.RESET:
                self._traffic.die(stream, say=False)
            elif stream.dead:
                self._traffic.give_back(data)
            elif header.kind is Kind.DATA:
                if stream.into.insert_untrusted(header.offset, data):
                    stream.arrived.notify()
                else:
                    self._traffic.give_back(data)
            elif header.kind is Kind.EOF:
                stream.into.end_untrusted(header.offset)
                stream.arrived.notify()
            elif header.kind is Kind.HELLO:
                raise ProtocolError("HELLO on a connection that stands")

    def deliver(self, stream: Stream) -> None:
        """Hand on to QEMU what has come, until the stream is over; a thread's whole life."""
        while (head := self._await_head(stream)) is not None:
            try:
                sent = stream.sock.send(head)
            except OSError:
                self._traffic.die(stream, say=True)
                return
            with self._traffic.lock:
                done = stream.into.written(sent, now_s=time.monotonic())
                if done is not None:
                    self._traffic.give_back(done)
                self._ack_if_due(stream)

    def _await_head(self, stream: Stream) -> memoryview | None:
        """Return what to hand on next; None: there will be nothing more."""
        with self._traffic.lock:
            while not (self._traffic.over or stream.dead):
                head = stream.into.head()
                if head is not None:
                    return head
                if stream.into.at_end:
                    stream.into.hand_on_end(now_s=time.monotonic())
                    with contextlib.suppress(OSError):  # QEMU has closed its end meanwhile
                        stream.sock.shutdown(socket.SHUT_WR)
                self._ack_if_due(stream)
                if stream.into.finished:
                    self._traffic.on_change()
                    return None
                unsaid = stream.into.handed_on > stream.into.acknowledged
                if not stream.arrived.wait(ACK_DELAY_S if unsaid else None):
                    self._ack_if_due(stream)
        return None

    def _ack_if_due(self, stream: Stream) -> None:
        if not stream.owes_ack and stream.into.ack_due(now_s=time.monotonic()):
            stream.owes_ack = True
            self._traffic.wake()
