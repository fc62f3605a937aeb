"""Tunnels between two sites with a router between them: what passes, and what must not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from netsetup.homes import Home
from netsetup.mtu import Manner, fit
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import End, Tunnel, TunnelSpec, mirrored
from netsetup.tunnels import create, remove
from tests.support.netns import Namespace
from tests.support.sites import ALPHA, BETA, Sites, echo, two_sites

pytestmark = pytest.mark.net

HOME = Home("alpha", "br0")


def spec_for(kind: str, version: int, path_mtu: int) -> TunnelSpec:
    found = fit(kind, version, mtu_bytes=1500, path_mtu_bytes=path_mtu)
    return TunnelSpec(
        kind,
        ALPHA[version],
        BETA[version],
        HOME,
        End.HOME,
        7,
        manner=found.manner,
        guests=("web1",),
    )


async def make(place: Namespace, spec: TunnelSpec) -> Tunnel:
    with place.entered():
        async with Rtnl() as rtnl:
            return (await create(rtnl, spec)).tunnel


async def unmake(place: Namespace, id_: str, guest: str | None = None) -> None:
    with place.entered():
        async with Rtnl() as rtnl:
            await remove(rtnl, id_, guest=guest)


@dataclass(frozen=True)
class Tunnelled:
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


@pytest.mark.parametrize(
    ("version", "mtu", "manner", "full"),
    [
        (4, 1500, Manner.FRAGMENTS, "ok"),
        (4, 9000, Manner.WHOLE, "ok"),
        (6, 1500, Manner.TOLD, "Message too long"),
        (6, 9000, Manner.WHOLE, "ok"),
    ],
)
async def test_a_guest_of_1500_is_reached_with_df_or_the_sender_is_told(
    version: int, mtu: int, manner: Manner, full: str
) -> None:
    async with tunnelled(mtu, "vxlan", version) as at:
        assert at.home.problems == at.away.problems == ()
        assert at.home.manner is manner
        assert echo(at.sites.client, "192.0.2.9") == "ok"
        assert echo(at.sites.client, "2001:db8::9") == "ok"
        assert echo(at.sites.client, "192.0.2.9", 1472) == full
        assert echo(at.sites.client, "2001:db8::9", 1452) == full
        assert echo(at.guest, "192.0.2.1", 1472) == full
