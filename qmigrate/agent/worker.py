"""A job's own agent: reads what it is told, opens the journal, is one side to the end."""

import gc
import os

import trio

from qmigrate.agent import locks
from qmigrate.agent.destination import DestinationAgent
from qmigrate.agent.door import Door
from qmigrate.agent.guardian import KEEP_JOURNAL, OVER, Inherited, leave
from qmigrate.agent.job import JobAgent
from qmigrate.agent.jobs import lock_key
from qmigrate.agent.journal import Journal
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.requests import (
    AskJob,
    AwaitReady,
    BringFrame,
    CancelJob,
    CarryLink,
    Done,
    JobStarted,
    JobState,
    PointJob,
    RekeyJob,
    SetJob,
    TellJob,
    WatchJob,
)
from qmigrate.agent.server import AgentContext, Handler
from qmigrate.agent.source import SourceAgent
from qmigrate.agent.specs import add_told, read_told
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
        door = Door(inherited.door, _handlers(agent, again=again))
        async with trio.open_nursery() as nursery:

            async def let_go() -> None:
                """Leave the guest to other jobs, while this one still has something to say."""
                with trio.move_on_after(FLUSH_S):
                    await door.wait_alone()
                door.close()
                locks.remove(lock_key(spec), os.dup(inherited.lock))
                places.remove()

            def keep_told(spec: JobSpec) -> None:
                add_told(inherited.spec, spec)

            agent.let_go = let_go
            agent.keep_told = keep_told
            nursery.start_soon(door.serve)
            await agent.run(again=again)
            with trio.move_on_after(FLUSH_S):
                await door.wait_alone()
            nursery.cancel_scope.cancel()
    # The guardian does the same at its turn, if it lives.
    leave(spec.job, lock_key(spec), os.dup(inherited.lock), keep_journal=agent.unheard)
    return KEEP_JOURNAL if agent.unheard else OVER


def _handlers(agent: JobAgent, *, again: bool) -> dict[type, Handler]:
    async def await_ready(_ctx: AgentContext, _request: AwaitReady) -> JobStarted:
        await agent.ready.wait()
        if agent.problem is not None and not again:  # else it is why there was one before
            raise QmigrateError.of(agent.problem)
        if agent.endpoint is None:
            raise HostError("the job's agent listens nowhere")
        return JobStarted(agent.endpoint.addresses)

    async def point(_ctx: AgentContext, request: PointJob) -> Done:
        await agent.ready.wait()  # and the journal with it
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

    async def state(_ctx: AgentContext, _request: AskJob) -> JobState:
        return JobState(str(agent.state), agent.linking.direct is not None, agent.problem)

    async def tell(_ctx: AgentContext, request: TellJob) -> Done:
        await agent.ready.wait()
        return Done(await agent.hear_word(request.word))

    async def carry(ctx: AgentContext, _request: CarryLink) -> Done:
        return Done(await agent.linking.carry(ctx.note))

    async def bring(_ctx: AgentContext, request: BringFrame) -> Done:
        agent.linking.bring(request.frame)
        return Done()

    async def rekey(_ctx: AgentContext, request: RekeyJob) -> JobStarted:
        await agent.ready.wait()
        return JobStarted(agent.rekey(request.identity, request.peer).addresses)

    return {
        AskJob: state,
        TellJob: tell,
        CarryLink: carry,
        BringFrame: bring,
        RekeyJob: rekey,
        AwaitReady: await_ready,
        PointJob: point,
        WatchJob: watch,
        SetJob: change,
        CancelJob: cancel,
    }
