"""What the system's ssh says of a login, turned into one typed error. Pure.

ssh is run with `-E FILE` and LogLevel DEBUG1: its own words go to the file, the remote command's to
stderr, so that no host can pass off its words as ssh's. The sentences are OpenSSH's, 8.0 to 10;
those that name things only in a debug line (the host's key, the keys tried) are read from there.
"""

import re
from dataclasses import dataclass

from qmigrate.controller.known_hosts import KnownKeys, Verdict, host_key_error, judge_print
from qmigrate.controller.login_words import MAX_TRIES, login_refused
from qmigrate.controller.openssh import SshConfig
from qmigrate.core.errors import (
    ConfigError,
    HostError,
    HostKeyError,
    LoginError,
    QmigrateError,
    UnreachableError,
)

_DEBUG = re.compile(r"debug[123]: ")
_MUX_OPEN = "mux_client_request_session: master session id"
_LOOK = "check the name and the port: ssh -G {}"
_GSS = "Unspecified GSS failure."


@dataclass(frozen=True, slots=True)
class SshLog:
    """One ssh's log, read."""

    said: tuple[str, ...]  # what it would have told a user
    opened: bool  # the host let us in; what came later is the command's affair
    shared: bool  # by way of a ControlMaster's connection
    offered: tuple[str, str] | None  # the host key: type and SHA256 fingerprint
    tried: tuple[str, ...]  # sentences, as in `login.Keys`
    methods: tuple[str, ...]  # that the host would take
    status: int | None  # of the command, if the host told it

    @property
    def text(self) -> str:
        """What it said, as last words."""
        return "\n".join(self.said)


def read_log(text: str) -> SshLog:
    """Return what a log says; lines that mean nothing to us are kept in `said` or left out."""
    said: list[str] = []
    tried: list[str] = []
    offered: tuple[str, str] | None = None
    methods: tuple[str, ...] = ()
    opened = shared = False
    status: int | None = None
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        debug = _DEBUG.match(line)
        words = line[debug.end() :] if debug else line
        if words.startswith("Authenticated to "):
            opened = True
        elif not debug:
            if line.strip() and not line.startswith(("Transferred: ", "Bytes per second: ")):
                said.append(line.rstrip())
        elif words.startswith(_MUX_OPEN):
            opened = shared = True
        elif found := re.match(
            r"Server host (?:key|certificate): (\S+) (SHA256:\S+?),?(?: |$)", words
        ):
            offered = (found[1], found[2])
        elif found := re.match(r"Authentications that can continue: (.*)", words):
            methods = tuple(found[1].strip().split(","))
        elif found := re.match(r"Offering public key: (.*)", words):
            tried.append(_key(found[1]))
        elif found := re.match(r"Next authentication method: (?!publickey|none)(\S+)", words):
            tried.append(found[1])
        elif words.startswith(_GSS) and following and tried:
            tried[-1] = f"gssapi-with-mic ({following.removeprefix('debug1: ').strip()})"
        elif found := re.match(r"Exit status (\d+)", words):
            status = int(found[1])
    return SshLog(
        tuple(said), opened, shared, offered, tuple(dict.fromkeys(tried)), methods, status
    )


def _key(words: str) -> str:
    """Return a key as `login.Keys` names it, from "NAME TYPE SHA256:… [explicit] [agent]"."""
    found = re.match(r"(.*?) (\S+) (SHA256:\S+)(.*)", words)
    if found is None:
        return words.strip()
    if "agent" in found[4].split():
        return f"{found[2]} {found[1] or found[3]} of the ssh-agent"
    return found[1] or found[3]


