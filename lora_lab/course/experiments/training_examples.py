"""The experiment of notebook 07: how many training examples each way of fine-tuning needs, pretrained and untrained.

The same network learns film reviews from 8, 32, 128, ... sentences, once from its pretrained weights and once from
random ones. With few sentences it reads each more often: no training reads fewer than 1,024 sentences.
"""

from __future__ import annotations

import math

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import Materials, conditions, judged, materials


def epochs_for(size: int, options: Options) -> int:
    """Give how often each of ``size`` sentences is read: ``epochs`` times, or more until ``reads`` have been read."""
    return max(int(options["epochs"]), math.ceil(options["reads"] / size))


def _plan(options: Options) -> list[Run]:
    """Give each way with each number of examples, from both starts, seed after seed."""
    return [
        {"pretrained": pretrained, "way": way, "examples": size, "seed": seed}
        for seed in sorted(options["seeds"])
        for size in sorted(options["sizes"])
        for pretrained in (True, False)
        for way in options["ways"]
    ]


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train once, and score the test sentences and those it learned from."""
    size, seed = settings["examples"], settings["seed"]
    return judged(
        shared,
        settings["way"],
        shared.reviews.subset(size, seed=seed),
        epochs=epochs_for(size, options),
        seed=seed,
        pretrained=settings["pretrained"],
    )


EXPERIMENT = Experiment(
    name="training-examples",
    purpose="an encoder learns film reviews: score by number of examples, pretrained and untrained",
    options={
        "sizes": Option((8, 32, 128, 512, 2048), "numbers of training sentences"),
        "ways": Option(("full", "head", "lora-8"), "ways of fine-tuning"),
        "epochs": Option(1, "how often each sentence is read at least"),
        "reads": Option(1024, "sentences that every training reads at least, repetitions counted"),
        "seeds": Option((0, 1, 2), "each draws other sentences, another order and other factors"),
    },
    plan=_plan,
    prepare=materials,
    measure=_measure,
    conditions=conditions,
)
