"""The exercises of notebook 02: cut, weigh, know the error before the cut, fix signs, fit the other factor."""

import itertools
from typing import Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.lowrank import LowRank, gallery, rank_errors


def best(W: np.ndarray, rank: int) -> np.ndarray:
    """Give the matrix of rank ``rank`` that is closest to W: the first layers of its SVD."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vt[:rank]


def _check_truncate(answer: Function) -> str | None:
    """Try a tall matrix, a wide one and a table, and look for what the wrong ones were made of."""
    rng = np.random.default_rng(0)
    for W, rank in (
        (rng.standard_normal((6, 4)), 2),
        (rng.standard_normal((4, 7)), 1),
        (gallery.distance_table(5).astype(np.float64), 3),
    ):
        if wrong := _wrong_truncation(product_of(answer(W.copy(), rank)), W, rank):
            return f"{called(answer, W, rank)}: {wrong}"
    return None


def number_of(result: Any) -> float:
    """Give the number behind an answer: a number, or an array that holds one."""
    return float(np.asarray(result, dtype=np.float64).reshape(()))


def product_of(result: Any) -> np.ndarray:
    """Give the matrix behind an answer: an array, a LowRank, (left, right), or (U, s, Vt)."""
    if isinstance(result, tuple | list):
        dimensions = [np.ndim(part) for part in result]
        if dimensions == [2, 2]:
            return np.asarray(result[0]) @ np.asarray(result[1])
        if dimensions == [2, 1, 2]:
            U, s, Vt = (np.asarray(part) for part in result)
            return U * s @ Vt
    return np.asarray(result)


def _wrong_truncation(result: np.ndarray, W: np.ndarray, rank: int) -> str | None:
    """Say what a matrix is that is not the best one of that rank."""
    if result.shape != W.shape:
        return f"the best matrix is as large as W, {W.shape}; yours has shape {result.shape}."
    if np.allclose(result, best(W, rank)):
        return None
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    for made_of, reason in (
        (U[:, :rank] @ Vt[:rank], "the singular values are missing: U[:, :r] @ Vt[:r] has layers all of size 1."),
        (
            U[:, :rank] * np.sqrt(s[:rank]) @ Vt[:rank],
            "√s is in one factor only. It takes √s in both, or s in one.",
        ),
        (U[:, -rank:] * s[-rank:] @ Vt[-rank:], "you kept the smallest singular values; s runs from large to small."),
        (best(W, rank + 1), f"that is the best matrix of rank {rank + 1}. Which indices does the slice take?"),
        (best(W, rank - 1), f"that is the best matrix of rank {rank - 1}. Which indices does the slice take?"),
        (best(W, rank) - best(W, rank - 1), f"that is layer {rank} alone. The best matrix of rank {rank} is a sum."),
        (W, f"that is W itself, of rank {len(s)}: nothing was cut."),
        (
            U[:, :rank] * s[:rank] @ Vt[:, :rank].T[:, : W.shape[1]] if W.shape[1] == len(s) else W,
            "you took columns of Vt, but the singular vectors are its ROWS: V is stored turned, as Vt.",
        ),
    ):
        if np.allclose(result, made_of):
            return reason
    error = np.linalg.norm(W - result) / np.linalg.norm(W)
    return f"its relative error is {error:.3f}, and rank {rank} can do with {rank_errors(W)[rank]:.3f}."


def _columns_of_vt(W: np.ndarray, rank: int) -> np.ndarray:
    """Make the mistake of cutting columns off Vt, as off U."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vt[:, :rank].T


