"""Have both hosts the same images? Evidence of both → findings for preflight.

What the guest writes to must be one and the same file; what it only reads has to be there, and as
long. Equal paths and sizes prove nothing (`agent/disks.py` says how evidence is made).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qmigrate.core.model import Disk, Finding, Severity


@dataclass(frozen=True, slots=True)
class ImageEvidence:
    """An image or file as both hosts see it; None: not there, or could not be asked."""

    path: str
    writable: bool
    source_size_bytes: int | None
    destination_size_bytes: int | None
    shared: bool | None  # a nonce left beside it on one host was seen on the other
    same_identity: bool | None  # inode or device serial agree
    problem: str | None = None  # why something could not be asked


def judge(images: Iterable[ImageEvidence], *, host: str) -> Iterator[Finding]:
    """Writable images are the same file on both hosts; the others are there, and as long."""
    for image in images:
        if image.problem is not None:
            rule = "disk-not-shared" if image.writable else "image-missing"
            yield Finding(
                rule,
                Severity.UNKNOWN,
                host,
                f"{image.path} could not be looked at: {image.problem}",
                "make it readable for root on both hosts",
            )
        elif image.destination_size_bytes is None:
            rule = "disk-not-shared" if image.writable else "image-missing"
            yield Finding(
                rule,
                Severity.BLOCKER,
                host,
                f"{image.path} is not there",
                "put images on storage that both hosts mount at the same path"
                if image.writable
                else "copy it there",
            )
        elif image.writable:
            yield from _shared(host, image)
        elif image.source_size_bytes != image.destination_size_bytes:
            yield Finding(
                "image-missing",
                Severity.BLOCKER,
                host,
                f"{image.path} has {image.destination_size_bytes} bytes there, "
                f"{image.source_size_bytes} on the source",
                "copy it there again",
            )


def _shared(host: str, image: ImageEvidence) -> Iterator[Finding]:
    if (
        image.shared
        and image.same_identity
        and (image.source_size_bytes == image.destination_size_bytes)
    ):
        return
    if image.shared is None or image.same_identity is None:
        why, severity = "that could not be proved", Severity.UNKNOWN
    elif not image.shared:
        why, severity = "a file left beside it is not seen there", Severity.BLOCKER
    else:
        why, severity = "it is another file there (size or inode differ)", Severity.BLOCKER
    yield Finding(
        "disk-not-shared",
        severity,
        host,
        f"the guest writes to {image.path}, and both hosts must have the same file: {why}",
        "put it on storage that both hosts mount; local disks cannot be moved yet",
    )


def writable_disks(disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Return the disks that the guest writes to and that are files or devices."""
    return tuple(disk for disk in disks if disk.path and not disk.read_only)
