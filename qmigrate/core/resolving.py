"""Who runs the guest, and the one safe thing to do about it: evidence in, a verdict out. Pure.

Jobs come first, one after the other (`resolving_jobs`): while agents work or can be made to, the
handover's own table decides, and this only sees to it that they hear each other. What no journal
speaks of is judged by what is seen of the copies themselves (`resolving_copies`). What only a
person can know is named, and nothing is done about it until it is said.

A verdict's acts are carried out in order, then all is asked again: whoever resolves at the same
time finds them done, or is refused by the table or a lock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qmigrate.core.belongings import Verdict as Serves
from qmigrate.core.copies import ImageHolder
from qmigrate.core.handover import Destination, Source
from qmigrate.core.resolving_acts import (
    HOST_IS_DEAD,
    Act,
    Clean,
    Ends,
    Opinion,
    named_hosts,
)
from qmigrate.core.resolving_copies import judge_copies
from qmigrate.core.resolving_jobs import judge_job
from qmigrate.core.testimony import (
    Evidence,
    JobSeen,
    Placed,
    Vouched,
    believed,
    copies_of,
    garbled_jobs,
    jobs_of,
)

EXIT_CODES = {
    Ends.RUNS: 0,
    Ends.STANDS: 0,
    Ends.LEFT: 8,
    Ends.GOES_ON: 7,
    Ends.UNKNOWN: 7,
    Ends.ENDED: 9,
    Ends.NOBODY: 4,
}
_WEIGHT = (
    Ends.UNKNOWN,
    Ends.GOES_ON,
    Ends.ENDED,
    Ends.NOBODY,
    Ends.LEFT,
    Ends.STANDS,
    Ends.RUNS,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What there is to say, and to do."""

    ends: Ends
    words: tuple[str, ...]  # what it means; what was seen is `telling.tell`'s
    acts: tuple[Act, ...] = ()
    next_step: str | None = None
    host: str | None = None  # that runs the guest
    job: str | None = None  # that is still under way

    @property
    def exit_code(self) -> int:
        """As DESIGN §6 counts, if nothing more is done."""
        return EXIT_CODES[self.ends]


@dataclass(frozen=True, slots=True)
class Tried:
    """What was done already; none of it is asked for again."""

    acts: frozenset[Act] = frozenset()
    taken: frozenset[Act] = frozenset()  # those of them that were not refused, a moment ago

    def left(self, opinion: Opinion) -> Opinion:
        """Return an opinion without what was tried; what is left, if that was all of it."""
        acts = tuple(act for act in opinion.acts if act not in self.acts)
        if acts or not opinion.acts:
            return replace(opinion, acts=acts)
        if self.taken.issuperset(opinion.acts):
            says = (*opinion.says, "it was set going, and has not shown yet")
            return replace(opinion, acts=(), says=says, ends=Ends.GOES_ON)
        says = (*opinion.says, "what could be done was tried, and has not settled it")
        return replace(opinion, acts=(), says=says, ends=Ends.UNKNOWN)


NOTHING = Tried()


def decide(evidence: Evidence, vouched: Vouched, tried: Tried = NOTHING) -> Verdict:
    """Return what is known, and the one safe thing to do now."""
    evidence, vouched = believed(evidence), _as_asked(evidence, vouched)
    running = tuple(p for p in copies_of(evidence) if p.copy.runs)
    if len(running) > 1:
        return _runs_twice(evidence, running)
    opinions: list[Opinion] = []
    for job in jobs_of(evidence):
        opinion = tried.left(judge_job(job, copies_of(evidence), vouched))
        opinion = _held_up(replace(opinion, job=job.job), job, evidence)
        if opinion.acts:
            return _verdict(opinion, evidence)
        opinions.append(opinion)
    opinions += [
        Opinion(
            (f"{host}: the journal of job {bare.job} cannot be read",),
            Ends.LEFT,
            next_step=f"look at /run/qmigrate/jobs/{bare.job} on {host}",
        )
        for host, bare in garbled_jobs(evidence)
    ]
    if all(o.ends in (None, Ends.LEFT) for o in opinions):
        opinions.append(tried.left(judge_copies(evidence, vouched)))
    return _joined(opinions, evidence, tried)


def _held_up(opinion: Opinion, job: JobSeen, evidence: Evidence) -> Opinion:
    """Return the opinion of a job that waits for an image which a third has locked."""
    waits = job.source.state == Source.BACK or job.destination.state in _TO_RUN
    thirds = third_parties(evidence)
    if opinion.ends is not Ends.GOES_ON or not waits or not thirds:
        return opinion
    host, holder = thirds[0]
    step = f"end process {holder.pid} on {host}, or wait for it; the guest then runs by itself"
    return replace(opinion, says=_locked(thirds), ends=Ends.UNKNOWN, next_step=step)


_TO_RUN = (Destination.GO, Destination.GO_AGAIN)


