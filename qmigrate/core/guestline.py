"""What a command line alone tells of its guest: where its monitor is, what it is made of.

Pure: what is on a host (which sockets exist, what an alias means there) is the agent's business.
Give these functions a line whose `-readconfig` files have been put in by `expand`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from qmigrate.core.argv import CommandLine, Option, Opts, parse_text
from qmigrate.core.errors import BlockedError
from qmigrate.core.model import Disk, Nic
from qmigrate.core.readconfig import parse_config

YES = ("on", "yes", "true", "y")  # qapi/qapi-util.c, qapi_bool_parse
DEFAULT_MEMORY_BYTES = 128 << 20  # QEMU's own for the PC machines (hw/i386/pc.c)


class Reach(StrEnum):
    """What a monitor's character device is connected to."""

    UNIX = "unix"  # a socket in a file system
    ABSTRACT = "abstract"  # a socket with a name only
    FD = "fd"  # a socket that QEMU inherited
    TCP = "tcp"
    OTHER = "other"  # stdio, a pty, a pipe, a screen


@dataclass(frozen=True, slots=True)
class MonitorLine:
    """A monitor that the command line asks for."""

    control: bool  # QMP; else HMP, the human one
    reach: Reach
    address: str  # path, name, descriptor number, host:port or the backend's word
    server: bool = True  # False: QEMU itself connects there
    pretty: bool = False  # answers of many lines, for people to read


def config_files(line: CommandLine) -> tuple[str, ...]:
    """Return the names of the `-readconfig` files, as the command line has them."""
    return tuple(option.value for option in line.every("readconfig") if option.value)


def expand(line: CommandLine, configs: Mapping[str, str]) -> CommandLine:
    """Return the line with `-readconfig` replaced by what the files say (`configs`: name → text).

    A file whose text is not given stays as it is. Raises `BlockedError` on one that is garbled.
    """

    def each() -> Iterator[Option]:
        for option in line.options:
            text = configs.get(option.value or "") if option.flag == "readconfig" else None
            if text is None:
                yield option
            else:
                yield from parse_config(text)

    return replace(line, options=tuple(each()))


def opts_of(option: Option) -> Opts:
    """Return the option's keys and values; none of one that is half JSON."""
    try:
        return option.opts
    except BlockedError:  # half JSON: the option says nothing here, and preflight refuses it
        return Opts(())


def _last(line: CommandLine, key: str, *flags: str) -> str | None:
    """Return the last value of `key` in options that QEMU merges (merge_lists: -machine, -smp)."""
    values = [opts_of(option).get(key) for option in line.every(*flags)]
    return next((value for value in reversed(values) if value is not None), None)


def name_of(line: CommandLine) -> str | None:
    """Return `-name`'s guest."""
    return _last(line, "guest", "name")


def uuid_of(line: CommandLine) -> str | None:
    """Return `-uuid`, in lower case as QEMU reports it."""
    option = line.last("uuid")
    return option.value.lower() if option and option.value else None


_VERSIONED = re.compile(r"\w[\w-]*-\d+\.\d+(\.\d+)?|.*-rhel\d.*")


def machine_of(line: CommandLine) -> str | None:
    """Return the machine type if it is a versioned one; an alias means what its binary says."""
    machine = _last(line, "type", "machine", "M")
    return machine if machine and _VERSIONED.fullmatch(machine) else None


def accelerator_of(line: CommandLine) -> str | None:
    """Return the accelerator asked for first; None if the binary's default decides."""
    named = [opts_of(option).get("accel") for option in line.every("accel", "machine", "M")]
    wanted = next((value for value in named if value), None)
    if wanted:
        return wanted.split(":")[0]
    return "kvm" if line.every("enable-kvm") else None


def size_bytes(text: str, *, unit: str = "B") -> int | None:
    """Return a size as QEMU reads it (util/cutils.c, qemu_strtosz): "1.5G", "64", "0x40"."""
    found = re.fullmatch(r"(0x[0-9a-f]+|\d+(?:\.\d+)?)([bkmgtpe]?)", text.lower())
    if not found:
        return None
    shift = 10 * "bkmgtpe".index(found[2] or unit.lower())
    if found[1].startswith("0x"):
        return int(found[1], 16) << shift
    return int(float(found[1]) * (1 << shift)) if "." in found[1] else int(found[1]) << shift


