"""Networks between two hosts, alpha and beta, and what is true of each; built in namespaces.

`python -m tests.support.adjacency_places --tries 100 [NAME…]` (root) probes each so often and
prints a table: right verdicts, and how long they took.
"""

import argparse
import json
import os
import secrets
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from netsetup.adjacency import Adjacency, Verdict, judge
from netsetup.prober import Prober, open_prober
from netsetup.rtnl import Rtnl
from netsetup.segments import Segment, View
from netsetup.traps import Side, TrapKind
from tests.support.netns import Namespace, add_bridge, fresh_namespace, open_tap

GUEST = "52:54:00:aa:00:01"
TUNNEL_ALIAS = "qmigrate:tunnel=1a2b3c4d part=port"
PROBED = Segment("br0")
TRIES_A_BUILD = 25


@dataclass(frozen=True)
class Ground:
    """Two hosts with br0 and eth0 in it, and the machine between them with ports alpha, beta."""

    alpha: Namespace
    beta: Namespace
    between: Namespace


@dataclass(frozen=True)
class Truth:
    """What a verdict must say."""

    adjacency: Adjacency
    mtu_bytes: int | None = None
    traps: frozenset[TrapKind] = frozenset()
    failed: tuple[str, ...] = ()  # sources of the directions in which nothing passes
    through_tunnel: str | None = None
    words: str = ""  # in `why`


@dataclass(frozen=True)
class Network:
    """A network and how to ask about it."""

    build: Callable[[Ground], Iterator[None]]
    truth: Truth
    alpha: Segment = PROBED
    beta: Segment = PROBED
    mtu_bytes: int = 1500
    isolated: bool = False
    guest_mac: str | None = None
    view: View | None = None


def _silent(*traps: TrapKind, words: str = "no frame passes") -> Truth:
    failed = ("alpha", "beta")
    return Truth(Adjacency.NOT_ADJACENT, None, frozenset(traps), failed, words=words)


def _passes(mtu_bytes: int = 1500, *traps: TrapKind, **more: str) -> Truth:
    return Truth(Adjacency.ADJACENT, mtu_bytes, frozenset(traps), **more)


def _switch(ground: Ground, mtu: int = 1500) -> None:
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


def _notice_carriers(ground: Ground) -> None:
    """Wait until the kernel has noticed every carrier there is, which takes it up to a second.

    Until then a bridge drops what comes by the port: in truth nothing passes.
    """
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        links = [
            link
            for place in (ground.alpha, ground.beta, ground.between)
            for link in json.loads(place.run("ip", "-j", "link", "show"))
        ]
        late = [link for link in links if "LOWER_UP" in link["flags"]]
        if all(link["operstate"] in ("UP", "UNKNOWN") for link in late):
            return
    raise AssertionError("the kernel does not notice its carriers")


def _hosts_mtu(ground: Ground, mtu: int) -> None:
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "eth0", "mtu", str(mtu))
        place.run("ip", "link", "set", "br0", "mtu", str(mtu))


def same_segment(ground: Ground) -> Iterator[None]:
    """One switch."""
    _switch(ground)
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
    _switch(ground, mtu=1400)
    yield


def narrow_host(ground: Ground) -> Iterator[None]:
    """Alpha's own uplink is narrow."""
    _switch(ground)
    ground.alpha.run("ip", "link", "set", "eth0", "mtu", "1400")
    yield


def jumbo(ground: Ground) -> Iterator[None]:
    """9000 everywhere."""
    _hosts_mtu(ground, 9000)
    _switch(ground, mtu=9000)
    yield


def jumbo_hosts(ground: Ground) -> Iterator[None]:
    """9000 at the hosts and 1500 between them."""
    _hosts_mtu(ground, 9000)
    _switch(ground)
    yield


def one_way(ground: Ground) -> Iterator[None]:
    """What the switch sends to beta is lost."""
    _switch(ground)
    ground.between.run("tc", "qdisc", "replace", "dev", "beta", "root", "blackhole")
    yield


def stp_ring(ground: Ground) -> Iterator[None]:
    """Beta has two cables to the switch, and STP, once it has settled, has shut one of them."""
    _switch(ground)
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
    _switch(ground)
    beta = ground.beta
    beta.run(
        "ip", "link", "set", "br0", "type", "bridge", "forward_delay", "3000", "stp_state", "1"
    )
    beta.run("ip", "link", "set", "eth0", "down")
    beta.run("ip", "link", "set", "eth0", "up")
    yield


def bridge_down(ground: Ground) -> Iterator[None]:
    """Alpha's bridge is down."""
    _switch(ground)
    ground.alpha.run("ip", "link", "set", "br0", "down")
    yield


def unplugged(ground: Ground) -> Iterator[None]:
    """Alpha's cable is out."""
    _switch(ground)
    ground.between.run("ip", "link", "set", "alpha", "down")
    yield


