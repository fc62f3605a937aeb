"""``scripts/bench overhead``: what qmigrate adds to QEMU's own time, beside a bare QMP script.

Every sample is a fresh guest, moved once from alpha to beta; the arms take turns, and the order
turns round every round. The bare script (`lab.bare`) has no login to make, checks nothing and lets
the destination start the guest by itself: a floor. After each move the guest's memory is walked,
and it must be the same run of the same guest.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qmigrate.core.errors import HostError
from qmigrate.lab import syscalls, workload
from qmigrate.lab.compare import rows
from qmigrate.lab.demo import BOOT_DEADLINE_S, GUEST_IP4, MOVE_DEADLINE_S, linux_guest
from qmigrate.lab.guests import BRIDGE, LabGuest, start
from qmigrate.lab.hosts import open_members
from qmigrate.lab.images import guest_argv, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.topologies import TOPOLOGIES

PORT = 4444  # the bare script's
FIGURES = ("wall_s", "overhead_ms", "blackout_ms", "excess_ms", "qemu_total_ms", "qemu_downtime_ms")
SOURCE, DESTINATION = "alpha", "beta"


@dataclass(frozen=True, slots=True)
class Sample:
    """One move; None is what an arm cannot know."""

    arm: str
    problem: str | None
    wall_s: float | None = None
    connect_s: float | None = None  # qmigrate's imports, logins and agents; bare has none
    qemu_total_ms: float | None = None
    qemu_downtime_ms: float | None = None
    blackout_ms: float | None = None
    load1: float = 0.0

    @property
    def overhead_ms(self) -> float | None:
        """What is neither QEMU's nor the making of connections."""
        if self.wall_s is None or self.qemu_total_ms is None:
            return None
        return (self.wall_s - (self.connect_s or 0.0)) * 1e3 - self.qemu_total_ms

    @property
    def excess_ms(self) -> float | None:
        """What the guest stood still longer than QEMU's own figure says."""
        if self.blackout_ms is None or self.qemu_downtime_ms is None:
            return None
        return self.blackout_ms - self.qemu_downtime_ms


class Rig:
    """A lab with nothing on it between two samples."""

    def __init__(self, lab: Lab, guest: LabGuest) -> None:
        self.lab = lab
        self.guest = guest

    def fresh(self) -> workload.WorkloadState:
        """Boot the guest on the source; return its first words."""
        start(self.lab, SOURCE, self.guest)
        ask = [sys.executable, "-c", _AWAIT_PORT, GUEST_IP4, str(workload.CONTROL_PORT)]
        self.lab.run("client", ask, timeout_s=BOOT_DEADLINE_S)
        return self.asked("state")

    def asked(self, command: str) -> workload.WorkloadState:
        """Return what the guest says of itself."""
        words = [sys.executable, "-m", "qmigrate.lab.workload", GUEST_IP4, command]
        done = self.lab.run("client", words, timeout_s=BOOT_DEADLINE_S)
        return workload.parse_state_untrusted(done.stdout.strip().encode())

    def inside(self, host: str) -> int:
        """Return a process of the host whose namespaces are the host's."""
        return min(self.lab.pids(host))

    def clear(self) -> None:
        """End the guest wherever it is, and remove what it lived on."""
        for host in (SOURCE, DESTINATION):
            for pid, pidfd in open_members(self.inside(host)).items():
                try:
                    if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        syscalls.send_signal(pidfd, signal.SIGKILL)
                        syscalls.wait_for_end(pidfd, MOVE_DEADLINE_S)
                except OSError:
                    pass
                finally:
                    os.close(pidfd)
            for tap in self.guest.taps:
                self.lab.run(host, ["ip", "link", "delete", tap], check=False)
            shutil.rmtree(seen(self.inside(host), "/run/qmigrate/guests"), ignore_errors=True)


def by_qmigrate(rig: Rig) -> dict[str, Any]:
    """Move it as a user does, a fresh process on the client; the agent is in the hosts' caches."""
    command = ["qmigrate", "migrate", rig.guest.name, DESTINATION, "--from", SOURCE, "--json"]
    began_s = time.perf_counter()
    done = rig.lab.run("client", command, check=False, timeout_s=MOVE_DEADLINE_S)
    wall_s = time.perf_counter() - began_s
    result = json.loads(done.stdout or "{}")
    if result.get("exit") not in (0, 8):
        return {"problem": f"{result.get('outcome')}: {result.get('error')} {done.stderr[-500:]}"}
    connect = next((p for p in result["phases"] if p["name"] == "connect"), None)
    return {
        "problem": None,
        "wall_s": wall_s,
        "connect_s": connect["duration_s"] if connect else None,
        "qemu_total_ms": result["qemu"]["total_ms"],
        "qemu_downtime_ms": result["qemu"]["downtime_ms"],
        "blackout_ms": result["blackout_ms"],
    }


