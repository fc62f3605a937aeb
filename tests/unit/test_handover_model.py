"""The handover against every interleaving of a small world (see tests/support/handover_world)."""

from collections.abc import Callable
from functools import partial

import pytest

from qmigrate.core import handover, takeover
from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    Record,
    Source,
    SourceEvent,
    Write,
)
from qmigrate.core.takeover import Look
from tests.support.handover_world import AT_SWITCHOVER, DestinationStep, Rules, SourceStep, explore

S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record

REAL = Rules(
    handover.source_step,
    handover.destination_step,
    takeover.source_after,
    takeover.destination_after,
)


@pytest.mark.parametrize("faults", [0, 1])
def test_no_interleaving_runs_two_copies_destroys_the_last_or_hangs(
    faults: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = explore(REAL._replace(faults=faults))
    with capsys.disabled():
        print(
            f"\n{found.states} states, {found.moves} moves, {faults} deaths or losses",
            end=" ",
        )
    assert found.law is None, "\n".join(found.trace)
    assert found.states > 20_000, "the world has become so small that it proves nothing"


def source_with(row: Source, event: SourceEvent, state: Source, *effects: Effect | Write) -> Rules:
    """Return the rules with one row of the source's replaced."""

    def step(at: Source, what: SourceEvent) -> tuple[Source, Effects]:
        return (state, effects) if (at, what) == (row, event) else handover.source_step(at, what)

    return REAL._replace(source_step=step)


def destination_with(
    row: Destination, event: DestinationEvent, state: Destination, *effects: Effect | Write
) -> Rules:
    """Return the rules with one row of the destination's replaced."""

    def step(at: Destination, what: DestinationEvent) -> tuple[Destination, Effects]:
        same = (at, what) == (row, event)
        return (state, effects) if same else handover.destination_step(at, what)

    return REAL._replace(destination_step=step)


def without(effect: Effect | Write) -> Rules:
    """Return the rules with one effect forgotten everywhere."""

    def source(step: SourceStep, at: Source, what: SourceEvent) -> tuple[Source, Effects]:
        state, effects = step(at, what)
        return state, tuple(e for e in effects if e != effect)

    def destination(
        step: DestinationStep, at: Destination, what: DestinationEvent
    ) -> tuple[Destination, Effects]:
        state, effects = step(at, what)
        return state, tuple(e for e in effects if e != effect)

    return REAL._replace(
        source_step=partial(source, handover.source_step),
        destination_step=partial(destination, handover.destination_step),
    )


def forwarding_takeover(record: Record, look: Look) -> tuple[Source, Effects]:
    if (record, look) == (R.SWITCHING, Look.GONE):
        return S.AWAY, (Write(R.AWAY), E.SEND_GO)
    return takeover.source_after(record, look)


def returning_takeover(record: Record, look: Look) -> tuple[Source, Effects]:
    if record is R.AWAY:
        return S.BACK, (Write(R.BACK), E.RETURN_GUEST)
    return takeover.source_after(record, look)


def hanging_takeover(record: Record, look: Look) -> tuple[Source, Effects]:
    if (record, look) == (R.SWITCHING, Look.DECIDING):
        return S.SWITCHING, ()
    return takeover.source_after(record, look)


BACK = (Write(R.BACK), E.RETURN_GUEST)
TWO = "two running copies"
OLD_HERE = "the source runs old memory"
OLD_THERE = "the destination runs old memory"
RIGHTS = "both hosts hold the right"

DEFECTS: dict[str, tuple[Callable[[], Rules], tuple[str, ...]]] = {
    "the source resumes when no answer comes": (
        lambda: source_with(S.AWAY, SE.NO_ANSWER, S.BACK, *BACK),
        (TWO, RIGHTS, OLD_HERE),
    ),
    "the source resumes when its answer is that the guest was lost there": (
        lambda: source_with(S.AWAY, SE.LOST, S.BACK, *BACK),
        (OLD_HERE, RIGHTS),
    ),
    "GO is sent before away is durable": (
        lambda: source_with(S.SWITCHING, SE.QEMU_COMPLETED, S.AWAY, E.SEND_GO, Write(R.AWAY)),
        ("GO was sent",),
    ),
    "a cancel is granted after GO": (
        lambda: source_with(S.AWAY, SE.CANCEL, S.BACK, *BACK),
        (TWO, RIGHTS, OLD_HERE),
    ),
    "a cancel is granted after migrate-continue, and a dead QEMU is forwarded all the same": (
        lambda: source_with(S.RECALLING, SE.QEMU_GONE, S.AWAY, Write(R.AWAY), E.SEND_GO),
        (OLD_THERE,),
    ),
    "GO is acted on without a record": (
        lambda: destination_with(D.DECIDING, DE.LOOKS_LOADED, D.GO, E.RUN),
        ("without the right",),
    ),
    "a destination starts as soon as GO comes, loaded or not": (
        lambda: destination_with(D.PREPARED, DE.REFUSE, D.GO, Write(R.GO), E.RUN),
        (TWO, RIGHTS, OLD_THERE),
    ),
    "a loaded copy quits when its patience ends, though GO may be on its way": (
        lambda: destination_with(D.GO, DE.REFUSE, D.REFUSED, Write(R.REFUSED), E.QUIT_QEMU),
        ("a copy that ran is quit", "without the right"),
    ),
    "a loaded copy quits on its own": (
        lambda: REAL._replace(loaded_copy_waits=False),
        ("the last copy",),
    ),
    "the refusal is not durable": (
        lambda: without(Write(R.REFUSED)),
        ("before the refusal is durable",),
    ),
    "the refusal is answered before it is durable": (
        lambda: destination_with(
            D.PREPARED, DE.REFUSE, D.REFUSED, E.ANSWER_REFUSED, Write(R.REFUSED), E.QUIT_QEMU
        ),
        (TWO, RIGHTS, OLD_HERE),
    ),
    "GO is sent once": (
        lambda: source_with(S.AWAY, SE.CONNECTED, S.AWAY)._replace(
            agents_die=False,
            source_after=lambda record, look: (
                (S.AWAY, ()) if record is R.AWAY else takeover.source_after(record, look)
            ),
        ),
        ("nothing can settle",),
    ),
    "the source quits before the destination has answered": (
        lambda: source_with(
            S.SWITCHING, SE.QEMU_COMPLETED, S.PROVED, Write(R.AWAY), E.SEND_GO, E.QUIT_QEMU
        ),
        ("never seen to run",),
    ),
    "a new agent forwards a QEMU that nobody saw end": (
        lambda: REAL._replace(source_after=forwarding_takeover),
        (OLD_THERE,),
    ),
    "a new agent resumes what is away": (
        lambda: REAL._replace(source_after=returning_takeover),
        (TWO, RIGHTS, OLD_HERE),
    ),
    "a new agent trusts a verdict that the one before had recalled": (
        lambda: REAL._replace(source_after=hanging_takeover),
        (OLD_THERE,),
    ),
    "a refused cont proves to a new agent that the guest never ran": (
        lambda: destination_with(
            D.GO_AGAIN,
            DE.CONT_REFUSED,
            D.RETURNED,
            Write(R.RETURNED),
            E.ANSWER_RETURNED,
            E.QUIT_QEMU,
        ),
        (TWO, RIGHTS, OLD_HERE, "a copy that ran is quit"),
    ),
    "a source whose QEMU has gone waits for it to be returned": (
        lambda: source_with(S.BACK, SE.QEMU_GONE, S.BACK),
        ("nothing can settle",),
    ),
}


NEED_A_FAULT = frozenset(
    (
        "the refusal is answered before it is durable",
        "GO is sent once",
        "a new agent forwards a QEMU that nobody saw end",
        "a new agent resumes what is away",
        "a new agent trusts a verdict that the one before had recalled",
        "a refused cont proves to a new agent that the guest never ran",
    )
)  # an agent's death or a loss of the link


@pytest.mark.parametrize("name", DEFECTS)
def test_the_walk_finds_a_seeded_defect(name: str) -> None:
    make, laws = DEFECTS[name]
    rules = make()
    if name in NEED_A_FAULT:
        found = explore(rules._replace(faults=1), AT_SWITCHOVER)
    else:
        found = explore(rules._replace(faults=0))
    assert found.law is not None, name
    assert any(law in found.law for law in laws), f"{found.law}\n" + "\n".join(found.trace)
    assert len(found.trace) > 2
