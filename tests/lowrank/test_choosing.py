"""Choosing a rank: each way against its definition, and the threshold for noise against its paper and SciPy."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.lowrank import LowRank, break_even_rank, choose_rank, gallery, parameter_count, rank_errors
from lora_lab.lowrank.choosing import _median_of_noise, _threshold_factor


def with_singular_values(values, m, n, seed=0):
    """Give an m×n matrix that has these singular values, and zeros after them."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (m, n))
    return left * np.asarray(values) @ right.T


def test_energy_is_the_share_of_the_squares():
    W = np.diag([4.0, 2.0, 1.0, 1.0])  # squares 16, 4, 1, 1: shares 16/22, 20/22, 21/22, 1
    assert [choose_rank(W, energy=share) for share in (1e-9, 0.72, 0.73, 0.90, 0.91, 0.95, 0.96, 1)] == [
        *(1, 1, 2, 2, 3, 3, 4, 4)
    ]


@given(
    values=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    share=st.integers(1, 1000),
)
@settings(derandomize=True, deadline=None)
def test_energy_agrees_with_whole_numbers(values, share):
    squares = sorted((value**2 for value in values), reverse=True)
    kept = [sum(squares[:rank]) for rank in range(len(values) + 1)]
    enough = next(rank for rank, sum_ in enumerate(kept) if 1000 * sum_ >= share * kept[-1])  # no rounding anywhere
    assert choose_rank(np.diag(np.array(values, float)), energy=share / 1000) == enough


def test_energy_of_99_percent_is_an_error_of_10_percent():
    W = np.diag(0.8 ** np.arange(40.0))
    rank = choose_rank(W, energy=0.99)
    assert rank == choose_rank(W, error=0.1)
    assert rank_errors(W)[rank] <= 0.1 < rank_errors(W)[rank - 1]
    assert choose_rank(W, energy=0.9999) == choose_rank(W, error=0.01) > rank


@pytest.mark.parametrize("norm", ["fro", "spectral", "nuclear"])
def test_error_is_met_by_the_smallest_rank(norm):
    W = np.random.default_rng(0).standard_normal((12, 9))
    errors = rank_errors(W, norm)
    for error in (0.9, 0.5, 0.2, 0.1, 0.05):
        rank = choose_rank(W, error=error, norm=norm)
        assert errors[rank] <= error < errors[rank - 1]
    for rank in range(10):  # an error that was read off the curve gives back its rank, and the next one does not
        assert choose_rank(W, error=errors[rank], norm=norm) == rank
        if rank:
            assert choose_rank(W, error=errors[rank] * (1 - 1e-9), norm=norm) == min(rank + 1, 9)
    assert choose_rank(W, error=1, norm=norm) == 0


def test_norms_disagree_on_the_rank():
    W = np.diag([10.0] + [1.0] * 20)
    assert choose_rank(W, error=0.2, norm="spectral") == 1
    assert choose_rank(W, error=0.2, norm="fro") == 17  # four left: 2 of √120
    assert choose_rank(W, error=0.2, norm="nuclear") == 15  # six left: 6 of 30


def test_ties_in_decimal_numbers_are_met():
    eye = np.eye(9)
    assert [choose_rank(eye, energy=rank / 9) for rank in range(1, 10)] == list(range(1, 10))
    assert [choose_rank(eye, error=np.sqrt(1 - rank / 9)) for rank in range(10)] == list(range(10))
    assert [choose_rank(eye.astype(np.float32), energy=rank / 9) for rank in range(1, 10)] == list(range(1, 10))
    assert choose_rank(np.diag([7.0, 2.0, 1.0]), error=0.1, norm="nuclear") == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n", "rank"), [(9, 9, 1), (60, 90, 3), (300, 20, 5), (150, 150, 1)])
