"""Who answers for an address on a bridge: asked as a host asks before it takes an address.

An ARP probe names no sender's address (RFC 5227 §2.1.1), and so does duplicate address detection
(RFC 4862 §5.4.2), so nobody's cache is changed by the question::

    ARP   ff:ff:ff:ff:ff:ff   who has TARGET? tell 0.0.0.0       answered to the asker's MAC
    ND    33:33:ff:xx:xx:xx   solicitation from :: for TARGET    answered to all nodes
"""

import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from pathlib import Path

import trio

from netsetup.errors import FrameError, HostError, NoSuchLinkError
from netsetup.frames import (
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMPV6,
    MIN_FRAME_BYTES,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    Address,
    arp_untrusted,
    ethernet_untrusted,
    icmpv6_checksum,
    mac_text,
    neighbour_untrusted,
    parse_mac,
)
from netsetup.links import check_name
from netsetup.packets import listen

ASK_AT_S = (0.0, 0.3)  # again, for a frame that was lost or a guest that was busy
PATIENCE_S = 0.7  # after the last one; an emulated guest answers in tens of ms
_BUFFER_BYTES = 64 * 1024
_FRAME_BYTES = 256
# Pass ARP, and IPv6's neighbour advertisements: ethertype at 12, next header at 20, type at 54.
_ANSWERS = (
    (0x28, 0, 0, 12),
    (0x15, 5, 0, ETHERTYPE_ARP),
    (0x15, 0, 5, ETHERTYPE_IPV6),
    (0x30, 0, 0, 20),
    (0x15, 0, 3, ICMPV6),
    (0x30, 0, 0, 54),
    (0x15, 0, 1, NEIGHBOUR_ADVERTISEMENT),
    (0x06, 0, 0, _FRAME_BYTES),
    (0x06, 0, 0, 0),
)
# | htype 2 | ptype 2 | hlen 1 | plen 1 | oper 2 | sha 6 | spa 4 | tha 6 | tpa 4 |
_ARP = struct.Struct("!HHBBH6s4s6s4s")
# | 6 tc flow 4 | payload length 2 | next 1 | hops 1 | source 16 | destination 16 |
_IPV6 = struct.Struct("!IHBB16s16s")


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """Return the frame by which `mac` asks who has `address`, for itself."""
    load = _ARP.pack(1, ETHERTYPE_IPV4, 6, 4, 1, mac, bytes(4), bytes(6), address.packed)
    return (BROADCAST + mac + struct.pack("!H", ETHERTYPE_ARP) + load).ljust(MIN_FRAME_BYTES, b"\0")


def solicitation_probe(mac: bytes, address: IPv6Address) -> bytes:
    """Return the frame by which `mac` asks whether `address` is taken."""
    group = bytes.fromhex("ff0200000000000000000001ff") + address.packed[13:]
    load = struct.pack("!BBHI16s", NEIGHBOUR_SOLICITATION, 0, 0, 0, address.packed)
    checksum = icmpv6_checksum(bytes(16), group, load)
    load = load[:2] + struct.pack("!H", checksum) + load[4:]
    header = _IPV6.pack(6 << 28, len(load), ICMPV6, 255, bytes(16), group)
    to = b"\x33\x33" + group[12:]
    return to + mac + struct.pack("!H", ETHERTYPE_IPV6) + header + load


def answer_untrusted(frame: bytes, address: Address) -> str | None:
    """Return the MAC that answers for `address` in `frame`; None if it is about something else.

    Raises `FrameError`.
    """
    outer = ethernet_untrusted(frame)
    if outer.ethertype == ETHERTYPE_ARP:
        arp = arp_untrusted(outer.payload)
        return mac_text(arp.sender_mac) if arp.sender == address else None
    if outer.ethertype != ETHERTYPE_IPV6:
        return None
    said = neighbour_untrusted(outer.payload)
    if said is None or said.type != NEIGHBOUR_ADVERTISEMENT or said.target != address:
        return None
    return mac_text(said.link_address or outer.source)


async def who_has(address: Address, *, bridge: str) -> tuple[str, ...]:
    """Return the MACs that answer for `address` on `bridge`, each once, first come first.

    Raises `NoSuchLinkError`, `RefusedError` without privilege, `HostError` if nothing can be sent.
    """
    mac = _own_mac(bridge)
    probe = (
        arp_probe(mac, address)
        if isinstance(address, IPv4Address)
        else solicitation_probe(mac, address)
    )
    found: dict[str, None] = {}
    sock = trio.socket.from_stdlib_socket(listen(bridge, _ANSWERS, buffer_bytes=_BUFFER_BYTES))
    with sock:
        for pause_s in (*(b - a for a, b in pairwise(ASK_AT_S)), PATIENCE_S):
            try:
                await sock.send(probe)
            except OSError as exc:
                raise HostError(f"nothing can be sent on {bridge}: {exc.strerror}") from exc
            with trio.move_on_after(pause_s):
                await _hear(sock, address, found)
    return tuple(found)


async def _hear(sock: trio.socket.SocketType, address: Address, found: dict[str, None]) -> None:
    """Collect answers until cancelled, or the bridge goes down."""
    while True:
        try:
            frame = await sock.recv(_FRAME_BYTES)
        except OSError:
            await trio.sleep_forever()
        with suppress(FrameError):  # anybody may send what he likes
            if mac := answer_untrusted(frame, address):
                found.setdefault(mac)


def _own_mac(bridge: str) -> bytes:
    check_name(bridge)
    try:
        text = Path("/sys/class/net", bridge, "address").read_text(encoding="ascii").strip()
    except OSError as exc:
        raise NoSuchLinkError(f"there is no interface {bridge}") from exc
    return parse_mac(text)


def neighbours_untrusted(messages: object, macs: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Return (MAC, address) for what the kernel's neighbour table knows of `macs`."""
    found: dict[tuple[str, str], None] = {}
    for message in messages if isinstance(messages, list | tuple) else ():
        mac, address = message.get("lladdr"), message.get("dst")
        if isinstance(mac, str) and isinstance(address, str) and mac.lower() in macs:
            found[mac.lower(), address] = None
    return tuple(found)
