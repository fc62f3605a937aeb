"""A session by the system's `ssh`, for what paramiko cannot do: certificates, tokens, Kerberos…

Each command is one `ssh` that reads the user's own configuration; ours adds only what makes it
safe to run unseen. A ControlMaster that is there is used, none is ever started: it would stay.
Whether the login came off is known from the command itself, which first says a word that nobody
can guess, and from ssh's own log, which goes to a memfd and not through the host's stderr.
"""

import fcntl
import os
import secrets
import shlex
import signal
import struct
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import trio

from qmigrate.controller.known_hosts import find_known_keys
from qmigrate.controller.openssh import (
    UNKNOWN_HOST_ACCEPTED,
    SshConfig,
    capture,
    expand_path,
)
from qmigrate.controller.ssh_log import SshLog, explain, read_log, starts_no_command, why_lost
from qmigrate.controller.streams import END_DEADLINE_S, READ_BYTES, ProcessStream, Tail
from qmigrate.controller.timings import LoginTimings
from qmigrate.core.errors import LoginError, NeedsOpensshError, QmigrateError, UnreachableError

CONNECT_DEADLINE_S = 10  # ConnectTimeout, unless the user's own: to the server's banner
LOGIN_DEADLINE_S = 90  # in all; a token may wait for a touch, an ssh-agent for a confirmation
KEEPALIVE_S = 5  # ServerAliveInterval, whole seconds
KEEPALIVES = 3  # ServerAliveCountMax: a host silent for 15 s is taken for dead
HANG_UP_S = 2  # from the end of its stdin to ssh's own end; the command there ends by itself
LOG_BYTES = 1 << 20  # of ssh's log that we read; a login writes 5 KB

_OPTIONS = (
    "BatchMode=yes",  # asks for no password and no passphrase
    "LogLevel=DEBUG1",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "UpdateHostKeys=no",  # known_hosts is the user's
    f"ServerAliveInterval={KEEPALIVE_S}",
    f"ServerAliveCountMax={KEEPALIVES}",
)


def ssh_argv(conf: SshConfig, log: str, command: str) -> tuple[str, ...]:
    """Return the ssh command line; what the user's configuration says of trust is kept or hardened.

    StrictHostKeyChecking=no would let a changed key pass, so it becomes accept-new.
    """
    options = list(_OPTIONS)
    if conf.strict in UNKNOWN_HOST_ACCEPTED:
        options.append("StrictHostKeyChecking=accept-new")
    if not conf.connect_timeout_s:
        options.append(f"ConnectTimeout={CONNECT_DEADLINE_S}")
    settings = [word for option in options for word in ("-o", option)]
    file = ("-F", conf.file) if conf.file else ()
    # -T -a -x -e none: no terminal, no agent, no X11, no escape character in our bytes
    flags = ("-T", "-a", "-x", "-e", "none")
    return ("ssh", *file, "-E", log, *flags, *settings, "--", conf.destination, command)


