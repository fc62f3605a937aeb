"""The agent as one pure-Python zip, named by its hash, and the words that start it on a host.

Built from what is installed here, never from the network: a host runs the very versions that the
controller was tested with. The zip is reproducible, so hosts and controllers agree on its name.
"""

import base64
import hashlib
import io
import os
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from qmigrate.core.errors import AgentStartError

# What the agent imports; nothing else may be pushed, and nothing compiled (DESIGN §1).
DISTRIBUTIONS = (
    "attrs",
    "cattrs",
    "idna",
    "outcome",
    "pyroute2",
    "qemu.qmp",
    "sniffio",
    "sortedcontainers",
    "trio",
    "typing_extensions",
)
OWN_PACKAGES = (
    "qmigrate/agent",
    "qmigrate/core",
    "qmigrate/qmp",
    "qmigrate/transport",
    "netsetup",
)
# Parts of them that no agent imports: tests, command lines, terminal programs.
LEFT_OUT = (
    "idna/cli.py",
    "idna/__main__.py",
    "pyroute2/dhcp/cli.py",
    "pyroute2/fixtures/",
    "qemu/qmp/qmp_shell.py",
    "qemu/qmp/qmp_tui.py",
    "trio/_tools/",
    "trio/testing/",
)
COMPILED = (".so", ".pyd", ".dylib", ".a", ".o")
KEPT = 4  # in the controller's cache: two versions used in turn would build each other's anew
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip can hold
# python3 first: new enough on most hosts, and every further question costs an interpreter's start
# (0.1 s each where pyenv has its shims).
PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")

_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Payload:
    """A built agent; `sha` is the hex SHA-256 of `data` and its name on every host."""

    sha: str
    data: bytes


def _files_of(name: str) -> Iterator[tuple[str, Path]]:
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError as exc:
        what = f"the package {name}, a part of the agent, is not installed here"
        raise AgentStartError(what, phase="payload", next_step="install qmigrate again") from exc
    for entry in found.files or ():
        path = PurePosixPath(entry)
        if path.suffix in COMPILED:
            what = f"{name} {found.version} holds compiled code ({path}) and cannot be pushed"
            raise AgentStartError(what, phase="payload")
        if path.suffix != ".py" or {"..", "_tests", "__pycache__"} & set(path.parts):
            continue
        if not str(path).startswith(LEFT_OUT):
            yield str(path), Path(str(found.locate_file(entry)))


def _root_of(package: str) -> Path:
    """Return the directory that holds the top-level package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AgentStartError(f"the package {package} is not installed here", phase="payload")
    return Path(spec.submodule_search_locations[0]).parent


def _own_files() -> Iterator[tuple[str, Path]]:
    for package in OWN_PACKAGES:
        root = _root_of(package.split("/")[0])
        for path in (root / package).rglob("*.py"):
            yield path.relative_to(root).as_posix(), path
    yield "qmigrate/__init__.py", _root_of("qmigrate") / "qmigrate/__init__.py"


def _zip(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip that depends on names and contents only.

    Directories get entries of their own: a namespace package (`qemu`) has no other trace, and
    before Python 3.14 it cannot be imported from a zip without (cpython #59110).
    """
    contents = dict(files)
    for name in list(contents):
        for parent in list(PurePosixPath(name).parents)[:-1]:
            contents[f"{parent}/"] = b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is built
            entry.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
            archive.writestr(entry, contents[name], compresslevel=9)
    return out.getvalue()


def build_payload() -> Payload:
    """Return a payload made of the installed distributions and our own sources.

    Raises `AgentStartError` if a part is missing or not pure Python.
    """
    paths = [pair for name in DISTRIBUTIONS for pair in _files_of(name)]
    files = [(name, path.read_bytes()) for name, path in [*paths, *_own_files()]]
    start = f"from qmigrate.agent.__main__ import main\n\nmain({version('qmigrate')!r})\n"
    data = _zip([*files, ("__main__.py", start.encode())])
    return Payload(hashlib.sha256(data).hexdigest(), data)


