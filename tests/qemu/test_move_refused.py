"""What cannot move is refused by name, with a way out, before anything was touched.

Every rule of `core.preflight` that a real host can break is broken here for real: another file, a
missing account, an older QEMU. What differs between the hosts is mounted over one host's own files.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qmigrate.core.preflight import NAMES
from qmigrate.lab.guests import LabGuest, guest_uuid
from qmigrate.lab.images import guest_argv
from qmigrate.lab.topologies import TOPOLOGIES
from tests.support.moving import SLOWLY, Moved, Qmp, Site

pytestmark = [pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
QEMU = "/usr/bin/qemu-system-x86_64"
ACCOUNT = 4711
CAN_BUS = ("-object", "can-bus,id=can0")  # nothing is known of whether it can move


@pytest.fixture(autouse=True)
def _one_path_to_qemu() -> None:
    if shutil.which("qemu-system-x86_64") != QEMU:
        pytest.skip(f"QEMU is not at {QEMU}, over which these tests mount others")


def refused(
    site: Site, *rules: str, code: int = 3, to: str = "beta", options: tuple[str, ...] = ()
) -> Moved:
    """Try to move the guest; see that it is refused by `rules` and that nothing has changed."""
    before = site.copies(NAME)
    done = site.migrate(NAME, to, *options)
    assert (done.code, sorted(done.rules)) == (code, sorted(rules)), (done.error, done.rules)
    assert done.result["outcome"] == "refused"
    for finding in done.result["findings"]:
        assert all(finding[key] for key in ("rule", "host", "message", "fix"))
    assert done.result["error"]["what"]
    assert "Traceback" not in done.stderr
    assert site.changes() == []
    assert site.copies(NAME) == before
    return done


def plain(site: Site, *more: str, **changes: Any) -> None:
    """Start a guest that could move, but for `more`."""
    site.start(site.tiny(NAME, *more, **{"nics": 0, **changes}))


# One function a case: it makes the host or the guest so that exactly its rule refuses.


def disk_on_one_host_only(site: Site) -> None:
    _local_disk(site, "alpha", 4)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio")


def disk_of_the_same_name_on_both_hosts(site: Site) -> None:
    for host in ("alpha", "beta"):
        _local_disk(site, host, 4)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio")


def read_only_image_missing(site: Site) -> None:
    _local_disk(site, "alpha", 4)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio,readonly=on")


def read_only_image_of_another_size(site: Site) -> None:
    _local_disk(site, "alpha", 4)
    _local_disk(site, "beta", 5)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio,readonly=on")


def firmware_missing(site: Site) -> None:
    shutil.copyfile("/usr/share/seabios/bios-256k.bin", site.path("alpha", "/run/own-bios.bin"))
    plain(site, "-bios", "/run/own-bios.bin")


def _local_disk(site: Site, host: str, mib: int) -> None:
    with site.path(host, "/run/local.img").open("wb") as disk:
        disk.truncate(mib << 20)


def account_missing(site: Site) -> None:
    passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    site.bind("alpha", "/etc/passwd", f"{passwd}keeper:x:{ACCOUNT}:{ACCOUNT}::/:/bin/false\n")
    site.bind("alpha", "/etc/group", f"{group}keepers:x:{ACCOUNT}:\n")
    theirs = site.path("alpha", "/run/theirs")
    theirs.mkdir()
    os.chown(theirs, ACCOUNT, ACCOUNT)
    spec = replace(site.tiny(nics=0).spec(), monitor="/run/theirs/qmp")
    user = ("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups")
    site.start_argv([*user, *guest_argv(spec)], NAME, spec.monitor)


def bridge_missing(site: Site) -> None:
    site.lab.run("alpha", ["ip", "link", "add", "br-far", "type", "bridge"])
    site.start(site.tiny())
    site.lab.run("alpha", ["ip", "link", "set", "tap-tiny1", "master", "br-far"])


def memory_short(site: Site) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    lines = ["MemAvailable: 65536 kB" if "MemAvailable" in line else line for line in lines]
    site.bind("beta", "/proc/meminfo", "\n".join(lines) + "\n")
    plain(site)


def run_full(site: Site) -> None:
    used = site.lab.run("beta", ["df", "-B1", "--output=used", "/run"]).stdout.split()[-1]
    size = int(used) + (512 << 10)
    site.lab.run("beta", ["mount", "-o", f"remount,size={size}", "/run"])
    site.undo.callback(site.lab.run, "beta", ["mount", "-o", "remount,size=50%", "/run"])
    plain(site)


def qemu_missing(site: Site) -> None:
    site.bind("beta", QEMU, "")
    plain(site)


def other_qemu(site: Site, script: str) -> None:
    """Put a script in the place of beta's QEMU; it finds the real one at ``$REAL``."""
    real = "/run/real/qemu-system-x86_64"
    site.path("beta", real).parent.mkdir()
    site.path("beta", real).touch()
    site.bind("beta", real, Path(QEMU))
    site.bind("beta", QEMU, f"#!/bin/bash\nREAL={real}\n{script}\n", mode=0o755)


