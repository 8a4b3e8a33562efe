"""The experiment of notebook 09: how many right answers each rank gives, everything else equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run, perform
from lora_lab.course.experiments.results import run_experiment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.finetune import Encoded, Example, TextToSQL


@dataclass(frozen=True)
class Materials:
    """What all runs share: the untouched model, the task, the encoded training examples, the questions by split."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: TextToSQL
    examples: list[Encoded]
    questions: dict[str, list[Example]]


def rank_sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ranks: Sequence[int] = (1, 2, 8, 32),
    seeds: Sequence[int] = (0, 1),
    examples: int = 960,
    epochs: int = 1,
    learning_rate: float = 4e-3,
    test: int = 64,
    done: Sequence[Run] = (),
    report: Callable[[Run], None] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Teach one model the text-to-SQL task at several ranks, each with several seeds, and count its right answers.

    Alpha is twice the rank, so the update's scale is 2 at every rank; everything else is equal too. The model comes
    back without adapters, also when the sweep is stopped or fails.

    Args:
        model: the untouched model; each run attaches LoRA to it and takes it off again.
        tokenizer: its tokenizer.
        ranks: the ranks to try.
        seeds: each seed draws other initial factors and another order of the same examples.
        examples: number of training examples.
        epochs: how often each is read.
        learning_rate: AdamW's largest learning rate, the same at every rank.
        test: questions asked of each test split.
        done: runs of an earlier call, to be kept and not repeated.
        report: called with each run as soon as it is measured.
        progress: show progress bars.

    Returns:
        One entry a run: rank, seed, trainable parameters, steps, PyTorch's threads, the loss of the last ten steps in
        nats per answer token, and for each split the number of right answers out of ``test``.
    """
    options = {
        "ranks": tuple(ranks),
        "seeds": tuple(seeds),
        "examples": examples,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "test": test,
    }
    materials = _materials(model, tokenizer, options)
    return perform(EXPERIMENT, options, materials=materials, done=done, report=report, progress=progress)


def mean_score(runs: Sequence[Mapping[str, Any]], rank: int, split: str) -> float:
    """Give the share of right answers, from 0 to 1, that the runs of one rank reach on a split, averaged over seeds."""
    shares = [run["correct"][split] / run["test"] for run in runs if run["rank"] == rank]
    if not shares:
        raise ValueError(f"rank: no run has rank {rank}; there are {sorted({run['rank'] for run in runs})}")
    return sum(shares) / len(shares)


def run_rank_sweep(name: str, command: str, **options: Any) -> Path:
    """Run ``rank_sweep`` on the packaged model and store it as ``data/results/<name>.json``, run by run.

    Started again with the same options, it goes on after the last run stored.

    Raises:
        ValueError: the stored result was measured with other options, or another device or version.
    """
    return run_experiment(EXPERIMENT, name, command, **options)


def _plan(options: Options) -> list[Run]:
    """Give every rank with every seed, in rising order."""
    return [{"rank": rank, "seed": seed} for rank in sorted(options["ranks"]) for seed in sorted(options["seeds"])]


def _prepare(options: Options) -> Materials:
    """Load the packaged model, and give it with the examples and the questions."""
    from lora_lab.finetune import load_model, load_tokenizer

    return _materials(load_model(), load_tokenizer(), options)


def _materials(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options) -> Materials:
    """Give a model with the examples and the questions that the options ask for."""
    from lora_lab.finetune import TextToSQL, encode
    from lora_lab.finetune.text_to_sql import SPLITS

    task = TextToSQL(seed=0)
    return Materials(
        model,
        tokenizer,
        task,
        [encode(tokenizer, task.messages(example), example.query) for example in task.train(options["examples"])],
        {split: task.test(split, options["test"]) for split in SPLITS},
    )


def _measure(materials: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Train at one rank with one seed, and count the right answers."""
    import torch

    from lora_lab.finetune import Settings, evaluate, train
    from lora_lab.lora import LoRAConfig, account, attach, detach

    model, rank, seed = materials.model, settings["rank"], settings["seed"]
    training = Settings(epochs=options["epochs"], learning_rate=options["learning_rate"], seed=seed)
    attach(model, LoRAConfig(rank=rank, alpha=2 * rank), generator=torch.Generator().manual_seed(seed))
    try:
        history = train(model, materials.examples, training, progress=progress)
        scores = {
            split: evaluate(model, materials.tokenizer, materials.task, asked, progress=progress)
            for split, asked in materials.questions.items()
        }
        trainable = account(model).trainable
    finally:
        detach(model)
    last = history.losses[-10:]
    return {
        "trainable": trainable,
        "steps": len(history.losses),
        "threads": torch.get_num_threads(),
        "last loss": sum(last) / len(last),
        "correct": {split: score.correct for split, score in scores.items()},
        "test": options["test"],
    }


def _conditions(materials: Materials) -> dict[str, str]:
    """Say which attention kernel, device and dtype the model has."""
    model = materials.model
    return {
        "attention": str(model.config._attn_implementation),
        "device": str(model.device),
        "dtype": str(model.dtype),
    }


EXPERIMENT = Experiment(
    name="rank-sweep",
    purpose="SmolLM2 learns text-to-SQL by LoRA of several ranks: right answers by rank",
    options={
        "ranks": Option((1, 2, 8, 32), "ranks to try"),
        "seeds": Option((0, 1), "each draws other factors and another order of the examples"),
        "examples": Option(960, "training examples"),
        "epochs": Option(1, "how often each is read"),
        "learning_rate": Option(4e-3, "AdamW's largest"),
        "test": Option(64, "questions of each test split"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=_conditions,
)
