"""A tunnel whose device the kernel has: made, marked and guarded, but not yet in a bridge.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`. Each step
looks first, so that what a killed process left is finished; the order leaves nothing unguarded:
mark, filters, and only then, in `netsetup.tunnel_build`, the bridge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EAFNOSUPPORT, EEXIST, EOPNOTSUPP
from typing import Any, Protocol

from netsetup.bpf import drop_all, drop_link_local, drop_link_local_and_redirect
from netsetup.errors import HostError, RefusedError
from netsetup.links import IFF_UP, Message, bridge_safe_mac
from netsetup.port_filters import (
    EGRESS,
    INGRESS,
    Filter,
    ProgramFilter,
    ensure_filters,
    filters_differ,
)
from netsetup.private_bridge import make_deaf
from netsetup.taps import get_link, need_link
from netsetup.tunnel_spec import GROUP, Address, Part, TunnelSpec, alias_of

_FIRST, _LAST = 1, 9  # priorities; a device's own filters are between
_ATTEMPT_NAME = "qm-attempt"

Parts = dict[Part, Message]


@dataclass(frozen=True, slots=True)
class Carried:
    """What a tunnel's device tells about itself."""

    kind: str
    local: Address
    remote: Address
    key: int
    udp_port: int | None


class DeviceKind(Protocol):
    """A kind of tunnel that the kernel carries out."""

    kind: str
    module: str  # to load, should the kernel not know it

    def arguments(self, spec: TunnelSpec) -> dict[str, Any]:
        """Return pyroute2's arguments that make the device."""

    def carried(self, spec: TunnelSpec) -> Carried:
        """Return what a device made for `spec` says of itself."""

    def read(self, message: Message) -> Carried | None:
        """Return what `message` says of a device of this kind; None of another."""

    def hidden(self, spec: TunnelSpec) -> bool:
        """Whether the bridge must not see the device itself, but a veth pair before it."""

    def stranger_filters(self, spec: TunnelSpec, redirect: int | None) -> tuple[Filter, ...]:
        """Return what accepts frames of the peer only; none where the kernel does that itself."""


