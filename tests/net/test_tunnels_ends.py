"""Tunnels between two sites with a router between them: what passes, and what must not."""

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from netsetup.errors import HostError, RefusedError
from netsetup.homes import Home
from netsetup.mtu import Manner
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import End, Tunnel, TunnelSpec, mirrored
from netsetup.tunnels import collect, create, list_tunnels, remove
from tests.support.netns import Namespace, add_bridge, eventually, packet_socket
from tests.support.sites import ALPHA, addressed, echo, nothing_left, two_sites
from tests.support.tunnelled import HOME, make, spec_for, tunnelled, unmake

pytestmark = pytest.mark.net


def until(ear: socket.socket, words: bytes) -> list[bytes]:
    """Return all frames heard, the last is the one with `words` in it."""
    heard = []
    while not heard or words not in heard[-1]:
        heard.append(ear.recv(65536))
    return heard


def drained(ear: socket.socket) -> list[bytes]:
    heard = []
    while True:
        try:
            heard.append(ear.recv(65536))
        except BlockingIOError:
            return heard


def udp(version: int) -> socket.socket:
    return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


def port_state(place: Namespace, tunnel: Tunnel) -> str:
    (shown,) = json.loads(place.run("bridge", "-j", "link", "show", "dev", str(tunnel.port)))
    return str(shown["state"])


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


async def test_the_same_again_changes_nothing_and_both_ends_leave_nothing() -> None:
    with two_sites() as sites:
        before = [nothing_left(host) for host in (sites.alpha, sites.beta)]
        for mtu in (1500, 9000):
            spec = spec_for("vxlan", 4, mtu)
            for place, end in ((sites.alpha, spec), (sites.beta, mirrored(spec))):
                tunnel = await make(place, end)
                assert tunnel.problems == ()
                between = nothing_left(place)
                with place.entered():
                    async with Rtnl() as rtnl:
                        again = await create(rtnl, end)
                        assert again.mended == ()
                        assert again.tunnel == tunnel
                        assert await list_tunnels(rtnl) == (tunnel,)
                assert nothing_left(place) == between
            for place in (sites.alpha, sites.beta):
                await unmake(place, spec.id)
            assert [nothing_left(host) for host in (sites.alpha, sites.beta)] == before


@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_what_belongs_to_one_wire_does_not_cross(mtu: int) -> None:
    marker = bytes.fromhex("ffffffffffff 525400000077 88b6") + b"marker".ljust(60)
    own = {
        name: bytes.fromhex(f"{address} 525400000077 88b6") + name.encode().ljust(60)
        for name, address in (
            ("stp", "0180c2000000"),
            ("lldp", "0180c200000e"),
            ("mvrp", "0180c2000021"),
            ("pvst", "01000ccccccd"),
            ("cdp", "01000ccccccc"),
        )
    }
    tagged = bytes.fromhex("01000ccccccd 525400000077 8100 000a 88b6") + b"tagged pvst".ljust(60)
    async with tunnelled(mtu, "vxlan", 4) as at:
        for source, target in ((at.sites.client, at.guest), (at.guest, at.sites.client)):
            with target.entered():
                ear = packet_socket("eth0")
            with at.sites.router.entered():
                wire = packet_socket("port1")
            with ear, wire:
                with source.entered(), packet_socket("eth0") as mouth:
                    for frame in (*own.values(), tagged, marker):
                        mouth.send(frame)
                heard = until(ear, b"marker")
                carried = until(wire, b"marker")
            assert [frame for frame in heard if b"\x88\xb6" in frame] == [marker]
            assert sum(b"\x88\xb6" in frame for frame in carried) == 1  # not even sent


async def test_a_bridges_own_bpdus_do_not_leave_by_the_tunnel() -> None:
    bpdu = bytes.fromhex("0180c2000000")
    async with tunnelled(9000, "vxlan", 4) as at:
        with at.sites.router.entered():
            ear = packet_socket("port1")
        with ear:
            # A bridge that has just been told to run STP sends BPDUs at once, out of every port.
            for key in ("forward_delay", "200"), ("hello_time", "100"), ("stp_state", "1"):
                at.sites.alpha.run("ip", "link", "set", "br0", "type", "bridge", *key)
            with at.sites.client.entered():
                wire = packet_socket("eth0")
            with wire:
                until(wire, bpdu)  # there they are
            await eventually(lambda: port_state(at.sites.alpha, at.home) == "forwarding", "STP")
            assert echo(at.sites.client, "192.0.2.9") == "ok"
            ear.setblocking(False)
            carried = drained(ear)
            assert len(carried) > 2  # the ping, and what came before it
            assert not [frame for frame in carried if bpdu in frame]


