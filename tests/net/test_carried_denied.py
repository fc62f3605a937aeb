"""Hosts where no program may be loaded, or whose kernel refuses: another way, and the reason."""

import json
import sys
from errno import EINVAL

import pytest

from netsetup import bpf_load
from netsetup.choice import Path, choose
from netsetup.errors import HostError, RefusedError
from netsetup.rtnl import Rtnl
from netsetup.tunnels import abilities, create
from tests.support.carried import unmake_all
from tests.support.sites import ALPHA, BETA, nothing_left, two_sites
from tests.support.tunnelled import spec_for

pytestmark = pytest.mark.net

NO_PROGRAMS = ("setpriv", "--bounding-set", "-bpf,-sys_admin,-perfmon", "--inh-caps", "-bpf")
ENDS = ("--local", "10.77.1.2", "--remote", "10.77.2.2", "--path-mtu", "9000")


async def test_without_the_right_to_load_programs_a_relay_carries_it_and_says_why() -> None:
    with two_sites(9000) as sites:
        try:
            command = (*NO_PROGRAMS, sys.executable, "-m", "netsetup", "tunnel", "create")
            words = ("--end", "home", "--home", "alpha/br0", "--kind", "etherip", "--json")
            told = json.loads(sites.alpha.run(*command, *words, *ENDS))
            assert (told["tunnel"]["kind"], told["tunnel"]["backend"]) == ("etherip", "relay")
            assert told["tunnel"]["problems"] == []
            assert "a process copies every frame" in told["why"]
            reasons = [line for line in told["passed_over"] if "etherip (ebpf)" in line]
            assert any("this host cannot: the kernel refused to " in line for line in reasons)
            assert all("Operation not permitted" in line for line in reasons)
        finally:
            await unmake_all(sites.alpha)


async def test_a_kernel_that_refuses_a_program_is_found_out_by_trying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an older one would: it does not know a function that the program calls."""
    asked = bpf_load._bpf

    def refuse(command: int, attributes: bytes, doing: str) -> tuple[int, bytes]:
        if command == bpf_load._PROG_LOAD:
            raise RefusedError("load a BPF program", EINVAL)
        return asked(command, attributes, doing)

    with two_sites(9000) as sites, sites.alpha.entered():
        before = nothing_left(sites.alpha)
        async with Rtnl() as rtnl:
            monkeypatch.setattr(bpf_load, "_bpf", refuse)
            able = await abilities(rtnl, ALPHA[4], BETA[4])
            programs = [each for each in able if each.backend == "ebpf"]
            assert len(programs) == 2
            assert all("Invalid argument" in str(each.why_not) for each in programs)
            found = choose(able, able, [Path(ALPHA[4], BETA[4], 9000)], mtu_bytes=1500,
                           wanted="etherip")  # fmt: skip
            assert found.backend == "relay"
            assert any("Invalid argument" in line for line in found.passed_over)
            with pytest.raises(HostError, match="Invalid argument"):
                await create(rtnl, spec_for("etherip", 4, 9000), backend="ebpf")
        assert nothing_left(sites.alpha) == before
