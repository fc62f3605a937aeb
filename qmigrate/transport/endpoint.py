"""One side of a job's link, for as long as the job lives: it listens, dials, and makes links.

Both sides call `connect`. The source dials all addresses of the destination, one a tenth of a
second after the other (RFC 8305's idea: the preferred first, no time lost on a dead one), and the
first that proves itself wins. If nothing has come of it after a moment the destination dials the
source, so one open direction is enough. The source alone chooses: it sends CHOOSE on one
connection and counts; a link with a larger count replaces one with a smaller.

After a break either side calls `connect` again. A side that has not noticed the break yet is told:
the destination by the larger count, the source by a destination that dials and knows of no newer
link than the one that the source still holds.
"""

import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from qmigrate.core.errors import LinkRefusedError, LinkUnreachableError
from qmigrate.core.model import Address, Side
from qmigrate.core.secret import Identity
from qmigrate.core.timeline import ClockOffset, ClockSample, estimate_offset
from qmigrate.transport.connection import Connection, GreetingError, secure
from qmigrate.transport.data import DataSockets
from qmigrate.transport.dialling import connect_tcp, local_host
from qmigrate.transport.frames import (
    LINK_PROTOCOL,
    NO_LINK,
    Generation,
    Hello,
    Kind,
    encode_generation,
)
from qmigrate.transport.identity import client_context, server_context
from qmigrate.transport.link import SAMPLES_KEPT, Link
from qmigrate.transport.listener import HANDSHAKE_LIMIT_S, Door, bind_listeners
from qmigrate.transport.reach import (
    Dial,
    Reach,
    Tried,
    blocked_ways,
    explain,
    one_way_note,
    remedy,
)
from qmigrate.transport.search import Search

STAGGER_S = 0.1  # head start of an address over the next; RFC 8305 says 0.25, for the internet
RETRY_FIRST_S = 0.25  # a refusal is often an agent that is just being started again
RETRY_MOST_S = 1.0
REVERSE_DELAY_S = 1.5  # before the destination dials: a dial of the source's and a bit
CHOOSE_LIMIT_S = 2.0  # for CHOSEN; the destination has nothing to think about
PARK_LIMIT_S = 5.0  # how long an authenticated connection waits for the source's choice

