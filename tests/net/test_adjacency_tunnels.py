"""Probed through a tunnel as `netsetup tunnel` makes it: adjacent, and said by which way."""

from contextlib import AsyncExitStack

import pytest
import trio

from netsetup.adjacency import Adjacency, Verdict, judge
from netsetup.homes import Home
from netsetup.mtu import fit
from netsetup.prober import open_prober
from netsetup.rtnl import Rtnl
from netsetup.segments import Segment
from netsetup.traps import Side
from netsetup.tunnel_spec import End, Part, TunnelSpec, alias_of, mirrored
from netsetup.tunnels import create, remove
from tests.support.netns import Namespace
from tests.support.sites import ALPHA, BETA, two_sites

pytestmark = pytest.mark.net

NONCE = bytes(range(16))


async def verdict_between(
    alpha: Namespace, beta: Namespace, away: str, mtu_bytes: int = 1500
) -> Verdict:
    """Return whether alpha's br0 and a bridge on beta are one segment."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        probers = []
        for place, bridge in ((alpha, "br0"), (beta, away)):
            with place.entered():
                rtnl = await stack.enter_async_context(Rtnl())
                prober = open_prober(nursery, rtnl, Segment(bridge), NONCE, mtu_bytes=mtu_bytes)
                probers.append(await stack.enter_async_context(prober))
        async with trio.open_nursery() as asking:
            for prober_ in probers:
                asking.start_soon(lambda p=prober_: p.ask(mtu_bytes=mtu_bytes))
        reports = [await prober_.report() for prober_ in probers]
    sides = (Side("alpha", reports[0]), Side("beta", reports[1]))
    return judge(*sides, mtu_bytes=mtu_bytes)


@pytest.mark.parametrize(
    ("version", "path_mtu", "adjacency", "width", "words"),
    [
        (4, 1500, Adjacency.ADJACENT, 1500, "of ours"),
        (4, 9000, Adjacency.ADJACENT, 1500, "of ours"),
        (6, 9000, Adjacency.ADJACENT, 1500, "of ours"),
        # The kernel cuts no outer IPv6 packet: 1500 less 70.
        (6, 1500, Adjacency.NOT_ADJACENT, 1430, "they come through the tunnel qmt-"),
    ],
)
async def test_a_private_bridge_is_joined_to_home_by_its_tunnel_and_no_other_is(
    version: int, path_mtu: int, adjacency: Adjacency, width: int, words: str
) -> None:
    with two_sites(path_mtu) as sites:
        manner = fit("vxlan", version, mtu_bytes=1500, path_mtu_bytes=path_mtu).manner
        home = TunnelSpec(
            *("vxlan", ALPHA[version], BETA[version], Home("alpha", "br0"), End.HOME, 7),
            manner=manner,
            guests=("web1",),
        )
        away = mirrored(home)
        for place, spec in ((sites.alpha, home), (sites.beta, away)):
            with place.entered():
                async with Rtnl() as rtnl:
                    await create(rtnl, spec)
        verdict = await verdict_between(sites.alpha, sites.beta, away.bridge)
        assert verdict.adjacency is adjacency, verdict.why
        assert verdict.joined
        assert verdict.mtu_bytes == width
        assert words in verdict.why
        assert verdict.through_tunnel == alias_of(away, Part.PORT)
        assert verdict.forth.ways == verdict.back.ways == (away.name(Part.PORT),)

        other = await verdict_between(sites.alpha, sites.beta, "br0")
        assert other.adjacency is Adjacency.NOT_ADJACENT, other.why
        assert not other.joined
        assert other.through_tunnel is None

        for place in (sites.alpha, sites.beta):
            with place.entered():
                async with Rtnl() as rtnl:
                    await remove(rtnl, home.id)
