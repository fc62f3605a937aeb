"""The fault table: one row a victim and fault, one cell a phase; the ends stand here beforehand.

Why an end is what it is stands in docs/handover.md. In short: until `away` the guest stays on the
source; from the destination's `go` it is there; in between nobody acts on what cannot be known.
"""

from collections.abc import Iterator, Mapping

from qmigrate.core.faults import Action
from qmigrate.lab.selftest import outside
from qmigrate.lab.selftest.cells import Cell, End, Ending, Fault, Load, Phase, Victim
from qmigrate.lab.selftest.words import (
    BACK,
    DESTINATION,
    EITHER,
    GUEST_ENDED,
    LINKED_AGAIN,
    MOVED,
    NEVER_MOVED,
    REFUSED,
    SLOW,
    SOURCE,
    UNKNOWN_BACK,
    UNKNOWN_MOVED,
    A,
    Ends,
    F,
    P,
    V,
)


def _row(
    victim: Victim,
    fault: Fault,
    action: Action,
    where: Mapping[Phase, str],
    ends: Mapping[Phase, Ends],
) -> Iterator[Cell]:
    """Yield a cell a phase in which an agent does `action`.

    A copy that is to come to nothing is made too slow to end before its fault is felt.
    """
    for phase, expected in ends.items():
        options = SLOW if phase is P.COPY and expected == BACK else ()
        points = (f"{where[phase]}:{action}",)
        yield Cell(victim, fault, phase, expected, points, options=options)


