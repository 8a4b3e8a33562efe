"""The exercises of notebook 04: two gradients, half a step, the same product, a start, and degrees of freedom."""

from typing import Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.lowrank import LowRank, fit_factors, rank_errors


def gradients(W: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the gradients of ½ ‖W - left @ right‖² by left and by right: each has the other factor in it."""
    E = W - left @ right
    return -E @ right.T, -left.T @ E


def _check_gradients(answer: Function) -> str | None:
    """Compare with the formulas on three shapes; turned, doubled and forgotten things are recognised."""
    for m, n, rank in ((5, 4, 2), (3, 6, 1), (4, 4, 3)):
        W, left, right = _matrices(m, n, rank)
        result = answer(W.copy(), left.copy(), right.copy())
        what = called(answer, W, left, right)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return f"{what} gives {type(result).__name__}; two gradients are asked for: return first, second."
        if wrong := _wrong_gradients(_pair(result), gradients(W, left, right), W, left, right):
            return f"{what}: {wrong}"
    return None


def _wrong_gradients(
    mine: list[np.ndarray], right_ones: Any, W: np.ndarray, left: np.ndarray, right: np.ndarray
) -> str | None:
    """Say what is wrong with a pair of gradients, by their shapes, their signs and their size."""
    shapes = [gradient.shape for gradient in mine]
    wanted = [left.shape, right.shape]
    if shapes == wanted[::-1] and shapes != wanted:
        return f"the shapes are {shapes[0]} and {shapes[1]}: the gradient by left comes first, the one by right second."
    if shapes != wanted:
        return (
            f"the shapes are {shapes[0]} and {shapes[1]}; "
            f"a gradient has the shape of its factor, {wanted[0]} and {wanted[1]}."
        )
    if all(np.allclose(a, b) for a, b in zip(mine, right_ones, strict=True)):
        return None
    for factor, reason in (
        (-1, "the signs are turned: f falls where left @ right comes nearer to W, that is along +E @ right.T."),
        (2, "both are twice too large: the ½ in f cancels the 2 of the square."),
        (-2, "both are twice too large, and their signs are turned."),
        (1 / W.size, "both are divided by the number of entries: f is a sum, not a mean."),
        (2 / W.size, "they are those of the mean of the squares; f is half the sum."),
    ):
        if all(np.allclose(a, factor * b) for a, b in zip(mine, right_ones, strict=True)):
            return reason
    if np.allclose(mine[0], -W @ right.T):
        return "the product is missing: W itself stands where the error E = W - left @ right should."
    for name, a, b in zip(("left", "right"), mine, right_ones, strict=True):
        if not np.allclose(a, b):
            return f"the gradient by {name} is not right. Nudge one entry of {name}: by how much does f change?"
    return None


def best_left(W: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Give the left (m, r) that minimizes ‖W - left @ right‖ for this right (r, n): one least squares for each row."""
    return np.linalg.lstsq(right.T, W.T)[0].T


def _check_best_left(answer: Function) -> str | None:
    """Compare the error with the least one, for rows of right that are not orthonormal."""
    for m, n, rank in ((6, 5, 2), (4, 7, 3), (5, 5, 1)):
        W, _, right = _matrices(m, n, rank)
        result = answer(W.copy(), right.copy())
        what = called(answer, W, right)
        if isinstance(result, tuple):
            return f"{what} gives a tuple of {len(result)}, and one matrix is asked for{_of_lstsq(result)}."
        left, best = np.asarray(result), best_left(W, right)
        if left.shape == (rank, m):
            return f"{what} has shape {left.shape}, which is left lying down: lstsq(right.T, W.T) solves for left.T."
        if left.shape != (m, rank):
            return f"{what} has shape {left.shape}; left has shape {(m, rank)}."
        if np.allclose(left, W @ right.T):
            return f"{what} is W @ right.T: that is right only if right @ right.T is the identity."
        error, least = np.linalg.norm(W - left @ right), np.linalg.norm(W - best @ right)
        if not error <= least * (1 + 1e-6) + 1e-9:  # nan is no answer either
            return f"{what} leaves an error of {error:.3f}; the least is {least:.3f}."
    return None


def _of_lstsq(result: tuple[Any, ...]) -> str:
    """Say where a tuple of four comes from."""
    return "; np.linalg.lstsq returns four things, the first is the answer" if len(result) == 4 else ""


def carry(left: np.ndarray, right: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Give the G (r, r) with ``left @ G`` equal to ``other``: then ``inv(G) @ right`` keeps the product."""
    return np.linalg.lstsq(left, other)[0]


def _check_carry(answer: Function) -> str | None:
    """Hide a G, which is no rotation, and ask for it back."""
    for m, n, rank in ((6, 5, 2), (8, 4, 3), (5, 5, 1)):
        _, left, right = _matrices(m, n, rank)
        G = np.array([[2.0, 1.0, 0.0], [0.5, 3.0, -1.0], [0.0, 1.0, 1.5]])[:rank, :rank]
        other = left @ G
        result = answer(left.copy(), right.copy(), other.copy())
        what = called(answer, left, right, other)
        if isinstance(result, tuple):
            return f"{what} gives a tuple of {len(result)}, and one matrix is asked for{_of_lstsq(result)}."
        mine = np.asarray(result)
        if mine.shape != (rank, rank):
            return f"{what} has shape {mine.shape}; G stands between the factors, so it is {rank} × {rank}."
        if np.allclose(mine, G):
            continue
        if np.allclose(mine, np.linalg.inv(G)):
            return f"{what} leads from other back to left: it is the inverse of G."
        if np.allclose(mine, G.T):
            return f"{what} is the transpose of G: which of the two is solved for, left @ G or G @ left?"
        if np.allclose(mine, left.T @ other):
            return f"{what} is left.T @ other: that is G only if the columns of left are orthonormal."
        return f"{what}: left @ G is off by {np.abs(left @ mine - other).max():.3g}."
    return None


def start(m: int, n: int, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give LoRA's start: left is zero, so that the product is; right is random, so that left moves."""
    return np.zeros((m, rank)), rng.standard_normal((rank, n))


def _check_start(answer: Function) -> str | None:
    """Look at the product, then let gradient descent run from there on a matrix of that rank."""
    for m, n, rank in ((9, 7, 2), (6, 10, 3)):
        result = answer(m, n, rank, np.random.default_rng(0))
        what = f"from your start for a {m} × {n} matrix of rank {rank}"
        if not isinstance(result, tuple | list | LowRank) or (not isinstance(result, LowRank) and len(result) != 2):
            return f"two factors are asked for, left and right; yours is {type(result).__name__}."
        left, right = _pair(result)
        if (left.shape, right.shape) != ((m, rank), (rank, n)):
            return f"left is {left.shape} and right is {right.shape}; they must be {(m, rank)} and {(rank, n)}."
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            return "the factors hold nan or inf. Was something divided by zero?"
        if not np.any(left) and not np.any(right):
            return "both factors are zero, so both gradients are zero: it never moves."
        if np.any(left @ right):
            size = np.abs(left @ right).max()
            return (
                f"the product is not zero: its largest entry is {size:.2g}. Small is not zero; the model would change."
            )
        _, true_left, true_right = _matrices(m, n, rank)
        W = true_left @ true_right
        fit = fit_factors(W, rank, start=(left, right), method="gd", max_iterations=20_000)
        if fit.errors[-1] > 0.01:
            return f"{what} {_why_it_stays_away(left, right, fit.errors[-1], W)}"
    return None


def _why_it_stays_away(left: np.ndarray, right: np.ndarray, error: float, W: np.ndarray) -> str:
    """Say why gradient descent from there does not arrive: too few different layers, or numbers of the wrong size."""
    name, factor = ("rows of right", right) if right.any() else ("columns of left", left)
    if np.linalg.matrix_rank(factor) == min(factor.shape):
        largest = np.abs(factor).max()
        if largest < 1e-3:
            return (
                f"gradient descent is still at an error of {error:.0%} after 20,000 iterations. Your random factor has "
                f"entries of up to {largest:.2g}: so near to both at zero there is hardly a gradient."
            )
        return (
            f"gradient descent is still at an error of {error:.0%} after 20,000 iterations. Your random factor has "
            f"entries of up to {largest:.2g}, and those of W are of size 1: that takes far smaller steps."
        )
    reached = int(np.argmin(np.abs(rank_errors(W) - error)))
    return (
        f"gradient descent stops at an error of {error:.0%}, the best that rank {reached} can do. "
        f"Are the {name} different enough? Equal ones get equal gradients, and stay equal."
    )


def degrees_of_freedom(m: int, n: int, rank: int) -> int:
    """Give rank · (m + n) numbers in the factors, less the rank² of a G that changes nothing."""
    return rank * (m + n) - rank**2


def _check_degrees_of_freedom(answer: Function) -> str | None:
    """Try a rank of 1, a wide matrix, a narrow one, and full rank, where every entry is free."""
    for m, n, rank in ((9, 9, 1), (60, 40, 3), (4, 10, 2), (5, 5, 5), (5, 8, 5)):
        count, right = answer(m, n, rank), degrees_of_freedom(m, n, rank)
        if np.size(count) == 1 and np.all(np.asarray(count) == right):
            continue
        if isinstance(count, str):
            return f"{called(answer, m, n, rank)} gives {count!r}, which is text; a number is asked for."
        what = f"{called(answer, m, n, rank)} gives {count}"
        if count == rank * (m + n):
            return f"{what}: all numbers in the factors. But any invertible G can stand between them: how many is that?"
        if count == m * n:
            return f"{what}: all entries. A matrix of rank {rank} is settled by fewer."
        if count == rank * (m + n) - rank:
            return (
                f"{what}: one scale for each layer is taken off. G may mix the layers too: it has rank · rank numbers."
            )
        return f"{what}, but it is {right}: the numbers in both factors, less those of an r × r matrix G."
    return None


def _matrices(m: int, n: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give a matrix and two factors of its shape, the same ones each time."""
    rng = np.random.default_rng(m * 100 + n * 10 + rank)
    return rng.standard_normal((m, n)), rng.standard_normal((m, rank)), rng.standard_normal((rank, n))


def _pair(result: Any) -> list[np.ndarray]:
    """Give two factors as arrays, whether they came in a LowRank or in a pair."""
    factors = (result.left, result.right) if isinstance(result, LowRank) else result
    return [np.asarray(factor, dtype=float) for factor in factors]


EXERCISES = (
    Exercise(
        name="04.gradient",
        points=2,
        goal="a function of W, left and right that returns the gradients by left and by right",
        solution=gradients,
        check=_check_gradients,
        hints=(
            "With E = W - left @ right, f is half the sum of the squares of E. A change of left by D changes E by "
            "-D @ right.",
            "A gradient has the shape of its factor. Which product of E (m, n) and right (r, n) has shape (m, r)?",
            "The gradient by left is -E @ right.T. The one by right is built the same way, with left in front.",
        ),
        mistakes=(
            (
                lambda W, left, right: ((W - left @ right) @ right.T, left.T @ (W - left @ right)),
                "the signs are turned",
            ),
            (
                lambda W, left, right: (2 * (left @ right - W) @ right.T, 2 * left.T @ (left @ right - W)),
                "the ½ in f cancels",
            ),
            (
                lambda W, left, right: (left.T @ (left @ right - W), (left @ right - W) @ right.T),
                "the gradient by left comes first",
            ),
            (lambda W, left, right: (-W @ right.T, -left.T @ W), "the product is missing"),
            (
                lambda W, left, right: ((left @ right - W) @ right.T / W.size, left.T @ (left @ right - W) / W.size),
                "f is a sum, not a mean",
            ),
            (
                lambda W, left, right: (
                    2 * (left @ right - W) @ right.T / W.size,
                    2 * left.T @ (left @ right - W) / W.size,
                ),
                "the mean of the squares",
            ),
            (lambda W, left, right: left @ right - W, "two gradients are asked for"),
            (lambda W, left, right: ((left @ right - W) @ right.T, left.T @ W), "the gradient by right is not right"),
            (lambda W, left, right: (left @ right - W, left @ right - W), "a gradient has the shape of its factor"),
            (lambda W, left, right: ((left @ right - W) @ right, left @ (left @ right - W)), "stopped with ValueError"),
        ),
    ),
    Exercise(
        name="04.als_step",
        points=2,
        goal="a function of W and right that returns the best left",
        solution=best_left,
        check=_check_best_left,
        hints=(
            "Each row of left is its own least-squares problem: which mix of the rows of right comes nearest to that "
            "row of W?",
            "np.linalg.lstsq(A, B) finds the X that makes A @ X nearest to B. Here left stands in front, so "
            "transpose all three.",
        ),
        mistakes=(
            (lambda W, right: W @ right.T, "only if right @ right.T is the identity"),
            (lambda W, right: np.linalg.lstsq(right.T, W.T)[0], "left lying down"),
            (lambda W, right: np.linalg.lstsq(right.T, W.T), "lstsq returns four things"),
            (lambda W, right: LowRank.from_svd(W, len(right)).left, "the least is"),
            (lambda W, right: np.full((len(W), len(right)), np.nan), "leaves an error of nan"),
            (lambda W, right: np.linalg.pinv(right) @ W, "stopped with ValueError"),
            (lambda W, right: np.linalg.lstsq(W, right.T)[0], "stopped with LinAlgError"),
        ),
    ),
    Exercise(
        name="04.same_product",
        points=2,
        goal="a function of left, right and other that returns G",
        solution=carry,
        check=_check_carry,
        hints=(
            "left @ G = other has more equations than unknowns, and a solution all the same.",
            "np.linalg.lstsq(A, B) finds the X that makes A @ X nearest to B.",
        ),
        mistakes=(
            (lambda left, right, other: np.linalg.lstsq(other, left)[0], "back to left: it is the inverse"),
            (lambda left, right, other: np.linalg.lstsq(left, other)[0].T, "the transpose of G"),
            (lambda left, right, other: left.T @ other, "the columns of left are orthonormal"),
            (lambda left, right, other: np.linalg.lstsq(left, other), "lstsq returns four things"),
            (lambda left, right, other: other @ np.linalg.pinv(left), "so it is 2 × 2"),
            (lambda left, right, other: np.linalg.inv(left) @ other, "stopped with LinAlgError"),
            (lambda left, right, other: np.eye(left.shape[1]), "left @ G is off by"),
        ),
    ),
    Exercise(
        name="04.start",
        points=2,
        goal="a function of m, n, rank and rng that returns left and right",
        solution=start,
        check=_check_start,
        hints=(
            "Which factors make the product exactly zero? At least one must be zero.",
            "The gradient of the zero factor has the other one in it. What must that be, to tell the layers apart?",
        ),
        mistakes=(
            (lambda m, n, rank, rng: (np.zeros((m, rank)), np.zeros((rank, n))), "both gradients are zero"),
            (
                lambda m, n, rank, rng: (
                    1e-8 * rng.standard_normal((m, rank)),
                    1e-8 * rng.standard_normal((rank, n)),
                ),
                "Small is not zero",
            ),
            (lambda m, n, rank, rng: (np.zeros((m, rank)), np.ones((rank, n))), "the best that rank 1 can do"),
            (lambda m, n, rank, rng: (np.ones((m, rank)), np.zeros((rank, n))), "Are the columns of left different"),
            (lambda m, n, rank, rng: (np.zeros((m, rank)), 1e-9 * rng.random((rank, n))), "hardly a gradient"),
            (lambda m, n, rank, rng: (np.zeros((m, rank)), np.full((rank, n), np.nan)), "hold nan or inf"),
            (lambda m, n, rank, rng: (np.zeros((m, rank)), 1e3 * rng.random((rank, n))), "far smaller steps"),
            (lambda m, n, rank, rng: (np.zeros((m, rank)), rng.standard_normal((n, rank))), "they must be (9, 2)"),
            (lambda m, n, rank, rng: np.zeros((m, n)), "two factors are asked for"),
        ),
    ),
    Exercise(
        name="04.degrees_of_freedom",
        goal="how many numbers settle an m × n matrix of a rank",
        solution=degrees_of_freedom,
        check=_check_degrees_of_freedom,
        hints=(
            "The factors hold rank · (m + n) numbers. Which of them are a choice that the product does not see?",
            "G is rank × rank, and any invertible one will do.",
        ),
        mistakes=(
            (lambda m, n, rank: rank * (m + n), "any invertible G can stand between them"),
            (lambda m, n, rank: m * n, "all entries"),
            (lambda m, n, rank: rank * (m + n) - 1, "less those of an r × r matrix G"),
            (lambda m, n, rank: rank * (m + n) - rank, "one scale for each layer"),
            (lambda m, n, rank: rank * min(m, n), "but it is 17"),
            (lambda m, n, rank: str(rank * (m + n - rank)), "which is text"),
        ),
    ),
)
