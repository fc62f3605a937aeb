"""What one side's report says by itself."""

from dataclasses import replace

import pytest

from netsetup.adjacency import Adjacency, judge_alone
from tests.support.probe_talk import Speaker, Wire, bridge, lost, passes, port, talk, up_to

ADJACENT, NOT_ADJACENT, UNKNOWN = Adjacency

CASES: dict[str, tuple[Wire, Wire, dict[str, object], Adjacency, str]] = {
    "answered": (passes, passes, {}, ADJACENT, "1500 bytes pass both ways"),
    "neither heard nor answered": (lost, lost, {}, UNKNOWN, "far is not heard"),
    "heard and not answered": (lost, passes, {}, NOT_ADJACENT, "no frame passes from near to far"),
    "heard and not answered, but stopped early": (
        lost,
        passes,
        {"complete": False},
        UNKNOWN,
        "near stopped early",
    ),
    "heard and not answered, behind a port that listens": (
        lost,
        passes,
        {"facts": bridge(port(state="listening"), stp=True)},
        UNKNOWN,
        "later",
    ),
    "answers and asks are lost on their way here": (passes, lost, {}, UNKNOWN, "far is not heard"),
    "narrow": (up_to(1400), passes, {}, NOT_ADJACENT, "from near to far frames pass up to 1400"),
    # What the far side asked for is in its report only.
    "narrow on the way here": (passes, up_to(1400), {}, UNKNOWN, "not measured to the end"),
    "cannot send": (
        passes,
        passes,
        {"refuses": "Network is down"},
        UNKNOWN,
        "near could not send on br0: Network is down",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_proves_both_ways_and_being_heard_unanswered_that_one_is_dead(name: str) -> None:
    forth, back, facts, adjacency, words = CASES[name]
    near, far = Speaker(1, **facts), Speaker(2)  # type: ignore[arg-type]
    talk(near, far, forth, back)
    verdict = judge_alone("near", near.report(), "far", mtu_bytes=1500)
    assert verdict.adjacency is adjacency, verdict.why
    assert words in verdict.why


def test_the_tunnel_it_heard_the_far_side_through_is_named() -> None:
    facts = bridge(port(), port("vx0", kind="vxlan", alias="qmigrate:tunnel=1"))
    near, far = Speaker(1, facts=facts, way_in="vx0"), Speaker(2)
    talk(near, far)
    verdict = judge_alone("near", near.report(), "far", mtu_bytes=1500)
    assert verdict.through_tunnel == "qmigrate:tunnel=1"


def test_own_frames_that_came_back_are_not_the_far_side() -> None:
    near = Speaker(1)
    frame = near.ask(46, 0.0)
    assert frame is not None
    near.get(frame, 0.1)
    verdict = judge_alone("near", replace(near.report()), "far", mtu_bytes=1500)
    assert verdict.adjacency is UNKNOWN
    assert not verdict.joined
