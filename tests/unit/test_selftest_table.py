"""The fault table as data: complete, unambiguous, and written in words that agents understand."""

from collections import Counter

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.core.faults import Action, parse_fault
from qmigrate.lab.selftest.cells import Cell, End, Fault, Load, Phase, Stroke, Victim
from qmigrate.lab.selftest.runner import choose
from qmigrate.lab.selftest.table import CELLS
from qmigrate.lab.selftest.table import DAILY as DOZEN  # fault/conftest looks for DAILY
from qmigrate.lab.selftest.walk import ONE_OF, PLAIN, can_walk, draw

LEAST = 80
STRUCK = frozenset(Victim) - {Victim.NOBODY}


def test_no_two_cells_have_one_name() -> None:
    assert [name for name, n in Counter(cell.name for cell in CELLS).items() if n > 1] == []
    assert len(CELLS) >= LEAST


def test_everything_that_can_be_struck_is() -> None:
    assert {cell.victim for cell in CELLS} == STRUCK
    assert {cell.stroke for cell in CELLS} - {None} == frozenset(Stroke)
    assert {cell.load for cell in CELLS} == frozenset(Load)


@pytest.mark.parametrize(
    ("victim", "fault"),
    [
        (victim, fault)
        for victim in (
            Victim.SOURCE_QEMU,
            Victim.DESTINATION_QEMU,
            Victim.SOURCE_AGENT,
            Victim.DESTINATION_AGENT,
        )
        for fault in (Fault.KILL, Fault.FREEZE)
    ]
    + [
        (Victim.SOURCE_GUARDIAN, Fault.KILL),
        (Victim.DESTINATION_GUARDIAN, Fault.KILL),
        (Victim.CONTROLLER, Fault.KILL),
        (Victim.LINK, Fault.CUT_1S),
        (Victim.PATH, Fault.CUT_1S),
        (Victim.PATH, Fault.CUT),
        (Victim.SOURCE_HOST, Fault.CUT),
        (Victim.DESTINATION_HOST, Fault.CUT),
    ],
)
def test_it_is_struck_in_every_phase(victim: Victim, fault: Fault) -> None:
    phases = {cell.phase for cell in CELLS if (cell.victim, cell.fault) == (victim, fault)}
    assert phases == frozenset(Phase)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cell_says_where_it_strikes_and_how_it_is_to_end(cell: Cell) -> None:
    for point in cell.points:
        parse_fault(point)
    assert cell.ends
    assert cell.points or cell.stroke, "nothing strikes"
    if cell.stroke not in (None, Stroke.KILL_CONTROLLER):
        assert cell.only_in_a_lab
        assert cell.hold or not cell.points
    if any(point.endswith(f":{Action.STOP}") for point in cell.points):
        assert cell.stroke, "an agent stands still and nobody lets it go on"


def test_an_end_is_open_only_where_qemu_itself_is_struck() -> None:
    open_ends = {cell.victim for cell in CELLS if len({e.end for e in cell.ends}) > 1}
    assert open_ends <= {Victim.SOURCE_QEMU, Victim.DESTINATION_QEMU}


def test_the_daily_dozen_is_in_the_table() -> None:
    assert frozenset(cell.name for cell in CELLS) >= DOZEN
    assert len(DOZEN) == 12


def test_cells_are_chosen_by_a_part_of_their_name_or_a_pattern() -> None:
    assert all("copy" in cell.name for cell in choose(CELLS, "copy"))
    assert {cell.victim for cell in choose(CELLS, "controller*")} == {Victim.CONTROLLER}
    assert choose(CELLS, None) == CELLS
    with pytest.raises(UsageError, match="no cell"):
        choose(CELLS, "nothing of the kind")


def test_a_walk_can_be_walked_again_and_is_struck_in_one_move_of_three() -> None:
    walked = draw(CELLS, 3000, 7)
    assert walked == draw(CELLS, 3000, 7)
    assert walked != draw(CELLS, 3000, 8)
    struck = [cell for cell in walked if cell is not PLAIN]
    assert 0.9 < len(struck) * ONE_OF / len(walked) < 1.1
    assert all(map(can_walk, struck))
    assert {cell.victim for cell in struck} > {Victim.SOURCE_AGENT, Victim.DESTINATION_QEMU}


def test_a_walk_takes_no_cell_that_costs_the_guest_its_life_or_leaves_something() -> None:
    for cell in filter(can_walk, CELLS):
        assert End.ENDED not in {ending.end for ending in cell.ends}
        assert not cell.held
        assert not cell.left
        assert not cell.only_in_a_lab
