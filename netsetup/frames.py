"""Frames that make a MAC and its addresses follow a guest, built and read; pure.

An Ethernet II frame, with the 802.1Q tag only if there is a VLAN; lengths in octets, no FCS::

    | destination 6 | source 6 | [ 8100 2 | pcp:3 dei:1 vid:12 ] | ethertype 2 | payload, padded |

Parsers end in `_untrusted`: they take what a guest or a stranger sent and raise `FrameError` and
nothing else. Sources: RFC 826 (ARP), 903 (RARP), 5227 (announcements), 4861 (ND), 8200 (IPv6).
"""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from netsetup.errors import FrameError, UsageError

Address = IPv4Address | IPv6Address

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_RARP = 0x8035
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD

MIN_FRAME_BYTES = 60  # 802.3's 64 without the FCS; QEMU pads its RARP to it, and so do we
BROADCAST = b"\xff" * 6
ALL_NODES = IPv6Address("ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464 §7: 33:33 and the last 32 bits

ICMPV6 = 58
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
_NA_ROUTER = 0x80000000
_NA_OVERRIDE = 0x20000000
_OPTION_SOURCE_LLA = 1
_OPTION_TARGET_LLA = 2

# What systems start a packet's life with. Anything else may have been forwarded by the sender,
# and then its source address is not the sender's own.
FRESH_HOPS = frozenset({64, 128, 255})


class FrameKind(StrEnum):
    """What an announcement frame is; `garp-reply` is the form that some old gear listens to."""

    RARP = "rarp"
    GARP = "garp"
    GARP_REPLY = "garp-reply"
    NA = "na"


class Evidence(StrEnum):
    """By which kind of frame an address was seen."""

    ARP = "arp"
    ND = "nd"
    IP = "ip"


@dataclass(frozen=True, slots=True)
class Ethernet:
    """A frame's header; `vlan` is the tag's VLAN id, None for untagged and priority-tagged."""

    destination: bytes
    source: bytes
    vlan: int | None
    ethertype: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet."""

    operation: int  # 1 request, 2 reply
    sender_mac: bytes
    sender: IPv4Address
    target_mac: bytes
    target: IPv4Address


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour solicitation or advertisement that passed RFC 4861 §7.1's checks."""

    type: int  # NEIGHBOUR_SOLICITATION or NEIGHBOUR_ADVERTISEMENT
    source: IPv6Address
    target: IPv6Address
    link_address: bytes | None  # source LLA of a solicitation, target LLA of an advertisement
    override: bool


@dataclass(frozen=True, slots=True)
class Sighting:
    """An address that a MAC was seen to speak for."""

    address: Address
    evidence: Evidence
    vlan: int | None = None


_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}")


def parse_mac(text: str) -> bytes:
    """Return the six octets of a unicast MAC "52:54:00:12:34:56"; raise `UsageError`."""
    if not _MAC.fullmatch(text):
        raise UsageError(f"{text!r} is not a MAC address such as 52:54:00:12:34:56")
    octets = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if octets[0] & 1 or not any(octets):
        raise UsageError(f"{text} is no card's own address: it is a group address or zero")
    return octets


def mac_text(octets: bytes) -> str:
    """Return "52:54:00:12:34:56" for six octets."""
    return octets.hex(":")


def _frame(
    destination: bytes, source: bytes, vlan: int | None, ethertype: int, load: bytes
) -> bytes:
    if vlan is not None and not 1 <= vlan <= 4094:
        raise UsageError(f"VLAN {vlan} is not between 1 and 4094")
    tag = b"" if vlan is None else struct.pack("!HH", ETHERTYPE_VLAN, vlan)
    frame = destination + source + tag + struct.pack("!H", ethertype) + load
    # A switch that takes off the tag must still have 60 octets: pad as if the tag were not there.
    return frame.ljust(MIN_FRAME_BYTES + len(tag), b"\0")


# | htype 2 | ptype 2 | hlen 1 | plen 1 | oper 2 | sha 6 | spa 4 | tha 6 | tpa 4 |
_ARP = struct.Struct("!HHBBH6s4s6s4s")


def rarp_announcement(mac: bytes, *, vlan: int | None = None) -> bytes:
    """Return QEMU's own announcement (net/announce.c): it moves switches' tables, no caches."""
    load = _ARP.pack(1, ETHERTYPE_IPV4, 6, 4, 3, mac, bytes(4), mac, bytes(4))
    return _frame(BROADCAST, mac, vlan, ETHERTYPE_RARP, load)


def arp_announcement(
    mac: bytes, address: IPv4Address, *, reply: bool = False, vlan: int | None = None
) -> bytes:
    """Return RFC 5227 §3's announcement: a request in which sender and target are `address`.

    With `reply` the older form, an unasked broadcast answer.
    """
    own, target = address.packed, BROADCAST if reply else bytes(6)
    load = _ARP.pack(1, ETHERTYPE_IPV4, 6, 4, 2 if reply else 1, mac, own, target, own)
    return _frame(BROADCAST, mac, vlan, ETHERTYPE_ARP, load)


