"""Watches a copy: tells how far it is, raises the downtime limit, gives up, keeps the deadline."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from qmigrate.agent.linking import Linking
from qmigrate.agent.monitoring import Watched
from qmigrate.agent.relaying import link_figures
from qmigrate.agent.requests import SetJob
from qmigrate.core.convergence import GiveUp, RaiseLimit, Sample, decide, remember
from qmigrate.core.errors import MonitorError, RolledBackError, UsageError
from qmigrate.core.job import JobNote, Limits
from qmigrate.core.model import Progress
from qmigrate.core.tuning import Options, change
from qmigrate.qmp.migration import MigrationProgress

# QEMU has no event for progress, and measures its bandwidth each 100 ms: oftener tells nothing.
LOOK_INTERVAL_S = 0.25


class Copy(Protocol):
    """What the pace needs of the source's agent."""

    qemu: Watched
    limits: Limits
    started_s: float
    linking: Linking

    def tell(self, note: JobNote) -> None:
        """Hand news to whoever watches."""

    def say(self, text: str) -> None:
        """Write into the job's log."""


@dataclass(slots=True)
class _Shown:
    """The percentage never goes back: dirty memory makes `remaining` grow again."""

    percent: float = 0.0


def options_of(limits: Limits) -> Options:
    """Return what the tuning table needs of the user's limits."""
    return Options(downtime_limit_ms=limits.downtime_ms, bandwidth_bps=limits.bandwidth_bps or None)


class Pace:
    """One copy's pace; `give_up` is called at most once."""

    def __init__(self, copy: Copy, copying: Callable[[], bool]) -> None:
        self._copy = copy
        self._copying = copying
        self._samples: tuple[Sample, ...] = ()
        self._raised_at_s = -math.inf
        self._shown = _Shown()

    async def run(self, give_up: Callable[[RolledBackError], None]) -> None:
        """Look until the copy has ended; call `give_up` if it should."""
        began_s = time.monotonic()
        while self._copying():
            try:
                progress = await self._copy.qemu.qemu.query_migrate()
            except MonitorError as exc:
                self._copy.say(f"query-migrate: {exc}")
                await trio.sleep(LOOK_INTERVAL_S)
                continue
            if not self._copying():
                return
            self._copy.tell(JobNote(progress=self._progress(progress)))
            reason = await self._judge(progress) or self._overdue(began_s, progress)
            if reason:
                give_up(RolledBackError(reason, phase="copy", next_step=_ADVICE))
                return
            await trio.sleep(LOOK_INTERVAL_S)

    async def change(self, request: SetJob) -> Limits:
        """Change the limits, of a copy under way at once; return what holds now.

        Raises `UsageError` for a downtime limit above the highest that is allowed.
        """
        asked = {
            name: value
            for name in ("downtime_ms", "max_downtime_ms", "bandwidth_bps")
            if (value := getattr(request, name)) is not None
        }
        limits = replace(self._copy.limits, **asked)
        if limits.downtime_ms > limits.max_downtime_ms:
            raise UsageError(
                f"a downtime limit of {limits.downtime_ms} ms is above the {limits.max_downtime_ms}"
                " ms that are allowed at most",
                next_step="raise --max-downtime too",
            )
        self._copy.limits = limits
        if self._copying():
            await self._copy.qemu.qemu.set_tuning(change(options_of(limits)))
        return limits

    async def _judge(self, progress: MigrationProgress) -> str | None:
        """Apply `core.convergence`; return why to give up, if so."""
        now_s, limits = time.monotonic(), self._copy.limits
        sample = Sample(
            at_s=now_s,
            pass_number=progress.dirty_sync_count or 1,
            transferred_bytes=progress.transferred_bytes or 0,
            remaining_bytes=progress.remaining_bytes or 0,
            bandwidth_bps=progress.bandwidth_bps,
            dirty_rate_bps=progress.dirty_rate_bps,
            limit_ms=limits.downtime_ms,
        )
        self._samples = remember(self._samples, sample)
        action = decide(
            self._samples,
            limit_ms=limits.downtime_ms,
            max_limit_ms=limits.max_downtime_ms,
            now_s=now_s,
            raised_at_s=self._raised_at_s,
        )
        match action:
            case RaiseLimit(limit_ms=limit_ms, reason=reason):
                self._raised_at_s = now_s
                self._copy.limits = replace(limits, downtime_ms=limit_ms)
                await self._copy.qemu.qemu.set_tuning(change(options_of(self._copy.limits)))
                self._copy.say(reason)
                self._copy.tell(JobNote(warning=reason))
            case GiveUp(reason=reason):
                return reason
            case _:
                pass
        return None

    def _overdue(self, began_s: float, progress: MigrationProgress) -> str | None:
        timeout_s = self._copy.limits.timeout_s
        if timeout_s is None or time.monotonic() - began_s < timeout_s:
            return None
        left = progress.remaining_bytes
        return f"the copy did not end within --timeout {timeout_s:g} s; {left} bytes remain"

    def _progress(self, progress: MigrationProgress) -> Progress:
        total, left = progress.ram_total_bytes, progress.remaining_bytes
        if total and left is not None:
            self._shown.percent = max(self._shown.percent, 100.0 * (1 - min(1.0, left / total)))
        return Progress(
            phase="copy",
            percent=round(self._shown.percent, 1) if total else None,
            transferred_bytes=progress.transferred_bytes,
            remaining_bytes=left,
            rate_bps=progress.bandwidth_bps,
            dirty_rate_bps=progress.dirty_rate_bps,
            passes=progress.dirty_sync_count,
            elapsed_s=round(time.monotonic() - self._copy.started_s, 3),
            text=None,
            link=link_figures(self._copy.linking.relay),
        )


_ADVICE = (
    "the guest runs on where it was; try again when it is quieter, with a larger --max-downtime, "
    "with --offline, or over a faster link"
)
