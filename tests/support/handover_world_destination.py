"""What may happen on the destination's host of the small world (see `handover_world_nouns`)."""

from collections.abc import Iterator

from qmigrate.core.handover import (
    Destination,
    DestinationEvent,
    Effect,
    ImpossibleEventError,
    Record,
    Word,
)
from qmigrate.core.model import RunState
from qmigrate.core.rights import DESTINATION_WORDS
from qmigrate.core.takeover import Look
from tests.support.handover_world_nouns import (
    FAULT,
    GONE,
    HEARD_THERE,
    IS_BACK,
    ORDINARY,
    OVER_HERE,
    SENT_ALL,
    STALE,
    STREAM_ENDS,
    TELLS,
    TO_HERE,
    WORD,
    BrokenLawError,
    Move,
    Rules,
    There,
    seen,
)

D, DE, E, R = Destination, DestinationEvent, Effect, Record

IS_TO_RUN = (D.GO, D.GO_AGAIN)
DECIDES = (D.DECIDING, *IS_TO_RUN)


def destination_moves(rules: Rules, there: There, here: int) -> Iterator[Move[There]]:
    """Yield what may happen there, given what is true `here` (`seen_here`)."""
    if there.lost:
        return
    if rules.hosts_die:
        dead = There(None, record=None, qemu="gone", over=True, lost=True)
        yield Move(
            "the destination's host loses its power",
            dead._replace(
                had_all=there.had_all, ran=there.ran, strayed=there.strayed, vouched=there.vouched
            ),
            FAULT,
        )
    yield from _qemu(rules, there, here)
    if there.ghost:
        effect, rest = there.ghost[0], there._replace(ghost=there.ghost[1:])
        if effect in AT_ONCE:
            yield Move(f"old destination: {effect}", rest, adds=TO_HERE.get(effect, 0))
        else:
            yield from _effect(rules, rest, effect, here, "old ")
    if there.agent is not None:
        yield from _agent(rules, there, there.agent, here)
    elif not there.over and there.record is not None:
        if rules.journals_vanish and rules.journal_is_needed:
            gone = there._replace(over=True, vanished=True)
            yield Move("the destination's journal vanishes", gone, FAULT)
        elif rules.journals_vanish and there.record in (R.REFUSED, R.RETURNED):
            gone = there._replace(record=R.PREPARED)
            yield Move("the destination's refusal vanishes", gone, FAULT)
        yield _again(rules, there, there.record)


def _again(rules: Rules, there: There, record: Record) -> Move[There]:
    look = Look.GONE if there.qemu == "gone" else Look.RUNS_ON
    state = RunState.RUNNING if there.qemu == "runs" else RunState.PAUSED
    after, effects = rules.destination_after(record, look, state)
    begun = there._replace(agent=after, todo=seen(effects))
    if there.qemu == "failed" and record is R.PREPARED:
        begun = begun._replace(inbox=(DE.REFUSE,))
    return _carried("destination agent again", begun)


def _qemu(rules: Rules, there: There, here: int) -> Iterator[Move[There]]:
    qemu = there.qemu
    if qemu == "gone" or len(there.inbox) >= 2:
        return
    is_alive = there.agent is not None

    def say(event: DestinationEvent) -> tuple[DestinationEvent, ...]:
        return (*there.inbox, event) if is_alive else ()

    gone = there._replace(qemu="gone", inbox=say(DE.QEMU_GONE))
    yield Move("destination QEMU dies", gone, FAULT)
    if qemu == "runs" and there.record is R.GO:
        yield Move("the guest stops by itself", there._replace(qemu="halted"), FAULT)
    if qemu == "hung":
        yield Move("cont is carried out late", there._replace(qemu="runs", ran=True))
    if qemu in ("waits", "armed") and here & SENT_ALL:
        loaded = there._replace(qemu="loaded", had_all=True)
        if not rules.twin_waits:
            yield Move("loaded, and runs", loaded._replace(qemu="runs", ran=True))
        elif qemu == "armed":
            yield Move("loaded, and runs", _runs_astray(loaded))
        else:
            yield Move("loaded", loaded)
    if qemu in ("waits", "armed") and here & STREAM_ENDS:  # too early
        failed = there._replace(qemu="failed", inbox=say(DE.REFUSE))
        yield Move("load fails", failed)
    if rules.people_type and qemu == "waits":
        yield Move("somebody types cont too early", there._replace(qemu="armed"), FAULT)
    if rules.people_type and qemu == "loaded":
        yield Move("somebody types cont on the destination", _runs_astray(there), FAULT)


