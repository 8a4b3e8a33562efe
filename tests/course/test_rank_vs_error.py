"""The exercises of notebook 03 take every right answer, whichever way it is written."""

import numpy as np
import pytest

from lora_lab.course import check
from lora_lab.lowrank import LowRank, choose_rank, gallery, rank_errors, truncated_svd


def by_hypot(s):
    tails = np.hypot.accumulate([0.0, *s[::-1]])[::-1]
    return list(tails / (tails[0] or 1))


def by_loop(s):
    norm = np.linalg.norm(s)
    return [np.linalg.norm(s[rank:]) / norm if norm else 0.0 for rank in range(len(s) + 1)]


def factors(W, size):
    """The pair of factors, with the singular values on one side and the signs turned."""
    m, n = W.shape
    U, s, Vt = truncated_svd(W, min(size // (4 * (m + n)), m, n))
    return [(-U).astype(np.float32), (-s[:, None] * Vt).astype(np.float32)]


def by_largest_gap(W):
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    rank = int(np.argmax(s[: len(s) // 2] / s[1 : len(s) // 2 + 1])) + 1
    return LowRank(U[:, :rank] * s[:rank], Vt[:rank])


def by_shrinking(W):
    """Optimal shrinkage (Gavish and Donoho, 2017): the singular values are lowered as well as cut."""
    m, n = sorted(W.shape)
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    noise = np.median(s) / np.sqrt(n * _median(m / n))
    y, beta = s / (np.sqrt(n) * noise), m / n
    kept = y > 1 + np.sqrt(beta)
    shrunk = np.sqrt(np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0)) / y
    return U * np.where(kept, np.sqrt(n) * noise * shrunk, 0) @ Vt


def _median(beta):
    """The median of the squared singular values of noise, of one large sample."""
    n = 1000
    noise = np.random.default_rng(0).standard_normal((round(beta * n), n)) / np.sqrt(n)
    return np.median(np.linalg.svd(noise, compute_uv=False) ** 2)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("03.energy_to_error", lambda energy: (1 - energy) ** 0.5),
        ("03.energy_to_error", lambda energy: np.array(np.sqrt(1 - energy))),
        ("03.energy_to_error", lambda energy: np.sqrt(1 - np.array([energy]))),
        ("03.curve", by_hypot),
        ("03.curve", by_loop),
        ("03.curve", lambda s: rank_errors(np.diag(s))),
        ("03.budget", factors),
        ("03.budget", lambda W, size: tuple(factors(W, size))),
        ("03.denoise", by_largest_gap),
        ("03.denoise", by_shrinking),
        ("03.denoise", lambda W: truncated_svd(W, choose_rank(W, noise="unknown"))),
        ("03.denoise", lambda W: (by_largest_gap(W).left, by_largest_gap(W).right)),
        ("03.which_curve", ("C", "A", "B", "D", "A")),
        ("03.which_curve", "CABDA"),
        ("03.which_curve", "C, A, B, D, A"),
        ("03.which_curve", ["c", "a ", "b", "d", "a"]),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


def test_curves_are_those_of_the_matrices():
    """The curves that notebook 03 prints for its last exercise, at ranks 1 to 4, in percent."""
    curves = {"A": [94, 87, 79, 71], "B": [17.4, 1.5, 0.1, 0.0], "C": [5.7, 0, 0, 0], "D": [53.9, 18.3, 8.5, 5.7]}
    shuffled = gallery.identity(8)[np.random.default_rng(0).permutation(8)]
    matrices = [f(8) for f in (gallery.addition_table, gallery.hadamard, gallery.hilbert, gallery.distance_table)]
    for letter, W in zip("CABDA", [*matrices, shuffled], strict=True):
        np.testing.assert_allclose(100 * rank_errors(W)[1:5], curves[letter], atol=0.6 if letter == "A" else 0.06)