def _parts(W: np.ndarray, rank: int, scale: Function = lambda s: s) -> np.ndarray:
    """Cut all three parts rightly, and make a mistake with the singular values."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * scale(s[:rank]) @ Vt[:rank]


def rank_for(W: np.ndarray, share: float) -> int:
    """Give the smallest rank whose layers carry at least that share of the energy, the sum of s²."""
    s = np.linalg.svd(W, compute_uv=False)
    carried = np.cumsum(s**2) / np.sum(s**2)
    return int(np.argmax(carried >= share)) + 1


def _energies(W: np.ndarray, total: float | None = None) -> np.ndarray:
    """Give the share of each layer, σₖ² over the sum of all σ²; or make the mistake of dividing by another total."""
    squares = np.linalg.svd(W, compute_uv=False) ** 2
    return squares / (np.sum(squares) if total is None else total)


def _check_energy(answer: Function) -> str | None:
    """Try matrices whose singular values can be read off, and one where they cannot."""
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 4)))
    for W, values, share in (
        (turned * [9.0, 2.0, 1.0, 0.1], "9, 2, 1, 0.1", 0.9),
        (turned * [0.5, 0.5, 0.4, 0.1], "0.5, 0.5, 0.4, 0.1", 0.6),
        (np.diag([3.0, 2.0, 1.0]), "3, 2, 1", 0.6),
        (np.diag([3.0, 2.0, 1.0]), "3, 2, 1", 0.9),
        (np.diag([1.0, 2.0, 3.0]), "3, 2, 1", 0.95),
        (turned * [9.0, 9.0, 9.0, 9.0], "9, 9, 9, 9", 0.7),
    ):
        got, right = answer(W.copy(), share), rank_for(W, share)
        what = f"{called(answer, W, share)}, where s is {values}, gives"
        if np.ndim(got):
            return f"{what} {len(got)} values: one is asked for. np.argmax of booleans gives the index of the first."
        if got != right:
            return f"{what} {got}: {_wrong_energy(got, W, share)}"
    return None


def _wrong_energy(got: Any, W: np.ndarray, share: float) -> str:
    """Say which other question a wrong rank answers."""
    s = np.linalg.svd(W, compute_uv=False)
    right = rank_for(W, share)
    if isinstance(got, str) or not float(got).is_integer():
        return "a rank is asked for, a whole number."
    if got == np.argmax(np.cumsum(s**2) >= share) + 1:
        return "energy is a share: divide the sum of s² by the sum of all s²."
    if got == np.argmax(s**2 / np.sum(s**2) >= share) + 1:
        return f"no layer alone need carry {share:.0%}. Add up the energies of the first layers."
    if got == right - 1:
        carried = np.sum(s[: right - 1] ** 2) / np.sum(s**2)
        layers = "1 layer carries" if got == 1 else f"{got} layers carry"
        return f"{layers} {carried:.0%}, which is less than {share:.0%}. An index counts from 0, a rank from 1."
    if got == np.argmax(np.cumsum(s) / s.sum() >= share) + 1:
        return "you added up s; energy is the sum of the SQUARES, s²."
    if got == np.argmax(rank_errors(W) <= 1 - share):
        return f"there the relative error is below {1 - share:.0%}; energy is a share of squares, which asks for less."
    return f"rank {right} already carries {np.sum(s[:right] ** 2) / np.sum(s**2):.0%}."


def error_from_tail(s: np.ndarray, rank: int) -> float:
    """Give the relative Frobenius error of the best matrix of that rank, from the singular values alone."""
    return float(np.linalg.norm(s[rank:]) / np.linalg.norm(s))


def _check_error_from_tail(answer: Function) -> str | None:
    """Try a few ranks, nothing kept, everything kept, and a tail that is small against what is kept."""
    for values, rank in (
        ([4.0, 2.0, 2.0, 1.0], 1),
        ([4.0, 2.0, 2.0, 1.0], 3),
        ([3.0, 3.0], 0),
        ([3.0, 2.0], 2),
        ([1.0, 1e-9], 1),
    ):
        s = np.array(values)
        got, right = number_of(answer(s.copy(), rank)), error_from_tail(s, rank)
        if not np.isclose(got, right, rtol=1e-6, atol=1e-15):
            what = f"{called(answer, s, rank)}, where s is {', '.join(f'{x:g}' for x in s)}, gives {got:.3g}"
            return f"{what}: {_wrong_tail(got, s, rank)}"
    return None


def _wrong_tail(got: float, s: np.ndarray, rank: int) -> str:
    """Say which other measure a wrong error is."""
    tail, right = s[rank:], error_from_tail(s, rank)
    begins = f"the tail begins at s[{rank}], after {rank} {'value' if rank == 1 else 'values'}."
    if 0 < right < 1e-6:
        return (
            f"it should be {right:.3g}. A rounded number has no digits left for it, nor has 1 − (nearly 1): "
            "add up the tail itself."
        )
    for value, reason in (
        (np.sum(tail**2) / np.sum(s**2), "that is the share of the squares which is lost. The error is its root."),
        (np.sum(tail) / np.sum(s), "you added up s. The Frobenius norm adds up squares, and takes the root."),
        (np.linalg.norm(s[:rank]) / np.linalg.norm(s), "that is what is kept. What is lost are the values AFTER them."),
        (np.linalg.norm(tail), "divide by the norm of W, which is the norm of all of s, to make it relative."),
        (np.max(tail, initial=0) / s[0], "that is the spectral norm: the largest value lost, over the largest of all."),
        (np.linalg.norm(s[rank + 1 :]) / np.linalg.norm(s), begins),
        (np.linalg.norm(s[max(rank - 1, 0) :]) / np.linalg.norm(s), begins),
        (
            np.linalg.norm(tail) / (np.linalg.norm(s[:rank]) or np.inf),
            "divide by the norm of W, which is the norm of all of s, not of what is kept.",
        ),
        (np.linalg.norm(tail) / np.sum(s), "divide by the norm of W: squares of all of s, added up, and the root."),
        (
            1 - np.linalg.norm(s[:rank]) / np.linalg.norm(s),
            "the norms of what is kept and what is lost do not add up to 1. Their squares do.",
        ),
        (100 * right, "that is the error in percent; a relative error is a share, here between 0 and 1."),
    ):
        if np.isclose(got, value, rtol=1e-6, atol=0):
            return reason
    return f"it should be {right:.3g}. Which values are lost, and what is their norm?"


def fix_signs(U: np.ndarray, Vt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip pairs (column of U, row of Vt) so that in each column of U the largest entry is positive."""
    largest = np.abs(U).argmax(axis=0)  # (r,)
    signs = np.sign(U[largest, np.arange(U.shape[1])])
    return U * signs, Vt * signs[:, None]


