"""Guests on a lab's hosts: started as a user would start them, each with a tap in the bridge.

QEMU makes the tap itself, so that it goes with QEMU; it is put into the bridge as soon as QEMU has
greeted, which is when it exists.
"""

import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qmigrate.core.errors import HostError
from qmigrate.lab.accel import qemu_version, require_qemu
from qmigrate.lab.images import GuestSpec, LinuxBoot, LinuxImage, NicSpec, TinyBoot, guest_argv
from qmigrate.lab.lab import Lab

BRIDGE = "br0"
START_DEADLINE_S = 20.0  # from exec to QEMU's greeting
_NAMESPACE = uuid.UUID("5f0c7d5e-6f0e-4d50-9a3c-0d2a6d5c7b11")


def guest_uuid(name: str) -> str:
    """Return the UUID of the lab's guest `name`: the same in every lab."""
    return str(uuid.uuid5(_NAMESPACE, name))


def guest_mac(name: str, number: int = 0) -> str:
    """Return the MAC of one of its cards."""
    digest = uuid.uuid5(_NAMESPACE, f"{name}/{number}").bytes
    return "52:54:00:" + digest[:3].hex(":")


@dataclass(frozen=True, slots=True)
class LabGuest:
    """A guest to be started on a host of a lab."""

    name: str
    boot: LinuxBoot | TinyBoot
    memory_mib: int = 128
    machine: str = "q35"
    accelerator: str = "tcg"
    vcpus: int = 1
    nics: int = 1
    model: str = "virtio-net-pci"
    disk: Path | None = None
    more: tuple[str, ...] = field(default=())

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of its taps on the host that it is born on."""
        return tuple(f"tap-{self.name[:8]}{number or ''}" for number in range(self.nics))

    def spec(self) -> GuestSpec:
        """Return what QEMU is to be given."""
        return GuestSpec(
            name=self.name,
            uuid=guest_uuid(self.name),
            boot=self.boot,
            monitor=f"/run/{self.name}.qmp",
            memory_mib=self.memory_mib,
            machine=self.machine,
            accelerator=self.accelerator,
            vcpus=self.vcpus,
            nics=tuple(
                NicSpec(guest_mac(self.name, number), tap, model=self.model)
                for number, tap in enumerate(self.taps)
            ),
            disk=str(self.disk) if self.disk else None,
            console=f"/run/{self.name}.console" if isinstance(self.boot, LinuxBoot) else None,
            more=self.more,
        )


def start(
    lab: Lab, host: str, guest: LabGuest, *, prefix: Sequence[str] = ()
) -> "subprocess.Popen[bytes]":
    """Start `guest` on `host`; return its QEMU once its monitor has greeted and its taps are up.

    A QEMU that corrupts what it migrates is refused (`accel.require_qemu`).
    `prefix` goes before QEMU's own words, as in ``setpriv --reuid=…``. Raises `HostError` with
    QEMU's words if it does not start.
    """
    require_qemu(qemu_version(), "kvm" if guest.accelerator == "kvm" else "tcg")
    argv = [*prefix, *guest_argv(guest.spec())]
    process: subprocess.Popen[bytes] = lab.popen(
        host, argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _await_greeting(lab, host, guest, process)
        for tap in guest.taps:
            lab.run(host, ["ip", "link", "set", tap, "master", BRIDGE, "up"])
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _await_greeting(
    lab: Lab, host: str, guest: LabGuest, process: "subprocess.Popen[bytes]"
) -> None:
    """Return when the guest's monitor greets; its path is the host's own, so look from inside."""
    path = guest.spec().monitor
    look = ["python3", "-c", _GREETED, path]
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = process.stderr.read().decode(errors="replace") if process.stderr else ""
            raise HostError(f"guest {guest.name} did not start", host=host, last_words=words)
        if lab.run(host, look, check=False).returncode == 0:
            return
    raise HostError(f"guest {guest.name}: no greeting within {START_DEADLINE_S:g} s", host=host)


# Waits for the socket and reads the greeting, then lets go of the monitor.
_GREETED = """
import socket, sys, time
for _ in range(500):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    try:
        s.connect(sys.argv[1])
        sys.exit(0 if b"QMP" in s.recv(4096) else 1)
    except OSError:
        s.close()
        time.sleep(0.01)
sys.exit(1)
"""


def shared_image(lab: Lab, image: LinuxImage) -> LinuxImage:
    """Copy the image to where all hosts of the lab see it: the cache is each host's own."""
    kernel, initrd = lab.images / "vmlinuz", lab.images / "initrd"
    for source, copy in ((image.kernel, kernel), (image.initrd, initrd)):
        if not copy.exists():
            shutil.copyfile(source, copy)
    return LinuxImage(kernel, initrd, image.kernel_version)


def with_load(guest: LabGuest, mib: int, rate_mib: int) -> LabGuest:
    """Return a linux guest that dirties `mib` MiB at `rate_mib` MiB/s."""
    if not isinstance(guest.boot, LinuxBoot):
        return guest
    boot = replace(guest.boot, dirty_mib=mib, dirty_rate_mib=rate_mib)
    return replace(guest, boot=boot)
