"""The exercises of notebook 03: energy and error, the whole curve, a budget of bytes, denoising, reading curves."""

import re
from typing import Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.course.exercises.svd_and_truncation import number_of, product_of
from lora_lab.lowrank import LowRank, choose_rank, gallery, rank_errors


def error_of_energy(energy: float) -> float:
    """Give the relative error that is left when this share of the energy is kept."""
    return np.sqrt(1 - energy)


def _check_error_of_energy(answer: Function) -> str | None:
    """Try five shares; a wrong result is compared with what the usual slips give."""
    for energy in (0.99, 0.9, 0.9999, 0.36, 1.0):
        got, right = number_of(answer(energy)), float(error_of_energy(energy))
        if np.isclose(got, right, rtol=1e-9, atol=1e-12):
            continue
        what = f"{called(answer, energy)} gives {got:.6g}"
        if np.isclose(got, 1 - energy):
            return (
                f"{what}, which is the share of the energy that is lost. Energy is a sum of SQUARES; an error is not."
            )
        if np.isclose(got, np.sqrt(energy)):
            return f"{what}: that is how much is kept. The error is what is lost."
        if np.isclose(got, 1 - np.sqrt(energy)):
            return f"{what}: the norms of what is kept and what is lost do not add up to 1. Their squares do."
        if np.isclose(got, 100 * right):
            return f"{what}, in percent it seems; a relative error is a share, here between 0 and 1."
        if np.isclose(got, np.sqrt(1 - energy / 100)):
            return f"{what}. The energy is given as a share, {energy} of 1, and not in percent: leave out the 100."
        return f"{what}, and it should be {right:.6g}. Kept and lost squares add up to 1: solve that for the error."
    return None


def errors(s: np.ndarray) -> np.ndarray:
    """Give the relative errors of ranks 0 to len(s), from the singular values alone, added up from the small end."""
    squares = np.append(s, 0.0)[::-1] ** 2  # from small to large; rank len(s) loses nothing
    tails = np.sqrt(np.cumsum(squares))[::-1]
    return tails / tails[0] if tails[0] > 0 else tails


_SPECTRA = ([4.0, 3.0], [2.0, 2.0, 2.0, 2.0], [5.0, 1e-4, 1e-10], [0.0, 0.0, 0.0])


def _check_errors(answer: Function) -> str | None:
    """Try four spectra: the first two for the formula, the third for the rounding, the last for zero over zero."""
    for values in _SPECTRA:
        s = np.array(values)
        got, right = np.asarray(answer(s.copy()), dtype=np.float64), errors(s)
        what = f"for the singular values {values}, yours gives {np.array2string(got, precision=3)}"
        if got.shape == s.shape:
            return f"{what}: {len(s)} errors, but there are {len(s) + 1} ranks, from 0 (nothing kept) to {len(s)}."
        if got.shape != right.shape:
            return f"{what}, of shape {got.shape}; asked for is one error for each rank 0 to {len(s)}, {right.shape}."
        if np.allclose(got, right, rtol=1e-6, atol=0):
            continue
        return f"{what}. {_reason_for_errors(got, right, s)}"
    return None


def _reason_for_errors(got: np.ndarray, right: np.ndarray, s: np.ndarray) -> str:
    """Say which slip gives these errors."""
    if not s.any():
        return "The zero matrix is 0 / 0. Nothing of it is lost at any rank: its errors are 0."
    if np.isnan(got).any() or np.allclose(got, right, rtol=0, atol=1e-6):
        return (
            f"The small errors are lost in rounding: rank {len(s) - 1} should leave {right[-2]:.0e}. 1 minus something "
            "near 1 has no digits left. Add up the squares of what is lost, from the small end."
        )
    if np.allclose(got, right[::-1]) or got[0] < got[-1]:
        return "An error falls with the rank. Rank 0 keeps nothing, so its error is 1."
    if np.allclose(got, right**2):
        return "That is the share of the squares that is lost. The error is its root."
    if np.allclose(got, right * np.linalg.norm(s)):
        return "Those are the norms of what is lost. Divide by the norm of all."
    should = np.array2string(right, precision=3)
    return f"It should be {should}: the root of the sum of the squares that are lost, divided by that of all."


