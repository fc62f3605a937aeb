"""Whoever would start a guest again is found by what it leaves around the guest."""

import pytest

from qmigrate.agent.supervision import Evidence, Supervision, Unit, cgroup_of, judge, unit_of
from qmigrate.core.model import Owner

QEMU = "/usr/bin/qemu-system-x86_64"
WEB = "/system.slice/web1.service"


def seen(*argv: str, **known: object) -> Evidence:
    return Evidence(100, QEMU, (QEMU, *argv), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("evidence", "owner"),
    [
        (seen("-name", "a"), Owner.NONE),
        (seen("-name", "guest=a,debug-threads=on", "-drive",
              "file=/var/lib/libvirt/images/a.img"), Owner.NONE),  # a place, not an owner
        (seen("-object", '{"qom-type":"secret","id":"masterKey0"}'), Owner.LIBVIRT),
        (seen("-object", "secret,file=/var/lib/libvirt/qemu/domain-3-a/master-key.aes"),
         Owner.LIBVIRT),
        (seen("-chardev", "socket,path=/home/u/.config/libvirt/qemu/lib/domain-1-a/monitor.sock"),
         Owner.LIBVIRT),
        (seen(cgroup="/machine.slice/machine-qemu\\x2d1\\x2da.scope/libvirt/emulator"),
         Owner.LIBVIRT),
        (seen(ancestors=((50, "virtqemud"), (1, "systemd"))), Owner.LIBVIRT),
        (seen("-id", "100", "-chardev", "socket,id=qmp,path=/var/run/qemu-server/100.qmp"),
         Owner.PROXMOX),
        (seen("-pidfile", "/var/run/qemu-server/100.pid"), Owner.PROXMOX),
        (seen(cgroup="/qemu.slice/100.scope"), Owner.PROXMOX),
        (seen("-readconfig", "/run/incus/web1/qemu.conf"), Owner.INCUS),
        (seen("-pidfile", "/var/snap/lxd/common/lxd/logs/a/qemu.pid"), Owner.INCUS),
        (seen("-pidfile", "/run/ganeti/kvm-hypervisor/pid/a"), Owner.SUPERVISOR),
        (seen(ancestors=((50, "runsv"), (40, "runsvdir"))), Owner.SUPERVISOR),
        (seen(ancestors=((60, "sh"), (50, "s6-supervise"))), Owner.SUPERVISOR),
        (seen(ancestors=((60, "bash"), (55, "sshd"), (50, "supervisord"))), Owner.NONE),
        (seen(ancestors=((60, "bash"), (1, "systemd"))), Owner.NONE),
        (seen(cgroup=WEB, unit=Unit("web1.service", None, "always", 100)), Owner.UNIT),
        (seen(cgroup=WEB, unit=Unit("web1.service", None, "on-failure", 90),
              ancestors=((90, "sh"), (1, "systemd"))), Owner.UNIT),
        (seen(cgroup=WEB, unit=Unit("web1.service", None, "always", 0)), Owner.UNIT),
        (seen(cgroup=WEB, unit=Unit("web1.service", None, "always", 999)), Owner.NONE),
        (seen(cgroup=WEB, unit=Unit("web1.service", None, "no", 100)), Owner.NONE),
        (seen(cgroup=WEB, unit=Unit("web1.service")), Owner.UNIT),  # not known is not no
        (seen(unit=Unit("ssh.service", None, "on-failure", 50),
              ancestors=((60, "bash"), (50, "sshd"))), Owner.NONE),
        (seen(unit=Unit("run-r1.scope")), Owner.NONE),
    ],
)  # fmt: skip
def test_the_owner_is_known_by_what_only_it_leaves(evidence: Evidence, owner: Owner) -> None:
    verdict = judge(evidence)
    assert verdict.owner is owner
    assert (verdict.reason is None) == (owner is Owner.NONE)


def test_a_unit_is_named_also_where_it_does_not_restart() -> None:
    verdict = judge(seen(unit=Unit("web1.service", None, "no", 100)))
    assert verdict == Supervision(Owner.NONE, "web1.service", None)


@pytest.mark.parametrize(
    ("text", "cgroup", "unit"),
    [
        (f"0::{WEB}\n", WEB, Unit("web1.service")),
        (f"9:name=systemd:{WEB}\n4:memory:/x\n0::/\n", WEB, Unit("web1.service")),
        ("9:name=systemd:/\n0::/user.slice/user-0.slice/session-3.scope\n",
         "/user.slice/user-0.slice/session-3.scope", Unit("session-3.scope")),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n",
         "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
         Unit("a.service", 1000)),
        ("0::/\n", "/", None),
        ("", "", None),
        ("garbage\n", "", None),
    ],
)  # fmt: skip
def test_the_unit_is_read_off_the_control_group(text: str, cgroup: str, unit: Unit | None) -> None:
    assert cgroup_of(text) == cgroup
    assert unit_of(cgroup) == unit
