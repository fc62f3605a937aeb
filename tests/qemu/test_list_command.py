"""``qmigrate list`` as a user runs it: real guests, over a real sshd and on this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.support.bare_qemu import BareQemu, bare_qemu
from tests.support.sshd import running_sshd
from tests.support.terminal import on_a_terminal

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="the sshd lives in a namespace of its own"),
]


@dataclass(frozen=True, slots=True)
class Site:
    """Two ways to one machine, a third that leads nowhere, and a guest."""

    guest: BareQemu
    env: dict[str, str]
    directory: Path

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "qmigrate", "list", *words]

    async def run(self, *words: str) -> "subprocess.CompletedProcess[bytes]":
        return await trio.run_process(
            self.argv(*words), env=self.env, check=False, capture_stdout=True, capture_stderr=True
        )


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[Site]:
    (directory / "sshd").mkdir()
    async with (
        running_sshd(directory / "sshd") as server,
        bare_qemu(directory, "cli-web1", "-S", "-nic", "none") as guest,
    ):
        config = directory / "config.toml"
        config.write_text('[hosts.alpha]\nssh = "server"\n[hosts.nowhere]\n[hosts.local]\n')
        # `nowhere` has no address: nothing leaves this machine.
        with server.config.open("a") as file:
            file.write("Host nowhere\n  HostName 127.0.0.1\n  Port 1\n")
        env = {
            **os.environ,
            "QMIGRATE_CONFIG": str(config),
            "QMIGRATE_SSH_CONFIG": str(server.config),
            "TERM": "xterm",
        }
        yield Site(guest, env, directory)


async def test_guests_are_listed_over_ssh_and_locally_beside_a_host_that_fails(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as here:
        done = await here.run("--json", "-v")
        found = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (4, b"")
        ours = [guest for guest in found["guests"] if guest["pid"] == here.guest.pid]
        assert [guest["host"] for guest in ours] == ["alpha", "local"]
        for guest in ours:
            assert (guest["name"], guest["state"]) == ("cli-web1", "prelaunch")
            assert guest["memory_bytes"] == 64 * 2**20
            assert guest["accelerator"] == "tcg"
            assert guest["monitor"] == here.guest.path
        hosts = {host["host"]: host for host in found["hosts"]}
        assert {name: host["exit"] for name, host in hosts.items()} == {
            "alpha": 0,
            "nowhere": 4,
            "local": 0,
        }
        assert hosts["nowhere"]["error"]["code"] == "unreachable"
        assert "login" in [step["name"] for step in hosts["alpha"]["steps"]]

        done = await here.run("alpha")
        header, *rows = (line.split("\t") for line in done.stdout.decode().splitlines())
        [row] = [row for row in rows if row[header.index("PID")] == str(here.guest.pid)]
        assert row[:4] == ["cli-web1", "alpha", "prelaunch", "64 MiB"]
        assert row[header.index("MONITOR")] == here.guest.path

        done = await here.run("--names", "local")
        assert "cli-web1" in done.stdout.decode().splitlines()
        assert (done.returncode, done.stderr) == (0, b"")


async def test_a_terminal_shows_the_guest_and_the_failing_host(tmp_path: Path) -> None:
    async with site(tmp_path) as here:

        def look() -> tuple[int, str]:
            argv = here.argv("alpha", "nowhere")
            with on_a_terminal(argv, env=here.env, cwd=Path.cwd(), columns=100) as terminal:
                return terminal.wait(), terminal.text

        code, text = await trio.to_thread.run_sync(look)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert code == 4
        assert re.search(r"^cli-web1 +alpha +prelaunch +64 MiB +1 ", plain, re.M)
        assert re.search(r"^error: (connect: )?nowhere: ", plain, re.M)
        assert all(len(line) <= 100 for line in plain.splitlines() if line.startswith("cli-web1"))
