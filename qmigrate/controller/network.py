"""Both ends of the network driven at once: segments probed, paths measured, tunnels built, gone.

Only the controller talks to both hosts. What it learns comes back as types of `core.network`;
what is decided from it is decided in `core.network_rules` and by netsetup in an agent.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import trio

from qmigrate.agent.protocol import codec, structure_untrusted
from qmigrate.agent.requests import OnNetwork
from qmigrate.core import network_requests, tunnel_requests
from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.core.home import Home, ReleaseTunnels, TunnelsReleased
from qmigrate.core.network import Adjacency, Verdict
from qmigrate.core.network_requests import AskProbe, JudgeProbe, OpenProbe, ProbeHalf, ReportProbe
from qmigrate.core.tunnel_requests import (
    Abilities,
    AnswerPath,
    ChooseTunnel,
    GetAbilities,
    GetSources,
    MakeTunnel,
    MeasurePaths,
    PathMtus,
    PathOpen,
    Sources,
    TunnelMade,
)
from qmigrate.core.tunnels import Path, TunnelChoice

_REPLIES = network_requests.REPLIES | tunnel_requests.REPLIES
_NOTES = network_requests.NOTES | tunnel_requests.NOTES

CALL_DEADLINE_S = 60.0  # as of any call
OPEN_DEADLINE_S = 10.0  # for a prober: the agent may be importing what it needs, on a busy host
PROBE_DEADLINE_S = 10.0  # for its ask, which ends by itself after 1.3 s, and its report
PATH_DEADLINE_S = 20.0  # for all sizes on every path; a silent one takes 1.2 s
ADDRESSES = 4  # a host, of those that a path is tried to: more are the same two wires
LARGEST_BYTES = 9216  # path MTU beyond which no guest's frame needs more


class Asked(Protocol):
    """What is needed of `controller.remote.Agent`."""

    @property
    def host(self) -> str: ...  # noqa: D102
    async def call(self, request: Any, /, *, deadline_s: float = ...) -> Any: ...  # noqa: D102
    def stream(self, request: Any, /) -> Any: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Place:
    """A segment and the agent that stands on it."""

    agent: Asked
    bridge: str
    vlan: int | None = None
    isolated: bool = False  # look as the guest does, whose port is isolated


@dataclass(frozen=True, slots=True)
class End:
    """A host as an end of tunnels: its agent, and its addresses, the preferred first."""

    agent: Asked
    addresses: tuple[str, ...]


async def ask(agent: Asked, request: Any, *, deadline_s: float = CALL_DEADLINE_S) -> Any:
    """Return the answer to a request of `core.network_requests`; raises as `Agent.call`."""
    kind = type(request)
    told = OnNetwork(kind.__name__, codec.unstructure(request))
    return structure_untrusted(await agent.call(told, deadline_s=deadline_s), _REPLIES[kind])


@asynccontextmanager
async def ongoing(agent: Asked, request: Any) -> AsyncIterator[Any]:
    """Yield the first note of a request that goes on until the block ends."""
    kind = type(request)
    told = OnNetwork(kind.__name__, codec.unstructure(request))
    async with aclosing(agent.stream(told)) as notes:
        yield structure_untrusted(await anext(notes), _NOTES[kind])


# Probing


async def probe(
    near: Place, far: Place, *, mtu_bytes: int = 1500, guest_mac: str | None = None
) -> Verdict:
    """Return whether two segments are one; a side that cannot be probed makes it unknown.

    `near` is where the guest is. Takes four round trips and 2 ms if they are, 1.2 s if not.
    """
    nonce = secrets.token_hex(16)
    halves: list[str | None] = [None, None]
    problems: list[QmigrateError] = []
    places = (near, far)
    opened = [trio.Event(), trio.Event()]
    asked = [trio.Event(), trio.Event()]

    async def side(number: int) -> None:
        place = places[number]
        request = OpenProbe(nonce, place.bridge, place.vlan, mtu_bytes, place.isolated)
        try:
            with trio.fail_after(OPEN_DEADLINE_S + 2 * PROBE_DEADLINE_S):
                async with ongoing(place.agent, request):
                    opened[number].set()
                    await opened[1 - number].wait()
                    question = AskProbe(nonce, mtu_bytes)
                    await ask(place.agent, question, deadline_s=PROBE_DEADLINE_S)
                    asked[number].set()
                    await asked[1 - number].wait()  # it answers the other's until then
                    mac = guest_mac if number else None
                    half: ProbeHalf = await ask(place.agent, ReportProbe(nonce, mac))
                    halves[number] = half.report
        except trio.TooSlowError:
            problems.append(HostError("its prober did not come to an end", host=place.agent.host))
        except QmigrateError as exc:
            problems.append(exc.at(host=place.agent.host))
        finally:
            opened[number].set()  # nobody waits for who has failed
            asked[number].set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, 0)
        nursery.start_soon(side, 1)
    judge = JudgeProbe(near.agent.host, halves[0], far.agent.host, halves[1], mtu_bytes, guest_mac)
    verdict: Verdict = await ask(far.agent, judge)
    if problems and verdict.adjacency is Adjacency.UNKNOWN:
        said = "; ".join(f"{exc.problem.host}: {exc.problem.what}" for exc in problems)
        verdict = replace(verdict, why=f"{verdict.why}: {said}")
    return verdict


# Paths


async def find_paths(home: End, away: End) -> tuple[Path, ...]:
    """Return which addresses lead from `home`'s host to the other's, and how wide, both ways.

    The MTU is the narrower of both directions; None where nobody answered, as behind a firewall.
    """
    sources: Sources = await ask(home.agent, GetSources(away.addresses[:ADDRESSES]))
    pairs = sources.pairs
    if not pairs:
        return ()
    nonce = secrets.token_hex(16)
    mtus: dict[str, tuple[int | None, ...]] = {}

    async def one_way(
        speaker: End, listener: End, ways: Sequence[tuple[str, str]], name: str
    ) -> None:
        listening = tuple(remote for _, remote in ways)
        opened: PathOpen
        async with ongoing(listener.agent, AnswerPath(nonce, listening)) as opened:
            request = MeasurePaths(
                nonce,
                tuple((*way, port) for way, port in zip(ways, opened.ports, strict=True)),
                LARGEST_BYTES,
            )
            done: PathMtus = await ask(speaker.agent, request, deadline_s=PATH_DEADLINE_S)
            mtus[name] = done.mtus

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_way, home, away, pairs, "forth")
        turned = tuple((remote, local) for local, remote in pairs)
        nursery.start_soon(one_way, away, home, turned, "back")
    return tuple(
        Path(local, remote, None if None in (forth, back) else min(forth or 0, back or 0))
        for (local, remote), forth, back in zip(pairs, mtus["forth"], mtus["back"], strict=True)
    )


async def choose(
    home: Home, ends: tuple[End, End], *, mtu_bytes: int, wanted: str, guest: str, job: str
) -> TunnelChoice:
    """Return the tunnel from `home` (whose host is the first end) to the second end's host.

    Raises `HostError` with every reason if there is none.
    """
    here, there = ends
    paths: tuple[Path, ...] = ()
    abilities: dict[str, Abilities] = {}

    async def measure() -> None:
        nonlocal paths
        paths = await find_paths(here, there)

    async def able(end: End, other: End) -> None:
        pairs = _pairs(end.addresses, other.addresses)
        abilities[end.agent.host] = await ask(end.agent, GetAbilities(pairs))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        nursery.start_soon(able, here, there)
        nursery.start_soon(able, there, here)
    request = ChooseTunnel(
        home,
        abilities[here.agent.host],
        abilities[there.agent.host],
        _known_first(paths),
        mtu_bytes,
        wanted,
        guest,
        job,
    )
    chosen: TunnelChoice = await ask(there.agent, request)
    return chosen


def _pairs(ours: Sequence[str], theirs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return one pair of addresses an IP version that both have."""
    found = []
    for six in (False, True):
        local = next((a for a in ours if (":" in a) is six), None)
        remote = next((a for a in theirs if (":" in a) is six), None)
        if local and remote and local != remote:
            found.append((local, remote))
    return tuple(found)


