"""Segments, from where to look at them, and what netlink says of VLANs."""

import pytest

from netsetup.errors import UsageError
from netsetup.segments import Segment, View, VlanRange, choose_view, view_tag, vlans_of
from tests.support.probe_talk import bridge, port


@pytest.mark.parametrize(
    ("facts", "isolated", "mtu_bytes", "view"),
    [
        ({}, False, 1500, View.BRIDGE),
        ({}, True, 1500, View.PORT),
        ({}, False, 1501, View.PORT),
        ({"vlan_filtering": True}, False, 1500, View.PORT),
        ({"stp": True}, True, 9000, View.BRIDGE),
        ({"stp": True, "vlan_filtering": True}, False, 1500, View.BRIDGE),
    ],
)
def test_a_port_is_added_only_where_it_sees_otherwise_and_never_under_stp(
    facts: dict[str, bool], isolated: bool, mtu_bytes: int, view: View
) -> None:
    assert choose_view(bridge(**facts), isolated=isolated, mtu_bytes=mtu_bytes) is view


@pytest.mark.parametrize(
    ("filtering", "view", "tag"),
    [
        (False, View.BRIDGE, 10),
        (False, View.PORT, 10),
        (True, View.BRIDGE, 10),
        (True, View.PORT, None),
    ],
)
def test_a_filtering_bridge_takes_the_tag_off_at_a_port(
    filtering: bool, view: View, tag: int | None
) -> None:
    facts = bridge(vlan_filtering=filtering)
    assert view_tag(Segment("br0", 10), facts, view) == tag


@pytest.mark.parametrize("vlan", [0, 4095, -1])
def test_a_vlan_that_cannot_be_is_refused(vlan: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 4094"):
        Segment("br0", vlan)


def test_a_segment_is_told_in_words() -> None:
    assert str(Segment("br0")) == "br0"
    assert str(Segment("br0", 10)) == "br0 VLAN 10"


class Message(dict[str, object]):
    """What pyroute2 hands out, as far as it is asked here."""


def test_ranges_of_vlans_are_read_as_the_kernel_compresses_them() -> None:
    entries = [
        ("IFLA_BRIDGE_VLAN_INFO", {"flags": 0x2 | 0x4, "vid": 1}),
        ("IFLA_BRIDGE_VLAN_INFO", {"flags": 0x08, "vid": 10}),
        ("IFLA_BRIDGE_VLAN_INFO", {"flags": 0x10, "vid": 20}),
        ("IFLA_BRIDGE_FLAGS", 1),
    ]
    ranges, pvid = vlans_of(Message(af_spec={"attrs": entries}))
    assert (ranges, pvid) == ((VlanRange(1, 1), VlanRange(10, 20)), 1)
    assert vlans_of(Message()) == ((), None)


@pytest.mark.parametrize(("vlan", "carried"), [(None, True), (1, True), (15, True), (21, False)])
def test_a_port_carries_what_it_is_in(vlan: int | None, carried: bool) -> None:
    filtered = port(vlans=(VlanRange(1, 1), VlanRange(10, 20)), pvid=1)
    assert filtered.carries(vlan) is carried
    assert port().carries(vlan)


def test_a_port_without_a_pvid_carries_nothing_untagged() -> None:
    assert not port(vlans=(VlanRange(10, 20),)).carries(None)
