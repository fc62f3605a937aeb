"""What needs a kernel with GRE and VLAN filtering: gretap, homes in a VLAN; nothing is timed."""

import socket
from dataclasses import replace

import pytest

from netsetup.errors import HostError
from netsetup.homes import Home
from netsetup.mtu import Manner, fit
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import TunnelSpec, mirrored
from netsetup.tunnels import abilities, create, list_tunnels, remove
from netsetup.turning import Turn, arm
from tests.support.netns import Namespace, packet_socket, run
from tests.support.sites import ALPHA, BETA, Sites, addressed, echo, nothing_left, two_sites
from tests.support.tunnelled import build, spec_for

pytestmark = [pytest.mark.net, pytest.mark.uml]


@pytest.fixture(autouse=True, scope="module")
def _gre_is_there() -> None:
    """Load it: it makes devices of its own in every namespace, which are no leftovers of ours."""
    run("modprobe", "-a", "ip_gre", "ip6_gre")


GUEST_MAC = "52:54:00:00:00:09"


async def unbuild(sites: Sites, spec: TunnelSpec) -> None:
    if "tap9" in sites.beta.run("ip", "link"):
        sites.beta.run("ip", "link", "del", "tap9")
    for place in (sites.alpha, sites.beta):
        with place.entered():
            async with Rtnl() as rtnl:
                await remove(rtnl, spec.id)
                assert await list_tunnels(rtnl) == ()


@pytest.mark.parametrize(
    ("kind", "version", "mtu"),
    [
        ("gretap", 4, 1500),
        ("gretap", 6, 9000),
        ("vxlan", 4, 1500),
        ("vxlan", 6, 1500),
    ],
)
async def test_a_guest_away_is_reached_with_full_frames_and_nothing_is_left(
    kind: str, version: int, mtu: int
) -> None:
    spec = spec_for(kind, version, mtu)
    full = "Message too long" if spec.manner is Manner.TOLD else "ok"
    with two_sites(mtu) as sites:
        before = [nothing_left(host) for host in (sites.alpha, sites.beta)]
        await build(sites, spec)
        guest = sites.guest(sites.beta, mirrored(spec).bridge)
        assert echo(sites.client, "192.0.2.9") == "ok"
        assert echo(sites.client, "192.0.2.9", 1472) == full
        assert echo(guest, "192.0.2.1", 1472) == full
        assert echo(sites.client, "2001:db8::9", 1452) == full
        sites.beta.run("ip", "link", "del", "tap9")
        await unbuild(sites, spec)
        assert [nothing_left(host) for host in (sites.alpha, sites.beta)] == before


@pytest.mark.parametrize(
    ("backend", "mtu", "key"),
    [("ebpf", 1500, 7), ("ebpf", 9000, 0), ("ebpf", 9000, 7), ("relay", 1500, 7)],
)
async def test_the_kernels_gretap_and_ours_understand_each_other(
    backend: str, mtu: int, key: int
) -> None:
    spec = replace(spec_for("gretap", 4, mtu), key=key)
    with two_sites(mtu) as sites:
        try:
            for place, end, by in (
                (sites.alpha, spec, "kernel"),
                (sites.beta, mirrored(spec), backend),
            ):
                with place.entered():
                    async with Rtnl() as rtnl:
                        made = await create(rtnl, end, backend=by)
                        assert made.tunnel.problems == ()
                        assert made.tunnel.described == f"gretap ({by})"
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            assert echo(sites.client, "192.0.2.9") == "ok"
            assert echo(sites.client, "2001:db8::9", 1452) == "ok"
            assert echo(guest, "192.0.2.1", 1472) == "ok"
            assert echo(sites.client, "192.0.2.9", 1472) == "ok"
        finally:
            await unbuild(sites, spec)


async def test_etherip_by_programs_runs_without_a_compiler_in_this_kernel() -> None:
    """The programs are interpreted here, on Linux 6.1."""
    spec = spec_for("etherip", 4, 9000)
    with two_sites(9000) as sites:
        await build(sites, spec)
        guest = sites.guest(sites.beta, mirrored(spec).bridge)
        for place, number in ((sites.client, 1), (guest, 9)):
            place.run("ip", "link", "add", "eth0.5", "link", "eth0", "type", "vlan", "id", "5")
            place.run("ip", "link", "set", "eth0.5", "up")
            addressed(place, "eth0.5", f"198.51.100.{number}/24")
        assert echo(sites.client, "198.51.100.9", 1472) == "ok"
        assert echo(sites.client, "192.0.2.9", 1472) == "ok"
        await unbuild(sites, spec)


