"""The exercises of notebook 07 take every right answer, whichever way it is written."""

import itertools
import math

import numpy as np
import pytest
import torch

from lora_lab.course import check
from lora_lab.course.exercises.why_so_few_parameters import (
    best_in_subspace,
    d90,
    smallest_dimension,
    threshold,
    verdict,
)
from lora_lab.lora import intrinsic_dimension


def conditions_by_singular_values(C):
    s = np.linalg.svd(C, compute_uv=False)
    return np.count_nonzero(s > 1e-9 * s[0])


def best_by_normal_equations(C, b, theta0, P):
    A = C @ P
    return theta0 + P @ (np.linalg.pinv(A.T @ A) @ A.T @ (b - C @ theta0))


def best_by_descent(C, b, theta0, P):
    v, A = np.zeros(P.shape[1]), C @ P
    rate = 1 / np.linalg.norm(A, 2) ** 2
    for _ in range(20_000):
        v -= rate * A.T @ (C @ (theta0 + P @ v) - b)
    return list(theta0 + P @ v)


def d90_by_search(scores, threshold):
    dimensions = sorted(scores)
    for dimension in dimensions:
        if all(one >= threshold for d in dimensions if d >= dimension for one in scores[d]):
            return dimension
    return math.inf


def verdict_by_signs(ours, theirs):
    signs = {np.sign(ours[seed] - theirs[seed]) for seed in theirs}
    return {(1.0,): "better", (-1.0,): "worse"}.get(tuple(signs), "open")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("07.conditions", conditions_by_singular_values),
        ("07.conditions", lambda C: C.shape[1] - (C.shape[1] - np.linalg.matrix_rank(C))),
        ("07.best_point", best_by_normal_equations),
        ("07.best_point", best_by_descent),
        ("07.threshold", lambda full, guessing, share: share * full + (1 - share) * guessing),
        ("07.threshold", lambda f, g, s: np.interp(s, [0, 1], [g, f])),
        ("07.threshold", lambda f, g, s: torch.tensor(g + s * (f - g))),  # float32
        ("07.d90", d90_by_search),
        ("07.verdict", verdict_by_signs),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


def test_a_random_subspace_holds_a_solution_from_the_number_of_conditions_on():
    rng = np.random.default_rng(0)
    C = rng.standard_normal((6, 30))
    C = np.vstack([C, C[0] - C[1]])
    b, theta0 = C @ rng.standard_normal(30), rng.standard_normal(30)
    for dimension, holds in ((smallest_dimension(C) - 1, False), (smallest_dimension(C), True)):
        theta = best_in_subspace(C, b, theta0, rng.standard_normal((30, dimension)))
        assert np.allclose(C @ theta, b) == holds


def test_the_best_point_is_better_than_its_neighbours():
    rng = np.random.default_rng(1)
    C, P, b, theta0 = (rng.standard_normal(shape) for shape in ((5, 12), (12, 3), 5, 12))
    best = best_in_subspace(C, b, theta0, P)
    for _ in range(50):
        other = best + 0.1 * P @ rng.standard_normal(3)
        assert np.linalg.norm(C @ other - b) > np.linalg.norm(C @ best - b)


def test_the_threshold_is_that_of_the_package():
    found = intrinsic_dimension(lambda d, seed: d / 10, 0.8, baseline=0.5, grid=[1, 10], seeds=[0])
    assert threshold(0.8, 0.5, 0.9) == pytest.approx(found.threshold)


def test_the_smallest_dimension_is_that_of_the_package_where_its_brackets_hold():
    rng = np.random.default_rng(2)
    grid = [10, 32, 100, 316, 1000]
    for _ in range(20):
        scores = {d: np.sort(rng.random(2)).tolist() for d in grid}
        rising = dict(zip(grid, zip(*[sorted(rng.random(5)) for _ in range(2)], strict=True), strict=True))
        found = intrinsic_dimension(lambda d, seed, s=rising: s[d][seed], 0.5, grid=grid, seeds=[0, 1], share=1.0)
        expected = found.interval[1]
        assert d90(rising, 0.5) == (math.inf if expected is None else expected)
        assert d90(scores, 2.0) == math.inf


def test_a_verdict_turns_around_with_the_two_methods():
    turned = {"better": "worse", "worse": "better", "open": "open"}
    for ours in itertools.product((0.5, 0.6, 0.7), repeat=2):
        one, other = dict(enumerate(ours)), {0: 0.6, 1: 0.6}
        assert verdict(other, one) == turned[verdict(one, other)]
