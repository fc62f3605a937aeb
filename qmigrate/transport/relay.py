"""QEMU's stream from agent to agent over connections that may break: it notices a stall, no more.

::

    QEMU ◄─ socketpair ─► Pumps ═ K slots ═► Pumps ◄─ socketpair ─► QEMU
                                ◄═ 1 slot ══

Connections are made as data sockets beside the link, by whoever dialled the link and with the keys
of the job, and speak TLS. Whoever accepts always has an offer standing, for a slot that has a wire
too: so either side may find its wire of no use and drop it, and the dialler comes again, at once
at first and then ever more slowly. A link that breaks breaks no wire, and the next will do as well.

While bytes cannot go both ways for longer than the grace time, or the peer speaks another language,
QEMU's sockets are shut and the relay has failed.
"""

import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from qmigrate.core.errors import LinkError, ProtocolError
from qmigrate.core.model import Side
from qmigrate.transport.endpoint import Endpoint
from qmigrate.transport.figures import Figures
from qmigrate.transport.link import Link
from qmigrate.transport.packing import best_codec
from qmigrate.transport.pumps import Pumps
from qmigrate.transport.rate import Budget, unsent_bytes
from qmigrate.transport.traffic import Slot
from qmigrate.transport.wires import Wire, WireError, greet

WINDOW_BYTES = 16 << 20  # unacknowledged: 10 Gbit/s for 13 ms, and no slower with more (facts §4)
GRACE_S = 30.0  # without a way for the bytes, as QEMU_USER_TIMEOUT_MS gives a plain socket
GREET_LIMIT_S = 5.0  # TLS and HELLO on a connection that stands
REDIAL_FIRST_S = 0.05  # after an attempt that failed; the first is made at once
REDIAL_MOST_S = 1.0
LIVED_S = 2.0  # a wire that lasted so long says that the way is good: the next is dialled at once
DELIVERY_BUFFER_BYTES = 1 << 20  # in front of a reading QEMU: those bytes have crossed the wire
# For how long a thread of ours may keep others waiting for the interpreter. Python's 5 ms may be
# felt in every hop of the switchover: the blackout was 7.6 ms longer than over a plain socket, and
# 3.4 with this (medians of 12 moves; one block after the other, the second on a quieter machine).
SWITCH_S = 0.0005
MAIN = 0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """What both sides must agree on, and what each may choose."""

    name: str  # of its data sockets: a word
    side: Side
    slots: int = 1  # connections from source to destination; the same on both sides
    packing: bool = False  # while it pays
    limit_bps: float | None = None  # bytes/s on the wire
    link_bps: float | None = None  # what is known of the link beforehand
    window_bytes: int = WINDOW_BYTES
    grace_s: float = GRACE_S


