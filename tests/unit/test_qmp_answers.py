"""What QEMU 10.0.2 says in text, recorded from it, and what is made of it."""

from pathlib import Path
from typing import Any

import pytest

from qmigrate.core.errors import MonitorGarbledError
from qmigrate.core.model import Nic, RamBlock
from qmigrate.qmp.client import QmpThread, open_monitor
from qmigrate.qmp.introspect import feature_words, file_path, parse_network, parse_ramblocks, shape
from qmigrate.qmp.migration import Qemu
from tests.support.fake_qmp import Line, fake_qmp

# unshare -n qemu-system-x86_64 … -netdev tap,id=n0,ifname=tap7,script=no,downscript=no
#   -device virtio-net-pci,netdev=n0,id=net0,mac=52:54:00:00:00:01
#   -netdev tap,id=n1,ifname=tap8,script=no,downscript=no,queues=2
#   -device virtio-net-pci,netdev=n1,mq=on -netdev tap,id=n2,fd=3 -device e1000,netdev=n2
#   -netdev user,id=un -netdev socket,id=s0,listen=127.0.0.1:0      (human-monitor-command)
TAPS = """\
un: index=0,type=user,net=10.0.2.0,restrict=off
s0: index=0,type=socket,
net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
 \\ n0: index=0,type=tap,ifname=tap7,script=no,downscript=no
virtio-net-pci.1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \\ n1: index=0,type=tap,ifname=tap8,script=no,downscript=no
virtio-net-pci.2: index=1,type=nic,
 \\ n1: index=1,type=tap,ifname=tap8,script=no,downscript=no
e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57
 \\ n2: index=0,type=tap,fd=3
"""
# … -netdev hubport,id=h1,hubid=0 -device virtio-net-pci,netdev=h1
#   -netdev user,id=n0 -device virtio-net-pci,netdev=n0,id=net0 -device e1000
HUB = """\
hub 0
 \\ h1: virtio-net-pci.1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
 \\ n0: index=0,type=user,net=10.0.2.0,restrict=off
e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57
"""
RAMBLOCKS = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f091fe00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000004140000 0x0000000000020000 0x0000000000200000 0x00007f0970a00000  ro
0000:00:01.0/virtio-net-pci.rom    4 KiB  0x0000000004080000 0x0000000000040000 0x0000000000040000 0x00007f0971600000  ro

