"""Directories and locks as root makes them, in a directory of the test's own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qmigrate.agent import locks, places
from qmigrate.agent.places import JobPlaces, guest_directory, secure_directory
from qmigrate.core.errors import HostError

pytestmark = pytest.mark.net
NOBODY = 65534


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where /run/qmigrate is for this test."""
    directory = tmp_path / "qmigrate"
    for module in (locks, places):
        monkeypatch.setattr(module, "RUN_DIRECTORY", str(directory))
    monkeypatch.setattr(places, "LOG_DIRECTORY", str(tmp_path / "log" / "qmigrate"))
    return directory


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_what_is_missing_is_made_with_its_mode_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        made = secure_directory(f"{tmp_path}/qmigrate/a/b", mode=0o711)
    finally:
        os.umask(before)
    assert [mode(made), mode(made.parent)] == [0o711, 0o711]
    assert secure_directory(str(made)) == made
    assert mode(made) == 0o711


def owned_by_a_stranger(path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


def writable_by_the_group(path: Path) -> None:
    path.mkdir()
    path.chmod(0o770)


def writable_by_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def a_file(path: Path) -> None:
    path.touch()


UNSAFE = [owned_by_a_stranger, writable_by_the_group, writable_by_all, a_link, a_file]


@pytest.mark.parametrize("below", ["", "/jobs/j"])
@pytest.mark.parametrize("make", UNSAFE, ids=lambda make: make.__name__)
def test_a_component_that_others_could_change_is_not_used(
    tmp_path: Path, make: object, below: str
) -> None:
    path = tmp_path / "qmigrate"
    assert callable(make)
    make(path)
    with pytest.raises(HostError) as caught:
        secure_directory(f"{path}{below}")
    assert str(path) in caught.value.problem.what
    assert caught.value.problem.next_step
    assert not (tmp_path / "elsewhere" / "jobs").exists()


def test_a_directory_that_all_may_write_to_is_safe_with_the_sticky_bit(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert secure_directory(f"{tmp_path}/tmp/qmigrate").is_dir()


def test_a_job_s_places_come_and_go_and_its_logs_stay(run: Path) -> None:
    job, other = JobPlaces("j1"), JobPlaces("j2")
    job.make()
    with pytest.raises(HostError, match="j1 is already on this host"):
        job.make()
    other.make()
    job.journal.touch()
    assert (mode(run), mode(job.directory), mode(job.logs)) == (0o711, 0o700, 0o700)
    job.remove()
    assert not job.directory.exists()
    assert other.directory.exists()
    other.remove()
    assert not run.exists()
    assert job.logs.is_dir()


def test_a_guest_s_directory_is_its_user_s_alone_and_goes_with_it(run: Path) -> None:
    path = guest_directory("u1")
    facts = path.stat()
    assert (mode(path), facts.st_uid, facts.st_gid) == (0o700, 0, 0)
    assert mode(path.parent) == 0o711
    os.chown(path, NOBODY, NOBODY)
    (path / "pid").touch()
    (path / "link").symlink_to("/etc/passwd")
    assert guest_directory("u1") == path
    assert path.stat().st_uid == 0
    assert list(path.iterdir()) == []  # what an earlier visit left is nobody's any more
    assert places.remove_guest_directory("u1") is None
    assert not run.exists()


@pytest.mark.parametrize("tag", ["", ".", "..", "a/b", "/", "../jobs", "a\n", "-x", "ü", "x" * 65])
def test_a_guest_s_directory_is_never_another_one(run: Path, tag: str) -> None:
    (run / "jobs" / "j1").mkdir(parents=True)
    (run / "guests").mkdir()
    before = run.stat()
    with pytest.raises(HostError, match="cannot be the name"):
        guest_directory(tag)
    with pytest.raises(HostError, match="cannot be the name"):
        places.remove_guest_directory(tag)
    assert (run / "jobs" / "j1").is_dir()
    assert run.stat().st_uid == before.st_uid


def test_a_directory_that_a_guest_lives_in_is_left_alone(run: Path) -> None:
    path = guest_directory("u1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "monitor"))
        listener.listen()
        assert "a process listens in it" in (places.remove_guest_directory("u1") or "")
        with pytest.raises(HostError, match="a process listens in it"):
            guest_directory("u1")
        assert (path / "monitor").exists()
    assert places.remove_guest_directory("u1") is None


def test_a_lock_is_held_once_and_names_its_holder(run: Path) -> None:
    held = locks.take("guest-u1", "job-a")
    with pytest.raises(HostError, match="already in job job-a") as caught:
        locks.take("guest-u1", "job-b")
    assert "job-a" in (caught.value.problem.next_step or "")
    other = locks.take("guest-u2", "job-b")
    locks.remove("guest-u1", held)
    again = locks.take("guest-u1", "job-b")
    assert (run / "locks" / "guest-u1").read_text() == "job-b"
    locks.remove("guest-u1", again)
    locks.remove("guest-u2", other)
    assert not list((run / "locks").iterdir())


def test_a_stale_file_of_a_dead_holder_is_no_lock(run: Path) -> None:
    os.close(locks.take("guest-u1", "a-job-with-a-long-name"))
    held = locks.take("guest-u1", "b")
    assert (run / "locks" / "guest-u1").read_text() == "b"
    locks.remove("guest-u1", held)


def test_a_lock_lives_as_long_as_one_process_that_inherited_it(run: Path) -> None:
    held = locks.take("guest-u1", "job-a")
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(held,),
    )
    try:
        os.close(held)
        with pytest.raises(HostError, match="job-a"):
            locks.take("guest-u1", "job-b")
    finally:
        child.communicate()
    locks.remove("guest-u1", locks.take("guest-u1", "job-b"))


def test_a_file_that_was_removed_between_open_and_lock_is_opened_anew(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = locks.take("guest-u1", "job-a")
    real, opened = os.open, []

    def remove_behind(path: Path, *args: int) -> int:
        descriptor = real(path, *args)
        opened.append(descriptor)
        if len(opened) == 1:
            locks.remove("guest-u1", held)  # its last holder ends at this very moment
        return descriptor

    monkeypatch.setattr(locks.os, "open", remove_behind)
    monkeypatch.setattr(locks, "secure_directory", lambda path, **_: Path(path))
    mine = locks.take("guest-u1", "job-b")
    monkeypatch.undo()
    assert len(opened) == 2
    named, ours = (run / "locks" / "guest-u1").stat(), os.fstat(mine)
    assert (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
    os.close(mine)


def test_a_lock_that_is_another_s_by_now_is_not_removed(run: Path) -> None:
    held = locks.take("guest-u1", "job-a")
    path = run / "locks" / "guest-u1"
    path.unlink()
    path.write_text("another's")
    locks.remove("guest-u1", held)
    assert path.read_text() == "another's"


def test_a_lock_s_file_is_not_followed_elsewhere(run: Path, tmp_path: Path) -> None:
    os.close(locks.take("guest-u2", "job"))
    (tmp_path / "precious").write_text("x")
    (run / "locks" / "guest-u1").symlink_to(tmp_path / "precious")
    with pytest.raises(HostError, match="guest-u1"):
        locks.take("guest-u1", "job-a")
    assert (tmp_path / "precious").read_text() == "x"
