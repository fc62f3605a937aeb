"""The words of the fault table: what a cell is, and what can be struck where.

The table itself is `table.py`. A cell places one fault exactly: by a fault point (said in HELLO),
at which the agent strikes itself or its own (`core.faults.Action`), or stands still while somebody
else does his worst (`Stroke`). The end is written down beforehand; where QEMU itself is struck
between two of its own steps, both of its ways are (`ends` has two).
"""

from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.faults import Action


class Victim(StrEnum):
    """What is struck."""

    SOURCE_QEMU = "source QEMU"
    DESTINATION_QEMU = "destination QEMU"
    SOURCE_AGENT = "source agent"
    DESTINATION_AGENT = "destination agent"
    SOURCE_GUARDIAN = "source guardian"
    DESTINATION_GUARDIAN = "destination guardian"
    SOURCE_BOTH = "source guardian and agent"
    DESTINATION_BOTH = "destination guardian and agent"
    CONTROLLER = "controller"
    SSH = "SSH connection"
    LINK = "link"
    PATH = "path between the hosts"
    CABLE = "destination's cable"  # the path to everybody
    SOURCE_HOST = "source host"
    DESTINATION_HOST = "destination host"
    SOURCE_RUN = "/run full on source"
    DESTINATION_RUN = "/run full on destination"
    MEMORY = "memory short on the destination"
    LOCK = "image lock taken by a third"
    NOBODY = "nobody"  # of the moves of a random walk


class Fault(StrEnum):
    """What is done to it."""

    KILL = "SIGKILL"
    FREEZE = "SIGSTOP for 10 s"
    CUT_1S = "cut for 1 s"
    CUT = "cut for good"  # a host: its power
    STAYS = "for good"  # of what is full, short or taken
    NONE = "nothing"


class Phase(StrEnum):
    """When: the stretch of the move that the moment is in."""

    PREPARE = "prepare"
    COPY = "copy"
    PRE_SWITCHOVER = "pre-switchover"
    SWITCHOVER = "switchover"
    COMPLETED = "between completed and GO"
    GO = "between GO and RUNNING"
    FINISH = "finish"


class End(StrEnum):
    """Where the guest is when all is over."""

    SOURCE = "on the source"
    DESTINATION = "on the destination"
    ENDED = "guest ended, said so"


HELD = "held until a path exists, then "  # before the end: nobody acted on what he could not know


class Stroke(StrEnum):
    """What is done from outside, by whoever owns the hosts: in a lab only."""

    KILL_CONTROLLER = "kill-controller"
    CUT_SSH_SOURCE = "cut-ssh-source"
    CUT_SSH_DESTINATION = "cut-ssh-destination"
    CUT_PATH_1S = "cut-path-1s"
    CUT_PATH = "cut-path"
    CUT_CABLE = "cut-cable"
    POWER_OFF_SOURCE = "power-off-source"
    POWER_OFF_DESTINATION = "power-off-destination"
    FILL_SOURCE = "fill-source"
    FILL_DESTINATION = "fill-destination"
    SHORT_MEMORY = "short-memory"
    TAKE_LOCK = "take-lock"


class Load(StrEnum):
    """What guest is moved."""

    TINY = "tiny"
    DISK = "tiny with a disk"
    LINUX = "linux"  # with an open TCP connection to the client


@dataclass(frozen=True, slots=True)
class Ending:
    """An end, and the exit codes by which the controller may say so; none: it says nothing."""

    end: End
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One stroke of bad luck and its expected end; pure data."""

    victim: Victim
    fault: Fault
    phase: Phase
    ends: tuple[Ending, ...]
    points: tuple[str, ...] = ()  # SIDE:MOMENT:ACTION; none: struck before the move begins
    stroke: Stroke | None = None
    place: str = ""  # tells cells of one phase apart
    held: bool = False  # both copies stand still first, until the path is there and `resolve` came
    resolve: tuple[str, ...] = ()  # words for it besides the job; {source} {destination}: hosts
    left: bool = False  # something stays, and is said, until `resolve` or `cleanup`
    options: tuple[str, ...] = ()  # of `qmigrate migrate`
    hurry: str = ""  # words of the source's log at which a slow copy is let go
    load: Load = Load.TINY

    @property
    def name(self) -> str:
        """Victim, fault and phase in one line; unique in the table."""
        more = [f"({self.place})"] if self.place else []
        return ", ".join((self.victim, self.fault, " ".join((self.phase, *more))))

    @property
    def expected(self) -> str:
        """The end as a person reads it."""
        words = " or ".join(dict.fromkeys(str(ending.end) for ending in self.ends))
        return (HELD if self.held else "") + words

    @property
    def hold(self) -> tuple[str, str] | None:
        """Side and moment at which an agent stands still for a stroke."""
        for point in self.points:
            side, moment, action = split_point(point)
            if action == Action.STOP:
                return side, moment
        return None

    @property
    def only_in_a_lab(self) -> bool:
        """Whether it takes more than the job's own agents and the controller itself."""
        outside = self.stroke not in (None, Stroke.KILL_CONTROLLER) or self.hold is not None
        return outside or bool(self.hurry) or self.load is not Load.TINY


def split_point(point: str) -> tuple[str, str, str]:
    """Return side, moment and action of ``SIDE:MOMENT:ACTION``."""
    side, _, rest = point.partition(":")
    moment, _, action = rest.rpartition(":")
    return side, moment, action
