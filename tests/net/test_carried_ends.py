"""EtherIP and GRE between two sites, by programs and by relays: what passes, and what must not."""

import os
import socket
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from netsetup.errors import HostError
from netsetup.homes import Home
from netsetup.mtu import Manner, fit
from netsetup.relay_process import running
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import TunnelSpec, mirrored
from netsetup.tunnels import list_tunnels, remove, repair
from netsetup.wire import Fate
from tests.support.carried import carried, full_frames_pass, make_by, unmake_all
from tests.support.netns import eventually, packet_socket
from tests.support.sites import addressed, echo, nothing_left, two_sites
from tests.support.tunnelled import spec_for
from tests.support.wire_forms import FORMS, OF_ONE_WIRE, decoded

pytestmark = pytest.mark.net

PAIRS = [("ebpf", "ebpf"), ("ebpf", "relay"), ("relay", "ebpf"), ("relay", "relay")]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("kind", ["etherip", "gretap"])
async def test_all_that_carry_a_wire_format_understand_each_other(
    kind: str, mtu: int, pair: tuple[str, str]
) -> None:
    spec = spec_for(kind, 4, mtu)
    assert spec.manner is (Manner.WHOLE if mtu == 9000 else Manner.FRAGMENTS)
    with two_sites(mtu) as sites:
        before = [nothing_left(host) for host in (sites.alpha, sites.beta)]
        async with carried(spec, sites, pair):
            full_frames_pass(sites, sites.guest(sites.beta, mirrored(spec).bridge))
        assert [nothing_left(host) for host in (sites.alpha, sites.beta)] == before
        for host in (sites.alpha, sites.beta):
            with host.entered():
                assert running(spec.id) is None


@pytest.mark.parametrize("kind", ["etherip", "gretap"])
@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_a_relay_carries_full_frames_over_ipv6(kind: str, mtu: int) -> None:
    found = fit(kind, 6, mtu_bytes=1500, path_mtu_bytes=mtu, relayed=True)
    spec = replace(spec_for(kind, 6, 9000), manner=found.manner)
    with two_sites(mtu) as sites:
        async with carried(spec, sites, ("relay", "relay")):
            full_frames_pass(sites, sites.guest(sites.beta, mirrored(spec).bridge))


@pytest.mark.parametrize("reversed_header", [False, True])
@pytest.mark.parametrize("pair", [("ebpf", "ebpf"), ("relay", "relay")], ids="-".join)
async def test_every_form_of_frame_crosses_and_is_what_went_in(
    pair: tuple[str, str], *, reversed_header: bool
) -> None:
    kind = "etherip"
    spec = replace(spec_for(kind, 4, 9000), reversed_header=reversed_header)
    await forms_cross(spec, pair, "etherip reversed" if reversed_header else "etherip")


@pytest.mark.parametrize("key", [0, 7])
@pytest.mark.parametrize("pair", [("ebpf", "ebpf"), ("relay", "relay")], ids="-".join)
async def test_every_form_crosses_in_gre(pair: tuple[str, str], key: int) -> None:
    spec = replace(spec_for("gretap", 4, 9000), key=key)
    await forms_cross(spec, pair, f"gre key {key}" if key else "gre")


async def forms_cross(spec: TunnelSpec, pair: tuple[str, str], name: str) -> None:
    forms = {form: frame for form, frame in FORMS.items() if len(frame) <= 1518}
    with two_sites(9000) as sites:
        async with carried(spec, sites, pair):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            # A bridge sends an unknown address nowhere into a long wire: it has been heard.
            with guest.entered(), packet_socket("eth0") as mouth:
                mouth.send(bytes.fromhex("ffffffffffff 525400000002 88b5").ljust(60, b"\0"))
            with guest.entered():
                ear = packet_socket("eth0")
            with sites.router.entered():
                wire = packet_socket("port1")
            with ear, wire, sites.client.entered(), packet_socket("eth0") as mouth:
                for frame in (*OF_ONE_WIRE.values(), *forms.values()):
                    mouth.send(frame)
                # In any order: each goes to its flow's processor.
                wanted = sorted(untagged(frame) for frame in forms.values())
                assert sorted(heard(ear, wanted)) == wanted
                packets = [
                    decoded(packet)
                    for packet in drained(wire)
                    if packet[12:14] == b"\x08\x00" and packet[23] in (47, 97)
                ]
            sent = [frame for told, frame in packets if told == name]
            assert {*forms.values()} <= {*sent}
            assert not {*sent} & {*OF_ONE_WIRE.values()}


def untagged(frame: bytes) -> bytes:
    """Return it as a packet socket shows it: the outermost tag beside it."""
    return frame[:12] + frame[16:] if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else frame


def heard(ear: socket.socket, wanted: list[bytes]) -> list[bytes]:
    """Return as many as are wanted of those, and of those that should not arrive."""
    found: list[bytes] = []
    with suppress(TimeoutError):
        while len(found) < len(wanted):
            frame = ear.recv(65536)
            found += [frame] if frame in wanted or frame in OF_ONE_WIRE.values() else []
    return found


