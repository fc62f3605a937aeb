"""What an agent can be asked, and what it answers: a frozen dataclass each.

`REPLIES` says what each request is answered with, `NOTES` what it streams meanwhile. How they
travel is `agent.protocol`'s.
"""

from dataclasses import dataclass
from typing import Any

from qmigrate.core.belongings import Belongings, LogWish, PeerSays, Thing
from qmigrate.core.copies import (
    CopiesHere,
    FindCopies,
    ForgetJob,
    LookAtTraces,
    QuitCopy,
    RunCopy,
    Traces,
)
from qmigrate.core.errors import Problem
from qmigrate.core.handover import Word
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import JobNote, JobReport, JobSpec, Limits
from qmigrate.core.model import Address, Guest, GuestDetail, HostFacts
from qmigrate.core.secret import Identity
from qmigrate.core.throwaway import (
    Around,
    EndTiny,
    LookAround,
    LookTiny,
    PlaceTiny,
    StartTiny,
    TinySeen,
)


@dataclass(frozen=True, slots=True)
class GetHostFacts:
    """Ask for `HostFacts`; `users` and `groups` are names to look up there."""

    qemu: str | None = None  # the executable to ask; None: qemu-system-x86_64 in PATH
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    accelerator: str | None = None  # what a guest runs under: only for kvm, or None, is it probed


@dataclass(frozen=True, slots=True)
class ListGuests:
    """Ask for every QEMU on the host."""


@dataclass(frozen=True, slots=True)
class GuestList:
    """Answer to `ListGuests`."""

    guests: tuple[Guest, ...]


@dataclass(frozen=True, slots=True)
class InspectGuest:
    """Ask for the `GuestDetail` of one guest, by its name, uuid, pid or monitor path."""

    guest: str


@dataclass(frozen=True, slots=True)
class Echo:
    """Ask for the same text back: a round trip, for tests and measurement."""

    text: str
    notes: int = 0  # how many times to send it as a note first


@dataclass(frozen=True, slots=True)
class ProveDisks:
    """Leave a nonce file beside each of `paths` while the peer looks for it (DESIGN §7).

    Streams one note, `DiskProofs`, when the nonces are in place; they go when the call is
    cancelled or the agent ends. Of `files` only size and identity are told.
    """

    paths: tuple[str, ...]
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskProof:
    """An image on one host: its size and inode or device, and the nonce left beside it.

    What is not there or could not be made is None, with the reason in `problem`.
    """

    path: str
    nonce: str | None = None  # file name beside the image
    size_bytes: int | None = None
    identity: str | None = None  # "inode 4711", "serial WD-…": equal on hosts that share it
    problem: str | None = None
    seen: bool | None = None  # in an answer to SeeDisks: the nonce is there


@dataclass(frozen=True, slots=True)
class SeeDisks:
    """Look for nonces that the peer left, and for the images themselves."""

    proofs: tuple[DiskProof, ...]


@dataclass(frozen=True, slots=True)
class DiskProofs:
    """Answer to `SeeDisks`, note and answer of `ProveDisks`; in the order that was asked."""

    proofs: tuple[DiskProof, ...]


@dataclass(frozen=True, slots=True)
class StartJob:
    """Start one side of a job; answered when it is ready for its peer, or has failed."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class JobStarted:
    """Answer to `StartJob`: where this side listens."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Ask a job's own agent, through its door, to answer `JobStarted` or why not."""


@dataclass(frozen=True, slots=True)
class PointJob:
    """Tell a job where its peer listens, so that it may dial as well."""

    job: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class WatchJob:
    """Follow a job: notes until its `JobReport`; an ended one is answered from its log."""

    job: str


@dataclass(frozen=True, slots=True)
class SetJob:
    """Change a running job's limits; None leaves one as it is."""

    job: str
    downtime_ms: int | None = None
    max_downtime_ms: int | None = None
    bandwidth_bps: int | None = None


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Ask a job to stop: granted until migrate-continue, then answered "being decided"."""

    job: str


@dataclass(frozen=True, slots=True)
class Done:
    """Answer to what has no other; `text` says what it came to."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class ReadLogs:
    """Ask for what was said in a job on this host."""

    job: str


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a job's logs, its end if it is long."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Logs:
    """Answer to `ReadLogs`."""

    files: tuple[LogFile, ...]


@dataclass(frozen=True, slots=True)
class ListJobs:
    """Ask which jobs have something on this host."""

    ended: int = 0  # how many of those that have ended to tell as well, the newest first


