"""The running guest's line → its twin's, in all the forms that people write."""

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmigrate.core import guestline
from qmigrate.core.argv import CommandLine
from qmigrate.core.cmdline import MONITOR_ID, Twin, guest_tag, twin
from qmigrate.core.job import MONITOR_TOKEN, tap_token
from qmigrate.core.model import Guest, GuestDetail, Nic, ProcessFacts, Severity

UUID = "11111111-2222-3333-4444-555555555555"
HERE = f"/run/qmigrate/guests/{UUID}"
OURS = (
    f"-chardev socket,id={MONITOR_ID},fd={MONITOR_TOKEN},server=on,wait=off "
    f"-mon chardev={MONITOR_ID},mode=control -S -incoming defer"
)
M = "-machine pc-q35-10.0"


def detail(argv: tuple[str, ...], *nics: Nic, config: str = "") -> GuestDetail:
    line = guestline.expand(CommandLine.parse(argv), {"g.cfg": config} if config else {})
    guest = Guest(
        pid=7,
        start_ticks=1,
        executable="/usr/bin/qemu-system-x86_64",
        argv=line.render(),
        name="web1",
        uuid=UUID,
        state=None,
        memory_bytes=None,
        vcpus=None,
        qemu_version="10.0.2",
        accelerator="tcg",
        machine="pc-q35-10.0",
        disks=(),
        nics=nics or guestline.nics_of(line),
        monitor=None,
        monitor_problem=None,
        monitor_fix=None,
    )
    process = ProcessFacts("root", "root", (), "/", 0o22, ())
    return GuestDetail(guest, process, None, (), (), None)


def nic(netdev: str, tap: str | None = "t0", bridge: str | None = "br0") -> Nic:
    return Nic("n0", "virtio-net-pci", "52:54:00:00:00:01", netdev, "tap", tap, bridge)


def made(text: str, *nics: Nic, config: str = "") -> Twin:
    argv = ("qemu", *shlex.split(text))
    return twin(detail(argv, *nics, config=config), host="alpha", executable="qemu")


def line_of(found: Twin) -> str:
    """Return the twin's line without what we add to each."""
    words = shlex.join(found.plan.argv[1:])
    ours = shlex.join(shlex.split(OURS))
    assert words.endswith(ours)
    return words.removesuffix(ours).strip()


MAPPED = [
    # machine types
    ("-machine q35", "-machine pc-q35-10.0"),
    ("-M q35,accel=tcg,usb=off", "-M pc-q35-10.0,accel=tcg,usb=off"),
    ("-machine type=q35", "-machine type=pc-q35-10.0"),
    ("-m 64", "-m 64 -machine pc-q35-10.0"),
    ("-machine accel=tcg", "-machine accel=tcg -machine pc-q35-10.0"),
    # ours and leftovers of a start
    (f"{M} -S -incoming tcp:0:4444 -daemonize -loadvm s -runas u", M),
    (f"{M} -incoming defer {OURS}", M),
    (f"{M} -run-with user=qemu", M),
    (f"{M} -run-with async-teardown=on,user=qemu", f"{M} -run-with async-teardown=on"),
    # sockets
    (f"{M} -qmp unix:/r/q,server=on,wait=off", f"{M} -qmp unix:{HERE}/q,server=on,wait=off"),
    (f"{M} -qmp unix:/r/q,server,nowait", f"{M} -qmp unix:{HERE}/q,server,nowait"),
    (f"{M} -qmp unix:/r/a,,b,server=y", f"{M} -qmp unix:{HERE}/a,,b,server=y"),
    (f"{M} -qmp 'unix:/my r/q 1,server=on'", f"{M} -qmp 'unix:{HERE}/q 1,server=on'"),
    (f"{M} -serial mon:unix:/r/s,server=on", f"{M} -serial mon:unix:{HERE}/s,server=on"),
    (
        f"{M} -qmp unix:/r/a/m,server=on -monitor unix:/r/b/m,server=on",
        f"{M} -qmp unix:{HERE}/m,server=on -monitor unix:{HERE}/m.2,server=on",
    ),
    (f"{M} -qmp unix:/r/monitor,server=on", f"{M} -qmp unix:{HERE}/monitor.2,server=on"),
    (
        f"{M} -chardev socket,id=c,path=/r/c,server=on,wait=off",
        f"{M} -chardev socket,id=c,path={HERE}/c,server=on,wait=off",
    ),
    (
        f"{M} -chardev socket,path=/r/c,server,nowait,id=c",
        f"{M} -chardev socket,path={HERE}/c,server,nowait,id=c",
    ),
    (
        f"{M} -chardev socket,id=c,path=name,abstract=on,server=on",
        f"{M} -chardev socket,id=c,path=name,abstract=on,server=on",
    ),
    (f"{M} -pidfile /r/w.pid", f"{M} -pidfile {HERE}/w.pid"),
    (f"{M} -vnc unix:/r/v", f"{M} -vnc unix:{HERE}/v"),
    (
        f"{M} -spice unix=on,addr=/r/s,disable-ticketing=on",
        f"{M} -spice unix=on,addr={HERE}/s,disable-ticketing=on",
    ),
    (f"{M} -gdb unix:/r/g,server=on", f"{M} -gdb unix:{HERE}/g,server=on"),
    # what stays as it is
    (f"{M} -display none -nodefaults -nographic -serial none -parallel null -vga none",) * 2,
    (f"{M} -chardev null,id=n -chardev ringbuf,id=r,size=4k -serial chardev:n",) * 2,
    (f"{M} -hda /i/d.img -cdrom /i/c.iso",) * 2,
    (f"{M} -drive 'file=/i/my d,,x.raw,if=virtio,format=raw'",) * 2,
    (f"{M} -drive if=pflash,format=raw,readonly=on,file=/fw/CODE.fd",) * 2,
    (f'{M} -blockdev \'{{"driver": "file", "filename": "/i/a b", "node-name": "f"}}\'',) * 2,
    (f'{M} -device \'{{"driver": "e1000", "id": "n", "bus": "pcie.0"}}\'',) * 2,
    (f"{M} -object memory-backend-ram,id=m,size=64M -cpu qemu64,-svm -smp 2 -uuid {UUID}",) * 2,
    (f"{M} /i/bare.img",) * 2,
]


