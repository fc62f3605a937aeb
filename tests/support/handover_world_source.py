"""What may happen on the source's host of the small world (see `handover_world_nouns`)."""

from collections.abc import Iterator

from qmigrate.core.handover import Effect, ImpossibleEventError, Record, Source, SourceEvent, Word
from qmigrate.core.rights import SOURCE_WORDS
from qmigrate.core.takeover import Look
from tests.support.handover_world_nouns import (
    FAULT,
    HAD_ALL,
    HEARD_HERE,
    LOST_THERE,
    NEVER_WILL,
    NO_JOURNAL,
    ORDINARY,
    RAN,
    TELLS,
    TO_THERE,
    WORD,
    BrokenLawError,
    Here,
    Move,
    Rules,
    seen,
)

S, SE, E, R = Source, SourceEvent, Effect, Record

LOOKS = {
    "runs": Look.RUNS_ON,
    "copies": Look.MIGRATING,
    "held": Look.MIGRATING,
    "device": Look.DECIDING,
    "recalled": Look.DECIDING,
    "complete": Look.COMPLETED,
    "strayed": Look.RUNS_ON,
    "gone": Look.GONE,
}
WAITS_FOR_QEMU = (S.CANCELLING, S.SWITCHING, S.RECALLING, S.BACK, S.PROVED)
WAITS_FOR_ANSWER = (S.LEFT, S.AWAY, S.STRAYED, S.MISSED)
TRUTH = {Word.NO_RECORD: NO_JOURNAL, Word.PEER_IS_DEAD: LOST_THERE, Word.RUN_HERE: NEVER_WILL}


def source_moves(rules: Rules, here: Here, there: int) -> Iterator[Move[Here]]:
    """Yield what may happen here, given what is true `there` (`seen_there`)."""
    if here.lost:
        return
    if rules.hosts_die:
        dead = Here(None, record=None, qemu="gone", over=True, lost=True)
        yield Move(
            "the source's host loses its power",
            dead._replace(
                sent_all=here.sent_all,
                stale=here.stale,
                strayed=here.strayed,
                vouched=here.vouched,
                was_back=here.record in (R.BACK, R.RESTORED, R.ENDED),
            ),
            FAULT,
        )
    yield from _qemu(rules, here, there)
    if here.ghost:
        effect, rest = here.ghost[0], here._replace(ghost=here.ghost[1:])
        if effect in AT_ONCE:
            yield Move(f"old source: {effect}", rest, adds=TO_THERE.get(effect, 0))
        else:
            yield from _effect(rest, effect, "old ")
    if here.agent is not None:
        yield from _agent(rules, here, here.agent, there)
    elif not here.over and here.record is not None:
        if rules.journals_vanish and rules.journal_is_needed:
            gone = here._replace(over=True, vanished=True)
            yield Move("the source's journal vanishes", gone, FAULT)
        state, effects = rules.source_after(here.record, LOOKS[here.qemu])
        yield _carried("source agent again", _step(here, state, seen(effects)), there)


def _say(here: Here, event: SourceEvent) -> tuple[SourceEvent, ...]:
    return (*here.inbox, event) if here.agent is not None else ()


def _qemu(rules: Rules, here: Here, there: int) -> Iterator[Move[Here]]:
    qemu = here.qemu
    if qemu == "gone" or len(here.inbox) >= 2:
        return
    gone = here._replace(qemu="gone", inbox=_say(here, SE.QEMU_GONE))
    yield Move("source QEMU dies", gone, FAULT)
    if qemu == "copies":
        held = here._replace(qemu="held", inbox=_say(here, SE.PRE_SWITCHOVER))
        yield Move("pre-switchover", held)
    if qemu in ("copies", "device", "recalled"):
        runs = here._replace(qemu="runs", stale=here.sent_all, inbox=_say(here, SE.QEMU_RUNS_ON))
        if qemu == "recalled":
            yield Move("cancelled", runs)
        else:
            yield Move("migration fails", runs, FAULT)
    if qemu == "device" and not here.sent_all:
        yield Move("all is sent", here._replace(sent_all=True))
    if qemu == "device" and there & HAD_ALL:
        done = here._replace(qemu="complete", inbox=_say(here, SE.QEMU_COMPLETED))
        yield Move("completed", done)
    if qemu == "complete" and rules.people_type:
        stray = here._replace(
            qemu="strayed", strayed=True, stale=True, inbox=_say(here, SE.QEMU_RUNS_ON)
        )
        yield Move("somebody types cont on the source", stray, FAULT)


def _agent(rules: Rules, here: Here, agent: Source, there: int) -> Iterator[Move[Here]]:
    if rules.agents_die:
        ghost = () if rules.stopped_is_killed else here.todo
        dead = here._replace(agent=None, todo=(), inbox=(), task=None, ghost=ghost)
        yield Move("source agent dies", dead, FAULT)
    if here.task is not None:
        yield from _task(rules, here, here.task)
    if here.todo:
        for name, after, kind, _, _ in _effect(here._replace(todo=here.todo[1:]), here.todo[0], ""):
            yield _carried(name, after, there, kind)
        return
    if here.inbox:
        rest = here._replace(inbox=here.inbox[1:])
        state, effects = rules.source_step(agent, here.inbox[0])
        yield _carried(
            f"source: QEMU says {here.inbox[0]}", _step(rest, state, seen(effects)), there
        )
    for needs, event in HEARD_HERE.items():
        try:
            state, effects = rules.source_step(agent, event)
        except ImpossibleEventError as exc:
            yield Move(f"law: {exc}", here, needs=needs)
        else:
            after = _step(here, state, seen(effects))
            yield _carried(f"source: hears {event}", after, there)._replace(needs=needs)
    for event, kind in _events(agent):
        state, effects = rules.source_step(agent, event)
        yield _carried(f"source: {event}", _step(here, state, seen(effects)), there, kind)
    for word in SOURCE_WORDS.keys() & (rules.words | rules.lies):
        if there & TRUTH[word] or word in rules.lies:
            try:
                state, effects = rules.source_step(agent, SOURCE_WORDS[word])
            except ImpossibleEventError:
                continue  # refused at the door
            after = _step(here, state, seen(effects))
            vouched = here.vouched or word is Word.RUN_HERE
            after = after._replace(vouched=vouched)
            yield _carried(f"source is told {word}", after, there, WORD)


