"""A move's profile, put together from what was measured anyway: no question is asked for it."""

import os
import re
import time
from pathlib import Path
from time import perf_counter

from qmigrate.controller.migrate import Move
from qmigrate.controller.remote import Agent, CallSpan
from qmigrate.controller.result import Result
from qmigrate.controller.survey import start_steps
from qmigrate.core.job import JobReport, Mark
from qmigrate.core.model import Side
from qmigrate.core.profile import HERE, Profile, Span, guest_spans, job_spans, time_of

_WORDS = {
    "GetHostFacts": "facts of the host",
    "GetNetwork": "facts of the network",
    "ReachGuest": "reach the guest",
    "InspectGuest": "inspect the guest",
}
_PLANNED, _FOLLOWED = "StartJob", "WatchJob"


def profile_of(move: Move, result: Result) -> Profile:
    """Return where the time went until now; the axis begins with this process.

    `move` has ended, and its agents with it. A move that failed has the steps that it came to.
    """
    now_s = perf_counter()
    zero_s = now_s - _age_s()
    made_s = move.began_s + result.wall_s
    spans = [
        Span(HERE, "python, imports", zero_s, move.began_s),
        Span(HERE, "hang up", made_s, now_s),
    ]
    if move.keys.made_s is not None:
        spans.append(Span(HERE, "keys", move.began_s, move.keys.made_s))
    for agent in move.opened:
        spans += _started(agent)
        spans += (
            Span(agent.host, _words(call.name), call.began_s, call.ended_s)
            for call in agent.spans
            if call.name not in (_PLANNED, _FOLLOWED)
        )
    spans += _judged(move.opened)
    guest: tuple[Span, ...] = ()
    if result.report is not None and move.network is not None:
        source, destination = move.network.agents
        spans += _job(source, destination, result.report)
        guest = _guest(source, destination, result, zero_s, now_s)
    moved = (
        Span(span.where, span.step, span.start_s - zero_s, span.end_s - zero_s) for span in spans
    )
    ordered = sorted(moved, key=lambda span: (span.start_s, span.end_s))
    return Profile(now_s - zero_s, tuple(ordered), guest)


def _age_s() -> float:
    """Return how old this process is, to 10 ms: /proc/self/stat counts in ticks since boot."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    born_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s


def _words(name: str) -> str:
    return _WORDS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _started(agent: Agent) -> list[Span]:
    """Return a login's steps from its beginning on, and the agent's back from its hello.

    Between the two it waits for the payload, which is read beside the login.
    """
    timings = agent.timings
    steps = start_steps(timings)
    logins = [s for s in steps if s.name in ("ssh configuration", "connect", "login")]
    spans = [Span(agent.host, "payload", timings.began_s, timings.began_s + timings.payload_s)]
    at_s = timings.began_s
    for step in logins:
        spans.append(Span(agent.host, step.name, at_s, at_s + step.duration_s))
        at_s += step.duration_s
    end_s = timings.began_s + timings.total_s
    for step in reversed(steps[len(logins) :]):
        spans.append(Span(agent.host, step.name, end_s - step.duration_s, end_s))
        end_s -= step.duration_s
    return spans


def _judged(agents: tuple[Agent, ...]) -> list[Span]:
    """Return the controller's own work between the last answer and the job's start."""
    calls = [call for agent in agents for call in agent.spans]
    starts = [call.began_s for call in calls if call.name == _PLANNED]
    if not starts:
        return []
    begin_s = min(starts)
    return [Span(HERE, "preflight", max(c.ended_s for c in calls if c.ended_s <= begin_s), begin_s)]


def _call(agent: Agent, name: str) -> CallSpan | None:
    return next((call for call in agent.spans if call.name == name), None)


def _job(source: Agent, destination: Agent, report: JobReport) -> list[Span]:
    spans: list[Span] = []
    for agent, side, marks in (
        (source, Side.SOURCE, report.marks),
        (destination, Side.DESTINATION, report.destination_marks),
    ):
        started = _call(agent, _PLANNED)
        if started is not None:
            spans += job_spans(
                agent.host, side, marks, asked_s=started.began_s, answered_s=started.ended_s
            )
    last_s = _at(source, "reporting", report.marks)
    watched = _call(source, _FOLLOWED)
    if last_s is not None and watched is not None:
        spans.append(Span(source.host, "report", last_s, watched.ended_s))
    return spans


def _at(agent: Agent, mark: str, marks: tuple[Mark, ...]) -> float | None:
    started = _call(agent, _PLANNED)
    return None if started is None else time_of(mark, marks, answered_s=started.ended_s)


def _guest(
    source: Agent, destination: Agent, result: Result, zero_s: float, now_s: float
) -> tuple[Span, ...]:
    """Return where the guest ran; QEMU stops it just before it says pre-switchover."""
    stop_s = None
    if result.report is not None:
        stop_s = _at(source, "pre-switchover", result.report.marks)
    return guest_spans(
        (source.host, destination.host),
        stop_s=None if stop_s is None else stop_s - zero_s,
        blackout_ms=result.blackout_ms,
        wall_s=now_s - zero_s,
    )
