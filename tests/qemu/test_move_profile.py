"""A move tells where its time went, on both hosts, whoever speaks SSH for the controller."""

import pytest

from qmigrate.core.profile import HERE
from tests.support.moving import Site

pytestmark = [pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
LOGIN = {"ssh configuration", "login", "python", "agent", "job's agent starts"}
SOURCE = {"inspect the guest", "link", "set up", "copy", "checks", "switchover", "journal, GO"}
SOURCE |= {"wait for RUNNING", "QEMU's end", "report"}
DESTINATION = {"QEMU starts", "set up", "arm the network", "load", "wait for GO", "cont"}
DESTINATION |= {"decide, journal", "prove, journal", "wait for the end"}


@pytest.mark.parametrize("client", ["paramiko", "openssh"])
def test_a_move_tells_where_its_time_went_on_both_hosts(site: Site, client: str) -> None:
    site.start(site.tiny(nics=0))
    site.await_life(NAME)
    moved = site.migrate(NAME, "beta", "--profile", "--ssh", client)
    assert moved.code == 0, (moved.error, moved.stderr[-500:])
    profile = moved.result["profile"]
    steps = {host: {} for host in (HERE, "alpha", "beta")}
    for span in profile["spans"]:
        steps[span["host"]].setdefault(span["step"], span)
        assert 0 <= span["start_s"] <= profile["wall_s"] + 0.01
        assert 0 <= span["alone_s"] <= span["duration_s"] + 1e-6
    assert steps[HERE].keys() >= {"python, imports", "keys", "preflight", "hang up"}
    assert steps["alpha"].keys() >= LOGIN | SOURCE
    assert steps["beta"].keys() >= LOGIN | DESTINATION
    # What QEMU says of itself is found again in the picture.
    copied_s = steps["alpha"]["copy"]["duration_s"] + steps["alpha"]["switchover"]["duration_s"]
    assert copied_s < profile["wall_s"]
    runs_there, stands_still, runs_here = profile["guest"]
    assert (runs_there["host"], runs_here["host"]) == ("alpha", "beta")
    assert stands_still["duration_s"] * 1e3 == pytest.approx(moved.result["blackout_ms"], abs=0.01)
    assert site.leftovers(NAME) == []


def test_a_move_that_was_refused_shows_the_steps_that_it_came_to(site: Site) -> None:
    moved = site.migrate("nobody", "beta", "--profile")
    assert moved.code == 2
    spans = moved.result["profile"]["spans"]
    assert {span["host"] for span in spans} == {HERE, "alpha", "beta"}
    assert not [span for span in spans if span["step"] == "copy"]
    assert moved.result["profile"]["guest"] == []


def test_a_move_that_nobody_asked_a_profile_of_has_none(site: Site) -> None:
    assert site.migrate("nobody", "beta").result["profile"] is None
