"""A relay's life: it outlives who started it and the files it came from, and not its tunnel."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import netsetup
from netsetup.errors import HostError
from netsetup.relay import control_address
from netsetup.relay_process import end_relay, running
from netsetup.tunnel_spec import mirrored
from tests.support.carried import carried, full_frames_pass, unmake_all
from tests.support.netns import eventually, fresh_namespace
from tests.support.relay_fuzz import fuzz_relay
from tests.support.sites import echo, two_sites
from tests.support.tunnelled import spec_for

pytestmark = pytest.mark.net


async def test_it_carries_on_when_its_own_files_have_gone(tmp_path: Path) -> None:
    spec = spec_for("etherip", 4, 9000)
    package = tmp_path / "netsetup"
    shutil.copytree(Path(netsetup.__file__).parent, package)
    with two_sites(9000) as sites:
        try:
            for place, end in ((sites.alpha, spec), (sites.beta, mirrored(spec))):
                words = ("--end", end.end, "--home", "alpha/br0", "--kind", "etherip/relay")
                ends = ("--local", str(end.local), "--remote", str(end.remote))
                command = (sys.executable, "-m", "netsetup", "tunnel", "create")
                there = ("env", "-C", str(tmp_path), f"PYTHONPATH={tmp_path}")
                place.run(*there, *command, *words, *ends)
            shutil.rmtree(package)
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            full_frames_pass(sites, guest)
            with sites.alpha.entered():
                found = running(spec.id)
                assert found is not None
                assert os.getsid(found.pid) not in (os.getsid(0), 0)
        finally:
            await unmake_all(sites.alpha, sites.beta)


async def test_one_that_is_stopped_is_said() -> None:
    spec = spec_for("etherip", 4, 9000)
    with two_sites(9000) as sites:
        async with carried(spec, sites, ("relay", "relay")):
            with sites.alpha.entered():
                found = running(spec.id)
                assert found is not None
                os.kill(found.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(HostError, match="does not answer"):
                        running(spec.id)
                finally:
                    os.kill(found.pid, signal.SIGCONT)
                assert running(spec.id) is not None


async def test_a_strangers_name_is_no_relay() -> None:
    with (
        fresh_namespace() as place,
        place.entered(),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire,
        _nobody(wire) as stranger,
    ):
        await eventually(lambda: "29d1aa8f" in place.run("ss", "-xl"), "the stranger")
        assert running("29d1aa8f") is None
        assert end_relay("29d1aa8f") is False
        os.kill(stranger, 0)


@contextmanager
def _nobody(wire: socket.socket) -> Iterator[int]:
    """Let a user without rights take the name; yield his process."""
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            wire.bind(control_address("29d1aa8f"))
            wire.listen()
            signal.pause()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_it_follows_a_port_that_is_down_for_a_while() -> None:
    spec = spec_for("gretap", 4, 9000)
    with two_sites(9000) as sites:
        async with carried(spec, sites, ("relay", "ebpf")):
            guest = sites.guest(sites.beta, mirrored(spec).bridge)
            assert echo(guest, "192.0.2.1") == "ok"
            for state in ("down", "up"):
                sites.alpha.run("ip", "link", "set", f"qmv-{spec.id}", state)
            assert echo(guest, "192.0.2.1") == "ok"


def test_some_thousand_mutated_frames_break_nothing() -> None:
    seen = fuzz_relay(6000, seed=20)
    assert min(seen.values()) > 500
