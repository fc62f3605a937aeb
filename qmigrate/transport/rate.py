"""How fast, how large, how hard to pack: a relay's decisions about rates. Pure; `now` is told.

Packing pays where the wire is what limits: then bytes saved are time saved. What each rung of the
ladder would give is predicted from what was measured, ``min(link / ratio, speed of packing)``, and
the best is taken if it is better by `GAIN`. Where the link is not the limit nothing is packed.
"""

import math
from dataclasses import dataclass, field, replace

OFF = 0
ZSTD_LADDER = (OFF, -1, 1, 3)  # below -1 and above 3 a rung costs more than it gives (facts §5)
ZLIB_LADDER = (OFF, 1)
GAIN = 1.1  # a rung must promise so much more than the present one: measurements scatter
WORTH = 0.97  # a chunk that stays longer than this share is sent as it is

LIMITING = 0.5  # share of the writers' time in send(): above, the link limits
IDLE = 0.1  # and below this one it has room
SPAN_S = 0.2  # of one measurement: 100 chunks of 256 KiB at 1 Gbit/s
# Between trials of all rungs on one chunk, some 4 ms: memory changes its nature as the walk goes.
TRIAL_PAUSE_S = 2.0
TRIAL_PARTS = 4
LINK_GROWTH = 1.05  # a span: what an idle link is believed to take grows until it is tried again

UNSENT_S = 0.005  # bytes accepted and not yet sent add their sending time to the blackout
UNSENT_LEAST_BYTES = 128 * 1024
UNSENT_MOST_BYTES = 4 << 20
CHUNK_BYTES = 256 * 1024  # one send() and one wakeup each
CHUNK_LEAST_BYTES = 32 * 1024  # below, TLS records and system calls cost more than they save
CHUNK_S = 0.002
BURST_S = 0.005  # what a budget lets through at once


def unsent_bytes(link_bps: float | None) -> int:
    """Return how much may wait in front of a wire of `link_bps` bytes/s; None: not known yet."""
    if link_bps is None:
        return 2 * UNSENT_LEAST_BYTES
    return int(min(UNSENT_MOST_BYTES, max(UNSENT_LEAST_BYTES, link_bps * UNSENT_S)))


def chunk_bytes(payload_bps: float | None) -> int:
    """Return how much to take from QEMU at a time: what is in hand waits as well."""
    if payload_bps is None:
        return CHUNK_BYTES
    return int(min(CHUNK_BYTES, max(CHUNK_LEAST_BYTES, payload_bps * CHUNK_S)))


@dataclass(slots=True)
class Budget:
    """Bytes a second for a whole job: everybody asks `wait_s` first and tells `spend` afterwards.

    None: no limit. Spending is never refused, it makes whoever comes next wait.
    """

    limit_bps: float | None = None
    _paid_s: float = -math.inf  # when all that was spent is paid for

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait before the next byte."""
        return 0.0 if self.limit_bps is None else max(0.0, self._paid_s - now_s - BURST_S)

    def spend(self, count: int, now_s: float) -> None:
        """Count bytes that went out."""
        if self.limit_bps is not None:
            self._paid_s = max(self._paid_s, now_s) + count / self.limit_bps

    def change(self, limit_bps: float | None, now_s: float) -> None:
        """Let another limit hold from now on; what is owed is owed in bytes."""
        owed = max(0.0, self._paid_s - now_s) * (self.limit_bps or 0.0)
        self.limit_bps = limit_bps
        self._paid_s = now_s + owed / limit_bps if limit_bps else -math.inf


@dataclass(frozen=True, slots=True)
class Span:
    """What the writers of a relay did in a while, all together."""

    seconds: float
    writers: int
    payload_bytes: int = 0
    wire_bytes: int = 0
    sending_s: float = 0.0  # in send(), where a full wire makes them wait
    packing_s: float = 0.0

    @property
    def link_busy(self) -> float:
        """Return the share of time in which the wire was waited for."""
        return self.sending_s / (self.seconds * self.writers)


@dataclass(frozen=True, slots=True)
class Rung:
    """What is known of a level: wire bytes a payload byte, and payload bytes/s of one writer."""

    level: int
    ratio: float
    speed_bps: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """All that is known; `after` returns what is known and decided a span later."""

    levels: tuple[int, ...]
    level: int = OFF
    link_bps: float | None = None  # None: it has never been the limit
    rungs: tuple[Rung, ...] = field(default=())
    tried_s: float = -math.inf
    why: str = "the link has not been the limit yet"

    @property
    def payload_bps(self) -> float | None:
        """Return what goes in where the link takes all that comes out; None: not known."""
        if self.link_bps is None:
            return None
        ratio = next((rung.ratio for rung in self.rungs if rung.level == self.level), 1.0)
        return self.link_bps / ratio

    def wants_trial(self, now_s: float) -> bool:
        """Tell if the rungs should be tried on the next chunks: the link limits, or did."""
        return (
            len(self.levels) > 1
            and self.link_bps is not None
            and now_s - self.tried_s >= TRIAL_PAUSE_S
        )

    def tried(self, rungs: tuple[Rung, ...], now_s: float) -> "Ladder":
        """Return the ladder that knows the outcome of a trial."""
        return replace(self, rungs=rungs, tried_s=now_s)

    def after(self, span: Span) -> "Ladder":
        """Return the ladder after `span`, with the level to use from now on."""
        known = replace(self, link_bps=self._link(span), rungs=self._measured(span))
        if known.link_bps is None:
            return known
        promised = {rung.level: known.promise(rung, span.writers) for rung in known.rungs}
        promised[OFF] = known.link_bps
        present = promised.get(self.level, 0.0)
        best = max(promised, key=lambda level: promised[level])
        if promised[best] <= GAIN * present:
            return known
        why = (
            f"level {best} promises {promised[best] / 1e6:.0f} MB/s,"
            f" level {self.level} {present / 1e6:.0f}, over {known.link_bps / 1e6:.0f} MB/s of link"
        )
        return replace(known, level=best, why=why)

    def promise(self, rung: Rung, writers: int) -> float:
        """Return the payload bytes/s to be expected at `rung`."""
        if self.link_bps is None:
            return rung.speed_bps * writers
        return min(self.link_bps / rung.ratio, rung.speed_bps * writers)

    def _link(self, span: Span) -> float | None:
        if span.link_busy >= LIMITING:
            return span.wire_bytes / span.seconds
        if self.link_bps is None:
            return None
        seen = max(self.link_bps, span.wire_bytes / span.seconds)
        return seen * LINK_GROWTH if self.level != OFF and span.link_busy < IDLE else seen

    def _measured(self, span: Span) -> tuple[Rung, ...]:
        """Believe in what the present level really does, rather than in its trial."""
        if self.level == OFF or not span.packing_s or not span.payload_bytes:
            return self.rungs
        real = Rung(
            self.level,
            max(span.wire_bytes, 1) / span.payload_bytes,
            span.payload_bytes / span.packing_s,
        )
        return (*(rung for rung in self.rungs if rung.level != self.level), real)
