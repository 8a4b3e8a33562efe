"""The sweeps of notebook 09: what rank, targets, number of examples and learning rate do to the text-to-SQL score.

One training stands in the middle: rank 8 on query and value, 480 examples, a learning rate of 4e-3. Each sweep changes
one of the four and leaves the others, so the run in the middle belongs to all four (``one_sweep`` picks a sweep out).
Beside the runs stand the untouched model and the same with eight solved examples in its prompt. What a training forgets
is measured too: the loss on ordinary English sentences, which it never saw, before and after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import training_figures

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.finetune import Encoded, Example, Settings, TextToSQL

MIDDLE = {"rank": 8, "targets": "qv", "examples": 480, "learning_rate": 4e-3}
SWEPT = {"ranks": "rank", "targets": "targets", "sizes": "examples", "rates": "learning_rate"}  # option: setting

TARGETS: Mapping[str, Any] = {
    "q": ("q_proj",),
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all-linear": "all-linear",
}
BATCH_SIZE = 8
READS = 480  # examples that a training reads at least, so that few of them are read more often


@dataclass(frozen=True)
class Materials:
    """What all runs share.

    Attributes:
        model: the untouched model; each run attaches LoRA to it and takes it off again.
        tokenizer: its tokenizer.
        task: what made the examples, and scores an answer.
        examples: the training examples; a run takes the first of them.
        questions: the held-out questions of each test split.
        ordinary: English sentences, of which every token but the first counts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: TextToSQL
    examples: Sequence[Example]
    questions: Mapping[str, Sequence[Example]]
    ordinary: Sequence[Encoded]


def one_sweep(runs: Sequence[Mapping[str, Any]], setting: str) -> list[Mapping[str, Any]]:
    """Give the runs that differ from the one in the middle in this setting alone, itself among them, in rising order.

    Args:
        runs: those of the experiment.
        setting: "rank", "targets", "examples" or "learning_rate"; the sets of targets come by their trained parameters.

    Raises:
        ValueError: no such setting is swept.
    """
    if setting not in MIDDLE:
        raise ValueError(f"setting: got {setting!r}, takes one of {', '.join(MIDDLE)}")
    others = {name: value for name, value in MIDDLE.items() if name != setting}
    found = [run for run in runs if run["method"] == "LoRA" and all(run[name] == others[name] for name in others)]
    return sorted(found, key=lambda run: (run["trainable"] if setting == "targets" else run[setting], run["seed"]))


