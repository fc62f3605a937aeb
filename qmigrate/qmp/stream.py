"""Events on their way from the thread that reads QEMU to the trio task that acts on them."""

import contextlib
import threading
from collections.abc import Callable

import trio

from qmigrate.qmp.events import Event, EventBuffer


class EventStream(trio.abc.ReceiveChannel[Event]):
    """Events from the moment of `Monitor.subscribe`; ends when the link does, drained first."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()  # guards what both threads touch: _buffer, _ended, _waiting
        self._buffer = EventBuffer()
        self._ended = False
        self._waiting: Callable[[], object] | None = None
        self._news = trio.Event()  # touched by the trio thread alone

    async def receive(self) -> Event:
        """Return the next event; raise `trio.EndOfChannel` after the last. Cancel loses none."""
        await trio.lowlevel.checkpoint()
        while True:
            with self._lock:
                if len(self._buffer):
                    event = self._buffer.take()
                    if self._buffer.roomy:
                        self._call_producer()
                    return event
                if self._ended:
                    raise trio.EndOfChannel
                news = self._news
            await news.wait()

    async def aclose(self) -> None:
        """End the stream; its unread events are gone."""
        self.end()
        with self._lock:
            self._buffer = EventBuffer()
        await trio.lowlevel.checkpoint()

    def offer(self, event: Event, when_room: Callable[[], object]) -> bool:
        """Add `event`, from any thread; False: no room, `when_room` is called once there is."""
        with self._lock:
            if self._ended:
                return True
            if self._buffer.full:
                self._waiting = when_room
                return False
            self._buffer.add(event)
        self._tell()
        return True

    def end(self) -> None:
        """Let no more in; from any thread."""
        with self._lock:
            self._ended = True
            self._call_producer()
        self._tell()

    def _call_producer(self) -> None:
        if self._waiting is not None:
            self._waiting()
            self._waiting = None

    def _tell(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell_trio, idempotent=True)

    def _tell_trio(self) -> None:
        self._news.set()
        self._news = trio.Event()
