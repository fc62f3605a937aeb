"""Where a test can have an agent fail: the names of the moments, and how a point is written.

A point is `SIDE:MOMENT:ACTION`, as in ``source:after record away:kill``. Effects and records of
`core.handover` are moments by themselves, ``before`` and ``after`` each; what is no effect is
named in `AT`. A point strikes once: the agent that is started next goes on unharmed.
"""

from qmigrate.core.errors import UsageError
from qmigrate.core.handover import Effect, Record
from qmigrate.core.job import FaultPoint
from qmigrate.core.model import Side

ACTIONS = ("kill", "stop", "hang")  # SIGKILL, SIGSTOP; the reader of the inbox waits for ever

AT = (
    "at start",  # destination: a process was made for QEMU, the journal does not say so yet
    "at prepare",  # source: the journal says prepared; destination: its QEMU greets
    "at loading",  # destination: QEMU is about to be told to load
    "at pre-switchover",  # source: QEMU's event, not acted upon yet
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
