"""The program as a process: what a start costs, and how it bears signals and broken streams."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HEAVY = {"trio", "paramiko", "rich", "cattrs", "cryptography", "asyncio", "qemu"}
ENV = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}


def qmigrate(*words: str) -> list[str]:
    return [sys.executable, "-m", "qmigrate", *words]


@pytest.mark.parametrize(
    ("words", "also_light"),
    [
        (["--help"], {"tomllib", "shtab", "importlib.metadata", "logging"}),
        (["list", "--help"], {"tomllib", "shtab", "importlib.metadata", "logging"}),
        (["completion", "bash"], {"tomllib", "email"}),
        (["completion", "zsh"], {"tomllib", "email"}),
        (["completion", "fish"], {"tomllib", "email"}),
        (["hosts", "--names"], {"shtab", "importlib.metadata", "logging"}),
        (["lst"], {"tomllib", "shtab", "importlib.metadata", "logging"}),
    ],
    ids=" ".join,
)
def test_what_a_shell_waits_for_imports_nothing_heavy(
    words: Sequence[str], also_light: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qmigrate", *words],
        capture_output=True, text=True, check=False, env=ENV,
    )  # fmt: skip
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", done.stderr, re.M))
    assert "qmigrate.cli.main" in imported  # the pattern finds something
    heavy = {name for name in imported if name.partition(".")[0] in HEAVY or name in also_light}
    assert not heavy


def test_a_reader_that_leaves_is_no_noise() -> None:
    for words in (["completion", "bash"], ["list", "--help"], ["hosts", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            qmigrate(*words), stdout=writing, stderr=subprocess.PIPE, check=False, env=ENV
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b"")


def test_closed_streams_are_no_defect() -> None:
    script = f"exec {sys.executable} -m qmigrate hosts --json >&- 2>&- <&-"
    assert subprocess.run(["/bin/sh", "-c", script], check=False, env=ENV).returncode == 0


def test_a_full_disk_is_not_a_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            qmigrate("completion", "bash"), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 8
    assert done.stderr == b"error: standard output could not be written: No space left on device\n"


def test_no_color_and_a_pipe_mean_no_escapes() -> None:
    done = subprocess.run(qmigrate("lst"), capture_output=True, check=False, env=ENV)
    assert done.stderr.startswith(b"error: no command 'lst'")


HANG = """
import sys
from pathlib import Path
import trio
from qmigrate.cli import main

class Hang:
    NAME, HELP, EXAMPLES = "hang", "wait for a signal", "qmigrate hang"
    @staticmethod
    def add_arguments(parser): parser.add_argument("--stubborn", action="store_true")
    @staticmethod
    async def run(context, args):
        try:
            context.out.lines(["ready"])
            await trio.sleep_forever()
        finally:
            context.out.lines(["cleaning"])
            with trio.CancelScope(shield=True):
                if args.stubborn: await trio.sleep_forever()
                await trio.sleep(0)
            context.out.lines(["clean"])

main.COMMANDS = (*main.COMMANDS, Hang)
sys.exit(main.main(sys.argv[1:]))
"""


# A suite that was started in the background has it ignored, and so would what it starts.
HEED_SIGNALS = """
import signal
for _signum in (signal.SIGINT, signal.SIGHUP):
    signal.signal(_signum, signal.SIG_DFL)
"""


def hang(*words: str, preexec: str = HEED_SIGNALS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", preexec + HANG, "hang", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_command_clean_up(signum: signal.Signals) -> None:
    with hang() as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + signum, "cleaning\nclean\n", "")


def test_a_second_signal_ends_a_clean_up_that_hangs() -> None:
    with hang("--stubborn") as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # nohup
    with hang(preexec=ignore) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_errors_as_json_are_one_line_in_a_pipe() -> None:
    done = subprocess.run(qmigrate("list", "--json", "--zzz"), capture_output=True, check=False)
    assert done.stdout.count(b"\n") == 1
    assert json.loads(done.stdout)["schema"] == "qmigrate.error/1"