@pytest.mark.parametrize(("text", "expected"), MAPPED, ids=[text[:60] for text, _ in MAPPED])
def test_a_line_is_mapped_option_by_option(text: str, expected: str) -> None:
    found = made(text)
    assert line_of(found) == shlex.join(shlex.split(expected))
    assert not [f for f in found.findings if f.severity is Severity.BLOCKER]


N = tap_token("n0")
TAPS = [
    (
        "-netdev tap,id=n0,ifname=t0,script=no,downscript=no",
        f"-netdev tap,id=n0,ifname={N},script=no,downscript=no",
        1,
    ),
    ("-netdev tap,id=n0", f"-netdev tap,id=n0,ifname={N},script=no,downscript=no", 1),
    (
        "-netdev tap,id=n0,fd=31,vhostfd=32",
        f"-netdev tap,id=n0,vhost=on,ifname={N},script=no,downscript=no",
        1,
    ),
    (
        "-netdev tap,id=n0,fds=3:4:5:6,vhostfds=7:8:9:10",
        f"-netdev tap,id=n0,vhost=on,queues=4,ifname={N},script=no,downscript=no",
        4,
    ),
    (
        "-netdev tap,id=n0,ifname=t0,queues=2,vhost=on",
        f"-netdev tap,id=n0,ifname={N},queues=2,vhost=on,script=no,downscript=no",
        2,
    ),
    (
        "-netdev bridge,id=n0,br=br0,helper=/usr/lib/qemu/qemu-bridge-helper",
        f"-netdev tap,id=n0,ifname={N},script=no,downscript=no",
        1,
    ),
    (
        "-netdev tap,id=n0,br=br0,helper=/h",
        f"-netdev tap,id=n0,ifname={N},script=no,downscript=no",
        1,
    ),
    (
        '-netdev \'{"type":"tap","id":"n0","ifname":"t0","vhost":true}\'',
        '-netdev \'{"type": "tap", "id": "n0", "ifname": "' + N + '", "vhost": true, '
        '"script": "no", "downscript": "no"}\'',
        1,
    ),
]


@pytest.mark.parametrize(("text", "expected", "queues"), TAPS, ids=[tap[0][:60] for tap in TAPS])
def test_a_tap_of_any_spelling_becomes_one_made_there(
    text: str, expected: str, queues: int
) -> None:
    found = made(f"{M} {text}", nic("n0"))
    assert line_of(found) == shlex.join(shlex.split(f"{M} {expected}"))
    (tap,) = found.plan.taps
    assert (tap.netdev, tap.bridge, tap.queues) == ("n0", "br0", queues)
    assert not found.findings


@pytest.mark.parametrize("text", ["-nic tap,mac=52:54:00:00:00:01", "-net tap -net nic"])
def test_old_forms_of_a_network_card_have_a_tap_too(text: str) -> None:
    card = replace(nic("x"), netdev=None)
    found = made(f"{M} {text}", card)
    (tap,) = found.plan.taps
    assert tap.bridge == "br0"
    assert tap_token(tap.netdev) in line_of(found)


