"""A guest's copies on one host, and their traces: what can be asked about them, and done to them.

Asked and done by `resolve`, of sessions rather than of a job's agent; see `agent.requests`.
"""

from dataclasses import dataclass

from qmigrate.core.job import Announced
from qmigrate.core.model import RUNS, RunState


@dataclass(frozen=True, slots=True)
class ImageHolder:
    """A process that has an image open."""

    pid: int
    command: str  # as it calls itself: for people
    locked: bool  # it holds a lock on it
    guest: str | None = None  # whose QEMU it is


@dataclass(frozen=True, slots=True)
class ImageSeen:
    """A file or device that the guest writes to, on one host; None: not there, or not known."""

    path: str
    size_bytes: int | None = None
    changed_s_ago: float | None = None  # by that host's clock and the file's
    holders: tuple[ImageHolder, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerSeen:
    """Who answers for an address of the guest's, asked on one bridge of one host."""

    address: str
    bridge: str
    mac: str | None  # None: nobody answered
    port: str | None  # behind which the bridge believes the guest's card; None: it does not know


@dataclass(frozen=True, slots=True)
class CopySeen:
    """A QEMU of the guest on one host, asked if it could be."""

    pid: int
    start_ticks: int
    name: str | None
    uuid: str | None
    state: RunState | None  # None: it could not be asked
    migration: str | None = None  # its last one's status, in or out
    wrote: bool | None = None  # to an image, since its process began; None: not known
    twin: bool = False  # started by a job: it lives in a directory of ours
    job: str | None = None  # that holds it, and its monitor
    problem: str | None = None  # why it could not be asked
    disks: tuple[str, ...] = ()  # what it writes to
    macs: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it was seen to run."""
        return self.state in RUNS

    @property
    def stands_sent(self) -> bool:
        """Whether it has sent all it had, and has not run since."""
        return self.state is RunState.POSTMIGRATE

    @property
    def loaded(self) -> bool:
        """Whether it was given all of a guest."""
        return self.twin and self.migration == "completed"


@dataclass(frozen=True, slots=True)
class FindCopies:
    """Ask for every QEMU of one guest, by its name or uuid, and for those of its `jobs`."""

    guest: str
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CopiesHere:
    """Answer to `FindCopies`; `addresses` are those that the guest is known to have."""

    boot_id: str
    copies: tuple[CopySeen, ...]
    addresses: tuple[Announced, ...] = ()


@dataclass(frozen=True, slots=True)
class LookAtTraces:
    """Ask who has images open, and who answers for addresses on bridges that are here."""

    images: tuple[str, ...]
    addresses: tuple[Announced, ...] = ()
    bridges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Traces:
    """Answer to `LookAtTraces`."""

    images: tuple[ImageSeen, ...]
    answers: tuple[AnswerSeen, ...]


@dataclass(frozen=True, slots=True)
class RunCopy:
    """Let a copy run at which no job works and that stands where a move has left it."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class QuitCopy:
    """End a copy that does not run and that whoever asks has seen not to be the last."""

    pid: int
    start_ticks: int
    vouched: bool = False  # a person wants the other, even if this one has run


@dataclass(frozen=True, slots=True)
class ForgetJob:
    """Remove the journal of a job on which nothing hangs any more; its QEMU has gone."""

    job: str
