"""What is left when agents are gone for good: told in words, removed where it serves nobody."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qmigrate.lab.guests import guest_uuid
from tests.support.faulting import Faulty, agents, kill
from tests.support.moving import HOSTS, SLOWLY, Moved, Site

pytestmark = pytest.mark.fault

NAME = "tiny1"
UUID = guest_uuid(NAME)
STALE = "guest-00000000-0000-4000-8000-00000000dead"
GONE = "00000000-0000-4000-8000-00000000dead"


def kill_for_good(faulty: Faulty, host: str, job: str) -> None:
    """End a job's guardian and then its agent, so that no other is started."""
    for mode in ("guardian", "worker"):
        for pid in agents(faulty.site, host, mode, job):
            kill(pid)


def status(site: Site) -> dict[str, Any]:
    told = site.run("status", "--json")
    assert told.code == 0, (told.stdout, told.stderr)
    assert told.result["schema"] == "qmigrate.status/1"
    return told.result


def cleanup(site: Site, host: str, *options: str) -> Moved:
    told = site.run("cleanup", host, "--json", *options)
    assert told.result["schema"] == "qmigrate.cleanup/1", (told.stdout, told.stderr)
    return told


def things(told: Moved, verdict: str = "removable") -> set[tuple[str, str]]:
    return {(t["kind"], t["name"]) for t in told.result["things"] if t["verdict"] == verdict}


def make_by_hand(site: Site, host: str) -> set[tuple[str, str]]:
    """Leave on a host what agents could have left; return it as `cleanup` names it."""
    alias = f"qmigrate:guest={GONE} nic=n0"
    site.lab.run(host, ["ip", "tuntap", "add", "tap-gone", "mode", "tap"])
    site.lab.run(host, ["ip", "link", "set", "tap-gone", "alias", alias])
    run = site.path(host, "/run/qmigrate")
    for directory in ("jobs/gone-0000aa", f"guests/{GONE}", "locks"):
        (run / directory).mkdir(parents=True, exist_ok=True)
    (run / "guests" / GONE / "monitor").write_bytes(b"")
    (run / "locks" / STALE).write_text("gone-0000aa")
    cache = site.path(host, "/var/cache/qmigrate/agent/.new-0123456789abcdef")
    cache.mkdir(parents=True)
    return {
        ("tap", "tap-gone"),
        ("job", "gone-0000aa"),
        ("directory", GONE),
        ("lock", STALE),
        ("cache", cache.name),
    }


def of_strangers(site: Site, host: str) -> list[Path]:
    """Make what looks alike and is not ours; a tap of somebody's own is among it."""
    site.lab.run(host, ["ip", "tuntap", "add", "tap-own", "mode", "tap"])
    site.lab.run(host, ["ip", "link", "set", "tap-own", "alias", f"of {GONE}"])
    own = site.path(host, "/run/own")
    own.mkdir()
    return [own]


def test_leftovers_go_and_a_running_guest_keeps_all_it_lives_on(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.tiny())
    assert site.migrate(NAME, "beta", "--from", "alpha").code == 0
    site.settle()
    before = site.lab.snapshot_host("beta")
    made = make_by_hand(site, "beta")
    own = of_strangers(site, "beta")

    looked = cleanup(site, "beta", "--dry-run")
    assert (looked.code, things(looked), things(looked, "resolve-first")) == (0, made, set())
    [host] = [h for h in status(site)["hosts"] if h["host"] == "beta"]
    assert {(t["kind"], t["name"]) for t in host["leftovers"]} == made

    refused = site.run("cleanup", "beta")
    assert (refused.code, "--yes" in refused.stderr) == (2, True)  # nobody can be asked

    done = cleanup(site, "beta", "--yes")
    assert (done.code, things(done)) == (0, made)
    assert all(thing["removed"] for thing in done.result["things"])
    site.settle()
    added = site.lab.snapshot_host("beta").added_since(before)
    assert [what for what in added if "own" not in what] == []
    assert all(path.exists() for path in own)

    again = cleanup(site, "beta", "--yes")
    assert (again.code, again.result["things"]) == (0, [])

    make_by_hand(site, "beta")
    cut = site.begin("cleanup", "beta", "--yes", "--json")
    cut.process.kill()  # wherever it is
    cut.finish()
    site.settle()
    assert cleanup(site, "beta", "--yes").code == 0
    assert cleanup(site, "beta", "--dry-run").result["things"] == []

    assert not site.memory(NAME).problem
    assert site.copy(NAME).state == "running"
    assert site.migrate(NAME, "alpha").code == 0  # nothing that it needs has gone


def test_a_job_whose_agents_died_for_good_is_shown_and_left_to_resolve(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.tiny())
    faulty.before = site.await_life(NAME)
    struck = faulty.begin(NAME, points=["source:at pre-switchover:stop"])
    held = struck.hold("source", "at pre-switchover")
    struck.kill_controller()
    [row] = status(site)["jobs"]
    assert (row["guest"], row["source"], row["destination"]) == (NAME, "alpha", "beta")
    assert [side["worked_at"] for side in row["sides"]] == [True, True]
    assert "does not answer" in row["standing"]  # it stands still
    assert held.pid in agents(site, "alpha", "worker", struck.job)

    for host in ("alpha", "beta"):
        kill_for_good(faulty, host, struck.job)
    [row] = status(site)["jobs"]
    assert row["job"] == struck.job
    assert [side["record"] for side in row["sides"]] == ["prepared", "prepared"]
    assert row["standing"].startswith("nobody works at it: alpha ")
    assert row["next_step"] == f"qmigrate resolve {NAME}"
    assert not row["healthy"]

    watched = site.run("watch", NAME, "--json")
    assert watched.code == 7, watched.stdout
    assert f"qmigrate resolve {NAME}" in watched.error
    assert site.run("cancel", f"{NAME}@alpha", "--json").code == 7

    for host in ("alpha", "beta"):
        done = cleanup(site, host, "--yes")
        assert things(done) <= {(kind, name) for kind, name in things(done) if kind == "lock"}
        assert ("job", struck.job) in things(done, "resolve-first")
    kinds = {kind for kind, _ in things(cleanup(site, "beta", "--dry-run"), "resolve-first")}
    assert kinds == {"job", "twin", "tap", "directory"} or kinds == {"job", "twin"}
    assert len(struck.copies()) == 2  # neither has gone
    faulty.assert_never_two()


