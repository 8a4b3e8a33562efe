"""Experiments too long for a lesson: run once without a notebook, stored with their origin, drawn by the lesson.

A result is one JSON file in ``data/results/``: ``provenance`` says on what, with which versions and by which command it
was measured, ``runs`` holds one entry for each run.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Run = dict[str, Any]


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
    import torch

    from lora_lab.finetune import Settings, TextToSQL, encode, evaluate, train
    from lora_lab.finetune.text_to_sql import SPLITS
    from lora_lab.lora import LoRAConfig, account, attach, detach

    task = TextToSQL(seed=0)
    encoded = [encode(tokenizer, task.messages(example), example.query) for example in task.train(examples)]
    questions = {split: task.test(split, test) for split in SPLITS}
    settings = Settings(epochs=epochs, learning_rate=learning_rate)
    runs = list(done)
    for rank in ranks:
        for seed in seeds:
            if any((run["rank"], run["seed"]) == (rank, seed) for run in runs):
                continue
            attach(model, LoRAConfig(rank=rank, alpha=2 * rank), generator=torch.Generator().manual_seed(seed))
            try:
                history = train(model, encoded, replace(settings, seed=seed), progress=progress)
                scores = {s: evaluate(model, tokenizer, task, questions[s], progress=progress) for s in SPLITS}
                trainable = account(model).trainable
            finally:
                detach(model)
            last = history.losses[-10:]
            runs.append(
                {
                    "rank": rank,
                    "seed": seed,
                    "trainable": trainable,
                    "steps": len(history.losses),
                    "threads": torch.get_num_threads(),
                    "last loss": sum(last) / len(last),
                    "correct": {split: score.correct for split, score in scores.items()},
                    "test": test,
                }
            )
            if report is not None:
                report(runs[-1])
    return sorted(runs, key=lambda run: (run["rank"], run["seed"]))


def mean_score(runs: Sequence[Mapping[str, Any]], rank: int, split: str) -> float:
    """Give the share of right answers, from 0 to 1, that the runs of one rank reach on a split, averaged over seeds."""
    shares = [run["correct"][split] / run["test"] for run in runs if run["rank"] == rank]
    if not shares:
        raise ValueError(f"rank: no run has rank {rank}; there are {sorted({run['rank'] for run in runs})}")
    return sum(shares) / len(shares)


def results_folder() -> Path:
    """Give ``data/results`` of the course, beside the package."""
    return Path(__file__).resolve().parents[2] / "data" / "results"


def load_result(name: str) -> dict[str, Any]:
    """Give a stored result: ``{"provenance": ..., "runs": [...]}``.

    Raises:
        FileNotFoundError: there is no result of that name; the message lists those there are.
    """
    path = results_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in results_folder().glob("*.json"))) or "none"
        raise FileNotFoundError(f"no stored result {name!r} in {results_folder()}; there are: {known}")
    return json.loads(path.read_text(encoding="utf-8"))


def run_rank_sweep(name: str, command: str, **options: Any) -> Path:
    """Run ``rank_sweep`` on the packaged model and store it as ``data/results/<name>.json``, run by run.

    Started again with the same options, it goes on after the last run stored.

    Raises:
        ValueError: the stored result was measured with other options, or another device or version.
    """
    from lora_lab.finetune import load_model, load_tokenizer

    model, tokenizer = load_model(), load_tokenizer()
    provenance = {
        "command": command,
        "options": options,
        "attention": model.config._attn_implementation,
        **_where(str(model.device), str(model.dtype)),
    }
    path = results_folder() / f"{name}.json"
    done: list[Run] = []
    if path.exists():
        stored = load_result(name)
        for key in ("options", "attention", "device", "dtype", "torch"):
            if json.loads(json.dumps(provenance))[key] != stored["provenance"][key]:
                raise ValueError(
                    f"{path} was measured with other {key}: {stored['provenance'][key]}, not {provenance[key]}; "
                    "choose another name, or move it away"
                )
        done, provenance = stored["runs"], stored["provenance"]
    runs = list(done)

    def report(run: Run) -> None:
        runs.append(run)
        _store(path, {"provenance": provenance, "runs": sorted(runs, key=lambda run: (run["rank"], run["seed"]))})

    rank_sweep(model, tokenizer, done=done, report=report, **options)
    return path


def _where(device: str, dtype: str) -> dict[str, Any]:
    """Say what a result is measured on: device, versions, date."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {platform.machine()}"
    return {
        "device": name,
        "dtype": dtype.removeprefix("torch."),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "lora-lab")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _store(path: Path, result: dict[str, Any]) -> None:
    """Write a result where the course keeps them."""
    from lora_lab.finetune.job import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
