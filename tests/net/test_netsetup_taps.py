"""Taps in real namespaces: whole or not at all, found again, never a stranger's."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from netsetup.errors import (
    HostError,
    NetsetupError,
    NoSuchLinkError,
    NotOursError,
    RefusedError,
    SilentKernelError,
)
from netsetup.links import PortFlags, TapSpec
from netsetup.rtnl import Rtnl
from tests.support.netns import Namespace, add_bridge, eventually, fresh_namespace, open_tap

pytestmark = pytest.mark.net

MULTI_QUEUE = 0x100
ALIAS = "qmigrate:0d5f/net0"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with a bridge br0 and a wire eth0 in it, entered."""
    with fresh_namespace() as place, place.entered():
        add_bridge(place, "br0")
        place.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        # High, so that nearly any MAC that the kernel draws for a tap would become the bridge's.
        place.run("ip", "link", "set", "eth0", "address", "fa:ff:ff:ff:ff:ff")
        for name in ("eth0", "far0"):  # whose own packets would come and be learned at any time
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        place.run("ip", "link", "set", "eth0", "master", "br0", "up")
        place.run("ip", "link", "set", "far0", "up")
        yield place


def snapshot(host: Namespace) -> list[str]:
    # Not all of `ip -d`: operational states and timers of what was just made settle by themselves.
    links = json.loads(host.run("ip", "-j", "link", "show"))
    settled = ("ifindex", "ifname", "address", "mtu", "master", "ifalias", "num_tx_queues")
    shown = [str({key: link.get(key) for key in settled}) for link in links]
    entries = host.run("bridge", "fdb", "show").splitlines()
    return shown + sorted(entry for entry in entries if "master" in entry)


async def test_a_tap_is_as_asked_and_leaves_nothing_when_deleted(host: Namespace) -> None:
    before = snapshot(host)
    spec = TapSpec(
        bridge="br0",
        alias=ALIAS,
        name="web1-0",
        mtu_bytes=1400,
        owner_uid=65534,
        multi_queue=True,
        flags=PortFlags(isolated=True, hairpin=True, learning=False),
    )
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(spec)
        assert (tap.name, tap.created, tap.bridge) == ("web1-0", True, "br0")
        shown = host.run("ip", "-d", "link", "show", "web1-0")
        for words in (
            "master br0", "mtu 1500", "multi_queue", "vnet_hdr on", "persist on", "user nobody",
            "isolated on", "hairpin on", "learning off", f"alias {ALIAS}", ",UP",
        ):  # fmt: skip
            assert words in shown
        port = await rtnl.bridge_port("web1-0")
        assert port is not None
        assert port.flags == PortFlags(True, True, False, True)
        assert not port.forwarding
        assert await rtnl.delete_tap("web1-0", alias=ALIAS)
        assert not await rtnl.delete_tap("web1-0", alias=ALIAS)
    assert set(snapshot(host)) ^ set(before) == set()


@pytest.mark.parametrize("mtu_bytes", [None, 1400, 1500, 9000])
async def test_a_tap_changes_neither_mtu_nor_mac_of_its_bridge(
    host: Namespace, mtu_bytes: int | None
) -> None:
    async with Rtnl() as rtnl:
        (before,) = await rtnl.bridges()
        tap = await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS, mtu_bytes=mtu_bytes))
        (after,) = await rtnl.bridges()
    assert (after.mtu_bytes, after.mac) == (before.mtu_bytes, before.mac)
    assert tap.mtu_bytes == max(mtu_bytes or 0, 1500)
    assert after.ports == (*before.ports, tap.name)


async def test_the_host_does_not_speak_ipv6_into_the_guest(host: Namespace) -> None:
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS, vnet_hdr=False))
    descriptor = open_tap(tap.name)
    try:
        assert host.run("ip", "-6", "address", "show", "dev", tap.name) == ""
    finally:
        os.close(descriptor)


async def test_the_same_alias_gives_the_same_tap_and_repairs_it(host: Namespace) -> None:
    spec = TapSpec(bridge="br0", alias=ALIAS)
    async with Rtnl() as rtnl:
        first = await rtnl.create_tap(spec)
        host.run("ip", "link", "set", first.name, "nomaster", "down")
        again = await rtnl.create_tap(spec)
        assert (again.name, again.index, again.created) == (first.name, first.index, False)
        (found,) = await rtnl.find_by_alias("qmigrate:0d5f/")
        assert (found.name, found.master, found.up) == (first.name, "br0", True)
        assert await rtnl.find_by_alias("qmigrate:0d60") == ()


