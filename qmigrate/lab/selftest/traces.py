"""When a guest's copies ran: not sampled, but written down by every QEMU itself.

QEMU's own trace of ``vm_state_notify`` has a line for each start and stop of its CPUs, with the
host's wall clock. So "never two" is said of every instant, not of those that somebody looked at.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINE = re.compile(r"^\d+@(?P<at>\d+\.\d+):vm_state_notify running (?P<running>[01]) ")


@dataclass(frozen=True, slots=True)
class Ran:
    """A stretch of time in which the CPUs of one QEMU ran."""

    trace: str
    from_s: float
    to_s: float
    host: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether it runs now."""
        return self.to_s == math.inf


def options(directory: str) -> tuple[str, ...]:
    """Return QEMU's words for a trace of its runs in `directory`; %d is its pid."""
    return ("-trace", "vm_state_notify", "-msg", "timestamp=on", "-D", f"{directory}/run-%d.trace")


def stretches(text: str, name: str, death_s: float, host: str = "") -> Iterator[Ran]:
    """Yield when a QEMU ran; one that was not seen to stop ran until its death, or runs on."""
    began_s: float | None = None
    for line in text.splitlines():
        if not (seen := LINE.match(line)):
            continue
        at_s = float(seen["at"])
        if seen["running"] == "1":
            began_s = at_s if began_s is None else began_s
        elif began_s is not None:
            yield Ran(name, began_s, at_s, host)
            began_s = None
    if began_s is not None:
        yield Ran(name, began_s, max(began_s, death_s), host)


def overlap(ran: Iterable[Ran], *, error_s: float = 0.0) -> str:
    """Say which two copies ran at one instant; empty if none did.

    `error_s`: how far the clocks may be apart; what overlaps by less is not called an overlap.
    """
    ordered = sorted(ran, key=lambda one: one.from_s)
    if not ordered:
        return "no QEMU has traced anything: this proves nothing"
    for before, after in itertools.pairwise(ordered):
        if before.to_s > after.from_s + error_s:
            return f"two copies ran: {before} and {after}"
    return ""
