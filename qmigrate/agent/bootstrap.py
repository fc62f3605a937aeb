"""Stage 0: what `python3 -c` runs on a host, so that one standard library is all it needs.

It finds or makes the cache, asks for the payload if it is not there, unpacks and compiles it once,
and becomes the agent. On stdout, each line behind a marker that no login shell will print::

    MARKER HAVE                    the payload is here          then the agent's Hello
    MARKER NEED                    send it                      then HAVE
    MARKER ERROR {"what": …, "next_step": …}

The cache is `/var/cache/qmigrate/agent`, or, for tests as a plain user, below $XDG_CACHE_HOME.
`<sha>-<cache_tag>/.ok` is locked (shared) by every agent that runs from the directory, so that the
clean-up, which wants the lock for itself, never takes late imports away from a running job.
"""

# pathlib delays every start by 10 ms and knows no directory descriptors:
# ruff: noqa: PTH102, PTH103, PTH104, PTH110, PTH111, PTH116, PTH123, PTH208
# What only a cold start needs is imported there: each import here delays every start.
import contextlib
import fcntl
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

KEEP = 2  # versions: the newest, and the one that another controller may still use
UNPACKED_BYTES = 16 * 1024 * 1024  # sources and compiled files together, with room


class Unusable(Exception):
    """Why the agent cannot start here, and what to do about it."""

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what)
        self.next_step = next_step


def open_owned(path: str, first_ours: str) -> int:
    """Return a descriptor of directory `path`; every component is root's and nobody else's.

    Components are opened one by one without following links, so what was checked is what is used.
    Missing ones are made, from `first_ours` on with mode 0700.
    """
    seen = "/"
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    ours = False
    for name in ["", *path.strip("/").split("/")]:
        if name:
            seen = seen.rstrip("/") + "/" + name
            ours = ours or name == first_ours
            parent, fd = fd, _open_or_make(name, seen, fd)
            os.close(parent)
        found = os.fstat(fd)
        if found.st_uid != 0 or found.st_mode & 0o022:
            who = f"uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
            what = f"{seen} belongs to {who}; what others can write to is not used"
            raise Unusable(what, f"remove {seen}, or: chown root: {seen}; chmod go-w {seen}")
        if ours and found.st_mode & 0o077:
            os.fchmod(fd, 0o700)
    return fd


def _open_or_make(name: str, seen: str, parent: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    with contextlib.suppress(FileExistsError):
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=parent)
        except NotADirectoryError:
            raise Unusable(
                f"{seen} is a link or no directory", f"remove {seen} or make it a directory"
            ) from None
    return os.open(name, flags, dir_fd=parent)


def cache_directory(*, as_user: bool) -> str:
    """Return the cache's path, made and checked."""
    if not as_user:
        path = "/var/cache/qmigrate/agent"
        os.close(open_owned(path, "qmigrate"))
        return path
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = home + "/qmigrate/agent"
    os.makedirs(path, 0o700, exist_ok=True)
    if os.stat(path).st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to somebody else", f"remove {path}")
    return path


def read_payload(size: int, sha: str) -> bytes:
    """Return exactly `size` bytes of stdin; what follows belongs to the agent."""
    import hashlib

    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            raise Unusable("the payload was cut short", "run it again")
        parts.append(part)
        size -= len(part)
    payload = b"".join(parts)
    if hashlib.sha256(payload).hexdigest() != sha:
        raise Unusable(
            "the payload arrived damaged: its hash is not the announced one",
            "run it again; a second time means a faulty link, disk or memory",
        )
    return payload


@contextlib.contextmanager
def alone_in(cache: str) -> "Iterator[None]":
    """Keep other starts from making or removing versions while the block runs."""
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def unpack(payload: bytes, cache: str, target: str) -> None:
    """Make `target` from the zip, whole or not at all; another controller may be faster."""
    import compileall
    import io
    import py_compile
    import secrets
    import shutil
    import zipfile

    made = f"{cache}/.new-{secrets.token_hex(8)}"
    with alone_in(cache):  # else a clean-up could come between the two and take it for abandoned
        os.mkdir(made, 0o700)
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        zipfile.ZipFile(io.BytesIO(payload)).extractall(made)
        # Unchecked: nobody edits these sources, and a stat per import is saved.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        workers = min(4, len(os.sched_getaffinity(0)))
        if not compileall.compile_dir(made, quiet=2, invalidation_mode=mode, workers=workers):
            room = os.statvfs(made)
            if room.f_bavail * room.f_frsize < UNPACKED_BYTES:
                raise OSError(28, "No space left on device")
            raise Unusable("the agent's files cannot be compiled here", "report this as a defect")
        with open(f"{made}/.ok", "x"):
            pass
        with contextlib.suppress(OSError):
            os.rename(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _forgettable(cache: str) -> "Iterator[str]":
    import re

    versions = []
    for name in os.listdir(cache):
        path = f"{cache}/{name}"
        if re.fullmatch(r"\.new-[0-9a-f]{16}", name):
            yield path
        elif re.fullmatch(r"[0-9a-f]{32}-[\w-]+", name):
            with contextlib.suppress(OSError):
                versions.append((os.stat(path + "/.ok").st_mtime, path))
    # One less: the version that makes room for itself is about to be the newest.
    yield from (path for _, path in sorted(versions)[: 1 - KEEP])


def clean(cache: str) -> None:
    """Remove what killed starts left and all but the last versions, except what is in use."""
    import shutil

    with alone_in(cache):
        for path in _forgettable(cache):
            locked = path if "/.new-" in path else path + "/.ok"
            with contextlib.suppress(OSError):
                fd = os.open(locked, os.O_RDONLY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(fd)


def prepare(say: "Callable[[str], None]", sha: str, size: int, *, as_user: bool) -> str:
    """Return the directory to run, locked for as long as this process lives."""
    cache = cache_directory(as_user=as_user)
    target = f"{cache}/{sha[:32]}-{sys.implementation.cache_tag}"
    if not os.path.exists(target + "/.ok"):
        say("NEED")
        payload = read_payload(size, sha)
        clean(cache)
        try:
            unpack(payload, cache, target)
        except OSError as exc:
            mib = UNPACKED_BYTES >> 20
            what = f"{cache} cannot be written: {exc.strerror or exc}"
            raise Unusable(what, f"make {mib} MiB of room under {cache}") from exc
    fd = os.open(target + "/.ok", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    if not os.path.exists(target + "/.ok"):  # somebody's clean-up held the lock until now
        os.close(fd)
        return prepare(say, sha, size, as_user=as_user)
    os.utime(fd)  # the clean-up keeps what was used last
    os.set_inheritable(fd, True)
    return target


def main(marker: str, sha: str, size: str, who: str) -> "NoReturn":
    """Become the agent, or say why not."""

    def say(text: str) -> None:
        os.write(1, f"{marker} {text}\n".encode())

    os.umask(0o077)
    try:
        target = prepare(say, sha, int(size), as_user=who == "user")
    except (Unusable, OSError) as exc:
        import json

        fix = getattr(exc, "next_step", None)
        say("ERROR " + json.dumps({"what": f"the agent's cache: {exc}", "next_step": fix}))
        sys.exit(1)
    say("HAVE")
    os.execv(sys.executable, [sys.executable, "-IS", target])  # noqa: S606 - no shell on purpose


if __name__ == "__main__":
    main(*sys.argv[1:])
