"""A lab of the selftest's own: hosts that may lose their power, looked at through /proc."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from qmigrate.core.errors import HostError
from qmigrate.core.faults import Action
from qmigrate.lab.demo import Probe, intact, probing
from qmigrate.lab.guests import LabGuest
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest import strokes, traces
from qmigrate.lab.selftest.cells import Cell, Load, Stroke, split_point
from qmigrate.lab.selftest.checks import UNKNOWN, Evidence, Said
from qmigrate.lab.selftest.commands import Moved
from qmigrate.lab.selftest.faulty import Faulty, Struck
from qmigrate.lab.selftest.site import HOSTS, LINUX_IP4, Copy, Site
from qmigrate.lab.topology import TOPOLOGIES

DISK_MIB = 1
GUEST = "tiny1"
LINUX_GUEST = "web1"
POWER = frozenset((Stroke.POWER_OFF_SOURCE, Stroke.POWER_OFF_DESTINATION))


@contextlib.contextmanager
def lab_ground(name: str | None = None) -> Iterator["LabGround"]:
    """Bring up a lab, give it, and take it down again."""
    lab = Lab(name or f"selftest-{os.getpid()}")
    try:
        lab.up(TOPOLOGIES["same-segment"])
        # The first agent is pushed and compiled, and each host is probed for KVM: seconds.
        lab.run("client", ["qmigrate", "check", "nobody", "beta", "--from", "alpha"], check=False)
        yield LabGround(lab)
    finally:
        lab.down()


@dataclass(slots=True)
class _Play:
    """One cell under way."""

    cell: Cell
    name: str
    struck: Struck | None = None
    moved: Moved | None = None
    watched: Moved | None = None
    mend: Callable[[], None] = lambda: None
    moved_while_held: str = ""


@dataclass(slots=True)
class LabGround:
    """See the module."""

    lab: Lab
    _faulty: Faulty | None = None
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def faulty(self) -> Faulty:
        """The cell that is played."""
        if self._faulty is None:
            raise HostError("no cell is being played")
        return self._faulty

    def can_play(self, cell: Cell) -> bool:
        """Everything can be done to a lab."""
        return True

    def play(self, cell: Cell) -> Evidence:
        """See `Ground.play`."""
        self._faulty = Faulty(Site(self.lab))
        self._exits = contextlib.ExitStack()
        self.faulty.open()
        play = _Play(cell, LINUX_GUEST if cell.load is Load.LINUX else GUEST)
        self.faulty.site.start(self._guest(cell))
        probe: Probe | None = None
        if cell.load is Load.LINUX:
            probe = self._exits.enter_context(probing(self.lab, LINUX_IP4))
        else:
            self.faulty.before = self.faulty.site.await_life(GUEST)
        self._move(play)
        self._decide(play)
        return self._look(play, probe)

    def _guest(self, cell: Cell) -> LabGuest:
        match cell.load:
            case Load.TINY:
                return self.faulty.tiny(GUEST)
            case Load.DISK:
                disk = self.faulty.site.shared(strokes.DISK, DISK_MIB)
                return self.faulty.tiny(GUEST, disk=disk)
            case Load.LINUX:
                return self.faulty.linux(LINUX_GUEST)

    # The move and its fault

    def _move(self, play: _Play) -> None:
        """Move it, strike, and wait for the controller to say how it ended."""
        cell = play.cell
        if cell.stroke and not cell.points:
            play.mend = strokes.strike(self.faulty, cell.stroke, None)
        play.struck = struck = self.faulty.begin(play.name, *cell.options, points=cell.points)
        if cell.hold is not None:
            held = struck.hold(*cell.hold)
            if cell.stroke is not None:
                play.mend = strokes.strike(self.faulty, cell.stroke, struck)
            held.release()
            strokes.after(cell.stroke, play.mend)
        elif cell.stroke is Stroke.KILL_CONTROLLER:
            struck.moving.until(lambda line: "fault point" in line)
            struck.kill_controller()
        if cell.hurry:
            struck.heard(HOSTS[0], cell.hurry)
            self._run("set", f"{struck.job}@{HOSTS[0]}", "--bandwidth", "1GiB", "--json")
        if cell.stroke is not Stroke.KILL_CONTROLLER:
            play.moved = struck.finish()

    def _run(self, *words: str) -> Moved:
        return self.faulty.site.run(*words)

    def _decide(self, play: _Play) -> None:
        """Bring what is held, or was left, to its end: first the path, then `resolve`."""
        cell, job = play.cell, play.struck.job if play.struck else ""
        self.faulty.note_deaths()
        if cell.held:
            runs = [ran for ran in self.faulty.ran() if ran.goes_on]
            play.moved_while_held = ", ".join(f"{ran.trace} on {ran.host}" for ran in runs)
        if cell.held or cell.stroke in POWER or cell.stroke is Stroke.CUT_CABLE:
            play.mend()
        if cell.held or cell.left:
            self._resolve(cell, job)
        if play.moved is None or (play.moved.code == UNKNOWN and cell.stroke not in POWER):
            play.watched = self._run("watch", f"{job}@{HOSTS[0]}", "--json")
        play.mend()

    def _resolve(self, cell: Cell, job: str) -> None:
        places = {"source": HOSTS[0], "destination": HOSTS[1]}
        more = [word.format(**places) for word in cell.resolve]
        self._run("resolve", job, *more, "--json")

    # What it came to

    def _look(self, play: _Play, probe: Probe | None) -> Evidence:
        site, cell = self.faulty.site, play.cell
        copies = site.copies(play.name)  # waits until the job's agents hold no monitor any more
        memory = tcp = ""
        if copies and cell.load is Load.LINUX:
            memory = "" if intact(self.lab, LINUX_IP4) else "the guest says that it is broken"
            tcp = _tcp(probe)
        elif len(copies) == 1:
            memory = site.memory(GUEST, before=self.faulty.before).problem
        self._exits.close()
        left = self._sweep(play, copies)
        return Evidence(
            source=HOSTS[0],
            destination=HOSTS[1],
            unstruck=tuple(_unstruck(cell.points, self.logs())),
            migrate=_said(play.moved),
            watch=_said(play.watched),
            moved_while_held=play.moved_while_held,
            where=tuple((copy.host, copy.state or "") for copy in copies),
            overlap=traces.overlap(self.faulty.ran()),
            memory=memory,
            tcp=tcp,
            left=left,
        )

    def _sweep(self, play: _Play, copies: list[Copy]) -> tuple[str, ...]:
        """End the guest, which has proved what it had to; return what is left of the job then.

        With the guest its announcements end, for which an agent would stay some seconds more.
        """
        for copy in copies:
            self.faulty.kill_qemu(copy)
        if play.struck is not None:
            self.faulty.await_end(play.struck.job)
        if play.cell.left:
            for host in HOSTS:
                self._run("cleanup", host, "--yes", "--json")
        left = self.faulty.site.leftovers(play.name, copies)
        self.faulty.note_deaths()
        return tuple(left)

    def logs(self) -> str:
        """See `Ground.logs`."""
        return self._faulty.logs() if self._faulty else ""

    def clear(self) -> None:
        """See `Ground.clear`."""
        self._exits.close()
        if self._faulty is not None:
            self._faulty.site.close()
            self._faulty = None


def _unstruck(points: Sequence[str], logs: str) -> Iterator[str]:
    """Yield the points of which no agent has said that it came there; those held are seen."""
    for point in points:
        side, moment, action = split_point(point)
        if action != Action.STOP and f"{side}: fault point {moment}: {action}" not in logs:
            yield point


def _said(moved: Moved | None) -> Said | None:
    if moved is None:
        return None
    error = moved.result.get("error") or {}
    what = moved.error.strip() or moved.stderr[-300:]
    return Said(moved.code, error.get("host"), error.get("phase"), error.get("next_step"), what)


def _tcp(probe: Probe | None) -> str:
    seen = probe.report()["tcp"] if probe else None
    if seen is None:
        return "nothing was seen of the connection"
    return "the connection broke" if seen["broken"] else ""
