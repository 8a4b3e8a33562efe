"""The exercises of notebook 01 take every right answer, whichever way it is written."""

import numpy as np
import pytest

from lora_lab.course import check
from lora_lab.lowrank import LowRank, truncated_svd


def by_svd(W):
    U, s, Vt = truncated_svd(W, 1)
    return -U * s, -Vt


def by_list(W):
    row = next(i for i in range(len(W)) if W[i].any())
    column = W[row].nonzero()[0][0]
    return [W[:, [column]], W[[row], :] / W[row, column]]


def by_loop(left, right, x):
    result = np.zeros(len(left))
    for column, row in zip(left.T, right, strict=True):
        result += column * row.dot(x)
    return result


def by_search(W):
    """Try each entry: without its row, the matrix must be of rank 1, and without its column too."""
    for i, j in np.ndindex(W.shape):
        rest = np.delete(W, i, axis=0), np.delete(W, j, axis=1)
        if all(np.linalg.matrix_rank(part) == 1 for part in rest):
            other = (i + 1) % len(W)
            ratio = np.median(np.delete(W[i] / W[other], j))
            repaired = W.astype(float)
            repaired[i, j] = ratio * W[other, j]
            return repaired
    raise AssertionError("no entry is wrong")


def by_iteration(W):
    repaired = W.astype(float)
    place = np.unravel_index(np.abs(W - LowRank.from_svd(W, 1).dense()).argmax(), W.shape)
    for _ in range(200):
        repaired[place] = LowRank.from_svd(repaired, 1).dense()[place]
    return repaired


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("01.break_even", 418),
        ("01.break_even", np.int64(418)),
        ("01.break_even", 418.0),
        ("01.break_even", [418]),
        ("01.rank_of", (1, 2, 3, 9, 2)),
        ("01.rank_of", np.array([1, 2, 3, 9, 2])),
        ("01.outer", by_svd),
        ("01.outer", by_list),
        ("01.outer", lambda W: LowRank.from_svd(W, 1)),
        ("01.multiply", by_loop),
        ("01.multiply", lambda left, right, x: LowRank(left, right) @ x),
        ("01.multiply", lambda left, right, x: (x @ right.T) @ left.T),
        ("01.repair", by_search),
        ("01.repair", by_iteration),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


def test_rank_of_is_what_numpy_counts():
    i, j = np.mgrid[1:10, 1:10]
    matrices = [i * j + i + j + 1, i * j + 1, (i + j) ** 2, np.maximum(i, j), (i + j) % 2]
    assert [np.linalg.matrix_rank(W) for W in matrices] == [1, 2, 3, 9, 2]
