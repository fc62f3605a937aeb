"""A small world around both tables: two QEMUs, two agents that crash, a link that keeps no promise.

Every state that is reachable is visited once. The rules of the world are harsher than the real one:

* the link is the set of all messages sent: any of them arrives late, twice, in another order, or
  not at all; it also forgets them all at once, and then what is still wanted must be said again;
* an agent dies between any two effects, and its events with it; another goes on by `takeover`;
* QEMU may fail, be killed, complete although it was told to cancel (facts/qemu, trap 1), refuse or
  swallow `cont`; a destination may have loaded what its source has taken back; nothing fences a
  `cont` on the source (trap 4);
* deadlines pass and people cancel whenever the table waits for either.

What is not here: hosts that lose power (boot ids), people who type `cont`, a second controller,
and a destination's monitor that is silent at LOOK while the source's QEMU has died: the table
refuses then, as DESIGN §3 wants it, and the copy that might have been whole is killed.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
from qmigrate.core.model import RunState
from qmigrate.core.takeover import Look

S, SE, D, DE, E, R = Source, SourceEvent, Destination, DestinationEvent, Effect, Record


Todo = tuple[Effect | Record, ...]  # a record stands for its Write: it is hashed far faster


class World(NamedTuple):
    """One state; an agent that is None is dead, and so is what it had not done yet."""

    source: Source | None = S.PREPARED
    source_todo: Todo = ()
    source_record: Record = R.PREPARED
    source_inbox: tuple[SourceEvent, ...] = ()  # QEMU's events, in order
    source_task: Effect | None = None  # RETURN_GUEST or QUIT_QEMU at work
    source_qemu: str = "runs"  # copies, held, device, recalled, complete, gone
    destination: Destination | None = D.PREPARED
    destination_todo: Todo = ()
    destination_record: Record = R.PREPARED
    destination_inbox: tuple[DestinationEvent, ...] = ()
    destination_qemu: str = "waits"  # loaded, runs, halted (after it ran), failed, gone
    to_destination: frozenset[str] = frozenset()  # every message sent and not lost
    to_source: frozenset[str] = frozenset()
    went: bool = False  # GO was sent
    sent_all: bool = False  # the whole stream left the source
    had_all: bool = False  # the destination had loaded it, once
    ran_there: bool = False
    refused_whole: bool = False  # it was loaded when the destination decided against it
    stale: bool = False  # the source ran on after the stream's end: the copy there is older
    unknown: bool = False  # people were told
    over: bool = False  # the source's agent has ended
    faults: int = 0  # crashes of agents and losses of the link so far


START = World()
AT_SWITCHOVER = World(
    source=S.SWITCHING,
    source_record=R.SWITCHING,
    source_qemu="device",
)


SourceStep = Callable[[Source, SourceEvent], tuple[Source, Effects]]
DestinationStep = Callable[[Destination, DestinationEvent], tuple[Destination, Effects]]


class Rules(NamedTuple):
    """What is under test; the seeded defects change one of them."""

    source_step: SourceStep
    destination_step: DestinationStep
    source_after: Callable[[Record, Look], tuple[Source, Effects]]
    destination_after: Callable[[Record, Look, RunState], tuple[Destination, Effects]]
    loaded_copy_waits: bool = True
    faults: int = 1
    agents_die: bool = True


class BrokenLawError(Exception):
    """An invariant does not hold; the text says which."""


class Fault(str):
    """The name of a step that nobody wants: a death, a lost patience, a person's cancel."""

    __slots__ = ()


Move = tuple[str, World]

# Nothing in this world depends on these, so no step is spent on them.
UNSEEN = frozenset((E.CLEAN, E.ANNOUNCE, E.CHECK, E.ANSWER_DECIDING))


def _seen(effects: Effects) -> Todo:
    return tuple(e.record if isinstance(e, Write) else e for e in effects if e not in UNSEEN)


