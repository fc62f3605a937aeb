"""A tunnel's end made, mended and removed: whole, or found and finished by whoever comes next.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`.

A step that fails undoes what this call has made. A process that dies leaves at most interfaces with
our group, out of every bridge until they are marked and guarded; `create_end` finishes them,
`remove_end` and `gc` take them away. One process at a time: the lock is the network namespace's own
file, so that it needs no place on a disk and ends with its holder.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EEXIST
from typing import Any, Protocol

from netsetup.errors import HostError, NetsetupError, NoSuchLinkError, NotOursError
from netsetup.links import IFF_UP, Message, other_names
from netsetup.private_bridge import ensure_private_bridge
from netsetup.relay_process import end_relay
from netsetup.taps import get_link, join_vlan, need_link
from netsetup.tunnel_parts import Carried, Parts
from netsetup.tunnel_spec import (
    GROUP,
    End,
    Mark,
    Part,
    TunnelSpec,
    claim_name,
    claimant,
    mark_of,
    part_named,
)
from netsetup.underlay import release_underlay
from netsetup.veth_tunnel import clear_ends

LOCK_DEADLINE_S = 5.0  # building takes 30 ms; below `rtnl.DEADLINE_S`, which gives up the answer
_LOCK_RETRY_S = 0.01
# What goes first when a tunnel is taken away: claims stay to the last but the bridge.
_TAKE_AWAY = (Part.DEVICE, Part.PORT, Part.INNER, Part.BRIDGE)


class Kind(Protocol):
    """A wire format and what carries it out. All of it blocks, and raises `HostError`."""

    kind: str
    backend: str  # "kernel", "ebpf", "relay"

    def attempt(self, ip: Any, spec: TunnelSpec) -> None:
        """Find out whether this host can, by doing it where it touches nobody."""

    def build(self, ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> list[str]:
        """Make what is missing, guarded and in no bridge; return what was mended.

        `parts` is what there is, and then has everything. `Part.PORT` stays down if it was.
        """

    def read(self, parts: Parts) -> Carried | None:
        """Return what the parts tell; None if they are not of this kind."""

    def wanting(self, ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Say what is not as `build` leaves it, first what keeps strangers and BPDUs out."""


@dataclass(frozen=True, slots=True)
class Found:
    """The parts of a tunnel's end; `mark` is None if a process died before it set one."""

    id: str
    mark: Mark | None
    parts: Parts


@contextmanager
def locked() -> Iterator[None]:
    """Hold the namespace's lock; raise `HostError` if another process keeps it."""
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(round(LOCK_DEADLINE_S / _LOCK_RETRY_S)):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            threading.Event().wait(_LOCK_RETRY_S)  # flock(2) has no deadline of its own
        else:
            raise HostError(
                f"another process has been changing tunnels here for {LOCK_DEADLINE_S:g} s",
                next_step="see what it is: `fuser` knows it by /proc/PID/ns/net held open",
            )
        yield
    finally:
        os.close(descriptor)


def find(ip: Any) -> dict[str, Found]:
    """Return everything of tunnels that is ours here, by id."""
    found: dict[str, Found] = {}
    for message in ip.link("dump"):
        mark = mark_of(message.get("ifalias"))
        named = part_named(message.get("ifname"))
        if mark is not None:
            id_, part = mark.id, mark.part
        elif named is not None and message.get("group") == GROUP:
            id_, part = named
        else:
            continue
        before = found.get(id_, Found(id_, None, {}))
        # The alias of the port speaks for all; it is the last that a removal takes away.
        best = mark if mark is not None and (before.mark is None or part is Part.PORT) else None
        found[id_] = Found(id_, best or before.mark, {**before.parts, part: message})
    return found


def claims(parts: Parts, id_: str) -> tuple[str, ...]:
    """Return the guests that claim the tunnel."""
    names = other_names(parts[Part.PORT]) if Part.PORT in parts else ()
    found = (claimant(name, id_) for name in names)
    return tuple(sorted(guest for guest in found if guest is not None))


