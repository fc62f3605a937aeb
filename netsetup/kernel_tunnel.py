"""A tunnel whose device the kernel has: made, marked and guarded, but not yet in a bridge.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`. Each step
looks first, so that what a killed process left is finished; the order leaves nothing unguarded:
mark, filters, and only then, in `netsetup.tunnel_build`, the bridge.
"""

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
from netsetup.taps import need_link
from netsetup.tunnel_parts import (
    Carried,
    Parts,
    delete_parts,
    ensure_pair,
    finish_part,
    fresh,
    has_pair,
)
from netsetup.tunnel_spec import GROUP, Part, TunnelSpec, alias_of

UNGUARDED = "filters against strangers and BPDUs are missing"
_FIRST, _LAST = 1, 9  # priorities; a device's own filters are between
_ATTEMPT_NAME = "qm-attempt"


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
            ensure_pair(ip, spec, parts, mtu_bytes)
        if device_part not in parts:
            self._add(ip, spec, spec.name(device_part), mtu_bytes)
        for part in (Part.PORT, Part.INNER, Part.DEVICE):
            if part in parts or part is device_part:
                finish_part(ip, spec, part, parts, mtu_bytes)
        mended += self._guard(ip, spec, parts, device_part)
        for part in (Part.DEVICE, Part.INNER):
            if part in parts and not parts[part]["flags"] & IFF_UP:
                ip.link("set", index=parts[part]["index"], state="up")
        return mended

    def read(self, parts: Parts) -> Carried | None:
        """Return what the device says; None if there is none of this kind."""
        message = parts.get(Part.DEVICE) or parts.get(Part.PORT)
        return None if message is None else self._device.read(message)

    def wanting(self, _ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Say whether filters are missing, or are not those that `spec` needs."""
        differ = any(
            filters_differ(parts[part]["index"], filters)
            for part, filters in self._filters(spec, parts)
            if part in parts
        )
        return [UNGUARDED] if differ else []

    def _drop_misfits(self, ip: Any, spec: TunnelSpec, parts: Parts) -> list[str]:
        """Delete parts that cannot be changed into what `spec` wants."""
        hidden = self._device.hidden(spec)
        device = Part.DEVICE if hidden else Part.PORT
        misfits = set()
        if device in parts and self._device.read(parts[device]) != self._device.carried(spec):
            misfits.add(device)
        if not hidden:
            misfits |= {Part.INNER, Part.DEVICE}
        elif not has_pair(parts):
            misfits |= {Part.PORT, Part.INNER}
        return delete_parts(ip, parts, misfits)

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
                parts.update(fresh(ip, spec, part))
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
