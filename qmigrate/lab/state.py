"""Where a lab is on disk, and how one finds out what is left of it.

The directory is made first and removed last; whoever changes the lab holds a flock(2) on it.
Within it a process that lives holds a record lock on its own file (`syscalls.holder`), so nothing
rests on a file that a killed command had no time to write::

    /run/qmigrate-lab/NAME/          flock: one command at a time
        topology.json                what is to stand
        warden.lock                  held by the warden, also by flock from its birth
        warden.sock                  the warden's door; it is there when the lab is ready
        warden.log
        ssh_config  config.toml      what `exec` points the tools at
        ssh/                         keys, known_hosts, authorized_keys
        nodes/HOST/                  init.lock, boot_id, hostname, sshd_config, sshd.log
    /var/lib/qmigrate-lab/NAME/images    shared by the hosts at this path, as NFS would be
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import cattrs

from qmigrate.core.errors import HostError, UsageError
from qmigrate.lab import syscalls
from qmigrate.lab.topology import Topology

RUN: Final = Path("/run/qmigrate-lab")
STORE: Final = Path("/var/lib/qmigrate-lab")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_NAME: Final = "lab"
MUTEX_DEADLINE_S: Final = 30.0  # another command's `up` takes less than 1 s, 10 s when loaded
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class LabState(StrEnum):
    """How much of a lab is there."""

    DOWN = "down"  # nothing
    HALF = "half-made"  # a killed `up` or warden left something; `down` removes it
    UP = "up"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as it is now."""

    name: str
    kind: str
    powered: bool
    pid: int | None  # its init
    boot_id: str | None
    addresses: tuple[str, ...]
    processes: int  # its init included
    sshd: bool | None  # something listens on port 22; None: a node without sshd
    rate_bps: int | None  # what its uplink lets out; None: unlimited, or no uplink
    cut: str | None  # "both", "in" or "out" when its cable is cut


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab as it is now."""

    name: str
    state: LabState
    directory: str
    images: str
    topology: str | None
    warden: int | None  # pid
    nodes: tuple[NodeStatus, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one lab; `Places.of` checks the name."""

    name: str

    @staticmethod
    def of(name: str) -> "Places":
        """Return the places of the lab `name`; raises `UsageError` if that cannot be one."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a lab",
                next_step="use up to 32 of a-z, 0-9 and -, not beginning with -",
            )
        return Places(name)

    @property
    def directory(self) -> Path:
        """Made first, removed last."""
        return RUN / self.name

    @property
    def store(self) -> Path:
        """What must not live in a tmpfs."""
        return STORE / self.name

    @property
    def images(self) -> Path:
        """The directory that the hosts share."""
        return self.store / "images"

    @property
    def warden_lock(self) -> Path:
        """Held while the warden lives."""
        return self.directory / "warden.lock"

    @property
    def warden_socket(self) -> Path:
        """Answers when the lab is ready."""
        return self.directory / "warden.sock"

    @property
    def warden_log(self) -> Path:
        """What the warden's children said."""
        return self.directory / "warden.log"

    @property
    def topology_file(self) -> Path:
        """The topology that `up` was asked for."""
        return self.directory / "topology.json"

    @property
    def ssh(self) -> Path:
        """Keys and who trusts them."""
        return self.directory / "ssh"

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``."""
        return self.directory / "ssh_config"

    @property
    def config(self) -> Path:
        """The inventory."""
        return self.directory / "config.toml"

    def node(self, name: str) -> Path:
        """Return a node's own files."""
        return self.directory / "nodes" / name

    def init_lock(self, name: str) -> Path:
        """Return the file whose lock the node's init holds."""
        return self.node(name) / "init.lock"


def write_topology(places: Places, topology: Topology) -> None:
    """Keep `topology` where the warden and later commands find it."""
    write_whole(places.topology_file, json.dumps(asdict(topology), indent=1))


def read_topology(places: Places) -> Topology | None:
    """Return what `up` was asked for; None if it was killed before it wrote that down."""
    try:
        text = places.topology_file.read_text()
    except FileNotFoundError:
        return None
    return cattrs.structure(json.loads(text), Topology)


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file that others see whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=mode & 0o600)  # nobody else's at any time, if it is to be ours alone
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)


def make_directory(path: Path) -> None:
    """Make `path` and what leads to it, also when the `down` of another lab removes that."""
    while True:
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except FileNotFoundError:
            continue
        return


@contextlib.contextmanager
def changing(places: Places, *, create: bool) -> Iterator[bool]:
    """Hold the lab's flock within the block; yields False if there is no lab and none was made.

    A directory that another command removed while we waited for its lock is not the lab's any
    more: look again.
    """
    while True:
        if create:
            make_directory(places.directory)
        try:
            descriptor = os.open(places.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if create:
                continue
            yield False
            return
        try:
            busy = f"lab {places.name}: another command has been changing it"
            syscalls.flock(descriptor, MUTEX_DEADLINE_S, busy)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), places.directory.stat()):
                    yield True
                    return
        finally:
            os.close(descriptor)


def members(places: Places) -> list[int]:
    """List live processes that run in one of the lab's nodes (`is_member`)."""
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if is_member(places, pid)]


def is_member(places: Places, pid: int) -> bool:
    """Tell whether a process sees the lab's directory mounted.

    Namespaces have no owner that one could ask; this mount exists in a lab's nodes only.
    """
    try:
        mounts = Path(f"/proc/{pid}/mountinfo").read_bytes()
    except OSError:  # ended, or a zombie: it has no mounts any more
        return False
    return f" {places.directory} ".encode() in mounts


def remove_contents(places: Places) -> None:
    """Remove what the lab has on disk but its directory; nobody may live in it any more.

    Raises `HostError` if something is mounted there: that is not ours to empty.
    """
    for path in (places.directory, places.store, places.images):
        if path.is_mount():
            raise HostError(f"{path} is a mount point; nothing was removed")
    if places.store.exists():
        shutil.rmtree(places.store)
    with contextlib.suppress(OSError):  # another lab's store is in it, or it was never made
        STORE.rmdir()
    for path in places.directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_directory(places: Places) -> None:
    """Remove the lab's directory, the last of it."""
    places.directory.rmdir()
    with contextlib.suppress(OSError):  # another lab's directory is in it
        RUN.rmdir()
