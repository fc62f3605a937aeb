"""What /sys tells of a bridge is what netlink tells, and it is not asked of another namespace."""

import sys

import pytest

from netsetup import segment_sysfs
from qmigrate.lab.lab import Lab
from tests.support.netns import add_bridge, fresh_namespace

pytestmark = pytest.mark.net

_PREPARE = """
ip tuntap add tap5 mode tap
ip link set tap5 alias 'qmigrate:guest=1 nic=n home=alpha/br0' master br0 up
bridge link set dev tap5 isolated on
bridge fdb add 52:54:00:00:00:05 dev uplink master static
ip link add br5 type bridge stp_state 1 forward_delay 400
"""
_CLEAN = (
    "ip link delete tap5; ip link delete br5; bridge fdb del 52:54:00:00:00:05 dev uplink master"
)
_COMPARE = """
import trio
from netsetup import segment_sysfs
from netsetup.rtnl import Rtnl
from netsetup.segment_facts import describe_bridge, describe_ways
from qmigrate.agent import network

async def main():
    async with Rtnl() as rtnl:
        for bridge in ("br0", "br5"):
            told = await rtnl.run("look", lambda ip: describe_bridge(ip, bridge))
            assert segment_sysfs.describe_bridge(bridge) == told, told
        facts = segment_sysfs.describe_bridge("br0")
        for mac in ("52:54:00:00:00:05", "52:54:00:00:00:06"):
            asked = ["uplink", "tap5"]
            told = await rtnl.run(
                "look", lambda ip: describe_ways(ip, facts, asked, guest_mac=mac)
            )
            assert segment_sysfs.describe_ways(facts, asked, guest_mac=mac) == told, told
        assert segment_sysfs.describe_bridge("uplink") is None
        bridges, ports, marked = network._bridges_in_sysfs()
        told = await rtnl.run("look", network._bridges)
        assert sorted(map(repr, bridges)) == sorted(map(repr, told[0])), told
        assert sorted(map(repr, ports)) == sorted(map(repr, told[1])), told
        assert marked is told[2] is False

trio.run(main)
"""


def test_sys_and_netlink_tell_the_same(lab: Lab) -> None:
    try:
        lab.run("alpha", ["sh", "-ec", _PREPARE])
        done = lab.run("alpha", [sys.executable, "-c", _COMPARE], check=False)
        assert done.returncode == 0, done.stderr
    finally:
        lab.run("alpha", ["sh", "-c", _CLEAN], check=False)


def test_a_bridge_of_another_namespace_than_sys_shows_is_left_to_netlink() -> None:
    with fresh_namespace() as place:
        add_bridge(place, "br77")
        with place.entered():
            assert segment_sysfs.describe_bridge("br77") is None