WAITS_FOR_QEMU = (S.CANCELLING, S.SWITCHING, S.RECALLING, S.BACK, S.PROVED)
WAITS_FOR_ANSWER = (S.LEFT, S.AWAY, S.MISSED)
ANSWERS = {
    E.ANSWER_LOADED: SE.LOADED,
    E.ANSWER_RUNNING: SE.RUNNING,
    E.ANSWER_REFUSED: SE.REFUSED,
    E.ANSWER_RETURNED: SE.RETURNED,
    E.ANSWER_LOST: SE.LOST,
}
MESSAGES = {
    E.SEND_GO: DE.GO,
    E.SEND_ASK: DE.ASK,
    E.SEND_REFUSE: DE.REFUSE,
    E.SEND_FINISH: DE.FINISH,
}
LOOKS = {
    "runs": Look.RUNS_ON,
    "copies": Look.MIGRATING,
    "held": Look.MIGRATING,
    "device": Look.DECIDING,
    "recalled": Look.DECIDING,
    "complete": Look.COMPLETED,
    "gone": Look.GONE,
}
RUNS_HERE = ("runs", "copies", "recalled")


def moves(rules: Rules, w: World) -> Iterator[Move]:
    """Yield every step that is possible in `w`."""
    yield from _source_qemu(w)
    yield from _destination_qemu(w)
    yield from _source_agent(rules, w)
    yield from _destination_agent(rules, w)
    if w.faults < rules.faults and (w.to_source or w.to_destination):
        nothing: frozenset[str] = frozenset()
        lost = w._replace(to_source=nothing, to_destination=nothing, faults=w.faults + 1)
        yield Fault("the link loses all"), lost


def _say(w: World, event: SourceEvent) -> tuple[SourceEvent, ...]:
    return (*w.source_inbox, event) if w.source is not None else ()


def _source_qemu(w: World) -> Iterator[Move]:
    here, is_unsaid = w.source_qemu, len(w.source_inbox) < 2
    if here == "gone" or not is_unsaid:
        return
    yield (
        Fault("source QEMU dies"),
        w._replace(source_qemu="gone", source_inbox=_say(w, SE.QEMU_GONE)),
    )
    if here == "copies":
        held = w._replace(source_qemu="held", source_inbox=_say(w, SE.PRE_SWITCHOVER))
        yield "pre-switchover", held
    if here in ("copies", "device", "recalled"):
        back = w._replace(source_qemu="runs", source_inbox=_say(w, SE.QEMU_RUNS_ON))
        name = "cancelled" if here == "recalled" else Fault("migration fails")
        yield name, back._replace(stale=w.sent_all)
    if here == "device" and not w.sent_all:
        yield "all is sent", w._replace(sent_all=True)
    if here == "device" and w.had_all:
        complete = w._replace(source_qemu="complete", source_inbox=_say(w, SE.QEMU_COMPLETED))
        yield "completed", complete


def _destination_qemu(w: World) -> Iterator[Move]:
    there = w.destination_qemu
    if there == "gone" or len(w.destination_inbox) >= 2:
        return
    alive = w.destination is not None

    def say(event: DestinationEvent) -> tuple[DestinationEvent, ...]:
        return (*w.destination_inbox, event) if alive else ()

    died = w._replace(destination_qemu="gone", destination_inbox=say(DE.QEMU_GONE))
    yield Fault("destination QEMU dies"), died
    if there == "runs" and w.destination_record is R.GO:
        yield Fault("the guest stops by itself"), w._replace(destination_qemu="halted")
    if there == "waits":
        if w.sent_all:
            yield "loaded", w._replace(destination_qemu="loaded", had_all=True)
        if w.source_qemu in ("runs", "gone"):  # the stream ends too early
            failed = w._replace(destination_qemu="failed", destination_inbox=say(DE.REFUSE))
            yield "load fails", failed


