"""The small world of the handover: what there is in it, what can be seen across, what is law.

Two hosts; on each a QEMU, an agent with its journal, and people. The rules are harsher than life:

* what was once sent can be heard at any time, in any order, as often as wanted, or never. That is
  loss, delay, repetition and reordering over reconnects, and a controller, or two, that carry
  frames for the agents, die over it and begin again: a frame carried late is a message heard late;
* an agent dies between any two effects, and its events with it; another goes on by `takeover`. One
  that stands still is killed before another begins, so to stop and to wake is to be slow;
* QEMU may fail, be killed, complete although it was told to cancel (facts/qemu, trap 1), refuse or
  swallow `cont`, carry it out late; a destination may have loaded what its source has taken back;
  nothing fences a `cont` on the source (trap 4);
* a host loses its power at any time: QEMU, agent and journal are gone, what was written stays;
* deadlines pass and people cancel whenever the table waits for either;
* people type `cont` where QEMU takes it, and say every word of `core.rights.Word` that is true, to
  both sides, as often as they like. What makes a word true stays true (that is a law as well), so a
  second `resolve` that speaks of what it saw some time ago is no different.

None of these is counted: any number of them may happen in one job. The bound is in what waits: two
things that QEMU has said and its agent has not heard, and one task at work on each side. After a
host's death, or when a journal vanishes under no agent, the job is not begun there again.

Taken for granted: an agent knows at once that its QEMU has loaded everything, and, when it asks
QEMU to look or to run, whether the source's QEMU has gone (GO says so, and RUN_HERE means it).
Otherwise a destination whose monitor is silent, or whose `cont` is refused, decides against a copy
that the source's death in that very moment makes the last.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    Effects,
    Record,
    Source,
    SourceEvent,
    Word,
    Write,
)
from qmigrate.core.model import RunState
from qmigrate.core.takeover import Look

S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record

Todo = tuple[Effect | Record, ...]  # a record stands for its Write


class Here(NamedTuple):
    """The source's host; an agent that is None is dead, and so is what it had not done yet."""

    agent: Source | None = S.PREPARED
    todo: Todo = ()
    record: Record | None = R.PREPARED  # None: the journal went with the host's power
    inbox: tuple[SourceEvent, ...] = ()  # QEMU's events, in order
    task: Effect | None = None  # RETURN_GUEST, QUIT_QEMU or END at work
    qemu: str = "runs"  # copies, held, device, recalled, complete, strayed, gone
    sent_all: bool = False  # the whole stream left the source
    stale: bool = False  # it ran on after the stream's end: the copy there is older
    strayed: bool = False  # a person let it run after it was complete
    vouched: bool = False  # a person said RUN_HERE
    over: bool = False  # nobody answers for the job here, ever again
    lost: bool = False  # the host lost its power
    was_back: bool = False  # with the right in its journal, for good
    vanished: bool = False  # the journal, under no agent
    ghost: Todo = ()  # of an agent that was taken for dead and is not


class There(NamedTuple):
    """The destination's host."""

    agent: Destination | None = D.PREPARED
    todo: Todo = ()
    record: Record | None = R.PREPARED
    inbox: tuple[DestinationEvent, ...] = ()
    qemu: str = "waits"  # armed (cont came early), loaded, hung, runs, halted, failed, gone
    had_all: bool = False  # it was loaded, once
    ran: bool = False
    refused_whole: bool = False  # it was whole, and maybe the last, when it was decided against
    strayed: bool = False  # a person let it run without GO
    vouched: bool = False
    over: bool = False
    lost: bool = False
    vanished: bool = False  # the journal, under no agent
    ghost: Todo = ()


SourceStep = Callable[[Source, SourceEvent], tuple[Source, Effects]]
DestinationStep = Callable[[Destination, DestinationEvent], tuple[Destination, Effects]]


class Rules(NamedTuple):
    """What is under test; the seeded defects change one of them."""

    source_step: SourceStep
    destination_step: DestinationStep
    source_after: Callable[[Record, Look], tuple[Source, Effects]]
    destination_after: Callable[[Record, Look, RunState], tuple[Destination, Effects]]
    loaded_copy_waits: bool = True
    last_copy_is_kept: bool = True  # where `cont` is refused and there is none to return to
    twin_waits: bool = True  # it was started with -S
    stopped_is_killed: bool = True  # before another agent begins
    journal_is_needed: bool = True  # False: an agent without one begins at the beginning
    cont_is_repeated: bool = True  # where it failed and may not be given up
    agents_die: bool = True
    hosts_die: bool = True
    journals_vanish: bool = True  # somebody removes one that no agent has open
    people_type: bool = True  # a stray `cont`
    words: frozenset[Word] = frozenset(Word)
    lies: frozenset[Word] = frozenset()  # words that are said whether true or not


class BrokenLawError(Exception):
    """An invariant does not hold; the text says which."""


