"""The experiment of notebook 07: how few numbers a random subspace needs, in a pretrained network and an untrained one.

Every weight of the encoder's blocks and of its head moves in a random subspace of d numbers, θ = θ0 + P v. Full
fine-tuning from the same start stands beside it. From the scores ``dimension_found`` gives d90.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import Materials, conditions, judged, materials

if TYPE_CHECKING:
    from lora_lab.lora import IntrinsicDimension


def dimension_found(
    runs: Sequence[Mapping[str, Any]],
    *,
    pretrained: bool,
    baseline: float,
    figure: str = "score",
    full_score: float | None = None,
) -> IntrinsicDimension:
    """Give the intrinsic dimension that stored runs bracket, by the search that would have made them.

    Args:
        runs: what the experiment measured: at least two dimensions, each with the same seeds, and full fine-tuning.
        pretrained: from which start.
        baseline: the score of guessing; the threshold is 90 % of the way from there to full fine-tuning.
        figure: "score", on the test sentences, or "training score", on those it learned from.
        full_score: the score to compare with; by default the mean of full fine-tuning from the same start.

    Raises:
        ValueError: there are not enough runs, or ``intrinsic_dimension`` refuses the scores.
    """
    from lora_lab.lora import intrinsic_dimension

    same = [run for run in runs if run["pretrained"] == pretrained]
    found = {(run["dimension"], run["seed"]): run[figure] for run in same if run["dimension"] is not None}
    full = [run[figure] for run in same if run["dimension"] is None]
    dimensions, seeds = sorted({d for d, _ in found}), sorted({seed for _, seed in found})
    if len(dimensions) < 2 or len(found) < len(dimensions) * len(seeds) or not full:
        raise ValueError(f"runs: full fine-tuning and two dimensions with all seeds are needed, got {len(same)} runs")
    return intrinsic_dimension(
        lambda dimension, seed: found[dimension, seed],
        sum(full) / len(full) if full_score is None else full_score,
        grid=dimensions,
        seeds=seeds,
        baseline=baseline,
    )


def _plan(options: Options) -> list[Run]:
    """Give full fine-tuning and each dimension, from both starts, seed after seed."""
    return [
        {"pretrained": pretrained, "dimension": dimension, "seed": seed}
        for seed in sorted(options["seeds"])
        for pretrained in (True, False)
        for dimension in (None, *sorted(options["dimensions" if pretrained else "untrained_dimensions"]))
    ]


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train once, and score the test sentences and those it learned from."""
    dimension, seed = settings["dimension"], settings["seed"]
    return judged(
        shared,
        "full" if dimension is None else f"subspace-{dimension}",
        shared.reviews.subset(options["examples"], seed=seed),
        epochs=options["epochs"],
        seed=seed,
        pretrained=settings["pretrained"],
    )


EXPERIMENT = Experiment(
    name="random-subspace",
    purpose="an encoder learns film reviews in random subspaces: its intrinsic dimension, pretrained and untrained",
    options={
        "dimensions": Option((32, 316, 1000, 3162, 10000), "dimensions of the subspace, for the pretrained network"),
        "untrained_dimensions": Option((316, 3162, 10000), "those for the network at random weights"),
        "examples": Option(1024, "training sentences"),
        "epochs": Option(3, "how often each is read"),
        "seeds": Option((0, 1, 2), "each draws another subspace, other sentences and another order"),
    },
    plan=_plan,
    prepare=materials,
    measure=_measure,
    conditions=conditions,
)