# A sentence of ssh's → the error's class, our sentence, what to do. {host} {port} {destination} and
# the groups of the pattern may be used. The first that matches any line counts.
_SENTENCES: tuple[tuple[str, type[QmigrateError], str, str | None], ...] = (
    (
        r"[Bb]ad configuration option|Bad owner or permissions on \S+",
        ConfigError,
        "ssh cannot use its configuration for {destination}",
        None,
    ),
    (
        r"ssh: Could not resolve hostname (?P<name>\S+): (?P<why>.*)",
        UnreachableError,
        "the name {name} is not known: {why}",
        _LOOK,
    ),
    (
        r"hostname contains invalid characters",
        UnreachableError,
        "the name {host} is not known: it contains invalid characters",
        _LOOK,
    ),
    (
        r"ssh: connect to host \S+ port \d+: Connection timed out",
        UnreachableError,
        "{host} port {port}: no answer within {limit} s",
        _LOOK,
    ),
    (
        r"ssh: connect to host \S+ port \d+: (?P<why>.*)",
        UnreachableError,
        "{host} port {port}: {why}",
        _LOOK,
    ),
    (
        r"(?:banner exchange|kex_exchange_identification): .*(?:invalid format|too long|no SSH)",
        UnreachableError,
        "{host} port {port} does not speak SSH with us",
        _LOOK,
    ),
    (
        r"Connection timed out during banner exchange",
        UnreachableError,
        "{host} port {port}: no answer within {limit} s",
        _LOOK,
    ),
    (
        r"Unable to negotiate with .*: (?P<why>no matching .*?) found\. Their offer: (?P<offer>.*)",
        UnreachableError,
        "{host} port {port} does not speak SSH with us: {why}; it offers {offer}",
        "allow one of them for this host in ~/.ssh/config, if it is still good enough for you",
    ),
    (
        r"mux_client_request_session: session request failed: (?P<why>.*)",
        UnreachableError,
        "{host} starts no command for {user}: {why}",
        "its MaxSessions may be reached: ssh -O exit {destination}",
    ),
    (
        r"(?:kex_exchange_identification|ssh_exchange_identification|banner exchange): (?P<why>.*)",
        UnreachableError,
        "{host} port {port} does not speak SSH with us: {why}",
        None,
    ),
    (
        r"(?P<why>Connection (?:closed|reset) by .*)",
        UnreachableError,
        "{host} port {port} does not speak SSH with us: {why}",
        None,
    ),
    (
        r"ssh_dispatch_run_fatal: (?P<why>.*)",
        UnreachableError,
        "{host} port {port} does not speak SSH with us: {why}",
        None,
    ),
)
_LIBRARY = re.compile(r"is not a PKCS11 library|C_Login failed|no slots|dlopen .* failed")
_SIGNING = re.compile(r"sign_and_send_pubkey: signing failed|agent refused operation")
_OPEN_FILE = re.compile(r"Permissions \d+ for '(?P<file>[^']+)' are too open")
_NO_COMMAND = re.compile(
    r"channel \d+: open failed: (?P<why>.*)|(?P<exec>exec request failed on channel \d+)"
)
_LOST = (
    (re.compile(r"Timeout, server .* not responding"), "no sign of life for {silence} s"),
    (re.compile(r"Connection to .* closed by remote host"), "the host closed the connection"),
    (re.compile(r"client_loop: .*|Connection (?:closed|reset) by .*|packet_write_wait: .*"), ""),
)


def explain(
    log: SshLog,
    conf: SshConfig,
    known: KnownKeys,
    *,
    stderr: str = "",
    locked: tuple[str, ...] = (),
    limit_s: float = 0,
) -> QmigrateError:
    """Return why ssh did not let a command be started, as the error that it means.

    `stderr`: a proxy's last words, and the host's banner; `locked`: key files that need their
    passphrase; `limit_s`: the deadline that ssh had for the connection.
    """
    words = "\n".join(filter(None, (log.text, stderr))) or None
    if "Host key verification failed." in log.said:
        return _host_key(log, conf, known, words)
    if any("Permission denied (" in line for line in log.said):
        return _login(log, conf, locked, words)
    if any("Too many authentication failures" in line for line in log.said):
        return login_refused(
            conf, tried=log.tried, locked=locked, methods=log.methods, why=MAX_TRIES
        )
    told = {
        "host": conf.hostname,
        "port": conf.port,
        "user": conf.user,
        "destination": conf.destination,
        "limit": f"{limit_s:g}",
    }
    for pattern, kind, sentence, fix in _SENTENCES:
        for line in log.said:
            if found := re.search(pattern, line):
                what = sentence.format(**told, **_strings(found))
                step = fix.format(conf.destination, **told) if fix else None
                return kind(what, phase="connect", last_words=words, next_step=step)
    if log.opened and (why := _no_command(log)):
        what = f"{conf.hostname} starts no command for {conf.user}: {why}"
        return UnreachableError(what, phase="connect", last_words=words)
    what = f"ssh did not reach {conf.hostname} port {conf.port}"
    if log.said:
        what += f": {log.said[-1]}"
    return UnreachableError(what, phase="connect", last_words=words)


