"""Each way in which a monitor fails has its own error; a fake server fails on demand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qmigrate.core.errors import (
    MonitorBusyError,
    MonitorError,
    MonitorGarbledError,
    MonitorLostError,
    MonitorSilentError,
    MonitorUnreachableError,
)
from qmigrate.qmp import client
from qmigrate.qmp.client import OUTCOME_UNKNOWN, QmpThread, open_monitor
from qmigrate.qmp.events import HARD_LIMIT, MigrationEvent, MigrationStatus, PassEvent, StopEvent
from qmigrate.qmp.migration import Qemu
from tests.support.fake_qmp import Line, Script, fake_qmp

SHORT_S = 0.05  # for what must run into its deadline


@pytest.fixture(scope="module")
def thread() -> Iterator[QmpThread]:
    with QmpThread() as running:
        yield running


async def say_nothing(line: Line) -> None:
    await trio.sleep_forever()


async def hang_up(line: Line) -> None:
    pass


async def speak_hmp(line: Line) -> None:
    await line.stream.send_all(b"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ")
    await trio.sleep_forever()


async def speak_ssh(line: Line) -> None:
    await line.stream.send_all(b"SSH-2.0-OpenSSH_9.2p1")
    await trio.sleep_forever()


async def greet_as_a_guest_agent(line: Line) -> None:
    await line.say({"return": {}})
    await trio.sleep_forever()


async def greet_in_a_list(line: Line) -> None:
    await line.stream.send_all(b'{"QMP": []}\n')
    await trio.sleep_forever()


async def refuse_capabilities(line: Line) -> None:
    await line.say({"QMP": {"version": {}, "capabilities": []}})
    await line.hear()
    await line.say({"error": {"class": "GenericError", "desc": "no"}})
    await trio.sleep_forever()


async def greet_by_half(line: Line) -> None:
    await line.stream.send_all(b'{"QMP": {"ver')
    await trio.sleep_forever()


async def greet_and_leave(line: Line) -> None:
    await line.say({"QMP": {"version": {}, "capabilities": []}})


@pytest.mark.parametrize(
    ("script", "error", "last_words"),
    [
        (say_nothing, MonitorBusyError, "no greeting"),
        (hang_up, MonitorLostError, "end of file"),
        (speak_hmp, MonitorGarbledError, "QEMU 10.0.2 monitor"),
        (speak_ssh, MonitorGarbledError, "SSH-2.0"),
        (greet_as_a_guest_agent, MonitorGarbledError, "'QMP' member"),
        (greet_in_a_list, MonitorGarbledError, "must be a JSON object"),
        (refuse_capabilities, MonitorGarbledError, ""),
        (greet_by_half, MonitorSilentError, '{"QMP": {"ver'),
        (greet_and_leave, MonitorLostError, ""),
    ],
)
async def test_a_monitor_that_does_not_greet_says_which_way(
    tmp_path: Path,
    thread: QmpThread,
    script: Script,
    error: type[MonitorError],
    last_words: str,
) -> None:
    async with fake_qmp(tmp_path, script) as path:
        with pytest.raises(error) as caught:
            async with open_monitor(thread, path, name="web1", greeting_deadline_s=SHORT_S):
                pytest.fail("it has greeted")
    problem = caught.value.problem
    assert type(caught.value) is error
    assert problem.what.startswith("web1: ")
    assert last_words in (problem.last_words or "")
    assert problem.next_step


async def test_a_socket_without_a_listener_is_unreachable(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with fake_qmp(tmp_path, hang_up) as path:
        pass
    (tmp_path / "file").touch()
    for dead in (path, str(tmp_path / "none"), str(tmp_path / "file"), "/" + "x" * 200):
        with pytest.raises(MonitorUnreachableError) as caught:
            async with open_monitor(thread, dead, name="web1"):
                pytest.fail("nobody is there")
        assert caught.value.problem.last_words


async def answer_nothing(line: Line) -> None:
    await line.greet()
    await trio.sleep_forever()


async def answer_garbage(line: Line) -> None:
    await line.greet()
    await line.hear()
    await line.stream.send_all(b"Killed by the kernel\r\n")
    await trio.sleep_forever()


async def answer_in_latin1(line: Line) -> None:
    await line.greet()
    await line.hear()
    await line.stream.send_all(b'{"return": "\xe9\xff"}\r\n')
    await trio.sleep_forever()


async def answer_in_depth(line: Line) -> None:
    await line.greet()
    await line.hear()
    await line.stream.send_all(b"[" * 100_000 + b"\r\n")
    await trio.sleep_forever()


async def answer_without_end(line: Line) -> None:
    await line.greet()
    await line.hear()
    while True:
        await line.stream.send_all(b" " * 1_000_000)


async def answer_neither(line: Line) -> None:
    await line.greet()
    request = await line.hear()
    await line.say({"id": request["id"]})
    await trio.sleep_forever()


async def complain_of_our_json(line: Line) -> None:
    await line.greet()
    await line.hear()
    await line.say({"error": {"class": "GenericError", "desc": "JSON parse error"}})
    await trio.sleep_forever()


async def leave_at_the_question(line: Line) -> None:
    await line.greet()
    await line.hear()


@pytest.mark.parametrize(
    ("script", "error", "last_words"),
    [
        (answer_nothing, MonitorSilentError, "hang"),
        (answer_garbage, MonitorGarbledError, "Killed by the kernel"),
        (answer_in_latin1, MonitorGarbledError, "utf-8"),
        (answer_in_depth, MonitorGarbledError, "recursion"),
        (answer_without_end, MonitorGarbledError, "limit"),
        (answer_neither, MonitorGarbledError, "__qmp#"),
        (complain_of_our_json, MonitorGarbledError, "JSON parse error"),
        (leave_at_the_question, MonitorLostError, "end of file"),
    ],
)
async def test_an_answer_that_is_none_leaves_the_outcome_unknown(
    tmp_path: Path,
    thread: QmpThread,
    script: Script,
    error: type[MonitorError],
    last_words: str,
) -> None:
    deadline_s = SHORT_S if error is MonitorSilentError else 30.0
    async with (
        fake_qmp(tmp_path, script) as path,
        open_monitor(thread, path, name="web1") as monitor,
    ):
        with pytest.raises(error) as caught:
            await monitor.execute("cont", deadline_s=deadline_s)
    assert type(caught.value) is error
    assert isinstance(caught.value, OUTCOME_UNKNOWN)
    assert "cont" in str(caught.value)
    assert last_words in (caught.value.problem.last_words or "")


async def test_garbage_in_the_middle_ends_streams_and_sets_lost(
    tmp_path: Path, thread: QmpThread
) -> None:
    async def script(line: Line) -> None:
        await line.greet()
        await line.answer()
        await line.say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
        await line.stream.send_all(b"}\n")
        await trio.sleep_forever()

    async with (
        fake_qmp(tmp_path, script) as path,
        open_monitor(thread, path, name="web1") as monitor,
        monitor.subscribe() as events,
    ):
        await monitor.execute("stop")
        assert [event async for event in events] == [StopEvent(1_000_002)]
        await monitor.lost.wait()
        with pytest.raises(MonitorGarbledError, match="was not sent"):
            await monitor.execute("cont")


async def test_a_reader_that_sleeps_through_a_flood_finds_what_decides(
    tmp_path: Path, thread: QmpThread
) -> None:
    async def script(line: Line) -> None:
        await line.greet()
        await line.answer()
        for number in range(5_000):
            await line.say({"event": "MIGRATION_PASS", "data": {"pass": number}})
            if number % 1_250 == 0:
                await line.say({"event": "MIGRATION", "data": {"status": "active"}})
        await line.say({"event": "MIGRATION", "data": {"status": "completed"}})
        await line.answer()
        await trio.sleep_forever()

    async with (
        fake_qmp(tmp_path, script) as path,
        open_monitor(thread, path, name="web1") as monitor,
        monitor.subscribe() as events,
    ):
        await monitor.execute("migrate")
        await monitor.execute("query-status", deadline_s=60)  # answered after the flood
        heard = []
        async for event in events:
            heard.append(event)
            if event == MigrationEvent(None, MigrationStatus.COMPLETED):
                break
    assert len(heard) < 300
    assert sum(isinstance(event, MigrationEvent) for event in heard) == 5
    assert PassEvent(None, 4_999) in heard


async def test_a_full_stream_stops_the_reading_of_qemu_and_loses_nothing(
    tmp_path: Path, thread: QmpThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 8_000  # more than the buffer and both sockets hold
    monkeypatch.setattr(client, "LINE_LIMIT_BYTES", 4096)
    said = 0

    async def script(line: Line) -> None:
        nonlocal said
        await line.greet()
        await line.answer()  # the subscriber is there
        for said in range(many):
            await line.say({"event": "STOP" if said % 2 else "RESUME", "timestamp": None})
        await trio.sleep_forever()

    async with (
        fake_qmp(tmp_path, script) as path,
        open_monitor(thread, path, name="web1") as monitor,
        monitor.subscribe() as events,
    ):
        await monitor.execute("cont")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert HARD_LIMIT < said < many - 1
        heard = [await events.receive() for _ in range(many)]
    assert [isinstance(event, StopEvent) for event in heard] == [False, True] * (many // 2)


async def test_a_monitor_that_reads_nothing_can_be_closed(
    tmp_path: Path, thread: QmpThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CLOSE_DEADLINE_S", SHORT_S)
    async with fake_qmp(tmp_path, answer_nothing) as path:
        async with open_monitor(thread, path, name="web1") as monitor:
            with pytest.raises(MonitorSilentError):
                await monitor.execute("x", {"much": "m" * 4_000_000}, deadline_s=SHORT_S)
        assert monitor.lost.is_set()


async def test_calls_that_decide_are_not_cancelled_once_sent(
    tmp_path: Path, thread: QmpThread
) -> None:
    asked, proceed = trio.Event(), trio.Event()

    async def script(line: Line) -> None:
        await line.greet()
        request = await line.hear()
        asked.set()
        await proceed.wait()
        await line.say({"return": {}, "id": request["id"]})
        await trio.sleep_forever()

    async with (
        fake_qmp(tmp_path, script) as path,
        open_monitor(thread, path, name="web1") as monitor,
        trio.open_nursery() as nursery,
    ):
        answered = False
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await asked.wait()
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                proceed.set()

            nursery.start_soon(cancel)
            await Qemu(monitor).cont()
            answered = True
        assert answered
        with trio.CancelScope() as scope:
            scope.cancel()
            await Qemu(monitor).cont()  # the script would never answer this one
        assert scope.cancelled_caught


async def test_two_bridges_leave_no_thread_behind(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path, answer_nothing) as path:
        for _ in range(2):
            with QmpThread() as bridge:
                async with open_monitor(bridge, path, name="web1"):
                    pass
                assert bridge.running
            assert not bridge.running
