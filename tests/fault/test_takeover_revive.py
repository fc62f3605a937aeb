"""Agents, guardians and both of them dead: who goes on, and what is left when it is over."""

import os
import signal

import pytest

from tests.support.faulting import Faulty, agents, one
from tests.support.takeover import apart, asked, assert_ended_on, kill_both, kill_guardian, start

SLOW = ("--bandwidth", "1MiB")  # a copy that does not end by itself meanwhile

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]


@pytest.mark.long
@pytest.mark.parametrize("host", ["alpha", "beta"])
def test_an_agent_without_its_guardian_leaves_nothing_behind(faulty: Faulty, host: str) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    kill_guardian(faulty, struck, host)
    held.release()
    assert struck.finish().code == 0
    assert_ended_on(faulty, struck, "beta")


@pytest.mark.parametrize(
    ("dead", "side", "moment", "ends"),
    [
        ("alpha", "source", "before send-go", "beta"),
        ("alpha", "source", "before check", "alpha"),
        ("beta", "destination", "before record go", "beta"),
        ("beta", "destination", "after record go", "beta"),
    ],
)
def test_a_side_whose_processes_have_all_died_is_revived_with_new_keys(
    faulty: Faulty, dead: str, side: str, moment: str, ends: str
) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=[f"{side}:{moment}:stop"])
    struck.hold(side, moment)
    struck.kill_controller()
    kill_both(faulty, struck, dead)
    living = "beta" if dead == "alpha" else "alpha"
    answer = asked(faulty, "revive", struck.job, dead, living)
    assert answer == {"ended": "revived"}, answer
    assert_ended_on(faulty, struck, ends)


def test_a_revived_side_is_carried_for_when_the_hosts_have_lost_each_other(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    struck.hold("source", "before send-go")
    struck.kill_controller()
    kill_both(faulty, struck, "alpha")
    with apart(faulty):
        answer = asked(faulty, "revive-carried", struck.job, "alpha", "beta")
        assert answer == {"ended": "over"}, answer
        assert_ended_on(faulty, struck, "beta")


@pytest.mark.long
def test_a_holder_that_answers_is_left_alone(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", *SLOW, points=["source:after migrate:hang"])
    struck.heard("alpha", "fault point after migrate")
    before = struck.agent("alpha")
    answer = asked(faulty, "revive", struck.job, "alpha", "beta")
    assert "answers" in answer["problem"]["what"], answer
    assert struck.job in answer["problem"]["next_step"]
    assert struck.agent("alpha") == before
    struck.kill_agent("alpha")  # it hangs on purpose
    assert struck.finish().code == 5
    assert_ended_on(faulty, struck, "alpha")


def test_a_holder_that_stands_still_is_killed_before_its_lock_is_taken(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    held = struck.hold("source", "before send-go")
    os.kill(one(agents(faulty.site, "alpha", "guardian", struck.job)), signal.SIGSTOP)
    struck.kill_controller()
    stopped = os.pidfd_open(held.pid)
    try:
        answer = asked(faulty, "revive", struck.job, "alpha", "beta")
        assert answer == {"ended": "revived"}, answer
        signal.pidfd_send_signal(stopped, 0)
    except ProcessLookupError:
        pass
    else:
        pytest.fail("the holder that stood still is alive")
    finally:
        os.close(stopped)
    assert_ended_on(faulty, struck, "beta")


@pytest.mark.long
def test_an_agent_that_died_with_its_guardian_is_revived_by_its_keys_own_successor(
    faulty: Faulty,
) -> None:
    """After new keys were given the living side's own guardian starts its agents with them."""
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    struck.hold("source", "before send-go")
    struck.kill_controller()
    kill_both(faulty, struck, "alpha")
    with apart(faulty):  # or all would be over before anything else could happen
        assert asked(faulty, "revive", struck.job, "alpha", "beta") == {"ended": "revived"}
        struck.kill_agent("beta")
    assert_ended_on(faulty, struck, "beta")


def test_a_job_that_is_not_there_is_not_revived(faulty: Faulty) -> None:
    answer = asked(faulty, "revive", "tiny1-123456", "alpha", "beta")
    assert answer["problem"]["code"] == "no-such-job"
