"""The command line as data: one parser value gives parsing, help, completion and the man page."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NoReturn, Protocol

from qmigrate.cli.context import Context
from qmigrate.core.errors import UsageError

Run = Callable[[Context, argparse.Namespace], "int | Coroutine[Any, Any, int]"]


class Command(Protocol):
    """What a module of this package has if it is a command; importing it must cost nothing.

    `run` is a plain function only where trio's import time would be felt at every TAB.
    """

    @property
    def NAME(self) -> str: ...  # noqa: D102 - a module's constants are upper case
    @property
    def HELP(self) -> str: ...  # noqa: D102
    @property
    def EXAMPLES(self) -> str: ...  # noqa: D102
    @property
    def add_arguments(self) -> Callable[[argparse.ArgumentParser], None]: ...  # noqa: D102
    @property
    def run(self) -> Run: ...  # noqa: D102


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of printing and exiting: main decides how an error is shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False  # an abbreviation breaks scripts when an option is added
        kwargs["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise; a word that is nearly right gets a suggestion.

        argparse hands over a sentence only. Where a later Python words it otherwise, the user sees
        that sentence and loses nothing but the suggestion.
        """
        help_line = f"{self.prog} --help"
        wrong = re.fullmatch(r"argument ([^:]+): invalid choice: '(.*?)' \(.*\)", message, re.S)
        if wrong and (known := self._choices(wrong[1])):
            kind = "command" if wrong[1] == "COMMAND" else "value"
            close = difflib.get_close_matches(wrong[2], known, n=1)
            say = f"{self.prog} {close[0]}" if close and kind == "command" else None
            what = f"no {kind} {wrong[2]!r}"
            if kind == "value":
                what = f"{wrong[1]}: {wrong[2]!r} is none of: {', '.join(known)}"
                say = close[0] if close else None
            hint = f"did you mean `{say}`?" if say else f"`{help_line}` shows what there is"
            raise UsageError(what, next_step=hint)
        raise UsageError(message, next_step=f"`{help_line}` shows what there is")

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise the error for words that no argument took, with the option that was meant."""
        for word in words:
            option = word.partition("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.7)
            if word.startswith("-") and close:
                raise UsageError(f"no option {option!r}", next_step=f"did you mean `{close[0]}`?")
        noun = "option" if words[0].startswith("-") else "argument"
        self.error(f"unexpected {noun} {words[0]!r}")

    def _choices(self, name: str) -> list[str]:
        for action in self._actions:
            if name in (action.metavar, action.dest, "/".join(action.option_strings)):
                return [str(choice) for choice in action.choices or ()]
        return []


class _Version(argparse.Action):
    """Reads the installed version only when asked: importlib.metadata is 25 ms."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"qmigrate {version('qmigrate')}\n")
        parser.exit()


def common_options() -> Parser:
    """Return the options that stand before or after the command alike.

    Every default is SUPPRESS: a subparser's default would overwrite what the root has parsed.
    """
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("common options")
    group.add_argument("--json", action="store_true", help="one JSON object instead of text")
    config = group.add_argument("--config", metavar="FILE", help="inventory to read")
    ssh = group.add_argument("--ssh-config", metavar="FILE", help="ssh configuration, as ssh -F")
    group.add_argument(
        "--ssh",
        choices=("auto", "paramiko", "openssh"),
        help="who speaks SSH; openssh: your own ssh, with its tokens, certificates and masters",
    )
    group.add_argument("-v", "--verbose", action="count", help="tell more; -vv even more")
    group.add_argument("--debug", action="store_true", help="tracebacks and the libraries' logs")
    group.add_argument("--no-color", action="store_true", help="no colour, as NO_COLOR=1")
    for option in (config, ssh):
        complete_with(option, "file")
    return common


def complete_with(action: argparse.Action, kind: str) -> None:
    """Let the shells complete an argument with "guest", "host" or "file" names."""
    action.complete = COMPLETERS[kind]  # type: ignore[attr-defined]


# What shtab reads from an action; the functions are in `completion.PREAMBLES`.
COMPLETERS = {
    "file": {
        "bash": "_shtab_compgen_files",
        "zsh": "_files",
        "fish": "(__fish_complete_path (commandline -ct))",
    },
    "host": {
        "bash": "_qmigrate_hosts",
        "zsh": "_qmigrate_hosts",
        "fish": "(_qmigrate_hosts)",
    },
    "guest": {
        "bash": "_qmigrate_guests",
        "zsh": "_qmigrate_guests",
        "fish": "(_qmigrate_guests)",
    },
}


def build(commands: Iterable[Command]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the whole command line, and each command's own by name."""
    common = common_options()
    root = Parser(
        prog="qmigrate",
        description="Move a running virtual machine between plain QEMU hosts, over SSH.",
        epilog="examples:\n"
        "  qmigrate list root@alpha root@beta      every guest on two hosts\n"
        "  qmigrate COMMAND --help                 what a command can do, with examples\n",
        parents=[common],
    )
    root.add_argument("--version", action=_Version, help="show the version and exit")
    subs = root.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=Parser
    )
    by_name: dict[str, Parser] = {}
    for command in commands:
        parser = subs.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            epilog="examples:\n" + "".join(f"  {x}\n" for x in command.EXAMPLES.splitlines()),
            parents=[common],
        )
        command.add_arguments(parser)
        parser.set_defaults(run=command.run)
        by_name[command.NAME] = parser
    return root, by_name


def parse(commands: Iterable[Command], words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; raises `UsageError`, or SystemExit after --help."""
    root, by_name = build(commands)
    args, unknown = root.parse_known_args(words)
    if unknown:
        by_name[args.command].refuse_unknown(unknown)
    return args
