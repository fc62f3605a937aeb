"""A host's facts against the real kernel and the real QEMU."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmigrate.agent import binary, process
from qmigrate.agent.host import gather_host_facts
from qmigrate.agent.requests import GetHostFacts
from qmigrate.core.errors import HostError

pytestmark = pytest.mark.qemu

QEMU = shutil.which("qemu-system-x86_64") or "no QEMU"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(binary, "CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


async def test_what_was_asked_for_is_there_and_what_is_not_is_left_out() -> None:
    facts = await gather_host_facts(
        GetHostFacts(users=("root", "nosuch", "4711"), groups=("nosuch", "root"))
    )
    assert facts.users == ("root", "4711")
    assert facts.groups == ("root",)
    assert facts.qemu_path == QEMU
    assert facts.qemu_version
    assert facts.qemu_version.startswith("10.")
    assert "tcg" in facts.accelerators
    assert "pc-q35-10.0" in facts.machines
    assert "q35" not in facts.machines
    assert facts.memory_available_bytes
    assert facts.run_free_bytes


async def test_no_qemu_is_a_fact_whether_or_not_it_was_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for asked in (None, "qemu-system-nosuch"):
        facts = await gather_host_facts(GetHostFacts(qemu=asked))
        assert (facts.qemu_path, facts.qemu_version, facts.machines) == (None, None, ())


@pytest.fixture
def roots_place() -> Iterator[Path]:
    """A directory that only root can write to, all the way up; /tmp is none."""
    with tempfile.TemporaryDirectory(prefix="qmigrate-test-", dir="/var/lib") as path:
        yield Path(path)


async def test_a_qemu_that_others_could_have_put_there_is_not_run(tmp_path: Path) -> None:
    tell_tale = tmp_path / "run"
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(f"#!/bin/sh\ntouch {tell_tale}\n")
    fake.chmod(0o777)
    with pytest.raises(HostError, match="not run as root"):
        await gather_host_facts(GetHostFacts(qemu=str(fake)))
    assert not tell_tale.exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo broken >&2; exit 3", "failed"),
        ("echo hello", "does not say its version"),
        ("exec sleep 100", "gave no answer in"),
    ],
)
async def test_a_qemu_that_does_not_answer_as_one_is_named(
    roots_place: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(binary, "ASK_DEADLINE_S", 0.5)
    fake = roots_place / "qemu-system-x86_64"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    with pytest.raises(HostError, match=why) as caught:
        await gather_host_facts(GetHostFacts(qemu=str(fake)))
    assert str(fake) in str(caught.value)


async def test_an_accelerator_works_when_a_guest_was_seen_to_run_and_only_then() -> None:
    assert await binary.shows_life_under(QEMU, "tcg")
    assert not await binary.shows_life_under(QEMU, "xen")


async def test_the_answer_about_kvm_is_kept_for_this_boot_and_this_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def show(path: str, accelerator: str) -> bool:
        asked.append(accelerator)
        return True

    monkeypatch.setattr(binary, "shows_life_under", show)
    monkeypatch.setattr(os, "access", lambda *_: True)  # as if /dev/kvm were there
    first, second = tmp_path / "qemu1", tmp_path / "qemu2"
    first.touch()
    second.touch()
    for path in (first, first, second):
        assert await binary.kvm_works(str(path))
    assert asked == ["kvm", "kvm"]
    os.chmod(cache, 0o722)  # noqa: PTH101, S103 - others could write there: not believed
    assert await binary.kvm_works(str(first))
    assert len(asked) == 3


async def test_a_guest_that_hangs_is_given_up_and_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "KVM_DEADLINE_S", 0.5)
    pid_file = tmp_path / "pid"
    mute = tmp_path / "mute"
    mute.write_text(f"#!/bin/sh\necho $$ >{pid_file}\nexec sleep 100\n")
    mute.chmod(0o755)
    with trio.fail_after(20):
        assert not await binary.shows_life_under(str(mute), "kvm")
    with pytest.raises(HostError, match="has ended"):
        process.look(int(pid_file.read_text()))
