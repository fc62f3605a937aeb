"""One direction of a stream that outlives its connections, as pure data: no I/O, no clock.

`Outgoing` keeps what was sent until it is acknowledged, knows which connection carries what, and
when one of them is lost offers again what it carried. `Incoming` puts in order what comes over
several connections, in pieces, late or twice. Neither waits: a full window is told as no room.

The end of a stream counts as one byte, see `records`.
"""

from collections import deque
from dataclasses import dataclass, field

from qmigrate.core.errors import ProtocolError

ACK_SHARE = 16  # an ACK for each 16th of the window: one a chunk costs CPU at both ends
ACK_PIECES = 64  # and for so many small pieces
ACK_DELAY_S = 0.2  # for what is less than that: nobody waits for it but memory


@dataclass(slots=True, eq=False)
class Chunk:
    """Some bytes of an outgoing stream with their record; `length` 0 is its end."""

    offset: int
    length: int
    record: memoryview  # whole and uncompressed, made once: two connections may read it at a time
    carrier: int | None = None  # the connection that it was last given to
    # How many are sending it. It may be acknowledged meanwhile: an earlier connection had brought
    # it before it was lost. Then `record` must not be written over yet.
    senders: int = 0

    @property
    def after(self) -> int:
        """Return the offset that acknowledges all of it."""
        return self.offset + (self.length or 1)


