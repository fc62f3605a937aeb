"""Where each card of a guest will hang on the destination, and what preflight says of it. Pure.

A guest's home is the segment that its neighbours are on. Where the destination has a bridge in that
segment, the tap goes into it; that bridge is as much home as the old one, and is remembered as
nothing else. Where it has none, a tunnel leads from home to a private bridge there, and the tap
remembers home: the next move is compared with it, wherever it starts from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qmigrate.core.home import Home
from qmigrate.core.model import Finding, Severity
from qmigrate.core.network import NONE, Adjacency, Verdict
from qmigrate.core.tunnels import TunnelChoice

NAMES = frozenset(
    "segment-apart segment-unknown segment-trap guest-mac-there tunnel tunnel-impossible".split()  # noqa: SIM905 - as in core/argv
)
# What is wrong with a segment even though frames pass.
_ODD = frozenset(
    ("port-isolated", "loop", "two-paths", "same-mac", "strangers", "vlan-changed", "other-bridge")
)


class At(StrEnum):
    """Which of the hosts that take part has the guest's home."""

    SOURCE = "source"
    DESTINATION = "destination"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Card:
    """A card of the guest and where it hangs on the source."""

    netdev: str
    tap: str
    mac: str | None
    home: Home
    at: At
    wanted: str  # the bridge on the destination that would do if it is in home's segment
    mtu_bytes: int
    isolated: bool = False  # its port on the source
    away: bool = False  # on the source it is in a private bridge


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a card's segments, and of a tunnel that would join them."""

    card: Card
    bridge_there: bool
    verdict: Verdict | None = None
    unprobed: str | None = None  # why there is none
    choice: TunnelChoice | None = None
    no_choice: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a card's tap goes, and what it remembers; `home` is None where the bridge is home."""

    card: Card
    bridge: str
    home: Home | None
    tunnel: TunnelChoice | None
    verdict: Verdict | None


def is_apart(evidence: Evidence) -> bool:
    """Say whether the destination is known to have no bridge in the card's home segment."""
    if evidence.card.at is At.DESTINATION:
        return False
    if not evidence.bridge_there:
        return True
    verdict = evidence.verdict
    return verdict is not None and verdict.adjacency is Adjacency.NOT_ADJACENT


def route(evidence: Evidence) -> Route:
    """Return where the tap goes; where nothing is right it is the bridge of that name."""
    card = evidence.card
    if is_apart(evidence) and evidence.choice is not None:
        choice = evidence.choice
        return Route(card, choice.private_bridge, card.home, choice, evidence.verdict)
    return Route(card, card.wanted, None, None, evidence.verdict)


def findings(evidence: Evidence, destination: str, *, wanted: str) -> Iterator[Finding]:
    """Yield what a card's network means for the move; `wanted`: a kind of tunnel, AUTO or NONE."""
    card, verdict = evidence.card, evidence.verdict
    there = f"{destination}'s {card.wanted}"
    if is_apart(evidence):
        yield from _apart(evidence, destination, wanted=wanted)
    elif card.at is not At.DESTINATION and (
        verdict is None or verdict.adjacency is Adjacency.UNKNOWN
    ):
        why = verdict.why if verdict is not None else evidence.unprobed or "nobody has looked"
        later = ""
        if verdict is not None and verdict.retry_after_s is not None:
            later = f"try again in {verdict.retry_after_s:.0f} s; "
        yield Finding(
            "segment-unknown",
            Severity.UNKNOWN,
            destination,
            f"whether {there} is in the segment of {card.home}, where the guest's neighbours are, "
            f"is not known: {why}",
            f"{later}see what is in the way: qmigrate network probe {card.home.host} "
            f"{destination}; to go on all the same: --force segment-unknown",
        )
    elif verdict is not None and verdict.through_tunnel is not None:
        yield Finding(
            "segment-trap",
            Severity.WARNING,
            destination,
            f"{there} and {card.home} are one segment only by a tunnel of ours "
            f"({verdict.through_tunnel}): the guest needs it there",
            "keep that tunnel: qmigrate network tunnel list",
        )
    if verdict is not None:
        yield from _traps(verdict, card)


def _apart(evidence: Evidence, destination: str, *, wanted: str) -> Iterator[Finding]:
    card, choice = evidence.card, evidence.choice
    what = _why_apart(evidence, destination)
    if wanted == NONE:
        if evidence.bridge_there:  # else `bridge-missing` says it
            yield Finding(
                "segment-apart",
                Severity.BLOCKER,
                destination,
                f"{what}; the guest's neighbours would lose it",
                "let a tunnel be built: --tunnel auto (the default)",
            )
    elif choice is None:
        yield Finding(
            "tunnel-impossible",
            Severity.BLOCKER,
            destination,
            f"{what}, and {evidence.no_choice or 'no tunnel was looked for'}",
            "see what both hosts can do: qmigrate network tunnel create --dry-run "
            f"{card.home.host} {destination}",
        )
    else:
        yield Finding(
            "tunnel",
            Severity.WARNING,
            destination,
            f"{what}; a tunnel will join {card.home} to the guest there, {choice.described} from "
            f"{choice.home_end.local} to {choice.home_end.remote}, not encrypted: {choice.cost}. "
            f"All that the guest sends goes by {card.home.host}, which must stay up",
            "if that is not wanted: --tunnel none",
        )


def _why_apart(evidence: Evidence, destination: str) -> str:
    card = evidence.card
    if not evidence.bridge_there:
        return f"{destination} has no bridge {card.wanted} for the segment of {card.home}"
    why = evidence.verdict.why if evidence.verdict is not None else ""
    return f"{destination}'s {card.wanted} is not in the segment of {card.home}: {why}"


def _traps(verdict: Verdict, card: Card) -> Iterator[Finding]:
    adjacent = verdict.adjacency is Adjacency.ADJACENT
    for trap in verdict.traps:
        if trap.kind == "guest-mac-there":
            # In a segment that is not the guest's own it disturbs nobody there.
            if adjacent:
                yield Finding(
                    "guest-mac-there",
                    Severity.BLOCKER,
                    trap.host,
                    f"{trap.text}: another machine may have it",
                    f"find it: bridge fdb show | grep {card.mac}; if it is old, delete that entry",
                )
        elif adjacent and trap.kind in _ODD:
            yield Finding(
                "segment-trap",
                Severity.WARNING,
                trap.host,
                trap.text,
                "mend it, or expect that not all of the guest's neighbours reach it",
            )
