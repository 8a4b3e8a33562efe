"""The experiment of notebook 06: is what full fine-tuning changes of low rank, and what does each rank reach?

An encoder learns to tell praise from pan. Full fine-tuning gives an update ΔW = W_tuned − W for each of the 36 matrices
in its layers: its error curve is stored, and its score when every ΔW is cut to rank r, with the tuned head and with a
head trained anew. LoRA of rank r on the same 36 matrices stands beside it, and the head trained alone. The last runs
compare directions, as section 7 of Hu et al. (2021) does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
from lora_lab.lowrank import LowRank, choose_rank, numerical_rank, rank_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from lora_lab.finetune import MeanPooledClassifier

CURVE = (0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 448)  # where an error curve is stored, and at the full rank
COMPARED = (8, 64)  # the two ranks whose directions are compared
Updates = Mapping[str, "NDArray[np.float64] | LowRank"]


def matrices(model: nn.Module, within: str = "bert.encoder.") -> dict[str, NDArray[np.float64]]:
    """Give the weights of the linear layers inside the blocks, by dotted name: 36 matrices of MiniLM.

    Args:
        model: the model.
        within: what the names of the blocks begin with.
    """
    from torch import nn

    return {
        name: module.weight.detach().cpu().double().numpy()
        for name, module in model.named_modules()
        if name.startswith(within) and isinstance(module, nn.Linear)
    }


def full_updates(base: nn.Module, tuned: nn.Module, within: str = "bert.encoder.") -> dict[str, NDArray[np.float64]]:
    """Give ΔW = W_tuned − W of each of those weights, (out_features, in_features)."""
    before, after = matrices(base, within), matrices(tuned, within)
    return {name: after[name] - before[name] for name in before}


def with_updates(base: MeanPooledClassifier, tuned: MeanPooledClassifier, updates: Updates) -> MeanPooledClassifier:
    """Give the base with the head of ``tuned`` and these updates added to its weights; all else is as in the base."""
    import torch

    model = copy.deepcopy(base)
    model.classifier.load_state_dict(tuned.classifier.state_dict())
    with torch.no_grad():
        for name, update in updates.items():
            weight: Any = model.get_submodule(name).weight
            weight.copy_(weight.double() + torch.tensor(np.asarray(update), device=weight.device))
    return model


def truncated(svds: Mapping[str, LowRank], rank: int) -> dict[str, LowRank]:
    """Give the best approximation of each update at a rank, from its SVD in factors; at most its own rank, 0 for none.

    Each LowRank is ``LowRank.from_svd(update, min(m, n))``, whose first columns and rows belong to the largest
    singular values.
    """
    return {name: LowRank(svd.left[:, :rank], svd.right[:rank]) for name, svd in svds.items() if rank}


def _plan(options: Options) -> list[Run]:
    """Give full fine-tuning, the head alone, LoRA and the cut update at each rank, then the directions; by seed."""
    seeds = sorted(options["seeds"])
    plan: list[Run] = [{"method": method, "rank": None, "seed": seed} for method in ("full", "head") for seed in seeds]
    for method in ("LoRA", "cut"):
        plan += [{"method": method, "rank": rank, "seed": seed} for rank in sorted(options["ranks"]) for seed in seeds]
    if set(COMPARED) <= set(options["ranks"]):
        plan += [{"method": "directions", "rank": None, "seed": seed} for seed in seeds]
    return plan


class _Materials:
    """What all runs share, and the updates of the trainings so far, which the comparisons look at once more."""

    def __init__(self, shared: Materials) -> None:
        """Hold the materials."""
        self.shared = shared
        self.updates: dict[tuple[str, int | None, int], dict[str, Any]] = {}


def _measure(kept: _Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Measure one run: a training, or a comparison of the directions that trainings found."""
    if settings["method"] == "directions":
        return _directions(kept, options, settings["seed"])
    if settings["method"] == "cut":
        return _cut(kept, options, settings["rank"], settings["seed"])
    model, figures = _trained(kept, options, **settings)
    shared, updates = kept.shared, kept.updates[settings["method"], settings["rank"], settings["seed"]]
    figures["score"] = score(shared, model)
    if updates:
        figures["change"] = changes(matrices(shared.pretrained), updates)
    if settings["method"] == "full":
        svds = {name: LowRank.from_svd(update, min(update.shape)) for name, update in updates.items()}
        figures["truncated"] = {
            str(rank): score(shared, with_updates(shared.pretrained, model, truncated(svds, rank)))
            for rank in (*sorted(options["truncations"]), max(svd.rank for svd in svds.values()))
        }
        figures["layers"] = {name: spectrum(update) for name, update in updates.items()}
    return figures


def _trained(
    kept: _Materials, options: Options, method: str, rank: int | None, seed: int
) -> tuple[MeanPooledClassifier, Run]:
    """Train in one way, keep the updates, and give the model with what is to be said of its training."""
    from lora_lab.lora import account, updates

    shared, way = kept.shared, method if rank is None else f"lora-{rank}"
    model, history = learned(
        shared,
        configuration(way),
        shared.reviews.subset(options["examples"], seed=seed),
        learning_rate=learning_rate(way),
        epochs=options["epochs"],
        seed=seed,
    )
    found: dict[str, Any] = {}
    if method == "full":
        found = full_updates(shared.pretrained, model)
    elif method == "LoRA":
        found = dict(updates(model))
    kept.updates[method, rank, seed] = found
    return model, {"trainable": account(model).trainable, **training_figures(history)}


