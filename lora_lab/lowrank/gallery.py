"""Example matrices whose rank is worth guessing before it is computed.

Each function says what to look for. Tables of whole numbers are int64; the rest is float64.
"""

import numpy as np
from numpy.typing import NDArray

from lora_lab.lowrank._arguments import as_generator, as_rank, as_whole_number

Table = NDArray[np.int64]


def multiplication_table(n: int = 9) -> Table:
    """Give the n×n table of i · j, counted from 1: every row is a multiple of one row, so its rank is 1."""
    numbers = _numbers(n)
    return numbers[:, None] * numbers


def multiplication_table_with_error(n: int = 9, *, row: int = 7, column: int = 8, value: int = 54) -> Table:
    """Give the multiplication table with one wrong entry (7 × 8 = 54): one slip, and rank 1 no longer suffices.

    Args:
        n: Number of rows and of columns.
        row: The first number of the wrong product, 1 ≤ row ≤ n.
        column: The second number of the wrong product, 1 ≤ column ≤ n.
        value: What the table wrongly says; anything but row · column.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If the entry is outside the table, or value is right.
    """
    table = multiplication_table(n)
    row, column = as_whole_number(row, "row", at_least=1), as_whole_number(column, "column", at_least=1)
    if max(row, column) > n:
        raise ValueError(f"row and column must be at most n = {n}, got {row} and {column}")
    if value == row * column:
        raise ValueError(f"value must be wrong, and {row} · {column} = {value} is right")
    table[row - 1, column - 1] = as_whole_number(value, "value", at_least=np.iinfo(np.int64).min)
    return table


def addition_table(n: int = 9) -> Table:
    """Give the n×n table of i + j, counted from 1: i · 1 + 1 · j is a sum of two layers, so its rank is 2."""
    numbers = _numbers(n)
    return numbers[:, None] + numbers


def distance_table(n: int = 9) -> Table:
    """Give the n×n table of |i - j|: as smooth to the eye as its square, and yet of full rank.

    Its determinant is (-1)^(n-1) · (n-1) · 2^(n-2), which is not 0 for n ≥ 2.

    Source:
        Graham and Pollak (1971), "On the addressing problem for loop switching", for distance matrices of trees,
        of which a path is one.
    """
    numbers = _numbers(n)
    return np.abs(numbers[:, None] - numbers)


def squared_distance_table(n: int = 9) -> Table:
    """Give the n×n table of (i - j)²: i² · 1 - 2 · i · j + 1 · j² is three layers, so its rank is 3 for n ≥ 3."""
    return distance_table(n) ** 2


def identity(n: int = 9) -> Table:
    """Give the n×n identity: mostly zeros, and yet no row is a mix of the others, so its rank is n.

    All its singular values are 1: at rank r the relative error is still √(1 - r/n). No matrix compresses worse.
    """
    return np.eye(as_whole_number(n, "n", at_least=1), dtype=np.int64)


def random_matrix(m: int, n: int, *, generator: np.random.Generator) -> NDArray[np.float64]:
    """Give an m×n matrix of independent standard normal entries: full rank, and no rank stands out."""
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    return as_generator(generator).standard_normal((m, n))


def noisy_low_rank(m: int, n: int, rank: int, *, noise: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Give a random rank-``rank`` matrix plus noise: full rank to the letter, ``rank`` to a sensible tolerance.

    The entries before the noise have variance 1 (0 if rank is 0), so ``noise`` is the ratio of noise to signal.

    Args:
        m: Number of rows.
        n: Number of columns.
        rank: Rank before the noise, 0 ≤ rank ≤ min(m, n).
        noise: Standard deviation of the normal noise that is added to every entry, at least 0.
        generator: Where the random numbers come from.

    Raises:
        TypeError: If a size is not a whole number, or generator is not a Generator.
        ValueError: If an argument is out of its range.
    """
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    rank = as_rank(rank, m, n)
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be a finite number that is not negative, got {noise!r}")
    generator = as_generator(generator)
    left = generator.standard_normal((m, rank))
    right = generator.standard_normal((rank, n))
    signal = left @ right / np.sqrt(max(rank, 1))  # the sum of `rank` products of variance 1 has variance `rank`
    return signal + noise * generator.standard_normal((m, n))


def _numbers(n: int) -> Table:
    """Give 1, 2, ..., n."""
    return np.arange(1, as_whole_number(n, "n", at_least=1) + 1, dtype=np.int64)