def test_two_cards_in_two_bridges_keep_theirs() -> None:
    found = made(
        f"{M} -netdev tap,id=a,fd=3 -netdev tap,id=b,fd=4", nic("b", "t1", "br1"), nic("a")
    )
    assert [(tap.netdev, tap.bridge) for tap in found.plan.taps] == [("a", "br0"), ("b", "br1")]


def test_bridges_are_renamed_where_the_inventory_says_so() -> None:
    argv = ("qemu", "-netdev", "tap,id=n0")
    found = twin(detail(argv, nic("n0")), host="a", executable="q", bridges={"br0": "lan"})
    assert found.plan.taps[0].bridge == "lan"


REFUSED = [
    ("-snapshot", "temporary files"),
    ("-add-fd fd=3,set=1", "inherited"),
    ("-readconfig /x.cfg", "could not be read"),
    ("-chroot /x", "changed root"),
    ("-run-with chroot=/x", "changed root"),
    ("-tpmdev emulator,id=t,chardev=c", "stay on this host"),
    ("-display gtk", "own screen"),
    ("-sdl", "screen"),
    ("-netdev vhost-user,id=n,chardev=c", "other end stays"),
    ("-netdev socket,id=n,listen=:1", "other end stays"),
    ("-netdev stream,id=n,server=off,addr.type=unix,addr.path=/passt", "other end stays"),
    ("-netdev tap,id=n9", "in no bridge"),
    ("-device vfio-pci,host=01:00.0", "device of this host"),
    ("-device usb-host,vendorid=1", "USB device of this host"),
    ("-device vhost-user-fs-pci,chardev=c,tag=t", "process of this host"),
    ("-device ivshmem-plain,memdev=m", "memory that it shares"),
    ('-device \'{"driver": "vfio-pci", "host": "01:00.0"}\'', "device of this host"),
    ("-chardev serial,id=c,path=/dev/ttyS0", "device of this host"),
    ("-chardev tty,id=c,path=/dev/ttyS0", "device of this host"),
    ("-serial /dev/ttyS0", "device of this host"),
    ("-chardev pipe,id=c,path=/p", "reads the pipe"),
    ("-chardev socket,id=c,path=/virtiofsd", "stays on this host"),
    ("-serial unix:/r/s", "stays on this host"),
    ("-chardev socket,id=c,fd=5,server=on", "inherited"),
    ("-usbdevice host:1.2", "device of this host"),
    ("-object input-linux,id=i,evdev=/dev/input/e0", "not known"),
    ("-object pr-manager-helper,id=h,path=/r/p", "not known"),
    ("-frobnicate yes", "not known"),
    ("-device '{\"driver\": '", "begins as JSON"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED, ids=[text[:50] for text, _ in REFUSED])
def test_what_cannot_move_is_refused_by_name(text: str, why: str) -> None:
    found = made(f"{M} {text}")
    blockers = [f for f in found.findings if f.severity is Severity.BLOCKER]
    assert len(blockers) == 1, found.findings
    assert why in blockers[0].message
    assert (blockers[0].rule, blockers[0].host) == ("unmappable", "alpha")
    assert blockers[0].fix
    assert (
        shlex.split(text)[0].lstrip("-") in blockers[0].message
        or "card" in why
        or ("in no bridge" in why)
    )


WARNED = [
    ("-netdev user,id=n", "own network end"),
    ("-vnc :1", "-vnc :1: viewers"),
    ("-spice port=5900", "-spice port 5900: viewers"),
    ("-gdb tcp::1234", "debugger"),
    ("-s", "debugger"),
    ("-qmp tcp:localhost:4444,server=on,wait=off", "port is on the destination"),
    ("-serial telnet::4445,server,nowait", "port is on the destination"),
    ("-chardev socket,id=c,host=h,port=1", "connects anew"),
    ("-chardev pty,id=c", "looks at it here"),
    ("-serial mon:stdio", "looks at it here"),
]


@pytest.mark.parametrize(("text", "why"), WARNED, ids=[text for text, _ in WARNED])
def test_what_changes_for_those_outside_is_said(text: str, why: str) -> None:
    found = made(f"{M} {text}")
    assert [f.severity for f in found.findings] == [Severity.WARNING]
    assert why in found.findings[0].message
    assert line_of(found) == shlex.join(shlex.split(f"{M} {text}"))


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("-kernel /b/k -initrd /b/i -bios /b/bios -dtb /b/d", ("/b/k", "/b/i", "/b/bios", "/b/d")),
        ("-L /share/qemu -plugin file=/p.so", ("/share/qemu", "/p.so")),
        ("-object memory-backend-file,id=m,size=1G,mem-path=/hp/x", ("/hp",)),
        ("-mem-path /hp", ("/hp",)),
        ("-object secret,id=s,file=/s -object tls-creds-x509,id=t,dir=/pki", ("/s", "/pki")),
        ("-fw_cfg name=opt/x,file=/f -smbios file=/sm -acpitable file=/at", ("/f", "/sm", "/at")),
        ("-virtfs local,path=/share,mount_tag=t,security_model=none", ("/share",)),
    ],
)
def test_files_that_qemu_opens_there_are_named_for_preflight(
    text: str, files: tuple[str, ...]
) -> None:
    assert made(f"{M} {text}").files == files