def _check_signs(answer: Function) -> str | None:
    """Flip the pairs of three decompositions in every way: the result must stay the same, and so must the product."""
    rng = np.random.default_rng(0)
    swapped = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # its first column begins with 0
    turned = np.array([[0.6, 0.8], [-0.8, 0.6]])
    for U, s, Vt in (
        np.linalg.svd(rng.standard_normal((5, 3)), full_matrices=False),
        np.linalg.svd(rng.standard_normal((3, 4)), full_matrices=False),
        (swapped, np.array([2.0, 1.0]), turned),
    ):
        first = None
        for flips in itertools.product((1.0, -1.0), repeat=len(s)):
            signs = np.array(flips)
            result = answer(U * signs, Vt * signs[:, None])
            wrong = _wrong_signs(result, first, U, s, Vt)
            if wrong:
                return f"{called(answer, U, Vt)}: {wrong}"
            first = result if first is None else first
    return None


def _wrong_signs(result: Any, first: Any, U: np.ndarray, s: np.ndarray, Vt: np.ndarray) -> str | None:
    """Say what is wrong with a pair of factors, compared with the decomposition and with the first answer."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return f"two arrays are asked for, U and Vt; yours is {type(result).__name__}."
    fixed_U, fixed_Vt = (np.asarray(part) for part in result)
    if fixed_U.shape != U.shape or fixed_Vt.shape != Vt.shape:
        return f"U is {U.shape} and Vt is {Vt.shape}; yours are {fixed_U.shape} and {fixed_Vt.shape}."
    for k in range(len(s)):
        if not (fixed_U[:, k].any() and fixed_Vt[k].any()):
            return f"pair {k + 1} became all zeros: np.sign(0) is 0. Look at an entry that is surely not 0."
    if not np.allclose(fixed_U * s @ fixed_Vt, U * s @ Vt):
        if np.allclose(np.abs(fixed_U), np.abs(U)) and np.allclose(np.abs(fixed_Vt), np.abs(Vt)):
            return "the product U * s @ Vt changed. A column of U and the same ROW of Vt must be flipped together."
        return "the product U * s @ Vt changed. Only whole columns of U and rows of Vt may be flipped."
    if first is not None and not (np.allclose(fixed_U, first[0]) and np.allclose(fixed_Vt, first[1])):
        zero = " Here U[0, 0] is 0: does your rule see a sign in it?" if U[0, 0] == 0 else ""
        return (
            "the same SVD with some pairs flipped gives another result. Where a pair is flipped, the sign that your "
            f"rule finds for it must flip too.{zero}"
        )
    return None


def _flip_by_rule(U: np.ndarray, Vt: np.ndarray, signs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Multiply columns of U and rows of Vt by signs: right in form, whatever the signs are."""
    signs = np.broadcast_to(np.asarray(signs), U.shape[1:])
    return U * signs, Vt * signs[:, None]


