"""What ``qmigrate resolve`` shows: every fact with its host, the same for programs."""

import io
import json

import pytest

from qmigrate.agent.evidence import _wrote_untrusted
from qmigrate.cli.render import Output
from qmigrate.cli.resolve import show
from qmigrate.controller.resolve import Acted, Resolved
from qmigrate.core.copies import AnswerSeen, ImageHolder, ImageSeen
from qmigrate.core.errors import MonitorGarbledError
from qmigrate.core.handover import Record, Source
from qmigrate.core.recounting import recount
from qmigrate.core.resolving import decide
from qmigrate.core.testimony import Evidence, HostSeen, Vouched
from tests.support.resolve_seen import (
    DISK,
    JOB,
    OWN,
    RUNS,
    TWIN_WROTE,
    alpha,
    beta,
    evidence,
    held,
    silent,
    source,
)

MAC = "52:54:00:00:00:01"


def _image(changed_s_ago: float) -> ImageSeen:
    holder = ImageHolder(201, "qemu-system-x86", locked=True, guest="web1")
    return ImageSeen(DISK, 4096, changed_s_ago, (holder,))


@pytest.mark.parametrize(
    ("hosts", "line"),
    [
        ((alpha(), silent("beta")), "beta cannot be asked: no route to host"),
        ((alpha(), beta()), "alpha: no QEMU of web1"),
        ((alpha(RUNS), beta()), "alpha: process 101 is a QEMU of web1: running"),
        ((alpha(source(Source.AWAY), held(OWN)), beta()), f"job {JOB} has its monitor"),
        (
            (alpha(source(Record.AWAY), OWN), beta(boot_id="another")),
            "beta was rebooted after the move had begun: its boot id is another",
        ),
        (
            (
                alpha(source(Record.AWAY, age_s=9.0), OWN),
                beta(TWIN_WROTE, images=(_image(3.0),)),
            ),
            "guest web1) has locked it; last written to 3.0 s ago, AFTER alpha had let the guest",
        ),
        (
            (
                alpha(source(Record.AWAY, age_s=9.0), OWN, images=(ImageSeen(DISK, 1, 30.0),)),
                beta(),
            ),
            "nobody on the hosts that answered has it open; last written to 30.0 s ago, before",
        ),
        (
            (alpha(RUNS, answers=(AnswerSeen("192.0.2.80", "br0", MAC, "tap0"),)), beta()),
            f"192.0.2.80: {MAC} answers on br0 of alpha, which believes that card behind tap0",
        ),
        (
            (alpha(RUNS, answers=(AnswerSeen("192.0.2.80", "br0", None, None),)), beta()),
            "192.0.2.80: nobody answers on br0 of alpha",
        ),
    ],
)
def test_a_fact_is_told_with_its_host(hosts: tuple[HostSeen, HostSeen], line: str) -> None:
    told = recount(evidence(*hosts))
    assert any(line in each for each in told), told


def _resolved() -> Resolved:
    found = evidence(alpha(source(Source.AWAY), held(OWN)), beta(boot_id="another"))
    now = evidence(alpha(RUNS), beta(boot_id="another"))
    meant, verdict = decide(found, Vouched()), decide(now, Vouched())
    acted = tuple(Acted(act, "run-here: away, then back") for act in meant.acts)
    return Resolved(found, meant, acted, now, verdict)


def _shown(*, as_json: bool) -> tuple[str, str]:
    out, trouble = io.StringIO(), io.StringIO()
    show(Output(json=as_json, stdout=out, stderr=trouble), _resolved(), dry_run=False)
    return out.getvalue(), trouble.getvalue()


def test_a_person_reads_what_was_found_what_was_done_and_what_is_so_now() -> None:
    text, _ = _shown(as_json=False)
    found, done, now = text.split("\n\n")
    assert "→ beta has no journal of the job, it was rebooted" in found
    assert done == f"tell alpha, source of job {JOB}: run-here: run-here: away, then back"
    assert now.endswith("→ it runs on alpha (process 101)\n")


def test_a_program_reads_the_same() -> None:
    document = json.loads(_shown(as_json=True)[0])
    assert document["schema"] == "qmigrate.resolve/1"
    assert (document["ends"], document["exit"], document["host"]) == ("runs", 0, "alpha")
    assert [acted["problem"] for acted in document["acted"]] == [None]
    assert [host["host"] for host in document["hosts"]] == ["alpha", "beta"]
    assert set(document["found"]) == {"seen", "means"}


def test_a_qemu_that_has_written_says_so() -> None:
    assert not _wrote_untrusted([], name="QEMU")
    quiet = {"stats": {"wr_operations": 0, "wr_bytes": 0, "rd_bytes": 512}}
    assert not _wrote_untrusted([quiet], name="QEMU")
    assert _wrote_untrusted([quiet, {"stats": {"wr_operations": 1}}], name="QEMU")
    for reply in (7, [{}], [{"stats": None}], [{"stats": {"wr_bytes": "1"}}]):
        with pytest.raises(MonitorGarbledError):
            _wrote_untrusted(reply, name="QEMU")


def test_a_host_that_goes_by_two_names_is_vouched_for_by_either() -> None:
    seen = Evidence("web1", (alpha(source(Source.AWAY), held(OWN)), silent("beta")))
    also = HostSeen("beta", ("root@beta",), problem="no route to host")
    seen = Evidence("web1", (seen.hosts[0], also))
    for name in ("beta", "root@beta"):
        assert decide(seen, Vouched(frozenset((name,)))).acts
