"""A lab to move guests in: start one, run `qmigrate migrate` as a user does, look from outside.

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
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qmigrate.core.tiny import DEFAULT, Marks, TinySpec, compare_marks, read_marks
from qmigrate.lab import guests, hosts, syscalls, workload
from qmigrate.lab.images import LinuxBoot, TinyBoot, create_disk, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.tiny import write_image
from qmigrate.lab.topology import TOPOLOGIES

__all__ = ["moving_lab", "site"]

HOSTS = ("alpha", "beta")
ANSWER_DEADLINE_S = 30.0  # of a QEMU on a machine that many share
MOVE_DEADLINE_S = 120.0  # of a whole `qmigrate`, whose own deadlines are shorter
SETTLE_DEADLINE_S = 30.0  # for agents to end: the announcements go on for seconds after a move
BOOT_DEADLINE_S = 60.0  # a linux guest under TCG; 3 s on a quiet machine
# The agent itself stays on a host, and the empty directories that its jobs live in.
STAYS = ("/run/qmigrate", *(f"/run/qmigrate/{name}" for name in ("jobs", "locks", "guests")))
LINUX_IP4 = "10.77.0.10"
BALLAST_AT = 16 << 20  # in the guest's memory, above what tiny walks
BALLAST_BYTES_PER_S = 12 << 20
SLOWLY = ("--bandwidth", "12MiB", "--downtime-limit", "200")  # room for what tiny dirties

_numbers = itertools.count()
_T = TypeVar("_T")


class Qmp:
    """A QMP monitor, spoken to from the test's own process; events are kept, in order."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_DEADLINE_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")
        self.events: list[dict[str, Any]] = []
        assert b"QMP" in self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Return a command's answer; an error is an `AssertionError`."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._read()
            assert "error" not in message, (command, message)
            if "return" in message:
                return message["return"]
            self.events.append(message)

    def await_event(self, name: str) -> dict[str, Any]:
        """Return the next event of that name."""
        while True:
            message = self._read()
            self.events.append(message)
            if message.get("event") == name:
                return message

    def hmp(self, line: str) -> str:
        """Return what a line of the human monitor prints."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "QEMU closed its monitor"
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Let go of the monitor."""
        self._lines.close()
        self._socket.close()


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


@dataclass(frozen=True, slots=True)
class Moved:
    """How a `qmigrate … --json` ended."""

    code: int
    result: dict[str, Any]  # the one object of stdout; empty if there was none
    progress: tuple[dict[str, Any], ...]
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """What it says went wrong, in one string."""
        error = self.result.get("error") or {}
        return " ".join(str(error.get(key) or "") for key in ("what", "last_words", "next_step"))

    @property
    def rules(self) -> list[str]:
        """The rules that refused."""
        found = self.result.get("findings") or []
        return [f["rule"] for f in found if f["severity"] != "warning"]


