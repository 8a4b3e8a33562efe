"""Train a classifier, and count its right answers: one short loop for everything that the comparisons compare.

Whatever requires a gradient is trained, so the same call does full fine-tuning, a head alone, biases alone, adapters or
LoRA. Each step follows from the settings, the data and the weights before it, and from nothing else.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lab.finetune.checkpoint import trainable
from lora_lab.finetune.model import context_length
from lora_lab.finetune.progress import Progress
from lora_lab.finetune.training import (
    LEAN,
    DivergedError,
    History,
    Settings,
    _dropout_of,
    batch_indices,
    learning_rate_at,
)
from lora_lab.lora import lora_layers


class Labelled(NamedTuple):
    """A text and the number of its class, from 0."""

    text: str
    label: int


def train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Labelled],
    settings: Settings | None = None,
    *,
    precision: torch.dtype | None = None,
    progress: bool = True,
) -> History:
    """Minimise the mean cross entropy of the labels over the model's trainable parameters, with AdamW.

    Args:
        model: a sequence classifier of transformers, such as ``load_encoder`` gives, on the device to train on.
        tokenizer: its tokenizer.
        examples: texts and their labels.
        settings: the numbers of the run; ``Settings()`` by default. The learning rate rises during the warm-up and
            then falls to zero on a line; the seed alone decides the order of the examples and the dropout masks.
        precision: the type in which matrices are multiplied, where it is not that of the weights: ``torch.bfloat16``
            takes half the time on a processor that has it in hardware. Weights and their updates stay as they are.
        progress: show a progress bar.

    Returns:
        What was measured, one entry a step: losses in nats per text, tokens read, seconds taken.

    Raises:
        ValueError: no examples, a text too long for the model, a label that the head does not have; and whatever
            ``minimise`` refuses.
        DivergedError: the loss or the gradient became infinite or not a number.
    """
    settings = settings if settings is not None else Settings()
    texts = _encoded(model, tokenizer, [text for text, _ in examples])
    labels = torch.tensor([label for _, label in examples], dtype=torch.int64)
    classes = model.config.num_labels
    for _, label in examples:
        if label not in range(classes):
            raise ValueError(f"examples: one has label {label!r}, and the model's head tells 0 to {classes - 1} apart")

    def loss(places: list[int]) -> Tensor:
        scores = _scores(model, [texts[place] for place in places], tokenizer, precision)
        return nn.functional.cross_entropy(scores, labels[places].to(model.device))

    history = minimise(model, loss, len(examples), settings, progress=progress)
    for step in range(len(history.losses)):
        history.tokens.append(sum(len(texts[place]) for place in batch_indices(len(texts), step, settings)))
    return history


def minimise(
    model: nn.Module,
    loss: Callable[[list[int]], Tensor],
    count: int,
    settings: Settings,
    *,
    progress: bool = True,
) -> History:
    """Minimise ``loss`` over the trainable parameters of any network, with AdamW: the loop under ``train_classifier``.

    Args:
        model: the network; it is in training mode during the steps, and comes back in the mode it was in.
        loss: gives the mean loss of the examples at some places, a scalar with a gradient.
        count: how many examples there are.
        settings: the numbers of the run; ``validate_every`` and ``patience`` are refused: nothing is validated here.
        progress: show a progress bar.

    Returns:
        Loss, learning rate, the gradient's norm before clipping and the seconds of each step.

    Raises:
        ValueError: no examples, nothing to train, LoRA layers that are merged or disabled, ``validate_every`` or
            ``patience``; ``torch.autocast`` around the call, which keeps copies of the weights: open it inside
            ``loss``.
        DivergedError: the loss or the gradient became infinite or not a number; the weights are those of the last
            good step.

    Example:
        >>> net = nn.Linear(784, 10)
        >>> def loss(places): return nn.functional.cross_entropy(net(images[places]), labels[places])
        >>> minimise(net, loss, len(images), Settings(epochs=5))  # doctest: +SKIP
    """
    parameters = list(trainable(model).values())
    if count < 1:
        raise ValueError("examples: got none; a training run needs at least one")
    if not parameters:
        raise ValueError("model: no parameter requires a gradient; attach LoRA first, or unfreeze what should learn")
    if any(layer.merged or not layer.enabled for layer in lora_layers(model).values()):
        raise ValueError("model: its LoRA layers are merged or disabled and would not learn; switch them on first")
    device = parameters[0].device
    if torch.is_autocast_enabled(device.type) and torch.is_autocast_cache_enabled():
        raise ValueError("model: autocast is on around the whole training, and would go on reading the first weights")
    for name in ("validate_every", "patience"):
        if getattr(settings, name) is not None:
            raise ValueError(f"settings: {name} is {getattr(settings, name)}, and nothing is validated here")
    for name in LEAN:
        if getattr(settings, name):
            raise ValueError(f"settings: {name} is on, which is for a language model and ``train``, not for this loop")
    # fused: one pass over the weights in place of a dozen, which is a quarter of a step of full fine-tuning
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=fused)
    steps = settings.epochs * math.ceil(count / settings.batch_size)
    history, was_training = History(), model.training
    model.train()
    try:
        with Progress(steps, "training", shown=progress) as bar:
            for step in range(steps):
                started = time.monotonic()
                places = batch_indices(count, step, settings)
                optimizer.zero_grad()
                value = _backward(loss, places, settings, step, device)
                norm = nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm).item()
                if not (math.isfinite(value) and math.isfinite(norm)):
                    raise DivergedError(
                        f"step {step + 1} of {steps}: the loss is {value} and the gradient's norm {norm}. The weights "
                        f"are those of step {step}. Lower learning_rate (now {settings.learning_rate:g}) or raise "
                        f"warmup (now {settings.warmup:g})"
                    )
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, steps, settings)
                optimizer.step()
                history.losses.append(value)
                history.learning_rates.append(optimizer.param_groups[0]["lr"])
                history.gradient_norms.append(norm)
                history.seconds.append(time.monotonic() - started)
                bar.advance(note=f"loss {value:.3f}")
    finally:
        model.train(was_training)
        optimizer.zero_grad()
    return history


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Labelled],
    *,
    batch_size: int = 64,
    precision: torch.dtype | None = None,
) -> float:
    """Give the share of ``examples``, from 0 to 1, whose label is the class with the highest score.

    ``batch_size`` texts go through the model at once; ``precision`` is that of ``train_classifier``.

    Raises:
        ValueError: no examples, or a text too long for the model.
    """
    if not examples:
        raise ValueError("examples: got none; a share needs at least one")
    answers = predict(model, tokenizer, [text for text, _ in examples], batch_size=batch_size, precision=precision)
    return sum(answer == label for answer, (_, label) in zip(answers, examples, strict=True)) / len(examples)


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    precision: torch.dtype | None = None,
) -> list[int]:
    """Give the class with the highest score for each text, in evaluation mode.

    ``batch_size`` texts go through the model at once; ``precision`` is that of ``train_classifier``. Texts of like
    length go together, which saves padding and changes no answer beyond rounding.

    Raises:
        ValueError: a text too long for the model.
    """
    encoded = _encoded(model, tokenizer, texts)
    order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
    answers = [0] * len(texts)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            scores = _scores(model, [encoded[place] for place in places], tokenizer, precision)
            for place, answer in zip(places, scores.argmax(-1).tolist(), strict=True):
                answers[place] = answer
    finally:
        model.train(was_training)
    return answers


def _backward(
    loss: Callable[[list[int]], Tensor], places: list[int], settings: Settings, step: int, device: torch.device
) -> float:
    """Leave the gradient of a batch's mean loss in the parameters, micro-batch by micro-batch, and give that loss."""
    size, value = settings.micro_batch_size or len(places), 0.0
    with _dropout_of(settings.seed, step, device):
        for start in range(0, len(places), size):
            part = places[start : start + size]
            share = loss(part) * (len(part) / len(places))
            share.backward()
            value += share.item()
    return value


