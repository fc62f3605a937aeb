"""The arithmetic of tunnels' headers, against the figures measured in the laboratory."""

import pytest

from netsetup.errors import UsageError
from netsetup.mtu import Manner, fit, inner_mtu_bytes, overhead_bytes


@pytest.mark.parametrize(
    ("kind", "family", "tags", "expected"),
    [
        ("etherip", 4, 0, 36),
        ("gretap", 4, 0, 42),
        ("vxlan", 4, 0, 50),
        ("etherip", 6, 0, 56),
        ("gretap", 6, 0, 62),
        ("vxlan", 6, 0, 70),
        ("vxlan", 4, 1, 54),
        ("vxlan", 6, 2, 78),
    ],
)
def test_what_each_kind_adds(kind: str, family: int, tags: int, expected: int) -> None:
    assert overhead_bytes(kind, family, tags=tags) == expected
    assert inner_mtu_bytes(kind, family, 1500, tags=tags) == 1500 - expected


@pytest.mark.parametrize(
    ("kind", "family", "path", "manner"),
    [
        ("vxlan", 4, 1550, Manner.WHOLE),
        ("vxlan", 4, 1549, Manner.FRAGMENTS),
        ("vxlan", 4, 1500, Manner.FRAGMENTS),
        ("vxlan", 6, 1570, Manner.WHOLE),
        ("vxlan", 6, 1569, Manner.TOLD),
        ("gretap", 4, 1542, Manner.WHOLE),
        ("gretap", 4, 1541, Manner.FRAGMENTS),
        ("gretap", 6, 1562, Manner.WHOLE),
        ("gretap", 6, 1500, Manner.LOST),
        ("etherip", 4, 1536, Manner.WHOLE),
        ("vxlan", 4, None, Manner.FRAGMENTS),
    ],
)
def test_what_becomes_of_a_guests_full_frames(
    kind: str, family: int, path: int | None, manner: Manner
) -> None:
    found = fit(kind, family, mtu_bytes=1500, path_mtu_bytes=path)
    assert found.manner is manner
    assert str(found.needed_bytes) in found.cost
    assert ("not known" in found.cost) == (path is None)


def test_a_tag_inside_takes_its_four_bytes() -> None:
    assert fit("vxlan", 4, mtu_bytes=1500, path_mtu_bytes=1553, tags=1).manner is Manner.FRAGMENTS
    assert fit("vxlan", 4, mtu_bytes=1500, path_mtu_bytes=1554, tags=1).manner is Manner.WHOLE


@pytest.mark.parametrize(
    ("kind", "mtu", "path"), [("l2tp", 1500, 1500), ("vxlan", 576, 1500), ("vxlan", 1500, 70000)]
)
def test_what_cannot_be_is_refused(kind: str, mtu: int, path: int) -> None:
    with pytest.raises(UsageError):
        fit(kind, 4, mtu_bytes=mtu, path_mtu_bytes=path)
