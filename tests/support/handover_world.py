"""Walks the small world of the handover: every state that is reachable, every law in each.

``python -m tests.support.handover_world`` walks all of it and prints what it has seen.

The world is two hosts that meet in messages and in a few truths about each other (see
`handover_world_nouns`). So a state is three small numbers: where the source's host stands, where
the destination's stands, and the set of messages that were ever sent. What a host can do is worked
out once for each of its own states and for what it can see of the other, and looked up ever after.

A message is never lost from the set, and is never heard unless the walk has it heard: of two states
that differ in the set only, the larger can do all that the smaller can. Those that are within
another are left out when laws are checked, and to find that nothing is left hanging it is enough
to begin with no message at all: what was sent before may be lost. For the same reason a message is
sent together with what comes before it (to die first is to be heard by nobody), and an event that
changes nothing, now or later, is not kept.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from qmigrate.core import handover, takeover
from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effects,
    ImpossibleEventError,
    Source,
    SourceEvent,
)
from tests.support.handover_world_destination import destination_moves
from tests.support.handover_world_hanging import hanging
from tests.support.handover_world_nouns import (
    ALL_TO_HERE,
    ALL_TO_THERE,
    TELLS,
    BrokenLawError,
    Here,
    Host,
    Move,
    Rules,
    There,
    check,
    seen_here,
    seen_there,
    stable_here,
    stable_there,
)
from tests.support.handover_world_source import source_moves

REAL = Rules(
    handover.source_step,
    handover.destination_step,
    takeover.source_after,
    takeover.destination_after,
)
START = (Here(), There())

# needs, kind, the side's next state, adds, name; a state of -1: a law is broken, the name says it
Step = tuple[int, int, int, int, str]
State = tuple[int, int, int]  # source, destination, messages


class Explored(NamedTuple):
    """What a walk has found; `law` is None when all held."""

    states: int
    moves: int
    law: str | None
    trace: tuple[str, ...]


class Walk:
    """Both hosts' states by number, and what each can do."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.heres: list[Here] = []
        self.theres: list[There] = []
        self.here_numbers: dict[Here, int] = {}
        self.there_numbers: dict[There, int] = {}
        self.here_seen: list[int] = []
        self.there_seen: list[int] = []
        self.here_steps: dict[tuple[int, int], list[Step]] = {}
        self.there_steps: dict[tuple[int, int], list[Step]] = {}
        self.idle_here = _idle(rules.source_step, tuple(Source), tuple(SourceEvent))
        self.idle_there = _idle(rules.destination_step, tuple(Destination), tuple(DestinationEvent))
        self.mask_here: list[int] = []  # messages that can still matter
        self.mask_there: list[int] = []

    def here(self, here: Here) -> int:
        """Return the number of a state of the source's host."""
        if here.inbox and here.agent is not None:
            idle = self.idle_here[here.agent]
            here = here._replace(inbox=tuple(e for e in here.inbox if e not in idle))
        number = self.here_numbers.get(here)
        if number is None:
            number = self.here_numbers[here] = len(self.heres)
            self.heres.append(here)
            self.here_seen.append(seen_here(here))
            self.mask_here.append(ALL_TO_THERE if here.over else ALL_TO_THERE | ALL_TO_HERE)
        return number

    def there(self, there: There) -> int:
        """Return the number of a state of the destination's host."""
        if there.inbox and there.agent is not None:
            idle = self.idle_there[there.agent]
            there = there._replace(inbox=tuple(e for e in there.inbox if e not in idle))
        number = self.there_numbers.get(there)
        if number is None:
            number = self.there_numbers[there] = len(self.theres)
            self.theres.append(there)
            self.there_seen.append(seen_there(there))
            self.mask_there.append(ALL_TO_HERE if there.over else ALL_TO_THERE | ALL_TO_HERE)
        return number

    def source_steps(self, number: int, seen: int) -> list[Step]:
        """Return what can happen on the source's host."""
        steps = self.here_steps.get((number, seen))
        if steps is None:
            here = self.heres[number]
            moves = source_moves(self.rules, here, seen)
            steps = list(self._numbered(moves, here, self.here, stable_here))
            self.here_steps[number, seen] = steps
        return steps

    def destination_steps(self, number: int, seen: int) -> list[Step]:
        """Return what can happen on the destination's host."""
        steps = self.there_steps.get((number, seen))
        if steps is None:
            there = self.theres[number]
            moves = destination_moves(self.rules, there, seen)
            steps = list(self._numbered(moves, there, self.there, stable_there))
            self.there_steps[number, seen] = steps
        return steps

    def _numbered(
        self,
        moves: Iterator[Move[Host]],
        before: Host,
        number: Callable[[Host], int],
        stable: Callable[[Host], int],
    ) -> Iterator[Step]:
        held = stable(before) if self.rules.words else 0
        try:
            for name, after, kind, needs, adds in moves:
                if name.startswith("law: "):
                    yield needs, kind, -1, 0, name.removeprefix("law: ")
                elif held & ~stable(after):
                    yield needs, kind, -1, 0, f"what made a word true is so no more: {name}"
                elif after != before or adds or kind & TELLS:
                    yield needs, kind, number(after), adds, name
        except Exception as exc:  # noqa: BLE001 - whatever is raised is a finding
            yield 0, 0, -1, 0, f"{exc}"


