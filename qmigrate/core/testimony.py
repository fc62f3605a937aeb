"""What `resolve` has been told about a guest, host by host; and the same, seen job by job. Pure.

An `End` is one side of a job as it stands now: who works at it, what its journal says, whether its
QEMU is there. It is made of what the hosts answered, and of what they did not: a host that is
silent is not one that knows nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qmigrate.core.belongings import BareJob, Thing
from qmigrate.core.copies import AnswerSeen, CopySeen, ImageSeen
from qmigrate.core.finding import name_in_id
from qmigrate.core.handover import Destination, Record, Source
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import Outcome
from qmigrate.core.model import RunState, Side

NEVER_RAN = frozenset((RunState.PRELAUNCH, RunState.INMIGRATE))


@dataclass(frozen=True, slots=True)
class HostSeen:
    """What one host said; `problem` if it did not."""

    host: str
    also: tuple[str, ...] = ()  # other names of it
    problem: str | None = None
    boot_id: str | None = None
    jobs: tuple[JobOnHost, ...] = ()  # of the guest
    bare: tuple[BareJob, ...] = ()  # whose journal says nothing
    ended: tuple[EndedJob, ...] = ()
    copies: tuple[CopySeen, ...] = ()
    images: tuple[ImageSeen, ...] = ()
    answers: tuple[AnswerSeen, ...] = ()
    left: tuple[Thing, ...] = ()  # of ours and of this guest, and serving nobody
    problems: tuple[str, ...] = ()  # what could not be looked at

    @property
    def names(self) -> frozenset[str]:
        """All that it is called."""
        return frozenset((self.host, *self.also))

    @property
    def silent(self) -> bool:
        """Whether it could not be asked."""
        return self.problem is not None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a guest."""

    guest: str
    hosts: tuple[HostSeen, ...]
    source: str | None = None  # as a person named the two
    destination: str | None = None

    def host(self, name: str | None) -> HostSeen | None:
        """Return the host of that name, if it was asked."""
        return next((h for h in self.hosts if name in h.names), None)


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a person answers for."""

    dead: frozenset[str] = field(default=frozenset())  # hosts that have lost their power
    resume_source: bool = False  # old memory on disks that may be newer is wanted all the same


@dataclass(frozen=True, slots=True)
class Placed:
    """A copy and where it is."""

    host: str
    copy: CopySeen


class Standing(StrEnum):
    """How much of a side of a job is there."""

    LIVE = "live"  # its agent answers
    HELD = "held"  # processes hold its lock and answer nobody
    LEFT = "left"  # a journal of this boot at which nobody works
    NOTHING = "nothing"  # the host answered, and knows nothing of the job
    GARBLED = "garbled"  # there is a journal, and it cannot be read
    SILENT = "silent"  # the host was not asked, or does not answer


# Those that work, or can be made to.
ABLE = frozenset((Standing.LIVE, Standing.HELD, Standing.LEFT))


@dataclass(frozen=True, slots=True)
class End:
    """One side of a job."""

    side: Side
    host: str | None  # as it was asked, else as the other side calls it; None: not known
    standing: Standing
    job: JobOnHost | None = None
    copy: CopySeen | None = None  # the QEMU of this side
    others: tuple[CopySeen, ...] = ()  # of the guest on that host
    strays: tuple[CopySeen, ...] = ()  # those of them that no journal there knows
    rebooted: bool | None = None  # since the job; None: not known
    report: Outcome | None = None  # how the job ended, as it is kept there

    @property
    def live(self) -> bool:
        """Whether its agent answers."""
        return self.standing is Standing.LIVE

    @property
    def able(self) -> bool:
        """Whether its agent works, or can be started again."""
        return self.standing in ABLE

    @property
    def state(self) -> str | None:
        """Where its live agent stands; None if there is none."""
        return self.job.state if self.live and self.job else None

    @property
    def record(self) -> Record | None:
        """What its journal says, if it is of this boot."""
        return self.job.record if self.able and self.job else None

    @property
    def gone(self) -> bool:
        """Whether its QEMU is known to have ended."""
        if self.standing in (Standing.SILENT, Standing.GARBLED):
            return False
        return self.copy is None and (self.job is None or not self.job.qemu_here)


@dataclass(frozen=True, slots=True)
class JobSeen:
    """A job of the guest, both its sides."""

    job: str
    source: End
    destination: End

    @property
    def linked(self) -> bool:
        """Whether the agents have a link, as either says."""
        return any(e.live and e.job and e.job.linked for e in (self.source, self.destination))

    @property
    def shares_disk(self) -> bool:
        """Whether the guest writes to what both hosts have: whatever moves is the same file."""
        ends = (self.source, self.destination)
        return any((e.job and e.job.disks) or (e.copy and e.copy.disks) for e in ends)

    @property
    def age_s(self) -> float:
        """How old the youngest record is."""
        ends = (self.source.job, self.destination.job)
        return min((e.age_s for e in ends if e and e.age_s is not None), default=float("inf"))


def copies_of(evidence: Evidence) -> tuple[Placed, ...]:
    """Return every copy that was seen."""
    return tuple(Placed(h.host, c) for h in evidence.hosts for c in h.copies)


def believed(evidence: Evidence) -> Evidence:
    """Return the same with what live agents say of QEMUs whose monitors they hold."""
    return replace(evidence, hosts=tuple(map(_believed, evidence.hosts)))


def _believed(host: HostSeen) -> HostSeen:
    said = {(job.pid, job.start_ticks): job for job in host.jobs if job.worked_at}
    copies = []
    for copy in host.copies:
        job = said.get((copy.pid, copy.start_ticks))
        if copy.state is None and job is not None and job.state in _RUNS_WITH[job.side]:
            had = RunState.RUNNING if job.had is RunState.UNKNOWN else job.had
            copies.append(replace(copy, state=had))
        else:
            copies.append(copy)
    return replace(host, copies=tuple(copies))


# States of a live agent in which its QEMU has the guest, in the state that it had.
_RUNS_WITH = {
    Side.SOURCE: frozenset[str]((Source.PREPARED, Source.COPYING, Source.STRAYED)),
    Side.DESTINATION: frozenset[str]((Destination.RUNNING,)),
}


def jobs_of(evidence: Evidence) -> tuple[JobSeen, ...]:
    """Return the guest's jobs, those at which somebody works first, then the youngest."""
    names = dict.fromkeys(job.job for host in evidence.hosts for job in host.jobs)
    found = (_job_seen(name, evidence) for name in names)
    return tuple(
        sorted(found, key=lambda j: (not (j.source.live or j.destination.live), j.age_s, j.job))
    )


