"""A lab stands or is gone, whatever dies meanwhile."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from qmigrate.core.errors import HostError, UsageError
from qmigrate.lab import syscalls
from qmigrate.lab.lab import Lab
from qmigrate.lab.state import LabState
from qmigrate.lab.topologies import TOPOLOGIES
from qmigrate.lab.topology import Route
from tests.support.lab_traces import traces

pytestmark = pytest.mark.net
SAME_SEGMENT = TOPOLOGIES["same-segment"]
KILLS = 10
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def command(action: str, lab: Lab) -> list[str]:
    """Return the argv of a process that does `action` to `lab` as its only work."""
    code = "from qmigrate.lab.lab import Lab; from qmigrate.lab.topologies import TOPOLOGIES; "
    call = {"up": "up(TOPOLOGIES['same-segment'])", "down": "down()"}[action]
    return [sys.executable, "-c", f"{code}Lab('{lab.name}').{call}"]


def duration_of(action: str, lab: Lab) -> float:
    started = time.monotonic()
    subprocess.run(command(action, lab), check=True)
    return time.monotonic() - started


def killed_after(delay_s: float, argv: list[str]) -> bool:
    """Start `argv`, SIGKILL it after `delay_s`; tell whether it had not ended by itself."""
    with subprocess.Popen(argv) as process:
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def test_up_twice_is_one_lab_and_down_twice_is_none(spare_lab: Lab) -> None:
    assert traces(spare_lab.name) == set()
    spare_lab.up(SAME_SEGMENT)
    first = spare_lab.status()
    spare_lab.up(SAME_SEGMENT)
    second = spare_lab.status()
    assert second == first
    assert second.state is LabState.UP
    assert all(node.powered for node in second.nodes)
    assert traces(spare_lab.name) != set()  # or the comparison below says nothing
    spare_lab.down()
    assert traces(spare_lab.name) == set()
    spare_lab.down()
    assert spare_lab.status().state is LabState.DOWN


def test_up_killed_at_ten_random_moments_leaves_nothing_after_down(spare_lab: Lab) -> None:
    whole_s = duration_of("up", spare_lab)
    spare_lab.down()
    seed = int.from_bytes(os.urandom(4))
    moments = random.Random(seed)  # noqa: S311  moments are no secrets
    killed, half_made, tries = 0, 0, 0
    while killed < KILLS:
        tries += 1
        assert tries < 5 * KILLS, f"`up` is over before it can be killed, seed {seed}"
        delay_s = moments.uniform(whole_s / 4, whole_s)  # the first quarter is Python's own start
        killed += killed_after(delay_s, command("up", spare_lab))
        half_made += spare_lab.directory.exists() and spare_lab.status().state is LabState.HALF
        spare_lab.down()
        assert traces(spare_lab.name) == set(), f"killed after {delay_s} s, seed {seed}"
    print(f"{killed} of {tries} killed, {half_made} half-made; up: {whole_s:.3f} s; {seed=}")


def test_up_completes_what_a_killed_up_left(spare_lab: Lab) -> None:
    whole_s = duration_of("up", spare_lab)
    spare_lab.down()
    for part in (0.5, 0.65, 0.8):
        killed_after(whole_s * part, command("up", spare_lab))
        spare_lab.up(SAME_SEGMENT)
        assert [n.name for n in spare_lab.status().nodes if n.sshd] == ["alpha", "beta"]
        spare_lab.down()


def test_down_killed_midway_is_finished_by_the_next_down(spare_lab: Lab) -> None:
    spare_lab.up(SAME_SEGMENT)
    whole_s = duration_of("down", spare_lab)
    for part in (0.6, 0.8, 0.9):
        spare_lab.up(SAME_SEGMENT)
        killed_after(whole_s * part, command("down", spare_lab))
        spare_lab.down()
        assert traces(spare_lab.name) == set()


def test_a_killed_warden_takes_the_lab_with_it(spare_lab: Lab) -> None:
    spare_lab.up(SAME_SEGMENT)
    sleeper = spare_lab.popen("alpha", ["sleep", "1000"])
    status = spare_lab.status()
    assert status.warden is not None
    os.kill(status.warden, signal.SIGKILL)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL
    assert spare_lab.status().state is LabState.HALF
    spare_lab.up(SAME_SEGMENT)  # remade, not mended
    assert spare_lab.status().warden != status.warden
    spare_lab.down()
    assert traces(spare_lab.name) == set()


def test_commands_that_race_end_in_what_the_last_one_wants(spare_lab: Lab) -> None:
    racers = [subprocess.Popen(command(action, spare_lab)) for action in ("up", "down") * 2]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0, 0, 0]
    assert spare_lab.status().state in (LabState.UP, LabState.DOWN)
    spare_lab.down()
    assert traces(spare_lab.name) == set()


def test_two_labs_stand_side_by_side_and_never_meet(lab: Lab, spare_lab: Lab) -> None:
    spare_lab.up(SAME_SEGMENT)
    boots = {
        each.run("client", ["ssh", "-F", str(each.ssh_config), "alpha", "cat", BOOT_ID]).stdout
        for each in (lab, spare_lab)
    }
    assert len(boots) == 2  # the same address, another host
    before = lab.status()
    spare_lab.down()
    assert lab.status() == before


def test_up_gives_power_back_and_another_topology_is_refused(spare_lab: Lab) -> None:
    spare_lab.up(SAME_SEGMENT)
    spare_lab.power_off("beta")
    with pytest.raises(UsageError, match="another topology"):
        spare_lab.up(SAME_SEGMENT.with_mtu(1600))
    spare_lab.up(SAME_SEGMENT)
    assert all(node.powered for node in spare_lab.status().nodes)


def test_an_up_that_fails_says_why_and_leaves_nothing(spare_lab: Lab) -> None:
    alpha = SAME_SEGMENT.node("alpha")
    lost = replace(alpha, routes=(Route("198.51.100.0/24", "203.0.113.1"),))
    nodes = (lost, *(node for node in SAME_SEGMENT.nodes if node.name != "alpha"))
    with pytest.raises(HostError) as caught:
        spare_lab.up(replace(SAME_SEGMENT, nodes=nodes))
    assert caught.value.problem.host == "alpha"
    assert "Nexthop has invalid gateway" in (caught.value.problem.last_words or "")
    assert traces(spare_lab.name) == set()


def test_dead_children_that_nobody_reaps_hold_up_neither_power_off_nor_down(
    spare_lab: Lab,
) -> None:
    spare_lab.up(SAME_SEGMENT)
    code = (
        "import sys; from qmigrate.lab.lab import Lab\n"
        f"child = Lab({spare_lab.name!r}).popen('alpha', ['sleep', '1000'])\n"
        "print('started', flush=True); sys.stdin.read(); child.wait()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as careless:
        assert careless.stdout is not None
        assert careless.stdout.readline() == b"started\n"
        spare_lab.power_off("alpha")
        assert spare_lab.pids("alpha") == []
        spare_lab.down()
        assert not spare_lab.directory.exists()
    assert careless.returncode == 0
    assert syscalls.holder(spare_lab.directory / "warden.lock") is None
