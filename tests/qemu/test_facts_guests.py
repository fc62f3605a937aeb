"""What `qmigrate list` and `check` are told of real guests, asked as the controller asks."""

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from qmigrate.agent import facts, monitors, process
from qmigrate.agent.requests import InspectGuest, ListGuests
from qmigrate.agent.server import AgentContext, Shared
from qmigrate.core.errors import UsageError
from qmigrate.core.model import Guest, RunState
from tests.support.odd_qemu import daemon_qemu, odd_qemu, open_place

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="looks at processes of other users"),
]

UUID = "8f1c0d3e-0000-4000-8000-000000000001"


@contextlib.asynccontextmanager
async def agent() -> AsyncIterator[AgentContext]:
    async def note(_: Any) -> None:
        raise AssertionError("these calls do not stream")

    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        yield AgentContext(Shared(nursery, stack), note)
        nursery.cancel_scope.cancel()


async def listed(ctx: AgentContext, *seen: process.Process) -> list[Guest]:
    """The guests of this test only: other QEMUs run on the machine."""
    guests = {guest.pid: guest for guest in (await facts.list_guests(ctx, ListGuests())).guests}
    return [guests[one.pid] for one in seen]


async def test_a_list_shows_each_guest_with_all_that_its_monitor_tells(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(1 << 20))
    words = (
        *("-name", "web1", "-uuid", UUID, "-M", "q35", "-smp", "2"),
        *("-drive", "if=none,id=d,file=a.img,format=raw", "-device", "virtio-blk-pci,drive=d"),
        *("-netdev", "user,id=n0", "-device", '{"driver":"virtio-net-pci","netdev":"n0","id":"x"}'),
        *("-object", "secret,id=s,data=hunter2"),
        *("-qmp", f"unix:{tmp_path}/m,server=on,wait=off"),
    )
    async with agent() as ctx, odd_qemu(tmp_path, *words) as seen:
        [guest] = await listed(ctx, seen)
        assert (guest.name, guest.uuid, guest.state) == ("web1", UUID, RunState.PRELAUNCH)
        assert (guest.memory_bytes, guest.vcpus) == (32 << 20, 2)
        assert (guest.machine, guest.accelerator) == ("pc-q35-10.0", "tcg")
        assert guest.qemu_version
        assert guest.qemu_version.startswith("10.")
        assert (guest.monitor, guest.monitor_problem) == (f"{tmp_path}/m", None)
        [disk] = guest.disks
        assert disk.path
        assert (Path(disk.path).name, disk.size_bytes, disk.read_only) == ("a.img", 1 << 20, False)
        [nic] = guest.nics
        assert nic.mac
        assert (nic.model, nic.netdev, nic.backend) == ("virtio-net-pci", "n0", "user")
        assert "hunter2" not in "".join(guest.argv)


async def test_guests_that_cannot_be_asked_are_shown_with_reason_and_way_out(
    tmp_path: Path,
) -> None:
    at = f"unix:{tmp_path}"
    async with (
        agent() as ctx,
        daemon_qemu(tmp_path, "-name", "mute", "-m", "48", "-smp", "3") as mute,
        odd_qemu(tmp_path, "-name", "held", "-qmp", f"{at}/h,server=on,wait=off") as held,
        odd_qemu(tmp_path, "-name", "stopped", "-qmp", f"{at}/s,server=on,wait=off") as stopped,
        odd_qemu(tmp_path, "-name", "well", "-qmp", f"{at}/w,server=on,wait=off") as well,
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/h")
            assert client.recv(7) == b'{"QMP":'
            os.kill(stopped.pid, signal.SIGSTOP)
            # One that hangs costs its own deadline and nobody else's answer.
            with trio.fail_after(facts.GUEST_DEADLINE_S + 10):
                shown = await listed(ctx, mute, held, stopped, well)
        assert [guest.name for guest in shown] == ["mute", "held", "stopped", "well"]
        problems = [guest.monitor_problem or "" for guest in shown]
        assert "it has no monitor" in problems[0]
        assert f"serves process {os.getpid()} " in problems[1]
        assert problems[2]
        assert not problems[3]
        assert all(guest.monitor_fix for guest in shown[:3])
        assert (shown[0].memory_bytes, shown[0].vcpus) == (48 << 20, 3)
        assert [guest.state for guest in shown] == [None, None, None, RunState.PRELAUNCH]


@pytest.fixture
def place() -> Iterator[Path]:
    with open_place() as path:
        yield path


async def test_a_detail_has_what_the_twin_needs(place: Path) -> None:
    words = ("-name", "web1", "-M", "q35", "-qmp", f"unix:{place}/m,server=on,wait=off")
    words += ("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci,id=b")
    async with agent() as ctx, odd_qemu(place, *words, user="nobody") as seen:
        detail = await facts.inspect_guest(ctx, InspectGuest("web1"))
        assert detail.guest.pid == seen.pid
        assert detail.process.user == "nobody"
        assert detail.process.cwd == str(place)
        assert detail.shape
        assert detail.shape.machine == "pc-q35-10.0"
        assert detail.hotplugged == ()
        assert detail.blocked_reasons == ()
        assert detail.migration_status is None
        with pytest.raises(UsageError, match="no guest nosuch"):
            await facts.inspect_guest(ctx, InspectGuest("nosuch"))


async def test_what_was_plugged_in_or_blocks_a_move_is_told(tmp_path: Path) -> None:
    words = ("-M", "q35", "-qmp", f"unix:{tmp_path}/m,server=on,wait=off")
    words += ("-device", "pcie-root-port,id=rp", "-audio", "none,model=virtio")
    async with agent() as ctx, odd_qemu(tmp_path, *words) as seen:
        async with facts.open_guest(
            await ctx.shared.once(facts.QmpThread), seen, facts.guests.read_line(seen)
        ) as opened:
            plug = {"driver": "virtio-rng-pci", "bus": "rp", "id": "late"}
            await opened.monitor.execute("device_add", plug)
        detail = await facts.inspect_guest(ctx, InspectGuest(str(seen.pid)))
        assert detail.hotplugged == ("late",)
        assert any("virtio-sound" in reason for reason in detail.blocked_reasons)


async def test_a_guest_that_hangs_anywhere_costs_its_own_deadline_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "GREETING_DEADLINE_S", 600.0)
    monkeypatch.setattr(facts, "GUEST_DEADLINE_S", 0.5)
    async with agent() as ctx, odd_qemu(tmp_path, "-qmp", "unix:m,server=on,wait=off") as seen:
        os.kill(seen.pid, signal.SIGSTOP)
        with trio.fail_after(30):
            [guest] = await listed(ctx, seen)
        assert guest.monitor_problem == "it has not answered within 0.5 s"
        assert f"process {seen.pid}" in (guest.monitor_fix or "")
