"""A job's own agent: reads what it is told, opens the journal, is one side to the end."""

import gc
import os

import trio

from qmigrate.agent import locks
from qmigrate.agent.destination import DestinationAgent
from qmigrate.agent.door import Door
from qmigrate.agent.guardian import KEEP_JOURNAL, OVER, Inherited
from qmigrate.agent.job import JobAgent
from qmigrate.agent.jobs import lock_key
from qmigrate.agent.journal import Journal
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.requests import (
    AwaitReady,
    CancelJob,
    Done,
    JobStarted,
    PointJob,
    SetJob,
    WatchJob,
)
from qmigrate.agent.server import AgentContext, Handler
from qmigrate.agent.source import SourceAgent
from qmigrate.agent.specs import read_told
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.job import JobReport, JobSpec, Limits
from qmigrate.core.model import Side
from qmigrate.qmp.client import QmpThread

FLUSH_S = 1.0  # after the end, for watchers to read the report


def main(words: list[str]) -> int:
    """Be the job's agent: `words` are the job's id, the descriptors, and "again" for a takeover."""
    job, again = words[0], words[-1] == "again"
    inherited = Inherited.parse(words[1:4])
    spec = read_told(inherited.spec)
    places = JobPlaces(job)
    # A collection in the middle of the switchover would be part of the guest's blackout.
    gc.collect()
    gc.freeze()
    gc.disable()
    return trio.run(_work, spec, places, inherited, again)


async def _work(spec: JobSpec, places: JobPlaces, inherited: Inherited, again: bool) -> int:
    try:
        journal = Journal.open(places.journal) if again else Journal.create(places.journal)
    except FileNotFoundError:
        return OVER  # the agent before this one had let go of everything
    again = journal.entry is not None  # an agent that died before its first record did nothing
    with journal, QmpThread() as thread:
        kind = SourceAgent if spec.side is Side.SOURCE else DestinationAgent
        agent: JobAgent = kind(spec, places, journal, thread)
        if again:
            agent.spare()
        door = Door(inherited.door, _handlers(agent))
        async with trio.open_nursery() as nursery:

            async def let_go() -> None:
                """Leave the guest to other jobs, while this one still has something to say."""
                with trio.move_on_after(FLUSH_S):
                    await door.wait_alone()
                door.close()
                locks.remove(lock_key(spec), os.dup(inherited.lock))
                places.remove()

            agent.let_go = let_go
            nursery.start_soon(door.serve)
            await agent.run(again=again)
            with trio.move_on_after(FLUSH_S):
                await door.wait_alone()
            nursery.cancel_scope.cancel()
        return KEEP_JOURNAL if agent.unheard else OVER


def _handlers(agent: JobAgent) -> dict[type, Handler]:
    async def await_ready(_ctx: AgentContext, _request: AwaitReady) -> JobStarted:
        await agent.ready.wait()
        if agent.problem is not None:
            raise QmigrateError.of(agent.problem)
        if agent.endpoint is None:
            raise HostError("the job's agent listens nowhere")
        return JobStarted(agent.endpoint.addresses)

    async def point(_ctx: AgentContext, request: PointJob) -> Done:
        agent.point(request.addresses)
        return Done()

    async def watch(ctx: AgentContext, _request: WatchJob) -> JobReport:
        report = await agent.watch(ctx.note)
        if report is None:
            raise HostError("the job's agent ended without a report")
        return report

    async def change(_ctx: AgentContext, request: SetJob) -> Limits:
        if not isinstance(agent, SourceAgent):
            raise HostError("limits are the source's to change")
        return await agent.pace.change(request)

    async def cancel(_ctx: AgentContext, _request: CancelJob) -> Done:
        if isinstance(agent, SourceAgent):
            agent.cancel()
        elif isinstance(agent, DestinationAgent) and agent.link is None:
            agent.abandon()
        else:
            raise HostError("a job is cancelled at its source")
        return Done(f"asked in state {agent.state}")

    return {
        AwaitReady: await_ready,
        PointJob: point,
        WatchJob: watch,
        SetJob: change,
        CancelJob: cancel,
    }