async def test_gretap_takes_nothing_of_strangers_nor_of_another_key_nor_bpdus() -> None:
    spec = spec_for("gretap", 4, 9000)

    def gre(words: bytes, key: int, target: str = "ffffffffffff") -> bytes:
        inner = bytes.fromhex(f"{target} 525400000055 88b6") + words.ljust(60)
        return bytes.fromhex("20006558") + key.to_bytes(4, "big") + inner

    with two_sites(9000) as sites:
        await build(sites, spec)
        with sites.client.entered():
            ear = packet_socket("eth0")
        with ear:
            for place, frames in (
                (sites.router, [gre(b"stranger", 7)]),
                (
                    sites.beta,
                    [gre(b"other key", 8), gre(b"bpdu", 7, "0180c2000000"), gre(b"peer", 7)],
                ),
            ):
                with place.entered(), raw_gre() as mouth:
                    for frame in frames:
                        mouth.sendto(frame, (str(ALPHA[4]), 0))
            heard = []
            while not heard or b"peer" not in heard[-1]:
                heard.append(ear.recv(65536))
        words = [frame[14:].strip() for frame in heard if b"\x88\xb6" in frame]
        assert words == [b"peer"]


def raw_gre() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)


@pytest.mark.long
async def test_gretap_over_ipv6_that_would_lose_frames_is_refused() -> None:
    found = fit("gretap", 6, mtu_bytes=1500, path_mtu_bytes=1500)
    assert found.manner is Manner.LOST
    with two_sites(1500) as sites, sites.alpha.entered():
        async with Rtnl() as rtnl:
            for version in (4, 6):
                able = await abilities(rtnl, ALPHA[version], BETA[version])
                cannot = {(each.kind, each.backend) for each in able if each.why_not}
                assert cannot == (
                    {("gretap", "ebpf"), ("etherip", "ebpf")} if version == 6 else set()
                )


def in_vlan(place: Namespace, port: str, vlan: int) -> None:
    """Make `port` an access port of `vlan`."""
    place.run("bridge", "vlan", "del", "dev", port, "vid", "1")
    place.run("bridge", "vlan", "add", "dev", port, "vid", str(vlan), "pvid", "untagged")


async def test_a_home_in_a_vlan_is_joined_there_and_nowhere_else() -> None:
    home = Home("alpha", "br0", 10)
    spec = spec_for("vxlan", 4, 9000, home)
    with two_sites(9000) as sites:
        sites.alpha.run("ip", "link", "set", "br0", "type", "bridge", "vlan_filtering", "1")
        in_vlan(sites.alpha, "port0", 10)
        before = nothing_left(sites.alpha)
        await build(sites, spec)
        guest = sites.guest(sites.beta, mirrored(spec).bridge)
        assert echo(sites.client, "192.0.2.9") == "ok"
        shown = sites.alpha.run("bridge", "vlan", "show", "dev", f"qmt-{spec.id}")
        assert "10 PVID Egress Untagged" in shown
        assert " 1 " not in shown
        with sites.alpha.entered():
            async with Rtnl() as rtnl:
                turn = Turn(GUEST_MAC, f"qmt-{spec.id}", vlan=10)
                async with arm(rtnl, [turn]) as turner:
                    (done,) = await turner.turn()
                    assert done.problem is None
                    entries = sites.alpha.run("bridge", "fdb", "show", "br", "br0")
                    assert f"{GUEST_MAC} dev qmt-{spec.id} vlan 10 master br0 static" in entries
        assert echo(sites.client, "192.0.2.9") == "ok"
        # Another VLAN of the same bridge hears nothing.
        other = sites.guest(sites.alpha, "br0", "192.0.2.8")
        in_vlan(sites.alpha, "tap8", 20)
        assert echo(other, "192.0.2.9", tries=1, patience_s=0.5) != "ok"
        assert echo(guest, "192.0.2.1") == "ok"
        for host, tap in ((sites.alpha, "tap8"), (sites.beta, "tap9")):
            host.run("ip", "link", "del", tap)
        await unbuild(sites, spec)
        assert nothing_left(sites.alpha) == before


@pytest.mark.long
async def test_a_guest_that_tags_itself_keeps_its_tags() -> None:
    spec = spec_for("vxlan", 4, 9000)
    with two_sites(9000) as sites:
        await build(sites, spec)
        guest = sites.guest(sites.beta, mirrored(spec).bridge)
        for place, number in ((sites.client, 1), (guest, 9)):
            place.run("ip", "link", "add", "eth0.5", "link", "eth0", "type", "vlan", "id", "5")
            place.run("ip", "link", "set", "eth0.5", "up")
            addressed(place, "eth0.5", f"198.51.100.{number}/24")
        assert echo(sites.client, "198.51.100.9", 1472) == "ok"


@pytest.mark.long
async def test_a_kind_in_use_is_not_replaced_by_another() -> None:
    spec = spec_for("gretap", 4, 9000)
    with two_sites(9000) as sites, sites.alpha.entered():
        async with Rtnl() as rtnl:
            await create(rtnl, spec)
            other = spec_for("vxlan", 4, 9000)
            with pytest.raises(HostError, match="is there as gretap"):
                await create(rtnl, _claimed_by(other, "web2"))
            replaced = await create(rtnl, other)
            assert replaced.tunnel.kind == "vxlan"
            assert replaced.mended == (f"qmt-{spec.id} was of another shape",)
            assert replaced.tunnel.problems == ()


def _claimed_by(spec: TunnelSpec, guest: str) -> TunnelSpec:
    return replace(spec, guests=(guest,))