async def test_a_tap_of_ours_in_another_shape_is_replaced_unless_it_is_in_use(
    host: Namespace,
) -> None:
    single, many = (TapSpec(bridge="br0", alias=ALIAS, multi_queue=many) for many in (False, True))
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(single)
        descriptor = open_tap(tap.name)
        try:
            with pytest.raises(HostError, match="in some process"):
                await rtnl.create_tap(many)
        finally:
            os.close(descriptor)
        assert (await rtnl.create_tap(many)).created
        assert "multi_queue" in host.run("ip", "-d", "link", "show", tap.name)


async def test_a_strangers_name_is_left_to_him(host: Namespace) -> None:
    host.run("ip", "tuntap", "add", "web1-0", "mode", "tap")
    before = host.run("ip", "-d", "link", "show", "web1-0")
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS, name="web1-0"))
    assert tap.name.startswith("qm-")
    assert host.run("ip", "-d", "link", "show", "web1-0") == before


@pytest.mark.parametrize("alias", [None, "", "qmigrate:0d5f/net00", "qmigrate:0d5f", "mine"])
async def test_a_strangers_tap_is_not_deleted(host: Namespace, alias: str | None) -> None:
    host.run("ip", "tuntap", "add", "web1-0", "mode", "tap")
    if alias:
        host.run("ip", "link", "set", "web1-0", "alias", alias)
    async with Rtnl() as rtnl:
        with pytest.raises(NotOursError, match="web1-0 is left alone"):
            await rtnl.delete_tap("web1-0", alias=ALIAS)
    assert "web1-0" in host.run("ip", "link", "show", "web1-0")


async def test_what_is_no_tap_is_not_deleted_even_with_our_alias(host: Namespace) -> None:
    host.run("ip", "link", "set", "eth0", "alias", ALIAS)
    async with Rtnl() as rtnl:
        with pytest.raises(NotOursError, match="veth"):
            await rtnl.delete_tap("eth0", alias=ALIAS)


@pytest.mark.parametrize("bridge", ["br9", "eth0"])
async def test_what_is_no_bridge_is_named_with_those_that_are(host: Namespace, bridge: str) -> None:
    before = snapshot(host)
    async with Rtnl() as rtnl:
        with pytest.raises(NoSuchLinkError, match=bridge) as caught:
            await rtnl.create_tap(TapSpec(bridge=bridge, alias=ALIAS))
    assert caught.value.next_step == "bridges here: br0"
    assert set(snapshot(host)) ^ set(before) == set()


# What creating a tap does to the kernel, in this order; the persisting is the last.
STEPS = ("TUNSETIFF", "alias", "owner", "mtu", "master", "flags", "up", "TUNSETPERSIST")

CREATE = f"""
import os, signal, sys, fcntl, trio
import netsetup.rtnl, netsetup.taps
from netsetup.links import PortFlags, TapSpec
from netsetup.rtnl import Rtnl

left, action = int(sys.argv[1]), sys.argv[2]

def counted(real):
    def call(*args, **options):
        global left
        if args[0] in ("get", "dump"):
            return real(*args, **options)
        left -= 1
        if left == 0 and action == "fail":
            raise OSError(12, "no memory, says the test")
        answer = real(*args, **options)
        if left == 0 and action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return call

fcntl.ioctl = counted(fcntl.ioctl)
real_open = netsetup.rtnl._open_socket

class Counted:
    def __init__(self):
        self.ip = real_open()
        self.link, self.brport = counted(self.ip.link), counted(self.ip.brport)
        self.close = self.ip.close

netsetup.rtnl._open_socket = Counted

async def main():
    async with Rtnl() as rtnl:
        spec = TapSpec(bridge="br0", alias={ALIAS!r}, owner_uid=1, flags=PortFlags(isolated=True))
        await rtnl.create_tap(spec)
trio.run(main)
assert left > 0, "the test does not know all steps"
"""


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1), ids=STEPS)
async def test_killed_after_any_step_nothing_is_left_but_what_carries_our_mark(
    host: Namespace, step: int
) -> None:
    before = snapshot(host)
    process = host.popen(sys.executable, "-c", CREATE, str(step), "kill")
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    async with Rtnl() as rtnl:
        if STEPS[step - 1] == "TUNSETPERSIST":
            (left,) = await rtnl.find_by_alias("qmigrate:")
            assert await rtnl.delete_tap(left.name, alias=ALIAS)
    assert set(snapshot(host)) ^ set(before) == set()


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1), ids=STEPS)
def test_refused_at_any_step_nothing_is_left(host: Namespace, step: int) -> None:
    before = snapshot(host)
    process = host.popen(sys.executable, "-c", CREATE, str(step), "fail")
    _, error = process.communicate()
    assert process.returncode == 1
    assert "RefusedError" in error
    assert set(snapshot(host)) ^ set(before) == set()


def test_the_steps_are_all_there_are(host: Namespace) -> None:
    process = host.popen(sys.executable, "-c", CREATE, str(len(STEPS) + 1), "kill")
    _, error = process.communicate()
    assert process.returncode == 0, error