def _runs_astray(there: There) -> There:
    is_refused = there.agent is D.RETURNED or DE.CONT_REFUSED in there.inbox
    if there.record is R.GO and not is_refused:  # it was to run all the same
        return there._replace(qemu="runs", ran=True)
    is_alive = there.agent is not None
    inbox = (*there.inbox, DE.RUNS) if is_alive else ()
    return there._replace(qemu="runs", ran=True, strayed=True, inbox=inbox)


def _agent(rules: Rules, there: There, agent: Destination, here: int) -> Iterator[Move[There]]:
    if rules.agents_die:
        ghost = () if rules.stopped_is_killed else there.todo
        dead = there._replace(agent=None, todo=(), inbox=(), ghost=ghost)
        yield Move("destination agent dies", dead, FAULT)
    if there.todo:
        rest = there._replace(todo=there.todo[1:])
        for name, after, kind, _, _ in _effect(rules, rest, there.todo[0], here, ""):
            yield _carried(name, after, kind)
        return
    if there.inbox:
        event = there.inbox[0]
        rest = there._replace(inbox=there.inbox[1:])
        yield _carried(f"destination: QEMU says {event}", _step(rules, rest, agent, event))
    for needs, event in HEARD_THERE.items():
        try:
            after = _step(rules, there, agent, event)
        except ImpossibleEventError as exc:
            yield Move(f"law: {exc}", there, needs=needs)
        else:
            yield _carried(f"destination: hears {event}", after)._replace(needs=needs)
    is_loaded = rules.loaded_copy_waits and there.qemu in ("loaded", "runs", "hung")
    # Its patience may have ended just before the GO that was handled first.
    if agent in DECIDES or (agent is D.PREPARED and not is_loaded):
        after = _step(rules, there, agent, DE.REFUSE)
        yield _carried("destination: no patience", after, FAULT)
    if agent in IS_TO_RUN and there.qemu in ("runs", "halted"):
        after = _step(rules, there, agent, DE.RUNS)
        yield _carried("destination: asks again, and it has run", after)
    if len(there.inbox) >= 2:
        return
    is_tried = agent in IS_TO_RUN and there.qemu == "loaded" and not there.inbox
    if is_tried and rules.cont_is_repeated:  # it was lost, or refused and ours to repeat
        runs = there._replace(qemu="runs", ran=True, inbox=(DE.RUNS,))
        yield Move("destination: cont is tried again", runs)
    for word in DESTINATION_WORDS.keys() & (rules.words | rules.lies):
        if _is_true(word, here) or word in rules.lies:
            try:
                after = _step(rules, there, agent, DESTINATION_WORDS[word])
            except ImpossibleEventError:
                continue  # refused at the door
            vouched = there.vouched or word is Word.RUN_HERE
            after = after._replace(vouched=vouched)
            yield _carried(f"destination is told {word}", after, WORD)


def _is_true(word: Word, here: int) -> bool:
    match word:
        case Word.PEER_IS_DEAD:
            return bool(here & OVER_HERE)
        case Word.RUN_HERE:
            return bool(here & GONE)
        case _:
            return bool(here & IS_BACK)


