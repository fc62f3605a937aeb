"""Real QEMUs of any form: what a test says is the whole command line, and all are gone after it."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from qmigrate.agent import process

READY_DEADLINE_S = 60.0  # two cores shared by many; alone it takes a tenth of a second
QEMU = "/usr/bin/qemu-system-x86_64"
SMALL = ("-m", "32", "-S", "-nodefaults", "-display", "none", "-accel", "tcg")


@contextlib.contextmanager
def open_place() -> Iterator[Path]:
    """Yield a directory that other users' QEMUs may bind sockets in: pytest's own are 0700."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@contextlib.asynccontextmanager
async def odd_qemu(
    directory: Path,
    *words: str,
    executable: str = QEMU,
    argv0: str = QEMU,
    wrap: tuple[str, ...] = (),
    user: str | None = None,
    pass_fds: tuple[int, ...] = (),
) -> AsyncIterator[process.Process]:
    """Start a QEMU in `directory`; yield it when its main loop runs.

    A human monitor on a socket pair says so: the test sees one monitor more, that is no QMP.
    `wrap` is a command that becomes, or starts, what stands after it.
    """
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    ready = ("-chardev", f"socket,id=ready,fd={fd}", "-mon", "ready")
    with ours:
        with theirs:
            child = await trio.lowlevel.open_process(
                [*wrap, argv0, *SMALL, *words, *ready],
                executable=wrap[0] if wrap else executable,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                pass_fds=(fd, *pass_fds),
                user=user,
            )
        try:
            stream = trio.socket.from_stdlib_socket(ours)
            with trio.fail_after(READY_DEADLINE_S):
                # It greets before its devices are made; only the main loop answers.
                await stream.send(b"info status\n")
                said = b""
                while b"VM status" not in said:
                    more = await stream.recv(4096)
                    assert more, f"it ended: {said!r}"
                    said += more
            stream.close()
            yield process.look(child.pid)
        finally:
            with trio.CancelScope(shield=True):
                child.kill()
                await child.wait()


@contextlib.asynccontextmanager
async def daemon_qemu(directory: Path, *words: str) -> AsyncIterator[process.Process]:
    """Start a QEMU that daemonizes: no monitor at all, if the test gives it none."""
    pid_file = directory / "daemon.pid"
    done = await trio.run_process(
        [QEMU, *SMALL, *words, "-daemonize", "-pidfile", str(pid_file)], cwd=directory, check=True
    )
    assert done.returncode == 0
    seen = process.look(int(pid_file.read_text()))
    descriptor = process.open_pidfd(seen.pid, seen.start_ticks)
    try:
        yield seen
    finally:
        with trio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await trio.lowlevel.wait_readable(descriptor)
            os.close(descriptor)
