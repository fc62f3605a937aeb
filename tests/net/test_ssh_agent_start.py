"""An agent on a host that has nothing of ours: pushed, kept, started; and every way that fails."""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmigrate.agent.protocol import PROTOCOL, Failure, FromAgent
from qmigrate.agent.requests import Echo
from qmigrate.controller.payload import Payload, build_payload, load_payload
from qmigrate.controller.remote import Agent, open_agent, open_agents
from qmigrate.controller.session import open_session
from qmigrate.controller.streams import ProcessStream
from qmigrate.core.errors import (
    AgentLostError,
    AgentStartError,
    HostError,
    HostKeyError,
    ProtocolError,
    QmigrateError,
    SudoError,
)
from qmigrate.core.model import HostSpec, SshClient
from tests.support.sshd import PLAIN_UID, PLAIN_USER, Sshd, running_sshd

pytestmark = pytest.mark.net

REAL_PYTHON = os.path.realpath(sys.executable)
CACHE = "/var/cache/qmigrate/agent"
needs_sudo = pytest.mark.skipif(not shutil.which("sudo"), reason="sudo is not installed here")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep payloads and agents of these tests out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=[SshClient.PARAMIKO, SshClient.OPENSSH])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sshd]:
    async with running_sshd(tmp_path, client=request.param) as server:
        yield server


def listing(server: Sshd) -> list[str]:
    return server.inside("ls", "-A", CACHE).split()


def variant(number: int) -> Payload:
    """Return a payload of another version: the same with one more file."""
    data = io.BytesIO(load_payload().data)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr(zipfile.ZipInfo("variant.py"), f"NUMBER = {number}\n")
    return Payload(hashlib.sha256(data.getvalue()).hexdigest(), data.getvalue())


async def refusal(spec: HostSpec, kind: type[QmigrateError], *, as_user: bool = False) -> str:
    with pytest.raises(kind) as caught:
        async with open_agent(spec, as_user=as_user):
            pass
    problem = caught.value.problem
    assert (problem.phase, problem.host) == ("connect", spec.name)
    return " | ".join(filter(None, (problem.what, problem.last_words, problem.next_step)))


async def test_the_first_start_pushes_and_the_second_finds_it_there(server: Sshd) -> None:
    payload = load_payload()
    async with open_agent(server.spec(), payload=payload) as agent:
        assert agent.timings.steps.push_s > 0
        assert (agent.hello.protocol, agent.hello.uid) == (PROTOCOL, 0)
        assert await agent.call(Echo("ä\n\0")) == Echo("ä\n\0")
    async with open_agent(server.spec(), payload=payload) as agent:
        assert agent.timings.steps.push_s == 0
    (kept,) = listing(server)
    assert re.fullmatch(r"[0-9a-f]{32}-cpython-\d+", kept)
    modes = server.inside("stat", "-c", "%a %u", "/var/cache/qmigrate", CACHE).split("\n")
    assert modes[:2] == ["700 0", "700 0"]


class Mine(Exception):
    """Raised by the caller of the code under test."""


@pytest.mark.parametrize("where", ["server", "here"])
async def test_an_error_inside_the_block_comes_out_of_it(server: Sshd, where: str) -> None:
    spec = server.spec() if where == "server" else HostSpec("here", None)
    with pytest.raises(Mine):
        async with open_agent(spec, as_user=True):
            raise Mine
    with pytest.raises(Mine):
        async with open_agents([spec, spec], as_user=True):
            raise Mine
    with pytest.raises(Mine):
        async with open_session(spec) as session, await session.run(["cat"]):
            raise Mine


async def test_no_process_stays_when_the_controller_has_gone(server: Sshd) -> None:
    async with open_agent(server.spec()) as agent:
        pidfd = os.pidfd_open(agent.hello.pid)
    try:
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def test_this_machine_needs_no_ssh() -> None:
    async with open_agent(HostSpec("here", None), as_user=True) as agent:
        assert await agent.call(Echo("x")) == Echo("x")
        assert agent.hello.hostname == socket.gethostname()


async def test_a_login_shell_that_talks_is_read_past(server: Sshd) -> None:
    noise = 'echo "Welcome! {json} 100 %"; printf "no newline"; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    server.options.append(f"ForceCommand {noise}")
    for _ in range(2):
        async with open_agent(server.spec()) as agent:
            assert await agent.call(Echo("x")) == Echo("x")


async def test_a_login_shell_that_runs_nothing_is_shown_with_what_it_said(server: Sshd) -> None:
    server.options.append("ForceCommand echo This account is not available.; exit 1")
    text = await refusal(server.spec(), AgentStartError)
    assert "This account is not available." in text


