"""What a source tells its QEMU to do: begin, go on to the switchover, stop."""

from typing import TYPE_CHECKING

from qmigrate.agent.preparing import SOCKET
from qmigrate.core.errors import CommandError, MonitorError, RolledBackError
from qmigrate.core.handover import SourceEvent
from qmigrate.core.job import Mode
from qmigrate.core.model import RunState
from qmigrate.qmp.events import MigrationStatus

if TYPE_CHECKING:
    from qmigrate.agent.source import SourceAgent

SE = SourceEvent


async def migrate(agent: "SourceAgent") -> None:
    """Begin the copy; what is moved offline is stopped first, and the journal says that we did."""
    agent.mark("migrate")
    agent.touched = True
    try:
        if agent.spec.mode is Mode.OFFLINE and agent.had is RunState.RUNNING:
            agent.stopped_by_us = True
            agent.record(agent.entry().record, stopped_by_us=True)
            await agent.qemu.qemu.stop()
        await agent.qemu.qemu.migrate_fd(SOCKET)
    except CommandError as exc:
        agent.post(SE.QEMU_RUNS_ON, exc.problem)
        return

    def give_up(why: RolledBackError) -> None:
        agent.post(SE.GIVE_UP, why.at(host=agent.spec.host).problem)

    agent.nursery.start_soon(agent.pace.run, give_up)


async def migrate_continue(agent: "SourceAgent") -> None:
    """Let QEMU go on from pre-switchover."""
    agent.mark("continue")
    try:
        await agent.qemu.qemu.migrate_continue()
    except CommandError as exc:
        # It is no longer at pre-switchover: its event says what it is, or is on its way.
        agent.say(f"migrate-continue: {exc.problem.last_words}")


async def migrate_cancel(agent: "SourceAgent") -> None:
    """Have QEMU stop; its terminal event says what came of it."""
    try:
        await agent.qemu.qemu.migrate_cancel()
        looked = await agent.qemu.look()
    except MonitorError as exc:
        agent.say(f"migrate_cancel: {exc}")
        return
    if looked.status is MigrationStatus.NONE:  # it never began: there will be no event
        agent.post(SE.QEMU_RUNS_ON)
