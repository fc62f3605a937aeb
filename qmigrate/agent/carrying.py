"""What a controller carries from agent to agent while they have no link of their own.

::

    source's agent          door    controller    door          destination's agent
    CarriedLink ── Frame ──► CarryLink ─ note ─► BringFrame ──► CarriedLink     and back

A side that waits says so with an empty frame; once the controller has heard both it brings each
the other's, and they have met. Frames are kept in order and may be lost, as on a link that breaks:
whoever meets says again what still matters, so nothing here is repeated.
"""

import math
from collections.abc import Awaitable, Callable

import trio

from qmigrate.agent.requests import Frame
from qmigrate.core.errors import LinkBrokenError

WAITING = Frame("")  # I am here and have no link: is my peer?
UNCARRIED_LIMIT = 64  # frames that a controller has not taken; a whole handover is a dozen


class CarriedLink:
    """A way to the peer by a controller's hands: messages, and no data sockets.

    It ends once and for all, as a `transport.link.Link` does, and has as much of its face as an
    agent needs.
    """

    def __init__(self) -> None:
        self._frames, self._to_carry = trio.open_memory_channel[Frame](math.inf)
        self._into_inbox, self._inbox = trio.open_memory_channel[bytes](math.inf)
        self._met = trio.Event()
        self._why: str | None = None

    @property
    def why_ended(self) -> str | None:
        """Why it is over, as a sentence; None while it lives."""
        return self._why

    async def wait_met(self) -> None:
        """Return once the peer is known to wait at the other end."""
        await self._met.wait()

    async def send(self, message: bytes) -> None:
        """Have `message` carried; whether it arrives only an answer can tell.

        Raises `LinkBrokenError`. Never waits for the controller: it may be in no hurry.
        """
        await trio.lowlevel.checkpoint()
        if self._frames.statistics().current_buffer_used >= UNCARRIED_LIMIT:
            self.end("the controller carries nothing away")
        if self._why is not None:
            raise self._error()
        self._frames.send_nowait(Frame(message.decode()))

    async def receive(self) -> bytes:
        """Return the next message; raises `LinkBrokenError` when it has ended."""
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise self._error() from None

    def bring(self, frame: Frame) -> None:
        """Take a frame of the peer's from the controller; raises `LinkBrokenError`."""
        if self._why is not None:
            raise self._error()
        if frame == WAITING:
            self._met.set()
        else:
            self._into_inbox.send_nowait(frame.text.encode())

    async def carry(self, note: Callable[[Frame], Awaitable[None]]) -> None:
        """Hand the controller what is sent, until the end; what was sent before it goes too."""
        await note(WAITING)
        async for frame in self._to_carry:
            await note(frame)

    def end(self, why: str) -> None:
        """End it; the first reason given counts."""
        if self._why is None:
            self._why = why
            self._frames.close()
            self._into_inbox.close()

    def _error(self) -> LinkBrokenError:
        return LinkBrokenError(f"what a controller carried between the agents ended: {self._why}")
