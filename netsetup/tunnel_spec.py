"""What a tunnel is, one end at a time, and the marks by which netlink alone finds it again; pure.

::

    home host                                  host where guests are away
    guests' taps ─┐                            ┌─ away guests' taps
           uplink ┤ the home bridge            │ private bridge (qmb-)
    tunnel port ──┘ (qmt-, isolated)           └─ tunnel port (qmt-)
         └ [veth qmv- ─ tunnel device qmd-]         └ [veth qmv- ─ tunnel device qmd-]
                  ══════════ vxlan, gretap, … ══════════

The port is the tunnel device itself, or one end of a veth pair before it where a bridge must not
see the device (`netsetup.vxlan` says when). Marks, each good for one thing:

- *group* of every interface, set in the request that makes it: ours, whatever dies before the rest
- *alias*: which tunnel, which part of it, whose; what the device itself does not tell
- *alternative names* of the port: a claim for each guest that needs the tunnel. One netlink request
  adds or takes one, so jobs that share a tunnel do not overwrite each other's.
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, unquote

from netsetup.errors import UsageError
from netsetup.homes import Home, parse_home
from netsetup.links import OUR_ALIAS, check_alias
from netsetup.mtu import MAX_MTU_BYTES, MIN_MTU_BYTES, Manner

Address = IPv4Address | IPv6Address

GROUP = 0x716D6967  # "qmig"
VXLAN_PORT = 4789  # IANA's; Linux's own default, 8472, is older
MAX_KEY = 2**24 - 1  # of a VNI; a GRE key could have 32 bits
_CLAIM = "qmg-"
_GUEST = re.compile(r"[A-Za-z0-9._-]{1,80}")  # an alternative name has 127 bytes at most
_ID = re.compile(r"[0-9a-f]{8}")


class End(StrEnum):
    """Which end of a tunnel."""

    HOME = "home"  # in the bridge that the guests were born on
    AWAY = "away"  # in a private bridge, with the guests that are away


class Part(StrEnum):
    """An interface of a tunnel's end."""

    PORT = "port"  # what the bridge has as a port
    INNER = "inner"  # the other end of a veth port
    DEVICE = "device"  # what encapsulates, where it is not the port itself
    BRIDGE = "bridge"  # the private bridge


_PREFIX = {Part.PORT: "qmt-", Part.INNER: "qmv-", Part.DEVICE: "qmd-", Part.BRIDGE: "qmb-"}


@dataclass(frozen=True, slots=True)
class Tag:
    """Whose a tunnel is: `job` made it or mended it last, for people and for `gc`."""

    owner: str = "netsetup"
    job: str = "by-hand"

    def __post_init__(self) -> None:
        if not self.owner or not self.job:
            raise UsageError("a tunnel's tag names an owner and a job")


@dataclass(frozen=True, slots=True)
class TunnelSpec:
    """One end of a tunnel, to be made. Raises `UsageError` for what cannot be."""

    kind: str  # the wire format
    local: Address
    remote: Address
    home: Home
    end: End
    # Tells tunnels between the same two addresses apart: VNI, GRE key. A GRE may have none, 0.
    key: int
    mtu_bytes: int = 1500  # of the guests
    manner: Manner = Manner.WHOLE
    tag: Tag = Tag()
    guests: tuple[str, ...] = ()  # claims to be added
    udp_port: int = VXLAN_PORT
    # Nothing passes from one tunnel of the home bridge to another: split horizon.
    isolated: bool = True
    # What the path between the hosts takes; None: what the underlay's interface does.
    path_mtu_bytes: int | None = None
    reversed_header: bool = False  # of EtherIP: what old BSDs and NetBSD send

    def __post_init__(self) -> None:
        if self.local.version != self.remote.version or self.local == self.remote:
            raise UsageError(f"no tunnel leads from {self.local} to {self.remote}")
        for address in (self.local, self.remote):
            if address.is_multicast or address.is_unspecified:
                raise UsageError(f"{address} is no host's address")
        if self.manner is Manner.LOST:
            raise UsageError("frames of the guest's size would be lost in this tunnel")
        if not (self.kind != "gretap") <= self.key <= MAX_KEY:
            raise UsageError(f"a tunnel's key is 1 to {MAX_KEY}, not {self.key}")
        if not MIN_MTU_BYTES <= self.mtu_bytes <= MAX_MTU_BYTES:
            raise UsageError(
                f"a tunnel's MTU is {MIN_MTU_BYTES} to {MAX_MTU_BYTES} bytes, not {self.mtu_bytes}"
            )
        path = self.path_mtu_bytes
        if path is not None and not MIN_MTU_BYTES <= path <= MAX_MTU_BYTES:
            raise UsageError(
                f"a path's MTU is {MIN_MTU_BYTES} to {MAX_MTU_BYTES} bytes, not {path}"
            )
        if not 1 <= self.udp_port <= 65535:
            raise UsageError(f"{self.udp_port} is no UDP port")
        for guest in self.guests:
            claim_name(self.id, guest)
        for part in Part:
            check_alias(alias_of(self, part))

    @property
    def id(self) -> str:
        """Eight hex digits, the same at both ends: of the home and the two addresses."""
        return tunnel_id(self.home, self.local, self.remote)

    def name(self, part: Part) -> str:
        """Return the interface's name; the same at both ends."""
        return _PREFIX[part] + self.id

    @property
    def bridge(self) -> str:
        """The bridge that the port goes into."""
        return self.home.bridge if self.end is End.HOME else self.name(Part.BRIDGE)