def tenants(ip: Any, parts: Parts) -> tuple[str, ...]:
    """Return the ports of the private bridge that are not the tunnel's own: guests live there."""
    if Part.BRIDGE not in parts:
        return ()
    own = {message["index"] for message in parts.values()}
    bridge = parts[Part.BRIDGE]["index"]
    return tuple(
        message.get("ifname")
        for message in ip.link("dump")
        if message.get("master") == bridge and message["index"] not in own
    )


def create_end(
    ip: Any, spec: TunnelSpec, kind: Kind, kind_of: Callable[[Parts], str | None]
) -> list[str]:
    """Make `spec`, or finish and mend what is there of it; return what was mended."""
    with locked():
        found = find(ip).get(spec.id)
        parts: Parts = dict(found.parts) if found else {}
        _refuse(ip, spec, found, kind_of(parts))
        before = {message["index"] for message in parts.values()}
        try:
            return _create(ip, spec, kind, parts)
        except BaseException:
            left = find(ip).get(spec.id)
            if left is not None and not before:
                _take_away(ip, left)
            raise


def _refuse(ip: Any, spec: TunnelSpec, found: Found | None, kind: str | None) -> None:
    """Raise `HostError` if `spec` cannot be, or would take a tunnel from those who use it."""
    for part in Part:
        message = get_link(ip, spec.name(part))
        if message is not None and (found is None or found.parts.get(part) is None):
            raise NotOursError(
                f"{spec.name(part)} is left alone: it has the name but not the mark of a tunnel"
            )
    if found is None:
        return
    if found.mark is not None and found.mark.end is not spec.end:
        raise HostError(
            f"the {found.mark.end} end of tunnel {spec.id} is on this host, its {spec.end} end "
            "cannot be here as well"
        )
    others = set(claims(found.parts, spec.id)) - set(spec.guests)
    if kind is not None and kind != spec.kind and others:
        raise HostError(
            f"tunnel {spec.id} is there as {kind}, and {', '.join(sorted(others))} "
            f"need{'s' if len(others) == 1 else ''} it",
            next_step=f"take {kind}, which they share, or move them home first",
        )


def _create(ip: Any, spec: TunnelSpec, kind: Kind, parts: Parts) -> list[str]:
    mended: list[str] = []
    if spec.end is End.AWAY:
        mended += ensure_private_bridge(ip, spec, parts.get(Part.BRIDGE))
    bridge = get_link(ip, spec.bridge)
    if bridge is None or bridge.get(("linkinfo", "kind")) != "bridge":
        others = [
            message.get("ifname")
            for message in ip.link("dump")
            if message.get(("linkinfo", "kind")) == "bridge"
        ]
        raise NoSuchLinkError(
            f"there is no bridge {spec.bridge}",
            next_step=f"bridges here: {', '.join(others) or 'none'}",
        )
    # A bridge takes its smallest port's MTU for its own.
    mtu_bytes = max(spec.mtu_bytes, bridge.get("mtu"))
    had = parts[Part.PORT]["index"] if Part.PORT in parts else None
    if kind.backend == "kernel":
        end_relay(spec.id)
        clear_ends(ip, parts)
    mended += kind.build(ip, spec, parts, mtu_bytes)
    port = need_link(ip, spec.name(Part.PORT))
    _claim(ip, spec, parts, port)
    joined = port.get("master") == bridge["index"]
    if not joined:
        mended += [f"{port.get('ifname')} was in no bridge"] if port["index"] == had else []
        ip.link("set", index=port["index"], master=bridge["index"])
    mended += _treat(ip, spec, port["index"], joined)
    if not port["flags"] & IFF_UP:
        mended += [f"{port.get('ifname')} was down"] if joined else []
        ip.link("set", index=port["index"], state="up")
    return mended


def _claim(ip: Any, spec: TunnelSpec, parts: Parts, port: Message) -> None:
    has = claims({Part.PORT: port}, spec.id)
    for guest in spec.guests:
        if guest in has:
            continue
        try:
            ip.link("property_add", index=port["index"], altname=claim_name(spec.id, guest))
        except Exception as exc:
            if getattr(exc, "code", None) != EEXIST:
                raise


