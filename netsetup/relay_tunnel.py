"""EtherIP and GRE carried by a process (`netsetup.relay`): over IPv4 and IPv6, without programs.

The slowest of all, and the one that every host can; what is too big for the path the kernel cuts,
over IPv6 too, for it is this host's own packet. A route may move as it likes.
"""

from typing import Any

from netsetup.links import IFF_UP
from netsetup.offloads import cut_offloads, offloads
from netsetup.port_filters import filters_differ
from netsetup.relay import RelaySpec, try_sockets
from netsetup.relay_process import ensure_relay, relay_wanting
from netsetup.tunnel_parts import Carried, Parts
from netsetup.tunnel_spec import Part, TunnelSpec
from netsetup.underlay import release_underlay
from netsetup.veth_tunnel import ensure_ends, guard_ends, raise_inner, read
from netsetup.wire import ETHERIP, GRETAP, wire_of

# Whom it may concern the relay tells apart; what the host itself gets at the inner end, it is
# deaf to. No filter: where programs may be loaded there are better tunnels.
_NO_FILTERS = ((Part.INNER, ()), (Part.PORT, ()))


class RelayTunnel:
    """The `Kind`."""

    backend = "relay"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def attempt(self, _ip: Any, spec: TunnelSpec) -> None:
        """Open the sockets that a relay needs."""
        try_sockets(wire_of(spec))

    def build(self, ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> list[str]:
        """Make what is missing of the tunnel and put it in `parts`; return what was mended."""
        release_underlay(ip, parts)
        mended = ensure_ends(ip, spec, parts, mtu_bytes, self.backend)
        port = parts[Part.PORT]
        if cut_offloads(port.get("ifname")) and port["flags"] & IFF_UP:
            mended.append(f"{port.get('ifname')} had offloads")
        mended += guard_ends(ip, spec, parts, _NO_FILTERS)
        raise_inner(ip, spec, parts)
        return mended + ensure_relay(_relay(spec))

    def read(self, parts: Parts) -> Carried | None:
        """Return what the inner end's names say; None if it is of another kind or backend."""
        carried = read(parts, self.backend)
        return carried if carried is not None and carried.kind == self.kind else None

    def wanting(self, _ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Say what is not as `build` leaves it."""
        if Part.PORT not in parts or Part.INNER not in parts:
            return ["parts of it are missing"]
        name = parts[Part.PORT].get("ifname")
        problems = [f"{name} has offloads"] if offloads(name) else []
        if any(filters_differ(parts[part]["index"], filters) for part, filters in _NO_FILTERS):
            problems.append("there are filters on it")
        return problems + relay_wanting(_relay(spec))


def _relay(spec: TunnelSpec) -> RelaySpec:
    return RelaySpec(spec.id, spec.name(Part.INNER), wire_of(spec))


ETHERIP_RELAY, GRETAP_RELAY = RelayTunnel(ETHERIP), RelayTunnel(GRETAP)
