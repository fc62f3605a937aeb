"""What of ours is on this host, looked at and, once it is judged to serve nobody, removed.

What may go is decided by `core.belongings`, here twice: for whoever asked, and again just before,
with fresh facts and the lock in hand that any job would need which could still want the thing. A
death at any moment leaves less than before, and the same call finds what is left.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from netsetup.errors import NetsetupError
from netsetup.links import Link
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import End
from netsetup.tunnels import list_tunnels
from netsetup.tunnels import remove as remove_tunnel
from qmigrate.agent import bootstrap, facts, guests, holdings, locks, process, twin
from qmigrate.agent.places import JobPlaces, is_lived_in, remove_guest_directory
from qmigrate.agent.process import Process
from qmigrate.agent.requests import ListBelongings, Removal, Removals, RemoveBelongings
from qmigrate.agent.server import AgentContext
from qmigrate.core import guestline
from qmigrate.core.belongings import (
    Belongings,
    GuestDirectory,
    Kind,
    OurTap,
    QemuHere,
    Thing,
    Verdict,
    judge,
    tag_of,
)
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.holdings import CacheLeft, JobOnHost, LogLeft
from qmigrate.core.job import CACHE_DIRECTORY, LOG_DIRECTORY, RUN_DIRECTORY
from qmigrate.core.model import RunState, Side
from qmigrate.core.tunnel_claims import OurTunnel
from qmigrate.qmp.client import QmpThread

WORDS = "qemu.log"
KEPT_WORDS_BYTES = 64 * 1024  # of a QEMU's words that were too many; what it said last matters most
_NEW_CACHE = re.compile(r"\.new-[0-9a-f]{16}")
_DIRECTORY = re.compile(rf"{RUN_DIRECTORY}/guests/([A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}})(?:/|$|,)")
IsLocked = Callable[[str], bool]  # whether a job is busy with the guest of that id
_ALIAS = re.compile(re.escape(twin.ALIAS_PREFIX) + r"(?P<tag>[^ ]+) nic=")


async def list_belongings(ctx: AgentContext, request: ListBelongings) -> Belongings:
    """Answer `ListBelongings`; what could not be looked at is a sentence in `problems`."""
    thread = await ctx.shared.once(QmpThread)
    async with Rtnl() as rtnl:
        return await _look(thread, rtnl, logs=request.logs)


async def remove_belongings(ctx: AgentContext, request: RemoveBelongings) -> Removals:
    """Remove what was asked for and is still judged to serve nobody; one thing after another."""
    thread = await ctx.shared.once(QmpThread)
    order = tuple(Kind)
    things = sorted(request.things, key=lambda thing: order.index(thing.kind))
    async with Rtnl() as rtnl:
        remover = _Remover(thread, rtnl, request)
        done = [await remover.remove(thing) for thing in things]
    _remove_empty()
    return Removals(tuple(done))


def _remove_empty() -> None:
    for directory in ("jobs", "locks", "guests", ""):
        with contextlib.suppress(OSError):  # there is something in it, or it is not there
            Path(RUN_DIRECTORY, directory).rmdir()


# Looking


async def _look(
    thread: QmpThread, rtnl: Rtnl, *, logs: bool, ours: str | None = None
) -> Belongings:
    """Return all that is ours; `ours`: a lock that we hold ourselves, which is nobody's."""

    def is_locked(tag: str) -> bool:
        key = locks.destination_key(tag)
        return key != ours and locks.is_held(key)

    problems: list[str] = []
    jobs, bare = await trio.to_thread.run_sync(holdings.read_jobs)
    qemus = await _qemus(thread, jobs, is_locked)
    try:
        links = await rtnl.find_by_alias(twin.ALIAS_PREFIX)
        tunnels = await _tunnels(rtnl, is_locked)
    except NetsetupError as exc:
        links, tunnels = (), ()
        problems.append(f"taps and tunnels are not known: {exc.what}")
    return Belongings(
        boot_id=holdings.boot_id(),
        jobs=jobs,
        bare=bare,
        locks=tuple(
            replace(lock, held=lock.held and lock.key != ours)
            for lock in await trio.to_thread.run_sync(holdings.read_locks)
        ),
        taps=tuple(_taps(links, is_locked)),
        tunnels=tunnels,
        directories=await trio.to_thread.run_sync(_directories, qemus, is_locked),
        qemus=qemus,
        caches=tuple(_caches()),
        logs=tuple(await trio.to_thread.run_sync(_logs)) if logs else (),
        problems=tuple(problems),
    )


