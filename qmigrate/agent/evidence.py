"""What this host can tell of a guest that somebody wants to resolve; nothing is changed.

Its QEMUs, each asked unless a job's agent holds its monitor; and, once both hosts' are known, the
traces that they leave: who has their images open and locked, when those were written to last, who
answers for the guest's addresses on its bridges, and behind which port.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import trio

from netsetup.errors import NetsetupError
from netsetup.rtnl import Rtnl
from netsetup.whohas import neighbours_untrusted, who_has
from qmigrate.agent import guests, holdings, host, locks, process
from qmigrate.agent.monitors import Opened, open_guest
from qmigrate.agent.places import JobPlaces
from qmigrate.agent.process import Process
from qmigrate.agent.protocol import parse_json_untrusted, structure_untrusted
from qmigrate.agent.server import AgentContext
from qmigrate.agent.specs import read_spec
from qmigrate.core.argv import CommandLine
from qmigrate.core.copies import (
    AnswerSeen,
    CopiesHere,
    CopySeen,
    FindCopies,
    ImageHolder,
    ImageSeen,
    LookAtTraces,
    Traces,
)
from qmigrate.core.errors import (
    HostError,
    MonitorBusyError,
    MonitorError,
    MonitorGarbledError,
    ProtocolError,
)
from qmigrate.core.finding import name_in_id
from qmigrate.core.guestline import name_of
from qmigrate.core.job import LOG_DIRECTORY, RUN_DIRECTORY, Announced, JobReport
from qmigrate.core.model import Guest
from qmigrate.qmp.client import QmpThread
from qmigrate.qmp.migration import Qemu

COPY_DEADLINE_S = 10.0  # for all that is asked of one QEMU; a healthy one needs 20 ms
BUSY_PAUSE_S = 0.2  # before a monitor is tried again: whoever resolves too has it for a moment
BUSY_LIMIT = 10  # times
IMAGE_DEADLINE_S = 10.0  # for a stat on a store that may hang
KEPT_REPORTS = 50  # among which the guest's last one is looked for
MOST_ADDRESSES = 8  # to be asked for: each takes a second
_TWINS = re.compile(rf"{RUN_DIRECTORY}/guests/([A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}})(?:/|$|,)")


async def find_copies(ctx: AgentContext, request: FindCopies) -> CopiesHere:
    """Answer `FindCopies`: every QEMU of the guest on this host, by pid."""
    thread = await ctx.shared.once(QmpThread)
    jobs, _bare = await trio.to_thread.run_sync(holdings.read_jobs)
    pids = {(job.pid, job.start_ticks) for job in jobs if job.job in request.jobs}
    found: list[CopySeen] = []

    async def look(seen: Process) -> None:
        with contextlib.suppress(HostError):  # it ended while it was looked at
            line = await trio.to_thread.run_sync(guests.read_line, seen)
            guest = await trio.to_thread.run_sync(guests.from_command_line, seen, line)
            if _is(guest, request.guest) or (seen.pid, seen.start_ticks) in pids:
                found.append(await _look(thread, seen, line, guest))

    async with trio.open_nursery() as nursery:
        for seen in await trio.to_thread.run_sync(guests.find_guests):
            nursery.start_soon(look, seen)
    macs = frozenset(mac.lower() for copy in found for mac in copy.macs)
    addresses = (
        *_told_addresses(request.jobs),
        *await trio.to_thread.run_sync(_reported_addresses, request.guest),
        *await _neighbours(macs),
    )
    return CopiesHere(
        boot_id=holdings.boot_id(),
        copies=tuple(sorted(found, key=lambda copy: copy.pid)),
        addresses=tuple({(a.mac, a.address): a for a in addresses}.values())[:MOST_ADDRESSES],
    )


def _is(guest: Guest, wanted: str) -> bool:
    return wanted == guest.name or wanted.lower() == (guest.uuid or "").lower()


async def _look(thread: QmpThread, seen: Process, line: CommandLine, guest: Guest) -> CopySeen:
    tag = await trio.to_thread.run_sync(twin_tag, seen)
    copy = CopySeen(
        pid=seen.pid,
        start_ticks=seen.start_ticks,
        name=guest.name,
        uuid=guest.uuid,
        state=None,
        twin=tag is not None,
        job=holder_of(seen, tag),
        disks=tuple(d.path or f"{d.driver} {d.device}" for d in guest.disks if not d.read_only),
        macs=tuple(nic.mac for nic in guest.nics if nic.mac),
        bridges=tuple(dict.fromkeys(nic.bridge for nic in guest.nics if nic.bridge)),
    )
    if copy.job is not None:
        return copy
    try:
        with trio.fail_after(COPY_DEADLINE_S):
            async with open_patiently(thread, seen, line) as opened:
                return await ask_copy(Qemu(opened.monitor), copy)
    except trio.TooSlowError:
        return replace(copy, problem=f"it has not answered within {COPY_DEADLINE_S:g} s")
    except MonitorError as exc:
        said = exc.problem.last_words
        what = f"{exc.problem.what}: {said}" if said else exc.problem.what
        return replace(copy, problem=what)


@contextlib.asynccontextmanager
async def open_patiently(
    thread: QmpThread, seen: Process, line: CommandLine
) -> AsyncIterator[Opened]:
    """Open a guest's monitor, though others may have it for a moment; raises `MonitorError`."""
    async with contextlib.AsyncExitStack() as stack:
        for attempt in range(BUSY_LIMIT):
            try:
                opened = await stack.enter_async_context(open_guest(thread, seen, line))
                break
            except MonitorBusyError:
                if attempt == BUSY_LIMIT - 1:
                    raise
                await trio.sleep(BUSY_PAUSE_S)
        yield opened


