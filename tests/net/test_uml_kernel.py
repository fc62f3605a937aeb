"""What tunnels and VLANs of the kernel do that this machine's own kernel may lack."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import uml
from tests.support.netns import Namespace, add_bridge, fresh_namespace
from tests.support.ping import answers

pytestmark = [pytest.mark.net, pytest.mark.uml]

# Measured in user-mode Linux 6.1: which options let a full frame of a guest through a path that is
# too small for frame and tunnel. All others lose it without a word.
FRAGMENTS_OUTSIDE = ("nopmtudisc", "ignore-df")


@dataclass(frozen=True)
class TwoSites:
    """Hosts in two subnets, a guest on each one's bridge; both guests believe in one subnet."""

    alpha: Namespace
    gamma: Namespace
    guest: Namespace  # on alpha's bridge; the other, on gamma's, has 192.0.2.2


def plug(near: Namespace, name: str, far: Namespace, peer: str) -> None:
    """Lay a cable; both ends are up."""
    near.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", far.path)
    near.run("ip", "link", "set", name, "up")
    far.run("ip", "link", "set", peer, "up")


@pytest.fixture
def sites() -> Iterator[TwoSites]:
    with two_sites() as made:
        yield made


@contextmanager
def two_sites() -> Iterator[TwoSites]:
    with (
        fresh_namespace() as alpha,
        fresh_namespace() as gamma,
        fresh_namespace() as router,
        fresh_namespace() as guest,
        fresh_namespace() as far_guest,
    ):
        with router.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for number, host, tenant in ((1, alpha, guest), (2, gamma, far_guest)):
            add_bridge(host, "br0")
            plug(host, "tap0", tenant, "eth0")
            host.run("ip", "link", "set", "tap0", "master", "br0")
            tenant.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            plug(router, f"site{number}", host, "uplink")
            router.run("ip", "address", "add", f"10.0.{number}.254/24", "dev", f"site{number}")
            host.run("ip", "address", "add", f"10.0.{number}.1/24", "dev", "uplink")
            host.run("ip", "route", "add", "default", "via", f"10.0.{number}.254")
        yield TwoSites(alpha, gamma, guest)


def join(sites: TwoSites, *options: str, mtu: int) -> None:
    """Make a gretap between the hosts' bridges."""
    for host, local, remote in ((sites.alpha, 1, 2), (sites.gamma, 2, 1)):
        ends = ("local", f"10.0.{local}.1", "remote", f"10.0.{remote}.1", "ttl", "64")
        host.run("ip", "link", "add", "port", "type", "gretap", *ends, *options)
        # Before it is in the bridge: that takes the smallest MTU of its ports.
        host.run("ip", "link", "set", "port", "mtu", str(mtu))
        host.run("ip", "link", "set", "port", "master", "br0", "up")


def test_these_tests_run_on_the_other_kernel() -> None:
    assert uml.is_inside()
    assert platform.release().startswith("6.")


@pytest.mark.parametrize(
    ("options", "mtu", "df_passes"),
    [(FRAGMENTS_OUTSIDE, 1500, True), (("nopmtudisc",), 1500, False), ((), 1462, False)],
    ids=["nopmtudisc ignore-df", "nopmtudisc", "defaults"],
)
def test_a_full_frame_passes_a_gretap_that_may_fragment_outside(
    sites: TwoSites, options: tuple[str, ...], mtu: int, df_passes: bool
) -> None:
    with sites.guest.entered():
        assert not answers("192.0.2.2", tries=1, wait_s=0.2), "they are not adjacent yet"
    join(sites, *options, mtu=mtu)
    with sites.guest.entered():
        assert answers("192.0.2.2")
        assert answers("192.0.2.2", size_bytes=1462, df=True)
        assert answers("192.0.2.2", size_bytes=1500, df=True, tries=2) == df_passes


@pytest.mark.parametrize(
    ("vid", "passes"), [(10, True), (20, False), (None, False)], ids=["10", "20", "untagged"]
)
def test_a_vlan_aware_bridge_drops_what_its_port_is_no_member_of(
    vid: int | None, passes: bool
) -> None:
    with fresh_namespace() as left, fresh_namespace() as switch, fresh_namespace() as right:
        switch.run("ip", "link", "add", "sw0", "type", "bridge", "vlan_filtering", "1",
                   "vlan_default_pvid", "0", "forward_delay", "0")  # fmt: skip
        switch.run("ip", "link", "set", "sw0", "up")
        for number, place in ((1, left), (2, right)):
            port = f"port{number}"
            plug(switch, port, place, "eth0")
            switch.run("ip", "link", "set", port, "master", "sw0")
            switch.run("bridge", "vlan", "add", "dev", port, "vid", "10")
            device = "eth0"
            if vid is not None:
                device = f"eth0.{vid}"
                place.run(*("ip", "link", "add", "link", "eth0", "name", device),
                          *("type", "vlan", "id", str(vid)))  # fmt: skip
                place.run("ip", "link", "set", device, "up")
            place.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", device)
        with left.entered():
            assert answers("192.0.2.2", tries=2) == passes
