"""The words of the handover: records, states, events and effects, each with a line of meaning.

What follows what is in `core/handover.py`, and nowhere else.
"""

from dataclasses import dataclass
from enum import StrEnum


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
    RESTORED = "restored"  # source: the guest is here as it was, nothing is left to do
    ENDED = "ended"  # source: the guest has ended, nothing is left to do
    DONE = "done"  # the guest is on the destination, nothing is left to do here


# Nothing of the job is left on this host.
OVER = frozenset((Record.RESTORED, Record.ENDED, Record.DONE))


class Source(StrEnum):
    """Where the source stands."""

    PREPARED = "prepared"
    COPYING = "copying"  # migrate was given; QEMU runs the guest
    HELD = "held"  # pre-switchover: QEMU stopped the guest, its images are still ours
    CANCELLING = "cancelling"  # migrate_cancel was given; QEMU's terminal event decides
    SWITCHING = "switching"  # migrate-continue was given; QEMU's verdict decides
    RECALLING = "recalling"  # migrate_cancel may have been given after migrate-continue
    MISSED = "missed"  # QEMU ended after migrate-continue, and may have run on here before
    LEFT = "left"  # found complete with no GO ever sent: a new agent asks before it goes on
    AWAY = "away"
    STRAYED = "strayed"  # away, and somebody typed `cont`: it may run here and there
    PROVED = "proved"
    BACK = "back"
    RESTORED = "restored"
    ENDED = "ended"  # the guest's own end, or its QEMU's, with the right here
    DONE = "done"


class SourceEvent(StrEnum):
    """What happens to a source."""

    START = "start"  # both sides are ready
    CANCEL = "cancel"  # a person's wish
    GIVE_UP = "give-up"  # a check failed, the link broke, a deadline passed
    PRE_SWITCHOVER = "pre-switchover"  # QEMU's event
    CHECKED = "checked"  # destination alive and armed
    QEMU_COMPLETED = "qemu-completed"  # QEMU's event, return-path on: the destination has all
    QEMU_RUNS_ON = "qemu-runs-on"  # QEMU said failed or cancelled, never began, or was let run
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
    RUN_HERE = "run-here"  # a person vouches that it runs nowhere else and never will


class Destination(StrEnum):
    """Where the destination stands."""

    PREPARED = "prepared"  # QEMU waits or loads, with -S
    DECIDING = "deciding"  # GO came; QEMU is being asked whether it has everything
    GO = "go"  # cont was given for the first time or is about to be
    GO_AGAIN = "go-again"  # the same by an agent that was started again: it may have run before
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
    RUN_HERE = "run-here"  # a person vouches that it runs nowhere else and never will
    PEER_IS_DEAD = "peer-is-dead"  # a person vouches that nobody will ask from there again


class Word(StrEnum):
    """What is said to a job's agent from outside: by `resolve`, on evidence or on a person's word.

    An agent takes a word only where its state's row holds the event; else nothing happens.
    """

    NO_RECORD = "no-record"  # to a source: the destination was asked and knows no such job
    PEER_IS_DEAD = "peer-is-dead"  # the other host is off, or has lost its power since
    RUN_HERE = "run-here"  # the guest runs nowhere else and never will
    REFUSE = "refuse"  # to a destination: the source is never going to send GO


SOURCE_WORDS = {
    Word.NO_RECORD: SourceEvent.NO_RECORD,
    Word.PEER_IS_DEAD: SourceEvent.NO_RECORD,  # nor will it ever answer
    Word.RUN_HERE: SourceEvent.RUN_HERE,
}
DESTINATION_WORDS = {
    Word.PEER_IS_DEAD: DestinationEvent.PEER_IS_DEAD,
    Word.RUN_HERE: DestinationEvent.RUN_HERE,
    Word.REFUSE: DestinationEvent.REFUSE,
}


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
