"""One authenticated paramiko connection, or one clear reason why not.

Blocking functions for worker threads; they decide nothing about trust (known_hosts.py) and nothing
about configuration (openssh.py).
"""

import base64
import binascii
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import paramiko
from paramiko.agent import AgentSSH
from paramiko.pkey import UnknownKeyType

from qmigrate.controller.known_hosts import (
    KnownKeys,
    accept_or_raise,
    add_line,
    fingerprint,
    known_hosts_line,
    order_algorithms,
)
from qmigrate.controller.login_words import MAX_TRIES, login_refused
from qmigrate.controller.openssh import SshConfig, expand_path
from qmigrate.core.errors import HostError, NeedsOpensshError, UnreachableError

KEX_DEADLINE_S = 20  # banner and key exchange; a loaded sshd forks and generates first
AUTH_DEADLINE_S = 60  # an ssh-agent may wait for a touch or a confirmation
AGENT_DEADLINE_S = 30  # a hung ssh-agent

# Unconfigured, paramiko prints whole tracebacks to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


# Not ServiceRequestingTransport: in 5.1 it makes the event of a login attempt after sending it, so
# that a quick answer is waited for until the timeout, and its auth_none calls None.
Connection: TypeAlias = paramiko.Transport


class SshAgent(AgentSSH):
    """An ssh-agent at a socket of our choice: paramiko itself knows $SSH_AUTH_SOCK only."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(AGENT_DEADLINE_S)
            self._socket.connect(path)
            self._connect(self._socket)  # type: ignore[attr-defined]  # no public way in
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()


def agent_path(conf: SshConfig) -> str | None:
    """Return the socket of the ssh-agent to ask, as IdentityAgent of ssh_config(5)."""
    named = conf.identity_agent
    if named == "none":
        return None
    if named in (None, "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK")
    return os.environ.get(named[1:]) if named.startswith("$") else named


@dataclass(slots=True)
class Keys:
    """What may be tried, in OpenSSH's order, and what became of the rest."""

    tried: list[str] = field(default_factory=list)  # sentences, for the error message
    passphrase: list[str] = field(default_factory=list)  # files that ssh-add must open first
    fido: bool = False  # one of them only OpenSSH can use

    def offers(
        self, conf: SshConfig, agent: SshAgent | None
    ) -> Iterator[tuple[str, paramiko.PKey]]:
        """Yield a name and a key: the agent's that are configured, its others, then the files."""
        files = [expand_path(text, conf) for text in conf.identity_files]
        wanted = {blob: path for path in files if (blob := _public_blob(path))}
        held = list(agent.get_keys()) if agent else []
        configured = [key for key in held if key.asbytes() in wanted]
        others = [] if conf.identities_only else [k for k in held if k.asbytes() not in wanted]
        for key in (*configured, *others):
            label = key.comment or fingerprint(key.asbytes())
            yield f"{key.get_name()} {label} of the ssh-agent", key
        done = {wanted[key.asbytes()] for key in configured}
        for path in files:
            if path in done or not Path(path).is_file():
                continue
            if loaded := self._load(path):
                yield path, loaded

    def _load(self, path: str) -> paramiko.PKey | None:
        try:
            key = paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            self.passphrase.append(path)  # TypeError: cryptography's word for "no password given"
        except (paramiko.SSHException, ValueError, OSError, UnknownKeyType) as exc:
            is_fido = _public_type(path).startswith("sk-")
            self.fido = self.fido or is_fido
            kind = "a FIDO key, for OpenSSH or an ssh-agent only" if is_fido else str(exc)
            self.tried.append(f"{path} (not readable: {kind:.80})")
        else:
            return key
        return None


def _public_blob(path: str) -> bytes | None:
    name = path if path.endswith(".pub") else path + ".pub"
    try:
        return base64.b64decode(Path(name).read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError, UnicodeDecodeError, binascii.Error):
        return None


