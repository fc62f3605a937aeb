"""Each rule of preflight: when it is content, when it blocks, when it does not know."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qmigrate.core import network_rules
from qmigrate.core import preflight as room
from qmigrate.core.evidence import Facts
from qmigrate.core.images import ImageEvidence, writable_disks
from qmigrate.core.model import (
    Disk,
    Finding,
    Guest,
    GuestDetail,
    HostFacts,
    Owner,
    ProcessFacts,
    RunState,
    Severity,
)
from qmigrate.core.preflight import NAMES, UNFORCEABLE, blockers, preflight

DISK = Disk("vda", "n", "/i/d", "raw", read_only=False, size_bytes=1)
GUEST = Guest(
    pid=7,
    start_ticks=1,
    executable="/usr/bin/qemu-system-x86_64",
    argv=("qemu",),
    name="web1",
    uuid="u1",
    state=RunState.RUNNING,
    memory_bytes=64 << 20,
    vcpus=1,
    qemu_version="10.0.2",
    accelerator="tcg",
    machine="pc-q35-10.0",
    disks=(DISK,),
    nics=(),
    monitor="/run/q",
    monitor_problem=None,
    monitor_fix=None,
)
PROCESS = ProcessFacts("qemu", "qemu", ("kvm",), "/", 0o22, ())
SOURCE = HostFacts(
    hostname="a",
    boot_id="boot-a",
    machine_id=None,
    kernel="6",
    arch="x86_64",
    cpus=2,
    memory_available_bytes=1 << 30,
    uid=0,
    python="3.11",
    clock_synchronised=True,
    qemu_path="/usr/bin/qemu-system-x86_64",
    qemu_version="10.0.2",
    accelerators=("tcg",),
    machines=("pc-q35-10.0",),
    bridges=("br0",),
    users=("qemu",),
    groups=("qemu", "kvm"),
    run_free_bytes=1 << 30,
)
IMAGE = ImageEvidence("/i/d", True, 9, 9, True, True)
GOOD = Facts(
    detail=GuestDetail(GUEST, PROCESS, None, (), (), "none"),
    source_name="alpha",
    source=SOURCE,
    destination_name="beta",
    destination=replace(SOURCE, hostname="b", boot_id="boot-b"),
    destination_guests=(replace(GUEST, name="web2", uuid="u2"),),
    plan_findings=(),
    bridges=("br0",),
    images=(IMAGE,),
)
Change = Callable[[Facts], Facts]


def guest(**changes: Any) -> Change:
    return lambda f: replace(f, detail=replace(f.detail, guest=replace(f.guest, **changes)))


def detail(**changes: Any) -> Change:
    return lambda f: replace(f, detail=replace(f.detail, **changes))


def there(**changes: Any) -> Change:
    return lambda f: replace(f, destination=replace(f.destination, **changes))


def here(**changes: Any) -> Change:
    return lambda f: replace(f, source=replace(f.source, **changes))


def other(**changes: Any) -> Change:
    return lambda f: replace(f, destination_guests=(replace(GUEST, **changes),))


def image(**changes: Any) -> Change:
    return lambda f: replace(f, images=(replace(IMAGE, **changes),))


def both(*changes: Change) -> Change:
    def change(facts: Facts) -> Facts:
        for each in changes:
            facts = each(facts)
        return facts

    return change


B, U, W = Severity.BLOCKER, Severity.UNKNOWN, Severity.WARNING
TOO_OLD = both(guest(qemu_version="9.2.0"), here(qemu_version="9.2.0"))
RULES: list[tuple[Change, str, Severity, str, str]] = [
    (there(boot_id="boot-a"), "same-host", B, "beta", "alpha and beta are the same host"),
    (there(arch="aarch64"), "architecture", B, "beta", "aarch64, the source x86_64"),
    (guest(monitor=None), "monitor", B, "alpha", "no QMP monitor"),
    (guest(monitor_problem="pid 9 holds it"), "monitor", B, "alpha", "pid 9 holds it"),
    (guest(state=RunState.IO_ERROR), "guest-state", B, "alpha", "in state io-error"),
    (guest(state=RunState.INMIGRATE), "guest-state", B, "alpha", "in state inmigrate"),
    (guest(state=RunState.UNKNOWN), "guest-state", B, "alpha", "in state unknown"),
    (guest(state=RunState.POSTMIGRATE), "guest-state", B, "alpha", "already moved away"),
    (guest(state=None), "guest-state", U, "alpha", "state is not known"),
    (detail(migration_status="active"), "guest-state", B, "alpha", "(status active)"),
    (detail(migration_status="a-new-word"), "guest-state", B, "alpha", "(status a-new-word)"),
    (guest(job="j-1"), "in-job", B, "alpha", "already in job j-1"),
    (other(uuid="u9"), "already-there", B, "beta", "same name is there: web1, pid 7, running"),
    (other(name="x"), "already-there", B, "beta", "same UUID is there: x, pid 7, running"),
    (detail(blocked_reasons=("virtio-snd",)), "qemu-blocks", B, "alpha", "virtio-snd"),
    (detail(hotplugged=("nic2",)), "hot-plugged", B, "alpha", "nic2 was plugged in"),
    (guest(owner=Owner.LIBVIRT), "supervised", B, "alpha", "looked after by libvirt"),
    (guest(owner=Owner.PROXMOX), "supervised", B, "alpha", "proxmox"),
    (guest(owner=Owner.INCUS), "supervised", B, "alpha", "incus"),
    (guest(owner=Owner.SUPERVISOR), "supervised", B, "alpha", "supervisor"),
    (guest(owner=Owner.UNIT, unit="w.service"), "supervised", B, "alpha", "unit w.service"),
    (there(users=()), "account-missing", B, "beta", "user qemu, which is not there"),
    (there(groups=("qemu",)), "account-missing", B, "beta", "group kvm"),
    (there(bridges=("lan",)), "bridge-missing", B, "beta", "bridge br0; there is no such bridge"),
    (there(memory_available_bytes=1), "memory-short", B, "beta", "1 B"),
    (there(memory_available_bytes=None), "memory-short", U, "beta", "not known"),
    (guest(memory_bytes=None), "memory-short", U, "beta", "not known"),
    (here(run_free_bytes=5), "run-full", B, "alpha", "/run has"),
    (there(run_free_bytes=5), "run-full", B, "beta", "/run has"),
    (there(run_free_bytes=None), "run-full", U, "beta", "not known"),
    (there(qemu_path=None), "qemu-missing", B, "beta", "no qemu-system-x86_64 there"),
    (there(qemu_version="7.2.0"), "qemu-too-old", B, "beta", "QEMU 7.2 without KVM"),
    (there(qemu_version=None), "qemu-too-old", U, "beta", "version of QEMU is not known"),
    (TOO_OLD, "qemu-too-old", B, "alpha", "QEMU 9.2 without KVM"),
    (guest(qemu_version="11.1.3"), "qemu-older", W, "beta", "10.0.2 there is older than 11.1.3"),
    (there(machines=("pc-q35-9.2",)), "machine-missing", B, "beta", "type is pc-q35-10.0"),
    (there(machines=()), "machine-missing", U, "beta", "not known"),
    (guest(machine=None), "machine-missing", U, "beta", "not known"),
    (guest(accelerator="kvm"), "accelerator-missing", B, "beta", "runs under kvm"),
    (guest(accelerator=None), "accelerator-missing", U, "beta", "not known"),
    (there(accelerators=()), "accelerator-missing", U, "beta", "not known"),
    (image(problem="I/O error"), "disk-not-shared", U, "beta", "/i/d could not be looked at"),
    (image(destination_size_bytes=None), "disk-not-shared", B, "beta", "/i/d is not there"),
    (image(shared=False), "disk-not-shared", B, "beta", "left beside it is not seen there"),
    (image(shared=None), "disk-not-shared", U, "beta", "could not be proved"),
    (image(same_identity=None), "disk-not-shared", U, "beta", "could not be proved"),
    (image(same_identity=False), "disk-not-shared", B, "beta", "another file there"),
    (image(destination_size_bytes=8), "disk-not-shared", B, "beta", "another file there"),
    (image(writable=False, problem="x"), "image-missing", U, "beta", "could not be looked at"),
    (image(writable=False, destination_size_bytes=None), "image-missing", B, "beta", "not there"),
    (image(writable=False, destination_size_bytes=8), "image-missing", B, "beta", "has 8 bytes"),
    (guest(disks=(replace(DISK, share_rw=True),)), "share-rw", W, "alpha", "/i/d is open to other"),
]
IDS = [f"{number} {rule}: {case[-1]}" for number, case in enumerate(RULES) for rule in case[1:2]]


def test_where_all_is_well_nothing_is_said() -> None:
    assert preflight(GOOD) == ()


@pytest.mark.parametrize(("change", "rule", "severity", "host", "words"), RULES, ids=IDS)
def test_a_rule_says_what_stands_in_the_way_where_and_what_to_do(
    change: Change, rule: str, severity: Severity, host: str, words: str
) -> None:
    found = [f for f in preflight(change(GOOD)) if f.rule == rule]
    assert [(f.severity, f.host) for f in found] == [(severity, host)]
    assert words in found[0].message
    assert len(found[0].fix) > 10


CONTENT = [
    guest(owner=Owner.NONE, unit="session-1.scope"),
    lambda f: replace(guest(owner=Owner.UNIT, unit="w.service")(f), stop_unit=True),
    guest(state=RunState.PAUSED),
    guest(state=RunState.SHUTDOWN),
    guest(state=RunState.PRELAUNCH),
    detail(migration_status="failed"),
    detail(migration_status="completed"),
    detail(migration_status=None),
    both(guest(name=None, uuid=None), other(name=None, uuid=None)),
    both(TOO_OLD, guest(accelerator="kvm"), there(accelerators=("kvm",), qemu_version="9.2.0")),
    image(writable=False, shared=None, same_identity=None),
    lambda f: replace(f, bridges=("", "br0", "br0")),
    there(qemu_version="11.1.0"),
]


@pytest.mark.parametrize("change", CONTENT, ids=[str(number) for number in range(len(CONTENT))])
def test_a_rule_is_content_where_nothing_stands_in_the_way(change: Change) -> None:
    assert preflight(change(GOOD)) == ()


def test_every_rule_with_a_name_is_tried_here_and_none_is_without_a_name() -> None:
    elsewhere = {"unmappable"} | network_rules.NAMES  # each tried in test_network_rules
    assert {rule for _, rule, _, _, _ in RULES} | elsewhere == NAMES
    assert UNFORCEABLE <= NAMES


def test_all_is_said_at_once_blockers_first() -> None:
    facts = both(
        guest(qemu_version="11.0.0", job="j", memory_bytes=None), there(bridges=(), users=())
    )(GOOD)
    told = preflight(facts)
    assert [f.rule for f in told] == [
        "in-job",
        "account-missing",
        "bridge-missing",
        "memory-short",
        "qemu-older",
    ]
    assert [f.rule for f in blockers(told)] == [f.rule for f in told[:-1]]


def test_the_plan_s_findings_are_among_them() -> None:
    mine = Finding("unmappable", B, "alpha", "-snapshot", "start it without")
    assert preflight(replace(GOOD, plan_findings=(mine,))) == (mine,)


@pytest.mark.parametrize(("change", "rule", "severity", "host", "words"), RULES, ids=IDS)
def test_force_turns_one_rule_by_name_into_a_warning_where_that_can_be_wished_for(
    change: Change, rule: str, severity: Severity, host: str, words: str
) -> None:
    told = preflight(change(GOOD), force=frozenset((rule,)))
    for finding in told:
        if finding.rule == rule and rule not in UNFORCEABLE:
            assert finding.severity is W
            assert finding.message.endswith("(forced)") == (severity is not W)
        elif finding.rule == rule:
            assert finding.severity is severity
    elsewhere = preflight(change(GOOD), force=NAMES - {rule})
    assert [f.severity for f in elsewhere if f.rule == rule] == [severity]


def test_a_rule_never_raises_where_nothing_is_known() -> None:
    nothing = replace(
        GUEST,
        name=None,
        uuid=None,
        state=None,
        memory_bytes=None,
        qemu_version=None,
        accelerator=None,
        machine=None,
        monitor=None,
    )
    blind = replace(
        SOURCE,
        boot_id="c",
        memory_available_bytes=None,
        qemu_path="q",
        qemu_version=None,
        accelerators=(),
        machines=(),
        bridges=(),
        users=(),
        groups=(),
        run_free_bytes=None,
    )
    facts = replace(GOOD, detail=replace(GOOD.detail, guest=nothing), destination=blind)
    for rule in room.RULES:
        list(rule(facts))
    assert all(f.severity is not W for f in preflight(facts))


def test_only_files_that_the_guest_writes_to_must_be_shared() -> None:
    disks = (
        DISK,
        replace(DISK, device="cd", read_only=True),
        replace(DISK, device="net", path=None),
    )
    assert writable_disks(disks) == (DISK,)
