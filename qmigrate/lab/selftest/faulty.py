"""Bad luck, placed exactly: a move that stands still at a named moment until it is let go on.

A move is started with fault points (`qmigrate.core.faults`). Where one says ``stop`` the agent has
stopped itself; whoever holds it does his worst meanwhile and lets it go on. Every QEMU writes down
when its CPUs run (`traces`).
"""

import contextlib
import math
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qmigrate.core.errors import HostError
from qmigrate.core.tiny import Marks
from qmigrate.lab import guests, syscalls
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest import traces
from qmigrate.lab.selftest.commands import Moved, Moving
from qmigrate.lab.selftest.site import HOSTS, Copy, Site
from qmigrate.lab.selftest.traces import Ran

_T = TypeVar("_T")
TRACES = "/mnt"  # on each host a directory of its own, which outlives the host's power
END_DEADLINE_S = 60.0  # for a job to end by itself, with a short patience
AGENT_LOG = "/var/log/qmigrate/{job}/agent.log"


@dataclass(slots=True)
class Faulty:
    """One cell's moves under bad luck; `site` is the lab as the cell has it."""

    site: Site
    before: Marks | None = None  # of the tiny guest, before anything happened
    jobs: list[str] = field(default_factory=list)
    deaths: dict[Path, float] = field(default_factory=dict)  # of traces whose QEMU has ended

    def open(self) -> None:
        """Begin with empty traces."""
        for host in HOSTS:
            directory = trace_directory(self.site.lab, host)
            if not directory.exists():
                mount_traces(self.site.lab, host)
            for trace in directory.iterdir():
                trace.unlink()
        self.site.open()

    def tiny(self, name: str = "tiny1", **changes: Any) -> guests.LabGuest:
        """Describe a tiny guest whose QEMU keeps a trace, on either host."""
        return self.site.tiny(name, *traced(), **changes)

    def linux(self, name: str = "web1", **changes: Any) -> guests.LabGuest:
        """Describe a linux guest whose QEMU keeps a trace, on either host."""
        return self.site.linux(name, *traced(), **changes)

    def begin(
        self,
        name: str,
        *options: str,
        points: Sequence[str] = (),
        way: tuple[str, str] = HOSTS,
    ) -> "Struck":
        """Start to move a guest with fault points, from the first host of `way` to the second."""
        faults = [word for point in points for word in ("--fault", point)]
        words = ("migrate", name, way[1], "--from", way[0], "--impatient", "--json")
        moving = self.site.begin(*words, *faults, *options)
        self.jobs.append(moving.until_job())
        return Struck(self, moving, self.jobs[-1], way)

    def ran(self) -> list[Ran]:
        """Return when any copy of a guest ran, in order, from the traces of all QEMUs so far."""
        found: list[Ran] = []
        for host in HOSTS:
            for path in sorted(trace_directory(self.site.lab, host).iterdir()):
                death_s = self.deaths.get(path, math.inf)
                text = path.read_text(errors="replace")
                found += traces.stretches(text, path.name, death_s, host)
        return sorted(found, key=lambda ran: ran.from_s)

    def assert_never_two(self) -> None:
        """Fail if there was an instant at which two copies ran, or if nothing was traced."""
        problem = traces.overlap(self.ran())
        assert not problem, problem

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
            with contextlib.suppress(HostError):  # no power
                found += [
                    f"{host} {path.parent.name}/{path.name}:\n{path.read_text()}"
                    for path in self.site.path(host, "/var/log/qmigrate").glob("*/*.log")
                    if path.parent.name in self.jobs
                ]
        return "\n".join(found)

    def kill_qemu(self, copy: Copy) -> None:
        """End a QEMU from outside, as the kernel does when memory is short."""
        trace = trace_directory(self.site.lab, copy.host) / f"run-{inner_pid(copy.pid)}.trace"
        kill(copy.pid)
        self.deaths[trace] = time.time()

    def note_deaths(self) -> None:
        """Look which QEMUs have ended: from now on theirs are copies that do not run."""
        for host in HOSTS:
            lives = {f"run-{inner_pid(copy.pid)}.trace" for copy in self.site.qemus_of(host)}
            for path in trace_directory(self.site.lab, host).iterdir():
                if path.name not in lives:
                    self.deaths.setdefault(path, time.time())

    def power_off(self, host: str) -> None:
        """Let a host lose its power; it comes back by itself, empty, at the end."""
        self.site.lab.power_off(host)
        for path in trace_directory(self.site.lab, host).iterdir():
            self.deaths.setdefault(path, time.time())
        self.site.inits.pop(host, None)
        self.site.undo.callback(self.power_on, host)

    def power_on(self, host: str) -> None:
        """Give a host its power again, and its traces; one that has power keeps it."""
        if self.site.lab.pids(host):
            return
        self.site.lab.power_on(host)
        self.site.inits.clear()
        mount_traces(self.site.lab, host)


