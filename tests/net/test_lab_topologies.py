"""Each lab that has a name is the network that it says: who hears whom, and how much passes."""

import json
import os
import select
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

from qmigrate.core.errors import HostError
from qmigrate.lab.lab import Lab
from qmigrate.lab.topologies import TOPOLOGIES
from tests.support.lab_traces import traces
from tests.support.netns import Namespace, drain, open_tap, packet_socket
from tests.support.ping import answers

pytestmark = pytest.mark.net

Place = tuple[str, str]  # node, interface
_OURS = 0x88B5  # IEEE 802 local experimental EtherType 1
_SOL_PACKET, _PACKET_AUXDATA, _VLAN_VALID = 263, 8, 1 << 4  # <linux/if_packet.h>
_labs = count()


def br0(*hosts: str) -> set[Place]:
    return {(host, "br0") for host in hosts}


ONE_SEGMENT = [{*br0("alpha", "beta"), ("client", "uplink")}]
HOME = {*br0("alpha"), ("client", "uplink"), ("router", "port-alpha")}
TWO_SUBNETS = [HOME, {*br0("gamma"), ("router", "port-gamma")}]


@dataclass(frozen=True)
class Truth:
    """What must be so; places that are on no common segment must not hear each other."""

    segments: list[set[Place]]  # who hears whom
    neighbours: set[str]  # hosts that answer the client without a router
    mtu_bytes: dict[str, int]  # from alpha to each other host: what passes whole


TRUTHS = {
    "same-segment": Truth(ONE_SEGMENT, {"alpha", "beta"}, {"beta": 1500}),
    "two-subnets": Truth(TWO_SUBNETS, {"alpha"}, {"gamma": 1500}),
    "three-sites": Truth(
        [*TWO_SUBNETS, {*br0("delta"), ("router", "port-delta")}],
        {"alpha"},
        {"gamma": 1500, "delta": 1500},
    ),
    "small-mtu": Truth(
        [
            {*br0("alpha", "beta"), ("client", "uplink"), ("router", "port-home")},
            {("router", "wan"), ("far-router", "wan")},
            {("far-router", "port-gamma"), *br0("gamma")},
        ],
        {"alpha", "beta"},
        {"beta": 1400, "gamma": 1400},
    ),
    "jumbo": Truth(TWO_SUBNETS, {"alpha"}, {"gamma": 9000}),
    "stp": Truth(ONE_SEGMENT, {"alpha", "beta"}, {"beta": 1500}),
    "vlan": Truth(
        [
            *ONE_SEGMENT,
            {("alpha", "br10"), ("beta", "br10"), ("client", "uplink10")},
            {("alpha", "br20"), ("beta", "br20"), ("client", "uplink20")},
        ],
        {"alpha", "beta"},
        {"beta": 1500},
    ),
}
# The kernel that these tests run on may be without: tests/net/test_uml_lab.py.
ELSEWHERE = {"vlan-aware"}


@contextmanager
def namespace_of(lab: Lab, node: str) -> Iterator[Namespace]:
    """Hold the network namespace of a node."""
    [pid] = [n.pid for n in lab.status().nodes if n.name == node]
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Namespace(descriptor)
    finally:
        os.close(descriptor)


