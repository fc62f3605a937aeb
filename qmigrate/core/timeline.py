"""When things happened, told from the clocks of two hosts: phases, passes, blackout.

QEMU stamps its events with its host's wall clock. Across hosts such stamps compare only through
the offset between the two clocks, and a figure made of them is no better than that offset: both
carry their error. The offset comes from pings over the link, after Cristian (1989): the peer read
its clock somewhere between our sending and our receiving, so half a round trip bounds the error,
and of many pings the quickest tells most.

All `_us` are microseconds of CLOCK_REALTIME unless said otherwise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qmigrate.core.job import Mark
from qmigrate.core.model import Phase, Side

# Two free-running crystals of +-50 ppm part by this much; a clock that NTP slews faster than that
# shows as samples that contradict each other, which is reported as a step.
DRIFT = 100e-6

# A wall clock's distance from the same host's boot clock changes only when it is set or slewed:
# at most 500 ppm by the kernel's discipline. Less than a millisecond at once is not told apart.
_SLEW = 1000e-6
_STEP_US = 1000.0


@dataclass(frozen=True, slots=True)
class ClockSample:
    """What one ping told of the peer's clock."""

    at_us: int  # own wall clock when the answer came
    offset_us: float  # peer's wall clock minus ours
    error_us: float  # the truth is no further away than this: half the round trip
    own_base_us: int  # own wall clock minus own boot clock
    peer_base_us: int


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """The peer's wall clock minus ours, at one moment."""

    offset_us: float
    error_us: float
    stepped: bool = False  # a clock was set while we looked: figures across hosts are doubtful

    def inverse(self) -> "ClockOffset":
        """Return the same as the peer sees it."""
        return ClockOffset(-self.offset_us, self.error_us, self.stepped)


def sample_clock(
    *,
    sent_boot_us: int,
    received_boot_us: int,
    own_base_us: int,
    peer_wall_us: int,
    peer_base_us: int,
) -> ClockSample:
    """Return what a ping and its answer say; `_boot_us` are of our own CLOCK_BOOTTIME."""
    half_us = (received_boot_us - sent_boot_us) / 2
    middle_us = sent_boot_us + half_us + own_base_us
    return ClockSample(
        at_us=received_boot_us + own_base_us,
        offset_us=peer_wall_us - middle_us,
        error_us=half_us,
        own_base_us=own_base_us,
        peer_base_us=peer_base_us,
    )


def estimate_offset(
    samples: Sequence[ClockSample], *, at_us: int | None = None
) -> ClockOffset | None:
    """Return the offset at `at_us` of our clock (None: at the last sample), or None: no sample.

    Of all samples the one whose error at that moment (half a round trip, and drift since or
    until then) is least.
    """
    if not samples:
        return None
    moment = samples[-1].at_us if at_us is None else at_us

    def error_us(sample: ClockSample) -> float:
        return sample.error_us + DRIFT * abs(moment - sample.at_us)

    best = min(samples, key=error_us)
    return ClockOffset(best.offset_us, error_us(best), clock_stepped(samples))


def clock_stepped(samples: Sequence[ClockSample]) -> bool:
    """Tell whether either host's clock was set between the first sample and the last."""
    return any(_base_jumped(a, b) or _contradict(a, b) for a, b in pairwise(samples)) or (
        len(samples) > 1 and _contradict(samples[0], samples[-1])
    )


def _base_jumped(a: ClockSample, b: ClockSample) -> bool:
    allowed_us = _STEP_US + _SLEW * abs(b.at_us - a.at_us)
    return (
        abs(b.own_base_us - a.own_base_us) > allowed_us
        or abs(b.peer_base_us - a.peer_base_us) > allowed_us
    )


def _contradict(a: ClockSample, b: ClockSample) -> bool:
    allowed_us = a.error_us + b.error_us + DRIFT * abs(b.at_us - a.at_us) + 1  # 1: rounding
    return abs(b.offset_us - a.offset_us) > allowed_us


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened on one host: a QMP event's name, or the phase that began."""

    side: Side
    name: str
    at_us: int
    passes: int | None = None  # of MIGRATION_PASS, its `pass`


def on_source_clock(moment: Moment, offset: ClockOffset | None) -> float | None:
    """Return when `moment` was, by the source's clock; None if that cannot be known.

    `offset` is the destination's clock minus the source's.
    """
    if moment.side is Side.SOURCE:
        return float(moment.at_us)
    return None if offset is None else moment.at_us - offset.offset_us


@dataclass(frozen=True, slots=True)
class Blackout:
    """How long the guest ran nowhere: STOP on the source to RESUME on the destination."""

    blackout_ms: float
    error_ms: float
    doubtful: bool  # a clock stepped, or RESUME seems to come before STOP by more than the error


def blackout(stop_us: int, resume_us: int, offset: ClockOffset) -> Blackout:
    """Return the blackout of a move; each stamp is of its own host's clock.

    `offset` is the destination's clock minus the source's. A figure below zero is within the
    error of zero, or it is doubtful; it is never shown below zero.
    """
    apart_ms = (resume_us - offset.offset_us - stop_us) / 1000
    error_ms = offset.error_us / 1000
    return Blackout(
        blackout_ms=max(0.0, apart_ms),
        error_ms=error_ms,
        doubtful=offset.stepped or apart_ms < -error_ms,
    )


SAME_CLOCK = ClockOffset(0.0, 0.0)


def blackout_of(events: Sequence[Moment], offset: ClockOffset | None) -> Blackout | None:
    """Return the blackout that the events of both hosts tell, in the order they were seen on each.

    After a move: the source's last STOP and the destination's first RESUME. After a rollback: that
    STOP and the source's next RESUME, on one clock. None: the guest was not stopped, runs nowhere
    yet, or the clocks cannot be compared.
    """
    own = [event for event in events if event.side is Side.SOURCE]
    stops = [index for index, event in enumerate(own) if event.name == "STOP"]
    if not stops:
        return None
    stop = own[stops[-1]]
    for event in own[stops[-1] :]:
        if event.name == "RESUME":
            return blackout(stop.at_us, event.at_us, SAME_CLOCK)
    for event in events:
        if event.side is Side.DESTINATION and event.name == "RESUME" and offset is not None:
            return blackout(stop.at_us, event.at_us, offset)
    return None


def passes(events: Iterable[Moment]) -> int | None:
    """Return how often QEMU walked over dirty RAM (MIGRATION_PASS); None: no such event."""
    return max((event.passes for event in events if event.passes is not None), default=None)


def moments(marks: Iterable[Mark], side: Side, *, start_us: int) -> tuple[Moment, ...]:
    """Return marks as moments; `start_us` is the host's wall clock when its job began."""
    return tuple(Moment(side, mark.name, start_us + round(mark.at_s * 1e6)) for mark in marks)


def phases(
    marks: Iterable[Moment], *, end_us: float, offset: ClockOffset | None
) -> tuple[Phase, ...]:
    """Return the job as a row of phases without gaps: each lasts until the next mark.

    Times are the source's, `end_us` too. Marks of the destination are left out while the offset
    is unknown.
    """
    timed = [(at, mark.name) for mark in marks if (at := on_source_clock(mark, offset)) is not None]
    timed.sort(key=lambda pair: pair[0])
    if not timed:
        return ()
    first = timed[0][0]
    ends = [at for at, _ in timed[1:]] + [max(end_us, timed[-1][0])]
    return tuple(
        Phase(name, start_s=(at - first) / 1e6, duration_s=(end - at) / 1e6)
        for (at, name), end in zip(timed, ends, strict=True)
    )
