"""What may be removed from a host: never what a guest lives on, nor what could be its last word."""

import itertools
from dataclasses import replace

import pytest

from qmigrate.core.belongings import (
    BareJob,
    Belongings,
    CacheLeft,
    GuestDirectory,
    Kind,
    LockFile,
    LogLeft,
    LogWish,
    OurTap,
    PeerSays,
    QemuHere,
    Thing,
    Verdict,
    judge,
    leftovers,
    tag_of,
)
from qmigrate.core.handover import Record
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.model import RunState
from tests.support.jobs_seen import UUID, destination, source

R, V = Record, Verdict
JOB = "web1-3fa9c2"
DAY_S = 86400.0

TAP = OurTap("tap-web1", f"qmigrate:guest={UUID} nic=n0", UUID, in_use=False, locked=False)
PLACE = GuestDirectory(UUID, lived_in=False, locked=False)
TWIN = QemuHere(200, 1, "web1", (UUID, "web1"), ("tap-web1",), UUID, RunState.PAUSED, locked=False)
NO_JOB = PeerSays(JOB, "the other", None)


def said(record: Record | None) -> PeerSays:
    return PeerSays(JOB, "the other", record)


def one(things: tuple[Thing, ...], kind: Kind) -> Thing:
    [found] = [thing for thing in things if thing.kind is kind]
    return found


# Journals at which nobody works: (the job, what the other host says of it) → verdict.
JOBS: list[tuple[JobOnHost, PeerSays | None, Verdict]] = [
    (source(R.PREPARED), None, V.RESOLVE),
    (source(R.PREPARED), NO_JOB, V.RESOLVE),  # its QEMU may stand still at pre-switchover
    (source(R.SWITCHING), NO_JOB, V.RESOLVE),
    (source(R.AWAY), NO_JOB, V.RESOLVE),
    (source(R.PROVED), said(R.RUNNING), V.RESOLVE),
    (source(R.BACK), said(R.REFUSED), V.RESOLVE),
    (source(None), None, V.RESOLVE),
    (source(R.RESTORED), None, V.REMOVABLE),
    (source(R.RESTORED), NO_JOB, V.REMOVABLE),
    (source(R.RESTORED), said(R.REFUSED), V.REMOVABLE),
    (source(R.RESTORED), said(R.PREPARED), V.RESOLVE),  # a loaded copy waits to hear of it
    (source(R.ENDED), said(R.PREPARED), V.RESOLVE),
    (source(R.DONE), said(R.RUNNING), V.RESOLVE),
    (source(R.DONE), said(R.DONE), V.REMOVABLE),
    (destination(R.PREPARED), NO_JOB, V.RESOLVE),
    (destination(R.GO), NO_JOB, V.RESOLVE),
    (destination(R.RUNNING), NO_JOB, V.RESOLVE),
    (destination(R.RUNNING), said(R.PROVED), V.RESOLVE),
    (destination(R.RUNNING), said(R.DONE), V.REMOVABLE),
    (destination(R.REFUSED, qemu_here=False), None, V.RESOLVE),  # the source may still ask
    (destination(R.REFUSED, qemu_here=False), said(R.AWAY), V.RESOLVE),
    (destination(R.REFUSED, qemu_here=False), said(R.BACK), V.RESOLVE),
    (destination(R.REFUSED, qemu_here=False), said(R.RESTORED), V.REMOVABLE),
    (destination(R.REFUSED, qemu_here=False), NO_JOB, V.REMOVABLE),
    (destination(R.RETURNED, qemu_here=False), said(R.AWAY), V.RESOLVE),
    (destination(R.RETURNED, qemu_here=False), NO_JOB, V.REMOVABLE),
    (destination(R.REFUSED), NO_JOB, V.RESOLVE),  # and its QEMU is here, unseen
    (destination(R.DONE), None, V.REMOVABLE),
    (destination(None), NO_JOB, V.RESOLVE),
]


@pytest.mark.parametrize(("job", "peer", "verdict"), JOBS)
def test_a_journal_goes_only_when_nobody_can_still_want_it(
    job: JobOnHost, peer: PeerSays | None, verdict: Verdict
) -> None:
    things = judge(Belongings("b", jobs=(job,)), (peer,) if peer else ())
    found = one(things, Kind.JOB)
    assert found.verdict is verdict, found.why
    assert (found.next_step is None) is (verdict is V.REMOVABLE)


@pytest.mark.parametrize("job", [job for job, _, _ in JOBS])
def test_a_job_that_somebody_works_at_is_nobody_elses(job: JobOnHost) -> None:
    here = Belongings("b", jobs=(replace(job, worked_at=True),), qemus=(TWIN,))
    assert leftovers(judge(here, (NO_JOB,))) == ()


