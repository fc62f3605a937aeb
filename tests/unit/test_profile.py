"""The profile's arithmetic: marks of two hosts on one axis, and what is done alone."""

import pytest

from qmigrate.cli.profile import axis, bar, picture
from qmigrate.core.job import Mark
from qmigrate.core.model import Side
from qmigrate.core.profile import (
    DESTINATION_STEPS,
    HERE,
    SOURCE_STEPS,
    STEPS,
    WAITS,
    Profile,
    Span,
    alone_s,
    guest_spans,
    idle_s,
    job_spans,
    time_of,
)


def marks(**at_ms: float) -> tuple[Mark, ...]:
    return tuple(Mark(name.replace("_", " "), ms / 1e3) for name, ms in at_ms.items())


def span(where: str, step: str, start_ms: float, end_ms: float) -> Span:
    return Span(where, step, start_ms / 1e3, end_ms / 1e3)


SOURCE = marks(ready=20, linked=25, shape_known=30, migrate=60, pass_1=61, pass_2=90)
MORE = (Mark("pre-switchover", 0.100), Mark("pass 3", 0.101), Mark("continue", 0.103))


def test_a_jobs_marks_are_laid_on_the_axis_by_the_answer_that_its_ready_mark_made() -> None:
    spans = job_spans("alpha", Side.SOURCE, SOURCE + MORE, asked_s=1.0, answered_s=1.5)
    at = {each.step: (round(each.start_s, 3), round(each.end_s, 3)) for each in spans}
    assert at["job's agent starts"] == (1.0, 1.48)
    assert at["take hold of QEMU"] == (1.48, 1.5)
    assert at["copy"] == (1.54, 1.58)
    assert at["checks"] == (1.58, 1.583)
    assert "switchover" not in at, "its end was not seen"
    assert all(each.where == "alpha" for each in spans)
    assert list(spans) == sorted(spans, key=lambda each: each.start_s)


def test_passes_end_where_the_next_begins_and_none_begins_after_the_copy() -> None:
    spans = job_spans("alpha", Side.SOURCE, SOURCE + MORE, asked_s=1.0, answered_s=1.5)
    passes = [(s.step, round(s.duration_s, 3)) for s in spans if s.step.startswith("pass ")]
    assert passes == [("pass 1", 0.029), ("pass 2", 0.010)]


def test_a_job_that_was_never_ready_has_no_place_on_the_axis() -> None:
    unready = marks(linked=3)
    assert job_spans("alpha", Side.SOURCE, unready, asked_s=0, answered_s=1) == ()
    assert time_of("linked", unready, answered_s=1) is None
    assert time_of("linked", SOURCE, answered_s=1.0) == pytest.approx(1.005)
    assert time_of("never", SOURCE, answered_s=1.0) is None


def test_of_a_mark_that_came_twice_the_first_counts() -> None:
    again = (*SOURCE, Mark("linked", 0.5))
    assert time_of("linked", again, answered_s=1.0) == pytest.approx(1.005)


@pytest.mark.parametrize("side", list(Side))
def test_every_step_begins_with_a_mark_that_is_the_start_or_ends_another(side: Side) -> None:
    known = {"begun", "ready", "record back", "load asked"}  # set by what is no step
    ends = {end for _, _, end in STEPS[side]}
    for step, begin, _ in STEPS[side]:
        assert begin in known | ends, step


def test_what_only_waits_is_a_step_that_there_is() -> None:
    assert {step for step, _, _ in SOURCE_STEPS + DESTINATION_STEPS} >= WAITS


ALONE = [
    ("one after the other", [("a", "x", 0, 10), ("b", "y", 10, 30)], [10, 20]),
    ("side by side", [("a", "x", 0, 10), ("b", "y", 0, 30)], [0, 20]),
    ("overlapping", [("a", "x", 0, 20), ("b", "y", 10, 30)], [10, 10]),
    ("waiting is not doing", [("a", "wait for GO", 0, 30), ("b", "y", 10, 20)], [0, 10]),
    ("a pass within a copy", [("a", "copy", 0, 30), ("a", "pass 1", 0, 20)], [30, 20]),
    ("a gap", [("a", "x", 0, 10), ("b", "y", 20, 30)], [10, 10]),
    ("the same on two hosts", [("a", "x", 0, 10), ("b", "x", 0, 10)], [0, 0]),
    ("nothing long", [("a", "x", 5, 5)], [0]),
]


