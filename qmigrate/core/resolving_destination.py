"""What is to be done about a job of which only the destination's side is there. Pure."""

from typing import Any

from qmigrate.core.handover import Destination, Record, Word
from qmigrate.core.job import Outcome
from qmigrate.core.model import RUNS, RunState
from qmigrate.core.resolving_acts import HOST_IS_DEAD, RESUME_SOURCE, Ends, Opinion, Revive
from qmigrate.core.resolving_case import (
    NEVER_TO_RUN,
    Case,
    at,
    do,
    end_copy,
    goes_on,
    is_harmless,
    is_leaving,
    return_guest,
    run_there,
    stays_unknown,
    usurped,
    usurped_says,
)
from qmigrate.core.testimony import Standing

D, R = Destination, Record

_IT_STAYED = (Outcome.ROLLED_BACK, Outcome.CANCELLED, Outcome.GUEST_ENDED, Outcome.REFUSED)


def destination_alone(case: Case) -> Opinion:
    """Return what is to be done where the source's host knows nothing of the job, or is silent."""
    d = case.destination
    if is_leaving(d):
        return goes_on(case, d)
    decided = d.record in (*NEVER_TO_RUN, R.DONE) and d.standing is Standing.LEFT
    if not d.live and not decided:
        if usurped(d):
            return usurped_says(case, d)
        return do(f"nobody works at the job on {d.host}", Revive(case.job.job, (at(d),)))
    state: Any = d.state or d.record
    match state:
        case D.RUNNING:
            return _runs_at_destination(case)
        case D.PREPARED:
            return _waits_at_destination(case)
        case D.REFUSED | D.RETURNED:
            return _refused_at_destination(case)
        case D.LOST:
            return _lost_at_destination(case)
        case _:
            return goes_on(case, d) if d.live else Opinion()


def _runs_at_destination(case: Case) -> Opinion:
    """It runs there; what waits for the source's word can go."""
    s, d = case.source, case.destination
    says = f"it runs on {d.host}"
    if s.standing is Standing.NOTHING:
        if not s.strays:
            what = f"{says}; {s.host} has neither copy nor journal any more"
            return do(what, case.tell(d, Word.PEER_IS_DEAD))
        copy = s.strays[0]
        if (copy.stands_sent or is_harmless(copy)) and d.copy is not None:
            what = f"{says}; the copy on {s.host} is what it was before it moved"
            return do(what, end_copy(s.host, copy))
        if copy.stands_sent:
            what = f"it ran on {d.host} and has ended there; {s.host} has the copy from before"
            if case.vouched.resume_source:
                return do(what, return_guest(s.host, copy))
            return stays_unknown(what, RESUME_SOURCE)
        what = f"{says}; what the copy on {s.host} is (process {copy.pid}) only you can know"
        return stays_unknown(what)
    if case.dead(s):
        return do(f"{says}; {s.host} is dead", case.tell(d, Word.PEER_IS_DEAD))
    return Opinion(
        (f"{says}; {s.host} cannot be asked, and may still have the copy that it was",),
        Ends.LEFT,
        asks=(f"{HOST_IS_DEAD} {s.host}",),
        host=d.host,
    )


def _waits_at_destination(case: Case) -> Opinion:
    """A copy that never ran waits for a GO that may never come."""
    s, d = case.source, case.destination
    says = f"{d.host} holds a copy that never ran"
    if s.standing is not Standing.NOTHING:
        return run_there(case, f"{says}; {s.host} cannot be asked")
    if any(copy.runs for copy in s.others):
        return do(f"{says}; it runs on {s.host}", case.tell(d, Word.REFUSE))
    if s.report in _IT_STAYED:
        what = f"{says}; the job is over on {s.host}: {s.report}"
        return do(what, case.tell(d, Word.REFUSE))
    if not s.strays:
        if s.rebooted:
            what = f"{says}; {s.host} was rebooted, and its copy has gone"
            return run_there(case, what, free=not case.job.shares_disk)
        return run_there(case, f"{says}; {s.host} has neither copy nor journal")
    copy = s.strays[0]
    says += f"; {s.host} has one without a journal (process {copy.pid})"
    if copy.stands_sent:
        if case.vouched.resume_source:
            return do(says, case.tell(d, Word.REFUSE), return_guest(s.host, copy))
        return stays_unknown(
            f"{says}, which stands still; whether it ran before nobody has written down",
            RESUME_SOURCE,
        )
    if copy.state is not None and copy.migration != "completed":
        return do(f"{says}, which never left", case.tell(d, Word.REFUSE))
    return stays_unknown(f"{says}, which stands still, and may have run since")


def _refused_at_destination(case: Case) -> Opinion:
    """It will never run there: the right is at the source, if that still has it."""
    s, d = case.source, case.destination
    says = f"{d.host} has refused it for good"
    if s.standing is not Standing.NOTHING and not case.dead(s):
        return stays_unknown(
            f"{says}: the guest is on {s.host}, which cannot be asked", f"{HOST_IS_DEAD} {s.host}"
        )
    copy = next((copy for copy in s.strays if copy.stands_sent), None)
    if copy is not None and not any(other.runs for other in s.others):
        says += f"; the copy on {s.host} stands still, and no journal there knows of it"
        had = d.job.had if d.job else RunState.UNKNOWN
        if had in RUNS or case.vouched.resume_source:
            return do(says, return_guest(s.host, copy))
        return stays_unknown(f"{says}, nor whether it ran before", RESUME_SOURCE)
    return do(says, case.tell(d, Word.PEER_IS_DEAD)) if d.live else Opinion((says,))


def _lost_at_destination(case: Case) -> Opinion:
    """It was run there, and its QEMU has died."""
    s, d = case.source, case.destination
    says = f"it was run on {d.host}, and its QEMU there has died since"
    if s.standing is not Standing.NOTHING and not case.dead(s):
        return stays_unknown(f"{says}; {s.host} cannot be asked", f"{HOST_IS_DEAD} {s.host}")
    copy = next((copy for copy in s.strays if copy.stands_sent), None)
    if copy is None or any(other.runs for other in s.others):
        return do(says, case.tell(d, Word.PEER_IS_DEAD))
    says += f"; {s.host} has the copy that it was before"
    if case.resumable:
        return do(says, return_guest(s.host, copy))
    return stays_unknown(f"{says}, older than the disks", RESUME_SOURCE)
