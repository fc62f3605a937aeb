"""Ethernet in GRE (RFC 2784, key of RFC 2890) by the kernel: ``gretap``, over IPv6 ``ip6gretap``.

The kernel finds the device by both outer addresses and the key, so strangers' frames do not come
in. Over IPv4 the outer packet is cut where it must be: ``pmtudisc=0, ignore_df=1``, and nothing
less (facts: the table of options against sizes). Over IPv6 it never is.
"""

from ipaddress import ip_address
from socket import htons
from typing import Any

from netsetup.kernel_tunnel import KernelTunnel
from netsetup.links import Message
from netsetup.port_filters import Filter
from netsetup.tunnel_parts import Carried
from netsetup.tunnel_spec import TunnelSpec

_TTL = 64
_GRE_KEY = 0x2000
_NO_ENCAPSULATION_LIMIT = 0x1  # IP6_TNL_F_IGN_ENCAP_LIMIT: saves 8 bytes of every packet


class GretapDevice:
    """The `DeviceKind`."""

    kind = "gretap"
    module = "ip_gre"

    def arguments(self, spec: TunnelSpec) -> dict[str, Any]:
        """Return what makes the device."""
        if spec.local.version == 4:
            return {
                "kind": "gretap",
                "gre_local": str(spec.local),
                "gre_remote": str(spec.remote),
                "gre_ttl": _TTL,
                "gre_pmtudisc": 0,
                "gre_ignore_df": 1,
                **_keyed("gre", spec.key, _GRE_KEY),
            }
        return {
            "kind": "ip6gretap",
            "ip6gre_local": str(spec.local),
            "ip6gre_remote": str(spec.remote),
            "ip6gre_ttl": _TTL,
            # pyroute2 writes these flags in the machine's order.
            **_keyed("ip6gre", spec.key, htons(_GRE_KEY)),
            "ip6gre_flags": _NO_ENCAPSULATION_LIMIT,
        }

    def carried(self, spec: TunnelSpec) -> Carried:
        """Return what it should say of itself."""
        return Carried(self.kind, spec.local, spec.remote, spec.key, None)

    def read(self, message: Message) -> Carried | None:
        """Return what a gretap device says of itself."""
        prefix = {"gretap": "gre", "ip6gretap": "ip6gre"}.get(
            message.get(("linkinfo", "kind")) or ""
        )
        if prefix is None:
            return None
        local, remote, key = (
            message.get(("linkinfo", "data", f"{prefix}_{name}"))
            for name in ("local", "remote", "okey")
        )
        if local is None or remote is None:
            return None
        return Carried(self.kind, ip_address(local), ip_address(remote), key or 0, None)

    def hidden(self, spec: TunnelSpec) -> bool:
        """Never: the device itself cuts."""
        return False

    def stranger_filters(self, spec: TunnelSpec, redirect: int | None) -> tuple[Filter, ...]:
        """None are needed."""
        return ()


def _keyed(prefix: str, key: int, flags: int) -> dict[str, int]:
    if not key:
        return {}
    values = {"ikey": key, "okey": key, "iflags": flags, "oflags": flags}
    return {f"{prefix}_{name}": value for name, value in values.items()}


GRETAP = KernelTunnel(GretapDevice())
