"""What a user may say to a move that takes long: limits, patience, a signal, goodbye.

The guest's own load, or its ballast, makes a copy slow; nothing here is a race with a fast one.
"""

import json
import signal
from typing import Any

import pytest

from qmigrate.core.tiny import TinySpec
from qmigrate.lab.workload import Verdict
from tests.support.moving import SLOWLY, Moving, Site

pytestmark = [pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
BUSY = TinySpec(mib=4)
LONG_S = 12  # a copy that nobody waits out


def tuning(site: Site, name: str) -> tuple[Any, Any]:
    """Return what qmigrate sets and has to restore."""
    return (
        site.ask(name, "query-migrate-parameters"),
        site.ask(name, "query-migrate-capabilities"),
    )


def under_way(site: Site, *options: str) -> Moving:
    """Return a move of the guest that copies."""
    moving = site.begin("migrate", NAME, "beta", "--json", *SLOWLY, *options)
    moving.until_phase("copy")
    return moving


def stays(site: Site, name: str = NAME) -> None:
    """See that the guest runs where it was, and that nothing is left of the attempt."""
    assert (site.copy(name).host, site.copy(name).state) == ("alpha", "running")
    assert site.leftovers(name) == []


def test_a_guest_that_dirties_more_than_the_link_takes_runs_on_with_the_figures(
    site: Site,
) -> None:
    site.start(site.linux(dirty_mib=48, rate_mib=40))
    boot_id = site.await_boot().boot_id
    before = tuning(site, "web1")
    site.lab.set_rate("alpha", 200_000_000)  # 25 MB/s, of which the stream gets 23
    done = site.migrate("web1", "beta", "--max-downtime", "80")
    site.lab.set_rate("alpha", None)
    assert (done.code, done.result["outcome"]) == (5, "rolled-back"), done.error
    for figure in ("the guest dirties", "the stream gets", "is needed", "80 ms are allowed"):
        assert figure in done.error
    assert "--offline" in done.result["error"]["next_step"]
    assert done.result["error"]["host"] == "alpha"
    assert max(p["passes"] or 0 for p in done.progress) > 2
    percents = [p["percent"] for p in done.progress if p["percent"] is not None]
    assert percents == sorted(percents)
    assert tuning(site, "web1") == before
    state = site.guest_says("verify")
    assert (state.memory, state.boot_id) == (Verdict.INTACT, boot_id)
    stays(site, "web1")


def test_the_limit_is_raised_in_steps_until_it_is_enough(site: Site) -> None:
    """4 MiB are dirty at any time: at 12 MiB/s that is 333 ms, more than the 20 of the start."""
    site.start(site.slow(seconds=1, spec=BUSY))
    before = site.await_life(NAME, BUSY)
    moving = site.begin("migrate", NAME, "beta", "--bandwidth", "12MiB", "--max-downtime", "1000")
    done = moving.finish()
    assert done.code == 0, done.stderr
    steps = [line for line in moving.lines if "; it goes from " in line]
    assert steps, done.stderr
    assert "; it goes from 20 to " in steps[0]
    assert site.memory(NAME, BUSY, before=before).problem == ""
    assert site.copy(NAME).host == "beta"
    assert site.leftovers(NAME) == []


def test_limits_that_are_changed_meanwhile_take_effect_at_once(site: Site) -> None:
    site.start(site.slow(seconds=2 * LONG_S, memory_mib=384))
    before = site.await_life(NAME)
    moving = under_way(site)
    [job] = site.jobs("alpha")
    new = ("--bandwidth", "13MiB", "--downtime-limit", "210", "--max-downtime", "900")
    changed = site.run("set", f"{job}@alpha", *new)
    assert changed.code == 0, changed.stderr
    for said in ("downtime limit 210 ms", "at most 900 ms", "bandwidth 13 MiB/s"):
        assert said in changed.stdout
    with site.side_door("alpha", NAME) as qmp:
        now = qmp.execute("query-migrate-parameters")
        assert qmp.execute("query-migrate")["status"] == "active"
    assert (now["max-bandwidth"], now["downtime-limit"]) == (13 << 20, 210)
    assert site.run("set", f"{job}@alpha", "--bandwidth", "4GiB").code == 0
    done = moving.finish()
    assert (done.code, site.copy(NAME).host) == (0, "beta"), done.error
    assert site.memory(NAME, before=before).problem == ""


def test_a_copy_is_given_up_after_its_timeout(site: Site) -> None:
    site.start(site.slow(seconds=LONG_S, memory_mib=256))
    site.await_life(NAME)
    before = tuning(site, NAME)
    done = site.migrate(NAME, "beta", *SLOWLY, "--timeout", "2")
    assert (done.code, done.result["outcome"]) == (5, "rolled-back"), done.error
    assert "--timeout 2 s" in done.error
    assert tuning(site, NAME) == before
    stays(site)


def test_a_detached_job_is_watched_to_its_end_and_has_logs_on_both_hosts(site: Site) -> None:
    site.start(site.slow(seconds=4))
    before = site.await_life(NAME)
    done = site.migrate(NAME, "beta", "--detach", *SLOWLY)
    assert (done.code, done.result["outcome"]) == (7, "detached")
    assert f"qmigrate watch {done.result['job']}@alpha" in done.error
    job = str(done.result["job"])
    watched = site.run("watch", f"{job}@alpha", "--json")
    assert (watched.code, watched.result["outcome"]) == (0, "migrated")
    assert any(p["phase"] == "copy" for p in watched.progress)
    assert site.memory(NAME, before=before).problem == ""
    again = site.run("watch", job, "--json")  # from its log, wherever it was
    assert (again.code, again.result["outcome"]) == (0, "migrated")
    logs = site.run("logs", job, "--json").result
    found = {(file["host"], file["name"]): file["text"] for file in logs["files"]}
    assert "record" in found["alpha", "report.json"]
    for host, side in (("alpha", "source: "), ("beta", "destination: ")):
        assert side in found[host, "agent.log"]
    assert site.leftovers(NAME) == []


def test_ctrl_c_cancels_and_the_guest_runs_on(site: Site) -> None:
    site.start(site.slow(seconds=LONG_S, memory_mib=256))
    marks = site.await_life(NAME)
    before = tuning(site, NAME)
    moving = under_way(site)
    moving.process.send_signal(signal.SIGINT)
    done = moving.finish()
    assert (done.code, done.result["outcome"]) == (6, "cancelled"), done.stdout
    assert tuning(site, NAME) == before
    assert site.memory(NAME, before=marks).problem == ""
    stays(site)


def test_a_second_ctrl_c_leaves_and_the_job_ends_by_itself(site: Site) -> None:
    site.start(site.slow(seconds=LONG_S, memory_mib=256))
    site.await_life(NAME)
    moving = site.begin("migrate", NAME, "beta", *SLOWLY)
    job = moving.until(lambda line: "  job " in line).split()[-1]
    moving.until(_copies)
    # Its source's agent stands still, so that the first one is not answered yet.
    with site.stopped("alpha", f"worker {job}"):
        moving.process.send_signal(signal.SIGINT)
        moving.until(lambda line: line.startswith("cancelling; once more"))
        moving.process.send_signal(signal.SIGINT)
        done = moving.finish()
    assert done.code == 7, done.stderr
    assert f"leaving; job {job} goes on by itself" in done.stderr
    assert f"qmigrate watch {job}@alpha" in done.stderr
    watched = site.run("watch", f"{job}@alpha", "--json")
    assert watched.code in (0, 6), watched.stdout  # cancelled, unless that request was lost
    assert site.copy(NAME).state == "running"
    assert site.leftovers(NAME) == []


def _copies(line: str) -> bool:
    return " copy " in line


def test_ctrl_c_before_the_job_exists_touches_nothing(site: Site) -> None:
    site.start(site.slow())
    moving = site.begin("migrate", NAME, "beta", "--json")
    moving.until_phase("connect")
    moving.process.send_signal(signal.SIGINT)
    done = moving.finish()
    assert (done.code, done.result["outcome"], done.result["job"]) == (6, "cancelled", None)
    assert "before anything was touched" in done.error
    assert site.changes() == []


def test_a_job_is_cancelled_by_its_name(site: Site) -> None:
    site.start(site.slow(seconds=LONG_S, memory_mib=256))
    site.await_life(NAME)
    moving = under_way(site)
    [job] = site.jobs("alpha")
    assert site.run("cancel", f"{job}@alpha").code == 6
    assert moving.finish().code == 6
    stays(site)


@pytest.mark.parametrize("command", ["watch", "set", "cancel", "logs"])
def test_a_job_that_nobody_knows_is_said_to_be_unknown(site: Site, command: str) -> None:
    more = ("--bandwidth", "1MiB") if command == "set" else ()
    done = site.run(command, "nothing-abc123", *more, "--json")
    assert done.code == 4, done.stdout
    assert "nothing-abc123" in json.dumps(done.result)
