"""Guests that move by the relay while the wire between the hosts breaks: nobody but us notices."""

import threading
from collections.abc import Callable

import pytest

from qmigrate.lab.selftest.faulty import traced
from tests.support.faulting import Faulty
from tests.support.moving import HOSTS, SLOWLY

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

CUT_S = 1.0  # a second is what is promised here; how long a cut lasts is no wait for anything
PORTS = (47100, 47103)


def _with_ports(faulty: Faulty) -> tuple[str, str]:
    """Return the option that makes both hosts use `PORTS`."""
    lines = [f"[hosts.{host}]\nport_range = [{PORTS[0]}, {PORTS[1]}]\n" for host in HOSTS]
    path = faulty.site.lab.images / "ports.toml"
    path.write_text("\n".join(lines))
    return "--config", str(path)


def _silence(faulty: Faulty) -> None:
    faulty.site.lab.cut("beta")
    try:
        threading.Event().wait(CUT_S)
    finally:
        faulty.site.lab.mend("beta")


def _reset(faulty: Faulty) -> None:
    """Reset every connection of the job; SSH is left alone."""
    low, high = PORTS
    for way in ("sport", "dport"):
        words = f"( {way} >= :{low} and {way} <= :{high} )"
        faulty.site.lab.run("beta", ["ss", "-K", "-t", "state", "established", words])


@pytest.mark.parametrize(
    ("transport", "cut", "reconnects"),
    [
        pytest.param("relay", _silence, 0, id="silence"),
        pytest.param("relay", _reset, 2, id="every connection is reset"),
        pytest.param("relay+zstd", _reset, 2, id="reset while it is packed"),
    ],
)
def test_a_wire_that_breaks_in_the_copy_does_not_end_it(
    faulty: Faulty, transport: str, cut: Callable[[Faulty], None], reconnects: int
) -> None:
    faulty.site.start(faulty.site.slow("tiny1", *traced()))
    faulty.before = faulty.site.await_life("tiny1")
    words = (*SLOWLY, "--transport", transport, *_with_ports(faulty))
    struck = faulty.begin("tiny1", *words, points=["source:after migrate:stop"])
    struck.hold("source", "after migrate").release()
    cut(faulty)
    moved = struck.finish()
    assert moved.code == 0, moved.error
    assert moved.result["transport"] == transport
    assert moved.result["plaintext"] is False
    link = moved.result["link"]
    assert link["reconnects"] >= reconnects, link
    assert link["payload_bytes"] >= moved.result["qemu"]["transferred_bytes"] * 0.9, link
    faulty.await_end(struck.job)
    copies = faulty.site.copies("tiny1")
    assert [(copy.host, copy.state) for copy in copies] == [("beta", "running")]
    assert faulty.site.memory("tiny1", before=faulty.before).problem == ""
    faulty.assert_never_two()
    assert faulty.site.leftovers("tiny1") == []


def test_a_wire_that_does_not_come_back_leaves_the_guest_where_it_was(faulty: Faulty) -> None:
    faulty.site.start(faulty.site.slow("tiny1", *traced()))
    faulty.before = faulty.site.await_life("tiny1")
    words = (*SLOWLY, "--transport", "relay", *_with_ports(faulty))
    struck = faulty.begin("tiny1", *words, points=["source:after migrate:stop"])
    held = struck.hold("source", "after migrate")
    faulty.site.lab.cut("beta")
    try:
        held.release()
        assert struck.finish().code == 5
        faulty.await_end(struck.job)  # beta has given up by itself: nobody could tell it
    finally:
        faulty.site.lab.mend("beta")
    copies = faulty.site.copies("tiny1")
    assert [(copy.host, copy.state) for copy in copies] == [("alpha", "running")]
    assert faulty.site.memory("tiny1", before=faulty.before).problem == ""
    faulty.assert_never_two()
    assert faulty.site.leftovers("tiny1") == []
