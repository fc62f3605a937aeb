"""The programs of EtherIP and GRE, run by the kernel itself: frames in, packets out, and back."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from netsetup.bpf import DROP, NEXT_FILTER, REDIRECTED, start
from netsetup.bpf_asm import R1, R2, R3, R6, Line, assemble, call, copy, move
from netsetup.bpf_load import Trial, counters, loaded, try_program
from netsetup.decap_program import Decapsulation, decap_program
from netsetup.encap_program import Encapsulation, encap_lines, encap_program
from netsetup.errors import FrameError, RefusedError
from netsetup.wire import Fate, Wire, frame_untrusted, ipv4_header
from tests.support.wire_forms import FORMS, OF_ONE_WIRE, decoded
from tests.support.wire_fuzz import HERE, LIMIT_BYTES, TRIED_BYTES, WIRES, far, fuzz

pytestmark = pytest.mark.net

NAMES = ("etherip", "etherip reversed", f"gre key {0xC0FFEE}", "gre")
TRIED = {name: frame for name, frame in FORMS.items() if len(frame) <= TRIED_BYTES}
_VLAN_PUSH = 18


def encapsulation(wire: Wire, limit: int = 2000, *, fragment: bool = True) -> Encapsulation:
    return Encapsulation(wire, limit, 1, 1, fragment=fragment)


def tried(program: bytes, frame: bytes, *, segment: int = 0) -> tuple[Trial, dict[Fate, int]]:
    """Return what the program did, and the frames that it counted."""
    with loaded(program, "tried") as descriptor:
        trial = try_program(descriptor, frame, segment_bytes=segment)
        counted = counters(descriptor)
    return trial, {fate: counted[fate].frames for fate in Fate if counted[fate].frames}


def sent(wire: Wire, frame: bytes) -> bytes:
    trial, counted = tried(encap_program(encapsulation(wire)), frame)
    assert (trial.verdict, counted) == (REDIRECTED, {Fate.PASSED: 1})
    return trial.octets


def received(wire: Wire, packet: bytes) -> tuple[Trial, dict[Fate, int]]:
    return tried(decap_program(Decapsulation(far(wire), 1, 1)), packet)


@pytest.mark.parametrize("form", TRIED)
@pytest.mark.parametrize(("wire", "name"), list(zip(WIRES, NAMES, strict=True)), ids=NAMES)
def test_what_goes_in_comes_out(wire: Wire, name: str, form: str) -> None:
    frame = TRIED[form]
    packet = sent(wire, frame)
    assert decoded(packet) == (name, frame)
    assert frame_untrusted(far(wire), packet[14:]) == frame
    trial, counted = received(wire, packet)
    assert (trial.verdict, trial.octets, counted) == (REDIRECTED, frame, {Fate.PASSED: 1})


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
def test_the_codec_and_the_programs_write_the_same_packet(wire: Wire) -> None:
    frame = FORMS["untagged ipv4"]
    for fragment in (True, False):
        program = encap_program(encapsulation(wire, fragment=fragment))
        packet = tried(program, frame)[0].octets
        number = int.from_bytes(packet[18:20], "big")
        header = ipv4_header(wire, len(packet) - 14, number, fragment=fragment)
        assert packet == bytes(12) + b"\x08\x00" + header + wire.shim + frame


def tags_beside(tunnel: Encapsulation, tags: list[tuple[int, int]]) -> bytes:
    """Return the program, before it what puts tags where a bridge and cards put them."""

    def lines() -> Iterator[Line]:
        yield from start()
        for protocol, tag in tags:
            yield copy(R1, R6)
            yield move(R2, int.from_bytes(protocol.to_bytes(2, "big"), "little"))
            yield move(R3, tag)
            yield call(_VLAN_PUSH)
        yield copy(R1, R6)
        yield from encap_lines(tunnel)

    return assemble(lines())


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
@pytest.mark.parametrize("form", ["untagged ipv4", "rarp", "ipv6", "llc"])
@pytest.mark.parametrize("tags", [[(0x8100, 5)], [(0x8100, 5), (0x88A8, 0xE006)]])
def test_a_tag_beside_the_frame_is_put_back(
    wire: Wire, form: str, tags: list[tuple[int, int]]
) -> None:
    frame = FORMS[form]
    inside = b"".join(a.to_bytes(2, "big") + b.to_bytes(2, "big") for a, b in reversed(tags))
    trial, counted = tried(tags_beside(encapsulation(wire), tags), frame)
    assert (trial.verdict, counted) == (REDIRECTED, {Fate.PASSED: 1})
    assert decoded(trial.octets)[1] == frame[:12] + inside + frame[12:]


def test_three_tags_are_dropped_and_counted() -> None:
    tags = [(0x8100, 5), (0x8100, 6), (0x88A8, 7)]
    trial, counted = tried(tags_beside(encapsulation(HERE), tags), FORMS["rarp"])
    assert (trial.verdict, counted) == (DROP, {Fate.TAGS: 1})


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
@pytest.mark.parametrize("name", OF_ONE_WIRE)
def test_what_belongs_to_one_wire_neither_leaves_nor_comes_in(wire: Wire, name: str) -> None:
    frame = OF_ONE_WIRE[name]
    trial, counted = tried(encap_program(encapsulation(wire)), frame)
    assert (trial.verdict, counted) == (DROP, {Fate.OF_ONE_WIRE: 1})
    length = 20 + len(wire.shim) + len(frame)
    packet = bytes(12) + b"\x08\x00" + ipv4_header(wire, length, 1, fragment=True)
    trial, counted = received(wire, packet + wire.shim + frame)
    assert (trial.verdict, counted) == (DROP, {Fate.OF_ONE_WIRE: 1})


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
@pytest.mark.parametrize("tag", [0, 4])
def test_one_octet_too_many_is_too_big(wire: Wire, tag: int) -> None:
    tags = [(0x8100, 5)] if tag else []
    for length, fate in ((LIMIT_BYTES - tag, Fate.PASSED), (LIMIT_BYTES - tag + 1, Fate.TOO_BIG)):
        for form in ("untagged ipv4", "rarp"):
            program = tags_beside(encapsulation(wire, LIMIT_BYTES), tags)
            trial, counted = tried(program, FORMS[form].ljust(length, b"x"))
            assert counted == {fate: 1}
            assert trial.verdict == (REDIRECTED if fate is Fate.PASSED else DROP)


@pytest.mark.parametrize("wire", WIRES[:2], ids=NAMES[:2])
def test_both_forms_of_etherip_are_received(wire: Wire) -> None:
    frame = FORMS["rarp"]
    for other in WIRES[:2]:
        assert received(wire, sent(other, frame))[0].octets == frame


STRANGE = {
    "another source": (26, "0a4d0103", NEXT_FILTER, {}),
    "another target": (30, "c84d0203", NEXT_FILTER, {}),
    "another protocol": (23, "11", NEXT_FILTER, {}),
    "IP options": (14, "46", NEXT_FILTER, {}),
    "a fragment": (20, "2000", NEXT_FILTER, {Fate.FRAGMENT: 1}),
    "a later fragment": (20, "0001", NEXT_FILTER, {Fate.FRAGMENT: 1}),
    "cut off": (16, "0200", DROP, {Fate.SHORT: 1}),
    "no frame in it": (16, "001e", DROP, {Fate.SHORT: 1}),
}


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_the_peers_frame_is_left_to_others(wire: Wire, name: str) -> None:
    at, words, verdict, counts = STRANGE[name]
    packet = bytearray(sent(wire, FORMS["untagged ipv4"]))
    octets = bytes.fromhex(words)
    packet[at : at + len(octets)] = octets
    trial, counted = received(wire, bytes(packet))
    assert (trial.verdict, counted, trial.octets) == (verdict, counts, bytes(packet))
    with pytest.raises(FrameError):
        frame_untrusted(far(wire), bytes(packet[14:]))


def test_a_wrong_version_is_dropped_and_another_key_left_to_its_tunnel() -> None:
    packet = bytearray(sent(HERE, FORMS["rarp"]))
    packet[34:36] = b"\x40\x00"
    trial, counted = received(HERE, bytes(packet))
    assert (trial.verdict, counted) == (DROP, {Fate.BAD_HEADER: 1})
    keyed, bare = WIRES[2:]
    for one, other in ((keyed, bare), (bare, keyed), (replace(keyed, key=7), keyed)):
        trial, counted = received(one, sent(other, FORMS["rarp"]))
        assert (trial.verdict, counted) == (NEXT_FILTER, {})


@pytest.mark.parametrize("wire", WIRES, ids=NAMES)
def test_an_ethernets_padding_is_cut_off_and_a_short_frame_padded(wire: Wire) -> None:
    frame = FORMS["arp as a guest sends it"]
    assert received(wire, sent(wire, frame) + b"pad")[0].octets == frame
    short = frame[:20]
    assert received(wire, sent(wire, short) + b"p" * 30)[0].octets == short.ljust(34, b"\0")


def test_many_segments_in_one_are_not_sent_where_nobody_can_cut_them() -> None:
    """What can is shown with real TCP, in the tests of ends: here the kernel makes no TCP of it."""
    frame = FORMS["full ipv4"]
    for wire, limit in ((HERE, 2000), (WIRES[2], 1400)):
        trial, counted = tried(encap_program(encapsulation(wire, limit)), frame, segment=1390)
        assert (trial.verdict, counted) == (DROP, {Fate.SEGMENTS: 1})


def test_addresses_above_the_middle_are_told_apart() -> None:
    """Immediates are signed: 200.0.0.0 and above must compare as they are."""
    wire = Wire("etherip", ip_address("223.255.255.254"), ip_address("192.0.2.1"))
    frame = FORMS["rarp"]
    assert received(wire, sent(wire, frame))[0].octets == frame


def test_some_thousand_mutated_frames_break_nothing() -> None:
    seen = fuzz(6000, seed=20)
    assert seen["sent"] > 1000
    assert seen[f"got {REDIRECTED}"] > 1000
    assert seen[f"got {NEXT_FILTER}"] > 500


def test_the_verifiers_word_is_in_the_error() -> None:
    with pytest.raises(RefusedError, match="R0 !read_ok"), loaded(b"\x95" + bytes(7), "bare exit"):
        pass
