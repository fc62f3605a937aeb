"""A way to run commands on a host: over SSH, or on this machine without.

Over SSH by paramiko, which is the quicker; by the system's ssh where only that can do what the
user's configuration asks, or where the user says so. Every `Session` does one thing, `run(argv)`.
Errors are `HostError`s with phase "connect".
"""

import shlex
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import trio

from qmigrate.controller.known_hosts import KnownKeys, find_known_keys, only_by_authority
from qmigrate.controller.openssh import SshConfig, needs_openssh, proxy_argv, resolve
from qmigrate.controller.openssh_session import OpensshSession
from qmigrate.controller.streams import ChannelStream, CommandStream, ProcessStream
from qmigrate.controller.timings import LoginTimings
from qmigrate.core.errors import HostError, NeedsOpensshError, QmigrateError, UnreachableError
from qmigrate.core.model import HostSpec, SshClient

if TYPE_CHECKING:
    from qmigrate.controller.login import Connection

CONNECT_DEADLINE_S = 10  # to a TCP connection, unless ConnectTimeout says otherwise
CHANNEL_DEADLINE_S = 20  # sshd forks and starts the login shell
KEEPALIVE_S = 5  # between questions
KEEPALIVE_ANSWER_S = 15  # a host that says nothing for so long is taken for dead
LAST_WORDS_S = 1  # a proxy that has just died still has something to say


class Session(Protocol):
    """A host on which commands can be run."""

    timings: LoginTimings

    async def run(self, argv: Sequence[str]) -> CommandStream:
        """Start `argv`; the caller closes the stream."""

    def why_lost(self) -> str | None:
        """Why the connection ended, if it did and we know."""


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the one error in a nursery's group as itself; cancellations beside it are noise."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = list(_leaves(group))
        errors = [exc for exc in found if not isinstance(exc, trio.Cancelled)]
        if len(errors) == 1:
            raise errors[0] from errors[0].__cause__
        if errors and all(isinstance(exc, QmigrateError) for exc in errors):
            raise errors[0] from group
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


class LocalSession:
    """This machine, by processes of our own."""

    timings = LoginTimings()

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def run(self, argv: Sequence[str]) -> CommandStream:
        """Start `argv` in a session of its own: Ctrl-C in the terminal is for us, not for it."""
        pipe = subprocess.PIPE
        process = await trio.lowlevel.open_process(
            list(argv), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        stream = ProcessStream(process)
        self._nursery.start_soon(stream.drain)
        return stream

    def why_lost(self) -> str | None:
        """Return None: there is no connection to lose."""
        return None


class SshSession:
    """A host at the other end of one SSH connection."""

    def __init__(self, conf: SshConfig, connection: "Connection", timings: LoginTimings) -> None:
        self._conf = conf
        self._connection = connection
        self.timings = timings
        self._lost: str | None = None

    async def run(self, argv: Sequence[str]) -> CommandStream:
        """Start `argv` through the login shell there."""
        import paramiko

        def start() -> "paramiko.Channel":
            channel: paramiko.Channel = self._connection.open_session(timeout=CHANNEL_DEADLINE_S)
            channel.settimeout(CHANNEL_DEADLINE_S)
            channel.exec_command(shlex.join(argv))
            return channel

        try:
            channel = await trio.to_thread.run_sync(start, abandon_on_cancel=True)
        except (paramiko.SSHException, EOFError, OSError) as exc:
            what = f"{self._conf.hostname} starts no command for {self._conf.user}: {exc}"
            raise UnreachableError(what, phase="connect") from exc
        return ChannelStream(channel)

    def why_lost(self) -> str | None:
        """Why the connection ended, if we know."""
        return self._lost

    async def watch(self) -> None:
        """Close the connection once the host has been silent for `KEEPALIVE_ANSWER_S`.

        paramiko's own keepalive wants no answer, so a dead host would be noticed by TCP only,
        after a quarter of an hour.
        """
        while self._connection.is_active():
            await trio.sleep(KEEPALIVE_S)
            with trio.move_on_after(KEEPALIVE_ANSWER_S) as scope:
                await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
            if scope.cancelled_caught:
                self._lost = f"no sign of life for {KEEPALIVE_ANSWER_S} s"
                self._connection.close()

    def _ask(self) -> None:
        import paramiko

        try:
            self._connection.global_request("keepalive@openssh.com", wait=True)
        except (paramiko.SSHException, EOFError, OSError):
            return  # its end is seen by is_active


@asynccontextmanager
async def open_session(spec: HostSpec) -> AsyncIterator[Session]:
    """Yield a session on the host; whatever was opened is closed at the end."""
    with one_error():
        async with trio.open_nursery() as nursery:
            try:
                if spec.ssh is None:
                    yield LocalSession(nursery)
                else:
                    async with _open_ssh(spec.ssh, spec, nursery) as session:
                        yield session
            except HostError as exc:
                raise exc.at(host=spec.name) from exc.__cause__
            finally:
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_ssh(
    destination: str, spec: HostSpec, nursery: trio.Nursery
) -> AsyncIterator[Session]:
    began = perf_counter()
    client = spec.ssh_client
    if client is SshClient.OPENSSH:
        conf = await resolve(destination, spec.ssh_config)
        yield OpensshSession(conf, nursery, perf_counter() - began)
        return
    async with AsyncExitStack() as stack:
        session: Session
        try:
            conf, known, reason = await _prepare(destination, spec)
            if reason:
                what = f"the ssh configuration of {destination} wants {reason}"
                fix = "leave it to the system's ssh: --ssh openssh"
                raise NeedsOpensshError(what, phase="connect", next_step=fix)
            by_paramiko = _by_paramiko(conf, known, nursery, began)
            session = await stack.enter_async_context(by_paramiko)
        except NeedsOpensshError:
            if client is SshClient.PARAMIKO:
                raise
            session = OpensshSession(conf, nursery, perf_counter() - began)
        yield session


@asynccontextmanager
async def _by_paramiko(
    conf: SshConfig, known: KnownKeys, nursery: trio.Nursery, began: float
) -> AsyncIterator[SshSession]:
    resolved = perf_counter()
    async with (
        _transport_socket(conf, nursery) as (sock, proxy),
        _secure(sock, conf, known, proxy) as connection,
    ):
        connected = perf_counter()
        await _log_in(connection, conf)
        done = perf_counter()
        timings = LoginTimings(resolved - began, connected - resolved, done - connected)
        session = SshSession(conf, connection, timings)
        nursery.start_soon(session.watch)
        yield session


async def _prepare(destination: str, spec: HostSpec) -> tuple[SshConfig, KnownKeys, str | None]:
    """Read the configuration while paramiko is being imported, which takes longer than a login.

    Returns also what only OpenSSH can do of it; then the import is not waited for.
    """

    def load() -> None:
        import qmigrate.controller.login  # noqa: F401

    known = KnownKeys(())
    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.to_thread.run_sync, load, abandon_on_cancel=True))
            conf = await resolve(destination, spec.ssh_config)
            # A master is a reason for choosing, none for refusing.
            has_master = spec.ssh_client is SshClient.AUTO and await _has_master(conf)
            reason = needs_openssh(conf, has_master=has_master)
            if reason is None:
                known = await find_known_keys(conf)
                if only_by_authority(known):
                    reason = "a certificate authority to prove the host"
            if reason:
                nursery.cancel_scope.cancel()
    return conf, known, reason


