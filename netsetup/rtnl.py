"""The kernel's network configuration, asked and changed from trio: one thread, one socket, a queue.

pyroute2 wraps an asyncio loop of its own around every socket, cannot be called from a trio task,
and opens a socket for each thread that touches the object; it takes 150 ms to import. So one
thread imports it when first needed, owns the one `IPRoute` and does what comes through the queue
in that order. The thread lives in the network namespace of the thread that opened the `Rtnl`.

Cancellation: a request that has been queued is carried out and its answer is waited for, as with
`trio.to_thread`; else a caller could not know what to undo. The kernel answers within a
millisecond; `DEADLINE_S` bounds the wait.
"""

import os
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ENODEV, ENOENT, EPERM
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from netsetup.errors import HostError, NetsetupError, RefusedError, SilentKernelError
from netsetup.frames import mac_text, parse_mac
from netsetup.links import (
    Bridge,
    BridgePort,
    Link,
    Message,
    Tap,
    TapSpec,
    bridge_of,
    check_name,
    link_of,
    port_of,
    pvid_of,
)
from netsetup.taps import create_tap, delete_tap, get_link

# A second is a busy host: the rtnl lock is held while whole namespaces are torn down.
DEADLINE_S = 10.0

NUD_REACHABLE = 0x02  # in a bridge: learned, ages
NUD_NOARP = 0x40  # in a bridge: static, stays; pyroute2's own default, 0x80, is "local": swallowed
_NTF_MASTER = 0x04
_AF_BRIDGE = 7
_RTEXT_FILTER_BRVLAN = 0x2

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Request:
    doing: str
    work: Callable[[Any], Any]
    token: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    error: BaseException | None = None


class Rtnl:
    """The netlink thread, an async context manager; methods may be called by many tasks at once.

    They raise `UsageError` for names that cannot be, `RefusedError` with the kernel's errno,
    `SilentKernelError` after `DEADLINE_S`.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = trio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        token = trio.lowlevel.current_trio_token()
        # A daemon: a thread stuck in the kernel must not keep the process from its end.
        self._thread = threading.Thread(
            target=self._serve, args=(token,), name="netsetup-rtnl", daemon=True
        )
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        self._queue.put(None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DEADLINE_S):
            await self._ended.wait()

    async def links(self) -> tuple[Link, ...]:
        """Return every interface of the namespace."""
        return await self._call("list the interfaces", _links)

    async def link(self, name: str) -> Link | None:
        """Return the interface `name`, None if there is none."""
        check_name(name)
        return next((link for link in await self.links() if link.name == name), None)

    async def find_by_alias(self, prefix: str) -> tuple[Link, ...]:
        """Return the interfaces whose alias begins with `prefix`: how ours are found again."""
        return tuple(
            link for link in await self.links() if link.alias and link.alias.startswith(prefix)
        )

    async def bridges(self) -> tuple[Bridge, ...]:
        """Return every bridge with its ports."""
        return await self._call("list the bridges", _bridges)

    async def bridge_port(self, name: str) -> BridgePort | None:
        """Return how a bridge treats the interface `name`; None if it is no bridge's port."""
        check_name(name)
        return await self._call(f"describe port {name}", lambda ip: _bridge_port(ip, name))

    async def create_tap(self, spec: TapSpec) -> Tap:
        """Make a persistent tap in its bridge, up; or finish the one with the same alias.

        Whole or not at all, whatever dies or fails meanwhile. Raises `NoSuchLinkError` without
        the bridge, `HostError` if a tap with this alias is in use in another shape.
        """
        doing = f"make the tap {spec.name or ''} in {spec.bridge}"
        return await self._call(doing, lambda ip: create_tap(ip, spec))

    async def delete_tap(self, name: str, *, alias: str) -> bool:
        """Delete a tap of ours; return False if there is none of that name.

        Raises `NotOursError` unless it is a tap and its alias is exactly `alias`.
        """
        check_name(name)
        return await self._call(f"delete the tap {name}", lambda ip: delete_tap(ip, name, alias))

    async def set_fdb(
        self, mac: str, port: str, *, vlan: int | None = None, static: bool = False
    ) -> None:
        """Make `port`'s bridge send frames for `mac` there, at once, wherever it did before.

        The entry ages and goes with the port's carrier, as if learned: when the guest moves on,
        the bridge forgets by itself. A static one would outlive the carrier on a persistent tap
        and swallow the guest's traffic until it speaks. `static` is for ports that do not learn.
        """
        entry = _fdb_entry(mac, vlan) | {"state": NUD_NOARP if static else NUD_REACHABLE}
        try:
            await self._call(
                f"point {mac} to {port}",
                lambda ip: ip.fdb("replace", ifindex=_index(port), **entry),
            )
        except RefusedError as exc:
            described = await self.bridge_port(port) if exc.errno == EPERM else None
            if described is None or described.forwarding:
                raise
            raise HostError(
                f"{port} is {described.state} in {described.bridge}, so nothing can be behind it",
                next_step="a tap is disabled until a process has it open; under STP a port "
                "listens and learns first",
            ) from exc

    async def del_fdb(self, mac: str, port: str, *, vlan: int | None = None) -> bool:
        """Make `port`'s bridge forget that `mac` is there; return False if it did not know."""
        entry = _fdb_entry(mac, vlan)
        try:
            await self._call(
                f"forget {mac} at {port}",
                lambda ip: ip.fdb("del", ifindex=_index(port), **entry),
            )
        except RefusedError as exc:
            if exc.errno == ENOENT:
                return False
            raise
        return True

    async def fdb_port(self, mac: str, bridge: str, *, vlan: int | None = None) -> str | None:
        """Return the port where `bridge` would send frames for `mac`; None: to all of them."""
        wanted = mac_text(parse_mac(mac))
        return await self._call(
            f"look up {mac} in {bridge}", lambda ip: _fdb_port(ip, wanted, bridge, vlan)
        )

    async def run(self, doing: str, work: Callable[[Any], T]) -> T:
        """Return what `work` makes of the `IPRoute`: for files with netlink calls of their own.

        `doing` completes "the kernel refused to …". All that holds for the methods above holds.
        """
        return await self._call(doing, work)

    async def _call(self, doing: str, work: Callable[[Any], T]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._thread is None or self._closed:
            raise NetsetupError(f"asked to {doing} outside of `async with Rtnl()`")
        request = _Request(doing, work, trio.lowlevel.current_trio_token())
        self._queue.put(request)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DEADLINE_S):
            await request.done.wait()
        if not request.done.is_set():
            raise SilentKernelError(
                f"the kernel did not answer within {DEADLINE_S:.0f} s when asked to {doing}; "
                "whether it took effect is not known",
                next_step="look with `ip link`; a namespace or driver being torn down holds "
                "the lock that every such request needs",
            )
        if request.error is not None:
            raise request.error
        value: T = request.value
        return value

    def _serve(self, token: trio.lowlevel.TrioToken) -> None:
        ip: Any = None
        try:
            while (request := self._queue.get()) is not None:
                try:
                    ip = ip or _open_socket()
                    request.value = request.work(ip)
                except NetsetupError as exc:
                    request.error = exc
                except OSError as exc:
                    request.error = _refused(request.doing, exc.errno or 0, exc)
                except Exception as exc:  # noqa: BLE001  the caller raises it
                    code = getattr(exc, "code", None)  # pyroute2's NetlinkError is no OSError
                    request.error = (
                        _refused(request.doing, code, exc) if isinstance(code, int) else exc
                    )
                _wake(request.token, request.done)
        finally:
            if ip is not None:
                ip.close()
            _wake(token, self._ended)


