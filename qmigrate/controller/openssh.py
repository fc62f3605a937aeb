"""What OpenSSH would do for a destination, told by OpenSSH itself (`ssh -G`).

paramiko's own reader of `~/.ssh/config` ignores Include, takes every unknown Match criterion for
true and leaves tokens in values; so the system's ssh reads the files and we act on the result.
"""

import os
import pwd
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from subprocess import DEVNULL

import trio

from qmigrate.core.errors import ConfigError, NeedsOpensshError

RESOLVE_DEADLINE_S = 10  # `ssh -G` takes 6 ms, but a Match exec may ask the network
UNKNOWN_HOST_ACCEPTED = ("accept-new", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class SshConfig:
    """The part of `ssh -G` that we act on, or refuse to act without."""

    destination: str  # as the user wrote it
    file: str | None  # -F
    alias: str  # the name that Host patterns were matched with
    user: str
    hostname: str
    port: int
    host_key_alias: str | None
    identity_files: tuple[str, ...]  # tokens and ~ still in
    identities_only: bool
    identity_agent: str | None
    known_hosts_files: tuple[str, ...]
    strict: str
    hash_known_hosts: bool
    proxy_command: str | None
    proxy_jump: str | None
    connect_timeout_s: int | None
    address_family: str
    bind_address: str | None
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    kex: tuple[str, ...]
    host_key_algorithms: tuple[str, ...]
    public_key_login: bool
    needs: tuple[tuple[str, str], ...]  # keywords that only OpenSSH can act on, with their value
    gssapi: bool = False
    control_path: str | None = None  # where a ControlMaster would listen

    @property
    def port_name(self) -> str:
        """The name that known_hosts uses first for this host (sshd(8), SSH_KNOWN_HOSTS)."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"

    @property
    def command(self) -> tuple[str, ...]:
        """The ssh command line that a user would type for this destination."""
        return ("ssh", *(("-F", self.file) if self.file else ()), self.destination)


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise NeedsOpensshError(f"the token %{match[1]} in {text!r} is OpenSSH's own")
        return tokens[match[1]]

    return re.sub(r"%(.)", one, text)


def tokens_of(conf: SshConfig, user: pwd.struct_passwd) -> dict[str, str]:
    """Return the TOKENS of ssh_config(5) for this connection; %C is left to OpenSSH."""
    here = socket.gethostname()
    return {
        "%": "%",
        "d": user.pw_dir,
        "h": conf.hostname,
        "i": str(user.pw_uid),
        "k": conf.host_key_alias or conf.alias,
        "L": here.split(".")[0],
        "l": here,
        "n": conf.alias,
        "p": str(conf.port),
        "r": conf.user,
        "u": user.pw_name,
    }


def expand_path(text: str, conf: SshConfig) -> str:
    """Return an IdentityFile with ~, tokens and ${VAR} replaced, as ssh(1) does.

    OpenSSH's home is that of the password file, not $HOME.
    """
    user = pwd.getpwuid(os.getuid())
    text = re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m[1], m[0]), text)
    text = _expand(text, tokens_of(conf, user))
    return user.pw_dir + text[1:] if text == "~" or text.startswith("~/") else text


def parse_ssh_g(text: str, destination: str, file: str | None) -> SshConfig:
    """Return what `ssh -G` printed, typed; raises `ConfigError` where it says nonsense."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key.lower(), []).append(value)

    def first(keyword: str) -> str | None:
        value = found.get(keyword, [""])[0]
        return None if value in ("", "none") else value

    def listed(key: str) -> tuple[str, ...]:
        return tuple(filter(None, (first(key) or "").split(",")))

    def files(key: str) -> list[str]:
        return shlex.split(
            found.get(key, [""])[0]
        )  # a path with a blank comes apart: -G quotes not

    methods = listed("preferredauthentications")
    hostname, port = first("hostname"), first("port")
    if not hostname or not port or not port.isdigit():
        raise ConfigError(f"ssh -G {destination} names no host and port")
    key_alias = first("hostkeyalias")
    conf = SshConfig(
        destination=destination,
        file=file,
        alias=first("host") or hostname,
        user=first("user") or pwd.getpwuid(os.getuid()).pw_name,
        hostname=hostname.lower(),
        port=int(port),
        host_key_alias=None,
        identity_files=tuple(f for f in found.get("identityfile", []) if f != "none"),
        identities_only=first("identitiesonly") == "yes",
        identity_agent=found.get("identityagent", [""])[0] or None,
        known_hosts_files=(*files("userknownhostsfile"), *files("globalknownhostsfile")),
        strict=first("stricthostkeychecking") or "ask",
        hash_known_hosts=first("hashknownhosts") == "yes",
        proxy_command=first("proxycommand"),
        proxy_jump=first("proxyjump"),
        connect_timeout_s=int(first("connecttimeout") or 0) or None,
        address_family=first("addressfamily") or "any",
        bind_address=first("bindaddress"),
        ciphers=listed("ciphers"),
        macs=listed("macs"),
        kex=listed("kexalgorithms"),
        host_key_algorithms=listed("hostkeyalgorithms"),
        public_key_login=first("pubkeyauthentication") not in ("no", "false")
        and (not methods or "publickey" in methods),
        needs=tuple(
            (word, value)
            for keyword, word in _OPENSSH_ONLY.items()
            if (value := first(keyword) or "no") != "no"
        ),
        gssapi=first("gssapiauthentication") == "yes",
        control_path=first("controlpath"),
    )
    if not key_alias:
        return conf
    tokens = tokens_of(conf, pwd.getpwuid(os.getuid()))  # it may hold tokens of the others
    try:
        return replace(conf, host_key_alias=_expand(key_alias, tokens).lower())
    except NeedsOpensshError:
        needs = (*conf.needs, ("HostKeyAlias", key_alias))
        return replace(conf, host_key_alias=key_alias.lower(), needs=needs)


_OPENSSH_ONLY = {
    "pkcs11provider": "PKCS11Provider",
    "knownhostscommand": "KnownHostsCommand",
    "certificatefile": "CertificateFile",
    "bindinterface": "BindInterface",
    "proxyusefdpass": "ProxyUseFdpass",
}


def needs_openssh(conf: SshConfig, *, has_master: bool = False) -> str | None:
    """Return why only OpenSSH itself can make this connection, or None if we can.

    `has_master`: something listens at ControlPath. Its user has logged in there already, perhaps
    with a token or a one-time password that we could not give.
    """
    if has_master:
        return f"the ControlMaster at {conf.control_path}"
    for word, value in conf.needs:
        return f"{word} {value}"
    if not conf.public_key_login:
        return "a login without a public key (PreferredAuthentications, PubkeyAuthentication)"
    for text in (*conf.identity_files, conf.proxy_command or ""):
        if re.search(r"(?<!%)(%%)*%C", text):
            return f"the token %C in {text!r}"
    return None


def proxy_argv(conf: SshConfig) -> tuple[str, ...] | None:
    """Return the command whose stdin and stdout reach the host, or None to dial it.

    A jump is `ssh -W` to the last hop, which may itself jump: OpenSSH does the same.
    """
    if conf.proxy_jump:
        earlier, _, last = conf.proxy_jump.rpartition(",")
        last = last if last.startswith("ssh://") else f"ssh://{last}"
        argv = ["ssh", "-o", "BatchMode=yes", "-o", "ControlPath=none"]
        argv += ["-F", conf.file] if conf.file else []
        argv += ["-J", earlier] if earlier else []
        return (*argv, "-W", f"[{conf.hostname}]:{conf.port}", "--", last)
    if conf.proxy_command:
        tokens = tokens_of(conf, pwd.getpwuid(os.getuid()))
        return ("/bin/sh", "-c", "exec " + _expand(conf.proxy_command, tokens))
    return None


async def capture(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run one of OpenSSH's programs; return its status, stdout and stderr."""
    try:
        done = await trio.run_process(
            list(argv), stdin=DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    except FileNotFoundError as exc:
        what = f"{argv[0]} is not installed here"
        raise ConfigError(what, next_step="install the OpenSSH client") from exc
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


async def resolve(destination: str, file: str | None) -> SshConfig:
    """Ask `ssh -G` about a destination; `ConfigError` with ssh's words if it will not say."""
    file = str(await trio.Path(file).expanduser()) if file else None
    argv = ("ssh", *(("-F", file) if file else ()), "-G", "--", destination)
    with trio.move_on_after(RESOLVE_DEADLINE_S) as scope:
        status, out, err = await capture(argv)
    if scope.cancelled_caught:
        what = f"ssh -G {destination} did not end within {RESOLVE_DEADLINE_S} s (a Match exec?)"
        raise ConfigError(what, phase="connect")
    if status:
        what = f"ssh cannot make sense of {destination!r}"
        raise ConfigError(what, phase="connect", last_words=err.strip() or None)
    return parse_ssh_g(out, destination, file)
