"""Every capability and parameter of a migration, from one table, set each time.

QEMU keeps what was set after a migration has ended, on the destination too, and then uses it for
the next: a forgotten `multifd` hangs both sides, a forgotten `tls-creds` speaks TLS to a peer that
does not. So nothing is left to what may be there: each row is set to a value, on the sides that its
`party` names and to QEMU's own default on the other; what this QEMU does not report is left out.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from qmigrate.core.errors import BlockedError

Value = bool | int | str
Pairs = tuple[tuple[str, Value], ...]

MAX_DOWNTIME_LIMIT_MS = 2_000_000  # QEMU's own bound (migration/options.c)
UNLIMITED_BPS = 0  # `max-bandwidth` 0 is no limit (migration/migration-stats.h)


class Party(StrEnum):
    """Whose setting a row is."""

    SOURCE = "source"
    DESTINATION = "destination"
    BOTH = "both"

    def includes(self, side: "Party") -> bool:
        """Tell whether `side`, one of the first two, is meant."""
        return self in (Party.BOTH, side)


@dataclass(frozen=True, slots=True)
class Row:
    """A capability or parameter: its value for a live move over one descriptor, and where."""

    name: str
    value: Value
    party: Party = Party.BOTH
    otherwise: Value = False  # QEMU's default, for the side that is not meant
    required: bool = False  # a move without it is not safe


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose."""

    downtime_limit_ms: int = 20
    bandwidth_bps: int | None = None  # bytes/s; None: unlimited

    def __post_init__(self) -> None:
        if not 1 <= self.downtime_limit_ms <= MAX_DOWNTIME_LIMIT_MS:
            raise ValueError(
                f"a downtime limit is 1 to {MAX_DOWNTIME_LIMIT_MS} ms, not {self.downtime_limit_ms}"
            )
        if self.bandwidth_bps is not None and self.bandwidth_bps < 1:
            raise ValueError(f"a bandwidth is at least 1 byte/s, not {self.bandwidth_bps}")


@dataclass(frozen=True, slots=True)
class Tuning:
    """Capabilities and parameters: as a QEMU reports them, or to be set on it."""

    capabilities: tuple[tuple[str, bool], ...] = field(default=())
    parameters: Pairs = field(default=())


CAPABILITIES = (
    # What the handover (DESIGN §3) rests on.
    Row("events", value=True, required=True),  # else no MIGRATION event
    Row("return-path", value=True, required=True),  # else `completed` proves nothing
    Row("pause-before-switchover", value=True, party=Party.SOURCE, required=True),
    # Other ways of moving memory; one descriptor carries one stream.
    Row("multifd", value=False),  # refused over a descriptor; on one side only both hang for ever
    Row("mapped-ram", value=False),
    Row("rdma-pin-all", value=False),
    Row("zero-copy-send", value=False),
    Row("x-ignore-shared", value=False),
    # Postcopy: not in this mode.
    Row("postcopy-ram", value=False),
    Row("postcopy-preempt", value=False),
    Row("postcopy-blocktime", value=False),
    Row("release-ram", value=False),
    # Slowing or compressing the guest is the user's choice, not a leftover's.
    Row("auto-converge", value=False),
    Row("dirty-limit", value=False),
    Row("xbzrle", value=False),
    Row("zero-blocks", value=False),  # gone in 11.1
    # No part of a move over one descriptor.
    Row("background-snapshot", value=False),
    Row("x-colo", value=False),
    Row("dirty-bitmaps", value=False),
    Row("switchover-ack", value=False),
    Row("late-block-activate", value=False),  # without effect since 10.0
    Row("validate-uuid", value=False),  # only warns; the twin has the same -uuid
)

PARAMETERS = (
    Row("mode", "normal"),
    Row("max-bandwidth", UNLIMITED_BPS, Party.SOURCE, otherwise=128 << 20),
    Row("downtime-limit", 20, Party.SOURCE, otherwise=300),
    Row("avail-switchover-bandwidth", 0),  # 0: QEMU measures
    Row("max-postcopy-bandwidth", 0),
    Row("tls-creds", ""),  # encryption is the transport's
    Row("tls-hostname", ""),
    Row("tls-authz", ""),
    Row("multifd-compression", "none"),
    Row("zero-page-detection", "multifd"),
    Row("direct-io", value=False),
    # QEMU's own announcements: those of the destination count.
    Row("announce-initial", 50),
    Row("announce-max", 550),
    Row("announce-rounds", 5),
    Row("announce-step", 100),
)


def tune(reported: Tuning, side: Party, options: Options = Options()) -> Tuning:
    """Return all that must be set on the QEMU at `side` that reports `reported`, before a move.

    A capability that is on and that the table does not know is set off: someone's leftover.
    Raises `BlockedError` when this QEMU lacks one that a safe move needs.
    """
    known = dict(reported.capabilities)
    missing = [
        row.name
        for row in CAPABILITIES
        if row.required and row.party.includes(side) and row.name not in known
    ]
    if missing:
        raise BlockedError(
            f"the {side}'s QEMU has no migration capability {', '.join(missing)}",
            next_step="qmigrate needs QEMU 10.0 or later there",
        )
    wanted = {row.name: bool(_value(row, side)) for row in CAPABILITIES if row.name in known}
    strangers = {name: False for name, on in known.items() if on and name not in wanted}
    return Tuning(
        tuple((wanted | strangers).items()),
        tuple(
            (row.name, _chosen(row, side, options))
            for row in PARAMETERS
            if row.name in dict(reported.parameters)
        ),
    )


def change(options: Options) -> Tuning:
    """Return what takes effect on a source while its migration runs."""
    names = ("max-bandwidth", "downtime-limit")
    rows = [row for row in PARAMETERS if row.name in names]
    return Tuning((), tuple((row.name, _chosen(row, Party.SOURCE, options)) for row in rows))


def restore(before: Tuning, done: Tuning) -> Tuning:
    """Return what puts a QEMU that reported `before` back after `done` was set on it.

    Only what differs. Capabilities can be set when no migration runs, so after its final event.
    """
    capabilities, parameters = dict(before.capabilities), dict(before.parameters)
    return Tuning(
        tuple(
            (name, capabilities[name])
            for name, value in done.capabilities
            if capabilities.get(name, value) != value
        ),
        tuple(
            (name, parameters[name])
            for name, value in done.parameters
            if parameters.get(name, value) != value
        ),
    )


def _value(row: Row, side: Party) -> Value:
    return row.value if row.party.includes(side) else row.otherwise


def _chosen(row: Row, side: Party, options: Options) -> Value:
    if side is Party.SOURCE and row.name == "max-bandwidth":
        return UNLIMITED_BPS if options.bandwidth_bps is None else options.bandwidth_bps
    if side is Party.SOURCE and row.name == "downtime-limit":
        return options.downtime_limit_ms
    return _value(row, side)
