"""The exercises of notebook 10 take every right answer, whichever way it is written, and name what is wrong."""

import math

import numpy as np
import pytest
import torch

from lora_lab.course import check
from lora_lab.lora import dequantize, merged_weight, quantize
from lora_lab.lowrank import LowRank


def merge_in_float32(weight, lora_A, lora_B, scale):
    wide = torch.float64 if weight.dtype == torch.float32 else torch.float32
    return (weight.to(wide) + scale * (lora_B.to(wide) @ lora_A.to(wide))).to(weight.dtype)


def mix_in_A(first, second, share):
    (A1, B1), (A2, B2) = first, second
    return torch.vstack([share * A1, (1 - share) * A2]), torch.hstack([B1, B2])


def mix_by_svd(first, second, share):
    (A1, B1), (A2, B2) = first, second
    U, s, Vt = torch.linalg.svd(share * B1 @ A1 + (1 - share) * B2 @ A2, full_matrices=False)
    return [Vt, U * s]


def serve_by_stacking(x, weight, adapters, names):
    deltas = [adapters[name][1] @ adapters[name][0] if name else torch.zeros_like(weight) for name in names]
    return torch.stack([row @ (weight + delta).T for row, delta in zip(x, deltas, strict=True)])


def serve_by_adapter(x, weight, adapters, names):
    y = torch.nn.functional.linear(x, weight)
    for name, (A, B) in adapters.items():
        mine = torch.tensor([other == name for other in names])
        y[mine] += x[mine] @ A.T @ B.T
    return y


def extract_with_lowrank(before, after, rank):
    low = LowRank.from_svd(after - before, rank)
    return low.right, low.left


def extract_by_projection(before, after, rank):
    B = np.linalg.svd(after - before)[0][:, :rank]
    return [B.T @ (after - before), B]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("10.merge", merged_weight),
        ("10.merge", merge_in_float32),
        ("10.mix", mix_in_A),
        ("10.mix", mix_by_svd),
        ("10.rows", serve_by_stacking),
        ("10.rows", serve_by_adapter),
        ("10.extract", extract_with_lowrank),
        ("10.extract", extract_by_projection),
        ("10.bytes", lambda numbers, block: math.ceil(numbers / 2) + 4 * math.ceil(numbers / block)),
        ("10.bytes", lambda numbers, block: float((numbers + 1) // 2 + (numbers + block - 1) // block * 4)),
        ("10.bytes", lambda numbers, block: quantize(torch.ones(numbers), block=block).nbytes),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("10.merge", lambda W, A, B, s: (W.float() + s * (B @ A)).to(W.dtype), "Form the sum in float64"),
        ("10.merge", lambda W, A, B, s: dequantize(quantize(merged_weight(W, A, B, s))), "far from W + scale"),
        ("10.merge", lambda W, A, B, s: merged_weight(W, A, B, s).T, "must give a tensor of (24, 16)"),
        ("10.mix", lambda one, two, share: (two[0], one[1]), "(1 − share) · B₂ A₂."),
        ("10.rows", lambda x, W, adapters, names: serve_by_stacking(x, W.T, adapters, names), "stopped with"),
        ("10.rows", lambda x, W, adapters, names: 2 * serve_by_adapter(x, W, adapters, names), "it should be x Wᵀ"),
        ("10.extract", lambda before, after, rank: extract_with_lowrank(before, after, rank + 1), "A must be (2, 4)"),
        ("10.rows", lambda x, W, adapters, names: serve_by_adapter(x, W, adapters, names).numpy(), "must be a tensor"),
        ("10.bytes", lambda numbers, block: True, "must give a number of bytes"),
    ],
)
def test_other_wrong_answers_are_told_what_is_wrong(name, answer, words, capsys):
    check(name, answer)
    assert words in capsys.readouterr().out
