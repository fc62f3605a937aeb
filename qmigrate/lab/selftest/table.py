"""The fault table: one row a victim and fault, one cell a phase; the ends stand here beforehand.

Why an end is what it is stands in docs/handover.md. In short: until `away` the guest stays on the
source; from the destination's `go` it is there; in between nobody acts on what cannot be known.
"""

from collections.abc import Iterator, Mapping

from qmigrate.core.faults import Action
from qmigrate.lab.selftest.cells import Cell, End, Ending, Fault, Load, Phase, Stroke, Victim

V, F, P, S, A = Victim, Fault, Phase, Stroke, Action

# Where a phase is, for each side: an effect or event of that side's own.
SOURCE = {
    P.PREPARE: "source:at prepare",
    P.COPY: "source:after migrate",
    P.PRE_SWITCHOVER: "source:before check",
    P.SWITCHOVER: "source:after migrate-continue",
    P.COMPLETED: "source:before send-go",
    P.GO: "source:after send-go",
    P.FINISH: "source:after record proved",
}
DESTINATION = {
    P.PREPARE: "destination:at prepare",
    P.COPY: "destination:at copying",
    P.PRE_SWITCHOVER: "destination:at pre-switchover",
    P.SWITCHOVER: "destination:at switchover",
    P.COMPLETED: "destination:at loaded",
    P.GO: "destination:after record go",
    P.FINISH: "destination:after record running",
}
SLOW = ("--bandwidth", "1MiB")  # tiny dirties more: such a copy does not end by itself
LINKED_AGAIN = "linked, generation 1.2"  # of the source's log

MOVED = (Ending(End.DESTINATION, (0,)),)
REFUSED = (Ending(End.SOURCE, (4,)),)  # nothing was touched
BACK = (Ending(End.SOURCE, (5,)),)
NEVER_MOVED = (Ending(End.SOURCE, (4, 5)),)  # whether the copy had begun is a matter of moments
GUEST_ENDED = (Ending(End.ENDED, (9,)),)
UNKNOWN_MOVED = (Ending(End.DESTINATION, (7,)),)  # and `watch` or `resolve` says it
UNKNOWN_BACK = (Ending(End.SOURCE, (7,)),)
UNKNOWN_ENDED = (Ending(End.ENDED, (7, 9)),)
LEFT_ALONE_MOVED = (Ending(End.DESTINATION, ()),)  # the controller is dead: `watch` is asked
LEFT_ALONE_BACK = (Ending(End.SOURCE, ()),)
EITHER = (*MOVED, *BACK)

Ends = tuple[Ending, ...]


def _row(
    victim: Victim,
    fault: Fault,
    action: Action,
    where: Mapping[Phase, str],
    ends: Mapping[Phase, Ends],
) -> Iterator[Cell]:
    """Yield a cell a phase in which an agent does `action`."""
    for phase, expected in ends.items():
        yield Cell(victim, fault, phase, expected, (f"{where[phase]}:{action}",))


def _strokes(
    victim: Victim,
    fault: Fault,
    stroke: Stroke,
    ends: Mapping[str, tuple[Phase, Ends]],
) -> Iterator[Cell]:
    """Yield a cell a point at which an agent stands still while somebody strikes."""
    for point, (phase, expected) in ends.items():
        points = (f"{point}:{A.STOP}",)
        yield Cell(victim, fault, phase, expected, points, stroke)