async def ask_copy(qemu: Qemu, copy: CopySeen) -> CopySeen:
    """Return a copy with what its QEMU says of it; raises `MonitorError`."""
    state = await qemu.status()
    progress = await qemu.query_migrate()
    blocks = await qemu.monitor.execute("query-blockstats")
    wrote = _wrote_untrusted(blocks, name=qemu.monitor.name)
    return replace(copy, state=state, migration=str(progress.status), wrote=wrote)


def _wrote_untrusted(reply: Any, *, name: str) -> bool:
    """Say whether a QEMU has written to an image since it began (QMP `query-blockstats`).

    The counts are each process's own: they do not travel with the guest.
    """
    try:
        return any(
            row["stats"].get(count, 0) > 0
            for row in reply
            for count in ("wr_operations", "wr_bytes", "unmap_operations", "zone_append_operations")
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise MonitorGarbledError(
            f"{name}: query-blockstats answered something else", last_words=repr(reply)[:200]
        ) from exc


def twin_tag(seen: Process) -> str | None:
    """Return the guest's id if the QEMU was started by a job: it listens in a directory of ours."""
    names = (*seen.argv, *(each.name for each in process.unix_sockets(seen.pid)))
    found = next(filter(None, map(_TWINS.search, names)), None)
    return found[1] if found else None


def lock_keys(seen: Process, tag: str | None) -> tuple[str, ...]:
    """Return the locks that a job with this QEMU would hold."""
    keys = (locks.source_key(seen.pid, seen.start_ticks),)
    return keys if tag is None else (*keys, locks.destination_key(tag))


def holder_of(seen: Process, tag: str | None) -> str | None:
    """Return the job that holds a QEMU now."""
    keys = lock_keys(seen, tag)
    held = (lock for lock in holdings.read_locks() if lock.held and lock.key in keys)
    return next((lock.job or "a job" for lock in held), None)


def _told_addresses(jobs: Sequence[str]) -> Iterator[Announced]:
    for job in jobs:
        spec = read_spec(JobPlaces(job).spec) if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job) else None
        if spec is not None and spec.destination is not None:
            yield from spec.destination.addresses


