"""What a session does to a copy at which no job works: lets it run, ends it, forgets its journal.

Each is refused unless what is seen here, with the lock in hand that any job would need, is what
whoever asked has seen: two that ask at once do it once. What the other host must be like is asked
before, by `resolve`.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import trio

from qmigrate.agent import guests, journal, locks, process, twin
from qmigrate.agent.door import ask
from qmigrate.agent.evidence import ask_copy, holder_of, lock_keys, open_patiently, twin_tag
from qmigrate.agent.jobs import checked_id, lock_key
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.process import Process
from qmigrate.agent.requests import AskJob, Done, JobState
from qmigrate.agent.reviving import MODES, find_holders
from qmigrate.agent.server import AgentContext
from qmigrate.agent.specs import read_spec
from qmigrate.core.copies import CopySeen, ForgetJob, QuitCopy, RunCopy
from qmigrate.core.errors import CommandError, HostError
from qmigrate.core.handover import Source
from qmigrate.core.model import RUNS, RunState
from qmigrate.core.resolving_case import is_harmless
from qmigrate.qmp.client import QmpThread
from qmigrate.qmp.events import MigrationStatus, ResumeEvent
from qmigrate.qmp.migration import Qemu

RUNS_DEADLINE_S = 30.0  # from migrate_cancel to RESUME: QEMU may be sending to nobody
ANSWER_DEADLINE_S = 8.0  # for a live agent to say where it stands
_WAITS = frozenset[str]((Source.AWAY, Source.MISSED))  # for a word that may never come


async def run_copy(ctx: AgentContext, request: RunCopy) -> Done:
    """Answer `RunCopy`: let a copy go on that stands where a move has left it.

    Raises `HostError` if a job works at it or it is anything else; nothing has happened then.
    """
    seen, tag = await _seen(request.pid, request.start_ticks)
    with _holding(lock_keys(seen, tag)):
        thread = await ctx.shared.once(QmpThread)
        line = await trio.to_thread.run_sync(guests.read_line, seen)
        async with open_patiently(thread, seen, line) as opened:
            qemu = Qemu(opened.monitor)
            before = await qemu.status()
            if before in RUNS:
                return Done(f"process {seen.pid} runs already")
            await _let_run(qemu, before)
            after = await qemu.status()
            if after not in RUNS:
                raise HostError(f"process {seen.pid} was let run, and is {after}")
            await qemu.announce_self()
    return Done(f"process {seen.pid} was {before}, and runs")


async def _let_run(qemu: Qemu, state: RunState) -> None:
    progress = await qemu.query_migrate()
    if state is RunState.FINISH_MIGRATE and progress.status is MigrationStatus.PRE_SWITCHOVER:
        async with qemu.monitor.subscribe() as events:
            await qemu.migrate_cancel()
            with trio.move_on_after(RUNS_DEADLINE_S):
                async for event in events:
                    if isinstance(event, ResumeEvent):
                        return
        raise HostError(f"QEMU did not let the guest go on within {RUNS_DEADLINE_S:g} s")
    sent = state is RunState.POSTMIGRATE
    loaded = state is RunState.PAUSED and progress.status is MigrationStatus.COMPLETED
    if not sent and not loaded:
        raise HostError(f"it is {state}, as no move leaves a copy: it is not let run")
    try:
        await qemu.cont()
    except CommandError as exc:
        words = exc.problem.last_words
        raise HostError(
            "QEMU does not let the guest run",
            last_words=words,
            next_step="another process has its image: `qmigrate resolve` says which"
            if words and "lock" in words
            else None,
        ) from exc


async def quit_copy(ctx: AgentContext, request: QuitCopy) -> Done:
    """Answer `QuitCopy`: end a copy that stands still, and that is not what the guest is now."""
    try:
        seen, tag = await _seen(request.pid, request.start_ticks)
    except HostError:
        return Done(f"process {request.pid} has ended already")
    if (job := holder_of(seen, tag)) is not None:
        await _must_be_away(job)
        await _kill(seen)
        return Done(f"process {seen.pid} was ended, which job {job} had sent")
    with _holding(lock_keys(seen, tag)):
        thread = await ctx.shared.once(QmpThread)
        line = await trio.to_thread.run_sync(guests.read_line, seen)
        async with open_patiently(thread, seen, line) as opened:
            plain = CopySeen(seen.pid, seen.start_ticks, None, None, None, twin=tag is not None)
            copy = await ask_copy(Qemu(opened.monitor), plain)
            wanted = request.vouched and copy.state is RunState.PAUSED
            if not (copy.stands_sent or is_harmless(copy) or wanted):
                raise HostError(f"process {seen.pid} is {copy.state}: it is not ended")
            await _kill(seen)
    return Done(f"process {seen.pid} was {copy.state}, and is ended")


async def _must_be_away(job: str) -> None:
    """Return if a job's live agent says that its QEMU has sent all, and stands still."""
    state: JobState | None = None
    with trio.move_on_after(ANSWER_DEADLINE_S):
        state = await ask(JobPlaces(checked_id(job)).door, AskJob())
    if state is None or state.state != Source.AWAY:
        what = state.state if state else "silent"
        raise HostError(f"the agent of job {job} is {what}: its QEMU is not ended")