# | 6 tc flow 4 | payload length 2 | next 1 | hops 1 | source 16 | destination 16 |
_IPV6 = struct.Struct("!IHBB16s16s")
# | type 1 | code 1 | checksum 2 | flags or reserved 4 | target 16 | options: type 1, len/8 1, … |
_ND = struct.Struct("!BBHI16s")


def neighbour_advertisement(
    mac: bytes, address: IPv6Address, *, router: bool = False, vlan: int | None = None
) -> bytes:
    """Return RFC 4861 §7.2.6's unsolicited advertisement to all nodes, Override set.

    `router` must say what the guest is: a cleared bit makes hosts drop it as default router.
    """
    flags = _NA_OVERRIDE | (_NA_ROUTER if router else 0)
    option = struct.pack("!BB6s", _OPTION_TARGET_LLA, 1, mac)
    load = _ND.pack(NEIGHBOUR_ADVERTISEMENT, 0, 0, flags, address.packed) + option
    checksum = icmpv6_checksum(address.packed, ALL_NODES.packed, load)
    load = load[:2] + struct.pack("!H", checksum) + load[4:]
    header = _IPV6.pack(6 << 28, len(load), ICMPV6, 255, address.packed, ALL_NODES.packed)
    return _frame(ALL_NODES_MAC, mac, vlan, ETHERTYPE_IPV6, header + load)


def address_question(mac: bytes, address: Address, *, vlan: int | None = None) -> bytes:
    """Return a frame from `mac` that asks who has `address`, and moves nobody's cache.

    ARP without a sender's address (RFC 5227 §2.1.1); a solicitation from the link-local address
    that `mac` stands for: from none it would end the guest's own check of that address.
    """
    if isinstance(address, IPv4Address):
        load = _ARP.pack(1, ETHERTYPE_IPV4, 6, 4, 1, mac, bytes(4), bytes(6), address.packed)
        return _frame(BROADCAST, mac, vlan, ETHERTYPE_ARP, load)
    low = address.packed[13:]
    group = bytes.fromhex("ff0200000000000000000001ff") + low  # RFC 4291 §2.7.1
    own = bytes.fromhex("fe80") + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    load = _ND.pack(NEIGHBOUR_SOLICITATION, 0, 0, 0, address.packed)
    load += struct.pack("!BB6s", _OPTION_SOURCE_LLA, 1, mac)
    checksum = icmpv6_checksum(own, group, load)
    load = load[:2] + struct.pack("!H", checksum) + load[4:]
    header = _IPV6.pack(6 << 28, len(load), ICMPV6, 255, own, group)
    return _frame(b"\x33\x33\xff" + low, mac, vlan, ETHERTYPE_IPV6, header + load)


def icmpv6_checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """Return the checksum over pseudo header and message (RFC 8200 §8.1); 0 if it is in there."""
    octets = source + destination + struct.pack("!II", len(message), ICMPV6) + message
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet_untrusted(frame: bytes) -> Ethernet:
    """Return the header of `frame`, through one 802.1Q tag; raise `FrameError`."""
    if len(frame) < 14:
        raise FrameError(f"a frame of {len(frame)} octets has no Ethernet header")
    ethertype, start, vlan = int.from_bytes(frame[12:14]), 14, None
    if ethertype == ETHERTYPE_VLAN:
        if len(frame) < 18:
            raise FrameError("the frame ends inside its VLAN tag")
        vlan = int.from_bytes(frame[14:16]) & 0xFFF or None
        ethertype, start = int.from_bytes(frame[16:18]), 18
    return Ethernet(frame[:6], frame[6:12], vlan, ethertype, frame[start:])


def arp_untrusted(payload: bytes) -> Arp:
    """Return the ARP packet in `payload`, padding ignored; raise `FrameError`."""
    if len(payload) < _ARP.size:
        raise FrameError(f"{len(payload)} octets are too few for ARP")
    htype, ptype, hlen, plen, operation, sha, spa, tha, tpa = _ARP.unpack_from(payload)
    if (htype, ptype, hlen, plen) != (1, ETHERTYPE_IPV4, 6, 4):
        raise FrameError("ARP for something else than IPv4 over Ethernet")
    if operation not in (1, 2):
        raise FrameError(f"ARP operation {operation} is neither request nor reply")
    return Arp(operation, sha, IPv4Address(spa), tha, IPv4Address(tpa))


