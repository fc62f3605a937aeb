"""Whole moves between two real QEMUs of this host, by the sequence of DESIGN §3."""

import contextlib
import math
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from qmigrate.core.convergence import GiveUp, RaiseLimit, Sample, decide, remember
from qmigrate.core.errors import CommandError
from qmigrate.core.model import RunState
from qmigrate.core.tiny import TinySpec, boot_sector, read_marks
from qmigrate.core.tuning import Options, Party, Tuning, change, restore, tune
from qmigrate.qmp.client import QmpThread, open_monitor
from qmigrate.qmp.events import (
    Event,
    MigrationEvent,
    MigrationStatus,
    PassEvent,
    ResumeEvent,
    StopEvent,
)
from qmigrate.qmp.migration import MigrationProgress, Qemu
from qmigrate.qmp.stream import EventStream
from tests.support.bare_qemu import bare_qemu

pytestmark = pytest.mark.qemu

DEADLINE_S = 60.0  # a hang of a move is a failure, not a wait
POLL_S = 0.1  # QEMU measures its own bandwidth each 100 ms
SPEC = TinySpec(mib=4, hz=0)  # dirties its pages as fast as it can


@dataclass
class Side:
    qemu: Qemu
    events: EventStream
    before: Tuning

    async def until(self, *statuses: MigrationStatus) -> list[Event]:
        """Take events until the migration is in one of `statuses`; return all of them."""
        heard: list[Event] = []
        with trio.fail_after(DEADLINE_S):
            async for event in self.events:
                heard.append(event)
                if isinstance(event, MigrationEvent) and event.status in statuses:
                    return heard
        raise AssertionError(f"the stream ended with {heard}")


@pytest.fixture
def thread() -> Iterator[QmpThread]:
    with QmpThread() as running:
        yield running


@contextlib.asynccontextmanager
async def side(thread: QmpThread, tmp_path: Path, name: str, *args: str) -> AsyncIterator[Side]:
    async with (
        bare_qemu(tmp_path, name, *args) as vm,
        open_monitor(thread, vm.path, name=name) as monitor,
        monitor.subscribe() as events,
    ):
        qemu = Qemu(monitor)
        yield Side(qemu, events, await qemu.query_tuning())


