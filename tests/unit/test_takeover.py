"""Where a new agent goes on, for every record and everything that its QEMU may be."""

import itertools

import pytest

from qmigrate.core.handover import (
    Destination,
    Effect,
    Effects,
    ImpossibleEventError,
    Record,
    Source,
    Write,
)
from qmigrate.core.model import RUNS, RunState
from qmigrate.core.takeover import Look, Return, destination_after, how_to_return, source_after

S, D, E, R = Source, Destination, Effect, Record
RETURNS = (Write(R.BACK), E.SEND_REFUSE, E.RETURN_GUEST)
OVER = (E.CLEAN, Write(R.ENDED), E.SEND_FINISH, E.END)
AWAY = (S.AWAY, (E.SEND_GO,))
PROVED = (S.PROVED, (E.QUIT_QEMU,))
FINISH = (E.SEND_FINISH, E.END)
BACK = (S.BACK, (E.SEND_REFUSE, E.RETURN_GUEST))

SOURCE = {
    (R.PREPARED, Look.RUNS_ON): (S.BACK, RETURNS),
    (R.PREPARED, Look.MIGRATING): (S.CANCELLING, (E.MIGRATE_CANCEL,)),
    (R.PREPARED, Look.DECIDING): (S.CANCELLING, ()),
    (R.PREPARED, Look.COMPLETED): (S.LEFT, (E.SEND_ASK,)),
    (R.PREPARED, Look.GONE): (S.ENDED, (Write(R.BACK), E.SEND_REFUSE, *OVER)),
    (R.SWITCHING, Look.RUNS_ON): (S.BACK, RETURNS),
    (R.SWITCHING, Look.MIGRATING): (S.CANCELLING, (E.MIGRATE_CANCEL,)),
    (R.SWITCHING, Look.DECIDING): (S.RECALLING, ()),
    (R.SWITCHING, Look.COMPLETED): (S.LEFT, (E.SEND_ASK,)),
    (R.SWITCHING, Look.GONE): (S.MISSED, (E.REPORT_UNKNOWN, E.SEND_ASK)),
    **{(R.AWAY, look): AWAY for look in Look if look is not Look.RUNS_ON},
    (R.AWAY, Look.RUNS_ON): (S.STRAYED, (E.REPORT_UNKNOWN, E.SEND_REFUSE)),  # somebody's cont
    **{(R.PROVED, look): PROVED for look in Look},
    **{(R.BACK, look): BACK for look in Look if look is not Look.GONE},
    (R.BACK, Look.GONE): (S.ENDED, (E.SEND_REFUSE, *OVER)),
    **{(R.RESTORED, look): (S.RESTORED, FINISH) for look in Look},
    **{(R.ENDED, look): (S.ENDED, FINISH) for look in Look},
    **{(R.DONE, look): (S.DONE, FINISH) for look in Look},
}


@pytest.mark.parametrize(("record", "look"), list(itertools.product(Record, Look)))
def test_a_source_goes_on_from_its_record_and_its_qemu(record: Record, look: Look) -> None:
    expected = SOURCE.get((record, look))
    if expected is None:
        assert record in (R.GO, R.RUNNING, R.REFUSED, R.RETURNED)
        with pytest.raises(ImpossibleEventError, match=record):
            source_after(record, look)
    else:
        assert source_after(record, look) == expected


RUNNING = (D.RUNNING, (E.ANNOUNCE, Write(R.RUNNING), E.ANSWER_RUNNING))
STRAYED = (D.RUNNING, (Write(R.RUNNING), E.REPORT_UNKNOWN))  # by somebody's cont
LOST = (D.LOST, (E.ANSWER_LOST, E.REPORT_UNKNOWN))
AGAIN = (D.GO_AGAIN, (E.RUN,))
REFUSED = (D.REFUSED, (E.ANSWER_REFUSED, E.QUIT_QEMU, E.CLEAN))
RETURNED = (D.RETURNED, (E.ANSWER_RETURNED, E.QUIT_QEMU, E.CLEAN))

