"""The exercises of notebook 01: counting, guessing ranks, factorizing, multiplying in factors, repairing a table."""

import tracemalloc
from typing import Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.lowrank import LowRank, gallery, parameter_count


def break_even() -> int:
    """Give the largest r with r · (576 + 1536) < 576 · 1536."""
    return (576 * 1536 - 1) // (576 + 1536)


def _check_break_even(answer: Any) -> str | None:
    """Compare with 418, and show what the answer would store."""
    right, dense = break_even(), 576 * 1536
    rank = float(np.asarray(answer).item())
    if rank == right:
        return None
    if not rank.is_integer():
        equal = " That is where the two counts are equal." if np.isclose(rank, dense / (576 + 1536), atol=0.1) else ""
        return f"{rank:g} is no rank: a rank is a whole number.{equal} Which whole number is the last that saves?"
    if not 0 <= rank <= 576:
        return f"{rank:.0f} is no rank of a 576 × 1536 matrix: a rank is at least 0 and at most the smaller side."
    count = parameter_count(576, 1536, int(rank))
    comparison = f"rank {rank:.0f} stores {rank:.0f} · (576 + 1536) = {count:,} numbers, the matrix stores {dense:,}"
    if count >= dense:
        return f"{comparison}: that is no saving."
    return f"{comparison}: a saving, but not the largest rank that is one."


def rank_of() -> list[int]:
    """Give the ranks of (i+1)(j+1), i·j + 1, i² + 2·i·j + j², max(i, j), and two kinds of row."""
    return [1, 2, 3, 9, 2]


_RANK_REASONS = (
    ("i·j + i + j + 1", "four terms are not four layers yet: (i + 1) · (j + 1) gives the same table."),
    ("i·j + 1", "look at rows 1 and 2: 2 3 4 ... and 3 5 7 ...; and count the layers of the sum."),
    ("(i + j)²", "multiply it out, and count the terms that are something of i times something of j."),
    ("max(i, j)", "subtract each row from the next: the differences are 1, 11, 111, ... followed by zeros."),
    ("the chessboard", "how many different rows does it have, and is one a multiple of the other?"),
)


def _check_rank_of(answer: Any) -> str | None:
    """Compare the five ranks one by one; the first that is wrong gets its reason."""
    right = rank_of()
    ranks = list(answer)
    if len(ranks) != len(right):
        return f"there are {len(right)} matrices, so the answer has {len(right)} ranks; yours has {len(ranks)}."
    for (matrix, reason), mine, rank in zip(_RANK_REASONS, ranks, right, strict=True):
        if mine is None or mine is Ellipsis:
            return f"so far so good; the rank of {matrix} is still blank."
        if isinstance(mine, str):
            return f"the rank of {matrix} is a number; yours is the text {mine!r}. Leave out the quotation marks."
        if mine == 0:
            return f"the rank of {matrix} is not 0: a matrix of rank 0 has no layer, so it is all zeros."
        if mine != rank:
            return f"the rank of {matrix} is not {mine}: {reason}"
    return None


