"""Whether a host is the one that the user knows: known_hosts as OpenSSH reads it.

`ssh-keygen -F` finds the lines (hashes, wildcards, negation); the judgement is pure. paramiko's own
reader loses a whole file at its first @revoked line and knows no wildcards.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from qmigrate.controller.openssh import UNKNOWN_HOST_ACCEPTED, SshConfig, capture
from qmigrate.core.errors import HostError, HostKeyError, NeedsOpensshError

ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}  # key type → what may be negotiated


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A line of known_hosts that matches a host."""

    kind: str  # key type, "ssh-ed25519"
    blob: bytes
    marker: str  # "", "@revoked" or "@cert-authority"
    place: str  # file:line


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What is known under the host's name with port, and under its bare name."""

    by_port: tuple[KnownKey, ...]
    by_name: tuple[KnownKey, ...] = ()

    @property
    def plain(self) -> tuple[KnownKey, ...]:
        """The keys that decide; the bare name counts only if the name with port is unknown."""
        return tuple(k for k in self.by_port if not k.marker) or tuple(
            k for k in self.by_name if not k.marker
        )


class Verdict(StrEnum):
    """What the lines say of an offered key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"  # known by another key of the same type
    OTHER_KIND = "other-kind"  # known by keys of other types only
    REVOKED = "revoked"
    AUTHORITY = "authority"  # only a certificate could prove it


def judge(kind: str, blob: bytes, known: KnownKeys) -> tuple[Verdict, tuple[KnownKey, ...]]:
    """Return the verdict on an offered key and the lines that it rests on.

    As OpenSSH's `check_key_in_hostkeys`: revoked beats all, and a name with port that is known by
    another key is not saved by the bare name.
    """
    return judge_print(kind, fingerprint(blob), known)


def judge_print(kind: str, offered: str, known: KnownKeys) -> tuple[Verdict, tuple[KnownKey, ...]]:
    """Return the same of a key of which only the fingerprint is known, as ssh tells it."""
    everything = known.by_port + known.by_name

    def is_it(key: KnownKey) -> bool:
        return fingerprint(key.blob) == offered

    if revoked := [k for k in everything if k.marker == "@revoked" and is_it(k)]:
        return Verdict.REVOKED, tuple(revoked)
    if same := [k for k in known.plain if is_it(k)]:
        return Verdict.KNOWN, tuple(same)
    if changed := [k for k in known.plain if k.kind == kind]:
        return Verdict.CHANGED, tuple(changed)
    if known.plain:
        return Verdict.OTHER_KIND, known.plain
    if authority := [k for k in everything if k.marker == "@cert-authority"]:
        return Verdict.AUTHORITY, tuple(authority)
    return Verdict.UNKNOWN, ()


def order_algorithms(known: KnownKeys, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return host key algorithms with those first that the known keys can satisfy.

    Else a host known by RSA only would offer its ed25519 key and look like a stranger
    (OpenSSH: `order_hostkeyalgs`).
    """
    wanted = [a for k in known.plain for a in ALGORITHMS.get(k.kind, (k.kind,))]
    return tuple(sorted(allowed, key=lambda a: a not in wanted))


