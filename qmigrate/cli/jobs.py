"""What commands about one job have in common: which job, on which host."""

import argparse
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qmigrate.cli.context import Context
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.controller.remote import Agent
    from qmigrate.core.errors import QmigrateError

JOB_ID = re.compile(r"[A-Za-z0-9-]+-[0-9a-f]{6}")  # as `new_job_id` makes them


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a job."""
    from qmigrate.cli.parser import complete_with

    parser.add_argument("job", metavar="JOB[@HOST]", help="the job's id, and where to ask")
    host = parser.add_argument("--on", metavar="HOST", help="where to ask, as JOB@HOST")
    complete_with(host, "host")


@asynccontextmanager
async def agents_of(
    context: Context, args: argparse.Namespace
) -> AsyncIterator[tuple[str, tuple["Agent", ...]]]:
    """Yield the job's id and the agents of the hosts that may know it.

    Raises `UsageError` for what cannot be an id, as a guest's name, and `HostError`.
    """
    from qmigrate.controller.remote import Agent, open_agents

    job, _, host = args.job.partition("@")
    if not JOB_ID.fullmatch(job):
        raise UsageError(
            f"{job!r} is not a job's id: that is as web1-3fa9c2",
            next_step="`qmigrate list` names the job of a guest that is moving; the ids of jobs "
            "that ended are the directories in /var/log/qmigrate on their hosts",
        )
    inventory = context.inventory()
    named = args.on or host
    hosts = (inventory.host(named),) if named else inventory.select(())
    async with open_agents(hosts) as opened:
        agents = tuple(agent for agent in opened if isinstance(agent, Agent))
        if not agents:
            for error in opened:
                if not isinstance(error, Agent):
                    raise error
        yield job, agents


def telling(problem: "QmigrateError | None", other: "QmigrateError") -> "QmigrateError":
    """Return the error that tells more: that one host does not know the job tells nothing."""
    from qmigrate.core.errors import NoSuchJobError

    return other if problem is None or isinstance(problem, NoSuchJobError) else problem
