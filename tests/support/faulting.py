"""Bad luck, placed exactly: a move that stands still at a named moment until a test lets it go on.

A move is started with fault points (`qmigrate.core.faults`). Where one says ``stop`` the agent has
stopped itself; the test does its worst meanwhile and lets it go on. Every QEMU of a guest writes
down when its CPUs start and stop (its own trace of ``vm_state_notify``), so that what is asserted
is not a sample: at no instant of the whole test have two copies run.
"""

import contextlib
import itertools
import json
import math
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qmigrate.core.tiny import Marks
from qmigrate.lab import guests, syscalls
from qmigrate.lab.lab import Lab
from tests.support.moving import HOSTS, MOVE_DEADLINE_S, Copy, Moved, Moving, Site

__all__ = ["faulty"]

TRACES = "/mnt"  # on each host a directory of its own, which outlives the host's power
END_DEADLINE_S = 60.0  # for a job to end by itself, with a short patience
AGENT_LOG = "/var/log/qmigrate/{job}/agent.log"
TRACE = re.compile(r"^\d+@(?P<at>\d+\.\d+):vm_state_notify running (?P<running>[01]) ")


@dataclass(frozen=True, slots=True)
class Ran:
    """A stretch of time in which the CPUs of one QEMU ran."""

    trace: str
    from_s: float
    to_s: float

    @property
    def goes_on(self) -> bool:
        """Whether it runs now."""
        return self.to_s == math.inf


@dataclass(slots=True)
class Faulty:
    """One test's moves under bad luck; `site` is the lab as the test has it."""

    site: Site
    before: Marks | None = None  # of the tiny guest, before anything happened
    jobs: list[str] = field(default_factory=list)
    deaths: dict[Path, float] = field(default_factory=dict)  # of traces whose QEMU was killed

    def tiny(self, name: str = "tiny1") -> guests.LabGuest:
        """Describe a tiny guest whose QEMU keeps a trace, on either host."""
        return self.site.tiny(name, *traced())

    def linux(self, name: str = "web1", **changes: Any) -> guests.LabGuest:
        """Describe a linux guest whose QEMU keeps a trace, on either host."""
        return self.site.linux(name, *traced(), **changes)

    def begin(self, name: str, *options: str, points: Sequence[str] = ()) -> "Struck":
        """Start to move a guest to beta with fault points."""
        faults = [word for point in points for word in ("--fault", point)]
        words = ("migrate", name, "beta", "--from", "alpha", "--impatient", "--json")
        moving = self.site.begin(*words, *faults, *options)
        try:
            job = moving.until(lambda line: job_of(line) is not None)
        except AssertionError:
            raise AssertionError(f"no job was begun: {moving.finish()}") from None
        self.jobs.append(job_of(job) or "")
        return Struck(self, moving, self.jobs[-1])

    def ran(self) -> list[Ran]:
        """Return when any copy of a guest ran, in order, from the traces of all QEMUs so far."""
        found: list[Ran] = []
        for host in HOSTS:
            for path in sorted(trace_directory(self.site.lab, host).iterdir()):
                found += _stretches(path, self.deaths.get(path, math.inf))
        return sorted(found, key=lambda ran: ran.from_s)

    def assert_never_two(self) -> None:
        """Fail if there was an instant at which two copies ran, or if nothing was traced."""
        ran = self.ran()
        assert ran, "no QEMU has traced anything: this proves nothing"
        for before, after in itertools.pairwise(ran):
            assert before.to_s <= after.from_s, f"two copies ran: {before} and {after}"

    def await_end(self, job: str, *hosts: str) -> None:
        """Return when no host (or of those named) has an agent or guardian of the job any more."""
        for host in hosts or HOSTS:
            for words in (("worker", job), ("guardian", job)):
                for pid in agents(self.site, host, *words):
                    await_death(pid)

    def logs(self) -> str:
        """Return what the jobs' agents have written so far, for whoever reads a failure."""
        found = []
        for host in HOSTS:
            with contextlib.suppress(AssertionError, KeyError):  # no power
                logs = self.site.path(host, "/var/log/qmigrate")
                found += [
                    f"{host} {path.parent.name}/{path.name}:\n{path.read_text()}"
                    for path in logs.glob("*/*.log")
                    if path.parent.name in self.jobs
                ]
        return "\n".join(found)

    def kill_qemu(self, copy: Copy) -> None:
        """End a QEMU from outside, as the kernel does when memory is short."""
        trace = self._trace(copy)
        kill(copy.pid)
        self.deaths[trace] = time.time()

    def _trace(self, copy: Copy) -> Path:
        status = Path(f"/proc/{copy.pid}/status").read_text()
        inside = re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
        assert inside, status
        return trace_directory(self.site.lab, copy.host) / f"run-{inside[1]}.trace"

    def power_off(self, host: str) -> None:
        """Let a host lose its power; it comes back by itself, empty, when the test is over."""
        self.site.lab.power_off(host)
        for path in trace_directory(self.site.lab, host).iterdir():
            self.deaths.setdefault(path, time.time())
        self.site.undo.callback(self.power_on, host)

    def power_on(self, host: str) -> None:
        """Give a host its power again, and its traces."""
        self.site.lab.power_on(host)
        self.site._inits.clear()
        mount_traces(self.site.lab, host)


