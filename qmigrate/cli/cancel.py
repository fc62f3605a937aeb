"""``qmigrate cancel``: ask a move to stop; granted until the handover is being decided."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, agents_of, telling

NAME = "cancel"
HELP = "ask a move to stop; the guest goes on where it was"
EXAMPLES = """\
qmigrate cancel web1-3fa9c2@alpha"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Ask at the source, and say how the job ended; exit code as of `watch`."""
    from qmigrate.agent.requests import CancelJob, WatchJob
    from qmigrate.cli.moving import show_report
    from qmigrate.core.errors import HostError, QmigrateError

    problem: QmigrateError | None = None
    async with agents_of(context, args) as (job, agents):
        for agent in agents:
            try:
                await agent.call(CancelJob(job))
                report = await agent.call(WatchJob(job))
            except QmigrateError as exc:
                problem = telling(problem, exc)
                continue
            return show_report(context.out, report)
    raise problem or HostError(f"no host knows job {job}")
