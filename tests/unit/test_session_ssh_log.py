"""ssh's words, as seen in the wild, and the one error that each of them means."""

import base64
import re
from dataclasses import replace

import pytest

from qmigrate.controller.known_hosts import KnownKey, KnownKeys, fingerprint
from qmigrate.controller.openssh import SshConfig, parse_ssh_g
from qmigrate.controller.openssh_session import ssh_argv
from qmigrate.controller.ssh_log import explain, read_log, starts_no_command, why_lost
from qmigrate.core.errors import (
    ConfigError,
    HostKeyError,
    LoginError,
    QmigrateError,
    UnreachableError,
)

BLOB = b"\0\0\0\x0bssh-ed25519" + bytes(36)
PRINT = fingerprint(BLOB)
CONF = parse_ssh_g("host srv\nuser lis\nhostname srv.example\nport 22", "srv", None)
NOTHING = KnownKeys(())

ADMITTED = """\
debug1: Connecting to srv.example [192.0.2.1] port 22.
debug1: Server host key: ssh-ed25519 SHA256:2apTJVyardSDQZZf6pAmcr0KW1Aw6q5M2swzRqTYqJg
debug1: Authentications that can continue: publickey,password
debug1: Offering public key: /keys/id ED25519 SHA256:OtRPXYQ0QS0Sqx+ylCUT4iyHwL+oDVF9n2Hga
Authenticated to srv.example ([192.0.2.1]:22) using "publickey".
"""

