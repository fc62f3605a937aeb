"""How a source lets go: its QEMU ended or the guest brought back, ours removed, all said."""

from typing import TYPE_CHECKING

import trio

from netsetup.errors import NetsetupError
from qmigrate.agent import twin
from qmigrate.agent.networking import release
from qmigrate.agent.reporting import report_of
from qmigrate.agent.units import enabled_at_boot, stop_unit
from qmigrate.core.errors import (
    HostError,
    MonitorError,
    Problem,
)
from qmigrate.core.handover import (
    Effect,
    Source,
    SourceEvent,
)
from qmigrate.core.home import ReleaseTunnels
from qmigrate.core.takeover import Return, how_to_return

if TYPE_CHECKING:
    from qmigrate.agent.source import SourceAgent

S, SE, E = Source, SourceEvent, Effect

RETURN_INTERVAL_S = 1.0  # between attempts to bring back a guest that QEMU does not let run


async def quit_qemu(agent: "SourceAgent") -> None:
    """End the source's QEMU; the destination is proved, so nothing but its end is wanted."""
    if agent.qemu.has_ended():
        agent.post(SE.QUIT)
        return
    try:
        agent.figures = await agent.qemu.qemu.query_migrate()
    except MonitorError as exc:
        agent.say(f"QEMU's figures are not known: {exc}")
    try:
        if agent.guest.unit and agent.guest.stop_unit:
            await stop_unit(agent.guest.unit)
        else:
            await agent.qemu.qemu.quit()
    except (MonitorError, HostError) as exc:
        agent.say(f"quit: {exc}")
        if agent.guest.stop_unit:
            agent.left += (f"{agent.spec.host}: {exc.problem.what}",)
    with trio.move_on_after(agent.spec.patience.quit_s):
        await twin.wait_end(agent.qemu.pidfd)
        agent.post(SE.QUIT)
        return
    agent.say("QEMU did not end after quit: it is killed")
    try:
        await twin.kill(agent.qemu.pidfd)
        agent.post(SE.QUIT)
    except HostError as exc:
        agent.left += (f"{agent.spec.host}: {exc.problem.what}",)
        agent.post(SE.STUCK, exc.problem)


async def return_guest(agent: "SourceAgent") -> None:
    """Bring the guest back to the state it had, then the parameters it had.

    What is refused, as `cont` is while another holds an image's lock, is said and tried again.
    """
    if agent.qemu.has_ended():
        agent.post(SE.QEMU_GONE)  # where its end was no reason to act, it was not kept
        return
    if not agent.qemu.opened:  # it could never be spoken to, so nothing was done to it
        agent.post(SE.RETURNED_HERE)
        return
    is_said = False
    while True:
        try:
            await _bring_back(agent)
        except MonitorError as exc:
            if agent.qemu.has_ended():
                agent.post(SE.QEMU_GONE, exc.problem)
                return
            if not is_said:
                agent.post(SE.STUCK, exc.problem)
            is_said = True
            await trio.sleep(RETURN_INTERVAL_S)
        else:
            agent.post(SE.RETURNED_HERE)
            return


async def _bring_back(agent: "SourceAgent") -> None:
    looked = await agent.qemu.look()
    how = how_to_return(looked.state, agent.had, stopped_by_us=agent.stopped_by_us)
    if how is Return.CONT:
        await agent.qemu.qemu.cont()
    elif how is Return.ACTIVATE:
        await agent.qemu.qemu.blockdev_set_active(active=True)
    await agent.preparation.forget_socket()
    await agent.qemu.restore()


async def announce(agent: "SourceAgent") -> None:
    """Tell the network that the guest is still, or again, here."""
    await agent.turning.back()
    try:
        agent.announced = await agent.learning.announce(agent.rtnl, agent.nursery)
    except NetsetupError as exc:
        agent.say(f"the guest is not announced: {exc.what}")


async def clean(agent: "SourceAgent") -> None:
    """Remove what a guest that has left lived on here, if it was ours; let go of its tunnels."""
    tag, host = agent.guest.tag, agent.spec.host
    if agent.state in (S.DONE, S.ENDED):
        left = await twin.remove(agent.rtnl, tag)
        agent.left += tuple(f"{host}: {what}" for what in left)
    match agent.state:
        case S.DONE:
            void = ReleaseTunnels(tag, keep=agent.spec.network.tunnels)
        case S.ENDED:
            void = ReleaseTunnels(tag)
        case _:  # it runs here: what leads away from here leads to nobody
            void = ReleaseTunnels(tag, end="home")
    agent.left += await release(agent.rtnl, void, host)


async def look_at_boot(agent: "SourceAgent") -> None:
    """Find out whether the next boot would start a second copy here."""
    if agent.running is None or not agent.guest.unit:
        return
    try:
        agent.still_enabled = await enabled_at_boot(agent.guest.unit)
    except HostError as exc:
        agent.say(f"whether {agent.guest.unit} is enabled is not known: {exc}")


async def end(agent: "SourceAgent") -> None:
    """Hear the destination out, report, leave."""
    was_there = agent.preparation.twin is not None or agent._again
    # Without a link as well: a new agent has yet to find the destination, a link that broke may
    # come back or be carried, and a destination that is told leaves nothing waiting there.
    if agent.link is not None or was_there:
        with trio.move_on_after(agent.spec.patience.farewell_s):
            await agent._farewell.wait()
    heard = agent._farewell.is_set() or not was_there
    if not heard:
        agent.left += (f"{agent.spec.peer_host}: not heard of since the link broke",)
    await look_at_boot(agent)
    agent.mark("reporting")
    agent.say_marks()
    agent.finish(report_of(agent))
    agent.over.set()


def unknown(agent: "SourceAgent") -> Problem:
    """Return what people are told when the outcome cannot be known here."""
    what = agent.problem.what if agent.problem else "the destination has not said"
    return Problem(
        "unknown-outcome",
        f"who runs the guest cannot be known here: {what}",
        str(agent.state),
        agent.spec.peer_host,
        agent.problem.last_words if agent.problem else None,
        f"nothing was resumed or killed; come back with: qmigrate watch {agent.spec.job}",
    )