def epochs_for(size: int) -> int:
    """Give how often each of ``size`` examples is read: once, or more often until ``READS`` have been read."""
    return max(1, -(-READS // size))


def _plan(options: Options) -> list[Run]:
    """Give, seed after seed, the run in the middle and every run that differs from it in one setting."""
    nothing = dict.fromkeys(MIDDLE)
    plan: list[Run] = [{"method": "untouched", **nothing, "seed": None}]
    for seed in sorted(options["seeds"]):
        plan += [{"method": "few-shot", **nothing, "seed": seed}, {"method": "LoRA", **MIDDLE, "seed": seed}]
        for option, setting in SWEPT.items():
            others = [value for value in options[option] if value != MIDDLE[setting]]
            plan += [{"method": "LoRA", **MIDDLE, setting: value, "seed": seed} for value in others]
    return plan


def materials(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options) -> Materials:
    """Give a model with the examples, the questions and the sentences that the options ask for."""
    from lora_lab.finetune import Encoded, TextToSQL, load_reviews
    from lora_lab.finetune.text_to_sql import SPLITS

    for name in options["targets"]:
        if name not in TARGETS:
            raise ValueError(f"targets: got {name!r}, takes some of {', '.join(TARGETS)}")
    task = TextToSQL(seed=0)
    most = max((*options["sizes"], MIDDLE["examples"], options["shots"] * (1 + max(options["seeds"]))))
    sentences = [tokenizer.encode(text) for text, _ in load_reviews().test[: options["sentences"]]]
    return Materials(
        model,
        tokenizer,
        task,
        task.train(most),
        {split: task.test(split, options["test"]) for split in SPLITS},
        [Encoded(tuple(tokens), answer_start=1) for tokens in sentences if len(tokens) > 1],
    )


def _prepare(options: Options) -> Materials:
    """Load the packaged model, and give it with the examples, the questions and the sentences."""
    from lora_lab.finetune import load_model, load_tokenizer

    return materials(load_model(), load_tokenizer(), options)


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Measure one run: a training and what comes of it, or a baseline."""
    import torch

    from lora_lab.finetune import Settings, encode, train
    from lora_lab.lora import LoRAConfig, account, attach, detach

    model, seed = shared.model, settings["seed"]
    if settings["method"] == "untouched":
        return _judged(shared, options, progress)
    if settings["method"] == "few-shot":
        shots = shared.examples[seed * options["shots"] : (seed + 1) * options["shots"]]
        return _judged(shared, options, progress, shots)
    rank, size = settings["rank"], settings["examples"]
    config = LoRAConfig(rank=rank, alpha=2 * rank, targets=TARGETS[settings["targets"]])
    training = Settings(
        epochs=epochs_for(size),
        batch_size=BATCH_SIZE,
        learning_rate=settings["learning_rate"],
        seed=seed,
        group_by_length=True,
    )
    chosen = shared.examples[:size]
    encoded = [encode(shared.tokenizer, shared.task.messages(example), example.query) for example in chosen]
    attach(model, config, generator=torch.Generator().manual_seed(seed))
    try:
        figures: Run = {"trainable": account(model).trainable}
        with _memory(model, encoded, training) as memory:
            history = train(model, encoded, training, progress=progress)
        figures |= {**training_figures(history), **memory}
        return {**figures, **_judged(shared, options, progress)}
    finally:
        detach(model)


def largest_batch(examples: Sequence[Encoded], settings: Settings, *, padded: bool) -> tuple[int, int, int]:
    """Give rows, tokens and labelled tokens of the batch that has most tokens in a training, padding among them.

    ``padded`` says whether batches are padded to few shapes, as they are where a GPU records them.
    """
    from lora_lab.finetune.graphs import rounded
    from lora_lab.finetune.training import batch_indices

    lengths = [len(example.tokens) for example in examples]
    shapes = []
    for step in range(settings.epochs * -(-len(examples) // settings.batch_size)):
        batch = batch_indices(len(examples), step, settings, lengths)
        tokens, labelled = max(lengths[place] for place in batch), sum(examples[place].answer_tokens for place in batch)
        if padded:
            tokens, labelled = rounded(tokens, steps=8), rounded(labelled)
        shapes.append((len(batch), tokens, labelled))
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[2]))


@contextlib.contextmanager
def _memory(model: PreTrainedModel, examples: Sequence[Encoded], settings: Settings) -> Iterator[Run]:
    """Give what the largest batch needs by ``account``, and on a GPU, when the training is over, what was measured.

    Both are bytes at the worst moment, weights included. On a CPU the system tells the memory of a whole process, in
    which other things lie too: ``lora-lab bench step`` measures it with more care.
    """
    import torch

    from lora_lab.finetune.graphs import can_record
    from lora_lab.finetune.memory import step_bytes

    shape = largest_batch(examples, settings, padded=can_record(model))
    found: Run = {"memory by account": step_bytes(model, *shape)}
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    yield found
    if on_gpu:
        found["memory measured"] = torch.cuda.max_memory_allocated(model.device)


def _judged(shared: Materials, options: Options, progress: bool, shots: Sequence[Example] = ()) -> Run:
    """Give the right answers by split, and without ``shots`` the loss on the sentences, in nats a token."""
    from lora_lab.finetune import evaluate, mean_loss

    figures: Run = {
        "correct": {
            split: evaluate(
                shared.model,
                shared.tokenizer,
                shared.task,
                asked,
                shots=shots,
                batch_size=len(asked),
                progress=progress,
            ).correct
            for split, asked in shared.questions.items()
        },
        "test": options["test"],
    }
    if not shots:
        figures["ordinary loss"] = round(mean_loss(shared.model, shared.ordinary), 5)
    return figures


def _conditions(shared: Materials) -> dict[str, str]:
    """Say which attention kernel, device and dtype the model has."""
    return {
        "attention": str(shared.model.config._attn_implementation),
        "device": str(shared.model.device),
        "dtype": str(shared.model.dtype),
    }


EXPERIMENT = Experiment(
    name="sql-sweeps",
    purpose="SmolLM2 learns text-to-SQL: right answers by rank, targets, number of examples and learning rate",
    options={
        "ranks": Option((1, 2, 4, 8, 16, 64), "ranks to try"),
        "targets": Option(tuple(TARGETS), "sets of layers to adapt"),
        "sizes": Option((60, 120, 240, 480, 960), "numbers of training examples"),
        "rates": Option((5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "AdamW's largest learning rates"),
        "seeds": Option((0, 1, 2), "each draws other factors, another order of the examples, other solved examples"),
        "shots": Option(8, "solved examples in the prompt of the few-shot baseline"),
        "test": Option(64, "questions of each test split"),
        "sentences": Option(256, "sentences on which forgetting is measured"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=_conditions,
)
