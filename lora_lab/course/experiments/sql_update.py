"""The question of notebook 06 asked of a language model: is what full fine-tuning changes of low rank?

SmolLM2-135M learns to answer questions in SQL from a few hundred examples, every parameter trained. That gives an
update ΔW = W_tuned − W for each of the 210 matrices in its blocks: the error curve of each is stored, and how many
held-out questions the model answers when every ΔW is cut to rank r. Beside it stand LoRA of rank r on the same
matrices, the untouched model with and without solved examples in its prompt, and the same network trained from random
weights.

A language model needs no new head: its head is the embedding once more. So embedding and norms of a cut model are those
of the base, as they are with LoRA, and "rest alone" is the other half: tuned embedding and norms, and no ΔW.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.learning_rates import best_rates
from lora_lab.course.experiments.short_reviews import conditions, training_figures
from lora_lab.course.experiments.update_rank import changes, full_updates, matrices, spectrum, truncated
from lora_lab.lowrank import LowRank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.finetune import Encoded, Example, History, TextToSQL

BLOCKS = "model.layers."  # what the names of the 210 matrices begin with
BATCH_SIZE = 8
SHOTS = 4  # solved examples in the prompt of "few-shot"

# Where the best is looked for, and the best, by the loss on the validation examples: data/results/sql-update.json.
RATES_TRIED = {"full": (3e-5, 1e-4, 3e-4), "lora-1": (1e-3, 3e-3, 1e-2, 3e-2), "lora-8": (3e-4, 1e-3, 3e-3, 1e-2)}
LEARNING_RATES = {"full": 1e-4, "lora-1": 1e-2, "lora-8": 3e-3}


@dataclass(frozen=True)
class Materials:
    """What all runs share.

    Attributes:
        pretrained: the model as its makers trained it, in float32.
        tokenizer: its tokenizer.
        task: what made the examples, and scores an answer.
        examples: the training examples of each seed; no two seeds share one.
        validation: the examples by whose loss the learning rates are chosen.
        questions: the held-out questions.
        precision: in which matrices are multiplied in training: bfloat16 where the processor has it, else None,
            float32. Answers are given in float32.
    """

    pretrained: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: TextToSQL
    examples: Mapping[int, Sequence[Example]]
    validation: Sequence[Example]
    questions: Sequence[Example]
    precision: torch.dtype | None


def materials(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options) -> Materials:
    """Give a model with the examples and the questions that the options ask for."""
    import torch

    from lora_lab.finetune import TextToSQL, has_bfloat16

    task, size = TextToSQL(seed=0), options["examples"]
    blocks = {seed: task.train((seed + 1) * size)[-size:] for seed in (*options["seeds"], search_seed(options))}
    precision = torch.bfloat16 if has_bfloat16(model.device) else None
    questions = task.test("questions", options["test"])
    return Materials(model, tokenizer, task, blocks, task.validation(options["validation"]), questions, precision)


def search_seed(options: Options) -> int:
    """Give the seed of the search for learning rates: one that no other run has."""
    return int(max(options["seeds"])) + 1


def best(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give the learning rate of each way with the lowest validation loss among the runs of the search."""
    found = [run for run in runs if run["method"] == "search"]
    return best_rates([{**run, "validation": -run["validation loss"]} for run in found])


def configuration(way: str) -> Any:
    """Give what ``lora_lab.lora.attach`` takes for "full", or for "lora-8": rank 8 on all 210 matrices, scale 2.

    Raises:
        ValueError: there is no such way, or no learning rate was looked for.
    """
    from lora_lab.lora import FullConfig, LoRAConfig

    if way not in LEARNING_RATES:
        raise ValueError(f"way: got {way!r}, takes one of {', '.join(LEARNING_RATES)}: only these have a learning rate")
    if way == "full":
        return FullConfig()
    rank = int(way.removeprefix("lora-"))
    return LoRAConfig(rank=rank, alpha=2 * rank, targets="all-linear")


def learned(
    shared: Materials,
    way: str,
    options: Options,
    *,
    seed: int,
    learning_rate: float | None = None,
    pretrained: bool = True,
    progress: bool = False,
) -> tuple[PreTrainedModel, History]:
    """Train a copy of the model in one way, and give it with the history of its training.

    Args:
        shared: the materials.
        way: "full" or "lora-RANK".
        options: those of the experiment.
        seed: decides which examples it reads, their order, LoRA's first factors, and the random weights.
        learning_rate: AdamW's largest; by default the one that served the way best.
        pretrained: begin with the pretrained weights, or with random ones.
        progress: show a progress bar.
    """
    import torch

    from lora_lab.finetune import Settings, answer_loss, collate, labelled_tokens, minimise
    from lora_lab.lora import attach

    config = configuration(way)
    model = copy.deepcopy(shared.pretrained) if pretrained else untrained(shared.pretrained, seed=seed)
    attach(model, config, generator=torch.Generator().manual_seed(seed))
    examples = encoded(shared, shared.examples[seed])
    device = next(model.parameters()).device

    def loss(places: list[int]) -> torch.Tensor:
        batch = collate([examples[place] for place in places]).to(device)
        with torch.autocast(device.type, dtype=shared.precision, enabled=shared.precision is not None):
            return answer_loss(model, batch) / labelled_tokens(batch)

    settings = Settings(
        epochs=options["epochs"],
        batch_size=BATCH_SIZE,
        learning_rate=learning_rate or LEARNING_RATES[way],
        seed=seed,
    )
    return model, minimise(model, loss, len(examples), settings, progress=progress)


