"""Guests move to hosts in other subnets, and their neighbours do not notice."""

import os
from collections.abc import Iterator

import pytest

from qmigrate.lab.lab import Lab
from tests.support.subnets import Subnets, hosts_of, rules, subnets

pytestmark = [pytest.mark.qemu, pytest.mark.net]


@pytest.fixture(scope="module")
def three_sites() -> Iterator[Lab]:
    """alpha with a client, gamma and delta, each in its own subnet around one router."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network, mount and PID namespaces")
    with subnets(f"sites-{os.getpid()}", "three-sites") as lab:
        yield lab


@pytest.fixture
def sites(three_sites: Lab) -> Iterator[Subnets]:
    found = Subnets(three_sites, hosts_of("three-sites"))
    found.open()
    try:
        yield found
    finally:
        found.close()


def test_a_guest_goes_from_subnet_to_subnet_and_home_with_its_connection(sites: Subnets) -> None:
    tag = None
    with sites.linux() as guest:
        for destination in ("gamma", "delta", "alpha"):
            result = sites.watched(guest, destination)
            assert result["exit"] == 0, result["error"]
            assert result["checks"] == {"memory": True, "tcp": True}
            assert (result["reached"], result["leftovers"]) == (True, [])
            (card,) = result["network"]
            assert card["home"] == {"host": "alpha", "bridge": "br0", "vlan": None}
            if destination == "alpha":
                assert (result["tunnel"], card["bridge"]) == (None, "br0")
                assert sites.ends() == []
                continue
            assert result["tunnel"] == "vxlan (kernel)"
            assert rules(result["findings"]) == [("tunnel", "warning")]
            (home, away) = sites.ends()
            assert (home[:2], away[:2]) == (("alpha", "home"), (destination, "away"))
            assert home[2] == away[2]
            tag = tag or home[2]
            assert home[2] == tag
            assert sites.run("network", "tunnel", "verify").code == 0
    changes = [what for what in sites.changes() if "tap-web1" not in what]
    assert changes == []


def test_two_guests_of_one_segment_share_a_tunnel_and_the_last_takes_it_home(
    sites: Subnets,
) -> None:
    for name in ("tiny1", "tiny2"):
        sites.start(sites.tiny(name))
        moved = sites.migrate(name, "gamma")
        assert moved.code == 0, moved.error
    (tunnel,) = sites.tunnels()
    assert len(tunnel["guests"]) == 2
    assert tunnel["problems"] == []
    assert sites.migrate("tiny1", "alpha").code == 0
    (tunnel,) = sites.tunnels()
    assert len(tunnel["guests"]) == 1
    assert tunnel["problems"] == []
    assert sites.migrate("tiny2", "alpha").code == 0
    assert sites.tunnels() == []
    assert [what for what in sites.changes() if "tap-tiny" not in what] == []


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("destination:at loaded:kill-qemu", "rolled-back"),
        ("destination:before look:kill-qemu", "rolled-back"),
        ("destination:at prepare:kill-qemu", "refused"),
    ],
)
def test_a_move_that_fails_leaves_no_tunnel_and_the_guest_as_it_was(
    sites: Subnets, fault: str, outcome: str
) -> None:
    sites.start(sites.tiny("tiny1"))
    moved = sites.migrate("tiny1", "gamma", "--fault", fault, "--impatient")
    assert moved.result["outcome"] == outcome, moved.error
    # Where alpha's bridge knows the guest at all, it is at its own tap.
    assert [what for what in sites.network("alpha") if "tap-tiny1" in what][-1].startswith("link")
    assert sites.tunnels() == []
    assert [what for what in sites.changes() if "tap-tiny" not in what] == []


def test_a_move_between_two_foreign_sites_that_fails_keeps_the_tunnel_that_serves(
    sites: Subnets,
) -> None:
    sites.start(sites.tiny("tiny1"))
    assert sites.migrate("tiny1", "gamma").code == 0
    before = sites.ends()
    fault = ("--fault", "destination:at loaded:kill-qemu", "--impatient")
    assert sites.migrate("tiny1", "delta", *fault).result["outcome"] == "rolled-back"
    assert sites.ends() == before
    assert sites.run("network", "tunnel", "verify").code == 0


def test_without_a_tunnel_a_foreign_segment_is_refused_and_nothing_is_built(
    sites: Subnets,
) -> None:
    sites.start(sites.tiny("tiny1"))
    before = sites.network("alpha")
    moved = sites.migrate("tiny1", "gamma", "--tunnel", "none")
    assert (moved.code, moved.rules) == (3, ["segment-apart"])
    assert "no frame passes between alpha and gamma" in moved.error
    checked = sites.run("check", "tiny1", "gamma")
    assert checked.code == 0
    assert rules(checked.result["findings"]) == [("tunnel", "warning")]
    assert sites.network("alpha") == before


def test_a_tunnel_of_a_kind_that_no_host_has_is_refused(sites: Subnets) -> None:
    wanted = ("--kind", "gretap", "--dry-run")
    if sites.run("network", "tunnel", "create", "alpha", "gamma", *wanted).code == 0:
        pytest.skip("this kernel has gretap")
    sites.start(sites.tiny("tiny1"))
    moved = sites.migrate("tiny1", "gamma", "--tunnel", "gretap")
    assert (moved.code, moved.rules) == (3, ["tunnel-impossible"])
    assert sites.tunnels() == []


def test_what_a_dead_controller_left_is_cleaned_up_or_used_by_the_next_move(
    sites: Subnets,
) -> None:
    sites.start(sites.tiny("tiny1"))
    uuid = "0d0d0d0d-0000-4000-8000-000000000001"
    for host in ("gamma", "delta"):  # as if it had died between building and the job
        made = sites.run("network", "tunnel", "create", "alpha", host, "--guest", uuid)
        assert made.code == 0, made.stderr
    assert len(sites.tunnels()) == 2
    assert sites.run("cleanup", "gamma", "--yes").code == 0
    assert ("gamma", "away", (uuid,)) not in sites.ends()
    alone = [tunnel for tunnel in sites.tunnels() if len(tunnel["ends"]) == 1]
    assert any("one end only" in problem for problem in alone[0]["problems"])
    moved = sites.migrate("tiny1", "gamma")
    assert moved.code == 0, moved.error
    assert sites.run("network", "tunnel", "verify", "alpha", "gamma").code in (0, 4)
