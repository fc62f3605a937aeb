"""Directories of ours on a host: every component owned by root, opened without following a link.

::

    /run/qmigrate/             0711  so that a guest's own user can reach its own directory
    ├── jobs/<job>/            0700  journal, spec, door
    ├── locks/                 0700
    └── guests/                0711
        └── <guest's id>/      0700  the guest's user: its monitor, console sockets, pid file
    /var/log/qmigrate/<job>/   0700  what agents and QEMU said, the report
    /var/cache/qmigrate/       0700  the agent itself, answers worth keeping
"""

import os
import re
import shutil
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qmigrate.core.errors import HostError
from qmigrate.core.job import LOG_DIRECTORY, RUN_DIRECTORY


def secure_directory(path: str, *, mode: int = 0o700) -> Path:
    """Make `path` and what is missing above it; return it once every component is safe.

    Components below the first one that we would have to make are made with `mode`. A component is
    safe when root owns it and nobody else may write there.

    Raises:
        HostError: a component is a link, belongs to someone else or cannot be made.
    """
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    seen = ""
    try:
        for part in Path(path).parts[1:]:
            seen += f"/{part}"
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                below = os.open(part, flags, dir_fd=here)
            except FileNotFoundError:
                with suppress(FileExistsError):  # another job's agent was faster
                    os.mkdir(part, mode, dir_fd=here)
                below = os.open(part, flags, dir_fd=here)
                os.fchmod(below, mode)  # whatever the umask says
            os.close(here)
            here = below
            _check(seen, os.fstat(here))
    except OSError as exc:
        raise HostError(
            f"{seen} cannot be used: {exc.strerror}",
            next_step=f"look at it: ls -ld {seen}",
        ) from exc
    finally:
        os.close(here)
    return Path(path)


def _check(path: str, facts: os.stat_result) -> None:
    # Ubuntu lets the group syslog write to /var/log: above what is ours a group may.
    others = stat.S_IWOTH if "/qmigrate" not in path else stat.S_IWGRP | stat.S_IWOTH
    loose = facts.st_mode & others and not facts.st_mode & stat.S_ISVTX
    if facts.st_uid != 0 or loose:
        raise HostError(
            f"{path} is not used: it belongs to user {facts.st_uid} with mode "
            f"{stat.S_IMODE(facts.st_mode):04o}, so others could change what is in it",
            next_step=f"move it away, or make it root's own: chown root {path}; chmod go-w {path}",
        )


def runs_systemd() -> bool:
    """Say whether systemd is this host's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


@dataclass(frozen=True, slots=True)
class JobPlaces:
    """Where one job keeps its things on this host."""

    job: str

    @property
    def directory(self) -> Path:
        """The job's run directory."""
        return Path(RUN_DIRECTORY, "jobs", self.job)

    @property
    def journal(self) -> Path:
        """See `agent.journal`."""
        return self.directory / "journal"

    @property
    def spec(self) -> Path:
        """The job's spec without its identity; see `agent.specs`."""
        return self.directory / "spec.json"

    @property
    def door(self) -> Path:
        """The socket by which later sessions reach the job's agent."""
        return self.directory / "door"

    @property
    def logs(self) -> Path:
        """What stays after the job."""
        return Path(LOG_DIRECTORY, self.job)

    def make(self) -> None:
        """Make the directories; raise `HostError` if the job is already here."""
        secure_directory(RUN_DIRECTORY, mode=0o711)
        secure_directory(f"{RUN_DIRECTORY}/jobs")
        secure_directory(LOG_DIRECTORY)
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise HostError(f"job {self.job} is already on this host") from None
        except OSError as exc:
            raise HostError(f"{self.directory} cannot be made: {exc.strerror}") from exc
        try:
            secure_directory(str(self.logs))
        except HostError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the run directory; the logs stay."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for above in (self.directory.parent, Path(RUN_DIRECTORY, "locks")):
            _remove_if_empty(above)
        _remove_if_empty(Path(RUN_DIRECTORY))


def guest_directory(tag: str) -> Path:
    """Make the run directory of the guest called `tag`, empty and root's own; return its path.

    It is its user's only once all that root does in it is done: whoever owns a directory can put
    links in the way of whatever is done there by name. Raises `HostError` if a guest lives there.
    """
    path = _guest_path(tag)
    if left := remove_guest_directory(tag):  # what an earlier visit left
        raise HostError(left, next_step=f"look at it: ls -la {path}")
    secure_directory(RUN_DIRECTORY, mode=0o711)
    secure_directory(f"{RUN_DIRECTORY}/guests", mode=0o711)
    return secure_directory(str(path))


def remove_guest_directory(tag: str) -> str | None:
    """Remove the run directory of a guest that has left this host; return why it is still there."""
    path = _guest_path(tag)
    try:
        if is_lived_in(path):
            return f"{path} is left alone: a process listens in it"
        os.chown(path, 0, 0, follow_symlinks=False)  # nobody adds to it while it is emptied
        path.chmod(0o700)
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        return f"{path} cannot be removed: {exc.strerror}"
    _remove_if_empty(path.parent)
    _remove_if_empty(Path(RUN_DIRECTORY))
    return None


def _guest_path(tag: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", tag):
        raise HostError(f"{tag!r} cannot be the name of a guest's directory")
    return Path(RUN_DIRECTORY, "guests", tag)


def is_lived_in(path: Path) -> bool:
    """Tell whether a process listens at a socket in `path`, as every twin of ours does.

    Asked by a connect: in /proc/net/unix a name with a newline can forge any row.
    """
    with os.scandir(path) as entries:
        return any(
            stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) and _answers(entry.path)
            for entry in entries
        )


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # so many wait for it already
            return True
        except OSError:
            return False
        return True


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:  # in use by another job, or not there: both are fine
        return