def _reported_addresses(guest: str) -> tuple[Announced, ...]:
    """Return what the guest's last move from here has announced."""
    ended = holdings.read_ended(KEPT_REPORTS)
    ours = (each.job for each in ended if each.job.rpartition("-")[0] == name_in_id(guest))
    for job in ours:
        with contextlib.suppress(OSError, ProtocolError):  # one of another version
            path = Path(LOG_DIRECTORY, job, "report.json")
            report = structure_untrusted(parse_json_untrusted(path.read_bytes()), JobReport)
            if report.announced is not None and report.announced.addresses:
                known: tuple[Announced, ...] = report.announced.addresses
                return known
    return ()


async def _neighbours(macs: frozenset[str]) -> tuple[Announced, ...]:
    """Return what the kernel's neighbour table knows of the guest's cards."""
    if not macs:
        return ()
    try:
        async with Rtnl() as rtnl:
            known = await rtnl.run(
                "list the neighbours",
                lambda ip: neighbours_untrusted(list(ip.get_neighbours()), macs),
            )
    except NetsetupError:
        return ()
    return tuple(Announced(mac, address, "seen") for mac, address in known)


# Traces


async def look_at_traces(_ctx: AgentContext, request: LookAtTraces) -> Traces:
    """Answer `LookAtTraces`; what cannot be found out is said or left out."""
    images = []
    for path in request.images:
        with trio.move_on_after(IMAGE_DEADLINE_S):
            images.append(await trio.to_thread.run_sync(_image, path, abandon_on_cancel=True))
            continue
        what = f"its storage did not answer within {IMAGE_DEADLINE_S:g} s"
        images.append(ImageSeen(path, problem=what))
    bridges = [b for b in request.bridges if b in await trio.to_thread.run_sync(host.bridges)]
    answers: dict[tuple[str, str], AnswerSeen] = {}

    async def ask(rtnl: Rtnl, bridge: str, known: Announced) -> None:
        with contextlib.suppress(NetsetupError, ValueError):
            macs = await who_has(ip_address(known.address), bridge=bridge)
            mac = macs[0] if macs else None
            port = await rtnl.fdb_port(mac or known.mac, bridge)
            answers[bridge, known.address] = AnswerSeen(known.address, bridge, mac, port)

    if bridges and request.addresses:
        async with Rtnl() as rtnl, trio.open_nursery() as nursery:
            for bridge in bridges:
                for known in request.addresses[:MOST_ADDRESSES]:
                    nursery.start_soon(ask, rtnl, bridge, known)
    return Traces(tuple(images), tuple(answers[key] for key in sorted(answers)))


def _image(path: str) -> ImageSeen:
    """Look at an image, and at who has it open (proc(5): fdinfo tells a descriptor's locks)."""
    try:
        facts = Path(path).stat()
    except OSError as exc:
        return ImageSeen(path, problem=exc.strerror)
    regular = stat.S_ISREG(facts.st_mode)
    return ImageSeen(
        path,
        facts.st_size if regular else None,
        max(0.0, time.time() - facts.st_mtime) if regular else None,
        tuple(sorted(_holders(facts), key=lambda holder: holder.pid)),
    )


def _holders(image: os.stat_result) -> Iterator[ImageHolder]:
    device = image.st_rdev if stat.S_ISBLK(image.st_mode) else 0
    for entry in process.PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        locked: bool | None = None
        with contextlib.suppress(OSError):  # it ended, or closed one, while it was looked at
            for descriptor in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    seen = descriptor.stat()
                    same = (seen.st_dev, seen.st_ino) == (image.st_dev, image.st_ino)
                    if same or (device and seen.st_rdev == device):
                        text = (entry / "fdinfo" / descriptor.name).read_text(errors="replace")
                        locked = locked or "\nlock:" in text
        if locked is not None:
            with contextlib.suppress(HostError, OSError):
                yield _holder(int(entry.name), locked=locked)


def _holder(pid: int, *, locked: bool) -> ImageHolder:
    name = None
    executable = str((process.PROC / str(pid) / "exe").readlink())
    if process.named_like_qemu(executable.removesuffix(" (deleted)")):
        name = name_of(CommandLine.parse(process.look(pid).argv))
    return ImageHolder(pid, process.command(pid), locked, name)
