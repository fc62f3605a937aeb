"""The one decision of a destination: is the guest whole here, and does it run?"""

from typing import TYPE_CHECKING

import trio

from qmigrate.core.errors import CommandError, MonitorError
from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
)
from qmigrate.core.model import RUNS, RunState
from qmigrate.core.takeover import HAS_RUN

if TYPE_CHECKING:
    from qmigrate.agent.destination import DestinationAgent

D, DE, E = Destination, DestinationEvent, Effect

LAST_COPY_INTERVAL_S = 1.0  # between questions to a silent twin that may be the last copy


async def look_ahead(agent: "DestinationAgent") -> None:
    """Ask QEMU what it has as soon as it says that it has everything: GO is on its way."""
    try:
        if agent.qemu is not None:
            agent.looked = await agent.qemu.look()
    except MonitorError as exc:
        agent.say(f"QEMU is loaded and cannot be asked: {exc}")
    agent.loaded.set()


async def look_for_ever(agent: "DestinationAgent") -> None:
    """Ask until QEMU answers or ends: this may be the last copy, and silence is no death."""
    while agent.qemu is not None and not agent.qemu.has_ended() and agent.looked is None:
        try:
            looked = await agent.qemu.look()
        except MonitorError as exc:
            agent.say(f"the twin is silent, and the only copy: {exc}")
            await trio.sleep(LAST_COPY_INTERVAL_S)
            continue
        if looked.status.final:
            agent.looked = looked
        else:
            await trio.sleep(LAST_COPY_INTERVAL_S)


async def look(agent: "DestinationAgent") -> None:
    """Say, once GO has come, whether QEMU has everything, is alive and was not started."""
    if not agent.loaded.is_set():
        with trio.move_on_after(agent.spec.patience.look_s):
            await agent.loaded.wait()
    if agent.looked is None and agent.alone:
        await look_for_ever(agent)
    looked = agent.looked
    if looked is None or agent.qemu is None or agent.qemu.has_ended():
        # It has never been told to run, so refusing is safe whatever hangs.
        what = "QEMU did not say in time that it has loaded the guest"
        agent.post(DE.LOOKS_UNFIT, agent.trouble("rolled-back", what))
    elif looked.completed and looked.state is not RunState.INMIGRATE:
        agent.post(DE.LOOKS_LOADED)
    else:
        what = f"QEMU is not ready to run the guest: {looked.state}, {looked.status}"
        agent.post(DE.LOOKS_UNFIT, agent.trouble("rolled-back", what))


async def run_guest(agent: "DestinationAgent") -> None:
    """Run the guest, or leave it as it was with its images ours.

    A first `cont` that is refused gives it back, unless it has run by somebody else's, or there is
    no copy that it could be given back to: then, as where nothing is known, it is tried again.
    """
    if agent.qemu is None:
        return
    try:
        await _begin(agent)
    except CommandError as exc:
        if agent.state is D.GO and not (agent.alone or agent.resumed.is_set()):
            agent.post(DE.CONT_REFUSED, exc.problem)
            return
        known = DE.CONT_REFUSED if agent.state is D.GO_AGAIN else DE.CONT_UNKNOWN
        agent.post(known, exc.problem)
        agent.nursery.start_soon(seek_running, agent)
        return
    except MonitorError as exc:
        agent.post(DE.CONT_UNKNOWN, exc.problem)
        agent.nursery.start_soon(seek_running, agent)
        return
    if not agent.run_it:
        agent.post(DE.RUNS)
        return
    agent.mark("cont answered")
    with trio.move_on_after(agent.spec.patience.resume_s):
        await agent.resumed.wait()
    try:
        state = await agent.qemu.qemu.status()
    except MonitorError as exc:
        agent.post(DE.CONT_UNKNOWN, exc.problem)
        agent.nursery.start_soon(seek_running, agent)
        return
    if state in RUNS or agent.resumed.is_set():
        agent.post(DE.RUNS)
    else:
        what = f"cont was taken and the guest is {state}"
        agent.post(DE.CONT_UNKNOWN, agent.trouble("unknown-outcome", what))
        agent.nursery.start_soon(seek_running, agent)


async def _begin(agent: "DestinationAgent") -> None:
    """Give the guest its images, and let it run if it is to; the right is here by now."""
    if agent.qemu is None:
        return
    if not agent.run_it:
        await agent.qemu.qemu.blockdev_set_active(active=True)
        return
    agent.mark("cont")
    await agent.qemu.qemu.cont()


async def seek_running(agent: "DestinationAgent") -> None:
    """Ask again, and tell it again to run, until QEMU says what came of it."""
    while agent.qemu is not None and agent.state in (D.GO, D.GO_AGAIN):
        await trio.sleep(1.0)
        try:
            state = await agent.qemu.qemu.status()
            has_run = agent.resumed.is_set() or state in RUNS or (agent.run_it and state in HAS_RUN)
            if not has_run:
                await _begin(agent)
                if agent.run_it:
                    continue  # it is seen to run the next time round
            agent.post(DE.RUNS)
        except MonitorError as exc:
            agent.say(f"the guest does not run yet: {exc}")
            continue
        return
