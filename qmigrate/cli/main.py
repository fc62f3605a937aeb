"""The command ``qmigrate``: which commands there are, and how one run of it ends.

Exit codes: DESIGN §6 and `core.errors`. Nothing heavy is imported before a command is known.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from qmigrate.cli import (
    cancel,
    check,
    cleanup,
    completion,
    hosts,
    lab,
    logs,
    migrate,
    network,
    resolve,
    selftest,
    status,
    watch,
)
from qmigrate.cli import list as list_command
from qmigrate.cli import set as set_command
from qmigrate.cli.context import INTERRUPTED, Context, Interrupts
from qmigrate.cli.failure import Verdict, is_interrupt, judge
from qmigrate.cli.parser import Command, parse
from qmigrate.cli.render import Output, silence
from qmigrate.core.errors import IncompleteError

COMMANDS: tuple[Command, ...] = (
    list_command,
    check,
    migrate,
    status,
    watch,
    set_command,
    cancel,
    resolve,
    cleanup,
    logs,
    hosts,
    network,
    lab,
    selftest,
    completion,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only --debug lets a traceback out."""
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    options = _options_in(words)
    out = Output(json="--json" in options, color="--no-color" not in options)
    try:
        return _run(words, out) or (IncompleteError.exit_code if out.failed else 0)
    except SystemExit as exc:  # --help and --version
        return exc.code if isinstance(exc.code, int) else 0
    except BaseException as exc:
        if is_interrupt(exc):  # before or after trio has listened for it
            return INTERRUPTED
        if not isinstance(exc, Exception | BaseExceptionGroup):
            raise
        if "--debug" in options:
            import traceback

            traceback.print_exception(exc)
        return _tell(judge(exc), out)
    finally:
        _flush(out)


def _run(words: list[str], out: Output) -> int:
    args = parse(COMMANDS, words)
    context = context_of(args, out)
    outcome = args.run(context, args)
    if isinstance(outcome, int):
        return outcome
    try:
        from qmigrate.cli import supervise

        supervise.configure_logging(verbose=context.verbose, debug=context.debug)
        return supervise.run(outcome, context.interrupts)
    finally:
        outcome.close()  # a Ctrl-C may have come before it began; Python warns of that


def context_of(args: argparse.Namespace, out: Output) -> Context:
    """Return the common options of a parsed command line."""
    return Context(
        out=out,
        config=getattr(args, "config", None),
        ssh_config=getattr(args, "ssh_config", None),
        ssh=getattr(args, "ssh", None),
        verbose=getattr(args, "verbose", 0),
        debug=getattr(args, "debug", False),
        interrupts=Interrupts(),
    )


def _prepare_streams() -> None:
    """Give every standard stream something to write to, and no name that could break it."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by the caller (`>&-`): a socket would get its number, and our words.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115
        elif fd and hasattr(stream, "reconfigure"):
            # A terminal that cannot show a guest's name must not end the program.
            stream.reconfigure(errors="backslashreplace")


def _options_in(words: list[str]) -> list[str]:
    """Return what could be an option, for the case that the command line cannot be parsed."""
    return words[: words.index("--")] if "--" in words else words


def _tell(verdict: Verdict, out: Output) -> int:
    out.problems(verdict.problems)
    return verdict.exit_code


def _flush(out: Output) -> None:
    """Write what is left, quietly: a reader that has gone must not cost exit code or peace."""
    for stream in (out.stdout, out.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)
