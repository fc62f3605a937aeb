"""What a source's agent says at the end: how the job went, as plain data."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from qmigrate.agent.relaying import link_figures
from qmigrate.core.errors import Problem
from qmigrate.core.handover import Source
from qmigrate.core.job import Costs, JobReport, Mark, Outcome, QemuFigures
from qmigrate.qmp.migration import MigrationProgress

if TYPE_CHECKING:
    from qmigrate.agent.source import SourceAgent


def outcome_of(agent: "SourceAgent") -> Outcome:
    """Return how the job has ended."""
    if agent.state is Source.DONE:
        return Outcome.MIGRATED
    if agent.state is Source.ENDED:
        return Outcome.GUEST_ENDED
    if agent.cancelled:
        return Outcome.CANCELLED
    return Outcome.ROLLED_BACK if agent.touched else Outcome.REFUSED


def report_of(agent: "SourceAgent") -> JobReport:
    """Return all that the source knows of a job that has ended."""
    outcome = outcome_of(agent)
    resume_us = agent.running.resume_us if agent.running else None
    offset = agent.offset
    return JobReport(
        job=agent.spec.job,
        outcome=outcome,
        problem=_final_problem(agent, outcome),
        had=agent.had,
        stop_us=agent.stop_us,
        resume_us=resume_us,
        clock_offset_us=offset.offset_us if offset else None,
        clock_error_us=offset.error_us if offset else None,
        clock_stepped=offset.stepped if offset else False,
        qemu=_qemu_figures(agent.figures),
        link=link_figures(agent.linking.relay),
        marks=tuple(agent.marks),
        costs=_costs(agent.marks),
        announced=agent.running.announced if agent.running else agent.announced,
        findings=agent.preparation.findings,
        guest_events=tuple(dict.fromkeys(agent.guest_events)),
        still_enabled=agent.still_enabled,
        leftovers=agent.left,
        faults=agent.spec.faults,
        destination_marks=agent.peer_marks,
    )


def _final_problem(agent: "SourceAgent", outcome: Outcome) -> Problem | None:
    """Return why, if it did not go as it was meant to; it always says what to do next."""
    problem = _reason(agent, outcome)
    if problem is None or problem.next_step or outcome is Outcome.CANCELLED:
        return problem
    return replace(problem, next_step=f"see what was said: qmigrate logs {agent.spec.job}")


def _reason(agent: "SourceAgent", outcome: Outcome) -> Problem | None:
    match outcome:
        case Outcome.MIGRATED:
            return None
        case Outcome.CANCELLED:
            what = "cancelled; the guest runs on the source"
            return Problem("cancelled", what, None, agent.spec.host, None, None)
        case Outcome.ROLLED_BACK:
            return replace(agent.problem, code="rolled-back") if agent.problem else None
        case Outcome.REFUSED if agent.problem and agent.problem.code == "rolled-back":
            return replace(agent.problem, code="host")  # nothing had to be rolled back
        case Outcome.GUEST_ENDED if agent.problem:
            return replace(agent.problem, code="guest-ended")
        case _:
            return agent.problem


def _qemu_figures(figures: MigrationProgress) -> QemuFigures:
    return QemuFigures(
        total_ms=figures.total_ms,
        setup_ms=figures.setup_ms,
        downtime_ms=figures.downtime_ms,
        passes=figures.dirty_sync_count,
        transferred_bytes=figures.transferred_bytes,
        mbps=figures.mbps,
    )


def _costs(marks: list[Mark]) -> Costs:
    at = {mark.name: mark.at_s for mark in marks}

    def between(start: str, end: str) -> float | None:
        if start not in at or end not in at:
            return None
        spent_ms = (at[end] - at[start]) * 1e3
        return round(spent_ms, 3) if math.isfinite(spent_ms) else None

    return Costs(
        pause_ms=between("pre-switchover", "continue"),
        qemu_ms=between("continue", "completed"),
        go_ms=between("completed", "record proved"),
    )
