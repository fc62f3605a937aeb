"""Who may run the guest: the handover as one table a side, and nothing else decides.

At every instant at most one host holds the right to run the guest; it moves only by a GO that the
destination has durably accepted (DESIGN §3). A side is a state; an event that stands in the state's
row gives the next state and the effects to carry out **in order** (a record is written before what
follows it); an event that does not stand there raises `ImpossibleEventError`, and nothing happens.

The source holds the right until it records `away`. From then on nobody holds it until the
destination records `go` or the answer REFUSED or RETURNED brings it back. What cannot be known
leaves the state as it is: `REPORT_UNKNOWN` tells people, and touches nothing.

A state whose name is a `Record` stands in the journal; where an agent that was started again goes
on from there, `takeover.py` says. Diagrams are printed from the tables by `diagram`.
"""

from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.errors import QmigrateError


class ImpossibleEventError(QmigrateError):
    """An event came that its state's row does not hold: a defect, and no reason to act."""


class Record(StrEnum):
    """What a side's journal says; each is written before its consequences."""

    PREPARED = "prepared"  # nothing that cannot be undone was done
    SWITCHING = "switching"  # source: migrate-continue may have been given
    AWAY = "away"  # source: GO may have been sent
    PROVED = "proved"  # source: the destination holds the guest in the state it had
    BACK = "back"  # source: the right is here, for good
    GO = "go"  # destination: GO was accepted, the right is here
    RUNNING = "running"  # destination: seen in the state it had
    REFUSED = "refused"  # destination: will never run it
    RETURNED = "returned"  # destination: accepted, could not start it, it never ran
    DONE = "done"  # nothing of the job is left to do here


class Source(StrEnum):
    """Where the source stands."""

    PREPARED = "prepared"
    COPYING = "copying"  # migrate was given; QEMU runs the guest
    HELD = "held"  # pre-switchover: QEMU stopped the guest, its images are still ours
    CANCELLING = "cancelling"  # migrate_cancel was given; QEMU's terminal event decides
    SWITCHING = "switching"  # migrate-continue was given; QEMU's verdict decides
    LEFT = "left"  # found complete with no GO ever sent: a new agent asks before it goes on
    AWAY = "away"
    PROVED = "proved"
    BACK = "back"
    ENDED = "ended"  # the guest's own end, before anything left
    DONE = "done"


class SourceEvent(StrEnum):
    """What happens to a source."""

    START = "start"  # both sides are ready
    CANCEL = "cancel"  # a person's wish
    GIVE_UP = "give-up"  # a check failed, the link broke, a deadline passed
    PRE_SWITCHOVER = "pre-switchover"  # QEMU's event
    CHECKED = "checked"  # destination alive and armed
    QEMU_COMPLETED = "qemu-completed"  # QEMU's event, return-path on: the destination has all
    QEMU_RUNS_ON = "qemu-runs-on"  # QEMU said failed or cancelled, or never began
    QEMU_GONE = "qemu-gone"  # the process ended, by itself or by its guest
    LOADED = "loaded"  # answer to ASK: the destination waits for GO
    RUNNING = "running"  # answer to GO
    REFUSED = "refused"  # answer to GO or ASK: it will never run it
    RETURNED = "returned"  # answer to GO: it never ran it and never will
    NO_RECORD = "no-record"  # answer of a host that knows nothing of the job
    LOST = "lost"  # answer to GO: it was run, and its QEMU has died since
    NO_ANSWER = "no-answer"  # the deadline for an answer passed
    STUCK = "stuck"  # the deadline for QEMU's verdict passed
    CONNECTED = "connected"  # the link stands again
    QUIT = "quit"  # the source's QEMU has ended
    RETURNED_HERE = "returned-here"  # the guest is as it was, on the source


class Destination(StrEnum):
    """Where the destination stands."""

    PREPARED = "prepared"  # QEMU waits or loads, with -S
    DECIDING = "deciding"  # GO came; QEMU is being asked whether it has everything
    GO = "go"  # cont was given or is about to be
    RUNNING = "running"
    REFUSED = "refused"
    RETURNED = "returned"
    LOST = "lost"  # QEMU died after cont: it may have run and written
    DONE = "done"


