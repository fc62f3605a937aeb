"""A port of the bridge's for a moment, through which a prober sees what a guest's tap would.

A tap without TUNSETPERSIST: it goes with its descriptor, so that a death at any moment leaves
nothing. Made in the thread of `netsetup.rtnl`, with its socket `ip`.
"""

import fcntl
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from errno import ENOENT
from functools import partial
from typing import Any

from netsetup.errors import RefusedError
from netsetup.links import OUR_ALIAS
from netsetup.packets import Program, attach_filter
from netsetup.segments import SegmentFacts

WINDOW_ALIAS = f"{OUR_ALIAS}probe"
_CLONE_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNATTACHFILTER = 0x401054D5
_IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x8000
_IFREQ = struct.Struct("16sH22x")
_PVID_UNTAGGED = 0x2 | 0x4  # BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED


@dataclass(frozen=True, slots=True)
class Window:
    """The guest's end of a tap that nobody else has; closing `descriptor` removes it."""

    descriptor: int
    name: str


def open_window(
    ip: Any,
    facts: SegmentFacts,
    *,
    vlan: int | None,
    isolated: bool,
    mtu_bytes: int,
    heard: Program,
) -> Window:
    """Return a port of the bridge that is up, with the VLAN as its own where the bridge filters.

    Raises `RefusedError`; then nothing is left.
    """
    try:
        device = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise RefusedError(
            f"open {_CLONE_DEVICE}",
            exc.errno or ENOENT,
            next_step="load the module: modprobe tun" if exc.errno == ENOENT else None,
        ) from exc
    try:
        name = f"qmp-{secrets.token_hex(4)}"
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
        fcntl.ioctl(device, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        attach_filter(heard, partial(fcntl.ioctl, device, _TUNATTACHFILTER))
        index = socket.if_nametoindex(name)
        # fe: as libvirt does: no bridge takes it for its own. The mtu before it becomes a port,
        # for a bridge takes the smallest.
        mac = "fe:" + secrets.token_bytes(5).hex(":")
        mtu_bytes = max(mtu_bytes, facts.mtu_bytes)
        ip.link("set", index=index, ifalias=WINDOW_ALIAS, address=mac, mtu=mtu_bytes)
        ip.link("set", index=index, master=facts.index)
        if isolated:
            ip.brport("set", index=index, isolated=1)
        if facts.vlan_filtering and vlan is not None and vlan != facts.default_pvid:
            info = {"vid": vlan, "flags": _PVID_UNTAGGED}
            ip.vlan_filter("add", index=index, vlan_info=info)
            if facts.default_pvid is not None:  # or its frames would come out here as well
                ip.vlan_filter("del", index=index, vlan_info={"vid": facts.default_pvid})
        ip.link("set", index=index, state="up")
    except BaseException:
        os.close(device)
        raise
    return Window(device, name)