def third_parties(evidence: Evidence) -> tuple[tuple[str, ImageHolder], ...]:
    """Return who has locked an image of the guest and is no QEMU of it, by host."""
    copies = {(p.host, p.copy.pid) for p in copies_of(evidence)}
    return tuple(
        (host.host, holder)
        for host in evidence.hosts
        for image in host.images
        for holder in image.holders
        if holder.locked and (host.host, holder.pid) not in copies
    )


def _locked(thirds: Sequence[tuple[str, ImageHolder]]) -> tuple[str, ...]:
    who = dict.fromkeys(f"process {holder.pid} on {h} ({holder.command})" for h, holder in thirds)
    why = "has locked the guest's image: until it lets go the guest cannot run"
    return tuple(f"{each} {why}" for each in who)


def _as_asked(evidence: Evidence, vouched: Vouched) -> Vouched:
    """Return the same with hosts called as they were asked."""
    seen = {name: evidence.host(name) for name in vouched.dead}
    return replace(vouched, dead=frozenset(h.host if h else name for name, h in seen.items()))


def _joined(opinions: Sequence[Opinion], evidence: Evidence, tried: Tried) -> Verdict:
    """Return the weightiest opinion with what all others say, and what may be tidied up."""
    spoken = [o for o in opinions if o.ends is not None]
    found = min(spoken, key=lambda o: _WEIGHT.index(o.ends or Ends.RUNS))
    says = dict.fromkeys(word for o in opinions for word in o.says)
    host = found.host or next((o.host for o in spoken if o.host), None)
    step = found.next_step or next((o.next_step for o in spoken if o.next_step), None)
    if found.ends is Ends.UNKNOWN:
        says |= dict.fromkeys(_locked(third_parties(evidence)))
    verdict = _verdict(replace(found, says=tuple(says), host=host, next_step=step), evidence)
    if verdict.acts or verdict.ends in (Ends.UNKNOWN, Ends.GOES_ON):
        return verdict
    return _tidy(verdict, evidence, tried)


def _tidy(verdict: Verdict, evidence: Evidence, tried: Tried) -> Verdict:
    """Add what is left of the guest's jobs and serves nobody."""
    removable = tuple(
        Clean(h.host) for h in evidence.hosts if any(t.verdict is Serves.REMOVABLE for t in h.left)
    )
    acts = tuple(act for act in removable if act not in tried.acts)
    if acts:
        return replace(verdict, acts=acts)
    stays = [f"{h.host}: {t.kind} {t.name}: {t.why}" for h in evidence.hosts for t in h.left]
    if not stays or verdict.ends not in (Ends.RUNS, Ends.STANDS):
        return replace(verdict, words=(*verdict.words, *stays))
    step = verdict.next_step or f"qmigrate cleanup {stays[0].partition(':')[0]}"
    return replace(verdict, ends=Ends.LEFT, words=(*verdict.words, *stays), next_step=step)


def _verdict(opinion: Opinion, evidence: Evidence) -> Verdict:
    step = opinion.next_step
    if opinion.asks:
        step = f"qmigrate resolve {evidence.guest} {' '.join(opinion.asks)}"
    ends = opinion.ends or Ends.UNKNOWN
    return Verdict(ends, opinion.says, opinion.acts, step, opinion.host, opinion.job)


def _runs_twice(evidence: Evidence, running: Sequence[Placed]) -> Verdict:
    """Say that a person has to choose: both have changed since they were one."""
    where = " and ".join(f"on {p.host} (process {p.copy.pid})" for p in running)
    disks = sorted({disk for p in running for disk in p.copy.disks})
    words = [
        f"{evidence.guest} RUNS TWICE: {where}",
        "which of them is to be kept only you can know: each has what happened since on its own",
    ]
    if disks:
        words.append(f"both write to {', '.join(disks)}: stop one of them at once")
    first = running[0]
    return Verdict(
        Ends.UNKNOWN,
        tuple(words),
        next_step=f"end the one that is not to be kept, e.g. on {first.host}: kill "
        f"{first.copy.pid}; then: qmigrate resolve {evidence.guest}",
    )


def contradiction(evidence: Evidence, vouched: Vouched) -> str | None:
    """Return why what a person vouches for cannot be so; None if nothing speaks against it."""
    for name in sorted(vouched.dead):
        seen = evidence.host(name)
        if seen is None and name not in named_hosts(jobs_of(evidence)):
            return f"no job of {evidence.guest} speaks of a host {name}"
        if seen is None or seen.silent:
            continue
        if seen.copies:
            pids = _list(str(c.pid) for c in seen.copies)
            return f"{name} is not dead: it answers, and has {evidence.guest} as process {pids}"
        if any(job.qemu_here for job in seen.jobs):
            return f"{name} is not dead: it answers, and the QEMU of a job is there"
    return None


def _list(words: Iterable[str]) -> str:
    return " and ".join(words)


def asks_for(host: str) -> str:
    """Return the option by which a host is vouched to be dead."""
    return f"{HOST_IS_DEAD} {host}"
