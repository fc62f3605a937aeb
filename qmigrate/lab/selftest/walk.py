"""A random walk: one guest, many moves there and back, a fault in one of three.

What is drawn depends on the seed alone, so a walk can be walked again.
"""

import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qmigrate.core.errors import QmigrateError
from qmigrate.lab.selftest.cells import Cell, End, Ending, Fault, Load, Phase, Victim
from qmigrate.lab.selftest.checks import Evidence, judge
from qmigrate.lab.selftest.ground import Ground, Play

ONE_OF = 3  # moves of which one has a fault
SEED_BELOW = 2**32
PLAIN = Cell(Victim.NOBODY, Fault.NONE, Phase.COPY, (Ending(End.DESTINATION, (0,)),))


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk came to."""

    seed: int
    moves: int
    faults: int
    lost: int  # no copy was left
    doubled: int  # two ran, or were there, at an instant
    damaged: int  # memory was lost or went back in time
    leftovers: int  # moves after which something of the job was left
    unexpected: tuple[str, ...]  # all that was not as the table says, a sentence a move

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not self.unexpected

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.moves} moves, {self.faults} with a fault: {self.lost} lost, "
            f"{self.doubled} doubled, {self.damaged} damaged, {self.leftovers} left something"
        )


def draw_seed() -> int:
    """Return a seed that nobody chose."""
    return secrets.randbelow(SEED_BELOW)


def can_walk(cell: Cell) -> bool:
    """Tell whether a guest lives on after the cell by itself, wherever it is."""
    alive = all(ending.end is not End.ENDED for ending in cell.ends)
    alone = not (cell.only_in_a_lab or cell.held or cell.left or cell.stroke)
    return alive and alone and cell.load is Load.TINY


def draw(cells: Iterable[Cell], moves: int, seed: int) -> list[Cell]:
    """Return what each move is struck by, if by anything."""
    chance = random.Random(seed)  # noqa: S311 - nothing is kept secret by it
    able = [cell for cell in cells if can_walk(cell)]
    return [
        chance.choice(able) if able and chance.randrange(ONE_OF) == 0 else PLAIN
        for _ in range(moves)
    ]


def walk(
    ground: Ground, cells: Iterable[Cell], moves: int, seed: int, tell: Callable[[str], None]
) -> Walk:
    """Walk; each move that was struck, or went wrong, is told."""
    steps: list[tuple[Cell, Evidence | None]] = []
    unexpected: list[str] = []
    ground.prepare(PLAIN)
    try:
        way = ground.hosts
        for number, cell in enumerate(draw(cells, moves, seed), start=1):
            try:
                seen = _step(ground, Play(cell, way), last=number == moves)
                why = "; ".join(judge(cell, seen))
            except (QmigrateError, OSError) as exc:
                seen, why = None, str(exc)
            steps.append((cell, seen))
            if why or cell is not PLAIN:
                tell(f"{number:4}/{moves} {'FAILED: ' + why if why else 'ok'}  {cell.name}")
            if why:
                unexpected.append(f"move {number}, {cell.name}: {why}")
            if seen is None or len(seen.where) != 1:
                break  # there is nothing left to walk with, or too much
            here = seen.where[0][0]
            way = way if here == way[0] else way[::-1]
    finally:
        ground.clear()
    return _sum(steps, seed, unexpected)


def _step(ground: Ground, play: Play, *, last: bool) -> Evidence:
    ground.move(play)
    seen = ground.look(play)
    ground.note_deaths()
    # After a plain move the next one may begin at once, while the guest is still being announced.
    left = ground.left(play) if last or play.cell is not PLAIN else ()
    return ground.evidence(play, seen, left)


def _sum(steps: list[tuple[Cell, Evidence | None]], seed: int, unexpected: list[str]) -> Walk:
    seen = [evidence for _, evidence in steps if evidence is not None]
    return Walk(
        seed=seed,
        moves=len(steps),
        faults=sum(cell is not PLAIN for cell, _ in steps),
        lost=sum(not one.where for one in seen),
        doubled=sum(bool(one.overlap) or len(one.where) > 1 for one in seen),
        damaged=sum(bool(one.memory) for one in seen),
        leftovers=sum(bool(one.left) for one in seen),
        unexpected=tuple(unexpected),
    )
