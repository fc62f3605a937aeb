"""What hosts say of a guest that is to be resolved, for tables: one of each, to be varied."""

from dataclasses import replace
from typing import Any

from qmigrate.core.copies import CopySeen
from qmigrate.core.handover import Destination, Record, Source
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.model import RunState
from qmigrate.core.testimony import Evidence, HostSeen
from tests.support.jobs_seen import DESTINATION, SOURCE, UUID

JOB = SOURCE.job
DISK = "/srv/web1.img"
ALPHA, BETA = "boot-alpha", "boot-beta"

# A copy that the source's job knows, and one that the destination's does.
OWN = CopySeen(100, 1, "web1", UUID, RunState.POSTMIGRATE, "completed")
TWIN = CopySeen(200, 1, "web1", UUID, RunState.PAUSED, "completed", wrote=False, twin=True)
# The same in processes that no journal knows.
STRAY = replace(OWN, pid=101)
STRAY_TWIN = replace(TWIN, pid=201)
RUNS = replace(STRAY, state=RunState.RUNNING, migration=None)
TWIN_RUNS = replace(STRAY_TWIN, state=RunState.RUNNING, wrote=True)
TWIN_WROTE = replace(STRAY_TWIN, wrote=True)
INCOMING = replace(STRAY_TWIN, state=RunState.INMIGRATE, migration="active")


def source(record: Record | Source, **changes: Any) -> JobOnHost:
    """Return a source's side: left with that record, or live in that state."""
    return _side(replace(SOURCE, boot_id=ALPHA, peer_boot_id=BETA), record, changes)


def destination(record: Record | Destination, **changes: Any) -> JobOnHost:
    """Return a destination's side, as `source`."""
    return _side(replace(DESTINATION, boot_id=BETA, peer_boot_id=ALPHA), record, changes)


def _side(plain: JobOnHost, where: Any, changes: dict[str, Any]) -> JobOnHost:
    if isinstance(where, Record):
        return replace(plain, **{"record": where, **changes})
    given = {"worked_at": True, "state": str(where), "linked": False, **changes}
    return replace(plain, **{"record": Record.PREPARED, **given})


def alpha(*seen: JobOnHost | CopySeen, **more: Any) -> HostSeen:
    """Return what the source's host says."""
    return _host("alpha", ALPHA, seen, more)


def beta(*seen: JobOnHost | CopySeen, **more: Any) -> HostSeen:
    """Return what the destination's host says."""
    return _host("beta", BETA, seen, more)


def _host(name: str, boot: str, seen: tuple[Any, ...], more: dict[str, Any]) -> HostSeen:
    jobs = tuple(each for each in seen if isinstance(each, JobOnHost))
    copies = tuple(each for each in seen if isinstance(each, CopySeen))
    own = {"boot_id": boot, "jobs": jobs, "copies": copies}
    return HostSeen(name, (f"root@{name}",), **{**own, **more})


def silent(name: str) -> HostSeen:
    """Return a host that does not answer."""
    return HostSeen(name, problem="no route to host")


def evidence(*hosts: HostSeen) -> Evidence:
    """Return it all."""
    return Evidence("web1", hosts)


def held(copy: CopySeen) -> CopySeen:
    """Return a copy whose monitor its job's agent holds."""
    return replace(copy, state=None, migration=None, wrote=None, job=JOB)
