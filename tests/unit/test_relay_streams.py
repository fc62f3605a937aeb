"""Streams that outlive their connections, tried on every order of loss that is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.streams import ACK_DELAY_S, Chunk, Incoming, Outgoing

WINDOW = 64
CONNECTIONS = 3


class Wires(RuleBasedStateMachine):
    """A sender and a receiver with connections between that lose what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.received = bytearray()
        self.out, self.into = Outgoing(WINDOW), Incoming(WINDOW)
        self.under_way: dict[int, list[Chunk]] = {}
        self.generation = list(range(CONNECTIONS))
        self.acks: list[int] = []

    @precondition(lambda self: self.out.room_bytes > 0)
    @rule(data=st.binary(min_size=1, max_size=24), wire=st.integers(0, CONNECTIONS - 1))
    def accept(self, data: bytes, wire: int) -> None:
        data = data[: self.out.room_bytes]
        carrier = self.generation[wire]
        chunk = self.out.accept(memoryview(data), len(data), carrier=carrier, now_s=0)
        self.under_way.setdefault(carrier, []).append(chunk)
        self.sent += data

    @precondition(lambda self: not self.out.ended)
    @rule()
    def end(self) -> None:
        self.out.end(memoryview(b""), now_s=0)

    @rule(wire=st.integers(0, CONNECTIONS - 1))
    def take(self, wire: int) -> None:
        carrier = self.generation[wire]
        chunk = self.out.take(carrier)
        if chunk is not None:
            self.under_way.setdefault(carrier, []).append(chunk)

    @rule(wire=st.integers(0, CONNECTIONS - 1))
    def arrive(self, wire: int) -> None:
        waiting = self.under_way.get(self.generation[wire])
        if waiting:
            chunk = waiting.pop(0)
            if chunk.length:
                self.into.insert_untrusted(chunk.offset, chunk.record)
            else:
                self.into.end_untrusted(chunk.offset)

    @rule(count=st.integers(1, 40))
    def hand_on(self, count: int) -> None:
        head = self.into.head()
        if head is not None:
            piece = bytes(head[:count])
            self.into.written(len(piece), now_s=0)
            self.received += piece
        elif self.into.at_end:
            self.into.hand_on_end(now_s=0)

    @precondition(lambda self: self.into.ack_due(now_s=ACK_DELAY_S))
    @rule()
    def say_ack(self) -> None:
        self.acks.append(self.into.acknowledge())

    @rule()
    def hear_ack(self) -> None:
        if self.acks:
            self.out.acknowledge_untrusted(self.acks.pop(), now_s=0)  # the latest first

    @rule(wire=st.integers(0, CONNECTIONS - 1), arrives=st.integers(0, 3))
    def cut(self, wire: int, arrives: int) -> None:
        """Lose a connection; some of what was under way is read by the peer all the same."""
        carrier = self.generation[wire]
        self.generation[wire] += CONNECTIONS
        self.out.lose(carrier)
        self.under_way[self.generation[wire]] = self.under_way.pop(carrier, [])[:arrives]
        self.acks.clear()
        self.acks.append(self.into.acknowledge())

    @invariant()
    def nothing_is_lost_or_twice(self) -> None:
        assert self.sent.startswith(self.received)
        assert self.out.unacknowledged_bytes <= WINDOW + 1

    def teardown(self) -> None:
        """Whatever has happened: with wires that hold, all arrives."""
        for wire in range(CONNECTIONS):
            self.cut(wire, 0)
        if not self.out.ended:
            self.end()
        for _ in range(200):
            self.take(0)
            self.arrive(0)
            self.hand_on(1 << 20)
            if self.into.ack_due(now_s=ACK_DELAY_S):
                self.say_ack()
            self.hear_ack()
        assert self.received == self.sent
        assert self.into.finished
        assert self.out.finished


TestWires = Wires.TestCase
TestWires.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@settings(max_examples=1000)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * WINDOW), st.binary(min_size=0, max_size=WINDOW + 2)),
        max_size=20,
    )
)
def test_whatever_a_peer_sends_memory_is_bounded_and_nothing_but_a_protocol_error_comes(
    records: list[tuple[int, bytes]],
) -> None:
    into = Incoming(WINDOW)
    kept = 0
    try:
        for offset, data in records:
            if not data:
                into.end_untrusted(offset)
            elif into.insert_untrusted(offset, memoryview(data)):
                kept += len(data)
            assert kept - into.handed_on <= WINDOW
            while (head := into.head()) is not None:
                into.written(len(head), now_s=0)
            if into.at_end:
                into.hand_on_end(now_s=0)
    except ProtocolError:
        return


def test_an_acknowledgement_of_what_was_not_sent_is_refused() -> None:
    out = Outgoing(WINDOW)
    out.accept(memoryview(b"abc"), 3, carrier=0, now_s=0)
    with pytest.raises(ProtocolError):
        out.acknowledge_untrusted(4, now_s=0)


def test_a_full_window_takes_nothing_until_something_was_acknowledged() -> None:
    out = Outgoing(4)
    out.accept(memoryview(b"abcd"), 4, carrier=0, now_s=0)
    assert out.room_bytes == 0
    with pytest.raises(ValueError, match="room"):
        out.accept(memoryview(b"e"), 1, carrier=0, now_s=0)
    out.acknowledge_untrusted(3, now_s=1)
    assert out.room_bytes == 3


def test_a_lost_connection_offers_only_what_it_carried_and_in_order() -> None:
    out = Outgoing(WINDOW)
    for number in range(6):
        out.accept(memoryview(bytes([number])), 1, carrier=number % 2, now_s=0)
    out.acknowledge_untrusted(2, now_s=0)
    assert out.lose(1) == 2
    again = [out.take(7), out.take(7)]
    assert [chunk and chunk.offset for chunk in again] == [3, 5]
    assert out.take(7) is None


def test_a_stall_is_counted_from_the_last_acknowledgement_and_only_with_something_under_way() -> (
    None
):
    out = Outgoing(WINDOW)
    assert out.stalled_s(50) == 0
    out.accept(memoryview(b"ab"), 2, carrier=0, now_s=100)
    assert out.stalled_s(103) == 3
    out.acknowledge_untrusted(1, now_s=104)
    assert out.stalled_s(105) == 1
    out.acknowledge_untrusted(2, now_s=106)
    assert out.stalled_s(200) == 0
