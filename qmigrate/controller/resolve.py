"""Finds out who runs a guest, and does the one safe thing about it, if there is one.

::

    gather ──► core.resolving.decide ──► acts ──► gather ──► … until there is nothing to be done
    all hosts   evidence → verdict       by the agents, under their locks; the first refused ends it

Nothing is remembered between two rounds but what was tried: it may be run again, and by two at
once.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import trio

from qmigrate.agent.requests import (
    PointJob,
    RekeyJob,
    Removals,
    RemoveBelongings,
    ReviveJob,
    TellJob,
    WatchJob,
)
from qmigrate.controller.carry import carry
from qmigrate.controller.gathering import Gathering
from qmigrate.controller.keys import make_keys
from qmigrate.controller.remote import Agent
from qmigrate.core.belongings import Verdict as Serves
from qmigrate.core.copies import ForgetJob, QuitCopy, RunCopy
from qmigrate.core.errors import HostError, QmigrateError, UsageError
from qmigrate.core.handover import Destination, Source
from qmigrate.core.job import JobNote, JobReport
from qmigrate.core.model import Address, Side
from qmigrate.core.resolving import Tried, Verdict, contradiction, decide
from qmigrate.core.resolving_acts import (
    Act,
    Carry,
    Clean,
    EndCopy,
    Ends,
    Forget,
    ReturnGuest,
    Revive,
    Tell,
)
from qmigrate.core.testimony import Evidence, JobSeen, Vouched, jobs_of

REVIVE_DEADLINE_S = 120.0  # a holder is given its time to answer, then an agent is started
REMOVAL_DEADLINE_S = 600.0  # each thing is looked at twice
MEET_DEADLINE_S = 60.0  # for two agents to have said to each other what there is to say
NEWS_DEADLINE_S = 20.0  # for a source's agent to come to its next word
UNKNOWN_PATIENCE_S = 15.0  # after an agent said that it cannot know: links come back in seconds
SETTLE_DEADLINE_S = 60.0  # for what was set going to come to its end
SETTLE_PAUSE_S = 1.0  # before a destination alone is asked again: nobody tells how it goes on
ROUNDS = 40  # of asking, acting and waiting; each act is done once
_BEFORE_THE_END = (Source.PREPARED, Source.COPYING)  # a move under way is not waited for


@dataclass(frozen=True, slots=True)
class Acted:
    """One thing that was done, and what it came to."""

    act: Act
    came_to: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What was found, what was done about it, and what is so now."""

    found: Evidence
    meant: Verdict
    acted: tuple[Acted, ...]
    evidence: Evidence
    verdict: Verdict


