"""Where a guest's cards go, and what preflight says of it: every case as a row."""

from dataclasses import replace

import pytest

from qmigrate.core.home import Home
from qmigrate.core.model import Severity
from qmigrate.core.network import AUTO, NONE, Adjacency, Trap, Verdict, Way
from qmigrate.core.network_rules import NAMES, At, Card, Evidence, findings, is_apart, route
from qmigrate.core.tunnels import TunnelChoice, TunnelEnd

B, U, W = Severity.BLOCKER, Severity.UNKNOWN, Severity.WARNING
HOME = Home("alpha", "br0")
CARD = Card("n0", "tap0", "52:54:00:00:00:01", HOME, At.SOURCE, "br0", 1500)
END = TunnelEnd(
    "vxlan", "kernel", "10.1.0.1", "10.2.0.1", HOME, "home", 7, 1500, "whole", "tag", "job"
)
CHOICE = TunnelChoice(
    id="0a0b0c0d",
    home_end=END,
    away_end=replace(END, local=END.remote, remote=END.local, end="away"),
    private_bridge="qmb-0a0b0c0d",
    home_port="qmt-0a0b0c0d",
    why="it is UDP",
    cost="the path takes 1600 bytes, 1550 are needed",
    whole=True,
    passed_over=(),
)


def verdict(adjacency: Adjacency, why: str = "so", *traps: Trap, **changes: object) -> Verdict:
    way = Way("alpha", "gamma", "silent", None, ())
    found = Verdict(adjacency, why, way, way, 1500, None, None, None, traps)
    return replace(found, **changes)  # type: ignore[arg-type]


ONE = verdict(Adjacency.ADJACENT)
TWO = verdict(Adjacency.NOT_ADJACENT, "no frame passes")
DARK = verdict(Adjacency.UNKNOWN, "alpha's br0 is down", retry_after_s=4.0)
MAC = Trap("guest-mac-there", "gamma", "52:54:00:00:00:01 is already on gamma's br0, at eth1")
LOOP = Trap("loop", "gamma", "gamma hears its own frames by eth0: there is a loop")
STP = Trap("stp-not-forwarding", "gamma", "eth0 is blocking")

HERE = Evidence(CARD, True, ONE)
APART = Evidence(CARD, True, TWO, choice=CHOICE)
NO_BRIDGE = Evidence(CARD, False, choice=CHOICE)
BACK = Evidence(replace(CARD, at=At.DESTINATION, away=True), True)

# what, evidence, --tunnel, the bridge, the tunnel, home remembered, (rule, severity, words) each
ROWS = [
    ("adjacent", HERE, AUTO, "br0", False, []),
    ("adjacent, none wanted", HERE, NONE, "br0", False, []),
    ("back home", BACK, AUTO, "br0", False, []),
    ("apart", APART, AUTO, "qmb-0a0b0c0d", True, [("tunnel", W, "not encrypted")]),
    ("apart, by kind", APART, "vxlan", "qmb-0a0b0c0d", True, [("tunnel", W, "10.2.0.1")]),
    ("no bridge", NO_BRIDGE, AUTO, "qmb-0a0b0c0d", True, [("tunnel", W, "has no bridge br0")]),
    (
        "apart, none wanted",
        replace(APART, choice=None),
        NONE,
        "br0",
        False,
        [("segment-apart", B, "no frame passes")],
    ),
    ("no bridge, none wanted", replace(NO_BRIDGE, choice=None), NONE, "br0", False, []),
    (
        "no tunnel is possible",
        replace(APART, choice=None, no_choice="no kind is there"),
        AUTO,
        "br0",
        False,
        [("tunnel-impossible", B, "no kind is there")],
    ),
    ("not known", Evidence(CARD, True, DARK), AUTO, "br0", False, [("segment-unknown", U, "down")]),
    (
        "home cannot be asked",
        Evidence(replace(CARD, at=At.ELSEWHERE), True, unprobed="alpha is off"),
        AUTO,
        "br0",
        False,
        [("segment-unknown", U, "alpha is off")],
    ),
    ("nobody asked", Evidence(CARD, True), AUTO, "br0", False, [("segment-unknown", U, "looked")]),
    (
        "its address is there",
        replace(HERE, verdict=verdict(Adjacency.ADJACENT, "so", MAC)),
        AUTO,
        "br0",
        False,
        [("guest-mac-there", B, "eth1")],
    ),
    (
        "its address is in a segment that it will not be in",
        replace(APART, verdict=verdict(Adjacency.NOT_ADJACENT, "so", MAC)),
        AUTO,
        "qmb-0a0b0c0d",
        True,
        [("tunnel", W, "tunnel")],
    ),
    (
        "a loop",
        replace(HERE, verdict=verdict(Adjacency.ADJACENT, "so", LOOP, STP)),
        AUTO,
        "br0",
        False,
        [("segment-trap", W, "hears its own")],
    ),
    (
        "one only by a tunnel",
        replace(HERE, verdict=verdict(Adjacency.ADJACENT, through_tunnel="qmigrate:tunnel=1")),
        AUTO,
        "br0",
        False,
        [("segment-trap", W, "qmigrate:tunnel=1")],
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_card_goes_where_its_neighbours_reach_it_and_it_is_said_why(row) -> None:  # type: ignore[no-untyped-def]
    _, evidence, wanted, bridge, tunnelled, said = row
    told = list(findings(evidence, "gamma", wanted=wanted))
    assert [(f.rule, f.severity) for f in told] == [(rule, level) for rule, level, _ in said]
    for finding, (_, _, words) in zip(told, said, strict=True):
        assert words in finding.message
        assert finding.fix
        assert finding.host == "gamma"
    goes = route(evidence)
    assert (goes.bridge, goes.tunnel is not None) == (bridge, tunnelled)
    # A bridge in home's segment is home; behind a tunnel the tap remembers the old one.
    assert goes.home == (HOME if tunnelled else None)


def test_every_rule_of_the_network_is_tried_here() -> None:
    assert {rule for *_, said in ROWS for rule, _, _ in said} == NAMES


def test_a_guest_that_comes_home_is_never_taken_to_be_apart() -> None:
    assert not is_apart(replace(BACK, bridge_there=False))
    assert not is_apart(Evidence(CARD, True, DARK))
