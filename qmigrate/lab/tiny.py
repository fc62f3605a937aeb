"""The `tiny` guest on this machine: its image as a file, its memory read and judged.

What it is and how its memory is laid out stands in `qmigrate.core.tiny`.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from qmigrate.core.tiny import DEFAULT, Marks, TinySpec, boot_sector, compare_marks, read_marks
from qmigrate.lab.cache import cache_directory, write_atomically

DISK_BYTES = 1 << 20  # SeaBIOS boots no AHCI or virtio disk that is smaller than a cylinder

ReadMemory = Callable[[int, int], Awaitable[bytes]]  # guest-physical address, size in bytes


def write_image(path: Path, spec: TinySpec = DEFAULT) -> Path:
    """Write the image to `path`, whole or not at all; return `path`.

    It serves as ``-kernel`` and, padded to 1 MiB, as any kind of disk.
    """
    write_atomically(path, _content(spec))
    return path


def image_path(spec: TinySpec = DEFAULT) -> Path:
    """Return a file with the image `spec`, made in the cache if it is not there yet."""
    path = cache_directory("images") / f"tiny-{spec.mib}m-{spec.hz}hz.bin"
    try:
        if path.read_bytes() == _content(spec):
            return path
    except FileNotFoundError:
        pass
    return write_image(path, spec)


def _content(spec: TinySpec) -> bytes:
    return boot_sector(spec).ljust(DISK_BYTES, b"\0")


async def verify(
    read: ReadMemory, spec: TinySpec = DEFAULT, *, before: Marks | None = None
) -> Marks:
    """Read the memory of a *stopped* guest by `read` and judge it.

    `read` is QMP's ``pmemsave`` as a rule. With `before`, what was seen of the same guest earlier,
    a guest that went back is a problem as well. The result's `problem` is empty if all is well.
    """
    marks = read_marks(await read(*spec.region), spec)
    problem = compare_marks(before, marks) if before else marks.problem
    return Marks(marks.passes, marks.step_at, problem)
