"""One row a job from what both hosts say, in words, with the line that is to be typed next."""

import itertools
from dataclasses import replace

import pytest

from qmigrate.core.errors import NoSuchJobError, Problem, UsageError
from qmigrate.core.finding import HostKnows, Place, find_job, name_in_id
from qmigrate.core.handover import Destination, Record, Source
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import Outcome
from qmigrate.core.joining import HostJobs, JobRow, join, peers_say
from qmigrate.core.model import Side
from tests.support.jobs_seen import UUID, destination, source

R, S, D = Record, Source, Destination
JOB = "web1-3fa9c2"
WATCH, RESOLVE = f"qmigrate watch {JOB}@alpha", "qmigrate resolve web1"
UNKNOWN = Problem("unknown-outcome", "who runs it cannot be known here")
LIVE = {"worked_at": True, "linked": True}
CUT = {"worked_at": True, "linked": False}


def row(alpha: JobOnHost | None, beta: JobOnHost | None, *, silent: bool = False) -> JobRow:
    hosts = [HostJobs("alpha", (alpha,) if alpha else ())]
    if not silent:
        hosts.append(HostJobs("beta", (beta,) if beta else ()))
    [found] = join(hosts, ["beta"] if silent else [])
    return found


# (source on alpha, destination on beta, words that the standing has, what to do next)
ROWS = [
    (
        source(R.PREPARED, state=S.COPYING, **LIVE),
        destination(R.PREPARED, state=D.PREPARED, **LIVE),
        "its memory is being copied, the guest is on alpha",
        WATCH,
    ),
    (
        source(R.PREPARED, state=S.PREPARED, **CUT),  # it has yet to meet its peer
        destination(R.PREPARED, state=D.PREPARED, **CUT),
        "it is being prepared, the guest is on alpha",
        WATCH,
    ),
    (source(R.AWAY, state=S.AWAY, **LIVE), destination(R.GO, **LIVE), "has not answered", WATCH),
    (
        source(R.AWAY, state=S.AWAY, **CUT),
        None,
        (
            "beta was told to run it and has not answered; the two agents have no link; "
            "beta knows nothing of it"
        ),
        RESOLVE,
    ),
    (
        source(R.AWAY, state=S.AWAY, worked_at=True, problem=UNKNOWN),
        destination(R.GO, state=D.GO, **LIVE),
        "(who runs it cannot be known here)",
        RESOLVE,
    ),
    (
        source(R.AWAY, worked_at=True),
        destination(R.GO, **LIVE),
        "its agent on alpha does not answer",
        RESOLVE,
    ),
    (
        source(R.PREPARED, state=S.COPYING, **CUT),
        destination(R.PREPARED),
        "nobody works at it on beta: beta had not taken it",
        RESOLVE,
    ),
    (
        source(R.PROVED, state=S.PROVED, **LIVE),
        destination(R.DONE),
        "nobody works at it on beta: beta took it to the end",
        WATCH,
    ),
    (
        None,
        destination(R.PREPARED, state=D.PREPARED, **CUT),
        (
            "beta holds a copy that never ran, and waits for alpha; the two agents have no link; "
            "alpha knows nothing of it"
        ),
        RESOLVE,
    ),
    (
        None,
        destination(R.GO, state=D.LOST, **LIVE),
        "it was run on beta, and its QEMU there has died since",
        RESOLVE,
    ),
    (
        source(R.AWAY, qemu_here=False),
        destination(R.GO),
        (
            "nobody works at it: alpha may have told the other to run it, and its QEMU has ended; "
            "beta had taken it, and may have run it"
        ),
        RESOLVE,
    ),
    (
        source(R.AWAY),
        destination(R.PREPARED, age_s=None),
        "beta had not taken it, before it was rebooted",
        RESOLVE,
    ),
    (
        source(R.RESTORED),
        destination(R.REFUSED),
        "nobody works at it: alpha has it as it was; beta had refused it for good",
        "qmigrate cleanup alpha",
    ),
    (source(R.DONE), None, "alpha gave it away to the end", "qmigrate cleanup alpha"),
    (source(None), None, "the journal on alpha cannot be read", RESOLVE),
    (None, destination(R.REFUSED), "beta had refused it for good", "qmigrate cleanup beta"),
]


@pytest.mark.parametrize(("alpha", "beta", "words", "next_step"), ROWS)
def test_a_row_says_where_a_job_stands_and_what_to_do_next(
    alpha: JobOnHost | None, beta: JobOnHost | None, words: str, next_step: str
) -> None:
    found = row(alpha, beta)
    assert words in found.standing
    assert found.next_step == next_step
    assert (found.source, found.destination) == ("alpha", "beta")
    assert found.healthy is ("watch" in next_step)


def test_a_host_that_does_not_answer_is_said() -> None:
    found = row(source(R.AWAY), None, silent=True)
    assert found.standing.endswith("; beta does not answer")
    [asked_one] = join([HostJobs("alpha", (source(R.AWAY),))])
    assert asked_one.standing.endswith("; beta was not asked")


@pytest.mark.parametrize(
    ("side", "state"),
    [
        *itertools.product([Side.SOURCE], Source),
        *itertools.product([Side.DESTINATION], Destination),
    ],
)
def test_every_state_of_a_live_agent_has_words_of_its_own(
    side: Side, state: Source | Destination
) -> None:
    make = source if side is Side.SOURCE else destination
    [found] = join([HostJobs("alpha", (make(R.PREPARED, state=str(state), **LIVE),))])
    assert "alpha" in found.standing or "beta" in found.standing or state is S.ENDED, found
    assert "{" not in found.standing
    assert found.standing.partition(";")[0] != str(state)


