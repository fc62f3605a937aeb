"""What is asked about a guest to be thrown away, for ``qmigrate selftest HOST HOST``, and answered.

What the agent does about it is in `agent.throwaway`.
"""

from dataclasses import dataclass

from qmigrate.core.tiny import Marks


@dataclass(frozen=True, slots=True)
class PlaceTiny:
    """Make the directory and image of the guest."""

    name: str


@dataclass(frozen=True, slots=True)
class StartTiny:
    """Start that guest here."""

    name: str
    uuid: str
    accelerator: str  # "kvm" or "tcg"


@dataclass(frozen=True, slots=True)
class LookTiny:
    """Ask what there is of that guest here."""

    name: str
    ask: bool = True  # its monitor too; a job's agent may hold it


@dataclass(frozen=True, slots=True)
class TinyCopy:
    """A QEMU of that guest, and its run state; None: not asked."""

    pid: int
    state: str | None


@dataclass(frozen=True, slots=True)
class TinyTrace:
    """What one QEMU of it has written of its runs; `lives`: it is still there."""

    name: str
    text: str
    lives: bool


@dataclass(frozen=True, slots=True)
class TinySeen:
    """Answer to `LookTiny`; `now_s` is this host's wall clock, which stamps the traces."""

    now_s: float
    copies: tuple[TinyCopy, ...]
    traces: tuple[TinyTrace, ...]
    marks: Marks


@dataclass(frozen=True, slots=True)
class EndTiny:
    """End every copy of that guest here."""

    name: str
    forget: bool = False  # and remove its directory


@dataclass(frozen=True, slots=True)
class LookAround:
    """Ask what of ours is on the host."""


@dataclass(frozen=True, slots=True)
class Around:
    """Answer to `LookAround`: agents of jobs, files, taps, a line each."""

    things: tuple[str, ...]