@dataclass(frozen=True, slots=True)
class JobList:
    """Answer to `ListJobs`."""

    boot_id: str
    jobs: tuple[JobOnHost, ...]
    ended: tuple[EndedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class AskJob:
    """Ask a job's own agent, through its door, where it stands."""


@dataclass(frozen=True, slots=True)
class JobState:
    """Answer to `AskJob`."""

    state: str
    linked: bool
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class ReviveJob:
    """Start a job's agent again that died with its guardian; it goes on from its journal.

    Refused while a process that answers holds the job's lock; a holder that stands still is killed
    first. Answered as `StartJob` is.
    """

    job: str
    identity: Identity
    peer: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class RekeyJob:
    """Give a live job new keys, since its peer was revived with such; answered as `StartJob` is."""

    job: str
    identity: Identity
    peer: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class CarryLink:
    """Carry what a job's agent has to say to its peer, for as long as they have no link.

    Streams a note a frame; the peer's frames are brought by `BringFrame`. Answered once the agents
    have a link of their own, or the job is over.
    """

    job: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What one agent says to the other, as it would go over the link (`agent.peer`)."""

    text: str


@dataclass(frozen=True, slots=True)
class BringFrame:
    """Hand a job's agent a frame of its peer's."""

    job: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class TellJob:
    """Say a word to a job's agent; refused where its state has no use for it."""

    job: str
    word: Word


@dataclass(frozen=True, slots=True)
class ListBelongings:
    """Ask for all that is ours on the host, as `core.belongings` judges it."""

    logs: bool = False  # what was said in jobs, too


@dataclass(frozen=True, slots=True)
class RemoveBelongings:
    """Remove what serves nobody; each thing is judged again, under its lock, just before."""

    things: tuple[Thing, ...]
    peers: tuple[PeerSays, ...] = ()
    logs: LogWish | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What came of one thing: it is gone, or why it is not."""

    thing: Thing
    removed: bool
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Removals:
    """Answer to `RemoveBelongings`, in the order in which it was done."""

    removals: tuple[Removal, ...]


@dataclass(frozen=True, slots=True)
class OnNetwork:
    """Ask something of `core.network_requests`: types that no other call has to wait for."""

    name: str  # the class
    body: Any


Request = (
    GetHostFacts
    | ListGuests
    | InspectGuest
    | Echo
    | ProveDisks
    | SeeDisks
    | StartJob
    | AwaitReady
    | PointJob
    | WatchJob
    | SetJob
    | CancelJob
    | ReadLogs
    | ListJobs
    | AskJob
    | ReviveJob
    | RekeyJob
    | CarryLink
    | BringFrame
    | TellJob
    | ListBelongings
    | RemoveBelongings
    | PlaceTiny
    | StartTiny
    | LookTiny
    | EndTiny
    | LookAround
    | FindCopies
    | LookAtTraces
    | RunCopy
    | QuitCopy
    | ForgetJob
    | OnNetwork
)

REPLIES: dict[type, Any] = {
    GetHostFacts: HostFacts,
    ListGuests: GuestList,
    InspectGuest: GuestDetail,
    Echo: Echo,
    ProveDisks: DiskProofs,
    SeeDisks: DiskProofs,
    StartJob: JobStarted,
    AwaitReady: JobStarted,
    PointJob: Done,
    WatchJob: JobReport,
    SetJob: Limits,
    CancelJob: Done,
    ReadLogs: Logs,
    ListJobs: JobList,
    AskJob: JobState,
    ReviveJob: JobStarted,
    RekeyJob: JobStarted,
    CarryLink: Done,
    BringFrame: Done,
    TellJob: Done,
    ListBelongings: Belongings,
    RemoveBelongings: Removals,
    PlaceTiny: Done,
    StartTiny: Done,
    LookTiny: TinySeen,
    EndTiny: Done,
    LookAround: Around,
    FindCopies: CopiesHere,
    LookAtTraces: Traces,
    RunCopy: Done,
    QuitCopy: Done,
    ForgetJob: Done,
    OnNetwork: Any,  # `core.network_requests.REPLIES`
}

NOTES: dict[type, Any] = {  # what the notes of a streaming request are; a union must be tagged
    Echo: Echo,
    ProveDisks: DiskProofs,
    WatchJob: JobNote,
    CarryLink: Frame,
    OnNetwork: Any,  # `core.network_requests.NOTES`
}
