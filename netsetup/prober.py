"""One side of a proof that two segments are one: it asks, and answers what the other asks.

Somebody who talks to both hosts opens a prober on each with the same nonce, lets both `ask` at
once, and has `netsetup.adjacency.judge` compare their reports. Each side measures what passes
*from* it, by short answers, so that a narrow or dead way back spoils nothing; what passes in the
end is what the *other* side reports to have heard.
"""

import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import trio

from netsetup import segment_sysfs
from netsetup.errors import UsageError
from netsetup.frames import mac_text, parse_mac
from netsetup.packets import CONTROL_BYTES, listen, stripped_vlan
from netsetup.probe_frames import (
    ETHERTYPE_PROBE,
    MAX_PAYLOAD_BYTES,
    MIN_PAYLOAD_BYTES,
    SENDER_BYTES,
    check_nonce,
)
from netsetup.probe_ledger import Ledger
from netsetup.probe_report import Place, ProbeReport, Refused
from netsetup.probe_sizes import SizeSearch
from netsetup.rtnl import Rtnl
from netsetup.segment_facts import describe_bridge, describe_segment, describe_ways
from netsetup.segments import PortFacts, Segment, SegmentFacts, View, choose_view, view_tag
from netsetup.windows import Window, open_window

# When the first is lost (a port that has just come up, a MAC not yet learned) the next comes soon;
# twelve broadcasts in all, below any switch's storm control.
ASK_AT_S = (0.0, 0.02, 0.07, 0.17, 0.37, 0.67)
LOOK_AT_S = 0.17  # at the ports: something is in the way, and may have gone before the report
SILENCE_S = 1.1  # then nobody is there: 0.4 s after the last, which is a slow host's whole nap
SEARCH_S = 1.3  # for all, with the search for the longest frame
PATIENCE_S = (0.01, 0.1)  # for an answer after the first one: at least, at most
PATIENCE_TRIPS = 8  # and so many round trips
GUEST_MTU_BYTES = 1500
_BUFFER_BYTES = 1 << 20
_BATCH_FRAMES = 32  # then others have their turn
_MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + 18
_ETHERTYPE_VLAN = 0x8100

# if ethertype is the probe's, or a tag's and the one behind it is: all of it, else nothing
_ONLY_PROBES = (
    (0x28, 0, 0, 12),
    (0x15, 3, 0, ETHERTYPE_PROBE),
    (0x15, 0, 3, _ETHERTYPE_VLAN),
    (0x28, 0, 0, 16),
    (0x15, 0, 1, ETHERTYPE_PROBE),
    (0x06, 0, 0, 0x40000),
    (0x06, 0, 0, 0),
)


