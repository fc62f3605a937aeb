"""Tunnels of several hosts, listed, proved, mended and removed by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from qmigrate.controller.network import Asked, Place, ask, probe
from qmigrate.controller.remote import Agent, open_agents
from qmigrate.controller.routing import Stand
from qmigrate.core.home import ReleaseTunnels, TunnelsReleased
from qmigrate.core.model import HostSpec
from qmigrate.core.network import NetworkHere, Verdict
from qmigrate.core.network_requests import GetNetwork
from qmigrate.core.tunnel_pairs import TunnelRow, lost_on, pair_up
from qmigrate.core.tunnel_requests import RepairTunnels, TunnelsRepaired


@dataclass(frozen=True, slots=True)
class Hosts:
    """Hosts that were asked for their network, and the others' reasons."""

    stands: tuple[Stand, ...]
    problems: tuple[str, ...]

    @property
    def rows(self) -> tuple[TunnelRow, ...]:
        """All their tunnels, each once."""
        return pair_up(
            {stand.agent.host: stand.here.tunnels for stand in self.stands},
            {stand.agent.host: stand.here.addresses for stand in self.stands},
        )

    def agent(self, host: str) -> Asked:
        """Return the agent of a host that was asked."""
        return next(stand.agent for stand in self.stands if stand.agent.host == host)


@asynccontextmanager
async def asked(specs: Sequence[HostSpec]) -> AsyncIterator[Hosts]:
    """Yield all hosts that answer, their agents open; one that does not hides no other."""
    async with open_agents(specs) as opened:
        found: dict[str, NetworkHere] = {}

        async def look(agent: Agent) -> None:
            found[agent.host] = await ask(agent, GetNetwork())

        async with trio.open_nursery() as nursery:
            for agent in opened:
                if isinstance(agent, Agent):
                    nursery.start_soon(look, agent)
        stands = [
            Stand(spec, agent, found[agent.host])
            for spec, agent in zip(specs, opened, strict=True)
            if isinstance(agent, Agent)
        ]
        problems = [
            f"{spec.name}: {error.problem.what}"
            for spec, error in zip(specs, opened, strict=True)
            if not isinstance(error, Agent)
        ]
        yield Hosts(tuple(stands), tuple(problems))


async def verify(hosts: Hosts, row: TunnelRow) -> Verdict | None:
    """Probe from home's segment through the tunnel; None where an end or its bridge is missing."""
    if row.home is None or row.away is None or row.away.tunnel.bridge is None:
        return None
    home = row.home.tunnel.home
    return await probe(
        Place(hosts.agent(row.home.host), home.bridge, home.vlan),
        Place(hosts.agent(row.away.host), row.away.tunnel.bridge),
        mtu_bytes=row.home.tunnel.mtu_bytes or 1500,
    )


async def repair(hosts: Hosts) -> tuple[tuple[str, TunnelsRepaired], ...]:
    """Mend every end on every host, and make those that a host has lost; an answer a host."""
    found = {stand.agent.host: stand.here.tunnels for stand in hosts.stands}
    done = []
    for stand in hosts.stands:
        name = stand.agent.host
        lost = lost_on(name, found, stand.here.addresses)
        answer: TunnelsRepaired = await ask(stand.agent, RepairTunnels(lost))
        done.append((name, answer))
    return tuple(done)


async def remove(
    hosts: Hosts, tunnel: str, guest: str | None
) -> tuple[tuple[str, TunnelsReleased], ...]:
    """Take a guest's claim, or everybody's, on every host; what guests live on stays."""
    done = []
    for stand in hosts.stands:
        request = ReleaseTunnels(guest, only=(tunnel,))
        answer: TunnelsReleased = await ask(stand.agent, request)
        done.append((stand.agent.host, answer))
    return tuple(done)
