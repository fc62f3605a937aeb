"""Verdicts, from what frames did; a table of everything that can be reported."""

from dataclasses import dataclass, replace

import pytest

from netsetup.adjacency import Adjacency, Passage, Verdict, judge
from netsetup.segments import Segment, View, VlanRange
from netsetup.traps import Side, TrapKind
from tests.support.probe_talk import Speaker, Wire, bridge, lost, passes, port, talk, up_to

ADJACENT, NOT_ADJACENT, UNKNOWN = Adjacency
GUEST = "52:54:00:aa:00:01"
TRUNK = (VlanRange(1, 4094),)


def verdict_on(
    a: Speaker, b: Speaker, forth: Wire = passes, back: Wire = passes, *, guest: str | None = None
) -> Verdict:
    talk(a, b, forth, back)
    sides = Side("alpha", a.report()), Side("beta", b.report())
    return judge(*sides, mtu_bytes=1500, guest_mac=guest)


@dataclass(frozen=True)
class Case:
    adjacency: Adjacency
    forth: Wire = passes
    back: Wire = passes
    alpha: dict[str, object] | None = None
    beta: dict[str, object] | None = None
    mtu_bytes: int | None = None
    failed: tuple[str, ...] = ()
    traps: tuple[TrapKind, ...] = ()
    words: str = ""
    guest: str | None = None


LISTENING = {"facts": bridge(port(state="listening"), stp=True), "blocked": True}
LEARNING = {"facts": bridge(port(state="learning"), stp=True), "blocked": True}
BLOCKING = {"facts": bridge(port(state="blocking"), stp=True), "blocked": True}
BOTH = ("alpha", "beta")
SILENCE = {"forth": lost, "back": lost}