async def _qemus(
    thread: QmpThread, jobs: Sequence[JobOnHost], is_locked: IsLocked
) -> tuple[QemuHere, ...]:
    """Return every QEMU; those that a job has started, or that live in our places, are asked.

    Not those that a live job works at: it holds their monitors.
    """
    asked = {job.pid for job in jobs if job.side is Side.DESTINATION}
    busy = {job.pid for job in jobs if job.worked_at}
    found: list[QemuHere] = []

    async def look(seen: Process) -> None:
        with contextlib.suppress(HostError):  # it ended while it was looked at
            here = await trio.to_thread.run_sync(_qemu, seen, is_locked)
            ours = here.directory is not None or seen.pid in asked
            if ours and not here.locked and seen.pid not in busy:
                line = await trio.to_thread.run_sync(guests.read_line, seen)
                said = (await facts.look_at(thread, seen, line)).state
                here = replace(here, state=_state(said))
            found.append(here)

    async with trio.open_nursery() as nursery:
        for seen in await trio.to_thread.run_sync(guests.find_guests):
            nursery.start_soon(look, seen)
    return tuple(sorted(found, key=lambda qemu: qemu.pid))


def _state(said: RunState | None) -> RunState | None:
    return None if said is RunState.UNKNOWN else said


def _qemu(seen: Process, is_locked: IsLocked) -> QemuHere:
    line = guests.read_line(seen)
    name, uuid = guestline.name_of(line), guestline.uuid_of(line)
    directory = next(filter(None, map(_DIRECTORY.search, seen.argv)), None)
    tag = directory[1] if directory else _monitor_tag(seen.pid)
    return QemuHere(
        pid=seen.pid,
        start_ticks=seen.start_ticks,
        name=name,
        tags=tuple(dict.fromkeys(filter(None, (uuid, name, tag)))),
        taps=tuple(interface for _, interface in process.taps(seen.pid)),
        directory=tag,
        state=None,
        locked=tag is not None and is_locked(tag),
    )


def _monitor_tag(pid: int) -> str | None:
    """Return the guest's id by the monitor that was handed down: its path is in no argv."""
    for each in process.unix_sockets(pid):
        if found := _DIRECTORY.match(each.name):
            return found[1]
    return None


def _taps(links: Sequence[Link], is_locked: IsLocked) -> Iterator[OurTap]:
    for link in links:
        mark = _ALIAS.match(link.alias or "")
        if mark and link.alias and link.kind == "tun":
            tag = mark["tag"]
            yield OurTap(link.name, link.alias, tag, link.carrier, is_locked(tag))


async def _tunnels(rtnl: Rtnl, is_locked: IsLocked) -> tuple[OurTunnel, ...]:
    return tuple(
        OurTunnel(
            tunnel.id,
            tunnel.end is End.AWAY,
            tunnel.guests,
            tunnel.taps,
            None if tunnel.remote is None else str(tunnel.remote),
            tuple(filter(is_locked, tunnel.guests)),
        )
        for tunnel in await list_tunnels(rtnl)
    )


def _directories(qemus: Sequence[QemuHere], is_locked: IsLocked) -> tuple[GuestDirectory, ...]:
    claimed = {qemu.directory for qemu in qemus}  # no need to knock there
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(Path(RUN_DIRECTORY, "guests").iterdir()):
            try:
                lived_in = entry.name in claimed or is_lived_in(entry)
            except OSError:
                continue  # it is no directory, or has gone meanwhile
            found.append(GuestDirectory(entry.name, lived_in, is_locked(entry.name)))
    return tuple(found)


def _caches() -> Iterator[CacheLeft]:
    """Yield what killed starts have left; `bootstrap` locks a directory while it fills it."""
    with contextlib.suppress(OSError):
        for entry in sorted(Path(CACHE_DIRECTORY, "agent").iterdir()):
            if _NEW_CACHE.fullmatch(entry.name):
                with _locked(entry) as free:
                    yield CacheLeft(entry.name, in_use=not free)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold an unpacked agent's directory, if nobody else does; yield whether we do."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _logs() -> Iterator[LogLeft]:
    written = {target for seen in process.find_qemus() for target in _targets(seen.pid)}
    try:
        directories = sorted(Path(LOG_DIRECTORY).iterdir())
    except OSError:
        return
    for directory in directories:
        try:
            files = {entry.name: entry.stat(follow_symlinks=False) for entry in directory.iterdir()}
        except OSError:
            continue
        youngest_s = max((facts.st_mtime for facts in files.values()), default=0.0)
        youngest_s = max(youngest_s, directory.stat().st_mtime)
        yield LogLeft(
            directory.name,
            max(0.0, time.time() - youngest_s),
            files[WORDS].st_size if WORDS in files else 0,
            in_use=str(directory / WORDS) in written,
        )


def _targets(pid: int) -> tuple[str, ...]:
    try:
        return process.targets(pid)
    except HostError:
        return ()


