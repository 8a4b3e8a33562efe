"""Laws that hold for every matrix, tried on matrices that hypothesis makes up, in float32 and in float64."""

import numpy as np
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.decomposition import TruncatedSVD

from lora_lab.lowrank import (
    LowRank,
    choose_rank,
    numerical_rank,
    rank_errors,
    singular_values,
    truncated_svd,
)

NORMS = {"fro": "fro", "spectral": 2, "nuclear": "nuc"}  # our names, and NumPy's
lawful = settings(derandomize=True, deadline=None, max_examples=40)
dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-4, 4, width=16).map(lambda x: 0.0 if abs(x) < 1e-2 else x)  # ordinary, and often 0 or alike


@st.composite
def matrices(draw, m=None, n=None):
    """Draw a matrix of a few rows and columns: numbers at will, or a product that has few layers, large or small."""
    dtype = draw(dtypes)
    m, n = m or draw(st.integers(1, 7)), n or draw(st.integers(1, 7))
    if draw(st.booleans()):
        return draw(npst.arrays(dtype, (m, n), elements=st.sampled_from([0, 1, -1, 2]) | st.floats(-4, 4, width=16)))
    low = draw(products(m, n))
    return (low.dense() * draw(st.sampled_from([1.0, 1e-12, 1e12]))).astype(dtype)


@st.composite
def products(draw, m=None, n=None):
    """Draw a LowRank whose shared dimension may be 0, and may be above min(m, n)."""
    dtype = draw(dtypes)
    m, n, rank = m or draw(st.integers(1, 7)), n or draw(st.integers(1, 7)), draw(st.integers(0, 8))
    if draw(st.booleans()):
        return LowRank(
            draw(npst.arrays(dtype, (m, rank), elements=numbers)), draw(npst.arrays(dtype, (rank, n), elements=numbers))
        )
    rng = np.random.default_rng(draw(seeds))
    return LowRank(rng.standard_normal((m, rank)).astype(dtype), rng.standard_normal((rank, n)).astype(dtype))


def rounding(W):
    """Give what rounding may add to any norm of W: far less than what a wrong formula would."""
    return 100 * np.finfo(W.dtype).eps * max(np.linalg.norm(W, "nuc"), np.finfo(W.dtype).tiny)


def size_of_layers(low):
    """Give the sum of the sizes of all layers: rounding is relative to it where layers cancel."""
    return float(np.sum(np.linalg.norm(low.left, axis=0) * np.linalg.norm(low.right, axis=1)))


@given(W=matrices(), seed=seeds, spread=st.sampled_from([1e-3, 0.1, 1.0]))
@lawful
def test_eckart_young(W, seed, spread):
    rng = np.random.default_rng(seed)
    W = W.astype(np.float64)
    U, s, Vt = truncated_svd(W, min(W.shape))
    for rank in range(min(W.shape)):
        near = U[:, :rank] * s[:rank] + spread * s[0] * rng.standard_normal((W.shape[0], rank))
        rivals = [
            near @ np.linalg.lstsq(near, W)[0],  # the best that this left factor can do, in the Frobenius norm
            near @ Vt[:rank],  # the right factor of the winner itself
            spread * rng.standard_normal((W.shape[0], rank)) @ rng.standard_normal((rank, W.shape[1])),
        ]
        for norm, order in NORMS.items():
            least = rank_errors(W, norm)[rank] * np.linalg.norm(W, order)
            assert np.linalg.norm(W - (U[:, :rank] * s[:rank]) @ Vt[:rank], order) <= least + rounding(W)
            for rival in rivals:
                assert np.linalg.norm(W - rival, order) >= least - rounding(W)


@given(W=matrices())
@lawful
def test_errors_fall_from_one_to_zero(W):
    for norm in NORMS:
        errors = rank_errors(W, norm)
        assert errors.dtype == np.float64
        assert errors[0] == (1.0 if W.any() else 0.0)
        assert (np.diff(errors) <= 0).all()
        assert errors[-1] == 0.0
    spectral, fro, nuclear = (
        rank_errors(W, norm) * np.linalg.norm(W, NORMS[norm]) for norm in ("spectral", "fro", "nuclear")
    )
    assert (spectral <= fro + rounding(W)).all()
    assert (fro <= nuclear + rounding(W)).all()


