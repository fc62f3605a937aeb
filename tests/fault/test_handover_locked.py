"""A copy that may run and that QEMU does not let run, since a third holds its image: on both sides.

Neither is a reason to give the copy up: it is told to run again, until the lock has gone.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.faulting import Faulty
from tests.support.takeover import asked, assert_ended_on

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

LOCK_AT, LOCK_BYTES = 100, 200  # where QEMU locks an image (block/file-posix.c, raw_apply_lock)


@contextmanager
def _locked(image: Path) -> Iterator[None]:
    """Hold all of an image's locks, as a QEMU that shares none does."""
    with image.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_BYTES, LOCK_AT)
        yield


def _start(faulty: Faulty) -> Path:
    disk = faulty.site.shared("tiny1.img", 4)
    faulty.site.start(replace(faulty.tiny(), disk=disk))
    faulty.before = faulty.site.await_life("tiny1")
    return Path(disk)


def test_a_source_is_brought_back_as_soon_as_its_image_is_free(faulty: Faulty) -> None:
    disk = _start(faulty)
    struck = faulty.begin("tiny1", points=["source:before record away:stop"])
    held = struck.hold("source", "before record away")
    struck.kill_qemu("beta")
    with _locked(disk):
        held.release()
        struck.heard("alpha", "stuck:")
        assert not any(ran.goes_on for ran in faulty.ran())
    struck.finish()
    assert_ended_on(faulty, struck, "alpha")


def test_the_last_copy_is_not_given_up_while_its_image_is_locked(faulty: Faulty) -> None:
    disk = _start(faulty)
    struck = faulty.begin("tiny1", points=["source:before record away:stop"])
    struck.hold("source", "before record away")
    faulty.power_off("alpha")
    assert struck.finish().code == 7
    with _locked(disk):
        assert "problem" not in asked(faulty, "tell", struck.job, "beta", "run-here")
        struck.heard("beta", "cont-unknown:")
        assert not any(ran.goes_on for ran in faulty.ran())
    struck.heard("beta", "--runs--> running")
    assert "problem" not in asked(faulty, "tell", struck.job, "beta", "peer-is-dead")
    faulty.await_end(struck.job, "beta")
    faulty.power_on("alpha")
    assert_ended_on(faulty, struck, "beta")
