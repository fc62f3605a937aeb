"""Who may run the guest: the handover as one table a side, and nothing else decides.

At every instant at most one host holds the right to run the guest; it moves only by a GO that the
destination has durably accepted (DESIGN §3). A side is a state; an event that stands in the state's
row gives the next state and the effects to carry out **in order** (a record is written before what
follows it); an event that does not stand there raises `ImpossibleEventError`, and nothing happens.

The source holds the right until it records `away`. From then on nobody holds it until the
destination records `go` or the answer REFUSED or RETURNED brings it back. What cannot be known
leaves the state as it is: `REPORT_UNKNOWN` tells people, and touches nothing.

A state whose name is a `Record` stands in the journal; where an agent that was started again goes
on from there, `takeover.py` says. The diagrams in docs/handover.md are printed from the tables.
"""

from enum import StrEnum

from qmigrate.core.errors import QmigrateError
from qmigrate.core.rights import (
    OVER,
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    Record,
    Row,
    Source,
    SourceEvent,
    Word,
    Write,
)

__all__ = [
    "DESTINATION",
    "OVER",
    "SOURCE",
    "Destination",
    "DestinationEvent",
    "Effect",
    "Effects",
    "ImpossibleEventError",
    "Record",
    "Row",
    "Source",
    "SourceEvent",
    "Word",
    "Write",
    "destination_step",
    "source_step",
]


class ImpossibleEventError(QmigrateError):
    """An event came that its state's row does not hold: a defect, and no reason to act."""


S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record

_RESTORED: tuple[StrEnum, Effects] = (
    S.RESTORED,
    (E.CLEAN, Write(R.RESTORED), E.SEND_FINISH, E.END),
)
_AT_THE_END: Effects = (E.CLEAN, Write(R.ENDED), E.SEND_FINISH, E.END)
_BACK: tuple[StrEnum, Effects] = (S.BACK, (Write(R.BACK), E.SEND_REFUSE, E.RETURN_GUEST))
_BACK_AFTER_GO: tuple[StrEnum, Effects] = (S.BACK, (Write(R.BACK), E.RETURN_GUEST, E.ANNOUNCE))
_ENDED: tuple[StrEnum, Effects] = (S.ENDED, (Write(R.BACK), E.SEND_REFUSE, *_AT_THE_END))
_AWAY: tuple[StrEnum, Effects] = (S.AWAY, (Write(R.AWAY), E.SEND_GO))
_PROVED: tuple[StrEnum, Effects] = (S.PROVED, (Write(R.PROVED), E.QUIT_QEMU))
_DONE: tuple[StrEnum, Effects] = (S.DONE, (E.CLEAN, Write(R.DONE), E.SEND_FINISH, E.END))
_CANCEL: tuple[StrEnum, Effects] = (S.CANCELLING, (E.MIGRATE_CANCEL,))
# A QEMU that was told to cancel runs on before it says so (10.0: RESUME, then `cancelled`), and the
# destination may load all the same (facts: trap 1). If it ends then, the copy there may be older
# than what was run and written here. Nobody acts on that but a person.
_MISSED: tuple[StrEnum, Effects] = (S.MISSED, (E.REPORT_UNKNOWN, E.SEND_ASK))
# Somebody typed `cont` on a QEMU that was complete, and GO may be on its way. No GO is sent again;
# a destination that has not taken it refuses, and one that has says so to people.
_STRAYED: tuple[StrEnum, Effects] = (S.STRAYED, (E.REPORT_UNKNOWN, E.SEND_REFUSE))


def _stay(state: StrEnum, *effects: Effect) -> tuple[StrEnum, Effects]:
    return state, effects


def _unmoved(state: StrEnum, *events: StrEnum) -> Row:
    """Return rows for events that may come in `state`, and change nothing."""
    nothing: tuple[StrEnum, Effects] = (state, ())
    return dict.fromkeys(events, nothing)


