"""Two real QEMUs compared: alike in what the guest sees, or different where they were made so."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmigrate.core.model import RunState, Shape
from qmigrate.qmp.client import QmpThread, open_monitor
from qmigrate.qmp.introspect import GuestFacts, guest_facts, shape
from qmigrate.qmp.migration import Qemu
from tests.support.bare_qemu import bare_qemu

pytestmark = pytest.mark.qemu

MAC = "52:54:00:00:00:01"


@pytest.fixture
def thread() -> Iterator[QmpThread]:
    with QmpThread() as running:
        yield running


async def look(
    thread: QmpThread, directory: Path, name: str, *args: str
) -> tuple[Shape, GuestFacts]:
    async with (
        bare_qemu(directory, name, *args) as vm,
        open_monitor(thread, vm.path, name=name) as monitor,
    ):
        qemu = Qemu(monitor)
        return await shape(qemu), await guest_facts(qemu)


async def images(directory: Path) -> tuple[str, str]:
    raw, overlay = directory / "base.raw", directory / "disk.qcow2"
    await trio.Path(raw).write_bytes(bytes(1 << 20))
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(raw), str(overlay)]
    await trio.run_process(make)
    return str(raw), str(overlay)


async def test_a_twin_with_other_ids_and_backends_has_the_same_shape(
    tmp_path: Path, thread: QmpThread
) -> None:
    raw, overlay = await images(tmp_path)
    other = str(tmp_path / "other.raw")
    await trio.Path(other).write_bytes(bytes(2 << 20))
    rich = [
        *("-smp", "2", "-serial", "null", "-vga", "std"),
        *("-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02"),
        *("-device", "qemu-xhci", "-device", "usb-tablet"),
        *("-device", "pcie-root-port,id=PORT,chassis=1", "-device", "virtio-rng-pci,bus=PORT"),
        *("-device", "virtio-scsi-pci,id=CTL", "-drive", f"if=none,id=x,file={other},format=raw"),
        *("-device", "scsi-hd,bus=CTL.0,drive=x,scsi-id=3,share-rw=on"),
        *("-drive", f"media=cdrom,format=qcow2,file={overlay}"),
    ]
    source = [word.replace("PORT", "rp0").replace("CTL", "s0") for word in rich]
    source += ["-netdev", "hubport,hubid=1,id=n0", "-uuid", "5c6c9c4e-0000-4000-8000-000000000001"]
    twin = [word.replace("PORT", "z-port").replace("CTL", "a") for word in rich]
    twin += ["-netdev", "hubport,hubid=2,id=n0", "-S", "-incoming", "defer"]
    here, facts = await look(thread, tmp_path, "web1", *source)
    there, waiting = await look(thread, tmp_path, "twin", *twin)
    assert here == there

    places = {device.place: device.type for device in here.devices}
    assert places["isa 3f8"] == "isa-serial"
    assert places["sysbus hpet 1"] == "hpet"
    nested = {kind: place for place, kind in places.items()}
    assert nested["virtio-rng-pci"] == f"{nested['pcie-root-port']}/00.0"
    assert nested["scsi-hd"] == f"{nested['virtio-scsi-pci']}/scsi.0 0:0:3"
    assert nested["ide-cd"] == f"{nested['ich9-ahci']}/ide.0 0"
    assert dict(here.disks) == {nested["scsi-hd"]: 2 << 20, nested["ide-cd"]: 1 << 20}
    assert here.macs == ((nested["virtio-net-pci"], "52:54:00:00:00:02"),)
    assert len(here.cpus) == 2
    assert len(here.cpus[0].features) > 2

    assert (facts.state, waiting.state) == (RunState.RUNNING, RunState.INMIGRATE)
    assert facts.uuid == "5c6c9c4e-0000-4000-8000-000000000001"
    assert waiting.uuid is None
    assert (facts.name, facts.vcpus, facts.memory_bytes) == ("web1", 2, 64 << 20)
    assert facts.accelerator == "tcg"
    assert facts.machine == here.machine
    assert facts.machine.startswith("pc-q35-1")
    assert {disk.path: disk.backing for disk in facts.disks} == {other: (), overlay: (raw,)}


async def test_a_guests_disks_are_told_with_what_they_stand_on(
    tmp_path: Path, thread: QmpThread
) -> None:
    raw, overlay = await images(tmp_path)
    _, facts = await look(
        thread,
        tmp_path,
        "web1",
        *("-blockdev", f"driver=qcow2,node-name=d0,file.driver=file,file.filename={overlay}"),
        *("-device", "virtio-blk-pci,drive=d0,id=disk0,share-rw=on", "-cdrom", raw, "-S"),
    )
    by_device = {disk.device: disk for disk in facts.disks}
    disk = by_device.pop("disk0")
    assert (disk.node, disk.path, disk.driver) == ("d0", overlay, "qcow2")
    assert (disk.backing, disk.share_rw, disk.read_only) == ((raw,), True, False)
    assert disk.size_bytes == 1 << 20
    (cdrom,) = by_device.values()
    assert (cdrom.path, cdrom.read_only, cdrom.share_rw) == (raw, True, False)


NIC = f"virtio-net-pci,netdev=n0,mac={MAC}"
BASE = ["-netdev", "hubport,hubid=1,id=n0", "-device", NIC]


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ([*BASE, "-cpu", "qemu64,-sse4.1,-cx16"], {"cpus"}),
        ([*BASE, "-smp", "2"], {"cpus"}),
        ([*BASE, "-m", "65"], {"ram"}),
        ([*BASE[:3], NIC.replace("00:01", "00:09")], {"macs"}),
        ([*BASE[:3], f"{NIC},addr=9"], {"devices", "macs", "ram"}),
        ([*BASE[:3], NIC.replace("virtio-net-pci", "e1000")], {"devices", "ram"}),
        ([*BASE, "-device", "virtio-rng-pci"], {"devices"}),
        ([*BASE, "-serial", "null"], {"devices"}),
        ([*BASE, "-machine", "hpet=off"], {"devices"}),
    ],
)
async def test_a_wrong_twin_differs_where_it_was_made_wrong(
    tmp_path: Path, thread: QmpThread, wrong: list[str], fields: set[str]
) -> None:
    right, _ = await look(thread, tmp_path, "web1", *BASE, "-S")
    other, _ = await look(thread, tmp_path, "twin", *wrong, "-S", "-incoming", "defer")
    differ = {
        f.name
        for f in dataclasses.fields(Shape)
        if getattr(right, f.name) != getattr(other, f.name)
    }
    assert differ == fields


async def test_a_twin_with_a_bigger_disk_differs_in_its_disks(
    tmp_path: Path, thread: QmpThread
) -> None:
    disk = ["-device", "virtio-blk-pci,drive=d0", "-S", "-blockdev"]
    null = "driver=null-co,node-name=d0,read-zeroes=on,size="
    right, facts = await look(thread, tmp_path, "web1", *disk, f"{null}{1 << 20}")
    other, _ = await look(thread, tmp_path, "twin", *disk, f"{null}{2 << 20}")
    assert dataclasses.replace(other, disks=right.disks) == right
    assert [size for _, size in right.disks] == [1 << 20]
    assert [size for _, size in other.disks] == [2 << 20]
    assert [found.path for found in facts.disks] == [None]
