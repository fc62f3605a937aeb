"""Whether what remains will ever fit the downtime limit, and what to do when it will not.

QEMU sends dirty memory pass after pass. A pass ends when what remains can be sent within the
downtime limit; then dirty pages are counted anew, and if the sum is still small enough it switches
over. So *the time of a pass plus the limit is the limit that would have been enough when the pass
began*. This needs no dirty rate, which QEMU measures once a second and reports as 0 until then, and
holds at any bandwidth. From it follows:

- What is needed falls: it converges. Wait, however slow the link is.
- It does not, for a time and for some passes: raise the limit, one step.
- It does not at the highest limit that is allowed: give up, with the figures.
- Within the first pass nothing of this is known, and nothing is done while bytes flow.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qmigrate.core.quantities import human_bytes, human_rate

PATIENCE_S = 2.0  # a step's chance: twenty of QEMU's looks at the limit, two of its dirty rate
PATIENCE_PASSES = 2  # on a slow link a pass takes minutes; one may be long by chance
LAST_PATIENCE_S = 10.0  # before giving up: a guest has quiet moments, a link has busy ones
LAST_PATIENCE_PASSES = 5
STALL_S = 60.0  # no byte sent for so long: longer than a link is given to come back
IMPROVEMENT = 0.9  # less than this part of the best before is progress, not noise
STEP = 2  # a step doubles the limit: four of them from 20 ms to 300 ms
MARGIN = 1.2  # a limit meant to be enough is this much above what was measured
KEPT_SAMPLES = 256  # in memory; older ones are thinned out
RECENT = 20  # times of passes, over which the figures are taken


@dataclass(frozen=True, slots=True)
class Sample:
    """What QEMU says of the migration at one moment; None is "not measured yet"."""

    at_s: float  # on any clock that does not stop
    pass_number: int  # dirty-sync-count: 1 in the first pass
    transferred_bytes: int
    remaining_bytes: int | None = None
    bandwidth_bps: float | None = None  # bytes/s
    dirty_rate_bps: float | None = None  # bytes/s
    limit_ms: int | None = None  # the downtime limit that QEMU had; None: the one it has now


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on as it is."""


@dataclass(frozen=True, slots=True)
class RaiseLimit:
    """Set the downtime limit to `limit_ms`."""

    limit_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Cancel: it does not end by itself within what is allowed."""

    reason: str


Action = Keep | RaiseLimit | GiveUp


def remember(samples: Sequence[Sample], new: Sample) -> tuple[Sample, ...]:
    """Return `samples` with `new`, without what `decide` does not need; bounded.

    Of each pass the first sample is kept; of the current one also the last, with the time at which
    bytes were last seen to flow. Of many passes, every second of the older half goes.
    """
    kept = list(samples)
    if len(kept) >= 2 and kept[-2].pass_number == kept[-1].pass_number == new.pass_number:
        still = kept[-1].transferred_bytes == new.transferred_bytes
        kept[-1] = replace(new, at_s=kept[-1].at_s) if still else new
    else:
        if len(kept) >= 2 and kept[-2].pass_number == kept[-1].pass_number:
            kept.pop()  # that pass is over
        kept.append(new)
    if len(kept) > KEPT_SAMPLES:
        half = len(kept) // 2
        kept = kept[:half:2] + kept[half:]
    return tuple(kept)


def decide(
    samples: Sequence[Sample],
    *,
    limit_ms: int,
    max_limit_ms: int,
    now_s: float,
    raised_at_s: float = -math.inf,
    patience_s: float = PATIENCE_S,
    last_patience_s: float = LAST_PATIENCE_S,
    stall_s: float = STALL_S,
) -> Action:
    """Return what to do at `now_s` about a precopy migration that is `active`.

    `samples` are of one migration, in order, gathered by `remember`; `limit_ms` is what QEMU has
    now, since `raised_at_s`; `max_limit_ms` is the user's. Ask at every sample; any interval does.
    """
    if not samples:
        return Keep()
    still_s = now_s - _last_movement_s(samples)
    if still_s >= stall_s:
        left = samples[-1].remaining_bytes
        remain = "" if left is None else f", {human_bytes(left)} remain"
        return GiveUp(f"not a byte was sent for {still_s:.0f} s{remain}")
    passes = _passes(samples, limit_ms)
    if not passes:
        return Keep()
    since_s = max(_last_improvement_s(passes), raised_at_s)
    vain = [p for p in passes if p.ended_s > since_s]
    at_most = limit_ms >= max_limit_ms
    patience = (last_patience_s, LAST_PATIENCE_PASSES) if at_most else (patience_s, PATIENCE_PASSES)
    if now_s - since_s < patience[0] or sum(p.count for p in vain) < patience[1]:
        return Keep()
    # The mean: where a pass takes about as long as from sample to sample, its time is seen as none
    # or two of these, and only many together are right.
    recent = vain[-RECENT:]
    needed_ms = statistics.fmean((p.needed_ms for p in recent), (p.count for p in recent))
    figures = _figures(samples[-1], needed_ms)
    if at_most:
        return GiveUp(f"{figures}; {max(limit_ms, max_limit_ms)} ms are allowed")
    enough = math.ceil(needed_ms * MARGIN)
    step_ms = limit_ms * STEP
    step_ms = min(max_limit_ms, enough if step_ms < enough <= max_limit_ms else step_ms)
    return RaiseLimit(step_ms, f"{figures}; it goes from {limit_ms} to {step_ms} ms")


@dataclass(frozen=True, slots=True)
class _Passes:
    """A pass that has ended; or `count` of them, on the average, where samples are far apart."""

    ended_s: float
    count: int
    needed_ms: float  # the limit that would have been enough at its beginning


def _passes(samples: Sequence[Sample], limit_ms: int) -> list[_Passes]:
    starts = [next(group) for _, group in itertools.groupby(samples, lambda s: s.pass_number)]
    ended = []
    for start, end in itertools.pairwise(starts):
        count = max(1, end.pass_number - start.pass_number)
        took_ms = (end.at_s - start.at_s) * 1000 / count
        had_ms = limit_ms if start.limit_ms is None else start.limit_ms
        ended.append(_Passes(end.at_s, count, took_ms + had_ms))
    return ended


def _last_improvement_s(passes: Sequence[_Passes]) -> float:
    best_ms, at_s = math.inf, -math.inf
    for ended in passes:
        if ended.needed_ms < best_ms * IMPROVEMENT:
            best_ms, at_s = ended.needed_ms, ended.ended_s
    return at_s


def _last_movement_s(samples: Sequence[Sample]) -> float:
    last = samples[-1]
    same = itertools.takewhile(
        lambda s: s.transferred_bytes == last.transferred_bytes, reversed(samples)
    )
    return min(sample.at_s for sample in same)


def _figures(last: Sample, needed_ms: float) -> str:
    dirties = last.dirty_rate_bps
    gets = last.bandwidth_bps
    rates = [
        f"the guest dirties {human_rate(dirties)}" if dirties is not None else "",
        f"the stream gets {human_rate(gets)}" if gets is not None else "",
    ]
    needs = f"after {last.pass_number} passes a downtime limit of {needed_ms:.0f} ms is needed"
    return ", ".join([*filter(None, rates), needs])
