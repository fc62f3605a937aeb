"""``qmigrate lab exec`` is a shell's view of a host, and the lab's config is all that it needs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmigrate.lab.lab import Lab

pytestmark = pytest.mark.net
LIST_DEADLINE_S = 120  # two cold agents on a starved machine; takes 6 s


def execute(lab: Lab, *words: str) -> list[str]:
    return [sys.executable, "-m", "qmigrate", "lab", "exec", "--lab", lab.name, *words]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("alpha", "--", "sh", "-c", "exit 7"), 7),
        (("alpha", "true"), 0),
        (("alpha", "--", "sh", "-c", "kill -9 $$"), 128 + signal.SIGKILL),
        (("alpha", "no-such-command"), 4),
        (("gamma", "true"), 2),
        (("alpha",), 2),
    ],
)
def test_the_status_is_that_of_the_command(lab: Lab, words: tuple[str, ...], status: int) -> None:
    done = subprocess.run(execute(lab, *words), capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_input_output_and_signals_reach_the_command(lab: Lab) -> None:
    script = "trap 'echo told; exit 5' TERM; read word; echo $word; while :; do sleep 0.01; done"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        execute(lab, "alpha", "--", "sh", "-c", script), stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("heard\n")
        process.stdin.flush()
        assert process.stdout.readline() == "heard\n"
        process.send_signal(signal.SIGINT)  # as a terminal's Ctrl-C, which the command gets itself
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
    assert process.returncode == 5


def test_nothing_of_the_users_environment_gets_in(lab: Lab, tmp_path: Path) -> None:
    secrets = {"SSH_AUTH_SOCK": str(tmp_path / "agent"), "HTTPS_PROXY": "http://192.0.2.1"}
    command = execute(lab, "client", "env")
    done = subprocess.run(
        command, env={**os.environ, **secrets}, capture_output=True, text=True, check=True
    )
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert names.isdisjoint(secrets)
    assert {"PATH", "HOME", "QMIGRATE_SSH_CONFIG", "QMIGRATE_CONFIG"} <= names


def test_a_user_lists_both_hosts_from_the_client(lab: Lab) -> None:
    command = execute(lab, "client", "--", "qmigrate", "list", "alpha", "beta", "--json")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIST_DEADLINE_S, check=True
    )
    hosts = json.loads(done.stdout)["hosts"]
    assert [(host["host"], host["error"]) for host in hosts] == [("alpha", None), ("beta", None)]


def test_a_lab_is_not_to_be_changed_from_within(lab: Lab) -> None:
    command = execute(lab, "client", "--", "qmigrate", "lab", "down", "--lab", lab.name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "this is a host of a lab" in done.stderr
