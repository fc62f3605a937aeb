"""Tell a segment where a guest is now: what to send and when (pure), and the sending.

What has to learn it, and from what:

- *This host's bridge*: frames that we send teach it nothing, they do not come in at a port. Its
  forwarding entry is set by netlink.
- *Other switches* learn the port from any frame with the guest's MAC as its source that comes
  their way: RARP, as QEMU sends it, is enough, and is all there is if no address is known.
- *Neighbours' caches* stay right, for the MAC moves along with the guest; the gratuitous ARP and
  the unsolicited advertisement are for those where they are not: proxies, EVPN, ARP suppression.

Frames go out of every port of the bridge but the guest's own (`links.announce_ports`).
"""

import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import groupby

import trio

from netsetup.errors import NetsetupError, NoSuchLinkError, RefusedError, UsageError
from netsetup.frames import (
    Address,
    FrameKind,
    arp_announcement,
    is_host_address,
    mac_text,
    neighbour_advertisement,
    parse_mac,
    rarp_announcement,
)
from netsetup.links import announce_ports
from netsetup.rtnl import Rtnl

# Three in the first half second, for a lost one is an outage; then again when slow ports (STP,
# LACP) have settled. RFC 5227 sends two 2 s apart, keepalived five at once and five more after 5 s.
SCHEDULE_MS: tuple[int, ...] = (0, 150, 400, 2000, 5000)

