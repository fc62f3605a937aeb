"""A lab to move guests in: start one, run `qmigrate` as a user does, look from outside.

`Site` is one cell's own view of a lab that stands for all of them: two hosts, a client. What a cell
started, mounted or made is gone before the next one begins; the lab itself is not rebuilt::

    site.open()
    site.start(site.tiny())
    assert site.migrate("tiny1", "beta").code == 0
    assert site.copy("tiny1").host == "beta"
    site.close()
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmigrate.core.errors import HostError
from qmigrate.core.tiny import DEFAULT, Marks, TinySpec, compare_marks, read_marks
from qmigrate.lab import guests, syscalls
from qmigrate.lab import hosts as places
from qmigrate.lab.images import LinuxBoot, TinyBoot, create_disk, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest.commands import MOVE_DEADLINE_S, Moved, Moving, moved
from qmigrate.lab.selftest.monitor import ANSWER_DEADLINE_S, Qmp
from qmigrate.lab.tiny import write_image

HOSTS = ("alpha", "beta")
SETTLE_DEADLINE_S = 30.0  # for agents to end: the announcements go on for seconds after a move
LIFE_LOOKS = 200  # each takes some ms and lets the guest run on
# The agent itself stays on a host, and the empty directories that its jobs live in.
STAYS = ("/run/qmigrate", *(f"/run/qmigrate/{name}" for name in ("jobs", "locks", "guests")))
LINUX_IP4 = "10.77.0.10"


@dataclass(frozen=True, slots=True)
class Copy:
    """A QEMU that was started for a guest, found through /proc."""

    host: str
    pid: int  # this machine's number
    argv: tuple[str, ...]
    state: str | None = None  # of QMP's query-status; None: it was not asked

    def value(self, option: str) -> str | None:
        """Return the word that follows `option` on its command line."""
        words = iter(self.argv)
        return next((next(words, None) for word in words if word == option), None)


@dataclass(slots=True)
class Site:
    """One cell's guests in the lab; see the module."""

    lab: Lab
    _empty: dict[str, places.HostSnapshot] = field(default_factory=dict)
    _kept_files: frozenset[Path] = frozenset()
    _kept_run: dict[str, frozenset[str]] = field(default_factory=dict)
    inits: dict[str, int] = field(default_factory=dict)
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    # Guests

    def image(self, spec: TinySpec = DEFAULT) -> Path:
        """Return the tiny guest's image where all hosts see it."""
        return write_image(self.lab.images / f"tiny-{spec.mib}-{spec.hz}.bin", spec)

    def tiny(
        self, name: str = "tiny1", *more: str, spec: TinySpec = DEFAULT, **changes: Any
    ) -> guests.LabGuest:
        """Describe a tiny guest; `more` are QEMU's words, `changes` fields of `LabGuest`."""
        boot = TinyBoot(self.image(spec))
        given: dict[str, Any] = {"memory_mib": 32, **changes}
        return guests.LabGuest(name, boot, more=more, **given)

    def linux(
        self,
        name: str = "web1",
        *more: str,
        dirty_mib: int = 0,
        rate_mib: int = 0,
        disk: bool = False,
        **changes: Any,
    ) -> guests.LabGuest:
        """Describe a linux guest at `LINUX_IP4`, with a disk on shared storage if wanted."""
        boot = LinuxBoot(
            guests.shared_image(self.lab, linux_image()),
            ip4=f"{LINUX_IP4}/24",
            dirty_mib=dirty_mib,
            dirty_rate_mib=rate_mib,
            disk_log=disk,
        )
        path = self.shared(f"{name}.img", 16) if disk else None
        given: dict[str, Any] = {"memory_mib": 192, **changes}
        return guests.LabGuest(name, boot, disk=path, more=more, **given)

    def shared(self, name: str, mib: int) -> Path:
        """Make an empty raw image that all hosts see."""
        path = self.lab.images / name
        path.unlink(missing_ok=True)
        return create_disk(path, mib)

    def start(
        self, guest: guests.LabGuest, host: str = HOSTS[0], *, prefix: Sequence[str] = ()
    ) -> Copy:
        """Start it and return it once its monitor greets and its taps are in the bridge."""
        self.own(guests.start(self.lab, host, guest, prefix=prefix))
        return self.copy(guest.name)

    def own(self, process: "subprocess.Popen[Any]") -> None:
        """End a process and close its pipes at the end; its host's end is no matter."""
        for stream in filter(None, (process.stdout, process.stderr)):
            self.undo.callback(stream.close)
        self.undo.callback(process.wait)
        self.undo.callback(process.kill)

    # From outside

    def init(self, host: str) -> int:
        """Return the pid of the host's process 1; raise `HostError` if it has no power."""
        if host not in self.inits:
            for node in self.lab.status().nodes:
                if node.pid is not None:
                    self.inits[node.name] = node.pid
        if host not in self.inits:
            raise HostError("no power", host=host)
        return self.inits[host]

    def path(self, host: str, inside: str) -> Path:
        """Return the path by which a file of `host` is reached from here."""
        return Path(f"/proc/{self.init(host)}/root", inside.lstrip("/"))

    def copies(self, name: str) -> list[Copy]:
        """Return every QEMU of that name on both hosts, each asked for its state."""
        return [self._asked(copy) for copy in self.qemus(name)]

    def copy(self, name: str) -> Copy:
        """Return the guest's only QEMU, asked; raise `HostError` for more than one, or none."""
        return self._asked(self._only(name))

    def _only(self, name: str) -> Copy:
        found = self.qemus(name)
        if len(found) != 1:
            raise HostError(f"not one QEMU of {name}: {found}")
        return found[0]

    def qemus(self, name: str | None = None) -> list[Copy]:
        """Return every QEMU of that name on both hosts, not asked for anything."""
        return [copy for host in HOSTS for copy in self.qemus_of(host, name)]

    def qemus_of(self, host: str, name: str | None = None) -> Iterator[Copy]:
        """Yield the same of one host."""
        for pid in self.lab.pids(host):
            try:
                program = Path(f"/proc/{pid}/exe").readlink().name
                argv = tuple(Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1])
            except OSError:  # ended meanwhile
                continue
            copy = Copy(host, pid, argv)
            if program.startswith("qemu-system-"):
                called = (copy.value("-name") or "").split(",")[0].removeprefix("guest=")
                if name in (None, called):
                    yield copy

    def can_ask(self, copy: Copy) -> bool:
        """Tell whether a copy has a monitor for programs."""
        return bool(self.monitor_path(copy))

    def _asked(self, copy: Copy) -> Copy:
        if not self.can_ask(copy):
            return copy
        with self.monitor(copy) as qmp:
            state = qmp.execute("query-status")["status"]
        return Copy(copy.host, copy.pid, copy.argv, state)

    def monitor_path(self, copy: Copy) -> str:
        """Return its own -qmp, or the monitor that qmigrate gave it; "" if it has neither."""
        inside = (copy.value("-qmp") or "").removeprefix("unix:").partition(",")[0]
        if not inside and "chardev=qmigrate-monitor" in " ".join(copy.argv):
            return f"/run/qmigrate/guests/{copy.value('-uuid')}/monitor"
        return inside

    @contextlib.contextmanager
    def monitor(self, copy: Copy) -> Iterator[Qmp]:
        """Speak to a copy."""
        qmp = Qmp(self.path(copy.host, self.monitor_path(copy)))
        try:
            yield qmp
        finally:
            qmp.close()

    def memory(self, name: str, spec: TinySpec = DEFAULT, *, before: Marks | None = None) -> Marks:
        """Read and judge a tiny guest's memory; a guest that runs is stopped meanwhile.

        `problem` of what is returned is empty if not one page was lost or went back in time.
        """
        dump = self.lab.images / "memory"
        dump.touch()
        dump.chmod(0o666)  # a QEMU of a plain user writes it
        address, size = spec.region
        with self.monitor(self._only(name)) as qmp:
            ran = qmp.execute("query-status")["running"]
            if ran:
                qmp.execute("stop")
            qmp.execute("pmemsave", val=address, size=size, filename=str(dump))
            if ran:
                qmp.execute("cont")
        marks = read_marks(dump.read_bytes(), spec)
        problem = compare_marks(before, marks) if before else marks.problem
        return Marks(marks.passes, marks.step_at, problem)

    def await_life(self, name: str, spec: TinySpec = DEFAULT) -> Marks:
        """Return a tiny guest's marks once it has walked its memory."""
        marks = Marks(0, 0, "never looked at")
        for _ in range(LIFE_LOOKS):
            marks = self.memory(name, spec)
            if not marks.problem and marks.passes > 1:
                return marks
        raise HostError(f"{name} does not come to life: {marks.problem}")

    # Moving

    def migrate(self, name: str, destination: str, *options: str) -> Moved:
        """Run `qmigrate migrate` on the client; return how it ended."""
        return self.run("migrate", name, destination, *options, "--json")

    def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        deadline_s: float = MOVE_DEADLINE_S,
    ) -> Moved:
        """Run any `qmigrate` on the client to its end."""
        done = self.lab.run(
            "client", ["qmigrate", *words], check=False, timeout_s=deadline_s, env=env
        )
        return moved(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str) -> Moving:
        """Start any `qmigrate` on the client, as `begin("migrate", "web1", "beta", "--json")`."""
        pipe = subprocess.PIPE
        process: subprocess.Popen[str] = self.lab.popen(
            "client", ["qmigrate", *words], stdout=pipe, stderr=pipe, text=True
        )
        self.own(process)
        return Moving(process)

    # Afterwards

    def settle(self) -> None:
        """Return when no agent and no login is left on the hosts; jobs under way have ended."""
        for host in HOSTS:
            self.await_ends(host, is_passing)

    def leftovers(self, name: str, copies: Sequence[Copy] | None = None) -> list[str]:
        """Return what is on the hosts, was not before the cell and is not the guest's own.

        `copies`: where it runs, or ran until just now.
        """
        self.settle()
        found = []
        copies = self.qemus(name) if copies is None else copies
        for host in HOSTS:
            own = [guests.guest_uuid(name), f"-name {name} ", f"/{name}.", f"tap-{name[:8]}"]
            own = own if any(copy.host == host for copy in copies) else []
            added = self.lab.snapshot_host(host).added_since(self._empty[host])
            found += [
                f"{host}: {what}"
                for what in added
                if not stays(what) and not any(word in what for word in own)
            ]
        return found

    def open(self) -> None:
        """Begin a cell: remember what is here."""
        self._kept_files = frozenset(self.lab.images.iterdir())
        self._empty = {host: self.lab.snapshot_host(host) for host in HOSTS}
        self._kept_run = {host: frozenset(self._in_run(host)) for host in HOSTS}

    def _in_run(self, host: str) -> Iterator[str]:
        for entry in self.path(host, "/run").iterdir():
            if entry.name != "qmigrate":
                yield entry.name

    def close(self) -> None:
        """Remove all that a cell has left: processes, taps, files, limits of cables."""
        self.undo.close()
        for host in HOSTS:
            self._end(host)
            for link in self.lab.snapshot_host(host).links:
                if link not in self._empty[host].links:
                    self.lab.run(host, ["ip", "link", "delete", link.split()[0]], check=False)
            self.lab.mend(host)
            self.lab.set_rate(host, None)
            for name in ("jobs", "locks", "guests"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self.path(host, f"/run/qmigrate/{name}"))
            for name in set(self._in_run(host)) - self._kept_run[host]:
                self.lab.run(host, ["rm", "-rf", "--", f"/run/{name}"])
        for file in set(self.lab.images.iterdir()) - self._kept_files:
            if not file.name.startswith(("tiny-", "vmlinuz", "initrd")):
                file.unlink()

    def _end(self, host: str) -> None:
        """Kill what the cell has left on the host; its sshd and process 1 stay."""
        keep = set(self._empty[host].processes)
        for member, pidfd in places.open_members(self.init(host)).items():
            try:
                if command_line(member) not in keep:
                    syscalls.send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
        places.reap(self.lab.name, ANSWER_DEADLINE_S, host=host)
        self.await_ends(host, lambda words: words not in keep)

    def await_ends(self, host: str, wanted: Callable[[str], bool]) -> None:
        """Wait until no process of the host has a command line that is `wanted`.

        Raises `HostError` with the command lines of those that go on.
        """
        while True:
            members = places.open_members(self.init(host))
            try:
                waited = [fd for pid, fd in members.items() if wanted(command_line(pid))]
                if not waited:
                    return
                for pidfd in waited:
                    if not syscalls.wait_for_end(pidfd, SETTLE_DEADLINE_S):
                        lines = [line for line in map(command_line, members) if wanted(line)]
                        raise HostError(f"they go on: {lines}", host=host)
            finally:
                for pidfd in members.values():
                    os.close(pidfd)


def is_passing(words: str) -> bool:
    """Tell whether a process comes and goes with a `qmigrate`: an agent, a login."""
    program = words.split(" ")[0]
    if "qemu-system-" in program:
        return False
    return "/var/cache/qmigrate/" in words or words.startswith(("sshd-session: ", "sshd: root@"))


def command_line(pid: int) -> str:
    """Return a process's words, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    except OSError:
        return ""


def stays(what: str) -> bool:
    """Tell whether a thing of a snapshot may stay on a host for good."""
    kind, _, thing = what.partition(": ")
    return kind == "files" and (thing in STAYS or thing.startswith("/var/cache/qmigrate"))
