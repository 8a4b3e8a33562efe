"""The training loop: short enough to read in one sitting, and able to stop and go on at any step.

Step k is a function of the settings, the data and the weights after step k − 1, and of nothing else: which examples it
reads and which units dropout silences both follow from ``(seed, k)``. So a run that is killed and started again ends at
the very weights it would have reached.
"""

import contextlib
import functools
import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_lab.finetune import processes
from lora_lab.finetune.activations import keep_less
from lora_lab.finetune.attention import attention_for
from lora_lab.finetune.checkpoint import (
    FILE_NAME,
    Checkpoint,
    copy_into,
    load_checkpoint,
    optimizer_tensors,
    prepare_folder,
    restore_optimizer,
    save_checkpoint,
    trainable,
)
from lora_lab.finetune.encoding import Batch, Encoded, collate
from lora_lab.finetune.graphs import Recorder, Shaped, can_record, shaped
from lora_lab.finetune.loss import AnswerScore, answer_loss, check_logits, score_answers
from lora_lab.finetune.memory import OutOfMemoryError, advice, is_out_of_memory
from lora_lab.finetune.model import context_length
from lora_lab.finetune.progress import Progress
from lora_lab.lora import lora_layers
from lora_lab.lora.targets import plain

LEAN = ("group_by_length", "gradient_checkpointing", "compile")  # settings that save time or memory
GROUPED = 16  # batches whose examples are sorted by length together


class DivergedError(RuntimeError):
    """The loss or its gradient is no longer a number; the message says at which step, and what to change."""


