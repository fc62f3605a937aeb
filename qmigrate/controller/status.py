"""What of ours is on several hosts: jobs joined from both sides, leftovers counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from qmigrate.agent.requests import JobList, ListBelongings, ListJobs
from qmigrate.controller.survey import Answered, Asked, Opener, ask_each
from qmigrate.core.belongings import Belongings, Thing, judge, leftovers
from qmigrate.core.holdings import EndedJob
from qmigrate.core.joining import HostJobs, JobRow, join, peers_say
from qmigrate.core.model import HostSpec

ENDED = 10  # of the newest that have ended, a host


@dataclass(frozen=True, slots=True)
class HostSaid:
    """What one host knows of its jobs, and what of ours lies there."""

    jobs: JobList
    belongings: Belongings


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host: what is left there, or why it does not answer."""

    answer: Answered[HostSaid]
    left: tuple[Thing, ...]  # what serves nobody, and what is to be resolved first

    @property
    def ended(self) -> tuple[EndedJob, ...]:
        """The jobs that ended there lately, the newest first."""
        return self.answer.value.jobs.ended if self.answer.value else ()


@dataclass(frozen=True, slots=True)
class Status:
    """All that several hosts said, joined."""

    hosts: tuple[HostStatus, ...]
    jobs: tuple[JobRow, ...]


async def status(hosts: Sequence[HostSpec], open_agent: Opener) -> Status:
    """Ask every host side by side; a host that fails hides no other."""
    return joined(await ask_each(hosts, open_agent, ask_status))


async def ask_status(agent: Asked) -> HostSaid:
    """Ask one host for its jobs, live ones where they stand, and for all else of ours."""
    jobs: JobList = await agent.call(ListJobs(ENDED))
    belongings: Belongings = await agent.call(ListBelongings())
    return HostSaid(jobs, belongings)


def joined(answers: Sequence[Answered[HostSaid]]) -> Status:
    """Return what all hosts said as one."""
    known = [host_jobs(a.host, a.value.jobs) for a in answers if a.value]
    silent = [a.host.name for a in answers if a.problem]
    return Status(tuple(_host(a, known) for a in answers), join(known, silent))


def host_jobs(host: HostSpec, jobs: JobList) -> HostJobs:
    """Return a host's jobs under all its names."""
    return HostJobs(host.name, jobs.jobs, names_of(host))


def names_of(host: HostSpec) -> tuple[str, ...]:
    """Return what else a host may have been called on another command line."""
    plain = (host.ssh or "").rpartition("@")[2]
    return tuple(filter(None, dict.fromkeys((host.ssh, plain))))


def _host(answer: Answered[HostSaid], known: Sequence[HostJobs]) -> HostStatus:
    if answer.value is None:
        return HostStatus(answer, ())
    others = [jobs for jobs in known if jobs.host != answer.host.name]
    here = answer.value.belongings
    return HostStatus(answer, leftovers(judge(here, peers_say(here.jobs, others))))