@contextlib.asynccontextmanager
async def pair(thread: QmpThread, tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    """A running tiny guest and the twin that waits for it."""
    image = tmp_path / "tiny"
    image.write_bytes(boot_sector(SPEC))
    kernel = ("-kernel", str(image))
    twin = (*kernel, "-serial", "null", "-S", "-incoming", "defer")
    async with (
        running(thread, tmp_path, *kernel) as source,
        side(thread, tmp_path, "twin", *twin) as destination,
    ):
        yield source, destination


@contextlib.asynccontextmanager
async def running(thread: QmpThread, tmp_path: Path, *args: str) -> AsyncIterator[Side]:
    """A source whose guest has been heard: its memory is dirty from now on."""
    path = str(tmp_path / "com1")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen(1)
        async with side(thread, tmp_path, "source", *args, "-serial", f"unix:{path}") as source:
            with trio.fail_after(DEADLINE_S):
                com1, _ = await listener.accept()
                with com1:
                    assert await com1.recv(1) == b"A"
            yield source


async def begin(
    source: Side,
    destination: Side,
    options: Options = Options(),  # noqa: B008 - frozen
) -> None:
    a, b = socket.socketpair()
    for here, party, end in (
        (destination, Party.DESTINATION, b),
        (source, Party.SOURCE, a),
    ):
        await here.qemu.set_tuning(tune(here.before, party, options))
        await here.qemu.monitor.pass_fd(end.fileno(), "mig")
        end.close()
    await destination.qemu.incoming_fd("mig")
    await source.qemu.migrate_fd("mig")


async def marks(qemu: Qemu, path: Path) -> bytes:
    start, size = SPEC.region
    arguments = {"val": start, "size": size, "filename": str(path)}
    await qemu.monitor.execute("pmemsave", arguments, deadline_s=DEADLINE_S)
    return await trio.Path(path).read_bytes()


async def test_a_running_guest_moves_over_one_descriptor_and_tuning_comes_back(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with pair(thread, tmp_path) as (source, destination):
        assert await destination.qemu.status() is RunState.INMIGRATE
        assert (await source.qemu.query_migrate()).status is MigrationStatus.NONE
        await begin(source, destination, Options(downtime_limit_ms=300))

        heard = await source.until(MigrationStatus.PRE_SWITCHOVER)
        kinds = [event for event in heard if not isinstance(event, PassEvent)]
        assert [type(event) for event in kinds[-2:]] == [StopEvent, MigrationEvent]
        assert await source.qemu.status() is RunState.FINISH_MIGRATE
        sent = await marks(source.qemu, tmp_path / "sent")

        await source.qemu.migrate_continue()
        await source.until(MigrationStatus.COMPLETED)
        await destination.until(MigrationStatus.COMPLETED)
        assert await source.qemu.status() is RunState.POSTMIGRATE
        assert await destination.qemu.status() is RunState.PAUSED
        assert await marks(destination.qemu, tmp_path / "loaded") == sent
        assert read_marks(sent, SPEC).problem == ""

        done = await source.qemu.query_migrate()
        assert done.status is MigrationStatus.COMPLETED
        assert done.downtime_ms is not None
        assert (done.transferred_bytes or 0) > SPEC.mib << 20
        assert (done.dirty_sync_count or 0) >= 1

        await destination.qemu.cont()
        with trio.fail_after(DEADLINE_S):
            assert isinstance(await destination.events.receive(), ResumeEvent)
        assert await destination.qemu.status() is RunState.RUNNING
        await destination.qemu.announce_self()
        with pytest.raises(CommandError):
            await source.qemu.migrate_continue()
        await source.qemu.migrate_cancel()  # nothing to cancel is no error

        for here, party in ((source, Party.SOURCE), (destination, Party.DESTINATION)):
            tuned = tune(here.before, party, Options(downtime_limit_ms=300))
            assert await here.qemu.query_tuning() != here.before
            await here.qemu.set_tuning(restore(here.before, tuned))
            assert await here.qemu.query_tuning() == here.before

        await source.qemu.quit()
        await source.qemu.monitor.lost.wait()


async def test_a_cancel_at_pre_switchover_gives_the_guest_back_to_the_source(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with pair(thread, tmp_path) as (source, destination):
        await begin(source, destination, Options(downtime_limit_ms=1000))
        await source.until(MigrationStatus.PRE_SWITCHOVER)
        await source.qemu.migrate_cancel()
        heard = await source.until(MigrationStatus.CANCELLED)
        assert any(isinstance(event, ResumeEvent) for event in heard)
        assert await source.qemu.status() is RunState.RUNNING
        await destination.until(MigrationStatus.FAILED)
        assert await destination.qemu.status() is RunState.INMIGRATE
        assert (await destination.qemu.query_migrate()).error_desc
        with pytest.raises(CommandError):  # one shot
            await destination.qemu.incoming_fd("mig")


async def test_a_source_whose_peer_is_gone_runs_on_by_itself(
    tmp_path: Path, thread: QmpThread
) -> None:
    async with pair(thread, tmp_path) as (source, destination):
        await begin(source, destination, Options(bandwidth_bps=4 << 20))
        await source.until(MigrationStatus.ACTIVE)
        await destination.qemu.quit()
        await source.until(MigrationStatus.FAILED)
        assert await source.qemu.status() is RunState.RUNNING
        assert (await source.qemu.query_migrate()).error_desc


async def test_yank_out_of_band_ends_a_migration_whose_peer_is_silent(
    tmp_path: Path, thread: QmpThread
) -> None:
    ours, theirs = socket.socketpair()
    async with side(thread, tmp_path, "source") as source:
        await source.qemu.set_tuning(tune(source.before, Party.SOURCE))
        await source.qemu.monitor.pass_fd(theirs.fileno(), "mig")
        theirs.close()
        await source.qemu.migrate_fd("mig")
        await source.until(MigrationStatus.ACTIVE)
        await source.qemu.yank_migration()
        await source.until(MigrationStatus.FAILED)
        assert await source.qemu.status() is RunState.RUNNING
        ours.close()


def sample(progress: MigrationProgress, at_s: float, limit_ms: int) -> Sample:
    return Sample(
        at_s=at_s,
        pass_number=progress.dirty_sync_count or 0,
        transferred_bytes=progress.transferred_bytes or 0,
        limit_ms=limit_ms,
        bandwidth_bps=progress.bandwidth_bps,
        dirty_rate_bps=progress.dirty_rate_bps,
    )


@pytest.mark.parametrize("max_limit_ms", [100, 1000])
async def test_a_guest_that_does_not_converge_gets_a_higher_limit_or_is_given_up(
    tmp_path: Path, thread: QmpThread, max_limit_ms: int
) -> None:
    # 4 MiB of dirty pages at 16 MiB/s: 250 ms' worth stays, however often it is sent.
    async with pair(thread, tmp_path) as (source, destination):
        options = Options(bandwidth_bps=16 << 20)
        await begin(source, destination, options)
        limit_ms, raised_at_s, samples = options.downtime_limit_ms, -math.inf, ()
        ended: MigrationEvent | None = None
        reasons = []

        async def watch() -> None:
            nonlocal ended
            heard = await source.until(MigrationStatus.PRE_SWITCHOVER)
            ended = heard[-1] if isinstance(heard[-1], MigrationEvent) else None
            nursery.cancel_scope.cancel()

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                while True:
                    now_s = trio.current_time()
                    progress = await source.qemu.query_migrate()
                    samples = remember(samples, sample(progress, now_s, limit_ms))
                    action = decide(
                        samples,
                        limit_ms=limit_ms,
                        max_limit_ms=max_limit_ms,
                        now_s=now_s,
                        raised_at_s=raised_at_s,
                        patience_s=0.5,
                        last_patience_s=2.0,
                    )
                    match action:
                        case RaiseLimit(limit_ms=limit_ms, reason=reason):
                            raised_at_s = now_s
                            reasons.append(reason)
                            changed = change(Options(limit_ms, options.bandwidth_bps))
                            await source.qemu.set_tuning(changed)
                        case GiveUp(reason=reason):
                            reasons.append(reason)
                            nursery.cancel_scope.cancel()
                            break
                    await trio.sleep(POLL_S)
        print(*reasons, sep="\n")
        await source.qemu.migrate_cancel()
        await source.until(MigrationStatus.CANCELLED)
        assert await source.qemu.status() is RunState.RUNNING
        assert reasons
        assert (ended is not None) is (max_limit_ms == 1000)
        assert limit_ms > options.downtime_limit_ms
