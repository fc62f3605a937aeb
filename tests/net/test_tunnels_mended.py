"""Tunnels that somebody broke, whose host was lost, or whose name a stranger has."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from netsetup.errors import NotOursError
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import Part, mirrored, pair, spec_of
from netsetup.tunnels import Made, abilities, collect, create, describe, repair
from tests.support.sites import ALPHA, BETA, echo, nothing_left, two_sites
from tests.support.tunnelled import spec_for, tunnelled

pytestmark = pytest.mark.net

KERNEL_HAS_GRETAP = Path("/sys/module/ip_gre").exists()


def without_indexes(shown: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leave out what differs each time: interface indexes and programs' ids."""
    return {
        key: [re.sub(r"\bid \d+|index[ =]\d+", "", line) for line in lines]
        for key, lines in shown.items()
    }


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set {port} down",
        "ip link set {port} nomaster",
        "tc qdisc del dev {port} clsact",
        "tc filter del dev {port} ingress pref 9",
        "tc filter del dev {port} ingress pref 2",
        "bridge link set dev {port} isolated off",
        "ip link del {port}",
    ],
)
async def test_what_somebody_broke_is_shown_and_mended(damage: str) -> None:
    with two_sites(9000) as sites, sites.alpha.entered():
        spec = spec_for("vxlan", 4, 9000)
        async with Rtnl() as rtnl:
            good = (await create(rtnl, spec)).tunnel
            whole = nothing_left(sites.alpha)
            sites.alpha.run(*damage.format(port=good.port).split())
            if damage != "ip link del {port}":
                assert (await describe(rtnl, good.id)).problems != ()
            made = await create(rtnl, spec)
            assert made.tunnel.problems == ()
            assert bool(made.mended) == (damage != "ip link del {port}")
            assert without_indexes(nothing_left(sites.alpha)) == without_indexes(whole)


async def test_an_end_that_was_lost_with_its_host_is_made_from_the_other() -> None:
    async with tunnelled(1500, "vxlan", 4) as at:
        for part in ("qmd-", "qmt-"):  # as if alpha had rebooted
            at.sites.alpha.run("ip", "link", "del", part + at.home.id)
        assert echo(at.sites.client, "192.0.2.9", tries=1, patience_s=0.2) != "ok"
        found = pair((), (at.away,))
        assert [each.id for each in found.away_only] == [at.away.id]
        surviving = spec_of(at.away)
        assert surviving is not None
        with at.sites.alpha.entered():
            async with Rtnl() as rtnl:
                (made,) = await repair(rtnl, [mirrored(surviving)])
        assert isinstance(made, Made)
        assert replace(made.tunnel, tag=at.home.tag) == at.home
        assert echo(at.sites.client, "192.0.2.9") == "ok"


async def test_a_strangers_interface_with_our_name_is_left_alone() -> None:
    with two_sites(9000) as sites, sites.alpha.entered():
        spec = spec_for("vxlan", 4, 9000)
        sites.alpha.run("ip", "link", "add", spec.name(Part.PORT), "type", "bridge")
        before = nothing_left(sites.alpha)
        async with Rtnl() as rtnl:
            with pytest.raises(NotOursError):
                await create(rtnl, spec)
            await collect(rtnl, live_guests=())
        assert nothing_left(sites.alpha) == before


async def test_what_this_host_can_is_found_by_trying() -> None:
    with two_sites() as sites, sites.alpha.entered():
        before = nothing_left(sites.alpha)
        async with Rtnl() as rtnl:
            able = {
                (each.kind, each.backend, version): each.why_not
                for version in (4, 6)
                for each in await abilities(rtnl, ALPHA[version], BETA[version])
            }
        assert able["vxlan", "kernel", 4] is able["vxlan", "kernel", 6] is None
        assert (able["gretap", "kernel", 4] is None) == KERNEL_HAS_GRETAP
        for kind in ("etherip", "gretap"):
            assert able[kind, "ebpf", 4] is able[kind, "relay", 4] is able[kind, "relay", 6] is None
            assert "IPv4 outside only" in str(able[kind, "ebpf", 6])
        assert nothing_left(sites.alpha) == before
