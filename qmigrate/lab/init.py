"""Process 1 of a node: makes the node's namespaces its own, then reaps.

It runs in a child that the warden forked into a new PID namespace. Everything else in the node
descends from it or entered its namespaces, so its death is the node's power loss: the kernel kills
all that is in the PID namespace, and with the last process go mounts, links and sockets.

It talks to the warden over one socket: ``made`` when the namespaces exist (cables can be laid),
then it is told what to configure, then ``ready``; or words of failure.
"""

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.lab import sshd, syscalls
from qmigrate.lab.state import RUN, Places
from qmigrate.lab.topology import Node, NodeKind

MADE: Final = b"made"
READY: Final = b"ready"
MESSAGE_MAX: Final = 65536  # bytes; a node's iproute2 lines are some hundred
BATCH_DEADLINE_S: Final = 20.0  # takes 10 ms; a starved machine may take seconds
LINK_DEADLINE_S: Final = 10.0  # each message; the kernel hurries or takes a second
RTMGRP_LINK: Final = 1  # <linux/rtnetlink.h>
_FORWARDING: Final = ("3",)  # <linux/if_bridge.h> BR_STATE_*
_SETTLED: Final = ("3", "4")  # or blocking
SSHD_DEADLINE_S: Final = 20.0  # takes 30 ms
PID_FILE: Final = Path("/run/sshd.pid")
PRIVATE: Final = (  # what no two hosts share: mount point, mode
    ("/run", 0o755),
    ("/var/log", 0o755),
    ("/var/cache", 0o755),
    ("/dev/shm", 0o1777),  # noqa: S108  the host's own shared memory
)
SHELL_FILES: Final = (".bashrc", ".bash_profile", ".profile", ".zshenv")  # a host's shell is plain
DIRECTORIES: Final = (("/run/sshd", 0o755), ("/run/lock", 0o1777), ("/run/user", 0o755))


def run_node(places: Places, node: Node, warden: socket.socket) -> NoReturn:
    """Be process 1 of `node` until killed."""
    try:
        _become(places, node)
        warden.send(MADE)
        order = warden.recv(MESSAGE_MAX)
        if order:
            _configure(places, node, json.loads(order))
            warden.send(READY)
    except (OSError, QmigrateError, subprocess.SubprocessError, ValueError) as exc:
        words = getattr(getattr(exc, "problem", None), "last_words", None)
        with contextlib.suppress(OSError):
            warden.send(f"{exc}\n{words or ''}".encode())
        os._exit(1)
    if not order:  # the warden died before it could kill us
        os._exit(1)
    warden.close()
    _reap_for_ever()