def other_bridge(ground: Ground) -> Iterator[None]:
    """Beta's uplink is in another bridge than the one that is asked for."""
    _switch(ground)
    add_bridge(ground.beta, "br1")
    ground.beta.run("ip", "link", "set", "eth0", "master", "br1")
    yield


def isolated_uplinks(ground: Ground) -> Iterator[None]:
    """The uplinks are isolated ports, as tunnels' are."""
    _switch(ground)
    for place in (ground.alpha, ground.beta):
        place.run("bridge", "link", "set", "dev", "eth0", "isolated", "on")
    yield


def hairpin(ground: Ground) -> Iterator[None]:
    """The switch sends back to alpha what comes from alpha."""
    _switch(ground)
    ground.between.run("bridge", "link", "set", "dev", "alpha", "hairpin", "on")
    yield


def same_macs(ground: Ground) -> Iterator[None]:
    """Beta was cloned from alpha, its bridge's address too."""
    _switch(ground)
    for place in (ground.alpha, ground.beta):
        place.run("ip", "link", "set", "br0", "address", "02:00:00:00:00:01")
    yield


def two_paths(ground: Ground) -> Iterator[None]:
    """A second cable beside the first, and isolation that keeps it from being a loop."""
    _switch(ground)
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
    _switch(ground)
    yield from _stranger_with_the_guests_mac(ground)


_NARROW = frozenset({TrapKind.MTU_TOO_SMALL})
VLAN_10, VLAN_20 = Segment("br0", 10), Segment("br0", 20)
PRIVATE = Segment("private")

# A Linux port lets 4 bytes more pass than its MTU, for a tag that may be there or not.
NETWORKS: dict[str, Network] = {
    "same-segment": Network(same_segment, _passes()),
    "same-segment as a port": Network(same_segment, _passes(), view=View.PORT),
    "two-subnets": Network(two_subnets, _silent()),
    "two-subnets as a port": Network(two_subnets, _silent(), view=View.PORT),
    "our tunnel": Network(our_tunnel, _passes(through_tunnel=TUNNEL_ALIAS), beta=PRIVATE),
    "foreign tunnel": Network(
        foreign_tunnel, _passes(words="vx0, which is not ours"), beta=PRIVATE
    ),
    "small-mtu": Network(small_mtu, Truth(Adjacency.NOT_ADJACENT, 1404, _NARROW)),
    "narrow host": Network(
        narrow_host,
        Truth(Adjacency.NOT_ADJACENT, 1404, _NARROW, words="alpha's eth0 has MTU 1400"),
    ),
    "small-mtu, small guest": Network(small_mtu, _passes(1400), mtu_bytes=1400),
    "jumbo": Network(jumbo, _passes(9000), mtu_bytes=9000),
    "jumbo hosts": Network(
        jumbo_hosts, Truth(Adjacency.NOT_ADJACENT, 1504, _NARROW), mtu_bytes=9000
    ),
    "jumbo hosts, usual guest": Network(jumbo_hosts, _passes()),
    "one way": Network(one_way, Truth(Adjacency.NOT_ADJACENT, failed=("alpha",))),
    "stp ring": Network(stp_ring, _passes()),
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
    "unplugged": Network(unplugged, _silent(TrapKind.NO_WAY_OUT, words="eth0 has no carrier")),
    "other bridge": Network(
        other_bridge, _silent(TrapKind.OTHER_BRIDGE, TrapKind.NO_WAY_OUT, words="port of br1")
    ),
    "vlan": Network(same_segment, _passes(), VLAN_10, VLAN_10),
    "vlan as a port": Network(same_segment, _passes(), VLAN_10, VLAN_10, view=View.PORT),
    "vlan mismatch": Network(
        same_segment, _silent(TrapKind.VLAN_CHANGED, words="with VLAN 10;"), VLAN_10, VLAN_20
    ),
    "vlan on one side": Network(
        same_segment, _silent(TrapKind.VLAN_CHANGED, words="untagged; expected"), PROBED, VLAN_20
    ),
    "isolated uplinks": Network(isolated_uplinks, _passes()),
    "isolated guest": Network(
        isolated_uplinks, _silent(TrapKind.PORT_ISOLATED, words="isolated"), isolated=True
    ),
    "isolated guest, open uplinks": Network(same_segment, _passes(), isolated=True),
    "hairpin": Network(hairpin, _passes(1500, TrapKind.LOOP)),
    "same macs": Network(same_macs, Truth(Adjacency.UNKNOWN, 1500, frozenset({TrapKind.SAME_MAC}))),
    "same macs as ports": Network(same_macs, _passes(), view=View.PORT),
    "two paths": Network(two_paths, _passes(1500, TrapKind.TWO_PATHS)),
    "guest's mac there": Network(
        same_guest_mac, _silent(TrapKind.GUEST_MAC_THERE, words="at other"), guest_mac=GUEST
    ),
    "guest's mac twice": Network(
        same_guest_mac_here, _passes(1500, TrapKind.GUEST_MAC_THERE), guest_mac=GUEST
    ),
}


