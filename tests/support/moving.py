"""A lab to move guests in, with what only tests want: see `qmigrate.lab.selftest.site`.

`site` is a test's own view of a lab that stands for the session: two hosts, a client. What a test
started, mounted or made is gone before the next one begins; the lab itself is not rebuilt::

    def test_a_guest_moves(site):
        site.start(site.tiny())
        moved = site.migrate("tiny1", "beta")
        assert moved.code == 0
        assert site.copy("tiny1").host == "beta"
        assert site.leftovers("tiny1") == []
"""

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qmigrate.lab import guests, hosts, syscalls, workload
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest import site as shared
from qmigrate.lab.selftest.commands import MOVE_DEADLINE_S, Moved, Moving
from qmigrate.lab.selftest.monitor import ANSWER_DEADLINE_S, Qmp
from qmigrate.lab.selftest.site import HOSTS, LINUX_IP4, Copy, command_line, is_passing, stays
from qmigrate.lab.topologies import TOPOLOGIES

__all__ = [
    "HOSTS",
    "LINUX_IP4",
    "MOVE_DEADLINE_S",
    "SLOWLY",
    "Copy",
    "Moved",
    "Moving",
    "Qmp",
    "Site",
    "moving_lab",
    "site",
]

BOOT_DEADLINE_S = 60.0  # a linux guest under TCG; 3 s on a quiet machine
BALLAST_AT = 16 << 20  # in the guest's memory, above what tiny walks
BALLAST_BYTES_PER_S = 12 << 20
SLOWLY = ("--bandwidth", "12MiB", "--downtime-limit", "200")  # room for what tiny dirties

_numbers = itertools.count()
_T = TypeVar("_T")


