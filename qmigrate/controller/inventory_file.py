"""The inventory file: its schema, its strict reading, and every fault with line and column.

::

    [hosts.alpha]                                   # every key may be left out
    ssh = "root@192.0.2.10"                         # else the name itself, through ~/.ssh/config
    python = "/usr/bin/python3.12"                  # else the newest python3 found there
    sudo = true                                     # `sudo -n` if the login is not root
    ssh_client = "openssh"                          # else paramiko, where that can do it
    migration_addresses = ["10.0.0.10"]             # tried first by the link
    port_range = [49152, 49215]                     # else the kernel's choice

    [guests.web1]
    host = "alpha"                                  # else looked for on every host
    addresses = ["192.0.2.80", "2001:db8::80"]      # announced after a move

    [defaults]                                      # of the options of `qmigrate migrate`
    downtime_limit_ms = 20
    max_downtime_ms = 300
    bandwidth = "800Mbit"

A host called ``localhost`` or ``local`` is this machine, without SSH.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from qmigrate.controller.inventory_text import read_toml
from qmigrate.core.errors import ConfigError
from qmigrate.core.model import HostSpec, SshClient
from qmigrate.core.quantities import parse_rate

LOCAL_NAMES = ("localhost", "local")  # this machine, without SSH
SSH_CLIENTS = tuple(str(client) for client in SshClient)

KeyPath = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A ``[hosts.NAME]`` table."""

    ssh: str | None = None
    python: str | None = None
    sudo: bool = True
    migration_addresses: tuple[str, ...] = ()
    port_range: tuple[int, int] | None = None
    ssh_client: str = SshClient.AUTO


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """A ``[guests.NAME]`` table."""

    host: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DefaultsEntry:
    """The ``[defaults]`` table."""

    downtime_limit_ms: int | None = None
    max_downtime_ms: int | None = None
    bandwidth: str | None = None


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What the inventory says of a guest."""

    name: str
    host: str | None
    addresses: tuple[str, ...]  # as the user wrote them, each a valid IP address


@dataclass(frozen=True, slots=True)
class Defaults:
    """The user's own values for options of ``migrate``; None: not said, the built-in one counts."""

    downtime_limit_ms: int | None = None
    max_downtime_ms: int | None = None
    bandwidth_bps: int | None = None  # bytes/s


@dataclass(frozen=True, slots=True)
class Contents:
    """What a sound file says."""

    hosts: tuple[HostSpec, ...]
    guests: tuple[GuestSpec, ...]
    defaults: Defaults


def parse(text: str, *, name: str) -> Contents:
    """Return what `text` says; raises `ConfigError` with all faults, located in file `name`."""
    document = read_toml(text, name)
    faults: list[tuple[KeyPath, str]] = []
    tables = {"hosts": HostEntry, "guests": GuestEntry, "defaults": DefaultsEntry}
    faults += [((key,), _unknown(key, tables)) for key in document.keys() - tables.keys()]
    hosts = list(_entries(document, "hosts", HostEntry, faults))
    guests = list(_entries(document, "guests", GuestEntry, faults))
    defaults = _structure(document.get("defaults", {}), DefaultsEntry, ("defaults",), faults)
    faults += _host_faults(hosts)
    faults += _guest_faults(guests, list(_table(document, "hosts")))
    faults += _defaults_faults(defaults or DefaultsEntry())
    if faults:
        raise ConfigError(_sentence(text, name, faults), next_step=f"correct {name}")
    assert defaults is not None  # noqa: S101 - else there is a fault
    rate = parse_rate(defaults.bandwidth) if defaults.bandwidth else None
    return Contents(
        tuple(_spec(host, entry) for host, entry in hosts),
        tuple(GuestSpec(guest, entry.host, entry.addresses) for guest, entry in guests),
        Defaults(defaults.downtime_limit_ms, defaults.max_downtime_ms, rate),
    )


