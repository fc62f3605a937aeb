"""One QEMU's migration and run state as typed calls, with units; its versions differ here only.

QEMU 10.0 to 11.1. What one version reports and another does not is None; a status that is not known
here is `MigrationStatus.UNKNOWN`, and that means "not finished".
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from qmigrate.core.errors import CommandError, MonitorGarbledError, MonitorLostError
from qmigrate.core.model import RunState
from qmigrate.core.tuning import Tuning
from qmigrate.qmp.client import COMMAND_DEADLINE_S, Monitor
from qmigrate.qmp.events import (
    Event,
    MigrationEvent,
    MigrationStatus,
    OtherEvent,
    PassEvent,
    ResetEvent,
    ResumeEvent,
    ShutdownEvent,
    StopEvent,
)

__all__ = [
    "DECISIVE_DEADLINE_S",
    "Event",
    "MigrationEvent",
    "MigrationProgress",
    "MigrationStatus",
    "OtherEvent",
    "PassEvent",
    "Qemu",
    "ResetEvent",
    "ResumeEvent",
    "ShutdownEvent",
    "StopEvent",
]

# `cont` opens and locks the images, `stop` flushes them; on a slow store both were seen to take
# most of a minute, and giving up on them settles nothing.
DECISIVE_DEADLINE_S = 60.0

_FIRST_RATE_MS = 1000  # QEMU measures the dirty rate at the first sync after this (ram.c)


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """QMP `query-migrate`; None is "not known", also where QEMU writes 0 until it has measured."""

    status: MigrationStatus
    total_ms: int | None = None
    setup_ms: int | None = None
    downtime_ms: int | None = None  # at the end
    expected_downtime_ms: int | None = None
    transferred_bytes: int | None = None
    remaining_bytes: int | None = None  # RAM only
    ram_total_bytes: int | None = None
    dirty_pages_per_s: int | None = None
    page_size_bytes: int | None = None
    mbps: float | None = None  # megabits/s, as QEMU measures them each 100 ms
    dirty_sync_count: int | None = None  # passes begun
    normal_pages: int | None = None
    duplicate_pages: int | None = None  # zero pages
    error_desc: str | None = None
    blocked_reasons: tuple[str, ...] = ()

    @property
    def bandwidth_bps(self) -> float | None:
        """Bytes/s that the stream gets."""
        return None if self.mbps is None else self.mbps * 1e6 / 8

    @property
    def dirty_rate_bps(self) -> int | None:
        """Bytes/s that the guest makes dirty."""
        if self.dirty_pages_per_s is None or self.page_size_bytes is None:
            return None
        return self.dirty_pages_per_s * self.page_size_bytes


def progress_untrusted(reply: Any, *, name: str = "QEMU") -> MigrationProgress:
    """Return the answer to `query-migrate` as a type; raise `MonitorGarbledError` otherwise."""
    try:
        ram = reply.get("ram") or {}
        total_ms, syncs = _number(reply, "total-time"), _number(ram, "dirty-sync-count")
        rate = _number(ram, "dirty-pages-rate")
        measured = (total_ms or 0) >= _FIRST_RATE_MS and (syncs or 0) >= 2
        mbps = ram.get("mbps")
        return MigrationProgress(
            # No `status`: no migration yet.
            status=MigrationStatus(str(reply.get("status", "none"))),
            total_ms=total_ms,
            setup_ms=_number(reply, "setup-time"),
            downtime_ms=_number(reply, "downtime"),
            expected_downtime_ms=_number(reply, "expected-downtime"),
            transferred_bytes=_number(ram, "transferred"),
            remaining_bytes=_number(ram, "remaining"),
            ram_total_bytes=_number(ram, "total"),
            dirty_pages_per_s=rate if rate or measured else None,
            page_size_bytes=_number(ram, "page-size"),
            mbps=float(mbps) if isinstance(mbps, int | float) and mbps > 0 else None,
            dirty_sync_count=syncs,
            normal_pages=_number(ram, "normal"),
            duplicate_pages=_number(ram, "duplicate"),
            error_desc=reply.get("error-desc"),
            blocked_reasons=tuple(str(reason) for reason in reply.get("blocked-reasons") or ()),
        )
    except (AttributeError, TypeError) as exc:
        raise MonitorGarbledError(
            f"{name}: query-migrate answered something else", last_words=repr(reply)[:200]
        ) from exc


def _number(reply: Mapping[str, Any], key: str) -> int | None:
    value = reply.get(key)
    return value if type(value) is int else None


class Qemu:
    """The calls that a move needs of one QEMU, over its `monitor`.

    All raise as `Monitor.execute`. Those that decide who runs (`cont`, `stop`, `migrate_fd`,
    `migrate_continue`, `migrate_cancel`, `quit`) are shielded from cancels and wait for
    `DECISIVE_DEADLINE_S`; if even that passes, `MonitorSilentError`: the outcome is unknown.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    @property
    def version(self) -> str:
        """QEMU's version, as "10.0.2"."""
        return ".".join(map(str, self.monitor.qemu_version))

    async def status(self) -> RunState:
        """Return the run state (QMP `query-status`); what is not known here is UNKNOWN."""
        return RunState(str(_get(await self._ask("query-status"), "status", self.monitor.name)))

    async def query_tuning(self) -> Tuning:
        """Return all capabilities and parameters as they are, to tune by and to restore later."""
        capabilities = await self._ask("query-migrate-capabilities")
        parameters = await self._ask("query-migrate-parameters")
        name = self.monitor.name
        return Tuning(
            tuple(
                (_get(row, "capability", name), _get(row, "state", name)) for row in capabilities
            ),
            tuple((k, v) for k, v in parameters.items() if isinstance(v, bool | int | str)),
        )

    async def set_tuning(self, tuning: Tuning) -> None:
        """Set what `tuning` says: capabilities, which QEMU judges as a whole, then parameters.

        Capabilities are refused while a migration runs; `downtime-limit` and `max-bandwidth` are
        not.
        """
        if tuning.capabilities:
            rows = [{"capability": name, "state": on} for name, on in tuning.capabilities]
            await self._ask("migrate-set-capabilities", {"capabilities": rows})
        if tuning.parameters:
            await self._ask("migrate-set-parameters", dict(tuning.parameters))

    async def migrate_fd(self, name: str) -> None:
        """Start to send the guest into the descriptor passed as `name`, which is used up."""
        await self._decide("migrate", {"uri": f"fd:{name}"})

    async def incoming_fd(self, name: str) -> None:
        """Start to receive from the descriptor `name`; one shot, whatever comes of it.

        A failed load leaves the process standing, with its reason, in `inmigrate` for ever.
        """
        await self._decide("migrate-incoming", {"uri": f"fd:{name}", "exit-on-error": False})

    async def migrate_continue(
        self, state: MigrationStatus = MigrationStatus.PRE_SWITCHOVER
    ) -> None:
        """Let a migration that waits in `state` go on; refused in any other."""
        await self._decide("migrate-continue", {"state": str(state)})

    async def migrate_cancel(self) -> None:
        """Ask for the end of the migration; how it ended is its final event, not this answer.

        Answered without an error, and without effect, when there is nothing to cancel any more.
        """
        await self._decide("migrate_cancel")

    async def query_migrate(self) -> MigrationProgress:
        """Return how far it is; also before the first migration, with `blocked_reasons`."""
        return progress_untrusted(await self._ask("query-migrate"), name=self.monitor.name)

    async def cont(self) -> None:
        """Run the guest; ask `status` first.

        In `inmigrate` QEMU answers yes and lets the guest run by itself as soon as it is loaded.
        """
        await self._decide("cont")

    async def stop(self) -> None:
        """Stop the guest's CPUs and flush its disks."""
        await self._decide("stop")

    async def quit(self) -> None:
        """End QEMU. Returns when it has answered or closed; its end is its pidfd's to tell."""
        sent_into_the_dark = self.monitor.lost.is_set()
        try:
            await self._decide("quit")
        except MonitorLostError:
            if sent_into_the_dark:
                raise

    async def announce_self(
        self,
        *,
        initial_ms: int = 50,
        max_ms: int = 550,
        rounds: int = 5,
        step_ms: int = 50,
    ) -> None:
        """Let QEMU announce the guest's NICs (RARP), spaced; queued while the guest is stopped."""
        await self._ask(
            "announce-self",
            {"initial": initial_ms, "max": max_ms, "rounds": rounds, "step": step_ms},
        )

    async def blockdev_set_active(self, *, active: bool) -> None:
        """Take or leave all images and their locks without running the guest; idempotent."""
        await self._decide("blockdev-set-active", {"active": active})

    async def rx_filter_macs(self) -> tuple[tuple[str, str], ...]:
        """Return (NIC's name, MAC that its guest uses now) of the models that know: virtio-net."""
        name = self.monitor.name
        rows = await self._ask("query-rx-filter")
        return tuple((_get(row, "name", name), _get(row, "main-mac", name)) for row in rows)

    async def yank_migration(self) -> None:
        """Shut the migration's sockets down, out of band: frees a main loop that hangs in them.

        An error when QEMU has no migration socket now, or one that is no socket.
        """
        instances = [{"type": "migration"}]
        await self._ask("yank", {"instances": instances}, oob=True)

    async def close_fd(self, name: str) -> None:
        """Close a descriptor passed as `name` and never used; no error when it was used."""
        with contextlib.suppress(CommandError):
            await self._ask("closefd", {"fdname": name})

    async def _ask(
        self, command: str, arguments: Mapping[str, object] | None = None, *, oob: bool = False
    ) -> Any:
        return await self.monitor.execute(
            command, arguments, deadline_s=COMMAND_DEADLINE_S, oob=oob
        )

    async def _decide(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # the last moment at which nothing was said
        with trio.CancelScope(shield=True):
            await self.monitor.execute(command, arguments, deadline_s=DECISIVE_DEADLINE_S)


def _get(row: Any, key: str, name: str) -> Any:
    try:
        return row[key]
    except (TypeError, LookupError) as exc:
        raise MonitorGarbledError(
            f"{name}: an answer without {key}", last_words=repr(row)[:200]
        ) from exc
