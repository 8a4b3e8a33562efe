"""A matrix that is kept as the product of two thin factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lora_lab.lowrank._arguments import Matrix, as_matrix
from lora_lab.lowrank.svd import truncated_svd


@dataclass(init=False, frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix held as ``left @ right``: (m, r) times (r, n), which is r · (m + n) numbers instead of m · n.

    The shared dimension r is the number of COLUMNS of ``left`` and the number of ROWS of ``right``. Entry (i, j) is
    row i of ``left`` times column j of ``right``; the whole matrix is a sum of r layers, column k of ``left`` times
    row k of ``right``. The dense matrix is formed only when you ask for it: by ``dense()``, or by giving a LowRank
    to a NumPy function that needs every entry, as in ``np.array_equal(low, W)``.

    Args:
        left: Matrix (m, r), real and finite, m ≥ 1. float32 and float64 are held as they are, without a copy;
            integers become float64, float16 becomes float32. If the factors differ, both become float64.
        right: Matrix (r, n), likewise, n ≥ 1. r may be 0: the product is then the zero matrix.

    Raises:
        TypeError: If a factor does not hold real numbers.
        ValueError: If a factor is not a finite matrix, or the factors do not fit together.
    """

    left: Matrix
    right: Matrix

    __array_ufunc__ = None  # so that ``array @ low`` comes to __rmatmul__ here

    def __init__(self, left: ArrayLike, right: ArrayLike) -> None:
        """Check the factors, and bring them to one dtype."""
        left, right = as_matrix(left, "left"), as_matrix(right, "right")
        if left.shape[1] != right.shape[0]:
            raise ValueError(_mismatch(left.shape, right.shape))
        if left.shape[0] == 0 or right.shape[1] == 0:
            raise ValueError(f"the matrix must have at least one entry, got {left.shape} times {right.shape}")
        dtype = np.result_type(left, right)
        object.__setattr__(self, "left", left.astype(dtype, copy=False))
        object.__setattr__(self, "right", right.astype(dtype, copy=False))

    @classmethod
    def from_svd(cls, W: ArrayLike, rank: int) -> LowRank:
        """Give the best approximation of W at a rank: ``left = U √s``, ``right = √s Vt``.

        The singular values are shared evenly, so both factors have the same Frobenius norm. Arguments, errors and
        source are those of ``truncated_svd``.
        """
        U, s, Vt = truncated_svd(W, rank)
        return cls(U * np.sqrt(s), np.sqrt(s)[:, None] * Vt)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The shared dimension r: columns of ``left``, rows of ``right``.

        The matrix's own rank can be smaller, never larger: two equal columns in ``left`` count twice here.
        ``numerical_rank(low.dense())`` gives the matrix's own.
        """
        return self.left.shape[1]

    @property
    def size(self) -> int:
        """The count of stored numbers, r · (m + n)."""
        return self.left.size + self.right.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of both factors, and of the matrix."""
        return self.left.dtype

    @property
    def T(self) -> LowRank:
        """The transpose, in factors too: ``(left @ right).T = right.T @ left.T``."""
        return LowRank(self.right.T, self.left.T)

    def dense(self) -> Matrix:
        """Give the whole matrix ``left @ right``, shape (m, n)."""
        return self.left @ self.right

    def norm(self) -> float:
        """Give the Frobenius norm, the root of the sum of all squared entries, from the factors alone.

        With ``left = Q₁ R₁`` and ``right.T = Q₂ R₂`` the matrix is ``Q₁ (R₁ R₂ᵀ) Q₂ᵀ``, and orthonormal columns do
        not change the norm: what is left to measure is a matrix of r × r numbers at most.
        """
        _, left_core = np.linalg.qr(self.left)  # (min(m, r), r)
        _, right_core = np.linalg.qr(self.right.T)  # (min(n, r), r)
        core = left_core @ right_core.T
        return float(np.hypot.reduce(core.astype(np.float64), axis=None))  # hypot: squares would overflow at 1e200

    def __matmul__(self, other: ArrayLike | LowRank) -> Any:
        """Give ``left @ (right @ other)``: two thin products, the dense matrix is never formed.

        Args:
            other: Vector (n,), matrix (n, k), or a stack of matrices (..., n, k). With another LowRank (n, k) the
                product is a LowRank too, whose rank is the smaller of the two.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if isinstance(other, LowRank):
            self._check_right_operand(other.shape)
            middle = self.right @ other.left  # (r, other.rank)
            if self.rank <= other.rank:
                return LowRank(self.left, middle @ other.right)
            return LowRank(self.left @ middle, other.right)
        array = np.asarray(other)
        self._check_right_operand(array.shape)
        return self.left @ (self.right @ array)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[Any]:
        """Give ``(other @ left) @ right`` for a vector (m,), a matrix (k, m), or a stack of matrices (..., k, m)."""
        array = np.asarray(other)
        if array.shape[-1:] != self.shape[:1]:
            raise ValueError(
                f"array of shape {array.shape} @ LowRank of shape {self.shape}: "
                f"the array needs {self.shape[0]} columns, one for each row of the LowRank"
            )
        return (array @ self.left) @ self.right

    def _check_right_operand(self, shape: tuple[int, ...]) -> None:
        """Refuse an operand whose rows (of a vector: entries) are not as many as the columns of this matrix."""
        if shape[-2:][:1] != self.shape[1:]:
            raise ValueError(
                f"LowRank of shape {self.shape} @ array of shape {shape}: "
                f"the array needs {self.shape[1]} rows, one for each column of the LowRank"
            )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Matrix:
        """Give the dense matrix to NumPy functions that need every entry."""
        if copy is False:
            raise ValueError("a LowRank has no dense matrix to share: np.asarray(low) forms a new one")
        return self.dense().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        """Say the shape, the rank, and what the factors store."""
        m, n = self.shape
        return f"LowRank {m}×{n} of rank {self.rank}: {self.size:,} numbers instead of {m * n:,}"


def _mismatch(left: tuple[int, ...], right: tuple[int, ...]) -> str:
    """Say why factors of these shapes have no product, and which turn of them would have one."""
    message = (
        f"left {left} and right {right} do not fit: the columns of left ({left[1]}) "
        f"must equal the ROWS of right ({right[0]})"
    )
    if left[1] == right[1]:
        message += f"; right.T, of shape {right[::-1]}, would fit"
    return message