@given(W=matrices())
@lawful
def test_svd_is_a_decomposition_with_fixed_signs(W):
    k = min(W.shape)
    U, s, Vt = truncated_svd(W, k)
    assert U.dtype == s.dtype == Vt.dtype == W.dtype
    tolerance = 100 * np.finfo(W.dtype).eps
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=tolerance)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=tolerance)
    np.testing.assert_allclose(U * s @ Vt, W, atol=rounding(W))
    np.testing.assert_allclose(s, np.linalg.svd(W, compute_uv=False), atol=rounding(W))
    np.testing.assert_array_equal(s, np.sort(s)[::-1])
    assert (U.max(axis=0) >= (1 - 2e-3) * np.abs(U).max(axis=0)).all()  # the largest entry is positive, or tied
    for rank in range(k):  # a lower rank is the same decomposition, cut off
        for part, whole in zip(truncated_svd(W, rank), (U[:, :rank], s[:rank], Vt[:rank]), strict=True):
            np.testing.assert_array_equal(part, whole)


@given(W=matrices())
@lawful
def test_signs_do_not_depend_on_the_sign_of_the_matrix(W):
    rank = np.count_nonzero(singular_values(W) > 0)
    values = singular_values(W).astype(np.float64)
    gaps = -np.diff(values, append=0) / max(values[0], np.finfo(np.float64).tiny)
    U, _, Vt = truncated_svd(W, rank)
    U_minus, _, Vt_minus = truncated_svd(-W, rank)
    alone = [k for k in range(rank) if gaps[k] > 0.05 and (k == 0 or gaps[k - 1] > 0.05)]
    tolerance = 2000 * np.finfo(W.dtype).eps
    np.testing.assert_allclose(U_minus[:, alone], U[:, alone], atol=tolerance)
    np.testing.assert_allclose(Vt_minus[alone], -Vt[alone], atol=tolerance)


@given(W=matrices())
@lawful
def test_transpose_has_the_same_singular_values(W):
    np.testing.assert_allclose(singular_values(W.T), singular_values(W), atol=rounding(W))


@given(W=matrices(), exponent=st.integers(-200, 200))
@lawful
def test_powers_of_two_change_nothing_but_the_scale(W, exponent):
    W = W.astype(np.float64)
    scaled = np.ldexp(W, exponent)
    np.testing.assert_array_equal(singular_values(scaled), np.ldexp(singular_values(W), exponent))
    np.testing.assert_array_equal(truncated_svd(scaled, 1)[0], truncated_svd(W, 1)[0])
    for norm in NORMS:
        np.testing.assert_array_equal(rank_errors(scaled, norm), rank_errors(W, norm))
    assert numerical_rank(scaled) == numerical_rank(W)


@given(W=matrices(), share=st.floats(0, 1))
@lawful
def test_chosen_rank_is_enough_and_one_less_is_not(W, share):
    slack = 100 * np.finfo(W.dtype).eps
    for norm in NORMS:
        errors = rank_errors(W, norm)
        rank = choose_rank(W, error=share, norm=norm)
        assert errors[rank] <= share + slack
        assert rank == 0 or errors[rank - 1] > share
    if share > 0:
        rank, kept = choose_rank(W, energy=share), 1 - rank_errors(W) ** 2
        assert kept[rank] >= share - slack or not W.any()
        assert rank == 0 or kept[rank - 1] < share + slack


@given(low=products())
@lawful
def test_norms_of_a_product_agree_with_its_dense_form(low):
    for ord, order in NORMS.items():
        expected = np.linalg.norm(low.dense().astype(np.float64), order)
        assert abs(low.norm(ord) - expected) <= 100 * np.finfo(low.dtype).eps * size_of_layers(low)


