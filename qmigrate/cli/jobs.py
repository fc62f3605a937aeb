"""What commands about one job have in common: which job, on which host."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qmigrate.cli.context import Context

if TYPE_CHECKING:
    from qmigrate.controller.remote import Agent


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
    """Yield the job's id and the agents of the hosts that may know it; raises `HostError`."""
    from qmigrate.controller.remote import Agent, open_agents

    job, _, host = args.job.partition("@")
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
