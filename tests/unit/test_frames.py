"""Frames against known answers, and parsers against everything."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsetup import frames
from netsetup.errors import FrameError, UsageError
from netsetup.frames import Evidence, Sighting

MAC = frames.parse_mac("52:54:00:12:34:56")
OTHER = frames.parse_mac("52:54:00:99:99:99")
V4 = IPv4Address("192.0.2.9")
V6 = IPv6Address("2001:db8::9")

# The RARP is what QEMU 10.0.2 sent (compared byte for byte in tests/net/test_announce_qemu.py);
# ARP is RFC 826 by hand; the advertisement's checksum is tcpdump's "sum ok".
KNOWN = {
    "rarp": (
        frames.rarp_announcement(MAC),
        "ffffffffffff 525400123456 8035 0001 0800 06 04 0003"
        "525400123456 00000000 525400123456 00000000" + "00" * 18,
    ),
    "garp": (
        frames.arp_announcement(MAC, V4),
        "ffffffffffff 525400123456 0806 0001 0800 06 04 0001"
        "525400123456 c0000209 000000000000 c0000209" + "00" * 18,
    ),
    "garp-reply": (
        frames.arp_announcement(MAC, V4, reply=True),
        "ffffffffffff 525400123456 0806 0001 0800 06 04 0002"
        "525400123456 c0000209 ffffffffffff c0000209" + "00" * 18,
    ),
    "garp-vlan": (
        frames.arp_announcement(MAC, V4, vlan=10),
        "ffffffffffff 525400123456 8100 000a 0806 0001 0800 06 04 0001"
        "525400123456 c0000209 000000000000 c0000209" + "00" * 18,
    ),
    "na": (
        frames.neighbour_advertisement(MAC, V6),
        (
            "333300000001 525400123456 86dd 60000000 0020 3a ff"
            "20010db8000000000000000000000009 ff020000000000000000000000000001"
            "88 00 745f 20000000 20010db8000000000000000000000009 02 01 525400123456"
        ),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_frame_is_the_known_answer(name: str) -> None:
    built, known = KNOWN[name]
    assert built == bytes.fromhex(known)


def test_only_a_router_guest_is_announced_as_a_router() -> None:
    flags = slice(14 + 40 + 4, 14 + 40 + 8)
    assert frames.neighbour_advertisement(MAC, V6, router=True)[flags].hex() == "a0000000"
    assert frames.neighbour_advertisement(MAC, V6)[flags].hex() == "20000000"


@pytest.mark.parametrize("vlan", [0, -1, 4095, 70000])
def test_a_vlan_that_cannot_be_is_refused(vlan: int) -> None:
    with pytest.raises(UsageError, match="VLAN"):
        frames.rarp_announcement(MAC, vlan=vlan)


@pytest.mark.parametrize(
    "text",
    ["", "52:54", "52:54:00:12:34:5", "52:54:00:12:34:56:78", "g2:54:00:12:34:56",
     "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "5254.0012.3456",
     " 2:54:00:12:34:56", "+2:54:00:12:34:56"],
)  # fmt: skip
def test_what_is_no_cards_mac_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        frames.parse_mac(text)


def ipv4(source: str, *, ttl: int = 64, first: int = 0x45) -> bytes:
    header = bytes([first, 0, 0, 28, 0, 0, 0, 0, ttl, 17, 0, 0])
    load = header + ip_address(source).packed + V4.packed + bytes(8)
    return b"\x02" * 6 + MAC + b"\x08\x00" + load


def ipv6(source: str, load: bytes, *, next_header: int = 17, hops: int = 64) -> bytes:
    head = b"\x60\0\0\0" + len(load).to_bytes(2) + bytes([next_header, hops])
    packet = head + ip_address(source).packed + frames.ALL_NODES.packed + load
    return frames.ALL_NODES_MAC + MAC + b"\x86\xdd" + packet


def nd(
    source: str, target: str, *, kind: int = 135, options: bytes = b"", hops: int = 255
) -> bytes:
    load = bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + ip_address(target).packed + options
    packed = ip_address(source).packed
    checksum = frames.icmpv6_checksum(packed, frames.ALL_NODES.packed, load)
    load = load[:2] + checksum.to_bytes(2) + load[4:]
    return ipv6(source, load, next_header=58, hops=hops)


def arp(sender: str, *, sha: bytes = MAC, source: bytes = MAC, operation: int = 1) -> bytes:
    load = bytes.fromhex("0001080006040000")[:6] + operation.to_bytes(2)
    load += sha + ip_address(sender).packed + bytes(6) + V4.packed
    return frames.BROADCAST + source + b"\x08\x06" + load


SLLA, TLLA = b"\x01\x01", b"\x02\x01"

SPOKEN_FOR = {
    "arp request": (arp("192.0.2.1"), "192.0.2.1", Evidence.ARP),
    "arp reply": (arp("192.0.2.1", operation=2), "192.0.2.1", Evidence.ARP),
    "arp link-local": (arp("169.254.7.7"), "169.254.7.7", Evidence.ARP),
    "ns": (nd("fe80::1", "fe80::2", options=SLLA + MAC), "fe80::1", Evidence.ND),
    "ns without option": (nd("2001:db8::5", "fe80::2"), "2001:db8::5", Evidence.ND),
    "na": (
        nd("fe80::1", "2001:db8::7", kind=136, options=TLLA + MAC),
        "2001:db8::7",
        Evidence.ND,
    ),
    "ipv4": (ipv4("192.0.2.4"), "192.0.2.4", Evidence.IP),
    "ipv4 windows": (ipv4("192.0.2.4", ttl=128), "192.0.2.4", Evidence.IP),
    "ipv6": (ipv6("2001:db8::6", b"12345678"), "2001:db8::6", Evidence.IP),
}


@pytest.mark.parametrize("name", SPOKEN_FOR)
def test_an_address_is_seen_in(name: str) -> None:
    frame, address, evidence = SPOKEN_FOR[name]
    expected = Sighting(ip_address(address), evidence)
    assert frames.sighting_untrusted(frame, MAC) == expected
    tagged = frame[:12] + b"\x81\x00\x60\x0a" + frame[12:]
    assert frames.sighting_untrusted(tagged, MAC) == Sighting(ip_address(address), evidence, 10)
    assert frames.sighting_untrusted(frame, MAC, vlan=7) == Sighting(expected.address, evidence, 7)
    assert frames.sighting_untrusted(frame, OTHER) is None


NOT_SPOKEN_FOR = {
    "arp probe (RFC 5227 2.1.1)": arp("0.0.0.0"),  # noqa: S104  an address, not a socket's
    "duplicate address detection (RFC 4862)": nd("::", "2001:db8::7"),
    "arp with another inner sender": arp("192.0.2.1", sha=OTHER),
    "ns with another link address": nd("fe80::1", "fe80::2", options=SLLA + OTHER),
    "na for somebody else": nd("fe80::1", "fe80::2", kind=136, options=TLLA + OTHER),
    "ipv4 that was forwarded": ipv4("198.51.100.1", ttl=63),
    "ipv6 that was forwarded": ipv6("2001:db8:1::1", b"", hops=127),
    "loopback": ipv4("127.0.0.1"),
    "multicast": ipv4("224.0.0.1"),
    "broadcast": ipv4("255.255.255.255"),
    "this network": ipv4("0.1.2.3"),
    "ipv6 loopback": ipv6("::1", b""),
    "ipv6 multicast": ipv6("ff02::1", b""),
    "mapped": ipv6("::ffff:192.0.2.1", b""),
    "rarp": frames.rarp_announcement(MAC),
    "lldp": frames.BROADCAST + MAC + b"\x88\xcc" + bytes(46),
}


@pytest.mark.parametrize("name", NOT_SPOKEN_FOR)
def test_no_address_is_seen_in(name: str) -> None:
    assert frames.sighting_untrusted(NOT_SPOKEN_FOR[name], MAC) is None


DAMAGED = {
    "no header": b"\xff" * 13,
    "ends in its tag": frames.BROADCAST + MAC + b"\x81\x00\x00",
    "short arp": arp("192.0.2.1")[:-1],
    "arp for something else": arp("192.0.2.1").replace(b"\x08\x00\x06\x04", b"\x08\x00\x08\x04"),
    "arp operation": arp("192.0.2.1", operation=3),
    "short ipv4": ipv4("192.0.2.1")[:33],
    "ipv4 that says 6": ipv4("192.0.2.1", first=0x65),
    "ipv4 without room": ipv4("192.0.2.1", first=0x44),
    "short ipv6": ipv6("2001:db8::1", b"")[:53],
    "ipv6 that says 4": ipv6("2001:db8::1", b"").replace(b"\x86\xdd\x60", b"\x86\xdd\x40"),
    "nd from afar": nd("fe80::1", "fe80::2", hops=254),
    "nd for a group": nd("fe80::1", "ff02::2"),
    "nd checksum": nd("fe80::1", "fe80::2")[:-1] + b"\x07",
    "nd option of no length": nd("fe80::1", "fe80::2", options=bytes(8)),
    "nd option too long": nd("fe80::1", "fe80::2", options=b"\x01\x02" + bytes(6)),
    "nd half an option": nd("fe80::1", "fe80::2", options=b"\x01"),
    "probe that claims": nd("::", "fe80::2", options=SLLA + MAC),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_frame_is_refused(name: str) -> None:
    with pytest.raises(FrameError):
        frames.sighting_untrusted(DAMAGED[name], MAC)


GOOD = [frame for frame, _, _ in SPOKEN_FOR.values()] + [built for built, _ in KNOWN.values()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good frame with octets changed, cut, or grown."""
    frame = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(frame)))
    return bytes(frame[:cut]) + draw(st.binary(max_size=40))