class KernelTunnel:
    """What `netsetup.tunnels` knows of a kind, for `DeviceKind`s."""

    backend = "kernel"

    def __init__(self, device: DeviceKind) -> None:
        self._device = device
        self.kind = device.kind

    def attempt(self, ip: Any, spec: TunnelSpec) -> None:
        """Make a device and filters as of `spec`, never up, and delete it; raise `HostError`."""
        # A name of its own and the mark: what a death leaves here `gc` finds.
        self._add(ip, spec, _ATTEMPT_NAME)
        message = need_link(ip, _ATTEMPT_NAME)
        try:
            ensure_filters(ip, message["index"], self._device_filters(spec, None))
        finally:
            ip.link("del", index=message["index"])

    def build(self, ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> list[str]:
        """Make what is missing of the tunnel and put it in `parts`; return what was mended."""
        mended = self._drop_misfits(ip, spec, parts)
        device_part = Part.DEVICE if self._device.hidden(spec) else Part.PORT
        if device_part is Part.DEVICE:
            self._ensure_pair(ip, spec, parts, mtu_bytes)
        if device_part not in parts:
            self._add(ip, spec, spec.name(device_part), mtu_bytes)
        for part in (Part.PORT, Part.INNER, Part.DEVICE):
            if part in parts or part is device_part:
                self._finish(ip, spec, part, parts, mtu_bytes)
        mended += self._guard(ip, spec, parts, device_part)
        for part in (Part.DEVICE, Part.INNER):
            if part in parts and not parts[part]["flags"] & IFF_UP:
                ip.link("set", index=parts[part]["index"], state="up")
        return mended

    def read(self, parts: Parts) -> Carried | None:
        """Return what the device says; None if there is none of this kind."""
        message = parts.get(Part.DEVICE) or parts.get(Part.PORT)
        return None if message is None else self._device.read(message)

    def unguarded(self, spec: TunnelSpec, parts: Parts) -> bool:
        """Whether filters are missing, or are not those that `spec` needs."""
        return any(
            filters_differ(parts[part]["index"], filters)
            for part, filters in self._filters(spec, parts)
            if part in parts
        )

    def _drop_misfits(self, ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Delete parts that cannot be changed into what `spec` wants."""
        hidden = self._device.hidden(spec)
        device = Part.DEVICE if hidden else Part.PORT
        misfits = set()
        if device in parts and self._device.read(parts[device]) != self._device.carried(spec):
            misfits.add(device)
        if not hidden:
            misfits |= {Part.INNER, Part.DEVICE}
        elif (Part.PORT in parts) != (Part.INNER in parts) or not _is_veth(parts.get(Part.PORT)):
            misfits |= {Part.PORT, Part.INNER}
        mended = []
        for part in Part:
            message = parts.pop(part, None) if part in misfits else None
            if message is None or get_link(ip, message.get("ifname")) is None:
                continue  # a veth takes its other end with it
            mended.append(f"{message.get('ifname')} was of another shape")
            ip.link("del", index=message["index"])
        return mended

    def _add(self, ip: Any, spec: TunnelSpec, name: str, mtu_bytes: int | None = None) -> None:
        try:
            ip.link(
                "add",
                ifname=name,
                group=GROUP,
                address=bridge_safe_mac(alias_of(spec, Part.DEVICE)),
                mtu=mtu_bytes or spec.mtu_bytes,
                **self._device.arguments(spec),
            )
        except Exception as exc:
            code = getattr(exc, "code", None)  # pyroute2's NetlinkError is no OSError
            if code in (EOPNOTSUPP, EAFNOSUPPORT):
                raise HostError(
                    f"this kernel has no {self.kind} over IPv{spec.local.version}",
                    next_step=f"try `modprobe {self._device.module}`, or another kind of tunnel",
                ) from exc
            if code == EEXIST:
                raise RefusedError(
                    f"make {name}: key {spec.key} or these addresses are taken by another "
                    f"{self.kind}",
                    EEXIST,
                    next_step="choose another key; `ip -d link` shows the one that has it",
                ) from exc
            raise

    def _ensure_pair(self, ip: Any, spec: TunnelSpec, parts: Parts, mtu_bytes: int) -> None:
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
        parts.update(_fresh(ip, spec, Part.PORT))
        parts.update(_fresh(ip, spec, Part.INNER))

    def _finish(self, ip: Any, spec: TunnelSpec, part: Part, parts: Parts, mtu_bytes: int) -> None:
        """Mark it, silence the host on it, size it."""
        if part not in parts:
            parts.update(_fresh(ip, spec, part))
        message = parts[part]
        if message.get("ifalias") != (alias := alias_of(spec, part)):
            ip.link("set", index=message["index"], ifalias=alias)
        make_deaf(message.get("ifname"))
        if message.get("mtu") != mtu_bytes:
            ip.link("set", index=message["index"], mtu=mtu_bytes)

    def _guard(self, ip: Any, spec: TunnelSpec, parts: Parts, device: Part) -> list[str]:
        """Put the filters on; an interface that has wrong ones is taken down first."""
        mended = []
        for part, filters in self._filters(spec, parts):
            index = parts[part]["index"]
            if not filters_differ(index, filters):
                continue
            if parts[part]["flags"] & IFF_UP:
                mended.append(f"{parts[part].get('ifname')} had other filters")
                ip.link("set", index=index, state="down")
                parts.update(_fresh(ip, spec, part))
            ensure_filters(ip, index, filters)
        return mended

    def _filters(self, spec: TunnelSpec, parts: Parts) -> list[tuple[Part, tuple[Filter, ...]]]:
        if not self._device.hidden(spec):
            return [(Part.PORT, self._device_filters(spec, None))]
        inner, device = (parts[part]["index"] for part in (Part.INNER, Part.DEVICE))
        return [
            (Part.DEVICE, self._device_filters(spec, inner)),
            (
                Part.INNER,
                (ProgramFilter(INGRESS, _FIRST, drop_link_local_and_redirect(device)),),
            ),
        ]

    def _device_filters(self, spec: TunnelSpec, redirect: int | None) -> tuple[Filter, ...]:
        strangers = self._device.stranger_filters(spec, redirect)
        return (
            ProgramFilter(INGRESS, _FIRST, drop_link_local()),
            *strangers,
            *((ProgramFilter(INGRESS, _LAST, drop_all()),) if strangers else ()),
            # What a bridge itself sends, its own BPDUs, leaves here too.
            ProgramFilter(EGRESS, _FIRST, drop_link_local()),
        )


def _is_veth(message: Message | None) -> bool:
    return message is not None and message.get(("linkinfo", "kind")) == "veth"


def _fresh(ip: Any, spec: TunnelSpec, part: Part) -> Mapping[Part, Message]:
    return {part: need_link(ip, spec.name(part))}
