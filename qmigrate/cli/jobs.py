"""What commands about one job have in common: which job, on which host."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmigrate.cli.context import Context
from qmigrate.cli.render import printable
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.controller.remote import Agent
    from qmigrate.core.errors import QmigrateError
    from qmigrate.core.finding import HostKnows
    from qmigrate.core.holdings import JobOnHost

ENDED = 50  # jobs a host among which the last one of a guest is looked for


def add_job(parser: argparse.ArgumentParser, *, or_guest: bool = False) -> None:
    """Add the argument that names a job; `or_guest`: a guest's name means its job as well."""
    from qmigrate.cli.parser import complete_with

    if or_guest:
        words = "the job's id, or the guest whose job is meant; and where to ask"
        job = parser.add_argument("job", metavar="JOB|GUEST[@HOST]", help=words)
        complete_with(job, "guest")
    else:
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
    from qmigrate.core.finding import JOB_ID

    job, _, host = args.job.partition("@")
    if not JOB_ID.fullmatch(job):
        raise UsageError(
            f"{job!r} is not a job's id: that is as web1-3fa9c2",
            next_step="`qmigrate list` names the job of a guest that is moving; the ids of jobs "
            "that ended are the directories in /var/log/qmigrate on their hosts",
        )
    async with _agents(context, args.on or host) as (agents, _):
        yield job, agents


@asynccontextmanager
async def _agents(
    context: Context, named: str
) -> AsyncIterator[tuple[tuple["Agent", ...], tuple["QmigrateError", ...]]]:
    """Yield the agents of the host that was named, or of all; raise if there is none."""
    from qmigrate.controller.remote import Agent, open_agents

    inventory = context.inventory()
    hosts = (inventory.host(named),) if named else inventory.select(())
    async with open_agents(hosts) as opened:
        agents = tuple(agent for agent in opened if isinstance(agent, Agent))
        errors = tuple(error for error in opened if not isinstance(error, Agent))
        if not agents:
            raise errors[0]
        yield agents, errors


@dataclass(frozen=True, slots=True)
class Known:
    """A host that knows a job; `side` None: only how it ended."""

    agent: "Agent"
    side: "JobOnHost | None"


@asynccontextmanager
async def known_of(
    context: Context, args: argparse.Namespace
) -> AsyncIterator[tuple[str, tuple[Known, ...]]]:
    """Yield the job that is meant, and who knows it, the best to ask first.

    A guest's name means its job that is under way, else the last one. Raises `HostError`.
    """
    from qmigrate.core.errors import NoSuchJobError
    from qmigrate.core.finding import find_job

    word, _, host = args.job.partition("@")
    async with _agents(context, args.on or host) as (agents, errors):
        knows = await _ask(agents)
        try:
            job, places = find_job(word, knows)
        except NoSuchJobError:
            if errors:  # who does not answer may know it
                raise errors[0] from None
            raise
        for error in errors:
            context.out.say(printable(f"{error.problem.host}: not asked: {error}"))
        yield job, tuple(Known(agents[place.number], place.side) for place in places)


async def _ask(agents: tuple["Agent", ...]) -> tuple["HostKnows", ...]:
    import trio

    from qmigrate.agent.requests import JobList, ListJobs
    from qmigrate.core.finding import HostKnows

    found: dict[int, HostKnows] = {}

    async def ask(number: int, agent: "Agent") -> None:
        jobs: JobList = await agent.call(ListJobs(ENDED))
        found[number] = HostKnows(number, agent.host, jobs.jobs, jobs.ended)

    async with trio.open_nursery() as nursery:
        for number, agent in enumerate(agents):
            nursery.start_soon(ask, number, agent)
    return tuple(found[number] for number in range(len(agents)))


def telling(problem: "QmigrateError | None", other: "QmigrateError") -> "QmigrateError":
    """Return the error that tells more: that one host does not know the job tells nothing."""
    from qmigrate.core.errors import NoSuchJobError

    return other if problem is None or isinstance(problem, NoSuchJobError) else problem