"""  # noqa: E501 - as it is written


def test_nics_are_found_with_their_backends_taps_and_descriptors() -> None:
    nics, fds = parse_network(TAPS)
    assert nics == (
        Nic("net0", "virtio-net-pci", "52:54:00:00:00:01", "n0", "tap", "tap7", None),
        Nic("virtio-net-pci.1", "virtio-net-pci", "52:54:00:12:34:56", "n1", "tap", "tap8", None),
        Nic("e1000.0", "e1000", "52:54:00:12:34:57", "n2", "tap", None, None),
    )
    assert fds == (("n2", 3),)


def test_a_nic_on_a_hub_or_on_nothing_gets_nobody_elses_backend() -> None:
    nics, fds = parse_network(HUB)
    assert [(nic.device, nic.netdev, nic.backend) for nic in nics] == [
        ("virtio-net-pci.1", "h1", "hub"),
        ("net0", "n0", "user"),
        ("e1000.0", None, None),
    ]
    assert fds == ()


def test_ram_blocks_count_with_the_most_they_may_grow_to() -> None:
    assert parse_ramblocks(RAMBLOCKS) == (
        RamBlock("/rom@etc/acpi/tables", 0x200000),
        RamBlock("0000:00:01.0/virtio-net-pci.rom", 0x40000),
        RamBlock("pc.ram", 64 << 20),
    )


@pytest.mark.parametrize("text", ["no table", RAMBLOCKS.replace("4 KiB", "few")])
def test_another_table_of_ram_blocks_is_an_error_not_an_empty_answer(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_ramblocks(text)


def test_feature_words_compare_whatever_order_and_zeros_a_version_has() -> None:
    # From qom-get feature-words of a qemu64 CPU.
    edx = {"cpuid-register": "EDX", "cpuid-input-eax": 1, "features": 395049981}
    ecx = {"cpuid-register": "ECX", "cpuid-input-eax": 1, "features": 2147491841}
    none = {
        "cpuid-register": "EBX",
        "cpuid-input-ecx": 0,
        "cpuid-input-eax": 36,
        "features": 0,
    }
    assert feature_words([none, edx, ecx]) == feature_words([ecx, edx])
    assert feature_words([edx]) != feature_words([edx | {"cpuid-register": "EBX"}])
    assert feature_words([edx]) != feature_words([edx | {"cpuid-input-eax": 2}])
    assert feature_words([edx]) != feature_words([edx | {"cpuid-input-ecx": 1}])
    assert len(feature_words([none, edx, ecx])) == 2


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        ("/images/a.qcow2", "/images/a.qcow2"),
        ("relative.raw", "relative.raw"),
        ("/odd:name", "/odd:name"),
        ("nbd://host/x", None),
        ("nbd+unix:///x?socket=/s", None),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b"}}', "/a b"),
        ('json:{"driver":"raw","file":{"driver":"nbd","server.path":"/x"}}', None),
        ('json:{"driver":"qcow2","file.driver":"file","file.filename":"/c"}', "/c"),
    ],
)
def test_an_images_file_is_found_in_its_name(filename: str, path: str | None) -> None:
    assert file_path(filename) == path


NIC_PROPERTIES = ("type", "parent_bus", "addr", "multifunction", "mac", "netdev")


def answer(nics: dict[str, int], main_macs: dict[str, str], request: dict[str, Any]) -> Any:
    """What a QEMU with virtio NICs at `nics` (QOM path: devfn) and nothing else would say."""
    arguments = request.get("arguments", {})
    path = arguments.get("path", "")
    match request["execute"], arguments.get("property"):
        case "qom-list", _ if path in nics:
            return [{"name": name, "type": "any"} for name in NIC_PROPERTIES]
        case "qom-list", _:
            own = [nic.removeprefix(f"{path}/") for nic in nics if nic.startswith(f"{path}/")]
            return [{"name": name, "type": "child<virtio-net-pci>"} for name in own]
        case "qom-get", "parent_bus":
            return "/machine/q35/pcie.0"
        case "qom-get", "addr":
            return nics[path]
        case "qom-get", "mac":
            return "as on the command line"
        case "qom-get", "type":
            return "pc-q35-10.0-machine"
        case "query-rx-filter", _:
            return [{"name": name, "main-mac": mac} for name, mac in main_macs.items()]
        case "query-kvm", _:
            return {"enabled": True}
        case "x-query-ramblock", _:
            return {"human-readable-text": RAMBLOCKS}
        case _:
            return []


async def test_the_mac_that_a_guest_has_given_itself_is_the_one_that_counts(tmp_path: Path) -> None:
    anonymous = "/machine/peripheral-anon/device"
    nics = {
        f"{anonymous}[10]": 32,
        "/machine/peripheral/net0": 8,
        f"{anonymous}[2]": 24,
        "/machine/peripheral/quiet": 40,
    }
    # Names as QEMU gives them: a NIC without an id counts all that came before it.
    used = {"virtio-net-pci.10": "ten", "net0": "net0", "virtio-net-pci.2": "two"}

    async def script(line: Line) -> None:
        await line.greet()
        while True:
            request = await line.hear()
            value = answer(nics, used, request)
            await line.say({"return": value, "id": request["id"]})

    with QmpThread() as thread:
        async with (
            fake_qmp(tmp_path, script) as path,
            open_monitor(thread, path, name="web1") as monitor,
        ):
            found = await shape(Qemu(monitor))
    assert found.macs == (
        ("pci 0000:00:01.0", "net0"),
        ("pci 0000:00:03.0", "two"),
        ("pci 0000:00:04.0", "ten"),
        ("pci 0000:00:05.0", "as on the command line"),
    )
    assert found.accelerator == "kvm"


async def test_answers_of_another_form_are_garbled_not_a_shape(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.greet()
        while True:
            await line.answer([{"name": "device[0]", "type": None}])

    with QmpThread() as thread:
        async with (
            fake_qmp(tmp_path, script) as path,
            open_monitor(thread, path, name="web1") as monitor,
        ):
            with pytest.raises(MonitorGarbledError, match="cannot be understood"):
                await shape(Qemu(monitor))
