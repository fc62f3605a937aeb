"""What a session can ask about jobs: start one, and whatever its door answers."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from qmigrate.agent import locks
from qmigrate.agent.door import DOOR_DEADLINE_S, ask, make_door
from qmigrate.agent.guardian import Inherited, agent_command
from qmigrate.agent.places import JobPlaces, runs_systemd
from qmigrate.agent.protocol import parse_json_untrusted, structure_untrusted
from qmigrate.agent.requests import (
    AwaitReady,
    BringFrame,
    CancelJob,
    CarryLink,
    JobStarted,
    LogFile,
    Logs,
    PointJob,
    ReadLogs,
    RekeyJob,
    SetJob,
    StartJob,
    TellJob,
    WatchJob,
)
from qmigrate.agent.server import AgentContext
from qmigrate.agent.specs import keep_spec, make_told
from qmigrate.core.errors import AgentLostError, HostError, NoSuchJobError
from qmigrate.core.job import JobReport, JobSpec

LOG_TAIL_BYTES = 256 * 1024  # of each file; more does not fit into a line


async def start_job(ctx: AgentContext, request: StartJob) -> JobStarted:
    """Start a guardian with the job's agent; return when the agent is ready for its peer.

    What fails is taken down again by the agent itself; then its reason is raised here.
    """
    spec = request.spec
    places = JobPlaces(checked_id(spec.job))
    key = lock_key(spec)
    lock = locks.take(key, spec.job)
    try:
        places.make()
        try:
            keep_spec(places.spec, spec)
        except HostError:
            places.remove()
            raise
    except HostError:
        locks.remove(key, lock)
        raise
    return await guard(ctx, spec, lock)


async def guard(ctx: AgentContext, spec: JobSpec, lock: int, *, again: bool = False) -> JobStarted:
    """Start a guardian that inherits `lock`; return once the job's agent is ready for its peer.

    `again`: its first agent goes on from the journal. `lock` is closed here whatever comes of it.
    """
    places = JobPlaces(spec.job)
    with _descriptors(spec, places, lock) as inherited:
        log = os.open(
            places.logs / "agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            command = [*_unit(spec), *agent_command("guardian"), spec.job, lock_key(spec)]
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork and an exec, nothing waits
                [*command, *inherited.argv(), *(["again"] if again else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(inherited.spec, inherited.door, inherited.lock),
            )
        finally:
            os.close(log)
    ctx.nursery.start_soon(_reap, process)
    with trio.move_on_after(DOOR_DEADLINE_S):
        started: JobStarted = await ask(places.door, AwaitReady())
        return started
    raise HostError(f"the job's agent was not ready within {DOOR_DEADLINE_S:g} s")


def checked_id(job: str) -> str:
    """Return `job` if it can be a directory's name and nothing else."""
    if not job or not re.fullmatch(r"[A-Za-z0-9_-]+", job) or len(job) > 64:
        raise HostError(f"{job!r} is no job's id")
    return job


def lock_key(spec: JobSpec) -> str:
    """Return the lock that this side of the job needs."""
    if spec.source is not None:
        return locks.source_key(spec.source.pid, spec.source.start_ticks)
    if spec.destination is None:
        raise HostError("a job was started without a part on this host")
    return locks.destination_key(spec.destination.twin.tag)


@contextmanager
def _descriptors(spec: JobSpec, places: JobPlaces, lock: int) -> Iterator[Inherited]:
    """Make what guardian and agent inherit; ours are closed at the end."""
    told = door = -1
    try:
        told = make_told(spec)
        door = make_door(places.door)
        yield Inherited(spec=told, door=door, lock=lock)
    finally:
        for descriptor in (told, door, lock):
            if descriptor >= 0:
                os.close(descriptor)


def _unit(spec: JobSpec) -> list[str]:
    """Return the words that put a job into a unit of its own where systemd runs."""
    if not runs_systemd():
        return []
    unit = f"--unit=qmigrate-job-{spec.job}-{spec.side}"
    return ["systemd-run", "--scope", "--quiet", "--collect", unit, "--"]


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the guardian, so that it leaves no zombie while this session lives."""
    pidfd = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
        process.poll()
    finally:
        os.close(pidfd)
        process.returncode = process.returncode or 0  # else Popen warns of a job that goes on


async def watch_job(ctx: AgentContext, request: WatchJob) -> JobReport:
    """Relay a job's notes and its report; an ended job is answered from its log."""
    places = JobPlaces(checked_id(request.job))
    if places.door.exists():
        try:
            report: JobReport = await _ask_until_answered(places, request, ctx)
        except HostError:
            if (ended := _kept_report(places)) is not None:
                return ended
            raise
        return report
    ended = _kept_report(places)
    if ended is None:
        raise _not_here(request.job, None)
    return ended


async def _ask_until_answered(places: JobPlaces, request: Any, ctx: AgentContext) -> Any:
    """Return the answer of the job's agent, or of the one that its guardian starts next.

    The guardian keeps the door open meanwhile, so asking again waits until somebody answers.
    Raises `HostError` once there is no door any more.
    """
    while True:
        try:
            return await ask(places.door, request, ctx)
        except AgentLostError:
            if not places.door.exists():
                raise


def _kept_report(places: JobPlaces) -> JobReport | None:
    try:
        text = Path(places.logs, "report.json").read_bytes()
    except OSError:
        return None
    return structure_untrusted(parse_json_untrusted(text), JobReport)


Relayed = PointJob | SetJob | CancelJob | TellJob | RekeyJob | CarryLink | BringFrame


async def relay(ctx: AgentContext, request: Relayed) -> Any:
    """Hand a request to the job's own agent; raises `HostError` for a job that has none."""
    places = JobPlaces(checked_id(request.job))
    if not places.door.exists():
        raise _not_here(request.job, _kept_report(places))
    return await _ask_until_answered(places, request, ctx)


def _not_here(job: str, ended: JobReport | None) -> HostError:
    """Return what to say of a job that nobody works at on this host."""
    if ended is not None:
        return HostError(
            f"job {job} has ended: {ended.outcome}", next_step=f"qmigrate logs {job} tells how"
        )
    if JobPlaces(job).journal.exists():
        return HostError(
            f"nobody works at job {job} any more: its agents died, and its journal was left",
            next_step=f"qmigrate logs {job} tells how far it came; qmigrate list, where it runs",
        )
    return NoSuchJobError(
        f"there is no job {job} here",
        next_step="jobs that ended have a directory in /var/log/qmigrate",
    )


async def read_logs(_ctx: AgentContext, request: ReadLogs) -> Logs:
    """Return what was said in a job on this host; raises `HostError` for one that was not here."""
    directory = JobPlaces(checked_id(request.job)).logs
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    except OSError as exc:
        what = f"there are no logs of job {request.job} here: {exc.strerror}"
        raise NoSuchJobError(what) from exc
    return Logs(tuple(LogFile(name, _tail(directory / name)) for name in names))


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_TAIL_BYTES))
        return log.read().decode(errors="replace")