SOURCE: dict[Source, Row] = {
    S.PREPARED: {
        SE.START: (S.COPYING, (E.MIGRATE,)),
        SE.CANCEL: _BACK,
        SE.GIVE_UP: _BACK,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_COMPLETED: _stay(S.PREPARED),  # of an earlier move: ours has not begun
        SE.QEMU_GONE: _ENDED,
        SE.REFUSED: _BACK,
        **_unmoved(S.PREPARED, SE.CONNECTED),
    },
    S.COPYING: {
        SE.PRE_SWITCHOVER: (S.HELD, (E.CHECK,)),
        SE.CANCEL: _CANCEL,
        SE.GIVE_UP: _CANCEL,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_COMPLETED: (S.LEFT, (E.SEND_ASK,)),  # somebody else let it go on
        SE.QEMU_GONE: _ENDED,
        SE.REFUSED: _CANCEL,
        **_unmoved(S.COPYING, SE.CONNECTED),
    },
    S.HELD: {
        SE.CHECKED: (S.SWITCHING, (Write(R.SWITCHING), E.MIGRATE_CONTINUE)),
        SE.CANCEL: _CANCEL,
        SE.GIVE_UP: _CANCEL,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_COMPLETED: (S.LEFT, (E.SEND_ASK,)),
        SE.QEMU_GONE: _ENDED,
        SE.REFUSED: _CANCEL,
        SE.PRE_SWITCHOVER: _stay(S.HELD),  # said again after the monitor was opened again
        **_unmoved(S.HELD, SE.CONNECTED),
    },
    S.CANCELLING: {
        SE.QEMU_RUNS_ON: _BACK,
        # No GO was ever sent, so the copy here is the only one with a right to run.
        SE.QEMU_COMPLETED: _BACK,
        # migrate-continue was never given: all that there is of the guest was here.
        SE.QEMU_GONE: _ENDED,
        SE.STUCK: _stay(S.CANCELLING, E.REPORT_UNKNOWN),
        **_unmoved(S.CANCELLING, SE.PRE_SWITCHOVER, SE.CANCEL, SE.GIVE_UP, SE.REFUSED),
        **_unmoved(S.CANCELLING, SE.CONNECTED, SE.CHECKED),
    },
    S.SWITCHING: {
        SE.QEMU_COMPLETED: _AWAY,
        SE.QEMU_RUNS_ON: _BACK,
        # Watched to its end, and it never said that it failed: what is left of the guest is on the
        # destination or nowhere, and the destination looks before it takes GO.
        SE.QEMU_GONE: _AWAY,
        SE.CANCEL: _stay(S.SWITCHING, E.ANSWER_DECIDING),
        # QEMU's verdict decides: what the link says meanwhile is no reason to act. It may say that
        # the guest runs there, if a person has let it: that is said again when it is asked for.
        SE.GIVE_UP: _stay(S.SWITCHING),
        # Its images may be inactive, but no GO was sent: a cancelled switchover is still ours.
        SE.STUCK: (S.RECALLING, (E.MIGRATE_CANCEL,)),
        **_unmoved(S.SWITCHING, SE.REFUSED, SE.RUNNING, SE.RETURNED, SE.LOST, SE.CONNECTED),
        **_unmoved(S.SWITCHING, SE.CHECKED, SE.PRE_SWITCHOVER),
    },
    S.RECALLING: {
        SE.QEMU_COMPLETED: _AWAY,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_GONE: _MISSED,
        SE.CANCEL: _stay(S.RECALLING, E.ANSWER_DECIDING),
        SE.PRE_SWITCHOVER: _stay(S.RECALLING, E.MIGRATE_CANCEL),
        SE.STUCK: _stay(S.RECALLING, E.MIGRATE_CANCEL, E.REPORT_UNKNOWN),
        **_unmoved(S.RECALLING, SE.GIVE_UP, SE.REFUSED, SE.RUNNING, SE.RETURNED, SE.LOST),
        **_unmoved(S.RECALLING, SE.CONNECTED, SE.CHECKED),
    },
    S.MISSED: {
        # It never had everything, or has thrown it away unrun: nothing is left of the guest.
        SE.REFUSED: _ENDED,
        SE.RUNNING: _PROVED,  # somebody has decided
        SE.LOADED: _stay(S.MISSED, E.REPORT_UNKNOWN),
        SE.NO_RECORD: _stay(S.MISSED, E.REPORT_UNKNOWN),
        SE.NO_ANSWER: _stay(S.MISSED, E.REPORT_UNKNOWN),
        SE.LOST: _stay(S.MISSED, E.REPORT_UNKNOWN),
        SE.RETURNED: _ENDED,
        SE.CONNECTED: _stay(S.MISSED, E.SEND_ASK),
        SE.CANCEL: _stay(S.MISSED, E.ANSWER_DECIDING),
        SE.RUN_HERE: _ENDED,  # nor will it ever there: nothing is left of the guest
        **_unmoved(S.MISSED, SE.GIVE_UP, SE.STUCK, SE.CHECKED, SE.QEMU_GONE),
    },
    S.LEFT: {
        SE.LOADED: _AWAY,
        SE.RUNNING: _PROVED,  # a person had it run there when this host was taken for dead
        SE.REFUSED: _BACK,
        SE.RETURNED: _BACK,  # by a person's word as well
        SE.LOST: _stay(S.LEFT, E.REPORT_UNKNOWN),
        SE.NO_RECORD: _BACK,
        SE.RUN_HERE: _BACK,
        SE.NO_ANSWER: _BACK,
        SE.QEMU_GONE: _AWAY,
        SE.QEMU_RUNS_ON: _BACK,  # somebody typed `cont`, and no GO was ever sent
        SE.CONNECTED: _stay(S.LEFT, E.SEND_ASK),
        SE.CANCEL: _BACK,
        **_unmoved(S.LEFT, SE.QEMU_COMPLETED, SE.GIVE_UP, SE.CHECKED),
    },
    S.AWAY: {
        SE.RUNNING: _PROVED,
        SE.REFUSED: _BACK_AFTER_GO,
        SE.RETURNED: _BACK_AFTER_GO,
        SE.CONNECTED: _stay(S.AWAY, E.SEND_GO),
        SE.NO_ANSWER: _stay(S.AWAY, E.REPORT_UNKNOWN),
        SE.NO_RECORD: _stay(S.AWAY, E.REPORT_UNKNOWN),
        SE.QEMU_GONE: _stay(S.AWAY),  # the answer to GO still decides, and is still wanted
        SE.QEMU_RUNS_ON: _STRAYED,
        SE.CANCEL: _stay(S.AWAY, E.ANSWER_DECIDING),
        SE.LOADED: _stay(S.AWAY, E.SEND_GO),
        SE.LOST: _stay(S.AWAY, E.REPORT_UNKNOWN),
        SE.RUN_HERE: _BACK_AFTER_GO,  # old memory on disks that may be newer: a person has said so
        **_unmoved(S.AWAY, SE.QEMU_COMPLETED, SE.GIVE_UP, SE.STUCK, SE.CHECKED),
    },
    S.STRAYED: {
        SE.REFUSED: _BACK_AFTER_GO,
        SE.RETURNED: _BACK_AFTER_GO,
        SE.RUN_HERE: _BACK_AFTER_GO,
        # It may run twice, and both have written: what is to be kept is a person's choice.
        SE.RUNNING: _stay(S.STRAYED, E.REPORT_UNKNOWN),
        SE.LOST: _stay(S.STRAYED, E.REPORT_UNKNOWN),
        SE.NO_ANSWER: _stay(S.STRAYED, E.REPORT_UNKNOWN),
        SE.NO_RECORD: _stay(S.STRAYED, E.REPORT_UNKNOWN),
        SE.LOADED: _stay(S.STRAYED, E.SEND_REFUSE),
        SE.CONNECTED: _stay(S.STRAYED, E.SEND_REFUSE),
        SE.QEMU_GONE: (S.AWAY, (E.SEND_ASK,)),  # that choice, perhaps
        SE.CANCEL: _stay(S.STRAYED, E.ANSWER_DECIDING),
        **_unmoved(S.STRAYED, SE.QEMU_RUNS_ON, SE.QEMU_COMPLETED, SE.GIVE_UP, SE.STUCK, SE.CHECKED),
    },
    S.PROVED: {
        SE.QUIT: _DONE,
        SE.QEMU_GONE: _DONE,
        SE.QEMU_RUNS_ON: _stay(S.PROVED),  # let run after the destination was proved: it is quit
        SE.CONNECTED: _stay(S.PROVED, E.SEND_ASK),  # a new agent does not know when it ran
        SE.CANCEL: _stay(S.PROVED, E.ANSWER_DECIDING),
        SE.STUCK: _stay(S.PROVED, E.REPORT_UNKNOWN),
        **_unmoved(S.PROVED, SE.QEMU_COMPLETED, SE.RUNNING, SE.LOADED, SE.GIVE_UP, SE.NO_ANSWER),
        **_unmoved(S.PROVED, SE.CHECKED),
    },
    S.BACK: {
        SE.RETURNED_HERE: _RESTORED,
        SE.QEMU_GONE: (S.ENDED, _AT_THE_END),
        SE.LOADED: _stay(S.BACK, E.SEND_REFUSE),
        # Only a person can have brought that about: it may be there twice.
        SE.RUNNING: _stay(S.BACK, E.REPORT_UNKNOWN),
        SE.LOST: _stay(S.BACK, E.REPORT_UNKNOWN),
        SE.CONNECTED: _stay(S.BACK, E.SEND_REFUSE),
        SE.STUCK: _stay(S.BACK, E.REPORT_UNKNOWN),
        **_unmoved(S.BACK, SE.QEMU_RUNS_ON, SE.QEMU_COMPLETED, SE.PRE_SWITCHOVER, SE.REFUSED),
        **_unmoved(S.BACK, SE.RETURNED, SE.CANCEL, SE.GIVE_UP, SE.NO_ANSWER, SE.NO_RECORD),
        **_unmoved(S.BACK, SE.CHECKED),
    },
    S.RESTORED: {
        SE.CONNECTED: _stay(S.RESTORED, E.SEND_FINISH),  # it may not have heard
        SE.RUNNING: _stay(S.RESTORED, E.REPORT_UNKNOWN),
        SE.LOST: _stay(S.RESTORED, E.REPORT_UNKNOWN),
        SE.LOADED: _stay(S.RESTORED, E.SEND_FINISH),
        **_unmoved(S.RESTORED, SE.QEMU_GONE, SE.QEMU_RUNS_ON, SE.QEMU_COMPLETED, SE.PRE_SWITCHOVER),
        **_unmoved(S.RESTORED, SE.REFUSED, SE.RETURNED, SE.CANCEL, SE.GIVE_UP, SE.NO_ANSWER),
        **_unmoved(S.RESTORED, SE.STUCK, SE.CHECKED),
    },
    S.ENDED: {
        SE.CONNECTED: _stay(S.ENDED, E.SEND_FINISH),
        SE.RUNNING: _stay(S.ENDED, E.REPORT_UNKNOWN),
        SE.LOST: _stay(S.ENDED, E.REPORT_UNKNOWN),
        SE.LOADED: _stay(S.ENDED, E.SEND_FINISH),
        **_unmoved(S.ENDED, SE.QEMU_GONE, SE.RETURNED_HERE, SE.REFUSED, SE.RETURNED, SE.CANCEL),
        **_unmoved(S.ENDED, SE.GIVE_UP, SE.NO_ANSWER, SE.STUCK, SE.CHECKED),
    },
    S.DONE: {
        SE.CONNECTED: _stay(S.DONE, E.SEND_FINISH),
        SE.RUNNING: _stay(S.DONE, E.SEND_FINISH),
        **_unmoved(S.DONE, SE.QEMU_GONE, SE.QUIT, SE.LOADED, SE.CANCEL, SE.GIVE_UP, SE.NO_ANSWER),
        **_unmoved(S.DONE, SE.STUCK, SE.CHECKED),
    },
}

