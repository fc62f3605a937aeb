"""Guests of many forms move, each in the state it had, and nothing is left where it was.

`tiny` where a running CPU and provable memory are enough; it has a card only where the card is the
point, as the announcements go on for seconds after a move.
"""

import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qmigrate.lab.guests import LabGuest, guest_mac, guest_uuid
from qmigrate.lab.images import guest_argv
from qmigrate.lab.workload import Verdict
from tests.support.moving import SLOWLY, Moved, Site

pytestmark = [pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
UUID = guest_uuid(NAME)
HOME = f"/run/qmigrate/guests/{UUID}"
NOBODY = 65534
BRIDGE_HELPER = Path("/usr/lib/qemu/qemu-bridge-helper")
FIRMWARE = (  # code, variables: wherever distributions put them
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)

Form = Callable[[Site], LabGuest]


def _json_words(_: Site) -> tuple[str, ...]:
    netdev = {"type": "tap", "id": "n0", "ifname": "tap-tiny1", "script": "no", "downscript": "no"}
    device = {"driver": "virtio-net-pci", "netdev": "n0", "mac": guest_mac(NAME), "addr": "0x7"}
    return ("-netdev", json.dumps(netdev), "-device", json.dumps(device))


FORMS: dict[str, Form] = {
    "q35": lambda site: site.tiny(machine="q35", nics=0),
    "pc": lambda site: site.tiny(machine="pc", nics=0),
    "microvm-like: no display, no usb, a versioned machine": lambda site: site.tiny(
        NAME, "-global", "ICH9-LPC.disable_s3=1", machine="pc-q35-9.2,usb=off,vmport=off", nics=0
    ),
    "two vCPUs": lambda site: site.tiny(vcpus=2, nics=0),
    "two cards": lambda site: site.tiny(nics=2),
    "an e1000 card": lambda site: site.tiny(model="e1000"),
    "more devices": lambda site: site.tiny(
        NAME,
        *("-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0"),
        *("-device", "virtio-balloon-pci", "-device", "virtio-scsi-pci,id=s0"),
        *(
            "-object",
            "secret,id=s1,data=letmein",
            "-object",
            "iothread,id=io0",
            "-cpu",
            "max",
            "-device",
            "qemu-xhci",
        ),
        nics=0,
    ),
    "memory in a named backend": lambda site: site.tiny(
        NAME,
        *("-object", "memory-backend-ram,id=m0,size=32M"),
        machine="q35,memory-backend=m0",
        nics=0,
    ),
}


def moved_well(moved: Moved) -> None:
    """Say what went wrong in words rather than "1 is not 0"."""
    assert moved.code == 0, (moved.error, moved.rules, moved.stderr[-500:])
    assert (moved.result["outcome"], moved.result["leftovers"]) == ("migrated", [])
    assert not [event for event in moved.result["guest_events"] if "quit" in event]


@pytest.mark.parametrize("form", FORMS)
def test_a_guest_moves_and_its_memory_with_it(site: Site, form: str) -> None:
    guest = FORMS[form](site)
    site.start(guest)
    before = site.await_life(NAME)
    moved_well(site.migrate(NAME, "beta"))
    copy = site.copy(NAME)
    assert (copy.host, copy.state) == ("beta", "running")
    assert site.memory(NAME, before=before).problem == ""
    kept = [word for word in guest_argv(guest.spec()) if "mac=" in word or "id=s1" in word]
    assert [word for word in copy.argv if "mac=" in word or "id=s1" in word] == kept
    assert site.leftovers(NAME) == []


def test_a_guest_moves_there_and_back_and_its_command_line_does_not_grow(site: Site) -> None:
    site.start(site.tiny())
    before = site.await_life(NAME)
    lines = []
    for destination in ("beta", "alpha", "beta"):
        moved_well(site.migrate(NAME, destination))
        copy = site.copy(NAME)
        assert (copy.host, copy.state) == (destination, "running")
        lines.append([word for word in copy.argv if "qmigrate-monitor" not in word])
        before = site.memory(NAME, before=before)
        assert before.problem == ""
        assert site.leftovers(NAME) == []
    assert lines[0] == lines[1] == lines[2]


def test_a_linux_guest_with_a_disk_moves_there_and_back(site: Site) -> None:
    guest = site.linux(dirty_mib=16, rate_mib=8, disk=True)
    site.start(guest)
    boot_id = site.await_boot().boot_id
    for destination in ("beta", "alpha"):
        moved_well(site.migrate("web1", destination))
        copy = site.copy("web1")
        assert (copy.host, copy.state) == (destination, "running")
        state = site.guest_says("verify")
        assert (state.memory, state.disk) == (Verdict.INTACT, Verdict.INTACT)
        assert state.boot_id == boot_id
        assert guest.disk is not None
        assert site.lockers(guest.disk, "web1") == {destination}
    assert site.leftovers("web1") == []


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("state", ["running", "paused"])
def test_images_are_locked_by_the_side_that_has_the_guest(
    site: Site, kind: str, state: str
) -> None:
    image = site.shared("disk.raw", 8)
    if kind == "qcow2":
        base, image = image, site.lab.images / "disk.qcow2"
        command = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            str(base),
            str(image),
        ]
        subprocess.run(command, check=True)
    drive = f"file={image},format={kind},if=virtio,cache=none"
    site.start(site.tiny(NAME, "-drive", drive, nics=0))
    site.await_life(NAME)
    if state == "paused":
        site.ask(NAME, "stop")
    assert site.lockers(image, NAME) == {"alpha"}
    moved_well(site.migrate(NAME, "beta"))
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", state)
    assert site.lockers(image, NAME) == {"beta"}
    assert site.leftovers(NAME) == []


