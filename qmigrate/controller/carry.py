"""Carry what a job's two agents say to each other while they have no link of their own.

The controller reaches both hosts; the path between them may be cut for good. Then GO and its
answer, or a refusal, go through here, and the job ends as it would have::

    source's agent ═╪═ destination's agent        the link, cut
         │ CarryLink ─── frames ──► BringFrame │
         ▼                                     ▼
         └───────────── controller ────────────┘   over both SSH sessions
"""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from qmigrate.agent.requests import BringFrame, CarryLink, Done, Frame
from qmigrate.core.errors import AgentLostError, HostError, QmigrateError

AGAIN_PAUSE_S = 0.5  # before both are asked again: an agent may be just being started
BRING_DEADLINE_S = 10.0  # for an agent to take a frame; it only puts it into its inbox
WAITING = Frame("")  # a side has no link, and would be carried for


class Asked(Protocol):
    """What is needed of `controller.remote.Agent`."""

    async def call(self, request: Any, /, *, deadline_s: float = ...) -> Any: ...  # noqa: D102
    def stream(self, request: Any, /) -> Any: ...  # noqa: D102


async def carry(
    source: Asked, destination: Asked, job: str, *, met: Callable[[], None] = lambda: None
) -> str:
    """Carry until the agents have a link of their own ("linked") or the job is over ("over").

    `met` is called when they hear each other. Raises `HostError` when a side cannot be asked any
    more: its host is out of reach, or nobody works at the job there. When cancelled the agents
    notice that nobody carries; carrying may begin again at any time, and what matters is said anew.
    """
    while True:
        carrying = _Carrying((_Side(source), _Side(destination)), job, met)
        why = await carrying.run()
        if why is not None:
            return why
        await trio.sleep(AGAIN_PAUSE_S)


@dataclass(eq=False, slots=True)
class _Side:
    """One of the two agents, and whether it waits to be carried for."""

    agent: Asked
    waits: trio.Event = field(default_factory=trio.Event)


class _Carrying:
    """One attempt: both sides are asked, met, and carried for until either has had enough."""

    def __init__(self, sides: tuple[_Side, _Side], job: str, met: Callable[[], None]) -> None:
        self._sides = sides
        self._job = job
        self._met = met
        self._why: str | None = None
        self._error: HostError | None = None

    async def run(self) -> str | None:
        """Return why it ended for good; None: try again. Raises `HostError`."""
        first, second = self._sides
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, first, second, nursery.cancel_scope)
            nursery.start_soon(self._pump, second, first, nursery.cancel_scope)
        if self._error is not None:
            raise self._error
        return self._why

    async def _pump(self, side: _Side, other: _Side, both: trio.CancelScope) -> None:
        """Bring what `side` says to `other`, until it has no more; then end `both`."""
        try:
            async with aclosing(side.agent.stream(CarryLink(self._job))) as said:
                async for frame in said:
                    if isinstance(frame, Done):
                        self._why = frame.text if frame.text in ("linked", "over") else None
                        break
                    if frame == WAITING:
                        if side.waits.is_set():  # it was started anew: both must meet again
                            break
                        side.waits.set()
                        await other.waits.wait()
                        self._tell_met(side)
                    if not await self._bring(other, frame):
                        break
        except QmigrateError as exc:
            self._error = exc if isinstance(exc, HostError) else HostError(str(exc))
        both.cancel()

    def _tell_met(self, side: _Side) -> None:
        if side is self._sides[0]:
            self._met()

    async def _bring(self, other: _Side, frame: Frame) -> bool:
        """Tell whether `other` took the frame; one that cannot be asked any more is an error."""
        try:
            await other.agent.call(BringFrame(self._job, frame), deadline_s=BRING_DEADLINE_S)
        except AgentLostError:
            raise
        except HostError:  # it has a link, or another agent: that is seen when both are asked again
            return False
        return True
