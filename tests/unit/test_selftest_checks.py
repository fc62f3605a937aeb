"""The judge of the fault suite, tried with lies: each thing that can be wrong is found."""

import math
from dataclasses import replace
from typing import Any

import pytest

from qmigrate.lab.selftest.cells import Cell, End, Ending, Fault, Phase, Victim
from qmigrate.lab.selftest.checks import Evidence, Said, judge
from qmigrate.lab.selftest.traces import Ran, overlap, stretches

MOVED = Cell(Victim.SOURCE_AGENT, Fault.KILL, Phase.GO, (Ending(End.DESTINATION, (0,)),))
BACK = replace(MOVED, ends=(Ending(End.SOURCE, (5,)),))
ENDED = replace(MOVED, ends=(Ending(End.ENDED, (9,)),))
LEFT_ALONE = replace(MOVED, ends=(Ending(End.DESTINATION, ()),))
WELL = Evidence(
    source="alpha",
    destination="beta",
    unstruck=(),
    migrate=Said(0),
    watch=None,
    resolve=None,
    moved_while_held="",
    where=(("beta", "running"),),
    overlap="",
    memory="",
    tcp="",
    left=(),
)
ERROR = Said(5, "beta", "copy", "try again", "it broke")


def test_what_is_well_is_not_complained_about() -> None:
    assert judge(MOVED, WELL) == ()
    assert judge(BACK, replace(WELL, migrate=ERROR, where=(("alpha", "running"),))) == ()
    assert judge(ENDED, replace(WELL, migrate=replace(ERROR, code=9), where=())) == ()
    assert judge(LEFT_ALONE, replace(WELL, migrate=None, watch=Said(0))) == ()


@pytest.mark.parametrize(
    ("cell", "lie", "word"),
    [
        (MOVED, {"overlap": "two copies ran"}, "two copies"),
        (MOVED, {"unstruck": ("source:after send-go:kill",)}, "did not strike"),
        (MOVED, {"moved_while_held": "run-7.trace on beta"}, "to be held"),
        (MOVED, {"where": ()}, "no copy anywhere"),
        (MOVED, {"where": (("alpha", "running"),)}, "found alpha running"),
        (MOVED, {"where": (("beta", "paused"),)}, "found beta paused"),
        (MOVED, {"where": (("alpha", "postmigrate"), ("beta", "running"))}, "alpha postmigrate"),
        (MOVED, {"migrate": replace(ERROR, code=7)}, "ended with 7, not 0"),
        (MOVED, {"memory": "page 3 holds 4"}, "page 3"),
        (MOVED, {"tcp": "the connection broke"}, "TCP"),
        (MOVED, {"left": ("alpha: files: /run/qmigrate/jobs/x",)}, "jobs/x"),
        (ENDED, {"migrate": replace(ERROR, code=9)}, "found beta running"),
        (LEFT_ALONE, {"migrate": None, "watch": Said(7)}, "watch ended with 7"),
        (MOVED, {"resolve": Said(7)}, "resolve ended with 7"),
        (
            BACK,
            {"migrate": replace(ERROR, next_step=None), "where": (("alpha", "running"),)},
            "no next step",
        ),
        (
            BACK,
            {"migrate": replace(ERROR, host=None), "where": (("alpha", "running"),)},
            "no host",
        ),
    ],
)
def test_each_thing_that_can_be_wrong_is_found(cell: Cell, lie: dict[str, Any], word: str) -> None:
    complaints = judge(cell, replace(WELL, **lie))
    assert any(word in complaint for complaint in complaints), complaints


TRACE = """\
11@100.5:vm_state_notify running 1 reason 9 (running)
11@100.5:something_else running 1
11@101.5:vm_state_notify running 0 reason 3 (finish-migrate)
11@103.0:vm_state_notify running 1 reason 9 (running)
"""


def test_a_trace_says_when_a_qemu_ran_and_when_it_died() -> None:
    alive = list(stretches(TRACE, "run-11.trace", math.inf))
    assert [(ran.from_s, ran.to_s) for ran in alive] == [(100.5, 101.5), (103.0, math.inf)]
    assert alive[1].goes_on
    dead = list(stretches(TRACE, "run-11.trace", 104.0))
    assert dead[1].to_s == 104.0


def test_two_that_ran_at_one_instant_are_found_whatever_their_order() -> None:
    one, two = Ran("a", 1.0, 3.0), Ran("b", 2.999, 4.0)
    assert "two copies ran" in overlap([two, one])
    assert overlap([one, replace(two, from_s=3.0)]) == ""
    assert "two copies ran" in overlap([Ran("a", 1.0, math.inf), Ran("b", 5.0, 6.0)])
    assert "two copies ran" in overlap([Ran("a", 1.0, 9.0), Ran("b", 2.0, 3.0), Ran("c", 4.0, 5.0)])


def test_clocks_that_may_be_apart_make_no_overlap_of_a_touch() -> None:
    touch = [Ran("a", 1.0, 3.001), Ran("b", 3.0, 4.0)]
    assert "two copies ran" in overlap(touch)
    assert overlap(touch, error_s=0.01) == ""


def test_no_trace_at_all_proves_nothing() -> None:
    assert "proves nothing" in overlap([])