def test_an_expanded_readconfig_is_mapped_like_the_options_it_stands_for() -> None:
    config = '[machine]\n  type = "q35"\n[chardev "c"]\n  backend = "socket"\n  path = "/r/c"\n'
    config += '  server = "on"\n'
    found = made("-readconfig g.cfg", config=config)
    expected = f"-machine type=pc-q35-10.0 -chardev id=c,backend=socket,path={HERE}/c,server=on"
    assert line_of(found) == shlex.join(shlex.split(expected))


FRAGMENTS = [text for text, _ in MAPPED] + [tap[0] for tap in TAPS] + [w for w, _ in WARNED]
FRAGMENTS += [text for text, _ in REFUSED if "JSON" not in _]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=6))
def test_a_second_move_changes_nothing_more(texts: list[str]) -> None:
    once = made(" ".join(texts), nic("n0"))
    again = twin(detail(once.plan.argv, nic("n0")), host="beta", executable="qemu")
    assert again.plan.argv == once.plan.argv
    third = twin(detail(again.plan.argv, nic("n0")), host="alpha", executable="qemu")
    assert third.plan.argv == once.plan.argv


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=6))
def test_nothing_is_dropped_without_a_word(texts: list[str]) -> None:
    found = made(" ".join(texts), nic("n0"))
    options = CommandLine.parse(("qemu", *shlex.split(" ".join(texts)))).options
    kept = list(CommandLine.parse(found.plan.argv).options)
    told = [change.before for change in found.changes]
    for option in options:
        words = " ".join(option.words())
        if option in kept:
            kept.remove(option)
        elif words in told:
            told.remove(words)
        else:
            assert MONITOR_ID in words, f"{words} has vanished"
    assert all(change.why for change in found.changes)


@pytest.mark.parametrize(
    ("uuid", "name", "tag"),
    [(UUID, "web1", UUID), (None, "web1", "web1"), (None, None, "pid-7-1")],
)
def test_what_a_guest_lives_on_is_marked_with_its_id(
    uuid: str | None, name: str | None, tag: str
) -> None:
    told = detail(("qemu",))
    assert guest_tag(replace(told, guest=replace(told.guest, uuid=uuid, name=name))) == tag


ODD = (
    ".",
    "..",
    "...",
    ".hidden",
    "-x",
    "a/b",
    "a_b",
    "a b",
    "../../etc",
    "a\nb",
    "\udcff",
    "ü",
    "x" * 300,
)


def test_an_odd_name_s_mark_is_a_plain_word_that_no_other_name_has() -> None:
    told = detail(("qemu",))
    tags = [guest_tag(replace(told, guest=replace(told.guest, uuid=None, name=n))) for n in ODD]
    tags.append(guest_tag(replace(told, guest=replace(told.guest, uuid=None, name="x" * 299))))
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", tag) for tag in tags), tags
    assert len(set(tags)) == len(tags)


def test_a_guest_without_a_name_keeps_its_mark_from_host_to_host() -> None:
    told = detail(("qemu",))
    guest = replace(told.guest, uuid=None, name=None)
    first = guest_tag(replace(told, guest=guest))
    there = replace(guest, pid=9, start_ticks=5, monitor=f"/run/qmigrate/guests/{first}/monitor")
    assert guest_tag(replace(told, guest=there)) == first
    away = replace(there, monitor="/run/qmigrate/guests/../x")
    assert ".." not in guest_tag(replace(told, guest=away))


@pytest.mark.parametrize(
    "text",
    [
        "-mysql password=hunter2",
        "-chardev socket,id=c,host=h,port=1,password=hunter2",
        "-chardev serial,id=c,path=/dev/ttyS0,password=hunter2",
        "-object secret,id=s,data=hunter2 -add-fd fd=3,set=1,password=hunter2",
    ],
)
def test_what_stands_in_the_way_is_said_without_its_secret(text: str) -> None:
    found = made(text)
    assert found.findings
    assert "hunter2" not in repr(found.findings)
    assert "hunter2" not in repr(found.changes)


@pytest.mark.parametrize("token", [MONITOR_TOKEN, tap_token("n0"), "@qmigrate-tap:"])
def test_a_guest_s_own_words_are_not_filled_in_for_ours(token: str) -> None:
    found = made(f"-fw_cfg name=opt/x,string={token}")
    assert [(f.rule, f.severity) for f in found.findings] == [("unmappable", Severity.BLOCKER)]
