"""What only the system's ssh can do, done with it against a real sshd; and nothing of it stays."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmigrate.agent.requests import Echo
from qmigrate.controller import openssh_session
from qmigrate.controller.openssh_session import OpensshSession
from qmigrate.controller.remote import open_agent
from qmigrate.controller.session import SshSession, open_session
from qmigrate.core.errors import HostKeyError, LoginError, NeedsOpensshError, UnreachableError
from qmigrate.core.model import HostSpec, SshClient
from tests.support.loopback import freezable, serve_loopback
from tests.support.sshd import Sshd, keygen, running_sshd

pytestmark = pytest.mark.net

CANCEL_AFTER_S = 1.0  # ssh waits for a key exchange by then
AUTO, PARAMIKO, OPENSSH = SshClient.AUTO, SshClient.PARAMIKO, SshClient.OPENSSH


async def who(spec: HostSpec) -> type[object]:
    """Return the session's class after a command has been run by it."""
    async with open_session(spec) as session, await session.run(["echo", "in"]) as stream:
        assert await stream.receive_some() == b"in\n"
        return type(session)


def sign(authority: Path, public: Path, *more: str) -> Path:
    """Sign a key; return the certificate."""
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *more, str(public)]
    subprocess.run(argv, check=True)
    return public.with_name(public.name.removesuffix(".pub") + "-cert.pub")


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and not yet reaped."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


async def test_a_login_by_certificate_is_left_to_openssh(tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=AUTO) as server:
        authority = keygen(tmp_path / "authority")
        mine = keygen(tmp_path / "mine")
        signed = sign(authority, tmp_path / "mine.pub", "-n", "root")
        (tmp_path / "authorized_keys").write_text("")
        trusted = tmp_path / "authority.pub"
        server.options.append(f"TrustedUserCAKeys {trusted}")
        elsewhere = tmp_path / "kept-elsewhere.pub"
        signed.rename(elsewhere)
        server.configure(f"IdentityFile {mine}", f"CertificateFile {elsewhere}")
        assert await who(server.spec()) is OpensshSession
        with pytest.raises(NeedsOpensshError, match="CertificateFile"):
            await who(server.spec(ssh_client=PARAMIKO))
        elsewhere.unlink()
        with pytest.raises(LoginError, match="lets nobody in"):
            await who(server.spec())


async def test_a_hosts_certificate_is_proved_by_openssh(tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=AUTO) as server:
        authority = keygen(tmp_path / "authority")
        signed = sign(authority, tmp_path / "host_ed25519.pub", "-h", "-n", "127.0.0.1")
        public = (tmp_path / "authority.pub").read_text()
        server.known_hosts.write_text(f"@cert-authority * {public}")
        with pytest.raises(HostKeyError, match="no certificate"):
            await who(server.spec())
        server.options.append(f"HostCertificate {signed}")
        assert await who(server.spec()) is OpensshSession


def masters(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_socket()]


@asynccontextmanager
async def master(server: Sshd, path: Path) -> AsyncIterator[trio.Process]:
    """Run a ControlMaster as a user would have it, until the end of the block or earlier."""
    # ssh listens at the socket first, and runs the local command then.
    options = ("BatchMode=yes", "ControlPersist=no")
    options += ("PermitLocalCommand=yes", "LocalCommand=echo up")
    words = [word for option in options for word in ("-o", option)]
    argv = ["ssh", "-F", str(server.config), *words, "-M", "-S", str(path), "-N", "server"]
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert await process.stdout.receive_some() == b"up\n"
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await process.stdout.aclose()


async def test_a_master_that_is_there_is_used_and_none_is_started(tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=AUTO) as server:
        path = tmp_path / "m-%r"
        lines = (f"ControlPath {path}", "ControlMaster auto", "ControlPersist yes")
        server.configure(*lines)
        assert await who(server.spec()) is SshSession
        assert await who(server.spec(ssh_client=OPENSSH)) is OpensshSession
        assert masters(tmp_path) == [], "a master of ours would stay"
        async with master(server, path) as process:
            # As behind a one-time password: only the connection that stands gets in.
            (tmp_path / "authorized_keys").write_text("")
            before = server.connections
            assert await who(server.spec()) is OpensshSession
            async with open_agent(server.spec()) as agent:
                assert await agent.call(Echo("shared")) == Echo("shared")
            assert server.connections == before
            with pytest.raises(LoginError):
                await who(server.spec(ssh_client=PARAMIKO))
            assert process.returncode is None