_REFUSE: tuple[StrEnum, Effects] = (
    D.REFUSED,
    (Write(R.REFUSED), E.ANSWER_REFUSED, E.QUIT_QEMU, E.CLEAN),
)

_RUNNING: tuple[StrEnum, Effects] = (
    D.RUNNING,
    (E.ANNOUNCE, Write(R.RUNNING), E.ANSWER_RUNNING),
)
_RETURNED: tuple[StrEnum, Effects] = (
    D.RETURNED,
    (Write(R.RETURNED), E.ANSWER_RETURNED, E.QUIT_QEMU, E.CLEAN),
)
_LOST: tuple[StrEnum, Effects] = (D.LOST, (E.ANSWER_LOST, E.REPORT_UNKNOWN))

DESTINATION: dict[Destination, Row] = {
    D.PREPARED: {
        DE.GO: (D.DECIDING, (E.LOOK,)),
        DE.ASK: _stay(D.PREPARED, E.ANSWER_LOADED),
        DE.REFUSE: _REFUSE,
        DE.QEMU_GONE: _REFUSE,
        DE.RUN_HERE: (D.DECIDING, (E.LOOK,)),
        DE.PEER_IS_DEAD: _stay(D.PREPARED, E.REPORT_UNKNOWN),  # what is loaded may be the last
        # The source is at its end and never sent GO: its REFUSE was lost.
        DE.FINISH: (D.REFUSED, (Write(R.REFUSED), E.QUIT_QEMU, E.CLEAN, E.END)),
        # Somebody typed `cont`: it is not quit any more, and whoever asks is told.
        DE.RUNS: (D.RUNNING, (Write(R.RUNNING), E.REPORT_UNKNOWN)),
    },
    D.DECIDING: {
        DE.LOOKS_LOADED: (D.GO, (Write(R.GO), E.RUN)),
        DE.LOOKS_UNFIT: _REFUSE,
        DE.QEMU_GONE: _REFUSE,
        DE.RUNS: _RUNNING,
        **_unmoved(D.DECIDING, DE.GO, DE.ASK, DE.REFUSE, DE.FINISH),
    },
    D.GO: {
        DE.RUNS: _RUNNING,
        # The first cont after LOOK: QEMU refuses before anything runs (qmp_cont).
        DE.CONT_REFUSED: _RETURNED,
        DE.CONT_UNKNOWN: _stay(D.GO, E.REPORT_UNKNOWN),
        DE.QEMU_GONE: _LOST,
        **_unmoved(D.GO, DE.GO, DE.ASK, DE.REFUSE, DE.FINISH),
    },
    D.GO_AGAIN: {
        DE.RUNS: _RUNNING,
        # It may have run, shut itself down or panicked, and refuse for that: no proof of anything.
        DE.CONT_REFUSED: _stay(D.GO_AGAIN, E.REPORT_UNKNOWN),
        DE.CONT_UNKNOWN: _stay(D.GO_AGAIN, E.REPORT_UNKNOWN),
        DE.QEMU_GONE: _LOST,
        **_unmoved(D.GO_AGAIN, DE.GO, DE.ASK, DE.REFUSE, DE.FINISH),
    },
    D.RUNNING: {
        DE.GO: _stay(D.RUNNING, E.ANSWER_RUNNING),
        DE.ASK: _stay(D.RUNNING, E.ANSWER_RUNNING),
        DE.FINISH: (D.DONE, (Write(R.DONE), E.END)),
        DE.PEER_IS_DEAD: (D.DONE, (Write(R.DONE), E.END)),
        DE.QEMU_GONE: _stay(D.RUNNING),  # the guest's own end, after the handover
        DE.REFUSE: _stay(D.RUNNING, E.ANSWER_RUNNING),
        **_unmoved(D.RUNNING, DE.RUNS, DE.LOOKS_LOADED, DE.LOOKS_UNFIT, DE.CONT_REFUSED),
        **_unmoved(D.RUNNING, DE.CONT_UNKNOWN),
    },
    D.REFUSED: {
        DE.GO: _stay(D.REFUSED, E.ANSWER_REFUSED),
        DE.ASK: _stay(D.REFUSED, E.ANSWER_REFUSED),
        DE.REFUSE: _stay(D.REFUSED, E.ANSWER_REFUSED),
        DE.RUNS: _stay(D.REFUSED),  # `cont` was typed too late
        DE.PEER_IS_DEAD: _stay(D.REFUSED, E.END),
        DE.FINISH: _stay(D.REFUSED, E.END),  # the source knows: nobody will ask again
        **_unmoved(D.REFUSED, DE.QEMU_GONE, DE.LOOKS_LOADED, DE.LOOKS_UNFIT),
    },
    D.RETURNED: {
        DE.GO: _stay(D.RETURNED, E.ANSWER_RETURNED),
        DE.ASK: _stay(D.RETURNED, E.ANSWER_RETURNED),
        DE.REFUSE: _stay(D.RETURNED, E.ANSWER_RETURNED),
        DE.PEER_IS_DEAD: _stay(D.RETURNED, E.END),
        DE.FINISH: _stay(D.RETURNED, E.END),
        **_unmoved(D.RETURNED, DE.QEMU_GONE, DE.RUNS),
    },
    D.LOST: {
        DE.GO: _stay(D.LOST, E.ANSWER_LOST),
        DE.ASK: _stay(D.LOST, E.ANSWER_LOST),
        DE.REFUSE: _stay(D.LOST, E.ANSWER_LOST),
        DE.RUNS: _stay(D.LOST),  # seen before it died
        DE.PEER_IS_DEAD: _stay(D.LOST, E.END),
        DE.FINISH: _stay(D.LOST, E.END),
        **_unmoved(D.LOST, DE.CONT_UNKNOWN, DE.CONT_REFUSED, DE.QEMU_GONE),
    },
    D.DONE: {
        DE.GO: _stay(D.DONE, E.ANSWER_RUNNING),
        DE.ASK: _stay(D.DONE, E.ANSWER_RUNNING),
        DE.REFUSE: _stay(D.DONE, E.ANSWER_RUNNING),
        **_unmoved(D.DONE, DE.FINISH, DE.QEMU_GONE, DE.RUNS, DE.CONT_REFUSED, DE.CONT_UNKNOWN),
    },
}


def source_step(state: Source, event: SourceEvent) -> tuple[Source, Effects]:
    """Return the source's next state and effects; raise `ImpossibleEventError` off the table."""
    row = SOURCE[state]
    if event not in row:
        raise ImpossibleEventError(f"source in state {state}: no row for {event}")
    following, effects = row[event]
    return Source(following), effects


def destination_step(state: Destination, event: DestinationEvent) -> tuple[Destination, Effects]:
    """Return the next state and effects there; raise `ImpossibleEventError` off the table."""
    row = DESTINATION[state]
    if event not in row:
        raise ImpossibleEventError(f"destination in state {state}: no row for {event}")
    following, effects = row[event]
    return Destination(following), effects
