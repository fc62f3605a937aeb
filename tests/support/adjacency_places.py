"""Networks between two hosts, and what is true of each; what this kernel can do."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from netsetup.adjacency import Adjacency
from netsetup.segments import Segment, View
from netsetup.traps import TrapKind
from tests.support.adjacency_pair import PROBED, Ground, Network, Truth, passes, silent
from tests.support.netns import Namespace, add_bridge, open_tap

GUEST = "52:54:00:aa:00:01"
TUNNEL_ALIAS = "qmigrate:tunnel=1a2b3c4d part=port"


def switch(ground: Ground, mtu: int = 1500) -> None:
    """Make a switch of the machine between."""
    add_bridge(ground.between, "sw0")
    for port in ("alpha", "beta"):
        ground.between.run("ip", "link", "set", port, "mtu", str(mtu))
        ground.between.run("ip", "link", "set", port, "master", "sw0", "up")


def _wait_settled(place: Namespace, *ports: str) -> None:
    """Wait until the kernel has noticed that the ports have a carrier, and STP has decided."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        links = [
            json.loads(place.run("ip", "-j", "-d", "link", "show", "dev", port))[0]
            for port in ports
        ]
        states = {link["linkinfo"]["info_slave_data"]["state"] for link in links}
        if states <= {"forwarding", "blocking"} and "forwarding" in states:
            return
    raise AssertionError(f"{ports} have not settled within 20 s")


def _hosts_mtu(ground: Ground, mtu: int) -> None:
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "eth0", "mtu", str(mtu))
        place.run("ip", "link", "set", "br0", "mtu", str(mtu))


def same_segment(ground: Ground) -> Iterator[None]:
    """One switch."""
    switch(ground)
    yield


def two_subnets(ground: Ground) -> Iterator[None]:
    """A router, which answers ARP for everybody on both sides: all but frames passes."""
    for number, port in enumerate(("alpha", "beta"), 1):
        ground.between.run("ip", "link", "set", port, "up")
        ground.between.run("ip", "address", "add", f"10.0.{number}.254/24", "dev", port)
        for key in ("forwarding", "proxy_arp"):
            ground.between.run("sysctl", "-qw", f"net.ipv4.conf.{port}.{key}=1")
    for number, place in enumerate((ground.alpha, ground.beta), 1):
        place.run("ip", "address", "add", f"10.0.{number}.1/24", "dev", "br0")
        place.run("ip", "route", "add", "10.0.0.0/16", "via", f"10.0.{number}.254")
    yield


def _tunnel(ground: Ground, alias: str | None) -> None:
    for number, place in enumerate((ground.alpha, ground.beta), 1):
        place.run(
            *("ip", "link", "add", "vx0", "mtu", "1500", "type", "vxlan", "id", "7"),
            *("local", f"10.0.{number}.1", "remote", f"10.0.{3 - number}.1", "dstport", "4789"),
        )
        if alias is not None:
            place.run("ip", "link", "set", "vx0", "alias", alias)
    add_bridge(ground.beta, "private")
    ground.alpha.run("ip", "link", "set", "vx0", "master", "br0", "up")
    ground.beta.run("ip", "link", "set", "vx0", "master", "private", "up")


def our_tunnel(ground: Ground) -> Iterator[None]:
    """Two subnets, and a tunnel of ours from alpha's br0 to a private bridge on beta."""
    with contextmanager(two_subnets)(ground):
        _tunnel(ground, TUNNEL_ALIAS)
        yield


def foreign_tunnel(ground: Ground) -> Iterator[None]:
    """The same, made by somebody else."""
    with contextmanager(two_subnets)(ground):
        _tunnel(ground, None)
        yield


def small_mtu(ground: Ground) -> Iterator[None]:
    """The switch's ports are narrower than the hosts'."""
    switch(ground, mtu=1400)
    yield


def narrow_host(ground: Ground) -> Iterator[None]:
    """Alpha's own uplink is narrow."""
    switch(ground)
    ground.alpha.run("ip", "link", "set", "eth0", "mtu", "1400")
    yield


def jumbo(ground: Ground) -> Iterator[None]:
    """9000 everywhere."""
    _hosts_mtu(ground, 9000)
    switch(ground, mtu=9000)
    yield


