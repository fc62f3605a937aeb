"""What a source does before the first byte: meet the peer, compare both QEMUs, join them."""

from typing import TYPE_CHECKING

import trio

from qmigrate.agent import peer
from qmigrate.agent.pacing import options_of
from qmigrate.agent.relaying import load_message, memory_socket
from qmigrate.core.errors import HostError, MonitorError, Problem, QmigrateError
from qmigrate.core.handover import SourceEvent
from qmigrate.core.job import TwinFacts
from qmigrate.core.likeness import differences
from qmigrate.core.model import RUNS, Finding
from qmigrate.core.tuning import Party
from qmigrate.qmp.introspect import shape

if TYPE_CHECKING:
    from qmigrate.agent.source import SourceAgent

SOCKET = "qmigrate-ram"


class Preparation:
    """Runs beside the source's reader; ends in START, or in GIVE_UP with the reason."""

    def __init__(self, agent: "SourceAgent") -> None:
        self._agent = agent
        self.twin: TwinFacts | None = None
        self.findings: tuple[Finding, ...] = ()
        self._twin_known = trio.Event()
        self._loading = trio.Event()

    def heard(self, message: peer.Twin | peer.Loading) -> None:
        """Take what the destination says meanwhile."""
        if isinstance(message, peer.Twin):
            self.twin = message.facts
            self._twin_known.set()
        else:
            self._loading.set()

    async def run(self) -> None:
        """Prepare, whatever it takes, with a deadline for each wait."""
        agent = self._agent
        try:
            mine = await shape(agent.qemu.qemu)
            agent.mark("shape known")
            await self._within(
                agent.spec.patience.twin_s, self._twin_known, "did not say what it has started"
            )
            if self.twin is None:
                return
            agent.mark("twin known")
            self.findings = tuple(differences(mine, self.twin.shape, host=agent.spec.peer_host))
            if self.findings:
                what = "; ".join(finding.message for finding in self.findings)
                next_step = self.findings[0].fix
                agent.post(
                    SourceEvent.GIVE_UP,
                    Problem("blocked", what, "prepare", agent.spec.peer_host, None, next_step),
                )
                return
            await agent.qemu.tune(Party.SOURCE, options_of(agent.limits))
            agent.mark("tuned")
            await self._join()
            agent.post(SourceEvent.START)
        except QmigrateError as exc:
            exc.at(phase="prepare", host=agent.spec.peer_host)
            agent.post(SourceEvent.GIVE_UP, exc.problem)

    async def _within(self, deadline_s: float, event: trio.Event, what: str) -> None:
        with trio.move_on_after(deadline_s):
            await event.wait()
            return
        host = self._agent.spec.peer_host
        raise HostError(f"{host} {what} within {deadline_s:g} s", phase="prepare", host=host)

    async def _join(self) -> None:
        """Give each QEMU its end of one connection."""
        agent = self._agent
        direct = agent.linking.direct
        if direct is None or agent.endpoint is None:
            what = "the link broke before the copy began"
            if agent.link is not None:
                what += "; a controller carries what the agents say, and no memory"
            raise HostError(what, host=agent.spec.peer_host)
        load = load_message(agent, SOCKET, ran=agent.had in RUNS)
        await agent.send(load)
        loading_s = agent.spec.patience.loading_s
        with await memory_socket(agent, agent._exits, load, loading_s) as data:
            await agent.qemu.qemu.monitor.pass_fd(data.fileno(), SOCKET)
        agent.mark("joined")
        await self._within(loading_s, self._loading, "did not begin to load")

    async def forget_socket(self) -> None:
        """Close what QEMU was given and has not used; no error if it was used, or never given."""
        try:
            await self._agent.qemu.qemu.close_fd(SOCKET)
        except MonitorError as exc:
            self._agent.say(f"closefd: {exc}")
