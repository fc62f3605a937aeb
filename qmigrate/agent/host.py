"""What a host is, read from the kernel: memory, bridges, addresses, names, the clock."""

import ctypes
import grp
import ipaddress
import os
import platform
import pwd
import shutil
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import trio

from qmigrate.agent.binary import QemuBinary, examine
from qmigrate.agent.process import distrust_place
from qmigrate.agent.requests import GetHostFacts
from qmigrate.core.errors import HostError
from qmigrate.core.model import HostFacts

NAMES_DEADLINE_S = 3.0  # NSS may ask a directory server that is not there
QEMU_NAMES = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")  # RHEL hides its own
_TIMEX_BYTES, _TIMEX_STATUS_AT, _STA_UNSYNC = 208, 40, 0x40  # linux/timex.h, 64 bits
_TENTATIVE, _DADFAILED = 0x40, 0x08  # linux/if_addr.h
_GLOBAL_SCOPE = "00"  # /proc/net/if_inet6


async def gather_host_facts(request: GetHostFacts) -> HostFacts:
    """Return the host's facts; what could not be had is None or left out.

    A QEMU that was asked for by name and does not run raises `HostError`; that there is none is
    a fact like any other.
    """
    path = find_qemu(request.qemu)
    found: list[QemuBinary] = []
    names: dict[str, tuple[str, ...]] = {"users": (), "groups": ()}
    problems: list[HostError] = []

    async def qemu() -> None:
        if path is None:
            return
        if request.qemu and (why := distrust_place(path)):
            # The name comes from another host; what it means here others may have chosen.
            problems.append(HostError(f"{path} is not run as root: {why}"))
            return
        try:
            found.append(await examine(path, probe_kvm=request.accelerator in (None, "kvm")))
        except HostError as exc:
            problems.append(exc)

    async def look_up(kind: str, asked: tuple[str, ...], known: Callable[[str], object]) -> None:
        if asked:
            names[kind] = await _existing(asked, known)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(qemu)
        nursery.start_soon(look_up, "users", request.users, pwd.getpwnam)
        nursery.start_soon(look_up, "groups", request.groups, grp.getgrnam)
    if problems and request.qemu:
        raise problems[0]
    binary = found[0] if found else None
    system = os.uname()
    return HostFacts(
        hostname=socket.gethostname(),
        boot_id=boot_id(),
        machine_id=_text("/etc/machine-id"),
        kernel=system.release,
        arch=system.machine,
        cpus=len(os.sched_getaffinity(0)),
        memory_available_bytes=memory_available_bytes(_text("/proc/meminfo") or ""),
        uid=os.geteuid(),
        python=platform.python_version(),
        clock_synchronised=clock_synchronised(),
        qemu_path=binary.path if binary else None,
        qemu_version=binary.version if binary else None,
        accelerators=binary.accelerators if binary else (),
        machines=binary.machines if binary else (),
        bridges=bridges(),
        users=names["users"],
        groups=names["groups"],
        addresses=addresses(),
        systemd=systemd_runs(),
        run_free_bytes=_free_bytes("/run"),
    )


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return _text("/proc/sys/kernel/random/boot_id") or ""


def addresses() -> tuple[str, ...]:
    """Return this host's global addresses, IPv4 first."""
    return (
        *global_ipv4(_text("/proc/net/fib_trie") or ""),
        *global_ipv6(_text("/proc/net/if_inet6") or ""),
    )


def find_qemu(asked: str | None) -> str | None:
    """Return the path of the QEMU asked for, or of the first that there is; None without one."""
    paths = (shutil.which(name) for name in ((asked,) if asked else QEMU_NAMES))
    return next((path for path in paths if path), None)


async def _existing(asked: Iterable[str], known: Callable[[str], object]) -> tuple[str, ...]:
    """Return the names that exist; a number needs no entry to be used."""

    def look() -> tuple[str, ...]:
        return tuple(name for name in asked if name.isdecimal() or _knows(known, name))

    with trio.move_on_after(NAMES_DEADLINE_S):
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    return ()


def _knows(known: Callable[[str], object], name: str) -> bool:
    try:
        known(name)
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _free_bytes(path: str) -> int | None:
    try:
        room = os.statvfs(path)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize


def systemd_runs() -> bool:
    """Tell whether systemd is this host's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def memory_available_bytes(meminfo: str) -> int | None:
    """Return MemAvailable from the text of /proc/meminfo: what a new process can have."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def bridges() -> tuple[str, ...]:
    """Return the bridges of this network namespace."""
    return tuple(sorted(path.parent.name for path in Path("/sys/class/net").glob("*/bridge")))


def bridge_of(interface: str) -> str | None:
    """Return the bridge (or other master) that an interface is a port of."""
    try:
        return Path("/sys/class/net", interface, "master").readlink().name
    except OSError:
        return None


def alias_of(interface: str) -> str | None:
    """Return an interface's alias, where qmigrate keeps what a guest's tap belongs to."""
    return _text(f"/sys/class/net/{interface}/ifalias")


def global_ipv4(fib_trie: str) -> tuple[str, ...]:
    """Return the host's IPv4 addresses beyond the link from the text of /proc/net/fib_trie."""

    def local() -> Iterator[str]:
        leaf = ""
        for line in fib_trie.splitlines():
            words = line.split()
            if words[:1] == ["|--"]:
                leaf = words[1]
            elif words[:3] == ["/32", "host", "LOCAL"]:
                address = ipaddress.IPv4Address(leaf)
                if not address.is_loopback and not address.is_link_local:
                    yield leaf

    return tuple(dict.fromkeys(local()))  # each stands in two tables


def global_ipv6(if_inet6: str) -> tuple[str, ...]:
    """Return the usable global IPv6 addresses from the text of /proc/net/if_inet6."""
    found = []
    for line in if_inet6.splitlines():
        fields = line.split()
        usable = len(fields) == 6 and not int(fields[4], 16) & (_TENTATIVE | _DADFAILED)
        if usable and fields[3] == _GLOBAL_SCOPE:
            found.append(str(ipaddress.IPv6Address(bytes.fromhex(fields[0]))))
    return tuple(dict.fromkeys(found))


def clock_synchronised() -> bool | None:
    """Tell whether the kernel's clock is disciplined (adjtimex(2), STA_UNSYNC); None if unknown."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: only asks
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    status: int = struct.unpack_from("i", timex, _TIMEX_STATUS_AT)[0]
    return not status & _STA_UNSYNC