def spend(W: np.ndarray, size: int) -> LowRank:
    """Give the best factors of W, in float32, that take ``size`` bytes at most."""
    m, n = W.shape
    rank = min(size // (4 * (m + n)), m, n)
    return LowRank.from_svd(W.astype(np.float32), rank)


def _check_spend(answer: Function) -> str | None:
    """Try three shapes and budgets; the last budget would pay for more than the full rank."""
    rng = np.random.default_rng(0)
    for m, n, size in ((60, 40, 5_000), (30, 90, 3_839), (12, 10, 10_000)):
        W = gallery.noisy_low_rank(m, n, 4, noise=0.2, rng=rng)
        if wrong := _wrong_purchase(answer(W.copy(), size), W, size):
            return f"{called(answer, W, size)}: {wrong}"
    return None


def _wrong_purchase(result: Any, W: np.ndarray, size: int) -> str | None:
    """Say what is wrong with the factors: their kind, their bytes, their rank, their error."""
    m, n = W.shape
    if isinstance(result, LowRank):
        result = result.left, result.right
    if not isinstance(result, tuple | list) or len(result) != 2:
        kind = type(result).__name__ + (f" of {len(result)}" if isinstance(result, tuple | list) else "")
        more = " The singular values belong into one of the factors." if kind.endswith("of 3") else ""
        return f"a LowRank or the pair of its factors is asked for; yours is {kind}.{more}"
    left, right = (np.asarray(factor) for factor in result)
    if left.shape[0] != m or right.shape[-1] != n or left.shape[1:] != right.shape[:1]:
        return f"left is {left.shape} and right is {right.shape}; they should be ({m}, r) and (r, {n})."
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return "the factors hold nan or inf. Was something divided by zero?"
    rank, best = left.shape[1], min(size // (4 * (m + n)), m, n)
    cost = f"rank {rank} has {rank} · ({m} + {n}) = {rank * (m + n):,} numbers"
    if left.nbytes + right.nbytes > size:
        more = "" if left.dtype == np.float32 or rank != best else " W is float64: turn it into float32 first."
        return f"{cost}, which take {left.nbytes + right.nbytes:,} bytes in {left.dtype}. The budget is {size:,}.{more}"
    if left.dtype != np.float32 or right.dtype != np.float32:
        return f"the factors are to be float32; yours are {left.dtype} and {right.dtype}."
    if rank < best:
        return f"{cost}, {4 * rank * (m + n):,} bytes in float32. That leaves bytes unspent: rank {best} fits too."
    error = np.linalg.norm(W - left.astype(np.float64) @ right) / np.linalg.norm(W)
    right_error = rank_errors(W)[rank]
    if error > right_error * 1.001 + 1e-5:
        return f"at rank {rank} yours loses {error:.1%} and the best factors lose {right_error:.1%}. Use the SVD."
    return None


def _first_columns(W: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the mistake of keeping some columns: as many numbers as allowed, but not the best ones."""
    rank = size // (4 * sum(W.shape))
    return W[:, :rank].astype(np.float32), np.eye(rank, W.shape[1], dtype=np.float32)


def denoise(W: np.ndarray) -> np.ndarray:
    """Give the best approximation of W at the rank where Gavish and Donoho's threshold sees the noise begin."""
    return LowRank.from_svd(W, choose_rank(W, noise="unknown")).dense()


_PLANTED = ((60, 50, 3, 0.3), (120, 80, 6, 0.5), (40, 90, 1, 1.0), (100, 100, 10, 0.2))  # m, n, rank, noise


def _check_denoise(answer: Function) -> str | None:
    """Try four noisy matrices whose clean ones are known here: the answer must come near the best rank's error."""
    for seed, (m, n, rank, noise) in enumerate(_PLANTED):
        clean = gallery.noisy_low_rank(m, n, rank, noise=0.0, rng=np.random.default_rng(seed))
        W = gallery.noisy_low_rank(m, n, rank, noise=noise, rng=np.random.default_rng(seed))
        got = np.asarray(product_of(answer(W.copy())), dtype=np.float64)
        if got.shape != W.shape:
            return f"the denoised matrix is asked for, of shape {W.shape}; yours has shape {got.shape}."
        if not np.isfinite(got).all():
            return f"{called(answer, W)} holds nan or inf. Was something divided by zero?"
        mine, best, none = (_distance(X, clean) for X in (got, LowRank.from_svd(W, rank).dense(), W))
        if mine > 1.1 * best:
            reason = _reason_for_noise(got, W, mine, none, rank)
            return (
                f"{called(answer, W)}: yours is {mine:.0%} away from the clean matrix, W itself {none:.0%}, and the "
                f"best rank {best:.0%}. {reason}"
            )
    return None


def _distance(X: np.ndarray, clean: np.ndarray) -> float:
    """Give the relative Frobenius error."""
    return float(np.linalg.norm(X - clean) / np.linalg.norm(clean))


def _reason_for_noise(got: np.ndarray, W: np.ndarray, mine: float, none: float, rank: int) -> str:
    """Say on which side the answer errs."""
    if np.allclose(got, W):
        return "You gave W back, noise and all."
    kept = np.linalg.matrix_rank(got)
    if kept < rank:
        return f"Yours has rank {kept}: it has thrown away signal. Look at the singular values: how many stand out?"
    if kept > rank:
        return (
            f"Yours has rank {kept}: it has kept noise. Most of the energy of W may be noise, so neither energy nor "
            "error to W says where to stop. Where do the singular values begin to look like those of pure noise?"
        )
    return "The rank is right, so the approximation is not the best one of that rank. Use the SVD."


def which_curve() -> list[str]:
    """Give the curves of the addition table, Hadamard, Hilbert, |i − j|, and the identity with its rows shuffled."""
    return ["C", "A", "B", "D", "A"]


_CURVE_REASONS = (
    ("the addition table", "i + j is two layers, so nothing is lost at rank 2. Which curve is 0 there?"),
    ("the Hadamard matrix", "its layers are all equally large, so its squared error falls on a straight line."),
    ("the Hilbert matrix", "it has full rank, so it is never exactly 0, but no other curve falls as fast for long."),
    ("|i − j|", "it has full rank, and a fold along the diagonal that no few layers can make."),
    (
        "the shuffled identity",
        "a shuffle of rows turns the singular vectors and leaves the singular values alone, and those of the identity "
        "are all 1. Two of the matrices may share a curve.",
    ),
)


def _check_which_curve(answer: Any) -> str | None:
    """Compare the five letters one by one; the first that is wrong gets its reason."""
    letters, right = re.findall(r"\w", answer) if isinstance(answer, str) else list(answer), which_curve()
    if len(letters) != len(right):
        return f"there are {len(right)} matrices, so the answer has {len(right)} letters; yours has {len(letters)}."
    for (matrix, reason), mine, letter in zip(_CURVE_REASONS, letters, right, strict=True):
        if mine is None or mine is Ellipsis:
            return f"so far so good; the curve of {matrix} is still blank."
        if str(mine).strip().upper() != letter:
            return f"the curve of {matrix} is not {mine}: {reason}"
    return None


EXERCISES = (
    Exercise(
        name="03.energy_to_error",
        goal="a function of the kept share of the energy that returns the relative error",
        solution=error_of_energy,
        check=_check_error_of_energy,
        hints=(
            "Energy is the sum of the squared singular values. What is the sum of the squares that are lost?",
            "The error squared is 1 minus the energy.",
        ),
        mistakes=(
            (lambda energy: 1 - energy, "Energy is a sum of SQUARES"),
            (lambda energy: energy**0.5, "The error is what is lost"),
            (lambda energy: 1 - energy**0.5, "do not add up to 1. Their squares do"),
            (lambda energy: 100 * (1 - energy) ** 0.5, "in percent it seems"),
            (lambda energy: (1 - energy) ** 2, "solve that for the error"),
            (lambda energy: (1 - energy / 100) ** 0.5, "and not in percent"),
            (lambda energy: round((1 - energy) ** 0.5, 2), "it should be 0.316228"),
        ),
    ),
    Exercise(
        name="03.curve",
        points=2,
        goal="a function of the singular values that returns the relative error of every rank",
        solution=errors,
        check=_check_errors,
        hints=(
            "At rank r the singular values after the first r are lost. Squares add up; roots do not.",
            "np.cumsum adds up from the front. s[::-1] turns s around, so that the small values come first.",
            "Put a 0 behind the singular values, for the rank at which nothing is lost. And what is 0 / 0 to be?",
        ),
        mistakes=(
            (
                lambda s: np.sqrt(np.maximum(0, 1 - np.append(0, np.cumsum(s**2)) / max(np.sum(s**2), 1e-300))),
                "The small errors are lost in rounding",
            ),
            (lambda s: np.sqrt(np.cumsum(s[::-1] ** 2))[::-1] / np.linalg.norm(s), "2 errors, but there are 3 ranks"),
            (lambda s: np.append(0, np.sqrt(np.cumsum(s**2))) / np.linalg.norm(s), "An error falls with the rank"),
            (lambda s: errors(s) ** 2, "The error is its root"),
            (lambda s: errors(s) * np.linalg.norm(s), "Divide by the norm of all"),
            (lambda s: np.append(np.cumsum(s[::-1])[::-1], 0) / s.sum(), "the root of the sum of the squares"),
            (
                lambda s: np.sqrt(np.cumsum(np.append(s, 0)[::-1] ** 2))[::-1] / (np.linalg.norm(s) or np.nan),
                "The zero matrix is 0 / 0",
            ),
            (lambda s: errors(s) if s.any() else np.ones(len(s) + 1), "The zero matrix is 0 / 0"),
            (lambda s: float(s[0]), "one error for each rank"),
        ),
    ),
    Exercise(
        name="03.budget",
        points=2,
        goal="a function of W and a number of bytes that returns the best factors that fit, in float32",
        solution=spend,
        check=_check_spend,
        hints=(
            "A number in float32 takes 4 bytes, and the factors of rank r hold r · (m + n) numbers.",
            "W.astype(np.float32) before the SVD gives factors in float32. And a rank is at most min(m, n).",
        ),
        mistakes=(
            (lambda W, size: LowRank.from_svd(W, min(size // (4 * sum(W.shape)), *W.shape)), "turn it into float32"),
            (lambda W, size: LowRank.from_svd(W.astype("f4"), min(size // sum(W.shape), *W.shape)), "The budget is"),
            (lambda W, size: LowRank.from_svd(W.astype("f4"), size // (4 * W.size)), "leaves bytes unspent"),
            (lambda W, size: LowRank.from_svd(W.astype("f4"), size // (4 * sum(W.shape))), "stopped with ValueError"),
            (lambda W, size: size // (4 * sum(W.shape)), "a LowRank or the pair of its factors is asked for"),
            (lambda W, size: (W[:, :2], W[:2].T), "they should be"),
            (lambda W, size: (W[:, :2].astype("f2"), W[:2].astype("f2")), "the factors are to be float32"),
            (lambda W, size: np.linalg.svd(W.astype("f4"), full_matrices=False), "belong into one of the factors"),
            (_first_columns, "Use the SVD"),
            (lambda W, size: (np.full((W.shape[0], 2), np.nan), np.ones((2, W.shape[1]))), "hold nan or inf"),
        ),
    ),
    Exercise(
        name="03.denoise",
        points=2,
        goal="a function of a noisy matrix that returns it with most of the noise gone",
        solution=denoise,
        check=_check_denoise,
        hints=(
            "Print singular_values(W) of a gallery.noisy_low_rank of your own: a few stand out, the rest crowd.",
            "The size of the noise is not known here. One of the four ways to choose a rank does not need it.",
        ),
        mistakes=(
            (lambda W: W, "You gave W back"),
            (lambda W: LowRank.from_svd(W, 1).dense(), "it has thrown away signal"),
            (lambda W: LowRank.from_svd(W, choose_rank(W, energy=0.99)).dense(), "it has kept noise"),
            (lambda W: LowRank.from_svd(W, choose_rank(W, error=0.2)).dense(), "it has kept noise"),
            (lambda W: choose_rank(W, noise="unknown"), "the denoised matrix is asked for"),
            (lambda W: W * np.nan, "holds nan or inf"),
            (lambda W: LowRank.from_svd(W, choose_rank(W, noise="unknown")).dense() / 2, "The rank is right"),
        ),
    ),
    Exercise(
        name="03.which_curve",
        points=2,
        goal="a list of five letters",
        value=True,
        solution=which_curve,
        check=_check_which_curve,
        hints=(
            "Which of the matrices has a low rank exactly? Its curve reaches 0 there.",
            "Two of the matrices are orthogonal but for a factor: all their singular values are equal.",
            "Of the two that are left, one is smooth everywhere and one has a fold.",
        ),
        mistakes=(
            (["B", "A", "C", "D", "A"], "nothing is lost at rank 2"),
            (["C", "D", "B", "A", "A"], "all equally large"),
            (["C", "A", "D", "B", "A"], "no other curve falls as fast"),
            (["C", "A", "B", "B", "A"], "a fold along the diagonal"),
            (["C", "A", "B", "D", "D"], "Two of the matrices may share a curve"),
            (["C", "A", "B", "D"], "the answer has 5 letters"),
            (["C", "A", "B", "D", None], "still blank"),
        ),
    ),
)
