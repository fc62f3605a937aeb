"""Where images and answers are kept between runs, and how they get there whole."""

import os
import stat
import tempfile
from pathlib import Path

from qmigrate.core.errors import UsageError


def cache_directory(kind: str) -> Path:
    """Return our cache's subdirectory `kind`, made if need be, writable by this user alone.

    Root: ``/var/cache/qmigrate``; others and whoever sets it: ``$XDG_CACHE_HOME/qmigrate``, else
    ``~/.cache/qmigrate``. A directory that someone else owns or may write to is refused with
    `UsageError`: a stranger could put a kernel of his own there.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        base = Path(chosen)
    else:
        base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    base.mkdir(parents=True, exist_ok=True)
    for directory in (base / "qmigrate", base / "qmigrate" / kind):
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise UsageError(f"the cache {directory} is not a directory of this user's own")
        if status.st_mode & 0o022:
            raise UsageError(
                f"the cache {directory} can be written by others",
                next_step=f"chmod go-w {directory}",
            )
    return base / "qmigrate" / kind


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put `content` at `path` so that no reader ever sees a part of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