async def test_a_socket_of_a_dead_master_is_passed_over(tmp_path: Path) -> None:
    async with (
        running_sshd(tmp_path, client=AUTO) as server,
        master(server, tmp_path / "dead") as process,
    ):
        process.kill()  # it leaves its socket behind
        await process.wait()
        assert masters(tmp_path) == ["dead"]
        server.configure(f"ControlPath {tmp_path / 'dead'}")
        assert await who(server.spec()) is OpensshSession


async def test_a_master_with_no_room_says_so(tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=AUTO) as server:
        server.options.append("MaxSessions 0")
        path = tmp_path / "master"
        server.configure(f"ControlPath {path}")
        async with master(server, path):
            with pytest.raises(UnreachableError, match="starts no command") as caught:
                await who(server.spec())
            assert "MaxSessions" in (caught.value.problem.next_step or "")


async def test_what_openssh_would_let_pass_we_do_not(tmp_path: Path) -> None:
    """StrictHostKeyChecking=no lets ssh itself talk to a host whose key has changed."""
    keygen(tmp_path / "other")
    async with running_sshd(tmp_path, client=OPENSSH) as server:
        public = (tmp_path / "other.pub").read_text()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {public}")
        server.configure("StrictHostKeyChecking no")
        with pytest.raises(HostKeyError, match="has changed"):
            await who(server.spec())


async def test_a_host_cannot_pass_off_its_words_as_those_of_ssh(tmp_path: Path) -> None:
    async with running_sshd(tmp_path, client=OPENSSH) as server:
        lie = "Host key verification failed."
        server.options.append(f"ForceCommand echo '{lie}' >&2; exit 255")
        async with open_session(server.spec()) as session:
            async with await session.run(["true"]) as stream:
                assert await stream.wait() == 255
                assert stream.last_words() == lie
            assert session.why_lost() is None


async def test_a_banner_is_not_the_commands_last_word(tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("Authorised users only.\n")
    async with running_sshd(tmp_path, client=OPENSSH) as server:
        server.options.append(f"Banner {tmp_path}/banner")
        async with (
            open_session(server.spec()) as session,
            await session.run(["sh", "-c", "echo mine >&2"]) as stream,
        ):
            assert await stream.wait() == 0
            assert stream.last_words() == "mine"


async def silent_host(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-silence\r\n")
    await trio.sleep_forever()


@pytest.mark.parametrize("by_proxy", [False, True])
async def test_a_cancelled_login_leaves_no_process(tmp_path: Path, *, by_proxy: bool) -> None:
    config = tmp_path / "config"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    proxy = f"ProxyCommand sh -c 'trap \"\" HUP TERM; echo $$ >{fifo}; sleep 1000'"
    async with trio.open_nursery() as nursery:
        (silent,) = await nursery.start(serve_loopback, silent_host)
        port = silent.socket.getsockname()[1]
        lines = ["Host h", " HostName 127.0.0.1", f" Port {port}", f" {proxy}" if by_proxy else ""]
        config.write_text("\n".join(lines) + "\n")
        before = set(children(os.getpid()))
        pidfd = None
        with trio.move_on_after(CANCEL_AFTER_S) as scope:
            async with trio.open_nursery() as watched:

                async def log_in() -> None:
                    await who(HostSpec("h", "h", str(config), ssh_client=OPENSSH))

                watched.start_soon(log_in)
                if by_proxy:
                    async with await trio.open_file(fifo) as told:
                        pidfd = os.pidfd_open(int(await told.readline()))
                    watched.cancel_scope.cancel()
        assert scope.cancelled_caught or by_proxy
        assert set(children(os.getpid())) <= before
        if pidfd is not None:  # not by its number: it may wait to be reaped by process 1
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
        nursery.cancel_scope.cancel()


async def test_a_host_that_falls_silent_is_given_up_by_ssh_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tuple(
        "ServerAliveInterval=1" if "ServerAliveInterval" in option else option
        for option in openssh_session._OPTIONS
    )
    monkeypatch.setattr(openssh_session, "_OPTIONS", options)
    async with running_sshd(tmp_path, client=OPENSSH) as server, trio.open_nursery() as nursery:
        frozen = trio.Event()

        port = await freezable(nursery, server.port, frozen)
        server.know("cable")
        server.configure(f"Host far\n HostName 127.0.0.1\n Port {port}\n HostKeyAlias cable")
        async with open_session(server.spec("far")) as session, await session.run(["cat"]) as cat:
            await cat.send_all(b"x")
            assert await cat.receive_some() == b"x"
            frozen.set()
            with trio.fail_after(30):
                assert await cat.receive_some() == b""
            assert await cat.wait() is None
            assert "no sign of life" in (session.why_lost() or "")
        nursery.cancel_scope.cancel()
