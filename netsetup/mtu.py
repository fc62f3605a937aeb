"""How much of a path a tunnel's own headers take, and what becomes of frames that then do not fit.

A guest that has moved keeps its MTU, and its open connections keep their segment size. So the
tunnel's port is never smaller than the guest's MTU, and what the path cannot take whole must
arrive nevertheless, or the sender must be told. Pure.

Bytes between the guest's IP packet and the outer IP packet::

    outer IP   20 (v4) or 40 (v6)
    gretap     4 GRE (RFC 2784) + 4 key (RFC 2890)    vxlan   8 UDP + 8 VXLAN (RFC 7348)
    inner      14 Ethernet, + 4 for each VLAN tag that stays inside
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from netsetup.errors import UsageError

IPV4_BYTES, IPV6_BYTES = 20, 40
ETHERNET_BYTES = 14
VLAN_TAG_BYTES = 4
# Between the outer IP header and the inner Ethernet header, by wire format.
SHIM_BYTES: Mapping[str, int] = MappingProxyType(
    {"etherip": 2, "gretap": 4 + 4, "vxlan": 8 + 8}  # gretap always with our key
)
MIN_MTU_BYTES = 1280  # IPv6 does not work over less (RFC 8200 §5)
MAX_MTU_BYTES = 65535


class Manner(StrEnum):
    """What becomes of the guest's largest frames."""

    WHOLE = "whole"  # they fit the path
    FRAGMENTS = "fragments"  # the outer packet is cut in two and put together at the other end
    TOLD = "told"  # dropped; the sender gets ICMP "too big" and sends smaller ones
    LOST = "lost"  # dropped, and nobody is told: never to be built


# Linux cuts no outer IPv6 packet of a tunnel (ip6_fragment wants ignore_df, which none sets). What
# it does then: vxlan answers in the receiver's name (skb_tunnel_check_pmtu, Linux 5.9), ip6gretap
# sends ICMP by the host's own routes, where no guest is.
_TOO_BIG: Mapping[tuple[str, int], Manner] = MappingProxyType(
    {
        ("etherip", 4): Manner.FRAGMENTS,
        ("gretap", 4): Manner.FRAGMENTS,
        ("vxlan", 4): Manner.FRAGMENTS,
        ("etherip", 6): Manner.LOST,
        ("gretap", 6): Manner.LOST,
        ("vxlan", 6): Manner.TOLD,
    }
)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a guest's frames go through a tunnel on a path; `cost` is a sentence for people."""

    mtu_bytes: int  # the guest's
    overhead_bytes: int
    path_mtu_bytes: int | None  # None: nobody could measure it
    manner: Manner
    cost: str

    @property
    def needed_bytes(self) -> int:
        """The path MTU at which nothing has to be cut."""
        return self.mtu_bytes + self.overhead_bytes


def overhead_bytes(kind: str, family: int, *, tags: int = 0) -> int:
    """Return what `kind` over IP version `family` adds; `tags` VLAN tags travel inside.

    Raises `UsageError` for a wire format that is not known.
    """
    if kind not in SHIM_BYTES:
        raise UsageError(f"{kind!r} is no wire format: {', '.join(sorted(SHIM_BYTES))}")
    outer = {4: IPV4_BYTES, 6: IPV6_BYTES}[family]
    return outer + SHIM_BYTES[kind] + ETHERNET_BYTES + tags * VLAN_TAG_BYTES


def inner_mtu_bytes(kind: str, family: int, path_mtu_bytes: int, *, tags: int = 0) -> int:
    """Return the largest guest MTU that passes `path_mtu_bytes` whole."""
    return path_mtu_bytes - overhead_bytes(kind, family, tags=tags)


def fit(
    kind: str,
    family: int,
    *,
    mtu_bytes: int,
    path_mtu_bytes: int | None,
    tags: int = 0,
    relayed: bool = False,
) -> Fit:
    """Return how frames of `mtu_bytes` pass; a path that nobody measured counts as 1500.

    With `relayed` a process carries them at both ends: its packets are the host's own, and cut.

    Raises `UsageError` for a wire format that is not known and an MTU that cannot be.
    """
    added = overhead_bytes(kind, family, tags=tags)
    for what, value in (("a guest's", mtu_bytes), ("a path's", path_mtu_bytes)):
        if value is not None and not MIN_MTU_BYTES <= value <= MAX_MTU_BYTES:
            raise UsageError(f"{what} MTU is {MIN_MTU_BYTES} to {MAX_MTU_BYTES} bytes, not {value}")
    known = 1500 if path_mtu_bytes is None else path_mtu_bytes
    needed = mtu_bytes + added
    said = f"the path takes {known} bytes" if path_mtu_bytes else "the path's MTU is not known"
    if needed <= known:
        return Fit(mtu_bytes, added, path_mtu_bytes, Manner.WHOLE, f"{said}, {needed} are needed")
    manner = Manner.FRAGMENTS if relayed else _TOO_BIG[kind, family]
    said = f"{said} and {needed} are needed"
    smaller = f"a path of {needed} bytes, or one over IPv4, would avoid it"
    match manner:
        case Manner.FRAGMENTS:
            cost = (
                f"{said}: every full frame travels as two packets, a lost one loses both, and "
                "firewalls on the way must let fragments pass; a path of "
                f"{needed} bytes would avoid it"
            )
        case Manner.TOLD:
            cost = (
                f"{said}, and Linux cuts no outer IPv6 packet: who sends more than "
                f"{known - added} bytes with DF gets ICMP and must heed it; {smaller}"
            )
        case _:
            cost = (
                f"{said}, and {kind} over IPv6 neither cuts its packets nor tells the sender: "
                f"frames over {known - added} bytes would be lost; {smaller}"
            )
    return Fit(mtu_bytes, added, path_mtu_bytes, manner, cost)