def _job_seen(name: str, evidence: Evidence) -> JobSeen:
    sides = {
        job.side: (host, job) for host in evidence.hosts for job in host.jobs if job.job == name
    }
    return JobSeen(
        name, *(_end(side, name, sides, evidence) for side in (Side.SOURCE, Side.DESTINATION))
    )


def _end(
    side: Side, name: str, sides: dict[Side, tuple[HostSeen, JobOnHost]], evidence: Evidence
) -> End:
    _, other = sides.get(side.other, (None, None))
    if side in sides:
        host, job = sides[side]
        old = job.boot_id != host.boot_id
        mine = [c for c in host.copies if (c.pid, c.start_ticks) == (job.pid, job.start_ticks)]
        copy = mine[0] if mine and not old else None
        rest = tuple(c for c in host.copies if c is not copy)
        strays = _strays(host)
        return End(side, host.host, _standing(job, old=old), job, copy, rest, strays, old)
    if other is None:
        return End(side, None, Standing.SILENT)
    named = evidence.source if side is Side.SOURCE else evidence.destination
    seen = evidence.host(other.peer_host) or evidence.host(named)
    if seen is None or seen.silent:
        return End(side, seen.host if seen else other.peer_host, Standing.SILENT)
    garbled = any(b.garbled and b.job == name for b in seen.bare)
    rebooted = None
    if other.peer_boot_id is not None and seen.boot_id is not None:
        rebooted = other.peer_boot_id != seen.boot_id
    return End(
        side,
        seen.host,
        Standing.GARBLED if garbled else Standing.NOTHING,
        others=seen.copies,
        strays=_strays(seen),
        rebooted=rebooted,
        report=next((e.outcome for e in seen.ended if e.job == name), None),
    )


def _strays(host: HostSeen) -> tuple[CopySeen, ...]:
    known = {(job.pid, job.start_ticks) for job in host.jobs if job.boot_id == host.boot_id}
    return tuple(c for c in host.copies if (c.pid, c.start_ticks) not in known)


def _standing(job: JobOnHost, *, old: bool) -> Standing:
    if old:  # what it speaks of has gone with the power
        return Standing.NOTHING
    if job.record is None:
        return Standing.GARBLED
    if not job.worked_at:
        return Standing.LEFT
    return Standing.LIVE if job.state is not None else Standing.HELD


def garbled_jobs(evidence: Evidence) -> Iterator[tuple[str, BareJob]]:
    """Yield the journals that cannot be read and that are, or may be, of this guest."""
    begins = name_in_id(evidence.guest)
    for host in evidence.hosts:
        for bare in host.bare:
            named = bare.guest or bare.job.rpartition("-")[0]
            if bare.garbled and named in (evidence.guest, begins):
                yield host.host, bare