FEATURES = frozenset({"direct"})  # what this agent's link can carry beside messages


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What an endpoint needs to know; all of it comes with the job."""

    identity: Identity
    side: Side
    job: str
    boot_id: str
    listen_addresses: tuple[str, ...]  # numeric, of this host
    port_range: tuple[int, int] | None = None  # None: the kernel chooses
    incarnation: int = 1  # counts the starts of this job's agent on this host
    features: frozenset[str] = FEATURES


class Endpoint:
    """One side of a job's link. Made by `open_endpoint`."""

    def __init__(self, spec: EndpointSpec) -> None:
        self._spec = spec
        self._server: ssl.SSLContext = server_context(spec.identity)
        self._client: ssl.SSLContext = client_context(spec.identity)
        self._peer_addresses: tuple[Address, ...] = ()
        self._peer_hosts: frozenset[str] = frozenset()
        self._seen = NO_LINK
        self._link: Link | None = None  # the newest
        self._unclaimed: Link | None = None  # made by the peer's choice, not yet asked for
        self._search: Search | None = None
        self._search_begun = trio.Event()
        self._samples: deque[ClockSample] = deque(maxlen=SAMPLES_KEPT)
        self._data = DataSockets()
        self._nursery: trio.Nursery | None = None
        self._door = Door(
            bind_listeners(spec.listen_addresses, spec.port_range),
            greet=self._greet,
            take_token=self._data.take_token,
            welcome=self._welcome,
            is_known=self._is_known,
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the peer can dial this side."""
        return self._door.addresses

    @property
    def identity(self) -> Identity:
        """Who we are, and whom we answer to, as of now."""
        return self._spec.identity

    def set_peer(self, addresses: tuple[Address, ...]) -> None:
        """Say where the peer listens, the preferred first; may be called again when it moves."""
        self._peer_addresses = tuple(dict.fromkeys(addresses))
        self._peer_hosts = frozenset(address.host for address in addresses)

    def rekey(self, identity: Identity) -> None:
        """Prove ourselves by `identity`, and know the peer by it, from now on.

        A link that stands is over: the peer that it led to has been followed by another. Raises
        ssl.SSLError if the identity is unusable; then nothing has changed.
        """
        server, client = server_context(identity), client_context(identity)
        self._server, self._client = server, client
        self._spec = replace(self._spec, identity=identity)
        if self._link is not None:
            self._link.drop("the job was given new keys")

    def clock_offset(self, *, at_us: int | None = None) -> ClockOffset | None:
        """Return the peer's clock minus ours as `Link.clock_offset` does, link or no link."""
        return estimate_offset(tuple(self._samples), at_us=at_us)

    async def connect(self, deadline_s: float) -> Link:
        """Return a new link; the one before it, if any, is over.

        Both sides must call it. Raises `LinkUnreachableError` after `deadline_s` with what was
        tried and the firewall rule to add, `LinkRefusedError` if the peer cannot work with us.
        When cancelled nothing is left open.
        """
        if self._search is not None:
            raise trio.BusyResourceError("connect is running in another task")
        unclaimed, self._unclaimed = self._unclaimed, None
        if unclaimed is not None and unclaimed.why_ended is None:
            await trio.lowlevel.checkpoint()
            return unclaimed
        search = self._search = Search(self._seen)
        self._search_begun.set()
        try:
            with trio.move_on_after(deadline_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._dial_all, search)
                    await search.done.wait()
                    nursery.cancel_scope.cancel()
        except trio.Cancelled:
            if search.link is not None:
                search.link.drop("connect was cancelled")
            raise
        finally:
            self._search = None
            self._search_begun = trio.Event()
        if search.link is None:
            raise search.refusal or self._unreachable(search, deadline_s)
        search.link.note = one_way_note(self._reach(search))
        return search.link

    async def data_socket(self, link: Link, name: str, deadline_s: float) -> socket.socket:
        """Return a plain, blocking TCP connection to the peer, proved and ready for QEMU.

        Both sides call it with the same `link` and `name` (a word); not a byte of what QEMU will
        send has been read. Raises `LinkBrokenError` if the link ends first, else `LinkError`. When
        cancelled nothing is left open, and the peer is told.
        """
        return await self._data.make(
            link, name, deadline_s, dial=link.dialled_by is self._spec.side
        )

    # -- dialling ----------------------------------------------------------------------------------

    async def _dial_all(self, search: Search) -> None:
        if self._spec.side is Side.DESTINATION:
            await trio.sleep(REVERSE_DELAY_S)
        async with trio.open_nursery() as nursery:
            for address in self._peer_addresses:
                failed = trio.Event()
                nursery.start_soon(self._dial_again, search, address, failed)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()

    async def _dial_again(self, search: Search, address: Address, failed: trio.Event) -> None:
        """Dial one address until something has come of the search; it cancels us then."""
        pause_s = RETRY_FIRST_S
        local = local_host(address)
        while True:
            try:
                connection = await self._dial(address, search.last)
                try:
                    if await self._settle(search, connection):
                        return
                finally:
                    if not connection.taken:
                        connection.close()
                result = Dial.LEFT
            except LinkRefusedError as exc:
                search.refuse(exc)
                return
            except GreetingError as exc:
                result = exc.result
            search.tried[address] = Tried(address, result, local)
            failed.set()
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def _dial(self, address: Address, last: Generation) -> Connection:
        """Return an introduced connection; raises `GreetingError` or `LinkRefusedError`."""
        sock = await connect_tcp(address)
        made = False
        try:
            with trio.move_on_after(HANDSHAKE_LIMIT_S):
                connection = await secure(sock, self._client, self._spec.identity, dialled=True)
                await connection.introduce(self._hello(last))
                made = True
                return connection
            raise GreetingError(Dial.STALLED, f"no handshake within {HANDSHAKE_LIMIT_S:g} s")
        finally:
            if not made:
                sock.close()

    def _hello(self, last: Generation) -> Hello:
        return Hello(
            protocol=LINK_PROTOCOL,
            job=self._spec.job,
            side=self._spec.side,
            boot_id=self._spec.boot_id,
            incarnation=self._spec.incarnation,
            features=self._spec.features,
            last=last,
        )

    # -- who comes in at the door ------------------------------------------------------------------

    def _is_known(self, host: str) -> bool:
        return not self._peer_hosts or host in self._peer_hosts

    async def _greet(self, sock: trio.socket.SocketType) -> Connection | None:
        """Return an introduced connection, or None: a stranger, of whom nobody need know."""
        try:
            connection = await secure(sock, self._server, self._spec.identity, dialled=False)
            await connection.introduce(self._hello(self._seen))
        except LinkRefusedError as exc:
            if self._search is not None:
                self._search.refuse(exc)
            return None
        except GreetingError:
            return None
        return connection

    async def _welcome(self, connection: Connection) -> None:
        """See what becomes of a connection of the peer's."""
        try:
            with trio.move_on_after(PARK_LIMIT_S):
                if self._spec.side is Side.DESTINATION:
                    await self._settle(self._search, connection)
                elif self._is_news(connection.peer):
                    while self._search is None:
                        await self._search_begun.wait()
                    await self._settle(self._search, connection)
        except GreetingError:
            return  # it is gone, and will come back if it wants to
        finally:
            if not connection.taken:
                connection.close()

    def _is_news(self, peer: Hello) -> bool:
        """Tell, at the source, if the destination dials because it has no link any more.

        Not if it did so before it heard of the link that we have: that dial has been overtaken.
        """
        link = self._link
        if link is None or link.why_ended is not None:
            return True
        if peer.last != link.generation and peer.incarnation <= link.peer.incarnation:
            return False
        link.drop("the destination's agent came back on a new connection")
        return True

    # -- choosing ----------------------------------------------------------------------------------

    async def _settle(self, search: Search | None, connection: Connection) -> bool:
        """Tell if `connection` has become the link; raises `GreetingError`."""
        if self._spec.side is Side.DESTINATION:
            return await self._let_choose(connection)
        return search is not None and await self._choose(search, connection)

    async def _choose(self, search: Search, connection: Connection) -> bool:
        """The source's part. One at a time, and each try has a count of its own."""
        async with search.choosing:
            if search.done.is_set():
                return False
            count = self._seen.count if self._seen.incarnation == self._spec.incarnation else 0
            self._seen = generation = Generation(self._spec.incarnation, count + 1)
            with trio.move_on_after(CHOOSE_LIMIT_S):
                await connection.send(encode_generation(Kind.CHOOSE, generation))
                if await connection.next_generation(Kind.CHOSEN) == generation:
                    search.found(self._install(connection, generation))
                    return True
        return False

    async def _let_choose(self, connection: Connection) -> bool:
        """The destination's part. Only a later choice than the last counts."""
        with trio.move_on_after(PARK_LIMIT_S):
            generation = await connection.next_generation(Kind.CHOOSE)
            if generation <= self._seen:
                return False
            self._seen = generation
            await connection.send(encode_generation(Kind.CHOSEN, generation))
            if generation < self._seen:
                return False  # another choice overtook this one while it was being confirmed
            link = self._install(connection, generation)
            if self._search is not None:
                self._search.found(link)
            else:
                self._unclaimed = link
            return True
        return False

    def _install(self, connection: Connection, generation: Generation) -> Link:
        if self._link is not None:
            self._link.drop("a newer link replaced it")
        self._link = Link(
            connection,
            generation,
            side=self._spec.side,
            features=self._spec.features,
            samples=self._samples,
        )
        if self._nursery is None:
            raise RuntimeError("the endpoint is not open")
        self._nursery.start_soon(self._link.run)
        return self._link

    # -- words -------------------------------------------------------------------------------------

    def _reach(self, search: Search) -> Reach:
        return Reach(
            side=self._spec.side,
            tried=tuple(search.tried.values()),
            listening=self.addresses,
            came_in=self._door.came_in,
        )

    def _unreachable(self, search: Search, deadline_s: float) -> LinkUnreachableError:
        reach = self._reach(search)
        return LinkUnreachableError(
            f"no link between the agents after {deadline_s:g} s: {blocked_ways(reach)}."
            f" {explain(reach)}",
            phase="connect",
            next_step=remedy(reach),
        )

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; for `open_endpoint`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._door.serve)
            task_status.started()

    def close(self) -> None:
        """Close the ports; for `open_endpoint`."""
        self._door.close()


@asynccontextmanager
async def open_endpoint(spec: EndpointSpec, nursery: trio.Nursery) -> AsyncIterator[Endpoint]:
    """Listen and be ready to `connect`, until the block is left; then the ports refuse.

    Its tasks live in `nursery`, so that errors of the block come out as they are. Raises
    `LinkError` if no address can be listened at, ssl.SSLError if the identity is unusable.
    """
    endpoint = Endpoint(spec)
    scope, finished = trio.CancelScope(), trio.Event()
    running = False

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal running
        running = True
        try:
            with scope:
                await endpoint.run(task_status)
        finally:
            finished.set()

    try:
        await nursery.start(run)
        yield endpoint
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            if running:
                await finished.wait()
        endpoint.close()
