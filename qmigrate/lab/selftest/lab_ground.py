"""A lab of the selftest's own: hosts that may lose their power, looked at through /proc."""

import contextlib
import os
from collections.abc import Iterator

from qmigrate.core.errors import HostError
from qmigrate.core.tiny import Marks
from qmigrate.lab.demo import Probe, intact, probing
from qmigrate.lab.guests import LabGuest
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest import strokes, traces
from qmigrate.lab.selftest.cells import Cell, Load
from qmigrate.lab.selftest.commands import SAY_DEADLINE_S, Moved, Moving
from qmigrate.lab.selftest.faulty import Faulty, Struck
from qmigrate.lab.selftest.ground import Ground, Play, Seen
from qmigrate.lab.selftest.site import HOSTS, LINUX_IP4, Copy, Site
from qmigrate.lab.topologies import TOPOLOGIES

DISK_MIB = 1
GUEST = "tiny1"
LINUX_GUEST = "web1"


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


class LabGround(Ground):
    """See the module."""

    hosts = HOSTS

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._faulty: Faulty | None = None
        self._struck: Struck | None = None
        self._probe: Probe | None = None
        self._copies: list[Copy] = []
        self._exits = contextlib.ExitStack()

    @property
    def faulty(self) -> Faulty:
        """The cell that is played."""
        if self._faulty is None:
            raise HostError("no cell is being played")
        return self._faulty

    def can_play(self, cell: Cell) -> bool:
        """Everything can be done to a lab."""
        return True

    def guest(self, cell: Cell) -> str:
        """Return the name of the cell's guest."""
        return LINUX_GUEST if cell.load is Load.LINUX else GUEST

    def prepare(self, cell: Cell) -> None:
        """See `Ground`."""
        self._faulty = Faulty(Site(self.lab))
        self._exits = contextlib.ExitStack()
        self._probe = None
        self.faulty.open()
        self.faulty.site.start(self._described(cell))
        if cell.load is Load.LINUX:
            self._probe = self._exits.enter_context(probing(self.lab, LINUX_IP4))
        else:
            self.faulty.before = self.faulty.site.await_life(GUEST)

    def _described(self, cell: Cell) -> LabGuest:
        match cell.load:
            case Load.TINY:
                return self.faulty.tiny(GUEST)
            case Load.DISK:
                disk = self.faulty.site.shared(strokes.DISK, DISK_MIB)
                return self.faulty.tiny(GUEST, disk=disk)
            case Load.LINUX:
                return self.faulty.linux(LINUX_GUEST)

    # The move and its fault

    def begin(self, play: Play, words: tuple[str, ...]) -> Moving:
        """See `Ground`."""
        moving = self.faulty.site.begin(*words)
        job = moving.job_if_begun()
        self.faulty.jobs = [job]  # a walk's earlier ones have said all that they had to
        self._struck = Struck(self.faulty, moving, job, play.way)
        return moving

    def run(self, *words: str) -> Moved:
        """See `Ground`."""
        return self.faulty.site.run(*words, deadline_s=SAY_DEADLINE_S)

    def strike(self, play: Play) -> None:
        """Let an agent stand still, strike, and let it go on."""
        cell = play.cell
        if cell.hold is None or cell.stroke is None:
            super().strike(play)
            return
        held = self.struck.hold(*cell.hold)
        play.mend = strokes.strike(self.faulty, cell.stroke, self.struck)
        held.release()
        strokes.after(cell.stroke, play.mend)

    def strike_before(self, play: Play) -> None:
        """See `Ground`."""
        if play.cell.stroke is not None:
            play.mend = strokes.strike(self.faulty, play.cell.stroke, None)

    def hurry(self, play: Play) -> None:
        """See `Ground`."""
        self.struck.heard(play.way[0], play.cell.hurry)

    @property
    def struck(self) -> Struck:
        """The move under way."""
        if self._struck is None:
            raise HostError("nothing is being moved")
        return self._struck

    # What it came to

    def note_deaths(self) -> None:
        """See `Ground`."""
        self.faulty.note_deaths()

    def runs_now(self) -> str:
        """See `Ground`."""
        runs = [ran for ran in self.faulty.ran() if ran.goes_on]
        return ", ".join(f"{ran.trace} on {ran.host}" for ran in runs)

    def look(self, play: Play) -> Seen:
        """See `Ground`; waits until the job's agents hold no monitor any more."""
        site, cell = self.faulty.site, play.cell
        copies = site.copies(self.guest(cell))
        if (
            len(copies) != 1 and play.job
        ):  # the other one's agent may stand still, or be about to end it
            self.faulty.await_end(play.job)
            copies = site.copies(self.guest(cell))
        self._copies = copies
        where = tuple((copy.host, copy.state or "") for copy in copies)
        if cell.load is Load.LINUX:
            memory = "" if intact(self.lab, LINUX_IP4) else "the guest says that it is broken"
            return Seen(where, memory, _tcp(self._probe))
        if len(copies) != 1:
            return Seen(where)
        marks = site.memory(GUEST, before=self.faulty.before)
        self.faulty.before = Marks(marks.passes, marks.step_at, "")
        return Seen(where, marks.problem)

    def sweep(self, play: Play) -> tuple[str, ...]:
        """See `Ground`. With the guest its announcements end, for which an agent would stay."""
        self._exits.close()
        for copy in self._copies:
            self.faulty.kill_qemu(copy)
        return self.left(play)

    def left(self, play: Play) -> tuple[str, ...]:
        """Wait for the job's agents to end, clean up if that is expected; return what is left."""
        if play.job:
            self.faulty.await_end(play.job)
        self.clean_up(play)
        left = self.faulty.site.leftovers(self.guest(play.cell), self._copies)
        self.faulty.note_deaths()
        return tuple(left)

    def overlap(self) -> str:
        """See `Ground`."""
        return traces.overlap(self.faulty.ran())

    def logs(self) -> str:
        """See `Ground`."""
        return self._faulty.logs() if self._faulty else ""

    def clear(self) -> None:
        """See `Ground`."""
        self._exits.close()
        if self._faulty is not None:
            self._faulty.site.close()
        self._faulty = self._struck = None


def _tcp(probe: Probe | None) -> str:
    seen = probe.report()["tcp"] if probe else None
    if seen is None:
        return "nothing was seen of the connection"
    return "the connection broke" if seen["broken"] else ""
