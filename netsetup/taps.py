"""A guest's tap, made so that a death at any moment leaves either nothing or a tap with our mark.

A tap lives as long as a descriptor on it is open, until TUNSETPERSIST. So that is the last step:
before it the kernel itself is the undo, and after it the tap carries its alias. Everything here
blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`; sources:
Documentation/networking/tuntap.rst, drivers/net/tun.c.
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from errno import EBUSY, ENOENT
from pathlib import Path
from typing import Any

from netsetup.errors import HostError, NoSuchLinkError, NotOursError, RefusedError
from netsetup.links import (
    IFF_LOWER_UP,
    IFF_UP,
    Message,
    PortFlags,
    Tap,
    TapSpec,
    bridge_safe_mac,
    check_alias,
    tap_names,
)

_CLONE_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000  # EBUSY if the name exists: without it root attaches to a stranger's tap
_IFREQ = struct.Struct("16sH22x")


def get_link(ip: Any, name: str) -> Message | None:
    """Return the message about interface `name`, None if there is none."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return None
    found: Message = ip.link("get", index=index)[0]
    return found


def need_link(ip: Any, name: str) -> Message:
    """Return the message about interface `name`; raise `NoSuchLinkError` if somebody took it."""
    message = get_link(ip, name)
    if message is None:
        raise NoSuchLinkError(f"{name} was there and has gone: somebody else removed it")
    return message


def create_tap(ip: Any, spec: TapSpec) -> Tap:
    """Make the tap of `spec`, or take the one that already carries its alias."""
    messages = list(ip.link("dump"))
    bridge = next((m for m in messages if m.get("ifname") == spec.bridge), None)
    if bridge is None or bridge.get(("linkinfo", "kind")) != "bridge":
        others = [m.get("ifname") for m in messages if m.get(("linkinfo", "kind")) == "bridge"]
        raise NoSuchLinkError(
            f"there is no bridge {spec.bridge}",
            next_step=f"bridges here: {', '.join(others) or 'none'}",
        )
    for message in messages:
        if message.get("ifalias") == spec.alias and message.get(("linkinfo", "kind")) == "tun":
            if _is_open(message):
                raise HostError(
                    f"{message.get('ifname')} carries the alias {spec.alias!r} and is open in some "
                    "process: a guest lives on it",
                    next_step="end the process that has it open, or remove the interface",
                )
            if _has_shape(message, spec):
                return _finish(ip, message["index"], message.get("ifname"), bridge, spec, False)
            if _may_be_open(message):
                raise HostError(
                    f"{message.get('ifname')} carries the alias {spec.alias!r}, is open in some "
                    "process, and differs in queues or owner from what is wanted",
                    next_step="end the process that has it open, or remove the interface",
                )
            ip.link("del", index=message["index"])  # ours, unused, from another attempt
    device, name = _open_new(spec)
    try:  # until TUNSETPERSIST, closing the descriptor undoes all of it
        index = socket.if_nametoindex(name)
        ip.link("set", index=index, ifalias=spec.alias, address=bridge_safe_mac(spec.alias))
        if spec.owner_uid is not None:
            fcntl.ioctl(device, _TUNSETOWNER, spec.owner_uid)
        tap = _finish(ip, index, name, bridge, spec, True)
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    finally:
        os.close(device)
    return tap


