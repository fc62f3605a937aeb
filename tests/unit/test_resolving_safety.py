"""Whatever two hosts may say of a job, nothing is done that could double or lose a guest.

Every side of a job is put beside every other: all standings, records and states, with and without
copies, disks, reboots, reports and what a person vouches for. What may not be is said here in other
words than the rules are made of.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from qmigrate.core.belongings import BareJob
from qmigrate.core.copies import CopySeen
from qmigrate.core.handover import Destination, Record, Source, Word
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.job import Outcome
from qmigrate.core.model import RunState, Side
from qmigrate.core.resolving import Tried, contradiction, decide
from qmigrate.core.resolving_acts import (
    Act,
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
SOURCE_RECORDS = (R.PREPARED, R.SWITCHING, R.AWAY, R.PROVED, R.BACK, R.RESTORED, R.ENDED, R.DONE)
DESTINATION_RECORDS = (R.PREPARED, R.GO, R.RUNNING, R.REFUSED, R.RETURNED, R.DONE)
VOUCHED = [
    Vouched(),
    Vouched(resume_source=True),
    Vouched(frozenset(("alpha",))),
    Vouched(frozenset(("beta",))),
    Vouched(frozenset(("beta",)), resume_source=True),
]
WITH_GUEST = {
    Side.SOURCE: (S.STRAYED, S.PREPARED, S.COPYING),
    Side.DESTINATION: (D.RUNNING,),
}
STOOD = tuple(replace(OWN, state=state) for state in (RunState.PAUSED, RunState.RUNNING))


def _sides(sides: list[JobOnHost], own: CopySeen) -> Iterator[tuple[JobOnHost | CopySeen, ...]]:
    """Yield each side with its copy, and without."""
    for side in sides:
        yield side, held(own) if side.worked_at else own
        yield (replace(side, qemu_here=False),)


def _alphas() -> Iterator[HostSeen]:
    yield silent("alpha")
    yield alpha(bare=(BareJob(JOB, garbled=True, guest="web1"),))
    for boot, copies, report in itertools.product(
        ("boot-alpha", "another"), ((), (STRAY,), (RUNS,), (replace(RUNS, state=None),)), (0, 1, 2)
    ):
        kept = (EndedJob(JOB, (Outcome.ROLLED_BACK, Outcome.MIGRATED)[report - 1], 9.0),)
        yield alpha(*copies, boot_id=boot, ended=kept if report else ())
    sides = [source(record) for record in SOURCE_RECORDS]
    sides += [source(record, worked_at=True) for record in SOURCE_RECORDS]
    sides += [source(state, linked=linked) for state in S for linked in (False, True)]
    for seen in _sides(sides, OWN):
        yield alpha(*seen)
    for copy in STOOD:
        yield alpha(source(R.PREPARED), copy)
        yield alpha(source(R.AWAY), copy)
        yield alpha(source(R.AWAY, qemu_here=False), replace(copy, pid=101))


def _betas() -> Iterator[HostSeen]:
    yield silent("beta")
    yield beta(bare=(BareJob(JOB, garbled=True, guest="web1"),))
    for boot, copies in itertools.product(
        ("boot-beta", "another"),
        ((), (STRAY_TWIN,), (TWIN_WROTE,), (TWIN_RUNS,), (INCOMING,), (RUNS,)),
    ):
        yield beta(*copies, boot_id=boot)
    sides = [destination(record) for record in DESTINATION_RECORDS]
    sides += [destination(record, worked_at=True) for record in DESTINATION_RECORDS]
    sides += [destination(state, linked=linked) for state in D for linked in (False, True)]
    for number, seen in enumerate(_sides(sides, TWIN)):
        yield beta(*seen)
        if number % 3 == 0:
            yield beta(*seen, TWIN_RUNS)


def _with_disk(host: HostSeen) -> HostSeen:
    return replace(host, jobs=tuple(replace(job, disks=(DISK,)) for job in host.jobs))


class Oracle:
    """What must be so for an act to be harmless, read off the evidence alone."""

    def __init__(self, seen: Evidence, vouched: Vouched) -> None:
        self.seen = seen
        self.vouched = vouched
        self.alpha, self.beta = seen.hosts
        self.ended: set[int] = set()
        self.refused = False

    def running(self) -> set[int]:
        """Return who runs: seen, or said by the live agent that holds its monitor."""
        found = {c.pid for h in self.seen.hosts for c in h.copies if c.runs}
        for host in self.seen.hosts:
            pids = {c.pid for c in host.copies}
            for job in host.jobs:
                if job.worked_at and job.state in WITH_GUEST[job.side] and job.pid in pids:
                    found.add(job.pid or 0)
        return found - self.ended

    def may_run(self, host: HostSeen) -> bool:
        """Say whether a copy may run there, or come to, for all that is known."""
        if host.silent:
            return host.host not in self.vouched.dead
        copies = {c.pid: c for c in host.copies if c.pid not in self.ended}
        states = {job.state for job in host.jobs if job.pid in copies and job.worked_at}
        if self.refused:
            states -= {D.PREPARED}
        about_to = {D.PREPARED, D.DECIDING, D.GO, D.GO_AGAIN, D.RUNNING}
        journals = {R.GO, R.RUNNING}
        dormant = any(j.record in journals and j.pid in copies for j in host.jobs)
        return bool(set(copies) & self.running() or states & about_to or dormant)

    def shares(self) -> bool:
        return any(job.disks for host in self.seen.hosts for job in host.jobs)

    def check(self, act: Act) -> None:
        match act:
            case Tell(side=Side.SOURCE, word=Word.NO_RECORD):
                assert not self.beta.silent
                assert not self.beta.jobs
                assert not any(b.garbled for b in self.beta.bare)
            case Tell(side=Side.SOURCE, word=Word.RUN_HERE):
                self.check_source_resumed(act)
            case Tell(side=Side.DESTINATION, word=Word.RUN_HERE):
                assert not self.alpha.copies, "the source has a copy"
                known = not self.alpha.silent and not self.alpha.bare
                assert known or "alpha" in self.vouched.dead
                assert "alpha" in self.vouched.dead or not self.shares()
            case Tell(side=Side.DESTINATION, word=Word.REFUSE):
                self.check_refused()
                self.refused = True
            case Tell(side=Side.DESTINATION, word=Word.PEER_IS_DEAD):
                [job] = [job for job in self.beta.jobs if job.job == JOB]
                assert job.state != D.PREPARED
                assert not self.alpha.silent or "alpha" in self.vouched.dead
            case EndCopy():
                self.check_ended(act)
                self.ended.add(act.pid)
            case ReturnGuest():
                assert not self.running()
                others = {c.pid for h in self.seen.hosts for c in h.copies} - {act.pid}
                assert not (others - self.ended - {200}), "another copy stands there"
                assert not any(self.may_run(h) for h in self.seen.hosts)
            case Forget():
                jobs = [j for h in self.seen.hosts if h.host == act.host for j in h.jobs]
                [job] = [job for job in jobs if job.job == act.job]
                assert not job.qemu_here or job.pid in self.ended
                assert self.running(), "forgotten, and nobody runs"
            case Revive():
                for side, host in act.dead:
                    [seen] = [h for h in self.seen.hosts if h.host == host]
                    [job] = [job for job in seen.jobs if job.job == JOB]
                    assert (job.side, job.state) == (side, None)
                    assert job.qemu_here or all(c.pid in (100, 200) for c in seen.copies)
            case Clean():
                pytest.fail("there was nothing to be removed")
            case _:
                pass  # to carry what agents say is never wrong

    def check_source_resumed(self, act: Tell) -> None:
        [job] = [job for job in self.alpha.jobs if job.job == JOB]
        assert not self.may_run(self.beta), "the destination may run it"
        assert not self.running() - {100}, "another runs"
        here = job.qemu_here and job.state != S.MISSED  # which resumes nothing
        already = job.state == S.STRAYED
        unknown = self.shares() and here and not already and not self.vouched.resume_source
        if unknown:  # the twin that was ended before was seen never to have written
            assert self.ended, "old memory on newer disks"

    def check_refused(self) -> None:
        assert not self.alpha.silent
        [job] = [job for job in self.beta.jobs if job.job == JOB]
        assert job.state == D.PREPARED
        here = {c.pid for c in self.alpha.copies}
        stayed = any(e.outcome is Outcome.ROLLED_BACK for e in self.alpha.ended)
        stands = bool(here) and self.vouched.resume_source
        assert self.running() - {200} or stayed or stands

    def check_ended(self, act: EndCopy) -> None:
        copies = {c.pid: c for h in self.seen.hosts for c in h.copies}
        copy = copies[act.pid]
        assert act.pid not in self.running()
        left = [c for pid, c in copies.items() if pid not in self.ended and pid != act.pid]
        whole = [c for c in left if c.pid in self.running() or c.stands_sent or c.pid == 100]
        assert whole, "it may be the last copy"
        blank = copy.twin and copy.wrote is not True
        sent = copy.stands_sent or act.pid == 100
        assert blank or sent or self.vouched.resume_source or not self.shares()


def _cases() -> Iterator[tuple[Evidence, Vouched]]:
    for one, two in itertools.product(list(_alphas()), list(_betas())):
        for seen in (evidence(one, two), evidence(_with_disk(one), _with_disk(two))):
            for vouched in VOUCHED:
                if contradiction(seen, vouched) is None:
                    yield seen, vouched


def test_nothing_is_done_that_could_double_or_lose_a_guest() -> None:
    ends: Counter[Ends] = Counter()
    acts: Counter[str] = Counter()
    for seen, vouched in _cases():
        verdict = decide(seen, vouched)
        ends[verdict.ends] += 1
        assert verdict.words, (seen, vouched)
        oracle = Oracle(seen, vouched)
        for act in verdict.acts:
            acts[type(act).__name__] += 1
            try:
                oracle.check(act)
            except (AssertionError, ValueError) as exc:
                pytest.fail(f"{exc}\n{seen.hosts[0]}\n{seen.hosts[1]}\n{vouched}\n{verdict}")
        if verdict.ends is Ends.UNKNOWN and not verdict.acts:
            told = " ".join(verdict.words)
            assert verdict.next_step or "know" in told or "may" in told, (seen, verdict)
    print(sum(ends.values()), "situations:", dict(ends), dict(acts))
    assert set(ends) >= {Ends.UNKNOWN, Ends.GOES_ON, Ends.LEFT, Ends.RUNS, Ends.ENDED}
    assert set(acts) == {"Tell", "Revive", "Carry", "EndCopy", "ReturnGuest", "Forget"}


def test_acting_comes_to_an_end() -> None:
    """What was tried and changed nothing is followed by something else, and then by words."""
    for seen, vouched in itertools.islice(_cases(), 0, None, 17):
        tried: frozenset[Act] = frozenset()
        for _ in range(8):
            verdict = decide(seen, vouched, Tried(tried))
            if not verdict.acts:
                break
            tried |= frozenset(verdict.acts)
        else:
            pytest.fail(f"it never ends: {seen}")
