"""Which tunnel `auto` takes, as a table; every answer has its reason."""

from ipaddress import ip_address

import pytest

from netsetup.choice import Ability, Choice, Path, choose
from netsetup.errors import HostError, UsageError
from netsetup.mtu import Manner


def abilities(words: str) -> tuple[Ability, ...]:
    """Return what "vxlan4 gretap6:why etherip4/ebpf" says."""
    found = []
    for word in words.split():
        name, _, why = word.partition(":")
        kind, _, backend = name.partition("/")
        found.append(Ability(kind[:-1], backend or "kernel", int(kind[-1]), why or None))
    return tuple(found)


def paths(words: str) -> tuple[Path, ...]:
    ends = {"4": ("10.1.0.2", "10.2.0.2"), "6": ("fd01::2", "fd02::2")}
    found = []
    for word in words.split():
        family, _, mtu = word.partition("=")
        local, remote = (ip_address(text) for text in ends[family])
        found.append(Path(local, remote, int(mtu) if mtu else None))
    return tuple(found)


CARRIED = "gretap4/ebpf etherip4/ebpf gretap4/relay gretap6/relay etherip4/relay etherip6/relay"
ALL = "vxlan4 vxlan6 gretap4 gretap6"


@pytest.mark.parametrize(
    ("ours", "theirs", "ways", "kind", "family", "manner"),
    [
        (ALL, ALL, "4=9000", "vxlan", 4, Manner.WHOLE),
        (ALL, ALL, "4=1500", "vxlan", 4, Manner.FRAGMENTS),
        (ALL, ALL, "4=1545", "gretap", 4, Manner.WHOLE),  # eight bytes less
        (ALL, ALL, "6=9000 4=1500", "vxlan", 6, Manner.WHOLE),
        (ALL, ALL, "6=1500 4=1500", "vxlan", 4, Manner.FRAGMENTS),  # cut rather than told
        (ALL, ALL, "6=1500", "vxlan", 6, Manner.TOLD),
        (ALL, ALL, "6=1565", "gretap", 6, Manner.WHOLE),
        (ALL, "gretap4", "4=1500", "gretap", 4, Manner.FRAGMENTS),
        (ALL, ALL, "4", "vxlan", 4, Manner.FRAGMENTS),  # nobody measured
        ("etherip4/ebpf", "etherip4/relay etherip4/ebpf", "4=1500", "etherip", 4, Manner.FRAGMENTS),
        (CARRIED, CARRIED, "4=1500", "gretap", 4, Manner.FRAGMENTS),  # segments stay whole in it
        (CARRIED, CARRIED, "4=1537", "etherip", 4, Manner.WHOLE),
        (CARRIED, CARRIED, "6=9000 4=1500", "gretap", 4, Manner.FRAGMENTS),  # rather than a process
        (CARRIED, CARRIED, "6=1500", "gretap", 6, Manner.FRAGMENTS),  # a process cuts its own
        (f"{ALL} {CARRIED}", f"vxlan4 {CARRIED}", "4=1500", "vxlan", 4, Manner.FRAGMENTS),
    ],
)
def test_auto_takes_what_both_can_and_the_path_carries_best(
    ours: str, theirs: str, ways: str, kind: str, family: int, manner: Manner
) -> None:
    found = choose(abilities(ours), abilities(theirs), paths(ways), mtu_bytes=1500)
    assert (found.kind, found.path.local.version, found.fit.manner) == (kind, family, manner)
    assert f"{kind} over IPv{family}: " in found.why
    assert str(found.fit.needed_bytes) in found.why
    assert len(set(found.passed_over)) == len(found.passed_over)


def test_a_kind_that_was_asked_for_is_taken_or_refused_with_the_reason() -> None:
    found = choose(abilities(ALL), abilities(ALL), paths("4=9000"), mtu_bytes=1500, wanted="gretap")
    assert found.kind == "gretap"
    assert "it was asked for" in found.why
    with pytest.raises(HostError, match="the other host cannot: no module"):
        choose(
            abilities(ALL),
            (Ability("gretap", "kernel", 4, "no module"),),
            paths("4=9000"),
            mtu_bytes=1500,
            wanted="gretap",
        )
    with pytest.raises(UsageError, match="there is no tunnel 'pigeon'"):
        choose((), (), (), mtu_bytes=1500, wanted="pigeon")


def test_frames_are_not_lost_in_silence_and_no_path_is_said() -> None:
    with pytest.raises(HostError, match="would be lost"):
        choose(abilities("gretap6"), abilities("gretap6"), paths("6=1500"), mtu_bytes=1500)
    with pytest.raises(HostError, match="no path"):
        choose(abilities(ALL), abilities(ALL), (), mtu_bytes=1500)
    with pytest.raises(HostError, match="this host cannot: it does not know it"):
        choose((), abilities(ALL), paths("4=1500"), mtu_bytes=1500)


def test_what_was_passed_over_says_why() -> None:
    found: Choice = choose(
        abilities("vxlan4 vxlan6 gretap4:old gretap6"),
        abilities(ALL),
        paths("4=9000 6=9000"),
        mtu_bytes=1500,
    )
    assert found.passed_over == (
        "gretap over IPv4: this host cannot: old",
        "etherip over IPv4: this host cannot: it does not know it",
        "etherip over IPv6: this host cannot: it does not know it",
        "vxlan over IPv6: the other address comes first",
        f"gretap over IPv6: as good, but of vxlan: {found.why.split(': ')[1].split('; ')[0]}",
    )


def test_who_carries_it_can_be_asked_for_and_what_it_costs_is_said() -> None:
    able = abilities(CARRIED)
    for wanted, backend, words in (
        ("etherip", "ebpf", "programs in the kernel carry it"),
        ("etherip/relay", "relay", "a process copies every frame"),
    ):
        found = choose(able, able, paths("4=9000"), mtu_bytes=1500, wanted=wanted)
        assert (found.kind, found.backend, found.their_backend) == ("etherip", backend, backend)
        assert words in found.why
    found = choose(able, abilities("etherip4/relay"), paths("4=9000"), mtu_bytes=1500)
    assert (found.kind, found.backend, found.their_backend) == ("etherip", "ebpf", "relay")
    assert "a process copies every frame" in found.why
    with pytest.raises(UsageError, match="etherip/relay"):
        choose(able, able, paths("4=9000"), mtu_bytes=1500, wanted="etherip/pigeon")
    with pytest.raises(HostError, match="cannot"):
        choose(able, able, paths("4=9000"), mtu_bytes=1500, wanted="gretap/kernel")
