"""A program on a pseudo-terminal, driven as a person would: read what it says, then type."""

import contextlib
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from fcntl import ioctl
from pathlib import Path

DEADLINE_S = 30.0  # the slowest shell starts in 2 s here; a loaded machine gets its time


class Terminal:
    """The master side of a pty and the process on the other."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self._fd, self.text = pid, fd, ""

    def type(self, text: str) -> None:
        """Send key strokes."""
        os.write(self._fd, text.encode())

    def read_until(self, pattern: str) -> str:
        """Return what came since the last call up to `pattern`; AssertionError at the deadline."""
        end = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.text)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} did not come, only {self.text!r}")
            self.text += self._read()
        said, self.text = self.text[: found.end()], self.text[found.end() :]
        return said

    def wait(self) -> int:
        """Read to the end and return the exit status, negative for a signal."""
        with contextlib.suppress(EOFError):
            while select.select([self._fd], [], [], DEADLINE_S)[0]:
                self.text += self._read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> str:
        try:
            return os.read(self._fd, 65536).decode(errors="replace")
        except OSError as exc:  # EIO: nobody has the other side open any more
            raise EOFError(self.text) from exc


@contextlib.contextmanager
def on_a_terminal(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 100
) -> Iterator[Terminal]:
    """Run `argv` on a terminal of its own; it is killed, if need be, and reaped at the end."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606
    ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        yield Terminal(pid, fd)
    finally:
        os.close(fd)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
