"""Learned factors against the SVD, NumPy's least squares, torch's derivatives, and the known minimum with a ridge."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.lowrank import DivergedError, Fit, LowRank, fit_factors, rank_errors

METHODS = ["als", "gd"]


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(*shape, seed=0):
    return rng(seed).standard_normal(shape)


def exactly_low_rank(m, n, rank, seed=0):
    return noise(m, rank, seed=seed) @ noise(rank, n, seed=seed + 1)


def pair(m, n, rank, seed=5):
    return noise(m, rank, seed=seed), noise(rank, n, seed=seed + 1)


def objective(W, low, ridge=0.0, mask=True):
    penalty = np.sum(low.left**2) + np.sum(low.right**2)
    return 0.5 * np.sum(np.where(mask, W - low.left @ low.right, 0) ** 2) + 0.5 * ridge * penalty


def with_spectrum(s, m, n, seed=0):
    """Give a matrix with these singular values."""
    U, _ = np.linalg.qr(noise(m, len(s), seed=seed))
    V, _ = np.linalg.qr(noise(n, len(s), seed=seed + 1))
    return U * np.asarray(s) @ V.T


# With every entry observed: the truncated SVD


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize(("method", "iterations"), [("als", 1000), ("gd", 5000)])
def test_full_matrix_reaches_the_error_of_the_svd(shape, rank, method, iterations):
    W = with_spectrum([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1, 0.05], *shape)
    fit = fit_factors(W, rank, rng=rng(1), method=method, max_iterations=iterations)
    assert fit.converged
    assert fit.errors[-1] == pytest.approx(rank_errors(W)[rank], abs=1e-8)
    np.testing.assert_allclose(fit.low.dense(), LowRank.from_svd(W, rank).dense(), atol=1e-4)


def test_als_reaches_the_error_of_the_svd_on_noise():
    W = noise(40, 25)
    fit = fit_factors(W, 6, rng=rng(1))
    assert fit.converged
    assert fit.errors[-1] == pytest.approx(rank_errors(W)[6], abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_leaves_no_error(method):
    W = with_spectrum([3, 2.5, 2, 1.5], 6, 4)
    fit = fit_factors(W, 4, rng=rng(), method=method, max_iterations=20_000)
    assert fit.errors[-1] < 1e-5
    assert fit.converged


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.sampled_from([0.0, 0.5]))
@settings(max_examples=40)
def test_objective_never_increases(seed, m, n, masked, ridge):
    W, rank = noise(m, n, seed=seed), min(m, n, 2)
    mask = rng(seed).random((m, n)) < 0.6 if masked else np.ones((m, n), bool)
    mask[np.arange(m), np.arange(m) % n] = mask[np.arange(n) % m, np.arange(n)] = True
    for method in METHODS:
        low = LowRank(*pair(m, n, rank, seed=seed))
        before = objective(W, low, ridge, mask)
        for _ in range(15):
            low = fit_factors(W, rank, start=low, mask=mask, ridge=ridge, method=method, max_iterations=1, tol=0).low
            after = objective(W, low, ridge, mask)
            assert after <= before + 1e-12 * (1 + before)
            before = after


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 7), st.sampled_from(METHODS))
@settings(max_examples=30)
def test_no_fit_is_better_than_the_svd(seed, m, n, method):
    W = noise(m, n, seed=seed)
    for rank in range(min(m, n) + 1):
        fit = fit_factors(W, rank, rng=rng(seed + 1), method=method, max_iterations=30)
        assert fit.errors[-1] >= rank_errors(W)[rank] - 1e-12
        assert fit.errors[-1] == pytest.approx(np.linalg.norm(W - fit.low.dense()) / np.linalg.norm(W), abs=1e-12)


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize("masked", [False, True])
def test_safe_step_descends_from_any_start(size, masked):
    W = noise(12, 8)
    mask = rng(2).random((12, 8)) < 0.7 if masked else None
    start = [size * factor for factor in pair(12, 8, 3)]
    start[1] = 10 * start[1]  # and out of balance
    fit = fit_factors(W, 3, start=start, mask=mask, method="gd", max_iterations=500, tol=0)
    assert (np.diff(fit.errors) <= 1e-14 * fit.errors[0]).all()
    assert fit.errors[-1] < fit.errors[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("balance", [1.0, 2.0, 0.5])
def test_it_stops_by_the_rule_that_it_states(method, ridge, balance):
    W, tol = with_spectrum([3, 2, 0.5, 0.2], 5, 4), 1e-2
    left, right = pair(5, 4, 2, seed=10)
    options = {"start": (balance * left, right / balance), "ridge": ridge, "method": method, "tol": tol}
    fit = fit_factors(W, 2, max_iterations=10_000, **options)
    assert fit.converged
    assert shares_of_gradients(W, fit.low, ridge) <= tol
    one_less = fit_factors(W, 2, max_iterations=fit.iterations - 1, **options)
    assert shares_of_gradients(W, one_less.low, ridge) > tol
    assert one_less.stopped == "max_iterations"


def shares_of_gradients(W, low, ridge):
    """Give the larger gradient, as a share of the size of W and of the other factor."""
    size, E = np.linalg.norm(W), W - low.dense()
    least = np.sqrt(size) if ridge else 0.0
    gradients = ridge * low.left - E @ low.right.T, ridge * low.right - low.left.T @ E
    others = (max(np.linalg.norm(factor), least) for factor in (low.right, low.left))
    return max(np.linalg.norm(gradient) / size / other for gradient, other in zip(gradients, others, strict=True))


# One iteration against others' arithmetic


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_safe_step_is_the_one_that_is_stated(masked, ridge):
    W, start = noise(7, 5), LowRank(*pair(7, 5, 2))
    mask = rng(3).random((7, 5)) < 0.8 if masked else np.ones((7, 5), bool)
    f = objective(W, start, ridge, mask)
    squares = np.linalg.norm(start.left, 2) ** 2 + np.linalg.norm(start.right, 2) ** 2
    step = 1 / (2 * (squares + np.sqrt(2 * f) + ridge))
    options = {"start": start, "mask": mask, "ridge": ridge, "method": "gd", "max_iterations": 1}
    safe, stated = fit_factors(W, 2, **options).low, fit_factors(W, 2, step=step, **options).low
    np.testing.assert_allclose(safe.left, stated.left, rtol=1e-12)
    np.testing.assert_allclose(safe.right, stated.right, rtol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 0.3, 50.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-3)])
def test_one_iteration_of_als_is_two_least_squares(masked, ridge, dtype, tolerance):
    W = noise(7, 9).astype(dtype)
    mask = rng(3).random((7, 9)) < 0.8 if masked else np.ones((7, 9), bool)
    left, right = (factor.astype(dtype) for factor in pair(7, 9, 2))
    fit = fit_factors(W, 2, start=(left, right), mask=mask, ridge=ridge, max_iterations=1, tol=0)
    left = np.stack([least_squares(right[:, known].T, row[known], ridge) for row, known in zip(W, mask, strict=True)])
    right = np.stack(
        [least_squares(left[known], column[known], ridge) for column, known in zip(W.T, mask.T, strict=True)], axis=1
    )
    assert fit.low.dtype == dtype
    np.testing.assert_allclose(fit.low.left, left, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(fit.low.right, right, rtol=tolerance, atol=tolerance)


def least_squares(A, b, ridge):
    """Give what NumPy says, in float64: a ridge is one more row for each unknown."""
    rows = np.vstack([A, np.sqrt(ridge) * np.eye(A.shape[1])]).astype(np.float64)
    return np.linalg.lstsq(rows, np.append(b, np.zeros(A.shape[1])).astype(np.float64))[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_one_iteration_of_gradient_descent_follows_autograd(masked, ridge):
    W, step = noise(6, 5), 0.01
    mask = rng(3).random((6, 5)) < 0.7 if masked else np.ones((6, 5), bool)
    start = pair(6, 5, 2)
    left, right = (torch.tensor(factor, requires_grad=True) for factor in start)
    error = torch.tensor(mask) * (torch.tensor(W) - left @ right)
    f = 0.5 * (error**2).sum() + 0.5 * ridge * ((left**2).sum() + (right**2).sum())
    f.backward()
    fit = fit_factors(W, 2, start=start, mask=mask, ridge=ridge, method="gd", step=step, max_iterations=1)
    np.testing.assert_allclose(fit.low.left, start[0] - step * left.grad.numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(fit.low.right, start[1] - step * right.grad.numpy(), rtol=1e-12, atol=1e-14)
    assert objective(W, LowRank(*start), ridge, mask) == pytest.approx(f.item())


def test_least_squares_are_solved_for_nearly_dependent_columns():
    # The condition of `right` is 1e7: normal equations would square it and keep no digit of the small direction.
    W, right = exactly_low_rank(8, 6, 2), noise(2, 6, seed=4)
    right[1] = right[0] + 1e-7 * right[1]
    fit = fit_factors(W, 2, start=(np.zeros((8, 2)), right), max_iterations=1)
    left = np.linalg.lstsq(right.T, W.T)[0].T
    np.testing.assert_allclose(fit.low.left, left, rtol=1e-6)
    masked = fit_factors(W, 2, start=(np.zeros((8, 2)), right), max_iterations=1, mask=~np.eye(8, 6, dtype=bool))
    known = np.arange(6) != 0
    np.testing.assert_allclose(masked.low.left[0], np.linalg.lstsq(right[:, known].T, W[0, known])[0], rtol=1e-6)
    ridged = fit_factors(W, 2, start=(np.zeros((8, 2)), right), max_iterations=1, ridge=1e-15)
    np.testing.assert_allclose(ridged.low.left, [least_squares(right.T, row, 1e-15) for row in W], rtol=1e-6)


def test_of_several_best_rows_the_shortest_is_taken():
    W, mask = noise(4, 5), np.ones((4, 5), bool)
    mask[1, 1:] = False  # one entry, three unknowns
    right = noise(3, 5, seed=1)
    fit = fit_factors(W, 3, start=(np.zeros((4, 3)), right), mask=mask, max_iterations=1)
    np.testing.assert_allclose(fit.low.left[1], np.linalg.pinv(right[:, :1].T) @ W[1, :1], rtol=1e-10)


# Ridge


@pytest.mark.parametrize(("method", "iterations"), [("als", 5000), ("gd", 50_000)])
@pytest.mark.parametrize("ridge", [0.2, 1.5, 2.5])
def test_ridge_lowers_every_singular_value(method, iterations, ridge):
    U, s, Vt = np.linalg.svd(with_spectrum([4, 3, 2, 1, 0.5], 9, 7), full_matrices=False)
    for rank in (2, 5):
        fit = fit_factors(U * s @ Vt, rank, rng=rng(), ridge=ridge, method=method, max_iterations=iterations, tol=1e-9)
        lowered = np.maximum(s[:rank] - ridge, 0)
        assert fit.converged
        np.testing.assert_allclose(fit.low.dense(), U[:, :rank] * lowered @ Vt[:rank], atol=1e-6)
        np.testing.assert_allclose(fit.low.left.T @ fit.low.left, fit.low.right @ fit.low.right.T, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_ridge_above_the_largest_singular_value_leaves_nothing(method):
    W = with_spectrum([4, 3, 2], 5, 4)
    fit = fit_factors(W, 2, rng=rng(), ridge=4.5, method=method)
    assert fit.converged
    np.testing.assert_allclose(fit.low.dense(), 0, atol=1e-5)
    zeros = fit_factors(W, 2, start=(np.zeros((5, 2)), np.zeros((2, 4))), ridge=4.5, method=method)
    assert zeros.stopped == "stationary"  # zero is the minimum here, and no saddle point


@pytest.mark.parametrize("method", METHODS)
def test_absurd_ridge_needs_no_warning(method, recwarn):
    fit = fit_factors(noise(6, 5), 2, ridge=1e308, method=method)
    np.testing.assert_allclose(fit.low.dense(), 0, atol=1e-12)
    assert not recwarn.list


# Missing entries


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_missing_entries_of_an_exactly_low_rank_matrix_are_recovered(dtype):
    W = exactly_low_rank(60, 40, 3).astype(dtype)
    mask = rng(7).random(W.shape) < 0.4
    fit = fit_factors(np.where(mask, W, np.nan), 3, mask=mask)
    assert fit.converged
    assert fit.low.dtype == dtype
    np.testing.assert_allclose(fit.low.dense(), W, atol=1e-3)


def test_start_by_svd_recovers_what_random_starts_miss():
    recovered = {"svd": 0, "random": 0}
    for seed in range(6):
        W = exactly_low_rank(60, 40, 3, seed=100 + 2 * seed)
        mask = rng(seed).random(W.shape) < 0.3
        for name, generator in (("svd", None), ("random", rng(seed))):
            fit = fit_factors(W, 3, rng=generator, mask=mask, max_iterations=50)
            recovered[name] += np.linalg.norm(fit.low.dense() - W) < 0.01 * np.linalg.norm(W)
    assert recovered["svd"] >= 5
    assert recovered["svd"] > recovered["random"]


def test_gradient_descent_recovers_missing_entries_too():
    W = exactly_low_rank(30, 20, 2)
    mask = rng(7).random(W.shape) < 0.5
    fit = fit_factors(np.where(mask, W, np.inf), 2, rng=rng(1), mask=mask, method="gd", max_iterations=20_000)
    assert fit.converged
    np.testing.assert_allclose(fit.low.dense(), W, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_mask_of_all_true_is_no_mask(method):
    W = noise(6, 5)
    plain = fit_factors(W, 2, rng=rng(1), method=method)
    masked = fit_factors(W, 2, rng=rng(1), method=method, mask=np.ones((6, 5), bool))
    assert np.array_equal(plain.low.dense(), masked.low.dense())


@pytest.mark.parametrize("method", METHODS)
def test_errors_count_observed_entries_alone(method):
    W, mask = noise(8, 6), rng(2).random((8, 6)) < 0.7
    fit = fit_factors(W, 2, rng=rng(1), mask=mask, method=method, max_iterations=5)
    assert fit.errors.shape == (6,)
    assert fit.errors.dtype == np.float64
    assert fit.errors[-1] == pytest.approx(np.linalg.norm((W - fit.low.dense())[mask]) / np.linalg.norm(W[mask]))
    assert fit.stopped == "max_iterations"


@pytest.mark.parametrize("method", METHODS)
def test_row_without_entries_becomes_zero_under_a_ridge(method):
    W, mask = noise(6, 5), np.ones((6, 5), bool)
    mask[2] = False
    mask[:, 4] = False
    fit = fit_factors(W, 2, rng=rng(1), mask=mask, ridge=0.1, method=method, max_iterations=5000)
    assert fit.converged
    np.testing.assert_allclose(fit.low.dense()[2], 0, atol=1e-4)
    np.testing.assert_allclose(fit.low.dense()[:, 4], 0, atol=1e-4)
    with pytest.raises(ValueError, match=r"got none in row 2: give ridge > 0"):
        fit_factors(W, 2, rng=rng(1), mask=mask, method=method)
    mask[2] = True
    mask[:, [1, 4]] = False
    with pytest.raises(ValueError, match=r"got none in column 1 and 1 more: give"):
        fit_factors(W, 2, rng=rng(1), mask=mask, method=method)


def test_groups_of_rows_do_not_change_the_answer(monkeypatch):
    W, mask = noise(50, 40), rng(2).random((50, 40)) < np.linspace(0.1, 1, 50)[:, None]
    mask[0] = True
    options = {"mask": mask, "ridge": 0.1, "start": pair(50, 40, 3), "max_iterations": 3}
    whole = fit_factors(W, 3, **options)
    monkeypatch.setattr("lora_lab.lowrank.fitting._GROUP_SIZE", 64)
    np.testing.assert_allclose(fit_factors(W, 3, **options).low.dense(), whole.low.dense(), rtol=1e-10, atol=1e-12)


# The start


@pytest.mark.parametrize("method", METHODS)
def test_two_factors_of_zeros_stay_and_say_so(method):
    W = noise(5, 4)
    fit = fit_factors(W, 2, start=(np.zeros((5, 2)), np.zeros((2, 4))), method=method)
    assert not fit.low.dense().any()
    assert fit.errors.tolist() == [1.0]
    assert fit.stopped == "stuck"
    assert not fit.converged
    assert repr(fit) == ("Fit of rank 2: relative error 1 on the observed entries after 0 iterations, stopped: stuck")
    nudged = fit_factors(W, 2, start=(np.zeros((5, 2)), np.zeros((2, 4))), method=method, tol=0, max_iterations=50)
    assert nudged.stopped == "stuck"
    W = np.diag([1.0, 0.0])
    beside = fit_factors(W, 1, start=([[0], [1e-6]], [[0, 1e-6]]), method=method, max_iterations=0)
    assert beside.stopped == "stuck"  # next to zero, and in no direction that W has


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", [0, 1])
def test_one_factor_of_zeros_learns(method, zero):
    W = with_spectrum([3, 2, 1], 7, 6)
    start = list(pair(7, 6, 2))
    start[zero] = np.zeros_like(start[zero])
    fit = fit_factors(W, 2, start=start, method=method, max_iterations=20_000)
    assert fit.errors[0] == 1.0
    assert fit.converged
    assert fit.errors[-1] == pytest.approx(rank_errors(W)[2], abs=1e-8)


def test_first_step_from_a_left_of_zeros_moves_left_alone():
    start = (np.zeros((5, 2)), noise(2, 4))
    low = fit_factors(noise(5, 4), 2, start=start, method="gd", max_iterations=1).low
    assert low.left.any()
    assert np.array_equal(low.right, start[1])


def test_start_may_be_a_low_rank_or_lists_and_is_left_as_it_was():
    W, start = noise(5, 4), pair(5, 4, 2)
    copies = [factor.copy() for factor in start]
    fits = [
        fit_factors(W, 2, start=form, method="gd", max_iterations=7)
        for form in (start, list(start), LowRank(*start), tuple(factor.tolist() for factor in start))
    ]
    assert all(np.array_equal(fit.low.dense(), fits[0].low.dense()) for fit in fits)
    assert all(np.array_equal(*both) for both in zip(start, copies, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_start_a_full_matrix_is_solved_by_its_svd(method):
    W = noise(8, 6)
    fit = fit_factors(W, 2, method=method)
    assert (fit.iterations, fit.converged) == (0, True)
    np.testing.assert_allclose(fit.low.dense(), LowRank.from_svd(W, 2).dense(), atol=1e-12)
    lowered = fit_factors(W, 2, method=method, ridge=0.5, max_iterations=20_000)
    assert np.linalg.svd(lowered.low.dense())[1][:2] == pytest.approx(np.linalg.svd(W)[1][:2] - 0.5, abs=1e-5)


def test_start_under_a_mask_is_the_svd_over_the_share_that_is_observed():
    W, mask = exactly_low_rank(20, 15, 2), rng(2).random((20, 15)) < 0.6
    start = fit_factors(np.where(mask, W, np.nan), 2, mask=mask, max_iterations=0).low
    filled = LowRank.from_svd(np.where(mask, W, 0.0) / mask.mean(), 2)
    np.testing.assert_allclose(start.dense(), filled.dense(), atol=1e-12)


def test_errors_of_float32_are_added_up_in_float64():
    W, start = noise(300, 200).astype(np.float32), LowRank(*pair(300, 200, 1))
    error = fit_factors(W, 1, start=start, max_iterations=0).errors[0]
    expected = np.linalg.norm(W.astype(np.float64) - start.dense()) / np.linalg.norm(W.astype(np.float64))
    assert error == pytest.approx(expected, rel=1e-8)


def test_no_iterations_give_the_start_and_its_error():
    W, start = noise(5, 4), LowRank(*pair(5, 4, 2))
    fit = fit_factors(W, 2, start=start, max_iterations=0)
    np.testing.assert_allclose(fit.low.left, start.left)
    assert fit.errors == pytest.approx([np.linalg.norm(W - start.dense()) / np.linalg.norm(W)])


def test_fit_goes_on_where_another_stopped():
    W = noise(6, 5)
    whole = fit_factors(W, 2, rng=rng(1), method="gd", max_iterations=30, step=0.02)
    part = fit_factors(W, 2, rng=rng(1), method="gd", max_iterations=10, step=0.02)
    rest = fit_factors(W, 2, start=part.low, method="gd", max_iterations=20, step=0.02)
    assert np.array_equal(rest.low.left, whole.low.left)
    assert np.array_equal([*part.errors, *rest.errors[1:]], whole.errors)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_fit(method):
    W = noise(6, 5)
    one, two, other = (fit_factors(W, 2, rng=rng(seed), method=method) for seed in (1, 1, 2))
    assert np.array_equal(one.low.left, two.low.left)
    assert not np.allclose(one.low.left, other.low.left)


def test_random_start_is_as_large_as_the_matrix():
    for size in (1e-3, 1.0, 1e5):
        W = size * noise(80, 60)
        for mask in (np.ones((80, 60), bool), rng(2).random((80, 60)) < 0.2):
            product = fit_factors(W, 5, rng=rng(1), mask=mask, max_iterations=0).low.dense()
            assert 0.7 < np.linalg.norm(product) / np.linalg.norm(W) < 1.4


def test_als_from_a_right_of_dependent_rows_stays_of_lower_rank():
    W, row = noise(6, 5), noise(1, 5, seed=3)
    fit = fit_factors(W, 2, start=(np.zeros((6, 2)), np.vstack([row, 2 * row])), max_iterations=200)
    assert np.linalg.matrix_rank(fit.low.dense(), tol=1e-8) == 1
    assert fit.errors[-1] == pytest.approx(rank_errors(W)[1], abs=1e-8)


# Steps that are too large


def test_too_large_a_step_raises_with_the_history():
    with pytest.raises(DivergedError, match=r"diverged: .* step 1; lower the step, or leave it out") as caught:
        fit_factors(noise(8, 6), 2, rng=rng(1), method="gd", step=1.0)
    assert caught.value.step == 1.0
    assert len(caught.value.errors) >= 2
    assert not caught.value.errors[-1] <= 1e6
    assert (caught.value.errors[:-1] < 1e6).all()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.step) == (str(caught.value), 1.0)
    assert np.array_equal(copy.errors, caught.value.errors)


@pytest.mark.parametrize("step", [1e10, 1e100, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_absurd_steps_raise_without_a_warning(step, dtype, recwarn):
    with pytest.raises(DivergedError, match="lower the step"):
        fit_factors(noise(8, 6).astype(dtype), 2, rng=rng(1), method="gd", step=step)
    assert not recwarn.list


def test_small_fixed_step_does_not_diverge():
    W = with_spectrum([2, 1], 8, 6)
    fit = fit_factors(W, 2, start=[0.1 * f for f in pair(8, 6, 2)], method="gd", step=1 / 6, max_iterations=5000)
    assert fit.converged
    assert fit.errors[-1] < 1e-5


# Every kind of matrix


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("masked", [False, True])
def test_scale_changes_nothing(method, scale, masked):
    W, start = noise(8, 6), pair(8, 6, 2)
    mask = rng(2).random((8, 6)) < 0.8 if masked else None
    scale = 4.0 ** np.round(np.log(scale) / np.log(4))  # a power of two with a root: not even the rounding differs
    root = np.sqrt(scale)
    plain = fit_factors(W, 2, start=start, mask=mask, ridge=0.1, method=method, max_iterations=50)
    scaled = fit_factors(
        scale * W,
        2,
        start=[root * factor for factor in start],
        mask=mask,
        ridge=0.1 * scale,
        method=method,
        max_iterations=50,
    )
    assert np.array_equal(scaled.errors, plain.errors)
    assert np.array_equal(scaled.low.left, root * plain.low.left)


def test_step_is_in_units_of_one_over_w():
    W, start = noise(8, 6), pair(8, 6, 2)
    plain = fit_factors(W, 2, start=start, step=0.01, method="gd", max_iterations=50)
    scaled = fit_factors(
        4.0**50 * W, 2, start=[2.0**50 * f for f in start], step=0.01 / 4.0**50, method="gd", max_iterations=50
    )
    assert np.array_equal(scaled.errors, plain.errors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_single_rows_and_columns(method, shape):
    W = noise(*shape)
    fit = fit_factors(W, 1, rng=rng(), method=method)
    assert fit.converged
    np.testing.assert_allclose(fit.low.dense(), W, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_zero_matrix(method):
    W = np.zeros((4, 3))
    fit = fit_factors(W, 2, rng=rng(), method=method)
    assert fit.converged
    assert fit.errors.tolist() == [0.0]
    given_start = fit_factors(W, 2, start=pair(4, 3, 2), method=method, max_iterations=3)
    assert given_start.errors[0] == np.inf


@pytest.mark.parametrize("method", METHODS)
def test_rank_zero(method):
    fit = fit_factors(noise(4, 3), 0, rng=rng(), method=method)
    assert (fit.low.rank, fit.errors.tolist(), fit.stopped) == (0, [1.0], "stationary")
    masked = fit_factors(noise(4, 3), 0, rng=rng(), mask=~np.eye(4, 3, dtype=bool), ridge=0.1, method=method)
    assert (masked.low.rank, masked.errors.tolist()) == (0, [1.0])


@pytest.mark.parametrize("method", METHODS)
def test_equal_singular_values(method):
    fit = fit_factors(np.eye(6), 2, rng=rng(), method=method, max_iterations=5000)
    assert fit.converged
    assert fit.errors[-1] == pytest.approx(np.sqrt(4 / 6), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_the_same_matrix(method):
    W = np.arange(12).reshape(4, 3) ** 2
    fits = [
        fit_factors(form, 1, rng=rng(), method=method)
        for form in (W, W.tolist(), W.astype(float), np.asfortranarray(W), W[::-1][::-1], np.repeat(W, 2, axis=0)[::2])
    ]
    assert all(np.allclose(fit.low.dense(), fits[0].low.dense(), atol=1e-9) for fit in fits)
    assert fit_factors(W.astype(np.float16), 1, rng=rng(), method=method).low.dtype == np.float32
    assert fit_factors(W.tolist(), 1, rng=rng(), mask=(W > 1).tolist(), ridge=1).low.dtype == np.float64


def test_arguments_are_left_as_they_were():
    W, mask = noise(6, 5), rng(2).random((6, 5)) < 0.9
    W_before, mask_before = W.copy(), mask.copy()
    fit_factors(W, 2, rng=rng(), mask=mask)
    assert np.array_equal(W, W_before)
    assert np.array_equal(mask, mask_before)


def test_factors_may_be_float32_and_still_fit():
    W = with_spectrum([3, 2, 1], 9, 8).astype(np.float32)
    for method in METHODS:
        fit = fit_factors(W, 2, rng=rng(), method=method, max_iterations=5000)
        assert isinstance(fit, Fit)
        assert fit.low.dtype == np.float32
        assert fit.errors.dtype == np.float64
        assert fit.errors[-1] == pytest.approx(rank_errors(W)[2], abs=1e-6)


# Bad input


W = noise(4, 3)
MASK = np.ones((4, 3), bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"W": np.ones(3)}, ValueError, "W must be a matrix with two dimensions"),
        ({"W": np.ones((0, 3)), "rank": 0}, ValueError, "at least one row and one column"),
        ({"W": np.ones((0, 3)), "rank": 0, "mask": np.ones((0, 3), bool)}, ValueError, "at least one row"),
        ({"W": [[1, 2], [3]]}, ValueError, "same length"),
        ({"W": [[1, 2], [3]], "mask": MASK}, ValueError, "W must be a matrix whose rows all have the same length"),
        ({"W": W + 1j}, TypeError, "real numbers"),
        ({"W": W + 1j, "mask": MASK}, TypeError, "real numbers"),
        ({"W": np.where(MASK, np.nan, W)}, ValueError, "W must be finite"),
        ({"W": np.where(np.eye(4, 3) > 0, np.inf, W), "mask": MASK}, ValueError, "W must be finite"),
        ({"W": np.ma.masked_array(W, ~MASK)}, TypeError, "mask=~np.ma.getmaskarray"),
        ({"mask": MASK.astype(int)}, TypeError, "mask must hold booleans.*int64"),
        ({"mask": MASK[:3]}, ValueError, r"mask must have the shape of W, \(4, 3\), got \(3, 3\)"),
        ({"mask": MASK[0]}, ValueError, "mask must have the shape of W"),
        ({"mask": [[True], [True, False]]}, ValueError, "mask must be a matrix whose rows"),
        ({"mask": ~MASK}, ValueError, "mask must have a True in it"),
        ({"mask": ~MASK, "ridge": 1.0}, ValueError, "mask must have a True in it"),
        ({"rank": 4}, ValueError, "rank must be at most"),
        ({"rank": -1}, ValueError, "rank must be at least 0"),
        ({"rank": 1.5}, TypeError, "rank must be a whole number"),
        ({"rank": True}, TypeError, "rank must be a whole number"),
        ({"W": scipy.sparse.eye_array(4, 3)}, TypeError, "W must be an array, got the sparse"),
        ({"W": scipy.sparse.eye_array(4, 3), "mask": MASK}, TypeError, "W must be an array, got the sparse"),
        ({"mask": scipy.sparse.csr_array(MASK)}, TypeError, "mask must be an array, got the sparse"),
        ({"ridge": -1}, ValueError, "ridge must be at least 0, got -1"),
        ({"ridge": np.nan}, ValueError, "ridge must be a finite number, got nan"),
        ({"ridge": 10**400}, ValueError, "ridge must be a finite number, got 1000"),
        ({"ridge": "1"}, TypeError, "ridge must be a number"),
        ({"ridge": None}, TypeError, "ridge must be a number"),
        ({"ridge": True}, TypeError, "ridge must be a number"),
        ({"W": 1e-300 * W, "ridge": 1e100}, ValueError, "scale W up"),
        ({"tol": -1e-3}, ValueError, "tol must be at least 0, got -0.001"),
        ({"tol": np.inf}, ValueError, "tol must be a finite number, got inf"),
        ({"tol": 1.0}, ValueError, "tol must be below 1, where every start would do as it is, got 1.0"),
        ({"max_iterations": -1}, ValueError, "max_iterations must be at least 0"),
        ({"max_iterations": 1e3}, TypeError, "max_iterations must be a whole number"),
        ({"method": "sgd"}, ValueError, 'method must be "als" or "gd", got \'sgd\''),
        ({"method": np.ones(2)}, ValueError, 'method must be "als" or "gd", got array'),
        ({"step": 0.1}, ValueError, 'step is for method="gd"'),
        ({"method": "gd", "step": 0}, ValueError, "step must be above 0"),
        ({"method": "gd", "step": -0.1}, ValueError, "step must be at least 0, got -0.1"),
        ({"method": "gd", "step": np.nan}, ValueError, "step must be a finite number, got nan"),
        ({"rng": 0}, TypeError, "rng must be a numpy.random.Generator"),
        ({"start": LowRank(*pair(4, 3, 2))}, ValueError, "rng and start must not both be given"),
        ({"rng": None, "start": LowRank(*pair(4, 3, 1))}, ValueError, r"left \(4, 2\) and right \(2, 3\) for rank 2"),
        ({"rng": None, "start": pair(3, 4, 2)}, ValueError, "start must be left"),
        ({"rng": None, "start": (noise(4, 2), noise(3, 2))}, ValueError, "do not fit"),
        ({"rng": None, "start": noise(4, 2)}, TypeError, r"start must be a LowRank or a pair \(left, right\)"),
        ({"rng": None, "start": (noise(4, 2),)}, TypeError, "start must be a LowRank or a pair"),
        ({"rng": None, "start": (np.nan * noise(4, 2), noise(2, 3))}, ValueError, "left must be finite"),
        ({"rng": None, "start": (1e300 * noise(4, 2), noise(2, 3))}, ValueError, "start must be of a size"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_factors(**{"W": W, "rank": 2, "rng": rng(), **arguments})