def _source_agent(rules: Rules, w: World) -> Iterator[Move]:
    if w.source is None:
        if not w.over:
            state, effects = rules.source_after(w.source_record, LOOKS[w.source_qemu])
            yield "source agent again", w._replace(source=state, source_todo=_seen(effects))
        return
    if rules.agents_die and w.faults < rules.faults:
        yield (
            Fault("source agent dies"),
            w._replace(
                source=None,
                source_todo=(),
                source_inbox=(),
                source_task=None,
                faults=w.faults + 1,
            ),
        )
    if w.source_task is not None:
        yield f"{w.source_task} done", _finish_task(w)
    if w.source_todo:
        yield from _source_effect(w._replace(source_todo=w.source_todo[1:]), w.source_todo[0])
        return
    for name, event in _source_events(w):
        state, effects = rules.source_step(w.source, event)
        from_qemu = name == "QEMU says"
        inbox = w.source_inbox[1:] if from_qemu else w.source_inbox
        kind = Fault if isinstance(name, Fault) else str
        after = w._replace(source=state, source_todo=_seen(effects), source_inbox=inbox)
        yield kind(f"source: {name} {event}"), after


def _source_events(w: World) -> Iterator[tuple[str, SourceEvent]]:
    if w.source_inbox:
        yield "QEMU says", w.source_inbox[0]
    for event in sorted(w.to_source):
        yield "hears", SE(event)
    if w.source is S.PREPARED:
        yield "", SE.START
    if w.source is S.HELD and w.destination in (D.PREPARED, D.REFUSED):
        yield "hears", SE.CHECKED
    yield "", SE.CONNECTED
    yield Fault("a person"), SE.CANCEL
    yield "", SE.GIVE_UP
    if w.source in WAITS_FOR_QEMU:
        yield "", SE.STUCK
    if w.source in WAITS_FOR_ANSWER:
        yield "", SE.NO_ANSWER


def _finish_task(w: World) -> World:
    """Let the task that RETURN_GUEST or QUIT_QEMU began come to its end."""
    done = w._replace(source_task=None)
    if w.source_task is E.QUIT_QEMU:
        return done._replace(source_qemu="gone", source_inbox=(*w.source_inbox, SE.QUIT))
    if w.source_qemu == "gone":
        return done._replace(source_inbox=(*w.source_inbox, SE.QEMU_GONE))
    here = "runs" if w.source_qemu == "complete" else w.source_qemu
    return done._replace(source_qemu=here, source_inbox=(*w.source_inbox, SE.RETURNED_HERE))


def _source_effect(w: World, effect: Effect | Record) -> Iterator[Move]:
    name, here = f"source: {effect}", w.source_qemu
    match effect:
        case Record():
            yield f"source: record {effect}", w._replace(source_record=effect)
        case E.SEND_GO | E.SEND_ASK | E.SEND_REFUSE | E.SEND_FINISH:
            sent = w.to_destination | {MESSAGES[effect]}
            yield name, w._replace(to_destination=sent, went=w.went or effect is E.SEND_GO)
        case E.MIGRATE:
            yield name, w._replace(source_qemu="copies" if here == "runs" else here)
        case E.MIGRATE_CONTINUE:
            yield name, w._replace(source_qemu="device" if here == "held" else here)
        case E.MIGRATE_CANCEL if here in ("copies", "held"):
            inbox = (*w.source_inbox, SE.QEMU_RUNS_ON)
            yield name, w._replace(source_qemu="runs", source_inbox=inbox)
        case E.MIGRATE_CANCEL if here == "device":
            # It runs again before it says so; or it is too late and goes on.
            yield name, w._replace(source_qemu="recalled", stale=w.sent_all)
            yield name + " too late", w
        case E.RETURN_GUEST | E.QUIT_QEMU:
            if effect is E.QUIT_QEMU and not w.ran_there:
                raise BrokenLawError(
                    "the source is quit, and the destination was never seen to run"
                )
            yield name, w._replace(source_task=effect)
        case E.REPORT_UNKNOWN:
            yield name, w._replace(unknown=True)
        case E.END:
            nothing: frozenset[str] = frozenset()
            gone = w._replace(over=True, source=None, source_todo=(), source_inbox=())
            yield name, gone._replace(source_task=None, to_source=nothing)
        case _:
            yield name, w