@dataclass(frozen=True, slots=True)
class Mark:
    """What an alias of a tunnel's interface says."""

    id: str
    part: Part
    end: End
    home: Home
    manner: Manner
    isolated: bool
    tag: Tag


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An end of a tunnel as netlink shows it; what is missing is None, and in `problems`."""

    id: str
    end: End
    home: Home
    tag: Tag
    backend: str = "kernel"
    kind: str | None = None
    local: Address | None = None
    remote: Address | None = None
    key: int | None = None
    udp_port: int | None = None
    mtu_bytes: int | None = None
    manner: Manner | None = None
    isolated: bool | None = None  # as was asked for; only a home end's port has the flag
    port: str | None = None
    bridge: str | None = None  # that the port is in
    guests: tuple[str, ...] = ()  # whose claims it carries
    taps: tuple[str, ...] = ()  # other ports of the private bridge: guests live there
    problems: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    path_mtu_bytes: int | None = None
    reversed_header: bool = False

    @property
    def needed(self) -> bool:
        """Whether a guest claims it or lives on it."""
        return bool(self.guests or self.taps)

    @property
    def described(self) -> str:
        """The wire format and what carries it out, such as "vxlan (kernel)"."""
        return f"{self.kind or 'tunnel'} ({self.backend})"


def tunnel_id(home: Home, one: Address, other: Address) -> str:
    """Return the id of the tunnel from `home` between two hosts' addresses, in either order.

    The wire format is no part of it: two tunnels between the same two bridges would be a loop.
    """
    ends = "|".join(sorted((str(one), str(other))))
    return sha256(f"{home}|{ends}".encode()).hexdigest()[:8]


def choose_key(home: Home, one: Address, other: Address, *, taken: frozenset[int]) -> int:
    """Return the key for a tunnel, the same on both hosts while `taken` is what both have in use.

    A VNI must be single on a host and UDP port, to whomever its tunnels lead.
    """
    seed = int(tunnel_id(home, one, other), 16)
    for attempt in range(MAX_KEY):
        key = (seed + attempt) % MAX_KEY + 1
        if key not in taken:
            return key
    raise UsageError("every key is taken")


def claim_name(tunnel: str, guest: str) -> str:
    """Return the alternative name that says that `guest` needs `tunnel`; raise `UsageError`."""
    if not _GUEST.fullmatch(guest):
        raise UsageError(f"{guest!r} cannot be a guest's id: letters, digits, '.', '_', '-'")
    return f"{_CLAIM}{tunnel}-{guest}"


def claimant(name: str, tunnel: str) -> str | None:
    """Return the guest that the alternative name `name` is a claim of; None for another name."""
    prefix = f"{_CLAIM}{tunnel}-"
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def alias_of(spec: TunnelSpec, part: Part) -> str:
    """Return the mark on an interface of `spec`."""
    owner, job = (quote(word, safe="") for word in (spec.tag.owner, spec.tag.job))
    return (
        f"{OUR_ALIAS}tunnel={spec.id} part={part} end={spec.end} home={spec.home} "
        f"manner={spec.manner} isolated={spec.isolated:d} owner={owner} job={job}"
    )


def mark_of(alias: str | None) -> Mark | None:
    """Return what `alias` says; None if it is not of a tunnel, or not to be read."""
    if alias is None or not alias.startswith(f"{OUR_ALIAS}tunnel="):
        return None
    words = dict(
        word.split("=", 1) for word in alias.removeprefix(OUR_ALIAS).split(" ") if "=" in word
    )
    try:
        found = Mark(
            id=words["tunnel"],
            part=Part(words["part"]),
            end=End(words["end"]),
            home=parse_home(words["home"]),
            manner=Manner(words["manner"]),
            isolated=words["isolated"] == "1",
            tag=Tag(unquote(words["owner"]), unquote(words["job"])),
        )
    except (KeyError, ValueError, UsageError):
        return None
    return found if _ID.fullmatch(found.id) else None


def part_named(name: str) -> tuple[str, Part] | None:
    """Return the tunnel's id and the part that an interface of this name would be."""
    for part, prefix in _PREFIX.items():
        rest = name.removeprefix(prefix)
        if rest != name and _ID.fullmatch(rest):
            return rest, part
    return None


