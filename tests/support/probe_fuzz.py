"""Random and mutated frames against every decoder and against a verdict that must not move.

`python -m tests.support.probe_fuzz 1000000 [SEED]` for as many as you like.
"""

import random
import sys
import time
from ipaddress import ip_address

from netsetup import frames
from netsetup.adjacency import Verdict, judge
from netsetup.errors import FrameError
from netsetup.probe_frames import ProbeKind, decode_untrusted, encode
from netsetup.traps import Side, TrapKind
from tests.support.probe_talk import NONCE, Speaker, Wire, lost, passes, talk, up_to

_GUEST = frames.parse_mac("52:54:00:12:34:56")
_HEADER = 14
_SEALED = 38  # octets of a probe's payload that the seal covers, the seal included
_CHECK_EVERY = 20_000
_TAGS = (None, None, 10, 20)


class Wronged(AssertionError):
    """A frame that nobody sealed had an effect."""


class _Pair:
    """A pair of probers with a verdict, before and while forged frames come in."""

    def __init__(self, forth: Wire, back: Wire) -> None:
        self.a, self.b = Speaker(1), Speaker(2)
        self.authentic = talk(self.a, self.b, forth, back)
        self.before = self.verdict()

    def verdict(self) -> Verdict:
        sides = Side("alpha", self.a.report()), Side("beta", self.b.report())
        return judge(*sides, mtu_bytes=1500)

    def check(self) -> None:
        """Raise `Wronged` if more has changed than the count of forgeries."""
        now = self.verdict()
        kept = tuple(trap for trap in now.traps if trap.kind is not TrapKind.STRANGERS)
        same = (now.adjacency, now.forth, now.back, now.latency_us, now.mtu_bytes) == (
            *(self.before.adjacency, self.before.forth, self.before.back),
            *(self.before.latency_us, self.before.mtu_bytes),
        )
        if not same or kept != self.before.traps:
            raise Wronged(f"{self.before.why!r} became {now.why!r}")


def _bases(pairs: list[_Pair]) -> list[bytes]:
    """Return well-formed frames of every kind to start from."""
    v4, v6 = ip_address("192.0.2.9"), ip_address("2001:db8::9")
    others = [
        frames.rarp_announcement(_GUEST, vlan=10),
        frames.arp_announcement(_GUEST, v4),
        frames.arp_announcement(_GUEST, v4, reply=True, vlan=10),
        frames.neighbour_advertisement(_GUEST, v6),
        frames.neighbour_advertisement(_GUEST, v6, vlan=10),
    ]
    probes = [frame for pair in pairs for frame in pair.authentic]
    tagged = [
        encode(NONCE, kind, source=_GUEST, sender=b"x" * 8, sequence=7, size_bytes=60, vlan=10)
        for kind in ProbeKind
    ]
    return others * 4 + probes + tagged


def _mutate(frame: bytes, draw: random.Random) -> bytes:
    """Return `frame` damaged where the seal covers it, or cut so that it must be missed."""
    octets = bytearray(frame)
    tag = 4 if octets[12:14] == b"\x81\x00" else 0
    sealed = range(_HEADER + tag, min(_HEADER + tag + _SEALED, len(octets)))
    match draw.randrange(6):
        case 0:
            octets[draw.choice(sealed)] ^= 1 << draw.randrange(8)
        case 1:
            for _ in range(draw.randrange(1, 9)):
                octets[draw.choice(sealed)] ^= draw.randrange(1, 256)
            octets[sealed[-1]] ^= 0x55  # should the others have undone each other
        case 2:
            octets[draw.randrange(6, 12)] ^= draw.randrange(1, 256)
        case 3:
            del octets[draw.randrange(0, _HEADER + tag + _SEALED) :]
        case 4:
            place = draw.randrange(6, _HEADER + tag + _SEALED)
            octets[place:place] = draw.randbytes(draw.randrange(1, 5))
            octets[-1:] = b""
            octets[sealed[0]] ^= 0x80
        case _:
            other = draw.randbytes(16)
            return encode(
                other,
                draw.choice(tuple(ProbeKind)),
                source=draw.randbytes(6),
                sender=draw.randbytes(8),
                sequence=draw.randrange(900, 3100),
                size_bytes=draw.choice((46, 1400, 1500)),
                vlan=draw.choice(_TAGS),
            )
    return bytes(octets)


def attack(count: int, seed: int) -> int:
    """Feed `count` frames to everything; return how many parsed. Raises what a decoder may not."""
    draw = random.Random(seed)  # noqa: S311  to be repeated, not to be secret
    pairs = [
        _Pair(passes, passes),
        _Pair(lost, lost),
        _Pair(passes, lost),
        _Pair(up_to(1400), passes),
    ]
    bases = _bases(pairs)
    sealed = frozenset(bases)
    parsed = 0
    for number in range(count):
        if draw.random() < 0.25:
            frame = draw.randbytes(draw.randrange(0, 128))
        else:
            frame = _mutate(draw.choice(bases), draw)
        if frame in sealed:  # the changes have undone each other: once in a million
            continue
        parsed += _decode(frame, draw)
        pair = pairs[number % len(pairs)]
        answer = draw.choice((pair.a, pair.b)).get(frame, 5.0)
        if answer is not None:
            raise Wronged(f"a forged frame was answered: {frame.hex()}")
        if number % _CHECK_EVERY == 0:
            for each in pairs:
                each.check()
    for each in pairs:
        each.check()
    return parsed


def _decode(frame: bytes, draw: random.Random) -> int:
    """Run every decoder; only `FrameError` may come out, and no address of another's."""
    parsed = 0
    try:
        outer = frames.ethernet_untrusted(frame)
        assert outer.vlan is None or 1 <= outer.vlan <= 4095
        parsed = 1
        sighting = frames.sighting_untrusted(frame, _GUEST, vlan=draw.choice(_TAGS))
        if sighting is not None:
            assert outer.source == _GUEST
            assert frames.is_host_address(sighting.address)
    except FrameError:
        pass
    for decoder in (frames.arp_untrusted, frames.neighbour_untrusted):
        try:
            decoder(frame[_HEADER:])
        except FrameError:
            continue
    try:
        decode_untrusted(frame, NONCE, stripped_vlan=draw.choice(_TAGS))
    except FrameError:
        return parsed
    raise Wronged(f"a forged frame was taken for a probe: {frame.hex()}")


if __name__ == "__main__":
    _count = int(sys.argv[1])
    _seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    _started = time.perf_counter()
    _parsed = attack(_count, _seed)
    _took_s = time.perf_counter() - _started
    print(f"{_count} frames, {_parsed} with an Ethernet header, {_took_s:.0f} s")
