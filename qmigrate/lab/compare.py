"""Arms compared by the samples of one run: medians, and ratios with their uncertainty. Pure."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure of one arm; no sample is left out."""

    n: int
    median: float
    p95: float  # nearest rank, so always one of the samples
    maximum: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate, and what holds 95 % of bootstrap resamples."""

    point: float
    low: float
    high: float


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def summarise(values: Sequence[float]) -> Summary:
    """Reduce the samples of one figure."""
    return Summary(len(values), statistics.median(values), percentile(values, 0.95), max(values))


def compare(
    values: Sequence[float],
    base: Sequence[float],
    by: Callable[[float, float], float],
) -> Interval | None:
    """Compare two arms' medians by `by`; None where it divides by zero.

    The same samples always give the same interval.
    """
    generator = random.Random(0)  # noqa: S311 - resampling, no secret

    def resampled(sample: Sequence[float]) -> float:
        return statistics.median(generator.choices(sample, k=len(sample)))

    try:
        point = by(statistics.median(values), statistics.median(base))
        found = [by(resampled(values), resampled(base)) for _ in range(RESAMPLES)]
    except ZeroDivisionError:
        return None
    return Interval(point, percentile(found, 0.025), percentile(found, 0.975))


def ratio(value: float, base: float) -> float:
    """Return how many times the base a value is."""
    return value / base


def difference(value: float, base: float) -> float:
    """Return how much more than the base a value is."""
    return value - base


def rows(
    figures: Mapping[str, Mapping[str, Sequence[float]]], base: str
) -> list[tuple[str, str, str]]:
    """Return a table: figure, arm, and in words its summary and how it stands to the base's."""
    found = []
    for figure, arms in figures.items():
        for arm, values in arms.items():
            if not values:
                continue
            s = summarise(values)
            words = f"{s.median:9.2f} {s.p95:9.2f} {s.maximum:9.2f}  n={s.n}"
            if arm != base and arms.get(base):
                times = compare(values, arms[base], ratio)
                more = compare(values, arms[base], difference)
                if times:
                    words += f"  x{times.point:.2f} [{times.low:.2f}, {times.high:.2f}]"
                if more:
                    words += f"  {more.point:+.2f} [{more.low:+.2f}, {more.high:+.2f}]"
            found.append((figure, arm, words))
    return found
