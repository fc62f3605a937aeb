"""What of ours on a host serves nobody: facts in, a verdict a thing, nothing done.

Only what qmigrate made is looked at, and of that only what is proved to serve nobody may go
(DESIGN §3, rule 3). What could be the last copy of a guest, or the last word about one, is left to
`qmigrate resolve`. Whoever removes asks again, under the lock, just before.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.handover import OVER, Record
from qmigrate.core.holdings import CacheLeft, JobOnHost, LockFile, LogLeft
from qmigrate.core.model import RunState, Side
from qmigrate.core.tunnel_claims import Claims, OurTunnel, needed

# Where a twin is that was started with -S and never run. Any other state needs a `cont`.
NEVER_RAN = frozenset((RunState.PRELAUNCH, RunState.INMIGRATE, RunState.PAUSED))
# Where only a QEMU is that waits for a guest's memory; a moved guest may be paused by its owner.
_WAITS = frozenset((RunState.PRELAUNCH, RunState.INMIGRATE))
_MADE = re.compile(r"(?:qmigrate:guest=|/guests/)([^ /]+)[ /]")  # in what a journal says was made
_NEVER_TO_RUN = frozenset((Record.REFUSED, Record.RETURNED))


class Kind(StrEnum):
    """What sort of thing is on the host; in the order in which they are removed."""

    TWIN = "twin"  # a QEMU that a job started and that is never to run
    JOB = "job"  # the run directory of a job: journal, door
    TAP = "tap"
    TUNNEL = "tunnel"  # this host's end of one
    DIRECTORY = "directory"  # where a guest that has moved here has its sockets
    LOCK = "lock"
    CACHE = "cache"  # an agent that was being unpacked when its start was killed
    LOG = "log"  # what was said in a job that has ended
    WORDS = "words"  # of a QEMU that runs on: they grow, and are cut to their end


class Verdict(StrEnum):
    """What may be done with a thing."""

    SERVES = "serves"  # a guest or a live job needs it
    REMOVABLE = "removable"
    RESOLVE = "resolve-first"  # it may matter to who runs the guest


@dataclass(frozen=True, slots=True)
class OurTap:
    """An interface whose alias says that it was made for a guest."""

    name: str
    alias: str
    tag: str  # the guest's id
    in_use: bool  # a process has it open
    locked: bool  # a job is about to bring the guest here, or does


@dataclass(frozen=True, slots=True)
class GuestDirectory:
    """A directory under `guests/`."""

    tag: str
    lived_in: bool  # a process listens in it
    locked: bool  # as of a tap


@dataclass(frozen=True, slots=True)
class BareJob:
    """A job's directory in which no journal says anything."""

    job: str
    garbled: bool  # there is something where the journal should be, and it cannot be read
    guest: str | None = None  # as `spec.json` beside it says
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class QemuHere:
    """A QEMU of this host, ours or not."""

    pid: int
    start_ticks: int
    name: str | None
    tags: tuple[str, ...]  # every id that things made for its guest could carry
    taps: tuple[str, ...]
    directory: str | None  # the tag of the directory under `guests/` that its argv names
    state: RunState | None  # None: not asked, or it does not answer
    locked: bool  # as of a tap, for that directory's tag


@dataclass(frozen=True, slots=True)
class Belongings:
    """All that is ours on a host, and what is needed to judge it."""

    boot_id: str
    jobs: tuple[JobOnHost, ...] = ()
    bare: tuple[BareJob, ...] = ()
    locks: tuple[LockFile, ...] = ()
    taps: tuple[OurTap, ...] = ()
    tunnels: tuple[OurTunnel, ...] = ()
    directories: tuple[GuestDirectory, ...] = ()
    qemus: tuple[QemuHere, ...] = ()
    caches: tuple[CacheLeft, ...] = ()
    logs: tuple[LogLeft, ...] = ()
    problems: tuple[str, ...] = ()  # what could not be looked at


@dataclass(frozen=True, slots=True)
class PeerSays:
    """What the other host of a job says of it; there is none of these if it was not asked."""

    job: str
    host: str
    record: Record | None  # None: it knows nothing of the job