async def _kill(seen: Process) -> None:
    pidfd = process.open_pidfd(seen.pid, seen.start_ticks)
    try:
        await twin.kill(pidfd)
    finally:
        os.close(pidfd)


async def _seen(pid: int, start_ticks: int) -> tuple[Process, str | None]:
    """Return a process that is still the one that was meant, and what its things are marked by."""
    seen = await trio.to_thread.run_sync(process.look, pid)
    if seen.start_ticks != start_ticks:
        raise HostError(f"process {pid} has ended, and its number was given to another")
    if why := await trio.to_thread.run_sync(process.distrust, seen):
        raise HostError(f"{why}; it is left alone")
    return seen, await trio.to_thread.run_sync(twin_tag, seen)


@contextlib.contextmanager
def _holding(keys: tuple[str, ...]) -> Iterator[None]:
    """Hold what a job would need; raises `HostError` if one holds it."""
    with contextlib.ExitStack() as stack:
        for key in keys:
            descriptor = locks.take(key, "resolve")
            stack.callback(locks.remove, key, descriptor)
        yield


async def forget_job(_ctx: AgentContext, request: ForgetJob) -> Done:
    """Answer `ForgetJob`: remove a journal whose QEMU has gone, with whoever waits at it.

    Raises `HostError` if its QEMU is there, or an agent works at it that has something to do.
    """
    places = JobPlaces(checked_id(request.job))
    if not _may_be_forgotten(places):
        return Done(f"job {request.job} was forgotten already")
    spec = read_spec(places.spec)
    if spec is None:
        raise HostError(
            f"{places.spec} cannot be read, so nothing proves that nobody works at the job",
            next_step=f"if nobody does: rm -r {places.directory}",
        )
    key = lock_key(spec)
    if locks.is_held(key):
        await _end_who_waits(places, key)
    with _holding((key,)):
        if _may_be_forgotten(places):
            places.remove()
            if places.directory.exists():
                raise HostError(f"{places.directory} cannot be removed")
    return Done(f"job {request.job} is forgotten")


def _may_be_forgotten(places: JobPlaces) -> bool:
    """Say whether there is still a journal; raises `HostError` while its QEMU lives."""
    try:
        entry = journal.read(places.journal)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise HostError(f"{places.journal} cannot be read: {exc.strerror}") from exc
    pidfd = twin.open_process(entry.pid, entry.start_ticks) if entry else None
    if pidfd is not None:
        os.close(pidfd)
        raise HostError(f"the QEMU of job {places.job} is still here: it is not forgotten")
    return True


async def _end_who_waits(places: JobPlaces, key: str) -> None:
    """End a job's guardian and agent that wait for what will never come, or stand still."""
    state: JobState | None = None
    with trio.move_on_after(ANSWER_DEADLINE_S), contextlib.suppress(HostError):
        state = await ask(places.door, AskJob())
    if state is not None and state.state not in _WAITS:
        raise HostError(f"the agent of job {places.job} is {state.state}: it is left to its work")
    # Guardians first, or they start another agent in place of one that is killed.
    holders = sorted(find_holders(key, places.job), key=lambda each: MODES.index(each.mode))
    try:
        for holder in holders:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(holder.pidfd, signal.SIGKILL)
            await twin.wait_end(holder.pidfd)
    finally:
        for holder in holders:
            os.close(holder.pidfd)
