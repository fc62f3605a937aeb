"""Tunnels of this host: made, verified, listed, mended and removed, whatever their kind.

A kind is a wire format and what carries it out (`tunnel_build.Kind`), and is in `KINDS`. What is
there is read from netlink every time; nothing is remembered elsewhere.

A cancelled call has happened whole or not at all: the thread of `netsetup.rtnl` carries it out.
"""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import trio

from netsetup.choice import BACKENDS, Ability
from netsetup.ebpf_tunnel import ETHERIP_EBPF, GRETAP_EBPF
from netsetup.errors import HostError, NetsetupError, UsageError
from netsetup.gretap import GRETAP
from netsetup.homes import Home
from netsetup.links import IFF_UP, BridgePort, port_of
from netsetup.links import bridge_of as read_bridge
from netsetup.mtu import Manner
from netsetup.relay_tunnel import ETHERIP_RELAY, GRETAP_RELAY
from netsetup.rtnl import Rtnl
from netsetup.tunnel_build import (
    Found,
    Kind,
    Removal,
    claims,
    create_end,
    find,
    gc,
    remove_end,
    tenants,
)
from netsetup.tunnel_parts import Carried, Parts
from netsetup.tunnel_spec import Address, End, Mark, Part, Tunnel, TunnelSpec, spec_of
from netsetup.vxlan import VXLAN

CARRIER_S = 1.5  # the kernel tells of a link that came up within a second (net/core/link_watch.c)
_RTMGRP_LINK = 1

# The cheapest of each wire format first.
_KINDS: tuple[Kind, ...] = (
    VXLAN, GRETAP, GRETAP_EBPF, ETHERIP_EBPF, GRETAP_RELAY, ETHERIP_RELAY,
)  # fmt: skip
KINDS: Mapping[tuple[str, str], Kind] = MappingProxyType(
    {(kind.kind, kind.backend): kind for kind in _KINDS}
)


@dataclass(frozen=True, slots=True)
class Made:
    """A tunnel's end that is there now; `mended` says what was found wanting, empty if new."""

    tunnel: Tunnel
    mended: tuple[str, ...]


def kind_for(name: str, backend: str = "kernel") -> Kind:
    """Return the kind; raise `UsageError` naming those that there are."""
    found = KINDS.get((name, backend))
    if found is None:
        known = ", ".join(f"{kind} ({by})" for kind, by in KINDS)
        raise UsageError(f"there is no tunnel {name} ({backend})", next_step=f"there are: {known}")
    return found


async def create(rtnl: Rtnl, spec: TunnelSpec, *, backend: str | None = None) -> Made:
    """Make an end of a tunnel and add its guests' claims; finish or mend one that is there.

    Without a `backend` the one that carries it now does, or the cheapest that this host can.
    Raises `NoSuchLinkError` without the home bridge, `HostError` where this kernel cannot or
    others need it otherwise, `RefusedError`; then nothing that was not there before is.
    """
    kind = kind_for(spec.kind, backend or await _backend_for(rtnl, spec))
    with _link_events() as events:
        mended = await rtnl.run(
            f"make the tunnel to {spec.remote}", lambda ip: create_end(ip, spec, kind, _kind_of)
        )
        with trio.move_on_after(CARRIER_S):
            while _waits_for_carrier(await rtnl.bridge_port(spec.name(Part.PORT))):
                await events.recv(1 << 16)
    return Made(await describe(rtnl, spec.id), tuple(mended))


async def _backend_for(rtnl: Rtnl, spec: TunnelSpec) -> str:
    able = [backend for kind, backend in KINDS if kind == spec.kind]
    if len(able) < 2:
        return able[0] if able else BACKENDS[0]  # of which `kind_for` says that there is none
    for tunnel in await list_tunnels(rtnl):
        if (tunnel.id, tunnel.kind) == (spec.id, spec.kind):
            return tunnel.backend
    tried = [await _try(rtnl, KINDS[spec.kind, backend], spec) for backend in able]
    found = next((ability.backend for ability in tried if ability.why_not is None), None)
    if found is None:
        raise HostError("; ".join(f"{each.backend}: {each.why_not}" for each in tried))
    return found


async def list_tunnels(rtnl: Rtnl) -> tuple[Tunnel, ...]:
    """Return every tunnel of ours on this host, whole or not, in the order of their ids."""
    return await rtnl.run("list the tunnels", _list)


async def describe(rtnl: Rtnl, tunnel: str) -> Tunnel:
    """Return the tunnel with this id; raise `HostError` naming those that there are."""
    found = await list_tunnels(rtnl)
    for each in found:
        if each.id == tunnel:
            return each
    ids = ", ".join(each.id for each in found) or "none"
    raise HostError(f"there is no tunnel {tunnel} here", next_step=f"tunnels here: {ids}")


async def remove(rtnl: Rtnl, tunnel: str, *, guest: str | None = None) -> Removal:
    """Take `guest`'s claim away, without one all of them; remove the end that nobody needs.

    A private bridge in which there are taps stays, and so does its tunnel.
    """
    return await rtnl.run(f"remove tunnel {tunnel}", lambda ip: remove_end(ip, tunnel, guest))


async def repair(rtnl: Rtnl, lost: Iterable[TunnelSpec] = ()) -> tuple[Made | NetsetupError, ...]:
    """Mend every tunnel here, and make those of `lost`: what the other host still remembers.

    What cannot be mended is in the answer as its error.
    """
    wanted = {spec.id: spec for spec in lost}
    for tunnel in await list_tunnels(rtnl):
        if (here := spec_of(tunnel)) is not None:
            wanted[tunnel.id] = here
    results: list[Made | NetsetupError] = []
    for spec in wanted.values():
        try:
            results.append(await create(rtnl, spec))
        except NetsetupError as exc:
            results.append(exc)
    return tuple(results)