def _destination_agent(rules: Rules, w: World) -> Iterator[Move]:
    if w.destination is None:
        look = Look.GONE if w.destination_qemu == "gone" else Look.RUNS_ON
        state = RunState.RUNNING if w.destination_qemu == "runs" else RunState.PAUSED
        after, effects = rules.destination_after(w.destination_record, look, state)
        begun = w._replace(destination=after, destination_todo=_seen(effects))
        if w.destination_qemu == "failed" and w.destination_record is R.PREPARED:
            begun = begun._replace(destination_inbox=(DE.REFUSE,))
        yield "destination agent again", begun
        return
    if rules.agents_die and w.faults < rules.faults:
        yield (
            Fault("destination agent dies"),
            w._replace(
                destination=None,
                destination_todo=(),
                destination_inbox=(),
                faults=w.faults + 1,
            ),
        )
    if w.destination_todo:
        rest = w._replace(destination_todo=w.destination_todo[1:])
        yield from _destination_effect(rest, w.destination_todo[0])
        return
    for name, event in _destination_events(rules, w):
        state, effects = rules.destination_step(w.destination, event)
        inbox = w.destination_inbox[1:] if name == "QEMU says" else w.destination_inbox
        kind = Fault if isinstance(name, Fault) else str
        todo = tuple(effect for effect in _seen(effects) if effect is not E.END)
        after = w._replace(destination=state, destination_todo=todo, destination_inbox=inbox)
        if state is D.REFUSED and w.destination is D.PREPARED:
            after = after._replace(refused_whole=w.destination_qemu == "loaded")
        yield kind(f"destination: {name} {event}"), after


def _destination_events(rules: Rules, w: World) -> Iterator[tuple[str, DestinationEvent]]:
    if w.destination_inbox:
        yield "QEMU says", w.destination_inbox[0]
    for event in sorted(w.to_destination):
        # FINISH is the last word of a source that has heard the answer, or never sent GO.
        if event is not DE.FINISH or w.destination not in (D.DECIDING, D.GO, D.GO_AGAIN):
            yield "hears", DE(event)
    waits = rules.loaded_copy_waits and w.destination_qemu == "loaded"
    # Its patience may have ended just before the GO that was handled first.
    if w.destination in (D.DECIDING, D.GO, D.GO_AGAIN) or (
        w.destination is D.PREPARED and not waits
    ):
        yield Fault("no patience:"), DE.REFUSE
    if w.destination in (D.GO, D.GO_AGAIN) and w.destination_qemu == "runs":
        yield "asks again:", DE.RUNS


def _destination_effect(w: World, effect: Effect | Record) -> Iterator[Move]:
    name, there = f"destination: {effect}", w.destination_qemu

    def post(event: DestinationEvent, after: World) -> World:
        return after._replace(destination_inbox=(*after.destination_inbox, event))

    match effect:
        case Record():
            after = w._replace(destination_record=effect)
            yield f"destination: record {effect}", after
        case E.LOOK:
            if there != "waits":  # until the stream has ended, one way or the other
                yield name, post(DE.LOOKS_LOADED if there == "loaded" else DE.LOOKS_UNFIT, w)
            if w.source_qemu != "gone":  # see the module
                yield Fault(f"{name}: no word"), post(DE.LOOKS_UNFIT, w)
        case E.RUN if there in ("loaded", "runs", "halted"):
            yield name, post(DE.RUNS, w._replace(destination_qemu="runs", ran_there=True))
            hung = w._replace(destination_qemu="runs", ran_there=True)
            yield Fault(f"{name}: no word"), post(DE.CONT_UNKNOWN, hung)
            yield Fault(f"{name}: refused"), post(DE.CONT_REFUSED, w)
        case E.RUN:
            yield name, post(DE.CONT_UNKNOWN, w)
        case E.QUIT_QEMU:
            _check_quit(w)
            yield name, w._replace(destination_qemu="gone")
        case E.REPORT_UNKNOWN:
            yield name, w._replace(unknown=True)
        case _ if effect in ANSWERS:
            yield name, w if w.over else w._replace(to_source=w.to_source | {ANSWERS[effect]})
        case _:
            yield name, w


