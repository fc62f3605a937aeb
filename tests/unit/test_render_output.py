"""Tables, errors and documents: the same data for a person, a pipe and a program."""

import errno
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.cli.render import (
    NARROWEST,
    Output,
    Table,
    column_widths,
    fitted,
    printable,
    problem_lines,
    tab_separated,
)
from qmigrate.core.errors import Problem
from qmigrate.core.quantities import human_bytes, human_rate, human_seconds, parse_rate

TABLE = Table(
    ("GUEST", "MEMORY", "DISKS"),
    (
        ("web1", "2 GiB", "/var/lib/images/web1.qcow2"),
        ("[red]db[/red]\t\x1b[2J", None, "/dev/[sda]"),
    ),
    right=("MEMORY",),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_tabs_and_every_letter() -> None:
    assert tab_separated(TABLE) == (
        "GUEST\tMEMORY\tDISKS\n"
        "web1\t2 GiB\t/var/lib/images/web1.qcow2\n"
        "[red]db[/red]\\t\\x1b[2J\t-\t/dev/[sda]\n"
    )


WIDE = """\
GUEST                   MEMORY  DISKS
web1                     2 GiB  /var/lib/images/web1.qcow2
[red]db[/red]\\t\\x1b[2J       -  /dev/[sda]
日本語                       -  -
"""
NARROW = """\
GUEST                MEMORY  DISKS
web1                  2 GiB  /var/lib/images/we…
[red]db[/red]\\t\\x1…       -  /dev/[sda]
日本語                    -  -
"""
TINY = """\
GUEST   MEMORY  DISKS
web1     2 GiB  /var/…
[red]…       -  /dev/…
日本語       -  -
"""  # too narrow for anything: lines wrap, no column disappears


@pytest.mark.parametrize(("width", "golden"), [(80, WIDE), (48, NARROW), (3, TINY)])
def test_a_terminal_gets_columns_that_fit_and_no_markup(width: int, golden: str) -> None:
    table = replace(TABLE, rows=(*TABLE.rows, ("日本語", None, None)))
    assert fitted(table, width=width, color=False) == golden
    assert fitted(table, width=width, color=True).startswith("\x1b[1mGUEST")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=15), st.integers(-50, 300))
def test_only_wide_columns_give_way_and_no_further_than_needed(
    natural: list[int], available: int
) -> None:
    widths = column_widths(natural, available)
    assert all(w == n or NARROWEST <= w < n for w, n in zip(widths, natural, strict=True))
    assert sum(widths) == sum(natural) or sum(widths) >= available
    assert sum(widths) <= available or max(widths) <= NARROWEST or widths == natural
    cut = [w for w, n in zip(widths, natural, strict=True) if w < n]
    assert all(w <= min(cut) + 1 for w in widths if cut)


@pytest.mark.parametrize(
    ("stream", "term", "tabs"),
    [(Terminal(), "xterm", False), (Terminal(), "dumb", True), (io.StringIO(), "xterm", True)],
)
def test_only_a_real_terminal_gets_a_fitted_table(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, tabs: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    Output(stdout=stream).table(TABLE)
    assert ("\t" in stream.getvalue()) is tabs


@pytest.mark.parametrize(
    ("problem", "lines"),
    [
        (Problem("x", "it is wrong"), ["it is wrong"]),
        (Problem("x", "no answer", host="beta"), ["beta: no answer"]),
        (
            Problem(
                "x", "the copy\nfailed", "copy", "beta", "qemu: a\nqemu: \x1b[31mb", "do\nthis"
            ),
            [
                "copy: beta: the copy",
                "  failed",
                "  last words:",
                "    qemu: a",
                "    qemu: \\x1b[31mb",
                "  next: do",
                "        this",
            ],
        ),
        (Problem("silent", ""), ["silent"]),
    ],
    ids=["bare", "host", "all", "wordless"],
)
def test_an_error_tells_phase_host_cause_last_words_and_next_step(
    problem: Problem, lines: list[str]
) -> None:
    assert problem_lines(problem) == lines


def test_an_error_as_json_is_one_object_on_stdout() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    out = Output(json=True, stdout=stdout, stderr=stderr)
    out.problems([(Problem("monitor-lost", "gone", "copy", "beta", "bye", "look"), 4)])
    assert json.loads(stdout.getvalue()) == {
        "schema": "qmigrate.error/1",
        "exit": 4,
        "error": {
            "code": "monitor-lost",
            "what": "gone",
            "phase": "copy",
            "host": "beta",
            "last_words": "bye",
            "next_step": "look",
        },
    }
    assert stdout.getvalue().count("\n") == 1
    assert not stderr.getvalue()


@pytest.mark.parametrize(
    ("variable", "color", "escapes"),
    [("", True, True), ("", False, False), ("1", True, False)],
)
def test_colour_is_for_terminals_of_people_who_did_not_refuse_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, color: bool, escapes: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", variable)
    stderr = Terminal()
    Output(color=color, stderr=stderr).problem(Problem("x", "wrong"))
    assert ("\x1b" in stderr.getvalue()) is escapes


class Broken(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_reader_that_has_left_is_no_error() -> None:
    stderr = io.StringIO()
    out = Output(stdout=Broken(BrokenPipeError()), stderr=stderr)
    out.lines(["a"])
    assert not out.failed
    assert not stderr.getvalue()


def test_a_full_disk_is_said_and_remembered() -> None:
    stderr = io.StringIO()
    out = Output(stdout=Broken(OSError(errno.ENOSPC, "No space left")), stderr=stderr)
    out.lines(["a"])
    assert out.failed
    assert stderr.getvalue() == "error: standard output could not be written: No space left\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü", "plain ü"), ("a\nb\t\x07", "a\\nb\\t\\x07"), ("\u202eevil", "\\u202eevil")],
)
def test_control_characters_lose_their_power(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 * 2**20, "64 MiB"),
        (1_234_567_890, "1.15 GiB"),
        (123.4 * 2**20, "123 MiB"),
        (12.34 * 2**20, "12.3 MiB"),
        (999.6 * 2**20, "0.98 GiB"),
        (2**60, "1024 PiB"),
    ],
)
def test_sizes_have_three_digits_and_a_binary_unit(size: float, text: str) -> None:
    assert human_bytes(size) == text
    assert human_rate(size) == text + "/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("800Mbit", 100_000_000),
        ("1.5 Gbit/s", 187_500_000),
        ("60MiB/s", 60 * 2**20),
        ("8kbit", 1000),
        ("10B", 10),
    ],
)
def test_rates_are_read_with_their_unit(text: str, rate_bps: int) -> None:
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize("text", ["", "800", "-1Mbit", "1Mb", "1e3B", "0bit", "1 bit", "٣Mbit"])
def test_a_rate_that_could_mean_two_things_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate|less than one byte"):
        parse_rate(text)