def locate(text: str, path: KeyPath) -> tuple[int, int]:
    """Return the 1-based line and column of a key path in a valid TOML document.

    The first prefix of the file that parses and holds the path ends on that key's value: no
    knowledge of TOML is needed. An element of a multi-line array is located at the array's start.
    Raises KeyError if no prefix holds it.
    """
    lines = text.splitlines(keepends=True)
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            node: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        try:
            for key in path:
                node = node[key]
        except (KeyError, IndexError, TypeError):
            start = end
            continue
        word = next((str(key) for key in reversed(path) if isinstance(key, str)), "")
        found = re.search(rf"(?<![\w-])[\"']?{re.escape(word)}[\"']?\s*(?=[=\].])", lines[start])
        return start + 1, found.start() + 1 if found else 1
    raise KeyError(path)


def destination_fault(text: str) -> str | None:
    """Say why `text` cannot be an ssh destination; None if it can."""
    if not text:
        return "it is empty"
    if text.startswith("-"):
        return "ssh would read it as an option"
    if any(not c.isprintable() or c.isspace() for c in text):
        return "it has a space or a control character"
    if text.startswith("ssh://"):
        return None if text.removeprefix("ssh://").strip("/") else "no host after ssh://"
    if "://" in text:
        return "only ssh:// is understood"
    if re.fullmatch(r"[^:\[\]]+:\d*", text):
        return f"a port is written as ssh://{text}"
    if "/" in text:
        return "a host has no slash"
    return None