async def _has_master(conf: SshConfig) -> bool:
    """Tell whether a socket is where a ControlMaster would listen; a dead one ssh passes over."""
    return bool(conf.control_path) and await trio.Path(conf.control_path or "").is_socket()


@asynccontextmanager
async def _transport_socket(
    conf: SshConfig, nursery: trio.Nursery
) -> AsyncIterator[tuple[socket.socket, ProcessStream | None]]:
    """Yield a blocking socket that reaches the host's sshd, and the proxy behind it."""
    argv = proxy_argv(conf)
    if argv is None:
        sock = await _dial(conf)
        try:
            yield sock, None
        finally:
            sock.close()
        return
    # A socketpair, not pipes: its end is an end for paramiko too.
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await trio.lowlevel.open_process(
                list(argv),
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                start_new_session=True,  # without a terminal it cannot ask for a password
            )
        stream = ProcessStream(process)
        nursery.start_soon(stream.drain)
        try:
            yield ours, stream
        finally:
            ours.close()
            await stream.aclose()


async def _addresses(conf: SshConfig) -> list[str]:
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(conf.address_family)
    if family is None:
        return [conf.hostname]  # open_tcp_stream looks it up and tries all, v6 first
    found = await trio.socket.getaddrinfo(
        conf.hostname, conf.port, family=family, type=socket.SOCK_STREAM
    )
    return [str(address[4][0]) for address in found]


async def _dial(conf: SshConfig) -> socket.socket:
    limit = conf.connect_timeout_s or CONNECT_DEADLINE_S
    where = f"{conf.hostname} port {conf.port}"
    look = f"check the name and the port: ssh -G {conf.destination}"
    error: OSError | None = None
    with trio.move_on_after(limit):
        try:
            for address in await _addresses(conf):
                try:
                    stream = await trio.open_tcp_stream(
                        address, conf.port, local_address=conf.bind_address
                    )
                except OSError as exc:
                    error = exc
                else:
                    return _plain(stream.socket)
        except OSError as exc:
            error = exc
    if isinstance(error, socket.gaierror):
        what = f"the name {conf.hostname} is not known: {error.strerror}"
        raise UnreachableError(what, phase="connect", next_step=look) from error
    if error:
        raise UnreachableError(
            f"{where}: {_why(error)}", phase="connect", next_step=look
        ) from error
    raise UnreachableError(f"{where}: no answer within {limit} s", phase="connect", next_step=look)


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """Return a blocking standard socket; trio's own is closed."""
    plain = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    plain.setblocking(True)
    return plain


def _why(error: OSError) -> str:
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    inner = cause if isinstance(cause, OSError) else error
    return inner.strerror or str(inner)


@asynccontextmanager
async def _secure(
    sock: socket.socket, conf: SshConfig, known: KnownKeys, proxy: ProcessStream | None
) -> AsyncIterator["Connection"]:
    """Yield a connection to the proved host, nobody logged in yet."""
    from qmigrate.controller.login import Connection, shake_hands

    connection = Connection(sock)
    connection.daemon = True
    try:
        try:
            await trio.to_thread.run_sync(
                shake_hands, connection, conf, known, abandon_on_cancel=True
            )
        except UnreachableError as exc:
            if proxy is None:
                raise
            with trio.move_on_after(LAST_WORDS_S):
                await proxy.drained.wait()
            what = f"{exc.problem.what} (by way of: {shlex.join(proxy_argv(conf) or ())})"
            words = proxy.last_words() or None
            raise UnreachableError(what, phase="connect", last_words=words) from exc.__cause__
        yield connection
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.close)


async def _log_in(connection: "Connection", conf: SshConfig) -> None:
    from qmigrate.controller.login import log_in

    await trio.to_thread.run_sync(log_in, connection, conf, abandon_on_cancel=True)
