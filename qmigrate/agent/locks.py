"""One job a guest and host: a lock that lives as long as one process of the job does.

A lock is a flock on a file under `/run/qmigrate/locks`. It belongs to the open file description,
which the guardian and its agents inherit, so whoever of them lives last lets go of it. The file is
removed by its holder; whoever waits for it therefore looks whether the name still means the file.
"""

import fcntl
import os
from pathlib import Path

from qmigrate.agent.places import secure_directory
from qmigrate.core.errors import HostError
from qmigrate.core.job import RUN_DIRECTORY

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def source_key(pid: int, start_ticks: int) -> str:
    """Return the lock's name for a running QEMU: pid and start time name it for ever."""
    return f"pid-{pid}-{start_ticks}"


def destination_key(tag: str) -> str:
    """Return the lock's name for a guest that is to come here, from what its things are marked by.

    Not from what the controllers call it: two that say it differently make, and remove, the same.
    """
    return "guest-" + "".join(c if c.isalnum() or c in "-." else "_" for c in tag)


def take(key: str, job: str) -> int:
    """Take the lock for `job`; return its descriptor, inheritable by none yet.

    Raises:
        HostError: another job holds it, named; or no lock can be made here.
    """
    directory = secure_directory(secure_directory(RUN_DIRECTORY, mode=0o711).as_posix() + "/locks")
    path = directory / key
    while True:
        try:
            descriptor = os.open(path, _FLAGS, 0o600)
        except OSError as exc:
            raise HostError(
                f"the lock {path} cannot be used: {exc.strerror}",
                next_step=f"look at it: ls -l {path}; df /run",
            ) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_only_looked_at(descriptor):
                os.close(descriptor)
                os.sched_yield()  # a look takes microseconds
                continue
            holder = os.pread(descriptor, 64, 0).decode(errors="replace") or "another job"
            os.close(descriptor)
            raise HostError(
                f"the guest is already in job {holder}",
                next_step=f"wait for it, or look at it: qmigrate logs {holder}",
            ) from None
        if _still_named(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, job.encode(), 0)
            return descriptor
        os.close(descriptor)  # its last holder removed it meanwhile


def _is_only_looked_at(descriptor: int) -> bool:
    """Say whether no job holds the lock, but somebody like `is_held` for a moment."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(key: str) -> bool:
    """Say whether a live job holds the lock; changes nothing."""
    try:
        descriptor = os.open(
            Path(RUN_DIRECTORY, "locks", key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        )
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(key: str, descriptor: int) -> None:
    """Remove the lock's file while holding it, and let go."""
    path = Path(RUN_DIRECTORY, "locks", key)
    if _still_named(path, descriptor):
        path.unlink()
    os.close(descriptor)


def _still_named(path: Path, descriptor: int) -> bool:
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