async def test_no_python_names_all_that_was_tried(server: Sshd) -> None:
    server.fake_bin()
    text = await refusal(server.spec(), AgentStartError)
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        assert f"{name}: not found" in text


async def test_a_python_too_old_is_named_with_its_version(server: Sshd) -> None:
    server.fake_bin(
        python3='[ "$1" = -V ] && echo "Python 3.9.2"; exit 1\n',
        python3_13='echo "pyenv: python3.13: command not found" >&2; exit 127\n',
    )
    text = await refusal(server.spec(), AgentStartError)
    assert "python3: Python 3.9.2" in text
    assert "python3.13: pyenv: python3.13: command not found" in text
    assert "install one of" in text


async def test_an_old_python_is_passed_over_for_a_newer_one(server: Sshd) -> None:
    server.fake_bin(python3="exit 1\n", python3_12=f'exec {REAL_PYTHON} "$@"\n')
    async with open_agent(server.spec()) as agent:
        assert agent.hello.python == ".".join(map(str, sys.version_info[:3]))


async def test_a_python_that_the_inventory_names_is_the_only_one_tried(server: Sshd) -> None:
    text = await refusal(server.spec(python="/opt/none/python3"), AgentStartError)
    assert text.startswith("no python >= 3.11 there; tried /opt/none/python3: not found |")


def fake_agent(server: Sshd, script: str) -> HostSpec:
    """Return a host whose python says it is fit and is then `script`, $4 the marker."""
    path = server.directory / "fake-python"
    check = 'case "$3" in *version_info*) echo "$0"; exit;; esac\n'
    path.write_text("#!/bin/sh\n" + check + script)
    path.chmod(0o755)
    return server.spec(python=str(path))


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ('echo "$4 HAVE"; echo garbage', ProtocolError, "not JSON: b'garbage'"),
        ('echo "$4 HAVE"; echo "{}"', ProtocolError, "not a"),
        ('echo "$4 HAVE"; echo boom >&2; exit 3', AgentStartError, "status 3 | boom"),
        ('echo "$4 DANCE"', AgentStartError, "stage 0 said 'DANCE'"),
        ('echo "$4 ERROR {"', AgentStartError, "stage 0 failed"),
        ('echo "$4 NEED"; exit 4', AgentStartError, "status 4"),
        ("head -c 5000000 /dev/zero", ProtocolError, "a line of more than"),
        ("kill -9 $$", AgentStartError, "did not start"),
    ],
)
async def test_whatever_answers_instead_of_an_agent_is_one_clear_error(
    server: Sshd, script: str, kind: type[QmigrateError], words: str
) -> None:
    assert words in await refusal(fake_agent(server, script), kind)


async def test_an_agent_of_another_version_is_refused_with_both_versions(server: Sshd) -> None:
    hello = '{"op":"Hello","protocol":99,"version":"7.0","shape":"unheard of"}'
    spec = fake_agent(server, f"echo \"$4 HAVE\"; echo '{hello}'")
    text = await refusal(spec, ProtocolError)
    assert "protocol 99 (qmigrate 7.0)" in text
    assert f"this controller {PROTOCOL} (qmigrate 0" in text


async def test_garbage_in_mid_conversation_ends_the_call_as_a_protocol_error(server: Sshd) -> None:
    hello = (
        f'{{"op":"Hello","protocol":{PROTOCOL},"version":"0","hostname":"h","boot_id":"b",'
        '"python":"3","uid":0,"pid":1}'
    )
    spec = fake_agent(server, f"echo \"$4 HAVE\"; echo '{hello}'; read line; echo rubbish; cat")
    async with open_agent(spec) as agent:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="rubbish") as caught:
                await agent.call(Echo("x"))
            assert caught.value.problem.host == "server"


async def test_a_killed_agent_is_lost_with_its_last_words(server: Sshd) -> None:
    spec = fake_agent(server, f'echo "last words" >&2; exec {sys.executable} "$@"')
    async with open_agent(spec) as agent:
        async with trio.open_nursery() as nursery:

            async def wait_for_it() -> None:
                with pytest.raises(AgentLostError) as caught:
                    async for _ in agent.stream(Echo("x", notes=1 << 40)):
                        pass
                assert (caught.value.problem.last_words or "").startswith("last words")
                assert caught.value.problem.host == "server"

            nursery.start_soon(wait_for_it)
            await agent.call(Echo("it runs"))
            os.kill(agent.hello.pid, 9)
        with pytest.raises(AgentLostError):
            await agent.call(Echo("x"))


