"""The agents of two real hosts, asked from a thread that is not trio's own."""

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import trio

from qmigrate.controller.remote import Agent, open_agents
from qmigrate.core.errors import HostError
from qmigrate.core.model import HostSpec

START_DEADLINE_S = 150.0  # for the logins and both agents, whose own deadlines say more


class Hands:
    """An open agent a host, for as long as the block runs; calls are made one at a time."""

    def __init__(self, hosts: Sequence[HostSpec]) -> None:
        self._hosts = tuple(hosts)
        self._agents: dict[str, Agent] = {}
        self._news: queue.Queue[BaseException | None] = queue.Queue()
        self._token: trio.lowlevel.TrioToken | None = None
        self._leave = trio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        failure = self._news.get(timeout=START_DEADLINE_S)
        if failure is not None:
            raise failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            trio.from_thread.run_sync(self._leave.set, trio_token=self._token)
        self._thread.join(START_DEADLINE_S)

    def call(self, host: str, request: Any) -> Any:
        """Return the answer of the host's agent; raises as `Agent.call`."""
        if self._token is None:
            raise HostError("the agents are not open", host=host)
        return trio.from_thread.run(self._agents[host].call, request, trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._hold)
        except BaseException as exc:  # noqa: BLE001 - carried over to who waits, whatever it is
            self._news.put(exc)

    async def _hold(self) -> None:
        async with open_agents(self._hosts) as opened:
            for spec, agent in zip(self._hosts, opened, strict=True):
                if not isinstance(agent, Agent):
                    raise agent
                self._agents[spec.name] = agent
            self._token = trio.lowlevel.current_trio_token()
            self._news.put(None)
            await self._leave.wait()
