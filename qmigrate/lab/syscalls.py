"""System calls that Python 3.11 lacks, and ways to know which process lives.

A lab trusts no pid file: a process proves that it lives by a POSIX record lock on a file of the
lab's directory. The kernel tells who holds it (`holder`) and frees it when the process dies.
"""

import ctypes
import fcntl
import os
import select
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from qmigrate.core.errors import HostError

# <linux/sched.h>
CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# <sys/mount.h>
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15

_FLOCK: Final = "hh4xqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, pid
_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` (unshare(2)); CLONE_NEWPID is for the next child."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter namespaces of a pidfd, or the one namespace a descriptor names (setns(2)).

    Acts on the calling thread. CLONE_NEWPID is for its next children only; CLONE_NEWNS needs
    `unshare(CLONE_FS)` first.
    """
    _check(_libc.setns(descriptor, flags), "setns")


def mount(
    source: str | Path, target: str | Path, kind: str | None, flags: int = 0, options: str = ""
) -> None:
    """Mount as mount(2) does; raises `OSError` that names the target."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() if kind else None,
        ctypes.c_ulong(flags), options.encode() or None,
    )  # fmt: skip
    _check(result, str(target))


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Make `source` appear at `target` as well."""
    mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent dies (prctl(2)); the caller checks that it lives still."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")


def set_process_name(name: str) -> None:
    """Set what ``ps -o comm`` shows; the kernel keeps 15 bytes."""
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0), "prctl")


def hold(descriptor: int) -> None:
    """Take the record lock that says "I live"; raises `BlockingIOError` if another one does.

    Closing any other descriptor of the same file gives it up (fcntl(2)): open the file once.
    """
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder(path: Path) -> int | None:
    """Return the pid that holds the record lock of `path`, None if nobody does or no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return pid if kind != fcntl.F_UNLCK else None


def open_holder(path: Path) -> int | None:
    """Return a pidfd of the process that holds the record lock of `path`, None if nobody does."""
    while (pid := holder(path)) is not None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue  # it died meanwhile, and its lock with it
        if holder(path) == pid:  # else the number was another's already
            return descriptor
        os.close(descriptor)
    return None


def wait_for_end(pidfd: int, deadline_s: float) -> bool:
    """Wait until the process of `pidfd` has ended; False when `deadline_s` passed first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(deadline_s * 1000))


def send_signal(pidfd: int, signum: signal.Signals) -> None:
    """Signal the process of `pidfd`; one that has ended is no error."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return


def flock(descriptor: int, deadline_s: float, what: str) -> None:
    """Take an exclusive flock(2) on `descriptor`, which must stay open for `deadline_s`.

    Raises `HostError` with `what` after `deadline_s`. flock(2) knows no deadline of its own, so a
    thread waits; when it is given up, the lock goes with the descriptor.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        own = os.dup(descriptor)  # the caller may close its own when the deadline has passed

        def wait() -> None:
            try:
                fcntl.flock(own, fcntl.LOCK_EX)
            finally:
                os.close(own)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(deadline_s)
        if waiter.is_alive():
            raise HostError(f"{what} for {deadline_s:g} s") from None


def in_thread(body: Callable[[], _T]) -> _T:
    """Run `body` in a thread whose namespaces it may change; return or raise what it does.

    The thread ends with it, so nobody else ever runs in what it entered.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(body())
        except BaseException as exc:  # noqa: BLE001  carried over to the caller, whatever it is
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