def by_bare(rig: Rig) -> dict[str, Any]:
    """Move it with a dozen QMP commands, from this machine, which sees into both hosts."""
    here, there = rig.inside(SOURCE), rig.inside(DESTINATION)
    into = ["nsenter", "-a", "-t", str(there), "--"]
    plug = [*into, "ip", "link", "set", rig.guest.taps[0], "master", BRIDGE, "up"]
    monitor = rig.guest.spec().monitor
    address = _address(rig.lab, DESTINATION)
    command = [
        *(sys.executable, "-I", str(Path(__file__).with_name("bare.py"))),
        *("--source", seen(here, monitor)),
        *("--destination", seen(there, monitor)),
        *("--uri", f"tcp:{address}:{PORT}", "--plug", shlex.join(plug), "--"),
        *into,
        *guest_argv(rig.guest.spec()),
    ]
    began_s = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=MOVE_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"not done within {MOVE_DEADLINE_S:g} s"}
    wall_s = time.perf_counter() - began_s
    if done.returncode:
        return {"problem": done.stderr[-500:]}
    return {"problem": None, "wall_s": wall_s, **json.loads(done.stdout)}


ARMS: dict[str, Callable[[Rig], dict[str, Any]]] = {"qmigrate": by_qmigrate, "bare": by_bare}
BASE = "bare"


def seen(pid: int, path: str) -> str:
    """Return a host's own path as this machine sees it: by the root of one of its processes."""
    return f"/proc/{pid}/root{path}"


def _address(lab: Lab, host: str) -> str:
    words = ["ip", "-4", "-json", "address", "show", "scope", "global"]
    for link in json.loads(lab.run(host, words).stdout):
        for each in link.get("addr_info", ()):
            return str(each["local"])
    raise HostError(f"{host} has no address")


def sample(rig: Rig, arm: str) -> Sample:
    """Boot, move, walk the memory, clear away."""
    try:
        before = rig.fresh()
        found = ARMS[arm](rig)
        if found["problem"] is None:
            after = rig.asked("verify")
            if after.boot_id != before.boot_id or after.memory is workload.Verdict.BROKEN:
                found["problem"] = f"not the guest that it was: {after}"
    finally:
        rig.clear()
    return Sample(arm=arm, load1=os.getloadavg()[0], **found)


def run(words: argparse.Namespace) -> int:
    """Run all rounds and print the table; exit code 1 if a move failed."""
    mib, _, rate = words.load.partition(":")
    lab = Lab(words.lab)
    lab.up(TOPOLOGIES["same-segment"])
    samples: list[Sample] = []
    try:
        rig = Rig(lab, linux_guest(lab, linux_image(), int(mib), int(rate)))
        for number in range(-words.warmup, words.rounds):
            for arm in list(ARMS) if number % 2 == 0 else list(reversed(ARMS)):
                found = sample(rig, arm)
                if number >= 0:
                    samples.append(found)
                if found.problem or words.verbose:
                    print(f"{number + 1}: {found}", file=sys.stderr, flush=True)
    finally:
        lab.down()
    if words.samples:
        words.samples.write_text(json.dumps([asdict(s) for s in samples], indent=1))
    good = [s for s in samples if s.problem is None]
    figures = {
        figure: {
            arm: [v for s in good if s.arm == arm and (v := getattr(s, figure)) is not None]
            for arm in ARMS
        }
        for figure in FIGURES
    }
    print(f"{'':18}{'':10}   median       p95       max       against {BASE} [95 %]")
    for figure, arm, text in rows(figures, BASE):
        print(f"{figure:18}{arm:10}{text}")
    loads = [s.load1 for s in samples]
    print(f"failed: {len(samples) - len(good)}; load {min(loads):.2f} to {max(loads):.2f}")
    return 0 if len(good) == len(samples) else 1


# Returns when something listens there.
_AWAIT_PORT = """
import socket, sys
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
        break
    except OSError:
        pass
"""
