"""The result as scripts read it: every key of DESIGN §6, units, and null for what is not known."""

import json
from dataclasses import replace

import pytest

from qmigrate.controller.result import SCHEMA, Result, document, exit_code, phases
from qmigrate.core.errors import Problem
from qmigrate.core.job import (
    Announced,
    AnnounceReport,
    Costs,
    JobReport,
    Mark,
    Mode,
    Outcome,
    QemuFigures,
    Transport,
)
from qmigrate.core.model import Finding, LinkFigures, RunState, Severity

MARKS = tuple(
    Mark(name, at_s)
    for name, at_s in (
        ("record prepared", 0.01),
        ("linked", 0.02),
        ("migrate", 0.1),
        ("pre-switchover", 0.6),
        ("record switching", 0.601),
        ("record away", 0.61),
        ("record proved", 0.62),
        ("record done", 0.7),
    )
)
REPORT = JobReport(
    job="web1-1",
    outcome=Outcome.MIGRATED,
    problem=None,
    had=RunState.RUNNING,
    stop_us=1_000_000,
    resume_us=1_025_500,
    clock_offset_us=500.0,
    clock_error_us=120.0,
    qemu=QemuFigures(600, 1, 21, 3, 70_000_000, 940.5),
    marks=MARKS,
    costs=Costs(1.0, 20.0, 2.0),
    announced=AnnounceReport(
        "br0", ("garp 192.0.2.7",), 0.4, (Announced("52:54:00:00:00:01", "192.0.2.7", "seen"),)
    ),
    findings=(),
    guest_events=("was reset: guest-reset",),
    leftovers=("beta: tap t0",),
)
WARNING = Finding("qemu-older", Severity.WARNING, "beta", "older", "update it")
RESULT = Result(
    job="web1-1",
    guest="web1",
    source="alpha",
    destination="beta",
    mode=Mode.LIVE,
    outcome=Outcome.MIGRATED,
    exit_code=0,
    wall_s=2.123456,
    connect_s=1.0,
    plan_s=0.25,
    problem=None,
    findings=(WARNING,),
    report=REPORT,
)

GOLDEN = """{
 "job": "web1-1",
 "guest": "web1",
 "source": "alpha",
 "destination": "beta",
 "mode": "live",
 "transport": "direct",
 "plaintext": true,
 "tunnel": null, "reached": null, "network": [],
 "outcome": "migrated",
 "exit": 0,
 "wall_s": 2.1235,
 "blackout_ms": 25.0,
 "blackout_error_ms": 0.12,
 "clock_stepped": false,
 "outage": null,
 "qemu": {"total_ms": 600, "setup_ms": 1, "downtime_ms": 21, "passes": 3,
          "transferred_bytes": 70000000, "mbps": 940.5},
 "link": null,
 "costs": {"pause_ms": 1.0, "qemu_ms": 20.0, "go_ms": 2.0},
 "phases": [
  {"name": "connect", "start_s": 0.0, "duration_s": 1.0},
  {"name": "preflight", "start_s": 1.0, "duration_s": 0.25},
  {"name": "prepare", "start_s": 1.25, "duration_s": 0.1},
  {"name": "copy", "start_s": 1.35, "duration_s": 0.5},
  {"name": "switchover", "start_s": 1.85, "duration_s": 0.02},
  {"name": "finish", "start_s": 1.87, "duration_s": 0.08}
 ],
 "announced": {"interface": "br0", "sent": ["garp 192.0.2.7"], "first_ms": 0.4,
  "addresses": [{"mac": "52:54:00:00:00:01", "address": "192.0.2.7", "origin": "seen"}],
  "note": null},
 "findings": [{"rule": "qemu-older", "severity": "warning", "host": "beta", "message": "older",
               "fix": "update it"}],
 "guest_events": ["was reset: guest-reset"],
 "still_enabled": null,
 "leftovers": ["beta: tap t0"],
 "faults": [],
 "profile": null,
 "error": null
}"""


def test_a_move_is_told_as_the_contract_says() -> None:
    golden = json.loads(GOLDEN)
    told = document(RESULT)
    assert json.loads(json.dumps(told)) == golden
    assert list(told) == list(golden)
    assert SCHEMA == "qmigrate.result/1"


def test_what_was_never_heard_is_null_and_never_zero() -> None:
    told = document(
        replace(RESULT, report=None, job=None, source=None, outcome=Outcome.UNKNOWN, exit_code=7)
    )
    for key in ("job", "source", "blackout_ms", "blackout_error_ms", "clock_stepped", "announced"):
        assert told[key] is None, key
    assert set(told["qemu"].values()) == {None}
    assert set(told["costs"].values()) == {None}
    assert [phase["name"] for phase in told["phases"]] == ["connect", "preflight"]


