"""The truncated SVD, its errors and the numerical rank, against NumPy, SciPy and random rivals."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lora_lab.lowrank import gallery, numerical_rank, rank_errors, truncated_svd

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
@pytest.mark.parametrize("norm", ["fro", "spectral"])
def test_rank_errors_are_those_of_the_approximations(shape, norm):
    W = np.random.default_rng(3).standard_normal(shape)
    errors = rank_errors(W, norm=norm)
    order = {"fro": "fro", "spectral": 2}[norm]
    assert errors.shape == (min(shape) + 1,)
    assert errors[0] == 1.0
    assert errors[-1] == 0.0
    for rank, error in enumerate(errors):
        U, s, Vt = truncated_svd(W, rank)
        measured = scipy.linalg.norm(W - U * s @ Vt, order) / scipy.linalg.norm(W, order)
        assert error == pytest.approx(measured, abs=1e-14)


def test_no_random_rival_beats_the_truncated_svd():
    generator = np.random.default_rng(4)
    W = generator.standard_normal((8, 6))
    size = {norm: scipy.linalg.norm(W, order) for norm, order in (("fro", "fro"), ("spectral", 2))}
    for rank in (1, 3, 5):
        best = {norm: rank_errors(W, norm=norm)[rank] for norm in size}
        U, s, _ = truncated_svd(W, rank)
        for spread in (1e-3, 1e-1, 10.0) * 100:
            # The hardest rivals: a left factor near the best one, and for it the best right factor there is.
            left = U * s + spread * generator.standard_normal((8, rank))
            rival = left @ np.linalg.lstsq(left, W)[0]
            assert scipy.linalg.norm(W - rival) / size["fro"] >= best["fro"] * (1 - 1e-12)
            assert scipy.linalg.norm(W - rival, 2) / size["spectral"] >= best["spectral"] * (1 - 1e-12)


@given(matrices)
def test_rank_errors_never_increase(W):
    for norm in ("fro", "spectral"):
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
@pytest.mark.parametrize("norm", ["fro", "spectral"])
def test_errors_and_rank_do_not_depend_on_the_scale(scale, norm):
    W = gallery.multiplication_table_with_error().astype(np.float64)
    if scale < 1e-307 or scale > 1e306:
        W = np.eye(4)  # whole multiples of the smallest number, and none beyond the largest
    np.testing.assert_allclose(rank_errors(scale * W, norm=norm), rank_errors(W, norm=norm), atol=1e-14)
    assert numerical_rank(scale * W) == numerical_rank(W)


def test_errors_of_a_matrix_whose_singular_values_overflow():
    W = np.full((3, 3), 1e308)
    np.testing.assert_allclose(rank_errors(W), [1, 0, 0, 0], atol=1e-15)
    assert numerical_rank(W) == 1
    assert numerical_rank(W, tol=1e308) == 1
    with pytest.raises(ValueError, match="beyond float64"):
        truncated_svd(W, 1)
    single = rank_errors(np.full((3, 3), 3e38, np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, [1, 0, 0, 0], atol=1e-6)


def test_small_tails_keep_their_digits():
    s = np.array([1.0, 1e-9, 1e-12, 1e-200])
    errors = rank_errors(np.diag(s))
    np.testing.assert_allclose(errors[1:4], [1e-9, 1e-12, 1e-200], rtol=1e-5)  # 1 - kept energy would give 0


def test_zero_matrix():
    Z = np.zeros((3, 4))
    for norm in ("fro", "spectral"):
        assert np.array_equal(rank_errors(Z, norm=norm), np.zeros(4))
    assert numerical_rank(Z) == 0
    U, s, Vt = truncated_svd(Z, 2)
    assert np.array_equal(s, np.zeros(2))
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(2), atol=1e-15)


@given(matrices)
def test_numerical_rank_agrees_with_numpy(W):
    assert numerical_rank(W) == np.linalg.matrix_rank(W)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 1, 3, 20])
def test_numerical_rank_of_a_product_is_the_shared_dimension(dtype, rank):
    generator = np.random.default_rng(5)
    W = (generator.standard_normal((30, rank)) @ generator.standard_normal((rank, 20))).astype(dtype)
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
@pytest.mark.parametrize("function", [lambda W: truncated_svd(W, 1), rank_errors, numerical_rank])
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
        ("1", TypeError, "rank must be a whole number, got '1'"),
    ],
)
def test_bad_ranks_are_refused(rank, error, message):
    with pytest.raises(error, match=message):
        truncated_svd(np.ones((4, 6)), rank)


def test_bad_norms_and_tolerances_are_refused():
    with pytest.raises(ValueError, match=r'norm must be "fro" or "spectral", got 2'):
        rank_errors(np.eye(2), norm=2)
    for tol in (-1e-9, np.nan):
        with pytest.raises(ValueError, match="tol must be a number that is not negative"):
            numerical_rank(np.eye(2), tol=tol)