def factors(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give left (m, 1) and right (1, n) with ``left @ right`` equal to W, a matrix of rank 1."""
    row, column = np.unravel_index(np.abs(W).argmax(), W.shape)  # where W is surely not 0
    return W[:, [column]] / W[row, column], W[[row], :]


def _check_factors(answer: Function) -> str | None:
    """Try five matrices of rank 1: entry (1, 1) is 1, then 6, then 0, then a whole row and column are 0."""
    for column, row in (
        (np.arange(1, 10), np.arange(1, 10)),
        ([2, 1], [3, 4, 5]),
        ([1.5, -2.0, 4.0], [0.0, -1.0, 2.0, 8.0]),
        ([0, 3, 1], [2, 5, 1, 1]),
        ([0, 0, -3], [0, 7]),
    ):
        W = np.outer(column, row)
        if wrong := _wrong_factors(answer(W.copy()), W):
            return f"{called(answer, W)}, where W[0, 0] is {W[0, 0]}: {wrong}"
    return None


def _wrong_factors(result: Any, W: np.ndarray) -> str | None:
    """Say what is wrong with the factors of W, from their number to their product."""
    m, n = W.shape
    if isinstance(result, LowRank):
        result = result.left, result.right
    if not isinstance(result, tuple | list) or len(result) != 2:
        return f"two arrays are asked for, left and right; yours is {type(result).__name__}."
    left, right = (np.asarray(factor) for factor in result)
    shapes = f"left is {left.shape} and right is {right.shape}"
    if left.ndim != 2 or right.ndim != 2:
        return f"{shapes}, but a factor has two dimensions: {(m, 1)} and {(1, n)}. W[:, [0]] keeps both."
    if (left.shape, right.shape) == ((m, 1), (n, 1)):
        return f"{shapes}: both have 1 column, but the columns of left must equal the ROWS of right. Turn right."
    if (left.shape, right.shape) == ((1, n), (m, 1)):
        return f"{shapes}: these are the right factors in the wrong order."
    if (left.shape, right.shape) != ((m, 1), (1, n)):
        return f"{shapes}, but a factorization of rank 1 is {(m, 1)} times {(1, n)}, which stores {m + n} numbers."
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return "the factors hold nan or inf. Was something divided by an entry that is 0?"
    product = left @ right
    if np.allclose(product, W):
        return None
    if not product.any():
        return "the product is all zeros. The row or column that you took is zero here; another one is not."
    if W[0, 0] != 0 and np.allclose(product, W * W[0, 0]):
        return f"the product is {W[0, 0]} times W. W[0, 0] is in both factors, and it may count only once."
    times = np.sum(product * W) / np.sum(W * W)
    if np.allclose(product, times * W, atol=1e-8 * np.abs(product).max()):
        return f"the product is {times:.3g} times W: the pattern is right, and the size is not."
    if W[0, 0] > 1 and (np.array_equal(left, W[:, [0]] // W[0, 0]) or np.array_equal(right, W[[0], :] // W[0, 0])):
        return "the product is not W: // rounds down to whole numbers, and here the multiples have fractions. Use /."
    return f"the product is not W: it differs in {np.count_nonzero(~np.isclose(product, W))} of {W.size} entries."


def _divide_by_the_corner(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the mistake of dividing by W[0, 0], which can be 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return W[:, [0]] / W[0, 0], W[[0], :]


def multiply(left: np.ndarray, right: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Give ``left @ right @ x``, from right to left, so that no m × n matrix is formed."""
    return left @ (right @ x)


def _check_multiply(answer: Function) -> str | None:
    """Compare with the dense product on small factors, then measure the memory that large ones take."""
    generator = np.random.default_rng(0)
    for m, n, rank in ((5, 4, 2), (6, 6, 3), (3, 7, 1)):
        left, right, x = (generator.standard_normal(shape) for shape in ((m, rank), (rank, n), n))
        result = np.asarray(answer(left.copy(), right.copy(), x.copy()))
        what = called(answer, left, right, x)
        if result.shape != (m,):
            return f"{what} has shape {result.shape}; a {m} × {n} matrix times a vector of {n} gives shape ({m},)."
        if not np.allclose(result, left @ right @ x):
            return f"{what} is not the product: compare with (left @ right) @ x, which is right but slow."
    m, n, rank = 1000, 1200, 2
    left, right, x = np.ones((m, rank)), np.ones((rank, n)), np.ones(n)
    peak = _peak_bytes(answer, left, right, x)
    if peak >= left.itemsize * m * n // 2:
        return (
            f"the product is right, but {called(answer, left, right, x)} took {peak / 1e6:.1f} MB of memory: it formed "
            f"the {m} × {n} matrix. Python multiplies from left to right; which product should come first?"
        )
    return None


def _peak_bytes(function: Function, *arguments: Any) -> int:
    """Give the most memory that a call allocates at any one time."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def repair(W: np.ndarray) -> np.ndarray:
    """Give W, a matrix of rank 1 but for one wrong entry, with that entry put right.

    The wrong entry is where the best rank-1 matrix is furthest from W. The right one follows from three entries
    around it, because the rows of a matrix of rank 1 are in proportion.
    """
    damage = np.abs(W - LowRank.from_svd(W, 1).dense())
    row, column = np.unravel_index(damage.argmax(), W.shape)
    above, before = row - 1, column - 1  # any other row and column would do; -1 is the last
    repaired = W.astype(np.float64)
    repaired[row, column] = W[row, before] * W[above, column] / W[above, before]
    return repaired


def _check_repair(answer: Function) -> str | None:
    """Try four tables; in each, say what is still or newly wrong."""
    sums = np.outer([3.0, 5.0, 8.0, 2.0], [10.0, 20.0, 5.0, 40.0, 15.0])
    for table, row, column, value in (
        (gallery.multiplication_table(), 7, 8, 54),
        (gallery.multiplication_table(12), 6, 9, 56),
        (sums, 2, 1, 53.0),
        (sums, 1, 5, 54.0),
    ):
        W = table.copy()
        W[row - 1, column - 1] = value
        wrong = _wrong_repair(np.asarray(answer(W.copy())), table, row - 1, column - 1)
        if wrong:
            return f"{called(answer, W)}, where row {row}, column {column} says {value:g}: {wrong}"
    return None


def _wrong_repair(result: np.ndarray, table: np.ndarray, row: int, column: int) -> str | None:
    """Say in how many entries the repaired matrix differs from the right table."""
    if result.shape != table.shape:
        return f"the whole repaired matrix is asked for, of shape {table.shape}; yours has shape {result.shape}."
    different = ~np.isclose(result, table, atol=1e-3)
    count = np.count_nonzero(different)
    if count > 1:
        return f"{count} entries of yours differ from the right table. Only one was wrong; leave the others alone."
    if different[row, column]:
        return f"yours says {result[row, column]:.4g} there. The rest of its row and column say what it should be."
    if count:
        return "that entry is right now, but you changed another one."
    return None


EXERCISES = (
    Exercise(
        name="01.break_even",
        goal="the largest rank at which the factors of a 576 × 1536 matrix store fewer numbers than the matrix",
        value=True,
        solution=break_even,
        check=_check_break_even,
        hints=(
            "Count: the matrix stores m · n numbers, the factors r · m + r · n.",
            "Divide 576 · 1536 by 576 + 1536. Which whole number do you need, the one below or the one above?",
        ),
        mistakes=(
            (576, "rank 576 stores 576 · (576 + 1536) = 1,216,512 numbers"),
            (419, "rank 419 stores 419 · (576 + 1536) = 884,928 numbers, the matrix stores 884,736: that is no saving"),
            (576 * 1536 / (576 + 1536), "That is where the two counts are equal"),
            (288.5, "288.5 is no rank: a rank is a whole number. Which"),
            (288, "a saving, but not the largest rank"),
            (1536, "at most the smaller side"),
            (-1, "a rank is at least 0"),
        ),
    ),
    Exercise(
        name="01.rank_of",
        points=2,
        goal="a list of five ranks",
        value=True,
        solution=rank_of,
        check=_check_rank_of,
        hints=(
            "A rank is the smallest number of layers, something of i times something of j, that add up to the matrix.",
            "The first three are algebra: factorize, or multiply out. For the others, write down the rows and compare.",
            "Build them with numbers[:, None] and numbers[None, :], and ask numerical_rank.",
        ),
        mistakes=(
            ([4, 2, 3, 9, 2], "four terms are not four layers"),
            ([1, 1, 3, 9, 2], "look at rows 1 and 2"),
            ([1, 2, 2, 9, 2], "multiply it out"),
            ([1, 2, 3, 2, 2], "subtract each row from the next"),
            ([1, 2, 3, 9, 9], "how many different rows"),
            ([1, 2, 3, 9], "the answer has 5 ranks"),
            ([1, 2, 3, 9, None], "still blank"),
            (["1", "2", "3", "9", "2"], "the rank of i·j + i + j + 1 is a number; yours is the text '1'"),
            ([1, 2, 3, 0, 2], "so it is all zeros"),
        ),
    ),
    Exercise(
        name="01.outer",
        points=2,
        goal="a function of W that returns left and right",
        solution=factors,
        check=_check_factors,
        hints=(
            "Every row of W is a multiple of one row. Take a row for right; left holds the multiples.",
            "W[:, [0]] is the first column with shape (m, 1), and W[[0], :] the first row with shape (1, n).",
            "The entry where row and column cross is in both: divide one of them by it, and choose a crossing that is "
            "not 0.",
        ),
        mistakes=(
            (lambda W: (W[:, [0]], W[[0], :]), "the product is 6 times W"),
            (lambda W: (W[:, [0]] / max(W[0, 0], 1), W[[0], :]), "the product is all zeros"),
            (lambda W: (W[:, 0], W[0]), "a factor has two dimensions"),
            (lambda W: (W[:, [0]], W[[0], :].T), "both have 1 column"),
            (lambda W: (W[[0], :], W[:, [0]]), "the wrong order"),
            (lambda W: (W, np.eye(W.shape[1])), "which stores 18 numbers"),
            (lambda W: W[:, [0]] @ W[[0], :], "two arrays are asked for"),
            (_divide_by_the_corner, "something divided by an entry that is 0"),
            (lambda W: (W[:, [0]], np.ones((1, W.shape[1]))), "it differs in 72 of 81 entries"),
            (lambda W: (W[:, [0]] / 9, W[[0], :] / 9), "the product is 0.0123 times W"),
            (lambda W: (W[:, [0]] // W[0, 0], W[[0], :]), "// rounds down to whole numbers"),
            (lambda W: (W[:, [0]], W[[0], :] // W[0, 0]), "// rounds down to whole numbers"),
        ),
    ),
    Exercise(
        name="01.multiply",
        goal="a function of left, right and x that returns left @ right @ x",
        solution=multiply,
        check=_check_multiply,
        hints=(
            "(left @ right) @ x and left @ (right @ x) are equal. What is the shape in each pair of brackets?",
            "right @ x is a vector with as many entries as the rank.",
        ),
        mistakes=(
            (lambda left, right, x: left @ right @ x, "Python multiplies from left to right"),
            (lambda left, right, x: (left @ right).dot(x), "it formed the 1000 × 1200 matrix"),
            (lambda left, right, x: right @ (left @ x), "stopped with ValueError"),
            (lambda left, right, x: left @ (right @ x)[:, None], "has shape (5, 1)"),
            (lambda left, right, x: left[:, 0] * (right @ x)[0], "is not the product"),
        ),
    ),
    Exercise(
        name="01.repair",
        points=3,
        goal="a function of W that returns the repaired matrix",
        solution=repair,
        check=_check_repair,
        hints=(
            "The best rank-1 matrix is furthest from W where W is wrong: np.abs(...).argmax() and np.unravel_index.",
            "In a matrix of rank 1 the rows are in proportion, so W[i, j] / W[k, j] equals W[i, l] / W[k, l].",
        ),
        mistakes=(
            (lambda W: LowRank.from_svd(W, 1).dense(), "entries of yours differ from the right table"),
            (lambda W: LowRank.from_svd(W, 1).dense().round(), "yours says 55 there"),
            (lambda W: W, "yours says 54 there"),
            (
                lambda W: np.multiply.outer(*(np.arange(1, side + 1) for side in W.shape)),
                "where row 2, column 1 says 53",
            ),
            (lambda W: np.argwhere(W == 54)[0], "the whole repaired matrix is asked for"),
            (lambda W: W - LowRank.from_svd(W, 1).dense(), "entries of yours differ"),
        ),
    ),
)
