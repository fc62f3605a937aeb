"""An initramfs made of bytes: no cpio, no root, the same bytes for the same input."""

import gzip
import lzma
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qmigrate.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory of the archive; `mode` carries the type (0o40755, 0o100644)."""

    name: str
    mode: int
    content: bytes = b""


def pack(entries: Iterable[Entry]) -> bytes:
    """Return a cpio archive (newc: kernel Documentation/driver-api/early-userspace/buffer-format).

    Not compressed: an emulated CPU would spend longer on unpacking than QEMU on copying it.
    """
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), special file (2), name, check
        links = 2 if entry.mode & 0o40000 else 1
        numbers = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in numbers) + name
        out += b"\0" * (-len(out) % 4)
        out += entry.content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def load_order(
    wanted: Iterable[str], modules: Mapping[str, bytes], builtin: Collection[str]
) -> list[str]:
    """Return `wanted` and all that they depend on, each after what it needs.

    What is built into the kernel needs no loading; what is neither there nor built in raises
    `UsageError`.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in modules:
            raise UsageError(f"this kernel has no module {name}, and the guest needs it")
        for needed in depends(modules[name]):
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def depends(module: bytes) -> list[str]:
    """Return the names in a module's own ``depends=`` (section .modinfo), with _ for -."""
    _, found, rest = module.partition(b"\0depends=")
    names = rest.partition(b"\0")[0].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def unpacked(content: bytes, suffix: str | None) -> bytes:
    """Return a module's bytes whatever the distribution packs it with."""
    if suffix == ".xz":
        return lzma.decompress(content)
    return gzip.decompress(content) if suffix == ".gz" else content


def is_static(program: bytes) -> bool:
    """Tell whether a 64-bit ELF asks for no interpreter (PT_INTERP): it needs no libraries."""
    if program[:5] != b"\x7fELF\x02":
        return False
    (headers_at,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, headers_at + i * size)[0] for i in range(count)]
    return 3 not in kinds
