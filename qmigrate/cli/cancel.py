"""``qmigrate cancel``: ask a move to stop; granted until the handover is being decided."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, known_of, telling

NAME = "cancel"
HELP = "ask a move to stop; the guest goes on where it was"
EXAMPLES = """\
qmigrate cancel web1                    the guest's move, wherever it is known
qmigrate cancel web1-3fa9c2@alpha"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser, or_guest=True)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Ask at the source, and say how the job ended; exit code as of `watch`.

    From migrate-continue on the wish comes too late, and how it was decided is said; so is it of a
    job that had ended before.
    """
    from qmigrate.agent.requests import CancelJob
    from qmigrate.cli.following import follow
    from qmigrate.core.errors import QmigrateError
    from qmigrate.core.model import Side

    problem: QmigrateError | None = None
    async with known_of(context, args) as (job, places):
        live = [place for place in places if place.side and place.side.worked_at]
        for place in live:
            try:
                await place.agent.call(CancelJob(job))
            except QmigrateError as exc:
                problem = telling(problem, exc)
                continue
            problem = None
            break
        source = any(place.side and place.side.side is Side.SOURCE for place in live)
        if problem is not None and not source:
            raise problem
        return await follow(context, job, places, until_unknown=True)
