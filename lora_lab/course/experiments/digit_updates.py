"""The live experiment of notebook 06: a network that reads upright digits learns to read digits that lie on their side.

The network is small: 784 pixels, 256 and 128 hidden features, a head. It is trained on upright digits first. Then a few
hundred turned digits are learned in one of several ways, the head anew in each of them. A training takes half a
second, so that a lesson can afford many.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.ways import HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from lora_lab.finetune import Digits, DigitSet

LAYERS = ("first", "second")  # the two matrices that change, 256 × 784 and 128 × 256; the head is new in every task
BATCH_SIZE = 32
EPOCHS = 10

# Of three or four rates each, a factor of three apart, the best on the validation digits, by the mean of seeds 0, 1, 2.
LEARNING_RATES = {
    "full": 3e-3,
    "sgd": 1.0,
    "head": 1e-1,
    "lora-1": 3e-2,
    "lora-2": 1e-2,
    "lora-4": 1e-2,
    "lora-8": 3e-3,
}


def digit_network(classes: int = 10, *, seed: int) -> nn.Sequential:
    """Give an untrained network of three linear layers, first, second, classifier: 784 pixels to ``classes`` scores."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second, head = nn.Linear(784, 256), nn.Linear(256, 128), nn.Linear(128, classes)
    layers = {"first": first, "relu_1": nn.ReLU(), "second": second, "relu_2": nn.ReLU(), HEAD[0]: head}
    return nn.Sequential(OrderedDict(layers))


def turned(digits: DigitSet) -> DigitSet:
    """Give the same digits turned by 90 degrees, against the clock."""
    import torch

    from lora_lab.finetune import DigitSet

    upright = digits.images.reshape(-1, 28, 28)
    return DigitSet(torch.rot90(upright, 1, (1, 2)).reshape(-1, 784).contiguous(), digits.labels)


def below(digits: DigitSet, classes: int) -> DigitSet:
    """Give the digits 0 to ``classes`` − 1 alone.

    Raises:
        ValueError: ``classes`` is not a number from 2 to 10.
    """
    if not 2 <= classes <= 10:
        raise ValueError(f"classes: got {classes}, takes a whole number from 2 to 10")
    return digits[(digits.labels < classes).nonzero().flatten().tolist()]


def task(digits: Digits, *, size: int = 500, classes: int = 10, seed: int) -> DigitSet:
    """Give ``size`` turned training digits, as many of each of the classes; the seed decides which."""
    from lora_lab.finetune.splits import balanced_subset

    there = below(digits.train, classes)
    return turned(there[balanced_subset(there.labels.tolist(), size, seed=seed)])


def pretrained(digits: Digits, *, seed: int) -> nn.Sequential:
    """Give a network that has learned all upright training digits, five times each."""
    return descend(digit_network(seed=seed), digits.train, learning_rate=1e-3, seed=seed, epochs=5)


def with_new_head(base: nn.Sequential, classes: int = 10, *, seed: int) -> nn.Sequential:
    """Give a copy of the network with an untrained head for ``classes`` classes; all else is as in the base."""
    model = copy.deepcopy(base)
    model.set_submodule(HEAD[0], digit_network(classes, seed=seed + 100).get_submodule(HEAD[0]))
    return model


def learned(base: nn.Sequential, digits: DigitSet, way: str, *, seed: int) -> nn.Sequential:
    """Train a copy of the network in one of the ways of ``LEARNING_RATES``, each at its own rate, and give it.

    Args:
        base: the network to begin with, whose head is new.
        digits: the training digits.
        way: "full" trains everything with Adam, "sgd" does so with plain gradient descent, "head" trains the head
            alone, "lora-8" the head and updates of rank 8, with alpha 16, for the two layers before it.
        seed: decides the order of the digits and LoRA's first factors.

    Raises:
        ValueError: there is no such way.
    """
    if way not in LEARNING_RATES:
        raise ValueError(f"way: got {way!r}, takes one of {', '.join(LEARNING_RATES)}")
    import torch

    from lora_lab.lora import FullConfig, HeadOnlyConfig, LoRAConfig, attach

    model: Any = copy.deepcopy(base)
    kind, _, rank = way.partition("-")
    if kind == "lora":
        config: Any = LoRAConfig(rank=int(rank), alpha=2 * int(rank), targets=LAYERS, modules_to_save=HEAD)
    else:
        config = HeadOnlyConfig(HEAD) if way == "head" else FullConfig()
    attach(model, config, generator=torch.Generator().manual_seed(seed))
    return descend(model, digits, learning_rate=LEARNING_RATES[way], seed=seed, sgd=way == "sgd")


def descend(
    model: nn.Sequential,
    digits: DigitSet,
    *,
    learning_rate: float,
    seed: int,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    sgd: bool = False,
) -> nn.Sequential:
    """Train what requires a gradient, with Adam or with plain gradient descent, and give the model.

    Both see the same batches in the same order, and the same rise and fall of the learning rate.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lora_lab.finetune import Settings, minimise
    from lora_lab.finetune.training import batch_indices, learning_rate_at

    settings = Settings(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)

    def loss(places: list[int]) -> torch.Tensor:
        return cross_entropy(model(digits.images[places]), digits.labels[places])

    if not sgd:
        minimise(model, loss, len(digits), settings, progress=False)
        return model
    steps = epochs * -(-len(digits) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss(batch_indices(len(digits), step, settings)).backward()
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, steps, settings)
        optimizer.step()
    return model


def share_right(model: nn.Sequential, digits: DigitSet) -> float:
    """Give the share of the digits that the network names rightly, from 0 to 1."""
    import torch

    with torch.no_grad():
        right: torch.Tensor = model(digits.images).argmax(1) == digits.labels
    return right.double().mean().item()


def change(base: nn.Sequential, tuned: nn.Sequential, layer: str) -> NDArray[np.float64]:
    """Give ΔW = W_tuned − W of one layer, (out_features, in_features)."""
    layers: list[Any] = [model.get_submodule(layer) for model in (base, tuned)]
    before, after = (layer.weight.detach().double().numpy() for layer in layers)
    delta: NDArray[np.float64] = after - before
    return delta


def cut_scores(
    base: nn.Sequential,
    tuned: nn.Sequential,
    digits: DigitSet,
    ranks: Sequence[int],
    *,
    task: DigitSet | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """Give the share of right answers at each rank, of the base with every ΔW cut to the rank.

    At rank 0 nothing of ΔW is left. A rank above that of a layer keeps all of its ΔW. Biases are as in the base.

    Args:
        base: the network before.
        tuned: the network after.
        digits: what is to be read.
        ranks: the ranks to cut at.
        task: digits on which the base's head is trained anew for each cut; None takes the tuned head.
        seed: decides the order of those digits.
    """
    from lora_lab.lora import attach_updates, fold
    from lora_lab.lowrank import LowRank

    changes = {layer: change(base, tuned, layer) for layer in LAYERS}
    svds = {layer: LowRank.from_svd(delta, min(delta.shape)) for layer, delta in changes.items()}
    scores = {}
    for rank in ranks:
        model = copy.deepcopy(base)
        if rank:
            cut = {layer: LowRank(svd.left[:, :rank], svd.right[:rank]) for layer, svd in svds.items()}
            fold(attach_updates(model, cut, balanced=False))
        if task is None:
            model.get_submodule(HEAD[0]).load_state_dict(tuned.get_submodule(HEAD[0]).state_dict())
        else:
            model = learned(model, task, "head", seed=seed)
        scores[rank] = share_right(model, digits)
    return scores