def jumbo_hosts(ground: Ground) -> Iterator[None]:
    """9000 at the hosts and 1500 between them."""
    _hosts_mtu(ground, 9000)
    switch(ground)
    yield


def one_way(ground: Ground) -> Iterator[None]:
    """What the switch sends to beta is lost."""
    switch(ground)
    ground.between.run("tc", "qdisc", "replace", "dev", "beta", "root", "blackhole")
    yield


def stp_ring(ground: Ground) -> Iterator[None]:
    """Beta has two cables to the switch, and STP, once it has settled, has shut one of them."""
    switch(ground)
    ground.between.run(
        *("ip", "link", "add", "beta2", "type", "veth"),
        *("peer", "name", "eth1", "netns", ground.beta.path),
    )
    quick = ("stp_state", "1", "forward_delay", "200", "hello_time", "100", "max_age", "600")
    for place, bridge in ((ground.between, "sw0"), (ground.beta, "br0")):
        place.run("ip", "link", "set", bridge, "type", "bridge", *quick)
    ground.between.run("ip", "link", "set", "beta2", "master", "sw0", "up")
    ground.beta.run("ip", "link", "set", "eth1", "master", "br0", "up")
    _wait_settled(ground.between, "alpha", "beta", "beta2")
    _wait_settled(ground.beta, "eth0", "eth1")
    yield


def stp_listens(ground: Ground) -> Iterator[None]:
    """Beta's uplink has just come up under STP, and will forward in half a minute."""
    switch(ground)
    beta = ground.beta
    beta.run(
        "ip", "link", "set", "br0", "type", "bridge", "forward_delay", "3000", "stp_state", "1"
    )
    beta.run("ip", "link", "set", "eth0", "down")
    beta.run("ip", "link", "set", "eth0", "up")
    yield


def bridge_down(ground: Ground) -> Iterator[None]:
    """Alpha's bridge is down."""
    switch(ground)
    ground.alpha.run("ip", "link", "set", "br0", "down")
    yield


def unplugged(ground: Ground) -> Iterator[None]:
    """Alpha's cable is out."""
    switch(ground)
    ground.between.run("ip", "link", "set", "alpha", "down")
    yield


def other_bridge(ground: Ground) -> Iterator[None]:
    """Beta's uplink is in another bridge than the one that is asked for."""
    switch(ground)
    add_bridge(ground.beta, "br1")
    ground.beta.run("ip", "link", "set", "eth0", "master", "br1")
    yield


def isolated_uplinks(ground: Ground) -> Iterator[None]:
    """The uplinks are isolated ports, as tunnels' are."""
    switch(ground)
    for place in (ground.alpha, ground.beta):
        place.run("bridge", "link", "set", "dev", "eth0", "isolated", "on")
    yield


def hairpin(ground: Ground) -> Iterator[None]:
    """The switch sends back to alpha what comes from alpha."""
    switch(ground)
    ground.between.run("bridge", "link", "set", "dev", "alpha", "hairpin", "on")
    yield


def same_macs(ground: Ground) -> Iterator[None]:
    """Beta was cloned from alpha, its bridge's address too."""
    switch(ground)
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "br0", "address", "02:00:00:00:00:01")
    yield


def two_paths(ground: Ground) -> Iterator[None]:
    """A second cable beside the first, and isolation that keeps it from being a loop."""
    switch(ground)
    ground.alpha.run(
        *("ip", "link", "add", "eth1", "type", "veth"),
        *("peer", "name", "eth1", "netns", ground.beta.path),
    )
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "eth1", "master", "br0")
        for port in ("eth0", "eth1"):
            place.run("bridge", "link", "set", "dev", port, "isolated", "on")
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "eth1", "up")
    yield


def _stranger_with_the_guests_mac(ground: Ground) -> Iterator[None]:
    beta = ground.beta
    beta.run("ip", "tuntap", "add", "other", "mode", "tap")
    beta.run("ip", "link", "set", "other", "master", "br0", "up")
    with beta.entered(), ExitStack() as stack:
        stack.callback(os.close, open_tap("other"))
        _wait_settled(beta, "other")
        beta.run("bridge", "fdb", "replace", GUEST, "dev", "other", "master", "dynamic")
        yield


def same_guest_mac(ground: Ground) -> Iterator[None]:
    """Somebody on beta has the guest's address, in another network."""
    with contextmanager(two_subnets)(ground):
        yield from _stranger_with_the_guests_mac(ground)