def test_a_relay_is_told_with_its_figures_and_not_as_plain_text() -> None:
    link = LinkFigures(1000, 400, 0, reconnects=1, stalls=2, stalled_s=1.5, level=1)
    moved = replace(RESULT, transport=Transport.RELAY_ZSTD, report=replace(REPORT, link=link))
    told = document(moved)
    assert (told["transport"], told["plaintext"]) == ("relay+zstd", False)
    assert told["link"] == {
        "payload_bytes": 1000,
        "wire_bytes": 400,
        "unsent_bytes": 0,
        "reconnects": 1,
        "stalls": 2,
        "stalled_s": 1.5,
        "level": 1,
        "ratio": 0.4,
    }


def test_an_error_is_told_with_all_that_a_reader_needs() -> None:
    problem = Problem("rolled-back", "it failed", "copy", "beta", "no memory", "free some")
    told = document(replace(RESULT, problem=problem))["error"]
    assert told == {
        "code": "rolled-back",
        "phase": "copy",
        "host": "beta",
        "what": "it failed",
        "last_words": "no memory",
        "next_step": "free some",
    }


@pytest.mark.parametrize(
    ("change", "blackout_ms"),
    [
        ({}, 25.0),
        ({"stop_us": None}, None),
        ({"resume_us": None}, None),
        ({"clock_offset_us": None}, None),
        ({"outcome": Outcome.ROLLED_BACK}, None),
    ],
)
def test_a_blackout_is_told_only_where_both_ends_and_the_clocks_are_known(
    change: dict[str, object], blackout_ms: float | None
) -> None:
    report = replace(REPORT, **change)  # type: ignore[arg-type]
    assert replace(RESULT, report=report).blackout_ms == blackout_ms


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), []),
        ((("record back", 0.3), ("record restored", 0.4)), [("prepare", 0.3), ("finish", 0.1)]),
        (
            (("migrate", 0.1), ("record back", 0.3), ("record restored", 0.4)),
            [("prepare", 0.1), ("copy", 0.2), ("finish", 0.1)],
        ),
        (
            (
                ("migrate", 0.1),
                ("pre-switchover", 0.5),
                ("record back", 0.6),
                ("record ended", 0.9),
            ),
            [("prepare", 0.1), ("copy", 0.4), ("switchover", 0.1), ("finish", 0.3)],
        ),
        ((("migrate", 0.1), ("pre-switchover", 0.5)), [("prepare", 0.1), ("copy", 0.4)]),
    ],
)
def test_a_job_that_turned_back_has_phases_too(
    marks: tuple[tuple[str, float], ...], expected: list[tuple[str, float]]
) -> None:
    report = replace(REPORT, marks=tuple(Mark(*mark) for mark in marks))
    found = phases(replace(RESULT, report=report))[2:]
    assert [(phase.name, phase.duration_s) for phase in found] == expected
    starts = [phase.start_s for phase in found]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("outcome", "problem", "incomplete", "code"),
    [
        (Outcome.MIGRATED, None, False, 0),
        (Outcome.MIGRATED, None, True, 8),
        (Outcome.ROLLED_BACK, None, False, 5),
        (Outcome.CANCELLED, None, False, 6),
        (Outcome.GUEST_ENDED, None, False, 9),
        (Outcome.UNKNOWN, None, False, 7),
        (Outcome.DETACHED, None, False, 7),
        (Outcome.REFUSED, None, False, 3),
        (Outcome.REFUSED, Problem("blocked", "x"), False, 3),
        (Outcome.REFUSED, Problem("usage", "x"), False, 2),
        (Outcome.REFUSED, Problem("unreachable", "x"), False, 4),
        (Outcome.REFUSED, Problem("monitor-busy", "x"), False, 4),
        (Outcome.REFUSED, Problem("a-code-of-tomorrow", "x"), False, 1),
    ],
)
def test_each_outcome_has_its_exit_code(
    outcome: Outcome,
    problem: Problem | None,
    incomplete: bool,
    code: int,
) -> None:
    assert exit_code(outcome, problem, incomplete=incomplete) == code


def test_every_outcome_has_a_code() -> None:
    assert {exit_code(outcome, None) for outcome in Outcome} == {0, 3, 5, 6, 7, 9}