async def test_a_call_has_a_deadline_and_the_agent_gives_it_up(
    server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = trio.Event()
    deliver = Agent._deliver

    def watch(self: Agent, message: FromAgent) -> None:
        if isinstance(message, Failure) and message.problem.code == "cancelled":
            given_up.set()
        deliver(self, message)

    monkeypatch.setattr(Agent, "_deliver", watch)
    async with open_agent(server.spec()) as agent:
        with pytest.raises(AgentLostError, match=r"did not answer Echo within 0\.2 s"):
            await agent.call(Echo("x", notes=1 << 40), deadline_s=0.2)
        assert await agent.call(Echo("y")) == Echo("y")
        with trio.fail_after(10):
            await given_up.wait()


def descriptor(pid: int, number: int) -> Path:
    return Path(f"/proc/{pid}/fd/{number}").readlink()


async def test_what_an_agent_or_its_children_print_is_no_message() -> None:
    """Descriptor 1 of a running agent is its stderr."""
    async with open_agent(HostSpec("here", None), as_user=True) as agent:
        links = [descriptor(agent.hello.pid, number) for number in (1, 2)]
        assert links[0] == links[1]


def test_all_of_it_can_be_imported_without_the_controller(tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(build_payload().data)).extractall(tmp_path)
    modules = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for package in ("qmigrate", "netsetup")
        for path in (tmp_path / package).rglob("*.py")
        if path.name != "__main__.py"
    ]
    code = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "import pyroute2, qemu.qmp\n"
        "print(*{m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)})"
    )
    argv = [sys.executable, "-IS", "-c", code, str(tmp_path), *sorted(modules)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "site-packages" not in done.stdout


# --- the cache -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (f"mkdir /var/cache/qmigrate; chown {PLAIN_UID} /var/cache/qmigrate", f"uid {PLAIN_UID}"),
        (f"mkdir -p {CACHE}; chown {PLAIN_UID} {CACHE}", f"{CACHE} belongs to uid {PLAIN_UID}"),
        (f"mkdir -p {CACHE}; chmod g+w {CACHE}", "mode 775"),
        ("chmod o+w /var/cache", "/var/cache belongs to uid 0, mode 757"),
        ("mkdir /var/cache/x; ln -s x /var/cache/qmigrate", "/var/cache/qmigrate is a link"),
        ("echo >/var/cache/qmigrate", "/var/cache/qmigrate is a link or no directory"),
    ],
)
async def test_a_cache_that_others_could_write_to_is_not_used(
    server: Sshd, prepare: str, words: str
) -> None:
    server.inside("sh", "-c", prepare)
    text = await refusal(server.spec(), AgentStartError)
    assert words in text
    assert "/var/cache" in text.rpartition("|")[2]


async def test_a_cache_of_ours_that_others_can_read_is_closed(server: Sshd) -> None:
    server.inside("mkdir", "-p", "-m", "755", CACHE)
    async with open_agent(server.spec()):
        assert server.inside("stat", "-c", "%a", CACHE).strip() == "700"


@pytest.mark.fault
@pytest.mark.parametrize("size_kib", [512, 4096, 8192])  # no room for sources, for all, for .pyc
async def test_a_full_disk_is_named_and_nothing_is_left(server: Sshd, size_kib: int) -> None:
    server.inside("mkdir", "-p", CACHE)
    server.inside("mount", "-t", "tmpfs", "-o", f"mode=700,size={size_kib}k", "none", CACHE)
    text = await refusal(server.spec(), AgentStartError)
    assert f"{CACHE} cannot be written: No space left on device" in text
    assert listing(server) == []
    server.inside("mount", "-o", "remount,size=64m", CACHE)
    async with open_agent(server.spec()) as agent:
        assert await agent.call(Echo("x")) == Echo("x")


@pytest.mark.parametrize("damage", [0, 500_000, -1])
async def test_a_damaged_payload_is_refused_and_nothing_is_left(server: Sshd, damage: int) -> None:
    good = load_payload()
    data = bytearray(good.data)
    data[damage] ^= 1
    with pytest.raises(AgentStartError, match="damaged"):
        async with open_agent(server.spec(), payload=Payload(good.sha, bytes(data))):
            pass
    assert listing(server) == []
    async with open_agent(server.spec(), payload=good) as agent:
        assert agent.timings.steps.push_s > 0


async def test_four_controllers_at_once_end_with_one_agent_directory(server: Sshd) -> None:
    server.configure(*(f"Host n{n}\n HostName 127.0.0.1\n Port {server.port}" for n in range(4)))
    async with open_agents([server.spec(f"n{n}") for n in range(4)]) as agents:
        for agent in agents:
            assert not isinstance(agent, HostError)
            await agent.call(Echo("x"))
        assert len(listing(server)) == 1


