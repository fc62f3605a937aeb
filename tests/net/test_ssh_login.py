"""Logging in to a real sshd: whom we trust is whom OpenSSH trusts, and every refusal says why."""

import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import paramiko
import pytest
import trio

from qmigrate.controller import session as session_module
from qmigrate.controller.session import open_session
from qmigrate.controller.streams import END_DEADLINE_S, CommandStream
from qmigrate.core.errors import (
    ConfigError,
    HostError,
    HostKeyError,
    LoginError,
    NeedsOpensshError,
    QmigrateError,
    UnreachableError,
)
from qmigrate.core.model import HostSpec, SshClient
from tests.support.loopback import freezable, serve_loopback
from tests.support.sshd import Sshd, keygen, running_sshd

pytestmark = pytest.mark.net


@pytest.fixture(params=[SshClient.PARAMIKO, SshClient.OPENSSH])
def client(request: pytest.FixtureRequest) -> SshClient:
    found: SshClient = request.param
    return found


async def said(spec: HostSpec) -> str:
    """Return what `echo` says through a session, to see that a login works."""
    async with open_session(spec) as session, await session.run(["echo", "it's", "$HOME"]) as out:
        return (await read_all(out)).decode()


async def read_all(stream: CommandStream) -> bytes:
    found = bytearray()
    while chunk := await stream.receive_some():
        found += chunk
    return bytes(found)


async def refusal(spec: HostSpec, kind: type[QmigrateError]) -> str:
    """Return every word of the error that a login must end with."""
    with pytest.raises(kind) as caught:
        await said(spec)
    problem = caught.value.problem
    assert problem.phase == "connect"
    return " | ".join(filter(None, (problem.what, problem.last_words, problem.next_step)))


def real_ssh(server: Sshd, *options: str) -> bool:
    """Return whether OpenSSH logs in with the same files, never asking."""
    argv = ["ssh", "-F", str(server.config), "-o", "BatchMode=yes", *options, "server", "true"]
    return subprocess.run(argv, check=False, capture_output=True, timeout=30).returncode == 0


KNOWN_HOSTS = {
    "with port": "[127.0.0.1]:{port} {ed}",
    "bare name": "127.0.0.1 {ed}",
    "another port": "[127.0.0.1]:1 {ed}",
    "wildcard": "127.0.0.* {ed}",
    "wildcard with port": "[127.0.0.*]:{port} {ed}",
    "negated": "127.0.0.*,!127.0.0.1 {ed}",
    "list": "a,b,[127.0.0.1]:{port} {ed}",
    "rsa, both offered": "[127.0.0.1]:{port} {rsa}",
    "changed": "[127.0.0.1]:{port} {other}",
    "changed, the bare name right": "[127.0.0.1]:{port} {other}\n127.0.0.1 {ed}",
    "second line right": "[127.0.0.1]:{port} {other}\n[127.0.0.1]:{port} {ed}",
    "revoked": "[127.0.0.1]:{port} {ed}\n@revoked * {ed}",
    "another key revoked": "@revoked * {other}\n[127.0.0.1]:{port} {ed}",
    "garbage beside": "what is this\n[127.0.0.1]:{port} {ed}\n@nonsense * {ed}",
    "nothing": "",
}


@pytest.mark.parametrize("case", KNOWN_HOSTS)
async def test_we_trust_whom_openssh_trusts(client: SshClient, case: str, tmp_path: Path) -> None:
    keygen(tmp_path / "other")
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    async with running_sshd(tmp_path, host_keys=("ed25519", "rsa"), client=client) as server:
        text = KNOWN_HOSTS[case].format(
            port=server.port, ed=server.public("ed25519"), rsa=server.public("rsa"), other=other
        )
        server.known_hosts.write_text(text + "\n")
        theirs = await trio.to_thread.run_sync(real_ssh, server)
        try:
            ours = await said(server.spec()) == "it's $HOME\n"
        except HostKeyError:
            ours = False
        assert ours == theirs


