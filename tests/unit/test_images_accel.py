from pathlib import Path

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.lab import accel


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n", (10, 0, 2)),
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n", (7, 2, 22)),
        ("QEMU emulator version 11.1\n", (11, 1, 0)),
    ],
)
def test_a_version_is_read_as_qemu_says_it(said: str, version: tuple[int, int, int]) -> None:
    assert accel.parse_version(said) == version


def test_what_tells_no_version_is_not_trusted() -> None:
    with pytest.raises(UsageError, match="does not tell its version"):
        accel.parse_version("hello")


@pytest.mark.parametrize(
    ("version", "accelerator", "refused"),
    [((7, 2, 22), "tcg", True), ((9, 2, 0), "tcg", True), ((10, 0, 0), "tcg", False),
     ((11, 1, 3), "tcg", False), ((7, 2, 22), "kvm", False)],
)  # fmt: skip
def test_old_qemu_is_refused_under_tcg_only_and_told_why(
    version: tuple[int, int, int], accelerator: accel.Accelerator, *, refused: bool
) -> None:
    if not refused:
        accel.require_qemu(version, accelerator)
        return
    with pytest.raises(UsageError, match="corrupts guests") as caught:
        accel.require_qemu(version, accelerator)
    assert ">= 10.0" in (caught.value.problem.next_step or "")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A machine whose /dev/kvm opens; the list holds what the next boots show, taken in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\n")
    qemu.chmod(0o755)
    monkeypatch.setattr(accel.os, "access", lambda *_, **__: True)
    boots: list[bool] = []
    monkeypatch.setattr(accel, "shows_life_under", lambda *_: boots.pop(0))
    return boots


def test_the_answer_is_kept_until_qemu_changes(tmp_path: Path, machine: list[bool]) -> None:
    qemu = str(tmp_path / "qemu")
    machine[:] = [True]
    assert [accel.working_accelerator(qemu) for _ in range(3)] == ["kvm"] * 3
    machine[:] = [False]
    Path(qemu).write_text("#!/bin/sh\n# another\n")
    assert [accel.working_accelerator(qemu) for _ in range(3)] == ["tcg"] * 3
    machine[:] = [True]
    assert accel.working_accelerator(qemu, fresh=True) == "kvm"
    assert machine == []


@pytest.mark.parametrize("garbage", [b"", b"[1]", b'{"a', b'{"x": "kvm"}'])
def test_a_damaged_answer_is_asked_again(
    tmp_path: Path, machine: list[bool], garbage: bytes
) -> None:
    (accel.cache_directory("probes") / "kvm.json").write_bytes(garbage)
    machine[:] = [True]
    assert accel.working_accelerator(str(tmp_path / "qemu")) == "kvm"


def test_without_a_qemu_the_error_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="no qemu-system-nowhere") as caught:
        accel.working_accelerator("qemu-system-nowhere")
    assert "install QEMU >= 10.0" in (caught.value.problem.next_step or "")
