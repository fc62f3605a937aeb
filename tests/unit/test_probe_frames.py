"""The probe frame against its known answer, and against everything."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.errors import FrameError, UsageError
from netsetup.probe_frames import (
    MAX_PAYLOAD_BYTES,
    MIN_PAYLOAD_BYTES,
    NotAProbeError,
    Probe,
    ProbeKind,
    check_nonce,
    decode_untrusted,
    encode,
    looks_like_a_probe,
)
from tests.support.probe_fuzz import attack
from tests.support.probe_talk import NONCE, Speaker, talk

SOURCE = bytes.fromhex("525400123456")
SENDER = b"\xaa" * 8
NONCES = st.binary(min_size=16, max_size=16)

# Head by hand; the seal by `openssl dgst -sha256 -mac HMAC -macopt hexkey:000102…0f` over source
# and head.
KNOWN_ASK = (
    "ffffffffffff 525400123456 88b5 514d5042 01 01 ffff aaaaaaaaaaaaaaaa 00000007 002e"
    "07ee16f8e67e3c5abf8120e99147b0bf" + "00" * 8
)


def built(kind: ProbeKind = ProbeKind.ASK, size_bytes: int = 46, vlan: int | None = None) -> bytes:
    return encode(
        NONCE,
        kind,
        source=SOURCE,
        sender=SENDER,
        sequence=7,
        size_bytes=size_bytes,
        vlan=vlan,
    )


def test_an_ask_is_the_known_answer() -> None:
    assert built() == bytes.fromhex(KNOWN_ASK)


@pytest.mark.parametrize("vlan", [None, 1, 4094])
@pytest.mark.parametrize("size_bytes", [MIN_PAYLOAD_BYTES, 1500, 9000, MAX_PAYLOAD_BYTES])
@pytest.mark.parametrize("kind", ProbeKind)
def test_what_was_built_is_read(kind: ProbeKind, size_bytes: int, vlan: int | None) -> None:
    frame = built(kind, size_bytes, vlan)
    expected = Probe(kind, SENDER, 7, size_bytes, vlan, vlan, SOURCE)
    assert decode_untrusted(frame, NONCE) == expected
    payload = len(frame) - 14 - (0 if vlan is None else 4)
    assert payload == (size_bytes if kind is ProbeKind.ASK else MIN_PAYLOAD_BYTES)


def test_a_tag_that_the_kernel_took_off_is_the_tag_it_arrived_with() -> None:
    probe = decode_untrusted(built(), NONCE, stripped_vlan=20)
    assert (probe.vlan, probe.arrived_vlan) == (None, 20)


@given(NONCES)
def test_with_another_nonce_it_is_no_probe(nonce: bytes) -> None:
    if nonce != NONCE:
        with pytest.raises(NotAProbeError):
            decode_untrusted(built(), nonce)


def test_the_nonce_does_not_travel() -> None:
    a, b = Speaker(1), Speaker(2)
    assert not [frame for frame in talk(a, b) if NONCE[:8] in frame]


def test_an_ask_that_was_cut_on_its_way_is_not_taken_for_its_size() -> None:
    frame = built(size_bytes=1500)
    assert decode_untrusted(frame + b"\0\0", NONCE).size_bytes == 1500
    with pytest.raises(FrameError, match="cut to 1499"):
        decode_untrusted(frame[:-1], NONCE)


def test_what_is_sealed_and_of_another_version_is_damaged() -> None:
    head = b"QMPB\x02" + built()[19:36]
    seal = hmac.digest(NONCE, SOURCE + head, "sha256")[:16]
    with pytest.raises(FrameError, match="version 2"):
        decode_untrusted(built()[:14] + head + seal + bytes(8), NONCE)


@given(st.binary(max_size=200), NONCES)
def test_nothing_but_a_frame_error_comes_out(frame: bytes, nonce: bytes) -> None:
    with pytest.raises(FrameError):
        decode_untrusted(frame, nonce)


@given(st.integers(6, 51), st.integers(1, 255))
def test_an_octet_changed_anywhere_under_the_seal_is_no_probe(place: int, change: int) -> None:
    frame = bytearray(built())
    frame[place] ^= change
    with pytest.raises(FrameError):
        decode_untrusted(bytes(frame), NONCE)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_nonce_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="16 octets"):
        check_nonce(bytes(size))


def test_a_stranger_is_known_by_the_magic_word() -> None:
    assert looks_like_a_probe(built())
    assert looks_like_a_probe(built(vlan=10))
    assert not looks_like_a_probe(bytes(60))


def test_forged_and_damaged_frames_crash_nothing_and_change_no_verdict() -> None:
    """`python -m tests.support.probe_fuzz 1000000` is the same with more."""
    assert attack(5000, seed=5) > 3000


def test_the_attack_would_notice_a_frame_that_is_sealed() -> None:
    a, b = Speaker(1), Speaker(2)
    (frame,) = talk(a, Speaker(3), sizes=(46,))[:1]
    assert b.get(frame, 1.0) is not None
