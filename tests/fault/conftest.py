"""Fixtures of the tests with bad luck, and which cells of the matrix an ordinary run takes."""

import pytest

from tests.support.faulting import faulty
from tests.support.moving import moving_lab

__all__ = ["faulty", "moving_lab"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole matrix be asked for: ``pytest tests/fault --matrix``."""
    parser.addoption("--matrix", action="store_true", help="all cells of the fault matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --matrix take of a module's parametrised cells those in its ``DAILY`` only."""
    if config.getoption("--matrix", default=False):
        return
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        cell = item.name.partition("[")[2].removesuffix("]")
        daily = getattr(getattr(item, "module", None), "DAILY", None)
        (left if daily is not None and cell and cell not in daily else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