def _cut(kept: _Materials, options: Options, rank: int, seed: int) -> Run:
    """Cut the updates of full fine-tuning to a rank, train a new head on what that gives, and score it."""
    from lora_lab.lora import account

    if ("full", None, seed) not in kept.updates:
        _trained(kept, options, "full", None, seed)
    base, updates = kept.shared.pretrained, kept.updates["full", None, seed]
    cut = {name: LowRank.from_svd(update, min(rank, *update.shape)) for name, update in updates.items()}
    model, history = learned(
        replace(kept.shared, pretrained=with_updates(base, base, cut)),
        configuration("head"),
        kept.shared.reviews.subset(options["examples"], seed=seed),
        learning_rate=learning_rate("head"),
        epochs=options["epochs"],
        seed=seed,
    )
    return {"trainable": account(model).trainable, **training_figures(history), "score": score(kept.shared, model)}


def changes(weights: Mapping[str, NDArray[np.float64]], updates: Mapping[str, Any]) -> dict[str, float]:
    """Give ‖ΔW‖ / ‖W‖ of each weight (Frobenius)."""
    norms = {name: np.linalg.norm(weight) for name, weight in weights.items()}
    return {name: round(float(np.linalg.norm(np.asarray(updates[name])) / norms[name]), 5) for name in updates}


def spectrum(update: NDArray[np.float64]) -> Run:
    """Give the error curve of one update, its numerical rank, and the rank that leaves an error of half."""
    errors, full = rank_errors(update), min(update.shape)
    return {
        "shape": list(update.shape),
        "errors": {str(rank): round(float(errors[rank]), 5) for rank in (*(r for r in CURVE if r < full), full)},
        "numerical rank": numerical_rank(update),
        "rank for error 0.5": choose_rank(update, error=0.5),
    }


def _directions(kept: _Materials, options: Options, seed: int) -> Run:
    """Compare the directions in the input of LoRA at two ranks, of another seed, and of the full update.

    Hu et al. compare the factors A. The update scale · B A weighs A's directions by what B makes of them, and alone can
    be compared with a full update.
    """
    low, high = COMPARED
    seeds = sorted(options["seeds"])
    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    for method, rank, one in (("LoRA", low, seed), ("LoRA", high, seed), ("LoRA", high, other), ("full", None, seed)):
        if (method, rank, one) not in kept.updates:
            _trained(kept, options, method, rank, one)
    eight, sixty_four = kept.updates["LoRA", low, seed], kept.updates["LoRA", high, seed]
    another, full = kept.updates["LoRA", high, other], kept.updates["full", None, seed]
    factors = [{name: update.right for name, update in some.items()} for some in (eight, sixty_four)]  # A, (r, n)
    pairs = {
        f"A of rank {low} and A of rank {high}": factors,
        f"rank {low} and rank {high}": (eight, sixty_four),
        f"rank {high} and rank {high} of another seed": (sixty_four, another),
        f"rank {low} and full": (eight, full),
        f"rank {high} and full": (sixty_four, full),
    }
    attention = [name for name in full if name.endswith(("query", "value"))]
    return {
        "similarity": {
            said: {name: _similarity(one[name], two[name]) for name in attention} for said, (one, two) in pairs.items()
        }
    }


def _similarity(one: Any, two: Any) -> list[list[float]]:
    """Give φ(i, j) for the top directions of two updates, i and j = 1, 2, 4, … as far as both have them, up to 64."""
    from lora_lab.lora import subspace_similarity

    grid = subspace_similarity(_leading(one), _leading(two))
    return [[round(float(grid[i - 1, j - 1]), 4) for j in _powers(grid.shape[1])] for i in _powers(grid.shape[0])]


def _leading(update: Any) -> LowRank:
    """Give an update cut to its 64 leading directions."""
    if isinstance(update, LowRank):
        return update
    return LowRank.from_svd(update, min(COMPARED[1], *update.shape))


def _powers(most: int) -> Iterable[int]:
    """Give 1, 2, 4, … up to ``most``."""
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _prepare(options: Options) -> _Materials:
    """Load the encoder and the sentences."""
    return _Materials(materials(options))


def _conditions(kept: _Materials) -> dict[str, str]:
    """Say what the runs depend on."""
    return conditions(kept.shared)


EXPERIMENT = Experiment(
    name="update-rank",
    purpose="an encoder learns film reviews: the rank of full fine-tuning's update, and LoRA at each rank",
    options={
        "examples": Option(1024, "training sentences"),
        "epochs": Option(3, "how often each is read"),
        "ranks": Option((1, 2, 4, 8, 64), "LoRA's ranks; the directions of 8 and 64 are compared if both are there"),
        "truncations": Option((0, 1, 2, 4, 8, 16, 32, 64, 128), "ranks at which full fine-tuning's update is cut"),
        "seeds": Option((0, 1, 2), "each draws other sentences, another order and other factors"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=_conditions,
)
