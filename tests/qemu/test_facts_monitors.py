"""From a real QEMU process to its open monitor, or to the reason why not and what to do."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from qmigrate.agent import guests, process
from qmigrate.agent.monitors import open_guest
from qmigrate.core.errors import HostError, MonitorBusyError, MonitorUnreachableError, UsageError
from qmigrate.core.model import RunState
from qmigrate.qmp.client import QmpThread
from qmigrate.qmp.migration import Qemu
from tests.support.odd_qemu import QEMU, daemon_qemu, odd_qemu, open_place

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="looks at processes of other users"),
]

CONFIG = '[chardev "c"]\n  backend = "socket"\n  path = "{0}/m"\n  server = "on"\n  wait = "off"\n'
CONFIG += '[mon "m"]\n  chardev = "c"\n  mode = "control"\n'


@pytest.fixture
def thread() -> Iterator[QmpThread]:
    with QmpThread() as running:
        yield running


@pytest.fixture
def place() -> Iterator[Path]:
    with open_place() as path:
        yield path


async def state_over_monitor(thread: QmpThread, seen: process.Process) -> tuple[RunState, str]:
    async with open_guest(thread, seen, guests.read_line(seen)) as opened:
        assert opened.monitor.peer_pid == seen.pid
        return await Qemu(opened.monitor).status(), opened.path


@pytest.mark.parametrize(
    ("words", "user"),
    [
        ("-M q35 -qmp unix:{0}/m,server=on,wait=off", None),
        ("-M pc -qmp unix:m,server,nowait", None),
        ("-chardev socket,id=c,path={0}/m,server=on,wait=off -mon chardev=c,mode=control", None),
        ("-readconfig {0}/g.cfg", None),
        ("-readconfig g.cfg", None),
        ("-qmp unix:{0}/m,server=on,wait=off", "nobody"),
    ],
)
async def test_the_monitor_is_found_in_every_form_that_leads_to_a_socket(
    place: Path, thread: QmpThread, words: str, user: str | None
) -> None:
    (place / "g.cfg").write_text(CONFIG.format(place))
    async with odd_qemu(place, *words.format(place).split(), user=user) as seen:
        state, path = await state_over_monitor(thread, seen)
        assert (state, path) == (RunState.PRELAUNCH, f"{place}/m")
        assert process.process_facts(seen.pid).user == (user or "root")


async def test_a_socket_that_was_inherited_is_found_by_its_descriptor(
    tmp_path: Path, thread: QmpThread
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/m")
        listener.listen(1)
        fd = listener.fileno()
        words = f"-chardev socket,id=c,fd={fd},server=on,wait=off -mon c,mode=control".split()
        async with odd_qemu(tmp_path, *words, pass_fds=(fd,)) as seen:
            assert process.descriptor_target(seen.pid, fd) == f"unix:{tmp_path}/m"
            # As this process listened first, the kernel names it until QEMU has listened again.
            assert (await state_over_monitor(thread, seen))[1] == f"{tmp_path}/m"


async def test_a_path_longer_than_a_socket_address_is_given_as_one_that_fits(
    tmp_path: Path, thread: QmpThread
) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    async with odd_qemu(deep, "-qmp", "unix:m,server=on,wait=off") as seen:
        assert (await state_over_monitor(thread, seen))[1] == f"/proc/{seen.pid}/cwd/m"


async def test_a_held_monitor_names_its_holder_and_a_second_one_is_taken(
    tmp_path: Path, thread: QmpThread
) -> None:
    first, second = (f"-qmp unix:{tmp_path}/{m},server=on,wait=off".split() for m in "ab")
    async with odd_qemu(tmp_path, *first) as one, odd_qemu(tmp_path, *second, *first) as two:
        # The second QEMU has taken the path "a" from the first, which still listens on its socket.
        with pytest.raises(MonitorUnreachableError, match=f"listens process {two.pid}, not"):
            await state_over_monitor(thread, one)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/b")
            assert client.recv(7) == b'{"QMP":'
            assert (await state_over_monitor(thread, two))[1] == f"{tmp_path}/a"
            async with open_guest(thread, two, guests.read_line(two)) as _:
                with pytest.raises(MonitorBusyError, match=f"serves process {os.getpid()} "):
                    await state_over_monitor(thread, two)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "its only monitor is for humans"),
        ("-qmp tcp:127.0.0.1:0,server=on,wait=off", "its QMP monitor is on tcp 127.0.0.1:0"),
        ("-qmp-pretty unix:m,server=on,wait=off", "its QMP monitor on unix m is pretty-printed"),
        ("-qmp null", "its QMP monitor is on null"),
    ],
)
async def test_without_a_provable_monitor_the_reason_and_the_option_to_add_are_said(
    tmp_path: Path, thread: QmpThread, words: str, why: str
) -> None:
    async with odd_qemu(tmp_path, "-name", "web1", *words.split()) as seen:
        with pytest.raises(MonitorUnreachableError, match=why) as caught:
            await state_over_monitor(thread, seen)
        assert "-qmp unix:/run/web1.qmp,server=on" in str(caught.value.problem.next_step)


async def test_a_daemon_without_any_monitor_is_said_to_have_none(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with daemon_qemu(tmp_path) as seen:
        with pytest.raises(MonitorUnreachableError, match="it has no monitor"):
            await state_over_monitor(thread, seen)


WORDS = ("-name", "web1", "-qmp", "unix:m,server=on,wait=off")


async def test_a_copy_of_qemu_is_not_talked_to_whatever_it_is_called(
    place: Path, thread: QmpThread
) -> None:
    copy = place / "qemu-system-x86_64"
    shutil.copy(QEMU, copy)
    copy.chmod(0o755)
    async with odd_qemu(place, *WORDS, executable=str(copy)) as poser:
        with pytest.raises(MonitorUnreachableError, match="where others than root can write"):
            await state_over_monitor(thread, poser)
        with pytest.raises(UsageError, match=f"process {poser.pid} calls itself web1, but"):
            guests.find_guest("web1")
        os.chown(copy, 65534, 65534)
        assert "can be changed by others" in (process.distrust(poser) or "")
        os.chown(copy, 0, 0)
        copy.unlink()  # nor when the file is gone, whatever name the kernel still gives it
        assert process.look(poser.pid).deleted
        assert "where others than root" in (process.distrust(process.look(poser.pid)) or "")
        async with odd_qemu(place, *WORDS) as honest:
            assert guests.find_guest("web1") == honest


async def test_a_file_mounted_over_qemu_in_another_namespace_is_no_qemu(place: Path) -> None:
    copy = place / "copy"
    shutil.copy(QEMU, copy)
    copy.chmod(0o755)
    script = f'mount --bind {copy} {QEMU} && exec "$@"'
    wrap = ("/usr/bin/unshare", "-m", "sh", "-c", script, "sh")
    async with odd_qemu(place, *WORDS, wrap=wrap) as poser:
        assert poser.executable == QEMU
        assert "is not the file of that name" in (process.distrust(poser) or "")


async def test_a_containers_qemu_is_left_to_its_container(place: Path, thread: QmpThread) -> None:
    wrap = ("/usr/bin/unshare", "--pid", "--fork", "--kill-child=KILL")
    async with odd_qemu(place, *WORDS, wrap=wrap) as outer:
        inner = next(q for q in guests.find_guests() if process.parent(q.pid) == outer.pid)
        with pytest.raises(MonitorUnreachableError, match="it runs in a container"):
            await state_over_monitor(thread, inner)


def test_a_number_that_was_given_to_another_is_noticed() -> None:
    mine = process.start_ticks(os.getpid())
    os.close(process.open_pidfd(os.getpid(), mine))
    with pytest.raises(HostError, match="given to another"):
        process.open_pidfd(os.getpid(), mine - 1)


async def test_argv_alone_makes_no_qemu(tmp_path: Path) -> None:
    async with sleeper("/usr/bin/qemu-system-x86_64", "-name", "web1") as pid:
        assert pid not in [seen.pid for seen in guests.find_guests()]
        with pytest.raises(UsageError, match=f"process {pid} runs /"):
            guests.find_guest(str(pid))


@contextlib.asynccontextmanager
async def sleeper(*argv: str) -> AsyncIterator[int]:
    program = "import sys; print(flush=True); sys.stdin.read()"
    child = await trio.lowlevel.open_process(
        [argv[0], "-c", program, *argv[1:]],
        executable="/usr/bin/python3",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    try:
        await child.stdout.receive_some(1)
        yield child.pid
    finally:
        with trio.CancelScope(shield=True):
            child.kill()
            await child.wait()
            await child.stdin.aclose()
            await child.stdout.aclose()


async def test_two_of_one_name_are_refused_with_both_pids(tmp_path: Path) -> None:
    name = ("-name", "twice")
    async with odd_qemu(tmp_path, *name) as one, odd_qemu(tmp_path, *name) as two:
        with pytest.raises(UsageError, match=f"{one.pid} and {two.pid}"):
            guests.find_guest("twice")
        assert guests.find_guest(str(two.pid)) == two
    with pytest.raises(HostError, match="has ended"):
        process.open_pidfd(two.pid, two.start_ticks)
