"""How many numbers a factorization stores, and up to which rank that is a saving."""

from lora_lab.lowrank._arguments import as_rank, as_whole_number


def parameter_count(m: int, n: int, rank: int) -> int:
    """Count the numbers in the two factors of an m×n matrix: rank · (m + n).

    ``left`` is (m, rank) and ``right`` is (rank, n). A matrix-vector product through the factors takes the same
    number of multiplications; the dense matrix stores, and multiplies, m · n.

    Args:
        m: Number of rows, at least 1.
        n: Number of columns, at least 1.
        rank: The shared dimension of the factors, 0 ≤ rank ≤ min(m, n).

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument is out of its range.
    """
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    return as_rank(rank, m, n) * (m + n)


def break_even_rank(m: int, n: int) -> int:
    """Give the largest rank at which the factors are a saving: the largest r with r · (m + n) < m · n.

    For a 9×9 matrix it is 4: 4 · 18 = 72 numbers instead of 81, while rank 5 already costs 90. It is 0 where no
    factorization saves anything, as for a 2×2 matrix.

    Args:
        m: Number of rows, at least 1.
        n: Number of columns, at least 1.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument is below 1.
    """
    m, n = as_whole_number(m, "m", at_least=1), as_whole_number(n, "n", at_least=1)
    return (m * n - 1) // (m + n)  # r · (m + n) < m · n, in whole numbers: r · (m + n) ≤ m · n - 1
