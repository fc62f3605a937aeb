"""A guest that moves to the other site with a connection open: it goes on, through the tunnel."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from netsetup.errors import HostError, NoSuchLinkError
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import mirrored
from netsetup.tunnels import remove
from netsetup.turning import Turn, arm
from tests.support.netns import Namespace, add_bridge, learned_port
from tests.support.sites import CLIENT_MAC, echo, two_sites
from tests.support.tunnelled import build, spec_for

pytestmark = pytest.mark.net

GUEST = "192.0.2.9"
GUEST_MAC = "52:54:00:00:00:09"
BULK_BYTES = 24 << 20


def move(source: Namespace, destination: Namespace, bridge: str) -> None:
    """Plug the guest's tap out of one host and into `bridge` of another."""
    source.run("ip", "link", "set", "tap9", "nomaster", "netns", destination.path)
    destination.run("ip", "link", "set", "tap9", "master", bridge, "up")


async def turned(place: Namespace, *turns: Turn) -> None:
    with place.entered():
        async with Rtnl() as rtnl, arm(rtnl, turns) as turner:
            assert [each.problem for each in await turner.turn()] == [None] * len(turns)


@contextmanager
def bulk(client: Namespace, guest: Namespace, *, to_guest: bool) -> Iterator[list[str]]:
    """Send `BULK_BYTES` over a connection that is open when the block begins; the digests after."""
    digests: list[str] = []
    half_way = threading.Event()
    go_on = threading.Event()
    with guest.entered():
        door = socket.create_server((GUEST, 5001))
    with client.entered():
        theirs = socket.create_connection((GUEST, 5001))
    ours, _ = door.accept()
    sender, receiver = (theirs, ours) if to_guest else (ours, theirs)
    for each in (sender, receiver):
        each.settimeout(30)

    def send() -> None:
        digest = hashlib.sha256()
        block = bytes(range(256)) * 256
        for number in range(BULK_BYTES // len(block)):
            if number == 16:
                half_way.set()
                go_on.wait(30)
            sender.sendall(block)
            digest.update(block)
        sender.shutdown(socket.SHUT_WR)
        digests.append(digest.hexdigest())

    def receive() -> None:
        digest = hashlib.sha256()
        while octets := receiver.recv(1 << 16):
            digest.update(octets)
        digests.append(digest.hexdigest())

    threads = [threading.Thread(target=work) for work in (send, receive)]
    with door, theirs, ours:
        for thread in threads:
            thread.start()
        half_way.wait(30)
        yield digests
        go_on.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.parametrize("to_guest", [True, False], ids=["to the guest", "from the guest"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_a_bulk_stream_opened_before_the_move_goes_on_after_it(
    mtu: int, version: int, to_guest: bool
) -> None:
    spec = spec_for("vxlan", version, mtu)
    with two_sites(mtu) as sites:
        guest = sites.guest(sites.alpha, "br0")
        await build(sites, spec)
        with bulk(sites.client, guest, to_guest=to_guest) as digests:
            move(sites.alpha, sites.beta, mirrored(spec).bridge)
            await turned(sites.alpha, Turn(GUEST_MAC, f"qmt-{spec.id}"))
        assert len(digests) == 2
        assert digests[0] == digests[1]


async def test_a_turned_bridge_sends_to_the_tunnel_before_the_guest_says_anything() -> None:
    spec = spec_for("vxlan", 4, 9000)
    port = f"qmt-{spec.id}"
    with two_sites(9000) as sites:
        guest = sites.guest(sites.alpha, "br0")
        told = ("192.0.2.1", "lladdr", CLIENT_MAC, "dev", "eth0")
        guest.run("ip", "neigh", "replace", *told)
        assert echo(sites.client, GUEST) == "ok"
        await build(sites, spec)
        with sites.alpha.entered():
            async with Rtnl() as rtnl, arm(rtnl, [Turn(GUEST_MAC, port)]) as turner:
                assert learned_port(sites.alpha, "br0", GUEST_MAC) == "tap9"
                assert await turner.back() == ()  # never turned: nothing to put back
                assert learned_port(sites.alpha, "br0", GUEST_MAC) == "tap9"
                (done,) = await turner.turn()
                assert (done.before, done.port, done.problem) == ("tap9", port, None)
                assert learned_port(sites.alpha, "br0", GUEST_MAC) == port
                # The move fails, and the guest goes on where it was.
                (back,) = await turner.back()
                assert (back.port, back.problem) == ("tap9", None)
                assert learned_port(sites.alpha, "br0", GUEST_MAC) == "tap9"
                assert echo(sites.client, GUEST) == "ok"
                # It is tried again, and works.
                await turner.turn()
                move(sites.alpha, sites.beta, mirrored(spec).bridge)
                assert echo(sites.client, GUEST, tries=1) == "ok"


async def test_the_entry_goes_with_the_tunnel_and_moves_with_the_guest() -> None:
    spec = spec_for("vxlan", 4, 9000)
    with two_sites(9000) as sites:
        guest = sites.guest(sites.alpha, "br0")
        await build(sites, spec)
        move(sites.alpha, sites.beta, mirrored(spec).bridge)
        await turned(sites.alpha, Turn(GUEST_MAC, f"qmt-{spec.id}"))
        assert echo(sites.client, GUEST) == "ok"
        move(sites.beta, sites.alpha, "br0")
        await turned(sites.alpha, Turn(GUEST_MAC, "tap9", static=False))
        assert echo(sites.client, GUEST, tries=1) == "ok"
        assert "static" not in entries(sites.alpha)
        for place in (sites.alpha, sites.beta):
            with place.entered():
                async with Rtnl() as rtnl:
                    await remove(rtnl, spec.id, guest="web1")
        assert echo(sites.client, GUEST, tries=1) == "ok"
        assert echo(guest, "192.0.2.1", tries=1) == "ok"


def entries(place: Namespace) -> str:
    shown = place.run("bridge", "fdb", "show", "br", "br0").splitlines()
    return "\n".join(line for line in shown if line.startswith(GUEST_MAC))


async def test_a_guest_whose_entry_was_never_set_is_found_when_it_speaks() -> None:
    spec = spec_for("vxlan", 4, 9000)
    with two_sites(9000) as sites:
        guest = sites.guest(sites.alpha, "br0")
        assert echo(sites.client, GUEST) == "ok"
        await build(sites, spec)
        move(sites.alpha, sites.beta, mirrored(spec).bridge)
        assert echo(guest, "192.0.2.1") == "ok"
        assert echo(sites.client, GUEST, tries=1) == "ok"


async def test_what_cannot_be_turned_is_said_when_it_is_armed() -> None:
    with two_sites() as sites, sites.alpha.entered():
        add_bridge(sites.alpha, "br1")
        sites.alpha.run("ip", "tuntap", "add", "tap5", "mode", "tap")
        sites.alpha.run("ip", "link", "set", "tap5", "master", "br1", "up")
        async with Rtnl() as rtnl:
            for port, error in (
                ("qmt-0000", NoSuchLinkError), ("eth0", NoSuchLinkError), ("tap5", HostError),
            ):  # fmt: skip
                with pytest.raises(error):
                    async with arm(rtnl, [Turn(GUEST_MAC, port)]):
                        pass
            turn = Turn(GUEST_MAC, "port0")
            async with arm(rtnl, [turn, replace(turn, mac="52:54:00:00:00:08")]) as turner:
                sites.alpha.run("ip", "link", "del", "port0")
                gone = await turner.turn()
                assert [each.problem for each in gone] == ["No such device"] * 2
