"""A lab stands in user-mode Linux as it does here, with bridges that know VLANs."""

import os
import select
import struct
import time
from contextlib import ExitStack

import pytest

from qmigrate.lab.lab import Lab
from qmigrate.lab.topologies import TOPOLOGIES, VLANS
from tests.net.test_lab_topologies import namespace_of
from tests.support.lab_traces import traces
from tests.support.netns import drain, open_tap

pytestmark = [pytest.mark.net, pytest.mark.uml]
ARRIVAL_DEADLINE_S = 10.0
ARRIVAL_INTERVAL_S = 0.5  # for a frame to come through, before it is sent again


def frame(word: str) -> bytes:
    return b"\xff" * 6 + bytes.fromhex("020000000001") + struct.pack("!H", 0x88B5) + word.encode()


def test_a_trunk_of_vlan_aware_bridges_carries_what_it_lets_in_and_no_more(
    spare_lab: Lab,
) -> None:
    spare_lab.up(TOPOLOGIES["vlan-aware"])
    taps: dict[tuple[str, int], int] = {}
    with ExitStack() as stack:
        for host in ("alpha", "beta"):
            with namespace_of(spare_lab, host) as place:
                for vid in VLANS:
                    name = f"guest{vid}"
                    place.run("ip", "tuntap", "add", name, "mode", "tap")
                    place.run("ip", "link", "set", name, "master", "br0")
                    place.run("bridge", "vlan", "del", "dev", name, "vid", "1")
                    place.run(*("bridge", "vlan", "add", "dev", name, "vid", str(vid)),
                              *("pvid", "untagged"))  # fmt: skip
                    with place.entered():
                        taps[host, vid] = open_tap(name)
                    stack.callback(os.close, taps[host, vid])
                    place.run("ip", "link", "set", name, "up")
        ours = [frame(f"vlan {vid}").ljust(60, b"\0") for vid in VLANS]
        heard: list[bytes] = []
        until_s = time.monotonic() + ARRIVAL_DEADLINE_S
        # Again and again: a port that has just come up may not forward yet.
        while ours[0] not in heard and time.monotonic() < until_s:
            os.write(taps["alpha", 20], ours[1])
            os.write(taps["alpha", 10], ours[0])  # the later: when it is there, so are both
            select.select([taps["beta", 10]], [], [], ARRIVAL_INTERVAL_S)
            heard += drain(taps["beta", 10])
        assert {x for x in heard if x in ours} == {ours[0]}
        assert not [x for x in drain(taps["beta", 20]) if x in ours], "the switch ends VLAN 20"
    spare_lab.run("client", ["busybox", "ping", "-c1", "-W5", "10.77.0.2"])
    spare_lab.down()
    assert traces(spare_lab.name) == set()
