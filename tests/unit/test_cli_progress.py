"""Views of a job on its way, against golden text."""

import io
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qmigrate.cli.moving import MoveView
from qmigrate.cli.progress import (
    JsonView,
    LineView,
    ProgressView,
    Ratchet,
    TtyView,
    line,
    open_progress,
    tty_line,
)
from qmigrate.cli.render import Output
from qmigrate.core.model import Progress


def progress(phase: str = "copy", elapsed_s: float = 0.0, **known: Any) -> Progress:
    nothing = dict.fromkeys(Progress.__dataclass_fields__)
    return Progress(**{**nothing, "phase": phase, "elapsed_s": elapsed_s, **known})


FULL = progress(
    elapsed_s=7.25,
    percent=43.4,
    transferred_bytes=3 * 2**30,
    remaining_bytes=1_234_567_890,
    rate_bps=912 * 2**20,
    dirty_rate_bps=40 * 2**20,
    passes=3,
    text="reading /dev/[sda]\x1b[2J",
)

JOB = (
    progress("connect", 0.0),
    progress("copy", 0.4, percent=0.0),
    progress("copy", 3.0, percent=20.0),  # within the interval: no line
    progress("copy", 5.5, percent=40.0),
    progress("copy", 6.0, percent=30.0, text="limit raised to 40 ms"),  # news; 30 is a step back
    progress("switchover", 6.1, percent=99.6),
    progress("handover", 66.0, percent=100.0),
)


def test_a_full_event_as_a_plain_line() -> None:
    assert line(FULL) == (
        "   7.2 s  copy         43 %  912 MiB/s  dirty 40 MiB/s  pass 3  1.15 GiB left  "
        "reading /dev/[sda]\\x1b[2J  3 GiB sent"
    )


def test_a_log_gets_a_line_on_news_and_every_five_seconds() -> None:
    stderr = io.StringIO()
    view = LineView(Output(stderr=stderr))
    for event in JOB:
        view.show(event)
    assert stderr.getvalue() == (
        "    0 ms  connect\n"
        "  400 ms  copy         0 %\n"
        "   5.5 s  copy         40 %\n"
        "   6.0 s  copy         40 %  limit raised to 40 ms\n"
        "   6.1 s  switchover   100 %\n"
        "    1:06  handover     100 %\n"
    )


def test_a_program_gets_every_event_with_null_for_what_is_not_known() -> None:
    stderr = io.StringIO()
    view = JsonView(Output(json=True, stderr=stderr))
    for event in JOB:
        view.show(event)
    events = [json.loads(text) for text in stderr.getvalue().splitlines()]
    assert [event["percent"] for event in events] == [None, 0, 20, 40, 40, 99.6, 100]
    assert events[0] == {
        "schema": "qmigrate.progress/1",
        "phase": "connect",
        "percent": None,
        "transferred_bytes": None,
        "remaining_bytes": None,
        "rate_bps": None,
        "dirty_rate_bps": None,
        "passes": None,
        "elapsed_s": 0.0,
        "text": None,
        "link": None,
    }


def drawn(picture: Any, width: int) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, no_color=True, width=width, _environ={})
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


@pytest.mark.parametrize(
    ("event", "width", "golden"),
    [
        (
            FULL,
            120,
            (
                "copy           7.2 s ━━━━━━━━╸             43 % "
                "912 MiB/s  dirty 40 MiB/s  pass 3  1.15 GiB left  reading /dev/[sda]\\x1…"
            ),
        ),
        (
            FULL,
            80,
            "copy           7.2 s ━━━━━━━━╸             43 % 912 MiB/s  dirty 40 MiB/s  pass…",
        ),
    ],
    ids=["wide", "narrow"],
)
def test_a_terminal_gets_one_line_cut_to_its_width(
    event: Progress, width: int, golden: str
) -> None:
    text = drawn(tty_line(event), width)
    plain = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert plain.rstrip("\n").rstrip() == golden
    assert text.count("\n") == 1


def test_a_phase_that_has_ended_stays_above_with_its_duration() -> None:
    drawn_lines: list[Any] = []
    kept: list[str] = []
    view = TtyView(drawn_lines.append, kept.append)
    for event in JOB:
        view.show(event)
    view.end_phase()
    assert len(drawn_lines) == len(JOB)
    assert kept == [
        "connect       400 ms",
        "copy           5.7 s",
        "switchover    59.9 s",
        "handover        0 ms",
    ]


def test_a_job_that_begins_here_counts_on_where_the_command_was() -> None:
    stderr = io.StringIO()
    out = Output(stderr=stderr)
    view = MoveView(out, JsonView(out))
    view.progress(progress("prepare", 0.5, text="job web1-3fa9c2"))
    view.started("web1-3fa9c2")
    view._began_s -= 2.0  # so long ago
    view.progress(progress("copy", 0.25))
    view.progress(progress("copy", 1.25))
    view.warn("the guest writes faster than it is copied")
    shown = [json.loads(text)["elapsed_s"] for text in stderr.getvalue().splitlines()]
    assert shown == [0.5, pytest.approx(2.0, abs=0.2), pytest.approx(3.0, abs=0.2)]


def test_a_job_of_another_command_counts_by_its_own_clock() -> None:
    stderr = io.StringIO()
    out = Output(stderr=stderr)
    view = MoveView(out, LineView(out))
    view.progress(progress("copy", 7.0))
    view.warn("limit raised to 40 ms\x1b[2J")
    assert stderr.getvalue() == "   7.0 s  copy\nlimit raised to 40 ms\\x1b[2J\n"


@given(st.lists(st.none() | st.floats(-10, 200)))
def test_a_percentage_never_goes_back_and_stays_a_percentage(said: list[float | None]) -> None:
    ratchet = Ratchet()
    shown = [ratchet.hold(progress(percent=percent)).percent for percent in said]
    known = [percent for percent in shown if percent is not None]
    assert all(0 <= percent <= 100 for percent in known)
    assert all(before <= after for before, after in pairwise(known))
    assert None not in shown[len(shown) - len(known) :]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("json_wanted", "stream", "term", "kind"),
    [
        (False, Terminal, "xterm", TtyView),
        (False, Terminal, "dumb", LineView),
        (False, io.StringIO, "xterm", LineView),
        (True, Terminal, "xterm", JsonView),
    ],
)
def test_the_view_suits_the_stream(
    monkeypatch: pytest.MonkeyPatch,
    json_wanted: bool,
    stream: Callable[[], io.StringIO],
    term: str,
    kind: type[ProgressView],
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # bends rich's own idea of a terminal
    with open_progress(Output(json=json_wanted, stderr=stream())) as view:
        assert isinstance(view, kind)


@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_terminal_that_goes_away_does_not_stop_the_job(
    monkeypatch: pytest.MonkeyPatch, json_wanted: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with open_progress(Output(json=json_wanted, stderr=Gone())) as view:
        for event in JOB:
            view.show(event)
