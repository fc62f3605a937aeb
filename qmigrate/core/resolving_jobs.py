"""What is to be done about one job of a guest, by how much of either side is there. Pure.

::

                      destination able          knows nothing          silent, or not to be read
    source able       revive, carry; the        `no-record`; after     wait; after GO a person
                      table decides             GO: what is seen       vouches
    knows nothing     the copy there may be the last
    silent            the same, and a person vouches

Able: an agent works there, or can be started again from a journal of this boot. Words are said on
what docs/handover.md asks of each: it is seen here, or a person answers for it.
"""

from collections.abc import Sequence

from qmigrate.core.handover import OVER, Destination, Record, Source, Word
from qmigrate.core.resolving_acts import Carry, Ends, Forget, Opinion, ReturnGuest, Revive, Tell
from qmigrate.core.resolving_case import (
    ENDS_BY_ITSELF,
    NEVER_TO_RUN,
    Case,
    at,
    do,
    end_copy,
    goes_on,
    is_harmless,
    is_leaving,
    is_starting,
    resume,
    run_there,
    runs_there,
    stays_unknown,
    usurped,
    usurped_says,
)
from qmigrate.core.resolving_destination import destination_alone
from qmigrate.core.resolving_source import source_alone
from qmigrate.core.testimony import End, JobSeen, Placed, Standing, Vouched

S, D, R = Source, Destination, Record


def judge_job(job: JobSeen, copies: Sequence[Placed], vouched: Vouched) -> Opinion:
    """Return what is to be done about a job, given all copies of the guest that were seen."""
    opinion = _judge(Case(job, vouched), copies)
    elsewhere = _elsewhere(job, copies)
    lets_run = any(
        isinstance(act, ReturnGuest) or (isinstance(act, Tell) and act.word is Word.RUN_HERE)
        for act in opinion.acts
    )
    if lets_run and elsewhere:
        runs = elsewhere[0]
        return stays_unknown(
            f"{opinion.says[0]}; yet {runs.host} runs the guest as process {runs.copy.pid}, of "
            "which the job knows nothing: which is to be kept only you can know"
        )
    return opinion


def _elsewhere(job: JobSeen, copies: Sequence[Placed]) -> list[Placed]:
    """Return the copies that run and are neither side's."""
    own = (job.source.copy, job.destination.copy)
    return [p for p in copies if p.copy.runs and p.copy not in own]


def _judge(case: Case, copies: Sequence[Placed]) -> Opinion:
    job = case.job
    elsewhere = _elsewhere(job, copies)
    if elsewhere and job.source.gone and not runs_there(job.destination):
        return _stale(case, elsewhere[0])
    if job.source.able and job.destination.able:
        return _both(case)
    if job.linked:  # an agent lives whose journal was removed under it: it needs none to go on
        return goes_on(case, job.source if job.source.live else job.destination)
    if job.source.able:
        return source_alone(case)
    if job.destination.able:
        return destination_alone(case)
    return Opinion((f"job {job.job}: what its journals say is of another boot",))


# A guest that has long been elsewhere


def _stale(case: Case, runs: Placed) -> Opinion:
    """Put an end to a job whose guest is seen to run in a QEMU of which it knows nothing."""
    job, d = case.job, case.destination
    says = f"job {job.job} is over: {runs.host} runs the guest, in a process that is not the job's"
    if (d.state == D.PREPARED or d.standing is Standing.HELD) and is_starting(case):
        return goes_on(case, d)
    if is_leaving(d):
        return goes_on(case, d)
    if is_leaving(case.source):
        return goes_on(case, case.source)
    if d.live:
        if d.state == D.PREPARED:
            return do(says, case.tell(d, Word.REFUSE))
        if d.state in (D.REFUSED, D.RETURNED, D.LOST, D.RUNNING):
            return do(says, case.tell(d, Word.PEER_IS_DEAD))
        return goes_on(case, d)
    if d.able:
        if d.copy is None:
            return do(says, Forget(d.host or "", job.job))
        if d.record in (R.PREPARED, *NEVER_TO_RUN) and is_harmless(d.copy):
            return do(says, end_copy(d.host, d.copy), Forget(d.host or "", job.job))
        what = f"{says}; the copy that it made on {d.host} stands still, and may have run"
        return stays_unknown(what)
    s = case.source
    if s.live and s.state in ENDS_BY_ITSELF:
        return goes_on(case, s)
    if s.able:
        return do(says, Forget(s.host or "", job.job))
    return Opinion()


# Both sides


def _both(case: Case) -> Opinion:
    job, s, d = case.job, case.source, case.destination
    dead = tuple(end for end in (s, d) if not end.live)
    if not dead:
        return _both_live(case)
    if job.linked or any(map(is_leaving, dead)):
        return goes_on(case, s if s.live else d)
    if len(dead) == 2 and s.standing is d.standing is Standing.LEFT:
        taken = d.record in (*NEVER_TO_RUN, R.DONE) or (d.record, s.record) == (R.RUNNING, R.DONE)
        if s.record in OVER and taken:
            return Opinion()  # it is cleaned up
    for end in dead:
        if usurped(end):
            return usurped_says(case, end)
    living = next((at(end) for end in (s, d) if end.live), None)
    return do(
        "nobody works at the job any more" if living is None else f"{_hosts(dead)} has no agent",
        Revive(job.job, tuple((e.side, e.host or "") for e in dead), living),
    )


def _hosts(ends: Sequence[End]) -> str:
    return " and ".join(end.host or "?" for end in ends)


def _both_live(case: Case) -> Opinion:
    job, s, d = case.job, case.source, case.destination
    if s.state == S.STRAYED and runs_there(d):
        says = f"somebody let the copy on {s.host} run after {d.host} was told to: it may RUN TWICE"
        return Opinion(
            (says,),
            Ends.UNKNOWN,
            next_step="end the one that is not to be kept, then resolve again",
        )
    if d.state == D.LOST and s.state in (S.AWAY, S.LEFT, S.STRAYED, S.MISSED):
        says = f"it was run on {d.host}, and its QEMU there has died since"
        return resume(case, says, free=s.gone or s.state in (S.STRAYED, S.MISSED))
    carry = Carry(job.job, s.host or "", d.host or "")
    if s.state == S.MISSED and s.gone and d.state == D.PREPARED:
        says = (
            f"QEMU on {s.host} ended in the switchover, and whether it had run on before nobody "
            f"saw; {d.host} has a copy that never ran"
        )
        return run_there(case, says, free=not job.shares_disk)
    if not job.linked:
        return do("the two agents have no link", carry)
    return goes_on(case, s)
