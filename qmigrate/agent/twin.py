"""The guest's twin on the destination: its taps, its run directory, its monitor, its QEMU.

Each thing is written into the journal before it is made, so that an agent that dies in between
leaves nothing that the next one would not find. The monitor's listening socket is made here and
handed down as a descriptor, as libvirt does: there is no path to wait for, and a connection made
before QEMU is up is greeted as soon as it is.
"""

import grp
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from netsetup import homes
from netsetup.errors import NetsetupError
from netsetup.links import Tap, TapSpec
from netsetup.rtnl import Rtnl
from qmigrate.agent.places import guest_directory, remove_guest_directory, runs_systemd
from qmigrate.core.errors import HostError
from qmigrate.core.home import Home
from qmigrate.core.job import MONITOR_TOKEN, TapPlan, TwinPlan, tap_token

ALIAS_PREFIX = "qmigrate:guest="  # of a tap that a guest lives on; the guest's id follows
MONITOR_NAME = "monitor"  # in the guest's run directory
END_DEADLINE_S = 10.0  # from SIGKILL to the end of a process: it may be unmapping gigabytes
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_STDERR_TAIL_BYTES = 2000


def tap_alias(tag: str, netdev: str, home: Home | None = None) -> str:
    """Return the mark on a tap that says whose it is, and where the guest's neighbours are."""
    alias = f"{ALIAS_PREFIX}{tag} nic={netdev}"
    if home is None:
        return alias
    return homes.with_home(alias, homes.Home(home.host, home.bridge, home.vlan))


@dataclass(frozen=True, slots=True)
class Account:
    """A user and groups as numbers of this host."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def account(plan: TwinPlan) -> Account:
    """Look the twin's user and groups up by name; raise `HostError` for one that is not here."""
    try:
        uid = pwd.getpwnam(plan.process.user).pw_uid
        gid = grp.getgrnam(plan.process.group).gr_gid
        groups = tuple(grp.getgrnam(name).gr_gid for name in plan.process.groups)
    except KeyError as exc:
        raise HostError(
            f"the guest's QEMU runs as {plan.process.user}:{plan.process.group}; here is no such "
            f"user or group ({exc.args[0]})",
            next_step="make it on this host, with the rights that the guest's images need",
        ) from None
    return Account(uid, gid, groups)


@dataclass(frozen=True, slots=True)
class Twin:
    """A QEMU that was started here; `pidfd` is this process's own."""

    pid: int
    pidfd: int
    start_ticks: int
    monitor: str


async def make_taps(
    rtnl: Rtnl, plan: TwinPlan, owner: Account, made: Callable[[str], None]
) -> tuple[tuple[str, Tap], ...]:
    """Make the twin's taps; `made` is told of each beforehand. Raises `HostError`."""
    taps = []
    for each in plan.taps:
        alias = tap_alias(plan.tag, each.netdev, each.home)
        made(f"tap {alias}")
        try:
            taps.append((each.netdev, await rtnl.create_tap(_tap_spec(each, alias, owner))))
        except NetsetupError as exc:
            raise HostError(exc.what, next_step=exc.next_step) from exc
    return tuple(taps)


def _tap_spec(plan: TapPlan, alias: str, owner: Account) -> TapSpec:
    return TapSpec(
        bridge=plan.bridge,
        alias=alias,
        name=plan.wanted,
        mtu_bytes=plan.mtu,
        owner_uid=owner.uid or None,
        multi_queue=plan.queues > 1,
        vnet_hdr=plan.vnet_hdr,
        vlan=plan.vlan,
    )


@contextmanager
def start(
    plan: TwinPlan,
    owner: Account,
    taps: tuple[tuple[str, Tap], ...],
    log: Path,
    made: Callable[[str], None],
) -> Iterator[Twin]:
    """Make a process that becomes QEMU, as `launch.py` does, once the block has been left.

    The block is for writing down which process it is: were it left by an error, or by SIGKILL, the
    process ends and there was never a QEMU that nobody knows of. Its monitor greets when it is up.
    Raises `HostError` if the socket or the process cannot be made.
    """
    directory = guest_directory(plan.tag)
    path = directory / MONITOR_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chown(path, owner.uid, owner.gid)
        listener.listen(4)
        os.chown(directory, owner.uid, owner.gid)  # the last that root does in it by name
        tokens = {MONITOR_TOKEN: str(listener.fileno())}
        tokens |= {tap_token(netdev): tap.name for netdev, tap in taps}
        argv = [_filled(word, tokens) for word in plan.argv]
        made(f"process {path}")
        waits, gate = os.pipe2(os.O_CLOEXEC)
        try:
            pid = _spawn(plan, owner, argv, keep=(listener.fileno(), waits), log=log)
            os.close(waits)
            waits = -1
            yield Twin(pid, os.pidfd_open(pid), start_ticks(pid), str(path))
            os.write(gate, b"!")
        finally:
            for end in (waits, gate):
                if end >= 0:
                    os.close(end)


