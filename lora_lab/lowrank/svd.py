"""The singular value decomposition, cut off at a rank, and the error that the cut leaves."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_lab.lowrank._arguments import Matrix, Norm, as_norm, as_number
from lora_lab.lowrank._decomposition import true_size
from lora_lab.lowrank.matrix import LowRank, as_operand, leading_decomposition, spectrum

TAIL = {"fro": np.hypot, "spectral": np.maximum, "nuclear": np.add}  # how each norm adds one more singular value


def truncated_svd(W: ArrayLike | LowRank, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """Give the leading singular vectors and values (U, s, Vt): ``U * s @ Vt`` is the best rank-``rank`` matrix near W.

    "Best" is in the Frobenius and in the spectral norm at once: no matrix of that rank is closer to W.

    Signs: each singular vector pair may be flipped, u and v together, so a sign is fixed for you. In each column of
    U the entry that is largest in magnitude is positive; among entries that tie the first one is. A tie is within
    1e-6 of the largest (1e-3 in float32): far above the rounding of a decomposition, so that it does not decide. Ties
    between singular values are another matter: their singular vectors can be any orthonormal basis of the same
    subspace, and no sign rule makes that basis unique. The same holds for singular values that are zero.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry. float32 stays float32 throughout; integers are
            taken as float64 and float16 as float32. Of a LowRank only the factors are used.
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
    return leading_decomposition(as_operand(W), rank).triple()


def singular_values(W: ArrayLike | LowRank) -> Matrix:
    """Give all min(m, n) singular values of W, from large to small: the lengths of the half-axes of its ellipsoid.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry; of a LowRank only the factors are used.

    Returns:
        Array (min(m, n),) in W's dtype. For a LowRank too: past the shared dimension all values are 0.

    Raises:
        TypeError: If W does not hold real numbers.
        ValueError: If W is not a finite matrix, or its singular values overflow its dtype.
    """
    values, exponent, _ = spectrum(as_operand(W))
    return true_size(values, exponent)


def rank_errors(W: ArrayLike | LowRank, norm: Norm = "fro") -> NDArray[np.float64]:
    """Give the relative error of the best approximation at every rank: ``errors[r] = ‖W - W_r‖ / ‖W‖``.

    One SVD answers for all ranks. The part that is lost at rank r is made of the singular values after the first r:
    the root of the sum of their squares (Frobenius), the largest of them (spectral), or their sum (nuclear). The tail
    is added up from its small end, so that small errors keep their digits, and no square is formed, so that nothing
    overflows.

    ``errors[0]`` is 1 and ``errors[min(m, n)]`` is 0, both exactly. In between, an error that is 0 in exact
    arithmetic comes out at the rounding of the SVD: about 1e-16 for float64 and 1e-7 for float32, and more for large
    matrices, above all in the nuclear norm, which adds the rounding of all values up. For the zero matrix every error
    is 0: nothing is lost at any rank.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry; of a LowRank only the factors are used.
        norm: "fro" for the Frobenius norm, "spectral" for the largest singular value, "nuclear" for their sum.

    Returns:
        Array (min(m, n) + 1,) of float64, never increasing.

    Raises:
        TypeError: If W does not hold real numbers.
        ValueError: If W is not a finite matrix, or norm is none of the three.

    Source:
        Eckart and Young (1936), Mirsky (1960).
    """
    tails = tail_norms(spectrum(as_operand(W)).values, as_norm(norm, "norm"))
    return tails / tails[0] if tails[0] > 0 else tails


def tail_norms(values: Matrix, norm: Norm) -> NDArray[np.float64]:
    """Give the norm of what is left after the first 0, 1, ..., all of the singular values, added from the small end."""
    tails = TAIL[norm].accumulate(values[::-1].astype(np.float64))[::-1]
    return np.append(tails, 0.0)


def numerical_rank(W: ArrayLike | LowRank, tol: float | None = None) -> int:
    """Count the singular values of W that are larger than ``tol``.

    Rounding and noise give almost every matrix full rank in exact arithmetic, so a rank is always "at a tolerance".

    Args:
        W: Matrix (m, n), real and finite, with at least one entry; of a LowRank only the factors are used.
        tol: Absolute tolerance, not negative. By default NumPy's, ``s.max() * max(m, n) * eps`` with the eps of W's
            dtype: what the rounding of the decomposition alone can produce. In a LowRank layers can cancel, as in
            ``low - low``, and rounding is as large as the layers are: there the largest layer counts, if it is larger
            than ``s.max()``. Pass the size of your noise instead if the matrix was measured.

    Raises:
        TypeError: If W does not hold real numbers, or tol is not a number.
        ValueError: If W is not a finite matrix, or tol is negative or not finite.

    Source:
        Press et al. (2007), "Numerical Recipes", 3rd ed., p. 795, as cited by ``numpy.linalg.matrix_rank``.
    """
    if tol is not None:
        tol = as_number(tol, "tol", at_least=0)
    W = as_operand(W)
    values, exponent, size = spectrum(W)
    if tol is None:
        return int(np.count_nonzero(values > size * max(W.shape) * np.finfo(W.dtype).eps))
    with np.errstate(over="ignore"):  # a singular value beyond the range of floats is beyond the tolerance too
        return int(np.count_nonzero(np.ldexp(values, exponent) > tol))
