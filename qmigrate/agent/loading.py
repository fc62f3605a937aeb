"""What a destination does before GO: join its QEMU to the source's, and be ready to go on."""

from typing import TYPE_CHECKING

from qmigrate.agent import peer
from qmigrate.agent.relaying import memory_socket
from qmigrate.core.errors import MonitorError, Problem, QmigrateError
from qmigrate.core.model import RUNS, RunState
from qmigrate.core.tuning import Options, Party

if TYPE_CHECKING:
    from qmigrate.agent.destination import DestinationAgent


async def load(agent: "DestinationAgent", request: peer.Load) -> None:
    """Hand QEMU its end of the memory stream, which travels beside a direct link only."""
    agent.mark("load asked")
    direct = agent.linking.direct
    if agent.qemu is None or direct is None or agent.endpoint is None:
        agent.say(f"there is no direct link to load {request.socket} from")
        return
    try:
        qemu = agent.qemu.qemu
        learn_whether_it_ran(agent, ran=request.ran)
        await agent.qemu.tune(Party.DESTINATION, Options())
        agent.mark("tuned")
        # Early: netlink takes milliseconds, and later the guest stands still.
        macs = {tap.netdev: tap.mac for tap in agent.plan.twin.taps if tap.mac}
        await agent.announcing.arm_twin(agent._exits, agent.taps, macs)
        agent.mark("armed")
        name = request.socket
        data_s = agent.spec.patience.data_s
        with await memory_socket(agent, agent._exits, request, data_s) as data:
            await qemu.monitor.pass_fd(data.fileno(), name)
        await agent.fault("at loading")
        await qemu.incoming_fd(request.socket)
        agent.mark("loading")
        await agent.send(peer.Loading())
    except QmigrateError as exc:
        agent.complain()
        agent.fail(exc.problem)


def learn_whether_it_ran(agent: "DestinationAgent", *, ran: bool) -> None:
    """Write down what the guest is to be like here, should its source not live to say GO."""
    had = RunState.RUNNING if ran else RunState.PAUSED
    if agent.had is not had:
        agent.had = had
        agent.run_it = had in RUNS
        agent.record(agent.entry().record)


async def say_ready(agent: "DestinationAgent", request: peer.AreYouReady) -> None:
    """Take what the source has learned, and say that QEMU is alive: the guest is stopped."""
    learn_whether_it_ran(agent, ran=request.ran)
    agent.announcing.add(request.addresses)
    await agent.fault("at pre-switchover")
    if agent.qemu is not None and not agent.qemu.has_ended():
        await agent.send(peer.Ready())
        await agent.fault("at switchover")


async def load_failure(agent: "DestinationAgent") -> Problem:
    """Return why QEMU could not load, in its own words if it has any left."""
    what = "the destination's QEMU could not load the guest"
    if agent.qemu is None:
        return agent.trouble("rolled-back", what)
    try:
        words = (await agent.qemu.qemu.query_migrate()).error_desc
    except MonitorError:
        words = None
    return agent.trouble("rolled-back", what, last_words=words)
