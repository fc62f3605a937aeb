"""A lab guest in a namespace of its own for tests: real QEMU, a tap, a monitor, a way into RAM."""

import contextlib
import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmigrate.lab.images import GuestSpec, LinuxBoot, NicSpec, guest_argv, linux_image
from tests.support.netns import Namespace, fresh_namespace

ANSWER_DEADLINE_S = 60.0  # an emulated guest on a machine that many share
PAGE = 4096
IP4, IP6 = "192.0.2.10", "2001:db8::10"
GDB_CHUNK = 1024  # bytes; twice as many hex digits fit into a packet of any QEMU


@dataclass
class LabGuest:
    """A running guest; `execute` speaks to its monitor."""

    process: subprocess.Popen[bytes]
    monitor: socket.socket
    directory: Path

    def __post_init__(self) -> None:
        self._lines = self.monitor.makefile("rb")
        assert b"QMP" in self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Return a QMP command's answer; events on the way are dropped."""
        request = {"execute": command, "arguments": arguments}
        self.monitor.sendall(json.dumps(request).encode() + b"\n")
        for line in self._lines:
            message = json.loads(line)
            assert "error" not in message, message
            if "return" in message:
                return message["return"]
        raise AssertionError("QEMU closed its monitor")

    def read_memory(self, address: int, size: int) -> bytes:
        """Return guest-physical memory."""
        path = self.directory / "memory"
        self.execute("pmemsave", val=address, size=size, filename=str(path))
        return path.read_bytes()

    def write_memory(self, address: int, content: bytes) -> None:
        """Change guest-physical memory by QEMU's gdb stub; the guest is stopped and stays so."""
        path = self.directory / "gdb"
        device = f"unix:{path},server=on,wait=off"
        self.execute("human-monitor-command", **{"command-line": f"gdbserver {device}"})
        with socket.socket(socket.AF_UNIX) as gdb:
            gdb.settimeout(ANSWER_DEADLINE_S)
            gdb.connect(str(path))
            _gdb(gdb, "Qqemu.PhyMemMode:1")
            for at in range(0, len(content), GDB_CHUNK):
                part = content[at : at + GDB_CHUNK]
                _gdb(gdb, f"M{address + at:x},{len(part):x}:{part.hex()}")
        self.execute("human-monitor-command", **{"command-line": "gdbserver none"})
        self.execute("stop")


def _gdb(gdb: socket.socket, words: str) -> None:
    gdb.sendall(f"${words}#{sum(words.encode()) % 256:02x}".encode())
    said = b""
    while said.count(b"#") < 1:
        said += gdb.recv(4096)
    assert b"$OK#" in said, (words[:40], said)
    gdb.sendall(b"+")


@contextlib.contextmanager
def running(
    spec: GuestSpec,
    directory: Path,
    *more: str,
    place: Namespace | None = None,
    stdout: int | None = None,
) -> Iterator[LabGuest]:
    """Start the guest; its monitor is a socket pair, so nobody polls for a path."""
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_DEADLINE_S)
    channel = f"socket,id=test,fd={theirs.fileno()}"
    argv = [*guest_argv(spec), "-chardev", channel, "-mon", "chardev=test,mode=control", *more]
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        with theirs, place.entered() if place else contextlib.nullcontext():
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdout=stdout)
        stack.callback(process.wait)
        stack.callback(process.kill)
        guest = LabGuest(process, ours, directory)
        stack.callback(guest._lines.close)
        yield guest


@contextlib.contextmanager
def place_with_tap() -> Iterator[Namespace]:
    """Make a namespace with the near end of a guest's cable, and stay outside of it."""
    with fresh_namespace() as place:
        place.run("ip", "tuntap", "add", "dev", "tap0", "mode", "tap")
        place.run("ip", "link", "set", "tap0", "up")
        place.run("ip", "address", "add", "192.0.2.1/24", "dev", "tap0")
        place.run("ip", "-6", "address", "add", "2001:db8::1/64", "dev", "tap0", "nodad")
        yield place


def linux_spec(directory: Path, *, disk: Path | None = None, dirty_rate_mib: int = 8) -> GuestSpec:
    """Return a small linux guest on tap0 that dirties 8 MiB."""
    boot = LinuxBoot(
        linux_image(),
        ip4=f"{IP4}/24",
        ip6=f"{IP6}/64",
        dirty_mib=8,
        dirty_rate_mib=dirty_rate_mib,
        disk_log=disk is not None,
    )
    return GuestSpec(
        name="images-test",
        uuid="00000000-0000-4000-8000-0000000000aa",
        boot=boot,
        monitor=str(directory / "qmp"),
        nics=(NicSpec("52:54:00:00:00:aa", "tap0"),),
        disk=str(disk) if disk else None,
        console=str(directory / "console"),
    )


def find_pages(memory: bytes) -> dict[int, tuple[int, int]]:
    """Return where the chain's pages are in a dump of RAM: number → (address, pass)."""
    found = {}
    at = memory.find(b"QGMPAGE1")
    while at >= 0:
        if at % PAGE == 0:
            turn, number = struct.unpack_from("<QQ", memory, at + 16)
            found[number] = (at, turn)
        at = memory.find(b"QGMPAGE1", at + 1)
    return found