# What ssh said → the error's class, and what must be in it. From OpenSSH 7.4 to 10.0: what this
# machine's ssh prints, and what people have shown of theirs in public.
SEEN: dict[str, tuple[str, type[QmigrateError], tuple[str, ...]]] = {
    "no such name": (
        "ssh: Could not resolve hostname srv: Name or service not known",
        UnreachableError,
        ("the name srv is not known: Name or service not known", "ssh -G srv"),
    ),
    "no name server": (
        "ssh: Could not resolve hostname srv: Temporary failure in name resolution",
        UnreachableError,
        ("Temporary failure",),
    ),
    "a name with a blank": (
        "hostname contains invalid characters",
        UnreachableError,
        ("invalid characters",),
    ),
    "refused": (
        "ssh: connect to host srv port 22: Connection refused",
        UnreachableError,
        ("srv.example port 22: Connection refused", "ssh -G srv"),
    ),
    "no route": (
        "ssh: connect to host 192.0.2.1 port 22: No route to host",
        UnreachableError,
        ("No route to host",),
    ),
    "silence": (
        "ssh: connect to host 192.0.2.1 port 22: Connection timed out",
        UnreachableError,
        ("srv.example port 22: no answer within 10 s",),
    ),
    "silence after connecting": (
        "Connection timed out during banner exchange\nConnection to 192.0.2.1 port 22 timed out",
        UnreachableError,
        ("no answer within 10 s",),
    ),
    "hung up before a word": (
        (
            "kex_exchange_identification: Connection closed by remote host\n"
            "Connection closed by 192.0.2.1 port 22"
        ),
        UnreachableError,
        ("does not speak SSH with us: Connection closed by remote host",),
    ),
    "hung up before a word, 7.4": (
        "ssh_exchange_identification: Connection closed by remote host",
        UnreachableError,
        ("does not speak SSH with us: Connection closed by remote host",),
    ),
    "a firewall's reset": (
        (
            "kex_exchange_identification: read: Connection reset by peer\n"
            "Connection reset by 192.0.2.1 port 22"
        ),
        UnreachableError,
        ("Connection reset by peer",),
    ),
    "a web server": (
        (
            "kex_exchange_identification: banner line contains invalid characters\n"
            "banner exchange: Connection to 192.0.2.1 port 80: invalid format"
        ),
        UnreachableError,
        ("does not speak SSH",),
    ),
    "an old switch": (
        (
            "Unable to negotiate with 192.0.2.1 port 22: no matching key exchange method found. "
            "Their offer: diffie-hellman-group1-sha1"
        ),
        UnreachableError,
        ("no matching key exchange method", "it offers diffie-hellman-group1-sha1"),
    ),
    "an old host key": (
        (
            "Unable to negotiate with 192.0.2.1 port 22: no matching host key type found. "
            "Their offer: ssh-rsa,ssh-dss"
        ),
        UnreachableError,
        ("no matching host key type", "ssh-rsa,ssh-dss"),
    ),
    "a broken wire": (
        (
            "ssh_dispatch_run_fatal: Connection to 192.0.2.1 port 22: message authentication code "
            "incorrect"
        ),
        UnreachableError,
        ("message authentication code incorrect",),
    ),
    "wrong key": (
        "lis@srv: Permission denied (publickey,gssapi-keyex,gssapi-with-mic).",
        LoginError,
        ("lis@srv.example lets nobody in with what was tried: no key", "ssh-copy-id srv"),
    ),
    "wrong key, which one": (
        (
            "debug1: Authentications that can continue: publickey,password\n"
            "debug1: Offering public key: /keys/id ED25519 SHA256:abc explicit\n"
            "debug1: Offering public key: lis@laptop RSA SHA256:def agent\n"
            "debug1: Authentications that can continue: publickey,password\n"
            "lis@srv: Permission denied (publickey,password)."
        ),
        LoginError,
        ("/keys/id; RSA lis@laptop of the ssh-agent", "would ask for a password"),
    ),
    "no ticket": (
        (
            "debug1: Authentications that can continue: gssapi-with-mic\n"
            "debug1: Next authentication method: gssapi-with-mic\n"
            "debug1: Unspecified GSS failure.  Minor code may provide more information\n"
            "No Kerberos credentials available (default cache: FILE:/tmp/krb5cc_1000)\n"
            "debug1: No more authentication methods to try.\n"
            "lis@srv: Permission denied (gssapi-with-mic)."
        ),
        LoginError,
        ("No Kerberos credentials available", "kinit"),
    ),
    "too many keys": (
        (
            "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures\n"
            "Disconnected from 192.0.2.1 port 22"
        ),
        LoginError,
        ("MaxAuthTries", "IdentitiesOnly"),
    ),
    "a key for all to read": (
        (
            "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\n"
            "@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @\n"
            "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\n"
            "Permissions 0644 for '/keys/id' are too open.\n"
            "It is required that your private key files are NOT accessible by others.\n"
            "This private key will be ignored.\n"
            'Load key "/keys/id": bad permissions\n'
            "lis@srv: Permission denied (publickey)."
        ),
        LoginError,
        ("no key that others can read: /keys/id", "chmod 600 /keys/id"),
    ),
    "nobody touched the token": (
        (
            'sign_and_send_pubkey: signing failed for ED25519-SK "/keys/id_ed25519_sk": '
            "device not found\n"
            "lis@srv: Permission denied (publickey)."
        ),
        LoginError,
        ("the key's holder did not sign", "device not found", "touch the token"),
    ),
    "a locked agent": (
        (
            'sign_and_send_pubkey: signing failed for RSA "lis@laptop" from agent: '
            "agent refused operation\n"
            "lis@srv: Permission denied (publickey)."
        ),
        LoginError,
        ("agent refused operation", "unlock the ssh-agent"),
    ),
    "no such library": (
        (
            "lib_contains_symbol: open /usr/lib/token.so: No such file or directory\n"
            "provider /usr/lib/token.so is not a PKCS11 library\n"
            "lis@srv: Permission denied (publickey)."
        ),
        LoginError,
        ("the PKCS#11 provider gives no key", "ssh-keygen -D"),
    ),
    "no room in the master": (
        (
            "debug1: mux_client_request_session: master session id: 2\n"
            "mux_client_request_session: session request failed: Session open refused by peer\n"
            "ControlSocket /run/user/0/cm already exists, disabling multiplexing"
        ),
        UnreachableError,
        ("starts no command for lis: Session open refused by peer", "ssh -O exit srv"),
    ),
    "no sessions at all": (
        ADMITTED + "channel 0: open failed: administratively prohibited: open failed",
        UnreachableError,
        ("starts no command for lis: administratively prohibited: open failed",),
    ),
    "no exec": (
        ADMITTED + "exec request failed on channel 0",
        UnreachableError,
        ("starts no command for lis: exec request failed",),
    ),
    "somebody else's configuration": (
        "Bad owner or permissions on /keys/config",
        ConfigError,
        ("ssh cannot use its configuration for srv", "/keys/config"),
    ),
    "an option of tomorrow": (
        "command-line: line 0: Bad configuration option: requiredrsasize",
        ConfigError,
        ("requiredrsasize",),
    ),
    "nothing we know": (
        "Something bad happened.",
        UnreachableError,
        ("ssh did not reach srv.example port 22: Something bad happened.",),
    ),
    "nothing at all": ("", UnreachableError, ("ssh did not reach srv.example port 22",)),
}


@pytest.mark.parametrize("case", SEEN)
def test_what_ssh_says_is_one_error(case: str) -> None:
    text, kind, words = SEEN[case]
    error = explain(read_log(text), CONF, NOTHING, limit_s=10)
    assert type(error) is kind
    problem = error.problem
    assert problem.phase == "connect"
    told = " | ".join(filter(None, (problem.what, problem.last_words, problem.next_step)))
    for word in words:
        assert word in told
    assert not re.search(r"[{}]", told), "a blank of the sentence was not filled in"


def known(*keys: tuple[str, bytes, str]) -> KnownKeys:
    return KnownKeys(
        tuple(KnownKey(kind, blob, mark, f"/kh:{n}") for n, (kind, blob, mark) in enumerate(keys))
    )


