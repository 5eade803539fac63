"""Batches are planned over all questions, whatever the ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargo_ds.evaluation.units import BUCKET, plan_units, units_of_rank

QUESTIONS = st.lists(
    st.tuples(st.integers(1, 500), st.sampled_from("abcdef"), st.integers(1, 5)), max_size=40
)


def test_the_longest_come_first_and_questions_of_one_image_together() -> None:
    assert plan_units([20, 90, 25], ["a", "b", "a"], rows=2, tokens=1000) == [[1], [0, 2]]


def test_lengths_within_a_bucket_keep_the_order_of_the_files() -> None:
    lengths = [BUCKET * 4 + extra for extra in (1, 5, 3, 9)]
    assert plan_units(lengths, list("abcd"), rows=4, tokens=10_000) == [[0, 1, 2, 3]]


def test_an_image_with_more_questions_than_rows_is_divided() -> None:
    assert plan_units([9] * 5, ["a"] * 5, rows=2, tokens=1000) == [[0, 1], [2, 3], [4]]


def test_no_questions_make_no_units() -> None:
    assert plan_units([], [], rows=2, tokens=10) == []


@settings(max_examples=200, deadline=None)
@given(QUESTIONS, st.integers(1, 9), st.integers(100, 2000))
def test_every_question_is_in_one_unit_within_the_limits(asked, rows, tokens) -> None:
    lengths, images, each = ([one[place] for one in asked] for place in range(3))
    units = plan_units(lengths, images, rows=rows, tokens=tokens, rows_each=each)
    assert sorted(place for unit in units for place in unit) == list(range(len(asked)))
    for unit in units:
        height = sum(each[place] for place in unit)
        longest = max(lengths[place] for place in unit)
        assert len(unit) == 1 or (height <= rows and height * longest <= tokens)


@given(st.integers(0, 50), st.integers(1, 9))
def test_ranks_divide_the_units(units, ranks) -> None:
    parts = [list(units_of_rank(units, rank, ranks)) for rank in range(ranks)]
    assert sorted(number for part in parts for number in part) == list(range(units))
    assert all(number % ranks == rank for rank, part in enumerate(parts) for number in part)


def test_a_rank_outside_of_the_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank 3 of 3: expected a rank from 0 to 2"):
        units_of_rank(9, 3, 3)
