"""What was tried to reach the peer, put into words with the firewall rule to add. Pure.

What one side can see: how each of its own dials ended, and whether anything of the peer's came in.
A dropped SYN and a dropped answer look alike from here, so the words do not claim more.
"""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.model import Address, Side


class Dial(StrEnum):
    """How one dial ended, in words that complete "ADDRESS …"."""

    SILENT = "gave no answer"  # dropped by a firewall, on the way there or back
    REFUSED = "refused the connection"  # nothing listens, or a firewall that rejects
    NO_ROUTE = "cannot be routed to"  # or a firewall answered with ICMP
    STALLED = "connected, then stalled in the handshake"  # path MTU, or not an agent
    STRANGER = "answered without the peer's certificate"
    DISOWNED = "hung up before its HELLO: perhaps it does not know our certificate"
    CUT = "connected and was cut"
    LEFT = "was connected, but the source chose no link"  # both ways are open: its agent is busy


@dataclass(frozen=True, slots=True)
class Tried:
    """One address of the peer and how the last dial there ended."""

    address: Address
    result: Dial
    local: str | None  # our own address towards it, as the kernel chose


@dataclass(frozen=True, slots=True)
class Reach:
    """What one side saw while it looked for the peer."""

    side: Side
    tried: tuple[Tried, ...]
    listening: tuple[Address, ...]
    came_in: int  # connections from the peer's known addresses that were accepted here


_BLOCKED = (Dial.SILENT, Dial.NO_ROUTE, Dial.REFUSED)


def explain(reach: Reach) -> str:
    """Return one sentence: each direction, what was seen of it, with addresses and ports."""
    own, peer = reach.side.value, reach.side.other.value
    if reach.tried:
        dials = "; ".join(f"{tried.address} {tried.result}" for tried in reach.tried)
        out = f"{own} → {peer} (tcp): {dials}"
    else:
        out = f"{own} → {peer} (tcp): not tried, no address known"
    ports = ", ".join(map(str, reach.listening)) or "no address"
    if reach.came_in:
        back = f"{peer} → {own} (tcp) is open at {ports}: {reach.came_in} connections came in"
    else:
        back = f"{peer} → {own} (tcp): nothing came in at {ports}"
    return f"{out}. {back}"


def blocked_ways(reach: Reach) -> str:
    """Return which directions carry nothing, as far as this side can tell."""
    own, peer = reach.side.value, reach.side.other.value
    ways = []
    if not reach.tried or all(tried.result in _BLOCKED for tried in reach.tried):
        ways.append(f"{own} to {peer}")
    if not reach.came_in:
        ways.append(f"{peer} to {own}")
    if len(ways) == 2:
        return "both directions are blocked"
    return f"{ways[0]} is blocked" if ways else "both directions are open"


def remedy(reach: Reach) -> str:
    """Return the line to type, for the likeliest cause; one direction that opens is enough."""
    if any(tried.result is Dial.STALLED for tried in reach.tried):
        return (
            "TCP connects but larger packets are lost: compare the MTU of both hosts' interfaces"
            " and of the path between them"
        )
    wrong = [tried for tried in reach.tried if tried.result in (Dial.STRANGER, Dial.DISOWNED)]
    if wrong:
        return (
            f"find out who answers at {wrong[0].address} (ss -ltnp there): an address that two"
            " hosts have, or one that is translated on the way; give another with"
            " --migration-address"
        )
    blocked = [tried for tried in reach.tried if tried.result in _BLOCKED]
    peer = reach.side.other.value
    if blocked:
        first = blocked[0]
        rule = firewall_rule(first.address.port, source=first.local, like=first.address.host)
        return f"on the {peer} (or any firewall between): {rule}"
    if reach.listening:
        first_own = reach.listening[0]
        rule = firewall_rule(first_own.port, source=None, like=first_own.host)
        return f"on the {reach.side.value} (or any firewall between): {rule}"
    return "give an address that the two hosts share with --migration-address"


def firewall_rule(port: int, *, source: str | None, like: str) -> str:
    """Return the rule that lets `source` in at `port`, for the three tools in use.

    `like` is an address of the family wanted where the source is not known.
    """
    six = ipaddress.ip_address(source or like).version == 6
    of_nft = f"{'ip6' if six else 'ip'} saddr {source} " if source else ""
    of_iptables = f"-s {source} " if source else ""
    of_firewalld = f' source address="{source}"' if source else ""
    return (
        f"nft add rule inet filter input {of_nft}tcp dport {port} accept"
        f" | {'ip6tables' if six else 'iptables'} -I INPUT {of_iptables}-p tcp --dport {port}"
        " -j ACCEPT"
        f' | firewall-cmd --add-rich-rule=\'rule family="{"ipv6" if six else "ipv4"}"'
        f'{of_firewalld} port port="{port}" protocol="tcp" accept\''
    )


def one_way_note(reach: Reach) -> str | None:
    """Return what to say when a link was made although some dials failed; None: all well."""
    bad = [tried for tried in reach.tried if tried.result in _BLOCKED]
    if not bad:
        return None
    dials = "; ".join(f"{tried.address} {tried.result}" for tried in bad)
    return f"{reach.side.value} → {reach.side.other.value}: {dials}; another way was found"