class Moving:
    """A `qmigrate` on its way; its stderr is read as it comes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def until(self, wanted: Callable[[str], bool], deadline_s: float = MOVE_DEADLINE_S) -> str:
        """Return the first line of stderr that is `wanted`, whenever it came."""
        with self._news:
            self._news.wait_for(
                lambda: self._ended or any(map(wanted, self.lines)), timeout=deadline_s
            )
            found = [line for line in self.lines if wanted(line)]
        assert found, f"not said: {self.lines[-5:]}"
        return found[0]

    def until_phase(self, phase: str) -> dict[str, Any]:
        """Return the first progress of that phase (with --json)."""
        progress: dict[str, Any] = json.loads(self.until(lambda line: _phase(line) == phase))
        return progress

    def finish(self) -> Moved:
        """Wait for its end."""
        assert self.process.stdout is not None
        try:
            self.process.wait(MOVE_DEADLINE_S)
        finally:
            self.process.kill()
        stdout = self.process.stdout.read()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        return moved(self.process.returncode, stdout, "\n".join(self.lines))


def _phase(line: str) -> str | None:
    phase = _document(line).get("phase")
    return str(phase) if phase else None


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def moved(code: int, stdout: str, stderr: str) -> Moved:
    """Return what a `qmigrate` has printed, read."""
    lines = tuple(filter(None, map(_document, stderr.splitlines())))
    return Moved(code, _document(stdout), lines, stdout, stderr)


@dataclass(slots=True)
class Site:
    """One test's guests in the lab; see the module."""

    lab: Lab
    _empty: dict[str, hosts.HostSnapshot] = field(default_factory=dict)
    _before: dict[str, hosts.HostSnapshot] = field(default_factory=dict)
    _binds: list[tuple[str, str]] = field(default_factory=list)
    _kept_files: frozenset[Path] = frozenset()
    _kept_run: dict[str, frozenset[str]] = field(default_factory=dict)
    # Of those that were started by their own words; None: nobody can ask it.
    _monitors: dict[str, str | None] = field(default_factory=dict)
    _inits: dict[str, int] = field(default_factory=dict)
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

    def shared(self, name: str, mib: int) -> Path:
        """Make an empty raw image that all hosts see."""
        path = self.lab.images / name
        path.unlink(missing_ok=True)
        return create_disk(path, mib)

    def start(
        self, guest: guests.LabGuest, host: str = "alpha", *, prefix: Sequence[str] = ()
    ) -> Copy:
        """Start it and return it once its monitor greets and its taps are in the bridge."""
        self._own(guests.start(self.lab, host, guest, prefix=prefix))
        return self.copy(guest.name)

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
        self._own(process)
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

    def _own(self, process: "subprocess.Popen[Any]") -> None:
        """End a process and close its pipes after the test; its host's end is no matter."""
        for stream in filter(None, (process.stdout, process.stderr)):
            self.undo.callback(stream.close)
        self.undo.callback(process.wait)
        self.undo.callback(process.kill)

    # From outside

    def init(self, host: str) -> int:
        """Return the pid of the host's process 1."""
        if host not in self._inits:
            for node in self.lab.status().nodes:
                if node.pid is not None:
                    self._inits[node.name] = node.pid
        return self._inits[host]

    def path(self, host: str, inside: str) -> Path:
        """Return the path by which a file of `host` is reached from here."""
        return Path(f"/proc/{self.init(host)}/root", inside.lstrip("/"))

    def copies(self, name: str) -> list[Copy]:
        """Return every QEMU of that name on both hosts, each asked for its state."""
        return [self._asked(copy) for host in HOSTS for copy in self._qemus(host, name)]

    def copy(self, name: str) -> Copy:
        """Return the guest's only QEMU; more than one, or none, is an `AssertionError`."""
        found = self.copies(name)
        assert len(found) == 1, found
        return found[0]

    def _qemus(self, host: str, name: str | None = None) -> Iterator[Copy]:
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

    def qemus(self, name: str) -> list[Copy]:
        """Return every QEMU of that name on both hosts, not asked for anything."""
        return [copy for host in HOSTS for copy in self._qemus(host, name)]

    def _asked(self, copy: Copy) -> Copy:
        if self._monitors.get(copy.value("-name") or "", "") is None:
            return copy
        with self.monitor(copy) as qmp:
            state = qmp.execute("query-status")["status"]
        return Copy(copy.host, copy.pid, copy.argv, state)

    @contextlib.contextmanager
    def monitor(self, copy: Copy) -> Iterator[Qmp]:
        """Speak to a copy by its own -qmp, or by the monitor that qmigrate gave it."""
        where = copy.value("-qmp") or ""
        inside = where.removeprefix("unix:").partition(",")[0]
        if not inside:
            ours = f"/run/qmigrate/guests/{copy.value('-uuid')}/monitor"
            inside = ours if "chardev=qmigrate-monitor" in " ".join(copy.argv) else ""
        inside = inside or self._monitors[copy.value("-name") or ""] or ""
        qmp = Qmp(self.path(copy.host, inside))
        try:
            yield qmp
        finally:
            qmp.close()

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

    def _only(self, name: str) -> Copy:
        found = self.qemus(name)
        assert len(found) == 1, found
        return found[0]

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
        for _ in range(200):  # each look takes some ms and lets the guest run on
            marks = self.memory(name, spec)
            if not marks.problem and marks.passes > 1:
                return marks
        raise AssertionError(f"{name} does not come to life: {marks.problem}")

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

    def migrate(self, name: str, destination: str, *options: str) -> Moved:
        """Run `qmigrate migrate` on the client; return how it ended."""
        return self.run("migrate", name, destination, *options, "--json")

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> Moved:
        """Run any `qmigrate` on the client to its end."""
        self.remember()
        done = self.lab.run(
            "client", ["qmigrate", *words], check=False, timeout_s=MOVE_DEADLINE_S, env=env
        )
        return moved(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str) -> Moving:
        """Start any `qmigrate` on the client, as `begin("migrate", "web1", "beta", "--json")`."""
        self.remember()
        pipe = subprocess.PIPE
        process: subprocess.Popen[str] = self.lab.popen(
            "client", ["qmigrate", *words], stdout=pipe, stderr=pipe, text=True
        )
        self._own(process)
        return Moving(process)

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

    def settle(self) -> None:
        """Return when no agent and no login is left on the hosts; jobs under way have ended."""
        for host in HOSTS:
            self._await_ends(host, _is_passing)

    def leftovers(self, name: str) -> list[str]:
        """Return what is on the hosts, was not before the test and is not the running guest's."""
        self.settle()
        found = []
        copies = self.qemus(name)
        for host in HOSTS:
            own = [guests.guest_uuid(name), f"-name {name} ", f"/{name}.", f"tap-{name[:8]}"]
            own = own if any(copy.host == host for copy in copies) else []
            added = self.lab.snapshot_host(host).added_since(self._empty[host])
            found += [
                f"{host}: {what}"
                for what in added
                if not _stays(what) and not any(word in what for word in own)
            ]
        return found

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
                if not _stays(thing) and not _is_passing(thing.removeprefix("processes: ")):
                    found.append(what)
        return found

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
        held = [fd for pid, fd in members.items() if words in _command_line(pid)]
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

    def open(self) -> None:
        """Begin a test: remember what is here."""
        self._kept_files = frozenset(self.lab.images.iterdir())
        self._empty = {host: self.lab.snapshot_host(host) for host in HOSTS}
        self._kept_run = {host: frozenset(self._in_run(host)) for host in HOSTS}

    def _in_run(self, host: str) -> Iterator[str]:
        for entry in self.path(host, "/run").iterdir():
            if entry.name != "qmigrate":
                yield entry.name

    def close(self) -> None:
        """Remove all that a test has left: processes, taps, mounts, files, limits of cables."""
        self.undo.close()
        for host in HOSTS:
            self._end(host)
            for link in self.lab.snapshot_host(host).links:
                if link not in self._empty[host].links:
                    self.lab.run(host, ["ip", "link", "delete", link.split()[0]], check=False)
        for host, over in reversed(self._binds):
            self.lab.run(host, ["umount", "-l", over])
        for host in HOSTS:
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
        """Kill what the test has left on the host; its sshd and process 1 stay."""
        stays = set(self._empty[host].processes)
        for member, pidfd in hosts.open_members(self.init(host)).items():
            try:
                if _command_line(member) not in stays:
                    syscalls.send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        hosts.reap(self.lab.name, ANSWER_DEADLINE_S, host=host)
        self._await_ends(host, lambda words: words not in stays)

    def _await_ends(self, host: str, wanted: Callable[[str], bool]) -> None:
        """Wait until no process of the host has a command line that is `wanted`."""
        while True:
            members = hosts.open_members(self.init(host))
            try:
                waited = [fd for pid, fd in members.items() if wanted(_command_line(pid))]
                if not waited:
                    return
                for pidfd in waited:
                    ended = syscalls.wait_for_end(pidfd, SETTLE_DEADLINE_S)
                    assert ended, [_command_line(pid) for pid in members]
            finally:
                for pidfd in members.values():
                    os.close(pidfd)


def _is_passing(words: str) -> bool:
    """Tell whether a process comes and goes with a `qmigrate`: an agent, a login."""
    program = words.split(" ")[0]
    if "qemu-system-" in program:
        return False
    return "/var/cache/qmigrate/" in words or words.startswith(("sshd-session: ", "sshd: root@"))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _stays(what: str) -> bool:
    kind, _, thing = what.partition(": ")
    return kind == "files" and (thing in STAYS or thing.startswith("/var/cache/qmigrate"))


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