async def collect(
    rtnl: Rtnl,
    *,
    live_jobs: Iterable[str] = (),
    live_guests: Iterable[str] | None = None,
) -> Removal:
    """Remove what nobody claims or lives on and no job in `live_jobs` builds.

    Claims of guests that are not in `live_guests` are void; with None every claim holds.
    """
    guests = None if live_guests is None else frozenset(live_guests)
    jobs = frozenset(live_jobs)
    return await rtnl.run(
        "remove tunnels that nobody needs", lambda ip: gc(ip, live_jobs=jobs, live_guests=guests)
    )


async def abilities(rtnl: Rtnl, local: Address, remote: Address) -> tuple[Ability, ...]:
    """Return which kinds this host can carry from `local` to `remote`, each tried for a moment."""
    home = Home("attempt", "attempt")
    return tuple(
        [
            await _try(rtnl, kind, TunnelSpec(kind.kind, local, remote, home, End.AWAY, 2**24 - 1))
            for kind in KINDS.values()
        ]
    )


async def _try(rtnl: Rtnl, kind: Kind, spec: TunnelSpec) -> Ability:
    why_not = None
    try:
        await rtnl.run(f"try {kind.kind}", lambda ip: kind.attempt(ip, spec))
    except HostError as exc:
        why_not = exc.what
    return Ability(kind.kind, kind.backend, spec.local.version, why_not)


def _kind_of(parts: Parts) -> str | None:
    carried, _ = _read(parts)
    return None if carried is None else carried.kind


def _read(parts: Parts) -> tuple[Carried | None, Kind | None]:
    for kind in KINDS.values():
        if (carried := kind.read(parts)) is not None:
            return carried, kind
    return None, None


def _link_events() -> trio.socket.SocketType:
    """Return a socket that is told of every change of an interface here."""
    plain = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    plain.bind((0, _RTMGRP_LINK))
    return trio.socket.from_stdlib_socket(plain)


def _waits_for_carrier(port: BridgePort | None) -> bool:
    """Whether the bridge has not yet been told that the port, which is up, has a carrier."""
    return port is not None and port.state == "disabled"


def _list(ip: Any) -> tuple[Tunnel, ...]:
    found = find(ip)
    tunnels = [
        _describe(ip, each, each.mark) for _, each in sorted(found.items()) if each.mark is not None
    ]
    shared: dict[str, list[str]] = {}
    for tunnel in tunnels:
        if tunnel.end is End.HOME and tunnel.bridge and tunnel.isolated:
            shared.setdefault(tunnel.bridge, []).append(tunnel.id)
    return tuple(_with_neighbours(tunnel, shared) for tunnel in tunnels)


def _with_neighbours(tunnel: Tunnel, shared: dict[str, list[str]]) -> Tunnel:
    ids = shared.get(tunnel.bridge or "", [])
    if tunnel.id not in ids or len(ids) < 2:
        return tunnel
    others = ", ".join(id_ for id_ in ids if id_ != tunnel.id)
    note = f"guests behind it and guests behind {others} do not reach each other: split horizon"
    return replace(tunnel, notes=(*tunnel.notes, note))


def _describe(ip: Any, found: Found, mark: Mark) -> Tunnel:
    """Return what there is of a marked tunnel, and what is wrong with it."""
    parts = found.parts
    carried, kind = _read(parts)
    port = parts.get(Part.PORT)
    master = None
    isolated = None
    problems = []
    if port is not None and port.get("master"):
        bridge = ip.link("get", index=port.get("master"))[0]
        master = bridge.get("ifname")
        described = port_of(port, read_bridge(bridge, ()), None)
        isolated = described.flags.isolated
        if not described.forwarding:
            problems.append(f"its port is {described.state} in {master}")
    tunnel = Tunnel(
        id=found.id,
        end=mark.end,
        home=mark.home,
        tag=mark.tag,
        backend=kind.backend if kind else "kernel",
        kind=carried.kind if carried else None,
        local=carried.local if carried else None,
        remote=carried.remote if carried else None,
        key=carried.key if carried else None,
        path_mtu_bytes=carried.path_mtu_bytes if carried else None,
        reversed_header=carried is not None and carried.reversed_header,
        udp_port=carried.udp_port if carried else None,
        mtu_bytes=port.get("mtu") if port is not None else None,
        manner=mark.manner,
        isolated=mark.isolated,
        port=port.get("ifname") if port is not None else None,
        bridge=master,
        guests=claims(parts, found.id),
        taps=tenants(ip, parts),
    )
    if tunnel.end is End.HOME and isolated is not None and isolated != mark.isolated:
        problems.append(f"its port is {'' if isolated else 'not '}isolated")
    problems += _wanting(ip, tunnel, parts, kind)
    notes = ["what it carries is not encrypted"]
    if tunnel.manner is Manner.FRAGMENTS:
        notes.append("full frames are cut in two on the way")
    elif tunnel.manner is Manner.TOLD:
        notes.append("senders of full frames are told to send smaller ones")
    return replace(tunnel, problems=tuple(problems), notes=tuple(notes))


def _wanting(ip: Any, tunnel: Tunnel, parts: Parts, kind: Kind | None) -> list[str]:
    """Return what of a tunnel is not as `create` leaves it."""
    problems = [
        f"{message.get('ifname')} is down"
        for message in parts.values()
        if not message["flags"] & IFF_UP
    ]
    spec = spec_of(tunnel)
    if spec is None or kind is None:
        return [*problems, "parts of it are missing"]
    if tunnel.bridge != spec.bridge:
        problems.append(f"its port is not in {spec.bridge}")
    return [*problems, *kind.wanting(ip, spec, parts)]
