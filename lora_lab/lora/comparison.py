"""Compare what two trainings did to a weight: the directions they share, and the directions that are new.

Both measures look at singular vectors alone, that is at directions, not at how large the update is.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lora_lab.lora.config import checked_rank
from lora_lab.lowrank import LowRank, numerical_rank, truncated_svd

Floats: TypeAlias = NDArray[np.floating[Any]]
Weight: TypeAlias = ArrayLike | Tensor | LowRank


def subspace_similarity(A1: Weight, A2: Weight) -> Floats:
    """Give φ(i, j) = ‖V₁ᵢᵀ V₂ⱼ‖²_F / min(i, j) for the top i directions of A1 and the top j of A2: a whole grid.

    V₁ᵢ holds the i leading right singular vectors of A1 as columns. φ is 1 where the smaller of the two subspaces lies
    within the larger, and 0 where they are orthogonal. It is the mean of the squared cosines of the principal angles
    between the subspaces. Two random subspaces of n dimensions reach max(i, j) / n on average, so compare with that.

    Right singular vectors are directions in the input, n numbers each, so the matrices need the same number of columns
    and no more: A of rank 8 is compared with A of rank 64, or a LowRank update with the weight it is added to. For
    directions in the output compare ``B1.T`` with ``B2.T``.

    Args:
        A1: matrix (r1, n), tensor or LowRank.
        A2: matrix (r2, n).

    Returns:
        Array (k1, k2), where k1 and k2 are the numerical ranks of A1 and A2: past its rank a matrix has no
        directions. Entry [i − 1, j − 1] is φ(i, j).

    Raises:
        TypeError: a matrix does not hold real numbers.
        ValueError: the numbers of columns differ; a matrix is not finite, or is zero and so has no directions.

    Source: Hu et al. (2021), section 7.2, equation 4, and appendix G. (Section 7.2 speaks of the right singular vectors
    of A and appendix G of left ones; of A (r, n) only the right ones have n numbers. The appendix's (1 − d²) / p, with
    the projection metric d and p = min(i, j), is 1 − d² / p by its own definition of d.)
    """
    V1, V2 = _right_directions(A1, "A1"), _right_directions(A2, "A2")  # (n, k1), (n, k2)
    if V1.shape[0] != V2.shape[0]:
        raise ValueError(f"A1 and A2 must have the same number of columns, got {V1.shape[0]} and {V2.shape[0]}")
    cosines = V1.T @ V2  # (k1, k2)
    shared = np.cumsum(np.cumsum(cosines**2, axis=0), axis=1)  # ‖V₁ᵢᵀ V₂ⱼ‖² for every i and j
    i, j = np.arange(1, V1.shape[1] + 1), np.arange(1, V2.shape[1] + 1)
    return shared / np.minimum.outer(i, j)


@dataclass(frozen=True)
class Intruders:
    """The leading singular vectors of a tuned weight beside those of the weight before.

    Attributes:
        cosines: for each of the k leading left singular vectors of the tuned weight its largest cosine, without the
            sign, with any singular vector of the weight before, (k,).
        singular_values: their singular values, (k,).
        epsilon: the threshold below which a vector is an intruder.
    """

    cosines: Floats
    singular_values: Floats
    epsilon: float

    @property
    def indices(self) -> tuple[int, ...]:
        """Which of the k vectors are intruders, counted from 0."""
        return tuple(int(index) for index in np.flatnonzero(self.cosines < self.epsilon))

    @property
    def count(self) -> int:
        """How many of the k vectors are intruders."""
        return len(self.indices)


def intruder_dimensions(W: Weight, W_tuned: Weight, *, k: int = 10, epsilon: float = 0.5) -> Intruders:
    """Find the intruder dimensions of a tuned weight: leading singular vectors that are like none there was before.

    A left singular vector y of W_tuned is an intruder if |cos(y, x)| < ε for every left singular vector x of W.
    Shuttleworth and others find intruders in weights that were trained with LoRA, and not in those of a full
    fine-tune.

    Args:
        W: the weight before, (m, n), as array, tensor or LowRank.
        W_tuned: the weight after, (m, n).
        k: how many leading singular vectors of W_tuned to look at, from 1 to its rank.
        epsilon: threshold of the cosine, above 0 and at most 1.

    Returns:
        The largest cosines, and which of them are below the threshold. Singular vectors that belong to (nearly) equal
        singular values can be any basis of their subspace: their cosines say little one by one.

    Raises:
        TypeError: a matrix does not hold real numbers, or k or epsilon is not a number.
        ValueError: the shapes differ; a matrix is not finite, or is zero; k or epsilon is out of its range.

    Source: Shuttleworth, Andreas, Torralba and Sharma (2024), "LoRA vs full fine-tuning: An illusion of equivalence",
        definition 1 and algorithm 1. The sign of a singular vector is arbitrary, so the cosine is taken without it.
    """
    before, after = _matrix(W, "W"), _matrix(W_tuned, "W_tuned")
    if before.shape != after.shape:
        raise ValueError(f"W and W_tuned must have the same shape, got {before.shape} and {after.shape}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise TypeError(f"epsilon must be a number, got {epsilon!r}")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be above 0 and at most 1, got {epsilon}")
    rank = _rank_above_zero(after, "W_tuned")
    if checked_rank("k", k) > rank:
        raise ValueError(f"k must be at most {rank}, the rank of W_tuned, got {k}")
    X, _, _ = truncated_svd(before, _rank_above_zero(before, "W"))  # (m, rank of W)
    Y, singular_values, _ = truncated_svd(after, k)  # (m, k)
    return Intruders(np.abs(X.T @ Y).max(axis=0), singular_values, float(epsilon))


def _right_directions(A: Weight, name: str) -> Floats:
    """Give the right singular vectors of a matrix as columns, as many as its numerical rank."""
    matrix = _matrix(A, name)
    _, _, Vt = truncated_svd(matrix, _rank_above_zero(matrix, name))
    return Vt.T


def _matrix(value: Weight, name: str) -> Floats | LowRank:
    """Give a weight as a matrix of float64; a LowRank stays in factors."""
    if isinstance(value, LowRank):
        return LowRank(value.left.astype(np.float64), value.right.astype(np.float64))
    array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite matrix with at least one entry, got shape {array.shape}")
    return array.astype(np.float64)


def _rank_above_zero(matrix: Floats | LowRank, name: str) -> int:
    """Give the numerical rank of a matrix that is not zero."""
    if not (rank := numerical_rank(matrix)):
        raise ValueError(f"{name} must not be zero, for a zero matrix has no directions")
    return rank