async def test_the_last_two_versions_stay_and_what_runs_is_never_removed(server: Sshd) -> None:
    async with open_agent(server.spec(), payload=variant(0)) as running:
        for number in range(1, 4):
            async with open_agent(server.spec(), payload=variant(number)):
                pass
        kept = listing(server)
        assert [variant(n).sha[:32] in "".join(kept) for n in range(4)] == [True, False, True, True]
        await running.call(Echo("x"))
    server.inside("mkdir", f"{CACHE}/.new-0123456789abcdef")  # a killed start's
    async with open_agent(server.spec(), payload=variant(4)):
        pass
    kept = listing(server)
    assert len(kept) == 2
    assert ".new-0123456789abcdef" not in kept


async def test_an_agent_that_outlives_its_start_keeps_its_version(server: Sshd) -> None:
    """A guardian is started by an agent that then ends; it imports late all the same."""
    async with open_agent(server.spec(), payload=variant(0)):
        (first,) = listing(server)
    enter = ["nsenter", f"--mount=/proc/{server.holder}/ns/mnt", "--"]
    argv = [*enter, REAL_PYTHON, "-I", f"{CACHE}/{first}"]
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process(argv, stdin=pipe, stdout=pipe)
    async with ProcessStream(process) as child:
        assert b'"op":"Hello"' in await child.receive_some()
        for number in range(1, 4):
            async with open_agent(server.spec(), payload=variant(number)):
                pass
        assert first in listing(server)


# --- root ------------------------------------------------------------------------------------


@asynccontextmanager
async def plain_login(tmp_path: Path, sudoers: str) -> AsyncIterator[Sshd]:
    async with running_sshd(tmp_path, sudoers=sudoers) as server:
        server.configure(user=PLAIN_USER)
        yield server


ALLOWED = f"{PLAIN_USER} ALL=(root) NOPASSWD: ALL"


@needs_sudo
@pytest.mark.parametrize("defaults", ["", "Defaults use_pty\n", "Defaults log_output, use_pty\n"])
async def test_sudo_makes_a_login_root_and_the_protocol_survives(
    tmp_path: Path, defaults: str
) -> None:
    async with plain_login(tmp_path, defaults + ALLOWED) as server:
        for _ in range(2):  # cold: a megabyte through sudo's pipes
            async with open_agent(server.spec()) as agent:
                assert agent.hello.uid == 0
                text = "\x03\x04\x1a\r" + "x" * 100_000  # what a terminal would eat
                assert await agent.call(Echo(text)) == Echo(text)
        assert len(listing(server)) == 1


@needs_sudo
@pytest.mark.parametrize(
    ("sudoers", "words"),
    [
        (f"{PLAIN_USER} ALL=(root) ALL", "a password is required"),
        ("", "password is required"),
        (f"{PLAIN_USER} ALL=(root) NOPASSWD: /bin/true", "a password is required"),
        ("Defaults requiretty\n" + ALLOWED, "!requiretty"),
        ("this is no sudoers", "syntax error"),
    ],
)
async def test_sudo_that_refuses_is_shown_in_its_own_words(
    tmp_path: Path, sudoers: str, words: str
) -> None:
    async with plain_login(tmp_path, sudoers) as server:
        assert words in await refusal(server.spec(), SudoError)


async def test_no_sudo_and_not_root_says_what_is_needed(tmp_path: Path) -> None:
    async with plain_login(tmp_path, "") as server:
        text = await refusal(server.spec(sudo=False), SudoError)
        assert f"the login is {PLAIN_USER}" in text
        server.fake_bin("python3")
        assert "there is no sudo" in await refusal(server.spec(), SudoError)


async def test_a_plain_user_may_run_an_agent_for_tests(tmp_path: Path) -> None:
    async with plain_login(tmp_path, "") as server:
        async with open_agent(server.spec(), as_user=True) as agent:
            assert agent.hello.uid == PLAIN_UID
        assert (tmp_path / "home/.cache/qmigrate/agent").is_dir()


# --- several hosts ---------------------------------------------------------------------------


async def test_a_host_that_fails_does_not_take_the_others_along(server: Sshd) -> None:
    stranger = f"Host stranger\n HostName 127.0.0.1\n Port {server.port}\n HostKeyAlias nobody"
    server.configure(stranger)
    specs = [server.spec("stranger"), server.spec(), HostSpec("here", None)]
    async with open_agents(specs, as_user=True) as (first, second, third):
        assert isinstance(first, HostKeyError)
        assert first.problem.host == "stranger"
        for agent in (second, third):
            assert not isinstance(agent, HostError)
            assert await agent.call(Echo("x")) == Echo("x")