def _events(agent: Source) -> Iterator[tuple[SourceEvent, int]]:
    if agent is S.PREPARED:
        yield SE.START, ORDINARY
    if agent is S.HELD:
        yield SE.CHECKED, ORDINARY
    yield SE.CONNECTED, ORDINARY
    yield SE.CANCEL, FAULT
    yield SE.GIVE_UP, ORDINARY
    if agent in WAITS_FOR_QEMU:
        yield SE.STUCK, ORDINARY
    if agent in WAITS_FOR_ANSWER:
        yield SE.NO_ANSWER, ORDINARY


def _step(here: Here, state: Source, todo: tuple[Effect | Record, ...]) -> Here:
    if here.qemu == "strayed" and SE.QEMU_RUNS_ON not in here.inbox:  # it has been heard
        was_proved = here.agent is S.PROVED or (here.agent is None and here.record is R.PROVED)
        if E.SEND_GO in todo:
            raise BrokenLawError("GO is sent by who has heard that the guest was let run here")
        if E.QUIT_QEMU in todo and not was_proved:
            raise BrokenLawError("a copy that was seen to run again is quit on the source")
    return here._replace(agent=state, todo=todo)


def _task(rules: Rules, here: Here, task: Effect) -> Iterator[Move[Here]]:
    done = here._replace(task=None)
    if task is E.END:
        yield Move(
            "source: end done",
            Here(
                None,
                record=here.record,
                qemu=here.qemu,
                sent_all=here.sent_all,
                stale=here.stale,
                strayed=here.strayed,
                vouched=here.vouched,
                over=True,
                ghost=here.ghost,
            ),
        )
    elif task is E.QUIT_QEMU:
        yield Move("source: quit done", done._replace(qemu="gone", inbox=(*here.inbox, SE.QUIT)))
    elif here.qemu == "gone":
        yield Move("source: return in vain", done._replace(inbox=(*here.inbox, SE.QEMU_GONE)))
    else:
        qemu = "runs" if here.qemu == "complete" else here.qemu
        back = done._replace(qemu=qemu, inbox=(*here.inbox, SE.RETURNED_HERE))
        yield Move("source: return done", back)
        if here.qemu == "complete" and SE.STUCK not in here.inbox:
            again = E.RETURN_GUEST if rules.cont_is_repeated else None
            stuck = here._replace(task=again, inbox=(*here.inbox, SE.STUCK))
            yield Move("source: cont fails", stuck, FAULT)


AT_ONCE = frozenset((*TO_THERE, E.RETURN_GUEST, E.QUIT_QEMU, E.END, E.REPORT_UNKNOWN))


def _carried(name: str, here: Here, there: int, kind: int = ORDINARY) -> Move[Here]:
    """Carry out at once what nobody can be in time for.

    To die with a message unsent, or a task not begun, is to die after it and be heard by nobody.
    """
    adds, todo = 0, here.todo
    while todo and todo[0] in AT_ONCE:
        effect, todo = todo[0], todo[1:]
        name = f"{name}, {effect}"
        if effect is E.SEND_GO and here.record is not R.AWAY:
            raise BrokenLawError("GO is sent and `away` is not durable")
        if effect is E.QUIT_QEMU and not there & RAN:
            raise BrokenLawError("the source is quit, and the destination was never seen to run")
        if effect is E.REPORT_UNKNOWN:
            kind |= TELLS
        elif effect in (E.RETURN_GUEST, E.QUIT_QEMU, E.END):
            here = here._replace(task=Effect(effect))
        else:
            adds |= TO_THERE[Effect(effect)]
    return Move(name, here._replace(todo=todo), kind, 0, adds)


def _effect(here: Here, effect: Effect | Record, who: str) -> Iterator[Move[Here]]:
    name, qemu = f"{who}source: {effect}", here.qemu
    match effect:
        case Record():
            yield Move(f"{who}source: record {effect}", here._replace(record=effect))
        case E.MIGRATE:
            yield Move(name, here._replace(qemu="copies" if qemu == "runs" else qemu))
        case E.MIGRATE_CONTINUE:
            yield Move(name, here._replace(qemu="device" if qemu == "held" else qemu))
        case E.MIGRATE_CANCEL if qemu in ("copies", "held"):
            inbox = (*here.inbox, SE.QEMU_RUNS_ON)
            yield Move(name, here._replace(qemu="runs", inbox=inbox))
        case E.MIGRATE_CANCEL if qemu == "device":
            # It runs again before it says so; or it is too late and goes on.
            yield Move(name, here._replace(qemu="recalled", stale=here.sent_all))
            yield Move(name + " too late", here)
        case _:
            yield Move(name, here)