def untrained(model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """Give the same network at random weights, which the seed decides."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: Any = type(model)(copy.deepcopy(model.config))
    return fresh.to(model.device, model.dtype).eval()


def encoded(shared: Materials, examples: Sequence[Example]) -> list[Encoded]:
    """Give examples as token ids, each question with its answer."""
    from lora_lab.finetune import encode

    return [encode(shared.tokenizer, shared.task.messages(one), one.query) for one in examples]


def correct(shared: Materials, model: PreTrainedModel, shots: Sequence[Example] = ()) -> int:
    """Give how many of the held-out questions the model answers rightly (execution accuracy), in float32."""
    from lora_lab.finetune import evaluate

    return evaluate(model, shared.tokenizer, shared.task, shared.questions, shots=shots, progress=False).correct


def with_cut(base: PreTrainedModel, svds: Mapping[str, LowRank], rank: int) -> PreTrainedModel:
    """Give a copy of the base with every ΔW cut to the rank added; embedding and norms are as in the base."""
    from lora_lab.lora import attach_updates, fold

    model = copy.deepcopy(base)
    if rank:
        fold(attach_updates(model, truncated(svds, rank), balanced=False))
    return model


def without_updates(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    """Give a copy of the tuned model with the matrices of its blocks as in the base: what is not ΔW, alone."""
    model = copy.deepcopy(tuned)
    for name in matrices(base, BLOCKS):
        model.get_submodule(name).load_state_dict(base.get_submodule(name).state_dict())
    return model


def _plan(options: Options) -> list[Run]:
    """Give the search for learning rates, the untouched model, the update and LoRA by seed, and the other baselines."""
    plan: list[Run] = [
        {"method": "search", "way": way, "learning_rate": rate, "seed": search_seed(options)}
        for way, rates in RATES_TRIED.items()
        for rate in rates
    ]
    plan.append({"method": "base", "rank": None, "seed": None})
    seeds = sorted(options["seeds"])
    for seed in seeds:
        plan.append({"method": "full", "rank": None, "seed": seed})
        plan += [{"method": "LoRA", "rank": rank, "seed": seed} for rank in sorted(options["ranks"])]
    plan += [{"method": method, "rank": None, "seed": seed} for method in ("few-shot", "untrained") for seed in seeds]
    return plan


def _prepare(options: Options) -> Materials:
    """Load the packaged model in float32, and give it with the examples and the questions."""
    import torch

    from lora_lab.finetune import load_model, load_tokenizer

    for rank in options["ranks"]:
        configuration(f"lora-{rank}")
    return materials(load_model(dtype=torch.float32), load_tokenizer(), options)


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Measure one run: a training, or what the model answers without one."""
    method, seed = settings["method"], settings["seed"]
    if method == "search":
        return _searched(shared, options, settings, progress)
    if method == "base":
        weights = matrices(shared.pretrained, BLOCKS)
        return {
            "correct": correct(shared, shared.pretrained),
            "layers": {name: spectrum(weight) for name, weight in weights.items()},
        }
    if method == "few-shot":
        return {"correct": correct(shared, shared.pretrained, shared.examples[seed][:SHOTS])}
    way = f"lora-{settings['rank']}" if method == "LoRA" else "full"
    model, figures = _trained(shared, options, way, progress=progress, seed=seed, pretrained=method != "untrained")
    figures["correct"] = correct(shared, model)
    if method == "full":
        figures |= _cut(shared, options, model)
    if method == "LoRA":
        from lora_lab.lora import updates

        figures["change"] = changes(matrices(shared.pretrained, BLOCKS), updates(model))
    return figures


def _trained(shared: Materials, options: Options, way: str, **how: Any) -> tuple[PreTrainedModel, Run]:
    """Train in one way, and give the model with what is to be said of its training."""
    from lora_lab.lora import account

    model, history = learned(shared, way, options, **how)
    return model, {"trainable": account(model).trainable, **training_figures(history)}


def _searched(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train in one way at one rate, and give the loss on the validation examples, in nats per answer token."""
    from lora_lab.finetune import mean_loss

    rate, seed = settings["learning_rate"], settings["seed"]
    model, figures = _trained(shared, options, settings["way"], learning_rate=rate, seed=seed, progress=progress)
    figures["validation loss"] = round(mean_loss(model, encoded(shared, shared.validation)), 5)
    return figures


def _cut(shared: Materials, options: Options, tuned: PreTrainedModel) -> Run:
    """Give the size and the spectrum of each ΔW, and the right answers with every ΔW cut, and with none."""
    base, found = shared.pretrained, full_updates(shared.pretrained, tuned, BLOCKS)
    svds = {name: LowRank.from_svd(update, min(update.shape)) for name, update in found.items()}
    ranks = (*sorted(options["truncations"]), max(svd.rank for svd in svds.values()))
    return {
        "truncated": {str(rank): correct(shared, with_cut(base, svds, rank)) for rank in ranks},
        "rest alone": correct(shared, without_updates(base, tuned)),
        "change": changes(matrices(base, BLOCKS), found),
        "layers": {name: spectrum(update) for name, update in found.items()},
    }


EXPERIMENT = Experiment(
    name="sql-update",
    purpose="SmolLM2 learns text-to-SQL as a whole: the rank of the update, and what it answers when that is cut",
    options={
        "examples": Option(240, "training examples"),
        "epochs": Option(1, "how often each is read"),
        "ranks": Option((1, 8), "LoRA's ranks"),
        "truncations": Option((1, 8, 64, 256), "ranks at which full fine-tuning's update is cut"),
        "validation": Option(48, "examples by whose loss the learning rates are chosen"),
        "test": Option(48, "held-out questions"),
        "seeds": Option((0, 1, 2), "each draws other examples, another order and other factors"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=conditions,
)
