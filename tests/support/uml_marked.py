"""Lets the tests that are marked `uml` run in user-mode Linux and shows their results as our own.

tests/conftest.py imports the hooks. The first marked test boots the machine with all of them;
inside, this same file writes each report down, and outside it is handed on as if made here.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import uml

MARK = "uml"
REPORTS = "QMIGRATE_UML_REPORTS"  # set inside: the file for one JSON line a report
RUN_DEADLINE_S = 30.0  # of the run as a whole, and
TEST_DEADLINE_S = 60.0  # for each test besides: a process takes 0.1 s to start inside
TAIL_CHARACTERS = 4000

_REPORTS = pytest.StashKey[dict[str, list[Any]]]()
_FAILURE = pytest.StashKey[str]()


def set_apart(items: list[pytest.Item]) -> None:
    """Prepare marked tests at collection: skipped where nothing can be booted, or our deadline."""
    marked = [item for item in items if item.get_closest_marker(MARK)]
    if not marked or uml.is_inside():
        return
    reason = uml.why_not()
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        item.add_marker(pytest.mark.timeout(0), append=False)  # the first waits for all


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Take the place of a marked test's own run, unless this is inside or it is to be skipped."""
    if not item.get_closest_marker(MARK) or uml.is_inside() or uml.why_not():
        return None
    session = item.session
    if _REPORTS not in session.stash:
        ids = [i.nodeid for i in session.items if i.get_closest_marker(MARK)]
        session.stash[_REPORTS], session.stash[_FAILURE] = _run_inside(item.config, ids)
    reports = session.stash[_REPORTS].get(item.nodeid, [])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    if not any(report.when == "teardown" for report in reports):  # its last
        item.ihook.pytest_runtest_logreport(report=_broken(item, session.stash[_FAILURE]))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The test before kept what it shared with this one, which nobody else would let go of now.
    session._setupstate.teardown_exact(nextitem)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a report down, inside; through to the machine's disk, for the kernel may die."""
    if (path := os.environ.get(REPORTS)) is None:
        return
    # What pytest-xdist does to carry reports between processes.
    line = json.dumps(report._to_json()) + "\n"
    with Path(path).open("a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _run_inside(config: pytest.Config, ids: list[str]) -> tuple[dict[str, list[Any]], str]:
    """Return the reports by test, and what to say of a test that has none."""
    with tempfile.TemporaryDirectory(prefix="uml-") as name:
        out = Path(name)
        out.joinpath("tests").write_text("".join(f"{one}\n" for one in ids))
        python = str(uml.CHECKOUT / ".venv/bin/python")
        ended = uml.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{uml.SHARED}/tests"],
            out,
            deadline_s=RUN_DEADLINE_S + TEST_DEADLINE_S * len(ids),
            env={REPORTS: f"{uml.SHARED}/reports", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        path = out / "reports"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    reports: dict[str, list[Any]] = {}
    for line in lines:
        if line.endswith("\n"):  # the last one may have died half-written
            report = config.hook.pytest_report_from_serializable(
                config=config, data={"$report_type": "TestReport", **json.loads(line)}
            )
            if isinstance(report.longrepr, list):  # of a skip; JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            reports.setdefault(report.nodeid, []).append(report)
    end = f"ended with status {ended.status}" if ended.status is not None else "died"
    said = f"{ended.log[-TAIL_CHARACTERS:]}\n{ended.console[-TAIL_CHARACTERS:]}"
    return reports, f"the run in user-mode Linux {end} without a result of this test\n{said}"


def _broken(item: pytest.Item, words: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=words,
        when="call",
    )