def _qemu() -> Iterator[Cell]:
    yield from _row(
        V.SOURCE_QEMU,
        F.KILL,
        A.KILL_QEMU,
        SOURCE,
        {
            P.PREPARE: GUEST_ENDED,
            P.COPY: GUEST_ENDED,
            P.PRE_SWITCHOVER: GUEST_ENDED,
            # What it had sent by then was all, or was not: the destination looks.
            P.SWITCHOVER: (*GUEST_ENDED, *MOVED),
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )
    yield from _row(
        V.SOURCE_QEMU,
        F.FREEZE,
        A.STOP_QEMU,
        SOURCE,
        {
            # As long as a monitor may be silent before it is given up.
            P.PREPARE: (*NEVER_MOVED, *MOVED),
            P.COPY: EITHER,
            # It wakes to migrate-continue and to migrate_cancel: whichever it comes to first.
            P.PRE_SWITCHOVER: EITHER,
            P.SWITCHOVER: EITHER,
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )
    yield from _row(
        V.DESTINATION_QEMU,
        F.KILL,
        A.KILL_QEMU,
        DESTINATION,
        {
            P.PREPARE: NEVER_MOVED,
            P.COPY: BACK,
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: BACK,
            P.COMPLETED: BACK,
        },
    )
    # It was proved to run there before it died there; what it lived on stays, as any guest's does.
    points = (f"{DESTINATION[P.FINISH]}:{A.KILL_QEMU}",)
    ends = (Ending(End.ENDED, (0, 9)),)
    yield Cell(V.DESTINATION_QEMU, F.KILL, P.FINISH, ends, points, left=True)
    # It may have run: what the source holds may be older. No disk is shared: resolve may run it.
    yield Cell(
        V.DESTINATION_QEMU,
        F.KILL,
        P.GO,
        UNKNOWN_BACK,
        (f"{DESTINATION[P.GO]}:{A.KILL_QEMU}",),
        held=True,
        left=True,
        resolve=("--resume-source-anyway",),
    )
    yield from _row(
        V.DESTINATION_QEMU,
        F.FREEZE,
        A.STOP_QEMU,
        DESTINATION,
        {
            P.PREPARE: NEVER_MOVED,
            P.COPY: EITHER,  # what fits into the sockets is all, or the copy waits for it
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: EITHER,
            P.COMPLETED: BACK,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )


def _agents() -> Iterator[Cell]:
    yield from _row(
        V.SOURCE_AGENT,
        F.KILL,
        A.KILL,
        SOURCE,
        {
            P.PREPARE: REFUSED,
            P.COPY: BACK,
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: MOVED,
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )
    for place, phase, ends in (
        ("before migrate-continue", P.SWITCHOVER, BACK),
        ("before record away", P.COMPLETED, MOVED),
        ("after record away", P.COMPLETED, MOVED),
        ("before record proved", P.FINISH, MOVED),
        ("before record done", P.FINISH, MOVED),
    ):
        point = f"source:{place}:{A.KILL}"
        yield Cell(V.SOURCE_AGENT, F.KILL, phase, ends, (point,), place=place)
    yield from _row(
        V.SOURCE_AGENT,
        F.FREEZE,
        A.STOP_10S,
        SOURCE,
        {
            P.PREPARE: NEVER_MOVED,
            P.COPY: BACK,
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: MOVED,
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )
    yield from _row(
        V.DESTINATION_AGENT,
        F.KILL,
        A.KILL,
        DESTINATION,
        {
            P.PREPARE: REFUSED,
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: MOVED,
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )
    yield Cell(
        V.DESTINATION_AGENT,
        F.KILL,
        P.COPY,
        MOVED,
        (f"{DESTINATION[P.COPY]}:{A.KILL}",),
        options=SLOW,
        hurry=LINKED_AGAIN,
    )
    for place, phase, ends in (
        ("at start", P.PREPARE, REFUSED),
        ("at loading", P.PREPARE, REFUSED),
        ("before record go", P.COMPLETED, MOVED),
        ("after run", P.GO, MOVED),
    ):
        point = f"destination:{place}:{A.KILL}"
        yield Cell(V.DESTINATION_AGENT, F.KILL, phase, ends, (point,), place=place)
    yield from _row(
        V.DESTINATION_AGENT,
        F.FREEZE,
        A.STOP_10S,
        DESTINATION,
        {
            P.PREPARE: MOVED,  # the source is not asked before it is ready
            P.COPY: BACK,
            P.PRE_SWITCHOVER: BACK,
            P.SWITCHOVER: MOVED,
            P.COMPLETED: MOVED,
            P.GO: MOVED,
            P.FINISH: MOVED,
        },
    )


def _guardians() -> Iterator[Cell]:
    for victim, where in ((V.SOURCE_GUARDIAN, SOURCE), (V.DESTINATION_GUARDIAN, DESTINATION)):
        yield from _row(victim, F.KILL, A.KILL_GUARDIAN, where, dict.fromkeys(Phase, MOVED))
    # Nobody is left who works at the job on that host: `resolve` starts somebody.
    for phase, ends, held in (
        (P.PREPARE, REFUSED, False),
        (P.COPY, UNKNOWN_BACK, True),
        (P.PRE_SWITCHOVER, UNKNOWN_BACK, True),
        (P.SWITCHOVER, UNKNOWN_MOVED, True),
        (P.COMPLETED, UNKNOWN_MOVED, True),
        (P.GO, UNKNOWN_MOVED, False),
        (P.FINISH, UNKNOWN_MOVED, False),
    ):
        points = (f"{SOURCE[phase]}:{A.KILL_BOTH}",)
        yield Cell(V.SOURCE_BOTH, F.KILL, phase, ends, points, held=held, left=True)
    for phase, ends, held in (
        (P.PREPARE, REFUSED, False),
        (P.COPY, BACK, False),
        (P.PRE_SWITCHOVER, BACK, False),
        (P.SWITCHOVER, UNKNOWN_MOVED, True),
        (P.COMPLETED, UNKNOWN_MOVED, True),
        (P.GO, UNKNOWN_MOVED, True),
        (P.FINISH, UNKNOWN_MOVED, False),
    ):
        points = (f"{DESTINATION[phase]}:{A.KILL_BOTH}",)
        options = SLOW if phase is P.COPY else ()
        struck = (V.DESTINATION_BOTH, F.KILL, phase, ends, points)
        yield Cell(*struck, held=held, left=True, options=options)


def _with_tcp() -> Iterator[Cell]:
    for victim, fault, phase, where, action, ends in (
        (V.SOURCE_AGENT, F.KILL, P.PRE_SWITCHOVER, SOURCE, A.KILL, BACK),
        (V.SOURCE_AGENT, F.KILL, P.COMPLETED, SOURCE, A.KILL, MOVED),
        (V.DESTINATION_AGENT, F.KILL, P.GO, DESTINATION, A.KILL, MOVED),
        (V.DESTINATION_QEMU, F.KILL, P.COMPLETED, DESTINATION, A.KILL_QEMU, BACK),
        (V.LINK, F.CUT_1S, P.COMPLETED, SOURCE, A.CUT_LINK, MOVED),
    ):
        points = (f"{where[phase]}:{action}",)
        yield Cell(victim, fault, phase, ends, points, place="linux", load=Load.LINUX)


CELLS: tuple[Cell, ...] = (
    *_qemu(),
    *_agents(),
    *_guardians(),
    *outside.controllers(),
    *outside.paths(),
    *outside.hosts(),
    *outside.resources(),
    *_with_tcp(),
)

# A representative dozen, each quick: what an ordinary run of the tests takes.
DAILY: frozenset[str] = frozenset(
    {
        "source QEMU, SIGKILL, copy",
        "source QEMU, SIGKILL, between completed and GO",
        "destination QEMU, SIGKILL, prepare",
        "destination QEMU, SIGKILL, between completed and GO",
        "source agent, SIGKILL, pre-switchover",
        "source agent, SIGKILL, between completed and GO (before record away)",
        "destination agent, SIGKILL, between GO and RUNNING",
        "source guardian, SIGKILL, copy",
        "controller, SIGKILL, between completed and GO",
        "link, cut for 1 s, between GO and RUNNING",
        "path between the hosts, cut for good, pre-switchover",
        "memory short on the destination, for good, prepare",
    }
)