def _wake(token: trio.lowlevel.TrioToken, event: trio.Event) -> None:
    with suppress(trio.RunFinishedError):  # nobody waits any more
        token.run_sync_soon(event.set)


def _refused(doing: str, errno: int, cause: BaseException) -> RefusedError:
    error = RefusedError(doing, errno)
    error.__cause__ = cause
    return error


def _open_socket() -> Any:
    from pyroute2 import IPRoute

    return IPRoute()


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as exc:  # which does not say its errno
        raise OSError(ENODEV, os.strerror(ENODEV)) from exc


def _fdb_entry(mac: str, vlan: int | None) -> dict[str, Any]:
    # pyroute2 deletes from the device's own table ("self") unless told the bridge's.
    entry: dict[str, Any] = {"lladdr": mac_text(parse_mac(mac)), "flags": _NTF_MASTER}
    return entry if vlan is None else entry | {"vlan": vlan}


def _links(ip: Any) -> tuple[Link, ...]:
    return _as_links(list(ip.link("dump")))


def _as_links(messages: list[Message]) -> tuple[Link, ...]:
    names = {message["index"]: message.get("ifname") for message in messages}
    return tuple(link_of(message, names) for message in messages)


def _bridges(ip: Any) -> tuple[Bridge, ...]:
    messages = list(ip.link("dump"))
    links = _as_links(messages)
    return tuple(
        bridge_of(message, (port.name for port in links if port.master == link.name))
        for message, link in zip(messages, links, strict=True)
        if link.kind == "bridge"
    )


def _bridge_port(ip: Any, name: str) -> BridgePort | None:
    message = get_link(ip, name)
    if message is None or message.get(("linkinfo", "slave_kind")) != "bridge":
        return None
    master = ip.link("get", index=message.get("master"))[0]
    bridge = bridge_of(master, ())
    pvid = None
    if bridge.vlan_filtering:
        dump = ip.link("dump", family=_AF_BRIDGE, ext_mask=_RTEXT_FILTER_BRVLAN)
        pvid = pvid_of(dump, message["index"])
    return port_of(message, bridge, pvid)


def _fdb_port(ip: Any, mac: str, bridge: str, vlan: int | None) -> str | None:
    master = _index(bridge)
    for entry in ip.fdb("dump"):
        if entry.get("lladdr") != mac or entry.get("master") != master:
            continue
        if vlan is not None and entry.get("vlan") != vlan:
            continue
        found: str = ip.link("get", index=entry["ifindex"])[0].get("ifname")
        return found
    return None