@pytest.mark.parametrize("firmware", ["SeaBIOS", "UEFI"])
def test_firmware_in_flash_moves_with_its_variables(site: Site, firmware: str) -> None:
    if firmware == "UEFI":
        there = [pair for pair in FIRMWARE if all(Path(file).exists() for file in pair)]
        if not there:
            pytest.skip("no OVMF on this machine (Debian: ovmf)")
        code, variables = map(Path, there[0])
    else:  # a stand-in: the same flash, another firmware in it
        code = variables = Path("/usr/share/seabios/bios-256k.bin")
    read_only, writable = site.lab.images / "code.fd", site.lab.images / "vars.fd"
    shutil.copyfile(code, read_only)
    shutil.copyfile(variables, writable)
    flash: tuple[str, ...] = (
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={read_only}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={writable}"),
    )
    if firmware == "SeaBIOS":  # code must lie at the top: the only flash
        flash = ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={read_only}")
    site.start(site.tiny(NAME, *flash, nics=0))
    if firmware == "SeaBIOS":
        before = site.await_life(NAME)
    moved_well(site.migrate(NAME, "beta"))
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "running")
    if firmware == "SeaBIOS":
        assert site.memory(NAME, before=before).problem == ""
    else:
        assert site.lockers(writable, NAME) == {"beta"}
    assert site.leftovers(NAME) == []


def test_devices_given_as_json_move(site: Site) -> None:
    guest = site.tiny(NAME, *_json_words(site), nics=0)
    site.start(guest)
    site.plug("alpha", "tap-tiny1")
    before = site.await_life(NAME)
    moved_well(site.migrate(NAME, "beta"))
    copy = site.copy(NAME)
    assert json.loads(copy.value("-device") or "") == json.loads(_json_words(site)[3])
    assert (copy.host, copy.state) == ("beta", "running")
    assert site.memory(NAME, before=before).problem == ""
    assert site.leftovers(NAME) == []


READCONFIG = """\
[device "rng0"]
  driver = "virtio-rng-pci"
  addr = "0x9"

[chardev "m0"]
  backend = "socket"
  path = "/run/tiny1.sock"
  server = "on"
  wait = "off"

[mon "m0"]
  mode = "control"
  chardev = "m0"
"""


def test_a_guest_configured_by_a_file_moves_to_a_host_without_it(site: Site) -> None:
    site.path("alpha", "/run/tiny1.cfg").write_text(READCONFIG)
    argv = list(guest_argv(site.tiny(nics=0).spec()))
    at = argv.index("-qmp")
    argv[at : at + 2] = ["-readconfig", "/run/tiny1.cfg"]
    site.start_argv(argv, NAME, "/run/tiny1.sock")
    before = site.await_life(NAME)
    for destination in ("beta", "alpha"):
        moved_well(site.migrate(NAME, destination))
        copy = site.copy(NAME)
        assert (copy.host, copy.state) == (destination, "running")
        assert "-readconfig" not in copy.argv
        assert "virtio-rng-pci" in (copy.value("-device") or "")
        before = site.memory(NAME, before=before)
        assert before.problem == ""
    assert site.leftovers(NAME) == []


