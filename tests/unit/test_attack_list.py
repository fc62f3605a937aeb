"""Whoever can start a process can make it look like a QEMU; the others are still to be listed."""

from dataclasses import replace

from qmigrate.agent.facts import LIST_BYTES, _fitting
from qmigrate.agent.protocol import (
    LINE_LIMIT,
    Answer,
    codec,
    encode,
)
from qmigrate.agent.requests import GuestList
from tests.unit.test_cmdline import detail

HONEST = detail(("qemu-system-x86_64", "-name", "web1")).guest


def line_bytes(guests: list[object]) -> int:
    listed = GuestList(tuple(guests))  # type: ignore[arg-type]
    return len(encode(Answer(1, codec.unstructure(listed))))


def test_a_list_that_fits_is_left_as_it_is() -> None:
    guests = [HONEST, replace(HONEST, argv=("x" * 100_000,))]
    assert _fitting(guests) == guests


def test_megabytes_of_words_keep_no_other_guest_from_being_listed() -> None:
    huge = replace(HONEST, pid=666, argv=("x" * 100_000,) * 30, name="n" * 100_000)
    found = _fitting([huge, HONEST, huge, huge])
    assert line_bytes(list(found)) < LINE_LIMIT
    assert found[1] == HONEST
    assert [guest.pid for guest in found] == [666, HONEST.pid, 666, 666]
    assert "too long" in (found[0].owner_reason or "")


def test_many_that_are_each_small_enough_do_not_do_it_together() -> None:
    some = replace(HONEST, argv=("x" * (LIST_BYTES // 200),))
    found = _fitting([some] * 400 + [HONEST])
    assert line_bytes(list(found)) < LINE_LIMIT
    assert found[-1] == HONEST
