"""SSH within a lab: keys of its own, strict host keys, and nothing of the user's ~/.ssh.

``ssh -F`` reads no other file, and in the hosts an empty directory lies over ~/.ssh.
"""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from qmigrate.core.errors import HostError
from qmigrate.lab.state import SYSTEM_PATH, Places, write_whole
from qmigrate.lab.topology import Node, Topology

KEYGEN_DEADLINE_S: Final = 20.0  # takes 10 ms; a starved machine may take seconds
SFTP_SERVER: Final = "internal-sftp"  # needs no path, which differs between distributions


def authorized_keys(places: Places) -> Path:
    """Return the file that lets the lab's own key in as root."""
    return places.ssh / "authorized_keys"


def user_key(places: Places) -> Path:
    """Return the private key that opens every host of the lab."""
    return places.ssh / "id_ed25519"


def host_key(places: Places, name: str) -> Path:
    """Return the private host key of a node."""
    return places.ssh / f"{name}_host_ed25519"


def path() -> str:
    """Return the PATH of a login: the system's, then the directory of the Python we run under.

    The last is for machines whose own python3 is older than a host's must be.
    """
    return f"{SYSTEM_PATH}:{Path(sys.base_prefix, 'bin')}"


def sshd_config(places: Places, name: str) -> str:
    """Return a host's sshd_config; `PidFile` is a FIFO that sshd writes when it listens."""
    return f"""\
# Made by qmigrate lab for {name}.
Port 22
HostKey {host_key(places, name)}
PidFile /run/sshd.pid
UsePAM no
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile {authorized_keys(places)}
PermitUserRC no
AllowTcpForwarding yes
AllowAgentForwarding yes
X11Forwarding no
PrintMotd no
PrintLastLog no
UseDNS no
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
SetEnv PATH={path()}
Subsystem sftp {SFTP_SERVER}
"""


def ssh_config(places: Places, hosts: Iterable[Node]) -> str:
    """Return the client's configuration: a `Host` for each of `hosts`."""
    blocks = [f"Host {node.name}\n    HostName {node.address}\n" for node in hosts]
    blocks.append(f"""\
Host *
    User root
    Port 22
    IdentityFile {user_key(places)}
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {places.ssh / "known_hosts"}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    ConnectTimeout 10
""")
    return f"# Made by qmigrate lab {places.name}.\n" + "\n".join(blocks)


def known_hosts(hosts: Iterable[tuple[Node, str]]) -> str:
    """Return the known_hosts of `hosts` and their public keys, by name and by each address."""
    lines = []
    for node, public_key in hosts:
        addresses = (a.address.partition("/")[0] for a in node.addresses)
        kind, key, *_ = public_key.split()
        lines.append(f"{','.join([node.name, *addresses])} {kind} {key}\n")
    return "".join(lines)


def inventory(hosts: Iterable[Node]) -> str:
    """Return the lab's config.toml."""
    return "".join(f'[hosts.{node.name}]\nssh = "{node.name}"\n\n' for node in hosts)


def hosts_file(topology: Topology) -> str:
    """Return /etc/hosts of every node."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for node in topology.nodes:
        lines += (f"{a.address.partition('/')[0]} {node.name}" for a in node.addresses)
    return "\n".join(lines) + "\n"


def shadow_file() -> str:
    """Return an /etc/shadow without a password for anyone and without a locked account.

    Without PAM sshd refuses an account whose password begins with "!", as Ubuntu's root has.
    """
    return "".join(f"{user.pw_name}:*:20000:0:99999:7:::\n" for user in pwd.getpwall())


def write_files(places: Places, topology: Topology) -> None:
    """Make keys and configurations; raises `HostError` with ssh-keygen's words."""
    places.ssh.mkdir(mode=0o700, exist_ok=True)
    keys = [user_key(places), *(host_key(places, node.name) for node in topology.hosts)]
    _generate([key for key in keys if not key.with_suffix(".pub").exists()])
    public = user_key(places).with_suffix(".pub").read_text()
    write_whole(authorized_keys(places), public)
    trusted = [
        (node, host_key(places, node.name).with_suffix(".pub").read_text())
        for node in topology.hosts
    ]
    write_whole(places.ssh / "known_hosts", known_hosts(trusted))
    write_whole(places.ssh_config, ssh_config(places, topology.hosts))
    write_whole(places.config, inventory(topology.hosts))
    write_whole(places.directory / "empty", "")
    write_whole(places.directory / "hosts", hosts_file(topology))
    write_whole(places.directory / "shadow", shadow_file(), mode=0o600)
    for node in topology.hosts:
        write_whole(places.node(node.name) / "sshd_config", sshd_config(places, node.name))


def _generate(keys: list[Path]) -> None:
    running = []
    for key in keys:
        key.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name, "-f", str(key)]
        running.append(
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    failures = []
    for process in running:
        _, stderr = process.communicate(timeout=KEYGEN_DEADLINE_S)
        if process.returncode:
            failures.append(stderr.strip())
    if failures:
        raise HostError("ssh-keygen failed", last_words="\n".join(failures))


def find_sshd() -> str:
    """Return sshd's absolute path, which it insists on; raises `HostError` if there is none."""
    for directory in (*os.get_exec_path(), "/usr/sbin", "/sbin", "/usr/local/sbin"):
        path = Path(directory, "sshd")
        if os.access(path, os.X_OK):
            return str(path)
    raise HostError("no sshd here", next_step="install openssh-server")
