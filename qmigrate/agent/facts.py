"""What a host and its guests are: the handlers of `GetHostFacts`, `ListGuests`, `InspectGuest`.

All guests are asked side by side, each within `GUEST_DEADLINE_S`, so one that hangs delays nobody.
What cannot be asked over QMP is read off the command line, and `monitor_problem` says why.
"""

import contextlib
import json
from dataclasses import dataclass, replace

import trio

from qmigrate.agent import guests, host, process
from qmigrate.agent.monitors import open_guest
from qmigrate.agent.process import Process
from qmigrate.agent.protocol import LINE_LIMIT, codec
from qmigrate.agent.requests import (
    GetHostFacts,
    GuestList,
    InspectGuest,
    ListGuests,
)
from qmigrate.agent.server import AgentContext
from qmigrate.agent.supervision import supervision_of
from qmigrate.core.argv import CommandLine
from qmigrate.core.errors import HostError, MonitorError
from qmigrate.core.guestline import descriptors_of
from qmigrate.core.model import Guest, GuestDetail, HostFacts, Shape
from qmigrate.qmp.client import QmpThread
from qmigrate.qmp.events import MigrationStatus
from qmigrate.qmp.introspect import guest_facts, shape
from qmigrate.qmp.migration import Qemu

LIST_BYTES = LINE_LIMIT // 2  # of an answer for all guests together
NAME_LETTERS = 200  # of a word of a guest that takes more than its share
GUEST_DEADLINE_S = 3.0  # for what a list shows of one guest; a healthy one needs 20 ms
INSPECT_DEADLINE_S = 20.0  # a shape is hundreds of questions of 1 ms, more under load


async def host_facts(ctx: AgentContext, request: GetHostFacts) -> HostFacts:
    """Answer `GetHostFacts`."""
    return await host.gather_host_facts(request)


async def list_guests(ctx: AgentContext, request: ListGuests) -> GuestList:
    """Answer `ListGuests`: every QEMU of this host, by name and pid."""
    thread = await ctx.shared.once(QmpThread)
    found: list[Guest] = []

    async def look(seen: Process) -> None:
        with contextlib.suppress(HostError):  # it ended while it was looked at
            line = await trio.to_thread.run_sync(guests.read_line, seen)
            found.append(await look_at(thread, seen, line))

    async with trio.open_nursery() as nursery:
        for seen in await trio.to_thread.run_sync(guests.find_guests):
            nursery.start_soon(look, seen)
    return GuestList(
        tuple(sorted(_fitting(found), key=lambda guest: (guest.name or "", guest.pid)))
    )


def _fitting(found: list[Guest]) -> list[Guest]:
    """Cut short what takes more than its share of an answer, where not all of it fits.

    Anybody can start a process that is named like a QEMU, with megabytes of words.
    """
    sizes = [len(json.dumps(codec.unstructure(guest))) for guest in found]
    if sum(sizes) <= LIST_BYTES:
        return found
    share = LIST_BYTES // len(found)
    return [
        guest if size <= share else _cut_short(guest)
        for guest, size in zip(found, sizes, strict=True)
    ]


def _cut_short(guest: Guest) -> Guest:
    return replace(
        guest,
        argv=(),
        disks=(),
        nics=(),
        executable=guest.executable[:NAME_LETTERS],
        name=guest.name and guest.name[:NAME_LETTERS],
        uuid=guest.uuid and guest.uuid[:NAME_LETTERS],
        machine=guest.machine and guest.machine[:NAME_LETTERS],
        accelerator=guest.accelerator and guest.accelerator[:NAME_LETTERS],
        monitor=guest.monitor and guest.monitor[:NAME_LETTERS],
        monitor_problem=guest.monitor_problem and guest.monitor_problem[:NAME_LETTERS],
        monitor_fix=guest.monitor_fix and guest.monitor_fix[:NAME_LETTERS],
        owner_reason="its command line is too long to be shown",
    )


