"""What to say when the memory of a device is used up: which batch did it, what a step needs, and what to lower."""

import torch
from transformers import PreTrainedModel

from lora_lab.lora import account

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
    ways.append("leave out the longest examples (max_tokens)")
    some = "1 example" if rows == 1 else f"{rows} examples"
    return f"{some} of up to {tokens} tokens went through the model at once{_needs(model, rows, tokens)}. " + (
        f"What helps: {'; '.join(ways)}"
    )


def _needs(model: PreTrainedModel, rows: int, tokens: int) -> str:
    """Give the bytes of a step in brackets; nothing for a model that cannot be counted.

    Logits are left out: the loss has a few of them at a time.
    """
    try:
        costs = account(model, batch=rows, tokens=tokens).costs
    except ValueError:
        return ""
    assert costs is not None
    needed = costs.weights + costs.optimizer_states + max(costs.activations, costs.gradients)
    return f" ({needed / 1e9:,.3g} GB by account, {costs.activations / 1e9:,.3g} GB of it activations)"
