"""The bridge of a host turned in the instant a guest runs elsewhere, and turned back if it returns.

At home the guest's frames must go into the tunnel rather than to its old tap. Announcements teach
that too, if nothing of them is lost; a forwarding entry by netlink does it in a millisecond and
needs no frame. Everything that could fail or take time is done when it is armed.

The entry at a tunnel's port is static: it must not age while the guest says nothing, for unknown
destinations are not flooded there. A frame that the guest sends elsewhere moves it all the same
(net/bridge/br_fdb.c, `br_fdb_update`), and it goes with the port.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import ENOENT
from typing import Any

import trio

from netsetup.errors import HostError, NoSuchLinkError
from netsetup.frames import mac_text, parse_mac
from netsetup.links import check_name
from netsetup.rtnl import NUD_NOARP, NUD_REACHABLE, Rtnl
from netsetup.taps import get_link

_NTF_MASTER = 0x04
_FORWARDING = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """Frames for `mac` are to go to `port` of its bridge; `static` for a tunnel's port."""

    mac: str
    port: str
    vlan: int | None = None
    static: bool = True


@dataclass(frozen=True, slots=True)
class Turned:
    """What became of one; `problem` says why it did not work."""

    mac: str
    port: str  # where frames go now
    before: str | None  # where they went when it was armed; None: to every port
    took_ms: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Armed:
    turn: Turn
    mac: str
    index: int
    vlan: int | None  # None also for a bridge that filters none, which refuses one
    before: int | None
    before_name: str | None
    before_static: bool


class Turner:
    """Armed: indexes are known, the netlink thread is warm. See `arm`."""

    def __init__(self, rtnl: Rtnl, armed: tuple[_Armed, ...]) -> None:
        self._rtnl = rtnl
        self._armed = armed
        self._turned = False

    async def turn(self) -> tuple[Turned, ...]:
        """Turn all; what fails is in the answer and not raised, for the guest runs already."""
        self._turned = True
        return await self._all(_turn)

    async def back(self) -> tuple[Turned, ...]:
        """Put back what was when it was armed; nothing if it never turned. As often as wanted."""
        return await self._all(_back) if self._turned else ()

    async def _all(self, work: Any) -> tuple[Turned, ...]:
        results = []
        with trio.CancelScope(shield=True):  # the guest has moved, whatever becomes of the job
            started = trio.current_time()
            # One request for all: between two the thread might serve somebody else first.
            problems = await self._rtnl.run(
                "turn the bridge", lambda ip: [_try(ip, each, work) for each in self._armed]
            )
            took_ms = (trio.current_time() - started) * 1000
        for each, problem in zip(self._armed, problems, strict=True):
            port = each.turn.port if work is _turn else (each.before_name or each.turn.port)
            results.append(Turned(each.mac, port, each.before_name, took_ms, problem))
        return tuple(results)


@asynccontextmanager
async def arm(rtnl: Rtnl, turns: Iterable[Turn]) -> AsyncIterator[Turner]:
    """Open a `Turner`; raises `NoSuchLinkError` for a port that is none, `HostError` for one that
    does not forward. Leaving the block changes nothing: turned stays turned.
    """
    wanted = tuple(turns)
    for turn in wanted:
        check_name(turn.port)
    armed = await rtnl.run("look where frames go now", lambda ip: _look(ip, wanted))
    yield Turner(rtnl, armed)


def _look(ip: Any, turns: tuple[Turn, ...]) -> tuple[_Armed, ...]:
    entries = list(ip.fdb("dump"))
    return tuple(_arm(ip, turn, entries) for turn in turns)


def _arm(ip: Any, turn: Turn, entries: list[Any]) -> _Armed:
    port = get_link(ip, turn.port)
    if port is None or port.get(("linkinfo", "slave_kind")) != "bridge":
        raise NoSuchLinkError(f"{turn.port} is no bridge's port here")
    state = port.get(("linkinfo", "slave_data", "IFLA_BRPORT_STATE"))
    if state is not None and state != _FORWARDING:
        raise HostError(
            f"{turn.port} does not forward, so nothing can be behind it",
            next_step="a port under STP listens and learns first; a tap needs a process",
        )
    master = port.get("master")
    bridge = ip.link("get", index=master)[0]
    filters = bridge.get(("linkinfo", "data", "br_vlan_filtering"))
    vlan = turn.vlan if filters else None
    mac = mac_text(parse_mac(turn.mac))
    before = next(
        (
            entry
            for entry in entries
            if entry.get("lladdr") == mac and entry.get("master") == master
            if vlan is None or entry.get("vlan") == vlan
            if entry["ifindex"] != port["index"]
        ),
        None,
    )
    name = None if before is None else ip.link("get", index=before["ifindex"])[0].get("ifname")
    return _Armed(
        turn=turn,
        mac=mac,
        index=port["index"],
        vlan=vlan,
        before=None if before is None else before["ifindex"],
        before_name=name,
        before_static=before is not None and before["state"] == NUD_NOARP,
    )


def _try(ip: Any, armed: _Armed, work: Any) -> str | None:
    try:
        work(ip, armed)
    except OSError as exc:
        return exc.strerror or str(exc)
    except Exception as exc:
        if not isinstance(getattr(exc, "code", None), int):  # pyroute2's NetlinkError
            raise
        return str(exc.args[-1]) if exc.args else str(exc)
    return None


def _turn(ip: Any, armed: _Armed) -> None:
    _point(ip, armed, armed.index, static=armed.turn.static)


def _back(ip: Any, armed: _Armed) -> None:
    if armed.before is not None:
        _point(ip, armed, armed.before, static=armed.before_static)
        return
    try:
        ip.fdb("del", ifindex=armed.index, **_entry(armed))
    except Exception as exc:
        if getattr(exc, "code", None) != ENOENT:
            raise


def _point(ip: Any, armed: _Armed, index: int, *, static: bool) -> None:
    state = NUD_NOARP if static else NUD_REACHABLE
    ip.fdb("replace", ifindex=index, state=state, **_entry(armed))


def _entry(armed: _Armed) -> dict[str, Any]:
    entry: dict[str, Any] = {"lladdr": armed.mac, "flags": _NTF_MASTER}
    return entry if armed.vlan is None else entry | {"vlan": armed.vlan}