_State = TypeVar("_State")
_Event = TypeVar("_Event")


def _idle(
    step: Callable[[_State, _Event], tuple[_State, Effects]],
    states: tuple[_State, ...],
    events: tuple[_Event, ...],
) -> dict[_State, frozenset[_Event]]:
    """Return what may be told in a state, and ever after it, and does nothing."""
    following: dict[_State, set[_State]] = {state: {state} for state in states}
    nothing: dict[_State, set[_Event]] = {state: set() for state in states}
    for state in states:
        for event in events:
            with suppress(ImpossibleEventError):
                after, effects = step(state, event)
                following[state].add(after)
                if after == state and not effects:
                    nothing[state].add(event)
    for _ in states:
        for state in states:
            following[state] = set().union(*(following[each] for each in following[state]))
    return {
        state: frozenset(set(events).intersection(*(nothing[each] for each in following[state])))
        for state in states
    }


class Safety:
    """Breadth first over all states that are in no other; the first broken law ends it."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.states: list[State] = []
        self.came: list[tuple[int, str]] = []
        self.sets: dict[tuple[int, int], list[int]] = {}  # of messages, none within another
        self.moves = 0

    def run(self, start: tuple[Here, There]) -> str | None:
        """Return the law that is broken, by the last state of `states`; None if all hold."""
        walk = self.walk
        self._reach(walk.here(start[0]), walk.there(start[1]), 0, -1, "start")
        states, sets = self.states, self.sets
        here_seen, there_seen = walk.here_seen, walk.there_seen
        at = 0
        while at < len(states):
            h, t, messages = states[at]
            if messages not in sets[h, t]:  # a larger set has come since
                at += 1
                continue
            for needs, _, after, adds, name in walk.source_steps(h, there_seen[t]):
                if needs & messages == needs:
                    self.moves += 1
                    law = name if after < 0 else self._reach(after, t, messages | adds, at, name)
                    if law is not None:
                        return self._broken(law, at, after)
            for needs, _, after, adds, name in walk.destination_steps(t, here_seen[h]):
                if needs & messages == needs:
                    self.moves += 1
                    law = name if after < 0 else self._reach(h, after, messages | adds, at, name)
                    if law is not None:
                        return self._broken(law, at, after)
            at += 1
        return None

    def _broken(self, law: str, at: int, after: int) -> str:
        if after < 0:  # by the step itself
            self.states.append(self.states[at])
            self.came.append((at, law))
        return law

    def _reach(self, h: int, t: int, messages: int, came: int, name: str) -> str | None:
        walk = self.walk
        messages &= walk.mask_here[h] & walk.mask_there[t]
        known = self.sets.get((h, t))
        law = None
        if known is None:
            self.sets[h, t] = [messages]
            try:
                check(walk.heres[h], walk.theres[t])
            except BrokenLawError as exc:
                law = f"{exc}"
        else:
            for each in known:
                if each | messages == each:
                    return None
            self.sets[h, t] = [each for each in known if each | messages != messages]
            self.sets[h, t].append(messages)
        self.states.append((h, t, messages))
        self.came.append((came, name))
        return law

    def trace(self, end: int) -> tuple[str, ...]:
        """Return the steps to a state, and the state."""
        h, t, messages = self.states[end]
        words = [f"{self.walk.heres[h]}\n{self.walk.theres[t]}\nmessages {messages:09b}"]
        while end >= 0:
            end, name = self.came[end]
            words.append(name)
        return tuple(reversed(words))


def explore(rules: Rules, start: tuple[Here, There] = START) -> Explored:
    """Visit every state; see that every law holds in it, and that it does not hang.

    Nothing that is made here is garbage before its end.
    """
    gc.collect()
    gc.disable()
    try:
        walk = Walk(rules)
        safety = Safety(walk)
        law = safety.run(start)
        end = len(safety.states) - 1
        if law is None:
            law, pair = hanging(walk, list(safety.sets)) or (None, (0, 0))
            if law is not None:
                end = next(i for i, (h, t, _) in enumerate(safety.states) if (h, t) == pair)
        trace = safety.trace(end) if law is not None else ()
        return Explored(len(safety.states), safety.moves, law, trace)
    finally:
        gc.enable()


def main() -> int:
    """Walk the whole world and print what was seen."""
    began = time.monotonic()
    found = explore(REAL)
    seconds = time.monotonic() - began
    print(f"{found.states} states, {found.moves} moves, {seconds:.1f} s")
    if found.law is not None:
        print(*found.trace, found.law, sep="\n")
        return 1
    print("every law held in every state, and from each of them there is a way on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
