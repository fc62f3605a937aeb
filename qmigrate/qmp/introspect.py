"""What a QEMU is, asked of itself: enough to list a guest, and to prove that two are alike.

Works on a running guest and on one that waits in ``-S -incoming defer``: both have all their
devices. About a millisecond a question, so nothing is asked that is not used.

Places must not depend on names that one side may lack. A device is where its bus is, and a bus is
where the device is that owns it, up to the board::

    pci 0000:00:04.0                 on the root bus
    pci 0000:00:05.0/00.0            on the bus of a root port
    pci 0000:00:06.0/scsi.0 0:0:3    on a SCSI controller: channel, lun, id
    pci 0000:00:1f.2/ide.2 0         on the third port of the board's AHCI
    isa 3f8                          a serial port of the board

PCI bus numbers are no use: the guest's firmware gives them, and on the destination has not yet.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmigrate.core.errors import CommandError, MonitorGarbledError
from qmigrate.core.model import CpuShape, Device, Disk, Nic, RamBlock, RunState, Shape
from qmigrate.qmp.migration import Qemu

_UNSET_UUID = "00000000-0000-0000-0000-000000000000"
_ROOT = "0000:00:"  # of the machine's own PCI bus
_SCSI = frozenset(("channel", "lun", "scsi-id"))
_ADDRESSES = {"iobase": "isa", "port": "usb", "unit": "ide", "nr": "port", "slot": "dimm"}
_REGISTERS = ("EAX", "EBX", "ECX", "EDX")  # QAPI X86CPURegister32, those that feature words use
_RAMBLOCK = re.compile(
    r"\s*(?P<name>\S.*?)\s+[\d.]+ [KMGT]?i?B\s+0x[0-9a-f]+\s+0x[0-9a-f]+\s+0x(?P<size>[0-9a-f]+)\s"
)
_NET_CLIENT = re.compile(
    r"(?P<peer> \\ )?(?:(?P<port>\S+): )?(?P<name>\S+): "
    r"index=(?P<queue>\d+),type=(?P<type>[^,]+),?(?P<rest>.*)"
)


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What `core.model.Guest` needs of the monitor; what is missing the agent finds in /proc."""

    name: str | None
    uuid: str | None
    state: RunState
    memory_bytes: int  # with what is hot-plugged
    vcpus: int
    qemu_version: str
    accelerator: str | None
    machine: str  # versioned
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]  # `tap` is None where QEMU was given a descriptor, `bridge` always
    tap_fds: tuple[tuple[str, int], ...] = ()  # netdev's id, number of the descriptor in QEMU


async def guest_facts(qemu: Qemu) -> GuestFacts:
    """Return what QEMU says of its guest.

    Raises as `Monitor.execute`; `MonitorGarbledError` for answers that cannot be understood.
    """
    ask = qemu.monitor.execute
    with _understood(qemu):
        uuid = (await ask("query-uuid"))["UUID"]
        memory = await ask("query-memory-size-summary")
        text = await ask("human-monitor-command", {"command-line": "info network"})
        nics, tap_fds = parse_network(text)
        return GuestFacts(
            name=(await ask("query-name")).get("name"),
            uuid=None if uuid == _UNSET_UUID else uuid,
            state=await qemu.status(),
            memory_bytes=memory["base-memory"] + memory.get("plugged-memory", 0),
            vcpus=len(await ask("query-cpus-fast")),
            qemu_version=qemu.version,
            accelerator=await _accelerator(qemu),
            machine=await _machine(qemu),
            disks=tuple([await _disk(qemu, row) for row in await _block_rows(qemu)]),
            nics=nics,
            tap_fds=tap_fds,
        )


