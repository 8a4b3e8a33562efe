"""The small experiment of notebook 07: is a handwritten digit odd, and how many numbers does it take to learn that?

A network of three layers learns to say odd or even from 1,000 digits, in random subspaces of d numbers. It begins in
one of three ways: after it has learned to name other digits, after the same with mirrored digits, or at random weights.
The last layer, which tells odd from even, is new and the same in all three.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.random_subspace import dimension_found

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_lab.finetune import DigitSet
    from lora_lab.lora import IntrinsicDimension

STARTS = ("pretrained", "pretrained on mirrored digits", "untrained")
WIDTH = 64  # of both hidden layers
PRETRAINING = 1950  # digits, each read ten times
FULL_RATE = 3e-3  # AdamW's, and RATE / √d in a subspace: the best of the validation digits among factors of 3
RATE = 5.0
BATCH_SIZE = 64


@dataclass(frozen=True)
class DigitMaterials:
    """What all runs share.

    Attributes:
        starts: the network in each of the three ways of ``STARTS``.
        train: 1,000 digits to learn from, none of which pre-training has seen.
        test: digits to be judged by.
        majority: the share of right answers if the commoner one is given always.
        named: the share of test digits that the pretrained network names, with the last layer it had then.
    """

    starts: Mapping[str, nn.Module]
    train: DigitSet
    test: DigitSet
    majority: float
    named: float


def network(classes: int, *, seed: int = 0) -> nn.Sequential:
    """Give the network at random weights: 784 pixels, two layers of 64 with ReLU, and the classes."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(784, WIDTH), nn.Linear(WIDTH, WIDTH)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(WIDTH, classes))


def mirrored(images: torch.Tensor) -> torch.Tensor:
    """Give images (n, 784) with left and right exchanged."""
    return images.reshape(-1, 28, 28).flip(2).reshape(-1, 784)


def share_right(model: nn.Module, images: torch.Tensor, answers: torch.Tensor) -> float:
    """Give the share of images for which the highest score is that of the answer."""
    import torch

    with torch.no_grad():
        return float((model(images).argmax(-1) == answers).double().mean())


def digit_dimension(
    runs: Sequence[Mapping[str, Any]], start: str, *, baseline: float, full_score: float | None = None
) -> IntrinsicDimension:
    """Give the intrinsic dimension that the runs of one start bracket, as ``dimension_found`` gives it.

    Args:
        runs: what the experiment measured.
        start: one of ``STARTS``.
        baseline: the score of guessing.
        full_score: the score to compare with; by default that of full training from the same start.

    Raises:
        ValueError: no run begins so, or whatever ``dimension_found`` refuses.
    """
    same = [{**run, "pretrained": True} for run in runs if run["start"] == start]
    if not same:
        raise ValueError(f"start: got {start!r}, and the runs begin {sorted({run['start'] for run in runs})}")
    return dimension_found(same, pretrained=True, baseline=baseline, full_score=full_score)


def _learn(
    model: nn.Module, images: torch.Tensor, answers: torch.Tensor, *, rate: float, epochs: int, seed: int, batch: int
) -> None:
    """Minimise the cross entropy of the answers over what trains in the model."""
    from torch import nn

    from lora_lab.finetune import Settings, minimise

    def loss(places: list[int]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(images[places]), answers[places])

    settings = Settings(epochs=epochs, learning_rate=rate, batch_size=batch, seed=seed, weight_decay=0.0)
    minimise(model, loss, len(images), settings, progress=False)


def _prepare(options: Options) -> DigitMaterials:
    """Share the digits out, and pretrain twice."""
    from lora_lab.finetune import load_digits, majority_accuracy

    for start in options["starts"]:
        if start not in STARTS:
            raise ValueError(f"starts: got {start!r}, takes {', '.join(STARTS)}")
    if options["examples"] > PRETRAINING:
        raise ValueError(f"examples: got {options['examples']}, takes at most {PRETRAINING}")
    digits = load_digits()
    some = digits.subset(2 * PRETRAINING, seed=0)
    train, others = some[range(options["examples"])], some[range(PRETRAINING, 2 * PRETRAINING)]
    untrained, named = network(2), 0.0
    starts: dict[str, nn.Module] = {"untrained": untrained}
    for start, view in (("pretrained", lambda images: images), ("pretrained on mirrored digits", mirrored)):
        if start not in options["starts"]:
            continue
        base = network(10)
        _learn(base, view(others.images), others.labels, rate=FULL_RATE, epochs=10, seed=0, batch=32)
        if start == "pretrained":
            named = share_right(base, digits.test.images, digits.test.labels)
        starts[start] = copy.deepcopy(untrained)
        body = {key: value for key, value in base.state_dict().items() if not key.startswith("4.")}
        starts[start].load_state_dict({**untrained.state_dict(), **body})
    majority = majority_accuracy((train.labels % 2).tolist(), (digits.test.labels % 2).tolist())
    return DigitMaterials(starts, train, digits.test, majority, named)


def _plan(options: Options) -> list[Run]:
    """Give full training and each dimension, from each start, with each seed."""
    return [
        {"start": start, "dimension": dimension, "seed": seed}
        for start in options["starts"]
        for dimension in (None, *sorted(options["dimensions"]))
        for seed in sorted(options["seeds"])
    ]


def _measure(shared: DigitMaterials, options: Options, settings: Run, progress: bool) -> Run:
    """Train once, and score the test digits and those it learned from."""
    from lora_lab.lora import FullConfig, SubspaceConfig, account, attach

    dimension, seed = settings["dimension"], settings["seed"]
    model = copy.deepcopy(shared.starts[settings["start"]])
    attach(model, FullConfig() if dimension is None else SubspaceConfig(dimension, seed=seed))
    train, test = shared.train, shared.test
    _learn(
        model,
        train.images,
        train.labels % 2,
        rate=FULL_RATE if dimension is None else RATE / math.sqrt(dimension),
        epochs=options["epochs"],
        seed=seed,
        batch=BATCH_SIZE,
    )
    return {
        "trainable": account(model).trainable,
        "score": share_right(model, test.images, test.labels % 2),
        "training score": share_right(model, train.images, train.labels % 2),
    }


EXPERIMENT = Experiment(
    name="digit-dimension",
    purpose="a small network learns to tell odd digits from even ones in random subspaces, pretrained and untrained",
    options={
        "starts": Option(STARTS, "how the network begins"),
        "dimensions": Option((10, 32, 100, 316, 1000), "dimensions of the subspace"),
        "examples": Option(1000, "training digits, at most 1950"),
        "epochs": Option(10, "how often each is read"),
        "seeds": Option((0, 1, 2), "each draws another subspace and another order"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
)
