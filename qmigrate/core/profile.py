"""Where the time of one migration went: every step on every host, on one axis.

The axis is the controller's clock and begins with its process. A job's own steps are marks on the
clock of their host (`core.job.Mark`), relative to the start of its agent there. They are laid on
the axis by one moment that both know: the agent marks "ready" and answers StartJob, so that this
mark is no later than the answer, and earlier by no more than the answer's way. No ping is needed;
what is shown of another host may be late by that way, a millisecond in a local network.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qmigrate.core.job import Mark
from qmigrate.core.model import Side

BEGUN = "begun"  # the job's agent exists: 0 on its clock
READY = "ready"  # it answers StartJob


@dataclass(frozen=True, slots=True)
class Span:
    """One step at one place, in seconds since the command began."""

    where: str  # a host, or `HERE`
    step: str
    start_s: float
    end_s: float

    @property
    def waits(self) -> bool:
        """Whether the host only waits in it."""
        return self.step in WAITS

    @property
    def duration_s(self) -> float:
        """How long it took; never below zero, whatever the clocks say."""
        return max(0.0, self.end_s - self.start_s)


HERE = "here"  # the controller


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole command; `guest` says where the guest ran, and when it stood still."""

    wall_s: float
    spans: tuple[Span, ...]
    guest: tuple[Span, ...] = ()


# A step: its name, the mark that begins it, the mark that ends it. A step of which either mark is
# missing, as after a rollback, is left out. Several may run at once: preparing is not a row.
Steps = tuple[tuple[str, str, str], ...]

SOURCE_STEPS: Steps = (
    ("take hold of QEMU", BEGUN, READY),
    ("link", READY, "linked"),
    ("look at QEMU", READY, "shape known"),
    ("wait for the twin", "shape known", "twin known"),
    ("set up", "twin known", "tuned"),
    ("data socket", "tuned", "joined"),
    ("wait for loading", "joined", "migrate"),
    ("copy", "migrate", "pre-switchover"),
    ("checks", "pre-switchover", "continue"),
    ("switchover", "continue", "completed"),
    ("journal, GO", "completed", "go sent"),
    ("wait for RUNNING", "go sent", "record proved"),
    ("QEMU's end", "record proved", "record done"),
    ("destination's farewell", "record done", "reporting"),
    ("roll back", "record back", "record restored"),
)
DESTINATION_STEPS: Steps = (
    ("taps, exec", BEGUN, "started"),
    ("QEMU starts", "started", "greeted"),
    ("look at QEMU", "greeted", READY),
    ("wait for the source", READY, "linked"),
    ("set up", "load asked", "tuned"),
    ("arm the network", "tuned", "armed"),
    ("data socket", "armed", "loading"),
    ("load", "loading", "loaded"),
    ("wait for GO", "loaded", "go heard"),
    ("decide, journal", "go heard", "cont"),
    ("cont", "cont", "resumed"),
    ("prove, journal", "resumed", "record running"),
    ("wait for the end", "record running", "record done"),
)
# Nothing is done in these but wait for what another host does, or for QEMU's memory to arrive.
WAITS = frozenset(
    {
        "wait for the source",
        "wait for the twin",
        "wait for loading",
        "wait for RUNNING",
        "destination's farewell",
        "load",
        "wait for GO",
        "wait for the end",
    }
)
STEPS: Mapping[Side, Steps] = {Side.SOURCE: SOURCE_STEPS, Side.DESTINATION: DESTINATION_STEPS}


def first_times(marks: Iterable[Mark]) -> dict[str, float]:
    """Return when each mark was first seen; `BEGUN` is always there."""
    found = {BEGUN: 0.0}
    for mark in marks:
        found.setdefault(mark.name, mark.at_s)
    return found


def job_spans(
    where: str, side: Side, marks: Sequence[Mark], *, asked_s: float, answered_s: float
) -> tuple[Span, ...]:
    """Return the steps of a job's agent; `asked_s` and `answered_s` are StartJob's.

    Without a mark `READY` nothing is known of when they were, and nothing is returned.
    """
    at = first_times(marks)
    if READY not in at:
        return ()
    zero_s = answered_s - at[READY]
    spans = [Span(where, "job's agent starts", asked_s, zero_s)]
    spans += [
        Span(where, step, zero_s + at[begin], zero_s + at[end])
        for step, begin, end in STEPS[side]
        if begin in at and end in at
    ]
    spans += _passes(where, at, zero_s)
    return tuple(sorted(spans, key=lambda span: (span.start_s, span.end_s)))


def _passes(where: str, at: Mapping[str, float], zero_s: float) -> list[Span]:
    """Return a copy's passes over RAM: QEMU's count goes up when one begins."""
    if "pre-switchover" not in at:
        return []
    begins = sorted(
        (int(name.removeprefix("pass ")), time_s)
        for name, time_s in at.items()
        if name.startswith("pass ") and time_s < at["pre-switchover"]
    )
    ends = [time_s for _, time_s in begins[1:]] + [at["pre-switchover"]]
    return [
        Span(where, f"pass {number}", zero_s + begin_s, zero_s + end_s)
        for (number, begin_s), end_s in zip(begins, ends, strict=True)
    ]


def time_of(name: str, marks: Sequence[Mark], *, answered_s: float) -> float | None:
    """Return when a mark was, on the command's axis; None if it or `READY` is missing."""
    at = first_times(marks)
    if name not in at or READY not in at:
        return None
    return answered_s - at[READY] + at[name]


def guest_spans(
    hosts: tuple[str, str], *, stop_s: float | None, blackout_ms: float | None, wall_s: float
) -> tuple[Span, ...]:
    """Return where the guest was; () unless it is known when it stopped and for how long."""
    if stop_s is None or blackout_ms is None:
        return ()
    resume_s = stop_s + blackout_ms / 1e3
    source, destination = hosts
    return (
        Span(source, "runs", 0.0, stop_s),
        Span("", "stands still", stop_s, resume_s),
        Span(destination, "runs", resume_s, max(resume_s, wall_s)),
    )


def alone_s(spans: Sequence[Span]) -> tuple[float, ...]:
    """Return for each step how long nothing else was done anywhere: what a shorter one would save.

    Waiting is not doing. A step that others stand inside of (a copy and its passes) counts with
    them as one.
    """
    moments = sorted({moment for span in spans for moment in (span.start_s, span.end_s)})
    alone = [0.0] * len(spans)
    for begin_s, end_s in itertools.pairwise(moments):
        active = [
            number
            for number, span in enumerate(spans)
            if span.start_s <= begin_s and span.end_s >= end_s and not span.waits
        ]
        outer = [n for n in active if all(_holds(spans[n], spans[other]) for other in active)]
        if len(active) == 1 or outer:
            for number in active:
                alone[number] += end_s - begin_s
    return tuple(alone)


def _holds(outer: Span, inner: Span) -> bool:
    """Tell whether one step is another's whole, on the same host."""
    return (
        outer.where == inner.where and outer.start_s <= inner.start_s and outer.end_s >= inner.end_s
    )


def idle_s(profile: Profile) -> float:
    """Return how much of the command no step accounts for."""
    covered, reached = 0.0, 0.0
    for span in sorted(profile.spans, key=lambda span: span.start_s):
        begin_s = max(span.start_s, reached)
        if span.end_s > begin_s:
            covered += min(span.end_s, profile.wall_s) - min(begin_s, profile.wall_s)
            reached = span.end_s
    return max(0.0, profile.wall_s - covered)
