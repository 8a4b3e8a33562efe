"""What the experiments on film reviews share: short sentences, an encoder, one training, one score.

A sentence of at most 32 tokens trains in half the time of one batch among all lengths, and seven of ten sentences are
that short. Every run begins with a copy of the same encoder, so no run finds a trace of another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments.experiment import Options, Run
from lora_lab.course.experiments.ways import configuration, learning_rate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lora_lab.finetune import History, Labelled, MeanPooledClassifier, Reviews

TOKENS = 32  # the longest sentence, special tokens included
BATCH_SIZE = 16
SHOWN = 512  # training sentences that are scored after a training, at most


@dataclass(frozen=True)
class Materials:
    """What all runs share.

    Attributes:
        pretrained: the encoder as its makers trained it, with an untrained head.
        untrained: the same network at random weights, with the same head.
        tokenizer: their tokenizer.
        reviews: the short sentences.
        precision: in which matrices are multiplied: bfloat16 where the processor has it, else None, float32.
    """

    pretrained: MeanPooledClassifier
    untrained: MeanPooledClassifier
    tokenizer: PreTrainedTokenizerBase
    reviews: Reviews
    precision: torch.dtype | None


def materials(options: Options | None = None) -> Materials:
    """Load the encoder twice, and the sentences."""
    import torch

    from lora_lab.finetune import default_device, has_bfloat16, load_encoder, load_reviews

    device = default_device()
    pretrained, tokenizer = load_encoder(device=device)
    untrained, _ = load_encoder(pretrained=False, device=device)
    precision = torch.bfloat16 if has_bfloat16(device) else None
    return Materials(pretrained, untrained, tokenizer, load_reviews().at_most(TOKENS, tokenizer), precision)


def learned(
    shared: Materials,
    config: Any,
    examples: Sequence[Labelled],
    *,
    learning_rate: float,
    epochs: int,
    seed: int,
    pretrained: bool = True,
    batch_size: int = BATCH_SIZE,
) -> tuple[MeanPooledClassifier, History]:
    """Train a copy of the encoder in the way that ``config`` says, and give it with the history of its training.

    Args:
        shared: the materials.
        config: what ``lora_lab.lora.attach`` takes.
        examples: the training sentences.
        learning_rate, epochs, batch_size: the numbers of the training; the batch is never larger than the examples.
        seed: decides the order of the examples, the dropout masks and what the configuration draws.
        pretrained: begin with the pretrained weights, or with the random ones.
    """
    import torch

    from lora_lab.finetune import Settings, train_classifier
    from lora_lab.lora import attach

    model = copy.deepcopy(shared.pretrained if pretrained else shared.untrained)
    attach(model, config, generator=torch.Generator().manual_seed(seed))
    settings = Settings(
        epochs=epochs, batch_size=min(batch_size, len(examples)), learning_rate=learning_rate, seed=seed
    )
    history = train_classifier(model, shared.tokenizer, examples, settings, precision=shared.precision, progress=False)
    return model, history


def score(shared: Materials, model: MeanPooledClassifier, examples: Sequence[Labelled] | None = None) -> float:
    """Give the share of right answers among ``examples``, by default the test sentences."""
    from lora_lab.finetune import accuracy

    asked = shared.reviews.test if examples is None else examples
    return accuracy(model, shared.tokenizer, asked, precision=shared.precision)


def judged(
    shared: Materials, way: str, examples: Sequence[Labelled], *, epochs: int, seed: int, pretrained: bool = True
) -> Run:
    """Train in a way at the learning rate that served it best, and give what a stored run says of it.

    Returns:
        "trainable", the figures of the training, "score" on the test sentences, and "training score" on those it
        learned from, the first 512 at most.
    """
    from lora_lab.lora import account

    model, history = learned(
        shared,
        configuration(way, seed=seed),
        examples,
        learning_rate=learning_rate(way),
        epochs=epochs,
        seed=seed,
        pretrained=pretrained,
    )
    return {
        "trainable": account(model).trainable,
        **training_figures(history),
        "score": score(shared, model),
        "training score": score(shared, model, examples[:SHOWN]),
    }


def training_figures(history: History) -> dict[str, Any]:
    """Give what a stored run says of its training: steps, seconds a step (median), loss of the last ten steps."""
    import statistics

    import torch

    last = history.losses[-10:]
    return {
        "steps": len(history.losses),
        "seconds a step": round(statistics.median(history.seconds), 4),
        "last loss": round(sum(last) / len(last), 5),
        "threads": torch.get_num_threads(),
    }


def conditions(shared: Materials) -> dict[str, str]:
    """Say which attention kernel, device, dtype and precision the runs have."""
    model = shared.pretrained
    return {
        "attention": str(model.config._attn_implementation),
        "device": str(model.device),
        "dtype": str(model.dtype),
        "precision": str(shared.precision or model.dtype).removeprefix("torch."),
    }
