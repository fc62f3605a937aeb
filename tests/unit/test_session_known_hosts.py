"""Whom we trust: the judgement on an offered host key, without a network."""

import base64
import hashlib
import hmac
from dataclasses import replace

import pytest

from qmigrate.controller.known_hosts import (
    KnownKey,
    KnownKeys,
    Verdict,
    accept_or_raise,
    fingerprint,
    judge,
    known_hosts_line,
    order_algorithms,
    parse_found,
)
from qmigrate.controller.openssh import SshConfig, parse_ssh_g
from qmigrate.core.errors import HostKeyError, NeedsOpensshError

ED, RSA = "ssh-ed25519", "ssh-rsa"
BARE = "host h\nuser u\nhostname h\nport 22\nuserknownhostsfile /k /k2\n"


def config(**changes: object) -> SshConfig:
    return replace(parse_ssh_g(BARE, "h", None), **changes)  # type: ignore[arg-type]


def key(kind: str, blob: bytes, marker: str = "") -> KnownKey:
    return KnownKey(kind, blob, marker, "/k:1")


@pytest.mark.parametrize(
    ("by_port", "by_name", "verdict"),
    [
        ([], [], Verdict.UNKNOWN),
        ([key(ED, b"a")], [], Verdict.KNOWN),
        ([], [key(ED, b"a")], Verdict.KNOWN),
        ([key(ED, b"b")], [], Verdict.CHANGED),
        ([key(ED, b"b"), key(ED, b"a")], [], Verdict.KNOWN),
        ([key(ED, b"b")], [key(ED, b"a")], Verdict.CHANGED),  # the bare name does not save it
        ([key(RSA, b"r")], [], Verdict.OTHER_KIND),
        ([key(ED, b"a"), key(ED, b"a", "@revoked")], [], Verdict.REVOKED),
        ([key(ED, b"a")], [key(ED, b"a", "@revoked")], Verdict.REVOKED),
        ([key(ED, b"b", "@revoked")], [], Verdict.UNKNOWN),  # another key was revoked
        ([key(ED, b"c", "@cert-authority")], [], Verdict.AUTHORITY),
        ([key(ED, b"c", "@cert-authority"), key(ED, b"a")], [], Verdict.KNOWN),
    ],
)
def test_the_verdict_is_that_of_openssh(
    by_port: list[KnownKey], by_name: list[KnownKey], verdict: Verdict
) -> None:
    assert judge(ED, b"a", KnownKeys(tuple(by_port), tuple(by_name)))[0] is verdict


def test_a_host_known_by_rsa_is_asked_for_rsa_first() -> None:
    known = KnownKeys((key(RSA, b"r"),))
    order = order_algorithms(known, ["ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"])
    assert order == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")


@pytest.mark.parametrize("strict", ["accept-new", "no", "off", "false"])
def test_configuration_may_accept_a_stranger_but_never_a_changed_key(strict: str) -> None:
    conf = config(strict=strict)
    assert accept_or_raise(conf, ED, b"a", KnownKeys(()))
    with pytest.raises(HostKeyError):
        accept_or_raise(conf, ED, b"a", KnownKeys((key(ED, b"b"),)))


@pytest.mark.parametrize("strict", ["ask", "true", "yes"])
def test_a_stranger_is_refused_with_his_fingerprint_and_the_way_to_know_him(strict: str) -> None:
    with pytest.raises(HostKeyError) as caught:
        accept_or_raise(config(strict=strict, file="/f"), ED, b"a", KnownKeys(()))
    problem = caught.value.problem
    assert "SHA256:ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs" in problem.what
    assert (problem.next_step or "").endswith("ssh -F /f h")


def test_a_changed_key_names_the_line_and_how_to_forget_it() -> None:
    with pytest.raises(HostKeyError) as caught:
        accept_or_raise(config(), ED, b"a", KnownKeys((key(ED, b"b"),)))
    assert "not that of /k:1" in caught.value.problem.what
    assert "ssh-keygen -R h -f /k" in (caught.value.problem.next_step or "")


def test_a_certificate_authority_is_left_to_openssh() -> None:
    with pytest.raises(NeedsOpensshError, match="certificate authority"):
        accept_or_raise(config(), ED, b"a", KnownKeys((key(ED, b"c", "@cert-authority"),)))


def test_the_output_of_ssh_keygen_is_read_with_markers_and_line_numbers() -> None:
    blob = base64.b64encode(b"blob").decode()
    text = (
        f"# Host h found: line 3 \n|1|salt|hash= {ED} {blob} a comment\n"
        f"# Host h found: line 7 REVOKED\n@revoked h {RSA} {blob}\n"
        f"h {ED} not-base64!\n\nh\n"
    )
    assert parse_found(text, "/k") == (
        KnownKey(ED, b"blob", "", "/k:3"),
        KnownKey(RSA, b"blob", "@revoked", "/k:7"),
    )


def test_a_hashed_line_hides_the_name_and_matches_it() -> None:
    line = known_hosts_line(config(hash_known_hosts=True, port=99), ED, b"a")
    _, _, salt, digest = line.split()[0].split("|")
    made = hmac.new(base64.b64decode(salt), b"[h]:99", hashlib.sha1).digest()
    assert base64.b64decode(digest) == made


def test_a_fingerprint_is_written_as_openssh_writes_it() -> None:
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
