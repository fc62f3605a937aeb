"""Situations made by hand on real QEMU, and what ``qmigrate resolve`` shows and does about each."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from qmigrate.lab.guests import guest_mac
from qmigrate.lab.selftest.site import Site
from tests.support.faulting import Faulty, Struck
from tests.support.moving import LINUX_IP4, Copy, Moved, Qmp
from tests.support.takeover import assert_ended_on, kill_both, start

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
DAILY = frozenset(("before send-go-beta", "True"))  # of the tables, what an ordinary run takes
BEFORE_AWAY = "source:before record away:stop"
AFTER_AWAY = "source:before send-go:stop"


def resolve(faulty: Faulty, *options: str) -> Moved:
    """Run ``qmigrate resolve`` on the client; print what it said."""
    told = Site.run(faulty.site, "resolve", NAME, "--json", *options)  # a host may have no power
    assert told.result.get("schema") in ("qmigrate.resolve/1", "qmigrate.error/1"), told
    shown = {k: v for k, v in told.result.items() if k != "hosts"}
    print(json.dumps({"options": options, "code": told.code, **shown}, indent=1))
    return told


def acts(told: Moved) -> list[str]:
    return [acted["act"] for acted in told.result["acted"]]


def words(told: Moved) -> str:
    """Return all that was found, before anything was done, and afterwards."""
    found = told.result["found"]
    now = told.result
    return " | ".join((*found["seen"], *found["means"], *now["seen"], *now["means"]))


def host(told: Moved, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(h for h in told.result["hosts"] if h["host"] == name)
    return found


def start_with_disk(faulty: Faulty) -> Path:
    site = faulty.site
    disk = site.shared("tiny1.img", 4)
    site.start(replace(faulty.tiny(), disk=disk))
    faulty.before = site.await_life(NAME)
    return disk


def lose_journal(faulty: Faulty, name: str, job: str) -> None:
    shutil.rmtree(faulty.site.path(name, f"/run/qmigrate/jobs/{job}"))


def strike(faulty: Faulty, moment: str, side: str = "source") -> Struck:
    """Begin a move and let it stand still at a moment, with its controller dead."""
    struck = faulty.begin(NAME, points=[f"{side}:{moment}:stop"])
    struck.hold(side, moment)
    struck.kill_controller()
    return struck


def assert_resolved(faulty: Faulty, struck: Struck, on: str, told: Moved) -> None:
    assert (told.code, told.result["ends"], told.result["host"]) == (0, "runs", on), told.result
    assert_ended_on(faulty, struck, on)
    again = resolve(faulty)
    assert (again.code, again.result["acted"]) == (0, [])


@pytest.mark.parametrize(("moment", "on"), [("before send-go", "beta"), ("before check", "alpha")])
def test_agents_and_guardians_of_both_sides_killed(faulty: Faulty, moment: str, on: str) -> None:
    start(faulty)
    struck = strike(faulty, moment)
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
    looked = resolve(faulty, "--dry-run")
    assert (looked.code, acts(looked)) == (7, [])
    assert [what for what in looked.result["would"] if "start the agent" in what]
    assert_resolved(faulty, struck, on, resolve(faulty))


@pytest.mark.long
def test_no_job_anywhere_and_both_copies_stand_still(faulty: Faulty) -> None:
    start_with_disk(faulty)
    struck = strike(faulty, "before send-go")
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
        lose_journal(faulty, side, struck.job)
    told = resolve(faulty)
    assert (told.code, acts(told)) == (7, [])
    assert "no copy runs" in words(told)
    assert "none but the first has written anything" in words(told)
    assert told.result["next_step"] == f"qmigrate resolve {NAME} --resume-source-anyway"
    assert len(struck.copies()) == 2
    assert_resolved(faulty, struck, "alpha", resolve(faulty, "--resume-source-anyway"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("lost", "side", "moment", "on"),
    [
        ("beta", "source", "before send-go", "alpha"),  # the twin was seen never to have written
        ("beta", "destination", "before answer-running", "beta"),
        ("alpha", "destination", "before answer-running", "beta"),
    ],
)
def test_a_journal_is_lost_on_one_side(
    faulty: Faulty, lost: str, side: str, moment: str, on: str
) -> None:
    start_with_disk(faulty)
    struck = strike(faulty, moment, side)
    kill_both(faulty, struck, lost)
    lose_journal(faulty, lost, struck.job)
    if lost == "alpha":
        kill_both(faulty, struck, "beta")
    assert_resolved(faulty, struck, on, resolve(faulty))


@pytest.mark.long
def test_the_sources_journal_is_lost_and_nobody_knows_whether_it_ran(faulty: Faulty) -> None:
    start(faulty)
    struck = strike(faulty, "before send-go")
    kill_both(faulty, struck, "alpha")
    lose_journal(faulty, "alpha", struck.job)
    told = resolve(faulty)
    assert (told.code, acts(told), len(struck.copies())) == (7, [], 2)
    assert "--resume-source-anyway" in told.result["next_step"]
    assert_resolved(faulty, struck, "alpha", resolve(faulty, "--resume-source-anyway"))


@pytest.mark.long
@pytest.mark.parametrize("disk", [False, True])
def test_the_source_was_rebooted(faulty: Faulty, disk: bool) -> None:
    if disk:
        start_with_disk(faulty)
    else:
        start(faulty)
    struck = strike(faulty, "before record away")
    faulty.power_off("alpha")
    struck.heard("beta", "for as long as it takes")
    told = resolve(faulty)
    assert (told.code, acts(told)) == (7, [])
    assert "alpha cannot be asked" in words(told)
    assert told.result["next_step"] == f"qmigrate resolve {NAME} --host-is-dead alpha"
    faulty.power_on("alpha")
    told = resolve(faulty)
    assert "alpha was rebooted after the move had begun" in words(told)
    if disk:
        assert (told.code, acts(told)) == (7, [])
        told = resolve(faulty, "--host-is-dead", "alpha")
    assert_resolved(faulty, struck, "beta", told)


@pytest.mark.long
def test_the_source_is_dead_and_it_runs_on_the_destination(faulty: Faulty) -> None:
    start(faulty)
    struck = strike(faulty, "before record proved")
    faulty.power_off("alpha")
    told = resolve(faulty)
    assert (told.code, told.result["host"], acts(told)) == (8, "beta", [])
    assert told.result["next_step"] == f"qmigrate resolve {NAME} --host-is-dead alpha"
    told = resolve(faulty, "--host-is-dead", "alpha")
    assert (told.code, told.result["host"]) == (0, "beta")
    faulty.power_on("alpha")
    assert_resolved(faulty, struck, "beta", resolve(faulty))


@pytest.mark.parametrize("disk", [False, True])
def test_the_destination_was_rebooted_after_go(faulty: Faulty, disk: bool) -> None:
    if disk:
        start_with_disk(faulty)
    else:
        start(faulty)
    struck = strike(faulty, "before answer-running", "destination")
    faulty.power_off("beta")
    faulty.power_on("beta")
    told = resolve(faulty)
    if disk:
        assert (told.code, acts(told)) == (7, [])
        assert "beta was rebooted" in words(told)
        assert told.result["next_step"] == f"qmigrate resolve {NAME} --resume-source-anyway"
        told = resolve(faulty, "--resume-source-anyway")
    assert_resolved(faulty, struck, "alpha", told)


@pytest.mark.long
@pytest.mark.parametrize("disk", [False, True])
def test_the_destination_is_unreachable(faulty: Faulty, disk: bool) -> None:
    if disk:
        start_with_disk(faulty)
    else:
        start(faulty)
    struck = strike(faulty, "before answer-running", "destination")
    faulty.power_off("beta")
    told = resolve(faulty)
    assert (told.code, acts(told)) == (7, [])
    assert "--host-is-dead beta" in told.result["next_step"]
    assert [copy.host for copy in struck.copies()] == ["alpha"]
    lies = resolve(faulty, "--host-is-dead", "alpha")
    assert (lies.code, "alpha is not dead" in lies.error) == (2, True)
    told = resolve(faulty, "--host-is-dead", "beta")
    if disk:
        assert (told.code, acts(told)) == (7, [])
        told = resolve(faulty, "--host-is-dead", "beta", "--resume-source-anyway")
    assert (told.code, told.result["host"]) == (0, "alpha")
    faulty.power_on("beta")
    assert_resolved(faulty, struck, "alpha", resolve(faulty))


def let_run(faulty: Faulty, copy: Copy) -> None:
    """Type `cont` at a copy's second monitor, wherever its move has put that."""
    words = [word for word in copy.argv if word.startswith("socket,id=side,")]
    path = words[0].partition("path=")[2].partition(",")[0]
    qmp = Qmp(faulty.site.path(copy.host, path))
    try:
        qmp.execute("cont")
    finally:
        qmp.close()


