"""The path between the hosts is cut for good; the controller reaches both, and stands between."""

import pytest

from tests.support.faulting import Faulty
from tests.support.takeover import apart, asked, assert_ended_on, start

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

SLOW = ("--bandwidth", "1MiB")  # a copy that does not end by itself before the cut is felt


CARRIED = "a controller carries what is said"


@pytest.mark.parametrize(
    ("side", "moment"), [("source", "before send-go"), ("destination", "before answer-running")]
)
def test_go_and_running_pass_through_the_controller(faulty: Faulty, side: str, moment: str) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=[f"{side}:{moment}:stop"])
    held = struck.hold(side, moment)
    with apart(faulty):
        held.release()
        moved = struck.finish()
        assert (moved.code, moved.result["outcome"]) == (0, "migrated"), moved
        assert CARRIED in faulty.logs()
        assert_ended_on(faulty, struck, "beta")


@pytest.mark.long
def test_a_refusal_passes_through_the_controller(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", *SLOW, points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    with apart(faulty):
        held.release()
        moved = struck.finish()
        assert (moved.code, moved.result["outcome"]) == (5, "rolled-back"), moved
        assert CARRIED in faulty.logs()
        assert_ended_on(faulty, struck, "alpha")
        assert "not heard of" not in moved.stdout  # it has said farewell, through the controller


@pytest.mark.long
def test_another_controller_may_carry_when_the_first_has_gone(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    held = struck.hold("source", "before send-go")
    struck.kill_controller()
    with apart(faulty):
        held.release()
        assert asked(faulty, "carry", struck.job, "alpha", "beta") == {"ended": "over"}
        assert_ended_on(faulty, struck, "beta")
