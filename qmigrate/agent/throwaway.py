"""A guest to be thrown away, for ``qmigrate selftest HOST HOST``: started, looked at, ended.

It is `core.tiny` without a disk and without a network card, in a directory of its own::

    /run/qmigrate/selftest/<name>/   0700   tiny.bin, qmp, memory, run-<pid>.trace a QEMU

Nothing is touched here but what lives in that directory, or is the job's own.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from qmigrate.agent import twin
from qmigrate.agent.places import JobPlaces, remove_guest_directory, secure_directory
from qmigrate.agent.requests import Done
from qmigrate.agent.server import AgentContext
from qmigrate.core.errors import HostError
from qmigrate.core.job import RUN_DIRECTORY
from qmigrate.core.throwaway import (
    Around,
    EndTiny,
    LookAround,
    LookTiny,
    PlaceTiny,
    StartTiny,
    TinyCopy,
    TinySeen,
    TinyTrace,
)
from qmigrate.core.tiny import DEFAULT, Marks, boot_sector, read_marks
from qmigrate.qmp.client import QmpThread, open_monitor

SELFTEST = f"{RUN_DIRECTORY}/selftest"
IMAGE, MONITOR, MEMORY = "tiny.bin", "qmp", "memory"
START_DEADLINE_S = 30.0  # from exec until QEMU has gone into the background
GREETING_DEADLINE_S = 30.0  # a job's agent may hold the monitor for its last moments
AGENT = "/qmigrate/agent/"  # in the words of every agent that was pushed
OF_A_JOB = ("guardian", "worker")
JOBS, LOCKS = f"{RUN_DIRECTORY}/jobs", f"{RUN_DIRECTORY}/locks"


def _directory(name: str) -> Path:
    if not re.fullmatch(r"[a-z0-9]{1,16}", name):
        raise HostError(f"{name!r} cannot be the name of a guest to be thrown away")
    return Path(SELFTEST, name)


async def place_tiny(_ctx: AgentContext, request: PlaceTiny) -> Done:
    """Make the guest's directory and image, as they must be on both hosts."""
    directory = _directory(request.name)
    secure_directory(RUN_DIRECTORY, mode=0o711)
    secure_directory(str(directory))
    (directory / IMAGE).write_bytes(boot_sector(DEFAULT))
    return Done()


async def start_tiny(_ctx: AgentContext, request: StartTiny) -> Done:
    """Start the guest; QEMU goes into the background by itself once its monitor is there.

    Raises `HostError` in QEMU's words.
    """
    directory = _directory(request.name)
    with trio.move_on_after(START_DEADLINE_S):
        try:
            done = await trio.run_process(
                _argv(request, directory), check=False, capture_stdout=True, capture_stderr=True
            )
        except OSError as exc:
            raise HostError(f"QEMU cannot be started: {exc.strerror}") from exc
        if done.returncode == 0:
            return Done()
        words = done.stderr.decode(errors="replace").strip() or None
        raise HostError("the throw-away guest did not start", last_words=words)
    raise HostError(f"QEMU was not ready within {START_DEADLINE_S:g} s")


def _argv(request: StartTiny, directory: Path) -> list[str]:
    return [
        *("qemu-system-x86_64", "-name", request.name, "-uuid", request.uuid),
        *("-machine", "q35", "-accel", request.accelerator, "-m", "32", "-nodefaults"),
        *("-no-user-config", "-display", "none", "-kernel", str(directory / IMAGE)),
        *("-qmp", f"unix:{directory / MONITOR},server=on,wait=off"),
        *("-trace", "vm_state_notify", "-msg", "timestamp=on"),
        *("-D", f"{directory}/run-%d.trace", "-daemonize"),
    ]


def _copies(name: str) -> Iterator[tuple[int, list[bytes]]]:
    """Yield pid and words of each QEMU here that traces into the guest's directory."""
    mark = f"{_directory(name)}/run-%d.trace".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                program = Path(entry.path, "exe").readlink().name
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile
                continue
            if program.startswith("qemu-system-") and mark in words:
                yield int(entry.name), words


async def look_tiny(_ctx: AgentContext, request: LookTiny) -> TinySeen:
    """Return what there is of the guest here; its memory is read, the guest stopped meanwhile."""
    directory = _directory(request.name)
    copies, marks = [], Marks(0, 0, "there is no copy here")
    for pid, words in _copies(request.name):
        if not request.ask:
            copies.append(TinyCopy(pid, None))
            continue
        path = directory / MONITOR
        if b"-incoming" in words:
            path = Path(RUN_DIRECTORY, "guests", _uuid(words), twin.MONITOR_NAME)
        state, marks = await _ask(str(path), request.name, directory / MEMORY)
        copies.append(TinyCopy(pid, state))
    return TinySeen(time.time(), tuple(copies), tuple(_traces(directory, copies)), marks)


