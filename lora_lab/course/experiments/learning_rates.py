"""The experiment behind the others: which learning rate serves each way of fine-tuning best.

A comparison at one learning rate compares learning rates. So each way is tried at several. The rate with the best score
on the validation sentences is the one it gets in every other experiment, where it is judged on the test sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import (
    Materials,
    conditions,
    learned,
    materials,
    score,
    training_figures,
)
from lora_lab.course.experiments.ways import configuration, rates_tried


def best_rates(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give the learning rate of each way with the highest mean validation score; of equal ones the smallest."""
    scores: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        scores.setdefault((run["way"], run["learning_rate"]), []).append(run["validation"])
    means = {key: sum(some) / len(some) for key, some in scores.items()}
    best: dict[str, float] = {}
    for way, rate in sorted(means, key=lambda key: (-means[key], key[1])):
        best.setdefault(way, rate)
    return {way: best[way] for way in dict.fromkeys(run["way"] for run in runs)}


def _plan(options: Options) -> list[Run]:
    """Give every way with each of its learning rates and every seed."""
    return [
        {"way": way, "learning_rate": rate, "seed": seed}
        for way in options["ways"]
        for rate in rates_tried(way)
        for seed in sorted(options["seeds"])
    ]


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train in one way at one rate, and score the validation sentences."""
    from lora_lab.lora import account

    model, history = learned(
        shared,
        configuration(settings["way"], seed=settings["seed"]),
        shared.reviews.subset(options["examples"], seed=settings["seed"]),
        learning_rate=settings["learning_rate"],
        epochs=options["epochs"],
        seed=settings["seed"],
    )
    return {
        "trainable": account(model).trainable,
        **training_figures(history),
        "validation": score(shared, model, shared.reviews.validation),
    }


EXPERIMENT = Experiment(
    name="learning-rates",
    purpose="an encoder learns film reviews: the best learning rate of each way of fine-tuning",
    options={
        "ways": Option(("full", "head", "lora-1", "lora-2", "lora-4", "lora-8", "lora-64"), "ways of fine-tuning"),
        "examples": Option(1024, "training sentences"),
        "epochs": Option(3, "how often each is read"),
        "seeds": Option((0,), "each draws other sentences, another order and other factors"),
    },
    plan=_plan,
    prepare=materials,
    measure=_measure,
    conditions=conditions,
)
