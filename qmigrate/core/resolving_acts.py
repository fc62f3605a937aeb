"""What `resolve` can do, and what is thought of one job or of the copies. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.handover import Word
from qmigrate.core.model import Side
from qmigrate.core.testimony import JobSeen

HOST_IS_DEAD = "--host-is-dead"
RESUME_SOURCE = "--resume-source-anyway"


@dataclass(frozen=True, slots=True)
class Revive:
    """Start a job's dead agents again, under new keys, and carry what they say to each other."""

    job: str
    dead: tuple[tuple[Side, str], ...]  # side and host
    living: tuple[Side, str] | None = None  # gets new keys, too

    def __str__(self) -> str:
        where = " and ".join(host for _, host in self.dead)
        return f"start the agent of job {self.job} again on {where}"


@dataclass(frozen=True, slots=True)
class Carry:
    """Carry what a job's two agents say: they have no link."""

    job: str
    source: str
    destination: str

    def __str__(self) -> str:
        return f"carry what {self.source} and {self.destination} have to say about job {self.job}"


@dataclass(frozen=True, slots=True)
class Tell:
    """Say a word to a job's agent."""

    job: str
    side: Side
    host: str
    word: Word

    def __str__(self) -> str:
        return f"tell {self.host}, {self.side} of job {self.job}: {self.word}"


@dataclass(frozen=True, slots=True)
class ReturnGuest:
    """Let a copy run that stands still and at which no job works."""

    host: str
    pid: int
    start_ticks: int

    def __str__(self) -> str:
        return f"let the copy on {self.host} (process {self.pid}) run"


@dataclass(frozen=True, slots=True)
class EndCopy:
    """End a copy that does not run, and is not the last."""

    host: str
    pid: int
    start_ticks: int
    vouched: bool = False  # a person wants the other, even if this one has run

    def __str__(self) -> str:
        return f"end the copy on {self.host} (process {self.pid}), which stands still"


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove a journal on which nothing hangs any more, with whoever waits at it for an answer."""

    host: str
    job: str

    def __str__(self) -> str:
        return f"forget job {self.job} on {self.host}"


@dataclass(frozen=True, slots=True)
class Clean:
    """Remove what is left of the guest's jobs and serves nobody."""

    host: str

    def __str__(self) -> str:
        return f"remove what is left of its jobs on {self.host}"


Act = Revive | Carry | Tell | ReturnGuest | EndCopy | Forget | Clean


class Ends(StrEnum):
    """What a guest or a job of it has come to."""

    RUNS = "runs"  # in one place
    STANDS = "stands"  # in one place, as somebody has left it
    LEFT = "left-over"  # who runs it is known, and something is left or was not seen
    GOES_ON = "goes-on"  # agents work at it, and nothing is wanted of us
    UNKNOWN = "unknown"  # nothing was, or will be, done on that
    ENDED = "ended"  # it is nowhere any more
    NOBODY = "nobody"  # no host has ever heard of it


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is thought of one job, or of the copies; `ends` None: nothing hangs on it."""

    says: tuple[str, ...] = ()
    ends: Ends | None = None
    acts: tuple[Act, ...] = ()
    asks: tuple[str, ...] = ()  # the options by which a person can go on
    next_step: str | None = None
    host: str | None = None  # that runs the guest
    job: str | None = None


def named_hosts(jobs: Iterable[JobSeen]) -> frozenset[str]:
    """Return every host that a job speaks of."""
    return frozenset(
        end.host for job in jobs for end in (job.source, job.destination) if end.host is not None
    )
