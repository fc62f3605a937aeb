"""Finds what of ours serves nobody on one host, and has the agent there remove it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qmigrate.agent.requests import JobList, ListBelongings, ListJobs, Removals, RemoveBelongings
from qmigrate.controller.remote import Agent, open_agent
from qmigrate.controller.status import host_jobs
from qmigrate.controller.survey import Asked, ask_each
from qmigrate.core.belongings import (
    Belongings,
    LogWish,
    PeerSays,
    Thing,
    Verdict,
    judge,
    leftovers,
)
from qmigrate.core.joining import peers_say
from qmigrate.core.model import HostSpec

REMOVAL_DEADLINE_S = 600.0  # for all of it: each thing is looked at twice, some ms a guest


@dataclass(slots=True)
class Cleanup:
    """One host's clean-up: look, then remove what may go."""

    agent: Agent
    logs: LogWish
    others: Sequence[HostSpec] = ()  # who may know the other sides of the jobs there
    peer: HostSpec | None = None  # as a person said
    things: tuple[Thing, ...] = ()
    problems: tuple[str, ...] = ()
    _peers: tuple[PeerSays, ...] = field(default=())

    async def look(self) -> tuple[Thing, ...]:
        """Return what serves nobody there; ask other hosts only where a job's end hangs on them."""
        here: Belongings = await self.agent.call(ListBelongings(logs=True))
        if any(not job.worked_at for job in here.jobs):
            self._peers = await self._ask_peers(here)
        self.problems = here.problems
        self.things = leftovers(judge(here, self._peers, self.logs))
        return self.things

    @property
    def removable(self) -> tuple[Thing, ...]:
        """What may go."""
        return tuple(t for t in self.things if t.verdict is Verdict.REMOVABLE)

    async def remove(self) -> Removals:
        """Remove what may go; what has come to serve somebody meanwhile stays, and says why."""
        request = RemoveBelongings(self.removable, self._peers, self.logs)
        done: Removals = await self.agent.call(request, deadline_s=REMOVAL_DEADLINE_S)
        return done

    async def _ask_peers(self, here: Belongings) -> tuple[PeerSays, ...]:
        hosts = {host.name: host for host in (*self.others, *filter(None, (self.peer,)))}
        hosts.pop(self.agent.host, None)

        async def jobs(agent: Asked) -> JobList:
            answer: JobList = await agent.call(ListJobs())
            return answer

        answers = await ask_each(tuple(hosts.values()), open_agent, jobs)
        known = [host_jobs(a.host, a.value) for a in answers if a.value]
        return peers_say(here.jobs, known, self.peer.name if self.peer else None)