class DestinationEvent(StrEnum):
    """What happens to a destination."""

    GO = "go"
    ASK = "ask"  # a source's new agent wants to know whether a GO would be taken
    REFUSE = "refuse"  # the source gave up, or a deadline passed before everything was here
    LOOKS_LOADED = "looks-loaded"  # QEMU says: not inmigrate, migration completed
    LOOKS_UNFIT = "looks-unfit"  # QEMU says anything else, or nothing
    QEMU_GONE = "qemu-gone"
    RUNS = "runs"  # RESUME seen and query-status agrees
    CONT_REFUSED = "cont-refused"  # QEMU refused cont and is seen never to have run
    CONT_UNKNOWN = "cont-unknown"  # no word from QEMU after cont
    FINISH = "finish"  # the source has quit its QEMU


class Effect(StrEnum):
    """What a step asks for; carried out by one reader, in order."""

    MIGRATE = "migrate"
    MIGRATE_CONTINUE = "migrate-continue"
    MIGRATE_CANCEL = "migrate-cancel"
    CHECK = "check"  # is the destination alive, its network armed
    SEND_GO = "send-go"
    SEND_ASK = "send-ask"
    SEND_REFUSE = "send-refuse"
    SEND_FINISH = "send-finish"
    RETURN_GUEST = "return-guest"  # see `how_to_return`; then RETURNED_HERE
    QUIT_QEMU = "quit-qemu"
    LOOK = "look"  # ask QEMU whether the guest is whole
    RUN = "run"  # cont, or activate what stays paused; then RUNS, CONT_REFUSED or CONT_UNKNOWN
    ANNOUNCE = "announce"
    ANSWER_LOADED = "answer-loaded"
    ANSWER_RUNNING = "answer-running"
    ANSWER_REFUSED = "answer-refused"
    ANSWER_RETURNED = "answer-returned"
    ANSWER_LOST = "answer-lost"
    ANSWER_DECIDING = "answer-deciding"  # to CANCEL: too late, being decided
    REPORT_UNKNOWN = "report-unknown"  # tell people; touch nothing
    CLEAN = "clean"  # remove what this job made here
    END = "end"  # the agent may leave


@dataclass(frozen=True, slots=True)
class Write:
    """The effect that makes a record durable."""

    record: Record


Effects = tuple[Effect | Write, ...]
Row = dict[StrEnum, tuple[StrEnum, Effects]]

S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record

_FAREWELL: Effects = (E.CLEAN, Write(R.DONE), E.SEND_FINISH, E.END)
_BACK: tuple[StrEnum, Effects] = (S.BACK, (Write(R.BACK), E.SEND_REFUSE, E.RETURN_GUEST))
_BACK_AFTER_GO: tuple[StrEnum, Effects] = (S.BACK, (Write(R.BACK), E.RETURN_GUEST, E.ANNOUNCE))
_ENDED: tuple[StrEnum, Effects] = (
    S.ENDED,
    (Write(R.BACK), E.SEND_REFUSE, *_FAREWELL),
)
# Also when the source's QEMU dies between migrate-continue and its verdict: what is left of the
# guest is then on the destination or nowhere, and the destination looks before it takes GO.
_AWAY: tuple[StrEnum, Effects] = (S.AWAY, (Write(R.AWAY), E.SEND_GO))
_CANCEL: tuple[StrEnum, Effects] = (S.CANCELLING, (E.MIGRATE_CANCEL,))

