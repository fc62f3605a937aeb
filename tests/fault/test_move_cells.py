"""One stroke of bad luck during a move: what dies, when, and where the guest is to be afterwards.

The expected end of each cell was written down before the cell was run. Whatever the end, what is
asserted from outside is the same: never two running copies, memory intact, nothing left over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pytest

from tests.support.faulting import Faulty, Struck

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

SLOW = ("--bandwidth", "1MiB")  # a copy that does not end by itself before the fault is felt


class End(Enum):
    """Where the guest is to be when all is over."""

    SOURCE = "on the source"
    DESTINATION = "on the destination"
    ENDED = "guest ended, said so"
    HELD = "not known: both copies stand still, and it is said"


@dataclass(frozen=True)
class Cell:
    """A fault, its place and its expected end."""

    points: tuple[str, ...]
    end: End
    code: int
    says: tuple[str, ...] = ()  # words of the error
    options: tuple[str, ...] = ()
    act: Callable[[Struck], None] | None = None  # at the first point, if it says stop


def kill_destination(struck: Struck) -> None:
    struck.kill_qemu("beta")


def kill_source(struck: Struck) -> None:
    struck.kill_qemu("alpha")


CELLS = {
    # The destination's QEMU is killed
    "destination QEMU, prepare": Cell(
        ("destination:at prepare:stop",),
        End.SOURCE,
        4,
        ("beta", "QEMU"),
        act=kill_destination,
    ),
    "destination QEMU, copy": Cell(
        ("source:after migrate:stop",), End.SOURCE, 5, ("QEMU",), SLOW, kill_destination
    ),
    "destination QEMU, pre-switchover": Cell(
        ("source:before check:stop",), End.SOURCE, 5, ("QEMU",), act=kill_destination
    ),
    "destination QEMU, between completed and away": Cell(
        ("source:before record away:stop",), End.SOURCE, 5, ("QEMU",), act=kill_destination
    ),
    "destination QEMU, between away and GO": Cell(
        ("source:before send-go:stop",), End.SOURCE, 5, ("QEMU",), act=kill_destination
    ),
    "destination QEMU, between GO and cont": Cell(
        ("destination:after record go:stop",), End.HELD, 7, ("beta",), act=kill_destination
    ),
    # The source's QEMU is killed
    "source QEMU, copy": Cell(
        ("source:after migrate:stop",), End.ENDED, 9, ("source",), SLOW, kill_source
    ),
    "source QEMU, pre-switchover": Cell(
        ("source:before check:stop",), End.ENDED, 9, ("source",), act=kill_source
    ),
    "source QEMU, between away and GO": Cell(
        ("source:before send-go:stop",), End.DESTINATION, 0, act=kill_source
    ),
    "source QEMU, between completed and away": Cell(
        ("source:before record away:stop",), End.DESTINATION, 0, act=kill_source
    ),
    # The source's agent is killed
    "source agent, prepare": Cell(("source:at prepare:kill",), End.SOURCE, 4, ("agent",)),
    "source agent, copy": Cell(("source:after migrate:kill",), End.SOURCE, 5, ("agent",), SLOW),
    "source agent, held": Cell(("source:before check:kill",), End.SOURCE, 5, ("agent",)),
    "source agent, before migrate-continue": Cell(
        ("source:before migrate-continue:kill",), End.SOURCE, 5, ("agent",)
    ),
    "source agent, before away": Cell(("source:before record away:kill",), End.DESTINATION, 0),
    "source agent, between away and GO": Cell(
        ("source:after record away:kill",), End.DESTINATION, 0
    ),
    "source agent, after GO": Cell(("source:after send-go:kill",), End.DESTINATION, 0),
    "source agent, before proved": Cell(("source:before record proved:kill",), End.DESTINATION, 0),
    "source agent, after proved": Cell(("source:after record proved:kill",), End.DESTINATION, 0),
    "source agent, before done": Cell(("source:before record done:kill",), End.DESTINATION, 0),
    # The destination's agent is killed
    "destination agent, prepare": Cell(("destination:at prepare:kill",), End.SOURCE, 4, ("beta",)),
    "destination agent, before its QEMU is recorded": Cell(
        ("destination:at start:kill",), End.SOURCE, 4, ("beta",)
    ),
    "destination agent, loading": Cell(("destination:at loading:kill",), End.SOURCE, 4),
    "destination agent, loaded": Cell(("destination:at loaded:kill",), End.DESTINATION, 0),
    "destination agent, before GO is recorded": Cell(
        ("destination:before record go:kill",), End.DESTINATION, 0
    ),
    "destination agent, after GO is recorded": Cell(
        ("destination:after record go:kill",), End.DESTINATION, 0
    ),
    "destination agent, after cont": Cell(("destination:after run:kill",), End.DESTINATION, 0),
    "destination agent, after running": Cell(
        ("destination:after record running:kill",), End.DESTINATION, 0
    ),
}

# What an ordinary run takes; `pytest tests/fault --matrix` takes all.
DAILY = frozenset(
    {
        "destination QEMU, prepare",
        "destination QEMU, copy",
        "destination QEMU, pre-switchover",
        "destination QEMU, between away and GO",
        "source QEMU, copy",
        "source QEMU, between completed and away",
        "source agent, held",
        "source agent, before away",
        "source agent, between away and GO",
        "source agent, before proved",
        "destination agent, loaded",
        "destination agent, after GO is recorded",
        "destination agent, after cont",
    }
)


@pytest.mark.parametrize("name", CELLS)
def test_a_move_survives(faulty: Faulty, name: str) -> None:
    cell = CELLS[name]
    site = faulty.site
    site.start(faulty.tiny())
    before = site.await_life("tiny1")
    struck = faulty.begin("tiny1", *cell.options, points=cell.points)
    if cell.act is not None:
        side, moment, _ = cell.points[0].split(":")
        held = struck.hold(side, moment)
        cell.act(struck)
        held.release()
    moved = struck.finish()
    said = (moved.code, moved.result.get("error"))
    assert moved.code == cell.code, said
    for word in cell.says:
        assert word in repr(said), said
    if cell.code:
        error = moved.result["error"]
        assert error["host"], error
        assert error["phase"], error
        assert error["next_step"], error
    if cell.end is End.HELD:  # the agent that waits for an answer holds the monitor
        assert [copy.host for copy in struck.copies()] == ["alpha"]
        assert not any(ran.goes_on for ran in faulty.ran())
        faulty.assert_never_two()
        return
    faulty.await_end(struck.job)
    copies = site.copies("tiny1")
    if cell.end is End.ENDED:
        assert copies == []
    else:
        host = "alpha" if cell.end is End.SOURCE else "beta"
        assert [(copy.host, copy.state) for copy in copies] == [(host, "running")]
        assert site.memory("tiny1", before=before).problem == ""
    faulty.assert_never_two()
    assert site.leftovers("tiny1") == []