@dataclass(slots=True)
class Struck:
    """A move under way, seen from outside."""

    faulty: Faulty
    moving: Moving
    job: str
    way: tuple[str, str] = HOSTS

    def host(self, side: str) -> str:
        """Return the host of a side."""
        return self.way[0] if side == "source" else self.way[1]

    def hold(self, side: str, moment: str) -> "Held":
        """Return once the agent of `side` has stopped itself at `moment`."""
        host = self.host(side)
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
        return self.faulty.site.qemus(self.job.rpartition("-")[0])

    def qemu(self, host: str) -> Copy:
        """Return the guest's QEMU on `host`."""
        return one([copy for copy in self.copies() if copy.host == host])

    def kill_qemu(self, host: str) -> None:
        """End the guest's QEMU on `host`."""
        self.faulty.kill_qemu(self.qemu(host))

    def finish(self) -> Moved:
        """Return how the controller has ended."""
        return self.moving.finish()

    def kill_controller(self) -> None:
        """End the controller as `kill -9` does."""
        self.moving.kill()


@dataclass(slots=True)
class Held:
    """An agent that stands still."""

    struck: Struck
    pid: int

    def release(self) -> None:
        """Let it go on; one that has ended meanwhile is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def traced() -> tuple[str, ...]:
    """Return QEMU's words for a trace of its runs on a lab's host."""
    return traces.options(TRACES)


def trace_directory(lab: Lab, host: str) -> Path:
    """Return where the traces of a host are, seen from here."""
    return lab.images / f"traces-{host}"


def mount_traces(lab: Lab, host: str) -> None:
    """Give a host its directory of traces."""
    directory = trace_directory(lab, host)
    directory.mkdir(exist_ok=True)
    lab.run(host, ["mount", "--bind", str(directory), TRACES])


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


def one(found: Iterable[_T]) -> _T:
    """Return the only member; raise `HostError` if there are more, or none."""
    members = list(found)
    if len(members) != 1:
        raise HostError(f"not one, but {members}")
    return members[0]


def inner_pid(pid: int) -> int:
    """Return the number of a lab host's process within its host; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    inside = re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
    return int(inside[1]) if inside else 0


def state_of(pid: int) -> str:
    """Return the letter that proc(5) gives a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def kill(pid: int) -> None:
    """Kill a process and return when it has ended."""
    with _process(pid) as pidfd:
        syscalls.send_signal(pidfd, signal.SIGKILL)
        if not syscalls.wait_for_end(pidfd, END_DEADLINE_S):
            raise HostError(f"process {pid} does not die")


def await_death(pid: int) -> None:
    """Return when a process has ended by itself."""
    with contextlib.suppress(ProcessLookupError), _process(pid) as pidfd:
        if not syscalls.wait_for_end(pidfd, END_DEADLINE_S):
            raise HostError(f"process {pid} goes on")


def await_text(process: "subprocess.Popen[bytes]", text: str) -> None:
    """Return once a process has printed `text`."""
    if process.stdout is None:
        raise HostError("nobody can read what it prints")
    seen = b""
    until_s = time.monotonic() + END_DEADLINE_S
    while text.encode() not in seen:
        left_s = until_s - time.monotonic()
        ready = select.select([process.stdout], [], [], max(0.0, left_s))[0]
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            words = seen.decode(errors="replace")[-2000:]
            raise HostError(f"it was never said: {text!r}", last_words=words)
        seen += chunk