@dataclass(frozen=True, slots=True)
class LogWish:
    """Which logs are too much."""

    older_s: float | None = None  # None: none is too old
    words_bytes: int = 16 * 1024 * 1024  # of one QEMU that runs on; a chatty one makes 1 MiB a day


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of ours, and what may be done with it."""

    kind: Kind
    name: str
    verdict: Verdict
    why: str
    next_step: str | None = None
    job: str | None = None
    tag: str | None = None  # the guest's id, where it is a guest's
    pid: int | None = None


def judge(
    here: Belongings, peers: Sequence[PeerSays] = (), logs: LogWish | None = None
) -> tuple[Thing, ...]:
    """Return every thing of ours on a host with its verdict, in the order of removal.

    A twin that may go is judged as gone by what comes after it; should it not go, whoever removes
    those sees it still there.
    """
    said = {peer.job: peer for peer in peers}
    twins = tuple(_twins(here))
    doomed = {twin.pid for twin in twins if twin.verdict is Verdict.REMOVABLE}
    qemus = tuple(qemu for qemu in here.qemus if qemu.pid not in doomed)
    judged = (
        *twins,
        *(_job(job, said.get(job.job), doomed) for job in here.jobs),
        *(_bare(job, here, qemus) for job in here.bare),
        *(_tap(tap, here, qemus) for tap in here.taps),
        *(_tunnel(tunnel, here, qemus) for tunnel in here.tunnels),
        *(_directory(directory, here, qemus) for directory in here.directories),
        *map(_lock, here.locks),
        *map(_cache, here.caches),
        *(_logs(here, logs) if logs else ()),
    )
    return tuple(judged)


def leftovers(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Return what serves nobody, as far as can be seen: what people are told of."""
    return tuple(thing for thing in things if thing.verdict is not Verdict.SERVES)


def resolve_line(guest: str) -> str:
    """Return the command that finds out who runs a guest."""
    return f"qmigrate resolve {guest}"


# QEMUs that a job has started


def _twins(here: Belongings) -> Iterator[Thing]:
    known = {(job.pid, job.start_ticks) for job in here.jobs}
    by_process = {(qemu.pid, qemu.start_ticks): qemu for qemu in here.qemus}
    for job in here.jobs:
        if job.side is Side.DESTINATION and job.qemu_here and not job.worked_at:
            qemu = by_process.get((job.pid or 0, job.start_ticks or 0))
            if job.record not in (Record.RUNNING, Record.DONE):
                yield _twin(job, qemu)
    for qemu in here.qemus:
        ours = qemu.directory is not None and (qemu.pid, qemu.start_ticks) not in known
        if ours and qemu.state in _WAITS and not qemu.locked:
            guest = qemu.name or f"pid {qemu.pid}"
            yield Thing(
                Kind.TWIN,
                f"pid {qemu.pid}",
                Verdict.RESOLVE,
                f"the QEMU of {guest} waits for a guest ({qemu.state}), and no journal here knows "
                "of it",
                resolve_line(qemu.name or str(qemu.pid)),
                tag=qemu.directory,
                pid=qemu.pid,
            )


def _twin(job: JobOnHost, qemu: QemuHere | None) -> Thing:
    verdict, why, step = Verdict.RESOLVE, "", resolve_line(job.guest)
    state = qemu.state if qemu else None
    if job.record not in _NEVER_TO_RUN:
        says = f"says {job.record}" if job.record else "cannot be read"
        why = f"it may be the last copy of {job.guest}: the journal of job {job.job} {says}"
    elif state is None:
        why = f"job {job.job} was {job.record}, but this QEMU does not say whether it has run"
    elif state not in NEVER_RAN:
        why = f"job {job.job} was {job.record}, and yet somebody has let this QEMU run ({state})"
    else:
        verdict, step = Verdict.REMOVABLE, ""
        why = f"job {job.job} was {job.record}: this copy of {job.guest} has never run"
    tag = qemu.directory if qemu else None
    return Thing(
        Kind.TWIN,
        f"pid {job.pid}",
        verdict,
        why,
        step or None,
        job.job,
        tag or tag_of(job),
        job.pid,
    )


