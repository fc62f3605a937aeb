"""What a new agent makes of what it finds, on either side, and what only a person may say to it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from qmigrate.agent.journal import read
from tests.support.faulting import Faulty, Struck, kill
from tests.support.moving import Copy, Qmp
from tests.support.takeover import apart, asked, assert_ended_on, kill_both, start

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

OFFLINE = ("--offline",)


@contextmanager
def _frozen(struck: Struck, host: str) -> Iterator[None]:
    """Let the guest's QEMU on `host` stand still."""
    pidfd = os.pidfd_open(next(copy.pid for copy in struck.copies() if copy.host == host))
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    try:
        yield
        with suppress(ProcessLookupError):  # the job has ended it
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    finally:
        os.close(pidfd)


def _tell(faulty: Faulty, struck: Struck, host: str, word: str) -> str:
    answer = asked(faulty, "tell", struck.job, host, word)
    assert "problem" not in answer, answer
    return str(answer["text"])


def _assert_nobody_runs(faulty: Faulty) -> None:
    assert not any(ran.goes_on for ran in faulty.ran())


# A source's new agent


@pytest.mark.long
def test_at_device_it_waits_for_the_verdict(faulty: Faulty) -> None:
    start(faulty)
    points = ["source:before migrate-continue:stop", "source:after migrate-continue:kill"]
    struck = faulty.begin("tiny1", points=points)
    held = struck.hold("source", "before migrate-continue")
    with _frozen(struck, "beta"):
        held.release()
        struck.heard("alpha", "taking over at switching")
    assert struck.finish().code == 0
    assert_ended_on(faulty, struck, "beta")


@pytest.mark.long
def test_a_guest_that_runs_on_is_kept_and_the_destination_told_to_refuse(faulty: Faulty) -> None:
    site = faulty.site
    site.start(site.slow("tiny1", *faulty.tiny().more, seconds=0))
    faulty.before = site.await_life("tiny1")
    struck = faulty.begin("tiny1", points=["source:before migrate-continue:stop"])
    struck.hold("source", "before migrate-continue")
    with _frozen(struck, "beta"):  # or it would refuse by itself: its stream has ended
        with site.side_door("alpha", "tiny1") as qmp:
            qmp.execute("migrate_cancel")
            qmp.await_event("RESUME")
        struck.kill_agent("alpha")
        moved = struck.finish()
    assert (moved.code, moved.result["outcome"]) == (5, "rolled-back"), moved
    assert "--> refused" in faulty.logs()
    assert_ended_on(faulty, struck, "alpha")


def test_complete_and_no_go_sent_it_is_brought_back_if_nobody_answers(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["source:before record away:stop"])
    struck.hold("source", "before record away")
    kill_both(faulty, struck, "beta")
    struck.kill_agent("alpha")
    assert struck.finish().code == 5
    faulty.await_end(struck.job, "alpha")
    assert [copy.host for copy in struck.copies()] == ["alpha", "beta"]
    faulty.assert_never_two()
    # What is loaded there waits for ever; it is told, and goes.
    assert "problem" in asked(faulty, "revive", struck.job, "beta", "alpha")  # alpha has no job
    assert _tell(faulty, struck, "beta", "refuse") == "refuse: prepared, then refused"
    _tell(faulty, struck, "beta", "peer-is-dead")
    assert_ended_on(faulty, struck, "alpha")


# Hosts that lose their power


@pytest.mark.long
def test_a_destination_that_was_rebooted_after_go_is_no_reason_to_resume(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["destination:before answer-running:stop"])
    struck.hold("destination", "before answer-running")
    faulty.power_off("beta")
    moved = struck.finish()
    assert moved.code == 7, moved
    faulty.power_on("beta")
    answer = asked(faulty, "revive", struck.job, "beta", "alpha")
    assert answer["problem"]["code"] == "no-such-job"
    assert "no-record" in _tell(faulty, struck, "alpha", "no-record")
    _assert_nobody_runs(faulty)
    assert [copy.host for copy in struck.copies()] == ["alpha"]
    # A person says that what ran there has gone for good.
    assert _tell(faulty, struck, "alpha", "run-here") == "run-here: away, then back"
    assert_ended_on(faulty, struck, "alpha")


@pytest.mark.parametrize("was", ["running", "paused"])
def test_a_source_that_lost_its_power_leaves_a_copy_that_waits_to_be_told(
    faulty: Faulty, was: str
) -> None:
    site = faulty.site
    disk = site.shared("tiny1.img", 4)
    site.start(replace(faulty.tiny(), disk=disk))
    faulty.before = site.await_life("tiny1")
    if was == "paused":
        site.ask("tiny1", "stop")
    struck = faulty.begin("tiny1", points=["source:before record away:stop"])
    struck.hold("source", "before record away")
    faulty.power_off("alpha")
    assert struck.finish().code == 7
    struck.heard("beta", "for as long as it takes")
    _assert_nobody_runs(faulty)
    refused = asked(faulty, "tell", struck.job, "beta", "no-record")
    assert "nothing that a destination can be told" in refused["problem"]["what"], refused
    _tell(faulty, struck, "beta", "peer-is-dead")  # it changes nothing: it may be the last copy
    assert _tell(faulty, struck, "beta", "run-here").startswith("run-here: prepared, then")
    struck.heard("beta", "--runs--> running")
    assert _tell(faulty, struck, "beta", "peer-is-dead") == "peer-is-dead: running, then done"
    faulty.await_end(struck.job, "beta")
    faulty.power_on("alpha")
    assert site.lockers(disk, "tiny1") == {"beta"}
    assert_ended_on(faulty, struck, "beta", was)


# What a guest comes back to


