"""Decisions: pure functions on plain data. Standard library only, no I/O, no clock."""