def test_a_plain_users_guest_stays_a_plain_users(site: Site) -> None:
    for host in ("alpha", "beta"):  # as udev makes it; this machine may have made it root's own
        site.lab.run(host, ["sh", "-ec", TUN_FOR_ALL])
        site.undo.callback(site.lab.run, host, ["umount", "-l", "/dev/net/tun"])
    tap = ("dev", "tap-tiny1", "mode", "tap")
    site.lab.run("alpha", ["ip", "tuntap", "add", *tap, "user", str(NOBODY), "vnet_hdr"])
    site.plug("alpha", "tap-tiny1")
    directory = site.path("alpha", "/run/theirs")
    directory.mkdir()
    shutil.chown(directory, NOBODY, NOBODY)
    spec = replace(site.tiny().spec(), monitor="/run/theirs/tiny1.qmp")
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    site.start_argv([*user, *guest_argv(spec)], NAME, spec.monitor)
    before = site.await_life(NAME)
    for destination in ("beta", "alpha"):
        moved_well(site.migrate(NAME, destination))
        copy = site.copy(NAME)
        assert (copy.host, copy.state) == (destination, "running")
        status = Path(f"/proc/{copy.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status
        assert f"Gid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status
        assert "CapEff:\t0000000000000000\n" in status
        before = site.memory(NAME, before=before)
        assert before.problem == ""
    links = site.lab.snapshot_host("alpha").links
    assert "tap-tiny1 tun master br0" in links  # theirs, and not removed with the guest
    site.settle()
    assert not [link for link in site.lab.snapshot_host("beta").links if "tun" in link]


TUN_FOR_ALL = """
mkdir -p /run/dev
mount -t tmpfs -o mode=755,dev dev /run/dev
mknod -m 666 /run/dev/tun c 10 200
mount --bind /run/dev/tun /dev/net/tun
umount -l /run/dev
"""


@pytest.mark.parametrize("mode", ["--live", "--offline"])
@pytest.mark.parametrize("state", ["paused", "prelaunch", "shutdown"])
def test_a_guest_that_does_not_run_keeps_its_state(site: Site, state: str, mode: str) -> None:
    more = ("-S",) if state == "prelaunch" else ("-no-reboot", "-no-shutdown")
    site.start(site.tiny(NAME, *more, nics=0))
    before = None
    if state != "prelaunch":
        before = site.await_life(NAME)
        site.ask(NAME, "stop" if state == "paused" else "system_reset")
    assert site.copy(NAME).state == state
    moved_well(site.migrate(NAME, "beta", mode))
    copy = site.copy(NAME)
    assert (copy.host, copy.state) == ("beta", state)
    if before:
        assert site.memory(NAME, before=before).problem == ""
    site.ask(NAME, "system_reset")  # as whoever stopped it would go on
    if state != "shutdown":
        site.ask(NAME, "cont")
        assert site.await_life(NAME).problem == ""
    assert site.leftovers(NAME) == []


def test_a_running_guest_moves_offline_and_runs_again(site: Site) -> None:
    site.start(site.tiny(nics=0))
    before = site.await_life(NAME)
    moved = site.migrate(NAME, "beta", "--offline")
    moved_well(moved)
    assert moved.result["mode"] == "offline"
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "running")
    assert site.memory(NAME, before=before).problem == ""
    assert site.leftovers(NAME) == []


def test_a_guest_that_reboots_during_the_copy_arrives_and_it_is_told(site: Site) -> None:
    site.start(site.slow())
    site.await_life(NAME)
    with site.side_door("alpha", NAME) as qmp:
        moving = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
        moving.until_phase("copy")
        qmp.execute("system_reset")
        qmp.await_event("RESET")
        moved = moving.finish()
    moved_well(moved)
    assert any("reset" in event for event in moved.result["guest_events"])
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "running")
    assert site.await_life(NAME).problem == ""
    assert site.leftovers(NAME) == []


