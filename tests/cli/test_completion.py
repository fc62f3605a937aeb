"""Completion, by pressing TAB in the real shells."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import Terminal, on_a_terminal

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source s.bash"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "cp s.zsh _qmigrate; fpath=($PWD $fpath); autoload -U compinit && compinit -u -d ./dump",
    ),
    "fish": (["fish", "--no-config", "-i"], "source s.fish"),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """Yield a shell with the completion loaded, and hosts alpha, beta and a dangerous guest."""
    argv, load = SHELLS[request.param]
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is not installed")
    (tmp_path / "c.toml").write_text("[hosts.alpha]\n[hosts.alto]\n[hosts.beta]\n")
    (tmp_path / "other.toml").write_text("[hosts.gamma]\n")
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {
        "PATH": path, "HOME": str(home), "TERM": "xterm", "LANG": "C.UTF-8", "PS1": "> ",
        "QMIGRATE_CONFIG": str(tmp_path / "c.toml"),
    }  # fmt: skip
    with on_a_terminal(argv, env=env, cwd=tmp_path) as terminal:
        run(terminal, f"qmigrate completion {request.param} > s.{request.param}")
        run(terminal, load)
        yield terminal


def run(terminal: Terminal, command: str) -> None:
    """Type a command and wait for its end, seen by a word that the echo does not have."""
    terminal.type(f"{command} && echo do''ne\n")
    terminal.read_until("done")


def completed(terminal: Terminal, typed: str, shown: str) -> None:
    """Press TAB after `typed` and expect `shown` on the screen."""
    terminal.type(typed + "\t")
    terminal.read_until(shown)
    terminal.type("\x15")  # kill the line


def test_tab_completes_commands_hosts_and_options(shell: Terminal) -> None:
    completed(shell, "qmigrate comp", "completion")
    completed(shell, "qmigrate list b", "beta")
    completed(shell, "qmigrate list alp", "alpha")
    completed(shell, "qmigrate list alpha be", "beta")
    completed(shell, "qmigrate list --nam", "--names")
    completed(shell, "qmigrate completion zs", "zsh")


def test_tab_asks_the_inventory_of_the_line(shell: Terminal) -> None:
    completed(shell, "qmigrate list --config other.toml g", "gamma")


def test_a_guests_name_is_never_run(shell: Terminal, tmp_path: Path) -> None:
    """A host may lie about its guests; the words come through a qmigrate that says so."""
    fake = tmp_path / "bin" / "qmigrate"
    fake.parent.mkdir()
    words = "x$(touch$IFS/owned)\\nx`touch owned`\\nx;touch owned\\nxharmless-1"
    fake.write_text(f"#!/bin/sh\nprintf '{words}\\n'\n")
    fake.chmod(0o755)
    run(shell, "export PATH=$PWD/bin:$PATH")
    completed(shell, "qmigrate list xh", "xharmless-1")
    completed(shell, "qmigrate list x", "xharmless-1")
    assert not re.search("touch", shell.text)
    assert not (tmp_path / "owned").exists()
