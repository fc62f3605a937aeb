"""Fixtures of the tests with network namespaces."""

from tests.support.lab_fixtures import lab, spare_lab

__all__ = ["lab", "spare_lab"]
