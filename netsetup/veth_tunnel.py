"""A tunnel's end of two interfaces, a veth pair, for those that carry frames without a device.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`. As with a
device each step looks first, and nothing is left unguarded: what the bridge sends into the port
comes out of the inner end, where it is taken or dropped; the host itself is deaf there.
"""

from collections.abc import Iterable
from errno import EEXIST
from typing import Any

from netsetup.errors import HostError
from netsetup.inner_marks import carrier_name, is_carrier, is_wire, read_names, wire_name
from netsetup.links import IFF_UP, other_names
from netsetup.mtu import MAX_MTU_BYTES
from netsetup.port_filters import Filter, ensure_filters, filters_differ
from netsetup.tunnel_parts import (
    Carried,
    Parts,
    delete_parts,
    ensure_pair,
    finish_part,
    fresh,
    has_pair,
)
from netsetup.tunnel_spec import Part, TunnelSpec
from netsetup.underlay import release_underlay
from netsetup.wire import ETHERIP

ATTEMPT_INDEX = 1  # of lo, in every namespace: programs are tried there and attached nowhere
# Before Linux 5.12 a frame could grow only to what its interface takes (bpf_skb_change_head).
_HEADROOM_BYTES = 100


def ensure_ends(ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int, backend: str) -> list[str]:
    """Make both ends, marked and named, down; return what was mended.

    Raises `HostError` if another tunnel has the packets between the two addresses.
    """
    mended = _drop_misfits(ip, spec, parts)
    ensure_pair(ip, spec, parts, mtu_bytes)
    finish_part(ip, spec, Part.PORT, parts, mtu_bytes)
    inner_mtu_bytes = min(mtu_bytes + _HEADROOM_BYTES, MAX_MTU_BYTES)
    finish_part(ip, spec, Part.INNER, parts, inner_mtu_bytes)
    inner = parts[Part.INNER]
    has = other_names(inner)
    carrier = carrier_name(spec, backend)
    for stale in (name for name in has if is_carrier(name) and name != carrier):
        ip.link("property_del", index=inner["index"], altname=stale)
        mended.append(f"{inner.get('ifname')} was carried otherwise")
    for name in (wire_name(spec), carrier):
        if name not in has:
            _add_name(ip, spec, inner["index"], name)
    parts.update(fresh(ip, spec, Part.INNER))
    return mended


def read(parts: Parts, backend: str) -> Carried | None:
    """Return what the inner end says; None if `backend` does not carry it."""
    if Part.INNER not in parts or Part.DEVICE in parts:
        return None
    marks = read_names(other_names(parts[Part.INNER]))
    return marks.carried if marks.backend == backend else None


def clear_ends(ip: Any, parts: Parts) -> None:
    """Make room for what carries frames by a device: delete ends that carry them without."""
    if any(map(is_carrier, other_names(parts[Part.INNER]) if Part.INNER in parts else ())):
        release_underlay(ip, parts)
        delete_parts(ip, parts, {Part.PORT, Part.INNER})


def guard_ends(
    ip: Any, spec: TunnelSpec, parts: Parts, filters: Iterable[tuple[Part, tuple[Filter, ...]]]
) -> list[str]:
    """Put filters on both ends; one that has wrong ones is taken down first."""
    mended = []
    for part, wanted in filters:
        index = parts[part]["index"]
        if not filters_differ(index, wanted):
            continue
        if parts[part]["flags"] & IFF_UP:
            mended.append(f"{parts[part].get('ifname')} had other filters")
            ip.link("set", index=index, state="down")
            parts.update(fresh(ip, spec, part))
        ensure_filters(ip, index, wanted)
    return mended


def raise_inner(ip: Any, spec: TunnelSpec, parts: Parts) -> None:
    """Set the inner end up."""
    parts.update(fresh(ip, spec, Part.INNER))
    if not parts[Part.INNER]["flags"] & IFF_UP:
        ip.link("set", index=parts[Part.INNER]["index"], state="up")


def _drop_misfits(ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
    """Delete what carries other packets, or is no pair."""
    named = set(filter(is_wire, other_names(parts[Part.INNER]))) if Part.INNER in parts else set()
    if has_pair(parts) and Part.DEVICE not in parts and named <= {wire_name(spec)}:
        return []
    release_underlay(ip, parts)
    return delete_parts(ip, parts, {Part.PORT, Part.INNER, Part.DEVICE})


def _add_name(ip: Any, spec: TunnelSpec, index: int, name: str) -> None:
    try:
        ip.link("property_add", index=index, altname=name)
    except Exception as exc:
        if getattr(exc, "code", None) != EEXIST:  # pyroute2's NetlinkError is no OSError
            raise
        if spec.kind == ETHERIP:
            raise HostError(
                f"another segment has the EtherIP tunnel between {spec.local} and {spec.remote}: "
                "it has no key to tell two apart",
                next_step="take gretap or vxlan for this one, another pair of addresses, or join "
                "both segments by one tunnel as VLANs of a bridge",
            ) from exc
        raise HostError(
            f"another tunnel between {spec.local} and {spec.remote} has key {spec.key}",
            next_step="choose another key",
        ) from exc
