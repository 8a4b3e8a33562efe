"""The exercises of notebook 06: a rank for ΔW, a cut fine-tune, the rank of a gradient, and shared directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called


def rank_of_update(W: np.ndarray, W_tuned: np.ndarray, energy: float) -> int:
    """Give the smallest rank at which the best approximation of ΔW keeps this share of its energy."""
    s = np.linalg.svd(W_tuned - W, compute_uv=False)
    kept = np.cumsum(s**2) / np.sum(s**2)
    return int(np.argmax(kept >= energy)) + 1


def _check_rank(answer: Function) -> str | None:
    """Try updates with few large layers and a long tail, on weights of which that is not true."""
    for seed, (m, n), energy in ((5, (12, 16), 0.8), (10, (16, 12), 0.9), (2, (9, 9), 0.99)):
        W, W_tuned = _weights(m, n, seed)
        right = rank_of_update(W, W_tuned, energy)
        got: Any = answer(W.copy(), W_tuned.copy(), energy)
        what = called(answer, W, W_tuned, energy)
        if isinstance(got, str) or np.ndim(got) != 0 or int(got) != got:
            return f"{what} gives {got!r}: a rank is a whole number."
        if got == right:
            continue
        s = np.linalg.svd(W_tuned - W, compute_uv=False)
        for wrong, reason in (
            (_rank(np.linalg.svd(W_tuned, compute_uv=False) ** 2, energy), "that is the rank of W_tuned itself."),
            (_rank(np.linalg.svd(W, compute_uv=False) ** 2, energy), "that is the rank of W, before any tuning."),
            (right - 1, "that rank keeps less. An index counts from 0, and index 0 is rank 1."),
            (int(np.sum(s > 1e-12 * s[0])), "that is the numerical rank, which counts every layer that is not zero."),
            (_rank(s, energy), "you added up s. Energy adds up squares."),
            (_rank(s**2, 1 - (1 - energy) ** 2), "you read the share as an error. What is lost of it is 1 − energy."),
        ):
            if got == wrong:
                return f"{what} gives {got}: {reason} It should be {right}."
        return f"{what} gives {got}, and it should be {right}. Which singular values are needed, and what adds up?"
    return None


def _rank(values: np.ndarray, share: float) -> int:
    """Give how many of the values make up a share of their sum."""
    return int(np.argmax(np.cumsum(values) / np.sum(values) >= share)) + 1


def _weights(m: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give a weight, and the same with an update of falling singular values added."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    U, V = (np.linalg.qr(rng.standard_normal((size, size)))[0][:, :k] for size in (m, n))
    W = 0.1 * rng.standard_normal((m, n))
    return W, W + 2 * U * (1 + np.arange(k)) ** -0.8 @ V.T


def cut_fine_tune(W: np.ndarray, W_tuned: np.ndarray, rank: int) -> np.ndarray:
    """Give W with the best approximation of ΔW at a rank added."""
    U, s, Vt = np.linalg.svd(W_tuned - W, full_matrices=False)
    return W + U[:, :rank] * s[:rank] @ Vt[:rank]


def _check_cut(answer: Function) -> str | None:
    """Try a wide weight and a tall one, at rank 0, at a low rank and at the full one."""
    for seed, (m, n) in ((3, (4, 6)), (4, (7, 5))):
        W, W_tuned = _weights(m, n, seed)
        for rank in (2, 1, 0, min(m, n)):
            result: Any = np.asarray(answer(W.copy(), W_tuned.copy(), rank))
            what, right = called(answer, W, W_tuned, rank), cut_fine_tune(W, W_tuned, rank)
            if result.shape != W.shape:
                return f"{what} has shape {result.shape}; it is a weight, so {W.shape}."
            if np.allclose(result, right):
                continue
            delta = right - W
            for wrong, reason in (
                (delta, "that is the update alone. It is added to W."),
                (cut_fine_tune(0 * W, W_tuned, rank), "you cut W_tuned. W stays whole, and the update is cut."),
                (W_tuned - delta, "you added the layers that should go. Keep the first ones, the largest."),
                (W_tuned + delta, "the update is added to W, not to W_tuned, which has it already."),
                (W - delta, "the update is W_tuned − W. Yours has the other sign."),
                (W_tuned, "nothing was cut: that is W_tuned."),
                (cut_fine_tune(W, W_tuned, rank + 1), f"that is rank {rank + 1}, one layer too many."),
            ):
                if np.allclose(result, wrong):
                    return f"{what}: {reason}"
            return f"{what} is off by {np.abs(result - right).max():.2g}. Take the SVD of what was added, and cut that."
    return None


def highest_rank(m: int, n: int, batch_size: int, steps: int) -> int:
    """Give the highest rank that the sum of ``steps`` gradients of an m × n weight can have."""
    return min(m, n, batch_size * steps)


def _check_highest(answer: Function) -> str | None:
    """Try sums that are below the sides of the matrix, between them and beyond them."""
    for m, n, b, steps in (
        (256, 784, 4, 10),
        (256, 784, 32, 160),
        (10, 128, 1, 50),
        (784, 10, 2, 3),
        (784, 10, 4, 10),
        (300, 200, 25, 8),
    ):
        right, got = highest_rank(m, n, b, steps), answer(m, n, b, steps)
        what = called(answer, m, n, b, steps)
        if isinstance(got, str) or np.ndim(got) != 0 or int(got) != got:
            return f"{what} gives {got!r}: a rank is a whole number."
        if got == right:
            continue
        for wrong, reason in (
            (min(m, n), "that is the limit of the shape. So few examples do not reach it."),
            (b * steps, f"no {m} × {n} matrix has a rank above {min(m, n)}."),
            (min(m, n, b), "that is the limit of one step. Each step can bring new directions."),
            (min(m, n, steps), "that is one direction a step. A step has one for each example of its batch."),
            (min(m, n, b + steps), "a batch in each step: that is a product, not a sum."),
            (max(m, n, b * steps), "the SMALLEST of the limits holds."),
            (min(m + n, b * steps), f"no {m} × {n} matrix has a rank above {min(m, n)}, its shorter side."),
            (min(max(m, n), b * steps), f"no {m} × {n} matrix has a rank above {min(m, n)}, its shorter side."),
        ):
            if got == wrong:
                return f"{what} gives {got}: {reason} It should be {right}."
        return f"{what} gives {got!r}, and it should be {right}. How many rank-1 matrices are added up?"
    return None


def similarity(A1: np.ndarray, A2: np.ndarray, i: int, j: int) -> float:
    """Give φ(i, j) = ‖V₁ᵢᵀ V₂ⱼ‖² / min(i, j) for the leading right singular vectors of A1 and A2."""
    V1 = np.linalg.svd(A1, full_matrices=False)[2][:i]  # (i, n)
    V2 = np.linalg.svd(A2, full_matrices=False)[2][:j]  # (j, n)
    return float(np.sum((V1 @ V2.T) ** 2) / min(i, j))


def _largest_cosine(A1: np.ndarray, A2: np.ndarray, i: int, j: int) -> float:
    """Give the cosine of the smallest angle between the top i directions of A1 and the top j of A2."""
    V1, V2 = (np.linalg.svd(A, full_matrices=False)[2] for A in (A1, A2))
    return float(np.linalg.norm(V1[:i] @ V2[:j].T, 2))


def _check_similarity(answer: Function) -> str | None:
    """Try factors of unlike ranks, of which the first shares its top direction with the second."""
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((20, 20)))[0].T  # orthonormal rows
    sizes = np.array([5.0, 2.0, 1.0, 0.5])
    mixed = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    A1 = mixed @ (sizes[:, None] * V[:4])
    A2 = rng.standard_normal((6, 6)) @ np.vstack([4 * V[:1], 0.8 * V[2:4], rng.standard_normal((3, 20)) / 5])
    for i, j in ((2, 4), (4, 2), (1, 1), (3, 6)):
        result: Any = answer(A1.copy(), A2.copy(), i, j)
        what, right = called(answer, A1, A2, i, j), similarity(A1, A2, i, j)
        if isinstance(result, str) or np.ndim(result) != 0:
            got = f"gives {result!r}" if isinstance(result, str) else f"has shape {np.shape(result)}"
            return f"{what} {got}: one number is asked for."
        if np.isclose(result, right):
            continue
        V1, V2 = (np.linalg.svd(A, full_matrices=False)[2] for A in (A1, A2))
        cosines = V1[:i] @ V2[:j].T
        total = np.sum(cosines**2)
        for wrong, reason in (
            (total, "divide by min(i, j), so that 1 is the most that can be shared."),
            (
                total / max(i, j),
                "you divide by the larger of i and j. It is the smaller subspace that can lie inside.",
            ),
            (total / (i * j), "you divide by i · j. What can be shared is min(i, j)."),
            (np.sum(np.abs(cosines)) / min(i, j), "the cosines are to be squared."),
            (np.sqrt(total) / min(i, j), "that is the norm. Its square is meant."),
            (
                np.linalg.norm(cosines, 2) ** 2 / min(i, j),
                "that is the spectral norm, the largest direction alone. The norm of Frobenius adds up all.",
            ),
            (
                similarity(A1, A2, i + 1, j + 1),
                "that is φ(i + 1, j + 1). An index counts from 0, and i counts directions from 1.",
            ),
            (
                similarity(A1[:i], A2[:j], i, j),
                "that is what the first rows of A span. The top directions of A are those of its SVD.",
            ),
            (np.sum(cosines) ** 2 / min(i, j), "square each cosine, and then add up."),
            (np.sum((A1[:i] @ A2[:j].T) ** 2) / min(i, j), "those are the rows of A, not its singular vectors."),
            (
                np.sum((V1.T[:i] @ V2.T[:j].T) ** 2) / min(i, j) if V1.shape[0] == V2.shape[0] else np.nan,
                "singular vectors are the ROWS of Vt.",
            ),
        ):
            if np.isclose(result, wrong):
                return f"{what} gives {result:.3f}: {reason} It should be {right:.3f}."
        return f"{what} gives {result:.3f}, and it should be {right:.3f}. V₁ᵢ holds the first i rows of Vt."
    return None


EXERCISES = (
    Exercise(
        name="06.rank_of_update",
        points=2,
        goal="a function of W, W_tuned and energy that returns the smallest rank that keeps this share of ΔW's energy",
        solution=rank_of_update,
        check=_check_rank,
        hints=(
            "First the difference, then its singular values: np.linalg.svd(..., compute_uv=False).",
            "np.cumsum(s**2) is the energy of 1, 2, 3, ... layers. Divide by the energy of all.",
            "np.argmax of booleans gives the first index that is True; the rank is that index plus 1.",
        ),
        mistakes=(
            (lambda W, W_tuned, energy: rank_of_update(0 * W, W_tuned, energy), "the rank of W_tuned itself"),
            (lambda W, W_tuned, energy: rank_of_update(0 * W, W, energy), "before any tuning"),
            (lambda W, W_tuned, energy: rank_of_update(W, W_tuned, energy) - 1, "index 0 is rank 1"),
            (lambda W, W_tuned, energy: np.linalg.matrix_rank(W_tuned - W), "that is the numerical rank"),
            (
                lambda W, W_tuned, energy: _rank(np.linalg.svd(W_tuned - W, compute_uv=False), energy),
                "Energy adds up squares",
            ),
            (
                lambda W, W_tuned, energy: rank_of_update(W, W_tuned, 1 - (1 - energy) ** 2),
                "you read the share as an error",
            ),
            (lambda W, W_tuned, energy: np.linalg.svd(W_tuned - W)[1], "a rank is a whole number"),
            (lambda W, W_tuned, energy: 0, "what adds up?"),
        ),
    ),
    Exercise(
        name="06.cut",
        points=2,
        goal="a function of W, W_tuned and rank that returns the weight with the update cut to this rank",
        solution=cut_fine_tune,
        check=_check_cut,
        hints=(
            "The update is W_tuned − W. Its best matrix of a rank comes from its SVD, as in notebook 02.",
            "W + U[:, :rank] * s[:rank] @ Vt[:rank], where U, s and Vt are those of the update.",
        ),
        mistakes=(
            (lambda W, W_tuned, rank: cut_fine_tune(W, W_tuned, rank) - W, "that is the update alone"),
            (lambda W, W_tuned, rank: cut_fine_tune(0 * W, W_tuned, rank), "you cut W_tuned"),
            (lambda W, W_tuned, rank: W_tuned - cut_fine_tune(W, W_tuned, rank) + W, "the layers that should go"),
            (lambda W, W_tuned, rank: W_tuned + cut_fine_tune(W, W_tuned, rank) - W, "which has it already"),
            (lambda W, W_tuned, rank: 2 * W - cut_fine_tune(W, W_tuned, rank), "the other sign"),
            (lambda W, W_tuned, rank: W_tuned, "nothing was cut"),
            (lambda W, W_tuned, rank: cut_fine_tune(W, W_tuned, rank + 1), "one layer too many"),
            (lambda W, W_tuned, rank: W_tuned[:rank], "it is a weight, so"),
            (lambda W, W_tuned, rank: W, "Take the SVD of what was added"),
        ),
    ),
    Exercise(
        name="06.highest_rank",
        goal="a function of m, n, batch_size and steps that returns the highest rank which ΔW can have",
        solution=highest_rank,
        check=_check_highest,
        hints=(
            "The gradient of a batch is a sum of one rank-1 matrix for each example.",
            "Ranks add up at most, and no matrix has a rank above its shorter side.",
        ),
        mistakes=(
            (lambda m, n, batch_size, steps: min(m, n), "that is the limit of the shape"),
            (lambda m, n, batch_size, steps: batch_size * steps, "has a rank above 256"),
            (lambda m, n, batch_size, steps: min(m, n, batch_size), "that is the limit of one step"),
            (lambda m, n, batch_size, steps: min(m, batch_size * steps), "no 784 × 10 matrix has a rank above 10"),
            (lambda m, n, batch_size, steps: min(n, batch_size * steps), "no 256 × 784 matrix has a rank above 256"),
            (lambda m, n, batch_size, steps: str(min(m, n, batch_size * steps)), "a rank is a whole number"),
            (lambda m, n, batch_size, steps: min(m, n, steps), "one direction a step"),
            (lambda m, n, batch_size, steps: min(m, n, batch_size + steps), "a product, not a sum"),
            (lambda m, n, batch_size, steps: max(m, n, batch_size * steps), "the SMALLEST of the limits"),
            (lambda m, n, batch_size, steps: min(max(m, n), batch_size * steps), "its shorter side"),
            (lambda m, n, batch_size, steps: -1, "How many rank-1 matrices are added up?"),
        ),
    ),
    Exercise(
        name="06.similarity",
        points=2,
        goal="a function of A1, A2, i and j that returns the similarity of their top i and top j directions",
        solution=similarity,
        check=_check_similarity,
        hints=(
            "The directions of A (r, n) are its right singular vectors: the rows of Vt, n numbers each.",
            "V1 @ V2.T holds the cosines of every pair. Add up their squares.",
            "Divide by min(i, j): then 1 means that the smaller subspace lies within the larger.",
        ),
        mistakes=(
            (lambda A1, A2, i, j: similarity(A1, A2, i, j) * min(i, j), "divide by min(i, j)"),
            (lambda A1, A2, i, j: similarity(A1, A2, i, j) * min(i, j) / max(i, j), "the larger of i and j"),
            (lambda A1, A2, i, j: similarity(A1, A2, i, j) / max(i, j), "What can be shared is min"),
            (lambda A1, A2, i, j: np.sqrt(similarity(A1, A2, i, j) / min(i, j)), "that is the norm"),
            (lambda A1, A2, i, j: np.sum((A1[:i] @ A2[:j].T) ** 2) / min(i, j), "not its singular vectors"),
            (lambda A1, A2, i, j: np.ones((i, j)), "one number is asked for"),
            (lambda A1, A2, i, j: str(similarity(A1, A2, i, j)), "one number is asked for"),
            (lambda A1, A2, i, j: max(i, j) / A1.shape[1], "holds the first i rows of Vt"),
            (lambda A1, A2, i, j: similarity(A1, A2, i + 1, j + 1), "that is φ(i + 1, j + 1)"),
            (lambda A1, A2, i, j: similarity(A1[:i], A2[:j], i, j), "the first rows of A span"),
            (lambda A1, A2, i, j: _largest_cosine(A1, A2, i, j) ** 2 / min(i, j), "the spectral norm"),
        ),
    ),
)
