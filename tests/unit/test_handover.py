"""The handover's tables by themselves: what is not in a row, and what holds over all rows."""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum

import pytest

from qmigrate.core import handover
from qmigrate.core.handover import (
    DESTINATION,
    SOURCE,
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    ImpossibleEventError,
    Record,
    Source,
    SourceEvent,
    Write,
    destination_step,
    source_step,
)
from tests.support.pages import diagram

S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record


def rows() -> Iterator[tuple[StrEnum, StrEnum, StrEnum, Effects]]:
    for table in (SOURCE, DESTINATION):
        for state, row in table.items():
            for event, (following, effects) in row.items():
                yield state, event, following, effects


ROWS = list(rows())


def test_a_step_gives_the_row_s_state_in_its_own_side_s_words() -> None:
    assert source_step(S.SWITCHING, SE.QEMU_COMPLETED) == (S.AWAY, (Write(R.AWAY), E.SEND_GO))
    for state, event, following, _ in ROWS:
        if isinstance(state, Source):
            assert isinstance(event, SourceEvent)
            assert isinstance(following, Source)
        else:
            assert isinstance(event, DestinationEvent)
            assert isinstance(following, Destination)


def test_every_state_has_a_row_and_what_is_not_in_it_raises() -> None:
    assert set(SOURCE) == set(Source)
    assert set(DESTINATION) == set(Destination)
    raised = 0
    for source in Source:
        for event in set(SourceEvent) - set(SOURCE[source]):
            with pytest.raises(ImpossibleEventError, match=f"{source}.*{event}"):
                source_step(source, event)
            raised += 1
    for destination in Destination:
        for told in set(DestinationEvent) - set(DESTINATION[destination]):
            with pytest.raises(ImpossibleEventError, match=f"{destination}.*{told}"):
                destination_step(destination, told)
            raised += 1
    assert raised > 50


@pytest.mark.parametrize("event", [SE.CANCEL, SE.GIVE_UP, SE.CONNECTED])
def test_people_and_the_link_may_come_at_any_time(event: SourceEvent) -> None:
    for state in Source:
        source_step(state, event)


@pytest.mark.parametrize("event", [DE.GO, DE.ASK, DE.REFUSE])
def test_a_destination_answers_a_repeated_message_in_any_state(event: DestinationEvent) -> None:
    for state in Destination:
        destination_step(state, event)


def paths(table: dict[StrEnum, handover.Row], start: StrEnum) -> Iterator[tuple[StrEnum, Effects]]:
    """Yield each state with all effects of a shortest path, for each row that leads on."""
    seen: dict[tuple[StrEnum, frozenset[Effect | Write]], None] = {}
    queue: deque[tuple[StrEnum, Effects]] = deque([(start, ())])
    while queue:
        state, done = queue.popleft()
        key = state, frozenset(done)
        if key in seen:
            continue
        seen[key] = None
        yield state, done
        queue.extend((following, (*done, *effects)) for following, effects in table[state].values())


# Where somebody typed `cont` a source asks for a refusal before the right is back.
NOT_STRAYED = {
    state: {event: row for event, row in rows.items() if row[0] is not S.STRAYED}
    for state, rows in SOURCE.items()
}
BEFORE = [
    (SOURCE, S.PREPARED, E.SEND_GO, Write(R.AWAY)),
    (SOURCE, S.PREPARED, E.MIGRATE_CONTINUE, Write(R.SWITCHING)),
    (SOURCE, S.PREPARED, E.RETURN_GUEST, Write(R.BACK)),
    (NOT_STRAYED, S.PREPARED, E.SEND_REFUSE, Write(R.BACK)),
    (SOURCE, S.PREPARED, E.QUIT_QEMU, Write(R.PROVED)),
    (DESTINATION, D.PREPARED, E.RUN, Write(R.GO)),
    (DESTINATION, D.PREPARED, E.ANSWER_RUNNING, Write(R.RUNNING)),
    (DESTINATION, D.PREPARED, E.ANSWER_REFUSED, Write(R.REFUSED)),
    (DESTINATION, D.PREPARED, E.ANSWER_RETURNED, Write(R.RETURNED)),
]


@pytest.mark.parametrize(
    ("table", "start", "effect", "record"), BEFORE, ids=[f"{b[2]} after {b[3]}" for b in BEFORE]
)
def test_a_record_stands_before_its_consequences(
    table: dict[StrEnum, handover.Row], start: StrEnum, effect: Effect, record: Write
) -> None:
    met = 0
    for _, done in paths(table, start):
        if effect in done:
            met += 1
            assert record in done[: done.index(effect)], done
    assert met


