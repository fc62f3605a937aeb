"""A guest's cards are placed on their taps and bridges, whichever way QEMU got the taps."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from qmigrate.agent import facts
from qmigrate.agent.protocol import codec
from qmigrate.agent.requests import InspectGuest
from qmigrate.agent.server import AgentContext, Shared
from tests.support.netns import open_tap
from tests.support.odd_qemu import odd_qemu

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.net,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

LINKS = """
set -e
mount -t sysfs sysfs /sys
ip link set lo up
ip link add br0 type bridge
ip link add br1 type bridge
for n in 0 1; do ip tuntap add tap$n mode tap; ip link set tap$n master br$n up; done
ip link set tap1 alias 'qmigrate:0d5f net1'
exec "$@"
"""


async def inspect_in_here() -> None:
    """Print the detail of a guest with one tap by name and one by descriptor."""
    tap = open_tap("tap1")
    words = (
        *("-name", "web1", "-qmp", "unix:m,server=on,wait=off"),
        *("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"),
        *("-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"),
        *("-netdev", f"tap,id=n1,fd={tap}", "-device", "e1000,netdev=n1,mac=52:54:00:00:00:02"),
    )
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        ctx = AgentContext(Shared(nursery, stack), trio.sleep)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with odd_qemu(place, *words, pass_fds=(tap,)):
            detail = await facts.inspect_guest(ctx, InspectGuest("web1"))
            sys.stdout.write(json.dumps([tap, codec.unstructure(detail)]))
        nursery.cancel_scope.cancel()


def test_taps_are_known_by_name_and_by_descriptor() -> None:
    program = (
        "import trio; from tests.qemu import test_facts_taps as t; trio.run(t.inspect_in_here)"
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", LINKS, "sh", sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    number, detail = json.loads(done.stdout)
    nics = [(nic["mac"][-2:], nic["backend"], nic["tap"], nic["bridge"])
            for nic in detail["guest"]["nics"]]  # fmt: skip
    assert nics == [("01", "tap", "tap0", "br0"), ("02", "tap", "tap1", "br1")]
    assert detail["tap_aliases"] == [["tap1", "qmigrate:0d5f net1"]]
    assert [number, "tap:tap1"] in detail["fdset_paths"]
