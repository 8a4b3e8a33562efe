"""The exercises of notebook 04 take every right answer, whichever way it is written."""

import numpy as np
import pytest
import torch

from lora_lab.course import check
from lora_lab.course.exercises.learning_the_factors import degrees_of_freedom
from lora_lab.lowrank import LowRank


def by_autograd(W, left, right):
    left, right = (torch.tensor(factor, requires_grad=True) for factor in (left, right))
    (0.5 * ((torch.tensor(W) - left @ right) ** 2).sum()).backward()
    return [left.grad.numpy(), right.grad.numpy()]


def by_nudging(W, left, right):
    def f():
        return 0.5 * np.sum((W - left @ right) ** 2)

    found = []
    for factor in (left, right):
        gradient = np.zeros_like(factor)
        for place in np.ndindex(factor.shape):
            before = factor[place]
            factor[place] = before + 1e-4
            above = f()
            factor[place] = before - 1e-4
            gradient[place] = (above - f()) / 2e-4
            factor[place] = before
        found.append(gradient)
    return found


def by_normal_equations(W, right):
    return W @ right.T @ np.linalg.inv(right @ right.T)


def by_rows(W, right):
    return [np.linalg.lstsq(right.T, row)[0].tolist() for row in W]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("04.gradient", by_autograd),
        ("04.gradient", by_nudging),
        ("04.als_step", by_normal_equations),
        ("04.als_step", by_rows),
        ("04.als_step", lambda W, right: W @ np.linalg.pinv(right)),
        ("04.same_product", lambda left, right, other: np.linalg.pinv(left) @ other),
        ("04.same_product", lambda left, right, other: np.linalg.solve(left.T @ left, left.T @ other).tolist()),
        ("04.start", lambda m, n, rank, rng: (rng.standard_normal((m, rank)), np.zeros((rank, n)))),
        ("04.start", lambda m, n, rank, rng: [np.zeros((m, rank)), 0.01 * rng.uniform(-1, 1, (rank, n))]),
        ("04.start", lambda m, n, rank, rng: LowRank(np.zeros((m, rank)), np.eye(rank, n))),
        ("04.degrees_of_freedom", lambda m, n, rank: m * n - (m - rank) * (n - rank)),
        ("04.degrees_of_freedom", lambda m, n, rank: np.array([rank * (m + n - rank)])),
        ("04.degrees_of_freedom", lambda m, n, rank: float(rank * (m + n - rank))),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


@pytest.mark.parametrize(("m", "n", "rank"), [(6, 5, 1), (7, 4, 2), (5, 5, 3), (4, 6, 4)])
def test_degrees_of_freedom_are_the_rank_of_the_derivative(m, n, rank):
    """The changes of the product that small changes of the factors can make span a space of that dimension."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
    # vec(left dR + dL right): one column for each number in the factors
    derivative = np.hstack([np.kron(np.eye(m), right.T), np.kron(left, np.eye(n))])
    assert derivative.shape == (m * n, rank * (m + n))
    assert np.linalg.matrix_rank(derivative) == degrees_of_freedom(m, n, rank)
