"""The singular value decomposition, cut off at a rank, and the error that the cut leaves."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_lab.lowrank._arguments import Matrix, as_nonempty_matrix, as_rank


def truncated_svd(W: ArrayLike, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """Give the leading singular vectors and values (U, s, Vt): ``U * s @ Vt`` is the best rank-``rank`` matrix near W.

    "Best" is in the Frobenius and in the spectral norm at once: no matrix of that rank is closer to W.

    Signs: each singular vector pair may be flipped, u and v together, so a sign is fixed for you. In each column of
    U the entry that is largest in magnitude is positive; among entries that tie, within the rounding of the
    decomposition, the first one is. Ties between singular values are another matter: their singular vectors can be
    any orthonormal basis of the same subspace, and no sign rule makes that basis unique. The same holds for the
    singular vectors of zero singular values.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry. float32 stays float32 throughout; integers are
            taken as float64 and float16 as float32.
        rank: How many singular values to keep, 0 ≤ rank ≤ min(m, n).

    Returns:
        U (m, rank) with orthonormal columns, s (rank,) from large to small, Vt (rank, n) with orthonormal rows.

    Raises:
        TypeError: If W does not hold real numbers, or rank is not a whole number.
        ValueError: If W is not a finite matrix, its singular values overflow its dtype, or rank is out of range.

    Source:
        Eckart and Young (1936), "The approximation of one matrix by another of lower rank", Psychometrika 1;
        Mirsky (1960) for all unitarily invariant norms.
    """
    W = as_nonempty_matrix(W, "W")
    rank = as_rank(rank, *W.shape)
    scaled, exponent = _scaled(W)
    U, s, Vt = np.linalg.svd(scaled, full_matrices=False)  # (m, min(m, n)), (min(m, n),), (min(m, n), n)
    with np.errstate(over="ignore"):
        s = np.ldexp(s[:rank], exponent)
    if not np.isfinite(s).all():
        raise ValueError(f"the largest singular value of W is beyond {W.dtype}: divide W by a constant first")
    signs = _signs(U[:, :rank])
    return U[:, :rank] * signs, s, Vt[:rank] * signs[:, None]


def rank_errors(W: ArrayLike, norm: Literal["fro", "spectral"] = "fro") -> NDArray[np.float64]:
    """Give the relative error of the best approximation at every rank: ``errors[r] = ‖W - W_r‖ / ‖W‖``.

    One SVD answers for all ranks. The part that is lost at rank r is made of the singular values after the first r:
    the root of the sum of their squares (Frobenius), or the largest of them (spectral). The tail is added up from
    its small end, so that small errors keep their digits, and no square is formed, so that nothing overflows.

    ``errors[0]`` is 1 and ``errors[min(m, n)]`` is 0, both exactly. In between, an error that is 0 in exact
    arithmetic comes out at the rounding of the SVD, about 1e-16 for float64 and 1e-7 for float32. For the zero
    matrix every error is 0: nothing is lost at any rank.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry.
        norm: "fro" for the Frobenius norm, "spectral" for the largest singular value.

    Returns:
        Array (min(m, n) + 1,) of float64, never increasing.

    Raises:
        TypeError: If W does not hold real numbers.
        ValueError: If W is not a finite matrix, or norm is neither of the two.

    Source:
        Eckart and Young (1936), Mirsky (1960).
    """
    if norm not in ("fro", "spectral"):
        raise ValueError(f'norm must be "fro" or "spectral", got {norm!r}')
    scaled, _ = _scaled(as_nonempty_matrix(W, "W"))
    s = np.linalg.svd(scaled, compute_uv=False).astype(np.float64)
    tails = np.append(s, 0.0)  # the spectral norm of what is left after 0, 1, ..., min(m, n) singular values
    if norm == "fro":
        tails = np.hypot.accumulate(tails[::-1])[::-1]
    return tails / tails[0] if tails[0] > 0 else tails


def numerical_rank(W: ArrayLike, tol: float | None = None) -> int:
    """Count the singular values of W that are larger than ``tol``.

    Rounding and noise give almost every matrix full rank in exact arithmetic, so a rank is always "at a tolerance".

    Args:
        W: Matrix (m, n), real and finite, with at least one entry.
        tol: Absolute tolerance, not negative. By default NumPy's, ``s.max() * max(m, n) * eps`` with the eps of W's
            dtype: what the rounding of the decomposition alone can produce. Pass the size of your noise instead if
            the matrix was measured.

    Raises:
        TypeError: If W does not hold real numbers.
        ValueError: If W is not a finite matrix, or tol is negative or nan.

    Source:
        Press et al. (2007), "Numerical Recipes", 3rd ed., p. 795, as cited by ``numpy.linalg.matrix_rank``.
    """
    W = as_nonempty_matrix(W, "W")
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must be a number that is not negative, got {tol!r}")
    scaled, exponent = _scaled(W)
    s = np.linalg.svd(scaled, compute_uv=False)
    if tol is None:
        return int(np.count_nonzero(s > s[0] * max(W.shape) * np.finfo(W.dtype).eps))
    with np.errstate(over="ignore"):  # a singular value beyond the range of floats is beyond the tolerance too
        return int(np.count_nonzero(np.ldexp(s, exponent) > tol))


def _scaled(W: Matrix) -> tuple[Matrix, int]:
    """Give W times a power of two that brings its largest entry to between 1/2 and 1, and the exponent to undo it."""
    exponent = int(np.frexp(np.abs(W).max())[1])
    return np.ldexp(W, -exponent), exponent


def _signs(U: Matrix) -> Matrix:
    """Give +1 or -1 for each column: the sign of its first entry of largest magnitude, ties to within rounding."""
    magnitude = np.abs(U)  # (m, rank)
    largest = magnitude.max(axis=0, keepdims=True)  # (1, rank)
    first = np.argmax(magnitude >= largest * (1 - np.sqrt(np.finfo(U.dtype).eps)), axis=0)  # (rank,)
    return np.copysign(U.dtype.type(1), U[first, np.arange(U.shape[1])])
