"""What a command line tells of its guest, in each of the forms that QEMU takes."""

import shlex
from dataclasses import replace

import pytest

from qmigrate.core import guestline
from qmigrate.core.argv import CommandLine
from qmigrate.core.guestline import MonitorLine, Reach


def line(text: str, config: str = "") -> CommandLine:
    return guestline.expand(CommandLine.parse(["qemu", *shlex.split(text)]), {"g.cfg": config})


UNIX = MonitorLine(True, Reach.UNIX, "/m")


@pytest.mark.parametrize(
    ("text", "monitors"),
    [
        ("-qmp unix:/m,server=on,wait=off", [UNIX]),
        ("-qmp unix:/m,server,nowait", [UNIX]),
        ("-qmp-pretty unix:/m,server=yes", [replace(UNIX, pretty=True)]),
        ("-chardev socket,id=c,path=/m,server=on -mon c,mode=control,pretty=on",
         [replace(UNIX, pretty=True)]),
        ("-qmp unix:/a,,b,server=on", [MonitorLine(True, Reach.UNIX, "/a,b")]),
        ("-qmp unix:/m", [MonitorLine(True, Reach.UNIX, "/m", server=False)]),
        ("-qmp tcp:localhost:4444,server=on,wait=off",
         [MonitorLine(True, Reach.TCP, "localhost:4444")]),
        ("-qmp stdio", [MonitorLine(True, Reach.OTHER, "stdio")]),
        ("-qmp none -monitor none", []),
        ("-monitor unix:/m,server=on", [MonitorLine(False, Reach.UNIX, "/m")]),
        ("-serial mon:stdio", [MonitorLine(False, Reach.OTHER, "stdio")]),
        ("-chardev socket,id=c,path=/m,server=on,wait=off -mon chardev=c,mode=control", [UNIX]),
        ("-mon c,mode=control -chardev socket,path=/m,server=on,id=c", [UNIX]),
        ("-chardev socket,id=c,path=/m,server=on -mon c", [MonitorLine(False, Reach.UNIX, "/m")]),
        ("-chardev socket,id=c,path=/m,server=on -qmp chardev:c", [UNIX]),
        ("-chardev socket,id=c,path=n,abstract=on,server=on -mon c,mode=control",
         [MonitorLine(True, Reach.ABSTRACT, "n")]),
        ("-chardev socket,id=c,fd=25,server=on,wait=off -mon c,mode=control",
         [MonitorLine(True, Reach.FD, "25")]),
        ("-chardev socket,id=c,host=::1,port=1,server=on -mon c,mode=control",
         [MonitorLine(True, Reach.TCP, "::1:1")]),
        ("-chardev pty,id=c -mon c,mode=control", [MonitorLine(True, Reach.OTHER, "pty")]),
        ("""-chardev '{"id": "c", "backend": {"type": "socket", "data": {"server": true,
            "addr": {"type": "unix", "data": {"path": "/m"}}}}}' -mon c,mode=control""", [UNIX]),
        ("-chardev socket,id=c,path=/m,server=on -object monitor-qmp,id=q,chardev=c", [UNIX]),
        ("-mon nosuch,mode=control", []),
        ("-readconfig g.cfg", [UNIX]),
        ("-readconfig other.cfg", []),
    ],
)  # fmt: skip
def test_monitors_are_found_in_every_form(text: str, monitors: list[MonitorLine]) -> None:
    config = '[chardev "c"]\nbackend = "socket"\npath = "/m"\nserver = "on"\n'
    config += '[mon "m"]\nchardev = "c"\nmode = "control"\n'
    assert guestline.monitors_of(line(text, config)) == tuple(monitors)


@pytest.mark.parametrize(
    ("text", "memory_bytes"),
    [
        ("", 128 << 20),
        ("-m 64", 64 << 20),
        ("-m 2G,slots=2,maxmem=8G", 2 << 30),
        ("-m size=1.5G", 3 << 29),
        ("-m 32 -m slots=2", 32 << 20),
        ("-machine q35,memory.size=67108864", 64 << 20),
        ("-object memory-backend-memfd,id=r,size=1G -machine q35,memory-backend=r", 1 << 30),
        ("""-object '{"qom-type":"memory-backend-ram","id":"r","size":1024}'
            -machine q35,memory-backend=r""", 1024),
        ("-m lots", None),
    ],
)  # fmt: skip
def test_memory_is_read_as_qemu_reads_it(text: str, memory_bytes: int | None) -> None:
    assert guestline.memory_bytes_of(line(text)) == memory_bytes