# Per interface. Storm control on switches counts broadcasts; hundreds a second are common limits.
MAX_FRAMES_PER_S = 20


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame and when it leaves, in milliseconds after `fire`."""

    at_ms: int
    kind: FrameKind
    address: Address | None
    vlan: int | None
    octets: bytes


@dataclass(frozen=True, slots=True)
class AnnouncePlan:
    """Frames in the order of their times; `note` says what they cannot do."""

    mac: str
    vlan: int | None
    addresses: tuple[Address, ...]
    frames: tuple[PlannedFrame, ...]
    note: str | None


@dataclass(frozen=True, slots=True)
class SentFrame:
    """A frame that left, or did not: `problem` says why."""

    at_ms: float  # after `fire`
    kind: FrameKind
    address: Address | None
    vlan: int | None
    interface: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class AnnounceRecord:
    """What was done so far."""

    mac: str
    interfaces: tuple[str, ...]
    sent: tuple[SentFrame, ...]
    fdb_port: str | None  # where this host's bridge sends frames for the guest, if we set it
    fdb_problem: str | None
    note: str | None
    complete: bool  # the schedule has ended

    @property
    def problems(self) -> tuple[str, ...]:
        """Every different thing that failed, once."""
        found = dict.fromkeys(f"{s.interface}: {s.problem}" for s in self.sent if s.problem)
        return (*found, *([f"forwarding entry: {self.fdb_problem}"] if self.fdb_problem else ()))


def plan(
    addresses: Iterable[Address],
    mac: str,
    *,
    vlan: int | None = None,
    schedule_ms: Sequence[int] = SCHEDULE_MS,
    reply_form: bool = False,
) -> AnnouncePlan:
    """Return the frames for `mac` and its `addresses`, in rounds at `schedule_ms`.

    A round is RARP, then an ARP announcement an IPv4 and an advertisement an IPv6 address;
    `reply_form` adds ARP's other form. Rounds that would exceed `MAX_FRAMES_PER_S` are stretched.
    Raises `UsageError` for an address, a MAC, a VLAN or a schedule that cannot be.
    """
    octets = parse_mac(mac)
    if not schedule_ms or list(schedule_ms) != sorted(set(schedule_ms)) or schedule_ms[0] < 0:
        raise UsageError("a schedule is one or more rising times in milliseconds, from 0")
    known = tuple(dict.fromkeys(addresses))
    for address in known:
        if not is_host_address(address):
            raise UsageError(f"{address} is no address that one guest can have")
    round_: list[tuple[FrameKind, Address | None, bytes]] = [
        (FrameKind.RARP, None, rarp_announcement(octets, vlan=vlan))
    ]
    for address in sorted(known, key=lambda a: a.version):  # stable: the caller's order within
        if isinstance(address, IPv4Address):
            frame = arp_announcement(octets, address, vlan=vlan)
            round_.append((FrameKind.GARP, address, frame))
            if reply_form:
                frame = arp_announcement(octets, address, reply=True, vlan=vlan)
                round_.append((FrameKind.GARP_REPLY, address, frame))
        else:
            frame = neighbour_advertisement(octets, address, vlan=vlan)
            round_.append((FrameKind.NA, address, frame))
    frames = []
    lately: deque[int] = deque(maxlen=MAX_FRAMES_PER_S)
    for wanted_ms in schedule_ms:
        for kind, about, frame in round_:
            full = len(lately) == MAX_FRAMES_PER_S
            at_ms = max(wanted_ms, lately[0] + 1000 if full else 0, lately[-1] if lately else 0)
            lately.append(at_ms)
            frames.append(PlannedFrame(at_ms, kind, about, vlan, frame))
    note = None if known else "no address of the guest is known: RARP only, which moves no caches"
    return AnnouncePlan(mac_text(octets), vlan, known, tuple(frames), note)


class Announcer:
    """Armed: the socket is open, the frames are built, the ports are known. See `arm`."""

    def __init__(
        self,
        armed: AnnouncePlan,
        wire: socket.socket,
        rtnl: Rtnl,
        *,
        interfaces: tuple[str, ...],
        tap: str | None,
        filters_vlans: bool,
    ) -> None:
        self._plan = armed
        self._wire = wire
        self._rtnl = rtnl
        self._interfaces = interfaces
        self._tap = tap
        self._filters_vlans = filters_vlans
        self._sent: list[SentFrame] = []
        self._fired = False
        self._fdb_done = trio.Event()
        self._fdb_port: str | None = None
        self._fdb_problem: str | None = None
        self._complete = trio.Event()

    @property
    def record(self) -> AnnounceRecord:
        """What was sent so far."""
        return AnnounceRecord(
            mac=self._plan.mac,
            interfaces=self._interfaces,
            sent=tuple(self._sent),
            fdb_port=self._fdb_port,
            fdb_problem=self._fdb_problem,
            note=self._plan.note,
            complete=self._complete.is_set(),
        )

    def replan(self, changed: AnnouncePlan) -> None:
        """Take another plan before `fire`: addresses were learned while the guest was copied."""
        if self._fired:
            raise NetsetupError("an announcer that has fired cannot be given another plan")
        self._plan = changed

    async def fire(self, nursery: trio.Nursery) -> AnnounceRecord:
        """Announce now: return when the first round is out, go on with the others in `nursery`.

        This host's own bridge turns a moment later, in `nursery` too; see `record`. What fails
        is in the record and not raised: the guest runs, whatever the network says. Cancelling
        the nursery ends the schedule, nothing has to be undone. Only once.
        """
        if self._fired:
            raise NetsetupError("this announcer has fired already: arm another")
        self._fired, started = True, trio.current_time()
        # Frames before the entry: they take 0.03 ms each and need no lock of the kernel's, while
        # netlink waits for whoever holds the rtnl lock. An outage ends when both are done.
        first, *later = _rounds(self._plan)
        if first[0].at_ms == 0:
            self._send(first, started)
        else:
            later.insert(0, first)
        nursery.start_soon(self._turn_own_bridge)
        nursery.start_soon(self._send_later, later, started)
        await trio.lowlevel.cancel_shielded_checkpoint()  # what was sent must come back
        return self.record

    async def wait_complete(self) -> AnnounceRecord:
        """Return the record when the schedule has ended."""
        await self._complete.wait()
        return self.record

    async def _turn_own_bridge(self) -> None:
        """Set the forwarding entry, which ages; see `Rtnl.set_fdb` for why it must."""
        if self._tap is not None:
            # A bridge that does not filter knows no VLANs, and refuses an entry with one.
            vlan = self._plan.vlan if self._filters_vlans else None
            try:
                with trio.CancelScope(shield=True):  # the guest runs here even if the job is over
                    await self._rtnl.set_fdb(self._plan.mac, self._tap, vlan=vlan)
            except NetsetupError as exc:
                self._fdb_problem = exc.what
            else:
                self._fdb_port, self._fdb_problem = self._tap, None
        self._fdb_done.set()

    async def _send_later(self, rounds: list[list[PlannedFrame]], started: float) -> None:
        for frames in rounds:
            await trio.sleep_until(started + frames[0].at_ms / 1000)
            if self._fdb_problem:  # STP had the port blocked, say: not again once it worked,
                await self._turn_own_bridge()  # for the guest may have moved on since
            self._send(frames, started)
        await self._fdb_done.wait()
        self._complete.set()

    def _send(self, frames: list[PlannedFrame], started: float) -> None:
        for interface in self._interfaces:
            for frame in frames:
                problem = None
                try:
                    self._wire.sendto(frame.octets, (interface, 0))
                except OSError as exc:  # gone, down, its queue full: the next round tries again
                    problem = exc.strerror or str(exc)
                at_ms = (trio.current_time() - started) * 1000
                self._sent.append(
                    SentFrame(at_ms, frame.kind, frame.address, frame.vlan, interface, problem)
                )


def _rounds(planned: AnnouncePlan) -> list[list[PlannedFrame]]:
    groups = groupby(planned.frames, key=lambda frame: frame.at_ms)
    return [list(frames) for _, frames in groups]


@asynccontextmanager
async def arm(
    rtnl: Rtnl, armed: AnnouncePlan, *, interface: str, tap: str | None = None
) -> AsyncIterator[Announcer]:
    """Open an `Announcer` on `interface`, the guest's bridge, with `tap` the guest's port in it.

    All that can fail early fails here: raises `NoSuchLinkError`, and `RefusedError` without
    privilege. An interface that is no bridge, or is given without `tap`, sends by itself.
    """
    links, bridges = await rtnl.links(), await rtnl.bridges()
    for name in (interface, *([tap] if tap else ())):
        if not any(link.name == name for link in links):
            raise NoSuchLinkError(
                f"there is no interface {name}",
                next_step=f"interfaces here: {', '.join(link.name for link in links)}",
            )
    master = next((link.master for link in links if link.name == tap), None)
    if tap is not None and master != interface:
        raise NoSuchLinkError(
            f"{tap} is no port of {interface}",
            next_step=f"it is a port of {master}" if master else f"ip link set {tap} master …",
        )
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except OSError as exc:
        raise RefusedError("open a packet socket", exc.errno or 0) from exc
    with wire:
        yield Announcer(
            armed,
            wire,
            rtnl,
            interfaces=announce_ports(links, interface, tap),
            tap=tap,
            filters_vlans=any(b.name == interface and b.vlan_filtering for b in bridges),
        )