def memory_bytes_of(line: CommandLine) -> int | None:
    """Return the guest's RAM at start; None if the line says it in a way we cannot read."""
    size = _last(line, "size", "m")
    if size is not None:
        return size_bytes(size, unit="M")
    size = _last(line, "memory.size", "machine", "M")
    if size is not None:
        return size_bytes(size)
    backend = _last(line, "memory-backend", "machine", "M")
    if backend is None:
        return DEFAULT_MEMORY_BYTES
    objects = [opts_of(option) for option in line.every("object")]
    sizes = [opts.get("size") for opts in objects if opts.get("id") == backend]
    return size_bytes(sizes[0]) if sizes and sizes[0] else None


def vcpus_of(line: CommandLine) -> int | None:
    """Return the CPUs at start (hw/core/machine-smp.c: what is omitted is computed)."""
    given = [opts_of(option) for option in line.every("smp")]

    def number(key: str) -> int | None:
        text = next((value for opts in reversed(given) if (value := opts.get(key))), None)
        text = text or _last(line, f"smp.{key}", "machine", "M")
        return int(text) if text and text.isdigit() else None

    if cpus := number("cpus"):
        return cpus
    if maximum := number("maxcpus"):
        return maximum
    levels = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")
    return prod(number(level) or 1 for level in levels)


def monitors_of(line: CommandLine) -> tuple[MonitorLine, ...]:
    """Return the monitors in the order of the options, QMP and HMP alike."""
    chardevs = {opts.get("id"): opts for opts in map(opts_of, line.every("chardev"))}
    found: list[MonitorLine] = []
    for option in line.options:
        value = option.value or ""
        if option.flag in ("qmp", "qmp-pretty", "monitor"):
            if value.startswith("chardev:"):
                reached = _reach(chardevs.get(value.removeprefix("chardev:")))
            else:
                reached = _legacy(value)
            pretty = option.flag == "qmp-pretty"
            found += _monitor(reached, control=option.flag != "monitor", pretty=pretty)
        elif option.flag == "mon":
            opts = opts_of(option)
            control = opts.get("mode") == "control"
            pretty = opts.get("pretty") in YES
            reached = _reach(chardevs.get(opts.get("chardev")))
            found += _monitor(reached, control=control, pretty=control and pretty)
        elif option.flag == "object":
            kind = opts_of(option).get("qom-type")
            if kind in ("monitor-qmp", "monitor-hmp"):  # since 11.1
                reached = _reach(chardevs.get(opts_of(option).get("chardev")))
                found += _monitor(reached, control=kind == "monitor-qmp")
        elif option.flag == "serial" and value.startswith("mon:"):
            found += _monitor(_legacy(value), control=False)
    return tuple(found)


def _monitor(
    reached: tuple[Reach, str, bool] | None, *, control: bool, pretty: bool = False
) -> Iterator[MonitorLine]:
    if reached:
        yield MonitorLine(control, *reached, pretty)


def _legacy(text: str) -> tuple[Reach, str, bool] | None:
    """Read the old form of a character device (chardev/char.c, qemu_chr_parse_compat)."""
    text = text.removeprefix("mon:")
    kind, _, rest = text.partition(":")
    if text == "none" or not text:
        return None
    if kind == "unix":
        return _reach(parse_text(rest, implied="path"))
    if kind in ("tcp", "telnet", "websocket", "tn3270"):
        return Reach.TCP, rest.split(",")[0], "server" in rest
    return Reach.OTHER, kind, True


def _reach(opts: Opts | None) -> tuple[Reach, str, bool] | None:
    if opts is None:
        return None

    def get(key: str) -> str | None:
        """JSON nests it as QAPI `ChardevOptions` does, text does not."""
        for prefix in ("", "addr.", "addr.data.", "backend.data.", "backend.data.addr.data."):
            if (value := opts.get(prefix + key)) is not None:
                return value
        return None

    server = get("server") in YES or (opts.json and get("server") is None)
    if path := get("path"):
        return Reach.ABSTRACT if get("abstract") == "on" else Reach.UNIX, path, server
    if descriptor := get("fd") or (get("str") if opts.json else None):
        return Reach.FD, descriptor, server
    if port := get("port"):
        return Reach.TCP, f"{get('host') or ''}:{port}", server
    return Reach.OTHER, get("backend") or opts.get("backend.type") or "", True


_INHERITED = ("fd", "fds", "vhostfd", "vhostfds")


