"""Where a phase is on each side, and the ends that a cell can have, by short names."""

from qmigrate.core.faults import Action
from qmigrate.lab.selftest.cells import End, Ending, Fault, Phase, Stroke, Victim

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
BLOCKED = (Ending(End.SOURCE, (3, 4)),)  # seen by preflight, or by the first that is made
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
