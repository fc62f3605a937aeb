"""``qmigrate watch``: come back to a job that was left to itself, or learn how it ended."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, agents_of, telling

NAME = "watch"
HELP = "follow a move that is under way, or learn how it ended"
EXAMPLES = """\
qmigrate watch web1-3fa9c2@alpha
qmigrate watch web1-3fa9c2 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Follow the job at its source; the exit code is what `migrate` would have ended with."""
    from contextlib import aclosing

    from qmigrate.agent.requests import WatchJob
    from qmigrate.cli.moving import MoveView, show_report
    from qmigrate.cli.progress import open_progress
    from qmigrate.core.errors import HostError, QmigrateError
    from qmigrate.core.job import JobNote, JobReport

    problem: QmigrateError | None = None
    async with agents_of(context, args) as (job, agents):
        for agent in agents:
            report: JobReport | None = None
            with open_progress(context.out) as progress:
                view = MoveView(context.out, progress)
                try:
                    async with aclosing(agent.stream(WatchJob(job))) as notes:
                        async for note in notes:
                            if isinstance(note, JobReport):
                                report = note
                            elif isinstance(note, JobNote):
                                view.note(note)
                except QmigrateError as exc:
                    problem = telling(problem, exc)
            if report is not None:
                return show_report(context.out, report)
    raise problem or HostError(f"no host knows job {job}")