@dataclass(slots=True)
class Resolving:
    """One `resolve` of one guest."""

    gathering: Gathering
    vouched: Vouched
    say: Callable[[str], None]  # to people, before something is done
    _acted: list[Acted] = field(default_factory=list)

    async def run(self, *, dry_run: bool = False) -> Resolved:
        """Ask, act and ask again; raises `UsageError` if what is vouched for cannot be so."""
        first: tuple[Evidence, Verdict] | None = None
        until_s = trio.current_time() + SETTLE_DEADLINE_S
        for _ in range(ROUNDS):
            evidence = await self.gathering.gather()
            # What this very run has set right may speak against it afterwards.
            if not self._acted and (why := contradiction(evidence, self.vouched)):
                raise UsageError(why, next_step=f"qmigrate resolve {evidence.guest}")
            settling = trio.current_time() < until_s
            verdict = decide(evidence, self.vouched, self._tried(settling=settling))
            first = first or (evidence, verdict)
            if dry_run:
                break
            if verdict.acts:
                await self._do(verdict.acts)
                until_s = trio.current_time() + SETTLE_DEADLINE_S
                continue
            waits = verdict.ends is Ends.GOES_ON and (self._acted or _is_ending(evidence, verdict))
            if not waits or not settling:
                break
            await self._await_news(evidence, verdict)
        found, meant = first or (evidence, verdict)
        return Resolved(found, meant, tuple(self._acted), evidence, verdict)

    def _tried(self, *, settling: bool) -> Tried:
        """Return what was done so far; `settling`: it may yet show."""
        done = frozenset(acted.act for acted in self._acted)
        refused = frozenset(acted.act for acted in self._acted if acted.problem)
        return Tried(done, done - refused if settling else frozenset())

    async def _do(self, acts: Sequence[Act]) -> None:
        """Carry acts out in order; the first that is refused ends it."""
        for act in acts:
            self.say(str(act))
            try:
                self._acted.append(Acted(act, await self._carry_out(act)))
            except QmigrateError as exc:
                self.say(f"  {exc}")
                self._acted.append(Acted(act, None, str(exc)))
                break

    async def _carry_out(self, act: Act) -> str:
        """Return what came of it; raises `QmigrateError` if it was refused."""
        match act:
            case Revive():
                return await self._revive(act)
            case Carry():
                ends = self._agent(act.source), self._agent(act.destination)
                return await self._meet(act.job, *ends)
            case Tell():
                request = TellJob(act.job, act.word)
                return str((await self._agent(act.host).call(request)).text)
            case ReturnGuest():
                return await self._ask(act.host, RunCopy(act.pid, act.start_ticks))
            case EndCopy():
                return await self._ask(act.host, QuitCopy(act.pid, act.start_ticks, act.vouched))
            case Forget():
                return await self._ask(act.host, ForgetJob(act.job))
            case Clean():
                return await self._clean(act.host)

    def _agent(self, host: str) -> Agent:
        return self.gathering.agent(host)

    async def _ask(self, host: str, request: RunCopy | QuitCopy | ForgetJob) -> str:
        done = await self._agent(host).call(request, deadline_s=REVIVE_DEADLINE_S)
        return str(done.text)

    # Agents

    async def _revive(self, act: Revive) -> str:
        """Start what is dead, with keys that both sides get, and let the two find each other."""
        keys = await make_keys(act.job)
        identities = {Side.SOURCE: keys.source, Side.DESTINATION: keys.destination}
        listens: dict[Side, tuple[Address, ...]] = {}
        agents = {side: self._agent(host) for side, host in act.dead}
        for side, agent in agents.items():
            request = ReviveJob(act.job, identities[side], listens.get(side.other, ()))
            started = await agent.call(request, deadline_s=REVIVE_DEADLINE_S)
            listens[side] = started.addresses
        if act.living is not None:
            side, host = act.living
            agents[side] = self._agent(host)
            rekey = RekeyJob(act.job, identities[side], listens.get(side.other, ()))
            listens[side] = (await agents[side].call(rekey)).addresses
        if len(agents) < 2:
            return "it works again"
        first = act.dead[0][0]
        with suppress(HostError):  # it may have come to its end meanwhile
            await agents[first].call(PointJob(act.job, listens[first.other]))
        return await self._meet(act.job, agents[Side.SOURCE], agents[Side.DESTINATION])

    async def _meet(self, job: str, source: Agent, destination: Agent) -> str:
        """Let two agents hear each other, by our hands if need be; return how that ended."""
        came_to = f"they have not come to an end within {MEET_DEADLINE_S:g} s"
        with trio.move_on_after(MEET_DEADLINE_S):
            async with trio.open_nursery() as nursery:

                async def bring() -> None:
                    with suppress(QmigrateError):  # a side is over, which the other will say
                        await carry(source, destination, job)

                nursery.start_soon(bring)
                came_to = await _follow(source, job)
                nursery.cancel_scope.cancel()
        return came_to

    async def _await_news(self, evidence: Evidence, verdict: Verdict) -> None:
        """Wait until a job that goes on by itself may have come further."""
        job = _job(evidence, verdict)
        if job is not None and job.source.live and job.source.host is not None:
            with trio.move_on_after(NEWS_DEADLINE_S):
                await _follow(self._agent(job.source.host), job.job)
                return
        await trio.sleep(SETTLE_PAUSE_S)

    # Leftovers

    async def _clean(self, host: str) -> str:
        """Remove what is left of the guest's jobs there; raise `HostError` if some of it stays."""
        evidence = await self.gathering.gather()
        seen = evidence.host(host)
        things = [t for t in (seen.left if seen else ()) if t.verdict is Serves.REMOVABLE]
        request = RemoveBelongings(tuple(things), self.gathering.peers.get(host, ()))
        agent = self._agent(host)
        done: Removals = await agent.call(request, deadline_s=REMOVAL_DEADLINE_S)
        stays = [f"{r.thing.kind} {r.thing.name}: {r.why}" for r in done.removals if not r.removed]
        if stays:
            raise HostError("; ".join(stays), host=host, next_step=f"qmigrate cleanup {host}")
        return ", ".join(f"{r.thing.kind} {r.thing.name}" for r in done.removals) or "nothing"


async def _follow(source: Agent, job: str) -> str:
    """Return how a job ended, as its source tells, or that it cannot know for now."""
    unknown: str | None = None
    with trio.CancelScope() as patience:
        try:
            async with aclosing(source.stream(WatchJob(job))) as notes:
                async for note in notes:
                    if isinstance(note, JobReport):
                        return f"the job ended: {note.outcome}"
                    if isinstance(note, JobNote) and note.unknown and unknown is None:
                        unknown = note.unknown.what
                        patience.deadline = trio.current_time() + UNKNOWN_PATIENCE_S
        except QmigrateError as exc:
            return str(exc)
    return unknown or "the job's agent has gone"


def _job(evidence: Evidence, verdict: Verdict) -> JobSeen | None:
    return next((job for job in jobs_of(evidence) if job.job == verdict.job), None)


def _is_ending(evidence: Evidence, verdict: Verdict) -> bool:
    """Say whether a job is so far that its end is worth to be waited for."""
    job = _job(evidence, verdict)
    if job is None:  # its journal went while we asked
        return True
    if job.source.live:
        return job.source.state not in _BEFORE_THE_END
    return job.destination.live and job.destination.state != Destination.PREPARED