@pytest.mark.parametrize("record", [R.PREPARED, R.SWITCHING, R.AWAY, R.PROVED, R.BACK, R.GO])
def test_a_journal_that_is_not_at_its_end_and_nobodys_is_to_be_resolved(record: Record) -> None:
    for make in (source, destination):
        [found] = join([HostJobs("alpha", (make(record),))])
        assert found.next_step == RESOLVE


def test_rows_are_in_order_and_know_their_youngest_record() -> None:
    other = source(R.PREPARED, job="db-000001", guest="db")
    alpha = HostJobs("alpha", (source(R.AWAY, age_s=5.0), other))
    found = join([alpha, HostJobs("beta", (destination(R.GO, age_s=2.0),))])
    assert [(r.guest, r.age_s, len(r.sides)) for r in found] == [("db", 3.0, 1), ("web1", 2.0, 2)]


# What the other host says, for a job whose peer was called alpha.
ALPHA = HostJobs("alpha", (), ("root@192.0.2.1", "192.0.2.1"))


@pytest.mark.parametrize(
    ("elsewhere", "vouched", "expected"),
    [
        ((), None, []),
        ((HostJobs("gamma", ()),), None, []),  # it was never asked to be a part of this
        ((ALPHA,), None, [None]),
        ((HostJobs("gamma", (), ("alpha",)),), None, [None]),
        ((HostJobs("gamma", ()),), "gamma", [None]),
        ((HostJobs("gamma", (source(R.AWAY),)),), None, [R.AWAY]),
        ((HostJobs("alpha", (source(None),)),), None, []),  # its journal cannot be read
        ((HostJobs("alpha", (destination(R.GO),)),), None, [None]),  # no side of its own
    ],
)
def test_a_host_knows_nothing_of_a_job_only_if_it_is_the_one_and_has_answered(
    elsewhere: tuple[HostJobs, ...], vouched: str | None, expected: list[Record | None]
) -> None:
    found = peers_say((destination(R.REFUSED),), elsewhere, vouched)
    assert [said.record for said in found] == expected


OLD = EndedJob("web1-0000aa", Outcome.MIGRATED, 500.0)
NEW = EndedJob("web1-0000bb", Outcome.CANCELLED, 50.0)
SAME = EndedJob(JOB, Outcome.MIGRATED, 1.0)


def knows(*jobs: JobOnHost, ended: tuple[EndedJob, ...] = (), number: int = 0) -> HostKnows:
    return HostKnows(number, f"h{number}", jobs, ended)


@pytest.mark.parametrize("word", ["web1", JOB, UUID, UUID.upper()])
def test_a_job_is_found_by_its_id_and_by_its_guest(word: str) -> None:
    live = source(R.PREPARED, worked_at=True)
    there = destination(R.PREPARED, worked_at=True)
    job, places = find_job(word, [knows(there), knows(live, ended=(OLD,), number=1)])
    assert job == JOB
    assert places == (Place(1, "h1", live), Place(0, "h0", there))  # the source first


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([knows(ended=(OLD, NEW))], NEW.job),
        ([knows(source(R.AWAY), ended=(NEW,))], JOB),  # nobody works at it, and it is not over
        ([knows(source(R.RESTORED), ended=(NEW,))], NEW.job),
        ([knows(source(R.RESTORED))], JOB),
        ([knows(destination(R.PREPARED)), knows(ended=(SAME,), number=1)], JOB),
        # A report says how it ended, whatever journal was left of it: a later move is meant.
        ([knows(source(R.AWAY), ended=(replace(SAME, ended_s_ago=900.0), NEW))], NEW.job),
    ],
)
def test_a_guests_name_means_what_is_under_way_then_what_is_open_then_what_was_last(
    hosts: list[HostKnows], expected: str
) -> None:
    assert find_job("web1", hosts)[0] == expected


def test_a_report_is_asked_for_before_a_journal_that_nobody_works_at() -> None:
    hosts = [knows(destination(R.PREPARED)), knows(ended=(SAME,), number=1)]
    assert [place.side is None for place in find_job("web1", hosts)[1]] == [True, False]


def test_several_live_jobs_of_one_name_are_told_apart_by_the_user() -> None:
    both = (source(R.AWAY, worked_at=True), source(R.AWAY, job="web1-000001", worked_at=True))
    with pytest.raises(UsageError, match=r"web1-000001, web1-3fa9c2"):
        find_job("web1", [knows(*both)])


def test_an_id_that_no_list_holds_may_have_ended_long_ago() -> None:
    assert find_job("web1-abcdef", [knows(), knows(number=1)])[1] == (
        Place(0, "h0", None),
        Place(1, "h1", None),
    )
    with pytest.raises(NoSuchJobError, match="knows a job of web2"):
        find_job("web2", [knows(source(R.AWAY), ended=(OLD,))])


@pytest.mark.parametrize(
    ("guest", "name"), [("web1", "web1"), ("a b.c", "a-b-c"), ("..", "guest"), ("x" * 30, "x" * 24)]
)
def test_a_guests_name_in_a_jobs_id(guest: str, name: str) -> None:
    assert name_in_id(guest) == name
