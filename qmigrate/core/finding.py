"""Which job a word means: an id, or a guest's name or UUID, among what hosts know of jobs. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qmigrate.core.belongings import is_decided
from qmigrate.core.errors import NoSuchJobError, UsageError
from qmigrate.core.holdings import EndedJob, JobOnHost
from qmigrate.core.model import Side

JOB_ID = re.compile(r"[A-Za-z0-9-]+-[0-9a-f]{6}")  # as `name_in_id` and six digits make them
_NAME_LETTERS = 24


def name_in_id(guest: str) -> str:
    """Return what a job's id begins with, from its guest's name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", guest).strip("-")[:_NAME_LETTERS] or "guest"


@dataclass(frozen=True, slots=True)
class HostKnows:
    """What one host knows of jobs; `number` is the caller's own for it."""

    number: int
    host: str
    jobs: tuple[JobOnHost, ...]
    ended: tuple[EndedJob, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A host where something is known of a job; `side` None: only how it ended."""

    number: int
    host: str
    side: JobOnHost | None


def find_job(word: str, hosts: Sequence[HostKnows]) -> tuple[str, tuple[Place, ...]]:
    """Return the job that is meant and where it is known, the best host to ask first.

    A job that is under way comes first, then one that nobody works at and whose end is not known,
    then the one that ended last. Raises `UsageError` if several are under way, `NoSuchJobError`.
    """
    jobs = [(host, job) for host in hosts for job in host.jobs if _means(word, job)]
    live = {job.job for _, job in jobs if job.worked_at}
    if len(live) > 1:
        one, *_ = named = sorted(live)
        raise UsageError(
            f"several jobs of {word} are under way: {', '.join(named)}",
            next_step=f"name one by its id, as {one}",
        )
    ended = sorted(
        (kept.ended_s_ago, kept.job)
        for host in hosts
        for kept in host.ended
        if word == kept.job or name_in_id(word) == kept.job.rpartition("-")[0]
    )
    told = {job for _, job in ended}
    open_ended = _youngest(job for _, job in jobs if not is_decided(job, None))
    found = next(iter(live), None) or (open_ended if open_ended not in told else None)
    found = found or (ended[0][1] if ended else None) or _youngest(job for _, job in jobs)
    if found is None and JOB_ID.fullmatch(word):  # it may have ended long ago
        return word, tuple(Place(host.number, host.host, None) for host in hosts)
    if found is None:
        raise NoSuchJobError(
            f"no host that was asked knows a job of {word}",
            next_step="`qmigrate status` shows the jobs of all hosts; `qmigrate list`, the guests",
        )
    places = [Place(host.number, host.host, job) for host, job in jobs if job.job == found]
    at = {place.number for place in places}
    places += [
        Place(host.number, host.host, None)
        for host in hosts
        for kept in host.ended
        if kept.job == found and host.number not in at
    ]
    return found, tuple(sorted(places, key=_rank))


def _means(word: str, job: JobOnHost) -> bool:
    return word in (job.job, job.guest) or word.lower() == (job.uuid or "").lower()


def _youngest(jobs: Iterable[JobOnHost]) -> str | None:
    ages = [(job.age_s if job.age_s is not None else float("inf"), job.job) for job in jobs]
    return min(ages)[1] if ages else None


def _rank(place: Place) -> tuple[int, int]:
    """Order by who can tell most: the live source, a report, the live destination, the dead."""
    side = place.side
    if side is None:
        return 1, place.number
    if side.worked_at:
        return (0 if side.side is Side.SOURCE else 2), place.number
    return 3, place.number
