"""The nouns of a host's network, read out of netlink messages; pure.

`Message` is what pyroute2 makes of an RTM_NEWLINK: attributes by ``get("address")``, nested ones
by ``get(("linkinfo", "kind"))``, None where there is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from netsetup.errors import UsageError

NAME_BYTES = 15  # IFNAMSIZ - 1
ALIAS_BYTES = 255  # IFALIASZ - 1
OUR_ALIAS = "qmigrate:"  # what the marks of qmigrate's own interfaces begin with
MIN_MTU_BYTES, MAX_MTU_BYTES = 68, 65521  # of a tun device (drivers/net/tun.c)

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_BRIDGE_VLAN_PVID = 0x2


class Message(Protocol):
    """An RTM_NEWLINK as pyroute2 hands it out."""

    def get(self, key: Any, default: Any = None) -> Any: ...  # noqa: D102

    def __getitem__(self, key: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of this network namespace."""

    index: int
    name: str
    kind: str | None  # "bridge", "tun" (taps too), "veth", "vxlan", …; None for hardware and lo
    mac: str | None
    mtu_bytes: int
    master: str | None  # the bridge or bond that it is a port of
    alias: str | None
    up: bool  # set up by the administrator
    carrier: bool  # something holds the other end
    isolated: bool = False  # a bridge port that does not talk to other isolated ones


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge and its ports."""

    name: str
    index: int
    mac: str | None
    mtu_bytes: int
    up: bool
    stp: bool | None
    forward_delay_s: float | None
    vlan_filtering: bool | None  # None: this kernel cannot
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PortFlags:
    """What a bridge lets a port do; None leaves the kernel's default."""

    isolated: bool | None = None
    hairpin: bool | None = None
    learning: bool | None = None
    unicast_flood: bool | None = None


@dataclass(frozen=True, slots=True)
class BridgePort:
    """How a bridge treats one port; `forwarding` must be true before a guest can be heard."""

    name: str
    bridge: str
    state: str  # "forwarding", "disabled" without carrier, "listening" and "learning" under STP
    stp: bool | None
    forward_delay_s: float | None
    pvid: int | None  # None where the bridge does not filter VLANs
    flags: PortFlags
    mtu_bytes: int
    bridge_mtu_bytes: int

    @property
    def forwarding(self) -> bool:
        """Whether frames pass now."""
        return self.state == "forwarding"


@dataclass(frozen=True, slots=True)
class TapSpec:
    """A tap to be made: `alias` is the mark that says whose it is, unique to one guest's one NIC.

    Raises `UsageError` for a name, an alias, an mtu or a uid that cannot be.
    """

    bridge: str
    alias: str
    name: str | None = None  # wanted; another is chosen if a stranger has it
    mtu_bytes: int | None = None  # at least; never below the bridge's, which would shrink with it
    owner_uid: int | None = None  # who may open it without privilege; None: only root
    multi_queue: bool = False  # QEMU's queues=N needs it, and refuses it otherwise
    vnet_hdr: bool = True
    flags: PortFlags = PortFlags()
    vlan: int | None = None  # of a bridge that filters them; None: what it gives a new port

    def __post_init__(self) -> None:
        check_name(self.bridge)
        if self.name is not None:
            check_name(self.name)
        check_alias(self.alias)
        if self.mtu_bytes is not None and not MIN_MTU_BYTES <= self.mtu_bytes <= MAX_MTU_BYTES:
            raise UsageError(
                f"a tap's MTU is {MIN_MTU_BYTES} to {MAX_MTU_BYTES} bytes, not {self.mtu_bytes}"
            )
        if self.vlan is not None and not 1 <= self.vlan <= 4094:
            raise UsageError(f"VLAN {self.vlan} is not between 1 and 4094")
        if self.owner_uid is not None and not 0 <= self.owner_uid < 2**32 - 1:
            raise UsageError(f"{self.owner_uid} is no user id")


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap that is there: persistent, up, a port of its bridge."""

    name: str
    index: int
    bridge: str
    mtu_bytes: int
    alias: str
    created: bool  # False: it was there already, with our alias


def check_name(name: str) -> str:
    """Return `name` if the kernel takes it literally as an interface's; raise `UsageError`."""
    size = len(name.encode())
    bad = any(c in "/:%" or c.isspace() or c == "\0" for c in name)
    if not 1 <= size <= NAME_BYTES or bad or name in (".", ".."):
        raise UsageError(f"{name!r} cannot be an interface's name")
    return name


def check_alias(alias: str) -> str:
    """Return `alias` if an interface can carry it; raise `UsageError`."""
    if not 1 <= len(alias.encode()) <= ALIAS_BYTES or "\0" in alias:
        raise UsageError(f"an alias has 1 to {ALIAS_BYTES} bytes, this has {len(alias.encode())}")
    return alias


