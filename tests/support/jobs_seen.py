"""Jobs as hosts tell them, for tables: one of a source and one of a destination, to be varied."""

from dataclasses import replace
from typing import Any

from qmigrate.core.handover import Record
from qmigrate.core.holdings import JobOnHost
from qmigrate.core.model import RunState, Side

UUID = "6f2c1f1a-0000-4000-8000-000000000001"

SOURCE = JobOnHost(
    job="web1-3fa9c2",
    side=Side.SOURCE,
    record=Record.PREPARED,
    guest="web1",
    uuid=UUID,
    peer_host="beta",
    boot_id="b",
    had=RunState.RUNNING,
    pid=100,
    start_ticks=1,
    qemu_here=True,
    monitor="/run/web1.qmp",
    disks=(),
    made=(),
    age_s=3.0,
    note=None,
    worked_at=False,
)
DESTINATION = replace(
    SOURCE,
    side=Side.DESTINATION,
    peer_host="alpha",
    pid=200,
    made=(
        f"tap qmigrate:guest={UUID} nic=n0",
        f"process /run/qmigrate/guests/{UUID}/monitor",
    ),
    monitor=f"/run/qmigrate/guests/{UUID}/monitor",
)


def source(record: Record | None, **changes: Any) -> JobOnHost:
    """Return the source's side with that record."""
    return replace(SOURCE, record=record, **changes)


def destination(record: Record | None, **changes: Any) -> JobOnHost:
    """Return the destination's side with that record."""
    return replace(DESTINATION, record=record, **changes)