def _scores(
    model: PreTrainedModel,
    texts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    precision: torch.dtype | None,
) -> Tensor:
    """Give the class scores of some texts, (batch, classes), in the type of the weights."""
    batch = _batch(texts, tokenizer, model.device)
    if precision is None:
        scores: Tensor = model(**batch).logits
        return scores
    with torch.autocast(model.device.type, precision):
        return model(**batch).logits.to(model.dtype)


def _encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Give the token ids of each text, and refuse one that the model cannot read whole."""
    if tokenizer.pad_token_id is None:
        raise ValueError("tokenizer: it has no padding token, so texts of unlike length cannot go in one batch")
    encoded: list[list[int]] = tokenizer(list(texts), truncation=False)["input_ids"] if texts else []
    limit = context_length(model)
    longest = max((len(tokens) for tokens in encoded), default=0)
    if limit is not None and longest > limit:
        raise ValueError(f"examples: the longest has {longest} tokens, and the model reads at most {limit}")
    return encoded


def _batch(texts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> dict[str, Tensor]:
    """Give token ids and attention mask, (batch, tokens), padded on the right to the longest text."""
    length, padding = max(len(tokens) for tokens in texts), tokenizer.pad_token_id
    ids = torch.tensor([tokens + [padding] * (length - len(tokens)) for tokens in texts])
    mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens in texts])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
