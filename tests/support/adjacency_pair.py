"""Two hosts, alpha and beta, with a network between them, probed through the real kernel."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from netsetup.adjacency import Adjacency, Verdict, judge
from netsetup.prober import Prober, open_prober
from netsetup.rtnl import Rtnl
from netsetup.segments import Segment, View
from netsetup.traps import Side, TrapKind
from tests.support.netns import Namespace, add_bridge, fresh_namespace

PROBED = Segment("br0")


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


def silent(*traps: TrapKind, words: str = "no frame passes") -> Truth:
    """Return that nothing passes either way."""
    failed = ("alpha", "beta")
    return Truth(Adjacency.NOT_ADJACENT, None, frozenset(traps), failed, words=words)


def passes(mtu_bytes: int = 1500, *traps: TrapKind, **more: str) -> Truth:
    """Return that all passes, whatever else there is."""
    return Truth(Adjacency.ADJACENT, mtu_bytes, frozenset(traps), **more)


def notice_carriers(ground: Ground) -> None:
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
            notice_carriers(ground)
            yield ground


class Pair:
    """Both hosts' netlink threads, and probers at need."""

    def __init__(self, ground: Ground, rtnls: dict[str, Rtnl], nursery: trio.Nursery) -> None:
        self._places = {"alpha": ground.alpha, "beta": ground.beta}
        self._rtnls = rtnls
        self._nursery = nursery
        self._opening_s: list[float] = []

    @asynccontextmanager
    async def probers(self, network: Network) -> AsyncIterator[tuple[Prober, Prober]]:
        """Open a prober on each host."""
        nonce = secrets.token_bytes(16)
        async with AsyncExitStack() as stack:
            opened = []
            for name, segment in (("alpha", network.alpha), ("beta", network.beta)):
                before = time.perf_counter()
                with self._places[name].entered():
                    prober = await stack.enter_async_context(
                        open_prober(
                            *(self._nursery, self._rtnls[name], segment, nonce),
                            view=network.view,
                            isolated=network.isolated,
                            mtu_bytes=network.mtu_bytes,
                        )
                    )
                self._opening_s.append(time.perf_counter() - before)
                opened.append(prober)
            yield opened[0], opened[1]

    async def probe(self, network: Network) -> tuple[Verdict, float, float]:
        """Return the verdict, the seconds for asking, and for all until it is there.

        Both hosts' netlink is asked one after the other here; on two hosts it is at once. So of
        the opening and the reports the slower host's counts.
        """
        self._opening_s.clear()
        async with self.probers(network) as probers:
            before = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for prober in probers:
                    nursery.start_soon(lambda p=prober: p.ask(mtu_bytes=network.mtu_bytes))
            asking_s = time.perf_counter() - before
            reporting_s, sides = [], []
            for name, prober in zip(("alpha", "beta"), probers, strict=True):
                before = time.perf_counter()
                sides.append(Side(name, await prober.report(guest_mac=network.guest_mac)))
                reporting_s.append(time.perf_counter() - before)
            verdict = judge(*sides, mtu_bytes=network.mtu_bytes, guest_mac=network.guest_mac)
        return verdict, asking_s, max(self._opening_s) + asking_s + max(reporting_s)


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
