"""What the tests of takeovers do to a move and its hosts, beside what `faulting` can."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.faulting import Faulty, Struck, agents, kill, one
from tests.support.moving import HOSTS

NOBODY = "02:00:00:00:00:99"  # a MAC that nobody has: what is sent there is heard of no more
ROOT = Path(__file__).parents[2]
BRIDGE = "br0"
ASK_DEADLINE_S = 60.0  # for a login, an agent's start and all that it waits for, on a busy machine


def start(faulty: Faulty) -> None:
    """Start the tiny guest and wait until it lives."""
    faulty.site.start(faulty.tiny())
    faulty.before = faulty.site.await_life("tiny1")


def assert_ended_on(faulty: Faulty, struck: Struck, host: str, state: str = "running") -> None:
    """Assert that all is over and the guest is on `host`, whole, and nothing else is left."""
    faulty.await_end(struck.job)
    copies = faulty.site.copies("tiny1")
    assert [(copy.host, copy.state) for copy in copies] == [(host, state)]
    assert faulty.site.memory("tiny1", before=faulty.before).problem == ""
    faulty.assert_never_two()
    assert faulty.site.leftovers("tiny1") == []


@contextlib.contextmanager
def apart(faulty: Faulty) -> Iterator[None]:
    """Let alpha and beta lose each other, both ways and without a word; the client sees both."""
    lab = faulty.site.lab
    nodes = {node.name: node for node in lab.status().nodes}
    bent = [
        (host, address.split("/")[0])
        for host, other in zip(HOSTS, reversed(HOSTS), strict=True)
        for address in nodes[other].addresses
    ]
    assert bent
    for host, address in bent:
        words = ("ip", "neigh", "replace", address, "lladdr", NOBODY, "nud", "permanent")
        lab.run(host, [*words, "dev", BRIDGE])
    try:
        yield
    finally:
        for host, address in bent:
            lab.run(host, ["ip", "neigh", "delete", address, "dev", BRIDGE], check=False)


def asked(faulty: Faulty, *words: str) -> dict[str, Any]:
    """Return what the small controller on the client was answered; see `tests.support.asking`."""
    command = [sys.executable, "-m", "tests.support.asking", *words]
    env = {"PYTHONPATH": str(ROOT)}
    done = faulty.site.lab.run("client", command, check=False, timeout_s=ASK_DEADLINE_S, env=env)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kill_guardian(faulty: Faulty, struck: Struck, host: str) -> None:
    """End the job's guardian on `host`; its agent goes on."""
    kill(one(agents(faulty.site, host, "guardian", struck.job)))


def kill_both(faulty: Faulty, struck: Struck, host: str) -> None:
    """End all that works at the job on `host`."""
    kill_guardian(faulty, struck, host)
    struck.kill_agent(host)