def _uuid(words: list[bytes]) -> str:
    return words[words.index(b"-uuid") + 1].decode()


def _traces(directory: Path, copies: list[TinyCopy]) -> Iterator[TinyTrace]:
    """Yield what each QEMU has written; one that lives has its file open.

    The number in a file's name is that of a process that went away when QEMU went into the
    background.
    """
    held: set[Path] = set()
    for copy in copies:
        for link in Path(f"/proc/{copy.pid}/fd").glob("*"):
            try:
                held.add(link.readlink())
            except OSError:  # closed meanwhile
                continue
    for path in sorted(directory.glob("run-*.trace")):
        yield TinyTrace(path.name, path.read_text(errors="replace"), path in held)


async def _ask(path: str, name: str, dump: Path) -> tuple[str, Marks]:
    """Return run state and memory of one copy."""
    address, size = DEFAULT.region
    with QmpThread() as thread:
        opened = open_monitor(thread, path, name=name, greeting_deadline_s=GREETING_DEADLINE_S)
        async with opened as monitor:
            status = await monitor.execute("query-status")
            if status["running"]:
                await monitor.execute("stop")
            try:
                where = {"val": address, "size": size, "filename": str(dump)}
                await monitor.execute("pmemsave", where)
            finally:
                if status["running"]:
                    with trio.CancelScope(shield=True):
                        await monitor.execute("cont")
    return str(status["status"]), _read(dump)


def _read(dump: Path) -> Marks:
    return read_marks(dump.read_bytes(), DEFAULT)


async def end_tiny(_ctx: AgentContext, request: EndTiny) -> Done:
    """End every copy of the guest here, with what it lived on.

    With `forget` all that is left goes as well: agents of its jobs that wait for what will not
    come, their records, its directory.
    """
    ended = 0
    for pid, words in tuple(_copies(request.name)):
        ended += await _kill(pid)
        if b"-incoming" in words:
            remove_guest_directory(_uuid(words))
    if request.forget:
        for pid, _ in tuple(_agents(request.name)):
            await _kill(pid)
        for places in map(JobPlaces, _jobs(request.name)):
            places.remove()
        _forget_locks(request.name)
        shutil.rmtree(_directory(request.name), ignore_errors=True)
        _remove_if_empty(Path(SELFTEST))
    return Done(f"{ended} ended")


async def _kill(pid: int) -> bool:
    """End a process; return whether it was there."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        await twin.kill(pidfd)
    finally:
        os.close(pidfd)
    return True


def _forget_locks(name: str) -> None:
    """Remove the locks of the guest's jobs: nobody who held one is left."""
    for path in Path(LOCKS).glob("*"):
        try:
            if path.read_text(errors="replace").startswith(f"{name}-"):
                path.unlink()
        except OSError:  # another job's, gone meanwhile
            continue


def _jobs(name: str) -> list[str]:
    """Return the jobs of the guest that have something here."""
    try:
        return [each.name for each in os.scandir(JOBS) if each.name.startswith(f"{name}-")]
    except FileNotFoundError:
        return []


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return


async def look_around(_ctx: AgentContext, _request: LookAround) -> Around:
    """Return what of ours is here: agents of jobs, their files, taps; not the throw-away guest."""
    agents = (f"process {words}" for _, words in _agents(""))
    return Around(tuple(sorted((*agents, *_files(), *_taps()))))


def _agents(guest: str) -> Iterator[tuple[int, str]]:
    """Yield pid and words of each agent and guardian of a guest's jobs, guardians first.

    An agent whose guardian lives would be started again. No guest: those of all jobs.
    """
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                words = (
                    Path(entry.path, "cmdline").read_bytes().decode(errors="replace").split("\0")
                )
            except OSError:
                continue
            mode = next((mode for mode in OF_A_JOB if mode in words), None)
            if mode and any(AGENT in word for word in words):
                job = words[words.index(mode) + 1]
                if not guest or job.startswith(f"{guest}-"):
                    found.append((mode, int(entry.name), " ".join(words).strip()))
    yield from ((pid, words) for _, pid, words in sorted(found))  # "guardian" before "worker"


def _files() -> Iterator[str]:
    for directory, below, names in os.walk(RUN_DIRECTORY):
        if directory == RUN_DIRECTORY and "selftest" in below:
            below.remove("selftest")
        yield from (f"file {directory}/{name}" for name in names)


def _taps() -> Iterator[str]:
    for link in Path("/sys/class/net").glob("*/ifalias"):
        try:
            alias = link.read_text(errors="replace")
        except OSError:
            continue
        if alias.startswith(twin.ALIAS_PREFIX):
            yield f"link {link.parent.name}"
