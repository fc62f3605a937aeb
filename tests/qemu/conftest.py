"""Fixtures of the tests with real QEMU."""

from tests.support.moving import moving_lab, site

__all__ = ["moving_lab", "site"]