@pytest.mark.long
def test_a_twin_that_was_refused_for_good_is_ended_with_all_it_lived_on(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.tiny())
    faulty.before = site.await_life(NAME)
    points = ["destination:at loading:stop", "destination:before quit-qemu:stop"]
    struck = faulty.begin(NAME, points=points)
    held = struck.hold("destination", "at loading")
    assert struck.finish().code in (3, 4, 5)  # the source has given up
    faulty.await_end(struck.job, "alpha")
    held.release()
    struck.hold("destination", "before quit-qemu")
    kill_for_good(faulty, "beta", struck.job)

    [row] = status(site)["jobs"]
    assert "beta had refused it for good" in row["standing"]
    assert row["next_step"] == "qmigrate cleanup beta"
    looked = cleanup(site, "beta", "--dry-run")
    assert {"twin", "job", "directory"} <= {kind for kind, _ in things(looked)}, looked.stdout
    assert len(struck.copies()) == 2
    done = cleanup(site, "beta", "--yes")
    assert done.code == 0, done.stdout
    assert [copy.host for copy in struck.copies()] == ["alpha"]
    assert site.leftovers(NAME) == []
    assert cleanup(site, "beta", "--yes").result["things"] == []
    assert not site.memory(NAME, before=faulty.before).problem
    faulty.assert_never_two()


def test_a_live_move_is_told_by_its_agents_and_cancelled_by_its_guests_name(faulty: Faulty) -> None:
    site = faulty.site
    site.start(site.slow(NAME, seconds=30, memory_mib=512))
    site.await_life(NAME)
    moving = site.begin("migrate", NAME, "beta", "--from", "alpha", "--json", *SLOWLY)
    moving.until_phase("copy")
    [row] = status(site)["jobs"]
    assert row["standing"] == "its memory is being copied, the guest is on alpha"
    assert row["next_step"] == f"qmigrate watch {row['job']}@alpha"
    assert [side["linked"] for side in row["sides"]] == [True, True]
    for host in HOSTS:
        assert cleanup(site, host, "--yes").result["things"] == []
    told = site.run("cancel", NAME, "--json")
    assert (told.code, told.result["outcome"]) == (6, "cancelled")
    assert moving.finish().code == 6
    assert site.copy(NAME).state == "running"
    site.settle()
    assert site.jobs("alpha") == site.jobs("beta") == []


@pytest.mark.long
def test_old_logs_go_and_those_of_a_guest_that_lives_here_stay(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.tiny())
    assert site.migrate(NAME, "beta", "--from", "alpha").code == 0
    site.settle()
    logs = site.path("beta", "/var/log/qmigrate")
    [mine] = [at.name for at in logs.iterdir() if (at / "qemu.log").exists() and lives(site, at)]
    for job in ("gone-0000aa", mine):
        (logs / job).mkdir(exist_ok=True)
        (logs / job / "agent.log").write_text("said\n")
        for path in (*(logs / job).iterdir(), logs / job):
            os.utime(path, (0, 0))
    assert ("log", mine) not in things(cleanup(site, "beta", "--logs", "30", "--dry-run"))
    with (logs / mine / "qemu.log").open("ab") as words:
        words.write(b"x" * (17 << 20))
    done = cleanup(site, "beta", "--logs", "30", "--yes")
    assert {("log", "gone-0000aa"), ("words", mine)} <= things(done)
    assert (done.code, (logs / "gone-0000aa").exists()) == (0, False)
    assert (logs / mine / "qemu.log").stat().st_size < 1 << 20
    assert site.copy(NAME).state == "running"


def lives(site: Site, logs: Path) -> bool:
    """Tell whether the guest's QEMU writes into these logs."""
    [copy] = site.qemus(NAME)
    return Path(f"/proc/{copy.pid}/fd/2").samefile(logs / "qemu.log")


@pytest.mark.long
def test_a_job_is_watched_and_cancelled_by_its_guests_name(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.tiny())
    struck = faulty.begin(NAME, points=["source:after record away:stop"])
    held = struck.hold("source", "after record away")
    struck.kill_controller()
    watching = site.begin("watch", NAME, "--json")
    cancelling = site.begin("cancel", f"{NAME}@alpha", "--json")
    held.release()
    for ended in (watching.finish(), cancelling.finish()):  # too late to cancel: it has moved
        assert ended.code == 0, (ended.stdout, ended.stderr)
        assert (ended.result["job"], ended.result["outcome"]) == (struck.job, "migrated")
    faulty.await_end(struck.job)
    for command in ("watch", "cancel"):  # how it ended is said afterwards, too
        told = site.run(command, NAME, "--json")
        assert (told.code, told.result["outcome"]) == (0, "migrated")
    told = site.run("status")
    assert (told.code, told.stdout) == (0, "")
    assert "nothing was left behind" in told.stderr
    [newest] = status(site)["hosts"][0]["ended"][:1]
    assert json.dumps(newest["job"]) == json.dumps(struck.job)
