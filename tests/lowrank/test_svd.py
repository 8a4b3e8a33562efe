"""The truncated SVD, its errors and the numerical rank, against NumPy, SciPy and random rivals."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lora_lab.lowrank import (
    LowRank,
    choose_rank,
    gallery,
    numerical_rank,
    rank_errors,
    singular_values,
    truncated_svd,
)

NORMS = {"fro": "fro", "spectral": 2, "nuclear": "nuc"}  # our names, and NumPy's
EVERY_FUNCTION = {  # each with everything else that it needs
    "truncated_svd": lambda W: truncated_svd(W, 1),
    "from_svd": lambda W: LowRank.from_svd(W, 1).dense(),
    "singular_values": singular_values,
    "rank_errors": rank_errors,
    "numerical_rank": numerical_rank,
    "numerical_rank with tol": lambda W: numerical_rank(W, tol=1.0),
    "choose_rank by energy": lambda W: choose_rank(W, energy=0.9),
    "choose_rank by error": lambda W: choose_rank(W, error=0.1),
    "choose_rank by budget": lambda W: choose_rank(W, budget=100),
    "choose_rank by known noise": lambda W: choose_rank(W, noise=1.0),
    "choose_rank by unknown noise": lambda W: choose_rank(W, noise="unknown"),
}

SHAPES = [(9, 9), (4, 11), (11, 4), (1, 6), (6, 1), (1, 1)]
BAD_MATRICES = [
    (np.ones(3), ValueError, "two dimensions"),
    (np.ones((2, 2, 2)), ValueError, "two dimensions"),
    (np.ones((0, 3)), ValueError, r"at least one row and one column, got shape \(0, 3\)"),
    (np.ones((3, 0)), ValueError, "at least one row and one column"),
    ([[1.0, np.nan]], ValueError, "finite.*1 of 2 entries"),
    ([[np.inf, 1.0]], ValueError, "finite"),
    (np.ones((2, 2), complex), TypeError, "real numbers.*complex128"),
    (np.ones((2, 2), np.longdouble), TypeError, "real numbers.*longdouble|float128"),
    (np.zeros((0, 0)), ValueError, "at least one row and one column"),
    ([], ValueError, r"two dimensions, got shape \(0,\)"),
    (np.float64(3.0), ValueError, r"two dimensions, got shape \(\)"),
    (None, ValueError, r"two dimensions, got shape \(\)"),
    ("W", ValueError, "two dimensions"),
    ([[1.0, 2.0], [3.0]], ValueError, "rows all have the same length"),
    ([[1, 10**30]], TypeError, "real numbers.*object"),
    (np.array([[1, None]]), TypeError, "real numbers.*object"),
    (np.array([["1", "2"]]), TypeError, "real numbers.*<U1"),
    (np.array([["2026-01-01"]], "datetime64[D]"), TypeError, "real numbers.*datetime64"),
    (np.ones((2, 2), np.complex64), TypeError, "real numbers.*complex64"),
    (np.full((3, 3), np.inf, np.float16), ValueError, "finite.*9 of 9 entries, the first in row 0, column 0"),
    (np.ma.masked_equal([[1.0, 2.0]], 2.0), ValueError, "no masked entries"),
    (scipy.sparse.eye_array(3), TypeError, "sparse dia_array: give its .toarray"),
]

matrices = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    elements=st.floats(-1e6, 1e6, allow_nan=False),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_truncated_svd_agrees_with_scipy(shape, dtype):
    W = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    U_scipy, s_scipy, Vt_scipy = scipy.linalg.svd(W.astype(np.float64), full_matrices=False)
    tolerance = 200 * np.finfo(dtype).eps
    for rank in range(min(shape) + 1):
        U, s, Vt = truncated_svd(W, rank)
        assert (U.shape, s.shape, Vt.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
        assert (U.dtype, s.dtype, Vt.dtype) == (dtype, dtype, dtype)
        np.testing.assert_allclose(s, s_scipy[:rank], rtol=tolerance)
        np.testing.assert_allclose(U * s @ Vt, U_scipy[:, :rank] * s_scipy[:rank] @ Vt_scipy[:rank], atol=tolerance * 4)
        np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=tolerance)
        np.testing.assert_allclose(Vt @ Vt.T, np.eye(rank), atol=tolerance)


def test_signs_do_not_depend_on_the_decomposition_that_was_found():
    W = np.random.default_rng(0).standard_normal((7, 5))
    U, s, Vt = truncated_svd(W, 5)
    strongest = np.abs(U).argmax(axis=0)
    assert (U[strongest, np.arange(5)] > 0).all()
    U_minus, s_minus, Vt_minus = truncated_svd(-W, 5)  # the sign of W must land in Vt, never in U
    np.testing.assert_allclose(U_minus, U, atol=1e-13)
    np.testing.assert_allclose(s_minus, s)
    np.testing.assert_allclose(Vt_minus, -Vt, atol=1e-13)


@pytest.mark.parametrize("noise", [0.0, 1e-15, -1e-15])
def test_among_tied_entries_the_first_is_positive(noise):
    U, _, _ = truncated_svd(np.array([[1.0, -2.0], [-1.0 + noise, 2.0]]), 1)
    np.testing.assert_allclose(U, [[np.sqrt(0.5)], [-np.sqrt(0.5)]], atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["array", "factors"])
def test_signs_where_every_entry_ties(dtype, kind):
    # All entries of a Hadamard matrix are ±1 and its columns are orthogonal: as singular vectors they tie everywhere.
    H = scipy.linalg.hadamard(16).astype(dtype)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=16).astype(dtype)
    weights = np.arange(16, 0, -1, dtype=dtype)
    left, right = H * signs * weights / 4, (H * signs).T[:, ::-1] / 4
    W = left @ right if kind == "array" else LowRank(left, right)
    U, s, Vt = truncated_svd(W, 16)
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(s, weights, rtol=tolerance)
    np.testing.assert_allclose(U, H / 4, atol=tolerance)  # the first row of H is all ones: no sign of ours is left
    np.testing.assert_allclose(Vt, H.T[:, ::-1] / 4, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "distance", "first_is_positive"),
    [
        (np.float64, 0.9e-6, True),
        (np.float64, 1.1e-6, False),
        (np.float32, 0.9e-3, True),
        (np.float32, 1.1e-3, False),
    ],
)
def test_how_close_a_tie_is(dtype, distance, first_is_positive):
    column = np.array([[1 - distance], [-1.0], [1.0], [0.5]])
    U, _, _ = truncated_svd((column @ [[1.0, 2.0]]).astype(dtype), 1)
    assert (U[0, 0] > 0) == first_is_positive
    assert (U[1, 0] < 0) == first_is_positive


def test_signs_of_a_symmetric_matrix_show_its_negative_eigenvalues():
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    eigenvalues = np.array([5.0, -4.0, 3.0, -2.0, 1.0])
    U, s, Vt = truncated_svd(Q * eigenvalues @ Q.T, 5)
    np.testing.assert_allclose(s, np.abs(eigenvalues))
    np.testing.assert_allclose((U * Vt.T).sum(axis=0), np.sign(eigenvalues))


def test_integers_and_half_precision_are_widened():
    table = gallery.multiplication_table()
    assert truncated_svd(table, 1)[0].dtype == np.float64
    assert truncated_svd(table.astype(np.float16), 1)[0].dtype == np.float32
    assert truncated_svd(table.tolist(), 1)[1] == pytest.approx([285.0])  # ‖(1, ..., 9)‖² = 285


def test_argument_is_left_as_it_was():
    W = np.random.default_rng(0).standard_normal((5, 4))
    before = W.copy()
    truncated_svd(W, 2), rank_errors(W), numerical_rank(W)
    assert np.array_equal(W, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_rank_errors_are_those_of_the_approximations(shape, norm):
    W = np.random.default_rng(3).standard_normal(shape)
    errors = rank_errors(W, norm=norm)
    order = NORMS[norm]
    assert errors.shape == (min(shape) + 1,)
    assert errors[0] == 1.0
    assert errors[-1] == 0.0
    for rank, error in enumerate(errors):
        U, s, Vt = truncated_svd(W, rank)
        measured = np.linalg.norm(W - U * s @ Vt, order) / np.linalg.norm(W, order)
        assert error == pytest.approx(measured, abs=1e-14)


def test_no_random_rival_beats_the_truncated_svd():
    rng = np.random.default_rng(4)
    W = rng.standard_normal((8, 6))
    for rank in (1, 3, 5):
        best = {norm: rank_errors(W, norm=norm)[rank] * np.linalg.norm(W, NORMS[norm]) for norm in NORMS}
        U, s, _ = truncated_svd(W, rank)
        for spread in (1e-3, 1e-1, 10.0) * 100:
            # The hardest rivals: a left factor near the best one, and for it the best right factor there is.
            left = U * s + spread * rng.standard_normal((8, rank))
            rival = left @ np.linalg.lstsq(left, W)[0]
            for norm, error in best.items():
                assert np.linalg.norm(W - rival, NORMS[norm]) >= error * (1 - 1e-12)


@given(matrices)
def test_rank_errors_never_increase(W):
    for norm in NORMS:
        errors = rank_errors(W, norm=norm)
        assert (np.diff(errors) <= 0).all()
        assert errors[-1] == 0.0
        assert errors[0] == (1.0 if W.any() else 0.0)


@given(matrices)
@settings(max_examples=50)
def test_transpose_has_the_same_errors_and_rank(W):
    np.testing.assert_allclose(rank_errors(W.T), rank_errors(W), atol=1e-12)
    assert numerical_rank(W.T, tol=1e-3) == numerical_rank(W, tol=1e-3) or _near(W, 1e-3)


def _near(W, tol):
    """Tell whether a singular value stands so close to the tolerance that rounding decides."""
    return (np.abs(np.linalg.svd(W, compute_uv=False) - tol) < 1e-8).any()


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-200, 1e-3, 1e3, 1e200, 1e307])
@pytest.mark.parametrize("norm", NORMS)
def test_errors_and_rank_do_not_depend_on_the_scale(scale, norm):
    W = gallery.multiplication_table_with_error().astype(np.float64)
    if scale < 1e-307 or scale > 1e306:
        W = np.eye(4)  # whole multiples of the smallest number, and none beyond the largest
    np.testing.assert_allclose(rank_errors(scale * W, norm=norm), rank_errors(W, norm=norm), atol=1e-14)
    assert numerical_rank(scale * W) == numerical_rank(W)


@pytest.mark.parametrize("scale", [5e-324 * 2**30, 1e-300, 1e-200, 1e200, 1e303])
def test_decomposition_does_not_depend_on_the_scale(scale):
    W = gallery.multiplication_table_with_error().astype(np.float64)
    U, s, Vt = truncated_svd(W, 2)
    U_scaled, s_scaled, Vt_scaled = truncated_svd(scale * W, 2)
    np.testing.assert_allclose(U_scaled, U, atol=1e-13)
    np.testing.assert_allclose(Vt_scaled, Vt, atol=1e-13)
    np.testing.assert_allclose(s_scaled / scale, s, rtol=1e-9)
    np.testing.assert_allclose(singular_values(scale * W)[:2], s_scaled, rtol=1e-9)
    np.testing.assert_allclose(LowRank.from_svd(scale * W, 2) @ np.ones(9) / scale, W @ np.ones(9), rtol=1e-9)


def test_errors_of_a_matrix_whose_singular_values_overflow():
    W = np.full((3, 3), 1e308)
    np.testing.assert_allclose(rank_errors(W), [1, 0, 0, 0], atol=1e-15)
    assert numerical_rank(W) == 1
    assert numerical_rank(W, tol=1e308) == 1
    for function in (singular_values, lambda W: truncated_svd(W, 1)):
        with pytest.raises(ValueError, match="singular values are beyond float64: divide the matrix by a constant"):
            function(W)
    np.testing.assert_allclose(LowRank.from_svd(W, 1), W, rtol=1e-14)  # the factors hold their square roots
    single = rank_errors(np.full((3, 3), 3e38, np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, [1, 0, 0, 0], atol=1e-6)


def test_small_tails_keep_their_digits():
    s = np.array([1.0, 1e-9, 1e-12, 1e-200])
    for norm in NORMS:
        errors = rank_errors(np.diag(s), norm)
        rtol = 2e-3 if norm == "nuclear" else 1e-5  # 1e-9 + 1e-12 is what is left of the sum
        np.testing.assert_allclose(errors[1:4], [1e-9, 1e-12, 1e-200], rtol=rtol)  # 1 - kept energy would give 0


def test_tails_are_added_from_their_small_end():
    W = np.diag([1.0] + [1e-16] * 40)  # added to 1 one by one, all the small ones would be lost
    assert rank_errors(W, "nuclear")[1] == pytest.approx(40e-16, rel=1e-9, abs=0)
    assert rank_errors(W, "fro")[1] == pytest.approx(np.sqrt(40) * 1e-16, rel=1e-9, abs=0)


def test_tails_are_added_in_float64():
    W = (0.1 * np.eye(300)).astype(np.float32)
    np.testing.assert_allclose(rank_errors(W, "nuclear"), 1 - np.arange(301) / 300, atol=1e-12)
    np.testing.assert_allclose(rank_errors(W, "fro"), np.sqrt(1 - np.arange(301) / 300), atol=1e-12)


def test_zero_matrix():
    Z = np.zeros((3, 4))
    empty = LowRank(np.ones((3, 0)), np.ones((0, 4)))
    for W in (Z, Z.astype(np.float32), Z.tolist(), empty, LowRank(np.zeros((3, 2)), np.ones((2, 4)))):
        for norm in NORMS:
            assert np.array_equal(rank_errors(W, norm=norm), np.zeros(4))
        assert numerical_rank(W) == numerical_rank(W, tol=0) == 0
        assert np.array_equal(singular_values(W), np.zeros(3))
        U, s, Vt = truncated_svd(W, 2)
        assert np.array_equal(s, np.zeros(2))
        np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-15)
        np.testing.assert_allclose(Vt @ Vt.T, np.eye(2), atol=1e-15)
        assert not LowRank.from_svd(W, 2).dense().any()


@pytest.mark.parametrize("W", [np.eye(8), scipy.linalg.hadamard(8), np.kron([[3, 0], [0, 1]], np.eye(4))], ids=len)
def test_repeated_singular_values(W):
    np.testing.assert_allclose(singular_values(W), scipy.linalg.svdvals(W), rtol=1e-14)
    for rank in range(9):
        U, s, Vt = truncated_svd(W, rank)  # which vectors is left open: orthonormal and as near as any they are
        np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=1e-14)
        np.testing.assert_allclose(Vt @ Vt.T, np.eye(rank), atol=1e-14)
        left_over = np.linalg.norm(W - U * s @ Vt)
        assert left_over == pytest.approx(rank_errors(W)[rank] * np.linalg.norm(W), abs=1e-13)


@pytest.mark.parametrize("shape", [*SHAPES, (12, 5), (5, 12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_values_agree_with_scipy(shape, dtype):
    W = np.random.default_rng(6).standard_normal(shape).astype(dtype)
    s = singular_values(W)
    assert (s.shape, s.dtype) == ((min(shape),), dtype)
    np.testing.assert_allclose(s, scipy.linalg.svdvals(W.astype(np.float64)), rtol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n", "rank"), [(9, 7, 3), (7, 9, 1), (4, 5, 0), (4, 5, 6), (6, 6, 6)])
def test_a_low_rank_matrix_gives_what_its_dense_form_gives(dtype, m, n, rank):
    rng = np.random.default_rng(7)
    low = LowRank(rng.standard_normal((m, rank)).astype(dtype), rng.standard_normal((rank, n)).astype(dtype))
    W = low.dense()
    tolerance = 50 * np.finfo(dtype).eps
    size = max(np.linalg.norm(W), 1)
    assert singular_values(low).dtype == dtype
    np.testing.assert_allclose(singular_values(low), singular_values(W), atol=tolerance * size)
    for norm in NORMS:
        np.testing.assert_allclose(rank_errors(low, norm), rank_errors(W, norm), atol=tolerance)
    assert numerical_rank(low) == numerical_rank(W) == np.linalg.matrix_rank(W)
    for kept in range(min(m, n) + 1):  # past the rank too: there the values are 0, and the vectors orthonormal
        U, s, Vt = truncated_svd(low, kept)
        assert (U.shape, s.shape, Vt.shape) == ((m, kept), (kept,), (kept, n))
        np.testing.assert_allclose(U.T @ U, np.eye(kept), atol=tolerance)
        np.testing.assert_allclose(Vt @ Vt.T, np.eye(kept), atol=tolerance)
        best = LowRank.from_svd(W, kept)
        np.testing.assert_allclose(U * s @ Vt, best, atol=tolerance * size)
        again = LowRank.from_svd(low, kept)
        assert again.rank == kept
        np.testing.assert_allclose(again, best, atol=tolerance * size)


def test_cancelled_layers_do_not_count():
    rng = np.random.default_rng(8)
    low = LowRank(rng.standard_normal((30, 3)), rng.standard_normal((3, 20)))
    other = LowRank(rng.standard_normal((30, 2)), rng.standard_normal((2, 20)))
    assert numerical_rank(low - low) == 0
    assert numerical_rank(low + other - low) == 2
    assert numerical_rank(low + 1e-20 * other) == 3


@pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION)
def test_every_kind_of_matrix_gives_the_same(function):
    W = gallery.multiplication_table_with_error(6, row=2, column=3, value=7)  # whole numbers below 2048: exact in all
    expected = function(W.astype(np.float64))
    same = {
        "list": W.tolist(),
        "tuple of lists": tuple(W.tolist()),
        "int8": W.astype(np.int8),
        "uint64": W.astype(np.uint64),
        "Fortran": np.asfortranarray(W, float),
        "strided": np.repeat(np.repeat(W.astype(float), 2, axis=0), 3, axis=1)[::2, ::3],
        "reversed": W.astype(float)[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": np.broadcast_to(W.astype(float), W.shape),
        "nothing masked": np.ma.masked_less(W, 0),
        "other bytes": W.astype(np.dtype(np.float64).newbyteorder()),
        "LowRank": LowRank(W, np.eye(6)),
    }
    with pytest.warns(PendingDeprecationWarning):
        same["matrix"] = np.asmatrix(W)
    for kind, value in same.items():
        assert_same(function(value), expected, 1e-13, kind)
    for dtype in (np.float16, np.float32):
        assert_same(function(W.astype(dtype)), expected, 1e-5, dtype)
    assert_same(function(W > 5), function((W > 5).astype(float)), 1e-13, "bool")


def assert_same(value, expected, tolerance, kind):
    if not isinstance(expected, tuple):
        value, expected = (value,), (expected,)
    for one, other in zip(value, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(np.max(np.abs(other)), 1), err_msg=str(kind))


@pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_thin_matrices(function, shape):
    W = np.arange(1.0, 6.0)[: max(shape)].reshape(shape)
    assert_same(function(W), function(LowRank.from_svd(W, 1)), 1e-14, shape)
    assert singular_values(W) == pytest.approx([np.linalg.norm(W)])
    assert rank_errors(W).tolist() == [1.0, 0.0]
    assert numerical_rank(W) == choose_rank(W, error=0) == 1


@pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_decomposition_is_tried_before_the_entries_are_known_to_be_finite(function, bad, monkeypatch):
    def decomposition(*arguments, **options):
        raise AssertionError("a decomposition of nan or inf need not return")

    monkeypatch.setattr(np.linalg, "svd", decomposition)
    monkeypatch.setattr(np.linalg, "qr", decomposition)
    W = np.eye(3)
    W[1, 2] = bad
    with pytest.raises(ValueError, match=r"W must be finite, got nan or inf in 1 of 9 entries.*row 1, column 2"):
        function(W)


@given(matrices)
def test_numerical_rank_agrees_with_numpy(W):
    assert numerical_rank(W) == np.linalg.matrix_rank(W)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 1, 3, 20])
def test_numerical_rank_of_a_product_is_the_shared_dimension(dtype, rank):
    rng = np.random.default_rng(5)
    W = (rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 20))).astype(dtype)
    assert numerical_rank(W) == np.linalg.matrix_rank(W) == rank


def test_default_tolerance_grows_with_the_longer_side():
    W = np.zeros((100, 2))
    W[0, 0], W[1, 1] = 1.0, 50 * np.finfo(np.float64).eps  # below 100 eps, above 2 eps
    assert numerical_rank(W) == numerical_rank(W.T) == np.linalg.matrix_rank(W) == 1


def test_tolerance_is_absolute_and_excludes_itself():
    W = np.diag([8.0, 4.0, 2.0])
    assert [numerical_rank(W, tol=tol) for tol in (0, 1.9, 2, 4, 8)] == [3, 3, 2, 1, 0]
    assert numerical_rank(np.diag([1e-200, 1e-210]), tol=1e-205) == 1


@pytest.mark.parametrize(("W", "error", "message"), BAD_MATRICES)
@pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION)
def test_bad_matrices_are_refused(function, W, error, message):
    with pytest.raises(error, match=rf"^W must .*({message})"):
        function(W)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (5, ValueError, r"rank must be at most min\(m, n\) = 4 for a 4×6 matrix, got 5"),
        (-1, ValueError, "rank must be at least 0, got -1"),
        (1.0, TypeError, "rank must be a whole number, got 1.0"),
        (True, TypeError, "rank must be a whole number, got True"),
        (1.5, TypeError, "rank must be a whole number, got 1.5"),
        (np.True_, TypeError, "rank must be a whole number, got np.True_"),
        (None, TypeError, "rank must be a whole number, got None"),
        ("1", TypeError, "rank must be a whole number, got '1'"),
    ],
)
def test_bad_ranks_are_refused(rank, error, message):
    W = np.ones((4, 6))
    for matrix in (W, LowRank(W, np.eye(6))):
        with pytest.raises(error, match=message):
            truncated_svd(matrix, rank)
        with pytest.raises(error, match=message):
            LowRank.from_svd(matrix, rank)


def test_whole_numbers_of_numpy_are_ranks():
    W = gallery.addition_table()
    for rank in (np.int64(2), np.uint8(2), np.array(2)):
        assert truncated_svd(W, rank)[0].shape == (9, 2)
        assert LowRank.from_svd(W, rank).recompress(rank).rank == 2


@pytest.mark.parametrize("norm", [2, "nuc", "F", None, True, np.ones(2)])
def test_bad_norms_are_refused(norm):
    with pytest.raises(ValueError, match=r'norm must be "fro", "spectral" or "nuclear", got'):
        rank_errors(np.eye(2), norm=norm)


@pytest.mark.parametrize(
    ("tol", "error", "message"),
    [
        (-1e-9, ValueError, "tol must be at least 0, got -1e-09"),
        (np.nan, ValueError, "tol must be a finite number, got nan"),
        (np.inf, ValueError, "tol must be a finite number, got inf"),
        (10**400, ValueError, "tol must be a finite number, got 1000"),
        (True, TypeError, "tol must be a number, got True"),
        ("1", TypeError, "tol must be a number, got '1'"),
        (1j, TypeError, "tol must be a number, got 1j"),
        (np.ones(2), TypeError, "tol must be a number"),
    ],
)
def test_bad_tolerances_are_refused(tol, error, message):
    with pytest.raises(error, match=message):
        numerical_rank(np.eye(2), tol=tol)


def test_a_tolerance_beyond_float32_is_no_trouble():
    assert numerical_rank(np.full((3, 3), 3e38, np.float32), tol=1e300) == 0
    assert numerical_rank(np.full((3, 3), 3e38, np.float32), tol=3e38) == 1  # the singular value is 9e38