async def test_a_hashed_name_is_found(client: SshClient, tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        await trio.run_process(["ssh-keygen", "-q", "-H", "-f", str(server.known_hosts)])
        assert "127.0.0.1" not in server.known_hosts.read_text()
        assert await said(server.spec()) == "it's $HOME\n"


async def test_an_unknown_host_is_refused_with_its_fingerprint_and_added_by_nobody(
    client: SshClient,
    tmp_path: Path,
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.known_hosts.write_text("")
        text = await refusal(server.spec(), HostKeyError)
        argv = ["ssh-keygen", "-lf", str(tmp_path / "host_ed25519.pub")]
        listed = await trio.run_process(argv, capture_stdout=True)
        assert listed.stdout.decode().split()[1] in text
        assert f"ssh -F {server.config} server" in text
        assert server.known_hosts.read_text() == ""


async def test_a_changed_host_key_names_the_line_that_differs(
    client: SshClient, tmp_path: Path
) -> None:
    keygen(tmp_path / "other")
    async with running_sshd(tmp_path, client=client) as server:
        public = (tmp_path / "other.pub").read_text()
        server.known_hosts.write_text(f"# mine\n[127.0.0.1]:{server.port} {public}")
        text = await refusal(server.spec(), HostKeyError)
        assert "has changed" in text
        assert f"{server.known_hosts}:2" in text
        assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in text


async def test_a_host_key_known_by_another_algorithm_only_says_which(
    client: SshClient, tmp_path: Path
) -> None:
    keygen(tmp_path / "other", "ecdsa")
    async with running_sshd(tmp_path, client=client) as server:
        public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {public}\n")
        text = await refusal(server.spec(), HostKeyError)
        assert "known by ecdsa-sha2-nistp256 only" in text
        if client is SshClient.PARAMIKO:  # ssh tells the fingerprint only
            assert f"[127.0.0.1]:{server.port} {server.public('ed25519')}" in text


async def test_a_revoked_key_is_refused_whatever_else_is_known(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        known = server.known_hosts.read_text()
        server.known_hosts.write_text(f"{known}@revoked * {server.public('ed25519')}\n")
        assert "is revoked" in await refusal(server.spec(), HostKeyError)


async def test_an_authority_is_asked_of_by_openssh_only(client: SshClient, tmp_path: Path) -> None:
    kind = NeedsOpensshError if client is SshClient.PARAMIKO else HostKeyError
    async with running_sshd(tmp_path, client=client) as server:
        server.know("*", marker="@cert-authority")
        assert "certificate authority" in await refusal(server.spec(), kind)


async def test_accept_new_adds_a_line_that_openssh_accepts(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.known_hosts.write_text("")
        server.configure("StrictHostKeyChecking accept-new", "HashKnownHosts yes")
        await said(server.spec())
        assert "127.0.0.1" not in server.known_hosts.read_text()
        strict = ("-o", "StrictHostKeyChecking=yes")
        assert await trio.to_thread.run_sync(real_ssh, server, *strict)


async def test_include_match_and_alias_are_read_by_ssh_itself(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.know("cluster")
        (tmp_path / "more").write_text(
            'Match originalhost nick exec "test %n = nick"\n'
            f"  HostName 127.0.0.1  # home\n  Port {server.port}\n  HostKeyAlias cluster\n"
            "Match localuser nobody\n  Port 1\n"
        )
        server.configure(f"Include {tmp_path}/more")
        assert await said(server.spec("nick")) == "it's $HOME\n"


async def test_a_jump_host_is_passed_and_named_when_it_fails(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        behind = f"Host behind\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump "
        server.configure(behind + "server")
        assert await said(server.spec("behind")) == "it's $HOME\n"
        assert server.connections == 2
        server.configure(behind + "nowhere.invalid")
        text = await refusal(server.spec("behind"), UnreachableError)
        assert "nowhere.invalid" in text
        assert "Could not resolve hostname" in text


async def test_a_proxy_command_that_dies_leaves_its_last_words(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        # Not `echo … >&2`: it lets go of its stdout first, and ssh ends it before it has spoken.
        server.configure("ProxyCommand sh -c 'echo no way to %h >&2'")
        assert "no way to 127.0.0.1" in await refusal(server.spec(), UnreachableError)


@asynccontextmanager
async def ssh_agent(path: Path, *keys: Path) -> AsyncIterator[None]:
    argv = ["ssh-agent", "-D", "-a", str(path)]
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        await process.stdout.receive_some()  # it prints once it listens
        env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        await trio.run_process(["ssh-add", "-q", *map(str, keys)], env=env)
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
async def test_a_key_held_by_the_ssh_agent_logs_in(
    client: SshClient, kind: str, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        held = keygen(tmp_path / "held", kind)
        (tmp_path / "authorized_keys").write_text((tmp_path / "held.pub").read_text())
        async with ssh_agent(tmp_path / "agent", held):
            held.unlink()
            server.configure(f"IdentityAgent {tmp_path}/agent")
            assert await said(server.spec()) == "it's $HOME\n"
            # IdentitiesOnly: the agent's key counts only if a file names it.
            server.configure(f"IdentityAgent {tmp_path}/agent", "IdentitiesOnly yes")
            await refusal(server.spec(), LoginError)
            lines = ("IdentitiesOnly yes", f"IdentityFile {held}")
            server.configure(f"IdentityAgent {tmp_path}/agent", *lines)
            assert await said(server.spec()) == "it's $HOME\n"


async def test_a_wrong_key_is_named(client: SshClient, tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        (tmp_path / "authorized_keys").write_text("")
        text = await refusal(server.spec(), LoginError)
        assert str(server.key) in text
        assert "ssh-copy-id" in text
        assert "password" not in text


async def test_a_password_prompt_is_never_answered(client: SshClient, tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        (tmp_path / "authorized_keys").write_text("")
        settings = tmp_path / "sshd_config"
        text = settings.read_text().replace("Authentication no", "Authentication yes")
        settings.write_text(text)
        text = await refusal(server.spec(), LoginError)
        assert "would ask for a password" in text
        assert str(server.key) in text


async def test_a_key_behind_a_passphrase_is_left_to_ssh_add(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        locked = keygen(tmp_path / "locked", passphrase="secret")  # noqa: S106
        (tmp_path / "authorized_keys").write_text((tmp_path / "locked.pub").read_text())
        server.configure(f"IdentityFile {locked}", "IdentitiesOnly yes")
        text = await refusal(server.spec(), LoginError)
        assert f"{locked} needs its passphrase" in text
        assert f"ssh-add {locked}" in text


async def test_too_many_keys_are_said_to_be_too_many(client: SshClient, tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.options.append("MaxAuthTries 2")
        wrong = [keygen(tmp_path / f"wrong{number}") for number in range(4)]
        server.configure(*(f"IdentityFile {path}" for path in wrong))
        assert "IdentitiesOnly" in await refusal(server.spec(), LoginError)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-such-host.invalid", "the name no-such-host.invalid is not known"),
        ("255.255.255.255", "Network is unreachable"),
    ],
)
async def test_a_host_that_cannot_be_reached_says_how(
    client: SshClient, host: str, words: str, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host h\n  HostName {host}\n")
    text = await refusal(HostSpec("h", "h", str(config), ssh_client=client), UnreachableError)
    assert words in text
    assert "ssh -G h" in text


@asynccontextmanager
async def listener(client: SshClient, tmp_path: Path, *, accept: bool) -> AsyncIterator[HostSpec]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        config = tmp_path / "config"
        config.write_text(f"Host h\n  HostName 127.0.0.1\n  Port {port}\n  ConnectTimeout 1\n")
        spec = HostSpec("h", "h", str(config), ssh_client=client)
        with socket.create_connection(("127.0.0.1", port)):
            if accept:  # and hang up
                server.close()
            yield spec


async def test_a_closed_port_is_refused_and_a_silent_one_has_a_deadline(tmp_path: Path) -> None:
    async with listener(client, tmp_path, accept=True) as spec:
        assert "Connection refused" in await refusal(spec, UnreachableError)
    async with listener(client, tmp_path, accept=False) as spec:
        assert "no answer within 1 s" in await refusal(spec, UnreachableError)


async def test_what_speaks_no_ssh_is_said_so(client: SshClient, tmp_path: Path) -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 200)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (server,) = await nursery.start(serve_loopback, http)
        port = server.socket.getsockname()[1]
        config = tmp_path / "config"
        config.write_text(f"Host h\n  HostName 127.0.0.1\n  Port {port}\n")
        spec = HostSpec("h", "h", str(config), ssh_client=client)
        assert "does not speak SSH" in await refusal(spec, UnreachableError)
        nursery.cancel_scope.cancel()


async def test_a_configuration_that_ssh_refuses_is_shown_in_its_words(
    client: SshClient, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("Nonsense yes\n")
    text = await refusal(HostSpec("h", "h", str(config), ssh_client=client), ConfigError)
    assert "Bad configuration option: nonsense" in text


async def test_algorithms_that_the_user_forbids_are_not_used(
    client: SshClient, tmp_path: Path
) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.configure("Ciphers chacha20-poly1305@openssh.com")
        if client is SshClient.PARAMIKO:
            assert "Ciphers" in await refusal(server.spec(), NeedsOpensshError)
        else:
            server.options.append("Ciphers aes256-ctr")
            assert "no matching cipher" in await refusal(server.spec(), UnreachableError)
        server.configure("Ciphers aes256-ctr", "MACs hmac-sha2-512")
        assert await said(server.spec()) == "it's $HOME\n"


@pytest.fixture(params=["here", *SshClient])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HostSpec]:
    client = request.param
    if client == "here":
        yield HostSpec("here", None)
    else:
        async with running_sshd(tmp_path, client=client) as server:
            yield server.spec()


async def test_a_command_is_a_stream_with_an_end_a_status_and_last_words(host: HostSpec) -> None:
    script = "echo first >&2; cat; echo 'the last words' >&2; exit 7"
    async with open_session(host) as session, await session.run(["sh", "-c", script]) as stream:
        data = os.urandom(3 << 20)  # more than every buffer and window on the way
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == data
        assert await stream.wait() == 7
        assert stream.last_words() == "first\nthe last words"


async def test_a_flood_of_stderr_does_not_stop_the_command(host: HostSpec) -> None:
    script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo done; echo end >&2"
    async with open_session(host) as session, await session.run(["sh", "-c", script]) as stream:
        assert await read_all(stream) == b"done\n"
        await stream.wait()
        assert stream.last_words().endswith("xend")
        assert len(stream.last_words()) < 10_000


async def test_closing_the_stream_ends_the_command(host: HostSpec) -> None:
    async with open_session(host) as session:
        async with await session.run(["sh", "-c", "echo $$; exec cat"]) as stream:
            pid = int(await stream.receive_some())
            pidfd = os.pidfd_open(pid)
        try:
            with trio.fail_after(END_DEADLINE_S + 5):
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


async def test_a_host_that_falls_silent_is_given_up(
    client: SshClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(session_module, "KEEPALIVE_ANSWER_S", 0.5)
    frozen = trio.Event()

    async with running_sshd(tmp_path, client=client) as server, trio.open_nursery() as nursery:
        port = await freezable(nursery, server.port, frozen)
        server.know("cable")
        server.configure(f"Host far\n HostName 127.0.0.1\n Port {port}\n HostKeyAlias cable")
        async with open_session(server.spec("far")) as session, await session.run(["cat"]) as cat:
            await cat.send_all(b"x")
            assert await cat.receive_some() == b"x"
            frozen.set()
            with trio.fail_after(30):
                assert await cat.receive_some() == b""
            assert "no sign of life" in (session.why_lost() or "")
        nursery.cancel_scope.cancel()


async def test_a_cancelled_login_leaves_no_thread_waiting(
    client: SshClient, tmp_path: Path
) -> None:
    async def hold(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (silent,) = await nursery.start(serve_loopback, hold)
        port = silent.socket.getsockname()[1]
        config = tmp_path / "config"
        config.write_text(f"Host h\n  HostName 127.0.0.1\n  Port {port}\n")
        with trio.move_on_after(0.5) as scope:
            await said(HostSpec("h", "h", str(config), ssh_client=client))
        assert scope.cancelled_caught
        for thread in threading.enumerate():
            if isinstance(thread, paramiko.Transport):
                thread.join(5)
                assert not thread.is_alive()
        nursery.cancel_scope.cancel()


async def test_an_error_is_one_error_with_the_hosts_name(client: SshClient, tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=client) as server:
        server.known_hosts.write_text("")
        with pytest.raises(HostError) as caught:
            await said(server.spec())
        assert caught.value.problem.host == "server"
