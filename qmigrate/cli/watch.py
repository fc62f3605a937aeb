"""``qmigrate watch``: come back to a job that was left to itself, or learn how it ended."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, known_of

NAME = "watch"
HELP = "follow a move that is under way, or learn how it ended"
EXAMPLES = """\
qmigrate watch web1                     the guest's move, wherever it is known
qmigrate watch web1@alpha
qmigrate watch web1-3fa9c2@alpha        by the job's id
qmigrate watch web1-3fa9c2 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser, or_guest=True)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Follow the job at its source; the exit code is what `migrate` would have ended with.

    Ctrl-C leaves the job alone: 7, with the line to come back with.
    """
    from qmigrate.cli.following import follow

    async with known_of(context, args) as (job, places):
        return await follow(context, job, places)
