"""What is to be done about copies of which no journal speaks, by what is seen of them. Pure."""

from collections.abc import Sequence

from qmigrate.core.handover import Record
from qmigrate.core.job import Outcome
from qmigrate.core.model import RunState, Side
from qmigrate.core.resolving_acts import HOST_IS_DEAD, RESUME_SOURCE, Ends, Opinion
from qmigrate.core.resolving_case import end_copy, is_harmless, return_guest
from qmigrate.core.testimony import Evidence, Placed, Vouched, copies_of

# A guest that somebody has left as it is, or that has come to its own end.
_AS_LEFT = frozenset(RunState) - {
    RunState.INMIGRATE,
    RunState.FINISH_MIGRATE,
    RunState.POSTMIGRATE,
    RunState.UNKNOWN,
}


def judge_copies(evidence: Evidence, vouched: Vouched) -> Opinion:
    """Return what is to be done once no job hangs on anything any more."""
    copies = tuple(p for p in copies_of(evidence) if (p.host, p.copy.pid) not in _refused(evidence))
    silent = tuple(h.host for h in evidence.hosts if h.silent and h.host not in vouched.dead)
    running = [p for p in copies if p.copy.runs]
    standing = [p for p in copies if not p.copy.runs]
    if not copies:
        return _none(evidence, silent)
    if running:
        return _one_runs(running[0], standing, silent)
    if len(standing) == 1:
        return _one_stands(evidence, standing[0], silent, vouched)
    return _all_stand(standing, vouched)


def _refused(evidence: Evidence) -> frozenset[tuple[str, int | None]]:
    """Return the twins that were refused for good: they are cleaned up as such."""
    return frozenset(
        (host.host, job.pid)
        for host in evidence.hosts
        for job in host.jobs
        if job.side is Side.DESTINATION and job.record in (Record.REFUSED, Record.RETURNED)
    )


def _not_asked(silent: Sequence[str]) -> str:
    return f"{' and '.join(silent)} cannot be asked, and may have a copy"


def _none(evidence: Evidence, silent: Sequence[str]) -> Opinion:
    if silent:
        says = f"no host that answered has a QEMU of {evidence.guest}; {_not_asked(silent)}"
        return Opinion((says,), Ends.UNKNOWN, asks=tuple(f"{HOST_IS_DEAD} {h}" for h in silent))
    known = any(host.jobs or host.ended for host in evidence.hosts)
    if known:
        return Opinion((f"no host has a QEMU of {evidence.guest}: it has ended",), Ends.ENDED)
    return Opinion(
        (f"no host that was asked knows of a guest {evidence.guest}",),
        Ends.NOBODY,
        next_step="qmigrate list shows what there is",
    )


def _one_runs(runs: Placed, standing: Sequence[Placed], silent: Sequence[str]) -> Opinion:
    says = f"it runs on {runs.host} (process {runs.copy.pid})"
    ends = [
        end_copy(p.host, p.copy)
        for p in standing
        if is_harmless(p.copy) or (p.copy.stands_sent and runs.copy.loaded)
    ]
    if ends:
        return Opinion((says,), Ends.LEFT, acts=tuple(ends), host=runs.host)
    if standing:
        first = standing[0]
        where = " and ".join(f"{p.host} (process {p.copy.pid}, {_state(p)})" for p in standing)
        return Opinion(
            (says, f"a copy stands still on {where}; that it is not wanted only you can know"),
            Ends.LEFT,
            next_step=f"if it is not, on {first.host}: kill {first.copy.pid}",
            host=runs.host,
        )
    if silent:
        return Opinion((says, _not_asked(silent)), Ends.LEFT, host=runs.host)
    return Opinion((says,), Ends.RUNS, host=runs.host)


def _state(placed: Placed) -> str:
    return str(placed.copy.state or placed.copy.problem or "not asked")


