"""A real sshd on 127.0.0.1 with keys of its own, in a mount namespace of its own.

Every connection gets `sshd -i` on a socket that the test already listens at, so there is no port to
guess and nothing to wait for. In the namespace /run, /var/cache and the files of sudo and of the
accounts are private: what the agent does there is gone with the namespace.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from qmigrate.core.model import HostSpec, SshClient

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
PLAIN_USER = "qmtest"
PLAIN_UID = 60123
INSIDE = "/run/test"  # the server's directory as logins see it: a bind asks no parent's mode


def keygen(
    path: Path, kind: str = "ed25519", *, comment: str = "test", passphrase: str = ""
) -> Path:
    """Make a key pair; return the private key's path."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", comment, "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


@dataclass
class Sshd:
    """A running server and the client's files that go with it."""

    directory: Path
    port: int
    holder: int  # a process that lives in the server's namespace
    host_keys: tuple[str, ...]
    options: list[str] = field(default_factory=list)  # more lines of sshd_config
    client: SshClient = SshClient.PARAMIKO
    connections: int = 0

    @property
    def config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        return self.directory / "id"

    def public(self, kind: str) -> str:
        """Return "type base64" of a host key."""
        words = (self.directory / f"host_{kind}.pub").read_text().split()
        return f"{words[0]} {words[1]}"

    def know(self, *names: str, kind: str | None = None, marker: str = "") -> None:
        """Write known_hosts anew: the host's key under `names`."""
        name = ",".join(names) or f"[127.0.0.1]:{self.port}"
        line = f"{name} {self.public(kind or self.host_keys[0])}"
        self.known_hosts.write_text(f"{marker} {line}\n".lstrip())

    def configure(self, *lines: str, user: str = "root") -> None:
        """Write ssh_config anew; the given lines come first, as ssh takes the first value."""
        entry = [
            *lines,
            "Host server",
            "  HostName 127.0.0.1",
            f"  Port {self.port}",
            "Host *",
            f"  User {user}",
            f"  IdentityFile {self.key}",
            "  IdentityAgent none",
            f"  UserKnownHostsFile {self.known_hosts}",
            "  GlobalKnownHostsFile none",
        ]
        self.config.write_text("\n".join(entry) + "\n")

    def spec(self, name: str = "server", **more: object) -> HostSpec:
        """Return how the controller reaches this server."""
        more.setdefault("ssh_client", self.client)
        return HostSpec(name, name, ssh_config=str(self.config), **more)  # type: ignore[arg-type]

    def fake_bin(self, *commands: str, **scripts: str) -> None:
        """Let logins find only these commands of the machine, and these scripts."""
        directory = self.directory / "bin"
        directory.mkdir()
        for command in ("sh", "id", "tail", *commands):
            found = shutil.which(command, path="/usr/bin:/bin")  # a shim in a home is nobody else's
            (directory / command).symlink_to(found or "/nowhere")
        for name, script in scripts.items():
            path = directory / name.replace("_", ".")
            path.write_text("#!/bin/sh\n" + script)
            path.chmod(0o755)
        self.options.append(f"SetEnv PATH={INSIDE}/bin")

    def inside(self, *argv: str) -> str:
        """Run a command in the server's namespace."""
        enter = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "--", *argv]
        done = subprocess.run(enter, check=True, capture_output=True, text=True)
        return done.stdout

    async def serve(self, listener: trio.SocketListener) -> None:
        """Give every connection an `sshd -i`; it ends when its socket does, or with us."""
        settings = self.directory / "sshd_config"

        async def one(stream: trio.SocketStream) -> None:
            self.connections += 1
            name = self.directory / f"sshd_config.{self.connections}"
            name.write_text(settings.read_text() + "\n".join(self.options) + "\n")
            sock = stream.socket
            os.set_blocking(sock.fileno(), True)
            argv = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "--"]
            argv += [str(SSHD), "-i", "-e", "-f", str(name)]
            with (self.directory / "sshd.log").open("ab") as log:
                process = await trio.lowlevel.open_process(
                    argv, stdin=sock.fileno(), stdout=sock.fileno(), stderr=log
                )
            sock.close()
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()

        await trio.serve_listeners(one, [listener])


def _settings(directory: Path, host_keys: Sequence[str]) -> str:
    lines = [
        *(f"HostKey {directory}/host_{kind}" for kind in host_keys),
        f"AuthorizedKeysFile {INSIDE}/authorized_keys",
        "PidFile none",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PrintMotd no",
        "LogLevel VERBOSE",
    ]
    return "\n".join(lines) + "\n"


_NAMESPACE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=755 none /var/cache
mkdir -p /run/sshd /run/test
mount --bind "$1" /run/test
for file in passwd shadow group; do mount --bind "$1/$file" /etc/$file; done
if [ -e /etc/sudoers ]; then mount --bind "$1/sudoers" /etc/sudoers; fi
echo ready
exec cat
"""


def _account_files(directory: Path, sudoers: str) -> None:
    directory.chmod(0o755)
    home = directory / "home"
    home.mkdir()
    os.chown(home, PLAIN_UID, PLAIN_UID)
    # A plain shell and an empty home for both: no rc file of this machine gets a say.
    (directory / "root").mkdir(mode=0o700)
    accounts = [
        line
        for line in Path("/etc/passwd").read_text().splitlines()
        if not line.startswith("root:")
    ]
    root = f"root:x:0:0:root:{INSIDE}/root:/bin/sh"
    plain = f"{PLAIN_USER}:x:{PLAIN_UID}:{PLAIN_UID}::{INSIDE}/home:/bin/sh"
    (directory / "passwd").write_text("\n".join([root, *accounts, plain]) + "\n")
    group = Path("/etc/group").read_text() + f"{PLAIN_USER}:x:{PLAIN_UID}:\n"
    (directory / "group").write_text(group)
    shadow = directory / "shadow"
    shadow.write_text(Path("/etc/shadow").read_text() + f"{PLAIN_USER}:*:19000:0:99999:7:::\n")
    shadow.chmod(0o600)
    (directory / "sudoers").write_text(sudoers + "\n")
    (directory / "sudoers").chmod(0o440)


@asynccontextmanager
async def running_sshd(
    directory: Path,
    *,
    host_keys: tuple[str, ...] = ("ed25519",),
    sudoers: str = "",
    client: SshClient = SshClient.PARAMIKO,
) -> AsyncIterator[Sshd]:
    """Yield a server that root and a plain user may log in to with the key `id`."""
    assert pwd.getpwuid(os.getuid()).pw_name == "root"
    for kind in host_keys:
        keygen(directory / f"host_{kind}", kind)
    keygen(directory / "id")
    shutil.copy(directory / "id.pub", directory / "authorized_keys")
    (directory / "authorized_keys").chmod(0o644)
    (directory / "sshd_config").write_text(_settings(directory, host_keys))
    _account_files(directory, sudoers)
    argv = ["unshare", "--mount", "sh", "-c", _NAMESPACE, "sh", str(directory)]
    pipe = subprocess.PIPE
    holder = await trio.lowlevel.open_process(argv, stdin=pipe, stdout=pipe)
    assert holder.stdout
    assert holder.stdin
    try:
        ready = b""
        while not ready.endswith(b"ready\n"):
            chunk = await holder.stdout.receive_some()
            assert chunk, "the namespace was not made"
            ready += bytes(chunk)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        server = Sshd(directory, port, holder.pid, host_keys, client=client)
        server.configure()
        server.know()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(server.serve, listener))
            try:
                yield server
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await holder.stdin.aclose()
            await holder.stdout.aclose()
            await holder.wait()