# Journals


def is_decided(job: JobOnHost, peer: PeerSays | None) -> bool:
    """Return whether nothing about the guest hangs on this side's going on."""
    if job.record is Record.RUNNING:  # it waits for the source to say that its copy is gone
        return peer is not None and peer.record is Record.DONE
    never = job.side is Side.DESTINATION and job.record in _NEVER_TO_RUN
    return job.record in OVER or never


def _job(job: JobOnHost, peer: PeerSays | None, doomed: set[int | None]) -> Thing:
    verdict, why, step = Verdict.RESOLVE, "", resolve_line(job.guest)
    if job.worked_at:
        verdict, why, step = Verdict.SERVES, "its agent works at it", ""
    elif job.record is None:
        why = "its journal cannot be read"
    elif not is_decided(job, peer):
        why = f"nobody works at it, and its journal says {job.record}"
    elif job.qemu_here and job.record in _NEVER_TO_RUN and job.pid not in doomed:
        why = f"it was {job.record}, and the QEMU that it started is still here"
    elif peer is not None and _waits(job, peer):
        why = f"its journal says {job.record}, and {peer.host} ({peer.record}) may still ask"
    elif peer is None and job.record in _NEVER_TO_RUN:
        other = job.peer_host or "the source"
        why = f"its journal says {job.record}, and whether {other} has heard that is not known"
        step = f"name that host too: --peer {job.peer_host or 'HOST'}; or {step}"
    else:
        verdict, step = Verdict.REMOVABLE, ""
        why = f"its journal says {job.record}, and nobody works at it"
    return Thing(Kind.JOB, job.job, verdict, why, step or None, job.job, tag_of(job))


def _waits(job: JobOnHost, peer: PeerSays) -> bool:
    """Say whether the other side may still want to hear what this journal says."""
    if peer.record is None or peer.record in OVER:
        return False
    return job.side is Side.DESTINATION or peer.record not in _NEVER_TO_RUN


def _bare(job: BareJob, here: Belongings, qemus: Sequence[QemuHere]) -> Thing:
    verdict, why, step = Verdict.REMOVABLE, "its journal says nothing: nothing was done", None
    if any(lock.held and lock.job == job.job for lock in here.locks):
        verdict, why = Verdict.SERVES, "it is being started"
    elif job.garbled or (job.tag and _lives(job.tag, qemus)):
        verdict = Verdict.RESOLVE
        why = "its journal is lost" + (f", and a QEMU of {job.guest} is here" if job.tag else "")
        step = resolve_line(job.guest or job.job.rpartition("-")[0])
    return Thing(Kind.JOB, job.job, verdict, why, step, job.job, job.tag)


# What a guest lives on


def _lives(tag: str, qemus: Sequence[QemuHere]) -> bool:
    return any(tag.lower() in (t.lower() for t in qemu.tags) for qemu in qemus)


def tag_of(job: JobOnHost) -> str:
    """Return the id that the things of a job's guest carry: as they were made, else as they are.

    A guest's UUID, or else its name (`core.cmdline.guest_tag`).
    """
    marks = (_MADE.search(made) for made in job.made)
    return next((mark[1] for mark in marks if mark), job.uuid or job.guest)


def needs(job: JobOnHost, tag: str) -> bool:
    """Say whether `tag` marks the things of a job's guest."""
    return tag.lower() in (tag_of(job).lower(), (job.uuid or "").lower(), job.guest.lower())


def _served(
    place: OurTap | GuestDirectory, here: Belongings, qemus: Sequence[QemuHere]
) -> tuple[Verdict, str, str]:
    """Return who needs a thing of a guest: verdict, why, what to do first."""
    if _lives(place.tag, qemus):
        return Verdict.SERVES, "its guest's QEMU is here", ""
    if place.locked:
        return Verdict.SERVES, "a job works at its guest", ""
    for job in here.jobs:
        if not needs(job, place.tag):
            continue
        if job.worked_at:
            return Verdict.SERVES, f"job {job.job} works at its guest", ""
        if not is_decided(job, None):
            return Verdict.RESOLVE, f"job {job.job} may need it", resolve_line(job.guest)
    return Verdict.REMOVABLE, "its guest has no QEMU here and no job", ""


