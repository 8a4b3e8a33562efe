"""The experiment of notebook 08: what each way of fine-tuning scores, trains and stores, on one task and one budget.

Full fine-tuning, the head alone, the biases, bottleneck adapters and LoRA learn the same sentences in the same order,
each at the learning rate that served it best on the validation sentences. They are judged on the test sentences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import (
    Materials,
    conditions,
    learned,
    materials,
    score,
    training_figures,
)
from lora_lab.course.experiments.ways import configuration, learning_rate

if TYPE_CHECKING:
    from torch import nn

WAYS = (
    "full",
    "head",
    "bitfit",
    "bottleneck-4",
    "bottleneck-16",
    "bottleneck-64",
    "lora-1",
    "lora-8",
    "lora-64",
    "lora-qv-1",
    "lora-qv-8",
)


def by_way(runs: Sequence[Mapping[str, Any]], figure: str = "score") -> dict[str, list[float]]:
    """Give one figure of each way, a number a seed, the seeds in the same order for all.

    Raises:
        ValueError: the ways do not have the same seeds.
    """
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run["way"], {})[run["seed"]] = run[figure]
    seeds = {way: sorted(some) for way, some in found.items()}
    if len({tuple(some) for some in seeds.values()}) > 1:
        raise ValueError(f"runs: the ways must have the same seeds, got {seeds}")
    return {way: [some[seed] for seed in seeds[way]] for way, some in found.items()}


def bytes_stored(model: nn.Module) -> int:
    """Give the size of the file that keeps what a model has learned, in bytes, beside a base that is kept anyway.

    A LoRA adapter is written by ``save_adapter``, and its tensors' file counts; of any other way the tensors that train
    are written to one safetensors file. Both keep numbers in the type they have. The head is part of it.

    Raises:
        ValueError: nothing in the model trains, or ``save_adapter`` refuses it.
    """
    from safetensors.torch import save_file

    from lora_lab.lora import lora_layers, save_adapter
    from lora_lab.lora.files import WEIGHTS_FILE

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_FILE
        if lora_layers(model):
            save_adapter(model, folder, base_model=getattr(model, "name_or_path", None) or "the base")
        else:
            tensors = {name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
            if not tensors:
                raise ValueError("model: no parameter requires a gradient, so there is nothing to store")
            save_file(tensors, path)
        return path.stat().st_size


def _prepare(options: Options) -> Materials:
    """Load encoder and sentences, unless a way has no learning rate of its own, which is better known at once."""
    for way in options["ways"]:
        configuration(way)
        learning_rate(way)
    return materials(options)


def _plan(options: Options) -> list[Run]:
    """Give every way, seed after seed."""
    return [{"way": way, "seed": seed} for seed in sorted(options["seeds"]) for way in options["ways"]]


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train in one way at its own learning rate, score the test sentences, and weigh what is to be kept."""
    from lora_lab.lora import account

    way, seed = settings["way"], settings["seed"]
    rate = learning_rate(way)
    model, history = learned(
        shared,
        configuration(way, seed=seed),
        shared.reviews.subset(options["examples"], seed=seed),
        learning_rate=rate,
        epochs=options["epochs"],
        seed=seed,
    )
    figures: dict[str, Any] = {
        "learning_rate": rate,
        "trainable": account(model).trainable,
        "bytes": bytes_stored(model),
        **training_figures(history),
        "score": score(shared, model),
    }
    return figures


EXPERIMENT = Experiment(
    name="rivals",
    purpose="an encoder learns film reviews: LoRA and its rivals, each at its own best learning rate",
    options={
        "ways": Option(WAYS, "ways of fine-tuning"),
        "examples": Option(1024, "training sentences"),
        "epochs": Option(3, "how often each is read"),
        "seeds": Option((0, 1, 2), "each draws other sentences, another order and other factors"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=conditions,
)