async def inspect_guest(ctx: AgentContext, request: InspectGuest) -> GuestDetail:
    """Answer `InspectGuest`; raise `UsageError` unless exactly one guest is meant."""
    thread = await ctx.shared.once(QmpThread)
    seen = await trio.to_thread.run_sync(guests.find_guest, request.guest)
    line = await trio.to_thread.run_sync(guests.read_line, seen)
    guest = await look_at(thread, seen, line)
    told = _Told()
    if guest.monitor_problem is None:
        try:
            with trio.fail_after(INSPECT_DEADLINE_S):
                async with open_guest(thread, seen, line) as opened:
                    told = await _ask_details(Qemu(opened.monitor), line)
        except trio.TooSlowError:
            guest = _hangs(guest, INSPECT_DEADLINE_S)
        except MonitorError as exc:
            guest = _unreached(guest, exc)
    return await trio.to_thread.run_sync(_detail, seen, line, guest, told)


async def look_at(thread: QmpThread, seen: Process, line: CommandLine) -> Guest:
    """Return what is known of one QEMU after `GUEST_DEADLINE_S` at most.

    Raises `HostError` when the process has ended meanwhile.
    """
    guest = await trio.to_thread.run_sync(guests.from_command_line, seen, line)
    asked = guest

    async def ask() -> None:
        nonlocal asked
        try:
            with trio.fail_after(GUEST_DEADLINE_S):
                asked = await _ask(thread, seen, line, guest)
        except trio.TooSlowError:
            asked = _hangs(guest, GUEST_DEADLINE_S)
        except MonitorError as exc:
            asked = _unreached(guest, exc)
        except HostError:
            pass  # it has ended: seen again below

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        owner = await supervision_of(seen)
    if process.start_ticks(seen.pid) != seen.start_ticks:
        raise HostError(f"process {seen.pid} has ended")
    return replace(asked, owner=owner.owner, unit=owner.unit, owner_reason=owner.reason)


async def _ask(thread: QmpThread, seen: Process, line: CommandLine, guest: Guest) -> Guest:
    async with open_guest(thread, seen, line) as opened:
        told = await guest_facts(Qemu(opened.monitor))
    at = opened.path
    return await trio.to_thread.run_sync(lambda: guests.with_answers(guest, seen, told, monitor=at))


def _hangs(guest: Guest, deadline_s: float) -> Guest:
    return replace(
        guest,
        monitor_problem=f"it has not answered within {deadline_s:g} s",
        monitor_fix=f"look at process {guest.pid}: it may be stopped, or its disk may hang",
    )


def _unreached(guest: Guest, exc: MonitorError) -> Guest:
    problem, said = exc.problem, exc.problem.last_words
    what = f"{problem.what}: {said}" if said else problem.what
    return replace(guest, monitor_problem=what, monitor_fix=problem.next_step)


@dataclass(frozen=True, slots=True)
class _Told:
    """What only a running monitor tells beyond `Guest`."""

    shape: Shape | None = None
    blocked: tuple[str, ...] = ()
    hotplugged: tuple[str, ...] = ()
    migration: str | None = None


async def _ask_details(qemu: Qemu, line: CommandLine) -> _Told:
    progress = await qemu.query_migrate()
    known = progress.status is not MigrationStatus.NONE
    return _Told(
        shape=await shape(qemu),
        blocked=progress.blocked_reasons,
        hotplugged=await guests.ask_hotplugged(qemu, line),
        migration=progress.status.value if known else None,
    )


def _detail(seen: Process, line: CommandLine, guest: Guest, told: _Told) -> GuestDetail:
    taps = dict.fromkeys(
        (*(name for _, name in process.taps(seen.pid)), *(n.tap for n in guest.nics if n.tap))
    )
    targets = ((fd, process.descriptor_target(seen.pid, fd)) for fd in descriptors_of(line))
    return GuestDetail(
        # Whole, for the twin: a listing's argv has its secrets blacked and its -readconfig unread.
        guest=replace(guest, argv=line.render()),
        process=process.process_facts(seen.pid),
        shape=told.shape,
        blocked_reasons=told.blocked,
        hotplugged=told.hotplugged,
        migration_status=told.migration,
        tap_aliases=tuple((tap, alias) for tap in taps if (alias := host.alias_of(tap))),
        fdset_paths=tuple((fd, target or "closed") for fd, target in targets),
    )
