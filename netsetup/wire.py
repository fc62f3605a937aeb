"""What EtherIP and GRE look like on the wire: headers made and read, whatever carries them; pure.

::

    outer Ethernet 14 │ outer IP 20 or 40 │ shim │ the guest's frame without its checksum

    EtherIP (RFC 3378), IP protocol 97          GRE (RFC 2784, key: RFC 2890), IP protocol 47
    ┌─────────┬──────────────┐                  ┌────────────┬────────┬──────────────┐
    │ version │ reserved, 0  │  30 00           │ 20 00 or   │ 65 58  │ key, 4       │
    │ 4 bits  │ 12 bits      │                  │ 00 00      │        │ (with 20 00) │
    └─────────┴──────────────┘                  └────────────┴────────┴──────────────┘

EtherIP has a reversed form, ``03 00``: old BSDs had the version in the lower half, NetBSD still
does. Both are accepted, which is sent is the tunnel's choice. EtherIP has no key: there is one
tunnel between two addresses, whatever the tunnel's key is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from struct import Struct, unpack
from types import MappingProxyType
from typing import assert_never

from netsetup.errors import FrameError, UsageError
from netsetup.mtu import ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES
from netsetup.tunnel_spec import Address, TunnelSpec

TTL = 64
ETHERIP, GRETAP = "etherip", "gretap"
PROTOCOL: Mapping[str, int] = MappingProxyType({ETHERIP: 97, GRETAP: 47})
_ETHERIP_RFC, _ETHERIP_REVERSED = bytes.fromhex("3000"), bytes.fromhex("0300")
_GRE_KEYED, _GRE_BARE = bytes.fromhex("20006558"), bytes.fromhex("00006558")

# version and length, TOS, total length, identification, flags and offset, TTL, protocol,
# checksum, source, destination (RFC 791)
IPV4 = Struct("!BBHHHBBH4s4s")
NO_OPTIONS = 0x45
DO_NOT_FRAGMENT = 0x4000
FRAGMENT_MASK = 0x3FFF  # more fragments, offset


class Fate(IntEnum):
    """What became of a frame; the number is its place among a program's counters."""

    PASSED = 0
    OF_ONE_WIRE = 1  # BPDUs and the like
    TOO_BIG = 2  # for the path: the relay's, if there is one
    FRAGMENT = 3  # of an outer packet: the host's IP puts it together, for the relay
    BAD_HEADER = 4  # the peer's packet, but no EtherIP
    SHORT = 5  # cut off, or less than an Ethernet header
    TAGS = 6  # more VLAN tags than two
    SEGMENTS = 7  # several of the guest's packets in one that nothing here can part
    FAILED = 8  # the kernel would not change or send it


@dataclass(frozen=True, slots=True)
class Wire:
    """A wire format between two addresses; raises `UsageError` for one that is not known."""

    kind: str
    local: Address
    remote: Address
    key: int = 0  # of GRE; 0: without one
    reversed_header: bool = False  # what EtherIP sends

    def __post_init__(self) -> None:
        if self.kind not in PROTOCOL:
            raise UsageError(f"{self.kind!r} is not carried here: {', '.join(PROTOCOL)}")

    @property
    def protocol(self) -> int:
        """The outer packet's IP protocol."""
        return PROTOCOL[self.kind]

    @property
    def shim(self) -> bytes:
        """What is sent between the outer IP header and the frame."""
        if self.kind == GRETAP:
            return _GRE_KEYED + self.key.to_bytes(4, "big") if self.key else _GRE_BARE
        return _ETHERIP_REVERSED if self.reversed_header else _ETHERIP_RFC

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """The shims that are received."""
        return (self.shim,) if self.kind == GRETAP else (_ETHERIP_RFC, _ETHERIP_REVERSED)

    @property
    def outer_bytes(self) -> int:
        """How much longer the outer IP packet is than the frame."""
        return {4: IPV4_BYTES, 6: IPV6_BYTES}[self.local.version] + len(self.shim)


def wire_of(spec: TunnelSpec) -> Wire:
    """Return what the frames of `spec` look like; raise `UsageError`."""
    return Wire(
        spec.kind,
        spec.local,
        spec.remote,
        key=spec.key if spec.kind == GRETAP else 0,
        reversed_header=spec.reversed_header,
    )


def ipv4_header(wire: Wire, length: int, identification: int, *, fragment: bool) -> bytes:
    """Return the outer header with its checksum; `length` is that of the outer packet."""
    flags = 0 if fragment else DO_NOT_FRAGMENT
    ends = wire.local.packed, wire.remote.packed
    fields = (NO_OPTIONS, 0, length, identification, flags, TTL, wire.protocol)
    return IPV4.pack(*fields, checksum(IPV4.pack(*fields, 0, *ends)), *ends)


def checksum(octets: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of octets."""
    total: int = sum(unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame_untrusted(wire: Wire, packet: bytes) -> bytes:
    """Return the frame in an outer IPv4 `packet`; raise `FrameError` unless it is the peer's."""
    if len(packet) < IPV4.size:
        raise FrameError("no IPv4 header")
    what, _, length, _, fragment, _, protocol, _, source, target = IPV4.unpack_from(packet)
    if what != NO_OPTIONS or protocol != wire.protocol or fragment & FRAGMENT_MASK:
        raise FrameError(f"no whole packet of protocol {wire.protocol} without IP options")
    if (source, target) != (wire.remote.packed, wire.local.packed):
        raise FrameError(f"it is from {IPv4Address(source)} to {IPv4Address(target)}")
    if checksum(packet[: IPV4.size]):
        raise FrameError("its header's checksum is wrong")
    if not IPV4.size <= length <= len(packet):
        raise FrameError("cut off")
    return payload_untrusted(wire, packet[IPV4.size : length])


def payload_untrusted(wire: Wire, payload: bytes) -> bytes:
    """Return the frame behind the shim; raise `FrameError`. Whose it is, IP has told."""
    for shim in wire.accepted:
        if payload.startswith(shim):
            frame = payload[len(shim) :]
            if len(frame) < ETHERNET_BYTES:
                raise FrameError("less than an Ethernet header")
            return frame
    raise FrameError(f"no {wire.kind} header")


def told(fate: Fate, *, outwards: bool, relay: bool) -> str:
    """Return in words what became of the frames that a counter counts."""
    match fate:
        case Fate.PASSED:
            return "sent" if outwards else "received"
        case Fate.OF_ONE_WIRE:
            return "dropped: BPDUs and the like, which belong to one wire"
        case Fate.TOO_BIG:
            return "too big for the path" + (", given to the relay" if relay else ": dropped")
        case Fate.FRAGMENT:
            return "fragments, put together by the host" + (
                " for the relay" if relay else " in vain, for there is no relay"
            )
        case Fate.BAD_HEADER:
            return "dropped: the peer's packet has a header that is none"
        case Fate.SHORT:
            return "dropped: cut off on the way"
        case Fate.TAGS:
            return "dropped: more than two VLAN tags"
        case Fate.SEGMENTS:
            return "dropped: segments of one packet that nothing here can part"
        case Fate.FAILED:
            return "dropped: the kernel would not change or send it"
        case _:
            assert_never(fate)


def of_one_wire(target: bytes | bytearray) -> bool:
    """Whether a frame to this address belongs to one wire, as `netsetup.bpf` tells in programs."""
    if target[:4] == b"\x01\x80\xc2\x00":
        return target[4] == 0 and not target[5] & 0xD0
    return target[:5] == b"\x01\x00\x0c\xcc\xcc" and target[5] & 0xFE == 0xCC
