"""What `resolve` does, situation by situation: the table, and that it stops where a person must."""

from dataclasses import replace

import pytest

from qmigrate.core.belongings import BareJob, Kind, Thing
from qmigrate.core.belongings import Verdict as Serves
from qmigrate.core.copies import ImageHolder, ImageSeen
from qmigrate.core.handover import Destination, Record, Source, Word
from qmigrate.core.holdings import EndedJob
from qmigrate.core.job import Outcome
from qmigrate.core.model import RunState, Side
from qmigrate.core.resolving import Tried, contradiction, decide
from qmigrate.core.resolving_acts import (
    Act,
    Carry,
    Clean,
    EndCopy,
    Ends,
    Forget,
    ReturnGuest,
    Revive,
    Tell,
)
from qmigrate.core.testimony import Evidence, HostSeen, Vouched
from tests.support.resolve_seen import (
    DISK,
    INCOMING,
    JOB,
    OWN,
    RUNS,
    STRAY,
    STRAY_TWIN,
    TWIN,
    TWIN_RUNS,
    TWIN_WROTE,
    alpha,
    beta,
    destination,
    evidence,
    held,
    silent,
    source,
)

S, D, R = Source, Destination, Record
NOTHING = Vouched()
RESUME = Vouched(resume_source=True)
ALPHA_DEAD = Vouched(frozenset(("alpha",)))
BETA_DEAD = Vouched(frozenset(("beta",)))
BETA_DEAD_RESUME = replace(BETA_DEAD, resume_source=True)
A, B = (Side.SOURCE, "alpha"), (Side.DESTINATION, "beta")

RUN_AT_SOURCE = Tell(JOB, Side.SOURCE, "alpha", Word.RUN_HERE)
RUN_AT_DESTINATION = Tell(JOB, Side.DESTINATION, "beta", Word.RUN_HERE)
NO_RECORD = Tell(JOB, Side.SOURCE, "alpha", Word.NO_RECORD)
REFUSE = Tell(JOB, Side.DESTINATION, "beta", Word.REFUSE)
OVER = Tell(JOB, Side.DESTINATION, "beta", Word.PEER_IS_DEAD)
SHARED = {"disks": (DISK,)}
RESTORED = EndedJob(JOB, Outcome.ROLLED_BACK, 60.0)

# Name: what is seen, what is vouched for, what is done or else what it comes to.
Row = tuple[tuple[HostSeen, HostSeen], Vouched, tuple[Act, ...] | tuple[Ends, str]]
DEAD_A, DEAD_B, ANYWAY = "--host-is-dead alpha", "--host-is-dead beta", "--resume-source-anyway"