async def shape(qemu: Qemu) -> Shape:
    """Return what must equal in two QEMUs before a byte moves; QEMU compares little of it itself.

    A CPU's features are its non-zero CPUID words, each as one number with where it stands: leaf,
    subleaf, register, word. So versions that know more words compare equal where the guest does.
    Raises as `guest_facts`.
    """
    with _understood(qemu):
        tree = await _Tree.of(qemu)
        blocks = [
            (tree.place_of(row.get("qdev") or row["device"]), row["inserted"]["image"])
            for row in await _block_rows(qemu)
        ]
        return Shape(
            qemu_version=qemu.version,
            machine=await _machine(qemu),
            accelerator=await _accelerator(qemu) or "unknown",
            cpus=await _cpus(qemu),
            ram=await _ram(qemu),
            devices=tuple(sorted(tree.devices(), key=lambda device: device.place)),
            macs=await tree.macs(qemu),
            disks=tuple(sorted((place, image["virtual-size"]) for place, image in blocks)),
        )


@contextlib.contextmanager
def _understood(qemu: Qemu) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise MonitorGarbledError(
            f"{qemu.monitor.name}: an answer of QEMU {qemu.version} cannot be understood",
            last_words=repr(exc),
            next_step="report this with the QEMU's version",
        ) from exc


async def _get(qemu: Qemu, path: str, name: str) -> Any:
    return await qemu.monitor.execute("qom-get", {"path": path, "property": name})


async def _list(qemu: Qemu, path: str) -> dict[str, str]:
    """Return name and type of the properties of the object at `path`."""
    rows = await qemu.monitor.execute("qom-list", {"path": path})
    return {row["name"]: row["type"] for row in rows}


async def _machine(qemu: Qemu) -> str:
    kind: str = await _get(qemu, "/machine", "type")
    return kind.removesuffix("-machine")


async def _accelerator(qemu: Qemu) -> str | None:
    ask = qemu.monitor.execute
    if (await ask("query-kvm"))["enabled"]:
        return "kvm"
    with contextlib.suppress(CommandError):
        return str((await ask("query-accelerators"))["enabled"])  # since 11.0
    with contextlib.suppress(CommandError):
        await ask("x-query-jit")  # refused by all but this one
        return "tcg"
    return None


async def _cpus(qemu: Qemu) -> tuple[CpuShape, ...]:
    cpus = await qemu.monitor.execute("query-cpus-fast")
    shapes = []
    for cpu in sorted(cpus, key=lambda row: row["cpu-index"]):
        path = cpu["qom-path"]
        words = await _get(qemu, path, "feature-words")
        shapes.append(CpuShape(await _get(qemu, path, "type"), feature_words(words)))
    return tuple(shapes)