def test_rounding_is_not_counted(dtype, m, n, rank):
    rng = np.random.default_rng(1)
    low = LowRank(rng.standard_normal((m, rank)).astype(dtype), rng.standard_normal((rank, n)).astype(dtype))
    for W in (low, low.dense()):
        for norm in ("fro", "spectral", "nuclear"):
            assert choose_rank(W, error=0, norm=norm) == rank
        assert choose_rank(W, energy=1) == rank
        assert choose_rank(W, noise="unknown") == rank
        assert choose_rank(W, noise=1e-30) == rank


def test_rounding_that_adds_up_is_not_counted():
    # Some decompositions of this matrix are off by 57 eps in the Frobenius norm, and by 240 eps in the nuclear one.
    W = np.ones((300, 200))
    for norm in ("fro", "spectral", "nuclear"):
        assert choose_rank(W, error=0, norm=norm) == 1


def test_cancelled_layers_are_rounding():
    rng = np.random.default_rng(4)
    low, other = (LowRank(rng.standard_normal((30, 2)), rng.standard_normal((2, 20))) for _ in range(2))
    for way in ({"energy": 1}, {"error": 0}, {"noise": "unknown"}, {"noise": 1e-30}):
        assert choose_rank(low - low, **way) == 0
        assert choose_rank(low + other - low, **way) == 2


def test_what_is_small_but_not_rounding_is_counted():
    W = np.diag([1.0, 1e-9, 1e-12])
    assert choose_rank(W, energy=1) == choose_rank(W, error=0) == choose_rank(W, noise=1e-20) == 3
    assert choose_rank(W, error=1e-10) == 2
    assert choose_rank(W.astype(np.float32), error=0) == 1  # eps is 1e-7 there
    W = np.diag([1.0, 1e-4]).astype(np.float32)
    assert choose_rank(W, error=0) == choose_rank(W, error=0.9e-4) == choose_rank(W, noise=1e-5) == 2
    assert choose_rank(W, error=1.1e-4) == 1


@pytest.mark.parametrize(("m", "n"), [(9, 9), (2, 2), (1, 50), (576, 192)])
def test_budget_buys_the_largest_rank_that_it_can_pay(m, n):
    W = LowRank(np.ones((m, 1)), np.ones((1, n)))
    for budget in (0, 1, m + n - 1, m + n, 5 * (m + n), m * n - 1, m * n):
        rank = choose_rank(W, budget=budget)
        assert parameter_count(m, n, rank) <= budget
        assert rank == min(m, n) or parameter_count(m, n, rank + 1) > budget
    assert choose_rank(W, budget=m * n - 1) == break_even_rank(m, n)
    assert choose_rank(W, budget=np.int64(10**12)) == min(m, n)


def test_budget_asks_for_no_decomposition(monkeypatch):
    monkeypatch.setattr(np.linalg, "svd", None)
    monkeypatch.setattr(np.linalg, "qr", None)
    assert choose_rank(np.zeros((9, 9)), budget=89) == 4
    assert choose_rank(LowRank(np.ones((9, 2)), np.ones((2, 9))), budget=90) == 5


def test_threshold_is_4_over_root_3_on_a_square_matrix():
    assert _threshold_factor(1.0) == pytest.approx(4 / math.sqrt(3), rel=1e-15)
    assert _threshold_factor(1e-12) == pytest.approx(math.sqrt(2), rel=1e-9)
    W = np.diag([4 / math.sqrt(3) * 0.5 * 2 * 1.001, 4 / math.sqrt(3) * 0.5 * 2 * 0.999, 0.0, 0.0])
    assert choose_rank(W, noise=0.5) == 1  # √4 · 0.5 · 4/√3 lies between the two
    assert choose_rank(np.hstack([W, np.zeros((4, 12))]), noise=0.5) == 0  # √16 · 0.5 · λ(1/4) lies above both


def test_unknown_noise_is_read_off_the_median():
    coefficient = _threshold_factor(1.0) / math.sqrt(_median_of_noise(1.0))
    assert round(coefficient, 3) == 2.858  # the paper's
    values = np.array([2.86, 2.85, 1.0, 0.5, 0.1])  # the median is 1
    assert choose_rank(np.diag(values), noise="unknown") == 1
    assert choose_rank(np.diag(values) * 7, noise="unknown") == 1
    assert choose_rank(np.diag([2.87, 2.86, 1.0, 0.5, 0.1]), noise="unknown") == 2
    assert choose_rank(np.diag([2.85, 2.84, 1.0, 0.5, 0.1]), noise="unknown") == 0


