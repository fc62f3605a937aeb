"""The door: listening sockets for a job's life, and who gets how far through them.

Nobody waits for anybody here: every connection is a task of its own with a limit, at most
`PENDING_LIMIT` of them at once, and when a new one comes the oldest stranger goes. So a crowd of
silent connections cannot keep the peer out, nor memory grow.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from qmigrate.core.errors import LinkError
from qmigrate.core.model import Address
from qmigrate.transport.connection import Connection
from qmigrate.transport.passing import prepare_for_link
from qmigrate.transport.tokens import GREETING

HANDSHAKE_LIMIT_S = 5.0  # TLS and HELLO, or a token's greeting; a LAN needs 5 ms
PENDING_LIMIT = 16  # connections that have not proved themselves
BACKLOG = 64
SAME_PORT_TRIES = 8  # kernel-chosen ports tried until one is free on all addresses
ACCEPT_PAUSE_S = 0.1  # out of descriptors or memory: others must close some first

_TLS_HANDSHAKE = 0x16  # first byte of a TLS record of that kind, RFC 8446 5.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def bind_listeners(
    hosts: Iterable[str], port_range: tuple[int, int] | None
) -> tuple[socket.socket, ...]:
    """Return listening sockets, one a host, on one port for all where one is free on all.

    `hosts` are numeric; one that this machine does not have is left out. Raises `LinkError` if
    none is left, or no port is free.
    """
    failures: dict[str, OSError] = {}
    present = [host for host in dict.fromkeys(hosts) if _is_ours(host, failures)]
    ports = tuple(range(port_range[0], port_range[1] + 1)) if port_range else (0,) * SAME_PORT_TRIES
    for port in ports if len(present) > 1 else ():
        sockets = _bind_all(present, port)
        if len(sockets) == len(present):
            return sockets
        _close(sockets)
    apart = tuple(
        sock for host in present if (sock := _bind_first(host, ports, failures)) is not None
    )
    if not apart:
        where = f" on ports {port_range[0]}-{port_range[1]}" if port_range else ""
        raise LinkError(
            f"cannot listen at {', '.join(hosts) or 'any address'}{where}",
            last_words="; ".join(f"{host}: {exc.strerror}" for host, exc in failures.items()),
            next_step="give addresses of this host (migration_addresses in the inventory), or ports"
            " (port_range) of which one is free",
        )
    return apart


def _is_ours(host: str, failures: dict[str, OSError]) -> bool:
    try:
        _bind(host, 0).close()
    except OSError as exc:
        failures[host] = exc
        return False
    return True


def _bind(host: str, port: int) -> socket.socket:
    six = ":" in host
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare_for_link(sock)  # Linux passes these on to what is accepted
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_all(hosts: Sequence[str], port: int) -> tuple[socket.socket, ...]:
    """Return sockets on one port, as far as it went; port 0: the one that the first is given."""
    sockets: list[socket.socket] = []
    for host in hosts:
        try:
            sock = _bind(host, port)
        except OSError:
            break
        port = sock.getsockname()[1]
        sockets.append(sock)
    return tuple(sockets)


def _bind_first(
    host: str, ports: Iterable[int], failures: dict[str, OSError]
) -> socket.socket | None:
    for port in ports:
        try:
            return _bind(host, port)
        except OSError as exc:
            failures[host] = exc
    return None


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


class Pending:
    """The connections that have not proved themselves, and which of them goes for a new one."""

    def __init__(self, *, limit: int = PENDING_LIMIT) -> None:
        self._limit = limit
        self._scopes: dict[trio.CancelScope, bool] = {}  # oldest first; True: a known address

    def admit(self, *, known: bool) -> trio.CancelScope | None:
        """Return the scope to run the newcomer in; None: no room for a stranger."""
        if len(self._scopes) >= self._limit:
            strangers = [scope for scope, is_known in self._scopes.items() if not is_known]
            if not strangers and not known:
                return None
            oldest = strangers[0] if strangers else next(iter(self._scopes))
            self.remove(oldest)
            oldest.cancel()
        scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_LIMIT_S)
        self._scopes[scope] = known
        return scope

    def remove(self, scope: trio.CancelScope) -> None:
        """Make room: it has proved itself, or it is gone."""
        self._scopes.pop(scope, None)

    def __len__(self) -> int:
        return len(self._scopes)


class Door:
    """Accepts on all listening sockets and sorts by the first byte: TLS, a token, or neither.

    `greet` and `take_token` are given the socket under the handshake's limit; what `greet` returns
    goes to `welcome`, which runs without it. They see to their own errors and never raise.
    The socket is theirs to close, save when they are cancelled by the limit.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        greet: Callable[[trio.socket.SocketType], Awaitable[Connection | None]],
        take_token: Callable[[trio.socket.SocketType], Awaitable[None]],
        welcome: Callable[[Connection], Awaitable[None]],
        is_known: Callable[[str], bool],
    ) -> None:
        self._sockets = [trio.socket.from_stdlib_socket(sock) for sock in sockets]
        self._greet = greet
        self._take_token = take_token
        self._welcome = welcome
        self._is_known = is_known
        self._pending = Pending()
        self.addresses = tuple(Address(*sock.getsockname()[:2]) for sock in sockets)
        self.came_in = 0  # connections from known addresses, ever

    async def serve(self) -> None:
        """Accept until cancelled; the ports stay open until `close`."""
        async with trio.open_nursery() as nursery:
            for listener in self._sockets:
                nursery.start_soon(self._accept, listener, nursery)

    def close(self) -> None:
        """Refuse from now on."""
        for listener in self._sockets:
            listener.close()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, name = await listener.accept()
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    await trio.sleep(ACCEPT_PAUSE_S)
                continue  # the connection was gone before we took it: accept(2), "Error handling"
            known = self._is_known(name[0])
            self.came_in += known
            scope = self._pending.admit(known=known)
            if scope is None:
                sock.close()
            else:
                nursery.start_soon(self._handle, sock, scope)

    async def _handle(self, sock: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        connection: Connection | None = None
        try:
            with scope:
                first = await _peek(sock)
                if first == _TLS_HANDSHAKE:
                    connection = await self._greet(sock)
                elif first == GREETING[0]:
                    await self._take_token(sock)
                    return
        finally:
            self._pending.remove(scope)
            if connection is None:
                sock.close()
        if connection is not None:
            await self._welcome(connection)


async def _peek(sock: trio.socket.SocketType) -> int | None:
    """Return the first byte and leave it there; None: it was closed without one."""
    try:
        first = await sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return None
    return first[0] if first else None
