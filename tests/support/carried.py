"""Ends of tunnels that programs or relays carry, between two sites, and no relay left behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import Tunnel, TunnelSpec, mirrored
from netsetup.tunnels import create, list_tunnels, remove
from tests.support.netns import Namespace
from tests.support.sites import Sites, echo


async def make_by(place: Namespace, spec: TunnelSpec, backend: str | None) -> Tunnel:
    """Make an end, twice: the second time changes nothing."""
    with place.entered():
        async with Rtnl() as rtnl:
            made = await create(rtnl, spec, backend=backend)
            assert made.tunnel.problems == ()
            assert backend in (None, made.tunnel.backend)
            again = await create(rtnl, spec)
            assert (again.mended, again.tunnel) == ((), made.tunnel)
            return made.tunnel


async def unmake_all(*places: Namespace) -> None:
    for place in places:
        with place.entered():
            async with Rtnl() as rtnl:
                for tunnel in await list_tunnels(rtnl):
                    for tap in tunnel.taps:
                        place.run("ip", "link", "del", tap)
                    assert (await remove(rtnl, tunnel.id)).kept is None


@asynccontextmanager
async def carried(spec: TunnelSpec, sites: Sites, pair: tuple[str, str]) -> AsyncIterator[None]:
    """Both ends; a relay would keep its namespace, so they are taken away whatever happens."""
    try:
        for place, end, by in zip(
            (sites.alpha, sites.beta), (spec, mirrored(spec)), pair, strict=True
        ):
            await make_by(place, end, by)
        yield
    finally:
        await unmake_all(sites.alpha, sites.beta)


def full_frames_pass(sites: Sites, guest: Namespace) -> None:
    for place, four, six in ((sites.client, "192.0.2.9", "2001:db8::9"), (guest, "192.0.2.1", "")):
        assert echo(place, four) == "ok"
        assert echo(place, four, 1472) == "ok"
        if six:
            assert echo(place, six, 1452) == "ok"
