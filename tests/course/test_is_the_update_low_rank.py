"""The exercises of notebook 06 take every right answer, whichever way it is written."""

import numpy as np
import pytest

from lora_lab.course import check
from lora_lab.lora import subspace_similarity
from lora_lab.lowrank import LowRank, choose_rank, rank_errors


def rank_by_loop(W, W_tuned, energy):
    s, rank = np.linalg.svd(W_tuned - W)[1], 0
    while np.sum(s[:rank] ** 2) < energy * np.sum(s**2):
        rank += 1
    return rank


def cut_by_layers(W, W_tuned, rank):
    U, s, Vt = np.linalg.svd(W_tuned - W)
    for k in range(rank):
        W += s[k] * np.outer(U[:, k], Vt[k])
    return W.tolist()


def cut_by_low_rank(W, W_tuned, rank):
    return W + LowRank.from_svd(W_tuned - W, rank).dense() if rank else W


def similarity_by_projections(A1, A2, i, j):
    P1, P2 = (np.linalg.svd(A)[2][:k].T @ np.linalg.svd(A)[2][:k] for A, k in ((A1, i), (A2, j)))
    return np.trace(P1 @ P2) / min(i, j)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("06.rank_of_update", rank_by_loop),
        ("06.rank_of_update", lambda W, W_tuned, energy: choose_rank(W_tuned - W, energy=energy)),
        ("06.rank_of_update", lambda W, W_tuned, energy: choose_rank(W - W_tuned, error=np.sqrt(1 - energy))),
        ("06.rank_of_update", lambda W, W_tuned, e: int(np.argmax(1 - rank_errors(W_tuned - W) ** 2 >= e))),
        ("06.cut", cut_by_layers),
        ("06.cut", cut_by_low_rank),
        ("06.highest_rank", lambda m, n, b, steps: float(min(b * steps, min(m, n)))),
        ("06.similarity", similarity_by_projections),
        ("06.similarity", lambda A1, A2, i, j: subspace_similarity(A1, A2)[i - 1, j - 1]),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"
