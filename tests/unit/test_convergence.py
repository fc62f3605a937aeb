"""What is done about guests that converge, that do not, and about links that are merely slow.

The migrations are played by a model of QEMU's precopy loop (migration/migration.c,
migration_iteration_run), so that an hour takes no time; tests/qemu has the real one.
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.core.convergence import (
    KEPT_SAMPLES,
    PATIENCE_S,
    STALL_S,
    Action,
    GiveUp,
    Keep,
    RaiseLimit,
    Sample,
    decide,
    remember,
)

MIB = 1 << 20


@dataclass
class Precopy:
    """Sends `bandwidth`, is made dirty at `dirty` bytes/s, in `working` bytes at most."""

    ram: float
    bandwidth: float
    dirty: float
    working: float
    limit_ms: int = 20
    says_limit: bool = True
    at_s: float = 0.0
    passes: int = 1
    sent: float = 0.0
    began_s: float = 0.0
    remaining: float = field(init=False)
    switched: bool = False

    def __post_init__(self) -> None:
        self.remaining = self.ram

    def run(self, for_s: float) -> None:
        end_s = self.at_s + for_s
        while not self.switched and self.at_s < end_s:
            # QEMU sends for 50 ms before it looks (ram.c, MAX_WAIT).
            step_s = min(self.remaining / self.bandwidth, 0.05)
            self.at_s += step_s
            self.sent += step_s * self.bandwidth
            self.remaining -= step_s * self.bandwidth
            threshold = self.bandwidth * self.limit_ms / 1000
            if self.remaining <= threshold:
                made_dirty = self.dirty * (self.at_s - self.began_s)
                self.remaining = min(max(self.working, self.remaining), self.remaining + made_dirty)
                self.began_s = self.at_s
                self.passes += 1
                self.switched = self.remaining <= threshold

    def sample(self) -> Sample:
        return Sample(
            at_s=self.at_s,
            pass_number=self.passes,
            transferred_bytes=int(self.sent),
            remaining_bytes=int(self.remaining),
            bandwidth_bps=self.bandwidth,
            dirty_rate_bps=self.dirty,
            limit_ms=self.limit_ms if self.says_limit else None,
        )


def play(
    guest: Precopy,
    *,
    max_limit_ms: int = 300,
    interval_s: float = 0.1,
    until_s: float = 3600.0,
    disturb: Callable[[Precopy], None] = lambda _: None,
) -> list[Action]:
    """Let `guest` migrate under `decide`; return all but the Keeps, ended by a Keep if it moved."""
    samples: tuple[Sample, ...] = ()
    raised_at_s, done = -math.inf, []
    while guest.at_s < until_s:
        disturb(guest)
        guest.run(interval_s)
        if guest.switched:
            return [*done, Keep()]
        samples = remember(samples, guest.sample())
        action = decide(
            samples,
            limit_ms=guest.limit_ms,
            max_limit_ms=max_limit_ms,
            now_s=guest.at_s,
            raised_at_s=raised_at_s,
        )
        match action:
            case RaiseLimit(limit_ms=limit_ms):
                guest.limit_ms, raised_at_s = limit_ms, guest.at_s
                done.append(action)
            case GiveUp():
                return [*done, action]
            case Keep():
                pass
    return done


def limits(actions: list[Action]) -> list[int]:
    return [action.limit_ms for action in actions if isinstance(action, RaiseLimit)]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_a_guest_that_converges_is_left_alone(ratio: float) -> None:
    guest = Precopy(1024 * MIB, 100 * MIB, ratio * 100 * MIB, 1024 * MIB)
    assert play(guest) == [Keep()]
    assert guest.limit_ms == 20


def test_a_guest_that_needs_more_gets_it_in_steps_and_no_more_than_it_needs() -> None:
    # 15 MiB are always dirty: 150 ms on this link.
    actions = play(Precopy(1024 * MIB, 100 * MIB, 400 * MIB, 15 * MIB))
    assert actions[-1] == Keep()
    assert 150 <= limits(actions)[-1] <= 1.5 * 150
    assert limits(actions) == sorted(limits(actions))


@pytest.mark.parametrize("says_limit", [True, False])
def test_steps_double_where_even_the_highest_limit_is_too_low_and_then_it_is_given_up(
    *, says_limit: bool
) -> None:
    guest = Precopy(1024 * MIB, 100 * MIB, 400 * MIB, 200 * MIB, says_limit=says_limit)
    actions = play(guest)
    assert limits(actions) == [40, 80, 160, 300]
    last = actions[-1]
    assert isinstance(last, GiveUp)
    assert "dirties 400 MiB/s" in last.reason
    assert "gets 100 MiB/s" in last.reason
    needed = re.search(r"limit of (\d+) ms is needed; 300 ms are allowed", last.reason)
    assert needed
    assert int(needed[1]) == pytest.approx(2000, rel=0.1)
    assert guest.at_s < 90  # passes of two seconds each


def test_a_first_pass_of_many_hours_is_waited_for() -> None:
    guest = Precopy(10 * 1024 * MIB, MIB, 0.1 * MIB, 1024 * MIB)
    assert play(guest, until_s=10_000, interval_s=20.0) == []
    assert guest.passes == 1


@pytest.mark.parametrize("limit_ms", [20, 300])
def test_a_slow_link_gets_its_passes_before_anything_is_concluded(limit_ms: int) -> None:
    # Each pass takes a minute or more, and a little less than the one before.
    guest = Precopy(1024 * MIB, MIB, 0.8 * MIB, 512 * MIB, limit_ms=limit_ms)
    actions = play(guest, interval_s=1.0, until_s=20_000)
    assert actions[-1] == Keep()


def test_a_link_that_stands_still_is_given_up_after_its_grace() -> None:
    guest = Precopy(1024 * MIB, 100 * MIB, 1, 1)
    guest.run(1.0)
    sample = guest.sample()
    samples = remember(remember((), replace(sample, at_s=0.5, transferred_bytes=1)), sample)

    def judge(now_s: float) -> Action:
        later = remember(samples, replace(sample, at_s=now_s))
        return decide(later, limit_ms=20, max_limit_ms=300, now_s=now_s)

    assert judge(1.0 + STALL_S - 0.1) == Keep()
    given_up = judge(1.0 + STALL_S)
    assert isinstance(given_up, GiveUp)
    assert "not a byte was sent for 60 s" in given_up.reason


def test_a_quiet_minute_at_the_highest_limit_is_used() -> None:
    def quiet_later(guest: Precopy) -> None:
        if guest.at_s > 30:
            guest.working = 5 * MIB

    guest = Precopy(1024 * MIB, 100 * MIB, 400 * MIB, 200 * MIB)
    assert play(guest, disturb=quiet_later)[-1] == Keep()


def test_noise_in_the_bandwidth_does_not_stop_a_guest_that_converges() -> None:
    dice = random.Random(7)  # noqa: S311 - a test's noise

    def shake(guest: Precopy) -> None:
        guest.bandwidth = 100 * MIB * dice.uniform(0.7, 1.3)

    guest = Precopy(2048 * MIB, 100 * MIB, 60 * MIB, 2048 * MIB)
    assert play(guest, disturb=shake)[-1] == Keep()


@pytest.mark.parametrize("interval_s", [0.02, 0.1, 1.0, 5.0])
def test_any_interval_of_sampling_will_do(interval_s: float) -> None:
    actions = play(Precopy(256 * MIB, 100 * MIB, 400 * MIB, 10 * MIB), interval_s=interval_s)
    assert actions[-1] == Keep()
    assert 100 <= limits(actions)[-1] <= 150


def test_the_first_step_does_not_wait_for_more_than_its_patience() -> None:
    guest = Precopy(100 * MIB, 100 * MIB, 400 * MIB, 10 * MIB)
    play(guest, max_limit_ms=300)
    assert guest.at_s <= 1 + 0.2 + 2 * PATIENCE_S


def test_a_limit_above_the_highest_allowed_is_not_lowered_but_ends() -> None:
    guest = Precopy(1024 * MIB, 100 * MIB, 400 * MIB, 200 * MIB, limit_ms=500)
    actions = play(guest, max_limit_ms=300)
    assert len(actions) == 1
    assert isinstance(actions[0], GiveUp)
    assert "500 ms are allowed" in actions[0].reason


def test_nothing_known_is_nothing_done() -> None:
    assert decide((), limit_ms=20, max_limit_ms=300, now_s=0) == Keep()
    once = (Sample(0.0, 0, 0),)
    assert decide(once, limit_ms=20, max_limit_ms=300, now_s=0) == Keep()


def test_rates_that_are_not_measured_are_not_named() -> None:
    samples: tuple[Sample, ...] = ()
    for number in range(1, 40):
        samples = remember(samples, Sample(float(number), number, number, limit_ms=300))
    action = decide(samples, limit_ms=300, max_limit_ms=300, now_s=40.0)
    assert isinstance(action, GiveUp)
    assert action.reason.startswith("after 39 passes a downtime limit of 1300 ms is needed")


def long_run(seed: int) -> Iterator[Sample]:
    dice = random.Random(seed)  # noqa: S311 - a test's noise
    at_s, number, sent = 0.0, 1, 0
    while True:
        at_s += dice.random()
        number += dice.choice((0, 0, 1, 30))
        sent += dice.choice((0, 1000))
        yield Sample(at_s, number, sent)


@given(st.integers(), st.integers(1, 1500))
def test_what_is_remembered_is_bounded_in_order_and_keeps_the_first_and_the_last(
    seed: int, count: int
) -> None:
    samples: tuple[Sample, ...] = ()
    first = last = None
    for _, sample in zip(range(count), long_run(seed), strict=False):
        first, last = first or sample, sample
        samples = remember(samples, sample)
        assert len(samples) <= KEPT_SAMPLES + 1
    assert samples[0] == first
    assert last is not None
    assert replace(samples[-1], at_s=last.at_s) == last
    assert list(samples) == sorted(samples, key=lambda s: (s.at_s, s.pass_number))