SOURCE: dict[Source, Row] = {
    S.PREPARED: {
        SE.START: (S.COPYING, (E.MIGRATE,)),
        SE.CANCEL: _BACK,
        SE.GIVE_UP: _BACK,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_GONE: _ENDED,
        SE.CONNECTED: (S.PREPARED, ()),
        SE.REFUSED: _BACK,
    },
    S.COPYING: {
        SE.PRE_SWITCHOVER: (S.HELD, (E.CHECK,)),
        SE.CANCEL: _CANCEL,
        SE.GIVE_UP: _CANCEL,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_GONE: _ENDED,
        SE.REFUSED: _CANCEL,
        SE.CONNECTED: (S.COPYING, ()),
    },
    S.HELD: {
        SE.CHECKED: (S.SWITCHING, (Write(R.SWITCHING), E.MIGRATE_CONTINUE)),
        SE.CANCEL: _CANCEL,
        SE.GIVE_UP: _CANCEL,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_GONE: _ENDED,
        SE.REFUSED: _CANCEL,
        SE.CONNECTED: (S.HELD, ()),
    },
    S.CANCELLING: {
        SE.QEMU_RUNS_ON: _BACK,
        # No GO was ever sent, so the copy here is the only one with a right to run.
        SE.QEMU_COMPLETED: _BACK,
        SE.QEMU_GONE: _AWAY,
        SE.PRE_SWITCHOVER: (S.CANCELLING, ()),
        SE.CANCEL: (S.CANCELLING, ()),
        SE.GIVE_UP: (S.CANCELLING, ()),
        SE.REFUSED: (S.CANCELLING, ()),
        SE.CONNECTED: (S.CANCELLING, ()),
        SE.CHECKED: (S.CANCELLING, ()),
        SE.STUCK: (S.CANCELLING, (E.REPORT_UNKNOWN,)),
    },
    S.SWITCHING: {
        SE.QEMU_COMPLETED: _AWAY,
        SE.QEMU_RUNS_ON: _BACK,
        SE.QEMU_GONE: _AWAY,
        SE.CANCEL: (S.SWITCHING, (E.ANSWER_DECIDING,)),
        # QEMU's verdict decides: what the link says meanwhile is no reason to act.
        SE.GIVE_UP: (S.SWITCHING, ()),
        SE.REFUSED: (S.SWITCHING, ()),
        SE.CONNECTED: (S.SWITCHING, ()),
        # Its images may be inactive, but no GO was sent: a cancelled switchover is still ours.
        SE.STUCK: _CANCEL,
    },
    S.LEFT: {
        SE.LOADED: _AWAY,
        SE.REFUSED: _BACK,
        SE.NO_RECORD: _BACK,
        SE.NO_ANSWER: _BACK,
        SE.QEMU_GONE: _AWAY,
        SE.CONNECTED: (S.LEFT, (E.SEND_ASK,)),
        SE.CANCEL: _BACK,
        SE.GIVE_UP: (S.LEFT, ()),
    },
    S.AWAY: {
        SE.RUNNING: (S.PROVED, (Write(R.PROVED), E.QUIT_QEMU)),
        SE.REFUSED: _BACK_AFTER_GO,
        SE.RETURNED: _BACK_AFTER_GO,
        SE.CONNECTED: (S.AWAY, (E.SEND_GO,)),
        SE.NO_ANSWER: (S.AWAY, (E.REPORT_UNKNOWN,)),
        SE.NO_RECORD: (S.AWAY, (E.REPORT_UNKNOWN,)),
        SE.QEMU_GONE: (S.AWAY, ()),  # the answer to GO still decides, and is still wanted
        SE.CANCEL: (S.AWAY, (E.ANSWER_DECIDING,)),
        SE.GIVE_UP: (S.AWAY, ()),
        SE.LOADED: (S.AWAY, (E.SEND_GO,)),
        SE.LOST: (S.AWAY, (E.REPORT_UNKNOWN,)),
    },
    S.PROVED: {
        SE.QUIT: (S.DONE, _FAREWELL),
        SE.QEMU_GONE: (S.DONE, _FAREWELL),
        SE.RUNNING: (S.PROVED, ()),
        SE.CONNECTED: (S.PROVED, ()),
        SE.CANCEL: (S.PROVED, (E.ANSWER_DECIDING,)),
        SE.GIVE_UP: (S.PROVED, ()),
        SE.NO_ANSWER: (S.PROVED, ()),
        SE.STUCK: (S.PROVED, (E.REPORT_UNKNOWN,)),
    },
    S.BACK: {
        SE.RETURNED_HERE: (S.DONE, _FAREWELL),
        SE.QEMU_GONE: (S.ENDED, _FAREWELL),
        SE.QEMU_RUNS_ON: (S.BACK, ()),
        SE.REFUSED: (S.BACK, ()),
        SE.RETURNED: (S.BACK, ()),
        SE.CONNECTED: (S.BACK, (E.SEND_REFUSE,)),
        SE.CANCEL: (S.BACK, ()),
        SE.GIVE_UP: (S.BACK, ()),
        SE.NO_ANSWER: (S.BACK, ()),
        SE.CHECKED: (S.BACK, ()),
        SE.STUCK: (S.BACK, (E.REPORT_UNKNOWN,)),
    },
    S.ENDED: {
        SE.CONNECTED: (S.ENDED, ()),
        SE.REFUSED: (S.ENDED, ()),
        SE.CANCEL: (S.ENDED, ()),
        SE.GIVE_UP: (S.ENDED, ()),
    },
    S.DONE: {
        SE.CONNECTED: (S.DONE, (E.SEND_FINISH,)),  # it may not have heard
        SE.RUNNING: (S.DONE, (E.SEND_FINISH,)),
        SE.QEMU_GONE: (S.DONE, ()),
        SE.REFUSED: (S.DONE, ()),
        SE.RETURNED: (S.DONE, ()),
        SE.CANCEL: (S.DONE, ()),
        SE.GIVE_UP: (S.DONE, ()),
    },
}

