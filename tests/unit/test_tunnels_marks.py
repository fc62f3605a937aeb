"""Names, aliases, keys and homes: by these a tunnel is found again."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.commands.tunnel_json import LIST_SCHEMA, from_json, to_json, tunnels_from_json
from netsetup.errors import UsageError
from netsetup.homes import Home, home_of, parse_home, with_home
from netsetup.mtu import Manner
from netsetup.tunnel_spec import (
    MAX_KEY,
    End,
    Mark,
    Part,
    Tag,
    Tunnel,
    TunnelSpec,
    alias_of,
    choose_key,
    claim_name,
    claimant,
    mark_of,
    mirrored,
    pair,
    part_named,
    spec_of,
    tunnel_id,
)

A, B, C = (ip_address(text) for text in ("10.1.0.2", "10.2.0.2", "10.3.0.2"))
HOME = Home("alpha", "br0")
SPEC = TunnelSpec("vxlan", A, B, HOME, End.HOME, 7, guests=("web1",))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
BRIDGES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.@", min_size=1, max_size=15).filter(
    lambda name: name not in (".", "..")
)


@given(NAMES, BRIDGES, st.one_of(st.none(), st.integers(1, 4094)))
def test_a_home_is_read_back_from_text_and_alias(host: str, bridge: str, vlan: int | None) -> None:
    home = Home(host, bridge, vlan)
    assert parse_home(str(home)) == home
    alias = with_home("qmigrate:guest=web1 nic=net0", home)
    assert alias.startswith("qmigrate:guest=web1 nic=net0 ")
    assert home_of(alias) == home
    assert home_of(with_home(alias, HOME)) == HOME


@pytest.mark.parametrize("alias", [None, "", "qmigrate:guest=web1 nic=net0", "home=", "home=x"])
def test_an_alias_without_a_home_has_none(alias: str | None) -> None:
    assert home_of(alias) is None


@pytest.mark.parametrize(
    "text", ["", "alpha", "/br0", "alpha/", "alpha/br0@5000", "a/b/c", "a b/c"]
)
def test_what_is_no_home_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_home(text)


@given(NAMES, NAMES, st.sampled_from(Part), st.sampled_from(End), st.booleans())
def test_a_mark_is_read_back(owner: str, job: str, part: Part, end: End, isolated: bool) -> None:
    spec = replace(SPEC, tag=Tag(owner, job), end=end, isolated=isolated, manner=Manner.FRAGMENTS)
    expected = Mark(spec.id, part, end, HOME, Manner.FRAGMENTS, isolated, spec.tag)
    assert mark_of(alias_of(spec, part)) == expected
    assert part_named(spec.name(part)) == (spec.id, part)


@pytest.mark.parametrize(
    "alias",
    [
        None,
        "",
        "qmigrate:guest=web1 nic=net0",
        "qmigrate:tunnel=1",
        alias_of(SPEC, Part.PORT)[:-40],
    ],
)
def test_another_alias_is_no_mark(alias: str | None) -> None:
    assert mark_of(alias) is None


@given(st.text(max_size=80))
def test_no_alias_of_a_strangers_breaks_the_reader(text: str) -> None:
    assert mark_of(f"qmigrate:tunnel={text}") is None or "part=" in text
    home_of(f"home={text}")


def test_both_ends_have_one_id_and_each_home_and_pair_another() -> None:
    assert mirrored(SPEC).id == SPEC.id
    assert mirrored(mirrored(SPEC)) == SPEC
    homes = (HOME, Home("alpha", "br1"), Home("alpha", "br0", 10), Home("beta", "br0"))
    ids = {tunnel_id(home, A, other) for home in homes for other in (B, C)}
    assert len(ids) == 8


def test_a_key_is_the_same_on_both_hosts_and_single_on_each() -> None:
    first = choose_key(HOME, A, B, taken=frozenset())
    assert 1 <= first <= MAX_KEY
    assert choose_key(HOME, B, A, taken=frozenset()) == first
    second = choose_key(HOME, A, B, taken=frozenset({first}))
    assert second != first
    assert choose_key(HOME, A, C, taken=frozenset()) not in (first, second)


def test_a_claim_is_read_back_and_belongs_to_its_tunnel() -> None:
    name = claim_name(SPEC.id, "web1")
    assert claimant(name, SPEC.id) == "web1"
    assert claimant(name, "00000000") is None
    assert claimant("eth0", SPEC.id) is None
    for bad in ("", "web 1", "web/1", "w" * 81):
        with pytest.raises(UsageError):
            claim_name(SPEC.id, bad)


@pytest.mark.parametrize(
    "change",
    [
        {"remote": A},
        {"remote": ip_address("fd00::1")},
        {"remote": ip_address("224.0.0.1")},
        {"key": 0},
        {"key": MAX_KEY + 1},
        {"mtu_bytes": 500},
        {"udp_port": 0},
        {"manner": Manner.LOST},
        {"tag": Tag("o" * 200, "j")},
        {"guests": ("web 1",)},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(SPEC, **change)  # type: ignore[arg-type]


def tunnel_of(spec: TunnelSpec) -> Tunnel:
    return Tunnel(
        spec.id,
        spec.end,
        spec.home,
        spec.tag,
        kind=spec.kind,
        local=spec.local,
        remote=spec.remote,
        key=spec.key,
        udp_port=spec.udp_port,
        mtu_bytes=spec.mtu_bytes,
        manner=spec.manner,
        isolated=spec.isolated,
        port=spec.name(Part.PORT),
        bridge=spec.bridge,
        guests=spec.guests,
    )


def test_a_tunnel_tells_how_to_make_it_and_survives_json() -> None:
    tunnel = tunnel_of(SPEC)
    assert spec_of(tunnel) == SPEC
    assert spec_of(replace(tunnel, local=None)) is None
    assert from_json(to_json(tunnel)) == tunnel
    assert tunnels_from_json({"schema": LIST_SCHEMA, "tunnels": [to_json(tunnel)]}) == (tunnel,)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"schema": LIST_SCHEMA},
        {"schema": LIST_SCHEMA, "tunnels": [{}]},
        {"schema": LIST_SCHEMA, "tunnels": [{**to_json(tunnel_of(SPEC)), "local": "x"}]},
        {"schema": LIST_SCHEMA, "tunnels": [{**to_json(tunnel_of(SPEC)), "home": 5}]},
    ],
)
def test_what_is_no_list_of_tunnels_is_refused(document: object) -> None:
    with pytest.raises(UsageError):
        tunnels_from_json(document)


def test_ends_are_paired_and_what_does_not_fit_is_said() -> None:
    home, away = tunnel_of(SPEC), tunnel_of(mirrored(SPEC))
    other = tunnel_of(replace(SPEC, remote=C))
    found = pair((home, other), (away,))
    assert found.whole == ((home, away),)
    assert (found.home_only, found.away_only, found.differing) == ((other,), (), ())
    found = pair((home,), (replace(away, key=8),))
    assert found.differing == (f"tunnel {home.id}: the key is 7 at home and 8 away",)
    assert pair((), (away,)).away_only == (away,)
