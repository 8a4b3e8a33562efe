"""LowRank against plain NumPy products, and everything that it must refuse."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.lowrank import (
    LowRank,
    choose_rank,
    gallery,
    numerical_rank,
    parameter_count,
    rank_errors,
    singular_values,
    truncated_svd,
)

SHAPES = [(9, 9, 1), (5, 8, 3), (8, 5, 3), (1, 1, 1), (1, 7, 1), (7, 1, 1), (4, 6, 0), (2, 3, 5)]  # m, n, rank


def random_factors(m, n, rank, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, rank)), rng.standard_normal((rank, n))


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
    rng = np.random.default_rng(1)
    for after in [(n,), (n, 1), (n, 4), (2, n, 3)]:
        x = rng.standard_normal(after)
        np.testing.assert_allclose(low @ x, W @ x, atol=1e-12)
        assert (low @ x).shape == (W @ x).shape
    for before in [(m,), (1, m), (4, m), (2, 3, m)]:
        x = rng.standard_normal(before)
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
@pytest.mark.parametrize("ord", ["fro", "spectral", "nuclear"])
def test_norms_equal_those_of_the_dense_matrix(m, n, rank, ord):
    low = LowRank(*random_factors(m, n, rank))
    assert low.norm(ord) == pytest.approx(dense_norm(low.dense(), ord), rel=1e-13, abs=0)
    assert isinstance(low.norm(ord), float)


def dense_norm(W, ord):
    return np.linalg.norm(W, {"fro": "fro", "spectral": 2, "nuclear": "nuc"}[ord])


def test_norm_is_frobenius_unless_another_is_named():
    low = LowRank(*random_factors(5, 4, 3))
    assert low.norm() == low.norm("fro") == low.norm(ord="fro")
    for unknown in (2, "nuc", None, "Frobenius", np.ones(2)):
        with pytest.raises(ValueError, match='ord must be "fro", "spectral" or "nuclear", got'):
            low.norm(unknown)


@pytest.mark.parametrize("ord", ["fro", "spectral", "nuclear"])
def test_norm_keeps_its_digits_where_the_layers_cancel(ord):
    # 1 - (1 - 1e-9): from trace(leftᵀ left · right rightᵀ), the formula that squares, nothing correct would be left.
    column = np.ones((50, 1))
    low = LowRank(np.hstack([column, column]), np.vstack([column.T, (1e-9 - 1) * column.T]))
    assert low.norm(ord) == pytest.approx(50 * 1e-9, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("left_scale", "right_scale"),
    [(1e-300, 1), (1e-200, 1), (1, 1e200), (1, 1e300), (1e200, 1e-200), (1e-300, 1e300), (1e150, 1e150)],
)
def test_nothing_overflows_or_underflows_before_the_answer_does(left_scale, right_scale):
    left, right = random_factors(6, 5, 2)
    plain, low = LowRank(left, right), LowRank(left_scale * left, right_scale * right)
    scale = left_scale * right_scale
    for ord in ("fro", "spectral", "nuclear"):
        assert low.norm(ord) == pytest.approx(scale * plain.norm(ord), rel=1e-12, abs=0)
    np.testing.assert_allclose(low.svd()[0], plain.svd()[0], atol=1e-13)
    np.testing.assert_allclose(low.svd()[1], scale * plain.svd()[1], rtol=1e-12)
    np.testing.assert_allclose(rank_errors(low)[:3], rank_errors(plain)[:3], atol=1e-13)
    np.testing.assert_allclose(low.recompress(1).dense() / scale, plain.recompress(1).dense(), rtol=1e-12)
    assert numerical_rank(low) == choose_rank(low, error=0) == 2


def test_layers_of_very_different_size_do_not_disturb_each_other():
    # The layers are 1, 1e-8 and 0; the numbers that hold them run from 1e-200 to 1e200.
    left = np.array([[1e200, 0, 1e180], [0, 1e-200, 1e180]])
    right = np.array([[1e-200, 0], [0, 1e192], [0, 0]])
    U, s, Vt = LowRank(left, right).svd()
    np.testing.assert_allclose(s, [1, 1e-8], rtol=1e-7)
    np.testing.assert_allclose(U * s @ Vt, [[1, 0], [0, 1e-8]], atol=1e-15)


@pytest.mark.parametrize(
    "low",
    [
        LowRank([[0.0, 1e-160]], [[1e300], [1e-160]]),
        LowRank([[1e300, 1e-160]], [[0.0], [1e-160]]),
        LowRank([[1e300, 1e-160]], [[0.0], [1e-160]]).T,
    ],
)
def test_a_layer_of_zeros_has_no_size(low):
    for ord in ("fro", "spectral", "nuclear"):
        assert low.norm(ord) == pytest.approx(
            1e-320, rel=1e-3, abs=0
        )  # all that there is beside the zeros, and subnormal
    assert low.svd()[1][0] == pytest.approx(1e-320, rel=1e-3, abs=0)
    assert numerical_rank(low) == 1


@pytest.mark.parametrize("ord", ["fro", "spectral", "nuclear"])
def test_a_norm_beyond_the_range_is_an_error_not_inf(ord):
    with pytest.raises(ValueError, match="norm is beyond float64"):
        LowRank([[1e200]], [[1e200]]).norm(ord)
    single = np.full((2, 1), 1e30, np.float32)
    assert LowRank(single, single.T).norm(ord) == pytest.approx(2e60, rel=1e-6)  # beyond float32, not beyond float
    with pytest.raises(ValueError, match="singular values are beyond float32"):
        LowRank(single, single.T).svd()


def test_norms_are_added_up_in_float64():
    W = (0.1 * np.eye(300)).astype(np.float32)
    low = LowRank(W, np.eye(300, dtype=np.float32))
    assert low.norm("fro") == pytest.approx(np.sqrt(300) * W[0, 0].item(), rel=1e-12)
    assert low.norm("nuclear") == pytest.approx(300 * W[0, 0].item(), rel=1e-12)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_svd_from_the_factors_is_that_of_the_dense_matrix(m, n, rank, dtype):
    left, right = random_factors(m, n, rank)
    low = LowRank(left.astype(dtype), right.astype(dtype))
    U, s, Vt = low.svd()
    k = min(m, rank, n)
    tolerance = 50 * np.finfo(dtype).eps
    assert (U.shape, s.shape, Vt.shape) == ((m, k), (k,), (k, n))
    assert {U.dtype, s.dtype, Vt.dtype} == {np.dtype(dtype)}
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=tolerance)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=tolerance)
    np.testing.assert_allclose(s, scipy.linalg.svdvals(low.dense())[:k], atol=tolerance * low.norm())
    np.testing.assert_allclose(U * s @ Vt, low.dense(), atol=tolerance * low.norm())
    U_dense, _, Vt_dense = truncated_svd(low.dense(), k)  # the signs are the same too
    np.testing.assert_allclose(U, U_dense, atol=100 * tolerance)
    np.testing.assert_allclose(Vt, Vt_dense, atol=100 * tolerance)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_recompression_is_the_best_of_its_rank(m, n, rank):
    low = LowRank(*random_factors(m, n, rank))
    errors = rank_errors(low.dense())
    for lower in range(min(m, n, rank) + 1):
        small = low.recompress(lower)
        assert isinstance(small, LowRank)
        assert (small.shape, small.rank) == ((m, n), lower)
        assert np.linalg.norm(low.dense() - small.dense()) <= (errors[lower] + 1e-13) * low.norm()
        assert np.linalg.norm(small.left) == pytest.approx(np.linalg.norm(small.right))
        np.testing.assert_allclose(small.dense(), LowRank.from_svd(low.dense(), lower).dense(), atol=1e-12)


def test_recompression_removes_layers_that_repeat():
    low = LowRank(*random_factors(6, 7, 2))
    total = low + low + low
    assert total.rank == 6
    np.testing.assert_allclose(total.recompress(2).dense(), 3 * low.dense(), atol=1e-12)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (3, ValueError, "rank must be at most 2 to recompress a LowRank 4×5 of rank 2.*got 3"),
        (-1, ValueError, "rank must be at least 0, got -1"),
        (1.0, TypeError, "rank must be a whole number, got 1.0"),
        (True, TypeError, "rank must be a whole number, got True"),
    ],
)
def test_recompression_only_lowers_the_rank(rank, error, message):
    with pytest.raises(error, match=message):
        LowRank(*random_factors(4, 5, 2)).recompress(rank)
    with pytest.raises(ValueError, match="rank must be at most 2"):
        LowRank(*random_factors(2, 3, 5)).recompress(3)  # five layers, of which a 2×3 matrix needs two


def test_sums_and_multiples_equal_the_dense_ones():
    one, two = LowRank(*random_factors(6, 7, 2)), LowRank(*random_factors(6, 7, 3, seed=1))
    empty = LowRank(np.ones((6, 0)), np.ones((0, 7)))
    for result, dense, rank in [
        (one + two, one.dense() + two.dense(), 5),
        (one - two, one.dense() - two.dense(), 5),
        (one + empty, one.dense(), 2),
        (-one, -one.dense(), 2),
        (3 * one, 3 * one.dense(), 2),
        (one * -0.25, -0.25 * one.dense(), 2),
        (0 * one, 0 * one.dense(), 2),
        (np.float64(2) * one, 2 * one.dense(), 2),
        (one / 4, one.dense() / 4, 2),
        (one / one.norm(), one.dense() / one.norm(), 2),
        (2 * one - 0.5 * (two + one), 1.5 * one.dense() - 0.5 * two.dense(), 7),
    ]:
        assert isinstance(result, LowRank)
        assert result.rank == rank
        np.testing.assert_allclose(result.dense(), dense, atol=1e-12)
    assert numerical_rank(one - one) == 0


def test_a_number_leaves_the_dtype_and_one_factor_as_they_are():
    single = LowRank(np.ones((3, 1), np.float32), np.ones((1, 4), np.float32))
    double = LowRank(np.ones((3, 1)), np.ones((1, 4)))
    assert (np.float64(2) * single).dtype == (single * 0.1).dtype == np.float32
    assert (single + double).dtype == (double - single).dtype == np.float64
    assert (2 * double).right is double.right
    assert (-double).right is double.right


@pytest.mark.parametrize(
    ("number", "left", "right"),
    [(1e200, 1e200, 1e-200), (1e200, 1e-200, 1e200), (1e-200, 1e-200, 1e200), (1e-200, 1e200, 1e-200)],
)
def test_a_number_goes_where_it_fits(number, left, right):
    assert (number * LowRank([[left]], [[right]])).norm() == pytest.approx(number, abs=0)


def test_sums_and_multiples_that_do_not_exist_are_refused():
    low = LowRank(*random_factors(4, 5, 2))
    for wrong in [lambda: low + np.ones((4, 5)), lambda: np.ones((4, 5)) + low, lambda: low - 1.0, lambda: 1.0 - low]:
        with pytest.raises(TypeError, match=r"can be added to a LowRank only, got (ndarray|float): write low\.dense"):
            wrong()
    for wrong in [lambda: low * np.ones((4, 5)), lambda: np.ones((4, 5)) * low, lambda: low * low, lambda: low * 1j]:
        with pytest.raises(TypeError, match=r"multiplied by a number only, got .*write low @ W"):
            wrong()
    with pytest.raises(TypeError, match="must be a number, got True"):
        True * low
    with pytest.raises(ValueError, match=r"one shape, got \(4, 5\) and \(5, 4\)"):
        low + low.T
    for number in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be a finite number, got"):
            number * low
    with pytest.raises(ValueError, match=r"1e\+200 times this LowRank is beyond float64"):
        1e200 * LowRank([[1e200]], [[1e200]])
    with pytest.raises(ValueError, match="must be a finite number, got 1000"):
        10**400 * low
    with pytest.raises(ZeroDivisionError):
        low / 0
    with pytest.raises(TypeError, match="the number that divides a LowRank must be a number, got array"):
        low / np.ones(5)


def test_a_product_beyond_the_range_is_an_error_not_a_warning(recwarn):
    large = LowRank([[1e200]], [[1e200]])
    for product in (lambda: large @ large, lambda: (large + large) @ large, lambda: large @ (large + large)):
        with pytest.raises(ValueError, match="the factors of this product are beyond float64: scale the LowRanks"):
            product()
    assert not recwarn.list


def test_a_matrix_that_no_memory_holds():
    m = n = 200_000  # 320 GB as a dense matrix
    left, right = random_factors(m, n, 2)
    tracemalloc.start()
    try:
        low = LowRank(left, right)
        assert low.shape == (m, n)
        twice = low + low
        U, s, _ = twice.svd()
        errors = rank_errors(twice)
        assert numerical_rank(twice) == choose_rank(twice, error=1e-9) == choose_rank(twice, noise="unknown") == 2
        assert choose_rank(low, budget=200_000_000) == 500
        np.testing.assert_allclose(singular_values(low)[:3], [*s[:2] / 2, 0], rtol=1e-12)
        np.testing.assert_allclose(truncated_svd(low, 1)[0][:, 0], U[:, 0], atol=1e-12)
        np.testing.assert_allclose((twice.recompress(2) @ right.T)[0], 2 * (low @ right.T)[0], rtol=1e-9)
        assert low.norm() == pytest.approx(np.hypot(*s[:2]) / 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert errors.shape == (n + 1,)
    assert errors[1] == pytest.approx(s[1] / np.hypot(*s[:2]))
    assert np.count_nonzero(errors > 1e-12) == 2
    assert peak < 60 * n * left.itemsize


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


def test_every_kind_of_factor_gives_the_same():
    left, right = np.arange(1, 7).reshape(3, 2), np.arange(8).reshape(2, 4)
    expected = left @ right
    for kind in (
        np.ndarray.tolist,
        np.asfortranarray,
        lambda factor: factor.astype(np.uint8),
        lambda factor: factor.astype(np.float16),
        lambda factor: factor.astype(np.dtype(np.float64).newbyteorder()),
        lambda factor: np.repeat(factor.astype(float), 2, axis=1)[:, ::2],
        lambda factor: factor.astype(float)[::-1, ::-1].copy()[::-1, ::-1],
        lambda factor: np.ma.masked_less(factor, 0),
    ):
        low = LowRank(kind(left), kind(right))
        assert low.dtype in (np.float32, np.float64)
        np.testing.assert_array_equal(low.dense(), expected)
        assert low.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-6)
        np.testing.assert_allclose(low.recompress(2).dense(), expected, rtol=1e-5, atol=1e-5)


def test_every_kind_of_operand_gives_the_same():
    low = LowRank(*random_factors(4, 5, 2))
    W = low.dense()
    for x in (np.arange(5), np.arange(5, dtype=np.float32), np.arange(10)[::2] % 3 == 0, np.arange(5) * 1j):
        np.testing.assert_allclose(low @ x, W @ x, atol=1e-13)
    np.testing.assert_allclose(low @ [1, 2, 3, 4, 5], W @ [1, 2, 3, 4, 5], atol=1e-13)
    np.testing.assert_allclose([1, 2, 3, 4] @ low, [1, 2, 3, 4] @ W, atol=1e-13)
    np.testing.assert_allclose(low @ np.asfortranarray(W.T), W @ W.T, atol=1e-12)
    assert (low @ np.ones((5, 0))).shape == (4, 0)
    assert (np.ones((0, 4)) @ low).shape == (0, 5)
    assert np.isnan(low @ np.full(5, np.nan)).all()  # a vector is not checked, as in NumPy


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
    for entry_by_entry in (np.abs, np.sum, np.exp, lambda low: np.add(low, low.dense())):
        with pytest.raises(TypeError, match="'LowRank' does not support ufuncs"):
            entry_by_entry(low)


def test_copies_and_pickles():
    low = LowRank(*random_factors(4, 5, 2))
    for other in (copy.copy(low), copy.deepcopy(low), pickle.loads(pickle.dumps(low))):
        assert isinstance(other, LowRank)
        np.testing.assert_array_equal(other.dense(), low.dense())
        assert other.norm() == low.norm()


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
        (np.ma.masked_less([[1.0], [2.0]], 1.5), np.ones((1, 2)), ValueError, r"left must have no masked entries"),
        (np.ones((2, 1)), scipy.sparse.eye_array(1), TypeError, r"right must be an array, got the sparse .*toarray"),
        (None, np.ones((1, 2)), ValueError, r"left must be a matrix with two dimensions, got shape \(\)"),
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
    with pytest.raises(ValueError, match="the operand must have no masked entries"):
        low @ np.ma.masked_equal(np.arange(5.0), 3)
    with pytest.raises(TypeError, match="the operand must be an array, got the sparse"):
        low @ scipy.sparse.eye_array(5)
