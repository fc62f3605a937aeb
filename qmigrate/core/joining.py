"""What several hosts say of their jobs, joined: a row a job, where it stands, what to do next.

Words only: nothing here decides who may run a guest. A line that says `resolve` is printed wherever
what is seen does not show that the job goes on by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qmigrate.core.belongings import PeerSays, is_decided, resolve_line
from qmigrate.core.handover import OVER, Destination, Record, Source
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.model import Side

S, D, R = Source, Destination, Record


@dataclass(frozen=True, slots=True)
class HostJobs:
    """One host that answered, by the names that people have for it."""

    host: str
    jobs: tuple[JobOnHost, ...]
    also: tuple[str, ...] = ()  # other names of it: what ssh calls it


@dataclass(frozen=True, slots=True)
class SideSeen:
    """One side of a job, as its host told it."""

    host: str
    job: JobOnHost


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job, both sides joined."""

    guest: str
    job: str
    source: str | None  # hosts, as they are called here where they answered
    destination: str | None
    standing: str  # a sentence
    healthy: bool  # it goes on by itself
    age_s: float | None  # of the youngest record; None: not known
    next_step: str | None
    sides: tuple[SideSeen, ...]


# Of live agents; `{s}` and `{d}` are the hosts.
_SOURCE_STANDS: dict[str, str] = {
    S.PREPARED: "it is being prepared, the guest is on {s}",
    S.COPYING: "its memory is being copied, the guest is on {s}",
    S.HELD: "it is about to be switched over, the guest is on {s}",
    S.CANCELLING: "it is being cancelled, the guest is on {s}",
    S.SWITCHING: "it is being switched over",
    S.RECALLING: "QEMU on {s} came to no verdict in time, and is asked to cancel",
    S.MISSED: "QEMU on {s} ended in the switchover: who has the guest is not known",
    S.LEFT: "the copy is complete and was not run, {d} is being asked",
    S.AWAY: "{d} was told to run it and has not answered",
    "strayed": "somebody let the copy on {s} run after {d} was told to: it may run twice",
    S.PROVED: "it runs on {d}, the copy on {s} is being ended",
    S.BACK: "it is being brought back on {s}",
    S.RESTORED: "it is on {s} as it was",
    S.ENDED: "the guest has ended",
    S.DONE: "it has moved to {d}",
}
_DESTINATION_STANDS: dict[str, str] = {
    D.PREPARED: "{d} holds a copy that never ran, and waits for {s}",
    D.DECIDING: "{d} looks whether its copy is whole",
    D.GO: "{d} has taken it, and has not seen it run yet",
    D.GO_AGAIN: "{d} has taken it, and has not seen it run yet",
    D.RUNNING: "it runs on {d}, {s} has not said yet that its copy is gone",
    D.REFUSED: "{d} will never run it, {s} has not heard that yet",
    D.RETURNED: "{d} could not run it, {s} has not heard that yet",
    D.LOST: "it was run on {d}, and its QEMU there has died since",
    D.DONE: "it has moved to {d}",
}
# Nothing but a person ends these, whatever the agents say to each other.
_TO_RESOLVE = frozenset[str](("strayed", D.LOST))
# Of journals at which nobody works; `{h}` is the host.
_SOURCE_LEFT: dict[str, str] = {
    R.PREPARED: "{h} had not told anybody to run it",
    R.SWITCHING: "{h} was switching it over, and had not told anybody to run it",
    R.AWAY: "{h} may have told the other to run it",
    R.PROVED: "{h} was told that it runs there, and was ending its own copy",
    R.BACK: "{h} was bringing it back",
    R.RESTORED: "{h} has it as it was",
    R.ENDED: "the guest ended on {h}",
    R.DONE: "{h} gave it away to the end",
}
_DESTINATION_LEFT: dict[str, str] = {
    R.PREPARED: "{h} had not taken it",
    R.GO: "{h} had taken it, and may have run it",
    R.RUNNING: "it ran on {h}",
    R.REFUSED: "{h} had refused it for good",
    R.RETURNED: "{h} could not run it, and never will",
    R.DONE: "{h} took it to the end",
}
# States in which a side goes on only once it hears from the other, and no deadline ends that.
_SOURCE_WAITS = frozenset[str]((S.AWAY, S.LEFT, S.MISSED))
_DESTINATION_WAITS = frozenset[str]((D.PREPARED, D.LOST, D.REFUSED, D.RETURNED, D.RUNNING))


def join(answered: Sequence[HostJobs], silent: Sequence[str] = ()) -> tuple[JobRow, ...]:
    """Return a row a job of the hosts that answered, by guest; `silent` are those that did not."""
    found: dict[str, list[SideSeen]] = {}
    for host in answered:
        for job in host.jobs:
            found.setdefault(job.job, []).append(SideSeen(host.host, job))
    rows = (_row(sides, answered, silent) for sides in found.values())
    return tuple(sorted(rows, key=lambda row: (row.guest, row.job)))


