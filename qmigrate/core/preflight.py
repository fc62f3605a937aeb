"""What stands in the way of a move: facts of both hosts → findings, all at once.

A rule is a generator of `Finding`; it never raises and never stops at the first. What could not be
asked is UNKNOWN, which blocks like a blocker: not knowing is no pass. `--force RULE` turns one
rule's findings into warnings, where that can be wished for at all.
"""

from dataclasses import replace

from qmigrate.core import guest_rules, host_rules, network_rules
from qmigrate.core.evidence import Facts, Rule
from qmigrate.core.model import (
    Finding,
    Severity,
)

RULES: tuple[Rule, ...] = (
    guest_rules.same_host,
    guest_rules.architecture,
    guest_rules.monitor,
    guest_rules.guest_state,
    guest_rules.in_job,
    guest_rules.already_there,
    guest_rules.blocked_by_qemu,
    guest_rules.hot_plugged,
    guest_rules.supervised,
    host_rules.account,
    host_rules.bridge,
    host_rules.memory,
    host_rules.run_space,
    host_rules.qemu,
    host_rules.unlocked,
    host_rules.images,
)

# What cannot be wished away: without it there is nothing that could be moved, or two of it.
UNFORCEABLE = frozenset(
    ("same-host", "monitor", "guest-state", "in-job", "already-there", "qemu-missing", "run-full")
)

NAMES = network_rules.NAMES | frozenset(
    """
    same-host architecture monitor guest-state in-job already-there qemu-blocks hot-plugged
    supervised account-missing bridge-missing memory-short run-full qemu-missing qemu-too-old
    qemu-older machine-missing accelerator-missing disk-not-shared image-missing share-rw
    unmappable
    """.split()  # noqa: SIM905 - as in core/argv
)


def preflight(facts: Facts, *, force: frozenset[str] = frozenset()) -> tuple[Finding, ...]:
    """Return every finding, blockers first; those of a forced rule are warnings."""
    found = [finding for rule in RULES for finding in rule(facts)]
    found += facts.plan_findings
    found = [_forced(finding, force) for finding in found]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _forced(finding: Finding, force: frozenset[str]) -> Finding:
    forced = finding.rule in force and finding.rule not in UNFORCEABLE
    if not forced or finding.severity is Severity.WARNING:
        return finding
    message = f"{finding.message} (forced)"
    return replace(finding, severity=Severity.WARNING, message=message)


def blockers(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return those that refuse the move."""
    return tuple(f for f in findings if f.severity is not Severity.WARNING)
