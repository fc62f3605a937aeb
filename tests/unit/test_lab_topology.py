"""A topology says what is wrong with it, and reads as iproute2 lines."""

from dataclasses import asdict, replace

import cattrs
import pytest

from qmigrate.core.errors import UsageError
from qmigrate.lab.topologies import TOPOLOGIES, find, guest_addresses
from qmigrate.lab.topology import (
    Address,
    Bridge,
    Cable,
    Egress,
    End,
    Node,
    NodeKind,
    Topology,
    Vlan,
    address_lines,
    bridge_lines,
    cable_lines,
    egress_lines,
    port_lines,
    port_mac,
    rate_lines,
    read_egress,
    vlan_lines,
    working_links,
)

SAME_SEGMENT = TOPOLOGIES["same-segment"]
A = Node("a", NodeKind.CLIENT)
B = Node("b", NodeKind.CLIENT)
JOINED = Cable((End("a", "eth0"), End("b", "eth0")))


@pytest.mark.parametrize(
    ("nodes", "cables", "words"),
    [
        ((A, A), (), "two nodes are called a"),
        ((replace(A, name="A/b"),), (), "'A/b' is no name for a node"),
        ((A,), (JOINED,), "a cable ends in b, which does not exist"),
        ((A, B), (JOINED, JOINED), "two cables are plugged into a eth0"),
        ((A, B), (Cable((End("a", "x" * 16), End("b", "y"))),), "is no name for an interface"),
        ((replace(A, bridges=(Bridge("br0", ("eth7",)),)),), (), "a has no eth7 to bridge"),
        ((replace(A, addresses=(Address("eth0", "10.0.0.1/24"),)),), (), "a has no eth0 for 10."),
        ((replace(A, addresses=(Address("lo", "10.0.0.999/24"),)),), (), "10.0.0.999"),
        ((replace(A, kind=NodeKind.HOST),), (), "a has no address to reach it by"),
        ((replace(A, bridges=(Bridge("br0", forward_delay_s=1),)),), (), "a: br0's forward delay"),
        ((replace(A, bridges=(Bridge("br0", vlans=(Vlan("x", 2),)),)),), (), "no port x for VLAN"),
        ((replace(A, bridges=(Bridge("br0", (), vlans=(Vlan("x", 4095),)),)),), (), "4095 is no"),
    ],
)  # fmt: skip
def test_a_topology_that_cannot_stand_says_why(
    nodes: tuple[Node, ...], cables: tuple[Cable, ...], words: str
) -> None:
    with pytest.raises(UsageError, match="topology t: ") as caught:
        Topology("t", nodes, cables)
    assert words in str(caught.value)


def test_the_lines_of_a_host_make_what_the_topology_says() -> None:
    topology = SAME_SEGMENT.with_mtu(1600).with_rate(10**9)
    cables = topology.cables_of("beta")
    assert cable_lines(topology, cables, "/ns/{}".format) == [
        (
            "link add uplink index 1001 netns /ns/beta address 02:71:6d:01:01:00 mtu 1600 "
            "type veth peer name port-beta netns /ns/switch address 02:71:6d:01:03:01 mtu 1600"
        )
    ]
    assert bridge_lines(topology, "beta") == [
        "link set lo up",
        (
            "link add br0 mtu 1600 address 02:71:6d:00:01:00 type bridge "
            "stp_state 0 forward_delay 0 mcast_snooping 0"
        ),
        "link set br0 up",
    ]
    assert port_lines(topology, "beta", cables) == ["link set uplink master br0 up"]
    assert working_links(topology, "beta", cables) == ["uplink", "br0"]
    assert address_lines(topology, "beta") == [
        "address add 10.77.0.2/24 dev br0",
        "address add fd71:6d69:6772::2/64 dev br0",
    ]
    assert rate_lines("beta", cables) == [
        "qdisc replace dev uplink root noqueue",
        (
            "qdisc replace dev uplink root handle 1: tbf rate 1000000000bit "
            "burst 625000b latency 50ms"
        ),
    ]  # fmt: skip


def test_a_bridge_with_a_forward_delay_speaks_stp() -> None:
    [_, line, _] = bridge_lines(TOPOLOGIES["stp"], "alpha")
    assert line.endswith(
        "stp_state 1 forward_delay 200 hello_time 100 max_age 600 mcast_snooping 0"
    )


