"""The live progress line on a real (pseudo-)terminal."""

import os
import re
import sys
from pathlib import Path

from tests.support.terminal import on_a_terminal

JOB = """
import sys
from qmigrate.cli.progress import open_progress
from qmigrate.cli.render import Output
from qmigrate.core.model import Progress

fail = "--fail" in sys.argv
with open_progress(Output()) as view:
    job = [("connect", None), ("copy", 10.0), ("copy", 55.0), ("handover", 99.0)]
    for n, (phase, percent) in enumerate(job):
        view.show(Progress(phase, percent, None, None, 9e8, None, n, float(n), "disk [sda]"))
    if fail: raise SystemExit(5)
print("result")
"""
ROOT = Path(__file__).parents[2]


def run(*words: str, term: str = "xterm") -> tuple[int, str]:
    env = {**os.environ, "TERM": term}
    env.pop("NO_COLOR", None)
    argv = [sys.executable, "-c", JOB, *words]
    with on_a_terminal(argv, env=env, cwd=ROOT) as terminal:
        return terminal.wait(), terminal.text


def test_the_line_is_redrawn_and_the_phases_stay() -> None:
    code, text = run()
    assert code == 0
    assert "disk [sda]" in text
    assert re.search(r"\x1b\[\?25l.*\x1b\[\?25h", text, re.S)  # the cursor is hidden and comes back
    # What was written after the line was erased for the last time stands below the phases.
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.rpartition("\x1b[2K")[2]).split() == [
        "result"
    ]
    for phase in ("connect        1.0 s", "copy           2.0 s", "handover        0 ms"):
        assert f"{phase}  disk [sda]\r\n" in text  # and what it began with


def test_the_terminal_is_whole_after_a_failure() -> None:
    code, text = run("--fail")
    assert code == 5
    assert text.rpartition("\x1b[?25l")[2].count("\x1b[?25h") == 1


def test_a_dumb_terminal_gets_plain_lines() -> None:
    code, text = run(term="dumb")
    assert code == 0
    assert "\x1b" not in text
    assert text.count("copy") == 1