async def test_neither_segment_hears_the_other_sites() -> None:
    """No second DHCP server or router: a broadcast of each site stays there."""
    async with tunnelled(1500, "vxlan", 4) as at:
        frames = {}
        ears = {}
        for name, place in (("client", at.sites.client), ("neighbour", at.sites.neighbour)):
            frames[name] = bytes.fromhex("ffffffffffff 525400000066 88b6") + name.encode() * 9
            with place.entered():
                ears[name] = packet_socket("eth0")
        with at.guest.entered():
            ears["guest"] = packet_socket("eth0")
        for name, place in (("neighbour", at.sites.neighbour), ("client", at.sites.client)):
            with place.entered(), packet_socket("eth0") as mouth:
                mouth.send(frames[name])
        assert until(ears["guest"], b"client")  # sent last: the other's would have come before
        for ear in ears.values():
            ear.setblocking(False)
        heard = {name: b"".join(drained(ear)) for name, ear in ears.items()}
        assert b"client" not in heard["neighbour"]
        assert b"neighbour" not in heard["client"] + heard["guest"]
        for ear in ears.values():
            ear.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_frames_of_a_stranger_who_knows_the_vni_are_dropped(version: int, mtu: int) -> None:
    def vxlan(words: bytes, tag: bytes = b"") -> bytes:
        inner = bytes.fromhex("ffffffffffff 525400000055") + tag + b"\x88\xb6" + words.ljust(60)
        return bytes.fromhex("08000000 00000700") + inner

    vlan = bytes.fromhex("8100 0005")
    service = bytes.fromhex("88a8 0006 8100 0005")
    target = (str(ALPHA[version]), 4789)
    async with tunnelled(mtu, "vxlan", version) as at:
        with at.sites.client.entered():
            ear = packet_socket("eth0")
        with ear:
            for place, words in ((at.sites.router, b"stranger"), (at.sites.beta, b"peer")):
                with place.entered(), udp(version) as mouth:
                    for tag in (b"", vlan, service):
                        mouth.sendto(vxlan(words, tag), target)
            with at.sites.beta.entered(), udp(version) as mouth:
                mouth.sendto(vxlan(b"last"), target)
            heard = [frame for frame in until(ear, b"last") if b"\x88\xb6" in frame]
        assert sum(b"peer" in frame for frame in heard) == 3
        assert not any(b"stranger" in frame for frame in heard)


async def test_guests_behind_two_tunnels_of_a_bridge_do_not_meet_there() -> None:
    with two_sites(9000) as sites:
        gamma = sites.router  # it has addresses, and can be a host as well as any
        to_beta = spec_for("vxlan", 4, 9000)
        to_gamma = TunnelSpec(
            "vxlan", ALPHA[4], IPv4Address("10.77.1.1"), HOME, End.HOME, 8, guests=("web2",)
        )
        for place, spec in ((sites.beta, to_beta), (gamma, to_gamma)):
            await make(sites.alpha, spec)
            await make(place, mirrored(spec))
        first = sites.guest(sites.beta, mirrored(to_beta).bridge, "192.0.2.9")
        second = sites.guest(gamma, mirrored(to_gamma).bridge, "192.0.2.10")
        for address in ("192.0.2.9", "192.0.2.10"):
            assert echo(sites.client, address) == "ok"
        assert echo(first, "192.0.2.10", tries=2, patience_s=0.2) in ("silence", "No route to host")
        with sites.alpha.entered():
            async with Rtnl() as rtnl:
                notes = [note for each in await list_tunnels(rtnl) for note in each.notes]
                assert sum("split horizon" in note for note in notes) == 2
                for spec in (to_beta, to_gamma):
                    await create(rtnl, replace(spec, isolated=False))
        assert echo(first, "192.0.2.10") == "ok"
        assert second.run("ip", "neigh", "show", "192.0.2.9")


async def test_a_host_does_not_answer_for_its_own_addresses_at_the_guests_home() -> None:
    async with tunnelled(1500, "vxlan", 4) as at:
        for host, answers in ((at.sites.alpha, True), (at.sites.beta, False)):
            addressed(host, "lo", "192.0.2.77/32", "2001:db8::77/128")
            echo(at.sites.client, "192.0.2.77", tries=1, patience_s=0.2)
            asked = at.sites.client.run("ip", "neigh", "show", "192.0.2.77")
            assert ("lladdr" in asked) == answers  # alpha is on that segment, and answers as ever
            host.run("ip", "address", "del", "192.0.2.77/32", "dev", "lo")
            at.sites.client.run("ip", "neigh", "flush", "dev", "eth0")
        bridge = at.away.bridge
        assert at.sites.beta.run("ip", "address", "show", "dev", str(bridge)).count("inet") == 0


async def test_guests_of_one_segment_share_a_tunnel_and_others_have_their_own() -> None:
    with two_sites() as sites:
        add_bridge(sites.alpha, "br1")
        web = spec_for("vxlan", 4, 1500)
        other = replace(web, home=Home("alpha", "br1"), key=8, guests=("db1",))
        with sites.alpha.entered():
            async with Rtnl() as rtnl:
                await create(rtnl, web)
                shared = (await create(rtnl, replace(web, guests=("web2",)))).tunnel
                assert shared.guests == ("web1", "web2")
                apart = (await create(rtnl, other)).tunnel
                assert apart.id != shared.id
                assert apart.bridge == "br1"
                kept = await remove(rtnl, web.id, guest="web1")
                assert (kept.removed, kept.kept) == ((), "needed by web2")
                with pytest.raises(
                    HostError, match=r"tunnel .* is there as vxlan, and web2 needs it"
                ):
                    await create(rtnl, replace(web, kind="gretap"))
                gone = await remove(rtnl, web.id, guest="web2")
                assert gone.removed == (f"qmd-{web.id}", f"qmt-{web.id}")
                assert [each.id for each in await list_tunnels(rtnl)] == [other.id]
                taken = replace(other, home=Home("alpha", "br0"), remote=IPv4Address("10.77.9.9"))
                with pytest.raises(RefusedError, match="key 8"):
                    await create(rtnl, taken)


async def test_a_private_bridge_with_a_guest_in_it_stays() -> None:
    async with tunnelled(9000, "vxlan", 4) as at:
        with at.sites.beta.entered():
            async with Rtnl() as rtnl:
                for attempt in (remove(rtnl, at.away.id), collect(rtnl, live_guests=())):
                    done = await attempt
                    assert done.removed == ()
                    assert "tap9" in str(done.kept)
        assert echo(at.sites.client, "192.0.2.9") == "ok"
