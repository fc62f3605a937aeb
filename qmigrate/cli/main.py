"""The command ``qmigrate``: which commands there are, and how one run of it ends.

Exit codes: DESIGN §6 and `core.errors`. Nothing heavy is imported before a command is known.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from qmigrate.cli import completion, hosts
from qmigrate.cli import list as list_command
from qmigrate.cli.context import INTERRUPTED, Context, Interrupts
from qmigrate.cli.failure import Verdict, is_interrupt, judge
from qmigrate.cli.parser import Command, parse
from qmigrate.cli.render import Output, silence
from qmigrate.core.errors import IncompleteError

COMMANDS: tuple[Command, ...] = (list_command, hosts, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only --debug lets a traceback out."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test's StringIO
            # A guest's name must not end the program on a terminal that cannot show it.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = _options_in(words)
    out = Output(json="--json" in options, color="--no-color" not in options)
    try:
        code = _run(words, out)
        return code or (IncompleteError.exit_code if out.failed else 0)
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
    from qmigrate.cli import supervise

    supervise.configure_logging(verbose=context.verbose, debug=context.debug)
    return supervise.run(outcome, context.interrupts)


def context_of(args: argparse.Namespace, out: Output) -> Context:
    """Return the common options of a parsed command line."""
    return Context(
        out=out,
        config=getattr(args, "config", None),
        ssh_config=getattr(args, "ssh_config", None),
        verbose=getattr(args, "verbose", 0),
        debug=getattr(args, "debug", False),
        interrupts=Interrupts(),
    )


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
