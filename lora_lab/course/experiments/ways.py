"""The ways of fine-tuning that the experiments compare, by name, each with the learning rate that served it best.

A name is "full", "head", "bitfit", "bottleneck-16" (Houlsby's adapters of width 16), "lora-8" (LoRA of rank 8 on every
linear layer inside the encoder's blocks) or "lora-qv-8" (on query and value alone): these train the head too. And
"subspace-100": a random subspace of 100 numbers, in which the blocks and the head move together.
"""

from __future__ import annotations

import math
from typing import Any

HEAD = ("classifier",)  # the module that every way of training trains anew
ALL_LAYERS = ("query", "key", "value", "dense")  # the 36 matrices of MiniLM's blocks
QUERY_AND_VALUE = ("query", "value")
MOVED = ("encoder.layer", "classifier")  # what a subspace moves: 10.6 of MiniLM's 22.6 million weights, no embeddings

# The best of data/results/learning-rates*.json, by the score on the validation sentences.
LEARNING_RATES = {
    "full": 2e-4,
    "head": 1e-2,
    "bitfit": 3e-3,
    "bottleneck-4": 3e-3,
    "bottleneck-16": 3e-3,
    "bottleneck-64": 1e-3,
    "lora-qv-1": 3e-3,
    "lora-qv-8": 1e-3,
    "lora-1": 3e-3,
    "lora-2": 1e-3,
    "lora-4": 1e-3,
    "lora-8": 1e-3,
    "lora-64": 3e-4,
    "subspace-100": 0.3,
    "subspace-1000": 0.1,
    "subspace-10000": 0.03,
}

# Where the best is looked for; the widest search is for the ways whose best was at an end of the others' rates.
RATES_TRIED = {
    "lora-1": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora-64": (1e-4, 3e-4, 1e-3, 3e-3),
    "subspace-100": (1e-1, 3e-1, 1.0, 3.0),
    "subspace-1000": (3e-2, 1e-1, 3e-1),
    "subspace-10000": (3e-3, 1e-2, 3e-2, 1e-1),
    "full": (1e-4, 2e-4, 4e-4),
    "head": (3e-3, 1e-2, 3e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "bottleneck": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora-qv-1": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora": (3e-4, 1e-3, 3e-3),
}


def configuration(way: str, *, seed: int = 0) -> Any:
    """Give what ``lora_lab.lora.attach`` takes for a way of fine-tuning.

    LoRA's alpha is twice the rank, so its scale is 2 at every rank. The seed draws the directions of a subspace; what
    else is drawn, ``attach`` draws.

    Raises:
        ValueError: there is no such way.
    """
    from lora_lab.lora import BitFitConfig, BottleneckConfig, FullConfig, HeadOnlyConfig, LoRAConfig, SubspaceConfig

    kind, _, size = way.rpartition("-")
    if way == "full":
        return FullConfig()
    if way == "head":
        return HeadOnlyConfig(HEAD)
    if way == "bitfit":
        return BitFitConfig(modules_to_save=HEAD)
    if kind == "bottleneck" and size.isdecimal():
        return BottleneckConfig(width=int(size), targets=("output.dropout",), modules_to_save=HEAD)
    if kind in ("lora", "lora-qv") and size.isdecimal():
        targets = ALL_LAYERS if kind == "lora" else QUERY_AND_VALUE
        return LoRAConfig(rank=int(size), alpha=2 * int(size), targets=targets, modules_to_save=HEAD)
    if kind == "subspace" and size.isdecimal():
        return SubspaceConfig(int(size), parameters=MOVED, seed=seed)
    raise ValueError(
        f"way: got {way!r}, takes full, head, bitfit, bottleneck-WIDTH, lora-RANK, lora-qv-RANK or subspace-DIMENSION"
    )


def rates_tried(way: str) -> tuple[float, ...]:
    """Give the learning rates among which the best for a way is looked for.

    Raises:
        ValueError: there is no such way.
    """
    configuration(way)
    kind = way.partition("-")[0]
    if way not in RATES_TRIED and kind not in RATES_TRIED:
        searched = ", ".join(tried for tried in RATES_TRIED if tried.startswith(kind))
        raise ValueError(f"way: no rates are tried for {way!r}; they are for {searched}")
    return RATES_TRIED.get(way, RATES_TRIED.get(kind, ()))


def learning_rate(way: str) -> float:
    """Give the learning rate that served a way best.

    For a subspace of a dimension that was not searched itself, it is the rate on the straight line, in logarithms,
    through the two nearest dimensions that were.

    Raises:
        ValueError: none was looked for.
    """
    kind, _, size = way.rpartition("-")
    if way not in LEARNING_RATES and kind == "subspace" and size.isdecimal():
        return _between(int(size))
    if way not in LEARNING_RATES:
        raise ValueError(f"way: the best learning rate of {way!r} is not known; there are {', '.join(LEARNING_RATES)}")
    return LEARNING_RATES[way]


def _between(dimension: int) -> float:
    """Give the learning rate of a subspace from those of the two nearest dimensions that have one."""
    known = {int(way.rpartition("-")[2]): rate for way, rate in LEARNING_RATES.items() if way.startswith("subspace-")}
    nearest = sorted(known, key=lambda other: abs(math.log(other / dimension)))[:2]
    (x1, y1), (x2, y2) = ((math.log(other), math.log(known[other])) for other in nearest)
    return math.exp(y1 + (y2 - y1) * (math.log(dimension) - x1) / (x2 - x1))