def default_slots() -> int:
    """Return how many connections one direction is worth: a core each, as they encrypt."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2))


class Relay:
    """One side of a relay; made by `open_relay`."""

    def __init__(
        self, endpoint: Endpoint, await_link: Callable[[], Awaitable[Link]], spec: RelaySpec
    ) -> None:
        self._endpoint = endpoint
        self._await_link = await_link
        self._spec = spec
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._over = trio.Event()
        self._attempts: dict[int, int] = {}
        self._failure: str | None = None
        self._qemu: socket.socket | None = None
        self._pumps: Pumps
        self._nursery: trio.Nursery

    async def open(self) -> None:
        """Get ready for QEMU; for `open_relay`."""
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        spec = self._spec
        link = await self._await_link()
        sends = spec.slots if spec.side is Side.SOURCE else 1
        receives = 1 if spec.side is Side.SOURCE else spec.slots
        self._pumps = Pumps(
            send_slots=sends,
            receive_slots=receives,
            window_bytes=spec.window_bytes,
            codec=best_codec(link.features) if spec.packing else None,
            budget=Budget(spec.limit_bps),
            on_change=self._from_thread,
        )
        ours, self._qemu = socket.socketpair()
        # What QEMU may write ahead waits in front of the wire; the kernel doubles what it is told.
        ahead = unsent_bytes(spec.link_bps)
        self._qemu.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ahead // 2)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DELIVERY_BUFFER_BYTES // 2)
        self._main = self._pumps.add_stream(MAIN, ours)

    def take_qemu_socket(self) -> socket.socket:
        """Return QEMU's end, the caller's to hand over and to close: once only."""
        sock, self._qemu = self._qemu, None
        if sock is None:
            raise RuntimeError("QEMU's end was taken before")
        return sock

    @property
    def failure(self) -> str | None:
        """Why the stream was ended, as a sentence; None: it was not by us."""
        return self._failure

    def figures(self) -> Figures:
        """Return how it is going, at any time."""
        return self._pumps.figures()

    def set_limit(self, limit_bps: float | None) -> None:
        """Let so many bytes/s go out on the wire from now on; None: all that it takes."""
        self._pumps.change_budget(limit_bps)

    async def wait_connected(self) -> None:
        """Return once bytes can go both ways."""
        while not self._pumps.is_connected():
            await self._changed.wait()

    async def wait_over(self) -> str | None:
        """Return `failure` once both directions have come to their ends, or QEMU's or we died."""
        await self._over.wait()
        return self._failure

    # -- tasks -------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Move bytes until cancelled; for `open_relay`."""
        pumps = self._pumps
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                limiter = trio.CapacityLimiter(len(pumps.slots) + 1)
                nursery.start_soon(self._stop_threads)
                for slot in pumps.slots:
                    work = pumps.write if slot.sends else pumps.read
                    nursery.start_soon(_in_thread, limiter, work, slot)
                    nursery.start_soon(self._keep, slot)
                nursery.start_soon(_in_thread, limiter, pumps.deliver, self._main)
                nursery.start_soon(self._guard)
                task_status.started()
        finally:
            pumps.close()
            if self._qemu is not None:
                self._qemu.close()

    async def _stop_threads(self) -> None:
        """Threads are not cancelled but told."""
        try:
            await trio.sleep_forever()
        finally:
            self._pumps.stop()

    async def _guard(self) -> None:
        """Know when it is over, one way or another."""
        while not self._pumps.is_finished():
            changed = self._changed
            if self._pumps.is_connected():
                await changed.wait()
                continue
            with trio.move_on_after(self._spec.grace_s):
                while not (self._pumps.is_connected() or self._pumps.is_finished()):
                    await self._changed.wait()
                continue
            self._failure = f"no connection for {self._spec.grace_s:g} s"
            self._pumps.reset()
        if self._pumps.defect is not None:
            self._failure = f"the peer's relay speaks another language: {self._pumps.defect}"
        self._over.set()

    def _from_thread(self) -> None:
        try:
            self._token.run_sync_soon(self._news, idempotent=True)
        except trio.RunFinishedError:
            return

    def _news(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _keep(self, slot: Slot) -> None:
        """Have a wire in the slot, whatever happens to the last."""
        pause_s = 0.0
        while True:
            await trio.sleep(pause_s)
            link = await self._await_link()
            made_s = trio.current_time()
            try:
                with link.abandoned_when_ended():
                    await self._fill(slot, link)
                    made_s = trio.current_time()
                    if self._dials(link):
                        await self._await_broken(slot)
                        if trio.current_time() - made_s > LIVED_S:
                            pause_s = 0.0
                            continue
                    else:
                        pause_s = 0.0
                        continue
            except (LinkError, WireError, ProtocolError, trio.ClosedResourceError):
                pass  # the next attempt may say more (after our owner closed the link, too)
            pause_s = min(REDIAL_MOST_S, max(REDIAL_FIRST_S, 2 * pause_s))

    def _dials(self, link: Link) -> bool:
        return link.dialled_by is self._spec.side

    async def _await_broken(self, slot: Slot) -> None:
        while slot.wire is not None:
            await self._changed.wait()

    async def _fill(self, slot: Slot, link: Link) -> None:
        """Make a wire and install it; whoever accepts waits here until somebody dials."""
        if self._dials(link):
            await self._await_broken(slot)
        forward = slot.sends == (self._spec.side is Side.SOURCE)
        name = f"{self._spec.name}.{'f' if forward else 'b'}{slot.index}"
        sock = await self._endpoint.data_socket(link, name, math.inf)
        key = id(slot)
        attempt = self._attempts[key] = max(self._attempts.get(key, 0), slot.generation) + 1
        wire: Wire | None = None
        with trio.move_on_after(GREET_LIMIT_S):
            wire, theirs = await greet(
                sock,
                self._endpoint.identity,
                self._pumps.hello(slot, attempt),
                dialled=self._dials(link),
            )
        if wire is None:
            raise WireError(f"no greeting within {GREET_LIMIT_S:g} s")
        try:
            generation = attempt if self._dials(link) else theirs.generation
            self._pumps.install(slot, wire, theirs, generation)
        except ProtocolError:
            wire.close()
            raise
        if slot.sends:
            self._nursery.start_soon(self._watch, slot, wire)
        self._news()

    async def _watch(self, slot: Slot, wire: Wire) -> None:
        await wire.wait_end()
        self._pumps.broken(slot, wire)


async def _in_thread(limiter: trio.CapacityLimiter, work: Callable[[_T], None], about: _T) -> None:
    await trio.to_thread.run_sync(work, about, limiter=limiter)


@asynccontextmanager
async def open_relay(
    endpoint: Endpoint,
    await_link: Callable[[], Awaitable[Link]],
    spec: RelaySpec,
    nursery: trio.Nursery,
) -> AsyncIterator[Relay]:
    """Relay one stream until the block is left; then QEMU's socket is shut if it was not.

    Both sides open one of the same name. `await_link` returns the direct link, once there is one.
    Its tasks and threads live in `nursery`, so that errors of the block come out as they are.
    """
    relay = Relay(endpoint, await_link, spec)
    await relay.open()
    scope, ended = trio.CancelScope(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            with scope:
                await relay.run(task_status)
        finally:
            ended.set()

    await nursery.start(run)
    try:
        yield relay
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()
