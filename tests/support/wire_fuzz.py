"""Mutated frames through a tunnel's programs: `python -m tests.support.wire_fuzz 1000000`.

Every frame that goes in comes out at the other end octet by octet or is dropped; nothing comes out
that the decoder written from the standards does not find in the packet, and nothing of a stranger.
"""

import random
import sys
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

from netsetup.bpf import ACCEPT, DROP, NEXT_FILTER, REDIRECTED
from netsetup.bpf_load import loaded, try_program
from netsetup.decap_program import Decapsulation, decap_program
from netsetup.encap_program import Encapsulation, encap_program
from netsetup.errors import FrameError
from netsetup.wire import Wire, frame_untrusted
from tests.support.wire_forms import FORMS, OF_ONE_WIRE, decoded, mutated

LIMIT_BYTES = 1514
TRIED_BYTES = 2000  # BPF_PROG_TEST_RUN takes what fits a page
LEAST_BYTES = 14 + 20  # what is shorter comes out padded, as from an Ethernet
HERE = Wire("etherip", ip_address("10.77.1.2"), ip_address("200.77.2.2"))
WIRES = (
    HERE,
    replace(HERE, reversed_header=True),
    replace(HERE, kind="gretap", key=0xC0FFEE),
    replace(HERE, kind="gretap"),
)


def far(wire: Wire) -> Wire:
    """Return the same at the other end."""
    return replace(wire, local=wire.remote, remote=wire.local)


def admitted(frame: bytes) -> bytes:
    """Return it so long that BPF_PROG_TEST_RUN takes it: with the IP header it says it has."""
    least = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)
    return frame.ljust(least, b"\x5a")


def same(one: bytes, other: bytes) -> bool:
    """Whether `other` is `one`, padded if it was too short."""
    return other == one.ljust(LEAST_BYTES, b"\0")


def fuzz(times: int, seed: int) -> Counter[str]:
    """Try `times` frames and as many packets, shared among the wire formats; return what became."""
    chance = random.Random(seed)  # noqa: S311  to be had again, not to be secret
    seen: Counter[str] = Counter()
    frames = [frame for frame in FORMS.values() if len(frame) <= TRIED_BYTES]
    frames += OF_ONE_WIRE.values()
    for wire in WIRES:
        encap = encap_program(Encapsulation(wire, LIMIT_BYTES, 1, 1, fragment=True))
        decap = decap_program(Decapsulation(far(wire), 1, 1))
        with loaded(encap, "fuzz") as there, loaded(decap, "fuzz") as here:
            for _ in range(times // len(WIRES)):
                frame = admitted(mutated(chance.choice(frames), chance))
                packet = _out(there, frame, seen)
                if packet is None:
                    packet = _out(there, FORMS["rarp"], Counter())
                    assert packet is not None
                else:
                    assert decoded(packet)[1] == frame
                    got = try_program(here, packet)
                    assert got.verdict == REDIRECTED
                    assert same(frame, got.octets)
                _in(wire, here, admitted(mutated(packet, chance)), seen)
    return seen


def _out(descriptor: int, frame: bytes, seen: Counter[str]) -> bytes | None:
    sent = try_program(descriptor, frame)
    assert sent.verdict in (REDIRECTED, DROP)
    seen["sent" if sent.verdict == REDIRECTED else "not sent"] += 1
    if sent.verdict == REDIRECTED:
        assert len(frame) <= LIMIT_BYTES
        return sent.octets
    return None


def _in(wire: Wire, descriptor: int, packet: bytes, seen: Counter[str]) -> None:
    got = try_program(descriptor, packet)
    assert got.verdict in (REDIRECTED, DROP, NEXT_FILTER, ACCEPT)
    seen[f"got {got.verdict}"] += 1
    if got.verdict == REDIRECTED:
        assert same(believed(far(wire), packet), got.octets), (packet.hex(), got.octets.hex())
    else:
        assert got.octets[: len(packet)] == packet[: len(got.octets)]


def believed(wire: Wire, packet: bytes) -> bytes:
    """Return the frame in `packet`. IP's checksum is the host's to check, and later."""
    try:
        return frame_untrusted(wire, packet[14:])
    except FrameError as exc:
        if "checksum" not in exc.what:
            raise AssertionError(f"taken though {exc.what}") from exc
    length = int.from_bytes(packet[16:18], "big")
    return packet[14 + wire.outer_bytes : 14 + length]


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(dict(fuzz(number, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
