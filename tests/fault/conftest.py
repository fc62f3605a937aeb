"""Fixtures of the tests with bad luck."""

from tests.support.faulting import faulty
from tests.support.moving import moving_lab

__all__ = ["faulty", "moving_lab"]
