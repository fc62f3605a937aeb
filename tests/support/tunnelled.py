"""Ends of tunnels between the two sites of `tests.support.sites`, for tests of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from netsetup.homes import Home
from netsetup.mtu import fit
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import End, Tunnel, TunnelSpec, mirrored
from netsetup.tunnels import create, remove
from tests.support.netns import Namespace
from tests.support.sites import ALPHA, BETA, Sites, two_sites

HOME = Home("alpha", "br0")


def spec_for(kind: str, version: int, path_mtu: int, home: Home = HOME) -> TunnelSpec:
    """Return alpha's end, as `auto` would have it on that path."""
    found = fit(kind, version, mtu_bytes=1500, path_mtu_bytes=path_mtu)
    return TunnelSpec(
        kind,
        ALPHA[version],
        BETA[version],
        home,
        End.HOME,
        7,
        manner=found.manner,
        guests=("web1",),
    )


async def make(place: Namespace, spec: TunnelSpec) -> Tunnel:
    """Make one end on a host."""
    with place.entered():
        async with Rtnl() as rtnl:
            return (await create(rtnl, spec)).tunnel


async def unmake(place: Namespace, id_: str, guest: str | None = None) -> None:
    """Take it away."""
    with place.entered():
        async with Rtnl() as rtnl:
            await remove(rtnl, id_, guest=guest)


@dataclass(frozen=True)
class Tunnelled:
    """Both ends, and a guest in the private bridge of beta."""

    sites: Sites
    home: Tunnel
    away: Tunnel
    guest: Namespace


@asynccontextmanager
async def tunnelled(mtu: int, kind: str, version: int) -> AsyncIterator[Tunnelled]:
    """A guest away on beta behind a tunnel from alpha's br0."""
    with two_sites(mtu) as sites:
        spec = spec_for(kind, version, mtu)
        home, away = await make(sites.alpha, spec), await make(sites.beta, mirrored(spec))
        guest = sites.guest(sites.beta, mirrored(spec).bridge)
        yield Tunnelled(sites, home, away, guest)


async def build(sites: Sites, spec: TunnelSpec) -> None:
    """Make both ends, twice: the second time changes nothing."""
    for place, end in ((sites.alpha, spec), (sites.beta, mirrored(spec))):
        with place.entered():
            async with Rtnl() as rtnl:
                made = await create(rtnl, end)
                assert made.tunnel.problems == ()
                again = await create(rtnl, end)
                assert (again.mended, again.tunnel) == ((), made.tunnel)