class OpensshStream(ProcessStream):
    """A command behind one ssh. Its last words are the command's own, once that has begun."""

    def __init__(self, process: trio.Process, log_fd: int, word: str) -> None:
        super().__init__(process)
        self._log_fd = log_fd
        self._word = word.encode() + b"\n"
        self._before = bytearray()
        self._log: SshLog | None = None
        self.greeted = trio.Event()  # the command has begun

    async def drain(self) -> None:
        """Read stderr until it ends; what stands before the command's first word is set apart."""
        assert self._process.stderr  # noqa: S101 - we made it with a pipe
        async with self._process.stderr as stderr:
            async for chunk in stderr:
                self._take(bytes(chunk))
        self.drained.set()

    def _take(self, chunk: bytes) -> None:
        if self.greeted.is_set():
            self._tail.add(chunk)
            return
        self._before += chunk
        before, found, after = self._before.partition(self._word)
        if found:
            self._tail.add(bytes(after))
            self._before = before
            self.greeted.set()
        del self._before[: -2 * READ_BYTES]

    def before(self) -> str:
        """What came on stderr before the command began: a banner, a login shell's, a proxy's."""
        tail = Tail()
        tail.add(self._before)
        return tail.text()

    def last_words(self) -> str:
        """The end of the command's stderr so far."""
        return super().last_words() if self.greeted.is_set() else self.before()

    def log(self) -> SshLog:
        """What ssh has said of itself so far."""
        if self._log is not None:
            return self._log
        return read_log(os.pread(self._log_fd, LOG_BYTES, 0).decode(errors="replace"))

    async def settled(self) -> None:
        """Wait until the command has begun, has printed something, or ssh has ended."""
        async with trio.open_nursery() as nursery:

            async def greeted() -> None:
                await self.greeted.wait()
                nursery.cancel_scope.cancel()

            async def printed() -> None:
                assert isinstance(self._process.stdout, trio.lowlevel.FdStream)  # noqa: S101
                fd = self._process.stdout.fileno()
                await trio.lowlevel.wait_readable(fd)
                (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
                if waiting:  # else it is the end
                    nursery.cancel_scope.cancel()

            async def ended() -> None:
                await self.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(greeted)
            nursery.start_soon(printed)
            nursery.start_soon(ended)

    def has_ended(self) -> bool:
        """Tell whether ssh has ended."""
        return self._process.returncode is not None

    async def wait(self) -> int | None:
        """Wait for its end; the command's status, None if ssh ended without one."""
        status = await super().wait()
        if status is None or status < 0:
            return None
        if status == 255 and self.log().status != 255:  # ssh's own word for "it failed"
            return None
        return status

    async def aclose(self) -> None:
        """Hang up, and end ssh and whatever proxy it runs."""
        with trio.CancelScope(shield=True):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    await pipe.aclose()
            if self._log is None:
                await self._end()
                self._log = self.log()
                os.close(self._log_fd)
        await trio.lowlevel.checkpoint()

    async def _end(self) -> None:
        """End ssh and its group. Not reaped before that, so the group's number is still its own."""
        if self._process._proc.returncode is not None:
            return  # reaped: it ended by itself, and ended its proxy
        pidfd = os.pidfd_open(self._process.pid)
        try:
            if self.greeted.is_set():  # else nobody is in: nothing to say goodbye to
                for limit_s, signum in ((HANG_UP_S, signal.SIGTERM), (END_DEADLINE_S, None)):
                    with trio.move_on_after(limit_s):
                        await trio.lowlevel.wait_readable(pidfd)
                        break
                    if signum:
                        signal.pidfd_send_signal(pidfd, signum)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        finally:
            os.close(pidfd)
        await self._process.wait()


class OpensshSession:
    """A host reached by the system's ssh, a connection a command."""

    def __init__(self, conf: SshConfig, nursery: trio.Nursery, resolve_s: float) -> None:
        self._conf = conf
        self._nursery = nursery
        self.timings = LoginTimings(resolve_s)
        self._last: OpensshStream | None = None

    async def run(self, argv: Sequence[str]) -> OpensshStream:
        """Log in and start `argv`; raises what paramiko's session raises for a failed login."""
        began = perf_counter()
        word = secrets.token_hex(16)
        stream = await self._start(argv, word)
        try:
            with trio.move_on_after(LOGIN_DEADLINE_S) as scope:
                await stream.settled()
            if scope.cancelled_caught:
                what = f"{self._conf.hostname}: no login within {LOGIN_DEADLINE_S} s"
                words = stream.log().text or stream.before() or None
                raise UnreachableError(what, phase="connect", last_words=words)
            log = stream.log()
            if stream.has_ended() and (not log.opened or starts_no_command(log)):
                raise await self._why(stream, log)
        except BaseException:
            await stream.aclose()
            raise
        self.timings = LoginTimings(self.timings.resolve_s, 0.0, perf_counter() - began)
        self._last = stream
        return stream

    async def _start(self, argv: Sequence[str], word: str) -> OpensshStream:
        # `sh -c` for any login shell's sake: csh knows no >&2.
        begin = ("sh", "-c", 'echo "$0" >&2; exec "$@"', word, *argv)
        log_fd = os.memfd_create("ssh-log")
        try:
            pipe = subprocess.PIPE
            process = await trio.lowlevel.open_process(
                ssh_argv(self._conf, f"/proc/{os.getpid()}/fd/{log_fd}", shlex.join(begin)),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,  # without a terminal it cannot ask for a password
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except FileNotFoundError as exc:
            os.close(log_fd)
            what = "ssh is not installed here"
            fix = "install the OpenSSH client"
            raise NeedsOpensshError(what, phase="connect", next_step=fix) from exc
        except BaseException:
            os.close(log_fd)
            raise
        stream = OpensshStream(process, log_fd, word)
        self._nursery.start_soon(stream.drain)
        return stream

    async def _why(self, stream: OpensshStream, log: SshLog) -> QmigrateError:
        conf = self._conf
        known = await find_known_keys(conf)
        limit_s = conf.connect_timeout_s or CONNECT_DEADLINE_S
        stderr = stream.before()
        error = explain(log, conf, known, stderr=stderr, limit_s=limit_s)
        if isinstance(error, LoginError) and (locked := await _locked(conf)):
            return explain(log, conf, known, stderr=stderr, locked=locked, limit_s=limit_s)
        return error

    def why_lost(self) -> str | None:
        """Why the last connection ended, if ssh has said so."""
        if self._last is None:
            return None
        return why_lost(self._last.log(), silence_s=KEEPALIVE_S * KEEPALIVES)


async def _locked(conf: SshConfig) -> tuple[str, ...]:
    """Return the key files that need a passphrase: ssh is silent about them when it may not ask."""
    found = []
    for text in conf.identity_files:
        try:
            path = expand_path(text, conf)
        except NeedsOpensshError:
            continue  # a token that only ssh itself can replace
        if await trio.Path(path).is_file():
            status, _, words = await capture(("ssh-keygen", "-y", "-P", "", "-f", path))
            if status and "incorrect passphrase" in words:
                found.append(path)
    return tuple(found)
