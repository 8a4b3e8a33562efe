"""The exercises of notebook 02 take every right answer, whichever way it is written."""

import numpy as np
import pytest

from lora_lab.course import check
from lora_lab.lowrank import LowRank, choose_rank, truncated_svd


def by_layers(W, rank):
    U, s, Vt = np.linalg.svd(W)
    return sum((s[k] * np.outer(U[:, k], Vt[k]) for k in range(rank)), np.zeros(W.shape))


def by_projection(W, rank):
    U = np.linalg.svd(W)[0][:, :rank]
    return U @ (U.T @ W)


def by_diagonal(W, rank):
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    s[rank:] = 0
    return (U @ np.diag(s) @ Vt).tolist()


def energy_by_loop(W, share):
    s = np.linalg.svd(W)[1]
    rank = 0
    while (s[:rank] ** 2).sum() < share * (s**2).sum():
        rank += 1
    return rank


def signs_by_first_entry_that_is_not_zero(U, Vt):
    for k in range(U.shape[1]):
        first = next(x for x in U[:, k] if abs(x) > 1e-9)
        if first < 0:
            U[:, k], Vt[k] = -U[:, k], -Vt[k]
    return U, Vt


def signs_by_right_vectors(U, Vt):
    signs = np.sign([row[np.abs(row).argmax()] for row in Vt])
    return [U @ np.diag(signs), np.diag(signs) @ Vt]


def signs_all_negative(U, Vt):
    signs = -np.sign(np.sum(U**3, axis=0))
    return U * signs, (Vt.T * signs).T


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("02.truncate", by_layers),
        ("02.truncate", by_projection),
        ("02.truncate", by_diagonal),
        ("02.truncate", LowRank.from_svd),
        ("02.truncate", lambda W, rank: truncated_svd(W, rank)),
        ("02.truncate", lambda W, rank: (LowRank.from_svd(W, rank).left, LowRank.from_svd(W, rank).right)),
        ("02.truncate", lambda W, rank: list(truncated_svd(W, rank))),
        ("02.truncate", lambda W, rank: [LowRank.from_svd(W, rank).left, LowRank.from_svd(W, rank).right]),
        ("02.energy", energy_by_loop),
        ("02.energy", lambda W, share: choose_rank(W, energy=share)),
        ("02.energy", lambda W, share: float(choose_rank(W, energy=share))),
        ("02.error_from_tail", lambda s, rank: np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())),
        ("02.error_from_tail", lambda s, rank: np.hypot.reduce(s[rank:]) / np.hypot.reduce(s)),
        ("02.error_from_tail", lambda s, rank: np.linalg.norm(s[rank:], keepdims=True) / np.linalg.norm(s)),
        ("02.signs", signs_by_first_entry_that_is_not_zero),
        ("02.signs", signs_by_right_vectors),
        ("02.signs", signs_all_negative),
        ("02.best_right", lambda W, left: np.linalg.pinv(left) @ W),
        ("02.best_right", lambda W, left: np.linalg.solve(left.T @ left, left.T @ W)),
        ("02.best_right", lambda W, left: np.array([np.linalg.lstsq(left, w, rcond=None)[0] for w in W.T]).T.tolist()),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"