def _held(
    victim: Victim, fault: Fault, phase: Phase, ends: Ends, points: tuple[str, ...], **more: object
) -> Cell:
    return Cell(victim, fault, phase, ends, points, held=True, **more)  # type: ignore[arg-type]


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
    yield _held(
        V.DESTINATION_QEMU,
        F.KILL,
        P.GO,
        UNKNOWN_BACK,
        (f"{DESTINATION[P.GO]}:{A.KILL_QEMU}",),
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
        yield Cell(V.DESTINATION_BOTH, F.KILL, phase, ends, points, held=held, left=True)


def _controllers() -> Iterator[Cell]:
    for phase in (P.COPY, P.PRE_SWITCHOVER, P.SWITCHOVER, P.COMPLETED, P.GO, P.FINISH):
        points = (f"{SOURCE[phase]}:{A.UNTIL_LEFT}",)
        yield Cell(V.CONTROLLER, F.KILL, phase, LEFT_ALONE_MOVED, points, S.KILL_CONTROLLER)
    for point, place, ends in (
        (DESTINATION[P.PREPARE], "the source was not asked yet", LEFT_ALONE_BACK),
        (SOURCE[P.PREPARE], "both were asked", LEFT_ALONE_MOVED),
    ):
        stops = (f"{point}:{A.STOP}",)
        yield Cell(V.CONTROLLER, F.KILL, P.PREPARE, ends, stops, S.KILL_CONTROLLER, place)
    lost: dict[str, tuple[Phase, Ends]] = {
        SOURCE[phase]: (phase, REFUSED if phase is P.PREPARE else UNKNOWN_MOVED) for phase in Phase
    }
    yield from _strokes(V.SSH, F.CUT, S.CUT_SSH_SOURCE, lost)
    for phase, ends in ((P.PREPARE, REFUSED), (P.COMPLETED, MOVED), (P.GO, MOVED)):
        stops = (f"{DESTINATION[phase]}:{A.STOP}",)
        place = "to the destination"
        yield Cell(V.SSH, F.CUT, phase, ends, stops, S.CUT_SSH_DESTINATION, place)


def _paths() -> Iterator[Cell]:
    yield Cell(
        V.LINK,
        F.CUT_1S,
        P.COPY,
        MOVED,
        (f"{SOURCE[P.COPY]}:{A.CUT_LINK}",),
        options=SLOW,
        hurry=LINKED_AGAIN,
    )
    for point, phase, ends in (
        ("destination:at loading", P.PREPARE, NEVER_MOVED),
        (SOURCE[P.PRE_SWITCHOVER], P.PRE_SWITCHOVER, BACK),  # the guest stands: no time to mend
        (SOURCE[P.SWITCHOVER], P.SWITCHOVER, MOVED),
        (SOURCE[P.COMPLETED], P.COMPLETED, MOVED),
        (SOURCE[P.GO], P.GO, MOVED),
        (SOURCE[P.FINISH], P.FINISH, MOVED),
    ):
        yield Cell(V.LINK, F.CUT_1S, phase, ends, (f"{point}:{A.CUT_LINK}",))
    for phase in (P.COMPLETED, P.GO, P.FINISH):
        points = (f"{DESTINATION[phase]}:{A.CUT_LINK}",)
        yield Cell(V.LINK, F.CUT_1S, phase, MOVED, points, place="by the destination")
    at_continue = "source:before migrate-continue"
    yield from _strokes(
        V.PATH,
        F.CUT_1S,
        S.CUT_PATH_1S,
        {
            SOURCE[P.PREPARE]: (P.PREPARE, MOVED),
            SOURCE[P.COPY]: (P.COPY, MOVED),
            SOURCE[P.PRE_SWITCHOVER]: (P.PRE_SWITCHOVER, MOVED),
            at_continue: (P.SWITCHOVER, MOVED),
            SOURCE[P.COMPLETED]: (P.COMPLETED, MOVED),
            DESTINATION[P.GO]: (P.GO, MOVED),
            SOURCE[P.FINISH]: (P.FINISH, MOVED),
        },
    )
    yield from _strokes(
        V.PATH,
        F.CUT,
        S.CUT_PATH,
        {
            SOURCE[P.PREPARE]: (P.PREPARE, REFUSED),
            SOURCE[P.COPY]: (P.COPY, BACK),
            SOURCE[P.PRE_SWITCHOVER]: (P.PRE_SWITCHOVER, BACK),
            at_continue: (P.SWITCHOVER, BACK),
            # The controller reaches both: GO and RUNNING go by way of it.
            SOURCE[P.COMPLETED]: (P.COMPLETED, MOVED),
            DESTINATION[P.GO]: (P.GO, MOVED),
            SOURCE[P.FINISH]: (P.FINISH, MOVED),
        },
    )
    for point, phase, ends, held in (
        (SOURCE[P.COPY], P.COPY, BACK, False),
        (SOURCE[P.PRE_SWITCHOVER], P.PRE_SWITCHOVER, BACK, False),
        (at_continue, P.SWITCHOVER, BACK, False),
        (SOURCE[P.COMPLETED], P.COMPLETED, UNKNOWN_MOVED, True),
        (DESTINATION[P.GO], P.GO, UNKNOWN_MOVED, False),
    ):
        stops = (f"{point}:{A.STOP}",)
        yield Cell(V.CABLE, F.CUT, phase, ends, stops, S.CUT_CABLE, held=held)


def _hosts() -> Iterator[Cell]:
    dead = ("--host-is-dead", "{source}")
    for point, phase, ends, held in (
        (DESTINATION[P.PREPARE], P.PREPARE, (Ending(End.ENDED, (4, 7, 9)),), False),
        (SOURCE[P.COPY], P.COPY, UNKNOWN_ENDED, False),
        (SOURCE[P.PRE_SWITCHOVER], P.PRE_SWITCHOVER, UNKNOWN_ENDED, False),
        ("source:before migrate-continue", P.SWITCHOVER, UNKNOWN_ENDED, False),
        (SOURCE[P.COMPLETED], P.COMPLETED, UNKNOWN_MOVED, True),
        (DESTINATION[P.GO], P.GO, UNKNOWN_MOVED, False),
        (SOURCE[P.FINISH], P.FINISH, UNKNOWN_MOVED, False),
    ):
        stops, stroke = (f"{point}:{A.STOP}",), S.POWER_OFF_SOURCE
        yield Cell(
            V.SOURCE_HOST, F.CUT, phase, ends, stops, stroke, held=held, resolve=dead, left=True
        )
    anyway = ("--resume-source-anyway",)
    for point, phase, ends, held in (
        (DESTINATION[P.PREPARE], P.PREPARE, REFUSED, False),
        (SOURCE[P.COPY], P.COPY, BACK, False),
        (SOURCE[P.PRE_SWITCHOVER], P.PRE_SWITCHOVER, BACK, False),
        ("source:before migrate-continue", P.SWITCHOVER, BACK, False),
        (SOURCE[P.COMPLETED], P.COMPLETED, UNKNOWN_BACK, True),
        (DESTINATION[P.GO], P.GO, UNKNOWN_BACK, True),
        (SOURCE[P.FINISH], P.FINISH, (Ending(End.ENDED, (0, 7, 8, 9)),), False),
    ):
        stops, stroke = (f"{point}:{A.STOP}",), S.POWER_OFF_DESTINATION
        yield Cell(
            *(V.DESTINATION_HOST, F.CUT, phase, ends, stops, stroke),
            held=held,
            resolve=anyway if held else (),
            left=True,
        )


def _resources() -> Iterator[Cell]:
    fill = (
        (V.SOURCE_RUN, S.FILL_SOURCE, SOURCE),
        (V.DESTINATION_RUN, S.FILL_DESTINATION, DESTINATION),
    )
    for victim, stroke, where in fill:
        yield Cell(victim, F.STAYS, P.PREPARE, REFUSED, (), stroke, "before the job")
        at = {where[phase]: (phase, MOVED) for phase in (P.COPY, P.COMPLETED, P.GO, P.FINISH)}
        yield from _strokes(victim, F.STAYS, stroke, at)
    for point, phase, ends in (
        ("destination:at start", P.PREPARE, NEVER_MOVED),
        (DESTINATION[P.COPY], P.COPY, BACK),
    ):
        yield Cell(V.MEMORY, F.STAYS, phase, ends, (f"{point}:{A.STOP}",), S.SHORT_MEMORY)
    for point, phase in ((SOURCE[P.COMPLETED], P.COMPLETED), (DESTINATION[P.GO], P.GO)):
        stops = (f"{point}:{A.STOP}",)
        more = {"stroke": S.TAKE_LOCK, "load": Load.DISK}
        yield _held(V.LOCK, F.STAYS, phase, UNKNOWN_BACK, stops, **more)


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
    *_controllers(),
    *_paths(),
    *_hosts(),
    *_resources(),
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
