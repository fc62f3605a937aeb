"""The probe frame, built and read; pure.

It asks "does what I send here arrive there?", and answers "this did". EtherType 0x88B5 is for
local experiments (IEEE 802, table 1 of the registry); every switch forwards it, no host heeds it.
The payload, to which a VLAN tag does not count, as an MTU counts::

    | "QMPB" 4 | version 1 | kind 1 | vlan 2 | sender 8 | sequence 4 | size 2 | seal 16 | zeros |

- *seal*: HMAC-SHA256 over the source MAC and all before it, keyed with the job's nonce, cut to 16
  octets. The nonce never travels: who reads along on the segment, as every guest can, still cannot
  answer. A frame that is carried from one segment to the other as it is arrives, and rightly so.
- *vlan*: the tag as sent, 0xFFFF for none: a frame that arrives with another was retagged.
- *size*: octets of payload. A frame that is shorter was cut; padding up to Ethernet's minimum may
  follow.
- *sender*, *sequence*: drawn by each prober; an answer repeats the sequence and size of what it
  answers and bears the tag that this one had on arrival.
"""

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from netsetup.errors import FrameError, UsageError
from netsetup.frames import BROADCAST, ETHERTYPE_VLAN, ethernet_untrusted

ETHERTYPE_PROBE = 0x88B5
VERSION = 1
NONCE_BYTES = 16
SENDER_BYTES = 8
SEAL_BYTES = 16
_MAGIC = b"QMPB"
_NO_VLAN = 0xFFFF
_HEAD = struct.Struct("!4sBBH8sIH")
MIN_PAYLOAD_BYTES = 46  # 802.3; shorter is padded by somebody, so we do it
MAX_PAYLOAD_BYTES = 65535
_HEADER_BYTES = 14


class ProbeKind(IntEnum):
    """What a probe frame says."""

    ASK = 1  # whoever has the nonce: did this arrive?
    ANSWER = 2  # it did, so long, with such a tag


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe frame's contents; `arrived_vlan` is the tag that it bore here."""

    kind: ProbeKind
    sender: bytes
    sequence: int
    size_bytes: int
    vlan: int | None  # as its sender says
    arrived_vlan: int | None
    source: bytes


class NotAProbeError(FrameError):
    """Some other frame: no probe of ours, or sealed with another nonce."""


def check_nonce(nonce: bytes) -> bytes:
    """Return `nonce` if it is one; raise `UsageError`."""
    if len(nonce) != NONCE_BYTES:
        raise UsageError(f"a nonce has {NONCE_BYTES} octets, this has {len(nonce)}")
    return nonce


def encode(
    nonce: bytes,
    kind: ProbeKind,
    *,
    source: bytes,
    sender: bytes,
    sequence: int,
    size_bytes: int,
    vlan: int | None = None,
    destination: bytes = BROADCAST,
) -> bytes:
    """Return the frame; an ask fills `size_bytes`, an answer only tells them."""
    tag = _NO_VLAN if vlan is None else vlan
    head = _HEAD.pack(_MAGIC, VERSION, kind, tag, sender, sequence, size_bytes)
    load = head + _seal(nonce, source, head)
    load = load.ljust(size_bytes if kind is ProbeKind.ASK else 0, b"\0")
    dot1q = b"" if vlan is None else struct.pack("!HH", ETHERTYPE_VLAN, vlan)
    ethertype = struct.pack("!H", ETHERTYPE_PROBE)
    return destination + source + dot1q + ethertype + load.ljust(MIN_PAYLOAD_BYTES, b"\0")


def decode_untrusted(frame: bytes, nonce: bytes, *, stripped_vlan: int | None = None) -> Probe:
    """Return what a frame from the network says; `stripped_vlan` is a tag the kernel took off.

    Raises `NotAProbeError` for all that was not sealed with `nonce`, `FrameError` for what was
    and is damaged.
    """
    outer = ethernet_untrusted(frame)
    load = outer.payload
    if outer.ethertype != ETHERTYPE_PROBE or len(load) < _HEAD.size + SEAL_BYTES:
        raise NotAProbeError("no probe frame")
    head, seal = load[: _HEAD.size], load[_HEAD.size : _HEAD.size + SEAL_BYTES]
    if not hmac.compare_digest(seal, _seal(nonce, outer.source, head)):
        raise NotAProbeError("a probe frame that was not sealed with this nonce")
    magic, version, kind, vlan, sender, sequence, size_bytes = _HEAD.unpack(head)
    if (magic, version) != (_MAGIC, VERSION) or kind not in tuple(ProbeKind):
        raise FrameError(f"a probe frame of version {version} and kind {kind}")
    if kind == ProbeKind.ASK and len(load) < size_bytes:
        raise FrameError(f"a probe frame of {size_bytes} octets that was cut to {len(load)}")
    return Probe(
        ProbeKind(kind),
        sender,
        sequence,
        size_bytes,
        None if vlan == _NO_VLAN else vlan,
        stripped_vlan if stripped_vlan is not None else outer.vlan,
        outer.source,
    )


def looks_like_a_probe(frame: bytes) -> bool:
    """Whether it bears our magic word, sealed with whatever nonce."""
    return _MAGIC in frame[_HEADER_BYTES : _HEADER_BYTES + 8]


def _seal(nonce: bytes, source: bytes, head: bytes) -> bytes:
    return hmac.digest(nonce, source + head, "sha256")[:SEAL_BYTES]