def same_guest_mac_here(ground: Ground) -> Iterator[None]:
    """Somebody on beta has the guest's address, on the same segment."""
    switch(ground)
    yield from _stranger_with_the_guests_mac(ground)


_NARROW = frozenset({TrapKind.MTU_TOO_SMALL})
VLAN_10, VLAN_20 = Segment("br0", 10), Segment("br0", 20)
PRIVATE = Segment("private")

# A Linux port lets 4 bytes more pass than its MTU, for a tag that may be there or not.
NETWORKS: dict[str, Network] = {
    "same-segment": Network(same_segment, passes()),
    "same-segment as a port": Network(same_segment, passes(), view=View.PORT),
    "two-subnets": Network(two_subnets, silent()),
    "two-subnets as a port": Network(two_subnets, silent(), view=View.PORT),
    "our tunnel": Network(our_tunnel, passes(through_tunnel=TUNNEL_ALIAS), beta=PRIVATE),
    "foreign tunnel": Network(foreign_tunnel, passes(words="vx0, which is not ours"), beta=PRIVATE),
    "small-mtu": Network(small_mtu, Truth(Adjacency.NOT_ADJACENT, 1404, _NARROW)),
    "narrow host": Network(
        narrow_host,
        Truth(Adjacency.NOT_ADJACENT, 1404, _NARROW, words="alpha's eth0 has MTU 1400"),
    ),
    "small-mtu, small guest": Network(small_mtu, passes(1400), mtu_bytes=1400),
    "jumbo": Network(jumbo, passes(9000), mtu_bytes=9000),
    "jumbo hosts": Network(
        jumbo_hosts, Truth(Adjacency.NOT_ADJACENT, 1504, _NARROW), mtu_bytes=9000
    ),
    "jumbo hosts, usual guest": Network(jumbo_hosts, passes()),
    "one way": Network(one_way, Truth(Adjacency.NOT_ADJACENT, failed=("alpha",))),
    "stp ring": Network(stp_ring, passes()),
    "stp listens": Network(
        stp_listens,
        Truth(Adjacency.UNKNOWN, traps=frozenset({TrapKind.STP_NOT_FORWARDING}), words="later"),
    ),
    "bridge down": Network(
        bridge_down,
        Truth(
            Adjacency.UNKNOWN, traps=frozenset({TrapKind.BRIDGE_DOWN}), words="alpha's br0 is down"
        ),
    ),
    "unplugged": Network(unplugged, silent(TrapKind.NO_WAY_OUT, words="eth0 has no carrier")),
    "other bridge": Network(
        other_bridge, silent(TrapKind.OTHER_BRIDGE, TrapKind.NO_WAY_OUT, words="port of br1")
    ),
    "vlan": Network(same_segment, passes(), VLAN_10, VLAN_10),
    "vlan as a port": Network(same_segment, passes(), VLAN_10, VLAN_10, view=View.PORT),
    "vlan mismatch": Network(
        same_segment, silent(TrapKind.VLAN_CHANGED, words="with VLAN 10;"), VLAN_10, VLAN_20
    ),
    "vlan on one side": Network(
        same_segment, silent(TrapKind.VLAN_CHANGED, words="untagged; expected"), PROBED, VLAN_20
    ),
    "isolated uplinks": Network(isolated_uplinks, passes()),
    "isolated guest": Network(
        isolated_uplinks, silent(TrapKind.PORT_ISOLATED, words="isolated"), isolated=True
    ),
    "isolated guest, open uplinks": Network(same_segment, passes(), isolated=True),
    "hairpin": Network(hairpin, passes(1500, TrapKind.LOOP)),
    "same macs": Network(same_macs, Truth(Adjacency.UNKNOWN, 1500, frozenset({TrapKind.SAME_MAC}))),
    "same macs as ports": Network(same_macs, passes(), view=View.PORT),
    "two paths": Network(two_paths, passes(1500, TrapKind.TWO_PATHS)),
    "guest's mac there": Network(
        same_guest_mac, silent(TrapKind.GUEST_MAC_THERE, words="at other"), guest_mac=GUEST
    ),
    "guest's mac twice": Network(
        same_guest_mac_here, passes(1500, TrapKind.GUEST_MAC_THERE), guest_mac=GUEST
    ),
}
