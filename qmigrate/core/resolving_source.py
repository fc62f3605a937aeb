"""What is to be done about a job of which only the source's side is there. Pure."""

from qmigrate.core.copies import CopySeen
from qmigrate.core.handover import OVER, Source, Word
from qmigrate.core.resolving_acts import HOST_IS_DEAD, RESUME_SOURCE, Opinion, Revive
from qmigrate.core.resolving_case import (
    Case,
    at,
    do,
    end_copy,
    goes_on,
    is_harmless,
    is_leaving,
    resume,
    return_guest,
    stays_unknown,
    usurped,
    usurped_says,
)
from qmigrate.core.testimony import Standing

S = Source


def source_alone(case: Case) -> Opinion:
    """Return what is to be done where the destination's host knows nothing, or is silent."""
    s, d = case.source, case.destination
    if is_leaving(s):
        return goes_on(case, s)
    if not s.live:
        if s.record in OVER and s.standing is Standing.LEFT:
            return Opinion()
        if usurped(s):
            return usurped_says(case, s)
        return do(f"nobody works at the job on {s.host}", Revive(case.job.job, (at(s),)))
    silent = d.standing is not Standing.NOTHING
    runner = next((copy for copy in d.others if copy.runs), None)
    if s.state == S.LEFT and not silent and runner is None:
        return do(f"{d.host} knows nothing of the job", case.tell(s, Word.NO_RECORD))
    if s.state in (S.AWAY, S.MISSED, S.STRAYED):
        return _silent(case) if silent else _unknown_there(case, runner)
    return goes_on(case, s)


def _silent(case: Case) -> Opinion:
    """The destination may have taken GO, and cannot be asked."""
    s, d = case.source, case.destination
    says = f"{d.host} cannot be asked, and may have run the guest"
    needs_more = s.state == S.AWAY and not s.gone and not case.resumable
    if case.dead(d) and not needs_more:
        return do(f"{d.host} is dead", case.tell(s, Word.RUN_HERE))
    asks = [f"{HOST_IS_DEAD} {d.host}"]
    if needs_more or (s.state == S.AWAY and not s.gone and case.job.shares_disk):
        asks.append(RESUME_SOURCE)
        says += f", and written to disks that {s.host} shares with it"
    return stays_unknown(f"{says}: nothing is done", *asks)


def _unknown_there(case: Case, runner: CopySeen | None) -> Opinion:
    """The destination answers and has no journal: it was rebooted, or the journal is lost."""
    s, d = case.source, case.destination
    says = f"{d.host} has no journal of the job" + (", it was rebooted" if d.rebooted else "")
    if s.gone and s.others:
        return usurped_says(case, s)
    if runner is not None:
        if runner.loaded and s.copy is not None and s.state == S.AWAY:
            says += f"; yet it runs the guest, with all that {s.host} had sent"
            return do(says, end_copy(s.host, s.copy))
        pid = runner.pid
        return stays_unknown(
            f"{says}; yet a QEMU of the guest runs there (process {pid}): whose it is, and "
            "which is to be kept, only you can know"
        )
    standing = d.strays[0] if d.strays else None
    if standing is None:
        return resume(case, says, free=s.gone or s.state in (S.STRAYED, S.MISSED))
    says += f"; a copy stands still there (process {standing.pid})"
    if s.gone:
        return _last_copy(case, d.host, standing, says)
    wanted = case.vouched.resume_source
    if is_harmless(standing) or wanted or not case.job.shares_disk:
        act = end_copy(d.host, standing, vouched=wanted or not is_harmless(standing))
        return do(f"{says}; {s.host} has it whole", act, case.tell(s, Word.RUN_HERE))
    return stays_unknown(f"{says}, and may have run and written", RESUME_SOURCE)


def _last_copy(case: Case, host: str | None, copy: CopySeen, says: str) -> Opinion:
    """A copy that no journal knows, and the other has gone."""
    s = case.source
    if not copy.loaded:
        says += ", which is not whole; nothing else is left of the guest"
        return do(says, case.tell(s, Word.RUN_HERE))  # which ends the job, and runs nothing
    if case.dead(s):
        return do(says, return_guest(host, copy))
    return stays_unknown(f"{says}: it may be the last", f"{HOST_IS_DEAD} {s.host}")
