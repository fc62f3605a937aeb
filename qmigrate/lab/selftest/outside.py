"""The rows of the fault table in which somebody outside of the agents strikes, or guests differ."""

from collections.abc import Iterator, Mapping

from qmigrate.lab.selftest.cells import Cell, End, Ending, Fault, Load, Phase, Stroke, Victim
from qmigrate.lab.selftest.words import (
    BACK,
    BLOCKED,
    DESTINATION,
    LEFT_ALONE_BACK,
    LEFT_ALONE_MOVED,
    LINKED_AGAIN,
    MOVED,
    NEVER_MOVED,
    REFUSED,
    SLOW,
    SOURCE,
    UNKNOWN_BACK,
    UNKNOWN_ENDED,
    UNKNOWN_MOVED,
    A,
    Ends,
    F,
    P,
    S,
    V,
)


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


def controllers() -> Iterator[Cell]:
    """Yield the cells in which a controller dies, or its connection to a host."""
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


def paths() -> Iterator[Cell]:
    """Yield the cells in which the link breaks, or the wires below it."""
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
        },
    )
    # It has moved, and the source has left: who is still there was not told, and waits to be.
    finish = (Ending(End.DESTINATION, (0, 8)),)
    stops = (f"{SOURCE[P.FINISH]}:{A.STOP}",)
    yield Cell(V.PATH, F.CUT, P.FINISH, finish, stops, S.CUT_PATH, left=True)
    for point, phase, ends, held in (
        (SOURCE[P.COPY], P.COPY, BACK, False),
        (SOURCE[P.PRE_SWITCHOVER], P.PRE_SWITCHOVER, BACK, False),
        (at_continue, P.SWITCHOVER, BACK, False),
        (SOURCE[P.COMPLETED], P.COMPLETED, UNKNOWN_MOVED, True),
        (DESTINATION[P.GO], P.GO, UNKNOWN_MOVED, False),
    ):
        stops = (f"{point}:{A.STOP}",)
        # The rest may arrive when the cable is whole again, and nobody is there to refuse the copy.
        left = phase is P.SWITCHOVER
        yield Cell(V.CABLE, F.CUT, phase, ends, stops, S.CUT_CABLE, held=held, left=left)


def hosts() -> Iterator[Cell]:
    """Yield the cells in which a host loses its power."""
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


def resources() -> Iterator[Cell]:
    """Yield the cells in which a host has no room, no memory, or an image is in use."""
    fill = (
        (V.SOURCE_RUN, S.FILL_SOURCE, SOURCE),
        (V.DESTINATION_RUN, S.FILL_DESTINATION, DESTINATION),
    )
    for victim, stroke, where in fill:
        yield Cell(victim, F.STAYS, P.PREPARE, BLOCKED, (), stroke, "before the job")
        at = {where[phase]: (phase, MOVED) for phase in (P.COPY, P.COMPLETED, P.GO, P.FINISH)}
        yield from _strokes(victim, F.STAYS, stroke, at)
    for point, phase, ends in (
        ("destination:at start", P.PREPARE, NEVER_MOVED),
        (DESTINATION[P.COPY], P.COPY, BACK),
    ):
        yield Cell(V.MEMORY, F.STAYS, phase, ends, (f"{point}:{A.STOP}",), S.SHORT_MEMORY)
    for point, phase in ((SOURCE[P.COMPLETED], P.COMPLETED), (DESTINATION[P.GO], P.GO)):
        stops = (f"{point}:{A.STOP}",)
        lock = (V.LOCK, F.STAYS, phase, UNKNOWN_BACK, stops, S.TAKE_LOCK)
        yield Cell(*lock, held=True, load=Load.DISK)
