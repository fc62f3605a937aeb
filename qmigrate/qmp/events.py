"""What a QEMU says unasked, as types; and the bounded buffer in which a subscriber finds it.

`event_untrusted` is the door: a QMP event (docs/interop/qmp-spec.rst, "Asynchronous events")
becomes one of the frozen dataclasses below. Names and statuses that this version does not know
become `OtherEvent` and `MigrationStatus.UNKNOWN`, never an error: QEMU adds some in every release.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SOFT_LIMIT = 256  # unread events; above it, those that can be asked for again make room
HARD_LIMIT = 4096  # unread events; above it, QEMU's socket is not read until one is taken


class MigrationStatus(StrEnum):
    """QAPI `MigrationStatus` of QEMU 10.0 to 11.1."""

    NONE = "none"
    SETUP = "setup"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    POSTCOPY_DEVICE = "postcopy-device"  # since 10.2
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILING = "failing"  # since 11.0, on the way to failed or cancelled
    FAILED = "failed"
    COLO = "colo"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "MigrationStatus":
        return cls.UNKNOWN

    @property
    def final(self) -> bool:
        """Whether this migration will say no more; an unknown status is not final."""
        return self in _FINAL


_FINAL = frozenset((MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED))


@dataclass(frozen=True, slots=True)
class StopEvent:
    """The vCPUs have stopped. `timestamp_us` is QEMU's wall clock, None when it had none."""

    timestamp_us: int | None


@dataclass(frozen=True, slots=True)
class ResumeEvent:
    """The vCPUs run."""

    timestamp_us: int | None


@dataclass(frozen=True, slots=True)
class ShutdownEvent:
    """The guest, or someone for it, powered off; without ``-no-shutdown`` QEMU exits next."""

    timestamp_us: int | None
    guest: bool  # the guest itself asked
    reason: str  # QAPI `ShutdownCause`: "guest-shutdown", "host-signal", "host-qmp-quit", …


@dataclass(frozen=True, slots=True)
class ResetEvent:
    """The machine was reset; the guest boots again."""

    timestamp_us: int | None
    guest: bool
    reason: str


@dataclass(frozen=True, slots=True)
class MigrationEvent:
    """The migration of this QEMU, out or in, has another status (capability `events`)."""

    timestamp_us: int | None
    status: MigrationStatus


@dataclass(frozen=True, slots=True)
class PassEvent:
    """A walk over dirty RAM begins; a counter of syncs since 11.0, and it may skip numbers."""

    timestamp_us: int | None
    number: int


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """Any event that has no type of its own."""

    timestamp_us: int | None
    name: str


Event = (
    StopEvent | ResumeEvent | ShutdownEvent | ResetEvent | MigrationEvent | PassEvent | OtherEvent
)


def event_untrusted(message: Mapping[str, Any]) -> Event:
    """Return the event in a QMP `message`; what its fields lack is filled with the least claim."""
    name = message.get("event")
    at_us = _timestamp_us(message.get("timestamp"))
    data = message.get("data")
    data = data if isinstance(data, Mapping) else {}
    match name:
        case "STOP":
            return StopEvent(at_us)
        case "RESUME":
            return ResumeEvent(at_us)
        case "SHUTDOWN":
            return ShutdownEvent(at_us, data.get("guest") is True, str(data.get("reason", "none")))
        case "RESET":
            return ResetEvent(at_us, data.get("guest") is True, str(data.get("reason", "none")))
        case "MIGRATION":
            return MigrationEvent(at_us, MigrationStatus(str(data.get("status"))))
        case "MIGRATION_PASS" if type(data.get("pass")) is int:
            return PassEvent(at_us, data["pass"])
        case _:
            return OtherEvent(at_us, str(name))


def _timestamp_us(stamp: Any) -> int | None:
    """QEMU writes -1 where gettimeofday failed."""
    if not isinstance(stamp, Mapping):
        return None
    seconds, micros = stamp.get("seconds"), stamp.get("microseconds")
    if type(seconds) is not int or type(micros) is not int or seconds < 0 or micros < 0:
        return None
    return seconds * 1_000_000 + micros


class EventBuffer:
    """Unread events of one subscriber, in order; bounded without losing one that decides.

    Above `soft` unread events a pass takes the place of the one before it, and the oldest events
    without a type make room: both can be asked for again. So does a reset of the same kind as the
    last event: a guest that reboots in a loop must not fill anybody's memory. The others (STOP,
    RESUME, SHUTDOWN, MIGRATION) stay; at `hard` the buffer is `full` and nobody may `add`.
    """

    def __init__(self, *, soft: int = SOFT_LIMIT, hard: int = HARD_LIMIT) -> None:
        self._events: deque[Event] = deque()
        self._droppable = 0  # how many of them can be asked for again
        self._soft = soft
        self._hard = hard

    def __len__(self) -> int:
        return len(self._events)

    @property
    def full(self) -> bool:
        """Whether the producer has to wait until some are taken."""
        return len(self._events) >= self._hard

    @property
    def roomy(self) -> bool:
        """Whether a producer that waits may go on: well below full, so that it seldom waits."""
        return len(self._events) <= self._hard // 2

    def add(self, event: Event) -> None:
        """Append `event`, making room as the class says."""
        if len(self._events) >= self._soft:
            if self._replaces_last(event):
                self._events[-1] = event
                return
            if self._droppable:
                self._drop_oldest()
            elif _is_droppable(event):
                return  # only events that decide are unread
        self._events.append(event)
        self._droppable += _is_droppable(event)

    def take(self) -> Event:
        """Remove and return the oldest; raise IndexError when there is none."""
        event = self._events.popleft()
        self._droppable -= _is_droppable(event)
        return event

    def _replaces_last(self, event: Event) -> bool:
        match event, self._events[-1]:
            case (PassEvent(), PassEvent()):
                return True
            case (ResetEvent(guest=guest, reason=reason), ResetEvent() as last):
                return (guest, reason) == (last.guest, last.reason)
            case _:
                return False

    def _drop_oldest(self) -> None:
        index = next(i for i, event in enumerate(self._events) if _is_droppable(event))
        del self._events[index]
        self._droppable -= 1


def _is_droppable(event: Event) -> bool:
    return isinstance(event, OtherEvent | PassEvent)