def test_a_source_quits_its_qemu_only_where_the_destination_is_proved() -> None:
    quitting = {f for s, _, f, effects in ROWS if isinstance(s, Source) and E.QUIT_QEMU in effects}
    assert quitting == {S.PROVED}
    for state, event, following, _ in ROWS:
        if isinstance(state, Source) and following is S.PROVED and state is not S.PROVED:
            assert event is SE.RUNNING


def test_a_destination_quits_only_what_it_has_refused_or_returned() -> None:
    for state, _, following, effects in ROWS:
        if isinstance(state, Destination) and E.QUIT_QEMU in effects:
            assert following in (D.REFUSED, D.RETURNED)
            refusal = effects.index(E.QUIT_QEMU)
            assert any(isinstance(effect, Write) for effect in effects[:refusal])


def test_nothing_is_done_after_the_end() -> None:
    for _, _, _, effects in ROWS:
        assert E.END not in effects[:-1]


def reachable(table: dict[StrEnum, handover.Row], start: StrEnum) -> set[StrEnum]:
    found, queue = {start}, [start]
    while queue:
        for following, _ in table[queue.pop()].values():
            if following not in found:
                found.add(following)
                queue.append(following)
    return found


@pytest.mark.parametrize(
    ("start", "never"),
    [
        (S.SWITCHING, {S.PREPARED, S.COPYING, S.HELD, S.CANCELLING}),
        (S.AWAY, {S.PREPARED, S.COPYING, S.HELD, S.CANCELLING, S.SWITCHING, S.LEFT}),
        (S.PROVED, {S.BACK, S.RESTORED, S.ENDED, S.AWAY}),
        (S.BACK, {S.AWAY, S.PROVED, S.DONE, S.COPYING}),
        (S.DONE, set(Source) - {S.DONE}),
        (S.ENDED, set(Source) - {S.ENDED}),
        (S.RESTORED, set(Source) - {S.RESTORED}),
        (D.GO, {D.PREPARED, D.DECIDING, D.REFUSED}),
        (D.GO_AGAIN, {D.PREPARED, D.DECIDING, D.REFUSED, D.RETURNED}),
        (D.RUNNING, {D.REFUSED, D.RETURNED, D.LOST, D.GO}),
        (D.REFUSED, set(Destination) - {D.REFUSED}),
        (D.RETURNED, set(Destination) - {D.RETURNED}),
        (D.LOST, set(Destination) - {D.LOST}),
    ],
)
def test_there_is_no_way_back(start: StrEnum, never: set[StrEnum]) -> None:
    table = SOURCE if isinstance(start, Source) else DESTINATION
    assert not reachable(table, start) & never


@pytest.mark.parametrize("state", [S.SWITCHING, S.RECALLING, S.AWAY, S.PROVED, S.MISSED])
def test_a_cancel_after_migrate_continue_changes_nothing_and_says_so(state: Source) -> None:
    assert source_step(state, SE.CANCEL) == (state, (E.ANSWER_DECIDING,))


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (S.AWAY, SE.NO_ANSWER),
        (S.AWAY, SE.NO_RECORD),
        (S.AWAY, SE.LOST),
        (S.MISSED, SE.LOADED),
        (S.MISSED, SE.NO_ANSWER),
        (S.BACK, SE.RUNNING),
        (S.RESTORED, SE.RUNNING),
        (S.ENDED, SE.RUNNING),
    ],
)
def test_what_cannot_be_known_is_reported_and_nothing_is_touched(
    state: Source, event: SourceEvent
) -> None:
    assert source_step(state, event) == (state, (E.REPORT_UNKNOWN,))


def test_every_effect_and_every_event_is_used() -> None:
    used = {effect for _, _, _, effects in ROWS for effect in effects}
    assert set(Effect) <= used
    assert {SourceEvent(e) for s, e, _, _ in ROWS if isinstance(s, Source)} == set(SourceEvent)
    told = {DestinationEvent(e) for s, e, _, _ in ROWS if isinstance(s, Destination)}
    assert told == set(DestinationEvent)
    written = {effect.record for effect in used if isinstance(effect, Write)}
    assert written == set(Record) - {R.PREPARED}


def test_the_diagram_has_a_line_for_every_row() -> None:
    lines = diagram().splitlines()
    assert len(lines) == len(ROWS) + 2
    assert "  switching --qemu-completed--> away: record away, send-go" in lines