def _table(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    return value if isinstance(value, dict) else {}


def _entries(
    document: dict[str, Any], key: str, cls: type[T], faults: list[tuple[KeyPath, str]]
) -> Iterator[tuple[str, T]]:
    """Yield the tables below `key` that are sound; the faults of the others are added."""
    if not isinstance(document.get(key, {}), dict):
        faults.append(((key,), f"write [{key}.NAME] tables, not a {_kind(document[key])}"))
    for name, value in _table(document, key).items():
        entry = _structure(value, cls, (key, name), faults)
        if entry is not None:
            yield name, entry


def _structure(
    value: Any, cls: type[T], path: KeyPath, faults: list[tuple[KeyPath, str]]
) -> T | None:
    """Return `value` as `cls`, strictly; None after adding every fault of it."""
    if not isinstance(value, dict):
        faults.append((path, f"write a table, not a {_kind(value)}"))
        return None
    from qmigrate.agent.protocol import codec  # imports cattrs, 50 ms: not for `names`

    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    unknown = value.keys() - set(known)
    faults += [((*path, key), _unknown(key, known)) for key in sorted(unknown)]
    rest = {key: item for key, item in value.items() if key not in unknown}
    try:
        entry = codec.structure(rest, cls)
    except Exception as exc:  # noqa: BLE001 - cattrs wraps whatever a hook raises in groups of its own
        faults += [((*path, *where), what) for where, what in _faults_of(exc, ())]
        return None
    return None if unknown else entry


def _faults_of(exc: BaseException, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield place and sentence of each fault in a tree of cattrs' exceptions."""
    if not isinstance(exc, BaseExceptionGroup):
        yield path, str(exc)
        return
    for inner in exc.exceptions:
        # cattrs notes where it was: AttributeValidationNote.name, IterableValidationNote.index
        notes = getattr(inner, "__notes__", ())
        steps = [getattr(n, "name", getattr(n, "index", None)) for n in notes]
        where = tuple(step for step in steps if isinstance(step, str | int))
        yield from _faults_of(inner, (*path, *where))


def _host_faults(hosts: list[tuple[str, HostEntry]]) -> Iterator[tuple[KeyPath, str]]:
    seen_names: dict[str, str] = {}
    seen_destinations: dict[str, str] = {}
    for name, entry in hosts:
        at: KeyPath = ("hosts", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            yield at, f"{name!r} cannot be a host's name: letters, digits, '.', '_' and '-' only"
        elif other := seen_names.get(name.casefold()):
            yield at, f"host {name!r} differs from {other!r} only in upper and lower case"
        seen_names.setdefault(name.casefold(), name)
        if entry.ssh is not None:
            if name in LOCAL_NAMES:
                yield (*at, "ssh"), f"{name!r} means this machine, without SSH"
            elif fault := destination_fault(entry.ssh):
                yield (*at, "ssh"), f"{entry.ssh!r} is not an ssh destination: {fault}"
        destination = entry.ssh or (LOCAL_NAMES[0] if name in LOCAL_NAMES else name)
        if other := seen_destinations.get(destination):
            yield at, f"host {name!r} is the same machine as {other!r} ({destination})"
        seen_destinations.setdefault(destination, name)
        if entry.python is not None and (not entry.python or re.search(r"\s|^-", entry.python)):
            yield (*at, "python"), f"{entry.python!r} is not the name or path of an interpreter"
        if entry.ssh_client not in SSH_CLIENTS:
            yield (*at, "ssh_client"), f"{entry.ssh_client!r} is none of: {', '.join(SSH_CLIENTS)}"
        yield from _address_faults((*at, "migration_addresses"), entry.migration_addresses)
        if entry.port_range is not None:
            first, last = entry.port_range
            if not 1 <= first <= last <= 65535:
                yield (*at, "port_range"), f"ports {first} to {last} are not a range in 1-65535"


def _guest_faults(
    guests: list[tuple[str, GuestEntry]], hosts: list[str]
) -> Iterator[tuple[KeyPath, str]]:
    for name, entry in guests:
        at: KeyPath = ("guests", name)
        if not name or not name.isprintable():
            yield at, f"{name!r} cannot be a guest's name"
        host = entry.host
        if host is not None and host not in (*hosts, *LOCAL_NAMES):
            # A bare word could be an alias of ~/.ssh/config, but a misspelt host is likelier.
            if fault := destination_fault(host):
                yield (*at, "host"), f"{host!r} is not a host: {fault}"
            elif not re.search(r"@|://", host):
                hint = did_you_mean(host, hosts) or f"write a [hosts.{host}] table"
                yield (*at, "host"), f"no host {host!r} in this file; {hint}"
        yield from _address_faults((*at, "addresses"), entry.addresses)


def _defaults_faults(defaults: DefaultsEntry) -> Iterator[tuple[KeyPath, str]]:
    limit, most = defaults.downtime_limit_ms, defaults.max_downtime_ms
    for key, value in (("downtime_limit_ms", limit), ("max_downtime_ms", most)):
        # QEMU's own bound: MAX_MIGRATE_DOWNTIME, 2000 s
        if value is not None and not 1 <= value <= 2_000_000:
            yield ("defaults", key), f"{value} is not between 1 and 2000000 ms"
    if limit is not None and most is not None and most < limit:
        yield ("defaults", "max_downtime_ms"), f"{most} is less than downtime_limit_ms, {limit}"
    if defaults.bandwidth is not None:
        try:
            parse_rate(defaults.bandwidth)
        except ValueError as exc:
            yield ("defaults", "bandwidth"), str(exc)


def _address_faults(path: KeyPath, addresses: tuple[str, ...]) -> Iterator[tuple[KeyPath, str]]:
    for index, address in enumerate(addresses):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield (*path, index), f"{address!r} is not an IP address"


def _spec(name: str, entry: HostEntry) -> HostSpec:
    ssh = None if name in LOCAL_NAMES else entry.ssh or name
    return HostSpec(
        name,
        ssh,
        python=entry.python,
        sudo=entry.sudo,
        migration_addresses=entry.migration_addresses,
        port_range=entry.port_range,
        ssh_client=SshClient(entry.ssh_client),
    )


def _unknown(key: str, known: Iterable[str]) -> str:
    options = list(known)
    return f"unknown key {key!r}; {did_you_mean(key, options) or 'known: ' + ', '.join(options)}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a question with the nearest of `known`, None if nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None


def _kind(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "list"}
    return kinds.get(type(value), type(value).__name__)


def _sentence(text: str, name: str, faults: list[tuple[KeyPath, str]]) -> str:
    placed = sorted({(*locate(text, path), what) for path, what in faults})
    return "\n".join(f"{name}:{line}:{column}: {what}" for line, column, what in placed)