@pytest.mark.long
@pytest.mark.parametrize("moment", ["after migrate", "before check", "before migrate-continue"])
def test_a_guest_that_was_stopped_for_the_move_runs_again_whoever_dies(
    faulty: Faulty, moment: str
) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", *OFFLINE, points=[f"source:{moment}:kill"])
    moved = struck.finish()
    assert moved.code == 5, moved
    assert_ended_on(faulty, struck, "alpha")


@pytest.mark.parametrize("options", [(), OFFLINE], ids=["live", "offline"])
def test_a_guest_that_had_left_comes_back_when_its_twin_dies(
    faulty: Faulty, options: tuple[str, ...]
) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", *options, points=["source:before record away:stop"])
    held = struck.hold("source", "before record away")
    struck.kill_qemu("beta")
    held.release()
    assert struck.finish().code == 5
    assert_ended_on(faulty, struck, "alpha")


def test_a_paused_guest_stays_paused_and_its_images_are_locked_again(faulty: Faulty) -> None:
    site = faulty.site
    disk = site.shared("tiny1.img", 4)
    site.start(replace(faulty.tiny(), disk=disk))
    faulty.before = site.await_life("tiny1")
    site.ask("tiny1", "stop")
    struck = faulty.begin("tiny1", points=["source:before record away:stop"])
    held = struck.hold("source", "before record away")
    assert site.lockers(disk, "tiny1") == set()
    struck.kill_qemu("beta")
    held.release()
    assert struck.finish().code == 5
    assert site.lockers(disk, "tiny1") == {"alpha"}
    assert_ended_on(faulty, struck, "alpha", "postmigrate")  # as QEMU calls one that may go on
    site.ask("tiny1", "cont")


# What is asked too late, or too early


@pytest.mark.long
def test_a_cancel_after_migrate_continue_is_answered_that_it_is_being_decided(
    faulty: Faulty,
) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["destination:before record go:stop"])
    held = struck.hold("destination", "before record go")
    watching = faulty.site.begin("watch", f"{struck.job}@alpha")
    watching.until(lambda line: "cannot be known" in line)  # it watches
    assert asked(faulty, "cancel", struck.job, "alpha") == {"text": "asked in state away"}
    watching.until(lambda line: "being decided" in line)
    held.release()
    assert struck.finish().code == 0
    assert watching.finish().code == 0
    assert_ended_on(faulty, struck, "beta")


@pytest.mark.long
def test_a_destination_whose_agent_dies_before_its_twin_listens_ends_clean(faulty: Faulty) -> None:
    start(faulty)
    struck = faulty.begin("tiny1", points=["destination:at start:stop"])
    held = struck.hold("destination", "at start")
    launching = _launching(faulty)
    os.kill(launching, signal.SIGSTOP)  # it will not become QEMU
    held.release()
    journal = faulty.site.path("beta", f"/run/qmigrate/jobs/{struck.job}/journal")
    while (entry := read(journal)) is None or entry.pid is None:
        os.sched_yield()
    kill(held.pid)
    moved = struck.finish()
    assert moved.code == 4, moved
    assert_ended_on(faulty, struck, "alpha")


def _launching(faulty: Faulty) -> int:
    """Return the pid of the process on beta that is to become QEMU."""
    for pid in faulty.site.lab.pids("beta"):
        if b"launch.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("nothing is about to become QEMU")


# Somebody who types `cont`


def _let_run(faulty: Faulty, copy: Copy) -> None:
    """Type `cont` at a copy's second monitor, wherever its move has put that."""
    words = [word for word in copy.argv if word.startswith("socket,id=side,")]
    path = words[0].partition("path=")[2].partition(",")[0]
    qmp = Qmp(faulty.site.path(copy.host, path))
    try:
        qmp.execute("cont")
    finally:
        qmp.close()


def test_a_source_that_somebody_let_run_gets_no_second_copy(faulty: Faulty) -> None:
    site = faulty.site
    site.start(site.slow("tiny1", *faulty.tiny().more, seconds=0))
    faulty.before = site.await_life("tiny1")
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    held = struck.hold("source", "before send-go")
    _let_run(faulty, next(copy for copy in struck.copies() if copy.host == "alpha"))
    kill(held.pid)  # or GO would be on its way before anything else is heard
    moved = struck.finish()
    assert (moved.code, moved.result["outcome"]) == (5, "rolled-back"), moved
    assert_ended_on(faulty, struck, "alpha")


@pytest.mark.long
def test_a_source_that_somebody_let_run_while_go_could_not_be_sent_keeps_the_guest(
    faulty: Faulty,
) -> None:
    site = faulty.site
    site.start(site.slow("tiny1", *faulty.tiny().more, seconds=0))
    faulty.before = site.await_life("tiny1")
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    held = struck.hold("source", "before send-go")
    struck.kill_controller()
    with apart(faulty):
        held.release()
        for host in ("alpha", "beta"):
            struck.heard(host, "the link broke")
        _let_run(faulty, next(copy for copy in struck.copies() if copy.host == "alpha"))
        struck.heard("alpha", "away --qemu-runs-on--> strayed")
    assert_ended_on(faulty, struck, "alpha")


@pytest.mark.long
def test_a_destination_that_somebody_let_run_is_not_quit(faulty: Faulty) -> None:
    site = faulty.site
    site.start(site.slow("tiny1", *faulty.tiny().more, seconds=0))
    faulty.before = site.await_life("tiny1")
    struck = faulty.begin("tiny1", points=["source:before send-go:stop"])
    held = struck.hold("source", "before send-go")
    _let_run(faulty, next(copy for copy in struck.copies() if copy.host == "beta"))
    struck.heard("beta", "prepared --runs--> running")
    held.release()
    assert struck.finish().code == 0
    assert_ended_on(faulty, struck, "beta")