def _known_first(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths that something passed before those where nobody answered."""
    return tuple(sorted(paths, key=lambda path: path.mtu_bytes is None))


# Tunnels


@dataclass(frozen=True, slots=True)
class Built:
    """A tunnel with both ends, proved by the probe that any two segments are tried with."""

    choice: TunnelChoice
    verdict: Verdict


@asynccontextmanager
async def built(
    choice: TunnelChoice, home: Asked, away: Asked, *, isolated: bool = False
) -> AsyncIterator[Built]:
    """Build and prove a tunnel; if the block raises, the guest's new claims are taken back.

    Raises `HostError` if it cannot be built, or no frame passes it.
    """
    claimed: list[tuple[Asked, str]] = []
    try:
        for agent, end in ((home, choice.home_end), (away, choice.away_end)):
            # Before the change: a call that is cancelled may have taken effect.
            claimed.append((agent, end.guest))
            made: TunnelMade = await ask(agent, MakeTunnel(end))
            if not made.claimed:
                claimed.pop()
        yield Built(choice, await verify(choice, home, away, isolated=isolated))
    except BaseException:
        with trio.CancelScope(shield=True):
            for agent, guest in reversed(claimed):
                await release_quietly(agent, ReleaseTunnels(guest, only=(choice.id,)))
        raise


async def verify(
    choice: TunnelChoice, home: Asked, away: Asked, *, isolated: bool = False
) -> Verdict:
    """Probe through a tunnel; raises `HostError` unless frames of the guest's size pass."""
    end = choice.home_end
    verdict = await probe(
        Place(home, end.home.bridge, end.home.vlan, isolated),
        Place(away, choice.private_bridge),
        mtu_bytes=end.mtu_bytes,
    )
    if verdict.adjacency is not Adjacency.ADJACENT:
        raise HostError(
            f"the tunnel {choice.described} from {end.home} to {away.host} is built, and does not "
            f"carry: {verdict.why}",
            phase="prepare",
            host=away.host,
            next_step=_let_through(choice),
        )
    return verdict


def _let_through(choice: TunnelChoice) -> str:
    end = choice.home_end
    known = {
        "vxlan": "UDP port 4789",
        "gretap": "IP protocol 47 (GRE)",
        "etherip": "IP protocol 97 (EtherIP)",
    }
    what = known.get(end.kind, end.kind)
    return f"let {what} pass between {end.local} and {end.remote}, both ways"


async def release(agent: Asked, request: ReleaseTunnels) -> TunnelsReleased:
    """Take claims away on one host."""
    done: TunnelsReleased = await ask(agent, request)
    return done


async def release_quietly(agent: Asked, request: ReleaseTunnels) -> tuple[str, ...]:
    """Do the same; return what is left there, a sentence each, instead of raising."""
    try:
        await release(agent, request)
    except QmigrateError as exc:
        return (f"{agent.host}: tunnels of {request.guest}: {exc.problem.what}",)
    return ()