_REFUSE: tuple[StrEnum, Effects] = (
    D.REFUSED,
    (Write(R.REFUSED), E.ANSWER_REFUSED, E.QUIT_QEMU, E.CLEAN),
)

DESTINATION: dict[Destination, Row] = {
    D.PREPARED: {
        DE.GO: (D.DECIDING, (E.LOOK,)),
        DE.ASK: (D.PREPARED, (E.ANSWER_LOADED,)),
        DE.REFUSE: _REFUSE,
        DE.QEMU_GONE: _REFUSE,
    },
    D.DECIDING: {
        DE.LOOKS_LOADED: (D.GO, (Write(R.GO), E.RUN)),
        DE.LOOKS_UNFIT: _REFUSE,
        DE.QEMU_GONE: _REFUSE,
        DE.GO: (D.DECIDING, ()),
        DE.REFUSE: (D.DECIDING, ()),
    },
    D.GO: {
        DE.RUNS: (D.RUNNING, (E.ANNOUNCE, Write(R.RUNNING), E.ANSWER_RUNNING)),
        DE.CONT_REFUSED: (
            D.RETURNED,
            (Write(R.RETURNED), E.ANSWER_RETURNED, E.QUIT_QEMU, E.CLEAN),
        ),
        DE.CONT_UNKNOWN: (D.GO, (E.REPORT_UNKNOWN,)),
        DE.QEMU_GONE: (D.LOST, (E.ANSWER_LOST, E.REPORT_UNKNOWN)),
        DE.GO: (D.GO, ()),
        DE.ASK: (D.GO, ()),
        DE.REFUSE: (D.GO, ()),
    },
    D.RUNNING: {
        DE.GO: (D.RUNNING, (E.ANSWER_RUNNING,)),
        DE.ASK: (D.RUNNING, (E.ANSWER_RUNNING,)),
        DE.FINISH: (D.DONE, (Write(R.DONE), E.END)),
        DE.QEMU_GONE: (D.RUNNING, ()),  # the guest's own end, after the handover
        DE.REFUSE: (D.RUNNING, (E.ANSWER_RUNNING,)),
        DE.RUNS: (D.RUNNING, ()),
    },
    D.REFUSED: {
        DE.GO: (D.REFUSED, (E.ANSWER_REFUSED,)),
        DE.ASK: (D.REFUSED, (E.ANSWER_REFUSED,)),
        DE.REFUSE: (D.REFUSED, (E.ANSWER_REFUSED,)),
        DE.QEMU_GONE: (D.REFUSED, ()),
        DE.LOOKS_LOADED: (D.REFUSED, ()),
        DE.LOOKS_UNFIT: (D.REFUSED, ()),
        DE.FINISH: (D.REFUSED, (E.END,)),  # the source knows: nobody will ask again
    },
    D.RETURNED: {
        DE.GO: (D.RETURNED, (E.ANSWER_RETURNED,)),
        DE.ASK: (D.RETURNED, (E.ANSWER_RETURNED,)),
        DE.REFUSE: (D.RETURNED, (E.ANSWER_RETURNED,)),
        DE.QEMU_GONE: (D.RETURNED, ()),
        DE.FINISH: (D.RETURNED, (E.END,)),
    },
    D.LOST: {
        DE.GO: (D.LOST, (E.ANSWER_LOST,)),
        DE.ASK: (D.LOST, (E.ANSWER_LOST,)),
        DE.REFUSE: (D.LOST, (E.ANSWER_LOST,)),
        DE.CONT_UNKNOWN: (D.LOST, ()),
        DE.FINISH: (D.LOST, (E.END,)),
    },
    D.DONE: {
        DE.GO: (D.DONE, (E.ANSWER_RUNNING,)),
        DE.ASK: (D.DONE, (E.ANSWER_RUNNING,)),
        DE.FINISH: (D.DONE, ()),
        DE.REFUSE: (D.DONE, (E.ANSWER_RUNNING,)),
        DE.QEMU_GONE: (D.DONE, ()),
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


def diagram() -> str:
    """Return both tables as text, a line a transition: `state --event--> state: effects`."""
    lines = []
    for title, table in (("source", SOURCE), ("destination", DESTINATION)):
        lines.append(f"{title}:")
        for state, row in table.items():
            for event, (following, effects) in row.items():
                words = ", ".join(
                    f"record {e.record}" if isinstance(e, Write) else str(e) for e in effects
                )
                lines.append(f"  {state} --{event}--> {following}: {words or '-'}")
    return "\n".join(lines)
