"""One job with what a person vouches for, and the opinions that are held of it. Pure."""

from dataclasses import dataclass

from qmigrate.core.copies import CopySeen
from qmigrate.core.handover import OVER, Destination, Record, Source, Word
from qmigrate.core.model import RunState, Side
from qmigrate.core.resolving_acts import (
    HOST_IS_DEAD,
    RESUME_SOURCE,
    Act,
    EndCopy,
    Ends,
    Opinion,
    ReturnGuest,
    Tell,
)
from qmigrate.core.testimony import NEVER_RAN, End, JobSeen, Standing, Vouched

S, D, R = Source, Destination, Record

NEVER_TO_RUN = (R.REFUSED, R.RETURNED)
# Of a live source without a link: it has a deadline, or needs nobody.
ENDS_BY_ITSELF = frozenset[str](
    (
        *(S.PREPARED, S.COPYING, S.HELD, S.CANCELLING, S.SWITCHING, S.RECALLING),
        *(S.PROVED, S.BACK, S.RESTORED, S.ENDED, S.DONE),
    )
)

# From a destination that is ready to a source that has begun; beyond it there never was one.
STARTING_S = 20.0
# From an agent's last record to its end, in which its door is shut already: it hears its peer out.
LEAVING_S = 15.0


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and what a person has said."""

    job: JobSeen
    vouched: Vouched

    @property
    def source(self) -> End:
        """The side that it left, or was to leave."""
        return self.job.source

    @property
    def destination(self) -> End:
        """The side that it was to come to."""
        return self.job.destination

    @property
    def resumable(self) -> bool:
        """Whether old memory at the source cannot meet newer disks, or is wanted all the same."""
        return not self.job.shares_disk or self.vouched.resume_source

    def dead(self, end: End) -> bool:
        """Whether somebody vouches that an end's host has lost its power."""
        return end.host in self.vouched.dead

    def tell(self, end: End, word: Word) -> Act:
        """Return the act that says a word to an end's agent."""
        return Tell(self.job.job, end.side, end.host or "", word)


def runs_there(end: End) -> bool:
    """Say whether a destination's own copy runs, or is about to."""
    if end.copy is None:
        return False
    return end.copy.runs or end.state in (D.DECIDING, D.GO, D.GO_AGAIN, D.RUNNING)


def usurped(end: End) -> bool:
    """Say whether the guest has another QEMU where this side's has gone.

    An agent started again would clean up what a guest of that id lives on.
    """
    return not end.live and end.gone and bool(end.others)


def is_starting(case: Case) -> bool:
    """Say whether a job's source may be just being begun: its destination is first."""
    s = case.source
    return s.standing is Standing.NOTHING and s.report is None and case.job.age_s < STARTING_S


def is_leaving(end: End) -> bool:
    """Say whether an agent that does not answer has come to its end, and is about to go."""
    decided = end.record in OVER or end.record in NEVER_TO_RUN
    age_s = end.job.age_s if end.job else None
    return end.standing is Standing.HELD and decided and age_s is not None and age_s < LEAVING_S


def stays_unknown(says: str, *asks: str) -> Opinion:
    """Return that nothing is done, and the options by which a person can change that."""
    return Opinion((says,), Ends.UNKNOWN, asks=asks)


def goes_on(case: Case, end: End) -> Opinion:
    """Return that agents see to it, and where to watch them."""
    watch = f"qmigrate watch {case.job.job}@{end.host}"
    return Opinion(
        (f"job {case.job.job} goes on by itself",), Ends.GOES_ON, next_step=watch, job=case.job.job
    )


def do(says: str, *acts: Act) -> Opinion:
    """Return what is to be done, and why."""
    return Opinion((says,), Ends.UNKNOWN, acts=acts)


def at(end: End) -> tuple[Side, str]:
    """Return an end's side and host."""
    return end.side, end.host or ""


def usurped_says(case: Case, end: End) -> Opinion:
    """Return that nothing is done about an end whose place another QEMU has taken."""
    pids = " and ".join(str(copy.pid) for copy in end.others)
    return stays_unknown(
        f"the QEMU that job {case.job.job} knows on {end.host} has ended, and there is another of "
        f"the guest (process {pids}) that does not run: what it is only you can know"
    )


def resume(case: Case, says: str, *, free: bool = False) -> Opinion:
    """Have the guest brought back at the source, if that can do no harm or is wanted."""
    if free or case.resumable:
        return do(says, case.tell(case.source, Word.RUN_HERE))
    says += (
        f": the memory on {case.source.host} may be older than what is on its disks by now, and "
        "a guest that goes on with both can ruin them"
    )
    return stays_unknown(says, RESUME_SOURCE)


def run_there(case: Case, says: str, *, free: bool = False) -> Opinion:
    """Have the destination run its copy, if that can do no harm or a person vouches."""
    s = case.source
    if free or case.dead(s):
        return do(says, case.tell(case.destination, Word.RUN_HERE))
    return stays_unknown(
        f"{says}; it may be run only if what was on {s.host} is gone for good",
        f"{HOST_IS_DEAD} {s.host}",
    )


# Copies


def is_harmless(copy: CopySeen) -> bool:
    """Say whether a twin has left no trace of running: it never did, or has written nothing."""
    if not copy.twin:
        return False
    return copy.state in NEVER_RAN or (copy.state is RunState.PAUSED and copy.wrote is False)


def end_copy(host: str | None, copy: CopySeen, *, vouched: bool = False) -> EndCopy:
    """Return the act that ends a copy."""
    return EndCopy(host or "", copy.pid, copy.start_ticks, vouched)


def return_guest(host: str | None, copy: CopySeen) -> ReturnGuest:
    """Return the act that lets a copy run."""
    return ReturnGuest(host or "", copy.pid, copy.start_ticks)