# Removing


class _Remover:
    """Removes one thing at a time, each judged again under its lock."""

    def __init__(self, thread: QmpThread, rtnl: Rtnl, request: RemoveBelongings) -> None:
        self._thread = thread
        self._rtnl = rtnl
        self._request = request

    async def remove(self, wanted: Thing) -> Removal:
        """Remove a thing, or say why it stays; one that has gone by itself counts as removed."""
        try:
            key = _lock_of(wanted, await self._look())
            async with _holding(key):
                judged = judge(await self._look(key), self._request.peers, self._request.logs)
                same = (t for t in judged if (t.kind, t.name) == (wanted.kind, wanted.name))
                thing = next(same, None)
                if thing is None:
                    return Removal(wanted, removed=True, why="it had gone already")
                if thing.verdict is not Verdict.REMOVABLE:
                    return Removal(thing, removed=False, why=thing.why)
                await self._act(thing)
        except (QmigrateError, NetsetupError) as exc:
            return Removal(wanted, removed=False, why=str(exc))
        except OSError as exc:
            return Removal(wanted, removed=False, why=f"{wanted.name}: {exc.strerror}")
        return Removal(thing, removed=True)

    async def _look(self, ours: str | None = None) -> Belongings:
        logs = self._request.logs is not None
        return await _look(self._thread, self._rtnl, logs=logs, ours=ours)

    async def _act(self, thing: Thing) -> None:
        match thing.kind:
            case Kind.TWIN:
                await self._end_twin(thing)
            case Kind.JOB:
                JobPlaces(thing.name).remove()
                if JobPlaces(thing.name).directory.exists():
                    raise HostError(f"{JobPlaces(thing.name).directory} cannot be removed")
            case Kind.TAP:
                link = await self._rtnl.link(thing.name)
                if link is not None and link.alias:
                    await self._rtnl.delete_tap(thing.name, alias=link.alias)
            case Kind.TUNNEL:
                done = await remove_tunnel(self._rtnl, thing.name)
                if done.kept:
                    raise HostError(done.kept)
            case Kind.DIRECTORY:
                if stays := remove_guest_directory(thing.name):
                    raise HostError(stays)
            case Kind.LOCK:
                pass  # held by us, and removed as any lock is by its holder
            case Kind.CACHE:
                await trio.to_thread.run_sync(_remove_cache, thing.name)
            case Kind.LOG:
                shutil.rmtree(Path(LOG_DIRECTORY, thing.name))
            case Kind.WORDS:
                _cut(Path(LOG_DIRECTORY, thing.name, WORDS))

    async def _end_twin(self, thing: Thing) -> None:
        jobs, _ = await trio.to_thread.run_sync(holdings.read_jobs)
        job = next(job for job in jobs if job.job == thing.job)
        pidfd = twin.open_process(job.pid, job.start_ticks)
        if pidfd is not None:
            try:
                await twin.kill(pidfd)
            finally:
                os.close(pidfd)


def _lock_of(thing: Thing, here: Belongings) -> str | None:
    """Return the lock that a job would need which could still want the thing."""
    match thing.kind:
        case Kind.LOCK:
            return thing.name
        case Kind.JOB:
            job = next((job for job in here.jobs if job.job == thing.name), None)
            if job and job.side is Side.SOURCE and job.pid and job.start_ticks:
                return locks.source_key(job.pid, job.start_ticks)
            tag = tag_of(job) if job else thing.tag
            return locks.destination_key(tag) if tag else None
        case Kind.TWIN | Kind.TAP | Kind.TUNNEL | Kind.DIRECTORY:
            return locks.destination_key(thing.tag) if thing.tag else None
        case _:
            return None


@asynccontextmanager
async def _holding(key: str | None) -> AsyncIterator[None]:
    """Hold a lock as a job does; raises `HostError` if one holds it."""
    if key is None:
        yield
        return
    descriptor = locks.take(key, "cleanup")
    try:
        yield
    finally:
        locks.remove(key, descriptor)


def _remove_cache(name: str) -> None:
    directory = Path(CACHE_DIRECTORY, "agent", name)
    # A start makes its directory and locks it with the cache to itself: never between the two.
    with bootstrap.alone_in(str(directory.parent)), _locked(directory) as free:
        if not free:
            raise HostError(f"{directory} is being unpacked")
        shutil.rmtree(directory)


def _cut(log: Path) -> None:
    """Keep the end of a log that a QEMU appends to: it goes on writing behind it (O_APPEND)."""
    with log.open("rb+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT_WORDS_BYTES))
        end = file.read()
        file.truncate(0)
    with log.open("ab") as file:
        file.write(end)