def test_a_guest_that_is_paused_during_the_copy_arrives_paused(site: Site) -> None:
    site.start(site.slow())
    before = site.await_life(NAME)
    with site.side_door("alpha", NAME) as qmp:
        moving = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
        moving.until_phase("copy")
        qmp.execute("stop")
        moved = moving.finish()
    moved_well(moved)
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "paused")
    assert site.memory(NAME, before=before).problem == ""
    assert site.leftovers(NAME) == []


def test_a_guest_that_powers_off_during_the_copy_has_ended(site: Site) -> None:
    """`-no-reboot` turns the reset into a shutdown, and QEMU ends with it."""
    site.start(site.slow(NAME, "-no-reboot"))
    site.await_life(NAME)
    with site.side_door("alpha", NAME) as qmp:
        moving = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
        moving.until_phase("copy")
        qmp.execute("system_reset")
        moved = moving.finish()
    assert (moved.code, moved.result["outcome"]) == (9, "guest-ended")
    assert "shut down" in moved.error
    assert site.copies(NAME) == []
    assert site.leftovers(NAME) == []


def test_a_daemon_with_a_pid_file_moves_and_has_one_there(site: Site) -> None:
    words = ("-daemonize", "-pidfile", "/run/tiny1.pid")
    argv = guest_argv(site.tiny(NAME, *words, nics=0).spec())
    site.start_argv(argv, NAME, "/run/tiny1.qmp")
    before = site.await_life(NAME)
    moved_well(site.migrate(NAME, "beta"))
    copy = site.copy(NAME)
    assert (copy.host, copy.state) == ("beta", "running")
    status = Path(f"/proc/{copy.pid}/status").read_text()
    inside = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
    assert site.read("beta", f"{HOME}/tiny1.pid").strip() == inside
    assert site.memory(NAME, before=before).problem == ""
    moved_well(site.migrate(NAME, "alpha"))
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("alpha", "running")
    assert site.leftovers(NAME) == []


# The helper reads /etc/qemu/bridge.conf alone; an overlay gives the host one of its own, with the
# files that the lab has already put over this machine's.
BRIDGE_CONF = """
mkdir -p /run/etc/upper/qemu /run/etc/work
echo 'allow br0' >/run/etc/upper/qemu/bridge.conf
cp -a /etc/hosts /etc/hostname /etc/machine-id /etc/shadow /run/etc/upper/
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
"""


def test_a_guest_on_the_bridge_helper_moves(site: Site) -> None:
    if not BRIDGE_HELPER.exists():
        pytest.skip(f"no {BRIDGE_HELPER} on this machine")
    site.lab.run("alpha", ["sh", "-ec", BRIDGE_CONF])
    site.undo.callback(site.lab.run, "alpha", ["umount", "-l", "/etc"])
    card = f"virtio-net-pci,netdev=n0,mac={guest_mac(NAME)}"
    site.start(site.tiny(NAME, "-netdev", "bridge,id=n0,br=br0", "-device", card, nics=0))
    before = site.await_life(NAME)
    moved_well(site.migrate(NAME, "beta"))
    copy = site.copy(NAME)
    assert (copy.host, copy.state) == ("beta", "running")
    assert (copy.value("-netdev") or "").startswith("tap,")
    assert [link for link in site.lab.snapshot_host("beta").links if "tun master br0" in link]
    assert site.memory(NAME, before=before).problem == ""
    assert not [link for link in site.lab.snapshot_host("alpha").links if "tun" in link]


def test_a_guest_whose_console_is_watched_moves_and_speaks_on_there(site: Site) -> None:
    serial = "socket,id=c0,path=/run/tiny1.console,server=on,wait=off"
    site.start(site.tiny(NAME, "-chardev", serial, "-serial", "chardev:c0", nics=0))
    site.await_life(NAME)
    with socket.socket(socket.AF_UNIX) as here, socket.socket(socket.AF_UNIX) as there:
        here.settimeout(30)
        here.connect(str(site.path("alpha", "/run/tiny1.console")))
        assert here.recv(1).isupper()
        moved_well(site.migrate(NAME, "beta"))
        last = b"".join(iter(lambda: here.recv(4096), b""))  # the watcher sees it leave
        assert last.isupper()
        there.settimeout(30)
        there.connect(str(site.path("beta", f"{HOME}/tiny1.console")))
        letters = b"".join(itertools.islice(iter(lambda: there.recv(1), b""), 30))
    assert letters in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 3
    assert site.leftovers(NAME) == []