@contextmanager
def built(network: Network) -> Iterator[Ground]:
    """Make the two hosts and what is between them."""
    with (
        fresh_namespace() as alpha,
        fresh_namespace() as beta,
        fresh_namespace() as between,
    ):
        for name, place in (("alpha", alpha), ("beta", beta)):
            add_bridge(place, "br0")
            between.run(
                *("ip", "link", "add", name, "mtu", "9000", "type", "veth"),
                *("peer", "name", "eth0", "mtu", "1500", "netns", place.path),
            )
            place.run("ip", "link", "set", "eth0", "master", "br0", "up")
        ground = Ground(alpha, beta, between)
        with contextmanager(network.build)(ground):
            _notice_carriers(ground)
            yield ground


class Pair:
    """Both hosts' netlink threads, and probers at need."""

    def __init__(self, ground: Ground, rtnls: dict[str, Rtnl], nursery: trio.Nursery) -> None:
        self._places = {"alpha": ground.alpha, "beta": ground.beta}
        self._rtnls = rtnls
        self._nursery = nursery

    @asynccontextmanager
    async def probers(self, network: Network) -> AsyncIterator[tuple[Prober, Prober]]:
        """Open a prober on each host."""
        nonce = secrets.token_bytes(16)
        async with AsyncExitStack() as stack:
            opened = []
            for name, segment in (("alpha", network.alpha), ("beta", network.beta)):
                with self._places[name].entered():
                    prober = await stack.enter_async_context(
                        open_prober(
                            *(self._nursery, self._rtnls[name], segment, nonce),
                            view=network.view,
                            isolated=network.isolated,
                            mtu_bytes=network.mtu_bytes,
                        )
                    )
                opened.append(prober)
            yield opened[0], opened[1]

    async def probe(self, network: Network) -> tuple[Verdict, float, float]:
        """Return the verdict, and the seconds for asking and in all, until it is there."""
        started = time.perf_counter()
        async with self.probers(network) as (alpha, beta):
            opened = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for prober in (alpha, beta):
                    nursery.start_soon(lambda p=prober: p.ask(mtu_bytes=network.mtu_bytes))
            asked = time.perf_counter()
            verdict = judge(
                Side("alpha", await alpha.report(guest_mac=network.guest_mac)),
                Side("beta", await beta.report(guest_mac=network.guest_mac)),
                mtu_bytes=network.mtu_bytes,
                guest_mac=network.guest_mac,
            )
            done = time.perf_counter()
        return verdict, asked - opened, done - started


@asynccontextmanager
async def pair_on(ground: Ground) -> AsyncIterator[Pair]:
    """Start what an agent on each host would have running."""
    async with AsyncExitStack() as stack:
        rtnls = {}
        for name, place in (("alpha", ground.alpha), ("beta", ground.beta)):
            with place.entered():
                rtnls[name] = await stack.enter_async_context(Rtnl())
                await rtnls[name].links()  # imports pyroute2
        async with trio.open_nursery() as nursery:
            yield Pair(ground, rtnls, nursery)
            nursery.cancel_scope.cancel()


def differences(verdict: Verdict, truth: Truth) -> list[str]:
    """Return what a verdict says that is not so."""
    found = Truth(
        adjacency=verdict.adjacency,
        mtu_bytes=verdict.mtu_bytes,
        traps=frozenset(trap.kind for trap in verdict.traps),
        failed=tuple(direction.source for direction in verdict.failed),
        through_tunnel=verdict.through_tunnel,
        words=truth.words if truth.words in verdict.why else verdict.why,
    )
    return [
        f"{field}: {getattr(found, field)} instead of {getattr(truth, field)}"
        for field in truth.__dataclass_fields__
        if getattr(found, field) != getattr(truth, field)
    ]


async def _table(names: list[str], tries: int) -> int:
    wrong = 0
    for name in names:
        network = NETWORKS[name]
        results: list[tuple[Verdict, float, float]] = []
        while len(results) < tries:  # a listening port listens for so long only
            with built(network) as ground:
                async with pair_on(ground) as pair:
                    await pair.probe(network)
                    more = min(TRIES_A_BUILD, tries - len(results))
                    results += [await pair.probe(network) for _ in range(more)]
        bad = Counter(text for r in results for text in differences(r[0], network.truth))
        good = sum(not differences(r[0], network.truth) for r in results)
        wrong += tries - good
        asking, whole = (sorted(r[part] * 1000 for r in results) for part in (1, 2))
        print(
            f"{name:30} {network.truth.adjacency:13} {good:3}/{tries}  "
            f"ask p50 {statistics.median(asking):7.1f} max {asking[-1]:7.1f} ms  "
            f"whole p50 {statistics.median(whole):7.1f} max {whole[-1]:7.1f} ms",
            *(f"\n    {count}x {text}" for text, count in bad.items()),
            flush=True,
        )
    return wrong


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--tries", type=int, default=3)
    _parser.add_argument("names", nargs="*")
    _options = _parser.parse_args()
    sys.exit(bool(trio.run(_table, _options.names or list(NETWORKS), _options.tries)))
