"""What to say when the memory of a device is used up: which batch did it, what a step needs, and what to lower."""

import torch
from transformers import PreTrainedModel

from lora_lab.finetune.activations import keep_less
from lora_lab.finetune.loss import logits_at_once
from lora_lab.lora import Costs, account

CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")  # what torch says of a CPU, in a plain RuntimeError


class OutOfMemoryError(RuntimeError):
    """A step does not fit in memory; the message says which, what it needs, and what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that no memory was left, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_ALLOCATOR)


def advice(model: PreTrainedModel, rows: int, tokens: int, *, recomputed: bool) -> str:
    """Say what a step needs with ``rows`` examples of ``tokens`` tokens at once, by ``account``, and what to lower.

    ``recomputed`` says whether the blocks are computed again in the backward pass already.
    """
    ways = []
    if rows > 1:
        ways.append(
            f"lower micro_batch_size to {rows // 2}{_needs(model, rows // 2, tokens)}: the gradient stays the same"
        )
    if not recomputed:
        ways.append("switch gradient_checkpointing on")
    ways.append("leave out the longest examples (max_tokens, with your own data)")
    some = "1 example" if rows == 1 else f"{rows} examples"
    return f"{some} of up to {tokens} tokens went through the model at once{_needs(model, rows, tokens)}. " + (
        f"What helps: {'; '.join(ways)}"
    )


def step_bytes(model: PreTrainedModel, rows: int, tokens: int, labelled: int = 0) -> int:
    r"""Give the bytes at the worst moment of a training step of ``train``, by ``account``.

    They are :math:`W + M + \max(A + L, G)`: all weights, AdamW's moments of what trains, the activations that the
    forward pass keeps with the loss of one chunk of logits, or the gradients where those are more. A logit takes its
    own type and three float32 numbers, as in ``lora_lab.lora.Costs.logits``; how many there are at a time,
    ``lora_lab.finetune.loss.logits_at_once`` says. A GPU that records its steps keeps the gradients beside
    the activations, which adds G.

    Args:
        model: a model whose trainable parameters are those of the run.
        rows: examples that go through the model at once.
        tokens: tokens of each, padding among them.
        labelled: tokens of the answers among them; 0 leaves the logits out.

    Raises:
        ValueError: ``account`` cannot count this model.
    """
    costs = _costs(model, rows, tokens)
    return _worst(costs, logits_at_once(model, labelled) * (model.dtype.itemsize + 12))


def _costs(model: PreTrainedModel, rows: int, tokens: int) -> Costs:
    """Give what a step of ``train`` costs, whose norms and gated layers keep less."""
    with keep_less(model):
        costs = account(model, batch=rows, tokens=tokens).costs
    assert costs is not None
    return costs


def _worst(costs: Costs, logits: int = 0) -> int:
    """Give the bytes at the worst moment of a step that has so many bytes of logits at a time."""
    return costs.weights + costs.optimizer_states + max(costs.activations + logits, costs.gradients)


def _needs(model: PreTrainedModel, rows: int, tokens: int) -> str:
    """Give the bytes of a step in brackets; nothing for a model that cannot be counted."""
    try:
        costs = _costs(model, rows, tokens)
    except ValueError:
        return ""
    return f" ({_worst(costs) / 1e9:,.3g} GB by account, {costs.activations / 1e9:,.3g} GB of it activations)"
