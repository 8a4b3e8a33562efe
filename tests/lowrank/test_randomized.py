"""randomized_svd against exact decompositions, in the places where such methods break, and on products alone."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import sklearn.datasets
import sklearn.utils.extmath
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.lowrank import LowRank, error_bound, gallery, randomized_svd, rank_errors, truncated_svd
from lora_lab.lowrank.randomized import _orthonormal, block_and_steps

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def rng(seed=0):
    return np.random.default_rng(seed)


def with_singular_values(m, n, s, seed=0):
    """Give an m×n matrix with the singular values s and random singular vectors."""
    U = np.linalg.qr(rng(seed).standard_normal((m, len(s))))[0]
    V = np.linalg.qr(rng(seed + 1).standard_normal((n, len(s))))[0]
    return U * s @ V.T


def relative_error(W, U, s, Vt):
    """Give the relative Frobenius error of an answer, in float64."""
    W, U, s, Vt = (np.asarray(x, np.float64) for x in (W, U, s, Vt))
    return np.linalg.norm(W - U * s @ Vt) / np.linalg.norm(W)


def assert_well_formed(answer, shape, rank, dtype):
    """Shapes and dtypes, orthonormal factors to rounding, and singular values in order."""
    U, s, Vt = answer
    assert (U.shape, s.shape, Vt.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    assert U.dtype == s.dtype == Vt.dtype == dtype
    rounding = 6 * np.finfo(dtype).eps * np.sqrt(max(shape))
    np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=rounding)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(rank), atol=rounding)
    assert np.all(s >= 0)
    assert np.all(np.diff(s) <= 0)


class Counted:
    """The least that randomized_svd may ask of a matrix, with a count of the columns that were multiplied."""

    def __init__(self, W, columns=None):
        self.W, self.columns = W, [] if columns is None else columns
        self.shape = W.shape

    @property
    def T(self):
        return Counted(self.W.T, self.columns)

    def __matmul__(self, X):
        self.columns.append(X.shape[1])
        return self.W @ X

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("a matrix that is known by its products was turned into an array")


# What scikit-learn tests of its own function, in our words


@BOTH
@pytest.mark.parametrize("rank", [1, 5, 10])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (1000, 60), (60, 1000)])
def test_low_rank_is_recovered(dtype, rank, shape):
    W = with_singular_values(*shape, np.geomspace(1, 0.1, rank)).astype(dtype)
    answer = randomized_svd(W, rank, rng=rng())
    assert_well_formed(answer, shape, rank, dtype)
    np.testing.assert_allclose(answer[1], np.linalg.svd(W, compute_uv=False)[:rank], rtol=50 * np.finfo(dtype).eps)
    assert relative_error(W, *answer) < 50 * np.finfo(dtype).eps
    for ours, theirs in zip(answer, truncated_svd(W, rank), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e4 * np.finfo(dtype).eps)  # the signs too


@BOTH
@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_noise_on_top_of_low_rank_costs_almost_nothing(dtype, noise):
    W = gallery.noisy_low_rank(400, 300, 5, noise=noise, rng=rng(2)).astype(dtype)
    answer = randomized_svd(W, 5, rng=rng())
    assert_well_formed(answer, W.shape, 5, dtype)
    assert relative_error(W, *answer) <= rank_errors(W.astype(np.float64))[5] * (1 + 1e-5)


@BOTH
@pytest.mark.parametrize("rank", [1, 8, 20])
def test_slowly_falling_singular_values(dtype, rank):
    W = with_singular_values(300, 300, 1 / np.sqrt(np.arange(1, 301))).astype(dtype)
    answer = randomized_svd(W, rank, rng=rng())
    assert_well_formed(answer, W.shape, rank, dtype)
    assert relative_error(W, *answer) <= rank_errors(W.astype(np.float64))[rank] * (1 + 1e-4)


@BOTH
@pytest.mark.parametrize("rank", [1, 5, 10])
@pytest.mark.parametrize("tail", [0.0, 0.1, 1.0], ids=["low rank", "noisy low rank", "infinite rank"])
@pytest.mark.parametrize("shape", [(600, 250), (250, 600)])
def test_the_error_is_not_above_that_of_scikit_learn(dtype, rank, tail, shape):
    W = sklearn.datasets.make_low_rank_matrix(*shape, effective_rank=5, tail_strength=tail, random_state=0)
    W = W.astype(dtype)
    ours = [randomized_svd(W, rank, rng=rng(seed)) for seed in range(9)]
    theirs = [sklearn.utils.extmath.randomized_svd(W, rank, random_state=seed) for seed in range(9)]
    median, other = (np.median([relative_error(W, *answer) for answer in answers]) for answers in (ours, theirs))
    assert median <= other * (1 + 10 * np.finfo(dtype).eps)
    for answer in ours:  # a single start can be unlucky, and is still near
        assert_well_formed(answer, shape, rank, dtype)
        assert relative_error(W, *answer) <= rank_errors(W.astype(np.float64))[rank] * (1 + 2e-3) + 1e-6


def test_few_turns_are_not_enough_where_the_rank_is_infinite():
    W = sklearn.datasets.make_low_rank_matrix(600, 250, effective_rank=5, tail_strength=1.0, random_state=0)
    exact = np.linalg.svd(W, compute_uv=False)[:5]
    assert np.abs(randomized_svd(W, 5, rng=rng(), block=5, steps=1)[1] - exact).max() > 0.02
    assert np.abs(randomized_svd(W, 5, rng=rng())[1] - exact).max() < 1e-4


@pytest.mark.parametrize("shape", [(300, 80), (80, 300)])
def test_the_transpose_has_the_transposed_answer(shape):
    W = with_singular_values(*shape, np.geomspace(1, 1e-6, 60))
    U, s, Vt = randomized_svd(W, 5, rng=rng())
    transposed_U, transposed_s, transposed_Vt = randomized_svd(W.T, 5, rng=rng())
    np.testing.assert_allclose(transposed_s, s, rtol=1e-12)
    np.testing.assert_allclose(transposed_U * transposed_s @ transposed_Vt, (U * s @ Vt).T, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_signs_follow_the_rule_and_not_the_random_numbers(seed):
    W = with_singular_values(200, 150, np.geomspace(1, 1e-3, 100))
    U, _, _ = randomized_svd(W, 6, rng=rng(seed))
    assert np.all(U[np.argmax(np.abs(U), axis=0), np.arange(6)] > 0)
    np.testing.assert_allclose(U, truncated_svd(W, 6)[0], atol=1e-6)


def test_an_equal_generator_gives_an_equal_answer():
    W = rng(3).standard_normal((120, 90))
    for first, second in zip(randomized_svd(W, 4, rng=rng(7)), randomized_svd(W, 4, rng=rng(7)), strict=True):
        np.testing.assert_array_equal(first, second)


@BOTH
@pytest.mark.parametrize("container", ["csr_array", "csc_array", "coo_array", "csr_matrix", "csc_matrix"])
def test_sparse_matrices_are_multiplied_and_not_filled_in(dtype, container, monkeypatch):
    dense = scipy.sparse.random_array((400, 250), density=0.02, rng=rng(4), dtype=np.float64).toarray()
    W = getattr(scipy.sparse, container)(dense.astype(dtype))
    for name in ("toarray", "todense"):
        monkeypatch.setattr(type(W), name, lambda *_: pytest.fail("the sparse matrix was filled in"))
    answer = randomized_svd(W, 6, rng=rng(), steps=12)
    assert_well_formed(answer, dense.shape, 6, dtype)
    np.testing.assert_allclose(answer[1], np.linalg.svd(dense, compute_uv=False)[:6], rtol=1e-5)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(np.int32, np.float64), (np.int64, np.float64), (bool, np.float64), (np.float16, np.float32)],
)
def test_dtypes(given_dtype, dtype):
    W = (rng(5).standard_normal((60, 50)) > 0).astype(given_dtype)
    assert_well_formed(randomized_svd(W, 3, rng=rng()), W.shape, 3, dtype)
    assert_well_formed(randomized_svd(scipy.sparse.csr_array(W.astype(dtype)), 3, rng=rng()), W.shape, 3, dtype)


def test_lists_and_layouts():
    W = rng(6).standard_normal((90, 80))
    s = randomized_svd(W, 3, rng=rng())[1]
    with pytest.warns(PendingDeprecationWarning):
        subclass = np.asmatrix(W)
    for same in (W.tolist(), np.asfortranarray(W), np.repeat(W, 2, axis=1)[:, ::2], W[::-1][::-1], subclass):
        np.testing.assert_allclose(randomized_svd(same, 3, rng=rng())[1], s, rtol=1e-12)


# Where such methods break


@BOTH
@pytest.mark.parametrize("rank", [1, 2, 8, 30, 100])
@pytest.mark.parametrize(
    "name", ["zero", "identity", "one entry", "rank 1", "rank 3", "rank 3 as a LowRank", "ties", "steep", "integers"]
)
def test_factors_are_orthonormal_and_the_error_is_the_best_one(name, rank, dtype):
    m, n = 260, 240
    W = {
        "zero": lambda: np.zeros((m, n)),
        "identity": lambda: np.eye(m, n),
        "one entry": lambda: np.eye(m, n) * (np.arange(n) == 17),
        "rank 1": lambda: np.ones((m, n)),
        "rank 3": lambda: with_singular_values(m, n, np.array([3.0, 2.0, 1.0])),
        "rank 3 as a LowRank": lambda: with_singular_values(m, n, np.array([3.0, 2.0, 1.0])),
        "ties": lambda: with_singular_values(m, n, np.repeat([4.0, 2.0, 1.0], 80)),
        "steep": lambda: with_singular_values(m, n, 10.0 ** -np.arange(n)),
        "integers": lambda: np.add.outer(np.arange(m), np.arange(n)) ** 2,
    }[name]().astype(dtype)
    if "LowRank" in name:
        answer = randomized_svd(LowRank.from_svd(W, 3), rank, rng=rng())
    else:
        answer = randomized_svd(W, rank, rng=rng())
    assert_well_formed(answer, (m, n), rank, dtype)
    size = np.linalg.norm(W.astype(np.float64))
    best = np.linalg.norm(np.linalg.svd(W.astype(np.float64), compute_uv=False)[rank:])
    U, s, Vt = (part.astype(np.float64) for part in answer)
    assert np.linalg.norm(W - U * s @ Vt) <= best * (1 + 1e-6) + 20 * np.finfo(dtype).eps * size * np.sqrt(rank)


@BOTH
@pytest.mark.parametrize("exponent", [-200, -30, 30, 200, "smallest", "largest"])
def test_size_does_not_matter(dtype, exponent):
    limits = np.finfo(dtype)
    power = {"smallest": limits.minexp + 20, "largest": limits.maxexp - 10}.get(exponent)
    power = round(exponent * (0.15 if dtype == np.float32 else 1.0) / np.log10(2)) if power is None else power
    W = with_singular_values(300, 250, np.geomspace(1, 1e-2, 200)).astype(dtype)
    U, s, Vt = randomized_svd(W, 4, rng=rng())
    scaled = randomized_svd(np.ldexp(W, power), 4, rng=rng())
    assert_well_formed(scaled, W.shape, 4, dtype)
    rounding = 200 * limits.eps  # digits are lost where entries fall below the smallest normal number
    np.testing.assert_allclose(np.ldexp(scaled[1].astype(np.float64), -power), s, rtol=rounding)
    np.testing.assert_allclose(scaled[0] * s @ scaled[2], U * s @ Vt, atol=rounding)


def test_singular_values_beyond_the_dtype_are_refused():
    W = np.full((200, 200), np.finfo(np.float32).max, np.float32)
    with pytest.raises(ValueError, match="singular values are beyond float32: divide the matrix by a constant"):
        randomized_svd(W, 1, rng=rng())


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3), (9, 9), (1, 500), (500, 1), (3, 400), (400, 3)])
def test_small_and_thin_matrices_are_decomposed_exactly_at_every_rank(dtype, shape):
    W = rng(8).standard_normal(shape).astype(dtype)
    for rank in range(min(shape) + 1):
        for matrix in (W, scipy.sparse.csr_array(W), Counted(W.astype(np.float64))):
            answer = randomized_svd(matrix, rank, rng=rng())
            assert_well_formed(answer, shape, rank, np.float64 if isinstance(matrix, Counted) else dtype)
            assert relative_error(W, *answer) == pytest.approx(rank_errors(W)[rank], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rank", [0, 100, 149, 150])
def test_ranks_at_both_ends(rank):
    W = rng(9).standard_normal((200, 150))
    answer = randomized_svd(W, rank, rng=rng())
    assert_well_formed(answer, W.shape, rank, np.float64)
    assert relative_error(W, *answer) == pytest.approx(rank_errors(W)[rank], abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    true_rank=st.integers(0, 60),
    share=st.floats(0, 1),
    block=st.integers(1, 5),
    steps=st.integers(1, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_answer_is_better_than_the_best_and_every_answer_is_orthonormal(
    m, n, true_rank, share, block, steps, dtype, seed
):
    factors = rng(seed).integers(-3, 4, (m, true_rank)), rng(seed + 1).integers(-3, 4, (true_rank, n))
    W = (factors[0] @ factors[1]).astype(dtype)
    rank = min(round(share * min(m, n)), block * steps)
    answer = randomized_svd(W, rank, rng=rng(seed), block=block, steps=steps)
    assert_well_formed(answer, (m, n), rank, dtype)
    exact = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    size = exact[0] * np.finfo(dtype).eps
    assert np.all(answer[1] <= exact[:rank] + 100 * size)
    assert (
        np.linalg.norm(W - answer[0].astype(np.float64) * answer[1] @ answer[2])
        >= np.linalg.norm(exact[rank:]) - 100 * size
    )


def test_more_steps_are_more_accurate():
    W = with_singular_values(400, 400, 1 / np.sqrt(np.arange(1, 401)))
    errors = [relative_error(W, *randomized_svd(W, 16, rng=rng(), block=8, steps=steps)) for steps in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= rank_errors(W)[16] * (1 + 1e-9)


@BOTH
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
def test_a_block_becomes_orthonormal_to_the_last_digit(dtype, condition):
    Q, V = np.linalg.qr(rng(19).standard_normal((4000, 32)))[0], np.linalg.qr(rng(20).standard_normal((32, 32)))[0]
    Y = (Q * np.geomspace(1, 1 / condition, 32) @ V).astype(dtype)
    found = _orthonormal(Y, np.zeros((4000, 0), dtype), rng()).astype(np.float64)
    limit = np.finfo(np.float32).eps if dtype == np.float32 else 20 * np.finfo(np.float64).eps
    np.testing.assert_allclose(found.T @ found, np.eye(32), atol=limit)  # a Gram matrix in float32 leaves twice that
    np.testing.assert_allclose(found @ (found.T @ Y), Y, atol=limit)


# Products alone


def test_only_thin_products_are_asked_for():
    W = with_singular_values(700, 600, np.geomspace(1, 1e-4, 300))
    block, steps = block_and_steps(8, W.shape)
    counted = Counted(W)
    answer = randomized_svd(counted, 8, rng=rng())
    assert sorted(counted.columns) == [1] + 2 * steps * [block]  # one random vector tells whether W is finite
    np.testing.assert_allclose(answer[1], randomized_svd(W, 8, rng=rng())[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("rank", "shape", "block", "steps"),
    [
        (0, (900, 800), 1, 14),
        (1, (900, 800), 1, 14),
        (2, (900, 800), 16, 5),
        (8, (900, 800), 16, 5),
        (9, (900, 800), 16, 7),
        (33, (900, 800), 24, 7),
        (79, (900, 800), 32, 7),
        (80, (900, 800), 32, 6),
        (80, (900, 801), 32, 7),
    ],
)
def test_the_space_by_default(rank, shape, block, steps):
    assert block_and_steps(rank, shape) == block_and_steps(rank, shape[::-1]) == (block, steps)
    assert block * steps >= 2 * rank


def test_a_narrow_block_takes_more_turns_for_a_space_as_large():
    counted = Counted(rng(22).standard_normal((300, 280)))
    randomized_svd(counted, 5, rng=rng(), block=3)
    assert counted.columns == [1] + [3] * 2 * 27  # 27 · 3 dimensions, where 5 · 16 = 80 are usual
    counted = Counted(counted.W)
    randomized_svd(counted, 5, rng=rng(), block=20)
    assert counted.columns == [1] + [20] * 2 * 5  # a wide one does not take fewer


def test_it_ends_early_where_nothing_is_left():
    counted = Counted(with_singular_values(700, 600, np.geomspace(1, 0.1, 20)))
    randomized_svd(counted, 10, rng=rng())
    block, steps = block_and_steps(10, counted.shape)
    assert block == 16  # so 20 dimensions are two blocks; a third and perhaps a fourth find nothing more
    assert 1 + 2 * 3 <= len(counted.columns) <= 1 + 2 * 4 < 1 + 2 * steps


def test_a_low_rank_matrix_too_large_to_be_dense():
    left, right = rng(10).standard_normal((60_000, 5)), rng(11).standard_normal((5, 50_000))
    low = LowRank(left, right)
    U, s, Vt = randomized_svd(low, 5, rng=rng())
    exact = low.svd()
    np.testing.assert_allclose(s, exact[1], rtol=1e-12)
    np.testing.assert_allclose(U, exact[0], atol=1e-10)
    np.testing.assert_allclose(Vt, exact[2], atol=1e-10)


def test_a_linear_operator():
    W = rng(12).standard_normal((150, 140))
    s = randomized_svd(W, 3, rng=rng())[1]
    np.testing.assert_allclose(randomized_svd(scipy.sparse.linalg.aslinearoperator(W), 3, rng=rng())[1], s, rtol=1e-12)


# The bound


@pytest.mark.parametrize("probes", [1, 2])
def test_the_bound_fails_as_rarely_as_it_says(probes):
    """The spectral norm exceeds the bound with probability 10^-probes at most; here it is one in 10 or in 100."""
    B = np.outer(rng(13).standard_normal(30), rng(14).standard_normal(20))  # a single direction: the hardest case
    zero, spectral = np.zeros_like(B), np.linalg.norm(B, 2)
    trials = 2000
    bounds = [error_bound(B, zero, rng=rng(seed), probes=probes) for seed in range(trials)]
    failures = np.count_nonzero(np.array(bounds) < spectral)
    allowed = trials * 10.0**-probes
    assert failures <= allowed + 4 * np.sqrt(allowed)
    assert failures > 0  # it is a statement about chance: with so few probes it does fail


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_and_is_of_use(seed):
    W = with_singular_values(200, 150, np.geomspace(1, 1e-5, 100), seed=seed)
    U, s, Vt = randomized_svd(W, 10, rng=rng(seed))
    difference = W - U * s @ Vt
    bound = error_bound(W, LowRank(U * s, Vt), rng=rng(1000 + seed))
    assert np.linalg.norm(difference, 2) <= bound <= 20 * np.linalg.norm(difference)


def test_the_bound_needs_products_only_and_minds_no_scale():
    W, low = rng(15).standard_normal((40, 30)), np.zeros((40, 30))
    expected = error_bound(W, low, rng=rng())
    assert error_bound(Counted(W), Counted(low), rng=rng()) == pytest.approx(expected, rel=1e-12)
    assert error_bound(scipy.sparse.csr_array(W), low, rng=rng()) == pytest.approx(expected, rel=1e-12)
    assert error_bound(1e300 * W, low, rng=rng()) == pytest.approx(1e300 * expected, rel=1e-12)
    assert error_bound(W, W, rng=rng()) == 0
    for scale in (1e-300, 1e-200, 1e-30, 1e30, 1e200):
        assert error_bound(scale * W, low, rng=rng()) == pytest.approx(scale * expected, rel=1e-12, abs=0)
        assert error_bound(low, scale * W, rng=rng()) == pytest.approx(scale * expected, rel=1e-12, abs=0)
    assert error_bound(np.full((9, 8), 5e-324), np.zeros((9, 8)), rng=rng()) > 0
    single = W.astype(np.float32)
    assert error_bound(single, LowRank(W, np.eye(30)), rng=rng()) < 1e-5 * expected
    with pytest.raises(ValueError, match="the bound is beyond float64: divide both matrices by a constant first"):
        error_bound(np.full((9, 8), 1e308), np.zeros((9, 8)), rng=rng())


# A tolerance in place of a rank

SPECTRA = {
    "fast": np.exp(-np.arange(200) / 5),
    "slow": 1 / np.sqrt(np.arange(1, 201)),
    "steps": np.repeat([100.0, 10.0, 1.0, 1e-8], 50),
    "low": np.array([5.0, 4.0, 3.0]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_the_error_is_within_the_tolerance_and_the_rank_next_to_the_smallest(spectrum, tol):
    W = with_singular_values(260, 220, SPECTRA[spectrum])
    smallest = int(np.argmax(rank_errors(W) <= tol))
    for matrix in (W, W.T.copy(), scipy.sparse.csr_array(W)):
        answer = randomized_svd(matrix, tol=tol, rng=rng())
        rank = answer[1].size
        assert_well_formed(answer, matrix.shape, rank, np.float64)
        dense = matrix if isinstance(matrix, np.ndarray) else W
        assert relative_error(dense, *answer) <= tol
        assert smallest <= rank <= smallest + 1 + smallest // 20


@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-3])
def test_a_tolerance_in_float32(tol):
    W = with_singular_values(300, 200, np.geomspace(1, 1e-5, 150)).astype(np.float32)
    answer = randomized_svd(W, tol=tol, rng=rng())
    rank = answer[1].size
    assert_well_formed(answer, W.shape, rank, np.float32)
    assert relative_error(W, *answer) <= tol * (1 + 1e-5)
    assert 0 <= rank - np.argmax(rank_errors(W) <= tol) <= 1 + rank // 20


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_tolerance_minds_no_scale(scale):
    W = with_singular_values(200, 180, np.geomspace(1, 1e-5, 150))
    for matrix in (scale * W, scipy.sparse.csr_array(scale * W), scale * W[:9]):
        rank = randomized_svd(matrix, tol=1e-2, rng=rng())[1].size
        assert rank == np.argmax(rank_errors(matrix if isinstance(matrix, np.ndarray) else W) <= 1e-2)


def test_tolerances_at_both_ends():
    W = rng(16).standard_normal((90, 70))
    assert randomized_svd(W, tol=1.01, rng=rng())[1].size == 0
    assert randomized_svd(np.zeros((90, 70)), tol=0.1, rng=rng())[1].size == 0
    assert randomized_svd(np.eye(300), tol=1e-13, rng=rng())[1].size == 300
    assert randomized_svd(W, tol=1e-13, rng=rng())[1].size == 70


def test_a_tolerance_needs_no_dense_operator():
    columns = []
    W = with_singular_values(300, 280, np.geomspace(1, 1e-6, 100))
    randomized_svd(Counted(W, columns), tol=0.3, rng=rng())
    assert max(columns) <= 64


def test_a_tolerance_asks_once_for_what_is_decomposed_exactly():
    counted = Counted(rng(21).standard_normal((60, 50)))
    assert randomized_svd(counted, tol=1e-9, rng=rng())[1].size == 50
    assert counted.columns.count(50) == 3  # all columns to measure W, to decompose it, and to measure the answer


# What is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("arguments", [{"rank": 2}, {"rank": 0}, {"rank": 90}, {"tol": 0.1}])
def test_what_is_not_finite_is_refused(bad, arguments):
    W = rng(17).standard_normal((120, 100))
    W[3, 7] = bad
    with pytest.raises(ValueError, match="W must be finite, got nan or inf in 1 of 12000 entries, the first in row 3"):
        randomized_svd(W, rng=rng(), **arguments)
    for operator in (scipy.sparse.csr_array(W), Counted(W)):
        with pytest.raises(ValueError, match="W must be finite, got nan or inf in its product with a random vector"):
            randomized_svd(operator, rng=rng(), **arguments)


@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        (np.ones(3), ValueError, r"two dimensions, got shape \(3,\)"),
        (np.ones((2, 3, 4)), ValueError, "two dimensions"),
        (np.ones((0, 3)), ValueError, "at least one row and one column"),
        (np.ones((2, 2), complex), TypeError, "real numbers .* got dtype complex128"),
        (np.array([["a"]]), TypeError, "real numbers"),
        ([[1, 2], [3]], ValueError, "rows all have the same length"),
        (scipy.sparse.csr_array((0, 3)), ValueError, "at least one row and one column"),
        (scipy.sparse.csr_array(np.eye(3, dtype=complex)), TypeError, "real numbers"),
        (scipy.sparse.coo_array(np.ones(3)), ValueError, r"matrix .* got shape \(3,\)"),
    ],
)
def test_bad_matrices_are_refused(W, error, message):
    with pytest.raises(error, match=rf"^W must .*{message}"):
        randomized_svd(W, 1, rng=rng())


def test_a_tensor_is_told_what_to_become():
    with pytest.raises(TypeError, match=r"W must be a matrix for NumPy, got dtype torch.float32: give np.asarray\(W\)"):
        randomized_svd(torch.ones(3, 4), 1, rng=rng())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "give either rank or tol, got rank = None and tol = None"),
        ({"rank": 1, "tol": 0.1}, ValueError, "give either rank or tol, got rank = 1 and tol = 0.1"),
        ({"rank": 5}, ValueError, r"rank must be at most min\(m, n\) = 4 for a 4×6 matrix, got 5"),
        ({"rank": -1}, ValueError, "rank must be at least 0"),
        ({"rank": 1.0}, TypeError, "rank must be a whole number"),
        ({"rank": True}, TypeError, "rank must be a whole number"),
        ({"rank": 1, "block": 0}, ValueError, "block must be at least 1, got 0"),
        ({"rank": 1, "steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"rank": 3, "block": 1, "steps": 2}, ValueError, r"block \* steps must be at least rank = 3, got 1 \* 2 = 2"),
        ({"tol": 0.1, "steps": 2}, ValueError, "block and steps go with rank"),
        ({"tol": -0.1}, ValueError, "tol must be .*at least 0"),
        ({"tol": "0.1"}, TypeError, "tol must be a number"),
        ({"tol": 1e-17}, ValueError, "tol must be at least .*, the rounding of a 4×6 float64 matrix, got 1e-17"),
        ({"rank": 1, "rng": 0}, TypeError, "rng must be a numpy.random.Generator"),
        ({"rank": 1, "rng": None}, TypeError, "rng must be a numpy.random.Generator"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        randomized_svd(np.ones((4, 6)), **{"rng": rng(), **arguments})


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (np.ones((40, 30)) + 1j, r"W @ array \(30, 1\) must be a real array \(40, 1\), got complex128 \(40, 1\)"),
        (np.ones((7, 30)), r"W @ array \(30, 1\) must be a real array \(40, 1\), got float64 \(7, 1\)"),
    ],
)
def test_an_operator_whose_products_are_no_real_matrices_is_refused(W, message):
    operator = Counted(W)
    operator.shape = (40, 30)
    with pytest.raises(TypeError, match=message):
        randomized_svd(operator, 2, rng=rng())


def test_bad_arguments_of_the_bound_are_refused():
    W = np.ones((4, 6))
    with pytest.raises(ValueError, match=r"one shape, got \(4, 6\) and \(6, 4\)"):
        error_bound(W, W.T, rng=rng())
    with pytest.raises(ValueError, match="low must be finite"):
        error_bound(W, np.full((4, 6), np.inf), rng=rng())
    with pytest.raises(ValueError, match="probes must be at least 1"):
        error_bound(W, W, rng=rng(), probes=0)
    with pytest.raises(TypeError, match="rng must be a numpy"):
        error_bound(W, W, rng=7)


def test_the_matrix_is_left_as_it_was():
    W = rng(18).standard_normal((80, 70))
    copy = W.copy()
    randomized_svd(W, 3, rng=rng())
    randomized_svd(W, tol=0.5, rng=rng())
    np.testing.assert_array_equal(W, copy)