CASES: dict[str, Case] = {
    "all passes": Case(ADJACENT, mtu_bytes=1500, words="1500 bytes pass both ways"),
    "nothing passes": Case(NOT_ADJACENT, **SILENCE, failed=BOTH),
    "nothing passes back": Case(NOT_ADJACENT, back=lost, failed=("beta",), words="beta to alpha"),
    "nothing passes forth": Case(
        NOT_ADJACENT, forth=lost, failed=("alpha",), words="alpha to beta"
    ),
    "too narrow forth": Case(
        NOT_ADJACENT,
        forth=up_to(1400),
        mtu_bytes=1400,
        traps=(TrapKind.MTU_TOO_SMALL,),
        words="from alpha to beta frames pass up to 1400 bytes only",
    ),
    "too narrow back": Case(
        NOT_ADJACENT,
        back=up_to(1400),
        mtu_bytes=1400,
        traps=(TrapKind.MTU_TOO_SMALL,),
        words="from beta to alpha frames pass up to 1400 bytes only",
    ),
    "too narrow at a port": Case(
        NOT_ADJACENT,
        forth=up_to(1400),
        beta={"facts": bridge(port(mtu_bytes=1400))},
        mtu_bytes=1400,
        traps=(TrapKind.MTU_TOO_SMALL,),
        words="beta's eth0 has MTU 1400",
    ),
    "too narrow, not measured to the end": Case(
        UNKNOWN,
        forth=up_to(1400),
        alpha={"complete": False},
        mtu_bytes=1400,
        traps=(TrapKind.MTU_TOO_SMALL,),
        words="not measured to the end",
    ),
    "only broadcasts": Case(
        UNKNOWN,
        forth=lambda frame: frame[0] == 0xFF,
        back=lambda frame: frame[0] == 0xFF,
        mtu_bytes=1500,
        words="broadcasts pass both ways",
    ),
    "alpha cannot send": Case(
        UNKNOWN, alpha={"refuses": "Network is down"}, words="could not send on br0: Network is d"
    ),
    "alpha's bridge is down": Case(
        UNKNOWN,
        **SILENCE,
        alpha={"facts": bridge(up=False)},
        traps=(TrapKind.BRIDGE_DOWN,),
        words="alpha's br0 is down",
    ),
    "beta stopped early": Case(
        UNKNOWN, **SILENCE, beta={"complete": False}, words="beta stopped early"
    ),
    "beta stopped early, but frames came": Case(ADJACENT, beta={"complete": False}, mtu_bytes=1500),
    "beta listens to STP": Case(
        UNKNOWN, back=lost, beta=LISTENING, traps=(TrapKind.STP_NOT_FORWARDING,), words="later"
    ),
    "beta learns": Case(
        UNKNOWN, back=lost, beta=LEARNING, traps=(TrapKind.STP_NOT_FORWARDING,), words="learning"
    ),
    "beta is blocked for good": Case(
        NOT_ADJACENT,
        back=lost,
        beta=BLOCKING,
        failed=BOTH,
        traps=(TrapKind.STP_NOT_FORWARDING,),
        words="alpha's frames reach beta's eth0, which is blocking",
    ),
    "alpha is blocked, nothing leaves": Case(
        NOT_ADJACENT,
        **SILENCE,
        alpha=BLOCKING,
        failed=BOTH,
        traps=(TrapKind.STP_NOT_FORWARDING,),
        words="alpha's eth0 is blocking",
    ),
    "a guest's tap that listens is nobody's way": Case(
        NOT_ADJACENT,
        **SILENCE,
        alpha={"facts": bridge(port(), port("tap0", kind="tun", state="listening"), stp=True)},
        failed=BOTH,
    ),
    "no cable": Case(
        NOT_ADJACENT,
        **SILENCE,
        alpha={"facts": bridge(port(carrier=False, state="disabled"))},
        failed=BOTH,
        traps=(TrapKind.NO_WAY_OUT,),
        words="eth0 has no carrier",
    ),
    "no uplink": Case(
        NOT_ADJACENT,
        **SILENCE,
        beta={"facts": bridge(port("tap0", kind="tun"))},
        failed=BOTH,
        traps=(TrapKind.NO_WAY_OUT,),
        words="beta's br0 has no working port",
    ),
    "the VLAN is filtered on arrival": Case(
        NOT_ADJACENT,
        back=lost,
        alpha={"vlan_tag": 10, "segment": Segment("br0", 10)},
        beta={
            "view": View.PORT,
            "segment": Segment("br0", 10),
            "facts": bridge(port(vlans=(VlanRange(1, 9),), pvid=1), vlan_filtering=True),
            "blocked": True,
        },
        failed=BOTH,
        traps=(TrapKind.VLAN_FILTER,),
        words="reach beta's eth0 with VLAN 10, and br0 does not let that in there",
    ),
    "the VLAN is filtered on departure": Case(
        NOT_ADJACENT,
        **SILENCE,
        alpha={
            "view": View.PORT,
            "segment": Segment("br0", 10),
            "facts": bridge(port(vlans=(VlanRange(1, 9),), pvid=1), vlan_filtering=True),
        },
        failed=BOTH,
        traps=(TrapKind.VLAN_FILTER,),
        words="lets no frames of VLAN 10 out at eth0",
    ),
    "an access port of another VLAN": Case(
        NOT_ADJACENT,
        back=lost,
        beta={
            "view": View.PORT,
            "segment": Segment("br0", 10),
            "facts": bridge(port(vlans=TRUNK, pvid=20), vlan_filtering=True),
            "blocked": True,
        },
        failed=BOTH,
        traps=(TrapKind.VLAN_CHANGED,),
        words="arrive on beta with VLAN 20; expected with VLAN 10",
    ),
    "another tag": Case(
        NOT_ADJACENT,
        alpha={"vlan_tag": 10, "segment": Segment("br0", 10)},
        beta={"vlan_tag": 20, "segment": Segment("br0", 20)},
        failed=BOTH,
        traps=(TrapKind.VLAN_CHANGED,),
        words="sent with VLAN 10, arrive on beta with VLAN 10; expected with VLAN 20",
    ),
    "a tag the kernel took off is a tag": Case(
        ADJACENT,
        alpha={"vlan_tag": 10, "strips": 10},
        beta={"vlan_tag": 10, "strips": 10},
        mtu_bytes=1500,
    ),
    "STP and VLANs, and the bridge is not in this one": Case(
        UNKNOWN,
        **SILENCE,
        alpha={
            "segment": Segment("br0", 10),
            "vlan_tag": 10,
            "facts": bridge(
                port(vlans=TRUNK),
                stp=True,
                vlan_filtering=True,
                default_pvid=1,
                own_vlans=(VlanRange(1, 1),),
            ),
        },
        words="alpha's br0 is not in VLAN 10 itself",
    ),
    "isolated like the guest": Case(
        NOT_ADJACENT,
        back=lost,
        alpha={"view": View.PORT, "isolated": True},
        beta={
            "view": View.PORT,
            "isolated": True,
            "facts": bridge(port(isolated=True)),
            "blocked": True,
        },
        failed=BOTH,
        traps=(TrapKind.PORT_ISOLATED,),
        words="isolated",
    ),
    "the bridge talks where the guest's port does not": Case(
        ADJACENT,
        alpha={
            "facts": bridge(
                port(isolated=True),
                port("tap0", kind="tun", isolated=True),
                guest_port="tap0",
            )
        },
        mtu_bytes=1500,
        traps=(TrapKind.PORT_ISOLATED,),
        guest=GUEST,
    ),
    "another bridge": Case(
        NOT_ADJACENT,
        back=lost,
        beta={"facts": bridge(port("eth1"), port(bridge="br1")), "blocked": True},
        failed=BOTH,
        traps=(TrapKind.OTHER_BRIDGE,),
        words="reach beta's eth0, which is a port of br1, not of br0",
    ),
    "no bridge at all": Case(
        NOT_ADJACENT,
        back=lost,
        beta={"facts": bridge(port("eth1"), port(bridge=None, state=None)), "blocked": True},
        failed=BOTH,
        traps=(TrapKind.OTHER_BRIDGE,),
        words="in no bridge",
    ),
    "the guest's MAC behind the same port as alpha": Case(
        ADJACENT, beta={"facts": bridge(guest_port="eth0")}, mtu_bytes=1500, guest=GUEST
    ),
    "the guest's MAC at a tap of beta's": Case(
        ADJACENT,
        beta={"facts": bridge(guest_port="tap9")},
        mtu_bytes=1500,
        traps=(TrapKind.GUEST_MAC_THERE,),
        guest=GUEST,
    ),
    "the guest's MAC in another network": Case(
        NOT_ADJACENT,
        **SILENCE,
        beta={"facts": bridge(guest_port="eth0")},
        failed=BOTH,
        traps=(TrapKind.GUEST_MAC_THERE,),
        words=f"{GUEST} is already on beta's br0, at eth0",
        guest=GUEST,
    ),
    "cloned hosts": Case(
        ADJACENT,
        alpha={"mac": "02:00:00:00:00:09"},
        beta={"mac": "02:00:00:00:00:09"},
        mtu_bytes=1500,
        traps=(TrapKind.SAME_MAC,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_follows_from_what_frames_did(name: str) -> None:
    case = CASES[name]
    found = verdict_on(
        Speaker(1, **(case.alpha or {})),  # type: ignore[arg-type]
        Speaker(2, **(case.beta or {})),  # type: ignore[arg-type]
        case.forth,
        case.back,
        guest=case.guest,
    )
    assert found.adjacency is case.adjacency, found.why
    assert case.words in found.why
    assert found.mtu_bytes == case.mtu_bytes
    assert tuple(direction.source for direction in found.failed) == case.failed
    kinds = tuple(dict.fromkeys(trap.kind for trap in found.traps))
    assert kinds == case.traps, found.traps


def test_every_trap_has_a_case_here_or_in_a_test_below() -> None:
    below = {TrapKind.LOOP, TrapKind.TWO_PATHS, TrapKind.STRANGERS}
    assert {kind for case in CASES.values() for kind in case.traps} | below == set(TrapKind)


@pytest.mark.parametrize("missing", ["alpha", "beta", "both"])
def test_without_a_report_nobody_knows(missing: str) -> None:
    a, b = Speaker(1), Speaker(2)
    talk(a, b)
    found = judge(
        Side("alpha", None if missing in ("alpha", "both") else a.report()),
        Side("beta", None if missing in ("beta", "both") else b.report()),
        mtu_bytes=1500,
    )
    assert found.adjacency is UNKNOWN
    assert "did not report" in found.why
    assert not found.joined
    assert found.mtu_bytes is None


@pytest.mark.parametrize(("held", "delay_s"), [(LISTENING, 30.0), (LEARNING, 15.0)])
def test_what_stp_holds_back_says_when_to_ask_again(
    held: dict[str, object], delay_s: float
) -> None:
    found = verdict_on(Speaker(1), Speaker(2, **held), back=lost)  # type: ignore[arg-type]
    assert found.retry_after_s == delay_s
    assert verdict_on(Speaker(1), Speaker(2)).retry_after_s is None


BEGAN = {
    "listened": (port(state="listening"), UNKNOWN),
    "had no carrier": (port(state="disabled", carrier=False), UNKNOWN),
    "forwarded": (port(), NOT_ADJACENT),
    "was a guest's tap that listened": (port("tap0", kind="tun", state="listening"), NOT_ADJACENT),
}


@pytest.mark.parametrize("name", BEGAN)
def test_silence_while_a_port_began_to_forward_is_no_proof(name: str) -> None:
    early, adjacency = BEGAN[name]
    a = Speaker(1, facts=bridge(port(), port("tap0", kind="tun")))
    b = Speaker(2)
    talk(a, b, lost, lost)
    report = replace(a.report(), early_ports=(early,))
    found = judge(Side("alpha", report), Side("beta", b.report()), mtu_bytes=1500)
    assert found.adjacency is adjacency
    if adjacency is UNKNOWN:
        assert "only just begun" in found.why
        assert found.retry_after_s == 0


def test_a_carrier_that_the_kernel_has_yet_to_notice_is_no_proof() -> None:
    unnoticed = bridge(port(state="disabled"))
    found = verdict_on(Speaker(1, facts=unnoticed), Speaker(2), lost, lost)
    assert found.adjacency is UNKNOWN
    assert "disabled for now" in found.why


@pytest.mark.parametrize(
    ("forth", "back", "joined"),
    [(passes, passes, True), (passes, lost, True), (lost, passes, True), (lost, lost, False)],
)
def test_segments_that_any_frame_crosses_are_joined_whatever_the_verdict(
    forth: Wire, back: Wire, joined: bool
) -> None:
    assert verdict_on(Speaker(1), Speaker(2), forth, back).joined is joined


def test_a_narrow_segment_is_joined_and_not_adjacent() -> None:
    found = verdict_on(Speaker(1), Speaker(2), up_to(1400))
    assert (found.adjacency, found.joined) == (NOT_ADJACENT, True)
    assert found.forth.mtu_bytes == 1400
    assert found.back.mtu_bytes == 1500


def test_the_latency_is_the_least_there_and_back() -> None:
    found = verdict_on(Speaker(1), Speaker(2))
    assert found.latency_us == pytest.approx(200)
    assert verdict_on(Speaker(1), Speaker(2), back=lost).latency_us is None


TUNNELS = {
    "kernel's, ours": (port("vx0", kind="vxlan", alias="qmigrate:t1"), "qmigrate:t1", "of ours"),
    "of no kind, ours": (
        port("vx0", kind="veth", alias="qmigrate:tunnel:t1"),
        "qmigrate:tunnel:t1",
        "of ours",
    ),
    "kernel's, not ours": (port("vx0", kind="gretap"), None, "not ours"),
    "a veth": (port("vx0", kind="veth"), None, "pass both ways"),
    "a guest's tap of ours": (
        port("vx0", kind="tun", alias="qmigrate:guest=1"),
        None,
        "pass both ways",
    ),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_through_a_tunnel_of_ours_is_said(name: str) -> None:
    tunnel, alias, words = TUNNELS[name]
    beta = Speaker(2, facts=bridge(port(), tunnel), way_in="vx0")
    found = verdict_on(Speaker(1), beta)
    assert found.adjacency is ADJACENT
    assert found.through_tunnel == alias
    assert words in found.why
    assert found.forth.ways == ("vx0",)


def test_a_tunnel_that_frames_did_not_take_is_not_named() -> None:
    facts = bridge(port(), port("vx0", kind="vxlan", alias="qmigrate:t1"))
    assert verdict_on(Speaker(1), Speaker(2, facts=facts)).through_tunnel is None


def test_own_frames_that_come_back_are_a_loop_and_prove_nothing() -> None:
    a, b = Speaker(1), Speaker(2)
    frame = a.ask(46, 0.0)
    assert frame is not None
    assert a.get(frame, 0.1) is None
    talk(a, b, lost, lost)
    found = judge(Side("alpha", a.report()), Side("beta", b.report()), mtu_bytes=1500)
    assert found.adjacency is NOT_ADJACENT
    assert [trap.kind for trap in found.traps] == [TrapKind.LOOP]


def test_own_frames_at_a_port_that_stp_keeps_shut_are_no_loop() -> None:
    a, b = Speaker(1, facts=bridge(port(), port("eth1", state="blocking"), stp=True)), Speaker(2)
    talk(a, b)
    frame = a.ask(46, 0.0)
    assert frame is not None
    a.blocked, a.way_in = True, "eth1"
    a.get(frame, 0.1)
    found = judge(Side("alpha", a.report()), Side("beta", b.report()), mtu_bytes=1500)
    assert found.traps == ()


def test_frames_that_arrive_twice_have_two_paths() -> None:
    a, b = Speaker(1), Speaker(2)
    for frame in talk(a, b):
        if frame[6:12] == a.ledger.mac:
            assert b.get(frame, 9.0) is None
    found = judge(Side("alpha", a.report()), Side("beta", b.report()), mtu_bytes=1500)
    assert found.adjacency is ADJACENT
    assert [trap.kind for trap in found.traps] == [TrapKind.TWO_PATHS]


def test_a_third_prober_with_the_same_nonce_proves_nothing() -> None:
    a, b, third = Speaker(1), Speaker(2), Speaker(3)
    talk(a, third)
    talk(third, b)
    talk(a, b, lost, lost)
    found = judge(Side("alpha", a.report()), Side("beta", b.report()), mtu_bytes=1500)
    assert found.adjacency is NOT_ADJACENT
    assert not found.joined


def test_a_report_of_another_run_is_not_taken_for_this_one() -> None:
    a, b = Speaker(1), Speaker(2)
    talk(a, b)
    stale = replace(a.report(), sender="ff" * 8)
    found = judge(Side("alpha", stale), Side("beta", b.report()), mtu_bytes=1500)
    assert found.forth.passage is Passage.SILENT
