"""The guest's addresses: learned on the source while it is copied, announced where it runs.

The source watches the guest's own ARP, ND and IP on its taps. The destination arms an announcer a
tap before the switchover, so that nothing is left to be done at RESUME but to send. After a
rollback the source announces what it has learned.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_address

import trio

from netsetup.announce import AnnouncePlan, Announcer, arm, plan
from netsetup.errors import NetsetupError
from netsetup.learn import AddressWatch, learn_addresses
from netsetup.links import Tap
from netsetup.rtnl import Rtnl
from qmigrate.core.job import Announced, AnnounceReport, GuestTap

Say = Callable[[str], None]
KNOWN_LIMIT = 64  # addresses taken from the peer; the source itself learns 16 of each family a card


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Learning:
    """What the guest was heard to call itself, on the host where it runs."""

    def __init__(self, taps: tuple[GuestTap, ...], say: Say) -> None:
        self._taps = taps
        self._say = say
        self._watches: list[tuple[AddressWatch, str]] = []

    def start(self, nursery: trio.Nursery) -> None:
        """Listen on every tap whose MAC is known; one that cannot be heard is said, not raised."""
        for tap in self._taps:
            if tap.mac is None:
                continue
            try:
                self._watches.append((learn_addresses(nursery, tap.name, tap.mac), tap.mac))
            except NetsetupError as exc:
                self._say(f"addresses are not learned on {tap.name}: {exc.what}")

    @property
    def addresses(self) -> tuple[Announced, ...]:
        """All that were heard so far."""
        return tuple(
            Announced(mac, str(sighting.address), "seen", sighting.vlan)
            for watch, mac in self._watches
            for sighting in watch.sightings
        )

    async def announce(self, rtnl: Rtnl, nursery: trio.Nursery) -> AnnounceReport:
        """Tell the network that the guest is still, or again, here."""
        announcing = Announcing(rtnl, self.addresses, self._say)
        async with AsyncExitStack() as stack:
            for tap in self._taps:
                link = await rtnl.link(tap.name)
                if link is not None and link.master is not None and tap.mac is not None:
                    await announcing.arm(stack, tap.mac, interface=link.master, tap=tap.name)
            await announcing.fire(nursery)
            await announcing.wait_complete()
        return announcing.report()


class Announcing:
    """The announcers of one guest, a tap each."""

    def __init__(self, rtnl: Rtnl, known: tuple[Announced, ...], say: Say) -> None:
        self._rtnl = rtnl
        self._known = known
        self._say = say
        self._announcers: list[Announcer] = []
        self._failed: list[str] = []

    def add(self, addresses: tuple[Announced, ...]) -> None:
        """Take what was learned on the other host; who said it first is kept."""
        known = {(a.mac, a.address) for a in self._known}
        self._known += tuple(
            a
            for a in addresses
            if (a.mac, a.address) not in known and _is_address(a.address)
            if a.vlan is None or 1 <= a.vlan <= 4094
        )[:KNOWN_LIMIT]
        for announcer in self._announcers:
            announcer.replan(self._plan(announcer.record.mac))

    async def arm_twin(
        self, stack: AsyncExitStack, taps: tuple[tuple[str, Tap], ...], macs: dict[str, str]
    ) -> None:
        """Arm one announcer for each tap of a twin; `macs` by netdev."""
        for netdev, tap in taps:
            if netdev in macs:
                await self.arm(stack, macs[netdev], interface=tap.bridge, tap=tap.name)

    async def arm(self, stack: AsyncExitStack, mac: str, *, interface: str, tap: str) -> None:
        """Arm one announcer; what cannot be armed is in the report."""
        try:
            armed = arm(self._rtnl, self._plan(mac), interface=interface, tap=tap)
            self._announcers.append(await stack.enter_async_context(armed))
        except NetsetupError as exc:
            self._failed.append(f"{tap}: {exc.what}")
            self._say(f"{tap} will not be announced: {exc.what}")

    def _plan(self, mac: str) -> AnnouncePlan:
        """Return the frames for all that a card is known to have, in each VLAN that it tags."""
        known = [a for a in self._known if a.mac == mac]
        plans = [
            plan([ip_address(a.address) for a in known if a.vlan == vlan], mac, vlan=vlan)
            for vlan in dict.fromkeys((None, *(a.vlan for a in known)))
        ]
        first = plans[0]
        frames = sorted((f for each in plans for f in each.frames), key=lambda f: f.at_ms)
        addresses = tuple(address for each in plans for address in each.addresses)
        note = first.note if not addresses else None
        return replace(first, addresses=addresses, frames=tuple(frames), note=note)

    async def fire(self, nursery: trio.Nursery) -> None:
        """Send the first round now, the others in `nursery`."""
        for announcer in self._announcers:
            await announcer.fire(nursery)

    @property
    def complete(self) -> bool:
        """Whether no schedule is under way."""
        records = [announcer.record for announcer in self._announcers]
        return all(record.complete or not record.sent for record in records)

    async def wait_complete(self) -> None:
        """Return when every schedule that began has ended."""
        for announcer in self._announcers:
            if announcer.record.sent:
                await announcer.wait_complete()

    def report(self) -> AnnounceReport:
        """Return what was sent so far."""
        if not self._announcers:
            note = "; ".join(self._failed) or "the guest has no tap"
            return AnnounceReport(None, (), None, self._known, note)
        records = [announcer.record for announcer in self._announcers]
        sent = dict.fromkeys(
            f"{frame.kind} {frame.address or record.mac}"
            for record in records
            for frame in record.sent
            if not frame.problem
        )
        first_ms = min((f.at_ms for r in records for f in r.sent), default=None)
        notes = [*self._failed, *(n for r in records for n in (r.note, *r.problems) if n)]
        return AnnounceReport(
            ", ".join(i for r in records for i in r.interfaces) or None,
            tuple(sent),
            None if first_ms is None else round(first_ms, 3),
            self._known,
            "; ".join(dict.fromkeys(notes)) or None,
        )
