"""One command line from words to exit code: help, errors, verdicts, signals' defaults."""

import argparse
import gc
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qmigrate.cli import main as cli
from qmigrate.cli import supervise
from qmigrate.cli.context import Context, Interrupts
from qmigrate.cli.failure import judge
from qmigrate.cli.parser import Command, build, parse
from qmigrate.controller import inventory_text
from qmigrate.core.errors import (
    BlockedError,
    ConfigError,
    GuestEndedError,
    HostKeyError,
    QmigrateError,
    RolledBackError,
    UnknownOutcomeError,
    UsageError,
)


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(inventory_text, "SYSTEM_FILE", tmp_path / "etc.toml")
    for name in ("QMIGRATE_CONFIG", "QMIGRATE_SSH_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True, slots=True)
class Told:
    """A run's exit code and what it has written."""

    code: int
    out: str
    err: str


Run = Callable[..., Told]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *words: Told(cli.main(words), *capsys.readouterr())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Return a function that makes its argument the command ``act``."""

    class Act:
        NAME = "act"
        HELP = "do what a test wants"
        EXAMPLES = "qmigrate act"

        def __init__(self, run: Callable[[Context, argparse.Namespace], Any]) -> None:
            self.run = run

        def add_arguments(self, parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--fast", action="store_true")

    def install(act: Callable[..., Any]) -> None:
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, Act(act)))

    return install


@pytest.mark.parametrize("module", cli.COMMANDS, ids=lambda module: module.NAME)
def test_every_command_helps_with_examples_that_can_be_parsed(run: Run, module: Command) -> None:
    told = run(module.NAME, "--help")
    assert told.code == 0
    assert "examples:\n" in told.out
    assert "common options:\n" in told.out
    for line in module.EXAMPLES.splitlines():
        # From "qmigrate" to a pipe, a redirection, a quote's end or the explanation beside it.
        words = line[line.index("qmigrate ") :].partition("   ")[0].partition(" | ")[0]
        words = words.partition(" >")[0].partition(")")[0]
        args = parse(cli.COMMANDS, words.split()[1:])
        assert args.command == module.NAME


USAGE = {
    "": "the following arguments are required: COMMAND\n  next: `qmigrate --help`",
    "lst": "no command 'lst'\n  next: did you mean `qmigrate list`?",
    "zzz": "no command 'zzz'\n  next: `qmigrate --help` shows",
    "list --nmaes": "no option '--nmaes'\n  next: did you mean `--names`?",
    "list --confg=x": "no option '--confg'\n  next: did you mean `--config`?",
    "list --zzz": "unexpected option '--zzz'\n  next: `qmigrate list --help` shows",
    "hosts alpha": "unexpected argument 'alpha'\n  next: `qmigrate hosts --help` shows",
    "completion fsh": "SHELL: 'fsh' is none of: bash, zsh, fish\n  next: did you mean `fish`?",
    "list --config": "argument --config: expected one argument\n  next: `qmigrate list --help`",
    "hosts --name": "no option '--name'\n  next: did you mean `--names`?",  # no abbreviations
    "list -- -x": "'-x' is not a host: ssh would read it as an option\n",
    "hosts --config /nowhere": "/nowhere: no such file (from --config)\n",
}


@pytest.mark.parametrize(("words", "error"), USAGE.items(), ids=USAGE)
def test_a_wrong_command_line_is_told_with_the_right_one(run: Run, words: str, error: str) -> None:
    told = run(*words.split())
    assert told.code == 2
    assert told.err.startswith("error: " + error)
    assert not told.out


@pytest.mark.parametrize("words", ["--json lst", "lst --json", "--json list --zzz"])
def test_with_json_a_wrong_command_line_is_an_object(run: Run, words: str) -> None:
    told = run(*words.split())
    found = json.loads(told.out)
    assert (told.code, found["exit"], found["schema"]) == (2, 2, "qmigrate.error/1")
    assert found["error"]["code"] == "usage"
    assert not told.err


def test_json_after_two_dashes_is_a_word(run: Run) -> None:
    told = run("lst", "--", "--json")
    assert told.err.startswith("error: no command")


@pytest.mark.parametrize(
    "words",
    [
        "--json --config f --ssh-config s --debug --no-color -v list",
        "list --json --config f --ssh-config s --debug --no-color -v",
        "--json --config f -v list --ssh-config s --debug --no-color",
    ],
)
def test_common_options_stand_before_or_after_the_command(words: str) -> None:
    args = parse(cli.COMMANDS, words.split())
    found = {name: getattr(args, name) for name in vars(args) if name not in ("run", "command")}
    assert found == {
        "json": True,
        "config": "f",
        "ssh_config": "s",
        "debug": True,
        "no_color": True,
        "verbose": 1,
        "hosts": [],
        "names": False,
    }


def test_an_option_before_the_command_is_not_reset_by_the_commands_default() -> None:
    out: Any = None
    context = cli.context_of(parse(cli.COMMANDS, ["--config", "f", "list", "--json"]), out)
    assert (context.config, context.ssh_config, context.verbose) == ("f", None, 0)


def test_no_option_is_without_a_word_of_help() -> None:
    root, by_name = build(cli.COMMANDS)
    bare = [
        f"{parser.prog} {action.dest}"
        for parser in (root, *by_name.values())
        for action in parser._actions
        if not action.help and action.dest not in ("command", "action")  # lists of their own
    ]
    assert not bare


ERRORS: dict[str, tuple[BaseException, int, str]] = {
    "blocked": (BlockedError("no", host="beta"), 3, "error: beta: no\n"),
    "host": (
        HostKeyError("changed", host="b", phase="connect", last_words="x", next_step="look"),
        4,
        "error: connect: b: changed\n  last words:\n    x\n  next: look\n",
    ),
    "rolled back": (RolledBackError("no"), 5, "error: no\n"),
    "unknown": (UnknownOutcomeError("?"), 7, "error: ?\n"),
    "group of one": (
        ExceptionGroup("g", [ExceptionGroup("h", [BlockedError("no")])]),
        3,
        "error: no\n",
    ),
    "group": (
        ExceptionGroup("g", [BlockedError("a"), UnknownOutcomeError("b"), GuestEndedError("c")]),
        7,
        "error: b\nerror: c\nerror: a\n",
    ),
    "system": (OSError(2, "gone"), 1, "error: a defect of ours: FileNotFoundError: [Errno 2] gone"),
    "wordless": (AssertionError(), 1, "error: a defect of ours: AssertionError (test_cli_main.py"),
    "beside a defect": (
        ExceptionGroup("g", [BlockedError("a"), ValueError("x\ny")]),
        1,
        "error: a defect of ours: ValueError: x (",
    ),
    "ctrl-c outside trio": (KeyboardInterrupt(), 130, ""),
    "ctrl-c in a group": (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, ""),
}


@pytest.mark.parametrize(("error", "code", "text"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("kind", ["plain", "trio"])
def test_an_error_has_its_exit_code_and_no_traceback(
    run: Run,
    command: Callable[[Callable[..., Any]], None],
    kind: str,
    error: BaseException,
    code: int,
    text: str,
) -> None:
    def fail(*_: Any) -> int:
        raise error

    async def fail_later(*_: Any) -> int:
        raise error

    command(fail if kind == "plain" else fail_later)
    told = run("act")
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith(text)
    assert bool(told.err) == bool(text)
    assert "Traceback" not in told.err


def test_ctrl_c_before_a_command_has_begun_is_quiet(
    run: Run, command: Callable[[Callable[..., Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(*_: Any) -> int:
        return 0

    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    command(act)
    monkeypatch.setattr(supervise, "run", interrupt)
    assert run("act") == Told(130, "", "")
    gc.collect()  # "coroutine was never awaited" would come from here and fail the test


def test_only_debug_shows_the_traceback(
    run: Run, command: Callable[[Callable[..., Any]], None]
) -> None:
    command(lambda *_: {}["missing"])
    told = run("act", "--debug")
    assert "Traceback (most recent call last)" in told.err
    assert told.code == 1
    assert "report it" in run("act").err


def test_errors_of_a_group_are_all_in_the_json(
    run: Run, command: Callable[[Callable[..., Any]], None]
) -> None:
    async def fail(*_: Any) -> int:
        raise ExceptionGroup("g", [BlockedError("a"), UnknownOutcomeError("b")])

    command(fail)
    found = json.loads(run("act", "--json").out)
    assert (found["exit"], found["error"]["what"]) == (7, "b")
    assert [other["what"] for other in found["also"]] == ["a"]


def test_every_exit_code_of_the_tree_has_a_weight() -> None:
    kinds = [QmigrateError, *QmigrateError._by_code.values()]
    assert {judge(kind("x")).exit_code for kind in kinds} == set(range(1, 10))


def test_a_result_that_cannot_be_written_is_not_a_success(
    run: Run,
    command: Callable[[Callable[..., Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    def act(context: Context, _: argparse.Namespace) -> int:
        context.out.lines(["result"])
        return 0

    command(act)
    monkeypatch.setattr(sys, "stdout", Full())
    told = run("act")
    assert told.code == 8
    assert told.err == "error: standard output could not be written: No space left on device\n"


def test_a_guests_name_cannot_end_the_program_on_a_poor_terminal(
    monkeypatch: pytest.MonkeyPatch, command: Callable[[Callable[..., Any]], None]
) -> None:
    raw = io.BytesIO()

    def act(context: Context, _: argparse.Namespace) -> int:
        context.out.lines(["übel"])
        return 0

    command(act)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["act"]) == 0
    assert raw.getvalue() == b"\\xfcbel\n"


def test_a_handler_of_a_command_gets_the_count_and_the_default_comes_back() -> None:
    interrupts = Interrupts()
    assert not interrupts.deliver(2)
    counts: list[int] = []
    with interrupts.handled_by(counts.append):
        assert interrupts.deliver(2)
        assert interrupts.deliver(15)
    assert (counts, interrupts.last) == ([1, 2], 15)
    assert not interrupts.deliver(2)


@pytest.mark.parametrize("command", ["logs"])
def test_a_guests_name_is_not_taken_for_a_job(run: Run, command: str) -> None:
    told = run(command, "web1@alpha")
    assert told.code == 2
    assert "'web1' is not a job's id" in told.err
    assert "qmigrate list" in told.err


def test_hosts_shows_the_inventory(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[hosts.alpha]\nssh = "root@a"\nport_range = [1, 2]\n[hosts.local]\n')
    told = run("hosts", "--config", str(config))
    assert told.out == (
        "HOST\tSSH\tPYTHON\tSUDO\tMIGRATION ADDRESSES\tPORTS\n"
        "alpha\troot@a\tnewest\tyes\tany\t1-2\n"
        "local\tthis machine\tnewest\tyes\tany\tany\n"
    )
    assert run("hosts", "--names", "--config", str(config)).out == "alpha\nlocal\n"
    found = json.loads(run("hosts", "--json", "--config", str(config)).out)
    assert found["schema"] == "qmigrate.hosts/1"
    assert [host["ssh"] for host in found["hosts"]] == ["root@a", None]


def test_a_garbled_inventory_is_a_configuration_error(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[hosts.alpha\n")
    told = run("list", "--config", str(config))
    assert told.code == ConfigError.exit_code == UsageError.exit_code == 2
    assert told.err.startswith(f"error: {config}:1:13: Expected")
