"""What is announced, when, and out of which ports."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.announce import MAX_FRAMES_PER_S, SCHEDULE_MS, plan
from netsetup.errors import UsageError
from netsetup.frames import Address, FrameKind
from netsetup.links import (
    OUR_ALIAS,
    Link,
    TapSpec,
    announce_ports,
    bridge_safe_mac,
    check_name,
    tap_names,
)

MAC = "52:54:00:12:34:56"
ADDRESSES = [ip_address("2001:db8::9"), ip_address("192.0.2.9"), ip_address("192.0.2.10")]


def test_a_round_is_rarp_then_a_frame_for_each_address() -> None:
    planned = plan(ADDRESSES, MAC)
    first = [(f.kind, str(f.address)) for f in planned.frames if f.at_ms == 0]
    assert first == [
        (FrameKind.RARP, "None"),
        (FrameKind.GARP, "192.0.2.9"),
        (FrameKind.GARP, "192.0.2.10"),
        (FrameKind.NA, "2001:db8::9"),
    ]
    assert tuple(sorted({f.at_ms for f in planned.frames})) == SCHEDULE_MS
    assert planned.note is None


def test_without_an_address_only_rarp_goes_and_the_plan_says_so() -> None:
    planned = plan([], MAC)
    assert [f.kind for f in planned.frames] == [FrameKind.RARP] * len(SCHEDULE_MS)
    assert planned.note is not None
    assert "no address" in planned.note


def test_the_reply_form_is_sent_beside_the_request_form_only_when_asked_for() -> None:
    kinds = [f.kind for f in plan(ADDRESSES, MAC, schedule_ms=[0], reply_form=True).frames]
    assert kinds.count(FrameKind.GARP) == kinds.count(FrameKind.GARP_REPLY) == 2
    assert FrameKind.GARP_REPLY not in {f.kind for f in plan(ADDRESSES, MAC).frames}


def test_every_frame_carries_the_tag() -> None:
    for frame in plan(ADDRESSES, MAC, vlan=10).frames:
        assert frame.vlan == 10
        assert frame.octets[12:16].hex() == "8100000a"


def test_an_address_given_twice_is_announced_once() -> None:
    assert plan([*ADDRESSES, *ADDRESSES], MAC) == plan(ADDRESSES, MAC)


HOSTS = st.ip_addresses().filter(lambda a: not (a.is_multicast or a.is_reserved or a.is_loopback))
RISING = st.sets(st.integers(0, 20_000), min_size=1, max_size=6).map(sorted)


@given(st.lists(HOSTS, max_size=40, unique=True), RISING)
def test_frames_keep_their_order_their_times_and_the_rate(
    addresses: list[Address], schedule_ms: list[int]
) -> None:
    try:
        planned = plan(addresses, MAC, schedule_ms=schedule_ms)
    except UsageError:
        return  # 0.0.0.0/8, ::ffff:0:0/96
    times = [frame.at_ms for frame in planned.frames]
    assert times == sorted(times)
    for earlier, later in zip(times, times[MAX_FRAMES_PER_S:], strict=False):
        assert later - earlier >= 1000
    per_round = 1 + len(addresses)
    assert len(times) == per_round * len(schedule_ms)
    for number, at_ms in enumerate(times):
        assert at_ms >= schedule_ms[number // per_round]
    if per_round * len(schedule_ms) <= MAX_FRAMES_PER_S:
        assert sorted(set(times)) == schedule_ms


@pytest.mark.parametrize("schedule_ms", [[], [-1], [0, 0], [150, 0]])
def test_a_schedule_that_does_not_rise_is_refused(schedule_ms: list[int]) -> None:
    with pytest.raises(UsageError, match="schedule"):
        plan([], MAC, schedule_ms=schedule_ms)


@pytest.mark.parametrize("address", ["224.0.0.1", "127.0.0.1", "255.255.255.255", "ff02::1", "::"])
def test_an_address_that_no_guest_has_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=address):
        plan([ip_address(address)], MAC)


def link(name: str, **changes: object) -> Link:
    base = Link(1, name, "veth", "02:00:00:00:00:01", 1500, None, None, up=True, carrier=True)
    return replace(base, **changes)  # type: ignore[arg-type]


BRIDGE = link("br0", kind="bridge")
TAP = link("tap0", kind="tun", master="br0")
OTHER_TAP = link("tap1", kind="tun", master="br0")
WIRE = link("eth0", kind=None, master="br0")


@pytest.mark.parametrize(
    ("links", "tap", "ports"),
    [
        ([BRIDGE, OTHER_TAP, TAP, WIRE], "tap0", ("eth0", "tap1")),
        ([BRIDGE, TAP, replace(WIRE, up=False)], "tap0", ()),
        ([BRIDGE, TAP, replace(WIRE, master="br1")], "tap0", ()),
        ([BRIDGE, TAP, WIRE], None, ("br0",)),
        ([BRIDGE, replace(TAP, master=None), WIRE], "tap0", ("br0",)),
        (
            [BRIDGE, replace(TAP, isolated=True), replace(OTHER_TAP, isolated=True), WIRE],
            "tap0",
            ("eth0",),
        ),
        ([BRIDGE, TAP, replace(OTHER_TAP, isolated=True), WIRE], "tap0", ("eth0", "tap1")),
    ],
)
def test_frames_go_where_the_guests_own_would(
    links: list[Link], tap: str | None, ports: tuple[str, ...]
) -> None:
    assert announce_ports(links, "br0", tap) == ports


def test_the_names_of_a_tap_are_valid_follow_from_its_alias_and_begin_with_the_wanted_one() -> None:
    spec = TapSpec(bridge="br0", alias=f"{OUR_ALIAS}guest/0", name="tap0")
    names = tap_names(spec)
    assert names[0] == "tap0"
    assert names[1:] == tap_names(replace(spec, name=None))
    assert len(set(names)) == 5
    assert [check_name(name) for name in names] == list(names)
    assert names[1:] != tap_names(replace(spec, alias="other"))[1:]


def test_a_taps_own_mac_is_higher_than_any_cards() -> None:
    assert bridge_safe_mac("x").startswith("fe:")
    assert bridge_safe_mac("x") != bridge_safe_mac("y")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "sixteen-bytes-xx"},
        {"name": "tap%d"},
        {"name": "a/b"},
        {"name": "a b"},
        {"name": ""},
        {"name": ".."},
        {"bridge": "br:0"},
        {"alias": ""},
        {"alias": "x" * 256},
        {"mtu_bytes": 67},
        {"mtu_bytes": 70000},
        {"owner_uid": -1},
        {"owner_uid": 2**32 - 1},
    ],
)
def test_a_tap_that_cannot_be_is_refused_before_anything_is_made(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        TapSpec(**({"bridge": "br0", "alias": "x"} | changes))  # type: ignore[arg-type]
