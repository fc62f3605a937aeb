import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.core.tiny import FIRST_PAGE, PAGE_BYTES, TinySpec, boot_sector, shows_life
from qmigrate.lab import accel, images, tiny, workload
from qmigrate.lab.images import GuestSpec, LinuxBoot, TinyBoot, create_disk
from qmigrate.lab.workload import Verdict
from tests.support.lab_guest import (
    ANSWER_DEADLINE_S,
    IP4,
    IP6,
    PAGE,
    LabGuest,
    find_pages,
    linux_spec,
    place_with_tap,
    running,
)
from tests.support.netns import Namespace

pytestmark = [pytest.mark.qemu, pytest.mark.net]

RAM = 128 << 20
PATIENCE = 3000  # questions asked of a guest that is on its way to what a test waits for


class Probe:
    """The program `qmigrate.lab.probe`, as the lab runs it on the client host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_DEADLINE_S)
        assert ready, "the probe says nothing"
        message: dict[str, Any] = json.loads(self.process.stdout.readline())
        return message

    def tell(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def probing(place: Namespace, address: str) -> Iterator[Probe]:
    """Run the probe until the block ends; it is ready when the block begins."""
    argv = [sys.executable, "-m", "qmigrate.lab.probe", address]
    with place.entered():
        process = subprocess.Popen(argv, text=True, stdin=-1, stdout=-1)
    with process:
        try:
            probe = Probe(process)
            assert probe.read()["event"] == "ready"
            yield probe
        finally:
            process.kill()


@dataclass
class Machine:
    """A guest that answers, and the place from which it can be asked."""

    guest: LabGuest
    place: Namespace
    disk: Path

    def ask(self, line: str) -> workload.WorkloadState:
        with self.place.entered():
            return workload.command(IP4, line, limit_s=ANSWER_DEADLINE_S)


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    disk = create_disk(directory / "disk.raw")
    with (
        place_with_tap() as place,
        running(linux_spec(directory, disk=disk), directory, place=place) as guest,
        probing(place, IP4),
    ):
        yield Machine(guest, place, disk)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest that no test breaks."""
    with booted(tmp_path_factory.mktemp("guest")) as machine:
        yield machine


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest whose memory and disk the tests change by hand; what is broken stays so."""
    with booted(tmp_path_factory.mktemp("victim")) as machine:
        yield machine


@pytest.mark.parametrize("address", [IP4, IP6])
def test_the_guest_answers_ping(machine: Machine, address: str) -> None:
    assert " 0% packet loss" in machine.place.run("busybox", "ping", "-c1", address)


@pytest.mark.parametrize("address", [IP4, IP6])
def test_memory_and_disk_are_intact_while_both_are_written(machine: Machine, address: str) -> None:
    with machine.place.entered():
        first = workload.verify(address)
        later = first
        for _ in range(PATIENCE):
            later = workload.verify(address)
            if later.written > first.written and later.records > first.records:
                break
    assert (later.memory, later.disk) == (Verdict.INTACT, Verdict.INTACT)
    assert (later.bad_pages, later.bad_records) == (0, 0)
    assert later.written > first.written
    assert later.records > first.records
    assert later.chain != first.chain
    assert (later.boot_id, later.pages) == (first.boot_id, 8 * 256)


def test_a_reply_comes_from_the_address_that_was_asked_and_is_as_long(machine: Machine) -> None:
    with machine.place.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_DEADLINE_S)
        for number, size in ((1, 8), (2, 1400)):
            sock.sendto(number.to_bytes(8, "little").ljust(size, b"\0"), (IP6, 7))
            datagram, peer = sock.recvfrom(65536)
            assert peer[0] == IP6
            assert len(datagram) == max(size, workload.REPLY.size)
            assert workload.parse_reply_untrusted(datagram, 0.0).probe == number


def test_the_console_has_a_shell_that_can_ask_the_workload(machine: Machine) -> None:
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(ANSWER_DEADLINE_S)
        console.connect(str(machine.guest.directory / "console"))
        console.sendall(b"\nworkload verify; hostname\n")
        said = b""
        while not (b'"memory": "intact"' in said and b"\nimages-test\r" in said):
            said += console.recv(4096)


def test_a_command_that_makes_no_sense_is_refused_and_changes_nothing(machine: Machine) -> None:
    for line in ("poke 2048", "poke x", "rate", "hello", ""):
        with pytest.raises(UsageError, match="not a command"):
            machine.ask(line)
    assert machine.ask("verify").memory is Verdict.INTACT


@pytest.mark.parametrize("address", [IP4, IP6])
def test_the_probe_sees_a_pause_and_the_connection_survives_it(
    machine: Machine, address: str
) -> None:
    with probing(machine.place, address) as probe:
        probe.tell("mark control")
        probe.tell("report")  # takes half a second: it waits for stragglers
        quiet = probe.tell("report")
        probe.tell("mark pause")
        machine.guest.execute("stop")
        for _ in range(2):  # the silence that is judged lasts from the first to the third
            probe.tell("report")
        silent = probe.tell("report")
        machine.guest.execute("cont")
        probe.tell("report")  # probes that found the tap's queue full are lost for good
        awake = probe.tell("report")
    assert (quiet["problem"], quiet["tcp"]["broken"]) == (None, None)
    assert quiet["outage"]["longest_gap_ms"] < 500
    assert silent["problem"] == "the guest does not answer any more"
    assert (awake["problem"], awake["period"]) == (None, "pause")
    assert awake["outage"]["longest_gap_ms"] > 500
    assert awake["outage"]["noise_floor_ms"] >= quiet["outage"]["longest_gap_ms"]
    assert awake["tcp"]["broken"] is None
    assert awake["tcp"]["longest_stall_ms"] > 500
    assert awake["tcp"]["bytes"] > quiet["tcp"]["bytes"]
    assert awake["guest"]["boot_id"] == machine.ask("state").boot_id


def test_the_probe_s_last_report_comes_at_the_end_of_its_input(machine: Machine) -> None:
    with probing(machine.place, IP4) as probe:
        assert probe.tell("make coffee")["event"] == "error"
        assert probe.process.stdin
        probe.process.stdin.close()
        report = probe.read()
        assert (report["event"], report["period"], report["problem"]) == ("report", "start", None)
        assert probe.process.wait(ANSWER_DEADLINE_S) == 0


def test_an_older_copy_of_the_guest_is_found_out(tmp_path: Path) -> None:
    spec = linux_spec(tmp_path)
    saved = tmp_path / "saved"
    with place_with_tap() as place, contextlib.ExitStack() as stack:
        with running(spec, tmp_path, place=place) as guest:
            probe = stack.enter_context(probing(place, IP4))
            guest.execute("migrate", uri=f"file:{saved}")
            while guest.execute("query-status")["status"] != "postmigrate":
                pass  # "completed" comes earlier, and a cont then is refused
            guest.execute("cont")
            assert probe.tell("report")["problem"] is None  # this run has gone on for half a second
        with running(spec, tmp_path, "-incoming", f"file:{saved}", place=place):
            for _ in range(PATIENCE):
                problem = probe.tell("report")["problem"]
                if "copy" in (problem or ""):
                    break
    assert "older copy" in (problem or "")


def test_a_reboot_is_found_out_and_breaks_the_connection(machine: Machine) -> None:
    with probing(machine.place, IP4) as probe:
        # What came before the first reply is not kept: let this run be seen first.
        assert probe.tell("report")["problem"] is None
        machine.guest.execute("system_reset")
        report: dict[str, Any] = {}
        for _ in range(PATIENCE):
            report = probe.tell("report")
            if "rebooted" in (report["problem"] or "") and report["tcp"]["broken"]:
                break
    assert report["problem"] == "the guest was rebooted"
    assert report["tcp"]["broken"]
    assert machine.ask("verify").memory is Verdict.INTACT


def test_a_page_changed_by_hand_breaks_the_chain(victim: Machine) -> None:
    before = victim.ask("verify")
    victim.ask("rate 0")
    victim.ask("poke 1000")
    after = victim.ask("verify")
    assert (after.memory, after.bad_pages) == (Verdict.BROKEN, before.bad_pages + 1)
    assert victim.ask("verify").bad_pages == after.bad_pages  # seen twice, counted once


def test_the_worker_itself_sees_a_page_changed_by_hand(victim: Machine) -> None:
    victim.ask("rate 0")
    before = victim.ask("poke 1500")
    after = victim.ask("rate 100")
    for _ in range(PATIENCE):
        if after.written >= before.written + 2 * before.pages:
            break
        after = victim.ask("state")
    assert after.bad_pages == before.bad_pages + 1


def one_bit(now: bytes, _: bytes) -> bytes:
    return now[:3000] + bytes([now[3000] ^ 4]) + now[3001:]


def never_sent(now: bytes, _: bytes) -> bytes:
    return bytes(len(now))


def of_an_earlier_pass(_: bytes, earlier: bytes) -> bytes:
    return earlier


@pytest.mark.parametrize("harm", [one_bit, never_sent, of_an_earlier_pass])
def test_a_page_lost_by_a_migration_breaks_the_chain(victim: Machine, harm: Any) -> None:
    """Written into the guest's RAM from outside, as a migration that lost a page would leave it."""
    before = started = victim.ask("rate 100")
    while before.written < started.written + started.pages:  # what earlier tests broke is gone
        before = victim.ask("state")
    victim.guest.execute("stop")
    memory = victim.guest.read_memory(0, RAM)
    pages = find_pages(memory)
    victim.guest.execute("cont")
    assert pages.keys() == set(range(started.pages))
    number = 700
    address, turn = pages[number]
    earlier = memory[address : address + PAGE]
    for _ in range(PATIENCE):
        if victim.ask("state").passes > turn:
            break
    before = victim.ask("rate 0")
    victim.guest.execute("stop")
    now = victim.guest.read_memory(address, PAGE)
    assert now != earlier
    assert find_pages(now) == {number: (0, before.written // before.pages + (
        1 if number < before.written % before.pages else 0))}  # fmt: skip
    victim.guest.write_memory(address, harm(now, earlier))
    victim.guest.execute("cont")
    after = victim.ask("verify")
    assert (after.memory, after.bad_pages) == (Verdict.BROKEN, before.bad_pages + 1)


