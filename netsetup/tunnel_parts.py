"""Interfaces of a tunnel's end: made, marked, silenced and sized, whatever carries the frames.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netsetup.links import Message, bridge_safe_mac
from netsetup.private_bridge import make_deaf
from netsetup.taps import get_link, need_link
from netsetup.tunnel_spec import GROUP, Address, Part, TunnelSpec, alias_of

Parts = dict[Part, Message]


@dataclass(frozen=True, slots=True)
class Carried:
    """What a tunnel's interfaces tell of what they carry."""

    kind: str
    local: Address
    remote: Address
    key: int
    udp_port: int | None
    path_mtu_bytes: int | None = None
    reversed_header: bool = False


def fresh(ip: Any, spec: TunnelSpec, part: Part) -> Mapping[Part, Message]:
    """Return the part as it is now; raise `NoSuchLinkError` if somebody took it."""
    return {part: need_link(ip, spec.name(part))}


def is_veth(message: Message | None) -> bool:
    """Whether there is one and it is an end of a veth pair."""
    return message is not None and message.get(("linkinfo", "kind")) == "veth"


def has_pair(parts: Parts) -> bool:
    """Whether port and inner end are there, or neither is."""
    return (Part.PORT in parts) == (Part.INNER in parts) and (
        Part.PORT not in parts or is_veth(parts[Part.PORT])
    )


def delete_parts(ip: Any, parts: Parts, misfits: set[Part]) -> list[str]:
    """Delete what cannot be changed into what is wanted; return what was mended."""
    mended = []
    for part in Part:
        message = parts.pop(part, None) if part in misfits else None
        if message is None or get_link(ip, message.get("ifname")) is None:
            continue  # a veth takes its other end with it
        mended.append(f"{message.get('ifname')} was of another shape")
        ip.link("del", index=message["index"])
    return mended


def ensure_pair(ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> None:
    """Make the port and its other end, marked as ours, down and in no bridge."""
    if Part.PORT in parts:
        return
    ip.link(
        "add",
        ifname=spec.name(Part.PORT),
        kind="veth",
        group=GROUP,
        mtu=mtu_bytes,
        address=bridge_safe_mac(alias_of(spec, Part.PORT)),
        peer={
            "ifname": spec.name(Part.INNER),
            "group": GROUP,
            "mtu": mtu_bytes,
            "address": bridge_safe_mac(alias_of(spec, Part.INNER)),
        },
    )
    parts.update(fresh(ip, spec, Part.PORT))
    parts.update(fresh(ip, spec, Part.INNER))


def finish_part(ip: Any, spec: TunnelSpec, part: Part, parts: Parts, mtu_bytes: int) -> None:
    """Mark it, silence the host on it, size it."""
    if part not in parts:
        parts.update(fresh(ip, spec, part))
    message = parts[part]
    if message.get("ifalias") != (alias := alias_of(spec, part)):
        ip.link("set", index=message["index"], ifalias=alias)
    make_deaf(message.get("ifname"))
    if message.get("mtu") != mtu_bytes:
        ip.link("set", index=message["index"], mtu=mtu_bytes)
