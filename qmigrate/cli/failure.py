"""From what was raised to what is said and which exit code ends the program."""

from collections.abc import Iterator
from dataclasses import dataclass

from qmigrate.core.errors import Problem, QmigrateError

DEFECT_EXIT = 1

# Of several errors one gives the exit code: the one that asks most of the reader. "Not known here"
# outweighs everything (the guest may run anywhere); a defect outweighs what is understood.
_WEIGHT = (7, 1, 9, 5, 8, 6, 4, 3, 2, 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exit code, and the errors with theirs, the weightiest first."""

    exit_code: int
    problems: tuple[tuple[Problem, int], ...]


def judge(exc: BaseException) -> Verdict:
    """Return the verdict on `exc`; groups are taken apart, and a group of one is that one."""
    found = [(_problem(leaf), _exit_code(leaf)) for leaf in leaves(exc)]
    found.sort(key=lambda pair: _WEIGHT.index(pair[1]))
    return Verdict(found[0][1], tuple(found))


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a tree of groups."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def is_interrupt(exc: BaseException) -> bool:
    """Tell whether nothing but Ctrl-C is in `exc`."""
    return all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves(exc))


def _exit_code(exc: BaseException) -> int:
    return exc.exit_code if isinstance(exc, QmigrateError) else DEFECT_EXIT


def _problem(exc: BaseException) -> Problem:
    if isinstance(exc, QmigrateError):
        return exc.problem
    place = exc.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    file = place.tb_frame.f_code.co_filename.rpartition("/")[2] if place else "?"
    line = place.tb_lineno if place else 0
    words = str(exc).splitlines()
    cause = f"{type(exc).__name__}: {words[0]}" if words else type(exc).__name__
    return Problem(
        "defect",
        f"a defect of ours: {cause} ({file}:{line})",
        next_step="run it again with --debug for the traceback, and report it",
    )