@pytest.mark.parametrize("harm", ["a lost write", "a write by someone else"])
def test_a_record_changed_on_the_disk_is_seen(victim: Machine, harm: str) -> None:
    before = victim.ask("verify")
    assert before.records > 1
    sector = 0 if harm == "a lost write" else 1
    with victim.disk.open("r+b") as file:
        file.seek(sector * 512)
        file.write(bytes(512) if harm == "a lost write" else os.urandom(512))
    after = victim.ask("verify")
    assert after.disk is Verdict.BROKEN
    assert after.bad_records == before.bad_records + 1


def test_two_builds_at_once_make_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built: list[images.LinuxImage] = []
    threads = [threading.Thread(target=lambda: built.append(images.linux_image())) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 2
    assert built[0] == built[1] == images.linux_image()
    cache = tmp_path / "qmigrate/images"
    assert [path.parent for path in cache.rglob("initrd")] == list(cache.iterdir())


def test_the_generic_kernel_drives_an_emulated_card(tmp_path: Path) -> None:
    spec = linux_spec(tmp_path)
    assert isinstance(spec.boot, LinuxBoot)
    spec = replace(
        spec,
        boot=replace(spec.boot, image=images.linux_image(images.GENERIC)),
        nics=tuple(replace(nic, model="e1000") for nic in spec.nics),
    )
    with (
        place_with_tap() as place,
        running(spec, tmp_path, place=place),
        probing(place, IP6) as probe,
        place.entered(),
    ):
        assert probe.tell("report")["problem"] is None
        assert workload.verify(IP6, limit_s=ANSWER_DEADLINE_S).memory is Verdict.INTACT


def tiny_spec(path: Path, machine: str, spec: TinySpec) -> GuestSpec:
    return GuestSpec(
        name="tiny-test",
        uuid="00000000-0000-4000-8000-0000000000bb",
        boot=TinyBoot(tiny.write_image(path / "tiny", spec)),
        monitor=str(path / "qmp"),
        memory_mib=max(16, spec.memory_mib),
        machine=machine,
        more=("-serial", "stdio"),
    )


def letters(process: subprocess.Popen[bytes], *, wanted: bytes) -> bytes:
    assert process.stdout
    said = b""
    while wanted not in said:
        assert select.select([process.stdout], [], [], ANSWER_DEADLINE_S)[0], said
        said += os.read(process.stdout.fileno(), 4096)
    return said


@pytest.mark.parametrize(
    ("machine", "spec"),
    [("q35", TinySpec()), ("pc", TinySpec()), ("q35", TinySpec(32, 100)), ("pc", TinySpec(4, 0))],
)
async def test_tiny_walks_and_its_memory_proves_it(
    tmp_path: Path, machine: str, spec: TinySpec
) -> None:
    with tiny_running(tiny_spec(tmp_path, machine, spec), tmp_path) as guest:

        async def read(address: int, size: int) -> bytes:
            return guest.read_memory(address, size)

        letters(guest.process, wanted=b"XYZABC")
        guest.execute("stop")
        first = await tiny.verify(read, spec)
        guest.execute("cont")
        letters(guest.process, wanted=b"XYZABC")
        guest.execute("stop")
        later = await tiny.verify(read, spec, before=first)
        assert (first.problem, later.problem) == ("", "")
        assert later.passes > first.passes >= 26
        page = spec.pages // 2
        address = FIRST_PAGE + page * PAGE_BYTES
        mark = (await read(address, 1))[0]
        guest.write_memory(address, bytes([(mark - 2) % 256]))
        assert f"page {page} holds" in (await tiny.verify(read, spec)).problem


@pytest.mark.parametrize("interface", ["ide", "virtio", "floppy"])
def test_tiny_boots_from_a_disk_too(tmp_path: Path, interface: str) -> None:
    image = tiny.write_image(tmp_path / "tiny")
    readonly = "" if interface == "ide" else ",readonly=on"
    argv = ["-M", "pc", "-m", "16", "-nodefaults", "-display", "none", "-serial", "stdio"]
    argv += ["-drive", f"file={image},format=raw,if={interface}{readonly}"]
    with subprocess.Popen(["qemu-system-x86_64", *argv], stdout=-1, stdin=-3) as process:
        try:
            assert shows_life(letters(process, wanted=b"ABC"))
        finally:
            process.kill()
    assert image.read_bytes().rstrip(b"\0") == boot_sector()


def test_an_accelerator_is_believed_only_when_a_guest_shows_life() -> None:
    assert accel.shows_life_under("qemu-system-x86_64", "tcg", limit_s=ANSWER_DEADLINE_S)
    assert not accel.shows_life_under("qemu-system-x86_64", "no-such-accelerator")
    assert not accel.shows_life_under("qemu-system-x86_64", "tcg", limit_s=0.0)
    assert accel.working_accelerator() in ("kvm", "tcg")
    accel.require_qemu(accel.qemu_version(), accel.working_accelerator())


@contextlib.contextmanager
def tiny_running(spec: GuestSpec, directory: Path) -> Iterator[LabGuest]:
    with running(spec, directory, stdout=subprocess.PIPE) as guest:
        yield guest
        assert guest.process.stdout
        guest.process.stdout.close()
