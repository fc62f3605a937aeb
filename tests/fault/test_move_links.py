"""What the fault table (`test_selftest`) has no cell for: odd wires, busy guests, two at once."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qmigrate.lab import workload
from qmigrate.lab.lab import Way
from tests.support.faulting import Faulty, Struck, await_death
from tests.support.moving import HOSTS, LINUX_IP4

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

SLOW = ("--bandwidth", "1MiB")
UPLINK = "uplink"  # a lab host's cable


def _start(faulty: Faulty) -> None:
    faulty.site.start(faulty.tiny())
    faulty.before = faulty.site.await_life("tiny1")


def _assert_ended_on(faulty: Faulty, struck: Struck, host: str) -> None:
    """Assert that all is over and the guest runs on `host`, whole, and nothing else is left."""
    faulty.await_end(struck.job)
    copies = faulty.site.copies("tiny1")
    assert [(copy.host, copy.state) for copy in copies] == [(host, "running")]
    assert faulty.site.memory("tiny1", before=faulty.before).problem == ""
    faulty.assert_never_two()
    assert faulty.site.leftovers("tiny1") == []


# The controller


def test_of_two_controllers_at_once_one_wins(faulty: Faulty) -> None:
    _start(faulty)
    struck = faulty.begin("tiny1", points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    second = faulty.site.migrate("tiny1", "beta")
    held.release()
    assert second.code in (3, 4), second
    assert struck.job in second.stdout, second
    assert struck.finish().code == 0
    _assert_ended_on(faulty, struck, "beta")


# The link


@contextmanager
def _cut(faulty: Faulty, host: str, way: Way = Way.BOTH) -> Iterator[None]:
    faulty.site.lab.cut(host, way)
    try:
        yield
    finally:
        faulty.site.lab.mend(host)


def test_a_link_cut_one_way_only_in_the_copy_leaves_the_guest_where_it_is(faulty: Faulty) -> None:
    _start(faulty)
    struck = faulty.begin("tiny1", *SLOW, points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    with _cut(faulty, "beta", Way.IN):
        held.release()
        moved = struck.finish()
        assert (moved.code, moved.result["error"]["host"]) == (5, "beta"), moved.error
        faulty.await_end(struck.job)  # it has stopped waiting by itself: nobody could tell it
    _assert_ended_on(faulty, struck, "alpha")


PORTS = (47100, 47103)
PORTS_MASK = "0xfffc"  # both numbers differ in the last two bits only


@contextmanager
def _dials_dropped(faulty: Faulty, host: str) -> Iterator[None]:
    """Let no connection to the migration's ports into `host`, as a firewall does.

    The kernel may lack nft and the drop action: what is to be dropped is sent into a wire whose
    other end is down.
    """

    def run(*words: str) -> None:
        faulty.site.lab.run(host, words)

    run("ip", "link", "add", "pit0", "type", "veth", "peer", "name", "pit1")
    try:
        run("ip", "link", "set", "pit0", "up")
        run("tc", "qdisc", "add", "dev", UPLINK, "ingress")
        for number, (protocol, match) in enumerate((("ip", "ip"), ("ipv6", "ip6")), start=1):
            run(
                *("tc", "filter", "add", "dev", UPLINK, "parent", "ffff:"),
                *("protocol", protocol, "prio", str(number)),
                *("u32", "match", match, "dport", str(PORTS[0]), PORTS_MASK),
                *("action", "mirred", "egress", "redirect", "dev", "pit0"),
            )
        yield
    finally:
        faulty.site.lab.run(host, ["tc", "qdisc", "delete", "dev", UPLINK, "ingress"], check=False)
        run("ip", "link", "delete", "pit0")


def _with_ports(faulty: Faulty) -> tuple[str, str]:
    """Return the option that makes both hosts use `PORTS`."""
    lines = [f"[hosts.{host}]\nport_range = [{PORTS[0]}, {PORTS[1]}]\n" for host in HOSTS]
    path = faulty.site.lab.images / "ports.toml"
    path.write_text("\n".join(lines))
    return "--config", str(path)


def test_one_open_direction_is_enough(faulty: Faulty) -> None:
    _start(faulty)
    with _dials_dropped(faulty, "beta"):
        struck = faulty.begin("tiny1", *_with_ports(faulty))
        moved = struck.finish()
    assert moved.code == 0, moved.error
    _assert_ended_on(faulty, struck, "beta")


def test_ports_blocked_both_ways_are_named_with_the_rule_to_add(faulty: Faulty) -> None:
    _start(faulty)
    with _dials_dropped(faulty, "alpha"), _dials_dropped(faulty, "beta"):
        struck = faulty.begin("tiny1", *_with_ports(faulty))
        moved = struck.finish()
    error = moved.result["error"]
    assert (moved.code, moved.result["outcome"]) == (4, "refused"), moved.error
    assert "10.77.0.2" in error["what"], error
    assert str(PORTS[0]) in moved.error, error
    assert any(word in error["next_step"] for word in ("nft", "iptables", "allow")), error
    assert error["host"], error
    _assert_ended_on(faulty, struck, "alpha")


def test_a_destination_that_dies_while_the_switchover_is_stuck_leaves_it_on_the_source(
    faulty: Faulty,
) -> None:
    _start(faulty)
    points = ["source:before migrate-continue:stop", "source:after migrate-continue:stop"]
    struck = faulty.begin("tiny1", points=points)
    held = struck.hold("source", "before migrate-continue")
    with _cut(faulty, "beta"):  # what QEMU sends last does not arrive
        held.release()
        held = struck.hold("source", "after migrate-continue")
        struck.kill_qemu("beta")
    held.release()
    moved = struck.finish()
    assert moved.code == 5, moved.error
    _assert_ended_on(faulty, struck, "alpha")


# The destination's agent


def test_a_destination_that_is_stopped_at_the_switchover_costs_the_guest_seconds(
    faulty: Faulty,
) -> None:
    _start(faulty)
    struck = faulty.begin("tiny1", points=["source:before check:stop"])
    held = struck.hold("source", "before check")
    stopped = struck.agent("beta")
    os.kill(stopped, signal.SIGSTOP)
    held.release()
    moved = struck.finish()
    os.kill(stopped, signal.SIGCONT)
    assert moved.code == 5, moved.error
    assert "not ready" in moved.error, moved.error
    _assert_ended_on(faulty, struck, "alpha")


# The guest


def _tell(line: str) -> None:
    """Give the linux guest a command that it does not answer."""
    address = (LINUX_IP4, workload.CONTROL_PORT)
    with socket.create_connection(address, timeout=workload.QUERY_LIMIT_S) as control:
        control.sendall(line.encode() + b"\n")
        control.recv(1)  # it goes down with the guest, or is reset by its successor


def _hurry(faulty: Faulty, struck: Struck) -> None:
    """Let a slow copy come to its end."""
    done = faulty.site.run("set", f"{struck.job}@alpha", "--bandwidth", "1GiB", "--json")
    assert done.code == 0, done


def test_a_guest_that_powers_off_in_the_copy_has_ended_and_it_is_said(faulty: Faulty) -> None:
    site = faulty.site
    qemu = site.start(faulty.linux())
    site.await_boot()
    struck = faulty.begin("web1", *SLOW, points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    with contextlib.suppress(OSError):
        site.from_client(lambda: _tell("poweroff"))
    await_death(qemu.pid)
    held.release()
    moved = struck.finish()
    assert (moved.code, moved.result["outcome"]) == (9, "guest-ended"), moved.error
    assert "shut down" in moved.error, moved.error
    assert moved.result["error"]["host"] == "alpha"
    faulty.await_end(struck.job)
    assert site.copies("web1") == []
    faulty.assert_never_two()
    assert site.leftovers("web1") == []


def test_a_guest_that_reboots_in_the_copy_moves_on(faulty: Faulty) -> None:
    site = faulty.site
    site.start(faulty.linux(dirty_mib=8, rate_mib=4))
    before = site.await_boot()
    struck = faulty.begin("web1", *SLOW, points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    with contextlib.suppress(OSError):
        site.from_client(lambda: _tell("reboot"))
    rebooted = site.await_boot()
    assert rebooted.boot_id != before.boot_id
    held.release()
    _hurry(faulty, struck)
    moved = struck.finish()
    assert moved.code == 0, moved.error
    assert any("reset" in event for event in moved.result["guest_events"])
    after = site.guest_says("verify")
    assert (after.boot_id, after.memory) == (rebooted.boot_id, workload.Verdict.INTACT)
    faulty.await_end(struck.job)
    assert site.copy("web1").host == "beta"
    faulty.assert_never_two()
    assert site.leftovers("web1") == []
