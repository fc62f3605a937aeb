"""Find the longest frame that passes, in rounds of several sizes at once; pure.

One size after the other would cost a wait for each that is lost; halving is eleven waits for
1500. Nine gaps a round need four for 9000. A size is held for too long only after it, or a longer
one, failed to arrive `CONFIRM` times: one lost frame does not make a network narrow.
"""

from dataclasses import dataclass, replace

SIZES_AT_ONCE = 8
CONFIRM = 3


@dataclass(frozen=True, slots=True)
class SizeSearch:
    """`passes_bytes` has arrived; `fails_bytes` did not, so far `failures` times; between: open."""

    passes_bytes: int
    fails_bytes: int
    wanted_bytes: int
    failures: int = 1

    @property
    def done(self) -> bool:
        """Whether `passes_bytes` is the answer."""
        if self.passes_bytes >= self.wanted_bytes:
            return True
        return self.fails_bytes - self.passes_bytes <= 1 and self.failures >= CONFIRM

    def next_sizes(self) -> tuple[int, ...]:
        """Return the sizes to send now; empty if done."""
        if self.done:
            return ()
        gap = self.fails_bytes - self.passes_bytes
        if gap <= 1:
            return (self.fails_bytes,)
        steps = min(SIZES_AT_ONCE, gap - 1)
        inner = {self.passes_bytes + gap * step // (steps + 1) for step in range(1, steps + 1)}
        return tuple(sorted(inner - {self.passes_bytes}))

    def after(self, sent: tuple[int, ...], arrived: frozenset[int]) -> "SizeSearch":
        """Return the search when, of `sent`, `arrived` were answered; late ones count as well."""
        passes = max({self.passes_bytes, *arrived})
        lost = [size for size in (*sent, self.fails_bytes) if size > passes]
        if not lost:  # what failed before has passed: open again up to what is wanted
            return replace(self, passes_bytes=passes, fails_bytes=self.wanted_bytes, failures=1)
        fails = min(lost)
        failures = self.failures + (fails in sent) if fails == self.fails_bytes else 1
        return replace(self, passes_bytes=passes, fails_bytes=fails, failures=failures)