def _flip_columns_of_both(U: np.ndarray, Vt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the mistake of flipping columns of Vt, as of U."""
    signs = np.sign(U[np.abs(U).argmax(axis=0), np.arange(U.shape[1])])
    return U * signs, Vt * np.resize(signs, Vt.shape[1])


def best_right(W: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Give the right (r, n) that makes ``left @ right`` closest to W: least squares, one column of W at a time."""
    return np.linalg.lstsq(left, W, rcond=None)[0]


def _check_best_right(answer: Function) -> str | None:
    """Try a tall, a wide and a rank-1 case; the left factors are not orthonormal."""
    rng = np.random.default_rng(0)
    for m, n, rank in ((6, 4, 2), (4, 7, 3), (5, 5, 1)):
        W, left = rng.standard_normal((m, n)), rng.standard_normal((m, rank))
        result = answer(W.copy(), left.copy())
        if isinstance(result, tuple):
            lstsq = "; np.linalg.lstsq returns four things, the first is the answer" if len(result) == 4 else ""
            return f"{called(answer, W, left)} gives a tuple of {len(result)}, and one matrix is asked for{lstsq}."
        right = np.asarray(result)
        if wrong := _wrong_right(right, W, left):
            return f"{called(answer, W, left)}: {wrong}"
    return None


def _wrong_right(right: np.ndarray, W: np.ndarray, left: np.ndarray) -> str | None:
    """Say what is wrong with a right factor."""
    wanted = best_right(W, left)
    if right.shape != wanted.shape:
        turn = " Turn it." if right.shape == wanted.T.shape else ""
        return f"left is {left.shape}, so right must be {wanted.shape}; yours is {right.shape}.{turn}"
    if np.allclose(right, wanted):
        return None
    if np.allclose(right, left.T @ W):
        return "left.T @ W would be right if the columns of left were perpendicular and of length 1. They are not."
    _, s, Vt = (part[: left.shape[1]] for part in np.linalg.svd(W, full_matrices=False))
    if any(np.allclose(np.abs(right), np.abs(Vt * s[:, None] ** power)) for power in (0, 0.5, 1)):
        return "those rows of Vt are the best partner of the SVD's own left, not of this one."
    error, least = (np.linalg.norm(W - left @ R) / np.linalg.norm(W) for R in (right, wanted))
    return f"its relative error is {error:.3f}, and {least:.3f} is possible with this left."


EXERCISES = (
    Exercise(
        name="02.truncate",
        points=2,
        goal="a function of W and rank that returns the closest matrix of that rank",
        solution=best,
        check=_check_truncate,
        hints=(
            "np.linalg.svd(W, full_matrices=False) gives U, s and Vt; s runs from large to small.",
            "Keep the first columns of U, the first entries of s, and the first ROWS of Vt, then multiply.",
        ),
        mistakes=(
            (lambda W, rank: _parts(W, rank, np.ones_like), "the singular values are missing"),
            (lambda W, rank: _parts(W, rank, np.sqrt), "√s is in one factor only"),
            (lambda W, rank: W - best(W, min(W.shape) - rank), "you kept the smallest singular values"),
            (lambda W, rank: best(W, rank + 1), "that is the best matrix of rank 3"),
            (lambda W, rank: best(W, rank - 1), "that is the best matrix of rank 1"),
            (lambda W, rank: best(W, rank) - best(W, rank - 1), "that is layer 2 alone"),
            (lambda W, rank: W, "nothing was cut"),
            (_columns_of_vt, "you took columns of Vt"),
            (lambda W, rank: W[:rank, :rank], "yours has shape (2, 2)"),
            (lambda W, rank: _parts(W, rank, np.square), "and rank 2 can do with"),
        ),
    ),
    Exercise(
        name="02.energy",
        points=2,
        goal="a function of W and share that returns the smallest rank that keeps this share of the energy",
        solution=rank_for,
        check=_check_energy,
        hints=(
            "np.linalg.svd(W, compute_uv=False) gives s alone. The energy of a layer is its s².",
            "np.cumsum(s**2) is the energy of the first 1, 2, 3, ... layers. Divide by the energy of all.",
            "np.argmax of booleans gives the first index that is True; the rank is that index plus 1.",
        ),
        mistakes=(
            (lambda W, share: rank_for(W, share) - 1, "An index counts from 0"),
            (
                lambda W, share: np.argmax(np.cumsum(s := np.linalg.svd(W, compute_uv=False)) / s.sum() >= share) + 1,
                "the sum of the SQUARES",
            ),
            (lambda W, share: np.argmax(rank_errors(W) <= 1 - share), "a share of squares, which asks for less"),
            (lambda W, share: 1 - rank_errors(W)[1] ** 2, "a whole number"),
            (lambda W, share: min(W.shape), "rank 1 already carries"),
            (lambda W, share: "2", "a whole number"),
            (lambda W, share: _energies(W).cumsum() >= share, "gives 4 values: one is asked for"),
            (lambda W, share: np.argmax(_energies(W, total=1.0).cumsum() >= share) + 1, "divide the sum of s²"),
            (lambda W, share: np.argmax(_energies(W) >= share) + 1, "Add up the energies of the first layers"),
        ),
    ),
    Exercise(
        name="02.error_from_tail",
        goal="a function of s and rank that returns the relative Frobenius error of the best matrix of that rank",
        solution=error_from_tail,
        check=_check_error_from_tail,
        hints=(
            "The matrix that is lost has the singular values s[rank:].",
            "The Frobenius norm of a matrix is np.linalg.norm of its singular values.",
        ),
        mistakes=(
            (lambda s, rank: np.sum(s[rank:] ** 2) / np.sum(s**2), "The error is its root"),
            (lambda s, rank: np.sum(s[rank:]) / np.sum(s), "adds up squares"),
            (lambda s, rank: np.linalg.norm(s[:rank]) / np.linalg.norm(s), "that is what is kept"),
            (lambda s, rank: np.linalg.norm(s[rank:]), "to make it relative"),
            (lambda s, rank: s[rank] / s[0], "that is the spectral norm"),
            (lambda s, rank: np.linalg.norm(s[rank + 1 :]) / np.linalg.norm(s), "the tail begins at s[1]"),
            (lambda s, rank: np.linalg.norm(s[max(rank - 1, 0) :]) / np.linalg.norm(s), "at s[1], after 1 value."),
            (lambda s, rank: np.linalg.norm(s[rank:]) / np.linalg.norm(s[:rank]), "not of what is kept"),
            (lambda s, rank: np.linalg.norm(s[rank:]) / s.sum(), "divide by the norm of W: squares"),
            (lambda s, rank: round(np.linalg.norm(s[rank:]) / np.linalg.norm(s), 4), "A rounded number"),
            (lambda s, rank: np.sqrt(1 - np.sum(s[:rank] ** 2) / np.sum(s**2)), "add up the tail itself"),
            (lambda s, rank: 1 - np.linalg.norm(s[:rank]) / np.linalg.norm(s), "Their squares do"),
            (lambda s, rank: 100 * np.linalg.norm(s[rank:]) / np.linalg.norm(s), "in percent"),
            (lambda s, rank: 0.7, "Which values are lost"),
        ),
    ),
    Exercise(
        name="02.signs",
        points=2,
        goal="a function of U and Vt that returns both with their signs fixed",
        solution=fix_signs,
        check=_check_signs,
        hints=(
            "Find one sign for each column of U, from an entry that is not 0, and multiply the column by it.",
            "np.abs(U).argmax(axis=0) is the row of the largest entry of each column.",
            "U * signs flips columns. Vt * signs[:, None] flips rows.",
        ),
        mistakes=(
            (lambda U, Vt: (fix_signs(U, Vt)[0], Vt), "must be flipped together"),
            (_flip_columns_of_both, "must be flipped together"),
            (lambda U, Vt: (U, Vt), "the sign that your rule finds for it must flip too"),
            (lambda U, Vt: (-U, -Vt), "the sign that your rule finds for it must flip too"),
            (lambda U, Vt: _flip_by_rule(U, Vt, np.sign(U.sum())), "must flip too"),
            (lambda U, Vt: _flip_by_rule(U, Vt, np.sign(U.max(axis=0))), "must flip too"),
            (lambda U, Vt: _flip_by_rule(U, Vt, np.where(U[0] < 0, -1, 1)), "Here U[0, 0] is 0"),
            (lambda U, Vt: _flip_by_rule(U, Vt, np.sign(U[0])), "np.sign(0) is 0"),
            (lambda U, Vt: (np.abs(U), np.abs(Vt)), "must be flipped together"),
            (lambda U, Vt: (np.sign(U), np.sign(Vt)), "Only whole columns"),
            (lambda U, Vt: fix_signs(U, Vt)[0], "two arrays are asked for"),
            (lambda U, Vt: (U.T, Vt.T), "yours are (3, 5) and (3, 3)"),
        ),
    ),
    Exercise(
        name="02.best_right",
        points=2,
        goal="a function of W and left that returns the best right",
        solution=best_right,
        check=_check_best_right,
        hints=(
            "left @ right = W has too many equations to be solved. What gives the least squared error?",
            "np.linalg.lstsq(left, W) solves it for all columns of W at once; np.linalg.pinv does too.",
        ),
        mistakes=(
            (lambda W, left: left.T @ W, "if the columns of left were perpendicular"),
            (lambda W, left: best_right(W, left).T, "Turn it."),
            (lambda W, left: np.linalg.lstsq(left, W), "returns four things"),
            (lambda W, left: np.linalg.svd(W, full_matrices=False)[2][: left.shape[1]], "the SVD's own left"),
            (lambda W, left: LowRank.from_svd(W, left.shape[1]).right, "the SVD's own left"),
            (lambda W, left: left.T @ W / np.sum(left**2), "is possible with this left"),
            (lambda W, left: np.linalg.solve(left, W), "stopped with LinAlgError"),
            (lambda W, left: left @ np.linalg.pinv(left) @ W, "so right must be (2, 4)"),
        ),
    ),
)
