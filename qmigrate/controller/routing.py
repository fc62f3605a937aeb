"""Finds out, beside the rest of preflight, where each card of the guest will hang, and why.

For every tap: its home, which may be on a third host; whether the destination's bridge is in that
segment, by frames; and if not, which tunnel would join the two. Nothing is built or changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from qmigrate.controller.network import Asked, End, Place, ask, choose, probe
from qmigrate.controller.remote import Agent, open_agent
from qmigrate.controller.session import one_error
from qmigrate.controller.status import names_of
from qmigrate.core.cmdline import Twin
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.home import Home, TurnWish
from qmigrate.core.model import Finding, GuestDetail, HostSpec, Nic
from qmigrate.core.network import NONE, NetworkHere
from qmigrate.core.network_requests import GetNetwork
from qmigrate.core.network_rules import At, Card, Evidence, Route, findings, is_apart, route


@dataclass(frozen=True, slots=True)
class NetworkWish:
    """What the user wants of the network."""

    tunnel: str  # a kind, AUTO or NONE
    bridges: tuple[tuple[str, str], ...]  # home's name, the destination's
    hosts: tuple[HostSpec, ...]  # among which a third host is looked for


@dataclass(frozen=True, slots=True)
class Stand:
    """A host that takes part: its agent, what its network is, where it is reached."""

    spec: HostSpec
    agent: Asked
    here: NetworkHere

    @property
    def end(self) -> End:
        """The host as an end of a tunnel."""
        named = self.spec.migration_addresses
        return End(self.agent, tuple(dict.fromkeys((*named, *self.here.addresses))))


@dataclass(slots=True)
class Routing:
    """One move's network, from what is there to where each tap goes."""

    wish: NetworkWish
    source: tuple[HostSpec, Agent]
    destination: tuple[HostSpec, Agent]
    nursery: trio.Nursery  # holds the agents of third hosts
    evidence: tuple[Evidence, ...] = ()
    _stands: dict[str, Stand] = field(default_factory=dict)  # by the host's name
    _done: trio.Event = field(default_factory=trio.Event)
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _problems: dict[str, str] = field(default_factory=dict)

    async def look(self) -> None:
        """Ask both hosts for their network; early, as the first such question is slow."""

        async def look(spec: HostSpec, agent: Asked) -> None:
            try:
                self._stands[spec.name] = Stand(spec, agent, await ask(agent, GetNetwork()))
            except HostError as exc:
                self._problems[spec.name] = (
                    f"{spec.name}'s network is not known: {exc.problem.what}"
                )

        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, *self.source)
                nursery.start_soon(look, *self.destination)

    async def find(self, detail: GuestDetail, *, tag: str, job: str) -> None:
        """Fill in `evidence` for every card on a bridge; what cannot be found out is told there."""
        found: dict[str, Evidence] = {}

        async def one(card: Card) -> None:
            found[card.tap] = await self._examine(card, tag=tag, job=job)

        ends = (self.source[0].name, self.destination[0].name)
        if blind := "; ".join(self._problems[name] for name in ends if name in self._problems):
            self.evidence = tuple(
                Evidence(self._unseen(nic), bridge_there=True, unprobed=blind)
                for nic in detail.guest.nics
                if nic.tap and nic.bridge
            )
            return
        cards = [card for nic in detail.guest.nics if (card := await self._card(nic))]
        with one_error():
            async with trio.open_nursery() as nursery:
                for card in cards:
                    nursery.start_soon(one, card)
        self.evidence = tuple(found[card.tap] for card in cards)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Where each card goes."""
        return tuple(map(route, self.evidence))

    def findings(self) -> tuple[Finding, ...]:
        """What preflight says of it."""
        name, wanted = self.destination[0].name, self.wish.tunnel
        return tuple(f for each in self.evidence for f in findings(each, name, wanted=wanted))

    def stand_of(self, home: Home) -> Stand | None:
        """Return the host of a home, if it takes part."""
        return self._stands.get(home.host)

    # A card

    async def _card(self, nic: Nic) -> Card | None:
        here = self._stands[self.source[0].name].here
        port = here.port(nic.tap)
        if nic.tap is None or port is None:
            return None
        home = port.home or next((t.home for t in here.tunnels if t.bridge == port.bridge), None)
        away = home is not None
        if home is None:
            home = Home(self.source[0].name, port.bridge, port.vlan)
        home, at = await self._place(home)
        bridges = dict(self.wish.bridges)
        return Card(
            netdev=nic.netdev or nic.device,
            tap=nic.tap,
            mac=nic.mac,
            home=home,
            at=at,
            wanted=home.bridge if at is At.DESTINATION else bridges.get(home.bridge, home.bridge),
            mtu_bytes=port.mtu_bytes,
            isolated=port.isolated and at is At.SOURCE,
            away=away,
        )

    def _unseen(self, nic: Nic) -> Card:
        """Return a card of which only the guest's host has told."""
        bridge = nic.bridge or ""
        there = dict(self.wish.bridges).get(bridge, bridge)
        home = Home(self.source[0].name, bridge)
        return Card(nic.netdev or nic.device, nic.tap or "", nic.mac, home, At.SOURCE, there, 1500)

    async def _place(self, home: Home) -> tuple[Home, At]:
        """Return which of the hosts has a home; one that is known by two names by one of them."""
        for (spec, _), at in ((self.source, At.SOURCE), (self.destination, At.DESTINATION)):
            if home.host in (spec.name, *names_of(spec)):
                return replace(home, host=spec.name), at
        async with self._lock:
            if home.host not in self._stands and home.host not in self._problems:
                await self._open(home.host)
        third = self._stands.get(home.host)
        if third is None:
            return home, At.ELSEWHERE
        for (spec, _), at in ((self.source, At.SOURCE), (self.destination, At.DESTINATION)):
            if self._stands[spec.name].here.boot_id == third.here.boot_id:
                return replace(home, host=spec.name), at
        return home, At.ELSEWHERE

    async def _open(self, name: str) -> None:
        """Open an agent on a third host. Its name comes from a tap: only known ones are dialled."""
        spec = next((h for h in self.wish.hosts if name in (h.name, *names_of(h))), None)
        if spec is None:
            self._problems[name] = (
                f"no inventory names {name}, where the guest's neighbours are; write a "
                f"[hosts.{name}] table"
            )
            return
        await self.nursery.start(self._hold, name, spec)

    async def _hold(
        self,
        name: str,
        spec: HostSpec,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep a third host's agent open until `close`, in a task of its own."""
        try:
            async with open_agent(spec) as agent:
                self._stands[name] = Stand(spec, agent, await ask(agent, GetNetwork()))
                task_status.started()
                await self._done.wait()
        except HostError as exc:
            if name not in self._stands:
                self._problems[name] = f"{name} cannot be asked: {exc.problem.what}"
                task_status.started()

    def close(self) -> None:
        """Let third hosts go."""
        self._done.set()

    async def _examine(self, card: Card, *, tag: str, job: str) -> Evidence:
        there = self._stands[self.destination[0].name]
        found = Evidence(card, there.here.has_bridge(card.wanted))
        if card.at is At.DESTINATION:
            return found
        home = self._stands.get(card.home.host)
        if home is None:
            return replace(found, unprobed=self._problems.get(card.home.host, "nobody was asked"))
        if found.bridge_there:
            near = Place(home.agent, card.home.bridge, card.home.vlan, card.isolated)
            far = Place(there.agent, card.wanted, card.home.vlan)
            verdict = await probe(near, far, mtu_bytes=card.mtu_bytes, guest_mac=card.mac)
            found = replace(found, verdict=verdict)
        if not is_apart(found) or self.wish.tunnel == NONE:
            return found
        try:
            chosen = await choose(
                card.home,
                (home.end, there.end),
                mtu_bytes=card.mtu_bytes,
                wanted=self.wish.tunnel,
                guest=tag,
                job=job,
            )
        except QmigrateError as exc:
            return replace(found, no_choice=exc.problem.what)
        return replace(found, choice=chosen)


def routed(made: Twin, routes: Sequence[Route]) -> Twin:
    """Return the twin with its taps where the routes say; the others stay as they were planned."""
    by_tap = {route.card.tap: route for route in routes}
    taps = []
    for tap in made.plan.taps:
        found = by_tap.get(tap.wanted or "")
        if found is None:
            taps.append(tap)
            continue
        vlan = None if found.tunnel is not None else found.card.home.vlan
        mtu = found.card.mtu_bytes if found.tunnel is not None else tap.mtu
        taps.append(replace(tap, bridge=found.bridge, home=found.home, vlan=vlan, mtu=mtu))
    return replace(made, plan=replace(made.plan, taps=tuple(taps)))


def turns_of(routes: Sequence[Route], at: At) -> tuple[TurnWish, ...]:
    """Return what home's bridge is to be told, where home is at that host."""
    return tuple(
        TurnWish(route.card.mac, route.tunnel.home_port, route.card.home.vlan)
        for route in routes
        if route.tunnel is not None and route.card.mac is not None and route.card.at is at
    )


def tunnels_of(routes: Sequence[Route]) -> tuple[str, ...]:
    """Return the ids of the tunnels that the routes go through, each once."""
    return tuple(dict.fromkeys(route.tunnel.id for route in routes if route.tunnel is not None))
