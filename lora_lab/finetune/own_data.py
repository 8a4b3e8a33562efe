"""A fine-tune on your own data: what ``lora-lab finetune --data`` does.

It reads the file and names what is wrong with it, attaches LoRA to any causal model, and trains to the last step or to
the end of its patience. In a folder it leaves the adapter with its card, samples of what the model said as it learned,
and the figures. Started again with the same options after it was stopped, it goes on where it was.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lab.finetune import processes
from lora_lab.finetune.corpus import Corpus, Example, encode_file, share_out
from lora_lab.finetune.data import read_data
from lora_lab.finetune.job import (
    as_options,
    as_targets,
    dtype_named,
    memory_for_scores,
    ran_on,
    settings_of,
    write_json,
)
from lora_lab.finetune.model import DEFAULT_MODEL, context_length, load_model, load_tokenizer, source_of
from lora_lab.finetune.model_card import model_card
from lora_lab.finetune.own_scores import Score, all_scores, greedy_answers, questions_of
from lora_lab.finetune.training import History, Settings, train
from lora_lab.lora import LoRAConfig, account, attach, save_adapter

SHARE = 0.1  # of the examples that are validated with, if nothing else is said
SAMPLES, METRICS = "samples.jsonl", "metrics.json"  # files of the output folder


@dataclass(frozen=True)
class Job:
    """One fine-tune on your own data: what is trained, on what, and where the result goes.

    Attributes:
        data: a .jsonl or .csv file with prompt and completion, or .jsonl with chat messages, whose last answer counts.
        output: the folder for all that comes of it.
        model: a packaged model, a folder, or a name on the hub.
        source: ``"package"``, ``"hub"`` or ``"folder"``; by default what the name says.
        device: ``"cpu"``, ``"cuda"``, …; by default CUDA if there is one.
        dtype: ``"float32"`` or ``"bfloat16"``; by default what the device is fast at.
        rank: rank of each update.
        alpha: LoRA's alpha; the update is scaled by alpha / rank.
        targets: name endings of the layers to adapt, or ``all-linear``.
        ranks: other ranks for some of the targets, as NAME=RANK.
        dropout: probability that an input feature of the adapter is dropped in training.
        max_tokens: longer examples are reported and left out, never cut; by default what the model can read.
        epochs: how often each example is read.
        batch_size: examples in a step.
        micro_batch_size: examples that go through the model at once, to save memory; by default all of a step.
        learning_rate: AdamW's largest learning rate.
        group_by_length: put examples of like length into one batch, to save padding.
        gradient_checkpointing: compute the blocks of the model again in the backward pass, to save memory.
        compile: translate the blocks of the model with torch.compile first, which takes a minute.
        cuda_graphs: on a GPU, record the passes of a step and replay them.
        validation: examples to keep the best weights by, below 1 a share; 0 keeps the last weights; by default 0.1.
        validation_data: a file with the validation examples, where they are not part of the data.
        test_data: a file with examples that choose nothing, for the scores; by default they are of the validation ones.
        validate_every: steps between two looks at them; by default once an epoch.
        patience: looks in a row without a better validation loss after which the run stops; by default it does not.
        samples: validation prompts that the model answers as it learns, into samples.jsonl.
        sample_every: steps between two samples; by default at each look.
        test: prompts that the model answers at the end, to count the exact answers, and the right ones among a few.
        shots: training examples in the prompt of the untouched model, as a further baseline; 0 leaves it out.
        seed: decides the initial factors and the order of the examples.
    """

    data: Path
    output: Path = Path("runs/own-data")
    model: str = DEFAULT_MODEL
    source: str | None = None
    device: str | None = None
    dtype: str | None = None
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    ranks: tuple[tuple[str, int], ...] = ()
    dropout: float = 0.0
    max_tokens: int | None = None
    epochs: int = 3
    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = True
    validation: int | float | None = None
    validation_data: Path | None = None
    test_data: Path | None = None
    validate_every: int | None = None
    patience: int | None = None
    samples: int = 3
    sample_every: int | None = None
    test: int = 64
    shots: int = 0
    seed: int = 0

    @property
    def held_out(self) -> int | float:
        """Give how many, or which share, of the examples of ``data`` are validated with."""
        if self.validation_data is not None:
            return 0
        return SHARE if self.validation is None else self.validation

    def command(self) -> str:
        """Give the command line of this job, with names in place of paths, so that it can be shown to anybody."""
        words = ["lora-lab", "finetune"]
        for name, value in self.shown().items():
            default = next(field.default for field in fields(self) if field.name == name)
            if default is MISSING or getattr(self, name) != default:
                words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
                words += map(str, value if isinstance(value, list) else [] if isinstance(value, bool) else [value])
        return shlex.join(words)

    def shown(self) -> dict[str, Any]:
        """Give the fields as plain JSON values, without the places of this machine."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: value.name for name, value in values.items() if isinstance(value, Path)}
        values["ranks"] = [f"{name}={rank}" for name, rank in self.ranks]
        values["targets"] = list(self.targets)
        source = self.source or source_of(self.model)
        model = Path(self.model).resolve().name if source == "folder" else self.model
        return values | {"model": model, "source": source}