def _tap(tap: OurTap, here: Belongings, qemus: Sequence[QemuHere]) -> Thing:
    verdict, why, step = _served(tap, here, qemus)
    gone = {name for q in here.qemus if q not in qemus for name in q.taps}  # of twins that go
    if (tap.in_use and tap.name not in gone) or any(tap.name in qemu.taps for qemu in qemus):
        verdict, why, step = Verdict.SERVES, "a process has it open", ""
    return Thing(Kind.TAP, tap.name, verdict, why, step or None, tag=tap.tag)


def _tunnel(tunnel: OurTunnel, here: Belongings, qemus: Sequence[QemuHere]) -> Thing:
    def undecided(guest: str) -> tuple[str, str] | None:
        jobs = (job for job in here.jobs if needs(job, guest) and not is_decided(job, None))
        return next(((job.job, job.guest) for job in jobs), None)

    def tap_serves(name: str) -> bool:
        ours = (tap for tap in here.taps if tap.name == name)
        return all(_tap(tap, here, qemus).verdict is not Verdict.REMOVABLE for tap in ours)

    claims = Claims(
        lives=lambda guest: _lives(guest, qemus),
        worked_at=lambda guest: any(job.worked_at for job in here.jobs if needs(job, guest)),
        undecided=undecided,
        tap_serves=tap_serves,
    )
    serves, why, guest = needed(tunnel, claims)
    verdict = {True: Verdict.SERVES, False: Verdict.REMOVABLE, None: Verdict.RESOLVE}[serves]
    step = resolve_line(guest) if guest else None
    tag = tunnel.guests[0] if tunnel.guests else None
    return Thing(Kind.TUNNEL, tunnel.id, verdict, why, step, tag=tag)


def _directory(place: GuestDirectory, here: Belongings, qemus: Sequence[QemuHere]) -> Thing:
    verdict, why, step = _served(place, here, qemus)
    gone = any(q.directory == place.tag for q in here.qemus if q not in qemus)
    if place.lived_in and not gone:
        verdict, why, step = Verdict.SERVES, "a process listens in it", ""
    return Thing(Kind.DIRECTORY, place.tag, verdict, why, step or None, tag=place.tag)


# The rest


def _lock(lock: LockFile) -> Thing:
    if lock.held:
        return Thing(Kind.LOCK, lock.key, Verdict.SERVES, "it is held", job=lock.job)
    return Thing(Kind.LOCK, lock.key, Verdict.REMOVABLE, "nobody holds it", job=lock.job)


def _cache(cache: CacheLeft) -> Thing:
    if cache.in_use:
        return Thing(Kind.CACHE, cache.name, Verdict.SERVES, "it is being unpacked")
    return Thing(Kind.CACHE, cache.name, Verdict.REMOVABLE, "its unpacking was cut short")


def _logs(here: Belongings, wish: LogWish) -> Iterator[Thing]:
    present = {job.job for job in here.jobs} | {job.job for job in here.bare}
    for log in here.logs:
        if log.words_bytes > wish.words_bytes:
            much = f"its QEMU has written {log.words_bytes >> 20} MiB; the end is kept"
            yield Thing(Kind.WORDS, log.job, Verdict.REMOVABLE, much, job=log.job)
        if wish.older_s is None or log.age_s < wish.older_s:
            continue
        if log.job in present:
            verdict, why = Verdict.SERVES, "its job has not been cleaned up"
        elif log.in_use:
            verdict, why = Verdict.SERVES, "a QEMU writes there"
        else:
            verdict, why = Verdict.REMOVABLE, f"it ended {log.age_s / 86400:.0f} days ago"
        yield Thing(Kind.LOG, log.job, verdict, why, job=log.job)