def drained(ear: socket.socket) -> list[bytes]:
    ear.setblocking(False)
    found = []
    while True:
        try:
            found.append(ear.recv(65536))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("backend", ["ebpf", "relay"])
async def test_frames_of_a_stranger_are_not_taken(backend: str) -> None:
    spec = spec_for("etherip", 4, 9000)
    frame = bytes.fromhex("3000 ffffffffffff 525400000055 88b6")
    with two_sites(9000) as sites:
        async with carried(spec, sites, (backend, backend)):
            with sites.client.entered():
                ear = packet_socket("eth0")
            with ear:
                for place, words in ((sites.router, b"stranger"), (sites.beta, b"the peer")):
                    with place.entered(), raw(97) as mouth:
                        mouth.sendto(frame + words.ljust(60), (str(spec.local), 0))
                found = ear.recv(65536)
                while b"the peer" not in found:
                    assert b"stranger" not in found
                    found = ear.recv(65536)


def raw(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)


async def test_etherip_has_one_segment_between_two_addresses_and_the_second_is_told() -> None:
    spec = spec_for("etherip", 4, 9000)
    other = replace(spec, home=Home("alpha", "br1"), guests=("web2",))
    with two_sites(9000) as sites:
        sites.alpha.run("ip", "link", "add", "br1", "type", "bridge")
        sites.alpha.run("ip", "link", "set", "br1", "up")
        try:
            await make_by(sites.alpha, spec, "ebpf")
            between = nothing_left(sites.alpha)
            for backend in ("ebpf", "relay"):
                with pytest.raises(HostError, match="another segment has the EtherIP") as caught:
                    await make_by(sites.alpha, other, backend)
                assert "gretap or vxlan" in str(caught.value.next_step)
                assert nothing_left(sites.alpha) == between
            await make_by(sites.alpha, replace(other, kind="gretap", key=8), "ebpf")
        finally:
            await unmake_all(sites.alpha)


async def test_backends_and_kinds_take_each_others_place() -> None:
    with two_sites(9000) as sites:
        before = nothing_left(sites.alpha)
        wanted = [
            ("etherip", "ebpf"),
            ("etherip", "relay"),
            ("gretap", "ebpf"),
            ("vxlan", "kernel"),
        ]
        for manner in (Manner.WHOLE, Manner.FRAGMENTS):
            for kind, backend in (*wanted, *reversed(wanted)):
                spec = replace(spec_for(kind, 4, 9000), manner=manner)
                found = await make_by(sites.alpha, spec, backend)
                assert found.described == f"{kind} ({backend})"
                with sites.alpha.entered():
                    has_relay = running(spec.id) is not None
                assert has_relay == (
                    backend == "relay" or (backend == "ebpf" and manner is Manner.FRAGMENTS)
                )
        await unmake_all(sites.alpha)
        assert nothing_left(sites.alpha) == before


async def test_what_others_have_on_the_underlay_stays() -> None:
    spec = spec_for("etherip", 4, 9000)
    with two_sites(9000) as sites:
        before = nothing_left(sites.alpha)
        await make_by(sites.alpha, spec, "ebpf")
        gretap = replace(spec, kind="gretap", remote=IPv4Address("10.77.2.3"), guests=())
        await make_by(sites.alpha, gretap, "ebpf")
        with sites.alpha.entered():
            async with Rtnl() as rtnl:
                await remove(rtnl, spec.id)
                assert len(await list_tunnels(rtnl)) == 1
                await remove(rtnl, gretap.id)
        assert nothing_left(sites.alpha) == before
        sites.alpha.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        sites.alpha.run(
            *("tc", "filter", "add", "dev", "eth0", "ingress", "prio", "5", "protocol", "ip"),
            *("u32", "match", "ip", "dst", "10.0.0.1", "flowid", "1:1"),
        )
        with_strangers = nothing_left(sites.alpha)
        await make_by(sites.alpha, spec, "ebpf")
        await unmake_all(sites.alpha)
        assert nothing_left(sites.alpha) == with_strangers


async def test_a_route_that_moves_is_said_and_repaired() -> None:
    spec = spec_for("etherip", 4, 9000)
    with two_sites(9000) as sites:
        async with carried(spec, sites, ("ebpf", "ebpf")):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            assert echo(guest, "192.0.2.1") == "ok"
            # Another neighbour by the same interface is followed by itself.
            addressed(sites.router, "port1", "10.77.1.9/24")
            sites.alpha.run("ip", "route", "replace", "default", "via", "10.77.1.9")
            assert echo(guest, "192.0.2.1") == "ok"
            # Another interface is not.
            sites.alpha.run(
                *("ip", "link", "add", "eth1", "type", "veth"),
                *("peer", "name", "port9", "netns", sites.router.path),
            )
            sites.alpha.run("ip", "link", "set", "eth1", "mtu", "9000", "up")
            sites.router.run("ip", "link", "set", "port9", "mtu", "9000", "up")
            addressed(sites.alpha, "eth1", "10.79.0.2/24")
            addressed(sites.router, "port9", "10.79.0.1/24")
            sites.alpha.run("ip", "route", "replace", "10.77.2.0/24", "via", "10.79.0.1")
            sites.router.run("ip", "route", "add", "10.77.1.2/32", "via", "10.79.0.2")
            with sites.alpha.entered():
                async with Rtnl() as rtnl:
                    (tunnel,) = await list_tunnels(rtnl)
                    assert tunnel.problems == (
                        "the route to 10.77.2.2 leads by eth1, its programs do not",
                    )
                    await repair(rtnl)
                    (tunnel,) = await list_tunnels(rtnl)
                    assert tunnel.problems == ()
            assert "clsact" not in sites.alpha.run("tc", "qdisc", "show", "dev", "eth0")
            assert echo(guest, "192.0.2.1") == "ok"