def _one_stands(
    evidence: Evidence, only: Placed, silent: Sequence[str], vouched: Vouched
) -> Opinion:
    """One copy, and it does not run."""
    copy, where = only.copy, f"{only.host} (process {only.copy.pid})"
    if copy.state is None and copy.job is not None:  # whose journal went while we asked, or is lost
        says = f"job {copy.job} has the copy on {where}, and no journal"
        watch = f"qmigrate watch {copy.job}@{only.host}"
        return Opinion((says,), Ends.GOES_ON, next_step=watch)
    if copy.state is None:
        says = f"the copy on {where} cannot be asked: {copy.problem}"
        return Opinion((says,), Ends.UNKNOWN, next_step=f"look at process {copy.pid}")
    says = f"the only copy that was seen stands still on {where}: {copy.state}"
    if _held(only):
        says = f"QEMU on {where} waits to be told to send the last of the guest; nobody will"
        return Opinion((says,), Ends.UNKNOWN, acts=(return_guest(only.host, copy),))
    waits = copy.state is RunState.PAUSED and copy.loaded and not _has_run(evidence, only)
    if copy.state in _AS_LEFT and not waits:
        ends = Ends.LEFT if silent else Ends.STANDS
        more = (_not_asked(silent),) if silent else ()
        return Opinion((f"{says}, as somebody has left it", *more), ends, host=only.host)
    if not (copy.stands_sent or waits):
        more = (_not_asked(silent),) if silent else ("no other was seen",)
        step = f"if the guest is nowhere else either, on {only.host}: kill {copy.pid}"
        return Opinion((f"{says}, and is not whole", *more), Ends.UNKNOWN, next_step=step)
    if silent:
        asks = (*(f"{HOST_IS_DEAD} {host}" for host in silent), RESUME_SOURCE)
        return Opinion((says, _not_asked(silent)), Ends.UNKNOWN, asks=asks)
    if vouched.dead if waits else vouched.resume_source:
        return Opinion((says,), Ends.UNKNOWN, acts=(return_guest(only.host, copy),))
    what = "it was whole when it stopped; whether another has run since only you can know"
    others = (f"{HOST_IS_DEAD} {h.host}" for h in evidence.hosts if h.host != only.host)
    return Opinion((says, what), Ends.UNKNOWN, asks=tuple(others) if waits else (RESUME_SOURCE,))


def _held(placed: Placed) -> bool:
    """Say whether QEMU has stopped the guest to send the last of it, and still has it all."""
    copy = placed.copy
    return copy.state is RunState.FINISH_MIGRATE and copy.migration == "pre-switchover"


def _has_run(evidence: Evidence, only: Placed) -> bool:
    """Say whether a twin is known to have run: then somebody has paused it since."""
    jobs = [job for host in evidence.hosts if host.host == only.host for job in host.jobs]
    ran = any(j.pid == only.copy.pid and j.record in (Record.RUNNING, Record.DONE) for j in jobs)
    moved = any(e.outcome is Outcome.MIGRATED for host in evidence.hosts for e in host.ended)
    return bool(ran or moved or only.copy.wrote)


def _all_stand(standing: Sequence[Placed], vouched: Vouched) -> Opinion:
    """Several copies, and none runs."""
    where = " and ".join(f"{p.host} (process {p.copy.pid}, {_state(p)})" for p in standing)
    says = f"no copy runs: they stand still on {where}"
    busy = [p for p in standing if p.copy.state is None and p.copy.job is not None]
    if busy:
        more = f"job {busy[0].copy.job} has the one on {busy[0].host}, and no journal"
        watch = f"qmigrate watch {busy[0].copy.job}@{busy[0].host}"
        return Opinion((says, more), Ends.GOES_ON, next_step=watch)
    held = [p for p in standing if _held(p)]
    if len(held) == 1 and all(is_harmless(p.copy) for p in standing if p is not held[0]):
        return Opinion((says,), Ends.UNKNOWN, acts=(return_guest(held[0].host, held[0].copy),))
    sent = [p for p in standing if p.copy.stands_sent]
    if len(sent) != 1 or any(p.copy.state is None for p in standing):
        return Opinion(
            (says, "which of them is the guest only you can know"),
            Ends.UNKNOWN,
            next_step="let one run by its monitor (cont), or end those that are not wanted",
        )
    [source] = sent
    others = [p for p in standing if p is not source]
    if vouched.resume_source:
        ends = (end_copy(p.host, p.copy, vouched=True) for p in others)
        return Opinion((says,), Ends.UNKNOWN, acts=(*ends, return_guest(source.host, source.copy)))
    wrote = [p.host for p in others if p.copy.wrote]
    more = (
        f"{' and '.join(wrote)} has written to its disks since"
        if wrote
        else (
            "none but the first has written anything"
            if all(p.copy.wrote is False for p in others)
            else "whether the others have written is not known"
        )
    )
    return Opinion(
        (says, f"the one on {source.host} had sent all it had; {more}"),
        Ends.UNKNOWN,
        asks=(RESUME_SOURCE,),
    )