def _step(rules: Rules, there: There, agent: Destination, event: DestinationEvent) -> There:
    state, effects = rules.destination_step(agent, event)
    todo = seen(effects)
    is_astray = there.strayed and there.qemu == "runs" and DE.RUNS not in there.inbox
    if is_astray and E.QUIT_QEMU in todo and there.record not in (R.REFUSED, R.RETURNED):
        raise BrokenLawError("a copy that was seen to run is quit on the destination")
    after = there._replace(agent=state, todo=todo)
    if state is D.REFUSED and agent is D.PREPARED:
        after = after._replace(refused_whole=there.qemu == "loaded")
    return after


AT_ONCE = frozenset((*TO_HERE, E.REPORT_UNKNOWN))


def _carried(name: str, there: There, kind: int = ORDINARY) -> Move[There]:
    """Carry out at once what nobody can be in time for (see the source's)."""
    adds, todo = 0, there.todo
    while todo and todo[0] in AT_ONCE:
        effect, todo = todo[0], todo[1:]
        name = f"{name}, {effect}"
        if effect is E.REPORT_UNKNOWN:
            kind |= TELLS
        else:
            adds |= TO_HERE[Effect(effect)]
    return Move(name, there._replace(todo=todo), kind, 0, adds)


def _effect(
    rules: Rules, there: There, effect: Effect | Record, here: int, who: str
) -> Iterator[Move[There]]:
    name, qemu = f"{who}destination: {effect}", there.qemu

    def post(event: DestinationEvent, after: There) -> There:
        return after._replace(inbox=(*after.inbox, event))

    match effect:
        case Record():
            yield Move(f"{who}destination: record {effect}", there._replace(record=effect))
        case E.LOOK:
            if qemu not in ("waits", "armed"):  # until the stream has ended, in one way or other
                is_whole = qemu in ("loaded", "runs")
                yield Move(name, post(DE.LOOKS_LOADED if is_whole else DE.LOOKS_UNFIT, there))
            if not here & GONE:  # see `handover_world_nouns`
                yield Move(f"{name}: no word", post(DE.LOOKS_UNFIT, there), FAULT)
        case E.RUN if qemu in ("loaded", "hung", "runs", "halted"):
            runs = there._replace(qemu="runs", ran=True)
            yield Move(name, post(DE.RUNS, runs))
            yield Move(f"{name}: no word", post(DE.CONT_UNKNOWN, runs), FAULT)
            if qemu in ("loaded", "halted"):
                # Its agent has heard RESUME, if that was in its time; or nobody could take it back.
                is_last = rules.last_copy_is_kept and bool(here & GONE)
                is_kept = there.agent is D.GO and (there.ran or is_last)
                answer = DE.CONT_UNKNOWN if is_kept else DE.CONT_REFUSED
                kept = there._replace(refused_whole=qemu == "loaded" and bool(here & GONE))
                yield Move(f"{name}: refused", post(answer, kept), FAULT)
            if qemu == "loaded":
                hung = there._replace(qemu="hung")
                yield Move(f"{name}: late", post(DE.CONT_UNKNOWN, hung), FAULT)
                yield Move(f"{name}: lost", post(DE.CONT_UNKNOWN, there), FAULT)
        case E.RUN:
            yield Move(name, post(DE.CONT_UNKNOWN, there))
        case E.QUIT_QEMU:
            _check_quit(there, here)
            yield Move(name, there._replace(qemu="gone", refused_whole=False))
        case E.END:
            over = There(
                None,
                record=there.record,
                qemu=there.qemu,
                had_all=there.had_all,
                ran=there.ran,
                strayed=there.strayed,
                vouched=there.vouched,
                over=True,
                ghost=there.ghost,
            )
            yield Move(name, over)
        case _:
            yield Move(name, there)


def _check_quit(there: There, here: int) -> None:
    if there.ran and not there.strayed:
        raise BrokenLawError("a copy that ran is quit on the destination")
    if there.refused_whole and here & GONE and not here & (STALE | IS_BACK):
        raise BrokenLawError("the last copy is destroyed")
    if there.record not in (R.REFUSED, R.RETURNED):
        raise BrokenLawError("the destination is quit before the refusal is durable")