@pytest.mark.parametrize(
    ("text", "vcpus"),
    [
        ("", 1),
        ("-smp 4,maxcpus=8", 4),
        ("-smp maxcpus=8", 8),
        ("-smp sockets=2,cores=3,threads=2", 12),
        ("-machine q35,smp.cpus=2", 2),
    ],
)
def test_cpus_that_are_not_said_are_computed(text: str, vcpus: int) -> None:
    assert guestline.vcpus_of(line(text)) == vcpus


def test_an_alias_is_no_machine_type_and_a_version_is() -> None:
    for machine, versioned in (
        ("q35", False), ("pc", False), ("pc-q35-10.0", True), ("pc-i440fx-9.2", True),
        ("pc-q35-rhel9.6.0", True), ("microvm", False), ("pc-q35-noble", False),
    ):  # fmt: skip
        expected = machine if versioned else None
        assert guestline.machine_of(line(f"-M {machine}")) == expected


def test_identity_is_read_from_options_wherever_they_stand() -> None:
    seen = line("-name a,,b,process=x -uuid ABCD -accel kvm -accel tcg")
    assert guestline.name_of(seen) == "a,b"
    assert guestline.uuid_of(seen) == "abcd"
    assert guestline.accelerator_of(seen) == "kvm"
    assert guestline.accelerator_of(line("-machine q35,accel=hvf:tcg")) == "hvf"
    assert guestline.accelerator_of(line("-enable-kvm")) == "kvm"
    assert guestline.accelerator_of(line("")) is None


def test_disks_and_cards_are_listed_with_what_they_hang_on() -> None:
    seen = line(
        "-drive if=none,id=d,file=/a.img,format=raw -device virtio-blk-pci,drive=d,id=vda "
        "-hda /b.img /c.img -cdrom /d.iso "
        "-blockdev driver=file,node-name=f,filename=/e.qcow2 "
        "-blockdev driver=qcow2,node-name=n,file=f,read-only=on -device scsi-hd,drive=n,id=sda "
        "-netdev tap,id=n0,ifname=tap0,script=no -device e1000,netdev=n0,mac=52:54:00:00:00:01 "
        "-nic user,model=rtl8139"
    )
    disks = [(d.device, d.path, d.driver, d.read_only) for d in guestline.disks_of(seen)]
    assert disks == [
        ("vda", "/a.img", "raw", False),
        ("drive1", "/b.img", None, False),
        ("drive2", "/c.img", None, False),
        ("drive3", "/d.iso", None, True),
        ("sda", "/e.qcow2", "qcow2", True),
    ]
    nics = [(n.model, n.backend, n.tap, n.mac) for n in guestline.nics_of(seen)]
    assert nics == [("e1000", "tap", "tap0", "52:54:00:00:00:01"), ("rtl8139", "user", None, None)]


def test_half_json_hides_one_option_and_not_the_guest() -> None:
    seen = line("-device '{half' -name a -qmp unix:/m,server=on")
    assert guestline.name_of(seen) == "a"
    assert guestline.nics_of(seen) == ()
    assert guestline.monitors_of(seen) == (UNIX,)


@pytest.mark.parametrize(
    ("named", "anonymous", "changed"),
    [
        (("a",), (0, 1, 2), ()),
        (("a", "late"), (0, 1, 2), ("late",)),
        (("a",), (*range(2, 11),), tuple(f"device[{n}]" for n in range(5, 11))),
        ((), (0, 1, 2), ("a (pulled)",)),
        (("a",), (0, 2), ("1 without id (pulled)",)),
        (("a", "hidden"), (0, 1, 2), ()),
    ],
)
def test_devices_that_the_line_does_not_explain_are_named(
    named: tuple[str, ...], anonymous: tuple[int, ...], changed: tuple[str, ...]
) -> None:
    seen = line(
        "-device virtio-rng-pci -device e1000,id=a -device virtio-net-pci,id=hidden,"
        "failover_pair_id=a -drive if=virtio,file=/d -drive if=none,file=/e -virtfs local"
    )
    names = [f"device[{number}]" for number in anonymous]
    assert guestline.changed_devices(seen, named=named, anonymous=names) == changed


def test_inherited_descriptors_are_found_wherever_they_stand() -> None:
    seen = line(
        "-add-fd fd=9,set=1 -netdev tap,id=a,fd=10,vhostfd=11 -netdev tap,id=b,fds=12:13 "
        "-readconfig /dev/fd/14 -netdev tap,id=c,fd=name"
    )
    assert guestline.descriptors_of(seen) == (9, 10, 11, 12, 13, 14)
