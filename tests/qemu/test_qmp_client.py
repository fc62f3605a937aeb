"""The monitor's client against real QEMUs."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qmigrate.core.errors import (
    CommandError,
    MonitorBusyError,
    MonitorLostError,
    MonitorSilentError,
)
from qmigrate.qmp.client import QmpThread, dial, open_monitor
from qmigrate.qmp.events import OtherEvent, ResumeEvent, ShutdownEvent, StopEvent
from qmigrate.qmp.migration import Qemu
from tests.support.bare_qemu import bare_qemu

pytestmark = pytest.mark.qemu

SHORT_S = 0.3  # for what must run into its deadline


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def thread() -> Iterator[QmpThread]:
    with QmpThread() as running:
        yield running


async def test_events_reach_every_subscriber_in_order_and_end_with_the_link(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
        monitor.subscribe() as first,
        monitor.subscribe() as second,
    ):
        assert monitor.qemu_version >= (10, 0, 0)
        assert monitor.peer_pid == vm.pid
        qemu = Qemu(monitor)
        await qemu.cont()
        await qemu.stop()
        await qemu.quit()
        for stream in (first, second):
            heard = [event async for event in stream]
            assert [type(event) for event in heard] == [ResumeEvent, StopEvent, ShutdownEvent]
            stamps = [event.timestamp_us for event in heard]
            assert stamps == sorted(stamps, key=lambda at_us: at_us or 0)
            assert stamps[0]
            assert heard[-1].reason == "host-qmp-quit"
        await monitor.lost.wait()
        async with monitor.subscribe() as late:
            with pytest.raises(trio.EndOfChannel):
                await late.receive()


async def test_when_qemu_is_killed_all_that_waits_fails_and_says_what_is_unknown(
    tmp_path: Path, thread: QmpThread
) -> None:
    failures: list[str] = []

    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
    ):
        os.kill(vm.pid, signal.SIGSTOP)  # so that the calls are pending when it dies

        async def ask() -> None:
            with pytest.raises(MonitorLostError) as caught:
                await monitor.execute("query-status")
            failures.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            vm.process.kill()
        await monitor.lost.wait()
        assert len(failures) == 20
        assert all("query-status; whether it took effect is unknown" in text for text in failures)
        with pytest.raises(MonitorLostError, match="was not sent"):
            await monitor.execute("query-status")


async def test_a_stopped_qemu_is_silent_and_its_monitor_works_when_it_goes_on(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
    ):
        os.kill(vm.pid, signal.SIGSTOP)
        with pytest.raises(MonitorSilentError, match=r"cont within .* it may still take") as caught:
            await monitor.execute("cont", deadline_s=SHORT_S)
        assert caught.value.problem.last_words == f"its process {vm.pid} is stopped by a signal"
        async with monitor.subscribe() as events:
            os.kill(vm.pid, signal.SIGCONT)
            assert isinstance(await events.receive(), ResumeEvent)  # it did take effect
            assert (await monitor.execute("query-status"))["running"] is True


async def test_a_held_monitor_is_busy_and_its_holder_is_named(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with bare_qemu(tmp_path, "web1", "-S") as vm:
        async with open_monitor(thread, vm.path, name="web1"):
            with pytest.raises(MonitorBusyError, match=rf"pid {os.getpid()} \("):
                async with open_monitor(thread, vm.path, name="web1", greeting_deadline_s=SHORT_S):
                    pytest.fail("two clients hold one monitor")
        # Whoever waits in QEMU's short queue must not look like its holder, nor break the next.
        async with open_monitor(thread, vm.path, name="web1") as monitor:
            assert await monitor.execute("query-name") == {"name": "web1"}


async def test_a_monitor_whose_queue_is_full_is_busy_at_once(
    tmp_path: Path, thread: QmpThread
) -> None:
    waiting: list[socket.socket] = []
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1"),
    ):

        def crowd() -> None:
            while len(waiting) < 10:
                waiting.append(dial(vm.path, name="web1"))

        with pytest.raises(MonitorBusyError, match="none may join"):
            crowd()
    for sock in waiting:
        sock.close()
    assert waiting


async def test_a_stopped_qemu_that_greets_nobody_is_silent_not_busy(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with bare_qemu(tmp_path, "web1", "-S") as vm:
        os.kill(vm.pid, signal.SIGSTOP)
        with pytest.raises(MonitorSilentError):
            async with open_monitor(thread, vm.path, name="web1", greeting_deadline_s=SHORT_S):
                pytest.fail("a stopped QEMU has greeted")


async def test_a_descriptor_passed_is_one_that_qemu_can_use_once(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
    ):
        pairs = [socket.socketpair() for _ in range(8)]

        async def give(number: int) -> None:
            theirs = pairs[number][1]
            await monitor.pass_fd(theirs.fileno(), f"n{number}")
            theirs.close()

        async with trio.open_nursery() as nursery:  # at once: each name must get its own
            for number in range(len(pairs)):
                nursery.start_soon(give, number)
                nursery.start_soon(monitor.execute, "query-status")
        for number, (ours, _) in enumerate(pairs):
            await monitor.execute("closefd", {"fdname": f"n{number}"})
            assert ours.recv(1) == b"", "another descriptor was closed"
            ours.close()
        with pytest.raises(CommandError) as caught:
            await monitor.execute("closefd", {"fdname": "n0"})
        assert "n0" in (caught.value.problem.last_words or "")
        with pytest.raises(CommandError, match="digit"):
            await monitor.pass_fd(0, "1st")


async def test_cancelled_calls_leave_the_monitor_usable(tmp_path: Path, thread: QmpThread) -> None:
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
    ):
        for step in range(100):
            with trio.move_on_after(step * 0.00002):
                await monitor.execute("query-version")
            assert await monitor.execute("query-name") == {"name": "web1"}


async def test_a_cancel_at_any_moment_of_opening_leaks_no_descriptor(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with bare_qemu(tmp_path, "web1", "-S") as vm:
        async with open_monitor(thread, vm.path, name="web1"):
            pass
        before = open_descriptors()
        opened = 0
        for step in range(60):
            with trio.move_on_after(step * 0.0001):
                async with open_monitor(thread, vm.path, name="web1"):
                    opened += 1
        assert open_descriptors() == before
        assert 0 < opened < 60
        async with open_monitor(thread, vm.path, name="web1") as monitor:
            assert await monitor.execute("query-name") == {"name": "web1"}


async def test_a_dialled_socket_can_be_looked_at_before_anything_is_said(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with bare_qemu(tmp_path, "web1", "-S") as vm:
        sock = dial(vm.path, name="web1")
        async with open_monitor(thread, vm.path, name="web1", sock=sock) as monitor:
            assert monitor.peer_pid == vm.pid


async def test_what_cannot_be_sent_harms_nobody(tmp_path: Path, thread: QmpThread) -> None:
    async with (
        bare_qemu(tmp_path, "web1", "-S") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
    ):
        for nonsense in ({"x": b"bytes"}, {"x": "\udc80"}, {"x": float("nan")}):
            with pytest.raises(CommandError, match="cannot be sent"):
                await monitor.execute("query-status", nonsense)
        with pytest.raises(CommandError, match="has not been found"):
            await monitor.execute("no-such-command")
        assert await monitor.execute("query-name") == {"name": "web1"}


async def test_an_event_without_a_type_keeps_its_name(tmp_path: Path, thread: QmpThread) -> None:
    async with (
        bare_qemu(tmp_path, "web1") as vm,
        open_monitor(thread, vm.path, name="web1") as monitor,
        monitor.subscribe() as events,
    ):
        await monitor.execute("system_powerdown")
        async for event in events:
            if isinstance(event, OtherEvent):
                assert event.name == "POWERDOWN"
                break
