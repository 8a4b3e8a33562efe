"""What the functions of this room accept: real, finite matrices, and whole numbers in range."""

import math
import numbers
import operator
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix: TypeAlias = NDArray[np.floating[Any]]
Norm: TypeAlias = Literal["fro", "spectral", "nuclear"]


def as_array(value: ArrayLike, name: str) -> NDArray[Any]:
    """Give ``value`` as an array, and refuse what NumPy would take without a word and take wrongly."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries: fill them first, with .filled(0.0) say")
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} must be an array, got the sparse {type(value).__name__}: give its .toarray()")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a matrix whose rows all have the same length: {error}") from error


def as_matrix(value: ArrayLike, name: str) -> Matrix:
    """Give ``value`` as a two-dimensional, finite array of float32 or float64; an error names the argument.

    float32 and float64 stay what they are and are not copied. Booleans and integers become float64 (exact up to
    2**53, as everywhere in NumPy). float16 becomes float32, because NumPy has no linear algebra in half precision.
    """
    array = as_array(value, name)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix with two dimensions, got shape {array.shape}; "
            f"a vector v becomes one column as v[:, None] and one row as v[None, :]"
        )
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    elif array.dtype.kind == "f":  # float16 is widened, and bytes in another machine's order are turned around
        array = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
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


def as_number(value: object, name: str, *, at_least: float = -math.inf) -> float:
    """Give ``value`` as a finite float not below ``at_least``; an error names the argument."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the range of floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def as_norm(value: Norm, name: str) -> Norm:
    """Give ``value``, which must be the name of a norm."""
    if not isinstance(value, str) or value not in get_args(Norm):
        raise ValueError(f'{name} must be "fro", "spectral" or "nuclear", got {value!r}')
    return value


def as_rank(value: int, m: int, n: int) -> int:
    """Give ``value`` as a rank that an m×n matrix can have: 0 ≤ rank ≤ min(m, n)."""
    rank = as_whole_number(value, "rank", at_least=0)
    if rank > min(m, n):
        raise ValueError(f"rank must be at most min(m, n) = {min(m, n)} for a {m}×{n} matrix, got {rank}")
    return rank


def as_rng(value: np.random.Generator) -> np.random.Generator:
    """Give ``value``, which must be a NumPy generator: a seed would hide where the random numbers come from."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, as np.random.default_rng(0) gives, got {value!r}")
    return value
