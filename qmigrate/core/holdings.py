"""What of ours is on a host: jobs as their journals and agents know them."""

from dataclasses import dataclass

from qmigrate.core.errors import Problem
from qmigrate.core.handover import Record
from qmigrate.core.job import Outcome
from qmigrate.core.model import RunState, Side


@dataclass(frozen=True, slots=True)
class JobOnHost:
    """One side of a job that has a journal on this host."""

    job: str
    side: Side
    record: Record | None  # None: the journal is there and says nothing
    guest: str
    uuid: str | None
    peer_host: str | None  # as the controller that began it called it
    boot_id: str | None  # of this host when the record was written
    had: RunState  # the state to be found again at the end
    pid: int | None  # the guest's QEMU on this side
    start_ticks: int | None
    qemu_here: bool  # that very process is alive
    monitor: str | None
    disks: tuple[str, ...]  # what the guest writes to
    made: tuple[str, ...]  # by this job on this host
    age_s: float | None  # of the record; None: it is of another boot
    note: str | None  # the reason, where there is one
    worked_at: bool  # a process of the job holds its lock
    state: str | None = None  # of the live agent, asked at its door; None: it did not answer
    linked: bool | None = None  # the live agents have a link
    problem: Problem | None = None  # what the live agent knows to be wrong
    peer_boot_id: str | None = None  # of the other host, when the agents last had a link


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended, from the report that was kept."""

    job: str
    outcome: Outcome
    ended_s_ago: float


@dataclass(frozen=True, slots=True)
class LockFile:
    """A file under `locks/`."""

    key: str
    job: str | None  # who took it last
    held: bool


@dataclass(frozen=True, slots=True)
class CacheLeft:
    """A directory of an agent that was not unpacked to its end."""

    name: str
    in_use: bool  # it is being unpacked


@dataclass(frozen=True, slots=True)
class LogLeft:
    """The logs of a job."""

    job: str
    age_s: float  # of the youngest file
    words_bytes: int  # of `qemu.log`
    in_use: bool  # a QEMU that runs writes there