def _row(sides: Sequence[SideSeen], answered: Sequence[HostJobs], silent: Sequence[str]) -> JobRow:
    source = next((s for s in sides if s.job.side is Side.SOURCE), None)
    destination = next((s for s in sides if s.job.side is Side.DESTINATION), None)
    first = sides[0].job
    names = _name(source, destination), _name(destination, source)
    hosts = {"s": names[0] or "the source", "d": names[1] or "the destination"}
    standing, healthy = _standing(source, destination, hosts)
    for side, name in ((source, names[0]), (destination, names[1])):
        if side is None and name is not None and not _over(sides):
            standing += f"; {_unseen(name, answered, silent)}"
    ages = [s.job.age_s for s in sides if s.job.age_s is not None]
    return JobRow(
        guest=first.guest,
        job=first.job,
        source=names[0],
        destination=names[1],
        standing=standing,
        healthy=healthy,
        age_s=min(ages, default=None),
        next_step=_next_step(sides, source, healthy=healthy),
        sides=tuple(sides),
    )


def _name(side: SideSeen | None, other: SideSeen | None) -> str | None:
    return side.host if side else other.job.peer_host if other else None


def _unseen(name: str, answered: Sequence[HostJobs], silent: Sequence[str]) -> str:
    if name in silent:
        return f"{name} does not answer"
    if any(name in (host.host, *host.also) for host in answered):
        return f"{name} knows nothing of it"
    return f"{name} was not asked"


def _standing(
    source: SideSeen | None, destination: SideSeen | None, hosts: dict[str, str]
) -> tuple[str, bool]:
    """Return where a job stands, and whether it goes on by itself."""
    leads = source if source and source.job.worked_at else None
    leads = leads or (destination if destination and destination.job.worked_at else None)
    if leads is None:
        left = [_left(side) for side in (source, destination) if side]
        return f"nobody works at it: {'; '.join(left)}", False
    other = destination if leads is source else source
    state = leads.job.state
    if state is None:
        return f"its agent on {leads.host} does not answer; {_left(leads)}", False
    at_source = leads.job.side is Side.SOURCE
    words = (_SOURCE_STANDS if at_source else _DESTINATION_STANDS).get(state, state).format(**hosts)
    cut = leads.job.linked is False and (
        state in (_SOURCE_WAITS if at_source else _DESTINATION_WAITS)
    )
    unknown = leads.job.problem is not None and leads.job.problem.code == "unknown-outcome"
    healthy = not cut and not unknown and state not in _TO_RESOLVE
    if other is not None and not other.job.worked_at:
        words += f"; nobody works at it on {other.host}: {_left(other)}"
        healthy = healthy and other.job.record in OVER
    if cut:
        words += "; the two agents have no link"
    if leads.job.problem is not None and not healthy:
        words += f" ({leads.job.problem.what})"
    return words, healthy


def _left(side: SideSeen) -> str:
    """Return what a journal says, as words."""
    if side.job.record is None:
        return f"the journal on {side.host} cannot be read"
    words = _SOURCE_LEFT if side.job.side is Side.SOURCE else _DESTINATION_LEFT
    said = words.get(side.job.record, f"{{h}} says {side.job.record}").format(h=side.host)
    if side.job.age_s is None:
        said += ", before it was rebooted"
    elif not side.job.qemu_here and side.job.record in (R.PREPARED, R.SWITCHING, R.AWAY, R.GO):
        said += ", and its QEMU has ended"
    return said


def _over(sides: Sequence[SideSeen]) -> bool:
    return all(is_decided(side.job, _peer(side, sides)) for side in sides) and not any(
        side.job.worked_at for side in sides
    )


def _peer(side: SideSeen, sides: Sequence[SideSeen]) -> PeerSays | None:
    other = next((s for s in sides if s is not side), None)
    return PeerSays(side.job.job, other.host, other.job.record) if other else None


def _next_step(sides: Sequence[SideSeen], source: SideSeen | None, *, healthy: bool) -> str | None:
    first = source or sides[0]
    if healthy:
        return f"qmigrate watch {first.job.job}@{first.host}"
    if _over(sides):
        return f"qmigrate cleanup {first.host}"
    return resolve_line(first.job.guest)


def peers_say(
    here: Sequence[JobOnHost], elsewhere: Sequence[HostJobs], vouched: str | None = None
) -> tuple[PeerSays, ...]:
    """Return what the other hosts say of the jobs here; nothing of a job whose peer did not answer.

    A host knows nothing of a job only if it answered and is the one that the job was begun with.
    `vouched`: the host that a person has named as the other one.
    """
    return tuple(_says(here, elsewhere, vouched))


def _says(
    here: Sequence[JobOnHost], elsewhere: Sequence[HostJobs], vouched: str | None
) -> Iterator[PeerSays]:
    for job in here:
        records = [
            PeerSays(job.job, host.host, other.record)
            for host in elsewhere
            for other in host.jobs
            if other.job == job.job and other.side is not job.side and other.record is not None
        ]
        unreadable = any(
            other.job == job.job and other.record is None for h in elsewhere for other in h.jobs
        )
        if records:
            yield records[0]
        elif not unreadable:
            wanted = {job.peer_host, vouched} - {None}
            known = [h for h in elsewhere if wanted & {h.host, *h.also}]
            if known:
                yield PeerSays(job.job, known[0].host, None)
