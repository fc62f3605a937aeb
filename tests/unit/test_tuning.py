"""The table of capabilities and parameters; what a QEMU reports is recorded from the real one."""

import pytest

from qmigrate.core.errors import BlockedError
from qmigrate.core.tuning import (
    CAPABILITIES,
    PARAMETERS,
    Options,
    Party,
    Tuning,
    change,
    restore,
    tune,
)

# QEMU 10.0.2, query-migrate-capabilities: all false. 11.1 lacks zero-blocks.
NAMES_10 = (
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
    "mapped-ram",
)
FRESH = Tuning(
    tuple((name, False) for name in NAMES_10),
    (
        ("cpu-throttle-tailslow", False),
        ("xbzrle-cache-size", 67108864),
        ("announce-max", 550),
        ("direct-io", False),
        ("avail-switchover-bandwidth", 0),
        ("zero-page-detection", "multifd"),
        ("multifd-channels", 2),
        ("mode", "normal"),
        ("announce-initial", 50),
        ("downtime-limit", 300),
        ("tls-authz", ""),
        ("multifd-compression", "none"),
        ("announce-rounds", 5),
        ("announce-step", 100),
        ("tls-creds", ""),
        ("max-postcopy-bandwidth", 0),
        ("tls-hostname", ""),
        ("max-bandwidth", 134217728),
    ),
)


@pytest.mark.parametrize("side", [Party.SOURCE, Party.DESTINATION])
def test_every_capability_of_this_qemu_is_set_on_each_side(side: Party) -> None:
    done = dict(tune(FRESH, side, Options()).capabilities)
    assert set(done) == set(NAMES_10)
    on = {name for name, value in done.items() if value}
    both = {"events", "return-path"}
    assert on == (both | {"pause-before-switchover"} if side is Party.SOURCE else both)


def test_the_source_is_not_throttled_and_the_destination_is_left_at_the_default() -> None:
    source = dict(tune(FRESH, Party.SOURCE, Options(downtime_limit_ms=20)).parameters)
    assert (source["max-bandwidth"], source["downtime-limit"]) == (0, 20)
    slow = Options(bandwidth_bps=1000, downtime_limit_ms=77)
    source = dict(tune(FRESH, Party.SOURCE, slow).parameters)
    assert (source["max-bandwidth"], source["downtime-limit"]) == (1000, 77)
    destination = dict(tune(FRESH, Party.DESTINATION, slow).parameters)
    assert (destination["max-bandwidth"], destination["downtime-limit"]) == (134217728, 300)


def test_what_someone_left_behind_is_put_right_and_back_again() -> None:
    left = Tuning(
        (*((n, n in ("multifd", "xbzrle")) for n in NAMES_10), ("of-version-12", True)),
        tuple(
            (n, {"tls-creds": "tls0", "max-bandwidth": 5}.get(n, v)) for n, v in FRESH.parameters
        ),
    )
    done = tune(left, Party.SOURCE, Options())
    capabilities = dict(done.capabilities)
    assert not any(capabilities[n] for n in ("multifd", "xbzrle", "of-version-12"))
    assert dict(done.parameters)["tls-creds"] == ""
    back = restore(left, done)
    assert set(back.capabilities) == {
        ("multifd", True),
        ("xbzrle", True),
        ("of-version-12", True),
        ("events", False),
        ("return-path", False),
        ("pause-before-switchover", False),
    }
    assert set(back.parameters) == {
        ("tls-creds", "tls0"),
        ("max-bandwidth", 5),
        ("downtime-limit", 300),
    }


def test_what_a_qemu_does_not_report_is_not_set() -> None:
    small = Tuning(
        tuple((n, False) for n in ("events", "return-path", "pause-before-switchover")),
        (("downtime-limit", 300),),
    )
    assert tune(small, Party.SOURCE, Options()) == Tuning(
        tuple((n, True) for n, _ in small.capabilities), (("downtime-limit", 20),)
    )


@pytest.mark.parametrize("name", ["events", "return-path", "pause-before-switchover"])
def test_a_source_without_what_the_handover_needs_is_refused(name: str) -> None:
    lacking = Tuning(tuple(row for row in FRESH.capabilities if row[0] != name), ())
    with pytest.raises(BlockedError, match=name):
        tune(lacking, Party.SOURCE, Options())
    if name == "pause-before-switchover":  # the source's alone
        tune(lacking, Party.DESTINATION, Options())


def test_a_running_migration_changes_only_what_may_change() -> None:
    assert change(Options(downtime_limit_ms=100)) == Tuning(
        (), (("max-bandwidth", 0), ("downtime-limit", 100))
    )


def test_no_row_stands_twice() -> None:
    for table in (CAPABILITIES, PARAMETERS):
        names = [row.name for row in table]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("limit_ms", "bandwidth_bps"), [(0, None), (2_000_001, None), (20, 0), (20, -1)]
)
def test_options_out_of_qemus_bounds_are_refused(limit_ms: int, bandwidth_bps: int | None) -> None:
    with pytest.raises(ValueError, match=r"downtime limit|bandwidth"):
        Options(downtime_limit_ms=limit_ms, bandwidth_bps=bandwidth_bps)