def test_the_ports_of_a_vlan_aware_bridge_are_put_into_their_vlans() -> None:
    vlans = (Vlan("eth0", 10), Vlan("eth0", 20), Vlan("eth1", 20, access=True))
    bridge = Bridge("br0", ("eth0", "eth1"), vlans=vlans)
    cables = tuple(Cable((End("a", port), End("b", port))) for port in bridge.ports)
    topology = Topology("t", (replace(A, bridges=(bridge,)), B), cables)
    assert "vlan_filtering 1 vlan_default_pvid 1" in bridge_lines(topology, "a")[1]
    assert vlan_lines(topology, "a", cables) == [
        "vlan add dev eth0 vid 10",
        "vlan add dev eth0 vid 20",
        "vlan add dev eth1 vid 20 pvid untagged",
        "vlan del dev eth1 vid 1",
    ]
    assert vlan_lines(topology, "a", cables[1:])[0] == "vlan add dev eth1 vid 20 pvid untagged"
    assert vlan_lines(topology, "b", cables) == []


def test_a_cables_end_has_an_address_of_its_own_that_stays() -> None:
    for topology in TOPOLOGIES.values():
        ends = [end for cable in topology.cables for end in cable.ends]
        assert len({port_mac(topology, end) for end in ends}) == len(ends)


@pytest.mark.parametrize(
    ("topology", "host", "expected"),
    [
        ("same-segment", "beta", ("10.77.0.10/24", "fd71:6d69:6772::a/64")),
        ("two-subnets", "alpha", ("10.77.1.10/24", "fd71:6d69:6772:1::a/64")),
        ("three-sites", "delta", ("10.77.3.10/24", "fd71:6d69:6772:3::a/64")),
    ],
)
def test_a_guest_is_born_into_the_subnet_of_its_hosts_bridge(
    topology: str, host: str, expected: tuple[str, ...]
) -> None:
    assert guest_addresses(find(topology), host) == expected


def test_a_name_that_no_topology_has_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="no topology 'moon'") as caught:
        find("moon")
    assert "two-subnets" in (caught.value.problem.next_step or "")


def test_only_addresses_on_replugged_cables_are_given_again() -> None:
    cables = SAME_SEGMENT.cables_of("client")
    assert address_lines(SAME_SEGMENT, "client", cables) == address_lines(SAME_SEGMENT, "client")
    assert address_lines(SAME_SEGMENT, "client", SAME_SEGMENT.cables_of("alpha")) == []
    assert address_lines(SAME_SEGMENT, "beta", SAME_SEGMENT.cables_of("beta")) == []  # on br0


def test_near_ends_never_share_an_index_with_far_ones() -> None:
    lines = cable_lines(SAME_SEGMENT, SAME_SEGMENT.cables, str)
    indices = [int(line.split()[line.split().index("index") + 1]) for line in lines]
    assert len(set(indices)) == len(indices)
    assert min(indices) > 100  # far ends count up from 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: SAME_SEGMENT.with_mtu(1279), "MTU 1279 is not between"),
        (lambda: SAME_SEGMENT.with_mtu(65536), "MTU 65536 is not between"),
        (lambda: SAME_SEGMENT.with_rate(0), "cannot carry 0 bit/s"),
        (lambda: SAME_SEGMENT.node("gamma"), "no host 'gamma'"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_topology_is_a_usage_error(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=words):
        change()


# Recorded: tc -j qdisc show, iproute2 6.1.0, Linux 6.18, after the lines of `egress_lines`.
TBF = {"kind": "tbf", "handle": "1:", "root": True, "refcnt": 3,
       "options": {"rate": 125000000, "burst": 625000, "lat": 50000}}  # fmt: skip
CHILD = {"kind": "blackhole", "handle": "8006:", "parent": "1:1", "options": {}}
ROOT = {"kind": "blackhole", "handle": "8003:", "root": True, "refcnt": 3, "options": {}}
NONE = {"kind": "noqueue", "handle": "8004:", "root": True, "refcnt": 3, "options": {}}


@pytest.mark.parametrize(
    ("rate_bps", "cut", "last_line", "shown"),
    [
        (None, False, "root noqueue", [NONE]),
        (None, True, "root blackhole", [ROOT]),
        (10**9, False, "latency 50ms", [TBF]),
        (10**9, True, "parent 1:1 blackhole", [TBF, CHILD]),
    ],
)
def test_what_tc_was_told_is_what_is_read_back(
    rate_bps: int | None,
    cut: bool,
    last_line: str,
    shown: list[dict[str, object]],
) -> None:
    assert egress_lines("uplink", rate_bps, cut=cut)[-1].endswith(last_line)
    found = read_egress({**qdisc, "dev": "uplink"} for qdisc in shown)
    assert found.get("uplink", Egress()) == Egress(rate_bps, cut)


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_a_topology_survives_being_written_down(topology: Topology) -> None:
    assert cattrs.structure(asdict(topology), Topology) == topology
