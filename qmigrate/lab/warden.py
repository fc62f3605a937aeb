"""The lab's one process outside its nodes: parent of every node's init, so each is reaped.

Started by `up`, it makes the lab, says so, and serves its door until SIGTERM ends the lab.
A lab cannot be left half-made: while it is being made the warden watches `up`, whose death ends
it, and its own death ends the nodes (`syscalls.die_with_parent`). So a lab's processes need no
list: they are the warden, and what is in the namespaces of its children.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from qmigrate.core.errors import HostError, Problem, QmigrateError
from qmigrate.lab import init, sshd, syscalls
from qmigrate.lab.state import Places, make_directory, read_topology, write_whole
from qmigrate.lab.topology import (
    Cable,
    Topology,
    address_lines,
    bridge_lines,
    cable_lines,
    port_lines,
    rate_lines,
    vlan_lines,
    working_links,
)

NODE_DEADLINE_S: Final = 25.0  # an init's whole start; takes 0.1 s
REQUEST_DEADLINE_S: Final = 5.0  # a client sends its one line at once
REQUEST_MAX: Final = 4096  # bytes
CHANGED_MIND: Final = "`up` ended before the lab stood"


class _EndingError(Exception):
    """SIGTERM, or nobody wants the lab any more."""


class Warden:
    """Makes the nodes of one lab, joins them by cables, ends them."""

    def __init__(self, places: Places, topology: Topology, wanted: Callable[[], None]) -> None:
        self._places = places
        self._topology = topology
        self._wanted = wanted  # raises once nobody wants what is being made
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._pids: dict[str, int] = {}
        self._channels: dict[str, socket.socket] = {}
        self.not_for_nodes: list[socket.socket] = []  # closed in every init

    def make(self) -> None:
        """Make the whole lab; raises `HostError`."""
        for node in self._topology.nodes:
            self._places.node(node.name).mkdir(parents=True)
        make_directory(self._places.images)
        sshd.write_files(self._places, self._topology)
        names = [node.name for node in self._topology.nodes]
        self._start(names)
        self._wanted()
        init.run_batch(["ip"], cable_lines(self._topology, self._topology.cables, self._namespace))
        self._wanted()
        self._configure(names)
        self._wanted = lambda: None  # from now on it stands, whoever asked for it

    def power_on(self, name: str) -> None:
        """Start a node that lost its power, with a new boot id, and plug its cables in again."""
        self._topology.node(name)
        if syscalls.holder(self._places.init_lock(name)) is not None:
            return
        self.reap()
        cables = self._topology.cables_of(name)
        far = [end for cable in cables for end in cable.ends if end.node != name]
        for end in far:
            # The kernel takes links away some time after their namespace; this waits for it.
            line = f"link delete {end.interface}"
            with contextlib.suppress(HostError):  # gone already
                init.run_batch([*self._inside(end.node), "ip"], [line])
        self._start([name])
        on = tuple(c for c in cables if all(end.node in self._pids for end in c.ends))
        init.run_batch(["ip"], cable_lines(self._topology, on, self._namespace))
        for neighbour in {end.node for cable in on for end in cable.ends} - {name}:
            inside = self._inside(neighbour)
            lines = port_lines(self._topology, neighbour, on)
            lines += address_lines(self._topology, neighbour, on)
            init.run_batch([*inside, "ip"], lines)
            if vlans := vlan_lines(self._topology, neighbour, on):
                init.run_batch([*inside, "bridge"], vlans)
            if rates := rate_lines(neighbour, on):
                init.run_batch([*inside, "tc"], rates)
        self._configure([name], on)

    def reap(self) -> None:
        """Take note of the inits that have ended."""
        for name, pid in list(self._pids.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._pids[name]

    def end(self) -> None:
        """Kill every node; return when all that ran in them is dead."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)  # our child and not yet reaped: the number is its own
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        self._pids.clear()

    def _namespace(self, name: str) -> str:
        return f"/proc/{self._pids[name]}/ns/net"

    def _inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net={self._namespace(name)}"]

    def _start(self, names: Sequence[str]) -> None:
        """Fork an init for each of `names` and wait until their namespaces exist."""
        for name in names:
            self._wanted()
            own = self._places.node(name)
            write_whole(own / "boot_id", f"{uuid.uuid4()}\n", mode=0o444)
            write_whole(own / "machine-id", f"{uuid.uuid5(uuid.NAMESPACE_DNS, str(own)).hex}\n")
            write_whole(own / "hostname", f"{name}\n")
            self._fork(name)
        self._expect(names, init.MADE)

    def _fork(self, name: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A SIGTERM that strikes the child before it has its own handlers would end our lab there.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        syscalls.unshare(syscalls.CLONE_NEWPID)
        try:
            pid = os.fork()
            if not pid:
                try:
                    for other in (ours, *self._channels.values(), *self.not_for_nodes):
                        other.close()
                    init.run_node(self._places, self._topology.node(name), theirs)
                finally:
                    os._exit(1)  # whatever happens, the child is no second warden
        finally:
            syscalls.setns(self._own_pid_namespace, syscalls.CLONE_NEWPID)
        self._pids[name] = pid
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        theirs.close()
        ours.settimeout(NODE_DEADLINE_S)
        self._channels[name] = ours

    def _configure(self, names: Sequence[str], cables: Sequence[Cable] | None = None) -> None:
        """Let each node set itself up, all at once, and wait until all are ready."""
        for name in names:
            own = self._topology.cables_of(name)
            if cables is not None:
                own = tuple(cable for cable in own if cable in cables)
            order = {
                "ip": [
                    *bridge_lines(self._topology, name),
                    *port_lines(self._topology, name, own),
                    *address_lines(self._topology, name),
                ],
                "bridge": vlan_lines(self._topology, name, own),
                "tc": rate_lines(name, own),
                "links": working_links(self._topology, name, own),
            }
            self._channels[name].send(json.dumps(order).encode())
        self._expect(names, init.READY)
        for name in names:
            self._channels.pop(name).close()

    def _expect(self, names: Sequence[str], word: bytes) -> None:
        for name in names:
            try:
                answer = self._channels[name].recv(init.MESSAGE_MAX)
            except TimeoutError:
                answer = b"nothing was heard in time"
            self._wanted()
            if answer != word:
                first, _, rest = answer.decode(errors="replace").partition("\n")
                what = f"the lab's host cannot start: {first or 'its init died'}"
                raise HostError(what, host=name, last_words=rest.strip() or None)


def serve(warden: Warden, listener: socket.socket) -> NoReturn:
    """Answer one request at a time, a JSON line each, and reap; `_EndingError` ends it."""
    awake, alarm = socket.socketpair()
    for side in (awake, alarm):
        side.setblocking(False)
    warden.not_for_nodes += [listener, awake, alarm]
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    warden.reap()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(awake, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if awake.fileno() in ready:
            awake.recv(4096)
            warden.reap()
        if listener.fileno() in ready:
            client, _ = listener.accept()
            with client:
                client.settimeout(REQUEST_DEADLINE_S)
                with contextlib.suppress(OSError):  # it has left
                    if request := client.recv(REQUEST_MAX):  # else it only asked whether we live
                        client.sendall(_answer(warden, request))


def _answer(warden: Warden, request: bytes) -> bytes:
    try:
        words = json.loads(request)
        if not isinstance(words, dict) or list(words) != ["power_on"]:
            raise HostError(f"the lab's warden does not understand {request[:80]!r}")
        warden.power_on(words["power_on"])
    except QmigrateError as exc:
        return failure(exc)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        return failure(HostError(f"the lab's warden failed: {exc}"))
    return b"{}\n"


def failure(error: QmigrateError) -> bytes:
    """Return `error` as the line that `problem_in` reads."""
    p = error.problem
    fields = {"code": p.code, "what": p.what, "host": p.host, "last_words": p.last_words}
    return json.dumps(fields).encode() + b"\n"


def problem_in(answer: bytes) -> Problem | None:
    """Return the problem that an answer of the warden tells of; None if all went well."""
    fields = json.loads(answer)
    return Problem(**fields) if fields else None


def main(name: str, alive: int, door: int) -> None:
    """Be the warden of lab `name`.

    `alive` is warden.lock, with the flock that `up` took; `door` the socket on which `up` waits.
    """
    _close_others(keep=(alive, door))
    up = socket.socket(fileno=door)
    places = Places.of(name)
    syscalls.set_process_name(f"lab-{name}")

    def end(_signum: int, _frame: FrameType | None) -> None:
        raise _EndingError

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, or set_wakeup_fd hears nothing

    def wanted() -> None:
        if select.select([up], [], [], 0)[0]:  # `up` never writes: this is its end
            raise _EndingError(CHANGED_MIND)

    warden = None
    try:
        syscalls.hold(alive)
        topology = read_topology(places)
        assert topology is not None, "written before the warden is started"
        warden = Warden(places, topology, wanted)
        warden.not_for_nodes.append(up)
        warden.make()
        listener = _listen(places.warden_socket)
        up.sendall(b"{}\n")
        up.close()
        serve(warden, listener)
    except _EndingError as exc:
        print(f"ending: {exc}", file=sys.stderr)
    except QmigrateError as exc:
        up.sendall(failure(exc))
    except (OSError, subprocess.SubprocessError) as exc:
        up.sendall(failure(HostError(f"the lab cannot be made: {exc}")))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if warden is not None:
            warden.end()


def _listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, which appears only when connecting to it works."""
    new = path.with_name("new.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(new))
    new.chmod(0o600)
    listener.listen()
    new.rename(path)
    return listener


def _close_others(keep: Sequence[int]) -> None:
    """Close what leaked from `up`'s parents: a pipe held here would keep its reader waiting."""
    start = 3
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
