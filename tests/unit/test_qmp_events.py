"""QMP's events and answers become types; what a version says differently stays understood."""

from typing import Any

import pytest

from qmigrate.core.errors import MonitorGarbledError
from qmigrate.qmp.events import (
    Event,
    EventBuffer,
    MigrationEvent,
    MigrationStatus,
    OtherEvent,
    PassEvent,
    ResetEvent,
    ResumeEvent,
    ShutdownEvent,
    StopEvent,
    event_untrusted,
)
from qmigrate.qmp.migration import MigrationProgress, progress_untrusted

STAMP = {"seconds": 1764061200, "microseconds": 250001}
AT_US = 1764061200250001


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"event": "STOP", "timestamp": STAMP}, StopEvent(AT_US)),
        ({"event": "RESUME", "timestamp": {"seconds": -1, "microseconds": -1}}, ResumeEvent(None)),
        ({"event": "RESUME"}, ResumeEvent(None)),
        (
            {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}},
            ShutdownEvent(None, guest=True, reason="guest-shutdown"),
        ),
        ({"event": "SHUTDOWN"}, ShutdownEvent(None, guest=False, reason="none")),
        (
            {"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}},
            ResetEvent(None, guest=True, reason="guest-reset"),
        ),
        (
            {"event": "MIGRATION", "data": {"status": "pre-switchover"}, "timestamp": STAMP},
            MigrationEvent(AT_US, MigrationStatus.PRE_SWITCHOVER),
        ),
        (
            {"event": "MIGRATION", "data": {"status": "of-version-12"}},
            MigrationEvent(None, MigrationStatus.UNKNOWN),
        ),
        ({"event": "MIGRATION"}, MigrationEvent(None, MigrationStatus.UNKNOWN)),
        ({"event": "MIGRATION_PASS", "data": {"pass": 2}}, PassEvent(None, 2)),
        ({"event": "MIGRATION_PASS", "data": []}, OtherEvent(None, "MIGRATION_PASS")),
        ({"event": "POWERDOWN", "timestamp": "noon"}, OtherEvent(None, "POWERDOWN")),
        ({"event": 7}, OtherEvent(None, "7")),
    ],
)
def test_an_event_becomes_its_type(message: dict[str, Any], event: Event) -> None:
    assert event_untrusted(message) == event


def test_only_three_statuses_are_final() -> None:
    assert {status for status in MigrationStatus if status.final} == {
        MigrationStatus.COMPLETED,
        MigrationStatus.FAILED,
        MigrationStatus.CANCELLED,
    }


def drain(buffer: EventBuffer) -> list[Event]:
    return [buffer.take() for _ in range(len(buffer))]


def test_a_full_buffer_drops_only_what_can_be_asked_for_again() -> None:
    buffer = EventBuffer(soft=3, hard=6)
    stop, resume = StopEvent(1), ResumeEvent(2)
    other, reset = OtherEvent(3, "NIC_RX_FILTER_CHANGED"), ResetEvent(4, guest=True, reason="r")
    for event in (other, stop, PassEvent(5, 1), PassEvent(6, 2), resume, reset, reset, reset):
        buffer.add(event)
    assert not buffer.full
    buffer.add(other)  # only what decides is unread: this one goes
    assert drain(buffer) == [stop, resume, reset]


def test_a_buffer_of_what_decides_grows_to_its_limit_and_is_full() -> None:
    buffer = EventBuffer(soft=2, hard=4)
    events = [StopEvent(1), ResumeEvent(2), StopEvent(3), ResumeEvent(4)]
    for event in events:
        assert not buffer.full
        buffer.add(event)
    assert buffer.full
    assert not buffer.roomy
    assert drain(buffer) == events
    assert buffer.roomy
    with pytest.raises(IndexError):
        buffer.take()


# query-migrate of QEMU 10.0.2, 0.3 s into the first pass of a 64 MiB guest (tests/qemu's bare one)
# with downtime-limit 20 and max-bandwidth 200000.
ACTIVE: dict[str, Any] = {
    "expected-downtime": 20,
    "status": "active",
    "setup-time": 9,
    "total-time": 302,
    "ram": {
        "total": 67641344,
        "postcopy-requests": 0,
        "dirty-sync-count": 1,
        "multifd-bytes": 0,
        "pages-per-second": 36400,
        "downtime-bytes": 0,
        "page-size": 4096,
        "remaining": 23572480,
        "postcopy-bytes": 0,
        "mbps": 2.6222399999999997,
        "transferred": 203214,
        "dirty-sync-missed-zero-copy": 0,
        "precopy-bytes": 231970,
        "duplicate": 10723,
        "dirty-pages-rate": 0,
        "normal-bytes": 135168,
        "normal": 33,
    },
}


def test_what_qemu_has_not_measured_yet_is_unknown_not_zero() -> None:
    progress = progress_untrusted(ACTIVE | {"ram": ACTIVE["ram"] | {"mbps": 0}})
    assert progress.status is MigrationStatus.ACTIVE
    assert (progress.mbps, progress.bandwidth_bps) == (None, None)
    assert (progress.dirty_pages_per_s, progress.dirty_rate_bps) == (None, None)
    assert progress.remaining_bytes == 23572480
    assert progress.duplicate_pages == 10723
    assert progress.downtime_ms is None
    assert progress_untrusted(ACTIVE).mbps == pytest.approx(2.62, abs=0.01)


def test_measured_rates_are_bytes_a_second() -> None:
    ram = ACTIVE["ram"] | {"mbps": 80.0, "dirty-pages-rate": 1000, "dirty-sync-count": 3}
    progress = progress_untrusted(ACTIVE | {"total-time": 4000, "ram": ram})
    assert progress.bandwidth_bps == 10e6
    assert progress.dirty_rate_bps == 4096000
    idle = progress_untrusted(ACTIVE | {"total-time": 4000, "ram": ram | {"dirty-pages-rate": 0}})
    assert idle.dirty_rate_bps == 0


def test_no_migration_and_a_failed_one_are_answers_too() -> None:
    assert progress_untrusted({}) == MigrationProgress(MigrationStatus.NONE)
    failed = progress_untrusted({"status": "failed", "error-desc": "no", "blocked-reasons": ["a"]})
    assert (failed.error_desc, failed.blocked_reasons) == ("no", ("a",))
    for nonsense in ([], {"ram": 5}, {"blocked-reasons": 3}, None):
        with pytest.raises(MonitorGarbledError):
            progress_untrusted(nonsense)
