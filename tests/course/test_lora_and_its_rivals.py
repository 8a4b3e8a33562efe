"""The exercises of notebook 08 take every right answer, and their solutions are right by an outside count."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lora_lab.course import check
from lora_lab.course.exercises.lora_and_its_rivals import (
    RUNS,
    adapter_parameters,
    bytes_of_tasks,
    judged,
    same_count,
    told_apart,
)
from lora_lab.course.papers import gpt3_lora_parameters, load_paper


def by_building(blocks, d, width):
    """Count the parameters of layers on the meta device, which has no numbers."""
    adapter = nn.Sequential(nn.Linear(d, width, device="meta"), nn.GELU(), nn.Linear(width, d, device="meta"))
    return 2 * blocks * sum(parameter.numel() for parameter in adapter.parameters())


def by_trying(total, layers, d):
    return {
        (matrices, rank)
        for matrices, rank in itertools.product((1, 2, 3, 4), range(1, d + 1))
        if layers * matrices * rank * 2 * d == total
    }


def by_loop(runs):
    best = {}
    for run in runs:
        if run["way"] not in best or run["validation"] > best[run["way"]]["validation"]:
            best[run["way"]] = run
    return {way: run["test"] for way, run in best.items()}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("08.adapters", by_building),
        ("08.adapters", lambda blocks, d, width: float(blocks * (4 * d * width + 2 * width + 2 * d))),
        ("08.same_count", by_trying),
        ("08.same_count", lambda *given: [list(pair) for pair in same_count(*given)][::-1]),
        ("08.judge", by_loop),
        ("08.told_apart", lambda a, b, fluctuation: max(a, b) - fluctuation > min(a, b) + fluctuation),
        ("08.told_apart", lambda a, b, fluctuation: np.abs(a - b) > 2 * fluctuation),
        ("08.tasks", lambda base, trained, tasks: {"adapters": (base + trained * tasks) * 2, "full": base * 2 * tasks}),
    ],
)
def test_right_answers_pass_however_they_are_written(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out == f"{name}: passed\n"


def test_adapters_of_gpt3_are_as_many_as_the_paper_prints():
    printed = [row["trainable_millions"] for row in load_paper()["table_4"]["rows"] if "adapter" in row["method"]]
    assert [round(adapter_parameters(96, 12288, width) / 1e6, 1) for width in (1, 8)] == printed == [7.1, 40.1]


def test_all_choices_of_one_count_have_it():
    found = same_count(gpt3_lora_parameters("qv", 1), 96, 12288)
    assert found == [(1, 2), (2, 1)]
    assert {gpt3_lora_parameters("qkvo"[:matrices], rank) for matrices, rank in found} == {4_718_592}
    assert same_count(37_748_736, 96, 12288) == [(1, 16), (2, 8), (4, 4)]


def test_no_shortcut_judges_as_validation_does():
    right = judged(RUNS)
    assert right == {"full": 0.76, "LoRA": 0.77}
    for way, score in right.items():
        own = [run for run in RUNS if run["way"] == way]
        assert score < max(run["test"] for run in own)
        assert score not in {run["validation"] for run in RUNS}


def test_bars_that_overlap_are_not_told_apart():
    generator = torch.Generator().manual_seed(0)
    for a, b, bar in torch.rand(50, 3, generator=generator).tolist():
        apart = a + bar < b - bar or b + bar < a - bar
        assert told_apart(a, b, bar) == told_apart(b, a, bar) == apart


def test_a_hundred_adapters_and_their_base_are_as_large_as_the_paper_says():
    sizes = bytes_of_tasks(175_000_000_000, gpt3_lora_parameters("qv", 4), 100)
    assert round(sizes["adapters"] / 1e9) == load_paper()["statements"]["hundred_models"]["GB"]
    assert sizes["full"] == 35e12