async def test_a_relay_that_died_is_missed_and_started_again() -> None:
    spec = spec_for("etherip", 4, 1500)
    with two_sites(1500) as sites, sites.alpha.entered():
        try:
            await make_by(sites.alpha, spec, "ebpf")
            first = running(spec.id)
            assert first is not None
            os.kill(first.pid, 9)
            await eventually(lambda: running(spec.id) is None, "the relay's end")
            async with Rtnl() as rtnl:
                (tunnel,) = await list_tunnels(rtnl)
                assert tunnel.problems == ("its relay is not running",)
                await repair(rtnl)
            again = running(spec.id)
            assert again is not None
            assert again.pid != first.pid
            # It is of no session of ours, and its tunnel's id is among its words.
            assert os.getsid(again.pid) != os.getsid(0)
            assert spec.id in words_of(again.pid)
            sites.alpha.run("ip", "link", "del", f"qmt-{spec.id}")
            await eventually(lambda: running(spec.id) is None, "the relay's end with its tunnel")
        finally:
            await unmake_all(sites.alpha)


@pytest.mark.parametrize("pair", [("ebpf", "ebpf"), ("relay", "relay")], ids="-".join)
@pytest.mark.parametrize("kind", ["etherip", "gretap"])
async def test_a_full_datagram_whose_sum_was_left_to_the_card_arrives(
    kind: str, pair: tuple[str, str]
) -> None:
    spec = spec_for(kind, 4, 1500)
    with two_sites(1500) as sites:
        async with carried(spec, sites, pair):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            for family, address, size in (
                (socket.AF_INET, "192.0.2.9", 1472),
                (socket.AF_INET6, "2001:db8::9", 1452),
            ):
                assert echo(sites.client, address) == "ok"
                with guest.entered():
                    ear = socket.socket(family, socket.SOCK_DGRAM)
                with ear, sites.client.entered(), socket.socket(family, socket.SOCK_DGRAM) as mouth:
                    ear.settimeout(2)
                    ear.bind((address, 7))
                    for octets in (os.urandom(size), os.urandom(size - 1)):
                        mouth.sendto(octets, (address, 7))
                        assert ear.recv(65536) == octets


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.mark.parametrize("kind", ["etherip", "gretap"])
async def test_tcp_stays_with_the_programs_where_full_frames_do_not_fit(kind: str) -> None:
    spec = spec_for(kind, 4, 1500)
    with two_sites(1500) as sites:
        async with carried(spec, sites, ("ebpf", "ebpf")):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            assert echo(guest, "192.0.2.1") == "ok"
            with sites.router.entered():
                wire = packet_socket("port1")
            with wire, guest.entered(), socket.create_server(("192.0.2.9", 7)) as server:
                with sites.client.entered():
                    client = socket.create_connection(("192.0.2.9", 7), timeout=5)
                accepted, _ = server.accept()
                accepted.settimeout(5)
                with client, accepted:
                    sent = os.urandom(1 << 18)
                    client.setblocking(False)
                    got, at = b"", 0
                    while len(got) < len(sent):
                        if at < len(sent):
                            with suppress(BlockingIOError):
                                at += client.send(sent[at:])
                        got += accepted.recv(1 << 16)
                assert got == sent
                for packet in drained(wire):
                    assert not int.from_bytes(packet[20:22], "big") & 0x3FFF, "a fragment"
        with sites.alpha.entered():
            assert running(spec.id) is None


async def test_what_a_relay_counts_is_what_it_carried() -> None:
    spec = spec_for("etherip", 4, 9000)
    with two_sites(9000) as sites:
        async with carried(spec, sites, ("relay", "ebpf")):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            assert echo(guest, "192.0.2.1") == "ok"
            with sites.client.entered(), packet_socket("eth0") as mouth:
                mouth.send(OF_ONE_WIRE["pvst"])
            with sites.alpha.entered():
                said = running(spec.id)
                assert said is not None
                await eventually(
                    lambda: Fate.OF_ONE_WIRE in running(spec.id).frames["out"],  # type: ignore[union-attr]
                    "a frame of one wire",
                )
            assert said.frames["in"][Fate.PASSED] >= 2
            assert said.octets["in"] >= 2 * 42
