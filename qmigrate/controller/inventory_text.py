"""The inventory's file as text: which one it is, what it says, the names of its hosts.

Apart from the schema because completion asks for names at every TAB: here nothing is imported that
takes time. The file is the first of ``--config``, ``$QMIGRATE_CONFIG``, ``qmigrate/config.toml`` in
``$XDG_CONFIG_HOME`` or ``~/.config``, and ``/etc/qmigrate/config.toml``. None is needed.
"""

import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmigrate.core.errors import ConfigError

SYSTEM_FILE = Path("/etc/qmigrate/config.toml")
SIZE_LIMIT_BYTES = 1024 * 1024  # a larger file is no inventory but a mistake


def find(config: str | None, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file to read, if any; raises `ConfigError` if the one asked for is not there."""
    environ = os.environ if environ is None else environ
    for origin, asked in (
        ("--config", config),
        ("$QMIGRATE_CONFIG", environ.get("QMIGRATE_CONFIG")),
    ):
        if asked:
            if not is_there(Path(asked)):
                raise ConfigError(f"{asked}: no such file (from {origin})")
            return Path(asked)
    candidates = [SYSTEM_FILE]
    if base := environ.get("XDG_CONFIG_HOME", ""):
        candidates.insert(0, Path(base, "qmigrate", "config.toml"))
    else:
        with contextlib.suppress(RuntimeError):  # this user has no home
            candidates.insert(0, Path("~/.config/qmigrate/config.toml").expanduser())
    return next(filter(is_there, candidates), None)


def is_there(path: Path) -> bool:
    """Tell whether `path` can be read as a file; `Path.is_file` raises where it may not look."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def names(config: str | None = None) -> tuple[str, ...]:
    """Return the names of the inventory's hosts and nothing else checked; quick, for completion."""
    path = find(config)
    hosts = read_toml(read(path), str(path)).get("hosts") if path else None
    return tuple(hosts) if isinstance(hosts, dict) else ()


def read(path: Path) -> str:
    """Return the text of the file; raises `ConfigError` if it cannot be read or is no text."""
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


def read_toml(text: str, name: str) -> dict[str, Any]:
    """Return the document in `text`; raises `ConfigError` with the place of what is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        # tomllib tells the place in words only: "Expected ']' … (at line 3, column 8)".
        found = re.search(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", str(exc))
        message, line, column = found.groups() if found else (str(exc), None, None)
        lines = text.splitlines() or [""]
        place = f"{line}:{column}" if line else f"{len(lines)}:{len(lines[-1]) + 1}"
        raise ConfigError(f"{name}:{place}: {message}", next_step=f"correct {name}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{name}: nested too deeply to be an inventory") from exc
