"""Asks several hosts what they know of one guest: jobs, copies, leftovers, traces."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from qmigrate.agent.requests import JobList, ListBelongings, ListJobs
from qmigrate.controller.remote import Agent
from qmigrate.controller.status import names_of
from qmigrate.core.belongings import Belongings, Kind, PeerSays, Thing, judge, leftovers, tag_of
from qmigrate.core.copies import CopiesHere, FindCopies, LookAtTraces, Traces
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.finding import name_in_id
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.job import Announced
from qmigrate.core.joining import HostJobs, peers_say
from qmigrate.core.model import HostSpec
from qmigrate.core.testimony import Evidence, HostSeen

ENDED = 50  # jobs a host among which those of the guest are looked for
ASK_DEADLINE_S = 90.0  # for what a host tells: each of its QEMUs has a deadline of its own

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one host has told, before it is put beside the others'."""

    host: HostSpec
    jobs: JobList
    belongings: Belongings
    copies: CopiesHere
    guest: str

    @property
    def of_guest(self) -> tuple[JobOnHost, ...]:
        """The guest's jobs."""
        return tuple(job for job in self.jobs.jobs if _means(self.guest, job))

    @property
    def tags(self) -> set[str]:
        """What the guest's things may be marked by, as far as is known here."""
        tags = {tag_of(job) for job in self.of_guest} | {self.guest}
        return tags | {tag for copy in self.copies.copies for tag in (copy.uuid, copy.name) if tag}

    def left(self, peers: tuple[PeerSays, ...], tags: set[str]) -> tuple[Thing, ...]:
        """Return what serves nobody and was made for the guest or by its jobs."""
        ids = {job.job for job in self.of_guest}
        ids |= {bare.job for bare in self.belongings.bare if bare.guest == self.guest}
        return tuple(
            thing
            for thing in leftovers(judge(self.belongings, peers))
            if thing.job in ids or (thing.tag in tags and thing.kind is not Kind.LOG)
        )


def _means(word: str, job: JobOnHost) -> bool:
    return word in (job.job, job.guest) or word.lower() == (job.uuid or "").lower()


