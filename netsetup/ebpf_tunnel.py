"""EtherIP and GRE by programs at tc: no process, no driver; over IPv4, on Linux 5.10 or newer.

::

    bridge ── port ══ inner end            underlay's interface
              trim    encap on ingress     decap on ingress, by it to the port

Followed by itself, for each packet: the next hop and its address, also a change of them, by the
routes of the interface the program sends by. Not followed: a route that moves to another interface,
until `create` or `repair` puts both programs there; `wanting` says so until then.

What is too big for the path, and fragments that come in, the relay carries beside the programs.
"""

from dataclasses import replace
from typing import Any

from netsetup.bpf import REDIRECTED
from netsetup.bpf_load import loaded, try_program
from netsetup.decap_program import Decapsulation, decap_program, trim_program
from netsetup.encap_program import Encapsulation, encap_program
from netsetup.errors import HostError
from netsetup.inner_marks import read_names
from netsetup.kernel_tunnel import UNGUARDED
from netsetup.links import IFF_UP, other_names
from netsetup.mtu import Manner
from netsetup.offloads import cut_offloads, merge_received, offloads, restore_offloads
from netsetup.port_filters import EGRESS, INGRESS, ProgramFilter, filters_differ
from netsetup.relay import RelaySpec
from netsetup.relay_process import end_relay, ensure_relay, relay_wanting
from netsetup.tunnel_parts import Carried, Parts
from netsetup.tunnel_spec import Part, TunnelSpec
from netsetup.underlay import Way, ensure_program, program_differs, way_to
from netsetup.veth_tunnel import ATTEMPT_INDEX, ensure_ends, guard_ends, raise_inner, read
from netsetup.wire import ETHERIP, GRETAP, Wire, frame_untrusted, wire_of

_PRIORITY = 1
# A guest's broadcast ARP request: what most ways of making room would refuse.
_ATTEMPT_FRAME = bytes.fromhex("ffffffffffff 525400000001 0806").ljust(60, b"\0")


