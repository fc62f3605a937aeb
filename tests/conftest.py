"""The order of the tests: the fast rooms first, so that what is broken says so soon."""

from pathlib import Path

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.lab.accel import qemu_version, require_qemu
from tests.support import uml_marked
from tests.support.uml_marked import pytest_runtest_logreport, pytest_runtest_protocol

__all__ = ["pytest_runtest_logreport", "pytest_runtest_protocol"]  # hooks: found by their names

ROOMS = ("unit", "cli", "net", "qemu", "fault")  # any other comes last
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        room = item.path.relative_to(TESTS).parts[0]
        return ROOMS.index(room) if room in ROOMS else len(ROOMS)

    if any(item.get_closest_marker("qemu") or item.get_closest_marker("fault") for item in items):
        try:
            require_qemu(qemu_version())
        except UsageError as exc:
            pytest.exit(f"{exc}; {exc.problem.next_step}", returncode=3)
    uml_marked.set_apart(items)
    items.sort(key=rank)  # stable: the order within a room stays
