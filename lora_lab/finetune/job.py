"""The fine-tune without a notebook: what ``lora-lab finetune`` does unless it is given data of your own.

It attaches LoRA, trains, asks the model with the adapter and without it, and leaves in a folder all that came of it.
Started again with the same options after it was stopped, it goes on where it was. With the adapter switched off the
model is the untouched one to the last bit, so the baselines can come after the training: whatever is wrong with the
folder or the options is found in seconds.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lab.finetune import processes
from lora_lab.finetune.encoding import encode, encode_prompt
from lora_lab.finetune.evaluation import MAX_NEW_TOKENS, Evaluation, evaluate
from lora_lab.finetune.memory import OutOfMemoryError, is_out_of_memory
from lora_lab.finetune.model import DEFAULT_MODEL, context_length, load_model, load_tokenizer, source_of
from lora_lab.finetune.text_to_sql import SPLITS, Example, TextToSQL
from lora_lab.finetune.training import History, Settings, train
from lora_lab.lora import LoRAConfig, account, attach, disabled, save_adapter
from lora_lab.lora.config import Targets

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """One fine-tune on the text-to-SQL task: what is trained, on how much, and where the result goes.

    Attributes:
        output: the folder for all that comes of it.
        model: a packaged model, a folder, or a name on the hub.
        source: ``"package"``, ``"hub"`` or ``"folder"``; by default what the name says.
        device: ``"cpu"``, ``"cuda"``, …; by default CUDA if there is one.
        dtype: ``"float32"`` or ``"bfloat16"``; by default what the device is fast at.
        rank: rank of each update.
        alpha: LoRA's alpha; the update is scaled by alpha / rank.
        targets: name endings of the layers to adapt, or ``all-linear``.
        examples: number of training examples.
        epochs: how often each example is read.
        batch_size: examples in a step.
        micro_batch_size: examples that go through the model at once; by default those of a step.
        learning_rate: AdamW's largest learning rate.
        group_by_length: put examples of like length into one batch, to save padding.
        gradient_checkpointing: compute the blocks of the model again in the backward pass, to save memory.
        compile: translate the blocks of the model with torch.compile first, which takes a minute.
        cuda_graphs: on a GPU, record the passes of a step and replay them.
        validation: examples to keep the best weights by; 0 keeps the last weights.
        validate_every: steps between two looks at them.
        seed: decides the initial factors and the order of the examples.
        test: questions asked of each test split.
        shots: solved examples in the prompt of the few-shot baseline.
        baselines: ask the untouched model too, without and with solved examples.
    """

    output: Path = Path("runs/text-to-sql")
    model: str = DEFAULT_MODEL
    source: str | None = None
    device: str | None = None
    dtype: str | None = None
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    examples: int = 960
    epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 4e-3
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = True
    validation: int = 32
    validate_every: int = 30
    seed: int = 0
    test: int = 64
    shots: int = 8
    baselines: bool = True


@dataclass(frozen=True)
class Result:
    """What a job measured: the scores by system and split, the history of the training, and the folder of it all."""

    scores: dict[str, dict[str, Evaluation]]
    history: History
    trainable: int
    share: float
    folder: Path


def run(job: Job, *, progress: bool = True) -> Result:
    """Carry out ``job`` and write ``adapter/``, ``checkpoint.safetensors`` and ``metrics.json`` into its folder.

    In each of the processes that ``torchrun`` started it does the same job: they share out the examples of each step
    and the questions, and the first one alone writes and speaks.

    Raises:
        ValueError: an option that makes no job, or a folder that holds another run; before anything is trained.
        OSError: nothing can be written into the folder.
        lora_lab.assets.AssetError: the packaged model cannot be fetched.
        lora_lab.finetune.DivergedError: the training diverged; the last checkpoint is kept.
        lora_lab.finetune.OutOfMemoryError: a step does not fit in memory; the last checkpoint is kept.
        lora_lab.finetune.LostProcessError: another process has ended or does not answer; the last checkpoint is kept.
    """
    progress = progress and processes.is_first()
    dtype = dtype_named(job.dtype)
    config = LoRAConfig(rank=job.rank, alpha=job.alpha, targets=as_targets(job.targets))
    settings = settings_of(job)
    task = TextToSQL(seed=0)
    with _named("examples"):
        examples = task.train(job.examples)
    with _named("validation"):
        held_out = task.validation(job.validation) if job.validation else []
    with _named("test"):
        questions = {split: task.test(split, job.test) for split in SPLITS}
    with _named("shots"):
        solved = task.train(job.shots) if job.shots else []
    with processes.first_here_first():  # the first one downloads
        tokenizer = load_tokenizer(job.model, source=job.source)
    model = load_model(job.model, source=job.source, dtype=dtype, device=job.device)

    if solved and job.baselines:
        _check_room(model, tokenizer, task, questions, solved)
    with as_options():
        attach(model, config, generator=torch.Generator().manual_seed(job.seed))
    counts = account(model)
    encoded, validation = (
        [encode(tokenizer, task.messages(example), example.query) for example in chosen]
        for chosen in (examples, held_out)
    )
    history = train(model, encoded, settings, validation=validation, folder=job.output, progress=progress)
    if processes.is_first():
        save_adapter(model, job.output / "adapter")

    def ask(asked: Sequence[Example], shots: Sequence[Example]) -> Evaluation:
        mine = processes.share(asked)
        told = evaluate(model, tokenizer, task, mine, shots=shots, progress=progress).answered if mine else ()
        return Evaluation(tuple(processes.collected(told)))

    def ask_all(shots: Sequence[Example] = ()) -> dict[str, Evaluation]:
        return {split: ask(asked, shots) for split, asked in questions.items()}

    scores: dict[str, dict[str, Evaluation]] = {}
    with memory_for_scores(job.output, "fewer --shots or --no-baselines"):
        if job.baselines:
            with disabled(model):
                scores["untouched"] = ask_all()
                if solved:
                    scores[f"untouched, {job.shots} examples in the prompt"] = ask_all(solved)
        scores["after LoRA"] = ask_all()

    result = Result(scores, history, counts.trainable, counts.share, job.output)
    if processes.is_first():
        write_json(job.output / "metrics.json", _metrics(job, result, model.device, model.dtype))
    return result


def _check_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TextToSQL,
    questions: Mapping[str, Sequence[Example]],
    solved: Sequence[Example],
) -> None:
    """Raise ``ValueError`` before anything is trained if the solved examples leave no room for an answer."""
    limit = context_length(model)
    prompts = (task.messages(one, solved) for asked in questions.values() for one in asked)
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts) + MAX_NEW_TOKENS
    if limit is not None and longest > limit:
        raise ValueError(
            f"shots: with {len(solved)} solved examples the longest prompt and its answer may have {longest} tokens, "
            f"and the model reads at most {limit}; take fewer"
        )


def summary(result: Result) -> str:
    """Give the scores as a table, one line a system, one column a test split."""
    width = max(len(system) for system in result.scores)
    lines = [f"{'':{width}}  " + "  ".join(f"{split:>10}" for split in SPLITS)]
    for system, by_split in result.scores.items():
        cells = (f"{by_split[split].correct:>5} / {by_split[split].total}" for split in SPLITS)
        lines.append(f"{system:{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    lines.append(f"{result.trainable:,} parameters trained, {result.share:.2%} of the model")
    return "\n".join(lines)


def _metrics(job: Job, result: Result, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Give the job, where it ran and what it measured, as plain JSON values."""
    return {
        "job": {**asdict(job), "source": job.source or source_of(job.model), "output": job.output.name},
        "ran on": ran_on(device, dtype),
        "parameters": {"trainable": result.trainable, "share": result.share},
        "scores": {
            system: {
                split: {
                    "correct": evaluation.correct,
                    "total": evaluation.total,
                    "interval": evaluation.interval,
                    "by kind": evaluation.by_kind(),
                }
                for split, evaluation in by_split.items()
            }
            for system, by_split in result.scores.items()
        },
        "tokens per second": result.history.tokens_per_second,
        "history": asdict(result.history),
    }


