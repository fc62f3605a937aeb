"""A real QEMU on a tap of ours, as a plain user, with several queues; and its own RARP."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsetup import frames
from netsetup.links import TapSpec
from netsetup.rtnl import Rtnl
from tests.support.netns import Namespace, add_bridge, eventually, fresh_namespace, packet_socket

pytestmark = [pytest.mark.net, pytest.mark.qemu]

MAC = "52:54:00:12:34:56"
NOBODY = 65534


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Namespace]:
    with fresh_namespace() as place, place.entered():
        add_bridge(place, "br0")
        yield place


def qemu(
    host: Namespace, tap: str, device: Path, *, uid: int, queues: int
) -> "subprocess.Popen[str]":
    """Start a QEMU that has no privilege; /dev/net/tun is as open as distributions have it."""
    netdev = f"tap,id=n0,ifname={tap},script=no,downscript=no"
    nic = f"virtio-net-pci,netdev=n0,mac={MAC}"
    if queues > 1:
        netdev, nic = f"{netdev},queues={queues}", f"{nic},mq=on"
    script = 'mount --bind "$0" /dev/net/tun && exec "$@"'
    with host.entered():
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, str(device),
             "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all",
             "qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "64", "-nodefaults",
             "-display", "none", "-netdev", netdev, "-device", nic, "-qmp", "stdio"],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def ask(process: "subprocess.Popen[str]", command: str, **arguments: object) -> object:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    process.stdin.flush()
    while True:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        answer = json.loads(line)
        if "return" in answer or "error" in answer:
            assert "return" in answer, answer
            return answer["return"]


@pytest.fixture
def tun(tmp_path: Path) -> Path:
    device = tmp_path / "tun"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    device.chmod(0o666)
    return device


@pytest.mark.parametrize("queues", [1, 2])
async def test_a_plain_users_qemu_opens_our_tap_and_its_rarp_is_ours(
    host: Namespace, tun: Path, queues: int
) -> None:
    spec = TapSpec(bridge="br0", alias="a", owner_uid=NOBODY, multi_queue=queues > 1)
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(spec)
        process = qemu(host, tap.name, tun, uid=NOBODY, queues=queues)
        try:
            ask(process, "qmp_capabilities")
            with packet_socket(tap.name) as heard:
                heard.settimeout(5)
                ask(process, "announce-self", initial=50, max=50, rounds=1, step=0)
                frame = heard.recv(2000)
                while frame[12:14] != b"\x80\x35":
                    frame = heard.recv(2000)
            assert frame == frames.rarp_announcement(frames.parse_mac(MAC))
            await eventually(lambda: "forwarding" in link(host, tap.name), "the port forwards")
            await rtnl.set_fdb(MAC, tap.name)
            assert await rtnl.fdb_port(MAC, "br0") == tap.name
            ask(process, "quit")
            process.communicate(timeout=10)
        finally:
            process.kill()  # nothing, if it has ended
            process.communicate()
        assert process.returncode == 0
        assert await rtnl.delete_tap(tap.name, alias="a")


def link(host: Namespace, name: str) -> str:
    return host.run("bridge", "link", "show", "dev", name)


async def test_another_users_qemu_cannot_open_it(host: Namespace, tun: Path) -> None:
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(TapSpec(bridge="br0", alias="a", owner_uid=NOBODY))
    process = qemu(host, tap.name, tun, uid=NOBODY - 1, queues=1)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Operation not permitted" in error