def qemu_too_old(site: Site) -> None:
    other_qemu(
        site,
        '[ "$1" = -version ] && exec echo "QEMU emulator version 7.2.22 (Debian)"\n'
        'exec "$REAL" "$@"',
    )
    plain(site)


def machine_missing(site: Site) -> None:
    other_qemu(
        site,
        '[ "$1 $2" = "-machine help" ] && exec grep -v "^pc-q35-9.1 " <("$REAL" -machine help)\n'
        'exec "$REAL" "$@"',
    )
    plain(site, machine="pc-q35-9.1")


def supervised(site: Site) -> None:
    script = site.path("alpha", "/run/runsv")
    script.write_text('#!/bin/sh\nwhile :; do "$@"; done\n')
    script.chmod(0o755)
    site.start(site.tiny(nics=0), prefix=("/run/runsv",))


def without_a_monitor(site: Site) -> None:
    argv = list(guest_argv(site.tiny(nics=0).spec()))
    at = argv.index("-qmp")
    argv[at] = "-monitor"
    site.start_argv(argv, NAME, "/run/tiny1.qmp", greeting="QEMU")


def still_incoming(site: Site) -> None:
    plain(site, "-S", "-incoming", "defer")


def name_taken_there(site: Site) -> None:
    plain(site)
    stranger = replace(site.tiny(nics=0).spec(), uuid=guest_uuid("another"))
    site.start_argv(guest_argv(stranger), NAME, stranger.monitor, host="beta")


def uuid_taken_there(site: Site) -> None:
    plain(site)
    stranger = replace(site.tiny("other", nics=0).spec(), uuid=guest_uuid(NAME))
    site.start_argv(guest_argv(stranger), "other", stranger.monitor, host="beta")


def temporary_disks(site: Site) -> None:
    disk = site.shared("disk.img", 4)
    plain(site, "-drive", f"file={disk},format=raw,if=virtio", "-snapshot")


def unknown_object(site: Site) -> None:
    plain(site, *CAN_BUS)


def device_that_qemu_cannot_migrate(site: Site) -> None:
    disk = site.shared("disk.img", 4)
    nvme = ("-device", "nvme,serial=1,drive=d0")
    plain(site, "-drive", f"file={disk},format=raw,if=none,id=d0", *nvme)


def device_plugged_in_later(site: Site) -> None:
    plain(site, machine="pc")
    site.ask(NAME, "device_add", driver="virtio-rng-pci", id="late")


CASES: tuple[tuple[Callable[[Site], None], str, str], ...] = (
    # what is made so, the rules that refuse, a word of the error
    (disk_on_one_host_only, "disk-not-shared", "is not there"),
    (disk_of_the_same_name_on_both_hosts, "disk-not-shared", "beside it is not seen there"),
    (read_only_image_missing, "image-missing", "/run/local.img is not there"),
    (read_only_image_of_another_size, "image-missing", "5242880 bytes there, 4194304"),
    (firmware_missing, "image-missing", "/run/own-bios.bin is not there"),
    (account_missing, "account-missing account-missing", "user keeper"),  # and its group
    (memory_short, "memory-short", "64 MiB"),
    (run_full, "run-full", "/run has"),
    (qemu_missing, "qemu-missing", "qemu-system-x86_64"),
    (qemu_too_old, "qemu-too-old", "QEMU 7.2"),
    (machine_missing, "machine-missing", "pc-q35-9.1"),
    (supervised, "supervised", "runsv"),
    # What it would have answered is not known either, and that is no pass.
    (without_a_monitor, "monitor", "HMP"),
    (still_incoming, "guest-state", "inmigrate"),
    (name_taken_there, "already-there", "same name"),
    (uuid_taken_there, "already-there", "same UUID"),
    # The files that QEMU has already unlinked are on no other host.
    (temporary_disks, "disk-not-shared unmappable", "-snapshot"),
    (unknown_object, "unmappable", "can-bus"),
    (device_that_qemu_cannot_migrate, "qemu-blocks", "nvme"),
    (device_plugged_in_later, "hot-plugged", "late"),
)