async def test_a_cancelled_creation_gives_the_tap_or_nothing(host: Namespace) -> None:
    before = snapshot(host)
    async with Rtnl() as rtnl:
        with trio.CancelScope() as scope:
            scope.cancel()
            await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS))
        assert scope.cancelled_caught
        assert set(snapshot(host)) ^ set(before) == set()
        tap = None
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                nonlocal tap
                tap = await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS))

            nursery.start_soon(create)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert tap is not None
        assert await rtnl.delete_tap(tap.name, alias=ALIAS)
    assert set(snapshot(host)) ^ set(before) == set()


async def test_a_silent_kernel_is_an_error_with_the_doubt_in_it(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipe() as (reader, writer):
        async with Rtnl() as rtnl:
            monkeypatch.setattr("netsetup.rtnl.DEADLINE_S", 0.05)
            with pytest.raises(SilentKernelError, match="not known"):
                await rtnl._call("wait for the test", lambda _: os.read(reader, 1))
            monkeypatch.setattr("netsetup.rtnl.DEADLINE_S", 10.0)
            os.write(writer, b"x")
            assert await rtnl.links()  # it goes on when the kernel does


def open_pipe() -> "Pipe":
    return Pipe()


class Pipe:
    def __enter__(self) -> tuple[int, int]:
        self.ends = os.pipe()
        return self.ends

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            os.close(end)


async def test_a_request_outside_of_its_context_is_a_defect() -> None:
    rtnl = Rtnl()
    with pytest.raises(NetsetupError, match="outside"):
        await rtnl.links()
    async with rtnl:
        assert await rtnl.links()
    with pytest.raises(NetsetupError, match="outside"):
        await rtnl.links()


async def test_a_user_without_privilege_is_told_what_he_needs(host: Namespace) -> None:
    script = (
        "import trio\nfrom netsetup.rtnl import Rtnl\nfrom netsetup.errors import RefusedError\n"
        "async def main():\n"
        "    async with Rtnl() as rtnl:\n"
        "        assert await rtnl.links()\n"
        "        try:\n"
        "            await rtnl.set_fdb('52:54:00:00:00:01', 'eth0')\n"
        "        except RefusedError as error:\n"
        "            print(error, '/', error.next_step)\n"
        "trio.run(main)\n"
    )
    said = host.run("setpriv", "--bounding-set", "-all", sys.executable, "-c", script)
    assert "not permitted / run it as root: it needs CAP_NET_ADMIN" in said


async def test_a_learned_entry_is_turned_and_goes_with_the_taps_carrier(host: Namespace) -> None:
    mac = "52:54:00:00:00:01"
    async with Rtnl() as rtnl:
        tap = await rtnl.create_tap(TapSpec(bridge="br0", alias=ALIAS, vnet_hdr=False))
        await eventually(lambda: "disabled" in port_state(host, tap.name), "disabled: not open")
        with pytest.raises(HostError, match="disabled in br0"):
            await rtnl.set_fdb(mac, tap.name)
        descriptor = open_tap(tap.name)
        try:
            host.run("bridge", "fdb", "replace", mac, "dev", "eth0", "master", "dynamic")
            await eventually(lambda: "forwarding" in port_state(host, tap.name), "forwarding")
            await rtnl.set_fdb(mac, tap.name)
            assert await rtnl.fdb_port(mac, "br0") == tap.name
            assert "static" not in host.run("bridge", "fdb", "show", "dev", tap.name)
        finally:
            os.close(descriptor)
        await eventually(
            lambda: mac not in host.run("bridge", "fdb", "show", "br", "br0"), "forgotten"
        )
        await rtnl.set_fdb(mac, "eth0", static=True)
        assert f"{mac} master br0 static" in host.run("bridge", "fdb", "show", "dev", "eth0")
        assert await rtnl.del_fdb(mac, "eth0")
        assert not await rtnl.del_fdb(mac, "eth0")
        with pytest.raises(RefusedError, match="No such device"):
            await rtnl.set_fdb(mac, "nosuch0")


def port_state(host: Namespace, name: str) -> str:
    return host.run("bridge", "-d", "link", "show", "dev", name)


async def test_a_tap_with_queues_takes_several_openers_and_the_plain_one_a_single(
    host: Namespace,
) -> None:
    async with Rtnl() as rtnl:
        many = await rtnl.create_tap(TapSpec(bridge="br0", alias="a", multi_queue=True))
        single = await rtnl.create_tap(TapSpec(bridge="br0", alias="b"))
    descriptors = [open_tap(many.name, flags=MULTI_QUEUE) for _ in range(2)]
    descriptors.append(open_tap(single.name))
    try:
        with pytest.raises(OSError, match="busy"):
            open_tap(single.name)
        with pytest.raises(OSError, match="Invalid argument"):
            open_tap(many.name)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
