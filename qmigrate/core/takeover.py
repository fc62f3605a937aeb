"""Where an agent that was started again goes on: from its journal, and what QEMU is seen to be.

Nothing is remembered but the journal, so each record is read as "at least this may have happened".
"""

from enum import StrEnum

from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    ImpossibleEventError,
    Record,
    Source,
    SourceEvent,
    destination_step,
    source_step,
)
from qmigrate.core.model import RUNS, RunState

# Where only a guest can be that has run, if it was to be run at all.
HAS_RUN = frozenset(
    (
        RunState.SHUTDOWN,
        RunState.GUEST_PANICKED,
        RunState.IO_ERROR,
        RunState.INTERNAL_ERROR,
        RunState.WATCHDOG,
    )
)


class Look(StrEnum):
    """What a new agent sees of its QEMU."""

    RUNS_ON = "runs-on"  # no migration, or one that failed or was cancelled
    MIGRATING = "migrating"  # active or at pre-switchover
    DECIDING = "deciding"  # device, cancelling or a state we do not know
    COMPLETED = "completed"
    GONE = "gone"


def source_after(record: Record, look: Look) -> tuple[Source, Effects]:
    """Return where a source's new agent begins, from its journal and its QEMU (DESIGN §3).

    `migrate-continue` is given only after SWITCHING is durable, so a QEMU that is complete under
    PREPARED was continued by somebody else; no GO was sent by us all the same.
    """
    match record:
        case Record.PREPARED | Record.SWITCHING:
            match look:
                case Look.RUNS_ON:
                    return source_step(Source.PREPARED, SourceEvent.QEMU_RUNS_ON)
                case Look.MIGRATING:
                    return source_step(Source.COPYING, SourceEvent.GIVE_UP)
                case Look.DECIDING:
                    # The agent before may have given migrate_cancel on either way here.
                    switched = record is Record.SWITCHING
                    return (Source.RECALLING if switched else Source.CANCELLING), ()
                case Look.COMPLETED:
                    return Source.LEFT, (Effect.SEND_ASK,)
                case Look.GONE:
                    # Nobody watched it end after migrate-continue: it may have run on before.
                    before = Source.PREPARED if record is Record.PREPARED else Source.RECALLING
                    return source_step(before, SourceEvent.QEMU_GONE)
        case Record.AWAY:
            if look is Look.RUNS_ON:  # it was complete, and runs: somebody typed `cont`
                return source_step(Source.AWAY, SourceEvent.QEMU_RUNS_ON)
            return Source.AWAY, (Effect.SEND_GO,)
        case Record.PROVED:
            return Source.PROVED, (Effect.QUIT_QEMU,)
        case Record.BACK:
            if look is Look.GONE:
                _, effects = source_step(Source.BACK, SourceEvent.QEMU_GONE)
                return Source.ENDED, (Effect.SEND_REFUSE, *effects)
            return Source.BACK, (Effect.SEND_REFUSE, Effect.RETURN_GUEST)
        case Record.RESTORED:
            return Source.RESTORED, (Effect.SEND_FINISH, Effect.END)
        case Record.ENDED:
            return Source.ENDED, (Effect.SEND_FINISH, Effect.END)
        case Record.DONE:
            return Source.DONE, (Effect.SEND_FINISH, Effect.END)
        case _:
            raise ImpossibleEventError(f"a source's journal cannot say {record}")


def destination_after(
    record: Record, look: Look, state: RunState, *, run_it: bool = True
) -> tuple[Destination, Effects]:
    """Return where a destination's new agent begins, from its journal and its QEMU.

    Under GO the right is here: a guest that still waits is run, one that runs or is in a state that
    only running leads to is proved, and one that has gone may have run: LOST. `run_it`: the guest
    is to be continued, rather than stay as it was.
    """
    match record:
        case Record.PREPARED:
            if look is Look.GONE:
                return destination_step(Destination.PREPARED, DestinationEvent.QEMU_GONE)
            if state in RUNS:  # nobody sent GO that was taken: somebody typed `cont`
                return destination_step(Destination.PREPARED, DestinationEvent.RUNS)
            return Destination.PREPARED, ()
        case Record.GO:
            if look is Look.GONE:
                return destination_step(Destination.GO, DestinationEvent.QEMU_GONE)
            if state in RUNS or (run_it and state in HAS_RUN):
                return destination_step(Destination.GO_AGAIN, DestinationEvent.RUNS)
            return Destination.GO_AGAIN, (Effect.RUN,)
        case Record.RUNNING:
            return Destination.RUNNING, (Effect.ANSWER_RUNNING,)
        case Record.REFUSED:
            return Destination.REFUSED, (Effect.ANSWER_REFUSED, Effect.QUIT_QEMU, Effect.CLEAN)
        case Record.RETURNED:
            return Destination.RETURNED, (Effect.ANSWER_RETURNED, Effect.QUIT_QEMU, Effect.CLEAN)
        case Record.DONE:
            return Destination.DONE, (Effect.END,)
        case _:
            raise ImpossibleEventError(f"a destination's journal cannot say {record}")


class Return(StrEnum):
    """How a source brings the guest back to the state it had."""

    NOTHING = "nothing"  # QEMU has done it, or it never left
    CONT = "cont"
    ACTIVATE = "activate"  # it was not running: its images are locked again, it stays as it was


def how_to_return(state: RunState, had: RunState, *, stopped_by_us: bool) -> Return:
    """Return what brings the guest back to the state `had`, given that it is in `state` now.

    QEMU resumes by itself what it stopped; we continue only a guest that completed its migration
    (`postmigrate`) or that we stopped.
    """
    if state is RunState.POSTMIGRATE:
        return Return.CONT if had in RUNS else Return.ACTIVATE
    if state is RunState.PAUSED and stopped_by_us and had is RunState.RUNNING:
        return Return.CONT
    return Return.NOTHING
