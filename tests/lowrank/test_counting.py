"""Counts, against the arrays that they count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.lowrank import LowRank, break_even_rank, parameter_count


@pytest.mark.parametrize(
    ("m", "n", "rank", "count"),
    [(9, 9, 0, 0), (9, 9, 1, 18), (9, 9, 4, 72), (9, 9, 5, 90), (9, 9, 9, 162), (576, 192, 8, 6_144), (1, 1, 1, 2)],
)
def test_parameter_count_is_what_the_arrays_hold(m, n, rank, count):
    assert parameter_count(m, n, rank) == count == LowRank(np.ones((m, rank)), np.ones((rank, n))).size


def test_break_even_of_known_matrices():
    assert break_even_rank(9, 9) == 4
    assert break_even_rank(10, 10) == 4  # rank 5 stores 100: as many as the matrix, which is no saving
    assert break_even_rank(2, 2) == 0
    assert break_even_rank(1, 1_000_000) == 0
    assert break_even_rank(576, 576) == 287
    assert break_even_rank(12_288, 12_288) == 6_143


@given(m=st.integers(1, 2000), n=st.integers(1, 2000))
def test_break_even_is_the_last_rank_that_saves(m, n):
    rank = break_even_rank(m, n)
    assert 0 <= rank < min(m, n)
    assert parameter_count(m, n, rank) < m * n <= parameter_count(m, n, rank + 1)
    assert rank == break_even_rank(n, m)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert parameter_count(np.int64(9), np.int32(9), np.uint8(5)) == 90
    assert isinstance(break_even_rank(np.int64(9), np.int64(9)), int)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((9, 9, 10), ValueError, r"rank must be at most min\(m, n\) = 9"),
        ((9, 9, -1), ValueError, "rank must be at least 0"),
        ((9, 9, 1.5), TypeError, "rank must be a whole number, got 1.5"),
        ((9, 9, True), TypeError, "rank must be a whole number, got True"),
        ((9, 9, None), TypeError, "rank must be a whole number, got None"),
        ((1, 9, 2), ValueError, r"rank must be at most min\(m, n\) = 1 for a 1×9 matrix, got 2"),
        (("9", 9, 1), TypeError, "m must be a whole number, got '9'"),
        ((np.nan, 9, 1), TypeError, "m must be a whole number, got nan"),
        ((0, 9, 0), ValueError, "m must be at least 1, got 0"),
        ((9, -9, 0), ValueError, "n must be at least 1, got -9"),
        ((9.0, 9, 1), TypeError, "m must be a whole number, got 9.0"),
        ((9, True, 1), TypeError, "n must be a whole number, got True"),
    ],
)
def test_bad_sizes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        parameter_count(*arguments)
    if not message.startswith("rank"):
        with pytest.raises(error, match=message):
            break_even_rank(*arguments[:2])
