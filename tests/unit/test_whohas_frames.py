"""Frames that ask who has an address, byte for byte, and what answers them."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.errors import FrameError
from netsetup.frames import arp_announcement, ethernet_untrusted, icmpv6_checksum
from netsetup.frames import neighbour_advertisement as advertisement
from netsetup.whohas import answer_untrusted, arp_probe, neighbours_untrusted, solicitation_probe

MAC = bytes.fromhex("525400123456")
V4, V6 = IPv4Address("192.0.2.80"), IPv6Address("2001:db8::80")


def test_an_arp_probe_names_no_sender() -> None:
    assert arp_probe(MAC, V4).hex() == (
        "ffffffffffff5254001234560806"
        "0001080006040001"
        "52540012345600000000000000000000c0000250"
        + "00" * 18
    )  # fmt: skip


def test_a_solicitation_comes_from_nobody_and_goes_to_those_who_may_have_it() -> None:
    frame = solicitation_probe(MAC, V6)
    assert frame[:14].hex() == "3333ff00008052540012345686dd"
    header, message = frame[14:54], frame[54:]
    assert header[8:24] == bytes(16)
    assert IPv6Address(header[24:]) == IPv6Address("ff02::1:ff00:80")
    assert (header[7], message[0], message[8:]) == (255, 135, V6.packed)
    assert icmpv6_checksum(header[8:24], header[24:], message) == 0


@pytest.mark.parametrize(
    ("frame", "address", "mac"),
    [
        (arp_announcement(MAC, V4), V4, "52:54:00:12:34:56"),
        (arp_announcement(MAC, V4, reply=True), V4, "52:54:00:12:34:56"),
        (arp_announcement(MAC, V4), IPv4Address("192.0.2.81"), None),
        (advertisement(MAC, V6), V6, "52:54:00:12:34:56"),
        (advertisement(MAC, V6), IPv6Address("2001:db8::81"), None),
        (solicitation_probe(MAC, V6), V6, None),  # another asks the same
    ],
)
def test_an_answer_is_about_the_address(frame: bytes, address: object, mac: str | None) -> None:
    assert answer_untrusted(frame, address) == mac  # type: ignore[arg-type]


@given(st.binary(max_size=120))
def test_no_frame_raises_anything_else(frame: bytes) -> None:
    for whole in (frame, MAC * 2 + b"\x08\x06" + frame, MAC * 2 + b"\x86\xdd" + frame):
        for address in (V4, V6):
            try:
                answer_untrusted(whole, address)
                ethernet_untrusted(whole)
            except FrameError:
                pass


def test_neighbours_are_those_of_the_cards() -> None:
    rows = [
        {"lladdr": "52:54:00:12:34:56", "dst": "192.0.2.80"},
        {"lladdr": "52:54:00:00:00:01", "dst": "192.0.2.1"},
        {"dst": "192.0.2.9"},
    ]
    found = neighbours_untrusted(rows, frozenset(("52:54:00:12:34:56",)))
    assert found == (("52:54:00:12:34:56", "192.0.2.80"),)
