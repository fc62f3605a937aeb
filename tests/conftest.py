"""The order of the tests: the fast rooms first, so that what is broken says so soon."""

from pathlib import Path

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.lab.accel import qemu_version, require_qemu
from tests.support import uml, uml_marked
from tests.support.uml_marked import pytest_runtest_logreport, pytest_runtest_protocol

__all__ = ["pytest_runtest_logreport", "pytest_runtest_protocol"]  # hooks: found by their names

ROOMS = ("unit", "cli", "net", "qemu", "fault")  # any other comes last
TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let everything be asked for: ``pytest --matrix``, as ``scripts/test --faults`` does."""
    parser.addoption("--matrix", action="store_true", help="all cells, and the tests marked long")


def is_daily(item: pytest.Item) -> bool:
    """Tell whether an ordinary run takes a test: no long one, and of a table its ``DAILY`` cells.

    Which test is long is not decided again in user-mode Linux: it was asked for what it gets.
    """
    if uml.is_inside():
        return True
    cell = item.name.partition("[")[2].removesuffix("]")
    daily = getattr(getattr(item, "module", None), "DAILY", None)
    return not item.get_closest_marker("long") and (daily is None or not cell or cell in daily)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--matrix", default=False):
        left = [item for item in items if not is_daily(item)]
        items[:] = [item for item in items if is_daily(item)]
        config.hook.pytest_deselected(items=left)

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
