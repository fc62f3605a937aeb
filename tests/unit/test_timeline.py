"""Two clocks, one story."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmigrate.core.job import Mark
from qmigrate.core.model import Phase, Side
from qmigrate.core.timeline import (
    DRIFT,
    Blackout,
    ClockOffset,
    ClockSample,
    Moment,
    blackout,
    blackout_of,
    clock_stepped,
    estimate_offset,
    moments,
    passes,
    phases,
    sample_clock,
)

# A loaded machine is no finding.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOW = 1_700_000_000_000_000
BASE = NOW - 5_000_000


def _sample(
    *, at_s: float, offset_us: float, rtt_us: int, base_us: int = BASE, peer_base_us: int = 0
) -> ClockSample:
    return ClockSample(NOW + round(at_s * 1e6), offset_us, rtt_us / 2, base_us, peer_base_us)


@untimed
@given(
    true_offset=st.integers(-(10**9), 10**9),
    way_there=st.integers(0, 50_000),
    way_back=st.integers(0, 50_000),
)
def test_the_truth_is_within_the_error_however_lopsided_the_way(
    true_offset: int, way_there: int, way_back: int
) -> None:
    sent = 1_000_000
    sample = sample_clock(
        sent_boot_us=sent,
        received_boot_us=sent + way_there + way_back,
        own_base_us=BASE,
        peer_wall_us=sent + way_there + BASE + true_offset,
        peer_base_us=0,
    )
    assert abs(sample.offset_us - true_offset) <= sample.error_us
    assert sample.at_us == sent + way_there + way_back + BASE


def test_the_quickest_ping_wins_unless_it_is_too_long_ago() -> None:
    samples = [
        _sample(at_s=0, offset_us=10, rtt_us=100),
        _sample(at_s=1, offset_us=400, rtt_us=1000),
        _sample(at_s=60, offset_us=900, rtt_us=2000),
    ]
    assert estimate_offset(samples, at_us=NOW + 1_000_000) == ClockOffset(10, 50 + 1e6 * DRIFT)
    assert estimate_offset(samples) == ClockOffset(900, 1000)
    assert estimate_offset([]) is None
    offset = ClockOffset(3, 4, stepped=True)
    assert offset.inverse() == ClockOffset(-3, 4, stepped=True)


@pytest.mark.parametrize(
    ("samples", "stepped"),
    [
        ([], False),
        ([_sample(at_s=0, offset_us=0, rtt_us=100)], False),
        ([_sample(at_s=t, offset_us=60 * t, rtt_us=100) for t in range(30)], False),
        ([_sample(at_s=t, offset_us=3000 * (t > 5), rtt_us=100) for t in range(9)], True),
        # a step smaller than the pings can see is not claimed
        ([_sample(at_s=t, offset_us=40 * (t > 5), rtt_us=100) for t in range(9)], False),
        # slewed a little each second, too fast for a crystal: seen over the whole
        ([_sample(at_s=t, offset_us=150 * t, rtt_us=100) for t in range(30)], True),
        # both clocks set by the same amount: only each host's own boot clock shows it
        (
            [
                _sample(
                    at_s=t, offset_us=0, rtt_us=100, base_us=BASE + 10**6 * (t > 5), peer_base_us=0
                )
                for t in range(9)
            ],
            True,
        ),
        (
            [
                _sample(at_s=t, offset_us=0, rtt_us=10**7, peer_base_us=-(10**6) * (t > 5))
                for t in range(9)
            ],
            True,
        ),
    ],
)
def test_a_clock_that_was_set_is_noticed(samples: list[ClockSample], stepped: bool) -> None:
    assert clock_stepped(samples) is stepped


@pytest.mark.parametrize(
    ("stop_us", "resume_us", "offset", "expected"),
    [
        (NOW, NOW + 12_500, ClockOffset(0, 100), Blackout(12.5, 0.1, doubtful=False)),
        (NOW, NOW + 5_012_500, ClockOffset(5e6, 100), Blackout(12.5, 0.1, doubtful=False)),
        (NOW, NOW - 4_987_500, ClockOffset(-5e6, 100), Blackout(12.5, 0.1, doubtful=False)),
        (NOW, NOW - 80, ClockOffset(0, 100), Blackout(0.0, 0.1, doubtful=False)),
        (NOW, NOW - 200, ClockOffset(0, 100), Blackout(0.0, 0.1, doubtful=True)),
        (NOW, NOW + 900, ClockOffset(0, 100, stepped=True), Blackout(0.9, 0.1, doubtful=True)),
    ],
)
def test_blackout_is_told_on_one_clock_with_its_error(
    stop_us: int, resume_us: int, offset: ClockOffset, expected: Blackout
) -> None:
    assert blackout(stop_us, resume_us, offset) == expected


def _event(side: Side, name: str, at_ms: float) -> Moment:
    return Moment(side, name, NOW + round(at_ms * 1000))


SOURCE, DESTINATION = Side.SOURCE, Side.DESTINATION
AHEAD = ClockOffset(7_000_000, 50)


@pytest.mark.parametrize(
    ("events", "offset", "expected_ms"),
    [
        ([_event(SOURCE, "STOP", 0), _event(DESTINATION, "RESUME", 7020)], AHEAD, 20.0),
        # an earlier stop and cont of the guest's does not count
        (
            [
                _event(SOURCE, "STOP", -900),
                _event(SOURCE, "RESUME", -800),
                _event(SOURCE, "STOP", 0),
                _event(DESTINATION, "RESUME", 7020),
                _event(DESTINATION, "STOP", 9000),
                _event(DESTINATION, "RESUME", 9500),
            ],
            AHEAD,
            20.0,
        ),
        # rolled back: one clock, no offset needed
        ([_event(SOURCE, "STOP", 0), _event(SOURCE, "RESUME", 35)], None, 35.0),
        ([_event(SOURCE, "STOP", 0)], AHEAD, None),
        ([_event(SOURCE, "STOP", 0), _event(DESTINATION, "RESUME", 7020)], None, None),
        ([_event(DESTINATION, "RESUME", 7020)], AHEAD, None),
    ],
)
def test_the_blackout_is_between_the_last_stop_and_the_next_resume(
    events: list[Moment], offset: ClockOffset | None, expected_ms: float | None
) -> None:
    found = blackout_of(events, offset)
    assert (found and found.blackout_ms) == expected_ms


def test_phases_follow_each_other_without_gaps_on_the_sources_clock() -> None:
    own = moments(
        [Mark("prepare", 0.0), Mark("copy", 1.0), Mark("switchover", 3.0)], SOURCE, start_us=NOW
    )
    theirs = (_event(DESTINATION, "handover", 10_500),)
    end_us = NOW + 4_000_000
    assert phases(own + theirs, end_us=end_us, offset=AHEAD) == (
        Phase("prepare", 0.0, 1.0),
        Phase("copy", 1.0, 2.0),
        Phase("switchover", 3.0, 0.5),
        Phase("handover", 3.5, 0.5),
    )
    assert [phase.name for phase in phases(own + theirs, end_us=end_us, offset=None)] == [
        "prepare",
        "copy",
        "switchover",
    ]
    assert phases((), end_us=end_us, offset=None) == ()


@untimed
@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=20), st.integers(0, 10**8))
def test_phases_add_up_and_none_is_negative(starts: list[int], end: int) -> None:
    row = phases(
        [Moment(SOURCE, f"p{i}", NOW + at) for i, at in enumerate(starts)],
        end_us=NOW + end,
        offset=None,
    )
    assert row[0].start_s == 0
    assert all(phase.duration_s >= 0 for phase in row)
    total = sum(phase.duration_s for phase in row)
    assert total == pytest.approx((max(end, *starts, 0) - min(starts)) / 1e6)


def test_passes_are_the_last_that_qemu_told() -> None:
    told = [Moment(SOURCE, "MIGRATION_PASS", NOW, passes=n) for n in (1, 2, 3)]
    assert passes([*told, _event(SOURCE, "STOP", 0)]) == 3
    assert passes([_event(SOURCE, "STOP", 0)]) is None