def fingerprint(blob: bytes) -> str:
    """Return the key's fingerprint as OpenSSH prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def parse_found(text: str, file: str) -> tuple[KnownKey, ...]:
    """Return the keys in the output of `ssh-keygen -F`; lines that are no keys are left out."""
    keys = []
    place = file
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#"):
            number = words[words.index("line") + 1] if "line" in words else "?"
            place = f"{file}:{number}"
            continue
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) >= 3:
            try:
                blob = base64.b64decode(words[2], validate=True)
            except binascii.Error:
                continue
            keys.append(KnownKey(words[1], blob, marker, place))
    return tuple(keys)


async def find_known_keys(conf: SshConfig) -> KnownKeys:
    """Ask `ssh-keygen -F` what is known of a host; 3 ms a file and name."""

    async def find(name: str) -> tuple[KnownKey, ...]:
        keys: tuple[KnownKey, ...] = ()
        for file in conf.known_hosts_files:
            path = await trio.Path(file).expanduser()
            if await path.is_file():
                _, out, _ = await capture(("ssh-keygen", "-F", name, "-f", str(path)))
                keys += parse_found(out, str(path))
        return keys

    bare = conf.hostname if conf.port_name.startswith("[") else None
    return KnownKeys(await find(conf.port_name), await find(bare) if bare else ())


def accept_or_raise(conf: SshConfig, kind: str, blob: bytes, known: KnownKeys) -> bool:
    """Return whether the key must still be added (StrictHostKeyChecking says so), or raise.

    `HostKeyError` says what was offered and the line that would make it known; a changed or
    revoked key is refused whatever the configuration says.
    """
    verdict, lines = judge(kind, blob, known)
    if verdict is Verdict.KNOWN:
        return False
    if verdict is Verdict.UNKNOWN and conf.strict in UNKNOWN_HOST_ACCEPTED:
        return True
    line = known_hosts_line(conf, kind, blob)
    raise host_key_error(conf, verdict, lines, f"{kind} {fingerprint(blob)}", line)


def host_key_error(
    conf: SshConfig,
    verdict: Verdict,
    lines: Sequence[KnownKey],
    offered: str,
    line: str | None = None,
) -> HostError:
    """Return why an offered key is not accepted: `lines` decided, `line` would make it known.

    `NeedsOpensshError` where only a certificate could prove the host.
    """
    places = ", ".join(k.place for k in lines)
    name, login = conf.port_name, shlex.join(conf.command)
    look = "compare it on the host's own console: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub"
    forget = "; ".join(
        f"ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(file)}"
        for file in dict.fromkeys(k.place.rpartition(":")[0] for k in lines)
    )
    match verdict:
        case Verdict.KNOWN | Verdict.UNKNOWN:
            what = f"{name} is not in known_hosts; it offered {offered}"
            fix = f"{look}, then add it: {login}"
        case Verdict.CHANGED:
            what = f"the host key of {name} has changed: it offered {offered}, not that of {places}"
            fix = f"somebody may be listening; {look}; if it is right: {forget}, then {login}"
        case Verdict.OTHER_KIND:
            kinds = ", ".join(dict.fromkeys(k.kind for k in lines))
            what = f"{name} is known by {kinds} only ({places}); it offered {offered}"
            fix = f"{look}; if it is right, add: {line or login}"
        case Verdict.REVOKED:
            what = f"the host key of {name} is revoked ({places}): {offered}"
            fix = "do not connect; the owner of the host must give it another key"
        case Verdict.AUTHORITY:
            what = f"{name} is known by a certificate authority ({places}): paramiko checks none"
            fix = f"leave it to ssh (--ssh auto), or add the host's own key: {line or login}"
            return NeedsOpensshError(what, phase="connect", next_step=fix)
    return HostKeyError(what, phase="connect", next_step=fix)


def only_by_authority(known: KnownKeys) -> bool:
    """Tell whether only a certificate can prove the host: an authority is known, no key is."""
    everything = known.by_port + known.by_name
    return not known.plain and any(k.marker == "@cert-authority" for k in everything)


def known_hosts_line(conf: SshConfig, kind: str, blob: bytes) -> str:
    """Return the line for known_hosts, hashed where HashKnownHosts asks for it."""
    name = conf.port_name
    if conf.hash_known_hosts:
        salt = secrets.token_bytes(20)
        digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
        name = "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))
    return f"{name} {kind} {base64.b64encode(blob).decode()}"


def add_line(files: Iterable[str], line: str) -> None:
    """Append to the first known_hosts file, as StrictHostKeyChecking=accept-new means."""
    for file in files:
        path = Path(file).expanduser()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
        return