def _treat(ip: Any, spec: TunnelSpec, index: int, joined: bool) -> list[str]:
    """Tell the bridge how to treat the port; in a home bridge it is one stranger among hosts."""
    wanted = {"isolated": 0}
    if spec.end is End.HOME:
        # Frames for a guest that is away go by an entry (`netsetup.turning`), and what is not
        # known is not poured into a long wire. Learning stays on: should the entry be missing,
        # the first frame that the guest sends sets it.
        wanted = {"isolated": int(spec.isolated), "unicast_flood": 0, "learning": 1}
    message = ip.link("get", index=index)[0]
    now = {
        key: message.get(("linkinfo", "slave_data", f"IFLA_BRPORT_{key.upper()}")) for key in wanted
    }
    mended = []
    if now != wanted:
        mended += [f"{message.get('ifname')} had other flags in its bridge"] if joined else []
        ip.brport("set", index=index, **wanted)
    if spec.end is End.HOME and spec.home.vlan is not None:
        bridge = ip.link("get", index=message.get("master"))[0]
        join_vlan(ip, index, spec.home.vlan, bridge)
    return mended


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed; `kept` says why the tunnel stays."""

    removed: tuple[str, ...]
    kept: str | None = None


def remove_end(ip: Any, id_: str, guest: str | None) -> Removal:
    """Take `guest`'s claim, or with None all claims, and the end with the last one."""
    with locked():
        found = find(ip).get(id_)
        if found is None:
            return Removal(())
        return _remove(ip, found, guest)


def _remove(ip: Any, found: Found, guest: str | None) -> Removal:
    for each in claims(found.parts, found.id):
        if guest in (None, each):
            index = found.parts[Part.PORT]["index"]
            ip.link("property_del", index=index, altname=claim_name(found.id, each))
    others = set() if guest is None else set(claims(found.parts, found.id)) - {guest}
    if others:
        return Removal((), f"needed by {', '.join(sorted(others))}")
    if lived_in := tenants(ip, found.parts):
        return Removal((), f"{', '.join(lived_in)} in its private bridge")
    return Removal(_take_away(ip, found))


def _take_away(ip: Any, found: Found) -> tuple[str, ...]:
    removed = []
    end_relay(found.id)  # the next of this name must not find it on its way out
    release_underlay(ip, found.parts)
    for part in _TAKE_AWAY:
        message = found.parts.get(part)
        if message is None or get_link(ip, message.get("ifname")) is None:
            continue
        ip.link("del", index=message["index"])
        removed.append(message.get("ifname"))
    return tuple(removed)


def gc(ip: Any, *, live_jobs: frozenset[str], live_guests: frozenset[str] | None) -> Removal:
    """Remove every end that nobody claims or lives on and whose job is over.

    With `live_guests` the claims of all others are void; with None every claim holds.
    """
    removed: list[str] = []
    kept: list[str] = []
    with locked():
        for found in find(ip).values():
            if found.mark is not None and found.mark.tag.job in live_jobs:
                kept.append(f"{found.id}: job {found.mark.tag.job} builds it")
                continue
            void = [
                guest
                for guest in claims(found.parts, found.id)
                if live_guests is not None and guest not in live_guests
            ]
            if set(claims(found.parts, found.id)) - set(void):
                continue
            try:
                done = _remove(ip, found, None)
            except NetsetupError as exc:
                kept.append(f"{found.id}: {exc.what}")
                continue
            removed += done.removed
            kept += [f"{found.id}: {done.kept}"] if done.kept else []
        removed += _attempts(ip)
    return Removal(tuple(removed), "; ".join(kept) or None)


def _attempts(ip: Any) -> list[str]:
    """Remove what a process left that died while it tried what this host can."""
    removed = []
    for message in list(ip.link("dump")):
        if message.get("group") == GROUP and message.get("ifname", "").startswith("qm-attempt"):
            ip.link("del", index=message["index"])
            removed.append(message.get("ifname"))
    return removed