def start_with_side_door(faulty: Faulty) -> None:
    faulty.site.start(faulty.site.slow(NAME, *faulty.tiny().more, seconds=0))
    faulty.before = faulty.site.await_life(NAME)


def test_somebody_typed_cont_and_it_runs_twice(faulty: Faulty) -> None:
    start_with_side_door(faulty)
    struck = strike(faulty, "before answer-running", "destination")
    let_run(faulty, struck.qemu("alpha"))
    told = resolve(faulty, "--resume-source-anyway")
    assert told.code == 7
    assert [act for act in acts(told) if "start the agent" not in act] == []
    assert "RUNS TWICE: on alpha (process" in words(told)
    assert "kill" in told.result["next_step"]
    assert len(struck.copies()) == 2
    struck.kill_qemu("alpha")  # which of them, only a person can know
    told = resolve(faulty)
    assert (told.code, told.result["host"]) == (0, "beta"), told.result
    faulty.await_end(struck.job)
    assert [(copy.host, copy.state) for copy in faulty.site.copies(NAME)] == [("beta", "running")]
    assert faulty.site.leftovers(NAME) == []


@pytest.mark.long
def test_somebody_typed_cont_at_a_destination_that_nobody_had_told(faulty: Faulty) -> None:
    start_with_side_door(faulty)
    struck = strike(faulty, "before send-go")
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
    let_run(faulty, struck.qemu("beta"))
    assert_resolved(faulty, struck, "beta", resolve(faulty))


