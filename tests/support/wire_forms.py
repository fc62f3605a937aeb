"""Frames of every form that goes through a tunnel, and a decoder of its own for what comes out.

The decoder shares nothing with netsetup: RFC 791, 2784, 2890 and 3378 read once more.
"""

import random
import struct

_A, _B = "525400000001", "525400000002"
BROADCAST = "ffffffffffff"


def _frame(words: str, length: int = 0) -> bytes:
    octets = bytes.fromhex(words)
    return octets.ljust(max(length, len(octets)), b"\xa5")


def _ipv4(before: str, length: int) -> bytes:
    """Return a frame with an IPv4 header that is right: a bridge may look."""
    head = bytes.fromhex(f"{before} 0800")
    fields = (0x45, 0, length - len(head), 1, 0, 64, 17)
    ends = bytes.fromhex("c0000209 c0000201")
    total = sum(
        half for (half,) in struct.iter_unpack("!H", struct.pack("!BBHHHBBH", *fields, 0) + ends)
    )
    total = (total & 0xFFFF) + (total >> 16)
    return (head + struct.pack("!BBHHHBBH", *fields, ~total & 0xFFFF) + ends).ljust(length, b"\xa5")


def _ipv6(before: str, length: int) -> bytes:
    head = bytes.fromhex(f"{before} 86dd")
    ends = bytes.fromhex(f"20010db8 {'00' * 11} 09 20010db8 {'00' * 11} 01")
    header = struct.pack("!IHBB", 6 << 28, length - len(head) - 40, 17, 64) + ends
    return (head + header).ljust(length, b"\xa5")


FORMS: dict[str, bytes] = {
    "untagged ipv4": _ipv4(f"{_B}{_A}", 98),
    "full ipv4": _ipv4(f"{_B}{_A}", 1514),
    "jumbo ipv4": _ipv4(f"{_B}{_A}", 9014),
    "minimum ipv4": _ipv4(f"{_B}{_A}", 60),
    "ipv6": _ipv6(f"{_B}{_A}", 70),
    "full ipv6": _ipv6(f"{_B}{_A}", 1514),
    "arp as a guest sends it": _frame(f"{BROADCAST}{_A} 0806 0001 0800 0604 0001", 42),
    "arp padded": _frame(f"{BROADCAST}{_A} 0806 0001 0800 0604 0001", 60),
    "rarp": _frame(f"{BROADCAST}{_A} 8035 0001 0800 0604 0003", 60),
    "vlan": _ipv4(f"{_B}{_A} 8100 0005", 102),
    "vlan with priority and arp": _frame(f"{BROADCAST}{_A} 8100 e005 0806 0001", 64),
    "full vlan": _ipv6(f"{_B}{_A} 8100 0005", 1518),
    "service and customer vlan": _ipv4(f"{_B}{_A} 88a8 0006 8100 0005", 106),
    "llc": _frame(f"{_B}{_A} 0026 aaaa 03", 60),
    "unknown ethertype": _frame(f"{_B}{_A} 88b6", 77),
    "multicast": _ipv4(f"01005e000001 {_A}", 60),
}

OF_ONE_WIRE: dict[str, bytes] = {
    name: _frame(f"{address}{_A} 0026 4242 03", 60)
    for name, address in (
        ("stp", "0180c2000000"),
        ("lldp", "0180c200000e"),
        ("mvrp", "0180c2000021"),
        ("pvst", "01000ccccccd"),
    )
}


def decoded(packet: bytes) -> tuple[str, bytes]:
    """Return the wire format in words and the frame in an outer Ethernet frame, or fail."""
    assert packet[12:14] == b"\x08\x00"
    outer = packet[14:]
    assert outer[0] == 0x45
    total = 0
    for (half,) in struct.iter_unpack("!H", outer[:20]):
        total += half
    assert total % 0xFFFF == 0, "IP checksum"
    (length,) = struct.unpack_from("!H", outer, 2)
    assert length == len(outer), "IP length"
    payload = outer[20:]
    if outer[9] == 97:
        assert payload[:2] in (b"\x30\x00", b"\x03\x00")
        return ("etherip" if payload[0] == 0x30 else "etherip reversed"), payload[2:]
    assert outer[9] == 47
    flags, kind = struct.unpack_from("!HH", payload)
    assert kind == 0x6558
    if flags == 0x2000:
        return f"gre key {struct.unpack_from('!I', payload, 4)[0]}", payload[8:]
    assert flags == 0
    return "gre", payload[4:]


def mutated(octets: bytes, chance: random.Random) -> bytes:
    """Return octets changed, cut, stretched or made up."""
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(14, 200))
        case 1:
            return octets[: chance.randrange(14, len(octets) + 1)]
        case 2:
            return octets + chance.randbytes(chance.randrange(64))
        case 3:
            at = chance.randrange(len(octets))
            return octets[:at] + chance.randbytes(1) + octets[at + 1 :]
        case 4:
            at = chance.randrange(min(len(octets), 60))
            return octets[:at] + chance.randbytes(4) + octets[at + 4 :]
        case _:
            return octets
