"""Hosts and guests as the user names them: arguments, or a file; an ssh destination is a host.

The file is the first of ``--config``, ``$QMIGRATE_CONFIG``, ``qmigrate/config.toml`` in
``$XDG_CONFIG_HOME`` or ``~/.config``, and ``/etc/qmigrate/config.toml``. None is needed.
`inventory_file` has its schema.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qmigrate.controller.inventory_file import (
    LOCAL_NAMES,
    Defaults,
    GuestSpec,
    destination_fault,
    did_you_mean,
    parse,
    read_toml,
)
from qmigrate.core.errors import ConfigError, UsageError
from qmigrate.core.model import HostSpec

SYSTEM_FILE = Path("/etc/qmigrate/config.toml")
SIZE_LIMIT_BYTES = 1024 * 1024  # a larger file is no inventory but a mistake


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything the user has told about hosts and guests before this command line."""

    path: str | None = None  # the file it came from
    hosts: tuple[HostSpec, ...] = ()
    guests: tuple[GuestSpec, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    ssh_config: str | None = None  # for hosts that are named on the command line only

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
        return HostSpec(word, word, self.ssh_config)

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


def find(config: str | None, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file to read, if any; raises `ConfigError` if the one asked for is not there."""
    environ = os.environ if environ is None else environ
    for origin, asked in (
        ("--config", config),
        ("$QMIGRATE_CONFIG", environ.get("QMIGRATE_CONFIG")),
    ):
        if asked:
            if not _is_there(Path(asked)):
                raise ConfigError(f"{asked}: no such file (from {origin})")
            return Path(asked)
    candidates = [SYSTEM_FILE]
    if base := environ.get("XDG_CONFIG_HOME", ""):
        candidates.insert(0, Path(base, "qmigrate", "config.toml"))
    else:
        with contextlib.suppress(RuntimeError):  # this user has no home
            candidates.insert(0, Path("~/.config/qmigrate/config.toml").expanduser())
    return next(filter(_is_there, candidates), None)


def _is_there(path: Path) -> bool:
    """Tell whether `path` can be read as a file; `Path.is_file` raises where it may not look."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def load(*, config: str | None = None, ssh_config: str | None = None) -> Inventory:
    """Read the inventory, empty if there is none; `ssh_config` is ssh's ``-F`` for every host.

    Raises `ConfigError` with every fault, and `UsageError` if `ssh_config` is not a file.
    """
    ssh_config = ssh_config or os.environ.get("QMIGRATE_SSH_CONFIG") or None
    if ssh_config and not _is_there(Path(ssh_config)):
        raise UsageError(f"{ssh_config}: no such ssh configuration file")
    path = find(config)
    if path is None:
        return Inventory(ssh_config=ssh_config)
    found = parse(_read(path), name=str(path))
    hosts = (replace(h, ssh_config=ssh_config) if h.ssh else h for h in found.hosts)
    return Inventory(str(path), tuple(hosts), found.guests, found.defaults, ssh_config)


def names(config: str | None = None) -> tuple[str, ...]:
    """Return the names of the inventory's hosts and nothing else checked; quick, for completion."""
    path = find(config)
    hosts = read_toml(_read(path), str(path)).get("hosts") if path else None
    return tuple(hosts) if isinstance(hosts, dict) else ()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    if len(raw) > SIZE_LIMIT_BYTES:
        raise ConfigError(f"{path}: larger than {SIZE_LIMIT_BYTES} bytes, not an inventory")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        column = exc.start - raw.rfind(b"\n", 0, exc.start)
        raise ConfigError(f"{path}:{line}:{column}: not UTF-8 text") from exc