def spec_of(tunnel: Tunnel) -> TunnelSpec | None:
    """Return the spec that would make `tunnel` again; None if too much of it is missing."""
    if (
        tunnel.kind is None
        or tunnel.local is None
        or tunnel.remote is None
        or tunnel.key is None
        or tunnel.mtu_bytes is None
        or tunnel.manner is None
    ):
        return None
    return TunnelSpec(
        kind=tunnel.kind,
        local=tunnel.local,
        remote=tunnel.remote,
        home=tunnel.home,
        end=tunnel.end,
        key=tunnel.key,
        mtu_bytes=tunnel.mtu_bytes,
        manner=tunnel.manner,
        tag=tunnel.tag,
        guests=tunnel.guests,
        udp_port=tunnel.udp_port or VXLAN_PORT,
        isolated=tunnel.isolated is not False,
        path_mtu_bytes=tunnel.path_mtu_bytes,
        reversed_header=tunnel.reversed_header,
    )


def mirrored(spec: TunnelSpec) -> TunnelSpec:
    """Return the other end of `spec`: how an end that was lost with its host is found again."""
    return replace(
        spec,
        local=spec.remote,
        remote=spec.local,
        end=End.AWAY if spec.end is End.HOME else End.HOME,
    )


@dataclass(frozen=True, slots=True)
class Pairing:
    """Tunnels of two hosts laid side by side."""

    whole: tuple[tuple[Tunnel, Tunnel], ...]  # home end, away end
    home_only: tuple[Tunnel, ...]
    away_only: tuple[Tunnel, ...]
    differing: tuple[str, ...]  # whole, but the ends do not fit each other: a sentence each


def pair(one: tuple[Tunnel, ...], other: tuple[Tunnel, ...]) -> Pairing:
    """Return which tunnels of two hosts have both ends; an end alone serves nobody."""
    everywhere = (*one, *other)
    homes = {tunnel.id: tunnel for tunnel in everywhere if tunnel.end is End.HOME}
    aways = {tunnel.id: tunnel for tunnel in everywhere if tunnel.end is End.AWAY}
    whole = tuple((homes[id_], aways[id_]) for id_ in homes if id_ in aways)
    return Pairing(
        whole,
        tuple(tunnel for id_, tunnel in homes.items() if id_ not in aways),
        tuple(tunnel for id_, tunnel in aways.items() if id_ not in homes),
        tuple(
            f"tunnel {home.id}: {what} is {ours} at home and {theirs} away"
            for home, away in whole
            for what, ours, theirs in (
                ("the kind", home.kind, away.kind),
                ("the key", home.key, away.key),
                ("the UDP port", home.udp_port, away.udp_port),
            )
            if ours != theirs
        ),
    )
