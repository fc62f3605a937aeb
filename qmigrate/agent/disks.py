"""Whether two hosts have the same image: a file left beside it by one is seen by the other.

Equal paths and sizes prove nothing. A nonce beside the image proves a shared directory, equal
inodes then the same file. A block device has no directory of its own: the identifier that its
hardware or device-mapper reports must agree.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import trio

from qmigrate.agent.requests import (
    DiskProof,
    DiskProofs,
    ProveDisks,
    SeeDisks,
)
from qmigrate.agent.server import AgentContext

NONCE_PREFIX = ".qmigrate-"
_NONCE = re.compile(rf"{re.escape(NONCE_PREFIX)}[0-9a-f]{{16}}")
LOOK_DEADLINE_S = 10.0  # for a stat on a store that may hang (a hard NFS mount does for ever)


async def prove_disks(ctx: AgentContext, request: ProveDisks) -> NoReturn:
    """Leave nonces, tell them, and take them away when the call is cancelled."""
    with ExitStack() as stack:
        proofs = [stack.enter_context(_nonce_beside(path)) for path in request.paths]
        proofs += [describe(path) for path in request.files]
        await ctx.note(DiskProofs(tuple(proofs)))
        await trio.sleep_forever()


async def see_disks(_ctx: AgentContext, request: SeeDisks) -> DiskProofs:
    """Look for what the peer left; a store that hangs is a problem of that image alone."""
    seen = []
    for proof in request.proofs:
        with trio.move_on_after(LOOK_DEADLINE_S):
            seen.append(await trio.to_thread.run_sync(_look_for, proof, abandon_on_cancel=True))
            continue
        what = f"its storage did not answer within {LOOK_DEADLINE_S:g} s"
        seen.append(DiskProof(proof.path, problem=what))
    return DiskProofs(tuple(seen))


def describe(path: str) -> DiskProof:
    """Return size and identity of a file, directory or block device; missing: both None."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - a path from a command line, kept as it is
        if stat.S_ISDIR(facts.st_mode):
            return DiskProof(path, size_bytes=0, identity="directory")
        if stat.S_ISBLK(facts.st_mode):
            with open(path, "rb") as device:  # noqa: PTH123
                size = device.seek(0, os.SEEK_END)
            return DiskProof(path, size_bytes=size, identity=_device_identity(facts.st_rdev))
    except FileNotFoundError:
        return DiskProof(path)
    except OSError as exc:
        return DiskProof(path, problem=exc.strerror or str(exc))
    return DiskProof(path, size_bytes=facts.st_size, identity=f"inode {facts.st_ino}")


def _device_identity(device: int) -> str | None:
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for name in ("dm/uuid", "wwid", "device/wwid", "device/serial", "serial"):
        try:
            text = (base / name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        if text:
            return f"{name} {text}"
    return None


@contextmanager
def _nonce_beside(path: str) -> Iterator[DiskProof]:
    proof = describe(path)
    if proof.problem or proof.size_bytes is None or not (proof.identity or "").startswith("inode"):
        yield proof
        return
    name = f"{NONCE_PREFIX}{secrets.token_hex(8)}"
    beside = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
    directory = -1
    try:
        # Held, so that the file goes from where it was made: the directory may be anybody's.
        directory = os.open(beside, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=directory))
    except OSError as exc:
        if directory >= 0:
            os.close(directory)
        yield DiskProof(path, problem=f"no file can be made beside it: {exc.strerror}")
        return
    try:
        yield DiskProof(path, name, proof.size_bytes, proof.identity)
    finally:
        with suppress(FileNotFoundError):  # somebody tidied up
            os.unlink(name, dir_fd=directory)
        os.close(directory)


def _look_for(proof: DiskProof) -> DiskProof:
    here = describe(proof.path)
    if here.problem or here.size_bytes is None:
        return here
    seen = None
    if proof.nonce is not None and _NONCE.fullmatch(proof.nonce):  # "." is everywhere
        directory = os.path.dirname(os.path.realpath(proof.path))  # noqa: PTH120
        seen = os.path.exists(os.path.join(directory, proof.nonce))  # noqa: PTH110, PTH118
    return DiskProof(proof.path, proof.nonce, here.size_bytes, here.identity, None, seen)
