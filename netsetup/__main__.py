"""The command `netsetup`: what the network is, must be and is told, by hand."""

import argparse
import sys
from collections.abc import Sequence

from netsetup.commands import announce, probe, relay, show, tunnel
from netsetup.errors import NetsetupError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="netsetup", description="Make the network follow a guest that has moved."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (announce, probe, relay, show, tunnel):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 a defect, 2 usage, 4 this host cannot or refuses.

    `probe` returns 3 for not adjacent and 7 for not known as well.
    """
    options = build_parser().parse_args(argv)
    try:
        code: int = options.run(options)
    except NetsetupError as exc:
        return _explain(exc)
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:  # trio's nursery wraps what ends it
        if group.split(KeyboardInterrupt)[1] is None:
            return 130
        ours = _first(group)
        if ours is None:
            raise
        return _explain(ours)
    except BrokenPipeError:
        sys.stderr.close()  # what reads us has gone; say nothing more
        return 0
    return code


def _explain(exc: NetsetupError) -> int:
    print(f"netsetup: {exc}", file=sys.stderr)
    if exc.next_step:
        print(f"  {exc.next_step}", file=sys.stderr)
    return exc.exit_code


def _first(group: BaseExceptionGroup[BaseException]) -> NetsetupError | None:
    """Return the first of a group in which all are ours, None if something else went wrong."""
    if group.split(NetsetupError)[1] is not None:
        return None
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