@pytest.mark.parametrize(
    ("beta", "known", "unknown"),
    [
        (0.05, 1.5066, 1.5194),
        (0.25, 1.7580, 1.8371),
        (0.5, 1.9786, 2.1711),
        (0.75, 2.1561, 2.5011),
        (1, 2.3094, 2.8582),
    ],
)
def test_coefficients_are_those_of_the_paper(beta, known, unknown):
    assert _threshold_factor(beta) == pytest.approx(known, abs=5e-5)
    assert _threshold_factor(beta) / math.sqrt(_median_of_noise(beta)) == pytest.approx(unknown, abs=5e-4)


def test_coefficient_lies_on_the_cubic_that_the_paper_gives_for_it():
    for beta in np.linspace(0.001, 1, 50):
        cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert _threshold_factor(beta) / math.sqrt(_median_of_noise(beta)) == pytest.approx(cubic, abs=0.021)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.05, 0.3, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0])
def test_half_of_the_marchenko_pastur_law_lies_below_its_median(beta):
    median = _median_of_noise(beta)
    root = math.sqrt(beta)
    angle = math.acos((1 + beta - median) / (2 * root))

    def density(theta):  # of the angle: the density of x times dx, which takes its two endpoint roots away
        x = 1 + beta - 2 * root * math.cos(theta)
        return (2 * root * math.sin(theta)) ** 2 / (2 * math.pi * beta * x) if x > 0 else 1 / math.pi

    below, _ = scipy.integrate.quad(density, 0, angle, limit=400, points=[min(1e-3, angle / 2)], epsabs=1e-13)
    assert below == pytest.approx(0.5, abs=1e-9)


def test_median_is_that_of_real_noise():
    noise = np.random.default_rng(2).standard_normal((300, 600)) / math.sqrt(600)
    assert np.median(scipy.linalg.svdvals(noise) ** 2) == pytest.approx(_median_of_noise(0.5), rel=5e-3)


@pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 120), (120, 40), (20, 400)])
def test_a_planted_rank_is_found_in_noise(m, n):
    threshold = _threshold_factor(min(m, n) / max(m, n)) * math.sqrt(max(m, n))
    for seed in range(5):
        noise = np.random.default_rng(100 + seed).standard_normal((m, n))
        W = with_singular_values(threshold * np.array([5.0, 3.0, 2.0, 1.5]), m, n, seed) + noise
        assert choose_rank(W, noise=1.0) == choose_rank(W, noise="unknown") == 4
        assert choose_rank(noise, noise=1.0) == choose_rank(noise, noise="unknown") == 0
    for scale, dtype in [(1e-200, np.float64), (1e200, np.float64), (1e-30, np.float32), (1e30, np.float32)]:
        scaled = (scale * W).astype(dtype)
        assert choose_rank(scaled, noise=scale) == choose_rank(scaled, noise="unknown") == 4


def test_the_threshold_denoises_better_than_its_neighbours():
    clean = with_singular_values([40.0, 30.0, 20.0, 4.0, 3.0], 80, 80)  # the last two drown: noise alone reaches 18
    noisy = clean + np.random.default_rng(3).standard_normal((80, 80))
    rank = choose_rank(noisy, noise=1.0)
    errors = [np.linalg.norm(LowRank.from_svd(noisy, kept).dense() - clean) for kept in range(10)]
    assert rank == np.argmin(errors)
    assert 2 <= rank <= 3


@pytest.mark.parametrize("scale", [5e-324 * 2**20, 1e-200, 1e200])
def test_scale_changes_nothing(scale):
    W = np.diag([2.0, 1.0, 0.5])
    for way in ({"energy": 0.9}, {"error": 0.3}, {"error": 0.2, "norm": "nuclear"}, {"noise": "unknown"}):
        assert choose_rank(scale * W, **way) == choose_rank(W, **way)
    assert choose_rank(scale * W, noise=3 / 8 * scale) == choose_rank(W, noise=3 / 8) == 1  # 4/√3 · √3 · 3/8 = 1.5


