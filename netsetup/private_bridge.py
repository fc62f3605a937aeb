"""The bridge that guests away from home live in: their taps and one tunnel's port, nothing else.

So no loop can close over it, no spanning trees meet, and neither DHCP nor router advertisements of
one site reach hosts of the other. The host itself is no member either: without the settings below
it would take an address from a router of the guests' home, and answer ARP for addresses of its own
that somebody at the guests' home has too.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from netsetup.links import IFF_UP, Message, bridge_safe_mac
from netsetup.taps import need_link
from netsetup.tunnel_spec import GROUP, Part, TunnelSpec, alias_of

_NO_ARP_REPLIES = "8"  # arp_ignore: none for any local address (ip-sysctl.rst)


def make_deaf(name: str) -> None:
    """Keep the host from speaking or answering through interface `name`."""
    settings = (
        (f"ipv6/conf/{name}/disable_ipv6", "1"),
        (f"ipv4/conf/{name}/arp_ignore", _NO_ARP_REPLIES),
    )
    for where, value in settings:
        with suppress(OSError):  # no IPv6 in this kernel, or /proc/sys read-only
            Path("/proc/sys/net", where).write_text(value)


def ensure_private_bridge(ip: Any, spec: TunnelSpec, found: Message | None) -> list[str]:
    """Make the private bridge of `spec`, or finish the one `found`; return what was mended."""
    name, alias = spec.name(Part.BRIDGE), alias_of(spec, Part.BRIDGE)
    mended = []
    if found is None:
        ip.link(
            "add",
            ifname=name,
            kind="bridge",
            group=GROUP,
            mtu=spec.mtu_bytes,
            address=bridge_safe_mac(alias),
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
        found = need_link(ip, name)
    elif not found["flags"] & IFF_UP:
        mended.append(f"{name} was down")
    index = found["index"]
    if found.get("ifalias") != alias:
        ip.link("set", index=index, ifalias=alias)
    make_deaf(found.get("ifname"))
    if found.get("mtu") != spec.mtu_bytes:
        ip.link("set", index=index, mtu=spec.mtu_bytes)
    if not found["flags"] & IFF_UP:
        ip.link("set", index=index, state="up")
    return mended
