"""How a QEMU gets its end of the memory stream: a plain socket, or one that a relay moves from."""

import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from qmigrate.agent import peer
from qmigrate.core.errors import HostError, LinkBrokenError, ProtocolError
from qmigrate.core.job import Transport
from qmigrate.core.model import LinkFigures
from qmigrate.transport.link import Link
from qmigrate.transport.packing import FEATURES
from qmigrate.transport.records import SLOT_LIMIT
from qmigrate.transport.relay import Relay, RelaySpec, default_slots, open_relay

if TYPE_CHECKING:
    from qmigrate.agent.job import JobAgent

RELAY = "relay"  # said in HELLO by who can
RELAY_FEATURES = FEATURES | {RELAY}


def load_message(agent: "JobAgent", name: str, *, ran: bool) -> peer.Load:
    """Return what the source asks for: how memory is to travel is in its spec."""
    return peer.Load(name, ran=ran, transport=agent.spec.transport, slots=default_slots())


async def memory_socket(
    agent: "JobAgent", exits: AsyncExitStack, load: peer.Load, deadline_s: float
) -> socket.socket:
    """Return what to give to QEMU; the caller closes it then. Both sides call it.

    A relay lives on for as long as the agent. Raises `LinkError` or `HostError`.
    """
    direct, endpoint = agent.linking.direct, agent.endpoint
    if direct is None or endpoint is None:
        raise LinkBrokenError("the link broke before the copy began")
    if load.transport is Transport.DIRECT:
        return await endpoint.data_socket(direct, load.socket, deadline_s)
    if RELAY not in direct.features:
        raise HostError(
            f"the agent of {agent.spec.peer_host} has no relay",
            next_step="use the same version of qmigrate on both sides, or --transport direct",
        )
    if not 1 <= load.slots <= SLOT_LIMIT:
        raise ProtocolError(f"a relay of {load.slots} connections")
    spec = RelaySpec(
        name=load.socket,
        side=agent.side,
        slots=load.slots,
        packing=load.transport is Transport.RELAY_ZSTD,
        grace_s=agent.spec.patience.link_grace_s,
    )

    async def await_link() -> Link:
        while True:
            await agent.linking.wait_linked()
            link = agent.linking.direct
            if link is not None:
                return link

    relay = await exits.enter_async_context(open_relay(endpoint, await_link, spec, agent.nursery))
    agent.linking.relay = relay
    with trio.move_on_after(deadline_s):
        await relay.wait_connected()
        agent.nursery.start_soon(_tell, agent, relay)
        return relay.take_qemu_socket()
    raise HostError(
        f"the relay's connections were not made within {deadline_s:g} s",
        next_step="the link stands and further connections to the same port do not come through:"
        " look for a limit of connections in the firewalls between",
    )


def link_figures(relay: Relay | None) -> LinkFigures | None:
    """Return what people are told of a relay."""
    if relay is None:
        return None
    figures = relay.figures()
    return LinkFigures(
        payload_bytes=figures.payload_sent_bytes,
        wire_bytes=figures.wire_sent_bytes,
        unsent_bytes=figures.unsent_bytes,
        reconnects=figures.reconnects,
        stalls=figures.stalls,
        stalled_s=round(figures.stalled_s, 3),
        level=figures.level,
    )


async def _tell(agent: "JobAgent", relay: Relay) -> None:
    """Write into the job's log how the relay has ended, and what it did."""
    why = await relay.wait_over()
    figures = relay.figures()
    agent.say(
        f"the relay ended{f': {why}' if why else ''}; sent {figures.payload_sent_bytes} bytes as"
        f" {figures.wire_sent_bytes}, received {figures.payload_received_bytes};"
        f" {figures.reconnects} reconnects, {figures.stalls} stalls of {figures.stalled_s:.2f} s"
    )
