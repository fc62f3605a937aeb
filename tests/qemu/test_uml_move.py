"""A guest moves between hosts whose kernel is user-mode Linux: emulated in an emulated machine."""

import pytest

from tests.support.moving import Site

pytestmark = [pytest.mark.qemu, pytest.mark.net, pytest.mark.uml]
NAME = "tiny1"


@pytest.mark.long  # the agent at times finds its own last connection to the monitor still served
def test_a_tiny_guest_moves_with_its_memory_whole(site: Site) -> None:
    site.start(site.tiny(NAME))
    before = site.await_life(NAME)
    moved = site.migrate(NAME, "beta")
    assert moved.code == 0, moved.error or moved.stderr
    assert (site.copy(NAME).host, site.copy(NAME).state) == ("beta", "running")
    after = site.memory(NAME, before=before)
    assert not after.problem
    assert after.passes > before.passes, "it runs on"