class Ears:
    """A packet socket at each place, for frames of ours."""

    def __init__(self, lab: Lab, places: set[Place], stack: ExitStack) -> None:
        self._sockets = {}
        for node, interface in places:
            with namespace_of(lab, node) as namespace, namespace.entered():
                self._sockets[node, interface] = stack.enter_context(
                    packet_socket(interface, _OURS)
                )

    def call(self, word: bytes) -> None:
        """Broadcast from each place its own name and `word`."""
        for (node, interface), sock in self._sockets.items():
            source = sock.getsockname()[4]
            header = b"\xff" * 6 + source + struct.pack("!H", _OURS)
            sock.send(header + f"{node} {interface} ".encode() + word + b"\n" + bytes(40))

    def hear(self, place: Place, until: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        """Return what has come to `place`, each (node, interface, word), once `until` is there."""
        heard: Counter[tuple[str, ...]] = Counter()
        while until - heard:
            try:
                frame = self._sockets[place].recv(2000)
            except TimeoutError:
                missing = sorted(until - heard)
                raise AssertionError(f"{place} has not heard {missing}") from None
            heard[_words(frame)] += 1
        return heard + self.more(place)

    def more(self, place: Place) -> Counter[tuple[str, ...]]:
        """Return what waits at `place`."""
        heard: Counter[tuple[str, ...]] = Counter()
        while select.select([self._sockets[place]], [], [], 0)[0]:
            heard[_words(self._sockets[place].recv(2000))] += 1
        return heard


def _words(frame: bytes) -> tuple[str, ...]:
    return tuple(frame[14:].partition(b"\n")[0].decode().split())


@pytest.fixture(scope="module", params=TRUTHS)
def standing(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Truth]]:
    """A lab of each topology in turn, of which nothing is left at its end."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network, mount and PID namespaces")
    lab = Lab(f"test-{os.getpid()}-topology-{next(_labs)}")
    try:
        lab.up(TOPOLOGIES[request.param])
        assert traces(lab.name) != set()
        yield lab, TRUTHS[request.param]
    finally:
        lab.down()
    assert traces(lab.name) == set()


@pytest.fixture
def only(standing: tuple[Lab, Truth], request: pytest.FixtureRequest) -> Lab:
    """The lab, for tests of the one topology that they are marked with."""
    return standing[0]


def one(name: str) -> pytest.MarkDecorator:
    """Let a test run on the topology `name` only."""
    return pytest.mark.parametrize("standing", [name], indirect=True)


def test_every_topology_is_in_the_table() -> None:
    assert TRUTHS.keys() | ELSEWHERE == TOPOLOGIES.keys()


def test_frames_are_heard_on_their_own_segment_once_and_nowhere_else(
    standing: tuple[Lab, Truth],
) -> None:
    lab, truth = standing
    with ExitStack() as stack:
        ears = Ears(lab, set().union(*truth.segments), stack)
        # What was sent first on a path arrives first: when all of the second round has come,
        # nothing of the first is under way any more.
        ears.call(b"first")
        ears.call(b"second")
        for segment in truth.segments:
            for place in segment:
                others = segment - {place}
                expected: Counter[tuple[str, ...]] = Counter(
                    (*o, word) for o in others for word in ("first", "second")
                )
                assert ears.hear(place, expected) == expected, place
        late = {p: more for s in truth.segments for p in s if (more := ears.more(p))}
        assert late == {}


def test_every_host_answers_and_without_a_router_only_neighbours_do(
    standing: tuple[Lab, Truth],
) -> None:
    lab, truth = standing
    hosts = [node for node in lab.status().nodes if node.kind == "host"]
    with namespace_of(lab, "client") as client, client.entered():
        for host in hosts:
            address = host.addresses[0].partition("/")[0]
            assert answers(address), host.name
            near = answers(address, ttl=1, tries=1, wait_s=0.3)
            assert near == (host.name in truth.neighbours), host.name
    for host in hosts:
        address = host.addresses[1].partition("/")[0]
        lab.run("client", ["busybox", "ping", "-6", "-c1", "-W5", address])


def test_what_fits_passes_whole_and_a_byte_more_does_not(standing: tuple[Lab, Truth]) -> None:
    lab, truth = standing
    nodes = {node.name: node.addresses[0].partition("/")[0] for node in lab.status().nodes
             if node.addresses}  # fmt: skip
    with namespace_of(lab, "alpha") as alpha, alpha.entered():
        for host, mtu_bytes in truth.mtu_bytes.items():
            assert answers(nodes[host], size_bytes=mtu_bytes, df=True), host
            # A bridge lets a frame pass that is longer by a VLAN tag, whether it has one or not.
            for more in (5, 100):
                too_long = mtu_bytes + more
                assert not answers(nodes[host], size_bytes=too_long, df=True, tries=2, wait_s=0.2)


def test_ssh_reaches_every_host_from_the_client(standing: tuple[Lab, Truth]) -> None:
    lab, _ = standing
    for host in lab.status().nodes:
        if host.kind == "host":
            command = ["ssh", "-F", str(lab.ssh_config), host.name, "head -c 200000 /dev/zero"]
            assert len(lab.run("client", command).stdout) == 200_000, host.name


def test_a_host_that_lost_its_power_has_its_place_again(standing: tuple[Lab, Truth]) -> None:
    lab, truth = standing
    for name in {node for segment in truth.segments for node, _ in segment} - {"client"}:
        lab.power_off(name)
        lab.power_on(name)
    test_every_host_answers_and_without_a_router_only_neighbours_do(standing)
    test_frames_are_heard_on_their_own_segment_once_and_nowhere_else(standing)


@one("small-mtu")
def test_the_narrow_path_takes_fragments_by_the_routers_and_none_on_the_segment(only: Lab) -> None:
    with namespace_of(only, "client") as client, client.entered():
        assert answers("10.77.2.1", size_bytes=1500)
        assert answers("10.77.2.1", size_bytes=1400, df=True)
        assert not answers("10.77.1.2", size_bytes=1500, tries=2, wait_s=0.2), "a black hole"


@one("stp")
def test_stp_shuts_one_cable_of_the_ring_and_makes_a_new_port_wait(only: Lab) -> None:
    links = [
        json.loads(only.run(switch, ["bridge", "-j", "link"]).stdout)
        for switch in ("switch", "switch2")
    ]
    states = Counter(link["state"] for one_switch in links for link in one_switch)
    assert states == {"forwarding": 6, "blocking": 1}
    with namespace_of(only, "alpha") as alpha:
        alpha.run("ip", "tuntap", "add", "late", "mode", "tap")
        try:
            with alpha.entered():
                tap = open_tap("late")
                alpha.run("ip", "link", "set", "late", "master", "br0", "up")
                [late] = json.loads(alpha.run("bridge", "-j", "link", "show", "dev", "late"))
                assert late["state"] == "listening"
                uplink = packet_socket("uplink")  # BPDUs have a length where others have a type
                uplink.settimeout(10)
                with uplink:
                    while uplink.recv(2000)[:6] != bytes.fromhex("0180c2000000"):
                        pass
                drain(tap)
                os.close(tap)
        finally:
            alpha.run("ip", "link", "delete", "late")


@one("vlan")
def test_tagged_frames_pass_br0_with_their_tag(only: Lab) -> None:
    with ExitStack() as stack:
        ends = {}
        for host in ("alpha", "beta"):
            namespace = stack.enter_context(namespace_of(only, host))
            with namespace.entered():
                ends[host] = stack.enter_context(packet_socket("uplink"))
        ends["beta"].setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        source = bytes.fromhex("020000000001")
        ends["alpha"].send(
            b"\xff" * 6 + source + struct.pack("!HHH", 0x8100, 30, _OURS) + bytes(46)
        )
        while True:
            frame, notes, _, _ = ends["beta"].recvmsg(2000, 100)
            if frame[6:12] == source:
                break
    [note] = [
        data for level, kind, data in notes if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA)
    ]
    status, tci = struct.unpack_from("I", note)[0], struct.unpack_from("H", note, 16)[0]
    assert status & _VLAN_VALID
    assert tci & 0xFFF == 30
    assert socket.ntohs(_OURS) == struct.unpack_from("H", frame, 12)[0]


def test_a_kernel_without_vlan_filtering_says_so_or_has_the_lab(spare_lab: Lab) -> None:
    probe = ["unshare", "--net", "ip", "link", "add", "b", "type", "bridge", "vlan_filtering", "1"]
    if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
        spare_lab.up(TOPOLOGIES["vlan-aware"])
    else:
        with pytest.raises(HostError, match="topology vlan does without"):
            spare_lab.up(TOPOLOGIES["vlan-aware"])
        assert traces(spare_lab.name) == set()