# The kinds of a move.
ORDINARY, FAULT, WORD, TELLS = 0, 1, 2, 4


Host = TypeVar("Host", Here, There)


class Move(NamedTuple, Generic[Host]):
    """One thing that may happen on one host."""

    name: str
    after: Host
    kind: int = ORDINARY
    needs: int = 0  # the message that is heard
    adds: int = 0  # the message that is sent


# Messages as bits: the link is the set of all that were ever sent.
TO_THERE: dict[Effect | Record, int] = {
    E.SEND_GO: 1,
    E.SEND_ASK: 2,
    E.SEND_REFUSE: 4,
    E.SEND_FINISH: 8,
}
HEARD_THERE = {1: DE.GO, 2: DE.ASK, 4: DE.REFUSE, 8: DE.FINISH}
TO_HERE: dict[Effect | Record, int] = {
    E.ANSWER_LOADED: 16,
    E.ANSWER_RUNNING: 32,
    E.ANSWER_REFUSED: 64,
    E.ANSWER_RETURNED: 128,
    E.ANSWER_LOST: 256,
}
HEARD_HERE = {16: SE.LOADED, 32: SE.RUNNING, 64: SE.REFUSED, 128: SE.RETURNED, 256: SE.LOST}
ALL_TO_THERE, ALL_TO_HERE = 15, 496

# Nothing in this world depends on these, so no step is spent on them.
UNSEEN = frozenset((E.CLEAN, E.ANNOUNCE, E.CHECK, E.ANSWER_DECIDING))

RUNS_HERE = frozenset(("runs", "copies", "recalled", "strayed"))


def seen(effects: Effects) -> Todo:
    """Return the effects that this world can see, a Write as its record."""
    return tuple(e.record if isinstance(e, Write) else e for e in effects if e not in UNSEEN)


# What one host's moves depend on of the other's.
HAD_ALL, RAN, NEVER_WILL, NO_JOURNAL, LOST_THERE = 1, 2, 4, 8, 16
SENT_ALL, STREAM_ENDS, GONE, IS_BACK, OVER_HERE, STALE = 1, 2, 4, 8, 16, 32


def seen_there(there: There) -> int:
    """Return what is true of the destination for the source and for those who speak to it."""
    never = there.qemu in ("gone", "failed") or there.record in (R.REFUSED, R.RETURNED)
    return (
        HAD_ALL * there.had_all
        + RAN * there.ran
        + NEVER_WILL * never
        + NO_JOURNAL * there.over
        + LOST_THERE * there.lost
    )


def seen_here(here: Here) -> int:
    """Return what is true of the source for the destination and for those who speak to it."""
    return (
        SENT_ALL * here.sent_all
        + STREAM_ENDS * (here.qemu in ("runs", "gone"))
        + GONE * (here.qemu == "gone")
        + IS_BACK * (here.was_back or here.record in (R.BACK, R.RESTORED, R.ENDED))
        + OVER_HERE * here.over
        + STALE * here.stale
    )


def stable_there(there: There) -> int:
    """Return what makes a word to the source true, and must stay so."""
    return seen_there(there) & (NEVER_WILL | NO_JOURNAL | LOST_THERE)


def stable_here(here: Here) -> int:
    """Return what makes a word to the destination true, and must stay so."""
    return seen_here(here) & (GONE | IS_BACK | OVER_HERE)


def has_right_here(here: Here) -> bool:
    """Whether the journal gives the source the right; what has no QEMU can be told otherwise."""
    return not here.lost and here.record not in (R.AWAY, R.PROVED, R.DONE)


def has_right_there(there: There) -> bool:
    """Whether the journal gives the destination the right."""
    return there.record in (R.GO, R.RUNNING, R.DONE)


def check(here: Here, there: There) -> None:
    """Raise `BrokenLawError` where the two must not be together.

    A person who types `cont` may have two copies run: by that act, and the law is then what
    our own effects do (`handover_world_source`, `_destination`: nothing is started or sent away by
    an agent that has heard of it, and nothing that was seen to run is destroyed).
    """
    runs_here, runs_there = here.qemu in RUNS_HERE, there.qemu == "runs"
    astray = here.strayed or there.strayed
    if runs_here and runs_there and not astray:
        raise BrokenLawError("two running copies")
    if runs_here and there.ran and not (astray or here.vouched):
        raise BrokenLawError("the source runs old memory: the guest has run on the destination")
    if runs_there and here.stale and not (astray or there.vouched):
        raise BrokenLawError("the destination runs old memory: the source ran on")
    right_there = has_right_there(there)
    if runs_there and not right_there and not there.strayed:
        raise BrokenLawError("the destination runs it without the right")
    if has_right_here(here) and right_there:
        # By a person's word: there is nothing here that could run, or nothing there.
        by_word = (there.vouched and here.qemu == "gone") or here.vouched
        if not by_word and not there.strayed:
            raise BrokenLawError("both hosts hold the right to run it")
