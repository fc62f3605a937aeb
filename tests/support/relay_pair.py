"""Two relays over a link on loopback, with this process's sockets in the place of both QEMUs."""

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from qmigrate.core.model import Address, Side
from qmigrate.transport.endpoint import Endpoint
from qmigrate.transport.link import Link
from qmigrate.transport.packing import FEATURES
from qmigrate.transport.relay import Relay, RelaySpec, open_relay
from tests.support.link_pair import (
    DEADLINE_S,
    bare_errors,
    both,
    destination_spec,
    endpoints,
    source_spec,
)

RESET = (1).to_bytes(4, "little") + bytes(4)  # SO_LINGER of 0 s: RST instead of FIN
PIECE = 300_000  # what is written at a time: more than a chunk


class Linked:
    """One side's link, made again for as long as it is wanted, as an agent does."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.link: Link | None = None
        self._linked = trio.Event()

    async def keep(self) -> None:
        while True:
            self.link = await self.endpoint.connect(DEADLINE_S)
            self._linked.set()
            await self.link.wait_ended()
            self._linked = trio.Event()
            await self.link.aclose()

    async def await_link(self) -> Link:
        await self._linked.wait()
        assert self.link is not None
        return self.link


class Cable:
    """What lies between: every connection of the job goes through it."""

    def __init__(self, address: Address, target: Address) -> None:
        self.address, self.target = address, target
        self.accepted = 0
        self.spoil_at: int | None = (
            None  # flip a bit of this byte of what comes next and is so long
        )
        self._scopes: set[trio.CancelScope] = set()
        self._flows = trio.Event()
        self._flows.set()

    @property
    def connections(self) -> int:
        return len(self._scopes)

    def lead_nowhere(self) -> None:
        """Reset all connections, now and from now on."""
        self.target = Address("127.0.0.1", 9)
        self.cut()

    def cut(self, number: int | None = None) -> None:
        """Reset all connections, or so many."""
        for scope in list(self._scopes)[:number]:
            scope.cancel()

    def hold(self) -> None:
        """Let nothing through and say nothing."""
        self._flows = trio.Event()

    def mend(self) -> None:
        """Let everything through that has waited."""
        self._flows.set()

    async def carry(self, front: trio.SocketStream) -> None:
        self.accepted += 1
        streams = [front]
        try:
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                back = await trio.open_tcp_stream(self.target.host, self.target.port)
                streams.append(back)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, front, back, scope)
                    nursery.start_soon(self._pump, back, front, scope)
        except OSError:
            pass  # nobody listens there any more
        finally:
            self._scopes.discard(scope)
            for stream in streams:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                stream.socket.close()

    async def _pump(
        self, frm: trio.SocketStream, to: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := bytearray(await frm.receive_some(PIECE)):
                await self._flows.wait()
                if self.spoil_at is not None and self.spoil_at < len(data):
                    data[self.spoil_at] ^= 1
                    self.spoil_at = None
                await to.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await self._flows.wait()
        scope.cancel()


@asynccontextmanager
async def cable(target: Address) -> AsyncIterator[Cable]:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    lying = Cable(Address(*listener.socket.getsockname()[:2]), target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, lying.carry, [listener])
        yield lying
        nursery.cancel_scope.cancel()


@dataclass
class Ends:
    """Both relays, and what QEMU would hold of them."""

    a: Relay
    b: Relay
    source: socket.socket
    destination: socket.socket
    wire: Cable
    links: tuple[Linked, Linked]


@asynccontextmanager
async def relayed(*, other: RelaySpec | None = None, **changes: object) -> AsyncIterator[Ends]:
    """Open a relay on both sides, all of whose connections go through a wire that can be cut."""
    spec = replace(RelaySpec("ram", Side.SOURCE), **changes)  # type: ignore[arg-type]
    with bare_errors():
        async with (
            endpoints(source_spec(features=FEATURES), destination_spec(features=FEATURES)) as (
                source,
                destination,
            ),
            cable(destination.addresses[0]) as wire,
            trio.open_nursery() as nursery,
        ):
            source.set_peer((wire.address,))
            destination.set_peer((Address("127.0.0.1", 9),))
            links = Linked(source), Linked(destination)
            for linked in links:
                nursery.start_soon(linked.keep)
            theirs = other or replace(spec, side=Side.DESTINATION)
            async with (
                open_relay(source, links[0].await_link, spec, nursery) as a,
                open_relay(destination, links[1].await_link, theirs, nursery) as b,
            ):
                with a.take_qemu_socket() as out, b.take_qemu_socket() as into:
                    yield Ends(a, b, out, into, wire, links)
            nursery.cancel_scope.cancel()


async def send(sock: socket.socket, payload: bytes) -> None:
    """Write all of it and end, as QEMU does."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    for at in range(0, len(payload), PIECE):
        await stream.send_all(payload[at : at + PIECE])
    await stream.send_eof()


async def receive(sock: socket.socket) -> tuple[int, str]:
    """Return how many bytes came until the end, and their digest."""
    stream = trio.socket.from_stdlib_socket(sock)
    digest, count = hashlib.sha256(), 0
    while data := await stream.recv(PIECE):
        digest.update(data)
        count += len(data)
    return count, digest.hexdigest()


def outcome(payload: bytes) -> tuple[int, str]:
    """Return what `receive` returns if it was `payload`."""
    return len(payload), hashlib.sha256(payload).hexdigest()


__all__ = ["Ends", "Linked", "both", "outcome", "receive", "relayed", "send"]
