"""A job whose agent and guardian are both dead is gone on with: journal, kept spec, new keys.

There is one lock a job and host, and effects come from its holder only. So a holder that may still
wake up is ended before the lock is taken: a process that was stopped, and then let go on, would
act on what it knew long ago.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from qmigrate.agent import journal, locks, twin
from qmigrate.agent.door import ask
from qmigrate.agent.job import boot_id
from qmigrate.agent.jobs import checked_id, guard, lock_key
from qmigrate.agent.journal import Entry
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.requests import AskJob, JobStarted, JobState, PointJob, ReviveJob
from qmigrate.agent.server import AgentContext
from qmigrate.agent.specs import read_spec
from qmigrate.core.errors import AgentLostError, HostError, NoSuchJobError
from qmigrate.core.job import RUN_DIRECTORY, JobSpec

HOLDER_ANSWERS_S = 8.0  # one that lives answers in ms; one that is just being started in a second
HOLDER_PAUSE_S = 0.25  # before an agent is asked again that ended while it was asked
MODES = (b"guardian", b"worker")


async def revive_job(ctx: AgentContext, request: ReviveJob) -> JobStarted:
    """Start a job's guardian and agent again; return once the agent is ready for its peer.

    Raises `HostError` if somebody answers for the job, if its journal is of another boot, or says
    nothing; `NoSuchJobError` if there is none.
    """
    places = JobPlaces(checked_id(request.job))
    spec = _known(places)
    await _end_who_stands_still(places, spec)
    lock = locks.take(lock_key(spec), spec.job)
    try:
        _known(places)  # whoever held it may have come to its end meanwhile
        places.door.unlink(missing_ok=True)
    except BaseException:
        os.close(lock)
        raise
    spec = replace(spec, identity=request.identity, faults=())
    started = await guard(ctx, spec, lock, again=True)
    if request.peer:
        await ask(places.door, PointJob(spec.job, request.peer))
    return started


def _known(places: JobPlaces) -> JobSpec:
    """Return the spec of a job that can be gone on with here."""
    try:
        entry: Entry | None = journal.read(places.journal)
    except OSError as exc:
        if not isinstance(exc, FileNotFoundError):
            raise HostError(f"{places.journal} cannot be read: {exc.strerror}") from exc
        if places.directory.exists():
            entry = None
        else:
            raise NoSuchJobError(f"there is no job {places.job} here") from exc
    if entry is None:
        raise HostError(
            f"job {places.job} has recorded nothing, so it has done nothing here",
            next_step="remove what it left: qmigrate cleanup",
        )
    if entry.boot_id != boot_id():
        raise HostError(
            f"the journal of job {places.job} says {entry.record}, before this host was booted: "
            "what it speaks of has gone, and it is not gone on with",
            next_step=f"see what is known of it: qmigrate resolve {places.job}",
        )
    spec = read_spec(places.spec)
    if spec is None or spec.job != places.job:
        raise HostError(
            f"job {places.job} cannot be gone on with: {places.spec} cannot be read",
            next_step=f"see what is known of it: qmigrate resolve {places.job}",
        )
    return spec


async def _end_who_stands_still(places: JobPlaces, spec: JobSpec) -> None:
    """Kill the processes of the job that hold its lock and answer nobody; raise if one answers."""
    key = lock_key(spec)
    if not locks.is_held(key):
        return
    if (state := await _answer(places)) is not None:
        raise HostError(
            f"job {places.job} is worked at: its agent answers, in state {state.state}",
            next_step=f"follow it: qmigrate watch {places.job}@{spec.host}",
        )
    with trio.move_on_after(twin.END_DEADLINE_S):
        # A guardian may have started another agent just before it was killed: look again.
        while holders := find_holders(key, places.job):
            # Guardians first, or they start another agent in place of one that is killed.
            await _kill(sorted(holders, key=lambda each: MODES.index(each.mode)))


async def _answer(places: JobPlaces) -> JobState | None:
    """Return what the job's agent says of itself; None if it says nothing in time."""
    with trio.move_on_after(HOLDER_ANSWERS_S):
        while True:
            try:
                state: JobState = await ask(places.door, AskJob())
            except AgentLostError:  # it died, and its guardian starts another
                await trio.sleep(HOLDER_PAUSE_S)
            except HostError:  # nobody listens: who holds the lock has no door
                return None
            else:
                return state
    return None


@dataclass(frozen=True, slots=True)
class Holder:
    """A guardian or agent that has the lock's file open; `pidfd` is whoever's asked for it."""

    pidfd: int
    mode: bytes


def find_holders(key: str, job: str) -> tuple[Holder, ...]:
    """Return the guardians and agents of `job` that hold its lock; the caller closes the pidfds.

    Nobody else is returned, whoever may have the file open.
    """
    found = []
    try:
        lock = Path(RUN_DIRECTORY, "locks", key).stat()
    except OSError:
        return ()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except OSError:  # ended meanwhile
            continue
        mode = _mode_of_holder(Path(entry.path), lock, job)
        if mode is None:
            os.close(pidfd)
        else:
            found.append(Holder(pidfd, mode))
    return tuple(found)


def _mode_of_holder(process: Path, lock: os.stat_result, job: str) -> bytes | None:
    """Return whether a process is the job's guardian or agent and has its lock open."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        mode = next((mode for mode in MODES if mode in words), None)
        if mode is None or words[words.index(mode) + 1] != job.encode():
            return None
        for descriptor in (process / "fd").iterdir():
            seen = descriptor.stat()
            if (seen.st_dev, seen.st_ino) == (lock.st_dev, lock.st_ino):
                return mode
    except (OSError, IndexError):  # it ended, or closed the descriptor, while it was looked at
        pass
    return None


async def _kill(holders: list[Holder]) -> None:
    try:
        for holder in holders:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(holder.pidfd, signal.SIGKILL)
            await twin.wait_end(holder.pidfd)
    finally:
        for holder in holders:
            os.close(holder.pidfd)