def test_an_image_is_locked_by_a_third(faulty: Faulty) -> None:
    disk = start_with_disk(faulty)
    struck = faulty.begin(NAME, points=[BEFORE_AWAY])
    held = struck.hold("source", "before record away")
    struck.kill_qemu("beta")
    struck.kill_controller()
    third = faulty.site.lab.popen("beta", ["python3", "-c", LOCK, str(disk)], stdout=PIPE)
    faulty.site.own(third)
    assert third.stdout is not None
    assert third.stdout.readline() == b"locked\n"
    held.release()
    struck.heard("alpha", "stuck:")
    told = resolve(faulty)
    assert (told.code, acts(told)) == (7, [])
    assert "(python3) has locked" in words(told)
    third.kill()
    third.wait()
    assert_resolved(faulty, struck, "alpha", resolve(faulty))


@pytest.mark.long
def test_two_jobs_have_left_things(faulty: Faulty) -> None:
    start_with_disk(faulty)
    old = strike(faulty, "at prepare")
    for side in ("alpha", "beta"):
        kill_both(faulty, old, side)
    old.kill_qemu("beta")  # somebody tidied up, and tries again
    struck = strike(faulty, "before send-go")
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
    assert {job["job"] for job in host(resolve(faulty, "--dry-run"), "alpha")["jobs"]} == {
        old.job,
        struck.job,
    }
    told = resolve(faulty)
    assert f"forget job {old.job} on alpha" in acts(told)
    assert f"forget job {old.job} on beta" in acts(told)
    assert_resolved(faulty, struck, "beta", told)


@pytest.mark.long
def test_two_people_resolve_at_once(faulty: Faulty) -> None:
    start(faulty)
    struck = strike(faulty, "before send-go")
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
    both = [faulty.site.begin("resolve", NAME, "--json") for _ in range(2)]
    ended = [one.finish() for one in both]
    for told in ended:
        print(told.stdout, told.stderr)
        assert (told.code, told.result["host"]) == (0, "beta")
    assert_ended_on(faulty, struck, "beta")


def test_who_answers_for_the_guests_address_is_shown(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.linux())
    site.await_boot()
    assert site.migrate("web1", "beta", "--from", "alpha").code == 0
    site.lab.run("beta", ["python3", "-c", ASK, LINUX_IP4])  # and beta knows its address
    told = Site.run(site, "resolve", "web1", "--json")
    assert (told.code, told.result["host"], acts(told)) == (0, "beta", [])
    seen = words(told)
    answers = f"{LINUX_IP4}: {guest_mac('web1')} answers on br0 of"
    assert f"{answers} beta, which believes that card behind tap-web1" in seen, seen
    assert f"{answers} alpha, which believes that card behind" in seen, seen


def test_a_guest_that_nobody_knows(faulty: Faulty) -> None:
    told = Site.run(faulty.site, "resolve", "nobody", "--json")
    assert (told.code, told.result["ends"]) == (4, "nobody")


ASK = "import socket, sys; socket.socket().connect_ex((sys.argv[1], 9))"
LOCK = """
import fcntl, signal, sys
held = open(sys.argv[1], "r+b")
fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 200, 100)  # block/file-posix.c, raw_apply_lock
print("locked", flush=True)
signal.pause()
"""
