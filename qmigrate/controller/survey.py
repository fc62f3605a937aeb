"""What runs on several hosts: all asked side by side; one that fails hides no other."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import trio

from qmigrate.agent.requests import GuestList, ListGuests
from qmigrate.controller.remote import StartTimings
from qmigrate.core.errors import Problem, QmigrateError, UnreachableError
from qmigrate.core.model import Guest, HostSpec

# Logins and monitors have deadlines of their own, which give better reasons. This one is for a host
# that answers each step just in time: nobody waits longer for a list.
HOST_DEADLINE_S = 90.0


class Asked(Protocol):
    """What is needed of `controller.remote.Agent`."""

    @property
    def timings(self) -> StartTimings: ...  # noqa: D102
    async def call(self, request: Any, /) -> Any: ...  # noqa: D102


T = TypeVar("T")
Opener = Callable[[HostSpec], AbstractAsyncContextManager[Asked]]


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the time that a host took."""

    name: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What one host said: guests, or the problem."""

    host: HostSpec
    guests: tuple[Guest, ...]
    problem: Problem | None
    exit_code: int  # of the problem; 0 if there is none
    steps: tuple[Step, ...]


def start_steps(timings: StartTimings) -> tuple[Step, ...]:
    """Return where an agent's start went, in order; what took no time was not needed."""
    login, steps = timings.login, timings.steps
    parts = (
        Step("ssh configuration", login.resolve_s),
        Step("connect", login.connect_s),
        Step("login", login.auth_s),
        Step("python", steps.python_s),
        Step("push", steps.push_s),
        Step("agent", steps.hello_s),
    )
    return tuple(step for step in parts if step.duration_s > 0)


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """What one host said to a question, or the problem."""

    host: HostSpec
    value: T | None
    problem: Problem | None
    exit_code: int
    steps: tuple[Step, ...]


async def survey(hosts: Sequence[HostSpec], open_agent: Opener) -> tuple[HostAnswer, ...]:
    """Ask every host for its guests; returns an answer a host, in the order given.

    An error of ours on one host becomes its problem; anything else is a defect and is raised.
    """

    async def guests(agent: Asked) -> tuple[Guest, ...]:
        answer: GuestList = await agent.call(ListGuests())
        return answer.guests

    answered = await ask_each(hosts, open_agent, guests)
    return tuple(
        HostAnswer(a.host, a.value or (), a.problem, a.exit_code, a.steps) for a in answered
    )


async def ask_each(
    hosts: Sequence[HostSpec], open_agent: Opener, question: Callable[[Asked], Awaitable[T]]
) -> tuple[Answered[T], ...]:
    """Put a question to every host, side by side; as `survey`."""
    answers: dict[int, Answered[T]] = {}

    async def ask(index: int, host: HostSpec) -> None:
        answers[index] = await _ask(host, open_agent, question)

    async with trio.open_nursery() as nursery:
        for index, host in enumerate(hosts):
            nursery.start_soon(ask, index, host)
    return tuple(answers[index] for index in range(len(hosts)))


async def _ask(
    host: HostSpec, open_agent: Opener, question: Callable[[Asked], Awaitable[T]]
) -> Answered[T]:
    steps: list[Step] = []
    value: T | None = None
    problem: QmigrateError | None = None
    try:
        with trio.fail_after(HOST_DEADLINE_S):
            async with open_agent(host) as agent:
                steps += start_steps(agent.timings)
                opened = trio.current_time()
                value = await question(agent)
                steps.append(Step("ask", trio.current_time() - opened))
    except trio.TooSlowError:
        problem = UnreachableError(f"no complete answer within {HOST_DEADLINE_S:.0f} s")
    except BaseExceptionGroup as group:
        # A nursery of the session's: the error and, at most, what its end did to the other tasks.
        ours, others = group.split(QmigrateError)
        if ours is None or others is not None:
            raise
        problem = _first(ours)
    except QmigrateError as exc:
        problem = exc
    if problem is None:
        return Answered(host, value, None, 0, tuple(steps))
    problem.at(host=host.name)
    return Answered(host, None, problem.problem, problem.exit_code, tuple(steps))


def _first(group: BaseExceptionGroup[QmigrateError]) -> QmigrateError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