class EbpfTunnel:
    """The `Kind`."""

    backend = "ebpf"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def attempt(self, _ip: Any, spec: TunnelSpec) -> None:
        """Load both programs and let them carry a frame; raise `HostError` with the reason."""
        _need_ipv4(spec)
        wire = wire_of(spec)
        back = replace(wire, local=wire.remote, remote=wire.local)
        encap = encap_program(_encapsulation(wire, 1500, ATTEMPT_INDEX, ATTEMPT_INDEX, spec.manner))
        decap = decap_program(Decapsulation(back, ATTEMPT_INDEX, ATTEMPT_INDEX))
        with loaded(encap, "qm_attempt") as there, loaded(decap, "qm_attempt") as here:
            sent = try_program(there, _ATTEMPT_FRAME)
            got = try_program(here, sent.octets)
        if (sent.verdict, got.verdict, got.octets) != (REDIRECTED, REDIRECTED, _ATTEMPT_FRAME):
            raise HostError(f"this kernel runs {self.kind}'s programs, and they do otherwise")
        if frame_untrusted(back, sent.octets[14:]) != _ATTEMPT_FRAME:
            raise HostError(f"this kernel runs {self.kind}'s programs, and the frame is another")

    def build(self, ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> list[str]:
        """Make what is missing of the tunnel and put it in `parts`; return what was mended."""
        _need_ipv4(spec)
        way = _ethernet_way(ip, spec)
        mended = ensure_ends(ip, spec, parts, mtu_bytes, self.backend)
        port, inner = parts[Part.PORT], parts[Part.INNER]
        mended += self._offload(parts)
        mended += guard_ends(ip, spec, parts, self._filters(spec, parts, way))
        program = decap_program(Decapsulation(wire_of(spec), port["index"], inner["index"]))
        mended += ensure_program(ip, spec, inner, way, program)
        raise_inner(ip, spec, parts)
        if spec.manner is Manner.FRAGMENTS:
            mended += ensure_relay(_relay(spec, way))
        elif end_relay(spec.id):
            mended.append("a relay carried it")
        return mended

    def read(self, parts: Parts) -> Carried | None:
        """Return what the inner end's names say; None if it is of another kind or backend."""
        carried = read(parts, self.backend)
        return carried if carried is not None and carried.kind == self.kind else None

    def wanting(self, ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Say what of programs, offloads and ways is not as `build` leaves it."""
        if Part.PORT not in parts or Part.INNER not in parts:
            return ["parts of it are missing"]
        port, inner = parts[Part.PORT], parts[Part.INNER]
        underlay = read_names(other_names(inner)).underlay
        try:
            way = _ethernet_way(ip, spec)
        except HostError as exc:
            return [exc.what]
        if underlay is None or underlay.index != way.index:
            return [f"the route to {spec.remote} leads by {way.name}, its programs do not"]
        problems = []
        if any(
            filters_differ(parts[part]["index"], filters)
            for part, filters in self._filters(spec, parts, way)
        ):
            problems.append(UNGUARDED)
        program = decap_program(Decapsulation(wire_of(spec), port["index"], inner["index"]))
        if program_differs(way.index, spec.id, program):
            problems.append(f"{way.name} has another program of it, or none")
        if self.kind == ETHERIP and offloads(port.get("ifname")):
            problems.append(f"frames come out of {port.get('ifname')} unfinished: it has offloads")
        if spec.manner is Manner.FRAGMENTS:
            problems += relay_wanting(_relay(spec, way))
        return problems

    def _offload(self, parts: Parts) -> list[str]:
        name, inner = (parts[part].get("ifname") for part in (Part.PORT, Part.INNER))
        if self.kind == GRETAP:
            if not offloads(name):
                restore_offloads(name)
            return []
        # No kernel can cut what is in protocol 97; so the port gets single frames, and merges what
        # comes: 1.3 to 1.4 times the throughput, and no more of it out of order.
        merge_received(name)
        cut_offloads(inner)
        cut = cut_offloads(name)
        return [f"{name} had offloads"] if cut and parts[Part.PORT]["flags"] & IFF_UP else []

    def _filters(
        self, spec: TunnelSpec, parts: Parts, way: Way
    ) -> tuple[tuple[Part, tuple[ProgramFilter, ...]], ...]:
        inner = parts[Part.INNER]["index"]
        wire = wire_of(spec)
        tunnel = _encapsulation(wire, _path_mtu(spec, way), way.index, inner, spec.manner)
        encap = ProgramFilter(INGRESS, _PRIORITY, encap_program(tunnel))
        trim = ProgramFilter(EGRESS, _PRIORITY, trim_program(tunnel.limit_bytes))
        return (
            (Part.INNER, (encap,)),
            (Part.PORT, (trim,) if spec.manner is Manner.FRAGMENTS else ()),
        )


def _path_mtu(spec: TunnelSpec, way: Way) -> int:
    return min(spec.path_mtu_bytes or way.mtu_bytes, way.mtu_bytes)


def _relay(spec: TunnelSpec, way: Way) -> RelaySpec:
    wire = wire_of(spec)
    limit_bytes = _path_mtu(spec, way) - wire.outer_bytes
    return RelaySpec(spec.id, spec.name(Part.INNER), wire, longer_than=limit_bytes)


def _encapsulation(
    wire: Wire, path_mtu_bytes: int, underlay: int, inner: int, manner: Manner
) -> Encapsulation:
    return Encapsulation(
        wire,
        path_mtu_bytes - wire.outer_bytes,
        underlay,
        inner,
        fragment=manner is Manner.FRAGMENTS,
    )


def _need_ipv4(spec: TunnelSpec) -> None:
    if spec.local.version != 4:
        raise HostError(f"the programs of {spec.kind} know IPv4 outside only")


def _ethernet_way(ip: Any, spec: TunnelSpec) -> Way:
    way = way_to(ip, spec.remote)
    if not way.ethernet:
        raise HostError(
            f"packets to {spec.remote} leave by {way.name}, which is no Ethernet: the programs "
            "cannot send there",
            next_step="take the relay, or an address that an Ethernet leads to",
        )
    return way


ETHERIP_EBPF, GRETAP_EBPF = EbpfTunnel(ETHERIP), EbpfTunnel(GRETAP)