def _strings(found: re.Match[str]) -> dict[str, str]:
    return {name: (value or "").strip() for name, value in found.groupdict().items()}


def _no_command(log: SshLog) -> str | None:
    for line in log.said:
        if found := _NO_COMMAND.search(line):
            return (found["why"] or found["exec"]).strip()
    return None


def starts_no_command(log: SshLog) -> bool:
    """Tell whether the host let us in and then ran nothing."""
    return _no_command(log) is not None


def _login(log: SshLog, conf: SshConfig, locked: tuple[str, ...], words: str | None) -> LoginError:
    def first(pattern: re.Pattern[str]) -> re.Match[str] | None:
        return next((m for line in log.said if (m := pattern.search(line))), None)

    why = None
    fix = None
    if found := first(_OPEN_FILE):
        why = f"ssh uses no key that others can read: {found['file']}"
        fix = f"chmod 600 {found['file']}"
    elif found := first(_SIGNING):
        why = f"the key's holder did not sign: {found.string}"
        fix = "touch the token when it blinks, or unlock the ssh-agent; then try again"
    elif found := first(_LIBRARY):
        why = f"the PKCS#11 provider gives no key: {found.string}"
        fix = f"ssh-keygen -D {dict(conf.needs).get('PKCS11Provider', 'LIBRARY')} must list one"
    elif any("credentials" in text for text in log.tried if text.startswith("gssapi")):
        fix = "kinit, then try again"
    error = login_refused(conf, tried=log.tried, locked=locked, methods=log.methods, why=why)
    return LoginError(
        error.problem.what,
        phase="connect",
        last_words=words,
        next_step=(None if locked else fix) or error.problem.next_step,
    )


def _host_key(log: SshLog, conf: SshConfig, known: KnownKeys, words: str | None) -> HostError:
    """Return the error that paramiko's session gives, if we understand what ssh saw."""
    if log.offered is not None:
        kind, print_ = log.offered
        verdict, lines = judge_print(kind, print_, known)
        if verdict is Verdict.AUTHORITY:
            places = ", ".join(k.place for k in lines)
            what = f"{conf.port_name} is known by a certificate authority ({places})"
            what += f"; it offered {kind} {print_} and no certificate of that authority"
            fix = "have the host's key signed: HostCertificate in its sshd_config"
            return HostKeyError(what, phase="connect", last_words=words, next_step=fix)
        if verdict is not Verdict.KNOWN:
            return host_key_error(conf, verdict, lines, f"{kind} {print_}")
    what = f"ssh does not trust the host key of {conf.port_name}"
    if log.offered is not None:
        what += f": {' '.join(log.offered)}"
    fix = f"see what ssh says of it: ssh {conf.destination}"
    return HostKeyError(what, phase="connect", last_words=words, next_step=fix)


def why_lost(log: SshLog, *, silence_s: float) -> str | None:
    """Return why a connection ended that had stood, if ssh has said so."""
    for line in log.said:
        for pattern, sentence in _LOST:
            if found := pattern.search(line):
                return sentence.format(silence=f"{silence_s:g}") or found[0]
    return None
