"""Cells one after another on a ground, and what each came to."""

import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qmigrate.core.errors import QmigrateError, UsageError
from qmigrate.lab.selftest.cells import Cell
from qmigrate.lab.selftest.checks import judge
from qmigrate.lab.selftest.ground import Ground


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell came to; `why` is empty for one that is well."""

    cell: Cell
    why: tuple[str, ...]
    took_s: float
    logs: str = ""  # of one that is not

    @property
    def ok(self) -> bool:
        """Whether all was as the table says."""
        return not self.why


def choose(cells: Sequence[Cell], pattern: str | None) -> tuple[Cell, ...]:
    """Return the cells whose name has `pattern` in it, or matches it (``*``, ``?``); None: all.

    Raises `UsageError` if there is none.
    """
    if pattern is None:
        return tuple(cells)
    found = tuple(
        cell for cell in cells if pattern in cell.name or fnmatch.fnmatch(cell.name, pattern)
    )
    if not found:
        raise UsageError(
            f"no cell is called {pattern!r}", next_step="qmigrate selftest --list shows them all"
        )
    return found


def run_cell(ground: Ground, cell: Cell) -> Outcome:
    """Play one cell and judge it; what went wrong while it was played is its reason too."""
    began_s = time.monotonic()
    logs = ""
    try:
        try:
            why = judge(cell, ground.play(cell))
        finally:
            logs = ground.logs()
            ground.clear()
    except QmigrateError as exc:
        words = exc.problem.last_words
        why = (f"{exc.problem.host or 'here'}: {exc}" + (f" ({words})" if words else ""),)
    except OSError as exc:
        why = (f"while it was played: {exc}",)
    return Outcome(cell, why, time.monotonic() - began_s, logs if why else "")


def run_cells(
    ground: Ground, cells: Iterable[Cell], tell: Callable[[Outcome], None]
) -> tuple[Outcome, ...]:
    """Play the cells in order, telling each as it ends."""
    found = []
    for cell in cells:
        found.append(run_cell(ground, cell))
        tell(found[-1])
    return tuple(found)
