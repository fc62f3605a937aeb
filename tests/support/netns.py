"""Network namespaces for tests, entered by the test's own thread; nothing is left behind.

`fresh_namespace` gives an unnamed namespace: it ends with the last process or descriptor in it,
so that even a killed test leaves nothing. Threads started inside inherit it.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Namespace:
    """A network namespace held by a descriptor."""

    descriptor: int

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block's thread, and what it starts, in this namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self.descriptor, _CLONE_NEWNET))
            try:
                yield
            finally:
                _check(_libc.setns(before, _CLONE_NEWNET))
        finally:
            os.close(before)

    @property
    def path(self) -> str:
        """A name for ``ip link … netns``, good in this process and its children."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, *argv: str) -> str:
        """Return the output of a command in here; raises if it fails."""
        with self.entered():
            return run(*argv)

    def popen(self, *argv: str) -> "subprocess.Popen[str]":
        """Start a command in here, its output in a pipe."""
        with self.entered():
            return subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*argv: str) -> str:
    """Return a command's output; an error shows what it said."""
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}{done.stdout}"
    return done.stdout


@contextmanager
def fresh_namespace() -> Iterator[Namespace]:
    """Make an empty namespace with lo up; it goes when the block and its processes end."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        try:
            descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            # No announcements, probes or duplicate detection of the kernel's own in the captures.
            for name in ("all", "default"):
                for key, value in (("accept_dad", 0), ("router_solicitations", 0)):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/{key}").write_text(str(value))
            run("ip", "link", "set", "lo", "up")
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)
    try:
        yield Namespace(descriptor)
    finally:
        os.close(descriptor)


def packet_socket(interface: str, ethertype: int = 3) -> socket.socket:
    """Return a raw socket on `interface` of the thread's namespace, with a second's patience."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
    sock.bind((interface, ethertype))
    sock.settimeout(1)
    return sock


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until the kernel's tables show `what`; they tell nobody when they change."""
    with trio.move_on_after(5):
        while not condition():  # noqa: ASYNC110  a table of the kernel's is no task of ours
            await trio.sleep(0.005)
        return
    raise AssertionError(f"not within 5 s: {what}")


def open_tap(name: str, *, flags: int = 0) -> int:
    """Open an existing tap of the thread's namespace as a guest would; return the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), 0x1002 | flags)  # IFF_TAP | IFF_NO_PI
    fcntl.ioctl(descriptor, 0x400454CA, request)  # TUNSETIFF
    return descriptor


def drain(tap: int) -> list[bytes]:
    """Return all that has reached the guest's end of a tap."""
    frames = []
    while True:
        try:
            frames.append(os.read(tap, 65536))
        except BlockingIOError:
            return frames


@dataclass(frozen=True)
class Segment:
    """Two hosts with a bridge each, and a client, on one switch; the switch's ports bear names."""

    switch: Namespace
    alpha: Namespace
    beta: Namespace
    client: Namespace

    def switch_port(self, mac: str) -> str | None:
        """Return the port behind which the switch believes `mac`."""
        return learned_port(self.switch, "sw0", mac)


@contextmanager
def segment() -> Iterator[Segment]:
    """Make a `Segment`: ``eth0`` in ``br0`` on alpha and beta, 192.0.2.50 on the client."""
    with (
        fresh_namespace() as switch,
        fresh_namespace() as alpha,
        fresh_namespace() as beta,
        fresh_namespace() as client,
    ):
        for place, bridge in ((switch, "sw0"), (alpha, "br0"), (beta, "br0")):
            add_bridge(place, bridge)
        for place, port in ((alpha, "alpha"), (beta, "beta"), (client, "client")):
            switch.run(
                *("ip", "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", place.path),
            )
            switch.run("ip", "link", "set", port, "master", "sw0", "up")
            place.run("ip", "link", "set", "eth0", "up")
        for place in (alpha, beta):
            place.run("ip", "link", "set", "eth0", "master", "br0")
        client.run("ip", "address", "add", "192.0.2.50/24", "dev", "eth0")
        client.run("ip", "-6", "address", "add", "2001:db8::50/64", "dev", "eth0", "nodad")
        yield Segment(switch, alpha, beta, client)


def add_bridge(place: Namespace, name: str) -> None:
    """Make a bridge that is up and forwards at once."""
    place.run(
        *("ip", "link", "add", name, "type", "bridge"),
        *("stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"),
    )
    place.run("ip", "link", "set", name, "up")


def learned_port(place: Namespace, bridge: str, mac: str) -> str | None:
    """Return the port behind which `bridge` believes `mac`, as iproute2 tells it."""
    entries = json.loads(place.run("bridge", "-j", "fdb", "show", "br", bridge))
    ports = [e["ifname"] for e in entries if e["mac"] == mac and e.get("state") != "permanent"]
    assert len(ports) <= 1, entries
    return ports[0] if ports else None
