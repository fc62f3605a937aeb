"""Guests of many forms move, each in the state it had, and nothing is left where it was."""

import pytest

from tests.support.moving import Site

pytestmark = [pytest.mark.qemu, pytest.mark.net]


def test_a_guest_moves_there_and_back(site: Site) -> None:
    site.start(site.tiny())
    before = site.await_life("tiny1")
    for destination in ("beta", "alpha"):
        moved = site.migrate("tiny1", destination)
        assert moved.code == 0, moved.error
        copy = site.copy("tiny1")
        assert (copy.host, copy.state) == (destination, "running")
        before = site.memory("tiny1", before=before)
        assert before.problem == ""
    assert site.leftovers("tiny1") == []
