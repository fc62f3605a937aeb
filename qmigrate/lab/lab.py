"""A lab: hosts on one machine that are as much their own as a test can tell.

Everything here is synchronous; under trio call it by `trio.to_thread.run_sync`.
"""

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from qmigrate.core.errors import HostError, UsageError
from qmigrate.lab import hosts, standing, syscalls
from qmigrate.lab.standing import BURIAL_DEADLINE_S, END_DEADLINE_S, need_machine
from qmigrate.lab.state import (
    DEFAULT_NAME,
    SYSTEM_PATH,
    LabState,
    LabStatus,
    NodeStatus,
    Places,
    changing,
    read_topology,
    remove_directory,
)
from qmigrate.lab.topology import (
    Egress,
    End,
    Node,
    NodeKind,
    Topology,
    egress_lines,
    read_egress,
)

RUN_DEADLINE_S: Final = 60.0  # for a command whose caller names no other
PASSED_ON: Final = ("TERM", "LANG", "LC_ALL", "NO_COLOR", "COLUMNS", "LINES")  # how output looks


class Way(StrEnum):
    """Which way a cable is cut, as the host sees it."""

    BOTH = "both"
    IN = "in"
    OUT = "out"


class Lab:
    """One lab by name, whether it stands or not; cheap to make, holds nothing open.

    Raises `UsageError` if the name cannot be one.
    """

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        self._places = Places.of(name)
        self.name = name
        self.directory: Path = self._places.directory
        self.images: Path = self._places.images
        self.ssh_config: Path = self._places.ssh_config
        self.config: Path = self._places.config

    # Standing and falling

    def up(self, topology: Topology) -> None:
        """Make the lab stand, all its nodes under power; what a killed `up` left is remade.

        Raises `UsageError` if it stands with another topology, `HostError` if it cannot be made;
        then nothing of it is left.
        """
        need_machine()
        with changing(self._places, create=True):
            if standing.is_ready(self._places):
                if read_topology(self._places) != topology:
                    raise UsageError(
                        f"lab {self.name} stands with another topology",
                        next_step=f"qmigrate lab down --lab {self.name}",
                    )
                for node in topology.nodes:
                    standing.power_on(self._places, node.name)
                return
            standing.clear(self._places)
            try:
                standing.make(self._places, topology)
            except BaseException:
                standing.clear(self._places)
                remove_directory(self._places)
                raise

    def down(self) -> None:
        """End everything of the lab and remove it; no lab is no error.

        Raises `HostError` if something would not end; run it again.
        """
        need_machine()
        with changing(self._places, create=False) as exists:
            if exists:
                standing.clear(self._places)
                remove_directory(self._places)

    def status(self) -> LabStatus:
        """Look at what is there; needs no lock and changes nothing."""
        need_machine()
        topology = read_topology(self._places) if self.directory.exists() else None
        state = LabState.UP if standing.is_ready(self._places) else LabState.HALF
        nodes: tuple[NodeStatus, ...] = ()
        if topology is not None and state is LabState.UP:
            egress = self._all_egress(topology)
            nodes = tuple(self._node_status(topology, node, egress) for node in topology.nodes)
        return LabStatus(
            name=self.name,
            state=state if self.directory.exists() else LabState.DOWN,
            directory=str(self.directory),
            images=str(self.images),
            topology=topology.name if topology else None,
            warden=syscalls.holder(self._places.warden_lock),
            nodes=nodes,
        )

    # Power

    def power_off(self, host: str) -> None:
        """Cut the power of `host`: all that ran in it is dead when this returns.

        So is its network: the kernel alone would go on to forward and answer for some time, until
        it has taken the namespace apart. A host without power is no error. Raises `HostError` if
        something outlived it.
        """
        lock = self._places.init_lock(self._node(host).name)
        pidfd = syscalls.open_holder(lock)
        if pidfd is None:
            return
        inside = hosts.open_members(syscalls.holder(lock) or 0)
        try:
            syscalls.send_signal(pidfd, signal.SIGKILL)
            hosts.reap(self.name, END_DEADLINE_S, host=host)
            for member, descriptor in inside.items():
                if not syscalls.wait_for_end(descriptor, END_DEADLINE_S):
                    raise HostError(f"process {member} outlived the power loss", host=host)
            # The init ends last: its namespace waits until all that ran in it is reaped. What
            # another program put there and does not reap is dead all the same.
            syscalls.wait_for_end(pidfd, BURIAL_DEADLINE_S)
        finally:
            for descriptor in (pidfd, *inside.values()):
                os.close(descriptor)
        topology = self._topology()
        for end in _ends(topology, host):
            if end.node != host and self.pids(end.node):  # else it was taken apart already
                self.run(end.node, ["ip", "link", "delete", end.interface], check=False)

    def power_on(self, host: str) -> None:
        """Give `host` its power again: new boot id, empty /run, cables as the topology has them."""
        with changing(self._places, create=False):
            standing.power_on(self._places, self._node(host).name)

    # Within a host

    def environment(self, host: str) -> dict[str, str]:
        """Return what a user's shell on `host` would have set, and the way to the lab's config.

        Nothing of our own environment but what decides how output looks: no agent, no proxy.
        """
        root = pwd.getpwuid(0)
        return {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "HOME": root.pw_dir,
            "USER": root.pw_name,
            "LOGNAME": root.pw_name,
            "SHELL": root.pw_shell or "/bin/sh",
            "HOSTNAME": host,
            "QMIGRATE_LAB": self.name,
            "QMIGRATE_SSH_CONFIG": str(self.ssh_config),
            "QMIGRATE_CONFIG": str(self.config),
        }

    def popen(
        self, host: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> subprocess.Popen[Any]:
        """Start `argv` in `host` as our child; it dies with the host's power.

        `kw` as for `subprocess.Popen`; `env` is added to `environment`. Session, directory and
        stdin are the child's own (``/``, /dev/null) unless said otherwise.
        Raises `HostError` if the host has no power or no such command.
        """
        pidfd = self._init(host)
        options = {"cwd": "/", "stdin": subprocess.DEVNULL, "start_new_session": True, **kw}
        options["env"] = {**self.environment(host), **(env or {})}
        try:
            return hosts.spawn(pidfd, (self.name, host), argv, **options)
        finally:
            os.close(pidfd)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = RUN_DEADLINE_S,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` in `host` to its end and return what it printed.

        Raises `HostError` when it takes longer than `timeout_s` (it is killed, what it left in
        the background is not), and with `check` when it fails.
        """
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        process: subprocess.Popen[str] = self.popen(
            host, argv, env=env, stdin=stdin, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise HostError(f"{argv[0]} did not end in {timeout_s:g} s", host=host) from None
            finally:
                process.kill()
        if check and process.returncode:
            what = f"{' '.join(argv)}: exit status {process.returncode}"
            raise HostError(what, host=host, last_words=stderr.strip() or stdout.strip() or None)
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def pids(self, host: str) -> list[int]:
        """List the live processes of `host` by this machine's numbers; none without power."""
        init = syscalls.holder(self._places.init_lock(self._node(host).name))
        return hosts.pids_in(init) if init else []

    def snapshot_host(self, host: str) -> hosts.HostSnapshot:
        """Return what is on `host`: processes, links, mounts, files, listening sockets."""
        links = self.run(host, ["ip", "-j", "-d", "link", "show"]).stdout
        init = syscalls.holder(self._places.init_lock(host))
        if init is None:
            raise HostError("no power", host=host)
        return hosts.snapshot(init, links)

    # Cables

    def cut(self, host: str, way: Way = Way.BOTH) -> None:
        """Let nothing through the cables of `host` in or out; the carrier stays."""
        self._set_cables(host, cut=way)

    def mend(self, host: str) -> None:
        """Undo `cut`; rates are as before."""
        self._set_cables(host, cut=None)

    def set_rate(self, host: str, bps: int | None) -> None:
        """Limit the cables of `host` to `bps` bit/s each way; None lifts the limit. Cuts stay."""
        if bps is not None and bps <= 0:
            raise UsageError(f"a cable cannot carry {bps} bit/s; cut it instead")
        for end, egress in self._powered_ends(host):
            self._tc(end, bps, cut=egress.cut)

    # What the above is made of

    def _topology(self) -> Topology:
        topology = read_topology(self._places)
        if topology is None or not standing.is_ready(self._places):
            step = f"qmigrate lab up --lab {self.name}"
            raise HostError(f"lab {self.name} does not stand", next_step=step)
        return topology

    def _node(self, name: str) -> Node:
        return self._topology().node(name)

    def _init(self, host: str) -> int:
        need_machine()
        pidfd = syscalls.open_holder(self._places.init_lock(self._node(host).name))
        if pidfd is None:
            raise HostError("no power", host=host)
        return pidfd

    def _set_cables(self, host: str, *, cut: Way | None) -> None:
        for end, egress in self._powered_ends(host):
            way = Way.OUT if end.node == host else Way.IN
            self._tc(end, egress.rate_bps, cut=cut in (way, Way.BOTH))

    def _powered_ends(self, host: str) -> list[tuple[End, Egress]]:
        """Return both ends of each cable of `host` whose far side has power as well."""
        topology = self._topology()
        os.close(self._init(host))
        egress = self._all_egress(topology)
        cables = topology.cables_of(host)
        powered = [c for c in cables if all(self.pids(end.node) for end in c.ends)]
        return [(end, egress[end]) for cable in powered for end in cable.ends]

    def _tc(self, end: End, rate_bps: int | None, *, cut: bool) -> None:
        lines = egress_lines(end.interface, rate_bps, cut=cut)
        self.run(end.node, ["tc", "-batch", "-"], input="\n".join(lines) + "\n")

    def _all_egress(self, topology: Topology) -> dict[End, Egress]:
        found = {end: Egress() for cable in topology.cables for end in cable.ends}
        for node in topology.nodes:
            if self.pids(node.name):
                qdiscs = json.loads(self.run(node.name, ["tc", "-j", "qdisc", "show"]).stdout)
                for interface, egress in read_egress(qdiscs).items():
                    found[End(node.name, interface)] = egress
        return found

    def _node_status(
        self, topology: Topology, node: Node, egress: Mapping[End, Egress]
    ) -> NodeStatus:
        init = syscalls.holder(self._places.init_lock(node.name))
        boot_id = self._places.node(node.name) / "boot_id"
        own = [egress[e] for e in _ends(topology, node.name) if e.node == node.name]
        far = [egress[e] for e in _ends(topology, node.name) if e.node != node.name]
        is_switch = node.kind is NodeKind.SWITCH
        out, into = any(e.cut for e in own), any(e.cut for e in far)
        way = Way.BOTH if out and into else Way.OUT if out else Way.IN if into else None
        return NodeStatus(
            name=node.name,
            kind=node.kind,
            powered=init is not None,
            pid=init,
            boot_id=boot_id.read_text().strip() if init is not None else None,
            addresses=tuple(a.address for a in node.addresses),
            processes=len(self.pids(node.name)),
            sshd=hosts.listens(init, 22) if init and node.kind is NodeKind.HOST else None,
            rate_bps=None if is_switch else max((e.rate_bps or 0 for e in own), default=0) or None,
            cut=None if is_switch else way,
        )


def _ends(topology: Topology, name: str) -> list[End]:
    """Return both ends of each cable of a node."""
    return [end for cable in topology.cables_of(name) for end in cable.ends]
