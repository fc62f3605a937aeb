"""Which jobs have something on this host: from their journals, their locks and their live agents.

Reads only. What cannot be read is left out or said as unknown; nobody is kept waiting for longer
than `ASK_DEADLINE_S` by an agent that stands still.
"""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from qmigrate.agent import journal, locks, twin
from qmigrate.agent.door import ask
from qmigrate.agent.journal import Entry
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.protocol import parse_json_untrusted, structure_untrusted
from qmigrate.agent.requests import AskJob, JobList, JobState, ListJobs
from qmigrate.agent.server import AgentContext
from qmigrate.core.belongings import BareJob
from qmigrate.core.errors import ProtocolError, QmigrateError
from qmigrate.core.holdings import EndedJob, JobOnHost, LockFile
from qmigrate.core.job import LOG_DIRECTORY, RUN_DIRECTORY, JobReport
from qmigrate.core.model import RunState, Side

# For a live agent to say where it stands. It answers in a millisecond, unless it is being started
# or stands still; who asks wants to know that, and not to wait for it.
ASK_DEADLINE_S = 3.0
_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def list_jobs(_ctx: AgentContext, request: ListJobs) -> JobList:
    """Answer `ListJobs`: jobs by id, each asked where it stands; ended ones the newest first."""
    jobs, _bare = await trio.to_thread.run_sync(read_jobs)
    asked: dict[str, JobOnHost] = {}

    async def ask_one(job: JobOnHost) -> None:
        asked[job.job] = await _ask(job)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(ask_one, job)
    ended = await trio.to_thread.run_sync(read_ended, request.ended)
    return JobList(boot_id(), tuple(asked[job.job] for job in jobs), ended)


async def _ask(job: JobOnHost) -> JobOnHost:
    """Return the job with what its agent says; as it is, if nobody answers in time."""
    if not job.worked_at:
        return job
    with trio.move_on_after(ASK_DEADLINE_S), suppress(QmigrateError):
        said: JobState = await ask(JobPlaces(job.job).door, AskJob())
        return replace(job, state=said.state, linked=said.linked, problem=said.problem)
    return job


def boot_id() -> str:
    """Return this host's boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def job_names() -> tuple[str, ...]:
    """Return the ids of the jobs that have a run directory here."""
    return _names(Path(RUN_DIRECTORY, "jobs"))


def _names(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(e.name for e in os.scandir(directory) if _JOB.fullmatch(e.name)))
    except OSError:
        return ()


def read_locks() -> tuple[LockFile, ...]:
    """Return the files under `locks/`: who took each last, and whether it is held now."""
    directory = Path(RUN_DIRECTORY, "locks")
    found = []
    with suppress(OSError):
        for name in sorted(entry.name for entry in os.scandir(directory)):
            with suppress(OSError):
                job = (directory / name).read_bytes()[:64].decode(errors="replace")
                found.append(LockFile(name, job or None, locks.is_held(name)))
    return tuple(found)


def read_jobs() -> tuple[tuple[JobOnHost, ...], tuple[BareJob, ...]]:
    """Return the jobs whose journal says something, and the directories in which none does."""
    held = {lock.job for lock in read_locks() if lock.held}
    now, boottime_s = boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)
    jobs, bare = [], []
    for name in job_names():
        spec = _read_spec(JobPlaces(name))
        path = JobPlaces(name).journal
        entry, garbled = None, False
        try:
            entry = journal.read(path)
            garbled = entry is None and bool(path.read_bytes().strip())
        except FileNotFoundError:
            if not JobPlaces(name).directory.exists():
                continue  # it has ended meanwhile
        except OSError:
            garbled = True
        if entry is None:
            bare.append(BareJob(name, garbled, spec.guest, spec.tag))
            continue
        age_s = max(0.0, boottime_s - entry.boottime_s) if entry.boot_id == now else None
        jobs.append(_job(name, entry, spec, age_s, worked_at=name in held))
    return tuple(jobs), tuple(bare)


def _job(
    name: str, entry: Entry, spec: "_Spec", age_s: float | None, *, worked_at: bool
) -> JobOnHost:
    pidfd = twin.open_process(entry.pid, entry.start_ticks)
    if pidfd is not None:
        os.close(pidfd)
    return JobOnHost(
        job=name,
        side=Side(entry.side),
        record=entry.record,
        guest=entry.guest,
        uuid=entry.uuid,
        peer_host=spec.peer_host,
        boot_id=entry.boot_id,
        had=entry.had or RunState.UNKNOWN,
        pid=entry.pid,
        start_ticks=entry.start_ticks,
        qemu_here=pidfd is not None and age_s is not None,
        monitor=entry.monitor,
        disks=spec.disks,
        made=entry.made,
        age_s=age_s,
        note=entry.note,
        peer_boot_id=entry.peer_boot_id,
        worked_at=worked_at,
    )


@dataclass(frozen=True, slots=True)
class _Spec:
    """What is read from the spec that a job keeps beside its journal, without its keys."""

    guest: str | None = None
    tag: str | None = None
    peer_host: str | None = None
    disks: tuple[str, ...] = ()


def _read_spec(at: JobPlaces) -> _Spec:
    """Return what the job was told; nothing, if it is not there or is another version's."""
    try:
        told = parse_json_untrusted((at.directory / "spec.json").read_bytes())
    except (OSError, ProtocolError):
        return _Spec()
    tags = (
        _word(_under(told, "source"), "tag"),
        _word(_under(_under(told, "destination"), "twin"), "tag"),
    )
    disks = told.get("disks") if isinstance(told, dict) else None
    return _Spec(
        _word(told, "guest"),
        next(filter(None, tags), None),
        _word(told, "peer_host"),
        tuple(d for d in disks if isinstance(d, str)) if isinstance(disks, list) else (),
    )


def _under(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _word(value: Any, key: str) -> str | None:
    word = _under(value, key)
    return word if isinstance(word, str) and word else None


def read_ended(most: int) -> tuple[EndedJob, ...]:
    """Return the jobs whose report was kept here, the newest first."""
    if most <= 0:
        return ()
    kept = []
    for name in _names(Path(LOG_DIRECTORY)):
        with suppress(OSError):
            path = Path(LOG_DIRECTORY, name, "report.json")
            kept.append((path.stat().st_mtime, name, path))
    found = []
    for at_s, name, path in sorted(kept, reverse=True)[:most]:
        with suppress(OSError, ProtocolError):  # one of another version
            report = structure_untrusted(parse_json_untrusted(path.read_bytes()), JobReport)
            found.append(EndedJob(name, report.outcome, max(0.0, time.time() - at_s)))
    return tuple(found)
