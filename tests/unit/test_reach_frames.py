"""The question whether a guest is there, and what counts as its answer."""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from netsetup.frames import (
    address_question,
    arp_announcement,
    arp_untrusted,
    ethernet_untrusted,
    neighbour_advertisement,
    neighbour_untrusted,
)
from netsetup.reach import answer_untrusted

OWN, GUEST = bytes.fromhex("02716d000000"), bytes.fromhex("525400000001")
FOUR, SIX = IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9")


def test_arp_is_asked_from_no_address_so_that_no_cache_moves() -> None:
    frame = ethernet_untrusted(address_question(OWN, FOUR))
    asked = arp_untrusted(frame.payload)
    assert (frame.destination, frame.source) == (b"\xff" * 6, OWN)
    assert (asked.operation, asked.sender, asked.target) == (1, IPv4Address(0), FOUR)


def test_a_solicitation_goes_to_the_group_of_the_address_with_a_right_checksum() -> None:
    frame = ethernet_untrusted(address_question(OWN, SIX, vlan=7))
    asked = neighbour_untrusted(frame.payload)
    assert frame.vlan == 7
    assert frame.destination.hex() == "3333ff000009"
    assert asked is not None
    assert (asked.target, asked.link_address) == (SIX, OWN)
    assert str(asked.source) == "fe80::71:6dff:fe00:0"


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (arp_announcement(GUEST, FOUR, reply=True), (FOUR, None)),
        (arp_announcement(GUEST, FOUR, reply=True, vlan=7), (FOUR, 7)),
        (arp_announcement(GUEST, FOUR), None),  # it was not asked
        (arp_announcement(OWN, FOUR, reply=True), None),  # a proxy
        (neighbour_advertisement(GUEST, SIX), (SIX, None)),
        (neighbour_advertisement(OWN, SIX), None),
        (b"", None),
        (b"\0" * 60, None),
    ],
)
def test_only_the_guest_s_own_answer_counts(frame: bytes, answer: object) -> None:
    assert answer_untrusted(frame, GUEST) == answer


def test_no_octets_make_the_parser_raise() -> None:
    dice = random.Random(5)  # noqa: S311
    whole = neighbour_advertisement(GUEST, SIX)
    for _ in range(20_000):
        frame = bytearray(whole if dice.random() < 0.8 else dice.randbytes(80))
        for _ in range(dice.randrange(4)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        answer_untrusted(bytes(frame[: dice.randrange(len(frame) + 1)]), GUEST)
