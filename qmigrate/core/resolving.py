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


def decide(evidence: Evidence, vouched: Vouched, tried: frozenset[Act] = frozenset()) -> Verdict:
    """Return what is known, and the one safe thing to do now.

    `tried`: what was done already and changed nothing; it is not asked for again.
    """
    evidence, vouched = believed(evidence), _as_asked(evidence, vouched)
    running = tuple(p for p in copies_of(evidence) if p.copy.runs)
    if len(running) > 1:
        return _runs_twice(evidence, running)
    opinions: list[Opinion] = []
    for job in jobs_of(evidence):
        opinion = judge_job(job, copies_of(evidence), vouched)
        acts = tuple(act for act in opinion.acts if act not in tried)
        if opinion.acts and not acts:
            opinion = _in_vain(opinion)
        if acts:
            return _verdict(replace(opinion, acts=acts, job=job.job), evidence)
        opinions.append(replace(opinion, job=job.job))
    opinions += [
        Opinion(
            (f"{host}: the journal of job {bare.job} cannot be read",),
            Ends.LEFT,
            next_step=f"look at /run/qmigrate/jobs/{bare.job} on {host}",
        )
        for host, bare in garbled_jobs(evidence)
    ]
    open_ends = [o for o in opinions if o.ends not in (None, Ends.LEFT)]
    if not open_ends:
        opinion = judge_copies(evidence, vouched)
        acts = tuple(act for act in opinion.acts if act not in tried)
        if opinion.acts and not acts:
            opinion = _in_vain(opinion)
        opinions.append(replace(opinion, acts=acts))
    return _joined(opinions, evidence, tried)


def _as_asked(evidence: Evidence, vouched: Vouched) -> Vouched:
    """Return the same with hosts called as they were asked."""
    seen = {name: evidence.host(name) for name in vouched.dead}
    return replace(vouched, dead=frozenset(h.host if h else name for name, h in seen.items()))


def _joined(opinions: Sequence[Opinion], evidence: Evidence, tried: frozenset[Act]) -> Verdict:
    """Return the weightiest opinion with what all others say, and what may be tidied up."""
    spoken = [o for o in opinions if o.ends is not None]
    found = min(spoken, key=lambda o: _WEIGHT.index(o.ends or Ends.RUNS))
    says = dict.fromkeys(word for o in opinions for word in o.says)
    host = found.host or next((o.host for o in spoken if o.host), None)
    step = found.next_step or next((o.next_step for o in spoken if o.next_step), None)
    verdict = _verdict(replace(found, says=tuple(says), host=host, next_step=step), evidence)
    if verdict.acts or verdict.ends in (Ends.UNKNOWN, Ends.GOES_ON):
        return verdict
    return _tidy(verdict, evidence, tried)


def _tidy(verdict: Verdict, evidence: Evidence, tried: frozenset[Act]) -> Verdict:
    """Add what is left of the guest's jobs and serves nobody."""
    removable = tuple(
        Clean(h.host) for h in evidence.hosts if any(t.verdict is Serves.REMOVABLE for t in h.left)
    )
    acts = tuple(act for act in removable if act not in tried)
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


def _in_vain(opinion: Opinion) -> Opinion:
    """Return what is left of an opinion when all that it wanted was tried."""
    says = (*opinion.says, "what could be done was tried, and has not settled it")
    return replace(opinion, acts=(), says=says, ends=Ends.UNKNOWN)


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