def tap_names(spec: TapSpec) -> tuple[str, ...]:
    """Return the names to try, wanted one first; the others follow from the alias."""
    digest = sha256(spec.alias.encode()).hexdigest()
    others = tuple(f"qm-{digest[start : start + 8]}" for start in range(0, 32, 8))
    return (spec.name, *others) if spec.name else others


def bridge_safe_mac(alias: str) -> str:
    """Return a MAC that no bridge will take for its own: it follows its lowest port's.

    A bridge whose address was not set by hand changes it when a lower port joins, and every
    neighbour of the host loses it; hence libvirt's fe: as the first octet.
    """
    return "fe:" + sha256(alias.encode()).digest()[:5].hex(":")


def other_names(message: Message) -> tuple[str, ...]:
    """Return the alternative names of the interface in `message`."""
    properties = message.get("prop_list")
    pairs = properties["attrs"] if properties else ()
    return tuple(value for key, value in pairs if key.endswith("IFNAME"))


def link_of(message: Message, names: dict[int, str]) -> Link:
    """Return the link in `message`; `names` tells a master's name by index."""
    flags = message["flags"]
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        kind=message.get(("linkinfo", "kind")),
        mac=message.get("address"),
        mtu_bytes=message.get("mtu"),
        master=names.get(message.get("master")),
        alias=message.get("ifalias"),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        isolated=bool(message.get(("linkinfo", "slave_data", "IFLA_BRPORT_ISOLATED"))),
    )


def bridge_of(message: Message, ports: Iterable[str]) -> Bridge:
    """Return the bridge in `message`."""
    stp, delay_cs, filtering = (
        message.get(("linkinfo", "data", f"br_{attribute}"))
        for attribute in ("stp_state", "forward_delay", "vlan_filtering")
    )
    return Bridge(
        name=message.get("ifname"),
        index=message["index"],
        mac=message.get("address"),
        mtu_bytes=message.get("mtu"),
        up=bool(message["flags"] & IFF_UP),
        stp=None if stp is None else bool(stp),
        forward_delay_s=None if delay_cs is None else delay_cs / 100,
        vlan_filtering=None if filtering is None else bool(filtering),
        ports=tuple(ports),
    )


def port_of(message: Message, bridge: Bridge, pvid: int | None) -> BridgePort:
    """Return the bridge port in `message`, whose master is `bridge`."""

    def flag(attribute: str) -> bool | None:
        value = message.get(("linkinfo", "slave_data", f"IFLA_BRPORT_{attribute}"))
        return None if value is None else bool(value)

    state = message.get(("linkinfo", "slave_data", "IFLA_BRPORT_STATE"))
    known = state is not None and state < len(PORT_STATES)
    return BridgePort(
        name=message.get("ifname"),
        bridge=bridge.name,
        state=PORT_STATES[state] if known else "unknown",
        stp=bridge.stp,
        forward_delay_s=bridge.forward_delay_s,
        pvid=pvid,
        flags=PortFlags(
            isolated=flag("ISOLATED"),
            hairpin=flag("MODE"),
            learning=flag("LEARNING"),
            unicast_flood=flag("UNICAST_FLOOD"),
        ),
        mtu_bytes=message.get("mtu"),
        bridge_mtu_bytes=bridge.mtu_bytes,
    )


def pvid_of(messages: Iterable[Message], index: int) -> int | None:
    """Return the port VLAN id of interface `index` from an AF_BRIDGE dump with VLANs."""
    for message in messages:
        if message["index"] != index:
            continue
        spec = message.get("af_spec")
        for _, entry in spec["attrs"] if spec else ():
            if isinstance(entry, dict) and entry.get("flags", 0) & _BRIDGE_VLAN_PVID:
                return int(entry["vid"])
    return None


def announce_ports(links: Iterable[Link], interface: str, tap: str | None) -> tuple[str, ...]:
    """Return the interfaces out of which frames in the guest's name must go.

    With the guest's tap: every other port of the bridge, as if the guest had sent them; wires
    and tunnels first, other guests' taps last. A frame sent on the bridge itself would reach the
    guest too, which logs that somebody has its address. Without a tap, or where `interface` is
    no bridge: `interface` alone.
    """
    known = {link.name: link for link in links}
    if tap is None or tap not in known or known[tap].master != interface:
        return (interface,)
    isolated = known[tap].isolated
    ports = [
        link
        for link in known.values()
        if link.master == interface and link.name != tap and link.up
        if not (isolated and link.isolated)
    ]
    return tuple(link.name for link in sorted(ports, key=lambda link: link.kind == "tun"))