TWIN_STATES = [None, *RunState]


@pytest.mark.parametrize(("record", "state"), list(itertools.product([*Record, None], TWIN_STATES)))
def test_only_a_twin_that_was_refused_for_good_and_never_ran_is_ended(
    record: Record | None, state: RunState | None
) -> None:
    here = Belongings("b", jobs=(destination(record),), qemus=(replace(TWIN, state=state),))
    twins = [thing for thing in judge(here, (NO_JOB,)) if thing.kind is Kind.TWIN]
    if record in (R.RUNNING, R.DONE):
        assert twins == []  # the guest itself
        return
    never_ran = state in (RunState.PRELAUNCH, RunState.INMIGRATE, RunState.PAUSED)
    may_go = record in (R.REFUSED, R.RETURNED) and never_ran
    assert [twin.verdict for twin in twins] == [V.REMOVABLE if may_go else V.RESOLVE]
    if record is R.REFUSED and not may_go:
        assert ("does not say" if state is None else f"({state})") in twins[0].why


def test_a_twin_that_goes_takes_all_that_it_lived_on_with_it() -> None:
    here = Belongings(
        "b",
        jobs=(destination(R.REFUSED),),
        taps=(replace(TAP, in_use=True),),
        directories=(replace(PLACE, lived_in=True),),
        qemus=(TWIN,),
    )
    found = judge(here, (NO_JOB,))
    assert [(t.kind, t.verdict) for t in found] == [
        (kind, V.REMOVABLE) for kind in (Kind.TWIN, Kind.JOB, Kind.TAP, Kind.DIRECTORY)
    ]


def test_what_a_twin_lives_on_stays_when_the_twin_does() -> None:
    here = Belongings(
        "b",
        jobs=(destination(R.REFUSED),),
        taps=(replace(TAP, in_use=True),),
        directories=(replace(PLACE, lived_in=True),),
        qemus=(replace(TWIN, state=RunState.RUNNING),),
    )
    found = judge(here, (NO_JOB,))
    assert not any(thing.verdict is V.REMOVABLE for thing in found)


RUNNING = replace(TWIN, state=RunState.RUNNING)
NOBODYS = Belongings("b", taps=(TAP,), directories=(PLACE,))

# (what else is on the host, the verdict on a tap and a directory that carry the guest's id)
GUESTS_THINGS = [
    (NOBODYS, V.REMOVABLE),
    (replace(NOBODYS, qemus=(RUNNING,)), V.SERVES),
    (replace(NOBODYS, qemus=(replace(RUNNING, taps=(), tags=(UUID.upper(),)),)), V.SERVES),
    (replace(NOBODYS, qemus=(replace(RUNNING, taps=(), tags=("web2",)),)), V.REMOVABLE),
    (replace(NOBODYS, jobs=(destination(R.PREPARED),)), V.RESOLVE),
    (replace(NOBODYS, jobs=(destination(R.GO, qemu_here=False),)), V.RESOLVE),
    (replace(NOBODYS, jobs=(destination(R.PREPARED, uuid=None, guest="x"),)), V.RESOLVE),
    (replace(NOBODYS, jobs=(destination(R.REFUSED, qemu_here=False),)), V.REMOVABLE),
    (replace(NOBODYS, jobs=(destination(R.DONE, qemu_here=False),)), V.REMOVABLE),
    (replace(NOBODYS, jobs=(destination(R.DONE, worked_at=True),)), V.SERVES),
    (replace(NOBODYS, jobs=(source(R.AWAY, qemu_here=False),)), V.RESOLVE),
    (replace(NOBODYS, jobs=(source(R.DONE, qemu_here=False),)), V.REMOVABLE),
    (replace(NOBODYS, jobs=(source(R.AWAY, uuid="another", guest="web2"),)), V.REMOVABLE),
]


@pytest.mark.parametrize(("here", "verdict"), GUESTS_THINGS)
def test_what_a_guest_lives_on_goes_when_it_has_no_qemu_and_no_open_job_here(
    here: Belongings, verdict: Verdict
) -> None:
    found = judge(here)
    assert one(found, Kind.TAP).verdict is verdict
    assert one(found, Kind.DIRECTORY).verdict is verdict


def test_what_the_kernel_says_is_in_use_serves_whatever_else_is_known() -> None:
    open_tap = Belongings("b", taps=(replace(TAP, in_use=True),))
    assert leftovers(judge(open_tap)) == ()
    lived_in = Belongings("b", directories=(replace(PLACE, lived_in=True),))
    assert leftovers(judge(lived_in)) == ()
    stranger = replace(RUNNING, tags=("web2",), directory=None)
    assert leftovers(judge(Belongings("b", taps=(TAP,), qemus=(stranger,)))) == ()