def _filled(word: str, tokens: dict[str, str]) -> str:
    for token, value in tokens.items():
        word = word.replace(token, value)
    return word


def _spawn(
    plan: TwinPlan, owner: Account, argv: list[str], *, keep: tuple[int, int], log: Path
) -> int:
    """Start `launch.py`; it keeps the monitor's socket, and waits for a byte from a pipe."""
    monitor, gate = keep
    launch = {
        "executable": plan.executable,
        "argv": argv,
        "environment": ENVIRONMENT | {"HOME": _home(owner.uid)},
        "uid": owner.uid,
        "gid": owner.gid,
        "groups": list(owner.groups),
        "cwd": plan.process.cwd,
        "umask": plan.process.umask,
        "limits": [list(limit) for limit in plan.process.limits],
        "oom_score_adj": plan.process.oom_score_adj,
        "keep": [monitor],
        "gate": gate,
    }
    script = Path(__file__).with_name("launch.py")
    told = os.memfd_create("qmigrate-launch", os.MFD_CLOEXEC)
    try:
        os.pwrite(told, json.dumps(launch).encode(), 0)
        with log.open("ab") as words:
            # Not a child to be waited for: its end is seen by pidfd, and init reaps it.
            process = subprocess.Popen(
                [*_scope(plan.tag), sys.executable, "-I", "-S", str(script), str(told)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=(told, monitor, gate),
            )
    finally:
        os.close(told)
    process.returncode = 0  # else Popen warns that it still runs, which is what it is for
    return process.pid


def _scope(tag: str) -> list[str]:
    """Return the words that give a process a unit of its own where systemd runs."""
    if not runs_systemd():
        return []
    # A tag's other letters may all stand in a unit's name; after a dot it would look for a type.
    unit = "qmigrate-guest-" + tag.replace(".", ":")
    return ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={unit}", "--"]


def _home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5), stat field 22)."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def pid_of(pidfd: int) -> int | None:
    """Return the pid behind a pidfd; None once the process is gone."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii")
    pid = next(int(row.split()[1]) for row in text.splitlines() if row.startswith("Pid:"))
    return pid if pid > 0 else None


def open_process(pid: int | None, ticks: int | None) -> int | None:
    """Return a pidfd of the process that a journal names; None if it has ended."""
    if pid is None or ticks is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        same = start_ticks(pid) == ticks and not has_ended(pidfd)
    except FileNotFoundError:
        same = False
    if not same:
        os.close(pidfd)
        return None
    return pidfd


async def wait_end(pidfd: int) -> None:
    """Return when the process has ended; many tasks may wait."""
    own = os.dup(pidfd)  # trio lets one task wait for a descriptor
    try:
        await trio.lowlevel.wait_readable(own)
    finally:
        os.close(own)


def has_ended(pidfd: int) -> bool:
    """Say whether the process has ended."""
    return bool(select.select([pidfd], [], [], 0)[0])


async def kill(pidfd: int) -> None:
    """End a process that is ours to end; return when it has gone.

    Raises `HostError` if it has not within `END_DEADLINE_S`: it hangs in the kernel.
    """
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    with trio.move_on_after(END_DEADLINE_S):
        await wait_end(pidfd)
        return
    raise HostError(f"QEMU did not end within {END_DEADLINE_S:g} s of being killed")


async def remove(rtnl: Rtnl, tag: str) -> tuple[str, ...]:
    """Remove what a guest lived on here: its taps and run directory, by its id alone.

    Returns what could not be removed, a sentence each.
    """
    left = []
    for link in await rtnl.find_by_alias(f"{ALIAS_PREFIX}{tag} "):
        try:
            await rtnl.delete_tap(link.name, alias=link.alias or "")
        except NetsetupError as exc:
            left.append(f"tap {link.name}: {exc.what}")
    try:
        stays = remove_guest_directory(tag)
    except HostError as exc:
        stays = exc.problem.what
    return (*left, stays) if stays else tuple(left)


def last_words(log: Path) -> str | None:
    """Return the end of what QEMU wrote to its stderr; None if it said nothing."""
    try:
        text = log.read_bytes()[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return None
    return text or None