def _check_quit(w: World) -> None:
    if w.ran_there:
        raise BrokenLawError("a copy that ran is quit on the destination")
    kept_here = w.source_record in (R.BACK, R.RESTORED, R.ENDED)
    if w.refused_whole and w.source_qemu == "gone" and not (w.stale or kept_here):
        raise BrokenLawError("the last copy is destroyed")
    if w.destination_record not in (R.REFUSED, R.RETURNED):
        raise BrokenLawError("the destination is quit before the refusal is durable")


def check(w: World) -> None:
    """Raise `BrokenLawError` where `w` must not be."""
    runs_here = w.source_qemu in RUNS_HERE
    runs_there = w.destination_qemu == "runs"
    if runs_here and runs_there:
        raise BrokenLawError("two running copies")
    if runs_here and w.ran_there:
        raise BrokenLawError("the source runs old memory: the guest has run on the destination")
    if runs_there and w.stale:
        raise BrokenLawError("the destination runs old memory: the source ran on")
    right_here = w.source_record not in (R.AWAY, R.PROVED, R.DONE)
    right_there = w.destination_record in (R.GO, R.RUNNING, R.DONE)
    if right_here and right_there:
        raise BrokenLawError("both hosts hold the right to run it")
    if runs_there and not right_there:
        raise BrokenLawError("the destination runs it without the right")
    if w.went and w.source_record in (R.PREPARED, R.SWITCHING):
        raise BrokenLawError("GO was sent and `away` is not durable")


def is_settled(w: World) -> bool:
    """Whether the world may rest: one copy runs, people know, or the guest has truly ended."""
    runs = (w.source_qemu in RUNS_HERE) + (w.destination_qemu == "runs")
    nothing_whole = w.stale or w.destination_qemu in ("gone", "failed", "waits")
    ended = w.source_qemu == "gone" and nothing_whole
    known = w.over and (runs == 1 or ended or w.ran_there)
    # Only where the answer, or the source's last moments, are beyond knowing may people be waited
    # for.
    beyond = w.source is S.MISSED or (w.source is S.AWAY and w.destination_record is R.GO)
    return known or (w.unknown and beyond)


class Explored(NamedTuple):
    """What a walk has found; `law` is None when all held."""

    states: int
    moves: int
    law: str | None
    trace: tuple[str, ...]


def explore(rules: Rules, start: World = START) -> Explored:
    """See `_walk`; nothing that it makes is garbage before its end."""
    gc.collect()
    gc.disable()
    try:
        return _walk(rules, start)
    finally:
        gc.enable()


def _walk(rules: Rules, start: World) -> Explored:
    """Visit every state, breadth first; the trace of a broken law is a shortest one.

    From every state a settled one must be reachable by steps that are no faults.
    """
    came: dict[World, tuple[World | None, str]] = {start: (None, "start")}
    before: dict[World, list[World]] = {}
    queue = deque((start,))
    count = 0
    while queue:
        here = queue.popleft()
        try:
            check(here)
            following = list(moves(rules, here))
        except Exception as exc:  # noqa: BLE001 - whatever is raised is a finding
            return Explored(len(came), count, f"{exc}", _trace(came, here))
        for name, after in following:
            count += 1
            if after == here:
                continue
            if not isinstance(name, Fault):
                before.setdefault(after, []).append(here)
            if after not in came:
                came[after] = (here, name)
                queue.append(after)
    stuck = _never_settles(came, before)
    if stuck is not None:
        return Explored(len(came), count, "nothing can settle this", _trace(came, stuck))
    return Explored(len(came), count, None, ())


def _never_settles(
    came: dict[World, tuple[World | None, str]], before: dict[World, list[World]]
) -> World | None:
    reaching = {w for w in came if is_settled(w)}
    queue = deque(reaching)
    while queue:
        for earlier in before.get(queue.popleft(), ()):
            if earlier not in reaching:
                reaching.add(earlier)
                queue.append(earlier)
    return next((w for w in came if w not in reaching), None)


def _trace(came: dict[World, tuple[World | None, str]], end: World) -> tuple[str, ...]:
    names = [repr(end)]
    at: World | None = end
    while at is not None:
        at, name = came[at]
        names.append(name)
    return tuple(reversed(names))
