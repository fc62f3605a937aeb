"""Ends of tunnels side by side, and who still needs one."""

from dataclasses import replace

import pytest

from qmigrate.core.home import Home
from qmigrate.core.network import TunnelHere
from qmigrate.core.tunnel_claims import Claims, OurTunnel, needed
from qmigrate.core.tunnel_pairs import lost_on, pair_up

HOME = TunnelHere(
    id="0a0b0c0d",
    end="home",
    home=Home("alpha", "br0"),
    owner="qmigrate",
    job="j",
    backend="kernel",
    kind="vxlan",
    local="10.1.0.1",
    remote="10.2.0.1",
    key=7,
    mtu_bytes=1500,
    manner="whole",
    port="qmt-0a0b0c0d",
    bridge="br0",
    guests=("web1",),
    taps=(),
)
AWAY = replace(HOME, end="away", local="10.2.0.1", remote="10.1.0.1", bridge="qmb-0a0b0c0d")
ADDRESSES = {"alpha": ("10.1.0.1",), "gamma": ("10.2.0.1",)}


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        ({"alpha": (HOME,), "gamma": (AWAY,)}, []),
        ({"alpha": (HOME,), "gamma": ()}, ["one end only, on alpha; gamma does not"]),
        ({"alpha": (), "gamma": (AWAY,)}, ["one end only, on gamma; alpha does not"]),
        ({"alpha": (HOME,)}, []),  # gamma was not asked
        ({"alpha": (HOME,), "gamma": (replace(AWAY, key=8),)}, ["key is 7 on alpha and 8"]),
        ({"alpha": (HOME,), "gamma": (replace(AWAY, kind="gretap"),)}, ["kind is vxlan on"]),
        (
            {"alpha": (replace(HOME, guests=("web1", "web2")),), "gamma": (AWAY,)},
            ["guest web2 claims it on alpha only"],
        ),
        (
            {"alpha": (replace(HOME, problems=("qmt-0a0b0c0d is down",)),), "gamma": (AWAY,)},
            ["on alpha qmt-0a0b0c0d is down"],
        ),
    ],
)
def test_ends_that_do_not_fit_are_told(
    found: dict[str, tuple[TunnelHere, ...]], problems: list[str]
) -> None:
    asked = {host: ADDRESSES[host] for host in found}
    (row,) = pair_up(found, asked)
    assert len(row.problems) == len(problems)
    for said, words in zip(row.problems, problems, strict=True):
        assert words in said
    assert "web1" in row.guests


def test_what_a_host_has_lost_is_what_others_lead_to_it_and_it_does_not_have() -> None:
    found = {"alpha": (HOME,), "gamma": (), "delta": (replace(HOME, id="1"),)}
    assert lost_on("gamma", found, ("10.2.0.1",)) == (HOME, replace(HOME, id="1"))
    assert lost_on("gamma", found, ("10.9.0.1",)) == ()
    assert lost_on("gamma", {**found, "gamma": (AWAY,)}, ("10.2.0.1",)) == (replace(HOME, id="1"),)


@pytest.mark.parametrize("away", [True, False])
@pytest.mark.parametrize(
    ("lives", "busy", "job", "taps", "served"),
    [
        ((), (), None, (), {True: False, False: True}),
        (("web1",), (), None, (), {True: True, False: True}),
        ((), ("web1",), None, (), {True: True, False: True}),
        (("web1",), ("web1",), None, (), {True: True, False: True}),
        ((), (), ("j-1", "web1"), (), {True: None, False: None}),
        ((), (), None, ("tap9",), {True: True, False: True}),
        (("web1", "web2"), (), None, (), {True: True, False: False}),
        (("web2",), (), None, (), {True: True, False: True}),
    ],
)
def test_an_end_serves_the_guests_that_are_on_its_side_of_the_way(
    away: bool,
    lives: tuple[str, ...],
    busy: tuple[str, ...],
    job: tuple[str, str] | None,
    taps: tuple[str, ...],
    served: dict[bool, bool | None],
) -> None:
    claims = Claims(
        lives=lives.__contains__,
        worked_at=busy.__contains__,
        undecided=lambda guest: job if guest == "web1" else None,
        tap_serves=lambda tap: True,
    )
    tunnel = OurTunnel("0a0b0c0d", away, ("web1", "web2"), taps, "10.2.0.1")
    verdict, why, _ = needed(tunnel, claims)
    assert verdict is served[away]
    assert why


def test_an_end_that_nobody_claims_serves_nobody() -> None:
    nobody = Claims(lambda _: False, lambda _: False, lambda _: None, lambda _: False)
    assert needed(OurTunnel("1", False, (), ("tap9",), None), nobody)[0] is False
    locked = OurTunnel("1", True, ("web1",), (), None, locked=("web1",))
    assert needed(locked, nobody)[0] is True
