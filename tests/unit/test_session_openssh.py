"""What `ssh -G` says, typed; and what we leave to OpenSSH."""

import os
import pwd

import pytest

from qmigrate.controller.openssh import (
    SshConfig,
    expand_path,
    needs_openssh,
    parse_ssh_g,
    proxy_argv,
)
from qmigrate.core.errors import ConfigError, NeedsOpensshError

HOME = pwd.getpwuid(os.getuid()).pw_dir


def parsed(*lines: str, file: str | None = None) -> SshConfig:
    base = ["host web", "user me", "hostname Web.Example", "port 2222"]
    keys = {line.split()[0] for line in lines}
    base = [line for line in base if line.split()[0] not in keys]
    return parse_ssh_g("\n".join([*base, *lines]), "web", file)


def test_names_ports_and_users_are_taken_over() -> None:
    conf = parsed("connecttimeout 7", "identitiesonly yes", "identityfile ~/a", "identityfile b")
    assert (conf.user, conf.hostname, conf.port) == ("me", "web.example", 2222)
    assert conf.port_name == "[web.example]:2222"
    assert conf.connect_timeout_s == 7
    assert conf.identities_only
    assert conf.identity_files == ("~/a", "b")


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["port 22"], "web.example"),
        (["port 22", "hostkeyalias Cluster"], "cluster"),
        (["hostkeyalias %n-%p"], "web-2222"),
    ],
)
def test_known_hosts_is_asked_for_the_name_that_openssh_asks_for(
    lines: list[str], name: str
) -> None:
    assert parsed(*lines).port_name == name


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("pkcs11provider /usr/lib/token.so", "PKCS11Provider /usr/lib/token.so"),
        ("knownhostscommand /bin/ask %H", "KnownHostsCommand"),
        ("certificatefile ~/.ssh/id-cert.pub", "CertificateFile"),
        ("bindinterface eth7", "BindInterface"),
        ("proxyusefdpass yes", "ProxyUseFdpass"),
        ("pubkeyauthentication no", "without a public key"),
        ("pubkeyauthentication false", "without a public key"),
        ("preferredauthentications gssapi-with-mic,password", "without a public key"),
        ("identityfile ~/.ssh/%C", "%C"),
        ("proxycommand nc %%C %C", "%C"),
    ],
)
def test_what_only_openssh_can_do_is_refused_by_name(line: str, reason: str) -> None:
    assert reason in (needs_openssh(parsed(line)) or "")


def test_a_master_that_listens_is_a_reason_and_its_path_alone_is_none() -> None:
    conf = parsed("controlpath /run/cm", "controlmaster auto")
    assert needs_openssh(conf) is None
    assert "/run/cm" in (needs_openssh(conf, has_master=True) or "")


def test_a_host_key_alias_with_a_token_of_openssh_is_left_to_it() -> None:
    assert "HostKeyAlias" in (needs_openssh(parsed("hostkeyalias %C")) or "")


@pytest.mark.parametrize(
    "line",
    [
        "pkcs11provider none",
        "knownhostscommand none",
        "proxyusefdpass no",
        "gssapiauthentication yes",  # distributions set it; we simply log in by key
        "preferredauthentications gssapi-with-mic,publickey",
        "proxycommand nc %%C",
        "pubkeyauthentication true",
    ],
)
def test_what_we_can_do_is_not_refused(line: str) -> None:
    assert needs_openssh(parsed(line)) is None


@pytest.mark.parametrize(
    ("lines", "argv"),
    [
        ([], None),
        (["proxycommand none"], None),
        (["proxycommand nc -x %r@%h %p %%"], ("/bin/sh", "-c", "exec nc -x me@web.example 2222 %")),
        (["proxyjump b"], ("-W", "[web.example]:2222", "--", "ssh://b")),
        (["proxyjump a:1,u@b:2"], ("-J", "a:1", "-W", "[web.example]:2222", "--", "ssh://u@b:2")),
    ],
)
def test_a_proxy_is_the_command_that_openssh_would_run(
    lines: list[str], argv: tuple[str, ...] | None
) -> None:
    made = proxy_argv(parsed(*lines))
    assert made is argv is None or (made or ())[-len(argv or ()) :] == argv


def test_a_jump_reads_the_same_configuration_and_never_asks() -> None:
    argv = proxy_argv(parsed("proxyjump b", file="/f")) or ()
    assert "BatchMode=yes" in argv
    assert argv[argv.index("-F") + 1] == "/f"


def test_identity_files_are_expanded_as_ssh_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/there")
    monkeypatch.setenv("HOME", "/elsewhere")  # OpenSSH asks the password file instead
    conf = parsed()
    assert expand_path("~/.ssh/%h-%p-%r-%n", conf) == f"{HOME}/.ssh/web.example-2222-me-web"
    assert expand_path("${WHERE}/%%d", conf) == "/there/%d"
    with pytest.raises(NeedsOpensshError, match="%Z"):
        expand_path("%Z", conf)


def test_nonsense_from_ssh_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="names no host and port"):
        parse_ssh_g("hostname x\nport many\n", "x", None)
