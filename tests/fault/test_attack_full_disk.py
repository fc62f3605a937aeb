"""A disk that fills up at the worst moment takes words away, and not the guest."""

import pytest

from tests.support.faulting import Faulty

pytestmark = [pytest.mark.net, pytest.mark.qemu, pytest.mark.fault]

LOGS = "/var/log/qmigrate"
SMALL = f"mkdir -p {LOGS}; mount -t tmpfs -o size=64k,mode=0700 none {LOGS}"
# To the last byte: what is left of an agent's own page would take many more lines.
FILL = f"""
for log in {LOGS}/*/agent.log; do
    head -c $((4096 - $(stat -c %s $log) % 4096)) /dev/zero >> $log
done
dd if=/dev/zero of={LOGS}/fill bs=4k 2>/dev/null || true
"""


@pytest.mark.parametrize(
    ("host", "point"),
    [("beta", "destination:before record go"), ("alpha", "source:before record away")],
)
def test_a_log_that_cannot_be_written_does_not_stop_a_handover(
    faulty: Faulty, host: str, point: str
) -> None:
    site = faulty.site
    site.lab.run(host, ["sh", "-ec", SMALL])
    site.undo.callback(site.lab.run, host, ["umount", "-l", LOGS])
    site.start(faulty.tiny())
    struck = faulty.begin("tiny1", points=[f"{point}:stop"])
    held = struck.hold(*point.split(":"))
    site.lab.run(host, ["sh", "-ec", FILL])
    held.release()
    moved = struck.finish()
    assert moved.code == 0, moved
    assert [(copy.host, copy.state) for copy in site.copies("tiny1")] == [("beta", "running")]
    faulty.await_end(struck.job)
    faulty.assert_never_two()
