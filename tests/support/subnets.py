"""A lab of several subnets to move guests between, and what of tunnels is to be seen in it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from qmigrate.core.tiny import DEFAULT
from qmigrate.lab import demo, guests
from qmigrate.lab.images import LinuxBoot, TinyBoot, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest.commands import MOVE_DEADLINE_S, Moved, moved
from qmigrate.lab.tiny import write_image
from qmigrate.lab.topologies import TOPOLOGIES, guest_addresses

BIRTHPLACE = "alpha"


@dataclass(slots=True)
class Subnets:
    """One test's guests in a lab that stands for several tests."""

    lab: Lab
    hosts: tuple[str, ...]
    undo: ExitStack = field(default_factory=ExitStack)
    _before: dict[str, list[str]] = field(default_factory=dict)

    def open(self) -> None:
        """Remember what the network of every host is."""
        self._before = {host: self.network(host) for host in self.hosts}

    def start(self, guest: guests.LabGuest, host: str = BIRTHPLACE) -> None:
        """Start a guest; it is ended with the test."""
        process = guests.start(self.lab, host, guest)
        self.undo.callback(process.communicate)
        self.undo.callback(process.kill)

    def tiny(self, name: str) -> guests.LabGuest:
        """Describe a guest that runs and never speaks."""
        image = write_image(self.lab.images / "tiny.bin", DEFAULT)
        return guests.LabGuest(name, TinyBoot(image), memory_mib=32)

    @contextmanager
    def linux(self) -> Iterator[tuple[demo.Probe, str]]:
        """Have a linux guest on alpha; yield the client's probe, with its connection, and address.

        The client is at alpha's site, so it is one of the guest's neighbours.
        """
        four = guest_addresses(TOPOLOGIES["two-subnets"], BIRTHPLACE)[0]
        image = guests.shared_image(self.lab, linux_image())
        boot = LinuxBoot(image, ip4=four, dirty_mib=8, dirty_rate_mib=8)
        self.start(guests.LabGuest("web1", boot, memory_mib=192))
        address = four.partition("/")[0]
        with demo.probing(self.lab, address) as probe:
            yield probe, address

    def watched(
        self, seen: tuple[demo.Probe, str], destination: str, *options: str
    ) -> dict[str, Any]:
        """Move the linux guest, watched by the client."""
        probe, address = seen
        return demo.move(
            self.lab, probe, destination, options, address=address, control_s=0.5, margin_s=0.5
        )

    def run(self, *words: str) -> Moved:
        """Run any `qmigrate … --json` on the client to its end."""
        command = ["qmigrate", *words, "--json"]
        done = self.lab.run("client", command, check=False, timeout_s=MOVE_DEADLINE_S)
        return moved(done.returncode, done.stdout, done.stderr)

    def migrate(self, name: str, destination: str, *options: str) -> Moved:
        """Move a guest."""
        return self.run("migrate", name, destination, *options)

    def network(self, host: str) -> list[str]:
        """Return the interfaces of a host and where its bridges would send frames for guests."""
        links = json.loads(self.lab.run(host, ["ip", "-j", "link"]).stdout)
        entries = json.loads(self.lab.run(host, ["bridge", "-j", "fdb"]).stdout)
        found = [f"link {link['ifname']} {link.get('master')}" for link in links]
        found += [
            f"fdb {entry['mac']} {entry['ifname']}"
            for entry in entries
            if entry["mac"].startswith("52:54:00")
        ]
        return sorted(found)

    def changes(self) -> list[str]:
        """Return what is on the hosts' networks now that was not before the test."""
        return [
            f"{host}: {what}"
            for host in self.hosts
            for what in self.network(host)
            if what not in self._before[host]
        ]

    def tunnels(self) -> list[dict[str, Any]]:
        """Return what `qmigrate network tunnel list` knows."""
        found: list[dict[str, Any]] = self.run("network", "tunnel", "list").result["tunnels"]
        return found

    def ends(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Return every end of a tunnel: its host, which end, whose claims."""
        return sorted(
            (end["host"], end["end"], tuple(end["guests"]))
            for tunnel in self.tunnels()
            for end in tunnel["ends"]
        )

    def close(self) -> None:
        """End the guests, and remove what they have left."""
        self.undo.close()
        for host in self.hosts:
            self.lab.run(host, ["sh", "-c", _END_QEMUS], check=False)
            self.lab.run("client", ["qmigrate", "cleanup", host, "--yes"], check=False)
            for link in self.changes_of(host):
                self.lab.run(host, ["ip", "link", "delete", link], check=False)

    def changes_of(self, host: str) -> list[str]:
        """Return the names of a host's new interfaces."""
        new = [what for what in self.network(host) if what not in self._before[host]]
        return [what.split()[1] for what in new if what.startswith("link ")]


# In the host's own PID namespace: nobody else's.
_END_QEMUS = (
    "for each in /proc/[0-9]*; do "
    'case "$(readlink $each/exe)" in */qemu-system-*) kill -9 ${each#/proc/};; esac; done'
)


@contextmanager
def subnets(name: str, topology: str) -> Iterator[Lab]:
    """Have a lab stand whose agents have been pushed."""
    lab = Lab(name)
    try:
        lab.up(TOPOLOGIES[topology])
        for host in hosts_of(topology):
            lab.run("client", ["qmigrate", "list", host], check=False)
        yield lab
    finally:
        lab.down()


def hosts_of(topology: str) -> tuple[str, ...]:
    """Return the names of the hosts of a topology."""
    return tuple(node.name for node in TOPOLOGIES[topology].hosts)


def rules(findings: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return rule and severity of each finding."""
    return [(finding["rule"], finding["severity"]) for finding in findings]
