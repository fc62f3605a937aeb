"""Where a test can have an agent fail: the names of the moments, and how a point is written.

A point is `SIDE:MOMENT:ACTION`, as in ``source:after record away:kill``. Effects and records of
`core.handover` are moments by themselves, ``before`` and ``after`` each; what is no effect is
named in `AT`. A point strikes once: the agent that is started next goes on unharmed.
"""

from enum import StrEnum

from qmigrate.core.errors import UsageError
from qmigrate.core.handover import Effect, Record
from qmigrate.core.job import FaultPoint
from qmigrate.core.model import Side

FROZEN_S = 10.0  # how long what is frozen stands still; longer than a link waits for its peer


class Action(StrEnum):
    """What an agent does to itself, or to what is its own job's, at a moment."""

    KILL = "kill"  # SIGKILL to itself
    STOP = "stop"  # SIGSTOP to itself, until somebody lets it go on
    HANG = "hang"  # the reader of the inbox waits for ever
    STOP_10S = "stop-10s"  # SIGSTOP to itself; a child wakes it after `FROZEN_S`
    KILL_QEMU = "kill-qemu"  # SIGKILL to the guest's QEMU on this side
    STOP_QEMU = "stop-qemu"  # SIGSTOP to it; a child wakes it after `FROZEN_S`
    KILL_GUARDIAN = "kill-guardian"  # SIGKILL to its parent
    KILL_BOTH = "kill-both"  # to the guardian first, then to itself: nobody is left
    CUT_LINK = "cut-link"  # the link's socket is closed, without a word to the peer
    UNTIL_LEFT = "until-left"  # go on once whoever watches the job has seen this, and gone


ACTIONS = tuple(map(str, Action))

AT = (
    "at start",  # destination: a process was made for QEMU, the journal does not say so yet
    "at prepare",  # source: the journal says prepared; destination: its QEMU greets
    "at loading",  # destination: QEMU is about to be told to load
    "at copying",  # destination: QEMU's event, memory has begun to come
    "at pre-switchover",  # source: QEMU's event, not acted upon yet; destination: is it ready?
    "at switchover",  # destination: it has said that it is ready
    "at completed",  # source: QEMU's event, not acted upon yet
    "at loaded",  # destination: QEMU's event, not acted upon yet
)

MOMENTS = frozenset(
    {
        *AT,
        *(f"{when} {effect}" for when in ("before", "after") for effect in Effect),
        *(f"{when} record {record}" for when in ("before", "after") for record in Record),
    }
)


def parse_fault(text: str) -> FaultPoint:
    """Return the point that is written `SIDE:MOMENT:ACTION`; raise `UsageError` for another."""
    side, _, rest = text.partition(":")
    moment, _, action = rest.rpartition(":")
    if side not in tuple(Side) or moment not in MOMENTS or action not in ACTIONS:
        raise UsageError(f"{text!r} is no SIDE:MOMENT:ACTION", next_step="see qmigrate.core.faults")
    return FaultPoint(Side(side), moment, action)
