"""What the functions of this room accept: real, finite matrices, and whole numbers in range."""

import operator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix: TypeAlias = NDArray[np.floating[Any]]


def as_matrix(value: ArrayLike, name: str) -> Matrix:
    """Give ``value`` as a two-dimensional, finite array of float32 or float64; an error names the argument.

    float32 and float64 stay what they are and are not copied. Booleans and integers become float64 (exact up to
    2**53, as everywhere in NumPy). float16 becomes float32, because NumPy has no linear algebra in half precision.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a matrix whose rows all have the same length: {error}") from error
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix with two dimensions, got shape {array.shape}; "
            f"a vector v becomes one column as v[:, None] and one row as v[None, :]"
        )
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must hold real numbers (float32, float64, or integers), got dtype {array.dtype}")
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name} must be finite, got nan or inf in {np.count_nonzero(~finite)} of {array.size} entries, "
            f"the first in row {row}, column {column}"
        )
    return array


def as_nonempty_matrix(value: ArrayLike, name: str) -> Matrix:
    """Give ``value`` as ``as_matrix`` does, and refuse a matrix with no rows or no columns."""
    matrix = as_matrix(value, name)
    if matrix.size == 0:
        raise ValueError(f"{name} must have at least one row and one column, got shape {matrix.shape}")
    return matrix


def as_whole_number(value: int, name: str, *, at_least: int) -> int:
    """Give ``value`` as an int not below ``at_least``; an error names the argument."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def as_rank(value: int, m: int, n: int) -> int:
    """Give ``value`` as a rank that an m×n matrix can have: 0 ≤ rank ≤ min(m, n)."""
    rank = as_whole_number(value, "rank", at_least=0)
    if rank > min(m, n):
        raise ValueError(f"rank must be at most min(m, n) = {min(m, n)} for a {m}×{n} matrix, got {rank}")
    return rank


def as_generator(value: np.random.Generator) -> np.random.Generator:
    """Give ``value``, which must be a NumPy generator: a seed would hide where the random numbers come from."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(f"generator must be a numpy.random.Generator, as np.random.default_rng(0) gives, got {value!r}")
    return value