def _become(places: Places, node: Node) -> None:
    syscalls.die_with_parent()
    signal.set_wakeup_fd(-1)  # the warden's
    for signum in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.setsid()
    syscalls.set_process_name(f"lab-{node.name}")
    lock = os.open(places.init_lock(node.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    syscalls.hold(lock)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS)
    socket.sethostname(node.name)
    os.chdir("/")
    _mount_all(places, node)
    # /proc is this network namespace's now. Addresses must work at once: nobody else has them.
    _sysctl("net/ipv6/conf/all/accept_dad", "0")
    _sysctl("net/ipv6/conf/default/accept_dad", "0")
    # A kernel with bridge netfilter built in has it on in every namespace: its bridges fragment and
    # reassemble what they forward, which no switch does, nor a host that has not loaded it.
    for call in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        call.write_text("0")
    if node.kind is NodeKind.ROUTER:
        _sysctl("net/ipv4/ip_forward", "1")
        _sysctl("net/ipv6/conf/all/forwarding", "1")


def _sysctl(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Path | None]:
    """Yield a path by which `path` is reached when something is mounted over it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _mount_all(places: Places, node: Node) -> None:
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    quiet = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("proc", "/proc", "proc", quiet)
    with _kept(Path("/sys/fs/cgroup")) as cgroup:
        syscalls.mount("sysfs", "/sys", "sysfs", quiet)  # shows this network namespace's links
        if cgroup:
            syscalls.bind(cgroup, "/sys/fs/cgroup", recursive=True)
    with _kept(places.directory) as lab:
        for target, mode in PRIVATE:
            syscalls.mount("tmpfs", target, "tmpfs", quiet, f"mode={mode:o}")
        for directory, mode in DIRECTORIES:
            Path(directory).mkdir()
            Path(directory).chmod(mode)
        places.directory.mkdir(parents=True)
        assert lab is not None, f"{RUN} was made by `up`"
        syscalls.bind(lab, places.directory)
        read_only = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
        syscalls.mount("none", places.directory, None, read_only)
    own = places.node(node.name)
    home = Path(pwd.getpwuid(0).pw_dir)
    covers = [
        (own / "boot_id", Path("/proc/sys/kernel/random/boot_id")),
        (own / "machine-id", Path("/etc/machine-id")),
        (own / "hostname", Path("/etc/hostname")),
        (places.directory / "hosts", Path("/etc/hosts")),
        (places.directory / "shadow", Path("/etc/shadow")),
        *((places.directory / "empty", home / name) for name in SHELL_FILES),
    ]
    for cover, covered in covers:
        if covered.exists():
            syscalls.bind(cover, covered)
    if (home / ".ssh").is_dir():  # nothing in a lab may read the user's keys, even by default
        syscalls.mount("tmpfs", home / ".ssh", "tmpfs", quiet, "mode=700")


def _configure(places: Places, node: Node, order: dict[str, list[str]]) -> None:
    for tool in ("ip", "bridge", "tc"):
        if not order[tool]:
            continue
        try:
            run_batch([tool], order[tool])
        except HostError as exc:
            words = exc.problem.last_words or ""
            if "not supported" in words and any(bridge.vlans for bridge in node.bridges):
                what = "this kernel's bridges cannot filter VLANs; topology vlan does without"
                raise HostError(what, last_words=words) from exc
            raise
    _await_links(order["links"])
    if node.kind is NodeKind.HOST:
        _start_sshd(places, node)


def _await_links(names: list[str]) -> None:
    """Wait until each of `names` is operational; each change is news on a netlink socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
        news.bind((0, RTMGRP_LINK))
        news.settimeout(LINK_DEADLINE_S)
        while down := [name for name in names if not _is_operational(name)]:
            try:
                news.recv(MESSAGE_MAX)
            except TimeoutError:
                raise HostError(f"no carrier on {', '.join(down)}") from None


def _is_operational(link: str) -> bool:
    """Tell whether `link` carries frames; a bridge's port must have its lasting state as well.

    That is forwarding, or blocking where STP has shut a loop. Ports begin as blocking too, but
    their bridge is not up before one of them forwards, and STP has decided by then.
    """
    place = Path("/sys/class/net", link)
    port = place / "brport"
    if (place / "operstate").read_text().strip() != "up":
        return False
    if not port.exists():
        return True
    speaks_stp = (port / "bridge/bridge/stp_state").read_text().strip() != "0"
    return (port / "state").read_text().strip() in (_SETTLED if speaks_stp else _FORWARDING)


def run_batch(command: list[str], lines: list[str]) -> None:
    """Feed `lines` to ``ip -batch`` or ``tc -batch``; raises `HostError` with its words."""
    done = subprocess.run(
        [*command, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=False,
        capture_output=True, timeout=BATCH_DEADLINE_S,
    )  # fmt: skip
    if done.returncode:
        raise HostError(f"{' '.join(command)} refused", last_words=done.stderr.strip())


def _start_sshd(places: Places, node: Node) -> None:
    """Start sshd and wait until it listens: then it writes its pid, here into a FIFO."""
    os.mkfifo(PID_FILE)
    listening = os.open(PID_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    path = sshd.find_sshd()
    argv = [path, "-D", "-e", "-f", str(places.node(node.name) / "sshd_config")]
    log = "/var/log/sshd.log"  # the host's own, lost with its power
    process = os.posix_spawn(
        path, argv, {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)],
    )  # fmt: skip
    ended = os.pidfd_open(process)
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(ended, select.POLLIN)
    events = poll.poll(SSHD_DEADLINE_S * 1000)
    pid = os.read(listening, 64) if any(fd == listening for fd, _ in events) else b""
    os.close(listening)
    os.close(ended)
    if not pid:
        raise HostError("sshd does not listen", last_words=Path(log).read_text().strip())
    PID_FILE.unlink()
    PID_FILE.write_bytes(pid)


def _reap_for_ever() -> NoReturn:
    """Reap what is orphaned into the node. A blocked SIGCHLD stays pending, so none is missed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.sigwait({signal.SIGCHLD})
