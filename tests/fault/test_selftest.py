"""Every cell of the fault table; an ordinary run takes a dozen, ``pytest --matrix`` all of them."""

import json

import pytest

from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest.cells import Cell, Fault
from qmigrate.lab.selftest.lab_ground import LabGround
from qmigrate.lab.selftest.runner import run_cell
from qmigrate.lab.selftest.table import CELLS
from qmigrate.lab.selftest.table import DAILY as DAILY
from qmigrate.lab.selftest.walk import walk
from tests.support.faulting import Faulty

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

HOSTS_CELL = "source agent, SIGKILL, between completed and GO (after record away)"
SEED = 4  # of three moves at least one is struck


@pytest.fixture(scope="session")
def ground(moving_lab: Lab) -> LabGround:
    """Have the session's lab as a ground."""
    return LabGround(moving_lab)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_move_ends_as_the_table_says(ground: LabGround, cell: Cell) -> None:
    outcome = run_cell(ground, cell)
    print(outcome.logs)  # shown by pytest if the test has failed
    assert outcome.why == ()


def test_two_hosts_are_tried_by_their_agents_alone(faulty: Faulty) -> None:
    words = ("selftest", "alpha", "beta", "--cells", HOSTS_CELL, "--json")
    told = faulty.site.run(*words)
    (cell,) = told.result["cells"]
    assert (told.code, cell["ok"], cell["why"]) == (0, True, None), told.stderr
    assert sorted(cell) == ["expected", "fault", "name", "ok", "phase", "victim", "why"]
    assert faulty.site.leftovers("nobody") == []


def test_a_walk_there_and_back_loses_and_doubles_nothing(ground: LabGround) -> None:
    said: list[str] = []
    quick = [cell for cell in CELLS if cell.fault is Fault.KILL]
    walked = walk(ground, quick, 3, SEED, said.append)
    assert walked.ok, said
    assert (walked.moves, walked.lost, walked.doubled, walked.leftovers) == (3, 0, 0, 0)
    assert walked.faults == len(said) > 0


def test_what_can_be_struck_is_listed_without_a_lab(faulty: Faulty) -> None:
    told = faulty.site.run("selftest", "--list", "--json")
    assert json.loads(told.stdout)["schema"] == "qmigrate.selftest/1"
    assert len(told.result["cells"]) == len(CELLS)
