"""A matrix that is kept as the product of two thin factors."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lora_lab.lowrank._arguments import (
    Matrix,
    Norm,
    as_array,
    as_matrix,
    as_nonempty_matrix,
    as_norm,
    as_number,
    as_rank,
    as_whole_number,
)
from lora_lab.lowrank._decomposition import (
    Decomposition,
    Spectrum,
    decomposition_of_matrix,
    decomposition_of_product,
    frobenius_of_product,
    spectrum_of_matrix,
    spectrum_of_product,
)


@dataclass(init=False, frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix held as ``left @ right``: (m, r) times (r, n), which is r · (m + n) numbers instead of m · n.

    The shared dimension r is the number of COLUMNS of ``left`` and the number of ROWS of ``right``. Entry (i, j) is
    row i of ``left`` times column j of ``right``; the whole matrix is a sum of r layers, column k of ``left`` times
    row k of ``right``. The dense matrix is formed only when you ask for it: by ``dense()``, or by giving a LowRank
    to a NumPy function that turns it into an array, as ``np.array_equal(low, W)`` does. Functions that go entry by
    entry, as ``np.abs`` and ``np.sum``, refuse it: give them ``low.dense()``.

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
    def from_svd(cls, W: ArrayLike | LowRank, rank: int) -> LowRank:
        """Give the best approximation of W at a rank: ``left = U √s``, ``right = √s Vt``.

        The singular values are shared evenly, so both factors have the same Frobenius norm. Arguments, errors and
        source are those of ``truncated_svd``; only singular values that overflow are no trouble here, for the factors
        hold their roots.
        """
        return cls(*leading_decomposition(as_operand(W), rank).factors())

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The shared dimension r: columns of ``left``, rows of ``right``.

        The matrix's own rank can be smaller, never larger: two equal columns in ``left`` count twice here.
        ``numerical_rank(low)`` gives the matrix's own.
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

    def norm(self, ord: Norm = "fro") -> float:
        """Give a norm of the matrix, from the factors alone.

        Args:
            ord: "fro" for the Frobenius norm, the root of the sum of all squared entries; "spectral" for the largest
                singular value; "nuclear" for the sum of all singular values.

        Raises:
            ValueError: If ord is none of the three, or the norm is beyond float64.
        """
        if as_norm(ord, "ord") == "fro":
            norm, exponent = frobenius_of_product(self.left, self.right)
        else:
            values, exponent, _ = spectrum_of_product(self.left, self.right)
            norm = float(values[0] if ord == "spectral" else values.sum(dtype=np.float64))
        try:
            return math.ldexp(norm, exponent)
        except OverflowError as error:
            raise ValueError("the norm is beyond float64: divide the LowRank by a constant first") from error

    def svd(self) -> tuple[Matrix, Matrix, Matrix]:
        """Give the singular value decomposition (U, s, Vt) from the factors alone: ``U * s @ Vt`` is the matrix.

        QR of each factor leaves a matrix of r × r numbers at most, and its SVD is the SVD of the whole. Signs are
        fixed as in ``truncated_svd``.

        Returns:
            U (m, k) with orthonormal columns, s (k,) from large to small, Vt (k, n) with orthonormal rows, where k is
            min(m, r, n): all other singular values are 0.

        Raises:
            ValueError: If a singular value is beyond the dtype.
        """
        return decomposition_of_product(self.left, self.right).triple()

    def recompress(self, rank: int) -> LowRank:
        """Give the best approximation of this matrix at a lower rank, from the factors alone.

        The singular values are shared evenly between the new factors, as in ``from_svd``.

        Args:
            rank: The new rank, at least 0 and at most min(m, r, n).

        Raises:
            TypeError: If rank is not a whole number.
            ValueError: If rank is out of range.
        """
        rank = as_whole_number(rank, "rank", at_least=0)
        highest = min(self.rank, *self.shape)
        if rank > highest:
            raise ValueError(f"rank must be at most {highest} to recompress a {self!r}, got {rank}")
        return LowRank(*decomposition_of_product(self.left, self.right).leading(rank).factors())

    def __add__(self, other: LowRank) -> LowRank:
        """Give the sum, its layers those of both: ``[left, other.left] @ [right; other.right]``, r the sum of both."""
        if not isinstance(other, LowRank):
            raise TypeError(
                f"a LowRank can be added to a LowRank only, got {type(other).__name__}: "
                f"write low.dense() for a sum that is dense"
            )
        if other.shape != self.shape:
            raise ValueError(f"a sum needs two matrices of one shape, got {self.shape} and {other.shape}")
        return LowRank(np.hstack([self.left, other.left]), np.vstack([self.right, other.right]))

    def __neg__(self) -> LowRank:
        """Give the matrix with every sign flipped."""
        return LowRank(-self.left, self.right)

    def __sub__(self, other: LowRank) -> LowRank:
        """Give the difference, its layers those of both matrices."""
        return self + -other

    def __radd__(self, other: object) -> LowRank:
        """Refuse ``other + low`` and ``other - low``, as ``low + other`` does: other is no LowRank."""
        return self + other  # type: ignore[operator]

    __rsub__ = __radd__

    def __mul__(self, number: float) -> LowRank:
        """Give the matrix times a number.

        The number goes into one factor, and the other is shared: a number above 1 into the factor with the smaller
        entries, a number below 1 into the other, so that neither leaves the range of its dtype without need.
        """
        if not isinstance(number, numbers.Real):
            raise TypeError(
                f"a LowRank can be multiplied by a number only, got {type(number).__name__}: "
                f"write low @ W for the matrix product, low.dense() * W for the product entry by entry"
            )
        number = as_number(number, "the number times a LowRank")
        left_is_larger = np.abs(self.left).max(initial=0) > np.abs(self.right).max(initial=0)
        with np.errstate(over="ignore"):  # the constructor finds what has become infinite
            into_right = left_is_larger == (abs(number) > 1)
            left, right = (self.left, number * self.right) if into_right else (number * self.left, self.right)
        try:
            return LowRank(left, right)
        except ValueError as error:
            raise ValueError(f"{number} times this LowRank is beyond {self.dtype}") from error

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> LowRank:
        """Give the matrix over a number, which is the matrix times 1 / number."""
        return self * (1 / as_number(number, "the number that divides a LowRank"))

    def __matmul__(self, other: ArrayLike | LowRank) -> Any:
        """Give ``left @ (right @ other)``: two thin products, the dense matrix is never formed.

        Args:
            other: Vector (n,), matrix (n, k), or a stack of matrices (..., n, k). With another LowRank (n, k) the
                product is a LowRank too, whose rank is the smaller of the two.

        Raises:
            ValueError: If the shapes do not fit, or the factors of a product of two LowRanks leave the range.
        """
        if isinstance(other, LowRank):
            self._check_right_operand(other.shape)
            return _product(self, other)
        array = as_array(other, "the operand")
        self._check_right_operand(array.shape)
        return self.left @ (self.right @ array)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[Any]:
        """Give ``(other @ left) @ right`` for a vector (m,), a matrix (k, m), or a stack of matrices (..., k, m)."""
        array = as_array(other, "the operand")
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


def as_operand(W: ArrayLike | LowRank) -> Matrix | LowRank:
    """Give what a function takes for W: a LowRank as it is, anything else as a matrix that is checked."""
    return W if isinstance(W, LowRank) else as_nonempty_matrix(W, "W")


def spectrum(W: Matrix | LowRank) -> Spectrum:
    """Give all min(m, n) singular values, those of a LowRank from its factors alone."""
    return spectrum_of_product(W.left, W.right) if isinstance(W, LowRank) else spectrum_of_matrix(W)


def leading_decomposition(W: Matrix | LowRank, rank: int) -> Decomposition:
    """Give the ``rank`` leading singular values and vectors, those of a LowRank from its factors alone."""
    rank = as_rank(rank, *W.shape)
    if not isinstance(W, LowRank):
        return decomposition_of_matrix(W).leading(rank)
    missing = max(rank - W.rank, 0)  # layers of zeros give the singular vectors that the factors do not have
    left, right = np.pad(W.left, ((0, 0), (0, missing))), np.pad(W.right, ((0, missing), (0, 0)))
    return decomposition_of_product(left, right).leading(rank)


def _product(one: LowRank, two: LowRank) -> LowRank:
    """Give ``one @ two`` in factors: two of the four are multiplied with the small matrix in the middle."""
    with np.errstate(over="ignore", invalid="ignore"):  # the constructor finds what has become infinite
        middle = one.right @ two.left  # (one.rank, two.rank)
        thinner = one.rank <= two.rank
        factors = (one.left, middle @ two.right) if thinner else (one.left @ middle, two.right)
    try:
        return LowRank(*factors)
    except ValueError as error:
        raise ValueError(f"the factors of this product are beyond {middle.dtype}: scale the LowRanks first") from error


def _mismatch(left: tuple[int, ...], right: tuple[int, ...]) -> str:
    """Say why factors of these shapes have no product, and which turn of them would have one."""
    message = (
        f"left {left} and right {right} do not fit: the columns of left ({left[1]}) "
        f"must equal the ROWS of right ({right[0]})"
    )
    if left[1] == right[1]:
        message += f"; right.T, of shape {right[::-1]}, would fit"
    return message
