"""Addresses learned from what a guest says on a real tap."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
import trio

from netsetup import frames
from netsetup.errors import NoSuchLinkError
from netsetup.frames import Evidence, Sighting
from netsetup.learn import BATCH_FRAMES, MAX_ADDRESSES, learn_addresses
from tests.support.netns import Namespace, fresh_namespace, open_tap, packet_socket, run

pytestmark = pytest.mark.net

MAC = "52:54:00:aa:00:01"
OCTETS = frames.parse_mac(MAC)
OTHER = frames.parse_mac("52:54:00:bb:00:02")


@dataclass(frozen=True)
class Guest:
    """A tap and its guest's end."""

    host: Namespace
    end: int

    def say(self, *octets: bytes) -> None:
        for frame in octets:
            os.write(self.end, frame)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with fresh_namespace() as host, host.entered():
        run("ip", "tuntap", "add", "tap0", "mode", "tap")
        run("ip", "link", "set", "tap0", "up")
        end = open_tap("tap0")
        yield Guest(host, end)
        os.close(end)


def ipv4(source: str, ttl: int = 64, mac: bytes = OCTETS) -> bytes:
    header = bytes([0x45, 0, 0, 28, 0, 0, 0, 0, ttl, 17, 0, 0])
    load = header + ip_address(source).packed + bytes([192, 0, 2, 1]) + bytes(8)
    return frames.BROADCAST + mac + b"\x08\x00" + load


def arp(address: str, mac: bytes = OCTETS, vlan: int | None = None) -> bytes:
    return frames.arp_announcement(mac, IPv4Address(address), vlan=vlan)


def na(address: str) -> bytes:
    return frames.neighbour_advertisement(OCTETS, IPv6Address(address))


LAST = "192.0.2.254"


async def test_each_address_is_yielded_once_with_its_first_evidence(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        guest.say(arp("192.0.2.9"), arp("192.0.2.9"), ipv4("192.0.2.9"))
        first = await anext(watch)
        guest.say(na("2001:db8::9"), na("fe80::9"), ipv4("192.0.2.10"), arp(LAST))
        rest = [await anext(watch) for _ in range(4)]
        watch.close()
        assert [s async for s in watch] == []
    assert first.address == IPv4Address("192.0.2.9")
    assert {(str(s.address), s.evidence) for s in rest} == {
        ("2001:db8::9", Evidence.ND),
        ("fe80::9", Evidence.ND),
        ("192.0.2.10", Evidence.IP),
        (LAST, Evidence.ARP),
    }
    assert set(watch.sightings) == {first, *rest}


async def test_strangers_probes_forwarded_packets_and_rubbish_are_not_the_guests(
    guest: Guest,
) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        guest.say(
            arp("192.0.2.66", mac=OTHER),
            ipv4("192.0.2.66", mac=OTHER),
            arp("192.0.2.66")[:6] + OTHER + arp("192.0.2.66")[12:],
            arp("0.0.0.0"),  # noqa: S104  a probe
            ipv4("198.51.100.1", ttl=63),
            arp("192.0.2.67")[:30],
            frames.BROADCAST + OCTETS + b"\x86\xdd" + bytes(46),
            arp(LAST),
        )
        assert await anext(watch) == Sighting(IPv4Address(LAST), Evidence.ARP)
        guest.say(ipv4("192.0.2.253"))
        assert await anext(watch) == Sighting(IPv4Address("192.0.2.253"), Evidence.IP)
        watch.close()


async def test_what_the_host_sends_to_the_guest_is_not_the_guests(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        with packet_socket("tap0") as towards:
            towards.send(arp("192.0.2.66"))
        guest.say(arp(LAST))
        assert (await anext(watch)).address == IPv4Address(LAST)
        watch.close()


async def test_the_vlan_of_a_guest_that_tags_is_learned_with_the_address(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        guest.say(arp("192.0.2.9", vlan=10), arp("192.0.2.9"), arp("192.0.2.9", vlan=11))
        seen = [(await anext(watch)).vlan for _ in range(3)]
        watch.close()
    assert seen == [10, None, 11]


async def test_a_guest_that_claims_everything_is_believed_up_to_a_bound(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        seen = []
        for number in range(40):
            guest.say(arp(f"192.0.2.{number + 1}"))
            if number < MAX_ADDRESSES:
                seen.append(await anext(watch))
        for number in range(MAX_ADDRESSES):
            guest.say(na(f"2001:db8::{number + 1}"))
        seen += [s async for s in watch]  # it ends by itself: there is no more to learn
    assert len(seen) == len(set(seen)) == 2 * MAX_ADDRESSES
    assert seen[MAX_ADDRESSES - 1].address == IPv4Address(f"192.0.2.{MAX_ADDRESSES}")


async def test_a_flood_of_packets_does_not_hide_arp(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        flood = ipv4("192.0.2.1")
        for _ in range(100 * BATCH_FRAMES):
            guest.say(flood)
        guest.say(arp(LAST))
        seen = {str((await anext(watch)).address) for _ in range(2)}
        watch.close()
    assert seen == {"192.0.2.1", LAST}


async def test_it_ends_when_the_tap_goes(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        watch = learn_addresses(nursery, "tap0", MAC)
        guest.say(arp(LAST))
        assert (await anext(watch)).address == IPv4Address(LAST)
        run("ip", "link", "delete", "tap0")
        assert [s async for s in watch] == []


async def test_a_tap_that_is_not_there_is_said_at_once(guest: Guest) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names only
    async with trio.open_nursery() as nursery:
        with pytest.raises(NoSuchLinkError, match="tap9"):
            learn_addresses(nursery, "tap9", MAC)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
