"""What /sys tells of a bridge that does not filter VLANs: the same as netlink, without its price.

A process's first netlink question costs the import of pyroute2, 0.1 s; a probe of two segments
that are one needs 2 ms. /sys belongs to the network namespace that it was mounted in, which need
not be this thread's: so the bridge's index and address are compared with what a socket says, and
where anything is not as expected the answer is None and netlink is asked.

Sources: Documentation/ABI/testing/sysfs-class-net, net/bridge/br_sysfs_br.c, br_sysfs_if.c.
"""

import array
import fcntl
import socket
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from netsetup.links import IFF_UP, PORT_STATES
from netsetup.segments import PortFacts, SegmentFacts

_NET = Path("/sys/class/net")
_SIOCGIFHWADDR = 0x8927
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x00000003
_DRVINFO_BYTES = 196  # struct ethtool_drvinfo: cmd 4, driver 32, …
_USER_HZ = 100
# struct __fdb_entry: | mac 6 | port 1 | local 1 | age 4 | port, high byte 1 | 1 | 2 |
_FDB = struct.Struct("=6sBBIBxxx")
# What a driver's name says about the kind; of hardware it is the driver's own, and no kind.
_KINDS = frozenset(
    "tun veth bridge vxlan gretap ip6gretap geneve bonding dummy macvlan".split()  # noqa: SIM905
)


def describe_bridge(bridge: str) -> SegmentFacts | None:
    """Return the bridge without its ports; None if /sys does not show it as this thread has it."""
    here = _NET / bridge
    try:
        if not (here / "bridge").is_dir() or not _is_ours(bridge):
            return None
        found = SegmentFacts(
            bridge=bridge,
            index=_number(here / "ifindex"),
            mac=_text(here / "address"),
            mtu_bytes=_number(here / "mtu"),
            up=bool(int(_text(here / "flags"), 16) & IFF_UP),
            stp=_number(here / "bridge/stp_state") != 0,
            forward_delay_s=_number(here / "bridge/forward_delay") / _USER_HZ,
            vlan_filtering=_filters(here),
            default_pvid=_pvid(here),
        )
    except (OSError, ValueError):
        return None
    return None if found.vlan_filtering else found


def describe_ways(
    facts: SegmentFacts, names: Iterable[str], *, guest_mac: str | None = None
) -> SegmentFacts | None:
    """Return `facts` with the interfaces `names` and the guest's port; None as above."""
    if facts.vlan_filtering or not _is_ours(facts.bridge):
        return None
    try:
        guest = None if guest_mac is None else _port_of(facts.bridge, guest_mac)
        wanted = dict.fromkeys([*names, *([] if guest is None else [guest])])
        ports = tuple(describe_port(name) for name in wanted if (_NET / name).exists())
    except (OSError, ValueError):
        return None
    return replace(facts, ports=ports, guest_port=guest)


def describe_port(name: str) -> PortFacts:
    """Return an interface; raises `OSError` or `ValueError` where /sys does not tell."""
    here = _NET / name
    master = here / "brport"
    state = _number(master / "state") if master.is_dir() else None
    return PortFacts(
        name=name,
        kind=_kind(name),
        bridge=(here / "master").readlink().name if state is not None else None,
        state=PORT_STATES[state] if state is not None and state < len(PORT_STATES) else None,
        up=bool(int(_text(here / "flags"), 16) & IFF_UP),
        carrier=_carrier(here),
        mtu_bytes=_number(here / "mtu"),
        isolated=(master / "isolated").is_file() and _number(master / "isolated") != 0,
        alias=_text(here / "ifalias") or None,
    )


def ports_of(bridge: str) -> tuple[str, ...]:
    """Return the names of a bridge's ports."""
    return tuple(sorted(port.name for port in (_NET / bridge / "brif").iterdir()))


def bridges() -> tuple[str, ...]:
    """Return the names of the bridges that /sys shows."""
    return tuple(sorted(here.name for here in _NET.iterdir() if (here / "bridge").is_dir()))


def has_group(group: int) -> bool:
    """Say whether an interface is in a group of interfaces."""
    return any(_group(here) == group for here in _NET.iterdir())


def _group(here: Path) -> int | None:
    try:
        return _number(here / "netdev_group")
    except (OSError, ValueError):  # bonding_masters is a file; others go while they are looked at
        return None


def _is_ours(bridge: str) -> bool:
    """Say whether /sys and this thread mean the same interface by that name."""
    try:
        index = socket.if_nametoindex(bridge)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            answer = fcntl.ioctl(plain, _SIOCGIFHWADDR, struct.pack("16s24x", bridge.encode()))
        mac = answer[18:24].hex(":")
        here = _NET / bridge
        return (index, mac) == (_number(here / "ifindex"), _text(here / "address"))
    except (OSError, ValueError):
        return False


def _kind(name: str) -> str | None:
    """Return the kind of interface, by its driver's name; None for hardware.

    Raises `OSError` where the kernel does not say, as old ones of tunnels.
    """
    if (_NET / name / "device").exists():
        return None
    told = array.array("B", struct.pack("=I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    address, _ = told.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        fcntl.ioctl(plain, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), address))
    driver = told.tobytes()[4:36].split(b"\0")[0].decode()
    if driver not in _KINDS:
        raise OSError(f"{name} is of a kind that only netlink names")
    return "bond" if driver == "bonding" else driver


def _port_of(bridge: str, mac: str) -> str | None:
    octets = (_NET / bridge / "brforward").read_bytes()
    wanted = bytes.fromhex(mac.replace(":", ""))
    for start in range(0, len(octets) - _FDB.size + 1, _FDB.size):
        found, low, local, _, high = _FDB.unpack_from(octets, start)
        if found == wanted and not local:
            number = low | high << 8
            for name in ports_of(bridge):
                if int(_text(_NET / name / "brport/port_no"), 16) == number:
                    return name
    return None


def _filters(here: Path) -> bool:
    """A kernel that cannot filter has no such file."""
    file = here / "bridge/vlan_filtering"
    return file.exists() and _number(file) != 0


def _pvid(here: Path) -> int | None:
    file = here / "bridge/default_pvid"
    return (_number(file) or None) if file.exists() else None


def _carrier(here: Path) -> bool:
    try:
        return _number(here / "carrier") != 0
    except OSError:  # EINVAL: it is down
        return False


def _text(file: Path) -> str:
    return file.read_text().strip()


def _number(file: Path) -> int:
    return int(_text(file))
