"""The guest's user owns the directory of its monitor, and may put there what he likes."""

import shutil

import pytest

from tests.support.faulting import Faulty

pytestmark = [pytest.mark.net, pytest.mark.qemu, pytest.mark.fault]

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
PLAIN = ("-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-nic", "none")


def qemu(name: str, monitor: str) -> list[str]:
    """Return the line of a guest of this name; both are alike in all else."""
    words = ("qemu-system-x86_64", "-name", name, *PLAIN)
    return [*words, "-qmp", f"unix:{monitor},server=on,wait=off"]


def test_a_link_in_the_monitor_s_place_does_not_make_another_guest_move(faulty: Faulty) -> None:
    site = faulty.site
    theirs = site.path("alpha", "/run/theirs")
    theirs.mkdir()
    site.undo.callback(shutil.rmtree, theirs)
    shutil.chown(theirs, NOBODY, NOBODY)
    site.start_argv(qemu("victim", "/run/victim.qmp"), "victim", "/run/victim.qmp")
    site.start_argv([*AS_NOBODY, *qemu("evil", "/run/theirs/q")], "evil", "/run/theirs/q")
    struck = faulty.begin("evil", points=["destination:at start:stop"])
    held = struck.hold("destination", "at start")  # the source's agent was not started yet
    (theirs / "q").unlink()
    (theirs / "q").symlink_to("/run/victim.qmp")
    held.release()
    moved = struck.finish()
    assert moved.code == 4, moved
    assert "not the guest's QEMU" in (moved.error or "")
    faulty.await_end(struck.job)
    assert [copy.host for copy in site.copies("victim")] == ["alpha"]
    assert [copy.state for copy in site.copies("victim")] == ["running"]
    (theirs / "q").unlink()