@pytest.mark.parametrize(
    ("steps", "alone"), [case[1:] for case in ALONE], ids=[c[0] for c in ALONE]
)
def test_alone_is_when_nothing_else_is_done(
    steps: list[tuple[str, str, float, float]], alone: list[float]
) -> None:
    found = alone_s([span(*step) for step in steps])
    assert [round(s * 1e3, 6) for s in found] == alone


def test_what_no_step_accounts_for_is_said() -> None:
    spans = (span("a", "x", 10, 20), span("b", "y", 15, 40), span("a", "z", 60, 90))
    assert idle_s(Profile(0.1, spans)) == pytest.approx(0.04)
    assert idle_s(Profile(0.1, ())) == pytest.approx(0.1)
    assert idle_s(Profile(0.1, (span("a", "late", 90, 200),))) == pytest.approx(0.09)


def test_the_guest_is_shown_only_where_it_is_known() -> None:
    hosts = ("alpha", "beta")
    shown = guest_spans(hosts, stop_s=1.0, blackout_ms=20.0, wall_s=2.0)
    assert [(s.where, s.step, s.start_s, s.end_s) for s in shown] == [
        ("alpha", "runs", 0.0, 1.0),
        ("", "stands still", 1.0, 1.02),
        ("beta", "runs", 1.02, 2.0),
    ]
    assert guest_spans(hosts, stop_s=None, blackout_ms=20.0, wall_s=2.0) == ()
    assert guest_spans(hosts, stop_s=1.0, blackout_ms=None, wall_s=2.0) == ()


def test_clocks_that_disagree_make_no_negative_time() -> None:
    assert span("a", "x", 10, 5).duration_s == 0


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "drawn"),
    [
        (0, 100, "██████████"),
        (0, 50, "█████     "),
        (25, 50, "  ▐██     "),
        (20, 45, "  ██▌     "),
        (30, 31, "   ▏      "),
        (99.9, 100, "         ▐"),
        (0, 0, "▏         "),
        (90, 300, "         █"),  # a clock that is ahead
    ],
)
def test_a_bar_is_as_long_as_its_step(start_ms: float, end_ms: float, drawn: str) -> None:
    assert bar(span("a", "x", start_ms, end_ms), 0.1, 10) == drawn


def test_a_bar_of_waiting_is_light_and_nothing_divides_by_zero() -> None:
    assert bar(span("a", "x", 0, 50), 0.1, 10, waits=True) == "░░░░░     "
    assert bar(span("a", "x", 0, 0), 0.0, 10) == " " * 10


@pytest.mark.parametrize("wall_s", [0.003, 0.04, 0.5, 1.3, 9.9, 30, 3600])
def test_an_axis_has_a_few_round_numbers_and_keeps_its_width(wall_s: float) -> None:
    drawn = axis(wall_s, 60)
    assert len(drawn) == 60
    numbers = [float(word) for word in drawn.split() if word != "s"]
    assert numbers[0] == 0
    assert 2 <= len(numbers) <= 8
    assert numbers == sorted(numbers)
    assert numbers[-1] <= wall_s


PROFILE = Profile(
    1.0,
    (
        span(HERE, "python, imports", 0, 200),
        span("alpha", "login", 200, 400),
        span("beta", "a step with a name\x1b[2J", 200, 300),
        span("beta", "wait for GO", 300, 900),
    ),
    guest_spans(("alpha", "beta"), stop_s=0.8, blackout_ms=50.0, wall_s=1.0),
)


def test_a_picture_has_a_row_a_step_by_host_and_fits() -> None:
    lines = list(picture(PROFILE, width=80, color=False))
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == [
        "guest",
        HERE,
        "alpha",
        "beta",
    ]
    assert all(len(line) <= 80 for line in lines[:-1])
    assert "\x1b" not in "".join(lines), "a step's name may not move the cursor"
    assert lines[-1].startswith("1000 ms in all; 300 of them one thing at a time")
    (login,) = [line for line in lines if "login" in line]
    assert login.split()[-2:] == ["200.0", "100.0"]


def test_colour_changes_no_width() -> None:
    import re

    plain = list(picture(PROFILE, width=80, color=False))
    painted = [re.sub(r"\x1b\[[\d;]*m", "", x) for x in picture(PROFILE, width=80, color=True)]
    assert painted == plain