@dataclass(frozen=True)
class Result:
    """What a job measured.

    Attributes:
        scores: ``"before"``, with the adapter off, ``"before, N examples in the prompt"`` if they were asked for, and
            ``"after"``; on the test examples if there are some, else on the validation examples, else empty.
        commonest: of as many answers as were asked for, those that equal the commonest one of the training examples,
            which is what saying it always would score; ``None`` where the answers are no choice among a few.
        history: of the training.
        steps: how many there were to be; the history has fewer if patience ended the run.
        corpus: what was learned from.
        trainable: parameters that were trained.
        share: of all parameters of the model.
        ran_on: device and versions.
        folder: where everything is.
    """

    scores: dict[str, Score]
    commonest: int | None
    history: History
    steps: int
    corpus: Corpus
    trainable: int
    share: float
    ran_on: dict[str, Any]
    folder: Path

    def ending(self) -> str:
        """Say after how many steps the training ended, and which weights were kept."""
        done, best = len(self.history.losses), self.history.best_step
        early = "" if done == self.steps else ", stopped early by its patience"
        kept = f"; kept are the weights of step {best}, where the validation loss was lowest" if best else ""
        return f"{done} of {self.steps} steps{early}{kept}"


def run(job: Job, *, progress: bool = True) -> Result:
    """Carry out ``job``; its folder gets ``adapter/`` with a card, the checkpoint, ``samples.jsonl``, ``metrics.json``.

    Without ``test_data`` the validation examples choose the weights that are kept and score them too, so the score
    flatters a little.

    In each of the processes that ``torchrun`` started it does the same job: they share out the examples of each step
    and of the scores, and the first one alone writes and speaks.

    Args:
        job: what to do.
        progress: say what was read before the training begins, and show progress bars.

    Raises:
        lora_lab.finetune.data.DataError: lines of a data file that make no example.
        ValueError: an option that makes no job, data without a usable example, a model that the targets or the loss do
            not fit, a folder that holds another run; before anything is trained.
        OSError: a file that cannot be read, a model that cannot be found, a folder that cannot be written.
        lora_lab.finetune.DivergedError: the training diverged; the last checkpoint is kept.
        lora_lab.finetune.OutOfMemoryError: a step does not fit in memory; the last checkpoint is kept.
        lora_lab.finetune.LostProcessError: another process has ended or does not answer; the last checkpoint is kept.
    """
    progress = progress and processes.is_first()
    dtype, config, settings = dtype_named(job.dtype), _config(job), _settings(job)
    files = [read_data(path) if path is not None else None for path in _data_paths(job)]
    with processes.first_here_first():  # the first one downloads
        tokenizer = load_tokenizer(job.model, source=job.source)
    source, judge, exam = (encode_file(tokenizer, file) if file is not None else None for file in files)
    assert source is not None
    model = load_model(job.model, source=job.source, dtype=dtype, device=job.device)
    limits = [limit for limit in (job.max_tokens, context_length(model)) if limit is not None]
    corpus = share_out(source, judge, job.held_out, min(limits, default=None), exam)
    questions = questions_of(job, tokenizer, corpus, context_length(model))
    if progress:
        print(corpus.report(), flush=True)

    with as_options():
        attach(model, config, generator=torch.Generator().manual_seed(job.seed))
    counts = account(model)
    train_on, validation = ([example.encoded for example in side] for side in (corpus.train, corpus.validation))
    different = list({example.record.fingerprint: example for example in corpus.validation}.values())
    sampler = Sampler(job, model, tokenizer, different[: job.samples])
    history = train(
        model, train_on, settings, validation=validation, folder=job.output, watch=sampler, progress=progress
    )
    if processes.is_first():
        save_adapter(model, job.output / "adapter")
    with memory_for_scores(job.output, "a smaller --test or fewer --shots"):
        scores = all_scores(job, model, tokenizer, questions, progress)
    steps = job.epochs * -(-len(train_on) // job.batch_size)
    where = ran_on(model.device, model.dtype)
    commonest = questions.commonest(job.test)
    result = Result(scores, commonest, history, steps, corpus, counts.trainable, counts.share, where, job.output)
    if processes.is_first():
        card = model_card(_base_name(job, model), job.command(), _sections(job, result), _notes(job, result))
        (job.output / "adapter" / "README.md").write_text(card, encoding="utf-8")
        write_json(job.output / METRICS, _metrics(job, result))
    return result


def summary(result: Result) -> str:
    """Give the scores before and after as a table, how the training ended, and how much was trained."""
    lines = []
    width = max((len(name) for name in result.scores), default=0) + 2
    if result.scores:
        chosen = f"{'right choices':>15}" if result.commonest is not None else ""
        lines.append(f"{'':{width}}{'loss':>8}{'perplexity':>12}{'right tokens':>14}{'exact answers':>15}{chosen}")
    for name, score in result.scores.items():
        tokens, exact = score.tokens, f"{score.exact} / {score.asked}"
        chosen = f"{f'{score.chosen} / {score.asked}':>15}" if score.chosen is not None else ""
        figures = f"{tokens.loss:8.3f}{tokens.perplexity:12.4g}{tokens.accuracy:14.1%}{exact:>15}{chosen}"
        lines.append(f"{name:{width}}{figures}")
    if result.commonest is not None and result.scores:
        asked = result.scores["after"].asked
        lines.append(f"the commonest answer in training, always said, would be right {result.commonest} / {asked}")
    lines.append(result.ending())
    if result.scores and result.scores["after"].tokens.loss > result.scores["before"].tokens.loss:
        lines.append("the loss is higher than without the adapter: lower the learning rate, or give it more examples")
    lines.append(f"{result.trainable:,} parameters trained, {result.share:.2%} of the model")
    return "\n".join(lines)


class Sampler:
    """Writes what a model answers to the same few prompts while it learns, one JSON object a line.

    It takes the likeliest token each time, so it draws no random number and changes nothing in the training. A run that
    was killed and goes on writes the steps it takes again in place of those it had written.
    """

    def __init__(
        self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> None:
        """Remember what to ask, and when: every ``job.sample_every`` steps, or at each look at the validation."""
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.path, self.every, self.batch_size = job.output / SAMPLES, job.sample_every, job.batch_size

    def __call__(self, history: History) -> None:
        """Write a sample if it is time for one: before the first step, and as often as was asked."""
        step = len(history.losses)
        looked = bool(history.validation) and history.validation[-1][0] == step
        if not self.examples or not (step == 0 or (looked if self.every is None else step % self.every == 0)):
            return
        encoded = [example.encoded for example in self.examples]
        said = greedy_answers(self.model, self.tokenizer, encoded, batch_size=self.batch_size, progress=False)
        written = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() and step else []
        kept = [line for line in written if json.loads(line)["step"] < step]
        for example, answer in zip(self.examples, said, strict=True):
            record = example.record
            prompt = record.prompt if isinstance(record.prompt, str) else [turn._asdict() for turn in record.prompt]
            entry = {"step": step, "line": record.line, "prompt": prompt, "expected": record.answer}
            kept.append(json.dumps({**entry, "answer": answer}, ensure_ascii=False))
        part = self.path.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(part, self.path)


def _config(job: Job) -> LoRAConfig:
    """Give the description of the adapter."""
    targets = as_targets(job.targets)
    with as_options():
        return LoRAConfig(rank=job.rank, alpha=job.alpha, targets=targets, rank_pattern=job.ranks, dropout=job.dropout)


def _settings(job: Job) -> Settings:
    """Give the settings of the training, or raise ``ValueError`` if the options contradict each other."""
    if job.validation is not None and job.validation_data is not None:
        raise ValueError("validation: leave it out, for validation_data is the file of the validation examples")
    for name, least in (("max_tokens", 2), ("samples", 0), ("sample_every", 1), ("test", 0), ("shots", 0)):
        value = getattr(job, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, takes a whole number of at least {least}")
    without = job.held_out == 0 and job.validation_data is None
    for name in ("patience", "sample_every", "validate_every"):
        if without and getattr(job, name) is not None:
            raise ValueError(f"{name}: got {getattr(job, name)}, and there are no validation examples to look at")
    if job.shots and without and job.test_data is None:
        raise ValueError(f"shots: got {job.shots}, and there are no validation or test examples to ask about")
    return settings_of(job)


def _data_paths(job: Job) -> list[Path | None]:
    """Give the files of the training, the validation and the test examples; ``ValueError`` for one written over."""
    paths = [job.data, job.validation_data, job.test_data]
    for path in paths:
        if path is not None and path.name in (SAMPLES, METRICS) and path.resolve().parent == job.output.resolve():
            raise ValueError(f"output: {path.name} is written into {job.output}, over your data; choose another folder")
    return paths


def _base_name(job: Job, model: PreTrainedModel) -> str:
    """Give the name of the base model for its card: on the hub, or of the folder."""
    shown = job.shown()
    return str(shown["model"] if shown["source"] == "folder" else model.name_or_path)


def _sections(job: Job, result: Result) -> dict[str, list[tuple[str, object]]]:
    """Give what the card tells, as tables of a name and a value."""
    data: list[tuple[str, object]] = []
    facts = result.corpus.facts()
    for file in facts["files"]:
        data += [
            ("file", file["name"]),
            ("SHA-256", file["sha256"]),
            ("examples in it", file["examples"]),
            ("left out, too long", len(file["too long"])),
            ("standing in it more than once", len(file["duplicates"])),
        ]
    data += [
        (
            "left out of training, also in the validation or test file",
            len(facts["also in the validation or test file"]),
        ),
        ("most tokens of an example", facts["most tokens"]),
        ("read as", facts["format"]),
        ("learned from", facts["train"]),
        ("validated with", facts["validation"]),
        ("tested with", facts["test"]),
    ]
    left_out = ("data", "output", "validation_data", "test_data", "device")
    used = job.shown() | ({} if job.validation_data else {"validation": job.held_out})
    settings = [(name.replace("_", " "), value) for name, value in used.items() if name not in left_out]
    results: list[tuple[str, object]] = [("steps", result.ending())]
    for name, score in result.scores.items():
        results += [(f"{figure}, {name}", value) for figure, value in score.facts().items() if figure != "asked"]
    if result.scores:
        results.append(("answers asked for", result.scores["after"].asked))
    if result.commonest is not None and result.scores:
        results.append(("right, if the commonest answer in training were always said", result.commonest))
    results.append(("parameters trained", f"{result.trainable:,} ({result.share:.2%} of the model)"))
    return {"Data": data, "Settings": settings, "Results": results, "Ran on": list(result.ran_on.items())}


def _notes(job: Job, result: Result) -> list[str]:
    """Give what a reader of the card must know beside its tables."""
    notes = []
    if job.shown()["source"] == "package":
        notes.append(
            "The base that it learned beside is the packaged one: its weights were rounded to 4 bits, so beside the "
            "weights of the Hub the answers may differ a little."
        )
    if result.scores:
        tested = "on the test examples, which chose nothing. "
        validated = (
            "on the validation examples. They chose the weights that were kept, so the results flatter a little. "
        )
        notes.append(
            f"The results are {tested if result.corpus.test else validated}Loss and perplexity are per token of the "
            'answers. "Before" is the base model without the adapter.'
        )
    if result.commonest is not None:
        notes.append(
            "A choice is right if the right answer is the likeliest of those in the training examples, each taken "
            "whole, with its end."
        )
    return notes


def _metrics(job: Job, result: Result) -> dict[str, Any]:
    """Give the job, the data, where it ran and what it measured, as plain JSON values."""
    return {
        "job": job.shown(),
        "command": job.command(),
        "data": result.corpus.facts(),
        "ran on": result.ran_on,
        "parameters": {"trainable": result.trainable, "share": result.share},
        "scores": {name: score.facts() for name, score in result.scores.items()},
        "commonest answer": result.commonest,
        "tokens per second": result.history.tokens_per_second,
        "steps": result.steps,
        "history": vars(result.history),
    }