@dataclass(frozen=True)
class Settings:
    """The numbers of a training run.

    Attributes:
        epochs: how often each example is read.
        batch_size: examples in one step.
        micro_batch_size: examples that go through the model at once, ``batch_size`` by default. A smaller number
            needs less memory and gives the same gradient, because each token weighs the same in both (dropout, if
            there is any, draws other masks).
        learning_rate: AdamW's largest learning rate, reached after the warm-up.
        warmup: share of the steps in which the learning rate rises from zero; after it, it falls to zero on a line.
        weight_decay: AdamW's decoupled weight decay.
        max_gradient_norm: gradients are scaled down to this Euclidean norm if they exceed it.
        seed: decides the order of the examples and the dropout masks.
        validate_every: steps between two looks at the validation examples, once an epoch by default.
        checkpoint_every: steps between two checkpoints, when a folder is given.
        patience: how many looks in a row may find no lower validation loss before the run stops; by default it goes on
            to its last step. The learning rate falls as it would in the whole run.
        group_by_length: put examples of like length into one batch, which saves padding. Each epoch still reads all of
            them once, and the batches still come in an order drawn at random.
        gradient_checkpointing: keep of each block of the model its input alone and compute the rest again in the
            backward pass: less memory for more time, and the same gradient.
        compile: translate the blocks of the model with ``torch.compile`` first, which takes a minute. Whether a step is
            faster then depends on the device. The gradient is the same to rounding.
        cuda_graphs: on a GPU, record the forward and backward pass of each shape of batch and replay it
            (``lora_lab.finetune.graphs``): many times faster where a model is small. It is done without where it
            cannot be: with dropout, with ``gradient_checkpointing``, or where a model refuses.
    """

    epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    seed: int = 0
    validate_every: int | None = None
    checkpoint_every: int = 25
    patience: int | None = None
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that make no training run."""
        for name in ("epochs", "batch_size", "micro_batch_size", "validate_every", "checkpoint_every", "patience"):
            value = getattr(self, name)
            optional = name in ("micro_batch_size", "validate_every", "patience")
            if not (optional and value is None) and not (_is_whole(value) and value >= 1):
                raise ValueError(f"{name}: got {value!r}, takes a whole number of at least 1")
        for name in ("learning_rate", "max_gradient_norm"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, takes a number above 0")
        if not (_is_number(self.warmup) and 0 <= self.warmup < 1):
            raise ValueError(f"warmup: got {self.warmup!r}, takes a share from 0 up to, but not, 1")
        if not (_is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay: got {self.weight_decay!r}, takes a number of at least 0")
        for name in (*LEAN, "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, takes True or False")
        if not (_is_whole(self.seed) and 0 <= self.seed < 2**32):
            raise ValueError(f"seed: got {self.seed!r}, takes a whole number from 0 to {2**32 - 1:,}")


@dataclass
class History:
    """What a run measured, one entry a step: losses in nats per answer token, tokens read, seconds taken.

    ``validation`` holds ``(steps done, loss)``, ``accuracy`` ``(steps done, share of right tokens)`` of the same looks.
    ``best_step`` is the number of steps after which the validation loss was lowest, the state the model is left in;
    without validation examples it is ``None``.
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    accuracy: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Give the tokens read (padding not counted) per second of training, zero before the first step."""
        return sum(self.tokens) / sum(self.seconds) if self.seconds else 0.0

    @property
    def looks_since_best(self) -> int:
        """Give the number of looks at the validation examples that came after the best one."""
        return sum(step > self.best_step for step, _ in self.validation) if self.best_step is not None else 0


def train(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    settings: Settings | None = None,
    *,
    validation: Sequence[Encoded] = (),
    folder: str | Path | None = None,
    watch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> History:
    """Minimise the mean cross entropy of the answers over the model's trainable parameters, with AdamW.

    Only parameters with ``requires_grad`` change: after ``lora_lab.lora.attach`` these are the factors. The model comes
    back in the mode (training or evaluation) it was in, with the weights of the lowest validation loss if
    ``validation`` is given, of the last step otherwise.

    In each of the processes of a group of ``torch.distributed`` it does the same run on the same arguments: they share
    out the examples of each step, and end at the same weights as one process would, to rounding (dropout, if there is
    any, draws other masks). The first process alone writes into ``folder``, calls ``watch`` and shows progress. A run
    may go on with another number of processes.

    Args:
        model: a causal model of transformers, on the device to train on.
        examples: what to learn, from ``encode``.
        settings: the numbers of the run; ``Settings()`` by default.
        validation: examples to choose the best weights by.
        folder: where the run is kept, so that it can be killed at any moment and go on where it was: call ``train``
            again with the same model, examples and settings. A folder that holds another run is refused; of the base
            model its structure and the weights that stay frozen are compared.
        watch: called before the first step and after each one, and its validation if it was time for one, with what
            was measured so far: to show a sample, say. It may use the model, and must leave the weights alone. The step
            is saved after it, so a run that was killed and goes on calls it again for the steps it had not saved.
        progress: show a progress bar with loss and tokens per second.

    Raises:
        ValueError: no examples, or one that the model cannot read (too long for its context, a token beyond its
            vocabulary); ``patience`` without ``validation``; nothing to train, LoRA layers that are merged or
            disabled; a folder with another run; a model the loss does not fit; more processes than examples in a step,
            or processes that do not have the same run.
        OSError: nothing can be written into the folder.
        DivergedError: the loss or the gradient became infinite or not a number; the model keeps the weights of the
            last good step.
        OutOfMemoryError: a step does not fit in memory; the last checkpoint is kept.
        LostProcessError: another process has ended or does not answer; the last checkpoint is kept.
    """
    settings = settings if settings is not None else Settings()
    if not examples:
        raise ValueError("examples: got none; a training run needs at least one")
    if settings.patience is not None and not validation:
        raise ValueError(f"settings: patience is {settings.patience}, and there are no validation examples to look at")
    if settings.batch_size < processes.count():
        raise ValueError(
            f"batch_size: got {settings.batch_size}, takes at least one example for each of the "
            f"{processes.count()} processes"
        )
    parameters = trainable(model)
    if not parameters:
        raise ValueError("model: no parameter requires a gradient; attach LoRA first, or unfreeze what should learn")
    if any(layer.merged or not layer.enabled for layer in lora_layers(model).values()):
        raise ValueError("model: its LoRA layers are merged or disabled and would not learn; switch them on first")
    _check_readable(model, examples, "examples")
    _check_readable(model, validation, "validation")
    check_logits(model)
    if folder and processes.is_first():
        prepare_folder(Path(folder))
    run = _Run(model, parameters, list(examples), list(validation), settings, Path(folder) if folder else None)
    was_training = model.training
    try:
        first = processes.is_first()
        with (
            run.attention(),
            keep_less(model),
            _in_blocks(model, settings),
            Progress(run.steps, "training", shown=progress and first) as bar,
        ):
            run.resume()
            bar.advance(run.done)
            if watch and first and run.done == 0:
                run.doing = "watch"
                watch(run.history)
            while not run.ended:
                run.step()
                run.look()
                if watch and first:
                    run.doing = "watch"
                    watch(run.history)
                run.save()
                bar.advance(note=f"loss {run.history.losses[-1]:.3f} · {run.history.tokens_per_second:,.0f} tokens/s")
        run.keep_best()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise run.out_of_memory() from error
        if isinstance(error, processes.LostProcessError):
            raise run.lost(error) from error
        raise
    finally:
        model.train(was_training)
    return run.history


def batch_indices(examples: int, step: int, settings: Settings, lengths: Sequence[int] | None = None) -> list[int]:
    """Give the examples that a step reads: each epoch reads all of them once, in an order of its own.

    Args:
        examples: how many there are.
        step: which step, from 0.
        settings: the numbers of the run.
        lengths: the length of each example, needed for ``settings.group_by_length``: then the examples of 16 batches,
            drawn at random, are shared out by length.
    """
    size = settings.batch_size
    epoch, position = divmod(step, math.ceil(examples / size))
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(examples, generator=generator).tolist()
    if not settings.group_by_length:
        return order[position * size : (position + 1) * size]
    if lengths is None:
        raise ValueError("lengths: group_by_length needs the length of each example")
    windows = (order[start : start + GROUPED * size] for start in range(0, examples, GROUPED * size))
    by_length = [place for window in windows for place in sorted(window, key=lengths.__getitem__)]
    batches = [by_length[start : start + size] for start in range(0, examples, size)]
    return batches[torch.randperm(len(batches), generator=generator).tolist()[position]]


def learning_rate_at(step: int, steps: int, settings: Settings) -> float:
    """Give the learning rate of a step: a line up from 0 during the warm-up, then a line down to 0."""
    warmup_steps = round(settings.warmup * steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / (warmup_steps + 1)
    return settings.learning_rate * (steps - step) / (steps - warmup_steps)


@dataclass(frozen=True)
class _Ready:
    """What one step reads: this process's micro-batches on the model's device, and of the whole step the numbers of
    labelled tokens and of all tokens but padding.
    """

    batches: list[Batch] | list[Shaped]
    labelled: int
    tokens: int


class _Run:
    """One training run: the model and its optimiser, the steps done, and what was measured."""

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: dict[str, nn.Parameter],
        examples: list[Encoded],
        validation: list[Encoded],
        settings: Settings,
        folder: Path | None,
    ) -> None:
        self.model, self.parameters = model, parameters
        self.examples, self.validation, self.settings = examples, validation, settings
        self.folder = folder
        together = processes.count() > 1
        self.identity = _identity(model, examples, validation, settings) if folder or together else {}
        processes.check_same(self.identity, "this run")
        fused = model.device.type in ("cpu", "cuda")  # one pass over the weights in place of a dozen
        self.optimizer = torch.optim.AdamW(parameters.values(), weight_decay=settings.weight_decay, fused=fused)
        self.steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
        self.lengths = [len(example.tokens) for example in examples]
        self.validate_every = settings.validate_every or math.ceil(len(examples) / settings.batch_size)
        recorded = settings.cuda_graphs and not settings.gradient_checkpointing and can_record(model)
        self.recorder = Recorder(model, parameters.values()) if recorded else None
        self.ahead: _Ready | None = None  # what the next step reads
        self.done = 0
        self.doing: Literal["step", "validation", "watch"] = "step"
        self.best: dict[str, Tensor] = {}
        self.history = History()

    def step(self) -> None:
        """Take one step: forward and backward on each micro-batch, then one update."""
        started, self.doing = time.monotonic(), "step"
        ready = self.ahead or self._ready(self.done)

        if not self.model.training:  # to ask every module takes a millisecond
            self.model.train()
        self.optimizer.zero_grad(set_to_none=self.recorder is None)
        with _dropout_of(self.settings.seed + processes.rank() * 2**32, self.done, self.model.device):
            parts = [self._backward(batch, ready.labelled) for batch in ready.batches]
        loss = self._together(parts)
        self.look_ahead()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_gradient_norm).item()
        self._check_finite(loss.item(), norm)
        rate = learning_rate_at(self.done, self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

        self.done += 1
        self.history.losses.append(loss.item())
        self.history.learning_rates.append(rate)
        self.history.gradient_norms.append(norm)
        self.history.tokens.append(ready.tokens)
        self.history.seconds.append(time.monotonic() - started)

    def _backward(self, batch: Batch | Shaped, labelled: int) -> Tensor:
        """Give a batch's share of the loss, and add its gradient to the others."""
        if isinstance(batch, Shaped):
            assert self.recorder is not None
            return self.recorder.backward(batch, labelled)
        part = answer_loss(self.model, batch) / labelled
        part.backward()
        return part.detach()

    def _ready(self, step: int) -> _Ready:
        """Give what a step reads. Micro-batches are of like lengths, which saves padding and changes no gradient."""
        places = batch_indices(len(self.examples), step, self.settings, self.lengths)
        size = self.settings.micro_batch_size or len(places)
        if size < len(places) or processes.count() > 1:
            places.sort(key=self.lengths.__getitem__)
        mine = [self.examples[place] for place in processes.share(places)]
        batches = [collate(mine[start : start + size]) for start in range(0, len(mine), size)]
        device, limit = self.model.device, context_length(self.model)
        return _Ready(
            [shaped(batch, limit).to(device) for batch in batches]
            if self.recorder
            else [batch.to(device) for batch in batches],
            sum(self.examples[place].answer_tokens for place in places),
            sum(self.lengths[place] for place in places),
        )

    def _together(self, parts: list[Tensor]) -> Tensor:
        """Give the loss of the step, on the model's device, and add up the gradients over the processes.

        A process without an example has gradients of zero.
        """
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        loss = sum(parts, torch.zeros((), dtype=dtype, device=self.model.device))
        if processes.count() > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
            processes.add_up([loss, *gradients])
        return loss

    def look_ahead(self) -> None:
        """Make ready what the next step reads, while a GPU still computes this one: to read its loss is to wait."""
        self.ahead = self._ready(self.done + 1) if self.done + 1 < self.steps else None

    @property
    def ended(self) -> bool:
        """Say whether the last step is done, or the patience is over."""
        patience = self.settings.patience
        return self.done == self.steps or (patience is not None and self.history.looks_since_best >= patience)

    def look(self) -> None:
        """After a step, validate if it is time to."""
        if not self.validation or (self.done < self.steps and self.done % self.validate_every):
            return
        self.doing = "validation"
        size = self.settings.micro_batch_size or self.settings.batch_size
        mine = processes.share(self.validation)
        scores = [score_answers(self.model, mine, size)] if mine else []
        score = AnswerScore.combined(processes.collected(scores))
        if not self.history.validation or score.loss < min(earlier for _, earlier in self.history.validation):
            self.history.best_step = self.done
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.history.validation.append((self.done, score.loss))
        self.history.accuracy.append((self.done, score.accuracy))

    def save(self) -> None:
        """After a step, save if it is time to."""
        due = self.ended or self.done % self.settings.checkpoint_every == 0
        if self.folder and due and processes.is_first():
            self._save(self.folder)

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one."""
        found = load_checkpoint(self.folder) if self.folder and processes.is_first() else None
        checkpoint = processes.from_first(found)
        if checkpoint is None:
            return
        for name, mine in self.identity.items():
            if checkpoint.record["identity"].get(name) != mine:
                theirs = checkpoint.record["identity"].get(name)
                raise ValueError(
                    f"folder: {self.folder} holds another run, which differs in {name} ({theirs}, not {mine}); "
                    "choose another folder, or move that run away"
                )
        copy_into(self.parameters, checkpoint.tensors, prefix="parameter.")
        restore_optimizer(self.optimizer, checkpoint.tensors)
        self.done = checkpoint.record["done"]
        self.history = History(**checkpoint.record["history"])
        self.history.validation = [(step, loss) for step, loss in self.history.validation]
        self.history.accuracy = [(step, share) for step, share in self.history.accuracy]
        self.best = {
            name.removeprefix("best."): tensor.to(self.model.device)
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("best.")
        }

    def keep_best(self) -> None:
        """Leave the model with the weights of the lowest validation loss, if there was validation."""
        if self.best:
            copy_into(self.parameters, self.best)

    def attention(self) -> contextlib.AbstractContextManager[None]:
        """Let the model have the attention that is quick for the examples, on average, for a while."""
        return attention_for(self.model, sum(self.lengths) / len(self.lengths))

    def out_of_memory(self) -> OutOfMemoryError:
        """Give the error that says which step did not fit in memory, and what helps."""
        settings = self.settings
        if self.doing == "watch":
            where = "what was called to watch the training"
            return OutOfMemoryError(f"after step {self.done}: out of memory in {where}{self._kept()}")
        if self.doing == "validation":
            longest = max(len(example.tokens) for example in self.validation)
            size = min(settings.micro_batch_size or settings.batch_size, len(self.validation))
            helps = f"{size} validation examples of up to {longest} tokens went through the model at once. What helps: "
            fewer = f"lower micro_batch_size to {size // 2}; " if size > 1 else ""
            what = f"{helps}{fewer}leave out the longest validation examples"
            return OutOfMemoryError(f"after step {self.done}, in validation: out of memory. {what}{self._kept()}")
        places = batch_indices(len(self.examples), min(self.done, self.steps - 1), settings, self.lengths)
        rows, longest = math.ceil(len(places) / processes.count()), max(self.lengths[place] for place in places)
        rows = min(rows, settings.micro_batch_size or rows)
        with self.attention():
            helps = advice(self.model, rows, longest, recomputed=settings.gradient_checkpointing)
        return OutOfMemoryError(f"step {self.done + 1} of {self.steps}: out of memory. {helps}{self._kept()}")

    def lost(self, error: processes.LostProcessError) -> processes.LostProcessError:
        """Give the error that says at which step this process lost the others, and how to go on."""
        where = f"step {self.done + 1} of {self.steps}" if self.done < self.steps else f"after step {self.done}"
        onwards = ". Start the same run again, and it goes on from there" if self._kept() else ""
        return processes.LostProcessError(f"{where}: {error}{self._kept()}{onwards}")

    def _save(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {f"parameter.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        record = {"identity": self.identity, "done": self.done, "history": asdict(self.history)}
        save_checkpoint(folder, Checkpoint({**tensors, **optimizer_tensors(self.optimizer)}, record))

    def _kept(self) -> str:
        """Say that there is a checkpoint to go on from, if there is one."""
        there = self.folder and (self.folder / FILE_NAME).exists()
        return f". The last checkpoint in {self.folder} is untouched" if there else ""

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        where = f"step {self.done + 1} of {self.steps}: the loss is {loss} and the gradient's norm {norm}."
        if self.done == 0:
            raise DivergedError(
                f"{where} Nothing has been changed yet, so it is the model's own weights: NaN or infinity is among "
                "them, or they overflow in their type. Load the model again; instead of float16 use bfloat16 or float32"
            )
        raise DivergedError(
            f"{where} The weights are those of step {self.done}. Lower learning_rate "
            f"(now {self.settings.learning_rate:g}) or raise warmup (now {self.settings.warmup:g}); with float16 "
            f"weights, use bfloat16 or float32{self._kept()}"
        )


def mean_loss(model: PreTrainedModel, examples: Sequence[Encoded], batch_size: int = 8) -> float:
    """Give the mean cross entropy, in nats per answer token, of ``examples``, in evaluation mode."""
    return score_answers(model, examples, batch_size).loss


def _is_whole(value: object) -> bool:
    """Say whether ``value`` is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Say whether ``value`` is a finite number; True and False are not."""
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _check_readable(model: PreTrainedModel, examples: Sequence[Encoded], name: str) -> None:
    """Raise unless every example fits the context of ``model`` and has tokens of its vocabulary alone."""
    longest = max((len(example.tokens) for example in examples), default=0)
    limit = context_length(model)
    if limit is not None and longest > limit:
        raise ValueError(f"{name}: the longest has {longest} tokens, and the model reads at most {limit}")
    vocabulary: Any = plain(model.get_input_embeddings()).num_embeddings  # it may be adapted itself
    for token in {token for example in examples for token in example.tokens}:
        if token not in range(vocabulary):
            raise ValueError(f"{name}: token {token} is in one, and the model knows 0 to {vocabulary - 1}")


@contextlib.contextmanager
def _in_blocks(model: PreTrainedModel, settings: Settings) -> Iterator[None]:
    """Let the blocks of the model be recomputed in the backward pass and compiled as the settings ask, for a while."""
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for name in ("gradient_checkpointing", "compile"):
        if getattr(settings, name) and not blocks:
            raise ValueError(f"settings: {name} is on, and {type(model).__name__} has no blocks known to transformers")
    before = [(block.gradient_checkpointing, getattr(block, "_gradient_checkpointing_func", None)) for block in blocks]
    try:
        for block in blocks:
            if settings.gradient_checkpointing:
                # set by hand: the method of the model would ask for the gradient of the embedding too
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
            if settings.compile:
                block.compile(dynamic=True)
        yield
    finally:
        for block, (recomputed, function) in zip(blocks, before, strict=True):
            block.gradient_checkpointing, block._gradient_checkpointing_func = recomputed, function
            if settings.compile:
                block._compiled_call_impl = None


@contextlib.contextmanager
def _dropout_of(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw the dropout masks of one step from ``(seed, step)``, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _identity(
    model: PreTrainedModel, examples: list[Encoded], validation: list[Encoded], settings: Settings
) -> dict[str, Any]:
    """Give what tells one run from another: structure, frozen weights, data, settings."""
    frozen = 0
    kept = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    for tensor in kept.values():  # parameters, each once, and the codes of quantized layers
        if not tensor.requires_grad:
            frozen = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, frozen)
    configs: list[Any] = [
        adapter.config for layer in lora_layers(model).values() for adapter in layer.adapters.values()
    ]
    return {
        "adapted layers": len(lora_layers(model)),
        "ranks": sorted({config.rank for config in configs}),
        "alphas": sorted({float(config.alpha) for config in configs}),
        "structure": hashlib.sha256(repr(model).encode()).hexdigest()[:16],
        "frozen weights": f"{frozen:08x}",
        "examples": hashlib.sha256(repr(examples).encode()).hexdigest()[:16],
        "validation": hashlib.sha256(repr(validation).encode()).hexdigest()[:16],
        **{name: value for name, value in asdict(settings).items() if name != "checkpoint_every"},
    }
