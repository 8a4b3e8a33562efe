"""A second task through the command of the first: SmolLM2 says whether a sentence of a film review praises or pans.

The sentences are those of notebooks 06 to 08. They are written into files, and a run does what ``lora-lab finetune
--data`` does with them. Beside LoRA stand three baselines: the commonest answer, the untouched model, and the same with
eight solved sentences in its prompt.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.course.experiments.experiment import Experiment, Option, Options, Run
from lora_lab.course.experiments.short_reviews import training_figures

if TYPE_CHECKING:
    from lora_lab.finetune import Labelled, Reviews

QUESTION = "Is this sentence of a film review positive or negative?\n"
ANSWERS = ("negative", "positive")  # by label
SHOTS = 8


@dataclass(frozen=True)
class Materials:
    """What all runs share: the sentences, and what a run is stored with."""

    reviews: Reviews
    conditions: dict[str, str]


def write_examples(path: Path, sentences: Iterable[Labelled]) -> Path:
    """Write labelled sentences as a JSONL file of prompts and completions, and give its path."""
    lines = [{"prompt": QUESTION + text, "completion": ANSWERS[label]} for text, label in sentences]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def _plan(options: Options) -> list[Run]:
    """Give every number of examples with every seed."""
    return [{"examples": size, "seed": seed} for seed in sorted(options["seeds"]) for size in sorted(options["sizes"])]


def _prepare(options: Options) -> Materials:
    """Load the sentences."""
    from lora_lab.finetune import load_model, load_reviews

    model = load_model()
    conditions = {
        "attention": str(model.config._attn_implementation),
        "device": str(model.device),
        "dtype": str(model.dtype),
    }
    return Materials(load_reviews(), conditions)


def _measure(shared: Materials, options: Options, settings: Run, progress: bool) -> Run:
    """Fine-tune once, and give the scores of the adapter and of the baselines on the same test sentences."""
    from lora_lab.finetune import own_data

    seed, reviews = settings["seed"], shared.reviews
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = own_data.Job(
            data=write_examples(folder / "train.jsonl", reviews.subset(settings["examples"], seed=seed)),
            validation_data=write_examples(folder / "validation.jsonl", reviews.validation[: options["validation"]]),
            test_data=write_examples(folder / "test.jsonl", reviews.test[: options["test"]]),
            output=folder / "run",
            rank=options["rank"],
            alpha=2.0 * options["rank"],
            targets=("q_proj", "v_proj"),
            learning_rate=options["learning_rate"],
            epochs=options["epochs"],
            group_by_length=True,
            samples=0,
            test=options["test"],
            shots=SHOTS,
            seed=seed,
        )
        result = own_data.run(job, progress=progress)
    return {
        "trainable": result.trainable,
        **training_figures(result.history),
        "validation": [list(look) for look in result.history.validation],
        "commonest answer": result.commonest,
        "scores": {name: score.facts() for name, score in result.scores.items()},
    }


def _conditions(shared: Materials) -> dict[str, str]:
    """Give what the materials were found with."""
    return shared.conditions


EXPERIMENT = Experiment(
    name="review-sentiment",
    purpose="SmolLM2 learns whether a film review praises or pans: LoRA beside three baselines",
    options={
        "sizes": Option((64, 512), "numbers of training sentences"),
        "epochs": Option(1, "how often each is read"),
        "rank": Option(8, "LoRA's rank, on query and value"),
        "learning_rate": Option(2e-3, "AdamW's largest"),
        "validation": Option(64, "sentences that choose the weights that are kept"),
        "test": Option(256, "sentences that are asked about"),
        "seeds": Option((0, 1, 2), "each draws other sentences, another order, other factors, other solved ones"),
    },
    plan=_plan,
    prepare=_prepare,
    measure=_measure,
    conditions=_conditions,
)