TABLE: dict[str, Row] = {
    "a move under way is left to itself": (
        (alpha(source(S.COPYING, linked=True)), beta(destination(D.PREPARED, linked=True))),
        NOTHING,
        (Ends.GOES_ON, f"qmigrate watch {JOB}@alpha"),
    ),
    "agents and guardians of both sides killed": (
        (alpha(source(R.AWAY), OWN), beta(destination(R.PREPARED), TWIN)),
        NOTHING,
        (Revive(JOB, (A, B)),),
    ),
    "those of one side": (
        (alpha(source(R.AWAY), OWN), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (Revive(JOB, (A,), B),),
    ),
    "the path is cut": (
        (alpha(source(S.AWAY), held(OWN)), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (Carry(JOB, "alpha", "beta"),),
    ),
    "the destination's twin died after it ran; no disk": (
        (
            alpha(source(S.AWAY, linked=True), held(OWN)),
            beta(destination(D.LOST, linked=True, qemu_here=False)),
        ),
        NOTHING,
        (RUN_AT_SOURCE,),
    ),
    "the same with a disk": (
        (
            alpha(source(S.AWAY, linked=True, **SHARED), held(OWN)),
            beta(destination(D.LOST, linked=True, qemu_here=False)),
        ),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "before GO the destination knows nothing": (
        (alpha(source(S.LEFT), held(OWN)), beta()),
        NOTHING,
        (NO_RECORD,),
    ),
    "before GO it is silent: the source ends by itself": (
        (alpha(source(S.LEFT), held(OWN)), silent("beta")),
        NOTHING,
        (Ends.GOES_ON, "qmigrate watch"),
    ),
    "rebooted after GO, no disk": (
        (alpha(source(S.AWAY), held(OWN)), beta(boot_id="another")),
        NOTHING,
        (RUN_AT_SOURCE,),
    ),
    "rebooted after GO, a disk": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), beta(boot_id="another")),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "rebooted after GO, a disk, vouched": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), beta(boot_id="another")),
        RESUME,
        (RUN_AT_SOURCE,),
    ),
    "rebooted after GO, and the source's agents dead": (
        (alpha(source(R.AWAY, **SHARED), OWN), beta(boot_id="another")),
        NOTHING,
        (Revive(JOB, (A,)),),
    ),
    "unreachable after GO": (
        (alpha(source(S.AWAY), held(OWN)), silent("beta")),
        NOTHING,
        (Ends.UNKNOWN, DEAD_B),
    ),
    "unreachable after GO, vouched dead, no disk": (
        (alpha(source(S.AWAY), held(OWN)), silent("beta")),
        BETA_DEAD,
        (RUN_AT_SOURCE,),
    ),
    "unreachable after GO, vouched dead, a disk": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), silent("beta")),
        BETA_DEAD,
        (Ends.UNKNOWN, f"{DEAD_B} {ANYWAY}"),
    ),
    "unreachable after GO, resumed anyway and not vouched dead": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), silent("beta")),
        RESUME,
        (Ends.UNKNOWN, DEAD_B),
    ),
    "unreachable after GO, both vouched": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), silent("beta")),
        BETA_DEAD_RESUME,
        (RUN_AT_SOURCE,),
    ),
    "a journal there that cannot be read is no host that knows nothing": (
        (
            alpha(source(S.AWAY), held(OWN)),
            beta(bare=(BareJob(JOB, garbled=True, guest="web1"),)),
        ),
        NOTHING,
        (Ends.UNKNOWN, DEAD_B),
    ),
    "the source is dead, the destination waits": (
        (silent("alpha"), beta(destination(D.PREPARED, **SHARED), held(TWIN))),
        NOTHING,
        (Ends.UNKNOWN, DEAD_A),
    ),
    "the same, vouched": (
        (silent("alpha"), beta(destination(D.PREPARED, **SHARED), held(TWIN))),
        ALPHA_DEAD,
        (RUN_AT_DESTINATION,),
    ),
    "the source was rebooted, the destination waits; no disk": (
        (alpha(boot_id="another"), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (RUN_AT_DESTINATION,),
    ),
    "the source was rebooted, the destination waits; a disk": (
        (alpha(boot_id="another"), beta(destination(D.PREPARED, **SHARED), held(TWIN))),
        NOTHING,
        (Ends.UNKNOWN, DEAD_A),
    ),
    "the source was rebooted, and it runs": (
        (alpha(boot_id="another"), beta(destination(D.RUNNING), held(TWIN))),
        NOTHING,
        (OVER,),
    ),
    "it runs and the source is silent": (
        (silent("alpha"), beta(destination(D.RUNNING), held(TWIN))),
        NOTHING,
        (Ends.LEFT, DEAD_A),
    ),
    "it runs and the source is dead": (
        (silent("alpha"), beta(destination(D.RUNNING), held(TWIN))),
        ALPHA_DEAD,
        (OVER,),
    ),
    "it runs, and the source's copy has no journal": (
        (alpha(STRAY), beta(destination(D.RUNNING), held(TWIN))),
        NOTHING,
        (EndCopy("alpha", 101, 1),),
    ),
    "the destination's journal is lost, its copy runs": (
        (alpha(source(S.AWAY), held(OWN)), beta(TWIN_RUNS)),
        NOTHING,
        (EndCopy("alpha", 100, 1),),
    ),
    "and then the source's copy has gone": (
        (alpha(source(S.AWAY, qemu_here=False)), beta(TWIN_RUNS)),
        NOTHING,
        (Forget("alpha", JOB),),
    ),
    "the destination's journal is lost, its copy never ran": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), beta(STRAY_TWIN)),
        NOTHING,
        (EndCopy("beta", 201, 1), RUN_AT_SOURCE),
    ),
    "the destination's journal is lost, its copy has written": (
        (alpha(source(S.AWAY, **SHARED), held(OWN)), beta(TWIN_WROTE)),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "the destination's journal is lost, its copy is the last": (
        (alpha(source(S.AWAY, qemu_here=False)), beta(STRAY_TWIN)),
        NOTHING,
        (Ends.UNKNOWN, DEAD_A),
    ),
    "the same, vouched to be wanted": (
        (alpha(source(S.AWAY, qemu_here=False)), beta(STRAY_TWIN)),
        ALPHA_DEAD,
        (ReturnGuest("beta", 201, 1),),
    ),
    "the source's journal is lost, its copy stands still": (
        (alpha(STRAY), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "the same, wanted": (
        (alpha(STRAY), beta(destination(D.PREPARED), held(TWIN))),
        RESUME,
        (REFUSE, ReturnGuest("alpha", 101, 1)),
    ),
    "the source's journal is lost, its copy runs": (
        (alpha(RUNS), beta(destination(D.PREPARED, age_s=60.0), held(TWIN))),
        NOTHING,
        (REFUSE,),
    ),
    "a destination that is ready and a source that is just being begun": (
        (alpha(RUNS), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (Ends.GOES_ON, "watch"),
    ),
    "the source ended it, and the destination never heard": (
        (alpha(RUNS, ended=(RESTORED,)), beta(destination(D.PREPARED), held(TWIN))),
        NOTHING,
        (REFUSE,),
    ),
    "refused for good, and the source's journal is lost": (
        (alpha(STRAY), beta(destination(D.REFUSED, qemu_here=False))),
        NOTHING,
        (ReturnGuest("alpha", 101, 1),),
    ),
    "refused for good, and whether it ran is not known": (
        (alpha(STRAY), beta(destination(D.REFUSED, had=RunState.UNKNOWN, qemu_here=False))),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "refused for good, and it runs at the source": (
        (alpha(RUNS), beta(destination(D.REFUSED, qemu_here=False))),
        NOTHING,
        (OVER,),
    ),
    "refused for good, and the source is silent": (
        (silent("alpha"), beta(destination(D.REFUSED, qemu_here=False))),
        NOTHING,
        (Ends.UNKNOWN, DEAD_A),
    ),
    "no job anywhere, both copies stand still": (
        (alpha(STRAY), beta(STRAY_TWIN)),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "the same, and the source's is wanted": (
        (alpha(STRAY), beta(STRAY_TWIN)),
        RESUME,
        (EndCopy("beta", 201, 1, vouched=True), ReturnGuest("alpha", 101, 1)),
    ),
    "no job anywhere, one runs and the other is what it was": (
        (alpha(STRAY), beta(TWIN_RUNS)),
        NOTHING,
        (EndCopy("alpha", 101, 1),),
    ),
    "no job anywhere, one runs and a twin waits for it": (
        (alpha(RUNS), beta(INCOMING)),
        NOTHING,
        (EndCopy("beta", 201, 1),),
    ),
    "no job anywhere, one runs and the other has written": (
        (alpha(RUNS), beta(TWIN_WROTE)),
        NOTHING,
        (Ends.LEFT, "on beta: kill 201"),
    ),
    "no job anywhere, QEMU holds the guest for a switchover": (
        (
            alpha(replace(STRAY, state=RunState.FINISH_MIGRATE, migration="pre-switchover")),
            beta(INCOMING),
        ),
        NOTHING,
        (ReturnGuest("alpha", 101, 1),),
    ),
    "somebody typed cont: both run": (
        (alpha(RUNS), beta(TWIN_RUNS)),
        BETA_DEAD_RESUME,
        (Ends.UNKNOWN, "kill"),
    ),
    "somebody typed cont at the source, the destination has it": (
        (
            alpha(source(S.STRAYED, linked=True), held(OWN)),
            beta(destination(D.RUNNING, linked=True), held(TWIN)),
        ),
        NOTHING,
        (Ends.UNKNOWN, "kill"),
    ),
    "somebody typed cont at the source, the destination was rebooted": (
        (alpha(source(S.STRAYED, **SHARED), held(OWN)), beta(boot_id="another")),
        NOTHING,
        (RUN_AT_SOURCE,),
    ),
    "an old job's leftovers beside a guest that has moved": (
        (
            alpha(source(R.PREPARED, qemu_here=False)),
            beta(destination(R.PREPARED), replace(TWIN, state=RunState.INMIGRATE), TWIN_RUNS),
        ),
        NOTHING,
        (EndCopy("beta", 200, 1), Forget("beta", JOB)),
    ),
    "and then its source": (
        (alpha(source(R.PREPARED, qemu_here=False)), beta(TWIN_RUNS)),
        NOTHING,
        (Forget("alpha", JOB),),
    ),
    "what a journal of another boot speaks of has gone: the source's": (
        (
            alpha(source(R.AWAY, boot_id="older", qemu_here=False)),
            beta(destination(D.RUNNING), held(TWIN)),
        ),
        NOTHING,
        (OVER,),
    ),
    "what a journal of another boot speaks of has gone: the destination's": (
        (
            alpha(source(S.AWAY, **SHARED), held(OWN)),
            beta(destination(R.GO, boot_id="older", qemu_here=False)),
        ),
        NOTHING,
        (Ends.UNKNOWN, ANYWAY),
    ),
    "another QEMU in the place of the job's, and it does not run": (
        (alpha(source(R.AWAY, qemu_here=False), STRAY), beta()),
        NOTHING,
        (Ends.UNKNOWN, ""),
    ),
    "it runs, nothing is left": ((alpha(RUNS), beta()), NOTHING, (Ends.RUNS, "")),
    "it runs, and a host is silent": ((alpha(RUNS), silent("beta")), NOTHING, (Ends.LEFT, "")),
    "somebody has paused it": (
        (alpha(replace(RUNS, state=RunState.PAUSED)), beta()),
        NOTHING,
        (Ends.STANDS, ""),
    ),
    "what is left is removed": (
        (alpha(RUNS, left=(Thing(Kind.JOB, JOB, Serves.REMOVABLE, "it is over"),)), beta()),
        NOTHING,
        (Clean("alpha"),),
    ),
    "it has ended": ((alpha(ended=(RESTORED,)), beta()), NOTHING, (Ends.ENDED, "")),
    "nobody knows it": ((alpha(), beta()), NOTHING, (Ends.NOBODY, "qmigrate list")),
    "a monitor that does not answer": (
        (alpha(replace(RUNS, state=None, problem="it hangs")), beta()),
        NOTHING,
        (Ends.UNKNOWN, "look at process 101"),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_one_safe_thing(name: str) -> None:
    hosts, vouched, expected = TABLE[name]
    verdict = decide(evidence(*hosts), vouched)
    if isinstance(expected[0], Ends):
        ends, step = expected
        assert (verdict.acts, verdict.ends) == ((), ends), verdict
        assert str(step) in (verdict.next_step or ""), verdict
    else:
        assert verdict.acts == expected, verdict
    assert verdict.words


def test_a_third_that_has_locked_the_image_is_named() -> None:
    third = ImageSeen(DISK, holders=(ImageHolder(7, "qemu-nbd", locked=True),))
    seen = evidence(alpha(source(S.BACK, **SHARED), held(OWN)), beta(images=(third,)))
    verdict = decide(seen, NOTHING)
    assert (verdict.acts, verdict.ends) == ((), Ends.UNKNOWN)
    assert "process 7 on beta (qemu-nbd) has locked" in verdict.words[0]
    assert "end process 7 on beta" in (verdict.next_step or "")
    own = replace(third, holders=(ImageHolder(100, "qemu-system-x86", locked=True),))
    seen = evidence(alpha(source(S.BACK, **SHARED), held(OWN), images=(own,)), beta())
    assert decide(seen, NOTHING).ends is Ends.GOES_ON


def test_what_was_tried_in_vain_is_not_tried_again() -> None:
    seen = evidence(alpha(source(R.AWAY), OWN), beta(destination(R.PREPARED), TWIN))
    first = decide(seen, NOTHING)
    taken = decide(seen, NOTHING, Tried(frozenset(first.acts), frozenset(first.acts)))
    assert (taken.acts, taken.ends) == ((), Ends.GOES_ON)  # for a while
    again = decide(seen, NOTHING, Tried(frozenset(first.acts)))
    assert (again.acts, again.ends, again.exit_code) == ((), Ends.UNKNOWN, 7)
    assert "was tried" in again.words[-1]


def test_of_two_jobs_the_live_one_is_heard_and_the_old_one_is_ended() -> None:
    old = {"job": "web1-000001", "pid": 7, "qemu_here": False}
    seen = evidence(
        alpha(source(R.PREPARED, **old), source(S.COPYING, linked=True), held(OWN)),
        beta(destination(D.PREPARED, linked=True), held(TWIN)),
    )
    verdict = decide(seen, NOTHING)
    assert verdict.acts == (Forget("alpha", "web1-000001"),)
    verdict = decide(seen, NOTHING, Tried(frozenset(verdict.acts)))
    assert (verdict.acts, verdict.ends) == ((), Ends.UNKNOWN)


@pytest.mark.parametrize(
    ("seen", "vouched", "why"),
    [
        (evidence(alpha(RUNS), beta()), ALPHA_DEAD, "alpha is not dead: it answers"),
        (
            evidence(alpha(source(S.AWAY), OWN), beta()),
            ALPHA_DEAD,
            "alpha is not dead: it answers, and has web1 as process 100",
        ),
        (evidence(alpha(source(S.AWAY), OWN), silent("beta")), BETA_DEAD, None),
        (evidence(alpha(source(S.AWAY), OWN), beta(boot_id="another")), BETA_DEAD, None),
        (
            evidence(alpha(source(S.AWAY), OWN), beta()),
            Vouched(frozenset(("gamma",))),
            "no job of web1 speaks of a host gamma",
        ),
    ],
)
def test_a_host_that_is_seen_to_live_is_not_taken_for_dead(
    seen: Evidence, vouched: Vouched, why: str | None
) -> None:
    found = contradiction(seen, vouched)
    assert found is None if why is None else why in (found or "")