@dataclass(slots=True)
class Gathering:
    """Hosts that can be asked, as often as wanted; one that is lost is silent from then on."""

    wanted: str  # the guest's name or uuid, or a job's id
    hosts: Sequence[HostSpec]
    agents: Sequence[Agent | HostError]  # of those hosts, in order
    source: str | None = None  # as a person named the two
    destination: str | None = None
    addresses: tuple[str, ...] = ()  # as the inventory says
    peers: dict[str, tuple[PeerSays, ...]] = field(default_factory=dict)  # as last heard, by host
    _lost: dict[str, str] = field(default_factory=dict)

    def agent(self, host: str) -> Agent:
        """Return the agent of a host; raise `HostError` if it is silent."""
        for spec, agent in zip(self.hosts, self.agents, strict=True):
            if spec.name == host and isinstance(agent, Agent) and host not in self._lost:
                return agent
        raise HostError(f"{host} cannot be asked", host=host)

    async def gather(self) -> Evidence:
        """Ask every host for its part, then for the traces of what all of them have."""
        jobs = await self._each(lambda agent: agent.call(ListJobs(ENDED)))
        guest = self._guest(jobs)
        parts = await self._each(lambda agent: self._part(agent, jobs[agent.host], guest))
        known = [HostJobs(p.host.name, p.jobs.jobs, names_of(p.host)) for p in parts.values()]
        tags = {tag for part in parts.values() for tag in part.tags}
        hosts: list[HostSeen] = []
        for spec, agent in zip(self.hosts, self.agents, strict=True):
            part = parts.get(spec.name)
            twin = self._same_machine(spec.name)
            if twin is not None:  # it was named twice: what is there is not there twice
                hosts = [_also(h, spec) if h.host == twin else h for h in hosts]
                continue
            if part is None:
                problem = self._lost.get(spec.name) or str(agent)
                hosts.append(HostSeen(spec.name, names_of(spec), problem=problem))
                continue
            others = [jobs for jobs in known if jobs.host != spec.name]
            self.peers[spec.name] = peers_say(part.jobs.jobs, others)
            hosts.append(_seen(part, part.left(self.peers[spec.name], tags)))
        seen = Evidence(guest, tuple(hosts), self.source, self.destination)
        return await self._with_traces(seen, tuple(parts.values()))

    def _same_machine(self, host: str) -> str | None:
        """Return the name under which the same machine was asked before, if it was."""
        before: dict[tuple[str, str], str] = {}
        for agent in self.agents:
            if isinstance(agent, Agent) and agent.host not in self._lost:
                key = agent.hello.boot_id, agent.hello.hostname
                if agent.host == host:
                    return before.get(key)
                before.setdefault(key, agent.host)
        return None

    def _guest(self, jobs: dict[str, JobList]) -> str:
        """Return the guest's name, if what is wanted is a job's id or a uuid."""
        known = (job for each in jobs.values() for job in each.jobs)
        return next((job.guest for job in known if _means(self.wanted, job)), self.wanted)

    async def _part(self, agent: Agent, jobs: JobList, guest: str) -> _Part:
        belongings = await agent.call(ListBelongings(), deadline_s=ASK_DEADLINE_S)
        ids = tuple(job.job for job in jobs.jobs if _means(guest, job))
        copies = await agent.call(FindCopies(guest, ids), deadline_s=ASK_DEADLINE_S)
        spec = next(spec for spec in self.hosts if spec.name == agent.host)
        return _Part(spec, jobs, belongings, copies, guest)

    async def _with_traces(self, seen: Evidence, parts: Sequence[_Part]) -> Evidence:
        copies = [copy for part in parts for copy in part.copies.copies]
        images = dict.fromkeys(d for p in parts for job in p.of_guest for d in job.disks)
        images |= dict.fromkeys(d for copy in copies for d in copy.disks if d.startswith("/"))
        bridges = tuple(dict.fromkeys(bridge for copy in copies for bridge in copy.bridges))
        told = [address for part in parts for address in part.copies.addresses]
        macs = [mac for copy in copies for mac in copy.macs]
        told += [Announced(macs[0], address, "inventory") for address in self.addresses if macs]
        addresses = tuple({each.address: each for each in told}.values())
        if not images and not (addresses and bridges):
            return seen
        request = LookAtTraces(tuple(images), addresses, bridges)
        traces = await self._each(lambda agent: agent.call(request, deadline_s=ASK_DEADLINE_S))
        return replace(seen, hosts=tuple(_with(host, traces.get(host.host)) for host in seen.hosts))

    async def _each(self, question: Callable[[Agent], Awaitable[T]]) -> dict[str, T]:
        """Ask the hosts side by side; return their answers by name."""
        found: dict[str, T] = {}

        async def ask(agent: Agent) -> None:
            try:
                found[agent.host] = await question(agent)
            except QmigrateError as exc:
                self._lost[agent.host] = str(exc)

        async with trio.open_nursery() as nursery:
            for agent in self.agents:
                if isinstance(agent, Agent) and agent.host not in self._lost:
                    nursery.start_soon(ask, agent)
        return found


def _seen(part: _Part, left: tuple[Thing, ...]) -> HostSeen:
    begins = name_in_id(part.guest)
    ids = {job.job for job in part.of_guest}
    return HostSeen(
        part.host.name,
        names_of(part.host),
        boot_id=part.jobs.boot_id,
        jobs=part.of_guest,
        bare=part.belongings.bare,
        ended=tuple(
            e for e in part.jobs.ended if e.job in ids or e.job.rpartition("-")[0] == begins
        ),
        copies=part.copies.copies,
        left=left,
        problems=part.belongings.problems,
    )


def _also(host: HostSeen, spec: HostSpec) -> HostSeen:
    return replace(host, also=(*host.also, spec.name, *names_of(spec)))


def _with(host: HostSeen, traces: Traces | None) -> HostSeen:
    if traces is None:
        return host
    return replace(host, images=traces.images, answers=traces.answers)