@given(low=products())
@lawful
def test_svd_from_factors_agrees_with_numpy(low):
    W = low.left.astype(np.float64) @ low.right.astype(np.float64)
    k = min(low.rank, *low.shape)
    U, s, Vt = low.svd()
    eps = 100 * np.finfo(low.dtype).eps
    tolerance = eps * max(size_of_layers(low), np.finfo(low.dtype).tiny)
    assert (U.shape, s.shape, Vt.shape) == ((low.shape[0], k), (k,), (k, low.shape[1]))
    np.testing.assert_allclose(s, np.linalg.svd(W, compute_uv=False)[:k], atol=tolerance)
    np.testing.assert_allclose(singular_values(low), np.linalg.svd(W, compute_uv=False), atol=tolerance)
    np.testing.assert_allclose(U * s @ Vt, W, atol=tolerance)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=eps)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=eps)


@given(low=products())
@lawful
def test_recompression_keeps_the_best(low):
    for rank in range(min(low.rank, *low.shape) + 1):
        small = low.recompress(rank)
        expected = rank_errors(low.dense())[rank] * np.linalg.norm(low.dense())
        lost = np.linalg.norm(low.dense() - small.dense())
        assert abs(lost - expected) <= 200 * np.finfo(low.dtype).eps * size_of_layers(low)


@given(data=st.data())
@lawful
def test_algebra_of_factors_is_that_of_matrices(data):
    m, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    one, two, three = (data.draw(products(*shape)) for shape in ((m, n), (m, n), (n, 4)))
    a, b = data.draw(numbers), data.draw(numbers)
    A, B, C = (low.dense() for low in (one, two, three))
    for result, expected in [
        (one + two, A + B),
        (one - two, A - B),
        (a * one + two * b, a * A + b * B),
        (-(one - two), B - A),
        ((one + two).T, A.T + B.T),
        ((one + two) @ three, (A + B) @ C),
        (one.T @ two, A.T @ B),
    ]:
        eps = np.finfo(np.float32 if np.float32 in (one.dtype, two.dtype, three.dtype) else np.float64).eps
        size = (
            (1 + abs(a) + abs(b))
            * (size_of_layers(one) + size_of_layers(two))
            * (1 + size_of_layers(three) + size_of_layers(two))
        )
        assert isinstance(result, LowRank)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result.dense(), expected, atol=100 * eps * size + 1e-300)
    assert (one + two).rank == one.rank + two.rank
    assert (one + two).size == one.size + two.size


@given(W=matrices(m=6, n=5), rank=st.integers(1, 4))
@lawful
def test_approximation_is_that_of_scikit_learn(W, rank):
    W = W.astype(np.float64)
    s = singular_values(W)
    assume(s[rank - 1] - s[rank] > 1e-3 * s[0])  # where two singular values tie, the best is not unique
    with np.errstate(divide="ignore"):  # it divides by the variance too, which we have no use for
        theirs = TruncatedSVD(rank, algorithm="arpack").fit(W)
    projected = theirs.transform(W) @ theirs.components_
    np.testing.assert_allclose(LowRank.from_svd(W, rank).dense(), projected, atol=1e-9 * s[0])
    np.testing.assert_allclose(truncated_svd(W, rank)[1], theirs.singular_values_, rtol=1e-9)


@given(W=matrices())
@lawful
def test_norms_and_ranks_agree_with_scipy(W):
    W = W.astype(np.float64)
    values = scipy.linalg.svdvals(W)
    np.testing.assert_allclose(singular_values(W), values, atol=rounding(W))
    low = LowRank(W, np.eye(W.shape[1]))
    assert abs(low.norm("spectral") - values[0]) <= rounding(W)
    assert abs(low.norm("nuclear") - values.sum()) <= rounding(W)
    assert abs(low.norm("fro") - scipy.linalg.norm(W)) <= rounding(W)
    assert numerical_rank(W) == np.linalg.matrix_rank(W)
