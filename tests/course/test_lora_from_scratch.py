"""The exercises of notebook 05 take every right answer, whichever way it is written."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lora_lab.course import check
from lora_lab.course.exercises.lora_from_scratch import affordable_rank, forward, merged_layer, start, update
from lora_lab.lora import LoRAConfig, LoRALinear, account, attach, initial_lora_A, lora_delta, merge
from lora_lab.lowrank import parameter_count


def update_by_layers(lora_A, lora_B, alpha):
    rank = lora_B.shape[1]
    return sum(alpha / rank * torch.outer(lora_B[:, k], lora_A[k]) for k in range(rank))


def forward_by_rows(x, weight, lora_A, lora_B, scale):
    rows = []
    for row in x:
        h = lora_A @ row
        rows.append(weight @ row + lora_B @ (scale * h))
    return torch.stack(rows)


def forward_for_batches(x, weight, lora_A, lora_B, scale):
    batch = x[None]
    return (F.linear(batch, weight) + scale * F.linear(F.linear(batch, lora_A), lora_B))[0]


def forward_by_einsum(x, weight, lora_A, lora_B, scale):
    h = torch.einsum("ti,ri->tr", x, lora_A)
    return torch.einsum("ti,oi->to", x, weight) + scale * torch.einsum("tr,or->to", h, lora_B)


def budget_by_loop(shapes, budget):
    rank = 0
    while sum((rank + 1) * (m + n) for m, n in shapes) <= budget:
        rank += 1
    return rank


def budget_by_counting(shapes, budget):
    rank = 0
    while sum(parameter_count(m, n, rank + 1) for m, n in shapes) <= budget:
        rank += 1
    return rank


def start_by_kaiming(out_features, in_features, rank, generator):
    bound = 1 / math.sqrt(in_features)  # a uniform law of deviation 0.58/√inputs
    return [
        torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator),
        torch.zeros(out_features, rank),
    ]


def start_as_parameters(out_features, in_features, rank, generator):
    lora_A = torch.randn(rank, in_features, generator=generator).mul_(in_features**-0.5)
    return torch.nn.Parameter(lora_A), torch.nn.Parameter(torch.zeros(out_features, rank))


def merged_in_the_same_dict(layer):
    if not layer["merged"]:
        layer["weight"] = layer["weight"] + lora_delta(layer["lora_A"], layer["lora_B"], layer["scale"])
        layer["merged"] = True
    return layer


def merged_in_float64(layer):
    if layer["merged"] is False:
        delta = layer["scale"] * layer["lora_B"].double() @ layer["lora_A"].double()
        return dict(layer, weight=(layer["weight"].double() + delta).float(), merged=True)
    return dict(layer)


def merged_by_a_number(layer):
    delta = 0.0 if layer["merged"] else lora_delta(layer["lora_A"], layer["lora_B"], layer["scale"])
    return {**layer, "weight": layer["weight"] + delta, "merged": 1}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("05.update", update_by_layers),
        ("05.update", lambda A, B, alpha: (A.T @ B.T).T * alpha / B.shape[1]),
        ("05.update", lambda A, B, alpha: lora_delta(A, B, alpha / len(A))),
        ("05.update", lambda A, B, alpha: (alpha / len(A) * B.numpy() @ A.numpy()).astype(np.float32)),
        ("05.update", lambda A, B, alpha: alpha / len(A) * B.numpy().astype(float) @ A.numpy().astype(float)),
        ("05.forward", forward_by_rows),
        ("05.forward", lambda x, W, A, B, scale: forward(x, W, A, B, scale).double()),
        ("05.forward", forward_for_batches),
        ("05.forward", forward_by_einsum),
        ("05.forward", lambda x, W, A, B, scale: F.linear(x, W) + (scale * x) @ A.T @ B.T),
        ("05.forward", lambda x, W, A, B, scale: (W @ x.T + scale * (B @ (A @ x.T))).T),
        ("05.budget", budget_by_loop),
        ("05.budget", budget_by_counting),
        ("05.budget", lambda shapes, budget: int(budget / sum(map(sum, shapes)))),
        ("05.start", start_by_kaiming),
        ("05.start", start_as_parameters),
        ("05.start", lambda m, n, r, g: (initial_lora_A(r, n, generator=g), torch.zeros(m, r))),
        ("05.merge", merged_in_the_same_dict),
        ("05.merge", merged_in_float64),
        ("05.merge", merged_by_a_number),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


def test_solutions_do_what_the_package_does():
    base = torch.nn.Linear(5, 7, bias=False)
    A, B = start(7, 5, 3, torch.Generator().manual_seed(0))
    B = B + 0.5
    box = attach(torch.nn.Sequential(base), LoRAConfig(rank=3, alpha=6, targets=("0",)))
    assert isinstance(box[0], LoRALinear)
    with torch.no_grad():
        box[0].lora_A.copy_(A)
        box[0].lora_B.copy_(B)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(update(A, B, 6), lora_delta(A, B, 2.0))
    assert torch.equal(forward(x, base.weight, A, B, 2.0), box(x))
    layer = {"weight": base.weight.detach(), "lora_A": A, "lora_B": B, "scale": 2.0, "merged": False}
    merge(box)
    torch.testing.assert_close(merged_layer(layer)["weight"], box[0].base.weight.detach())


def test_an_affordable_rank_is_affordable_and_the_next_is_not():
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 27))
    shapes = [(layer.out_features, layer.in_features) for layer in model]
    rank = affordable_rank(shapes, 2_000)
    for tried in (rank, rank + 1):
        copy = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 27))
        count = account(attach(copy, LoRAConfig(rank=tried, targets="all-linear"))).trainable
        assert (count <= 2_000) == (tried == rank)
