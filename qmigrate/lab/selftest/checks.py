"""What a cell came to, seen from outside, and what is wrong with that."""

from collections.abc import Iterator
from dataclasses import dataclass

from qmigrate.lab.selftest.cells import Cell, End, Ending

UNKNOWN = 7  # the exit code of one who cannot know (DESIGN §6)
NOBODY = 4  # of `resolve`: there is no such guest, and nothing of it
RUNNING = "running"
NO_ERROR = (3, 8)  # what says more than one thing, each with its host: findings, leftovers


@dataclass(frozen=True, slots=True)
class Said:
    """How a `qmigrate` ended that had something to say of the job."""

    code: int
    host: str | None = None  # of its error
    phase: str | None = None
    next_step: str | None = None
    what: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a cell once it is over."""

    source: str  # the hosts' names
    destination: str
    unstruck: tuple[str, ...]  # points that no agent has said to have come to
    migrate: Said | None  # None: its controller was killed
    watch: Said | None  # asked where the controller could not know; None: it was not
    resolve: Said | None  # asked where it was to be; None: it was not
    moved_while_held: str  # which copy ran before the path was there again; "" if none
    where: tuple[tuple[str, str], ...]  # host and run state of every copy of the guest
    overlap: str  # see `traces.overlap`
    memory: str  # "" if not a page was lost or went back in time
    tcp: str  # "" if its connection lives, or it had none
    left: tuple[str, ...]  # what is on the hosts and serves nobody


def judge(cell: Cell, seen: Evidence) -> tuple[str, ...]:
    """Return all that is not as it should be, a sentence each; none for a cell that is well."""
    return tuple(_complaints(cell, seen))


def _complaints(cell: Cell, seen: Evidence) -> Iterator[str]:
    if seen.overlap:
        yield seen.overlap
    if seen.unstruck:
        yield f"the fault did not strike: {', '.join(seen.unstruck)}"
    if seen.moved_while_held:
        yield f"it was to be held, and a copy ran: {seen.moved_while_held}"
    here = [ending for ending in cell.ends if _is_there(ending.end, seen)]
    if not here:
        yield f"expected {cell.expected}, found {_where(seen)}"
    else:
        yield from _code(here, seen)
    yield from _words(seen)
    if seen.where and seen.memory:
        yield f"memory: {seen.memory}"
    if seen.where and seen.tcp:
        yield f"TCP: {seen.tcp}"
    if seen.left:
        yield f"left: {'; '.join(seen.left)}"


def _is_there(end: End, seen: Evidence) -> bool:
    match end:
        case End.ENDED:
            return not seen.where
        case End.SOURCE:
            return seen.where == ((seen.source, RUNNING),)
        case End.DESTINATION:
            return seen.where == ((seen.destination, RUNNING),)


def _where(seen: Evidence) -> str:
    return ", ".join(f"{host} {state}" for host, state in seen.where) or "no copy anywhere"


def _code(here: list[Ending], seen: Evidence) -> Iterator[str]:
    """Compare what was said with the end that came."""
    codes = {code for ending in here for code in ending.codes}
    if seen.migrate is not None and seen.migrate.code not in codes:
        yield f"migrate ended with {seen.migrate.code}, not {_any(codes)}: {seen.migrate.what}"
    if seen.watch is not None:
        fits = {End.SOURCE: {4, 5, 6}, End.DESTINATION: {0, 8}, End.ENDED: {9, UNKNOWN}}
        fitting = set().union(*(fits[ending.end] for ending in here))
        if seen.watch.code not in fitting:
            said = f"{seen.watch.code}, not {_any(fitting)}: {seen.watch.what}"
            yield f"watch ended with {said}"

    if seen.resolve is not None:
        ended = any(ending.end is End.ENDED for ending in here)
        fitting = {0, NOBODY, 9} if ended else {0}
        if seen.resolve.code not in fitting:
            yield (
                f"resolve ended with {seen.resolve.code}, not {_any(fitting)}: {seen.resolve.what}"
            )


def _any(codes: set[int]) -> str:
    return " or ".join(map(str, sorted(codes)))


def _words(seen: Evidence) -> Iterator[str]:
    """A failure that does not say where, when and what to do is half a failure."""
    said = seen.migrate
    if said is None or said.code == 0:
        return
    missing = [
        name
        for name, value in (
            ("host", said.host),
            ("phase", said.phase),
            ("next step", said.next_step),
        )
        if not value
    ]
    if missing and said.code not in NO_ERROR:
        yield f"the error ({said.what}) names no {' and no '.join(missing)}"