def _key() -> str:
    """Return what changes when the payload would; reading it all takes 40 times as long."""
    parts = [f"{name} {version(name)}" for name in (*DISTRIBUTIONS, "qmigrate")]
    for name, path in sorted(_own_files()):
        found = path.stat()
        parts.append(f"{name} {found.st_mtime_ns} {found.st_size}")
    parts.append(str(Path(__file__).stat().st_mtime_ns))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "qmigrate" / "payload"


def load_payload() -> Payload:
    """Return the payload, built only if it is not in the controller's cache.

    Blocks for 10 ms, or half a second to build. A cache that cannot be used costs time only.
    Of several threads, a host each, one builds and the others find it.
    """
    with _loading:
        return _load_payload()


def _load_payload() -> Payload:
    try:
        key, cache = _key(), _cache()
    except PackageNotFoundError:
        return build_payload()  # names the missing one
    for path in cache.glob(f"{key}-*.zip"):
        try:
            data = path.read_bytes()
        except OSError:
            break
        payload = Payload(hashlib.sha256(data).hexdigest(), data)
        if path.stem == f"{key}-{payload.sha}":
            return payload
    payload = build_payload()
    try:
        _store(payload, cache, key)
    except OSError:
        return payload
    return payload


def _store(payload: Payload, cache: Path, key: str) -> None:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".new", delete=False) as file:
        file.write(payload.data)
    Path(file.name).rename(cache / f"{key}-{payload.sha}.zip")
    by_age = sorted(cache.glob("*.zip"), key=_age, reverse=True)
    for old in by_age[KEPT:]:
        old.unlink(missing_ok=True)


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # another process has just removed it


# Finds a python that is new enough and runs stage 0 in it, as root. No newline, no single quote and
# no exclamation mark: it must pass through any login shell, csh included. A name in PATH proves
# nothing (pyenv has a shim for every version), so each is asked.
_FIND_PYTHON = (
    "m=$1; who=$2; code=$3; pythons=$4; shift 4; tried=; "
    "for p in $pythons; do "
    'f=$(command -v "$p") || { tried="$tried; $p: not found"; continue; }; '
    'e=$("$f" -IS -c "import sys; sys.version_info < (3, 11) and sys.exit(1); '
    'print(sys.executable)" 2>/dev/null) || '
    '{ tried="$tried; $p: $("$f" -V 2>&1 | tail -n 1)"; continue; }; '
    'if [ "$who" = user ] || [ "$(id -u)" = 0 ]; then exec "$e" -IS -c "$code" "$m" "$@"; fi; '
    '[ "$who" = sudo ] || { printf "%s NOTROOT %s\\n" "$m" "$(id -un)"; exit 1; }; '
    'command -v sudo >/dev/null || { printf "%s NOSUDO\\n" "$m"; exit 1; }; '
    'printf "%s SUDO\\n" "$m"; exec sudo -n -- "$e" -IS -c "$code" "$m" "$@"; '
    'done; printf "%s NOPYTHON %s\\n" "$m" "${tried#; }"; exit 1'
)


def _stage0() -> str:
    """Return stage 0 as one word without quotes and newlines, for `python3 -c`."""
    source = _root_of("qmigrate") / "qmigrate/agent/bootstrap.py"
    packed = base64.b64encode(zlib.compress(source.read_bytes(), 9)).decode()
    return f'import base64,zlib;exec(zlib.decompress(base64.b64decode("{packed}")))'


def start_command(
    payload: Payload, marker: str, *, python: str | None, sudo: bool, as_user: bool
) -> tuple[str, ...]:
    """Return the argv that finds a python on a host and runs stage 0 there."""
    pythons = python or " ".join(PYTHONS)
    who = "user" if as_user else "sudo" if sudo else "root"
    words = [marker, who, _stage0(), pythons, payload.sha, str(len(payload.data)), who]
    return ("sh", "-c", _FIND_PYTHON, "qmigrate", *words)
