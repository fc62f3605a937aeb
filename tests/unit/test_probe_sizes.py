"""The search for the longest frame, on wires narrow, wide and lossy."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.probe_sizes import CONFIRM, SIZES_AT_ONCE, SizeSearch

LEAST = 46


def found(width: int, wanted: int, loss: float = 0.0, seed: int = 0) -> tuple[int, int]:
    """Return what the search finds on a wire, and in how many rounds."""
    draw = random.Random(seed)  # noqa: S311
    search, arrived, rounds = SizeSearch(LEAST, wanted, wanted), {LEAST}, 0
    while sizes := search.next_sizes():
        assert len(sizes) <= SIZES_AT_ONCE
        assert all(search.passes_bytes < size <= wanted for size in sizes)
        arrived |= {size for size in sizes if size <= width and draw.random() >= loss}
        search = search.after(sizes, frozenset(arrived))
        rounds += 1
        assert rounds < 200
    return search.passes_bytes, rounds


@given(st.integers(LEAST, 9000), st.integers(LEAST + 1, 9216))
def test_the_width_is_found_exactly(width: int, wanted: int) -> None:
    assert found(width, wanted)[0] == min(width, wanted)


@pytest.mark.parametrize(("wanted", "rounds"), [(1500, 7), (9000, 8), (65535, 9)])
def test_few_rounds_are_enough(wanted: int, rounds: int) -> None:
    worst = max(found(width, wanted)[1] for width in range(LEAST, wanted, max(1, wanted // 997)))
    assert worst <= rounds


@pytest.mark.parametrize("seed", range(50))
def test_a_lossy_wire_is_not_taken_for_a_narrow_one(seed: int) -> None:
    """One frame in twenty lost: wrong only if the same size fails `CONFIRM` times."""
    assert found(1400, 1500, loss=0.05, seed=seed)[0] == 1400


def test_an_answer_that_comes_late_reopens_the_search() -> None:
    search = SizeSearch(LEAST, 1500, 1500).after((200,), frozenset({LEAST}))
    assert search.fails_bytes == 200
    late = search.after((100,), frozenset({LEAST, 1000}))
    assert (late.passes_bytes, late.fails_bytes) == (1000, 1500)
    assert late.after((1200,), frozenset({1500})).done


def test_a_size_fails_only_after_it_was_tried_again() -> None:
    search = SizeSearch(1399, 1400, 1500)
    tries = 1
    while sizes := search.next_sizes():
        search = search.after(sizes, frozenset({1399}))
        tries += 1
    assert tries == CONFIRM