def test_what_a_starting_job_makes_is_left_to_it() -> None:
    here = Belongings(
        "b",
        bare=(BareJob(JOB, garbled=False),),
        locks=(LockFile(f"guest-{UUID}", JOB, held=True),),
        taps=(replace(TAP, locked=True),),
        directories=(replace(PLACE, locked=True),),
        qemus=(replace(TWIN, state=RunState.PRELAUNCH, locked=True, tags=("x",), taps=()),),
    )
    assert leftovers(judge(here)) == ()


BARE = BareJob(JOB, garbled=False, guest="web1", tag=UUID)


@pytest.mark.parametrize(
    ("bare", "qemus", "verdict"),
    [
        (BARE, (), V.REMOVABLE),
        (BareJob(JOB, garbled=False), (RUNNING,), V.REMOVABLE),
        (BARE, (RUNNING,), V.RESOLVE),  # its journal is lost, and this may be the only copy
        (replace(BARE, garbled=True), (), V.RESOLVE),
    ],
)
def test_a_directory_without_a_journal_goes_unless_it_may_have_been_one_of_a_copy_here(
    bare: BareJob, qemus: tuple[QemuHere, ...], verdict: Verdict
) -> None:
    found = one(judge(Belongings("b", bare=(bare,), qemus=qemus)), Kind.JOB)
    assert found.verdict is verdict


@pytest.mark.parametrize(
    ("state", "listed"),
    [
        (RunState.INMIGRATE, True),
        (RunState.PRELAUNCH, True),
        (RunState.RUNNING, False),
        (RunState.PAUSED, False),  # by its owner: it has moved here long ago
        (None, False),
    ],
)
def test_a_copy_that_waits_without_a_journal_is_told_and_never_ended(
    state: RunState | None, *, listed: bool
) -> None:
    found = leftovers(judge(Belongings("b", qemus=(replace(TWIN, state=state),))))
    assert [thing.verdict for thing in found] == ([V.RESOLVE] if listed else [])


def test_a_lock_goes_unless_it_is_held() -> None:
    locks = (LockFile("pid-1-2", "a-000000", held=True), LockFile("pid-3-4", None, held=False))
    found = judge(Belongings("b", locks=locks))
    assert [thing.verdict for thing in found] == [V.SERVES, V.REMOVABLE]


def test_a_cache_that_is_being_filled_stays() -> None:
    caches = (CacheLeft(".new-1", in_use=True), CacheLeft(".new-2", in_use=False))
    found = judge(Belongings("b", caches=caches))
    assert [thing.verdict for thing in found] == [V.SERVES, V.REMOVABLE]


@pytest.mark.parametrize(
    ("log", "wish", "gone"),
    [
        (LogLeft("a", 40 * DAY_S, 0, in_use=False), LogWish(30 * DAY_S), [Kind.LOG]),
        (LogLeft("a", 20 * DAY_S, 0, in_use=False), LogWish(30 * DAY_S), []),
        (LogLeft("a", 40 * DAY_S, 0, in_use=False), LogWish(), []),
        (LogLeft("a", 40 * DAY_S, 0, in_use=True), LogWish(30 * DAY_S), []),
        (LogLeft(JOB, 40 * DAY_S, 0, in_use=False), LogWish(30 * DAY_S), []),  # not cleaned up
        (LogLeft("a", DAY_S, 2000, in_use=True), LogWish(None, 1000), [Kind.WORDS]),
    ],
)
def test_logs_go_when_they_are_old_and_a_running_qemus_words_are_cut(
    log: LogLeft, wish: LogWish, gone: list[Kind]
) -> None:
    here = Belongings("b", jobs=(destination(R.RUNNING),), logs=(log,))
    found = judge(here, (), wish)
    removable = [thing.kind for thing in found if thing.verdict is V.REMOVABLE]
    assert removable == gone
    assert not [t for t in judge(here) if t.kind in (Kind.LOG, Kind.WORDS)]  # unless asked for


@pytest.mark.parametrize(
    ("made", "tag"),
    [
        (("tap qmigrate:guest=a_b-0123 nic=n0",), "a_b-0123"),
        (("process /run/qmigrate/guests/web.1/monitor",), "web.1"),
        ((), UUID),
        (("something else",), UUID),
    ],
)
def test_a_guests_id_is_read_from_what_was_made_for_it(made: tuple[str, ...], tag: str) -> None:
    assert tag_of(destination(R.PREPARED, made=made)) == tag
    assert tag_of(destination(R.PREPARED, made=(), uuid=None)) == "web1"
