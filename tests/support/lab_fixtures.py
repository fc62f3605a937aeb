"""Labs for tests; a conftest.py imports them: ``from tests.support.lab_fixtures import lab``.

`lab` is shared by all tests of a session: leave it as you found it. `spare_lab` is one test's own.
"""

import itertools
import os
from collections.abc import Iterator

import pytest

from qmigrate.lab.lab import Lab
from qmigrate.lab.topologies import TOPOLOGIES

__all__ = ["lab", "spare_lab"]

_numbers = itertools.count()


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: network, mount and PID namespaces")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """alpha, beta, client and switch, standing."""
    _need_root()
    shared = Lab(f"test-{os.getpid()}")
    try:
        shared.up(TOPOLOGIES["same-segment"])
        yield shared
    finally:
        shared.down()


@pytest.fixture
def spare_lab() -> Iterator[Lab]:
    """A lab of the test's own that does not stand yet, and is removed after the test."""
    _need_root()
    spare = Lab(f"test-{os.getpid()}-{next(_numbers)}")
    try:
        yield spare
    finally:
        spare.down()
