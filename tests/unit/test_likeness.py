"""What makes two QEMUs unlike, named in words; what does not."""

from dataclasses import replace

import pytest

from qmigrate.core.likeness import RULE, differences
from qmigrate.core.model import CpuShape, Device, RamBlock, Severity, Shape

SHAPE = Shape(
    qemu_version="10.0.2",
    machine="pc-q35-10.0",
    accelerator="tcg",
    cpus=(CpuShape("qemu64-x86_64-cpu", (1, 2, 3)), CpuShape("qemu64-x86_64-cpu", (1, 2, 3))),
    ram=(RamBlock("pc.ram", 1 << 26), RamBlock("vga.vram", 1 << 24)),
    devices=(Device("pci 0000:00:02.0", "virtio-net-pci"),),
    macs=(("pci 0000:00:02.0", "52:54:00:00:00:01"),),
    disks=(("vda", 1 << 20),),
)
OTHER_CPU = CpuShape("max-x86_64-cpu", (1, 2, 3))
OTHER_FEATURES = CpuShape("qemu64-x86_64-cpu", (1, 0xFF, 3))
MORE_FEATURES = CpuShape("qemu64-x86_64-cpu", (1, 2, 3, 4))
NET = SHAPE.devices[0]

UNLIKE = [
    (replace(SHAPE, machine="pc-q35-9.2"), "machine type pc-q35-10.0 there is pc-q35-9.2"),
    (replace(SHAPE, cpus=SHAPE.cpus[:1]), "2 vCPUs there are 1"),
    (replace(SHAPE, cpus=(SHAPE.cpus[0], OTHER_CPU)), "vCPU 1 is qemu64-x86_64-cpu, there max-"),
    (replace(SHAPE, cpus=(OTHER_FEATURES, SHAPE.cpus[1])), "word 1: 00000002, there 000000ff"),
    (replace(SHAPE, cpus=(MORE_FEATURES, SHAPE.cpus[1])), "3 feature words, there 4"),
    (replace(SHAPE, ram=SHAPE.ram[:1]), "RAM block vga.vram is missing there (16777216 bytes)"),
    (
        replace(SHAPE, ram=(RamBlock("pc.ram", 1), SHAPE.ram[1])),
        "RAM block pc.ram is 67108864 bytes, there 1 bytes",
    ),
    (
        replace(SHAPE, devices=(*SHAPE.devices, Device("pci 3", "e1000"))),
        "device at pci 3 is only there (e1000)",
    ),
    (
        replace(SHAPE, devices=(replace(NET, type="e1000"),)),
        "device at pci 0000:00:02.0 is virtio-net-pci, there e1000",
    ),
    (
        replace(SHAPE, macs=((NET.place, "52:54:00:00:00:02"),)),
        "MAC of pci 0000:00:02.0 is 52:54:00:00:00:01, there 52:54:00:00:00:02",
    ),
    (replace(SHAPE, disks=(("vda", 2),)), "disk vda is 1048576 bytes, there 2 bytes"),
    (replace(SHAPE, disks=()), "disk vda is missing there"),
]


@pytest.mark.parametrize(("twin", "words"), UNLIKE, ids=[words[:40] for _, words in UNLIKE])
def test_a_difference_is_one_blocker_that_names_it(twin: Shape, words: str) -> None:
    (found,) = differences(SHAPE, twin, host="beta")
    assert words in found.message
    assert (found.rule, found.severity, found.host) == (RULE, Severity.BLOCKER, "beta")


@pytest.mark.parametrize(
    "twin",
    [
        SHAPE,
        replace(SHAPE, qemu_version="11.1.3"),
        replace(SHAPE, ram=SHAPE.ram[::-1]),
    ],
    ids=["equal", "another version", "another order"],
)
def test_twins_are_alike_whatever_need_not_be_equal(twin: Shape) -> None:
    assert not list(differences(SHAPE, twin, host="beta"))


def test_each_kind_of_difference_is_said_at_once_and_a_long_list_is_counted() -> None:
    twin = replace(SHAPE, devices=tuple(Device(f"pci {n}", "e1000") for n in range(8)), disks=())
    devices, disks = differences(SHAPE, twin, host="beta")
    assert devices.message.endswith("and 5 more")
    assert "disk vda" in disks.message


def test_two_devices_at_one_place_are_both_compared() -> None:
    twice = (Device("isa", "isa-serial"), Device("isa", "isa-parallel"))
    source = replace(SHAPE, devices=twice)
    twin = replace(SHAPE, devices=twice[1:])
    assert list(differences(source, twin, host="beta"))
