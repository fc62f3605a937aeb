"""A word from outside becomes an event of the table, or nothing at all and a reason."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from qmigrate.agent import peer
from qmigrate.agent.job import JobAgent
from qmigrate.agent.journal import Journal
from qmigrate.agent.places import JobPlaces
from qmigrate.core.errors import HostError, Problem
from qmigrate.core.handover import (
    Destination,
    Effect,
    Source,
    Word,
    destination_step,
    source_step,
)
from qmigrate.core.model import Side
from qmigrate.core.rights import DESTINATION_WORDS, SOURCE_WORDS
from tests.unit.test_takeover_specs import SPEC


class Told(JobAgent):
    """One side that does nothing but step through the table, and remembers what it should do."""

    def __init__(self, side: Side, state: Any, journal: Journal) -> None:
        self.side = side
        super().__init__(replace(SPEC, side=side), JobPlaces("web1-1"), journal, None)  # type: ignore[arg-type]
        self.words = SOURCE_WORDS if side is Side.SOURCE else DESTINATION_WORDS
        self.state = state
        self.done: list[Effect] = []

    async def run(self, *, again: bool) -> None:
        await self.read_inbox()

    def step(self, event: Any) -> Any:
        table = source_step if self.side is Side.SOURCE else destination_step
        return table(self.state, event)

    async def effect(self, effect: Effect) -> None:
        self.done.append(effect)

    async def connected(self) -> None:
        pass

    async def heard(self, message: peer.Message) -> None:
        pass

    def unlinked(self, problem: Problem, *, first: bool) -> None:
        pass


@asynccontextmanager
async def told(tmp_path: Path, side: Side, state: Any) -> AsyncIterator[Told]:
    with Journal.create(tmp_path / "journal") as journal:
        agent = Told(side, state, journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.read_inbox)
            yield agent
            nursery.cancel_scope.cancel()


TAKEN: list[tuple[Side, Any, Word, Any, Effect]] = [
    (Side.SOURCE, Source.AWAY, Word.RUN_HERE, Source.BACK, Effect.RETURN_GUEST),
    (Side.SOURCE, Source.AWAY, Word.NO_RECORD, Source.AWAY, Effect.REPORT_UNKNOWN),
    (Side.SOURCE, Source.AWAY, Word.PEER_IS_DEAD, Source.AWAY, Effect.REPORT_UNKNOWN),
    (Side.SOURCE, Source.LEFT, Word.NO_RECORD, Source.BACK, Effect.RETURN_GUEST),
    (
        Side.DESTINATION,
        Destination.PREPARED,
        Word.RUN_HERE,
        Destination.DECIDING,
        Effect.LOOK,
    ),
    (
        Side.DESTINATION,
        Destination.PREPARED,
        Word.REFUSE,
        Destination.REFUSED,
        Effect.QUIT_QEMU,
    ),
    (Side.DESTINATION, Destination.RUNNING, Word.PEER_IS_DEAD, Destination.DONE, Effect.END),
]


@pytest.mark.parametrize(
    ("side", "state", "word", "following", "effect"),
    TAKEN,
    ids=[f"{t[0]}-{t[1]}-{t[2]}" for t in TAKEN],
)
async def test_a_word_that_the_state_has_a_use_for_is_taken(
    tmp_path: Path, side: Side, state: Any, word: Word, following: Any, effect: Effect
) -> None:
    async with told(tmp_path, side, state) as agent:
        assert await agent.hear_word(word) == f"{word}: {state}, then {following}"
        await trio.testing.wait_all_tasks_blocked()
        assert agent.state is following
        assert effect in agent.done


REFUSED: list[tuple[Side, Any, Word, str]] = [
    (Side.SOURCE, Source.COPYING, Word.RUN_HERE, "copying"),
    (Side.SOURCE, Source.PREPARED, Word.NO_RECORD, "prepared"),
    (Side.SOURCE, Source.AWAY, Word.REFUSE, "nothing that a source can be told"),
    (Side.DESTINATION, Destination.REFUSED, Word.RUN_HERE, "refused"),
    (Side.DESTINATION, Destination.RUNNING, Word.RUN_HERE, "running"),
    (Side.DESTINATION, Destination.GO, Word.PEER_IS_DEAD, "go"),
    (Side.DESTINATION, Destination.PREPARED, Word.NO_RECORD, "nothing that a destination"),
]


@pytest.mark.parametrize(
    ("side", "state", "word", "says"), REFUSED, ids=[f"{t[0]}-{t[1]}-{t[2]}" for t in REFUSED]
)
async def test_a_word_that_the_state_has_no_use_for_changes_nothing(
    tmp_path: Path, side: Side, state: Any, word: Word, says: str
) -> None:
    async with told(tmp_path, side, state) as agent:
        with pytest.raises(HostError, match=says) as refused:
            await agent.hear_word(word)
        assert refused.value.problem.next_step
        await trio.testing.wait_all_tasks_blocked()
        assert agent.state is state
        assert agent.done == []
        assert agent.problem is None
        assert agent.journal.entry is None


async def test_a_reader_that_hangs_is_said_and_the_word_left(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    with Journal.create(tmp_path / "journal") as journal:
        agent = Told(Side.SOURCE, Source.AWAY, journal)
        with pytest.raises(HostError, match="has not come to it"):
            await agent.hear_word(Word.RUN_HERE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.read_inbox)  # it goes on after all
            await trio.sleep(1)
            assert agent.state is Source.AWAY
            nursery.cancel_scope.cancel()