def test_noise_far_beyond_the_matrix_and_far_below_it():
    for dtype in (np.float32, np.float64):
        W = 1e-30 * np.diag([2.0, 1.0, 0.5]).astype(dtype)
        assert choose_rank(W, noise=1e300) == 0
        assert choose_rank(W, noise=1e-320) == 3
    assert choose_rank(1e-300 * np.eye(3), noise=1e300) == 0  # 1e600 on the scale of the singular values


def test_zero_matrix_needs_no_rank():
    for W in (np.zeros((3, 4)), np.zeros((3, 4), np.float32), LowRank(np.ones((3, 0)), np.ones((0, 4)))):
        for way in ({"energy": 1}, {"energy": 0.5}, {"error": 0}, {"noise": 1.0}, {"noise": "unknown"}):
            assert choose_rank(W, **way) == 0
        assert choose_rank(W, budget=14) == 2


def test_answer_is_an_int():
    W = gallery.addition_table()
    for way in ({"energy": 0.9}, {"error": np.float32(0.1)}, {"budget": np.int64(40)}, {"noise": 1}):
        assert type(choose_rank(W, **way)) is int


@pytest.mark.parametrize(
    ("way", "error", "message"),
    [
        ({}, ValueError, "exactly one of energy, error, budget and noise, got none"),
        ({"energy": 0.9, "error": 0.1}, ValueError, "got energy and error"),
        ({"budget": 9, "noise": "unknown"}, ValueError, "got budget and noise"),
        ({"energy": 0.9, "norm": "nuclear"}, ValueError, "norm goes with error alone, got norm='nuclear' with energy"),
        ({"budget": 9, "norm": "spectral"}, ValueError, "norm goes with error alone"),
        ({"error": 0.1, "norm": "max"}, ValueError, 'norm must be "fro", "spectral" or "nuclear"'),
        ({"energy": 0}, ValueError, "energy must be above 0 and at most 1, where 0.99 keeps 99 %, got 0"),
        ({"energy": 99}, ValueError, "energy must be above 0 and at most 1, where 0.99 keeps 99 %, got 99"),
        ({"energy": -0.1}, ValueError, "energy must be at least 0, got -0.1"),
        ({"energy": np.nan}, ValueError, "energy must be a finite number, got nan"),
        ({"energy": True}, TypeError, "energy must be a number, got True"),
        ({"energy": "0.9"}, TypeError, "energy must be a number, got '0.9'"),
        ({"error": 5}, ValueError, "error must be at most 1, where 0.05 allows 5 %, got 5"),
        ({"error": -1e-9}, ValueError, "error must be at least 0"),
        ({"error": np.inf}, ValueError, "error must be a finite number"),
        ({"error": np.array([0.1, 0.2])}, TypeError, "error must be a number"),
        ({"budget": 1e6}, TypeError, r"budget must be a whole number, got 1000000\.0"),
        ({"budget": -1}, ValueError, "budget must be at least 0, got -1"),
        ({"budget": True}, TypeError, "budget must be a whole number, got True"),
        ({"noise": 0}, ValueError, "noise must be above 0, got 0: without noise choose by error"),
        ({"noise": -1.0}, ValueError, "noise must be at least 0"),
        ({"noise": np.nan}, ValueError, "noise must be a finite number"),
        ({"noise": "auto"}, ValueError, "noise must be a standard deviation or \"unknown\", got 'auto'"),
        ({"noise": np.ones(3)}, TypeError, "noise must be a number"),
        ({"noise": True}, TypeError, "noise must be a number, got True"),
    ],
)
def test_bad_ways_are_refused(way, error, message):
    with pytest.raises(error, match=message):
        choose_rank(np.eye(3), **way)


def test_ways_are_named():
    with pytest.raises(TypeError, match="positional"):
        choose_rank(np.eye(3), 0.9)
