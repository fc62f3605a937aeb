"""``qmigrate check``: whether a guest can move, and all that stands in its way, at once."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.migrate import add_move, wish_of

NAME = "check"
HELP = "say whether a guest can move, and all that stands in its way"
EXAMPLES = """\
qmigrate check web1 beta
qmigrate check web1 beta --json | jq '.findings[].rule'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_move(parser)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Gather facts and judge; exit code 3 if a move would be refused."""
    wish = wish_of(context, args)

    import trio

    from qmigrate.cli.moving import MoveView, show_check
    from qmigrate.cli.progress import open_progress
    from qmigrate.controller.migrate import Move, Reins
    from qmigrate.controller.plan import Plan

    with open_progress(context.out) as progress:
        view = MoveView(context.out, progress)
        try:
            plan = await Move(wish, view, Reins(trio.Event(), trio.Event())).run(plan_only=True)
        finally:
            view.ended()
    if not isinstance(plan, Plan):
        raise TypeError("a plan was asked for")
    return show_check(context.out, plan)
