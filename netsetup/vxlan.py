"""VXLAN (RFC 7348) by the kernel: UDP, so that NAT, firewalls and load balancing know it.

Three things that the device alone does not do:

- It takes frames from anybody who knows the VNI. Its own learning is off, or a stranger's frame
  would turn traffic before any filter sees it; a filter accepts the peer's outer address only.
- As a bridge's port it answers a frame that does not fit with ICMP "too big" in the receiver's
  name and drops it (`skb_tunnel_check_pmtu`, Linux 5.9). Where frames are to be cut instead, it
  stands behind a veth pair: then it is no bridge's port, and the outer packet is cut.
- A lower device (``link``) would forbid an MTU that has to be cut; none is given.
"""

from ipaddress import ip_address
from typing import Any

from netsetup.bpf import accept_too_big
from netsetup.kernel_tunnel import KernelTunnel
from netsetup.links import Message
from netsetup.mtu import ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, VLAN_TAG_BYTES, Manner
from netsetup.port_filters import ALL_PROTOCOLS, INGRESS, TAGS, Filter, OuterFilter, ProgramFilter
from netsetup.tunnel_parts import Carried
from netsetup.tunnel_spec import TunnelSpec

_TTL = 64
_SHIM_BYTES = 8 + 8  # UDP, VXLAN
_SOURCE_OFFSET = {4: 12, 6: 8}  # in the outer IP header


class VxlanDevice:
    """The `DeviceKind`."""

    kind = "vxlan"
    module = "vxlan"

    def arguments(self, spec: TunnelSpec) -> dict[str, Any]:
        """Return what makes the device."""
        six = "6" if spec.local.version == 6 else ""
        return {
            "kind": "vxlan",
            "vxlan_id": spec.key,
            f"vxlan_local{six}": str(spec.local),
            f"vxlan_group{six}": str(spec.remote),
            "vxlan_port": spec.udp_port,
            "vxlan_ttl": _TTL,
            "vxlan_learning": 0,
        }

    def carried(self, spec: TunnelSpec) -> Carried:
        """Return what it should say of itself."""
        return Carried(self.kind, spec.local, spec.remote, spec.key, spec.udp_port)

    def read(self, message: Message) -> Carried | None:
        """Return what a vxlan device says of itself."""
        if message.get(("linkinfo", "kind")) != "vxlan":
            return None

        def told(*names: str) -> Any:
            values = (message.get(("linkinfo", "data", f"vxlan_{name}")) for name in names)
            return next((value for value in values if value is not None), None)

        local, remote = told("local", "local6"), told("group", "group6")
        if local is None or remote is None:
            return None
        return Carried(
            self.kind, ip_address(local), ip_address(remote), told("id") or 0, told("port")
        )

    def hidden(self, spec: TunnelSpec) -> bool:
        """Only where frames have to be cut."""
        return spec.manner is Manner.FRAGMENTS

    def stranger_filters(self, spec: TunnelSpec, redirect: int | None) -> tuple[Filter, ...]:
        """Accept the peer's address where the outer header's source lies."""
        version = spec.remote.version
        header = {4: IPV4_BYTES, 6: IPV6_BYTES}[version]
        offset = _SOURCE_OFFSET[version] - (header + _SHIM_BYTES + ETHERNET_BYTES)
        # A tag is taken out before filters see the frame, its four octets stay where they were.
        places = [(ALL_PROTOCOLS, offset), *((tag, offset - VLAN_TAG_BYTES) for tag in TAGS)]
        peers = tuple(
            OuterFilter(priority, spec.remote.packed, where, protocol, redirect)
            for priority, (protocol, where) in enumerate(places, start=2)
        )
        if spec.manner is not Manner.TOLD:
            return peers
        # The device's own answer comes in by it as well, and has no outer header. From outside
        # a stranger could send the same; with the peer's address forged he could do that anyway.
        return (*peers, ProgramFilter(INGRESS, 2 + len(peers), accept_too_big()))


VXLAN = KernelTunnel(VxlanDevice())