@dataclass(slots=True)
class Outgoing:
    """What a stream has accepted, until the peer has handed it on."""

    window_bytes: int
    next_offset: int = 0
    acknowledged: int = 0
    ended: bool = False  # nothing more is accepted
    moved_s: float = 0.0  # when an acknowledgement last came, or the first byte after a pause
    _kept: deque[Chunk] = field(default_factory=deque)  # in order of offset
    _waiting: deque[Chunk] = field(default_factory=deque)  # carried by nobody, in order too

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes that must be kept."""
        return self.next_offset - self.acknowledged

    @property
    def waiting_bytes(self) -> int:
        """Bytes that no connection was given, because one was lost."""
        return sum(chunk.length for chunk in self._waiting if chunk.after > self.acknowledged)

    @property
    def room_bytes(self) -> int:
        """How many bytes may be accepted now; 0 once it has ended."""
        return 0 if self.ended else max(0, self.window_bytes - self.unacknowledged_bytes)

    @property
    def finished(self) -> bool:
        """Tell if all was acknowledged, the end too: nothing will ever be sent again."""
        return self.ended and not self._kept

    def accept(self, record: memoryview, length: int, *, carrier: int, now_s: float) -> Chunk:
        """Return the chunk for `length` fresh bytes, already given to `carrier`."""
        if not 0 < length <= self.room_bytes:
            raise ValueError(f"{length} bytes where there is room for {self.room_bytes}")
        return self._keep(record, length, carrier, now_s)

    def end(self, record: memoryview, *, now_s: float) -> None:
        """Accept no more; `record`, the EOF, waits to be taken."""
        if self.ended:
            raise ValueError("it has ended before")
        chunk = self._keep(record, 0, None, now_s)
        self.ended = True
        self._waiting.append(chunk)

    def _keep(self, record: memoryview, length: int, carrier: int | None, now_s: float) -> Chunk:
        if not self._kept:
            self.moved_s = now_s
        chunk = Chunk(self.next_offset, length, record, carrier)
        self._kept.append(chunk)
        self.next_offset = chunk.after
        return chunk

    def take(self, carrier: int) -> Chunk | None:
        """Return the first chunk that nobody carries, given to `carrier` now."""
        while self._waiting:
            chunk = self._waiting.popleft()
            if chunk.after > self.acknowledged:
                chunk.carrier = carrier
                return chunk
        return None

    def lose(self, carrier: int) -> int:
        """Offer again what `carrier` was given, before anything fresh; return how many bytes."""
        lost = 0
        for chunk in self._kept:
            if chunk.carrier == carrier:
                chunk.carrier = None
                lost += chunk.length
        self._waiting = deque(chunk for chunk in self._kept if chunk.carrier is None)
        return lost

    def acknowledge_untrusted(self, offset: int, *, now_s: float) -> list[Chunk]:
        """Forget what lies before `offset` and return it; an older one than the last says nothing.

        Raises `ProtocolError` for bytes that were never sent.
        """
        if offset > self.next_offset:
            raise ProtocolError(f"byte {offset} is acknowledged, {self.next_offset} were sent")
        if offset <= self.acknowledged:
            return []
        self.acknowledged, self.moved_s = offset, now_s
        forgotten = []
        while self._kept and self._kept[0].after <= offset:
            forgotten.append(self._kept.popleft())
        return forgotten

    def stalled_s(self, now_s: float) -> float:
        """Return for how long something has been waiting for its acknowledgement in vain."""
        return now_s - self.moved_s if self._kept else 0.0


@dataclass(slots=True)
class Incoming:
    """What has come of a stream, and how much of it was handed on.

    `head` and `written` are one task's, who hands on; anybody may insert.
    """

    window_bytes: int
    handed_on: int = 0  # bytes, and one more for the end
    acknowledged: int = 0
    end_offset: int | None = None
    _pieces: dict[int, memoryview] = field(default_factory=dict)  # by offset
    _waiting_bytes: int = 0
    _partly: int = 0  # bytes of the piece at the head that were handed on
    _unsaid: int = 0  # pieces since the last ACK
    _unsaid_since_s: float | None = None

    def insert_untrusted(self, offset: int, data: memoryview) -> bool:
        """Tell if `data` is kept; if not it was here before, and its buffer is the caller's again.

        Raises `ProtocolError` when a peer sends more than a window ahead, across the end, or cuts
        the stream in pieces other than before.
        """
        after = offset + len(data)
        start = self.handed_on - self._partly
        if after <= start or offset in self._pieces:
            known = self._pieces.get(offset)
            if known is not None and len(known) != len(data):
                raise ProtocolError(f"two records at {offset}, of different length")
            return False
        if offset < start:
            raise ProtocolError(f"a record at {offset} reaches across {start}")
        limit = self.window_bytes if self.end_offset is None else self.end_offset - start
        if after > start + min(limit, self.window_bytes):
            raise ProtocolError(f"a record at {offset} where {start} was handed on: too far ahead")
        if self._waiting_bytes + len(data) > self.window_bytes:
            raise ProtocolError("records that overlap")
        self._pieces[offset] = data
        self._waiting_bytes += len(data)
        return True

    def end_untrusted(self, offset: int) -> None:
        """Learn where the stream ends; raises `ProtocolError` if that cannot be."""
        if self.end_offset is not None:
            if offset != self.end_offset:
                raise ProtocolError(f"the end at {offset}, and at {self.end_offset} before")
            return
        furthest = max((at + len(data) for at, data in self._pieces.items()), default=0)
        if offset < max(furthest, self.handed_on):
            raise ProtocolError(f"the end at {offset}, where more has come")
        self.end_offset = offset

    def head(self) -> memoryview | None:
        """Return the bytes to be handed on next; None: not there yet."""
        piece = self._pieces.get(self.handed_on - self._partly)
        return None if piece is None else piece[self._partly :]

    @property
    def at_end(self) -> bool:
        """Tell if every byte was handed on, and the end is what comes next."""
        return self.end_offset is not None and self.handed_on == self.end_offset

    @property
    def finished(self) -> bool:
        """Tell if the end was handed on as well."""
        return self.end_offset is not None and self.handed_on > self.end_offset

    def written(self, count: int, *, now_s: float) -> memoryview | None:
        """Count bytes of `head` as handed on; return the piece if it is done with."""
        start = self.handed_on - self._partly
        piece = self._pieces[start]
        if not 0 < count <= len(piece) - self._partly:
            raise ValueError(f"{count} bytes written of {len(piece) - self._partly}")
        self.handed_on += count
        self._partly += count
        if self._unsaid_since_s is None:
            self._unsaid_since_s = now_s
        if self._partly < len(piece):
            return None
        del self._pieces[start]
        self._waiting_bytes -= len(piece)
        self._partly = 0
        self._unsaid += 1
        return piece

    def hand_on_end(self, *, now_s: float) -> None:
        """Count the end as handed on."""
        if not self.at_end:
            raise ValueError("more is to come")
        self.handed_on += 1
        self._unsaid_since_s = now_s

    def ack_due(self, *, now_s: float) -> bool:
        """Tell if the peer should hear how far it has come."""
        unsaid = self.handed_on - self.acknowledged
        if not unsaid or self._unsaid_since_s is None:
            return False
        return (
            unsaid >= self.window_bytes // ACK_SHARE
            or self._unsaid >= ACK_PIECES
            or self.finished
            or now_s - self._unsaid_since_s >= ACK_DELAY_S
        )

    def acknowledge(self) -> int:
        """Return what the ACK says; it is taken as said."""
        self.acknowledged, self._unsaid, self._unsaid_since_s = self.handed_on, 0, None
        return self.handed_on