def _public_type(path: str) -> str:
    try:
        return Path(path + ".pub").read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _restrict(transport: Connection, conf: SshConfig, known: KnownKeys) -> None:
    """Leave only the algorithms that the user's configuration allows, in a useful order."""
    options = transport.get_security_options()
    common = {
        "Ciphers": [a for a in options.ciphers if a in conf.ciphers],
        "MACs": [a for a in options.digests if a in conf.macs],
        "KexAlgorithms": [a for a in options.kex if a in conf.kex],
        "HostKeyAlgorithms": [a for a in options.key_types if a in conf.host_key_algorithms],
    }
    for keyword, algorithms in common.items():
        if not algorithms:
            what = f"paramiko knows none of the algorithms that {keyword} allows"
            raise NeedsOpensshError(what, phase="connect")
    options.ciphers = tuple(common["Ciphers"])
    options.digests = tuple(common["MACs"])
    options.kex = tuple(common["KexAlgorithms"])
    options.key_types = order_algorithms(known, common["HostKeyAlgorithms"])


def shake_hands(transport: Connection, conf: SshConfig, known: KnownKeys) -> None:
    """Exchange keys and prove the host; `HostKeyError` or `UnreachableError` if that fails."""
    _restrict(transport, conf, known)
    transport.banner_timeout = KEX_DEADLINE_S
    try:
        transport.start_client(timeout=KEX_DEADLINE_S)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        why = str(exc) or "it hung up"
        what = f"{conf.hostname} port {conf.port} does not speak SSH with us: {why}"
        raise UnreachableError(what, phase="connect") from exc
    if not transport.initial_kex_done:
        what = f"{conf.hostname} port {conf.port}: no SSH key exchange within {KEX_DEADLINE_S} s"
        raise UnreachableError(what, phase="connect")
    key = transport.get_remote_server_key()
    if accept_or_raise(conf, key.get_name(), key.asbytes(), known):
        line = known_hosts_line(conf, key.get_name(), key.asbytes())
        add_line(conf.known_hosts_files, line)


def log_in(transport: Connection, conf: SshConfig) -> None:
    """Authenticate by public key; `LoginError` says what was tried and what the host wanted."""
    transport.auth_timeout = AUTH_DEADLINE_S
    try:
        if not transport.auth_none(conf.user):
            return
        methods = ["publickey"]
    except paramiko.BadAuthenticationType as exc:
        methods = exc.allowed_types
    except (paramiko.SSHException, EOFError, OSError) as exc:
        raise _refused(conf, Keys(), [], f"the host hung up ({exc})") from exc
    keys = Keys()
    agent = _open_agent(conf, keys)
    try:
        for name, key in keys.offers(conf, agent) if "publickey" in methods else ():
            wanted = _offer(transport, conf, name, key, keys)
            if wanted == []:
                return
            if wanted:
                methods = wanted
                break
            if not transport.is_active():
                raise _refused(conf, keys, methods, MAX_TRIES)
    finally:
        if agent:
            agent.close()
    raise _refused(conf, keys, methods, None)


def _open_agent(conf: SshConfig, keys: Keys) -> SshAgent | None:
    path = agent_path(conf)
    if not path:
        return None
    try:
        return SshAgent(path)
    except (OSError, paramiko.SSHException) as exc:
        keys.tried.append(f"the ssh-agent at {path} ({exc})")
        return None


def _offer(
    transport: Connection, conf: SshConfig, name: str, key: paramiko.PKey, keys: Keys
) -> list[str] | None:
    """Return [] when in, the methods still wanted after a partial success, None if refused."""
    try:
        return transport.auth_publickey(conf.user, key)
    except (paramiko.SSHException, EOFError, OSError, AttributeError) as exc:
        # AttributeError: paramiko's AgentKey of a type it does not know (FIDO)
        refused = isinstance(exc, paramiko.AuthenticationException)
        keys.tried.append(name if refused else f"{name} ({exc})")
        return None


def _refused(conf: SshConfig, keys: Keys, methods: list[str], why: str | None) -> HostError:
    """Return why nobody is let in, or that OpenSSH could still try what we cannot."""
    error = login_refused(conf, tried=keys.tried, locked=keys.passphrase, methods=methods, why=why)
    if conf.gssapi and any(method.startswith("gssapi") for method in methods):
        what = f"{error.problem.what}; it would take Kerberos"
    elif keys.fido:
        what = f"{error.problem.what}; a FIDO key is left to try"
    else:
        return error
    return NeedsOpensshError(what, phase="connect", next_step="leave it to ssh: --ssh auto")
