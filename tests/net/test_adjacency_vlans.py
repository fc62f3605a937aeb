"""Bridges that filter VLANs, and VLAN devices under bridges: on the kernel that has them."""

from collections.abc import Iterator

import pytest

from netsetup.adjacency import Adjacency
from netsetup.segments import Segment, View
from netsetup.traps import TrapKind
from tests.support.adjacency_pair import (
    PROBED,
    Ground,
    Network,
    Truth,
    built,
    differences,
    pair_on,
    passes,
    silent,
)
from tests.support.adjacency_places import switch
from tests.support.netns import Namespace, add_bridge

pytestmark = [pytest.mark.net, pytest.mark.uml]

VLAN_10, VLAN_20 = Segment("br0", 10), Segment("br0", 20)
FILTERED = frozenset({TrapKind.VLAN_FILTER})


def _filter(place: Namespace, bridge: str = "br0") -> None:
    place.run("ip", "link", "set", bridge, "type", "bridge", "vlan_filtering", "1")


def _member(place: Namespace, port: str, vid: int, *flags: str) -> None:
    place.run("bridge", "vlan", "add", "dev", port, "vid", str(vid), *flags)


def trunks(ground: Ground) -> Iterator[None]:
    """Both hosts filter; their uplinks carry VLAN 10 tagged and VLAN 1 untagged."""
    switch(ground)
    for place in (ground.alpha, ground.beta):
        _filter(place)
        _member(place, "eth0", 10)
    yield


def narrow_trunk(ground: Ground) -> Iterator[None]:
    """The same, and the switch between lets VLAN 10 only through, of 10 and 20."""
    switch(ground)
    _filter(ground.between, "sw0")
    for port in ("alpha", "beta"):
        _member(ground.between, port, 10)
    for place in (ground.alpha, ground.beta):
        _filter(place)
        for vid in (10, 20):
            _member(place, "eth0", vid)
    yield


def not_a_member(ground: Ground) -> Iterator[None]:
    """Beta's uplink is not in VLAN 10."""
    switch(ground)
    for place in (ground.alpha, ground.beta):
        _filter(place)
    _member(ground.alpha, "eth0", 10)
    yield


def access_ports(ground: Ground) -> Iterator[None]:
    """Alpha tags VLAN 10, the switch takes it off, and beta's uplink puts it on again."""
    switch(ground)
    _filter(ground.between, "sw0")
    _member(ground.between, "alpha", 10)
    _member(ground.between, "beta", 10, "pvid", "untagged")
    for place in (ground.alpha, ground.beta):
        _filter(place)
    _member(ground.alpha, "eth0", 10)
    _member(ground.beta, "eth0", 10, "pvid", "untagged")
    yield


def wrong_access_port(ground: Ground) -> Iterator[None]:
    """What comes untagged to beta is VLAN 20 there."""
    switch(ground)
    for place in (ground.alpha, ground.beta):
        _filter(place)
    _member(ground.alpha, "eth0", 10, "pvid", "untagged")
    _member(ground.beta, "eth0", 10)
    _member(ground.beta, "eth0", 20, "pvid", "untagged")
    yield


def one_filters(ground: Ground) -> Iterator[None]:
    """Alpha's bridge filters and tags, beta's takes frames as they come."""
    switch(ground)
    _filter(ground.alpha)
    _member(ground.alpha, "eth0", 10)
    yield


def vlan_device(ground: Ground) -> Iterator[None]:
    """Alpha's bridge filters; on beta a bridge has a VLAN device, and knows nothing of VLANs."""
    with_alpha = one_filters(ground)
    next(with_alpha)
    beta = ground.beta
    beta.run("ip", "link", "set", "eth0", "nomaster")
    beta.run("ip", "link", "add", "link", "eth0", "name", "eth0.10", "type", "vlan", "id", "10")
    add_bridge(beta, "br10")
    beta.run("ip", "link", "set", "eth0.10", "master", "br10", "up")
    yield


def stp_and_filter(ground: Ground) -> Iterator[None]:
    """Beta filters under STP, and its own interface is not in VLAN 10."""
    with_trunks = trunks(ground)
    next(with_trunks)
    beta = ground.beta
    beta.run("ip", "link", "set", "br0", "type", "bridge", "stp_state", "1")
    yield


NETWORKS = {
    "trunks": Network(trunks, passes(), VLAN_10, VLAN_10),
    "trunks, untagged": Network(trunks, passes()),
    "trunks, the bridge's own view": Network(trunks, passes(), view=View.BRIDGE),
    # The port that looks would hear VLAN 1 too if it had kept what bridges give to new ports.
    "trunks, untagged there": Network(
        trunks, silent(TrapKind.VLAN_CHANGED, words="expected with VLAN 10"), PROBED, VLAN_10
    ),
    "narrow trunk": Network(narrow_trunk, passes(), VLAN_10, VLAN_10),
    "narrow trunk, the other VLAN": Network(narrow_trunk, silent(), VLAN_20, VLAN_20),
    "not a member": Network(
        not_a_member,
        silent(TrapKind.VLAN_FILTER, words="reach beta's eth0 with VLAN 10, and br0 does not let"),
        VLAN_10,
        VLAN_10,
    ),
    "access ports": Network(access_ports, passes(), VLAN_10, VLAN_10),
    "wrong access port": Network(
        wrong_access_port,
        Truth(
            Adjacency.NOT_ADJACENT,
            traps=frozenset({TrapKind.VLAN_CHANGED}),
            failed=("alpha",),  # what beta tags arrives: alpha's uplink is in that VLAN
            words="arrive on beta with VLAN 20; expected with VLAN 10",
        ),
        VLAN_10,
        VLAN_10,
    ),
    "one filters": Network(one_filters, passes(), VLAN_10, VLAN_10),
    "a VLAN device": Network(vlan_device, passes(), VLAN_10, Segment("br10")),
    "STP and a filter": Network(
        stp_and_filter,
        Truth(Adjacency.UNKNOWN, words="beta's br0 is not in VLAN 10 itself"),
        VLAN_10,
        VLAN_10,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
async def test_the_verdict_is_what_is_true_of_the_network(name: str) -> None:
    network = NETWORKS[name]
    with built(network) as ground:
        async with pair_on(ground) as pair:
            verdict, _, _ = await pair.probe(network)
            assert differences(verdict, network.truth) == [], verdict.why