OTHER = BLOB[:-1] + b"\1"
REFUSED = f"debug1: Server host key: ssh-ed25519 {PRINT}\nHost key verification failed."


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (known(), f"srv.example is not in known_hosts; it offered ssh-ed25519 {PRINT}"),
        (known(("ssh-ed25519", OTHER, "")), "the host key of srv.example has changed"),
        (known(("ssh-rsa", OTHER, "")), "srv.example is known by ssh-rsa only (/kh:0)"),
        (known(("ssh-ed25519", BLOB, "@revoked")), "the host key of srv.example is revoked"),
        (known(("ssh-rsa", OTHER, "@cert-authority")), "known by a certificate authority (/kh:0)"),
        # ssh asked somebody else, KnownHostsCommand say: we do not know why
        (known(("ssh-ed25519", BLOB, "")), "ssh does not trust the host key of srv.example"),
    ],
)
def test_a_host_key_that_ssh_refused_is_explained_from_known_hosts(
    lines: KnownKeys, words: str
) -> None:
    error = explain(read_log(REFUSED), CONF, lines)
    assert type(error) is HostKeyError
    assert words in error.problem.what
    assert PRINT in error.problem.what


def test_a_host_key_refused_without_a_debug_line_is_still_one() -> None:
    text = "No ED25519 host key is known for srv and you have requested strict checking.\n"
    error = explain(read_log(text + "Host key verification failed."), CONF, NOTHING)
    assert type(error) is HostKeyError
    assert "strict checking" in (error.problem.last_words or "")


def test_a_key_that_needs_its_passphrase_is_named() -> None:
    text = SEEN["wrong key, which one"][0]
    error = explain(read_log(text), CONF, NOTHING, locked=("/keys/id",))
    assert "/keys/id needs its passphrase" in error.problem.what
    assert error.problem.next_step == "ssh-add /keys/id"


def test_a_proxys_last_words_are_kept() -> None:
    text = SEEN["hung up before a word"][0]
    error = explain(read_log(text), CONF, NOTHING, stderr="/bin/sh: 1: nc: not found")
    assert "nc: not found" in (error.problem.last_words or "")


def test_a_login_that_came_off_is_known_and_what_it_said_is_not_kept() -> None:
    log = read_log(ADMITTED + "debug1: Exit status 3\nTransferred: sent 1, received 2 bytes\n")
    assert (log.opened, log.shared, log.status, log.said) == (True, False, 3, ())
    assert log.methods == ("publickey", "password")
    assert log.offered == (
        "ssh-ed25519",
        "SHA256:2apTJVyardSDQZZf6pAmcr0KW1Aw6q5M2swzRqTYqJg",
    )
    assert not starts_no_command(log)
    shared = read_log("debug1: mux_client_request_session: master session id: 2\n")
    assert (shared.opened, shared.shared) == (True, True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Timeout, server srv.example not responding.", "no sign of life for 15 s"),
        ("Connection to srv.example closed by remote host.", "the host closed the connection"),
        ("client_loop: send disconnect: Broken pipe", "client_loop: send disconnect: Broken pipe"),
        ("Connection reset by 192.0.2.1 port 22", "Connection reset by 192.0.2.1 port 22"),
        ("debug1: Exit status 0", None),
    ],
)
def test_why_a_connection_ended_is_told_in_words(line: str, why: str | None) -> None:
    assert why_lost(read_log(ADMITTED + line), silence_s=15) == why


def config(**more: object) -> SshConfig:
    return replace(CONF, **more)  # type: ignore[arg-type]


def test_ssh_is_never_let_ask_and_never_starts_what_would_stay() -> None:
    argv = ssh_argv(config(file="/f"), "/log", "true")
    assert {"BatchMode=yes", "ControlMaster=no", "PermitLocalCommand=no"} <= set(argv)
    assert argv[-3:] == ("--", "srv", "true")
    assert argv[argv.index("-F") + 1] == "/f"
    assert argv[argv.index("-E") + 1] == "/log"


@pytest.mark.parametrize("strict", ["yes", "true", "ask", "accept-new", "no", "off", "false"])
def test_trust_is_never_weakened(strict: str) -> None:
    said = [word for word in ssh_argv(config(strict=strict), "/log", "true") if "Strict" in word]
    assert said == (
        ["StrictHostKeyChecking=accept-new"]
        if strict in ("no", "off", "false", "accept-new")
        else []
    )


def test_the_users_own_deadline_counts() -> None:
    assert not any("ConnectTimeout" in w for w in ssh_argv(config(connect_timeout_s=3), "", ""))
    assert "ConnectTimeout=10" in ssh_argv(CONF, "", "")


def test_the_fingerprint_is_that_of_openssh() -> None:
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"  # github.com's
    assert fingerprint(base64.b64decode(key)) == (
        "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
    )
