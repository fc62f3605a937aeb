"""`netsetup show` explains tunnels: wire format, carrier, what fits, what became of frames."""

import json
import sys
from typing import Any

import pytest

from netsetup.tunnel_spec import mirrored
from tests.support.carried import carried, full_frames_pass
from tests.support.netns import Namespace, packet_socket
from tests.support.sites import two_sites
from tests.support.tunnelled import spec_for
from tests.support.wire_forms import OF_ONE_WIRE

pytestmark = pytest.mark.net


def shown(place: Namespace) -> Any:
    (tunnel,) = json.loads(place.run(sys.executable, "-m", "netsetup", "show", "--json"))["tunnels"]
    return tunnel


def counted(told: Any) -> dict[str, int]:
    return {
        f"{each['way']} {each['by']}: {each['what']}": each["frames"] for each in told["counts"]
    }


async def test_a_tunnel_by_programs_is_explained_with_drops_by_reason() -> None:
    spec = spec_for("etherip", 4, 1500)
    with two_sites(1500) as sites:
        async with carried(spec, sites, ("ebpf", "relay")):
            full_frames_pass(sites, sites.guest(sites.beta, mirrored(spec).bridge))
            with sites.client.entered(), packet_socket("eth0") as mouth:
                mouth.send(OF_ONE_WIRE["pvst"])
            away = shown(sites.beta)  # first: the other may send meanwhile
            home = shown(sites.alpha)
            words = sites.alpha.run(sys.executable, "-m", "netsetup", "show")
    assert home["wire"].startswith("EtherIP (RFC 3378), header 3000, IP protocol 97, over IPv4")
    assert "= 1536 bytes" in home["arithmetic"]
    assert "full frames: fragments" in home["arithmetic"]
    assert home["relay_pid"] is not None
    there = counted(home)
    assert there["out ebpf: dropped: BPDUs and the like, which belong to one wire"] == 1
    for line in (
        "out ebpf: sent",
        "out ebpf: too big for the path, given to the relay",
        "out relay: sent",
        "in ebpf: received",
        "in ebpf: fragments, put together by the host for the relay",
        "in relay: received",
    ):
        assert there[line] >= 2
    assert there["out ebpf: too big for the path, given to the relay"] == there["out relay: sent"]
    assert away["carried_by"] == "a process carries it"
    # The home end was there first: its bridge has spoken to nobody yet.
    sent, got = (there[f"out {by}: sent"] for by in ("ebpf", "relay")), counted(away)
    assert 6 <= got["in relay: received"] <= sum(sent)
    assert got["out relay: sent"] >= 6
    assert "etherip (ebpf), the home end of alpha/br0" in words


async def test_a_kernels_tunnel_is_explained_too() -> None:
    spec = spec_for("vxlan", 4, 9000)
    with two_sites(9000) as sites:
        async with carried(spec, sites, ("kernel", "kernel")):
            full_frames_pass(sites, sites.guest(sites.beta, mirrored(spec).bridge))
            home = shown(sites.alpha)
    assert home["wire"].startswith("VXLAN (RFC 7348) number 7, UDP port 4789")
    assert counted(home)["out kernel: sent"] >= 4
    assert "= 1550 bytes" in home["arithmetic"]
