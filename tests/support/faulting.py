"""The fixture of tests with bad luck: see `qmigrate.lab.selftest.faulty`."""

from collections.abc import Iterator

import pytest

from qmigrate.lab.lab import Lab
from qmigrate.lab.selftest.faulty import Faulty, Held, Struck, agents, await_death, kill, one
from tests.support.moving import Site

__all__ = ["Faulty", "Held", "Struck", "agents", "await_death", "faulty", "kill", "one"]


@pytest.fixture
def faulty(moving_lab: Lab) -> Iterator[Faulty]:
    """Have an empty lab in which every QEMU is traced, and empty it again."""
    found = Faulty(Site(moving_lab))
    found.open()
    try:
        yield found
    finally:
        print(found.logs())  # shown by pytest if the test has failed
        found.site.close()
