"""Network namespaces for tests, entered by the test's own thread; nothing is left behind.

`fresh_namespace` gives an unnamed namespace: it ends with the last process or descriptor in it,
so that even a killed test leaves nothing. Threads started inside inherit it.
"""

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
            return subprocess.Popen(
                argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )


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