def feature_words(words: list[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return QOM's `feature-words` as sorted numbers: leaf, subleaf, register and word, packed."""
    return tuple(
        sorted(
            (
                (word["cpuid-input-eax"] << 32 | word.get("cpuid-input-ecx", 0)) << 2
                | _REGISTERS.index(word["cpuid-register"])
            )
            << 32
            | word["features"]
            for word in words
            if word["features"]
        )
    )


async def _ram(qemu: Qemu) -> tuple[RamBlock, ...]:
    text = (await qemu.monitor.execute("x-query-ramblock"))["human-readable-text"]
    return parse_ramblocks(text)


def parse_ramblocks(text: str) -> tuple[RamBlock, ...]:
    """Return the table of `x-query-ramblock` by name; the size is the largest a block may get.

    What is used of a resizable one (ACPI tables) is the guest's and comes with the stream.
    """
    header, *lines = text.splitlines()
    if "Block Name" not in header:
        raise ValueError(f"not a table of RAM blocks: {header!r}")
    blocks = []
    for line in filter(str.strip, lines):
        match = _RAMBLOCK.match(line)
        if match is None:
            raise ValueError(f"not a RAM block: {line!r}")
        blocks.append(RamBlock(match["name"], int(match["size"], 16)))
    return tuple(sorted(blocks, key=lambda block: block.name))


async def _block_rows(qemu: Qemu) -> list[dict[str, Any]]:
    """Return the rows of `query-block` that have a medium and belong to a device of the guest."""
    rows = await qemu.monitor.execute("query-block")
    return [row for row in rows if row.get("inserted") and row.get("qdev")]


async def _disk(qemu: Qemu, row: Mapping[str, Any]) -> Disk:
    inserted, qdev = row["inserted"], row["qdev"]
    share_rw = False
    with contextlib.suppress(CommandError):  # pflash and floppy have no such property
        share_rw = await _get(qemu, qdev, "share-rw") is True
    image, backing = inserted["image"], []
    below = image
    while below := below.get("backing-image"):
        backing.append(file_path(below["filename"]) or below["filename"])
    return Disk(
        device=_device_name(qdev),
        node=inserted.get("node-name"),
        path=file_path(image["filename"]),
        driver=inserted["drv"],
        read_only=inserted["ro"],
        size_bytes=image["virtual-size"],
        backing=tuple(backing),
        share_rw=share_rw,
    )


def _device_name(path: str) -> str:
    """Return a device's id where it has one, else its QOM path."""
    path = path.removesuffix("/virtio-backend")
    return path.removeprefix("/machine/peripheral/")


def file_path(filename: str) -> str | None:
    """Return the host's file or device in an image's `filename`; None for what is none.

    QEMU writes ``json:{…}`` where options say more than a name can.
    """
    if filename.startswith("json:"):
        node = json.loads(filename.removeprefix("json:"))
        while isinstance(node.get("file"), dict):
            node = node["file"]
        path = node.get("filename", node.get("file.filename"))
        return path if isinstance(path, str) else None
    return None if re.match(r"[a-z0-9+]+:", filename) and not filename.startswith("/") else filename


def parse_network(text: str) -> tuple[tuple[Nic, ...], tuple[tuple[str, int], ...]]:
    """Return the NICs and the taps given by descriptor in HMP's ``info network``.

    QMP has no answer for it. A line that says something else is passed over: a NIC without its
    backend is shown without, never with another's.
    """
    nics: list[Nic] = []
    fds: dict[str, int] = {}
    for line in text.splitlines():
        match = _NET_CLIENT.fullmatch(line.rstrip())
        if match is None or match["queue"] != "0":  # the other queues of a NIC say nothing new
            continue
        said = dict(item.partition("=")[::2] for item in match["rest"].split(","))
        if match["type"] == "nic":
            hub = "hub" if match["port"] else None
            model, mac = said.get("model", "?"), said.get("macaddr")
            nics.append(Nic(match["name"], model, mac, match["port"], hub, None, None))
        elif match["peer"] and not match["port"] and nics and nics[-1].netdev is None:
            last = nics[-1]
            nics[-1] = Nic(
                last.device,
                last.model,
                last.mac,
                match["name"],
                match["type"],
                said.get("ifname"),
                None,
            )
            if said.get("fd", "").isdecimal():
                fds[match["name"]] = int(said["fd"])
    return tuple(nics), tuple(fds.items())


@dataclass(frozen=True, slots=True)
class _Node:
    """A device in QOM."""

    path: str
    type: str
    place: str
    properties: frozenset[str]


@dataclass(slots=True)
class _Tree:
    """All devices that the command line, or a hot-plug, may have given a guest."""

    nodes: dict[str, _Node] = field(default_factory=dict)
    _properties: dict[str, frozenset[str]] = field(default_factory=dict)  # by type
    _ordinals: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def of(cls, qemu: Qemu) -> "_Tree":
        tree = cls()
        types: dict[str, str] = {}
        # The board's own, too: -serial, -nic and -vga put their devices there.
        for parent in ("unattached", "peripheral", "peripheral-anon"):
            rows = await _list(qemu, f"/machine/{parent}")
            for name in sorted(rows, key=_natural):
                kind = re.fullmatch(r"child<(.+)>", rows[name])
                if kind and (parent != "unattached" or name.startswith("device[")):
                    types[f"/machine/{parent}/{name}"] = kind[1]
        for path in types:
            await tree._visit(qemu, path, types)
        return tree

    async def _visit(self, qemu: Qemu, path: str, types: Mapping[str, str]) -> None:
        if path in self.nodes:
            return
        kind = types[path]
        try:
            bus = await _get(qemu, path, "parent_bus")
        except CommandError:
            bus = ""  # memory modules are on none
        if path.startswith("/machine/unattached/") and not _is_of_interest(kind, bus):
            return
        if kind not in self._properties:
            self._properties[kind] = frozenset(await _list(qemu, path))
        owner, _, bus_name = bus.rpartition("/")
        owner = owner.removesuffix("/virtio-backend")
        if owner in types:
            await self._visit(qemu, owner, types)
        word, address = await self._address(qemu, path, self._properties[kind])
        parent = self.nodes.get(owner)
        if word == "pci":
            place = f"{parent.place}/{address}" if parent else f"pci {_ROOT}{address}"
        else:
            # A bus is named after its device's id, which the other side may lack: its number stays.
            place = word or _family(bus_name)
            if parent and word != "isa":
                number = re.search(r"\.\d+$", bus_name)
                place = f"{parent.place}/{place}{number[0] if number else ''}"
            if not address:
                self._ordinals[f"{place} {kind}"] += 1
                address = f"{kind} {self._ordinals[f'{place} {kind}']}"
            place = f"{place} {address}"
        self.nodes[path] = _Node(path, kind, place, self._properties[kind])

    async def _address(
        self, qemu: Qemu, path: str, properties: frozenset[str]
    ) -> tuple[str, str | None]:
        """Return the kind of bus, "" where it has no word here, and the address on it if it has."""
        if "addr" in properties and "multifunction" in properties:
            devfn = await _get(qemu, path, "addr")
            return "pci", f"{devfn >> 3:02x}.{devfn & 7}"
        if properties >= _SCSI:
            numbers = [str(await _get(qemu, path, name)) for name in sorted(_SCSI)]
            return "scsi", ":".join(numbers)
        for name, word in _ADDRESSES.items():
            if name in properties:
                value = await _get(qemu, path, name)
                return word, f"{value:x}" if word == "isa" else str(value)
        return "", None

    def devices(self) -> Iterator[Device]:
        return (Device(node.place, node.type) for node in self.nodes.values())

    def place_of(self, path: str) -> str:
        node = self.nodes.get(path.removesuffix("/virtio-backend"))
        return node.place if node else path

    async def macs(self, qemu: Qemu) -> tuple[tuple[str, str], ...]:
        """Return place and MAC of each NIC: the one that its guest uses, where QEMU knows."""
        used = dict(await qemu.rx_filter_macs())
        # A NIC without id is called model.N in the order of creation, as peripheral-anon is.
        unnamed = {
            kind: iter(sorted((n for n in used if re.fullmatch(rf"{kind}\.\d+", n)), key=_natural))
            for kind in {node.type for node in self.nodes.values()}
        }
        macs = []
        for node in self.nodes.values():
            if not {"mac", "netdev"} <= node.properties:
                continue
            name = _device_name(node.path)
            name = next(unnamed[node.type], "") if name.startswith("/") else name
            own = used.get(name) or await _get(qemu, node.path, "mac")
            macs.append((node.place, own))
        return tuple(sorted(macs))


def _family(bus: str) -> str:
    return re.sub(r"\.\d+$", "", bus) or "board"


def _is_of_interest(kind: str, bus: str) -> bool:
    """Of the board's devices, those that a command line adds or removes; not its CPUs and chips."""
    return kind == "hpet" or not re.search(r"(^|/)(sysbus|icc-bus|i2c)?$", bus)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: device[2] before device[10]."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
