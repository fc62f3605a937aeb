"""What a tunnel without a device tells of itself by names, and a relay by its words."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.errors import FrameError, UsageError
from netsetup.homes import Home
from netsetup.inner_marks import Underlay, carrier_name, read_names, underlay_name, wire_name
from netsetup.relay import RelaySpec, arguments
from netsetup.relay_process import command_line
from netsetup.tunnel_parts import Carried
from netsetup.tunnel_spec import MAX_KEY, End, TunnelSpec
from netsetup.wire import Wire, frame_untrusted, of_one_wire, payload_untrusted, wire_of

HERE, THERE = ip_address("10.1.0.2"), ip_address("10.2.0.2")
SPEC = TunnelSpec("etherip", HERE, THERE, Home("alpha", "br0"), End.HOME, 7)
NAME_BYTES = 127  # of an alternative name (ALTIFNAMSIZ - 1)


@given(
    st.sampled_from(["etherip", "gretap"]),
    st.sampled_from(["ebpf", "relay"]),
    st.integers(1, MAX_KEY),
    st.booleans(),
    st.one_of(st.none(), st.integers(1280, 65535)),
    st.sampled_from([("10.1.0.2", "10.2.0.2"), ("fd01::2", "fd02::2")]),
)
def test_names_are_read_back(
    kind: str,
    backend: str,
    key: int,
    turned: bool,
    path: int | None,
    ends: tuple[str, str],
) -> None:
    local, remote = map(ip_address, ends)
    spec = replace(
        SPEC, kind=kind, key=key, local=local, remote=remote, reversed_header=turned,
        path_mtu_bytes=path,
    )  # fmt: skip
    names = [
        wire_name(spec),
        carrier_name(spec, backend),
        underlay_name(spec, Underlay(2**31 - 1, hook_is_ours=True)),
    ]
    assert all(len(name) <= NAME_BYTES for name in names)
    marks = read_names(["other", *names])
    assert marks.carried == Carried(kind, local, remote, key, None, path, turned)
    assert (marks.backend, marks.underlay) == (backend, Underlay(2**31 - 1, hook_is_ours=True))
    assert read_names(names[:1]).carried is None


def test_etherip_has_one_name_for_two_addresses_and_gre_one_for_each_key() -> None:
    assert wire_name(SPEC) == wire_name(replace(SPEC, key=8))
    gre = replace(SPEC, kind="gretap")
    assert wire_name(gre) != wire_name(replace(gre, key=8))


@given(st.text(max_size=40))
def test_a_strangers_name_says_nothing(name: str) -> None:
    assert read_names([name, f"qmw-{name}", f"qmc-{name}", f"qmu-{name}"]).carried is None


def test_a_relay_is_known_by_its_words_and_has_a_unit_of_its_own() -> None:
    spec = RelaySpec(SPEC.id, f"qmv-{SPEC.id}", wire_of(SPEC), longer_than=1478)
    assert arguments(spec)[-2:] == ["--longer-than", "1478"]
    assert arguments(spec) != arguments(replace(spec, longer_than=None))
    plain, scoped = command_line(spec, scope=False), command_line(spec, scope=True)
    assert SPEC.id in plain
    assert scoped[scoped.index("--") + 1 :] == plain
    assert f"--unit=netsetup-relay-{SPEC.id}" in scoped


@pytest.mark.parametrize(
    ("wire", "shim", "outer"),
    [
        (Wire("etherip", HERE, THERE), "3000", 22),
        (Wire("etherip", HERE, THERE, reversed_header=True), "0300", 22),
        (Wire("gretap", HERE, THERE), "00006558", 24),
        (Wire("gretap", HERE, THERE, key=0xC0FFEE), "2000655800c0ffee", 28),
        (Wire("etherip", ip_address("fd01::2"), ip_address("fd02::2")), "3000", 42),
    ],
)
def test_headers_are_as_the_standards_draw_them(wire: Wire, shim: str, outer: int) -> None:
    assert (wire.shim.hex(), wire.outer_bytes) == (shim, outer)
    frame = bytes(60)
    assert payload_untrusted(wire, wire.shim + frame) == frame
    for wrong in (b"", wire.shim, wire.shim + bytes(13), b"\x40\x00" + frame):
        with pytest.raises(FrameError):
            payload_untrusted(wire, wrong)


@given(st.binary(max_size=80))
def test_any_octets_are_a_frame_or_an_error(octets: bytes) -> None:
    for kind in ("etherip", "gretap"):
        with pytest.raises(FrameError):
            frame_untrusted(Wire(kind, HERE, THERE), octets)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="is not carried here"):
        Wire("vxlan", HERE, THERE)
    with pytest.raises(UsageError, match="key"):
        replace(SPEC, kind="vxlan", key=0)
    assert replace(SPEC, kind="gretap", key=0).key == 0
    with pytest.raises(UsageError, match="path"):
        replace(SPEC, path_mtu_bytes=500)


@pytest.mark.parametrize(
    ("target", "mine"),
    [
        ("0180c2000000", True), ("0180c200000f", True), ("0180c2000010", False),
        ("0180c200002f", True), ("0180c2000100", False), ("01000ccccccd", True),
        ("01000cccccce", False), ("ffffffffffff", False), ("01005e000001", False),
    ],
)  # fmt: skip
def test_the_relay_knows_what_belongs_to_one_wire(target: str, *, mine: bool) -> None:
    assert of_one_wire(bytes.fromhex(target)) is mine