def settings_of(job: Any) -> Settings:
    """Give the settings of the training, from the fields of a job that have the same names."""
    names = (field.name for field in fields(Settings))
    return Settings(**{name: getattr(job, name) for name in names if hasattr(job, name)})


def dtype_named(name: str | None) -> torch.dtype | None:
    """Give the type of this name, or raise ``ValueError``; ``None`` stays ``None``."""
    if name is not None and name not in DTYPES:
        raise ValueError(f"dtype: got {name!r}, takes one of {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


def as_targets(names: tuple[str, ...]) -> Targets:
    """Give names of layers as ``LoRAConfig`` takes them, where ``all-linear`` is no name and stands alone."""
    if "all-linear" in names and len(names) > 1:
        raise ValueError(f"targets: got {' '.join(names)}; all-linear stands alone, without names of layers")
    return "all-linear" if names == ("all-linear",) else names


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """Let what the task says of a number of examples name the option that it came from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


@contextlib.contextmanager
def memory_for_scores(folder: Path, lower: str) -> Iterator[None]:
    """Let an error for want of memory after the training say that the adapter is saved, and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory, when the model was asked for the scores. The adapter is trained, and saved in "
            f"{folder / 'adapter'}. The same command with {lower} takes it up from there"
        ) from error


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """Let what the library says of a ``LoRAConfig`` speak of options: of a wrong value, and of ``ranks``."""
    try:
        yield
    except (TypeError, ValueError) as error:  # TypeError: a target is a layer of another kind
        raise ValueError(str(error).replace("rank_pattern", "ranks")) from error


def ran_on(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Give the device, the type of the weights, and the versions, as plain JSON values."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "lora-lab")},
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write ``values`` in a single step, so that a reader never finds half a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