@dataclass(slots=True)
class Site(shared.Site):
    """One test's guests in the lab; see the module."""

    _before: dict[str, hosts.HostSnapshot] = field(default_factory=dict)
    _binds: list[tuple[str, str]] = field(default_factory=list)
    # Of those that were started by their own words; None: nobody can ask it.
    _monitors: dict[str, str | None] = field(default_factory=dict)

    # Guests

    def slow(
        self, name: str = "tiny1", *more: str, seconds: int = 2, **changes: Any
    ) -> guests.LabGuest:
        """Describe a tiny guest whose copy takes so long, once it is moved by `SLOWLY`.

        Its ballast never changes, so the copy converges; /run/NAME.side is a second monitor.
        """
        ballast = self.lab.images / "ballast"
        ballast.write_bytes(os.urandom(seconds * BALLAST_BYTES_PER_S))
        loader = f"loader,file={ballast},addr={BALLAST_AT:#x},force-raw=on"
        side = f"socket,id=side,path=/run/{name}.side,server=on,wait=off"
        words = ("-device", loader, "-chardev", side, "-mon", "chardev=side,mode=control")
        return self.tiny(name, *words, *more, **{"memory_mib": 128, "nics": 0, **changes})

    def start_argv(
        self,
        argv: Sequence[str],
        name: str,
        monitor: str,
        host: str = "alpha",
        *,
        greeting: str = "QMP",
    ) -> None:
        """Start a QEMU by its own words, which give it `monitor`; return once that greets.

        With another `greeting` the monitor is for people, and nobody can ask this guest.
        """
        self._monitors[name] = monitor if greeting == "QMP" else None
        pipe = subprocess.PIPE
        process = self.lab.popen(host, argv, stdout=subprocess.DEVNULL, stderr=pipe)
        self.own(process)
        if "-daemonize" in argv:
            process.wait(ANSWER_DEADLINE_S)  # its child lives on
        look = ["python3", "-c", _GREETED, monitor, greeting]
        if self.lab.run(host, look, check=False).returncode:
            process.kill()
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())

    def plug(self, host: str, tap: str) -> None:
        """Put a tap into the host's bridge."""
        self.lab.run(host, ["ip", "link", "set", tap, "master", guests.BRIDGE, "up"])

    def monitor_path(self, copy: Copy) -> str:
        """Return where a copy can be asked; a guest that was started by its own words there too."""
        name = copy.value("-name") or ""
        if name in self._monitors and self._monitors[name] is None:
            return ""
        # A dataclass with slots is made twice: a bare super() would mean the first.
        return super(Site, self).monitor_path(copy) or self._monitors.get(name) or ""

    # From outside

    @contextlib.contextmanager
    def side_door(self, host: str, name: str) -> Iterator[Qmp]:
        """Hold a guest's second monitor at ``/run/NAME.side``, which it was started with."""
        qmp = Qmp(self.path(host, f"/run/{name}.side"))
        try:
            yield qmp
        finally:
            qmp.close()

    def ask(self, name: str, command: str, **arguments: object) -> Any:
        """Return one QMP answer of the guest's only QEMU."""
        with self.monitor(self._only(name)) as qmp:
            return qmp.execute(command, **arguments)

    def from_client(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns, made in the client's network."""

        def there() -> _T:
            with Path(f"/proc/{self.init('client')}/ns/net").open("rb") as namespace:
                syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
            return call()

        return syscalls.in_thread(there)

    def guest_says(self, command: str = "state") -> workload.WorkloadState:
        """Return what the linux guest says of itself; "verify" lets it look at all it has."""
        return self.from_client(
            lambda: workload.command(LINUX_IP4, command, limit_s=BOOT_DEADLINE_S)
        )

    def await_boot(self) -> workload.WorkloadState:
        """Return the linux guest's first answer."""
        command = ["python3", "-c", _AWAIT_PORT, LINUX_IP4, str(workload.CONTROL_PORT)]
        self.lab.run("client", command, timeout_s=BOOT_DEADLINE_S)
        return self.guest_says()

    # Moving

    def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        deadline_s: float = MOVE_DEADLINE_S,
    ) -> Moved:
        """Run any `qmigrate` on the client to its end."""
        self.remember()
        return super(Site, self).run(*words, env=env, deadline_s=deadline_s)

    def begin(self, *words: str) -> Moving:
        """Start any `qmigrate` on the client, as `begin("migrate", "web1", "beta", "--json")`."""
        self.remember()
        return super(Site, self).begin(*words)

    def remember(self) -> None:
        """Remember what is on the hosts now, for `changes`."""
        self._before = {host: self.lab.snapshot_host(host) for host in HOSTS}

    def jobs(self, host: str) -> list[str]:
        """Return the jobs that are under way on a host."""
        try:
            return sorted(at.name for at in self.path(host, "/run/qmigrate/jobs").iterdir())
        except FileNotFoundError:
            return []

    def lockers(self, image: Path, name: str) -> set[str]:
        """Return the hosts whose QEMU holds a lock on an image (proc(5), fdinfo)."""
        found = set()
        for copy in self.qemus(name):
            for fd in Path(f"/proc/{copy.pid}/fd").iterdir():
                try:
                    same = fd.samefile(image)
                except OSError:  # sockets, and what was closed meanwhile
                    continue
                lines = Path(f"/proc/{copy.pid}/fdinfo/{fd.name}").read_text()
                if same and "\nlock:" in lines:
                    found.add(copy.host)
        return found

    # Afterwards

    def changes(self) -> list[str]:
        """Return what is different on the hosts since the last `qmigrate` was started."""
        self.settle()
        found = []
        for host in HOSTS:
            now = self.lab.snapshot_host(host)
            added = [f"{host} has: {what}" for what in now.added_since(self._before[host])]
            gone = [f"{host} lost: {what}" for what in now.gone_since(self._before[host])]
            for what in (*added, *gone):
                thing = what.partition(": ")[2]
                if not stays(thing) and not is_passing(thing.removeprefix("processes: ")):
                    found.append(what)
        return found

    def close(self) -> None:
        """Remove all that a test has left, mounts too."""
        self.undo.callback(self._unbind)
        super(Site, self).close()

    def _unbind(self) -> None:
        for host, over in reversed(self._binds):
            self.lab.run(host, ["umount", "-l", over])

    # The hosts

    def bind(self, host: str, over: str, content: str | bytes | Path, mode: int = 0o644) -> None:
        """Let `over` be another file on one host, until the test ends."""
        if isinstance(content, Path):
            source = str(content)
        else:
            source = f"/run/bound-{next(_numbers)}"
            file = self.path(host, source)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            file.chmod(mode)
        self.lab.run(host, ["mount", "--bind", source, over])
        self._binds.append((host, over))

    @contextlib.contextmanager
    def stopped(self, host: str, words: str) -> Iterator[None]:
        """Let the host's processes whose command line has `words` stand still for a while."""
        members = hosts.open_members(self.init(host))
        held = [fd for pid, fd in members.items() if words in command_line(pid)]
        assert held, words
        try:
            for pidfd in held:
                syscalls.send_signal(pidfd, signal.SIGSTOP)
            yield
        finally:
            for pidfd in held:
                syscalls.send_signal(pidfd, signal.SIGCONT)
            for pidfd in members.values():
                os.close(pidfd)

    def read(self, host: str, inside: str) -> str:
        """Return a file of a host as text."""
        return self.path(host, inside).read_text()


# Returns once the monitor has greeted; it is let go at once.
_GREETED = """
import socket, sys, time
for _ in range(1000):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    try:
        s.connect(sys.argv[1])
        sys.exit(0 if sys.argv[2].encode() in s.recv(4096) else 1)
    except OSError:
        s.close()
        time.sleep(0.01)
sys.exit(1)
"""

# Returns when something listens there; each refused attempt takes a round trip to the guest.
_AWAIT_PORT = """
import socket, sys
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
        break
    except OSError:
        pass
"""


@pytest.fixture(scope="session")
def moving_lab() -> Iterator[Lab]:
    """Have alpha, beta and client stand for the session, with the agent on both hosts."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network, mount and PID namespaces")
    lab = Lab(f"moving-{os.getpid()}")
    try:
        lab.up(TOPOLOGIES["same-segment"])
        # The first agent is pushed and compiled, and each host is probed for KVM: seconds.
        lab.run("client", ["qmigrate", "check", "nobody", "beta", "--from", "alpha"], check=False)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def site(moving_lab: Lab) -> Iterator[Site]:
    """Have an empty lab, and empty it again."""
    found = Site(moving_lab)
    found.open()
    try:
        yield found
    finally:
        found.close()