def descriptors_of(line: CommandLine) -> tuple[int, ...]:
    """Return the descriptors that QEMU was started with, by the numbers in its options."""
    found = set()
    for option in line.options:
        found |= set(re.findall(r"(?:/dev|/proc/self)/fd/(\d+)", option.value or ""))
        for item in opts_of(option).items:
            if item.key.rpartition(".")[2] in _INHERITED:
                found |= set(filter(str.isdecimal, item.value.split(":")))
    return tuple(sorted(map(int, found)))


_REFERENCES = ("file", "backing", "base", "data-file", "source", "target")


def disks_of(line: CommandLine) -> tuple[Disk, ...]:
    """Return the drives that the line names; sizes and backing files are QEMU's to tell."""
    devices = [opts_of(option) for option in line.every("device")]
    users = {opts.get("drive"): opts.get("id") for opts in devices if opts.get("drive")}
    found = []
    for number, option in enumerate(line.every("drive", "hda", "hdb", "hdc", "hdd", "cdrom", "")):
        opts = opts_of(option) if option.flag == "drive" else None
        ident = opts.get("id") if opts else None
        found.append(
            Disk(
                device=users.get(ident) or ident or f"drive{number}",
                node=None,
                path=(opts.get("file") or opts.get("file.filename")) if opts else option.value,
                driver=(opts.get("format") or opts.get("driver")) if opts else None,
                read_only=_read_only(opts) if opts else option.flag == "cdrom",
                size_bytes=None,
            )
        )
    nodes = {opts.get("node-name"): opts for opts in map(opts_of, line.every("blockdev"))}
    below = {opts.get(key) for opts in nodes.values() for key in _REFERENCES} - {None}
    for name, opts in nodes.items():
        if name in below:
            continue
        lower = nodes.get(opts.get("file") or "")
        path = opts.get("filename") or opts.get("file.filename")
        path = path or (lower.get("filename") if lower else None)
        device = users.get(name) or name or ""
        found.append(Disk(device, name, path, opts.get("driver"), _read_only(opts), None))
    return tuple(found)


def _read_only(opts: Opts) -> bool:
    given = opts.get("readonly") or opts.get("read-only")
    return given in YES or opts.get("media") == "cdrom"


def nics_of(line: CommandLine) -> tuple[Nic, ...]:
    """Return the network cards that the line names; their bridges are the host's to tell."""
    backends = {opts.get("id"): opts for opts in map(opts_of, line.every("netdev"))}
    found = []
    for opts in map(opts_of, line.every("device")):
        ident = opts.get("netdev")
        if ident is None:
            continue
        backend = backends.get(ident)
        found.append(
            Nic(
                device=opts.get("id") or "",
                model=opts.get("driver") or "",
                mac=opts.get("mac"),
                netdev=ident,
                backend=backend.get("type") if backend else None,
                tap=backend.get("ifname") if backend else None,
                bridge=backend.get("br") if backend else None,
            )
        )
    for opts in map(opts_of, line.every("nic")):
        kind = opts.get("type")
        if kind != "none":
            model = opts.get("model") or ""
            mac, tap, bridge = opts.get("mac"), opts.get("ifname"), opts.get("br")
            found.append(Nic(opts.get("id") or "", model, mac, None, kind, tap, bridge))
    return tuple(found)


def changed_devices(
    line: CommandLine, *, named: Collection[str], anonymous: Collection[str]
) -> tuple[str, ...]:
    """Return the devices that a QEMU has and its line does not explain, or the other way round.

    `named` and `anonymous` are the children of /machine/peripheral and peripheral-anon: -device
    and device_add put them there (qdev-monitor.c, qdev_set_id), and a few old options are a
    -device without id in disguise (measured with 10.0.2: -virtfs, -drive if=virtio).
    """
    options = [(option.flag, opts_of(option)) for option in line.options]
    devices = [opts for flag, opts in options if flag == "device"]
    # A failover primary waits hidden until its standby is negotiated (net/failover.c).
    known = {opts.get("id"): "failover_pair_id" in opts for opts in devices if opts.get("id")}
    explained = sum(not opts.get("id") for opts in devices) + sum(
        flag in ("virtfs", "watchdog") or (flag == "drive" and opts.get("if") == "virtio")
        for flag, opts in options
    )
    surplus = len(anonymous) - explained
    # device[N] are numbered as they come: what was plugged has the highest numbers.
    latest = sorted(anonymous, key=lambda name: (len(name), name))
    return (
        *sorted(name for name in named if name not in known),
        *latest[len(latest) - max(surplus, 0) :],
        *(f"{name} (pulled)" for name, hidden in known.items() if name not in named and not hidden),
        *((f"{-surplus} without id (pulled)",) if surplus < 0 else ()),
    )