class Prober:
    """An open prober; see `open_prober`."""

    def __init__(
        self,
        rtnl: Rtnl,
        segment: Segment,
        facts: SegmentFacts,
        ledger: Ledger,
        wire: socket.socket,
        window: Window | None,
        *,
        isolated: bool,
    ) -> None:
        self._rtnl = rtnl
        self._segment = segment
        self._facts = facts
        self._ledger = ledger
        self._wire = wire
        self._window = window
        self._isolated = isolated and window is not None
        self._wanted_bytes = 0
        self._complete = False
        self._early_ports: tuple[PortFacts, ...] = ()
        self._news = trio.lowlevel.ParkingLot()
        self._answering = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def view(self) -> View:
        """From where it looks."""
        return View.BRIDGE if self._window is None else View.PORT

    async def ask(self, *, mtu_bytes: int = GUEST_MTU_BYTES) -> None:
        """Ask until a frame of `mtu_bytes` is answered, else find the longest that is.

        At most `SILENCE_S` if nobody answers and `SEARCH_S` in all. What was found is in `report`;
        cancelled, it says that it is not complete. Again: adds to what was found. Raises
        `UsageError`, and `NoSuchLinkError` if the bridge goes.
        """
        if not MIN_PAYLOAD_BYTES <= mtu_bytes <= MAX_PAYLOAD_BYTES:
            raise UsageError(
                f"an MTU to probe is {MIN_PAYLOAD_BYTES} to {MAX_PAYLOAD_BYTES} bytes, "
                f"not {mtu_bytes}"
            )
        self._wanted_bytes, self._complete = mtu_bytes, False
        started = trio.current_time()
        ledger = self._ledger
        for at_s, until_s in zip(ASK_AT_S, (*ASK_AT_S[1:], SILENCE_S), strict=True):
            await trio.sleep_until(started + at_s)
            if at_s == LOOK_AT_S:
                self._early_ports = (await self._describe()).ports
            self._send(MIN_PAYLOAD_BYTES)
            self._send(mtu_bytes)
            if await self._until(lambda: bool(ledger.answered), started + until_s):
                break
        with trio.move_on_at(started + SEARCH_S) as search:
            if ledger.answered:
                await self._measure(mtu_bytes)
        self._complete = not search.cancelled_caught

    async def report(self, *, guest_mac: str | None = None) -> ProbeReport:
        """Return what was sent, heard and answered so far, and what netlink says of it.

        `guest_mac`: where this host's bridge believes it is in the report too.
        """
        ledger, heard = self._ledger, self._ledger.heard()
        facts = await self._describe(
            None if guest_mac is None else mac_text(parse_mac(guest_mac)),
            well=bool(heard) and ledger.answered_bytes == self._wanted_bytes,
        )
        return ProbeReport(
            segment=self._segment,
            view=self.view,
            vlan_tag=ledger.vlan_tag,
            isolated=self._isolated,
            mac=ledger.mac.hex(":"),
            sender=ledger.sender.hex(),
            asked_frames=ledger.asked_frames,
            wanted_bytes=self._wanted_bytes,
            complete=self._complete,
            answered_bytes=ledger.answered_bytes,
            latency_us=None if ledger.latency_s is None else round(ledger.latency_s * 1e6, 1),
            heard=heard,
            came_back=tuple(sorted(ledger.came_back)),
            repeated=ledger.repeated,
            strangers=ledger.strangers,
            refused=tuple(Refused(size, why) for size, why in sorted(ledger.refused.items())),
            facts=facts,
            early_ports=self._early_ports,
        )

    async def _describe(self, guest_mac: str | None = None, *, well: bool = False) -> SegmentFacts:
        """Ask netlink; of a segment where all went `well` only how frames came in.

        The rest explains what went wrong, and costs half a millisecond a port.
        """
        bridge = self._segment.bridge
        heard = self._ledger.heard()
        ways = {h.interface for h in heard if h.place is Place.INTERFACE}
        if well:
            told = segment_sysfs.describe_ways(self._facts, ways, guest_mac=guest_mac)
            if told is not None:
                return told
            work = partial(describe_ways, facts=self._facts, names=ways, guest_mac=guest_mac)
        else:
            work = partial(describe_segment, bridge=bridge, names=ways, guest_mac=guest_mac)
        return await self._rtnl.run(f"describe {bridge}", work)

    @property
    def quiet_s(self) -> float:
        """How long ago the other side was last heard, anywhere on this host; infinity: never."""
        last = self._ledger.last_heard_s
        return float("inf") if last is None else trio.current_time() - last

    async def _measure(self, mtu_bytes: int) -> None:
        """Wait for the long frame's answer, and search if it does not come."""
        ledger = self._ledger
        if await self._until(lambda: mtu_bytes in ledger.answered, self._patience()):
            return
        search = SizeSearch(max(ledger.answered), mtu_bytes, mtu_bytes)
        while sizes := search.next_sizes():
            for size in sizes:
                self._send(size, to=ledger.peer_mac)
            wanted = frozenset(sizes)
            await self._until(partial(wanted.issubset, ledger.answered), self._patience())
            search = search.after(sizes, frozenset(ledger.answered))

    def _patience(self) -> float:
        """Return until when to wait for an answer, from the fastest so far."""
        least, most = PATIENCE_S
        trip_s = self._ledger.latency_s or most
        return trio.current_time() + min(most, max(least, PATIENCE_TRIPS * trip_s))

    async def _until(self, condition: Callable[[], bool], deadline: float) -> bool:
        with trio.move_on_at(deadline):
            while not condition():
                await self._news.park()
        return condition()

    def _send(self, size_bytes: int, to: bytes | None = None) -> None:
        frame = self._ledger.ask(size_bytes, now_s=trio.current_time(), to=to)
        problem = self._transmit(frame)
        if problem is None:
            self._ledger.asked_frames += 1
        else:
            self._ledger.refused[size_bytes] = problem

    def _transmit(self, frame: bytes) -> str | None:
        """Send at the view; return the kernel's word if it does not."""
        try:
            if self._window is not None:
                os.write(self._window.descriptor, frame)
            else:
                self._wire.sendto(frame, (self._segment.bridge, 0))
        except OSError as exc:
            return exc.strerror or str(exc)
        return None

    async def _answer(self) -> None:
        """Hear and answer until `_stop`."""
        try:
            with self._answering:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hear_wire)
                    if self._window is not None:
                        nursery.start_soon(self._hear_window, self._window)
        finally:
            self._stopped.set()

    async def _stop(self) -> None:
        self._answering.cancel()
        with trio.CancelScope(shield=True):  # it ends at once: it only ever waits to read
            await self._stopped.wait()

    async def _hear_wire(self) -> None:
        """Note what comes in by any interface; at the bridge's own it is what a guest would get."""
        bridge, windowed = self._segment.bridge, self._window is not None
        # With a port of our own, what we send comes in by it and at the bridge: no news.
        deaf_to = {bridge, self._window.name} if self._window is not None else set()
        while True:
            await trio.lowlevel.wait_readable(self._wire)
            for _ in range(_BATCH_FRAMES):
                try:
                    frame, control, _, address = self._wire.recvmsg(_MAX_FRAME_BYTES, CONTROL_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # an interface went away under it
                    continue
                if address[0] in deaf_to:
                    continue
                place = Place.VIEW if address[0] == bridge and not windowed else Place.INTERFACE
                self._hear(frame, address[0], place, stripped_vlan(control))

    async def _hear_window(self, window: Window) -> None:
        """Note what comes out at our own port, tags in place."""
        while True:
            await trio.lowlevel.wait_readable(window.descriptor)
            for _ in range(_BATCH_FRAMES):
                try:
                    frame = os.read(window.descriptor, _MAX_FRAME_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # somebody deleted it: nothing comes any more, and that is told
                    return
                self._hear(frame, self._segment.bridge, Place.VIEW, None)

    def _hear(self, frame: bytes, interface: str, place: Place, vlan: int | None) -> None:
        answer = self._ledger.hear(
            frame, interface=interface, place=place, now_s=trio.current_time(), stripped_vlan=vlan
        )
        if answer is not None:
            self._transmit(answer)  # if it fails, the asker asks again
        self._news.unpark_all()


@asynccontextmanager
async def open_prober(
    nursery: trio.Nursery,
    rtnl: Rtnl,
    segment: Segment,
    nonce: bytes,
    *,
    view: View | None = None,
    isolated: bool = False,
    mtu_bytes: int = GUEST_MTU_BYTES,
) -> AsyncIterator[Prober]:
    """Open a prober that answers, in `nursery`, from now to the end of the block.

    It changes nothing, except where only a port sees what a guest would (`choose_view`): then it
    is one until the end of the block. `isolated` as the guest's port is. Raises `NoSuchLinkError`,
    `RefusedError`, `UsageError`.
    """
    check_nonce(nonce)
    facts = segment_sysfs.describe_bridge(segment.bridge)
    if facts is None:
        doing = f"describe {segment.bridge}"
        facts = await rtnl.run(doing, lambda ip: describe_bridge(ip, segment.bridge))
    if view is None:
        view = choose_view(facts, isolated=isolated, mtu_bytes=mtu_bytes)
    with ExitStack() as stack:
        wire = stack.enter_context(listen(None, _ONLY_PROBES, buffer_bytes=_BUFFER_BYTES))
        window = None
        mac = bytes.fromhex(facts.mac.replace(":", ""))
        if not any(mac):  # a bridge whose last port has left it
            mac = _guest_like_mac()
        if view is View.PORT:
            window = await rtnl.run(
                f"make a port in {segment.bridge}",
                lambda ip: open_window(
                    *(ip, facts),
                    vlan=segment.vlan,
                    isolated=isolated,
                    mtu_bytes=mtu_bytes,
                    heard=_ONLY_PROBES,
                ),
            )
            stack.callback(os.close, window.descriptor)
            mac = _guest_like_mac()
        ledger = Ledger(
            nonce,
            mac=mac,
            sender=secrets.token_bytes(SENDER_BYTES),
            vlan_tag=view_tag(segment, facts, view),
            first_sequence=secrets.randbits(32),
        )
        prober = Prober(rtnl, segment, facts, ledger, wire, window, isolated=isolated)
        nursery.start_soon(prober._answer)
        try:
            yield prober
        finally:
            await prober._stop()  # before its descriptors are closed


def _guest_like_mac() -> bytes:
    """Return an address of nobody's, locally administered, for a port that speaks for itself."""
    return b"\x52\x54\x00" + secrets.token_bytes(3)
