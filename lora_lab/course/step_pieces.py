"""What each piece of our training step gains: the step with one piece taken out, and with one option switched on.

``bench_step`` takes the names in ``PIECES`` as ways of their own. A piece is taken out by putting what everybody writes
in its place, in the process of that turn alone. None of them changes what is learned beyond rounding, but for the order
of the examples in the one that groups them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lora_lab.finetune.encoding import Batch


@dataclass(frozen=True)
class Piece:
    """A step that differs from ours in one thing.

    Attributes:
        settings: fields of ``Settings`` that differ.
        change: puts something else in the place of a piece, for good: only for a process that ends after it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[PreTrainedModel], None] = lambda model: None


def _head_everywhere(model: PreTrainedModel) -> None:
    """Take the loss of transformers, whose head runs over the prompt and the padding too."""
    from lora_lab.finetune import labelled_tokens, training

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        mean: Tensor = model(**given, use_cache=False).loss
        return mean * labelled_tokens(batch)

    training.answer_loss = loss  # type: ignore[assignment]


def _all_logits_at_once(model: PreTrainedModel) -> None:
    """Keep the logits of all labelled positions until the backward pass."""
    import torch.nn.functional as F

    from lora_lab.finetune import training
    from lora_lab.finetune.loss import answer_positions

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        hidden, answers = answer_positions(model, batch)
        return F.cross_entropy(model.get_output_embeddings()(hidden).float(), answers, reduction="sum")

    training.answer_loss = loss  # type: ignore[assignment]


def _copied_input(model: PreTrainedModel) -> None:
    """Cast the adapter's input to the type of its factors, as PEFT does, and the update back."""
    from lora_lab.lora.layers import LoRALinear

    def path(self: Any, x: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
        update = factor * (x.float() @ A.float().T) @ B.float().T
        return update.to(x.dtype)

    LoRALinear.path = path  # type: ignore[method-assign]


def _kept_whole(model: PreTrainedModel) -> None:
    """Let norms and gated layers keep for the backward pass what autograd keeps."""
    import contextlib

    from lora_lab.finetune import training

    training.keep_less = lambda model: contextlib.nullcontext(0)  # type: ignore[assignment, return-value]


def _down_to_the_embedding(model: PreTrainedModel) -> None:
    """Ask for the gradient of the embedding's output, as is done where gradients are checkpointed."""
    model.enable_input_require_grads()


def _plain_adamw(model: PreTrainedModel) -> None:
    """Let AdamW go over the factors one by one."""
    import torch

    plain = functools.partial(torch.optim.AdamW, foreach=False)
    torch.optim.AdamW = lambda *given, fused, **named: plain(*given, **named)  # type: ignore[assignment, misc]


def _made_in_its_step(model: PreTrainedModel) -> None:
    """Make each batch when its step begins."""
    from lora_lab.finetune.training import _Run

    _Run.look_ahead = lambda self: None  # type: ignore[method-assign]


ONE_BY_ONE = {"cuda_graphs": False}  # on a GPU the steps of a piece with another loss are not recorded

PIECES = {
    "head at every position": Piece(ONE_BY_ONE, change=_head_everywhere),
    "all logits at once": Piece(ONE_BY_ONE, change=_all_logits_at_once),
    "input copied to float32": Piece(change=_copied_input),
    "norms and gates kept whole": Piece(change=_kept_whole),
    "gradient to the embedding": Piece(change=_down_to_the_embedding),
    "AdamW one by one": Piece(change=_plain_adamw),
    "batches not ahead": Piece(change=_made_in_its_step),
    "kernels one by one": Piece(ONE_BY_ONE),
    "grouped by length": Piece({"group_by_length": True}),
    "blocks computed twice": Piece({"gradient_checkpointing": True}),
    "blocks compiled": Piece({"compile": True}),
}
