"""Hosts and guests as the user names them: arguments, or a file; an ssh destination is a host.

`inventory_text` finds the file, `inventory_file` has its schema.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from qmigrate.controller.inventory_file import (
    LOCAL_NAMES,
    Defaults,
    GuestSpec,
    destination_fault,
    did_you_mean,
    parse,
)
from qmigrate.controller.inventory_text import find, is_there, read
from qmigrate.core.errors import UsageError
from qmigrate.core.model import HostSpec, SshClient


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything the user has told about hosts and guests before this command line."""

    path: str | None = None  # the file it came from
    hosts: tuple[HostSpec, ...] = ()
    guests: tuple[GuestSpec, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    ssh_config: str | None = None  # for hosts that are named on the command line only
    ssh_client: SshClient = SshClient.AUTO  # for those too

    def host(self, word: str) -> HostSpec:
        """Return the host that `word` means; raises `UsageError` if it cannot be one.

        A name of the inventory comes first, then this machine's names; whatever else is an ssh
        destination, and ssh's own configuration knows whether it exists.
        """
        for spec in self.hosts:
            if spec.name == word:
                return spec
        if word in LOCAL_NAMES:
            return HostSpec(word, None)
        fault = destination_fault(word)
        if fault:
            raise UsageError(f"{word!r} is not a host: {fault}", next_step=self.suggestion(word))
        return HostSpec(word, word, self.ssh_config, ssh_client=self.ssh_client)

    def select(self, words: Iterable[str]) -> tuple[HostSpec, ...]:
        """Return the named hosts, each once; without names all there are, else this machine."""
        chosen = {spec.name: spec for spec in map(self.host, words)}
        return tuple(chosen.values()) or self.hosts or (HostSpec(LOCAL_NAMES[0], None),)

    def guest(self, name: str) -> GuestSpec:
        """Return what is said of a guest; for an unknown one that nothing is."""
        return next((g for g in self.guests if g.name == name), GuestSpec(name, None, ()))

    def suggestion(self, word: str) -> str | None:
        """Return "did you mean …?" if `word` resembles a host of the inventory."""
        return did_you_mean(word, (spec.name for spec in self.hosts))


def load(
    *, config: str | None = None, ssh_config: str | None = None, ssh_client: str | None = None
) -> Inventory:
    """Read the inventory, empty if there is none; `ssh_config` is ssh's ``-F`` for every host.

    `ssh_client` is a word of `SshClient` and beats what the inventory says.

    Raises `ConfigError` with every fault, and `UsageError` if `ssh_config` is not a file.
    """
    ssh_config = ssh_config or os.environ.get("QMIGRATE_SSH_CONFIG") or None
    if ssh_config and not is_there(Path(ssh_config)):
        raise UsageError(f"{ssh_config}: no such ssh configuration file")
    path = find(config)
    if path is None:
        return Inventory(ssh_config=ssh_config, ssh_client=SshClient(ssh_client or "auto"))
    found = parse(read(path), name=str(path))

    def by(host: HostSpec) -> HostSpec:
        client = SshClient(ssh_client) if ssh_client else host.ssh_client
        return replace(host, ssh_config=ssh_config, ssh_client=client) if host.ssh else host

    return Inventory(
        str(path),
        tuple(map(by, found.hosts)),
        found.guests,
        found.defaults,
        ssh_config,
        SshClient(ssh_client or "auto"),
    )
