"""What was seen of a guest, as sentences: host by host, job by job, then the traces. Pure."""

from collections.abc import Iterator

from qmigrate.core.copies import AnswerSeen, CopySeen, ImageSeen
from qmigrate.core.handover import Record
from qmigrate.core.joining import HostJobs, join
from qmigrate.core.model import Side
from qmigrate.core.quantities import human_seconds
from qmigrate.core.testimony import Evidence, HostSeen, jobs_of

CLOCKS_S = 1.0  # of two hosts' and a file server's clocks, that differ by so much at least


def recount(evidence: Evidence) -> tuple[str, ...]:
    """Return all that was seen, in sentences that name who was asked."""
    return (
        *(line for host in evidence.hosts for line in _host(host, evidence)),
        *_jobs(evidence),
        *_images(evidence),
        *(line for host in evidence.hosts for a in host.answers for line in _answer(host, a)),
        *(f"{host.host}: {what}" for host in evidence.hosts for what in host.problems),
    )


def _host(host: HostSeen, evidence: Evidence) -> Iterator[str]:
    if host.silent:
        yield f"{host.host} cannot be asked: {host.problem}"
        return
    for copy in host.copies:
        yield f"{host.host}: process {copy.pid} is a QEMU of {evidence.guest}: {_copy(copy)}"
    if not host.copies:
        yield f"{host.host}: no QEMU of {evidence.guest}"
    ends = [end for job in jobs_of(evidence) for end in (job.source, job.destination)]
    if any(end.host == host.host and end.rebooted for end in ends):
        yield f"{host.host} was rebooted after the move had begun: its boot id is another"


def _copy(copy: CopySeen) -> str:
    if copy.problem is not None:
        return f"it could not be asked: {copy.problem}"
    if copy.state is None:
        return f"job {copy.job} has its monitor"
    said = [str(copy.state)]
    if copy.migration not in (None, "none"):
        said.append(f"its migration {copy.migration}")
    if copy.disks and copy.wrote is not None:
        wrote = "has written to its disks" if copy.wrote else "has written nothing to its disks"
        said.append(f"this process {wrote}")
    return ", ".join(said)


def _jobs(evidence: Evidence) -> Iterator[str]:
    known = [HostJobs(h.host, h.jobs, h.also) for h in evidence.hosts if not h.silent]
    for row in join(known, [h.host for h in evidence.hosts if h.silent]):
        age = f", {human_seconds(row.age_s)} ago" if row.age_s is not None else ""
        way = f"{row.source or '?'} → {row.destination or '?'}"
        yield f"job {row.job}, {way}{age}: {row.standing}"
        for side in row.sides:
            problem = side.job.problem
            if problem is not None and problem.last_words:
                yield f"{side.host} said: {problem.what}: {problem.last_words}"


def _images(evidence: Evidence) -> Iterator[str]:
    paths = dict.fromkeys(image.path for host in evidence.hosts for image in host.images)
    for path in paths:
        seen = [(h, i) for h in evidence.hosts for i in h.images if i.path == path]
        holders = [_holder(h.host, i, n) for h, i in seen for n in range(len(i.holders))]
        who = "; ".join(holders) or "nobody on the hosts that answered has it open"
        yield f"{path}: {who}{_changed(evidence, seen)}"
        yield from (f"{h.host}: {path}: {i.problem}" for h, i in seen if i.problem)


def _holder(host: str, image: ImageSeen, number: int) -> str:
    holder = image.holders[number]
    what = "has locked it" if holder.locked else "has it open, and no lock on it"
    name = f"{holder.command}, guest {holder.guest}" if holder.guest else holder.command
    return f"process {holder.pid} on {host} ({name}) {what}"


def _changed(evidence: Evidence, seen: list[tuple[HostSeen, ImageSeen]]) -> str:
    """Say when an image was written to last, and whether after the source had let it go."""
    ages = [image.changed_s_ago for _, image in seen if image.changed_s_ago is not None]
    if not ages:
        return ""
    age_s = min(ages)
    said = f"; last written to {human_seconds(age_s)} ago"
    gone = [
        (host.host, job.age_s)
        for host in evidence.hosts
        for job in host.jobs
        if job.side is Side.SOURCE and job.record is Record.AWAY and job.age_s is not None
    ]
    if not gone:
        return said
    source, away_s = gone[0]
    if age_s < away_s - CLOCKS_S:
        return f"{said}, AFTER {source} had let the guest go"
    if age_s > away_s + CLOCKS_S:
        return f"{said}, before {source} let the guest go"
    return said


def _answer(host: HostSeen, seen: AnswerSeen) -> Iterator[str]:
    where = f"on {seen.bridge} of {host.host}"
    if seen.mac is None:
        yield f"{seen.address}: nobody answers {where}"
        return
    port = f", which believes that card behind {seen.port}" if seen.port else ""
    yield f"{seen.address}: {seen.mac} answers {where}{port}"