def neighbour_untrusted(payload: bytes) -> Neighbour | None:
    """Return the ND message in an IPv6 packet, None if it is another packet.

    Raise `FrameError` where RFC 4861 §7.1.1 and §7.1.2 say that it must be discarded.
    """
    source, destination, next_header, hops, message = _ipv6(payload)
    if next_header != ICMPV6 or not message:
        return None
    if message[0] not in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT):
        return None
    if hops != 255:
        raise FrameError(f"neighbour discovery with hop limit {hops} has crossed a router")
    if len(message) < _ND.size:
        raise FrameError("neighbour discovery that ends before its target")
    if icmpv6_checksum(source.packed, destination.packed, message):
        raise FrameError("neighbour discovery with a wrong checksum")
    kind, code, _, flags, octets = _ND.unpack_from(message)
    target = IPv6Address(octets)
    if code or target.is_multicast:
        raise FrameError("neighbour discovery with a code or a group as its target")
    solicits = kind == NEIGHBOUR_SOLICITATION
    link_address = _link_address(
        message[_ND.size :], _OPTION_SOURCE_LLA if solicits else _OPTION_TARGET_LLA
    )
    if solicits and source.is_unspecified and link_address is not None:
        raise FrameError("an address probe that claims a link address")
    override = not solicits and bool(flags & _NA_OVERRIDE)
    return Neighbour(kind, source, target, link_address, override)


def _ipv6(payload: bytes) -> tuple[IPv6Address, IPv6Address, int, int, bytes]:
    """Return source, destination, next header, hop limit and what follows."""
    if len(payload) < _IPV6.size:
        raise FrameError(f"{len(payload)} octets are too few for IPv6")
    first, length, next_header, hops, source, destination = _IPV6.unpack_from(payload)
    if first >> 28 != 6:
        raise FrameError("an IPv6 frame whose packet says another version")
    return (
        IPv6Address(source),
        IPv6Address(destination),
        next_header,
        hops,
        payload[_IPV6.size : _IPV6.size + length],
    )


def _link_address(options: bytes, wanted: int) -> bytes | None:
    found = None
    while options:
        size = options[1] * 8 if len(options) > 1 else 0
        if not size or size > len(options):
            raise FrameError("neighbour discovery with a damaged option")
        if options[0] == wanted and size == 8:
            found = options[2:8]
        options = options[size:]
    return found


def sighting_untrusted(frame: bytes, mac: bytes, *, vlan: int | None = None) -> Sighting | None:
    """Return the address that `mac` speaks for in a frame that it sent; None if there is none.

    `vlan` is a tag that the kernel took off. None as well for: frames of another sender, or whose
    inner sender is another; address probes (RFC 5227 §2.1.1, 4862 §5.4: not yet its own); packets
    that it may merely have forwarded. Raises `FrameError`.
    """
    outer = ethernet_untrusted(frame)
    if outer.source != mac:
        return None
    if outer.ethertype == ETHERTYPE_ARP:
        arp = arp_untrusted(outer.payload)
        address: Address | None = arp.sender if arp.sender_mac == mac else None
        evidence = Evidence.ARP
    elif outer.ethertype == ETHERTYPE_IPV4:
        address, evidence = _fresh_ipv4(outer.payload), Evidence.IP
    elif outer.ethertype == ETHERTYPE_IPV6:
        address, evidence = _from_ipv6(outer.payload, mac)
    else:
        return None
    if address is None or not is_host_address(address):
        return None
    return Sighting(address, evidence, outer.vlan or vlan)


# | ver ihl 1 | tos 1 | length 2 | id 2 | fragment 2 | ttl 1 | proto 1 | sum 2 | source 4 | dest 4 |
_IPV4 = struct.Struct("!BxHxxxxBBxx4s4s")


def _fresh_ipv4(payload: bytes) -> IPv4Address | None:
    if len(payload) < _IPV4.size:
        raise FrameError(f"{len(payload)} octets are too few for IPv4")
    first, length, ttl, _, source, _ = _IPV4.unpack_from(payload)
    if first >> 4 != 4 or first & 0xF < 5 or length < (first & 0xF) * 4:
        raise FrameError("an IPv4 frame whose header is damaged")
    return IPv4Address(source) if ttl in FRESH_HOPS else None


def _from_ipv6(payload: bytes, mac: bytes) -> tuple[IPv6Address | None, Evidence]:
    neighbour = neighbour_untrusted(payload)
    if neighbour is None:
        source, _, _, hops, _ = _ipv6(payload)
        return (source if hops in FRESH_HOPS else None), Evidence.IP
    if neighbour.link_address not in (None, mac):
        return None, Evidence.ND  # a proxy, or a lie
    if neighbour.type == NEIGHBOUR_SOLICITATION:
        return neighbour.source, Evidence.ND
    return neighbour.target, Evidence.ND


def is_host_address(address: Address) -> bool:
    """Whether one card can have `address` on a segment; link-local ones can."""
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return not (address.is_reserved or address.packed[0] == 0)
    return address.ipv4_mapped is None
