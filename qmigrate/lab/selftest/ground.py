"""How a cell is played, whatever the ground: the move, its fault, its end, and a look at it.

::

    prepare ─► begin ─► strike ─► finish ─► [mend ─► resolve ─► watch] ─► look ─► sweep

A ground says how each of these is done there, and what it may do at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qmigrate.core.errors import HostError
from qmigrate.core.faults import Action
from qmigrate.lab.selftest.cells import Cell, Stroke, split_point
from qmigrate.lab.selftest.checks import UNKNOWN, Evidence, Said
from qmigrate.lab.selftest.commands import SAY_DEADLINE_S, Moved, Moving

POWER = frozenset((Stroke.POWER_OFF_SOURCE, Stroke.POWER_OFF_DESTINATION))
STRUCK = "fault point"  # in the progress by which an agent says that it stands there


@dataclass(slots=True)
class Play:
    """One cell under way."""

    cell: Cell
    way: tuple[str, str]  # the hosts from which and to which
    moving: Moving | None = None
    job: str = ""
    moved: Moved | None = None  # None: its controller was killed
    watched: Moved | None = None
    resolved: Moved | None = None
    moved_while_held: str = ""
    mend: Callable[[], None] = lambda: None

    @property
    def at_source(self) -> str:
        """The job as a command names it."""
        return f"{self.job}@{self.way[0]}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is on the hosts at the end; see `Evidence`."""

    where: tuple[tuple[str, str], ...]
    memory: str = ""
    tcp: str = ""


class Ground(ABC):
    """Two hosts on which cells can be played, one after another."""

    hosts: tuple[str, str]

    # What a ground is

    def can_play(self, cell: Cell) -> bool:
        """Whether it may do what the cell asks for."""
        return not cell.only_in_a_lab

    @abstractmethod
    def prepare(self, cell: Cell) -> None:
        """Have an empty ground, and the cell's guest running on the first host."""

    @abstractmethod
    def begin(self, play: Play, words: tuple[str, ...]) -> Moving:
        """Start a `qmigrate` with these words."""

    @abstractmethod
    def run(self, *words: str) -> Moved:
        """Run a `qmigrate` to its end."""

    def strike(self, play: Play) -> None:
        """Do what the cell's stroke says, at its moment; an agent may stand still for it."""
        if play.cell.stroke is not Stroke.KILL_CONTROLLER or play.moving is None:
            raise HostError(f"this ground knows no {play.cell.stroke}")
        play.moving.until(lambda line: STRUCK in line, SAY_DEADLINE_S)
        play.moving.kill()

    def strike_before(self, play: Play) -> None:
        """Do what a stroke without a point says, before the move begins."""
        raise HostError(f"this ground knows no {play.cell.stroke}")

    def hurry(self, play: Play) -> None:
        """Return once a slow copy is to be let go."""
        raise HostError("this ground cannot tell when a copy is to be let go")

    @abstractmethod
    def note_deaths(self) -> None:
        """Look which QEMUs have ended: theirs are copies that do not run from now on."""

    @abstractmethod
    def runs_now(self) -> str:
        """Say which copies run; "" if none does."""

    @abstractmethod
    def look(self, play: Play) -> Seen:
        """Ask and read all copies of the guest."""

    @abstractmethod
    def sweep(self, play: Play) -> tuple[str, ...]:
        """End the guest, which has proved what it had to; return what is left of the job then."""

    @abstractmethod
    def left(self, play: Play) -> tuple[str, ...]:
        """Wait for the job's agents to end, clean up if that is expected; return what is left."""

    @abstractmethod
    def overlap(self) -> str:
        """See `traces.overlap`."""

    @abstractmethod
    def logs(self) -> str:
        """Return what the agents of the cell have said."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all that the cell has left; the next one begins with nothing."""

    # What is done with it

    def play(self, cell: Cell) -> Evidence:
        """Move a guest under the cell's fault, to the very end; return what it came to."""
        self.prepare(cell)
        play = Play(cell, self.hosts)
        self.move(play)
        seen = self.look(play)
        left = self.sweep(play)
        return self.evidence(play, seen, left)

    def move(self, play: Play) -> None:
        """Move it, strike, and see the job to its end."""
        cell = play.cell
        if cell.stroke and not cell.points:
            self.strike_before(play)
        faults = [word for point in cell.points for word in ("--fault", point)]
        name, (source, destination) = self.guest(cell), play.way
        words = ("migrate", name, destination, "--from", source, "--impatient", "--json")
        play.moving = self.begin(play, (*words, *faults, *cell.options))
        play.job = play.moving.job_if_begun()
        if cell.stroke and cell.points and play.job:
            self.strike(play)
        if cell.hurry:
            self.hurry(play)
            self.run("set", play.at_source, "--bandwidth", "1GiB", "--json")
        if cell.stroke is not Stroke.KILL_CONTROLLER:
            play.moved = play.moving.finish()
        self._decide(play)

    def guest(self, cell: Cell) -> str:
        """Return the name of the cell's guest."""
        return "tiny1"

    def _decide(self, play: Play) -> None:
        """Bring what is held, or was left, to its end: first the path, then `resolve`."""
        cell = play.cell
        self.note_deaths()
        if cell.held:
            play.moved_while_held = self.runs_now()
        if cell.held or cell.stroke in POWER or cell.stroke is Stroke.CUT_CABLE:
            play.mend()
        if cell.held or cell.left:
            self._resolve(play)
        lost = play.moved is None or (play.moved.code == UNKNOWN and cell.stroke not in POWER)
        if lost:
            play.watched = self.run("watch", play.at_source, "--json")
        play.mend()

    def _resolve(self, play: Play) -> None:
        """Let it do what is safe by itself; then say what only a person knows, if that is due."""
        source, destination = play.way
        where = ("--source", source, "--destination", destination)
        words = ("resolve", self.guest(play.cell), *where, "--json")
        play.resolved = self.run(*words)
        if play.resolved.code == UNKNOWN and play.cell.resolve:
            known = [
                word.format(source=source, destination=destination) for word in play.cell.resolve
            ]
            play.resolved = self.run(*words, *known)

    def clean_up(self, play: Play) -> None:
        """Do what a person would do about what a cell is said to leave."""
        if play.cell.left:
            for host, peer in (play.way, play.way[::-1]):
                self.run("cleanup", host, "--peer", peer, "--yes", "--json")

    def evidence(self, play: Play, seen: Seen, left: tuple[str, ...]) -> Evidence:
        """Return all that is known now."""
        return Evidence(
            source=play.way[0],
            destination=play.way[1],
            unstruck=tuple(_unstruck(play.cell.points, self.logs())),
            migrate=said(play.moved),
            watch=said(play.watched),
            resolve=said(play.resolved),
            moved_while_held=play.moved_while_held,
            where=seen.where,
            overlap=self.overlap(),
            memory=seen.memory,
            tcp=seen.tcp,
            left=left,
        )


def _unstruck(points: Iterable[str], logs: str) -> Iterable[str]:
    """Yield the points of which no agent has said that it came there; those held are seen."""
    for point in points:
        side, moment, action = split_point(point)
        if action != Action.STOP and f"{side}: fault point {moment}: {action}" not in logs:
            yield point


def said(moved: Moved | None) -> Said | None:
    """Return what a command's end says of the job."""
    if moved is None:
        return None
    error = moved.result.get("error") or {}
    what = moved.error.strip() or moved.stderr[-300:]
    return Said(moved.code, error.get("host"), error.get("phase"), error.get("next_step"), what)