@dataclass(slots=True)
class Struck:
    """A move under way, seen from outside."""

    faulty: Faulty
    moving: Moving
    job: str

    def hold(self, side: str, moment: str) -> "Held":
        """Return once the agent of `side` has stopped itself at `moment`."""
        host = HOSTS[0] if side == "source" else HOSTS[1]
        self.heard(host, f"fault point {moment}: stop")
        pid = self.agent(host)
        while state_of(pid) not in "tT":  # it has said so and does it now
            os.sched_yield()
        return Held(self, pid)

    def heard(self, host: str, text: str) -> None:
        """Return once the job's agent on `host` has written `text` into its log."""
        log = AGENT_LOG.format(job=self.job)
        follow = ["tail", "-n", "+1", "-s", "0.05", "-F", log]
        process = self.faulty.site.lab.popen(
            host, follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            await_text(process, text)
        finally:
            process.kill()
            process.communicate()

    def agent(self, host: str) -> int:
        """Return the pid of the job's agent on `host`."""
        return one(agents(self.faulty.site, host, "worker", self.job))

    def kill_agent(self, host: str) -> None:
        """End the job's agent on `host`; its guardian will start another."""
        kill(self.agent(host))

    def copies(self) -> list[Copy]:
        """Return the guest's QEMUs without asking them anything: their monitors are held."""
        name = self.job.rpartition("-")[0]
        return [copy for host in HOSTS for copy in self.faulty.site._qemus(host, name)]

    def kill_qemu(self, host: str) -> None:
        """End the guest's QEMU on `host`."""
        for copy in self.copies():
            if copy.host == host:
                self.faulty.kill_qemu(copy)
                return
        raise AssertionError(f"no QEMU of it on {host}")

    def finish(self) -> Moved:
        """Return how the controller has ended."""
        return self.moving.finish()

    def kill_controller(self) -> None:
        """End the controller as `kill -9` does."""
        self.moving.process.kill()
        self.moving.process.wait(MOVE_DEADLINE_S)


@dataclass(slots=True)
class Held:
    """An agent that stands still."""

    struck: Struck
    pid: int

    def release(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


def traced() -> tuple[str, ...]:
    """Return QEMU's words for a trace of its runs; %d is its pid."""
    return ("-trace", "vm_state_notify", "-msg", "timestamp=on", "-D", f"{TRACES}/run-%d.trace")


def trace_directory(lab: Lab, host: str) -> Path:
    """Return where the traces of a host are, seen from here."""
    return lab.images / f"traces-{host}"


def mount_traces(lab: Lab, host: str) -> None:
    """Give a host its directory of traces."""
    directory = trace_directory(lab, host)
    directory.mkdir(exist_ok=True)
    lab.run(host, ["mount", "--bind", str(directory), TRACES])


def job_of(line: str) -> str | None:
    """Return the job that a line of progress names."""
    try:
        text = json.loads(line).get("text") or ""
    except (ValueError, AttributeError):
        return None
    return text.removeprefix("job ") if text.startswith("job ") else None


def agents(site: Site, host: str, mode: str, job: str) -> list[int]:
    """Return the pids of a job's agents or guardians on `host`."""
    found = []
    for pid in site.lab.pids(host):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mode.encode() in words and job.encode() in words and b"-I" in words:
            found.append(pid)
    return found


def one(found: list[int]) -> int:
    """Return the only member."""
    assert len(found) == 1, found
    return found[0]


def state_of(pid: int) -> str:
    """Return the letter that proc(5) gives a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def kill(pid: int) -> None:
    """Kill a process and return when it has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        syscalls.send_signal(pidfd, signal.SIGKILL)
        assert syscalls.wait_for_end(pidfd, END_DEADLINE_S)
    finally:
        os.close(pidfd)


def await_death(pid: int) -> None:
    """Return when a process has ended by itself."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert syscalls.wait_for_end(pidfd, END_DEADLINE_S), f"{pid} goes on"
    finally:
        os.close(pidfd)


def await_text(process: "subprocess.Popen[bytes]", text: str) -> None:
    """Return once a process has printed `text`."""
    assert process.stdout is not None
    seen = b""
    until_s = time.monotonic() + END_DEADLINE_S
    while text.encode() not in seen:
        left_s = until_s - time.monotonic()
        ready = select.select([process.stdout], [], [], max(0.0, left_s))[0]
        assert ready, f"not said: {text!r}; but: {seen.decode(errors='replace')[-2000:]}"
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, f"ended before it said {text!r}"
        seen += chunk


def _stretches(path: Path, death_s: float) -> Iterator[Ran]:
    """Yield when a QEMU ran; one that was not seen to stop ran until it was killed, or runs on."""
    began_s: float | None = None
    for line in path.read_text(errors="replace").splitlines():
        if not (seen := TRACE.match(line)):
            continue
        at_s = float(seen["at"])
        if seen["running"] == "1":
            began_s = at_s if began_s is None else began_s
        elif began_s is not None:
            yield Ran(path.name, began_s, at_s)
            began_s = None
    if began_s is not None:
        yield Ran(path.name, began_s, death_s)


@pytest.fixture
def faulty(moving_lab: Lab) -> Iterator[Faulty]:
    """Have an empty lab in which every QEMU is traced, and empty it again."""
    for host in HOSTS:
        directory = trace_directory(moving_lab, host)
        if not directory.exists():
            mount_traces(moving_lab, host)
        for trace in directory.iterdir():
            trace.unlink()
    site = Site(moving_lab)
    site.open()
    try:
        found = Faulty(site)
        try:
            yield found
        finally:
            print(found.logs())  # shown by pytest if the test has failed
    finally:
        site.close()
