"""A tunnel explained: what its packets look like, who carries them, what fits, what became of them.

Counters are of this end, since it was made or last mended. Those of programs the kernel keeps, a
relay tells its own, a device of the kernel's knows frames that passed and how many did not.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from netsetup.bpf_load import Counter, counters_of
from netsetup.errors import HostError
from netsetup.links import Message
from netsetup.mtu import ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, SHIM_BYTES
from netsetup.port_filters import INGRESS, attached_programs
from netsetup.relay_process import Running, running
from netsetup.rtnl import Rtnl
from netsetup.taps import get_link
from netsetup.tunnel_spec import Part, Tunnel, TunnelSpec, spec_of
from netsetup.underlay import underlay_program
from netsetup.wire import PROTOCOL, Fate, told, wire_of

_BACKENDS = {
    "kernel": "a device of the kernel's carries it",
    "ebpf": "programs at tc carry it, without a process",
    "relay": "a process carries it",
}


@dataclass(frozen=True, slots=True)
class Count:
    """Frames that met one fate on their way out or in; `octets` is None if nobody counts them."""

    way: str  # "out" or "in"
    by: str  # "kernel", "ebpf", "relay"
    what: str
    passed: bool
    frames: int
    octets: int | None


@dataclass(frozen=True, slots=True)
class Explained:
    """A tunnel's end, in words and figures."""

    tunnel: Tunnel
    wire: str
    carried_by: str
    arithmetic: str
    relay_pid: int | None
    counts: tuple[Count, ...]


async def explain(rtnl: Rtnl, tunnel: Tunnel) -> Explained:
    """Return what there is to know of a tunnel of this host; raise `HostError`."""
    spec = spec_of(tunnel)
    relay = None
    counts: list[Count] = []
    with suppress(HostError):  # it does not answer: among the tunnel's problems
        relay = await rtnl.run("ask the relay", lambda _ip: running(tunnel.id))
    if spec is not None:
        counts += await rtnl.run("read counters", lambda ip: _read(ip, spec, tunnel.backend))
    if relay is not None:
        counts += _of_relay(relay)
    carried_by = _BACKENDS[tunnel.backend]
    if relay is not None and tunnel.backend == "ebpf":
        carried_by += "; beside them a process, what does not fit the path"
    return Explained(
        tunnel,
        _wire_text(spec),
        carried_by,
        _arithmetic(spec),
        None if relay is None else relay.pid,
        tuple(counts),
    )


def _wire_text(spec: TunnelSpec | None) -> str:
    if spec is None:
        return "not known: parts of it are missing"
    outer = f"IPv{spec.local.version}, {spec.local} to {spec.remote}"
    if spec.kind not in PROTOCOL:
        return f"VXLAN (RFC 7348) number {spec.key}, UDP port {spec.udp_port}, over {outer}"
    wire = wire_of(spec)
    name = "Ethernet in GRE (RFC 2784)" if spec.kind == "gretap" else "EtherIP (RFC 3378)"
    key = f" with key {wire.key}" if wire.key else ""
    return f"{name}{key}, header {wire.shim.hex(' ', 2)}, IP protocol {wire.protocol}, over {outer}"


def _arithmetic(spec: TunnelSpec | None) -> str:
    if spec is None:
        return "not known"
    outer = {4: IPV4_BYTES, 6: IPV6_BYTES}[spec.local.version]
    shim = len(wire_of(spec).shim) if spec.kind in PROTOCOL else SHIM_BYTES[spec.kind]
    needed = spec.mtu_bytes + ETHERNET_BYTES + shim + outer
    path = "not measured" if spec.path_mtu_bytes is None else f"takes {spec.path_mtu_bytes}"
    return (
        f"{spec.mtu_bytes} of the guests + {ETHERNET_BYTES} Ethernet + {shim} {spec.kind} + "
        f"{outer} IPv{spec.local.version} = {needed} bytes; the path: {path}; "
        f"full frames: {spec.manner}"
    )


def _read(ip: Any, spec: TunnelSpec, backend: str) -> list[Count]:
    if backend == "kernel":
        message = get_link(ip, spec.name(Part.DEVICE)) or get_link(ip, spec.name(Part.PORT))
        return [] if message is None else _of_device(message)
    inner = get_link(ip, spec.name(Part.INNER))
    if inner is None or backend != "ebpf":
        return []
    fragments = spec.manner.value == "fragments"
    counts: list[Count] = []
    for program in attached_programs(inner["index"], INGRESS):
        counts += _of_program("out", counters_of(program.program_id), relay=fragments)
    decap = underlay_program(inner, spec.id)
    if decap is not None:
        counts += _of_program("in", counters_of(decap.program_id), relay=fragments)
    return counts


def _of_program(way: str, counted: tuple[Counter, ...], *, relay: bool) -> list[Count]:
    return [
        Count(
            way,
            "ebpf",
            told(fate, outwards=way == "out", relay=relay),
            fate is Fate.PASSED,
            counted[fate].frames,
            counted[fate].octets,
        )
        for fate in Fate
        if counted and (counted[fate].frames or fate is Fate.PASSED)
    ]


def _of_relay(relay: Running) -> list[Count]:
    return [
        Count(
            way,
            "relay",
            told(fate, outwards=way == "out", relay=True),
            fate is Fate.PASSED,
            frames,
            relay.octets[way] if fate is Fate.PASSED else None,
        )
        for way, counted in relay.frames.items()
        for fate, frames in sorted(_with_passed(counted).items())
    ]


def _with_passed(counted: Mapping[Fate, int]) -> dict[Fate, int]:
    return {Fate.PASSED: 0, **counted}


def _of_device(message: Message) -> list[Count]:
    stats = message.get("stats64") or {}
    counts = []
    for way, short, word in (("out", "tx", "sent"), ("in", "rx", "received")):
        passed = stats.get(f"{short}_packets", 0)
        counts.append(Count(way, "kernel", word, True, passed, stats.get(f"{short}_bytes")))
        counts += [
            Count(way, "kernel", f"{kind} by the device", False, frames, None)
            for kind in ("dropped", "errors")
            if (frames := stats.get(f"{short}_{kind}", 0))
        ]
    return counts