@pytest.mark.parametrize(("arrange", "rules", "word"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_guest_that_cannot_move_is_refused_by_name(
    site: Site, arrange: Callable[[Site], None], rules: str, word: str
) -> None:
    arrange(site)
    done = refused(site, *rules.split())
    assert word in done.error


def test_a_guest_whose_bridge_is_not_there_is_refused_if_no_tunnel_is_wanted(site: Site) -> None:
    bridge_missing(site)
    done = site.migrate(NAME, "beta", "--tunnel", "none")
    assert (done.code, done.rules) == (3, ["bridge-missing"])
    assert "br-far" in done.error
    assert site.changes() == []


def test_a_guest_whose_monitor_another_holds_is_refused(site: Site) -> None:
    plain(site)
    held = Qmp(site.path("alpha", "/run/tiny1.qmp"))
    try:
        before = [copy.pid for copy in site.qemus(NAME)]
        done = site.migrate(NAME, "beta")
        assert (done.code, done.rules[0]) == (3, "monitor")
        assert "serves another client" in done.error
        assert site.changes() == []
        assert held.execute("query-status")["status"] == "running"
        assert [copy.pid for copy in site.qemus(NAME)] == before
    finally:
        held.close()


def test_all_that_stands_in_the_way_is_said_at_once(site: Site) -> None:
    memory_short_lines(site)
    _local_disk(site, "alpha", 4)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio", *CAN_BUS)
    done = refused(site, "memory-short", "disk-not-shared", "unmappable")
    assert all(f"[{rule}]" in done.error for rule in done.rules)


def memory_short_lines(site: Site) -> None:
    site.bind("beta", "/proc/meminfo", "MemTotal: 65536 kB\nMemAvailable: 65536 kB\n")


def test_one_rule_is_forced_by_name_and_the_others_hold(site: Site) -> None:
    memory_short_lines(site)
    plain(site, *CAN_BUS)
    refused(site, "unmappable", options=("--force", "memory-short"))
    refused(site, "memory-short", options=("--force", "unmappable"))


def test_a_forced_rule_is_a_warning_of_a_move_that_is_done(site: Site) -> None:
    memory_short_lines(site)
    plain(site)
    done = site.migrate(NAME, "beta", "--force", "memory-short")
    assert (done.code, site.copy(NAME).host) == (0, "beta")
    [finding] = done.result["findings"]
    assert (finding["rule"], finding["severity"]) == ("memory-short", "warning")
    assert "(forced)" in finding["message"]


def test_a_disk_open_to_other_writers_is_a_warning(site: Site) -> None:
    disk = site.shared("disk.img", 4)
    drive = f"file={disk},format=raw,if=none,id=d0"
    plain(site, "-drive", drive, "-device", "virtio-blk-pci,drive=d0,share-rw=on")
    done = site.run("check", NAME, "beta", "--json")
    assert (done.code, done.result["movable"]) == (0, True)
    assert [f["rule"] for f in done.result["findings"]] == ["share-rw"]


def test_a_bridge_of_another_name_is_used_where_the_user_says_so(site: Site) -> None:
    bridge_missing(site)
    for words in (  # in the segment of br0, by a way of its own
        "add far0 index 1900 type veth peer name far1",
        "set far0 master br0 up",
        "set far1 master br-far up",
        "set br-far up",
    ):
        site.lab.run("alpha", ["ip", "link", *words.split()])
    done = site.migrate(NAME, "beta", "--bridge", "br-far=br0")
    assert done.code == 0, done.error
    assert site.copy(NAME).host == "beta"
    assert "tap-tiny1 tun master br0" in site.lab.snapshot_host("beta").links


# What the command line cannot mean

MORE_HOSTS = """
[hosts.mirror]
ssh = "{alpha}"
[hosts.third]
ssh = "{beta}"
"""


def with_more_hosts(site: Site) -> dict[str, str]:
    """Return an environment in which alpha and beta have a second name each."""
    config = site.lab.images / "config.toml"
    nodes = {node.name: node.address for node in TOPOLOGIES["same-segment"].nodes}
    config.write_text(site.lab.config.read_text() + MORE_HOSTS.format(**nodes))
    return {"QMIGRATE_CONFIG": str(config)}


@dataclass(frozen=True, slots=True)
class Wrong:
    """A command line, its exit code and a word of the error."""

    words: tuple[str, ...]
    code: int
    says: str


WRONG = {
    "unknown guest": Wrong(("nobody", "beta"), 2, "no guest nobody"),
    "unknown host": Wrong(("tiny1", "nowhere"), 4, "nowhere"),
    "unknown rule": Wrong(("tiny1", "beta", "--force", "nonsense"), 2, "nonsense"),
    "unforceable rule": Wrong(("tiny1", "beta", "--force", "in-job"), 2, "cannot be forced"),
    "limits upside down": Wrong(("tiny1", "beta", "--downtime-limit", "500"), 2, "--max-downtime"),
    "no address": Wrong(("tiny1", "beta", "--address", "1.2.3"), 2, "--address"),
    "where it is already": Wrong(("tiny1", "alpha"), 2, "is on alpha already"),
    "from where it goes": Wrong(("tiny1", "alpha", "--from", "alpha"), 2, "no other host"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wish_that_means_nothing_is_refused(site: Site, case: str) -> None:
    wrong = WRONG[case]
    plain(site)
    before = site.copies(NAME)
    done = site.migrate(*wrong.words)
    assert done.code == wrong.code, done.stdout
    assert wrong.says in done.error
    assert site.changes() == []
    assert site.copies(NAME) == before


def test_two_names_of_one_host_are_no_way_to_move(site: Site) -> None:
    plain(site)
    env = with_more_hosts(site)
    done = site.run("migrate", NAME, "mirror", "--from", "alpha", "--json", env=env)
    assert done.code == 3
    assert "same-host" in done.rules
    assert site.copy(NAME).host == "alpha"
    assert site.changes() == []


def test_a_guest_on_two_hosts_is_moved_from_neither(site: Site) -> None:
    plain(site)
    site.start_argv(guest_argv(site.tiny(nics=0).spec()), NAME, "/run/tiny1.qmp", "beta")
    before = site.copies(NAME)
    env = with_more_hosts(site)
    done = site.run("migrate", NAME, "third", "--json", env=env)
    assert done.code == 2, done.stdout
    assert re.search("tiny1 is on .*alpha", done.error)
    assert "--from HOST" in done.error
    assert site.copies(NAME) == before
    assert site.changes() == []


# A twin that is not the guest's: QEMU itself would take it

WITH_ITS_OWN = 'for word; do argv+=("{}"); done; exec "$REAL" "${{argv[@]}}"'
TWINS = {
    "CPU": (WITH_ITS_OWN.format("${word/#qemu64/qemu64,-sse3}"), "other CPUID features"),
    "MAC": (WITH_ITS_OWN.format("${word/mac=52:54:00/mac=52:54:01}"), "MAC of"),
    "memory": (WITH_ITS_OWN.format("${word/#32/64}"), "RAM block"),
    "device": ('exec "$REAL" "$@" -device virtio-rng-pci', "device at"),
    "vCPUs": ('exec "$REAL" "$@" -smp 2', "vCPUs there are 2"),
}


@pytest.mark.parametrize("part", TWINS)
def test_a_twin_of_another_kind_is_refused_before_a_byte_moves(site: Site, part: str) -> None:
    script, word = TWINS[part]
    starts = '[[ " $* " != *" -incoming "* ]] && exec "$REAL" "$@"\n'
    other_qemu(site, starts + script)
    site.start(site.tiny(NAME, "-cpu", "qemu64"))
    before = site.ask(NAME, "query-migrate")
    done = refused(site, "twin-differs")
    assert word in done.error
    assert site.ask(NAME, "query-migrate") == before == {"blocked-reasons": []} or before == {}


def test_a_twin_with_another_disk_is_refused_before_a_byte_moves(site: Site) -> None:
    _local_disk(site, "alpha", 4)
    _local_disk(site, "beta", 8)
    plain(site, "-drive", "file=/run/local.img,format=raw,if=virtio")
    before = site.ask(NAME, "query-migrate")
    done = refused(site, "twin-differs", options=("--force", "disk-not-shared"))
    assert "4194304 bytes, there 8388608 bytes" in done.error
    assert site.ask(NAME, "query-migrate") == before


def test_a_twin_that_does_not_start_is_said_in_qemus_words(site: Site) -> None:
    starts = '[[ " $* " != *" -incoming "* ]] && exec "$REAL" "$@"\n'
    other_qemu(site, starts + 'exec "$REAL" "$@" -device no-such-device')
    plain(site)
    done = refused(site, code=4)
    assert "no-such-device" in done.error
    assert done.result["error"]["host"] == "beta"


# Two at once


def test_of_two_controllers_one_moves_the_guest_and_the_other_says_so(site: Site) -> None:
    site.start(site.slow())
    before = site.await_life(NAME)
    first = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
    second = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
    ended = sorted((first.finish(), second.finish()), key=lambda moved: moved.code)
    assert (ended[0].code, ended[0].result["outcome"]) == (0, "migrated")
    assert ended[1].code in (3, 4), ended[1].stdout
    assert ended[1].result["outcome"] == "refused"
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "running")
    assert site.memory(NAME, before=before).problem == ""
    assert site.leftovers(NAME) == []


def test_a_guest_that_is_moving_is_in_a_job(site: Site) -> None:
    site.start(site.slow(seconds=10))
    first = site.begin("migrate", NAME, "beta", "--json", *SLOWLY)
    first.until_phase("copy")
    [job] = site.jobs("alpha")
    done = site.migrate(NAME, "beta")
    assert done.code == 3, done.stdout
    assert "in-job" in done.rules
    assert job in done.error
    first.process.send_signal(signal.SIGINT)
    assert first.finish().code == 6
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("alpha", "running")


# Asking without touching


@pytest.fixture
def blocked(site: Site) -> LabGuest:
    """Have a guest with one thing in the way."""
    memory_short_lines(site)
    guest = site.tiny()
    site.start(guest)
    return guest


def test_check_says_what_stands_in_the_way(site: Site, blocked: LabGuest) -> None:
    done = site.run("check", blocked.name, "beta")
    assert done.code == 3
    assert "blocker [memory-short] beta: " in done.stderr
    assert done.stdout == "tiny1 cannot move to beta\n"
    done = site.run("check", blocked.name, "beta", "--json")
    assert done.code == 3
    assert done.result["schema"] == "qmigrate.check/1"
    assert (done.result["movable"], done.rules) == (False, ["memory-short"])
    done = site.run("check", blocked.name, "beta", "--force", "memory-short")
    assert (done.code, done.stdout) == (0, "tiny1 can move to beta\n")
    assert site.changes() == []


def test_a_dry_run_shows_the_twins_command_line_and_touches_nothing(
    site: Site, blocked: LabGuest
) -> None:
    done = site.migrate(blocked.name, "beta", "--dry-run")
    assert (done.code, done.rules) == (3, ["memory-short"])
    plan = done.result
    assert (plan["schema"], plan["movable"]) == ("qmigrate.plan/1", False)
    argv = plan["argv"]
    assert argv[argv.index("-machine") + 1].startswith("pc-q35-")
    assert "defer" in argv
    assert {"before", "after", "why"} == set(plan["changes"][0])
    assert [tap["bridge"] for tap in plan["taps"]] == ["br0"]
    force = ("--force", "memory-short")
    done = site.run("migrate", blocked.name, "beta", "--dry-run", *force)
    assert done.code == 0
    assert "- -machine q35\n+ -machine pc-q35-" in done.stdout
    assert "tiny1: alpha → beta, live\n" in done.stdout
    assert site.changes() == []
    assert site.copy(blocked.name).host == "alpha"


def test_every_rule_is_broken_here_but_those_that_need_another_machine() -> None:
    broken = {rule for _, rules, _ in CASES for rule in rules.split()} | {
        "in-job",
        "same-host",
        "share-rw",
        "bridge-missing",
    }
    on_subnets = {"segment-apart", "tunnel", "tunnel-impossible"}  # test_move_subnets.py
    # Networks with each of these traps are in tests/net/test_adjacency_places.py; how they become
    # findings, in tests/unit/test_network_rules.py.
    of_segments = {"segment-unknown", "segment-trap", "guest-mac-there"}
    # A host of another architecture, one without KVM for a guest that has it, and a QEMU of
    # another version are not to be had on every machine; tests/unit has these.
    of_other_machines = {"architecture", "accelerator-missing", "qemu-older"}
    assert NAMES - broken == on_subnets | of_segments | of_other_machines