@given(st.one_of(st.binary(max_size=200), mutated()))
@example(b"")
def test_whatever_comes_a_parser_answers_or_raises_its_one_error(frame: bytes) -> None:
    for parse in (
        frames.ethernet_untrusted,
        frames.arp_untrusted,
        frames.neighbour_untrusted,
        lambda octets: frames.sighting_untrusted(octets, MAC),
    ):
        try:
            found = parse(frame)
        except FrameError:
            continue
        if isinstance(found, Sighting):
            assert frames.is_host_address(found.address)
            assert frame[6:12] == MAC


@given(st.ip_addresses(v=4), st.booleans(), st.one_of(st.none(), st.integers(1, 4094)))
def test_what_is_built_for_ipv4_is_read_back(
    address: IPv4Address, reply: bool, vlan: int | None
) -> None:
    frame = frames.arp_announcement(MAC, address, reply=reply, vlan=vlan)
    outer = frames.ethernet_untrusted(frame)
    arp = frames.arp_untrusted(outer.payload)
    assert (outer.source, outer.vlan) == (MAC, vlan)
    assert (arp.sender_mac, arp.sender, arp.target) == (MAC, address, address)
    assert arp.operation == (2 if reply else 1)


@given(st.ip_addresses(v=6), st.one_of(st.none(), st.integers(1, 4094)))
def test_what_is_built_for_ipv6_is_read_back(address: IPv6Address, vlan: int | None) -> None:
    if address.is_multicast:
        return
    outer = frames.ethernet_untrusted(frames.neighbour_advertisement(MAC, address, vlan=vlan))
    read = frames.neighbour_untrusted(outer.payload)
    assert read is not None
    assert (read.target, read.link_address, read.override, outer.vlan) == (address, MAC, True, vlan)
