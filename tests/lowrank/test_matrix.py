"""LowRank against plain NumPy products, and everything that it must refuse."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.lowrank import LowRank, gallery, numerical_rank, parameter_count, rank_errors

SHAPES = [(9, 9, 1), (5, 8, 3), (8, 5, 3), (1, 1, 1), (1, 7, 1), (7, 1, 1), (4, 6, 0), (2, 3, 5)]  # m, n, rank


def random_factors(m, n, rank, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((m, rank)), generator.standard_normal((rank, n))


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_properties_count_what_is_stored(m, n, rank):
    low = LowRank(*random_factors(m, n, rank))
    assert low.shape == (m, n)
    assert low.rank == rank
    assert low.size == rank * (m + n)
    if rank <= min(m, n):
        assert low.size == parameter_count(m, n, rank)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_products_equal_the_dense_ones(m, n, rank):
    left, right = random_factors(m, n, rank)
    low, W = LowRank(left, right), left @ right
    generator = np.random.default_rng(1)
    for after in [(n,), (n, 1), (n, 4), (2, n, 3)]:
        x = generator.standard_normal(after)
        np.testing.assert_allclose(low @ x, W @ x, atol=1e-12)
        assert (low @ x).shape == (W @ x).shape
    for before in [(m,), (1, m), (4, m), (2, 3, m)]:
        x = generator.standard_normal(before)
        np.testing.assert_allclose(x @ low, x @ W, atol=1e-12)
        assert (x @ low).shape == (x @ W).shape
    np.testing.assert_array_equal(low.dense(), W)
    np.testing.assert_array_equal(low.T.dense(), right.T @ left.T)


def test_products_never_form_the_dense_matrix():
    n = 4096
    low = LowRank(*random_factors(n, n, 2))
    x = np.ones(n)
    tracemalloc.start()
    try:
        _ = low @ x, x @ low, low.T @ x, low @ low, low.norm()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * n * x.itemsize  # the dense matrix takes n · n · itemsize, 64 times as much


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1), (2, 2), (0, 2)])
def test_product_of_two_is_low_rank_at_the_smaller_rank(first, second):
    one, two = LowRank(*random_factors(6, 7, first)), LowRank(*random_factors(7, 5, second, seed=1))
    product = one @ two
    assert isinstance(product, LowRank)
    assert product.rank == min(first, second)
    np.testing.assert_allclose(product.dense(), one.dense() @ two.dense(), atol=1e-12)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_norm_equals_that_of_the_dense_matrix(m, n, rank):
    low = LowRank(*random_factors(m, n, rank))
    assert low.norm() == pytest.approx(scipy.linalg.norm(low.dense()), rel=1e-13, abs=0)
    assert isinstance(low.norm(), float)


def test_norm_keeps_its_digits_where_the_layers_cancel():
    # 1 - (1 - 1e-9): from trace(leftᵀ left · right rightᵀ), the formula that squares, nothing correct would be left.
    column = np.ones((50, 1))
    low = LowRank(np.hstack([column, column]), np.vstack([column.T, (1e-9 - 1) * column.T]))
    assert low.norm() == pytest.approx(50 * 1e-9, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_norm_neither_overflows_nor_underflows(scale):
    left, right = random_factors(6, 5, 2)
    assert LowRank(scale * left, right).norm() == pytest.approx(scale * LowRank(left, right).norm(), rel=1e-12)


@given(m=st.integers(1, 8), n=st.integers(1, 8), rank=st.integers(0, 8), seed=st.integers(0, 2**32 - 1))
def test_own_rank_is_never_larger_than_the_shared_dimension(m, n, rank, seed):
    low = LowRank(*random_factors(m, n, rank, seed))
    assert numerical_rank(low.dense()) <= low.rank


@pytest.mark.parametrize("shape", [(9, 9), (3, 8), (8, 3), (1, 1)])
def test_from_svd_reaches_the_best_error_and_shares_the_weight(shape):
    W = np.random.default_rng(2).standard_normal(shape)
    for rank, error in enumerate(rank_errors(W)):
        low = LowRank.from_svd(W, rank)
        assert low.shape == shape
        assert low.rank == rank
        assert np.linalg.norm(W - low.dense()) / np.linalg.norm(W) == pytest.approx(error, abs=1e-13)
        assert np.linalg.norm(low.left) == pytest.approx(np.linalg.norm(low.right))


def test_multiplication_table_in_18_numbers():
    numbers = np.arange(1, 10)
    low = LowRank(numbers[:, None], numbers[None, :])
    assert low.size == 18
    assert np.array_equal(low, gallery.multiplication_table())
    assert repr(low) == "LowRank 9×9 of rank 1: 18 numbers instead of 81"


def test_repr_separates_thousands():
    low = LowRank(np.ones((12_288, 1)), np.ones((1, 12_288)))
    assert repr(low) == "LowRank 12288×12288 of rank 1: 24,576 numbers instead of 150,994,944"


def test_dtypes():
    single, double = np.ones((3, 1), np.float32), np.ones((1, 3))
    assert LowRank(single, single.T).dtype == np.float32
    assert LowRank(single, double).dtype == np.float64
    assert LowRank([[1], [2]], [[True, False]]).dtype == np.float64
    assert LowRank(single.astype(np.float16), single.T).dtype == np.float32
    assert LowRank.from_svd(single @ single.T, 1).dense().dtype == np.float32
    assert np.asarray(LowRank(single, single.T), dtype=np.float64).dtype == np.float64
    assert LowRank(single, single.T).__array__(np.float64).dtype == np.float64


def test_factors_are_held_without_a_copy():
    left, right = random_factors(4, 5, 2)
    low = LowRank(left, right)
    assert low.left is left
    assert low.right is right


def test_numpy_functions_see_the_dense_matrix():
    low = LowRank(*random_factors(4, 5, 2))
    assert np.array_equal(np.asarray(low), low.dense())
    assert np.allclose(low, low.dense())
    assert np.linalg.matrix_rank(low) == numerical_rank(low) == 2
    with pytest.raises(ValueError, match="no dense matrix to share"):
        np.asarray(low, copy=False)


def test_is_frozen():
    low = LowRank(*random_factors(4, 5, 2))
    with pytest.raises(AttributeError):
        low.left = np.ones((4, 2))


@pytest.mark.parametrize(
    ("left", "right", "error", "message"),
    [
        (
            np.ones((9, 1)),
            np.ones((9, 1)),
            ValueError,
            r"\(9, 1\) and right \(9, 1\).*ROWS of right.*right\.T, of shape",
        ),
        (np.ones((9, 2)), np.ones((3, 9)), ValueError, r"columns of left \(2\) must equal the ROWS of right \(3\)$"),
        (np.ones(9), np.ones((1, 9)), ValueError, r"left must be a matrix.*got shape \(9,\).*v\[:, None\]"),
        (np.ones((9, 1)), np.ones((1, 9, 1)), ValueError, r"right must be a matrix.*got shape \(1, 9, 1\)"),
        (np.ones((0, 1)), np.ones((1, 9)), ValueError, r"at least one entry, got \(0, 1\) times \(1, 9\)"),
        (np.ones((9, 1)), np.ones((1, 0)), ValueError, r"at least one entry"),
        ([[1.0], [np.nan]], np.ones((1, 2)), ValueError, r"left must be finite.*1 of 2 entries.*row 1, column 0"),
        (np.ones((2, 1)), [[-np.inf, np.inf]], ValueError, r"right must be finite.*2 of 2 entries.*row 0, column 0"),
        (np.ones((2, 1), complex), np.ones((1, 2)), TypeError, r"left must hold real numbers.*complex128"),
        (np.ones((2, 1)), [["a", "b"]], TypeError, r"right must hold real numbers"),
        (np.ones((2, 1)), [[object(), None]], TypeError, r"right must hold real numbers.*object"),
        (
            [[1.0], [2.0, 3.0]],
            np.ones((1, 2)),
            ValueError,
            r"left must be a matrix whose rows all have the same length",
        ),
    ],
)
def test_unfit_factors_are_refused(left, right, error, message):
    with pytest.raises(error, match=message):
        LowRank(left, right)


def test_operands_of_the_wrong_shape_are_refused():
    low = LowRank(*random_factors(4, 5, 2))
    for operand in [np.ones(4), np.ones((4, 5)), np.ones((5, 4, 3)), 2.0]:
        with pytest.raises(ValueError, match=r"needs 5 rows, one for each column"):
            low @ operand
    for operand in [np.ones(5), np.ones((4, 5)), np.float64(2.0)]:
        with pytest.raises(ValueError, match=r"needs 4 columns, one for each row"):
            operand @ low
    with pytest.raises(ValueError, match=r"\(4, 5\) @ array of shape \(4, 5\): the array needs 5 rows"):
        low @ low
    with pytest.raises(TypeError):
        np.ones((4, 5)) * low  # entry by entry: not a product that the factors can give
