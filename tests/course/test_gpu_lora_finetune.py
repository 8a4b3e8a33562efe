"""The exercises of notebook 09 take every right answer, whichever way it is written, and name what is wrong."""

import numpy as np
import pytest
import torch

from lora_lab.course import check
from lora_lab.lora import merged_weight


def count_with_numpy(shapes, rank):
    return rank * np.array(shapes, dtype=int).sum()


def count_in_a_loop(layers, r):
    total = 0.0
    for out_features, in_features in layers:
        total += r * out_features + in_features * r
    return total


def label_an_array(tokens, answer_start):
    labels = np.array(tokens)
    labels[:answer_start] = -100
    return labels


def label_a_tensor(tokens, answer_start):
    return torch.where(torch.arange(len(tokens)) < answer_start, -100, torch.tensor(tokens))


def merge_in_float64(W, A, B, a):
    return (W.double() + a / B.shape[1] * B.double() @ A.double()).to(W.dtype)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("09.adapter_parameters", count_with_numpy),
        ("09.adapter_parameters", count_in_a_loop),
        ("09.adapter_parameters", lambda shapes, rank: torch.tensor(shapes).sum() * rank),
        ("09.answer_labels", label_an_array),
        ("09.answer_labels", label_a_tensor),
        ("09.answer_labels", lambda tokens, start: tuple(t if k >= start else -100 for k, t in enumerate(tokens))),
        ("09.merged", merge_in_float64),
        ("09.merged", lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / len(A))),
        ("09.merged", lambda W, A, B, alpha: (W.T + alpha / len(A) * A.T @ B.T).T),
        ("09.merged", lambda W, A, B, alpha: merged_weight(W, A, B, alpha / len(A))),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("09.adapter_parameters", lambda shapes, rank: str(rank * sum(map(sum, shapes))), "one number is asked for"),
        ("09.adapter_parameters", lambda shapes, rank: rank * np.array(shapes), "one number is asked for"),
        ("09.adapter_parameters", lambda shapes, rank: 460_800, "Each layer has an A"),
        ("09.answer_labels", lambda tokens, start: start, "yours cannot be read as one"),
        ("09.answer_labels", lambda tokens, start: [-1] * start + tokens[start:], "the labels are [-100, -100, 7, 8]"),
        ("09.merged", lambda W, A, B, alpha: W.numpy() + alpha / len(A) * B.numpy() @ A.numpy(), "it gives ndarray"),
        ("09.merged", lambda W, A, B, alpha: W + alpha / 8 * B @ A, "is off by up to"),
    ],
)
def test_other_wrong_answers_are_told_what_is_wrong(name, answer, words, capsys):
    check(name, answer)
    assert words in capsys.readouterr().out
