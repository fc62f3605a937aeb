"""What proves that two hosts have the same image, and that nothing stays beside it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from qmigrate.agent import disks
from qmigrate.agent.locks import destination_key, source_key
from qmigrate.agent.requests import (
    DiskProof,
    DiskProofs,
    ProveDisks,
    SeeDisks,
)


class Asker:
    """A session that hears proofs."""

    def __init__(self) -> None:
        self.heard = trio.Event()
        self.proofs: tuple[DiskProof, ...] = ()

    async def note(self, proofs: DiskProofs) -> None:
        self.proofs = proofs.proofs
        self.heard.set()


async def see(*proofs: DiskProof) -> tuple[DiskProof, ...]:
    ctx: Any = None
    return (await disks.see_disks(ctx, SeeDisks(proofs))).proofs


async def test_a_nonce_is_seen_while_the_question_stands_and_gone_when_it_is_cancelled(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    image = tmp_path / "d.raw"
    image.write_bytes(b"x" * 9)
    asker: Any = Asker()
    scope = trio.CancelScope()
    ended = trio.Event()

    async def prove() -> None:
        with scope:
            await disks.prove_disks(asker, ProveDisks((str(image),), ("/",)))
        ended.set()

    nursery.start_soon(prove)
    await asker.heard.wait()
    mine, root = asker.proofs
    assert (mine.size_bytes, root.identity) == (9, "directory")
    assert mine.nonce.startswith(disks.NONCE_PREFIX)
    assert (tmp_path / mine.nonce).exists()
    assert (tmp_path / mine.nonce).stat().st_mode & 0o777 == 0o600
    (there,) = await see(mine)
    assert (there.seen, there.size_bytes, there.identity) == (True, 9, mine.identity)
    scope.cancel()
    await ended.wait()
    assert [path.name for path in tmp_path.iterdir()]  # noqa: ASYNC240 - a test's own directory == ["d.raw"]
    (there,) = await see(mine)
    assert there.seen is False


async def test_nonces_are_removed_though_one_was_removed_by_somebody(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    asker: Any = Asker()
    scope, ended = trio.CancelScope(), trio.Event()

    async def prove() -> None:
        with scope:
            paths = tuple(str(tmp_path / name) for name in ("a", "b", "c"))
            await disks.prove_disks(asker, ProveDisks(paths, ()))
        ended.set()

    nursery.start_soon(prove)
    await asker.heard.wait()
    (tmp_path / asker.proofs[1].nonce).unlink()
    scope.cancel()
    await ended.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # noqa: ASYNC240


async def test_another_file_of_the_same_name_and_size_is_another(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
        (directory / "d").write_bytes(b"x" * 9)
    with disks._nonce_beside(str(here / "d")) as proof:
        told = DiskProof(str(there / "d"), proof.nonce, proof.size_bytes, proof.identity)
        (seen,) = await see(told)
    assert (seen.seen, seen.size_bytes) == (False, 9)
    assert seen.identity != proof.identity


async def test_a_nonce_lies_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "d").touch()
    (tmp_path / "d").symlink_to("store/d")
    with disks._nonce_beside(str(tmp_path / "d")) as proof:
        assert (tmp_path / "store" / str(proof.nonce)).exists()
        (seen,) = await see(proof)
        assert seen.seen is True


def test_what_is_missing_has_no_size_and_is_no_problem(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    assert disks.describe(path) == DiskProof(path)
    with disks._nonce_beside(path) as proof:
        assert proof == DiskProof(path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_asked_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disks.describe(str(tmp_path / "file" / "d")).problem == os.strerror(errno.ENOTDIR)
    (tmp_path / "loop").symlink_to("loop")
    assert disks.describe(str(tmp_path / "loop")).problem == os.strerror(errno.ELOOP)


def test_where_no_file_can_be_made_is_a_problem_of_that_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").touch()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with disks._nonce_beside(str(tmp_path / "d")) as proof:
        assert proof.problem == "no file can be made beside it: Read-only file system"


async def test_a_store_that_hangs_is_a_problem_of_its_image_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(look: Any, proof: DiskProof, **_: object) -> DiskProof:
        if proof.path == "/hangs":
            await trio.sleep_forever()
        found: DiskProof = look(proof)
        return found

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    hangs, missing = await see(DiskProof("/hangs"), DiskProof("/missing"))
    assert hangs.problem == "its storage did not answer within 10 s"
    assert missing == DiskProof("/missing")


def test_a_lock_is_named_by_what_it_guards_and_is_always_a_file_name() -> None:
    assert source_key(7, 99) == "pid-7-99"
    assert destination_key("u-1") == "guest-u-1"
    assert destination_key("../a b/c") == "guest-.._a_b_c"


@pytest.mark.parametrize("name", [".", "..", "d", "../store/d", "/etc/passwd", ".qmigrate-x", ""])
async def test_what_is_no_nonce_of_ours_proves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").touch()
    (tmp_path / ".qmigrate-x").touch()
    told = DiskProof(str(tmp_path / "d"), name, 0, "inode 1")
    assert not disks._look_for(told).seen


def test_a_nonce_goes_from_where_it_was_made_though_the_directory_was_swapped(
    tmp_path: Path,
) -> None:
    theirs, other = tmp_path / "theirs", tmp_path / "other"
    theirs.mkdir()
    other.mkdir()
    (theirs / "d").touch()
    with disks._nonce_beside(str(theirs / "d")) as proof:
        theirs.rename(tmp_path / "moved")
        theirs.symlink_to(other)
        (other / str(proof.nonce)).touch()
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["d"]
    assert (other / str(proof.nonce)).exists()