DESTINATION: list[tuple[Record, Look, RunState, bool, tuple[Destination, Effects]]] = [
    (R.PREPARED, Look.MIGRATING, RunState.INMIGRATE, True, (D.PREPARED, ())),
    (R.PREPARED, Look.RUNS_ON, RunState.PAUSED, True, (D.PREPARED, ())),
    (R.PREPARED, Look.RUNS_ON, RunState.RUNNING, True, STRAYED),
    (R.PREPARED, Look.GONE, RunState.UNKNOWN, True, (D.REFUSED, (Write(R.REFUSED), *REFUSED[1]))),
    (R.GO, Look.RUNS_ON, RunState.PAUSED, True, AGAIN),
    (R.GO, Look.RUNS_ON, RunState.RUNNING, True, RUNNING),
    (R.GO, Look.RUNS_ON, RunState.SUSPENDED, True, RUNNING),
    (R.GO, Look.RUNS_ON, RunState.SHUTDOWN, True, RUNNING),
    (R.GO, Look.RUNS_ON, RunState.GUEST_PANICKED, True, RUNNING),
    (R.GO, Look.RUNS_ON, RunState.IO_ERROR, True, RUNNING),
    (R.GO, Look.RUNS_ON, RunState.SHUTDOWN, False, AGAIN),
    (R.GO, Look.RUNS_ON, RunState.PAUSED, False, AGAIN),
    (R.GO, Look.GONE, RunState.UNKNOWN, True, LOST),
    (R.RUNNING, Look.RUNS_ON, RunState.RUNNING, True, (D.RUNNING, (E.ANSWER_RUNNING,))),
    (R.RUNNING, Look.GONE, RunState.UNKNOWN, True, (D.RUNNING, (E.ANSWER_RUNNING,))),
    (R.REFUSED, Look.RUNS_ON, RunState.PAUSED, True, REFUSED),
    (R.RETURNED, Look.RUNS_ON, RunState.PAUSED, True, RETURNED),
    (R.DONE, Look.RUNS_ON, RunState.RUNNING, True, (D.DONE, (E.END,))),
]


@pytest.mark.parametrize(("record", "look", "state", "run_it", "expected"), DESTINATION)
def test_a_destination_goes_on_from_its_record_and_its_qemu(
    record: Record,
    look: Look,
    state: RunState,
    run_it: bool,
    expected: tuple[Destination, Effects],
) -> None:
    assert destination_after(record, look, state, run_it=run_it) == expected


@pytest.mark.parametrize("record", [R.SWITCHING, R.AWAY, R.PROVED, R.BACK, R.RESTORED, R.ENDED])
def test_a_destination_cannot_have_a_source_s_record(record: Record) -> None:
    with pytest.raises(ImpossibleEventError, match=record):
        destination_after(record, Look.RUNS_ON, RunState.PAUSED)


@pytest.mark.parametrize(
    ("state", "had", "stopped_by_us", "expected"),
    [
        (RunState.POSTMIGRATE, RunState.RUNNING, False, Return.CONT),
        (RunState.POSTMIGRATE, RunState.SUSPENDED, False, Return.CONT),
        (RunState.POSTMIGRATE, RunState.PAUSED, False, Return.ACTIVATE),
        (RunState.POSTMIGRATE, RunState.SHUTDOWN, False, Return.ACTIVATE),
        (RunState.PAUSED, RunState.RUNNING, True, Return.CONT),
        (RunState.PAUSED, RunState.RUNNING, False, Return.NOTHING),
        (RunState.PAUSED, RunState.PAUSED, True, Return.NOTHING),
        (RunState.RUNNING, RunState.RUNNING, True, Return.NOTHING),
        (RunState.SHUTDOWN, RunState.RUNNING, True, Return.NOTHING),
        (RunState.IO_ERROR, RunState.RUNNING, False, Return.NOTHING),
    ],
)
def test_a_guest_is_returned_to_the_state_it_had(
    state: RunState,
    had: RunState,
    stopped_by_us: bool,
    expected: Return,
) -> None:
    assert how_to_return(state, had, stopped_by_us=stopped_by_us) is expected


def test_only_what_runs_is_ever_continued() -> None:
    for state, had in itertools.product(RunState, RunState):
        if how_to_return(state, had, stopped_by_us=True) is Return.CONT:
            assert had in RUNS