def _open_new(spec: TapSpec) -> tuple[int, str]:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
    flags |= _IFF_MULTI_QUEUE if spec.multi_queue else 0
    flags |= _IFF_VNET_HDR if spec.vnet_hdr else 0
    try:
        device = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise RefusedError(
            f"open {_CLONE_DEVICE}",
            exc.errno or ENOENT,
            next_step="load the module: modprobe tun" if exc.errno == ENOENT else None,
        ) from exc
    names = tap_names(spec)
    for name in names:
        try:
            fcntl.ioctl(device, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        except OSError as exc:
            if exc.errno == EBUSY:
                continue
            os.close(device)
            raise RefusedError(f"make tap {name}", exc.errno or ENOENT) from exc
        return device, name
    os.close(device)
    raise HostError(f"every name for the tap is taken here: {', '.join(names)}")


def _has_shape(message: Message, spec: TapSpec) -> bool:
    """Whether what cannot be changed later, queues and owner, is as `spec` wants it."""
    data = ("linkinfo", "data")
    queues = bool(message.get((*data, "tun_multi_queue")))
    return queues == spec.multi_queue and message.get((*data, "tun_owner")) == spec.owner_uid


def _may_be_open(message: Message) -> bool:
    """Whether a process has the tap open; a tap that is down cannot tell."""
    return _is_open(message) or not message["flags"] & IFF_UP


def _is_open(message: Message) -> bool:
    """Whether a process is seen to have the tap open."""
    # The kernel counts queues only of taps that can have several; all have carrier when open.
    queues = message.get(("linkinfo", "data", "tun_num_queues"))
    return bool(queues or message["flags"] & IFF_LOWER_UP)


def _finish(ip: Any, index: int, name: str, bridge: Message, spec: TapSpec, created: bool) -> Tap:
    # The mtu first: a bridge takes the smallest of its ports' for its own at the moment they join.
    mtu_bytes = max(spec.mtu_bytes or 0, bridge.get("mtu"))
    ip.link("set", index=index, mtu=mtu_bytes)
    _silence(name)
    ip.link("set", index=index, master=bridge["index"])
    if spec.vlan is not None:
        join_vlan(ip, index, spec.vlan, bridge)
    if flags := _port_attributes(spec.flags):
        ip.brport("set", index=index, **flags)  # before up: not for an instant less isolated
    ip.link("set", index=index, state="up")
    return Tap(name, index, spec.bridge, mtu_bytes, spec.alias, created)


def join_vlan(ip: Any, index: int, vlan: int, bridge: Message) -> None:
    """Put a port of `bridge` into one VLAN, untagged, and no other.

    A bridge that does not filter has none: there the guest tags, and the tags pass.
    """
    if not bridge.get(("linkinfo", "data", "br_vlan_filtering")):
        return
    usual = bridge.get(("linkinfo", "data", "br_vlan_default_pvid"))
    if usual and vlan != usual:
        try:
            ip.vlan_filter("del", index=index, vlan_info={"vid": usual})
        except Exception as exc:  # it was never in it, or has been taken out before
            if not isinstance(getattr(exc, "code", None), int):  # pyroute2's NetlinkError
                raise
    ip.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": ["pvid", "untagged"]})


def _silence(name: str) -> None:
    """Keep the host itself from speaking IPv6 into the guest through its end of the tap."""
    with suppress(OSError):  # no IPv6 in this kernel, or /proc/sys read-only: nothing is lost
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def _port_attributes(flags: PortFlags) -> dict[str, int]:
    wanted = {
        "isolated": flags.isolated,
        "mode": flags.hairpin,
        "learning": flags.learning,
        "unicast_flood": flags.unicast_flood,
    }
    return {key: int(value) for key, value in wanted.items() if value is not None}


def delete_tap(ip: Any, name: str, alias: str) -> bool:
    """Delete the tap `name` if it is one and its alias is exactly `alias`; False if it is gone."""
    check_alias(alias)
    message = get_link(ip, name)
    if message is None:
        return False
    kind, found = message.get(("linkinfo", "kind")), message.get("ifalias")
    if kind != "tun" or found != alias:
        raise NotOursError(
            f"{name} is left alone: it is "
            + (f"a {kind or 'hardware'} interface" if kind != "tun" else f"marked {found!r}")
            + f", not the tap marked {alias!r}"
        )
    if _is_open(message):
        raise NotOursError(f"{name} is left alone: a process has it open, a guest lives on it")
    ip.link("del", index=message["index"])
    return True
