"""The command `netsetup`: what the network is, must be and is told, by hand."""

import argparse
import sys
from collections.abc import Sequence

from netsetup.commands import announce, show
from netsetup.errors import NetsetupError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="netsetup", description="Make the network follow a guest that has moved."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (announce, show):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 a defect, 2 usage, 4 this host cannot or refuses."""
    options = build_parser().parse_args(argv)
    try:
        code: int = options.run(options)
    except NetsetupError as exc:
        print(f"netsetup: {exc}", file=sys.stderr)
        if exc.next_step:
            print(f"  {exc.next_step}", file=sys.stderr)
        return exc.exit_code
    except (KeyboardInterrupt, BaseExceptionGroup) as exc:  # trio's nursery wraps it
        if isinstance(exc, BaseExceptionGroup) and exc.split(KeyboardInterrupt)[1] is not None:
            raise
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # what reads us has gone; say nothing more
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
