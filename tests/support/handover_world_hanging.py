"""Whether the small world can always go on: what must be reachable from every one of its states."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qmigrate.core.handover import Destination, DestinationEvent, Record, Source
from tests.support.handover_world_nouns import (
    FAULT,
    RUNS_HERE,
    TELLS,
    WORD,
    Here,
    There,
)

if TYPE_CHECKING:
    from tests.support.handover_world import State, Walk

S, D, DE, R = Source, Destination, DestinationEvent, Record

Goal = Callable[[Here, There], bool]


class Reach:
    """Which states can come to a goal by steps that nobody need fear.

    A state whose messages are all lost can do no more than one that has some, so a goal that can be
    reached from the first is remembered for both.
    """

    def __init__(self, walk: "Walk", goal: Goal, *, telling: bool, words: bool) -> None:
        self.walk = walk
        self.goal = goal
        self.stop = FAULT if words else FAULT | WORD
        self.telling = TELLS if telling else 0
        self.good: set[State] = set()
        self.bad: set[State] = set()

    def failing(self, starts: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
        """Return a start, its messages all lost, that cannot come to the goal; None if all can."""
        for h, t in starts:
            state = h, t, 0
            if state not in self.good and state not in self.bad:
                self._search(state)
            if state in self.bad:
                return h, t
        return None

    def _following(self, state: "State") -> "list[State] | None":
        """Return what can follow; None at the goal."""
        h, t, messages = state
        walk = self.walk
        if self.goal(walk.heres[h], walk.theres[t]):
            return None
        found = []
        for needs, kind, after, adds, _ in walk.source_steps(h, walk.there_seen[t]):
            if not kind & self.stop and needs & messages == needs:
                if kind & self.telling:
                    return None
                mask = walk.mask_here[after] & walk.mask_there[t]
                found.append((after, t, (messages | adds) & mask))
        for needs, kind, after, adds, _ in walk.destination_steps(t, walk.here_seen[h]):
            if not kind & self.stop and needs & messages == needs:
                if kind & self.telling:
                    return None
                mask = walk.mask_here[h] & walk.mask_there[after]
                found.append((h, after, (messages | adds) & mask))
        return found

    def _search(self, start: "State") -> None:
        good = self.good
        path: list[State] = [start]
        following = self._following(start)
        if following is None:
            good.add(start)
            return
        waiting = [following]
        visited = {start}
        while path:
            if not waiting[-1]:
                path.pop()
                waiting.pop()
                continue
            state = waiting[-1].pop()
            if state in visited or state in self.bad:
                continue
            visited.add(state)
            if state not in good and (state[0], state[1], 0) not in good:
                following = self._following(state)
                if following is not None:
                    path.append(state)
                    waiting.append(following)
                    continue
                good.add(state)
            good.update(path)
            return
        self.bad |= visited


def hanging(walk: "Walk", pairs: list[tuple[int, int]]) -> tuple[str, tuple[int, int]] | None:
    """Return the first law about what must stay possible that does not hold, and where.

    Without words nothing is asked of what only a person can decide. Where a journal has vanished
    under no agent nobody is left to go on: `resolve` sees that.
    """
    heres, theres = walk.heres, walk.theres
    served = [(h, t) for h, t in pairs if not heres[h].vanished and not theres[t].vanished]
    whole = [(h, t) for h, t in served if _is_whole(heres[h], theres[t])]
    unhurt = [(h, t) for h, t in whole if not _has_lost(heres[h], theres[t])]
    torn = [(h, t) for h, t in served if not heres[h].strayed]
    for law, goal, starts, telling, words in (
        ("it runs nowhere, and nobody is told", _runs_or_is_seen, served, True, False),
        ("nothing was lost, and it does not run by itself", _runs, unhurt, False, False),
        ("a whole copy is left, and no true word lets it run", _runs, whole, False, True),
        ("what is left of the job can never go", _is_tidy, torn, False, True),
    ):
        if words and not walk.rules.words:
            continue
        pair = Reach(walk, goal, telling=telling, words=words).failing(starts)
        if pair is not None:
            return law, pair
    return None


def _runs(here: Here, there: There) -> bool:
    return here.qemu in RUNS_HERE or there.qemu == "runs"


def _runs_or_is_seen(here: Here, there: There) -> bool:
    """Whether it runs, its end was told, or a host's death is plain to see."""
    ended = here.over and here.qemu == "gone"
    return _runs(here, there) or ended or here.lost or there.lost


def _is_whole(here: Here, there: There) -> bool:
    """Whether a copy is left that nobody has decided against.

    A guest that ended by itself where it was to run is its own affair. What QEMU said while the
    source lived is acted on after the source's death (see `handover_world_nouns`).
    """
    decided = there.agent in (D.REFUSED, D.RETURNED) or there.record in (R.REFUSED, R.RETURNED)
    settled = DE.LOOKS_UNFIT in there.inbox or DE.CONT_REFUSED in there.inbox
    whole_there = there.qemu in ("loaded", "hung", "runs") and not decided and not settled
    proved = here.agent is S.PROVED or here.record is R.PROVED
    whole_here = here.qemu != "gone" and not proved and there.qemu != "halted"
    return whole_here or whole_there


def _has_lost(here: Here, there: There) -> bool:
    """Whether a QEMU or its host has died, or the guest has ended: then people may be needed."""
    return here.qemu == "gone" or there.qemu in ("gone", "halted")


def _is_tidy(here: Here, there: There) -> bool:
    """Whether nobody works at the job any more and no copy is left that stands still.

    A source that somebody let run may have to be ended by a person: those are not asked for this.
    """
    is_left = here.qemu in ("held", "device", "complete")
    is_there = there.qemu in ("waits", "armed", "loaded", "hung", "failed")
    return here.over and there.over and not is_left and not is_there
