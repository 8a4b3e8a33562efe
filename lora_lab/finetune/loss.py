"""The loss of a language model on its answers, without the cost of the rest.

A causal model's last layer, the head, turns each hidden vector into one number per word of the vocabulary: 49,152 for
SmolLM2. Only the positions that predict a token of the answer count, so only those go through the head.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lora_lab.finetune.attention import attention_for
from lora_lab.finetune.encoding import IGNORED, Batch, Encoded, collate

LOGITS_AT_ONCE = 2**22  # as many logits are in memory at a time: 16 MiB in float32
POSITIONS_AT_ONCE = 64  # but those of as many positions at least: with fewer, reading the head takes the time


def answer_loss(model: PreTrainedModel, batch: Batch, *, positions: int | None = None) -> Tensor:
    r"""Give the summed cross entropy, in nats, of the answer tokens: :math:`-\sum_t \log p(y_t \mid y_{<t})`.

    It equals the loss of ``model(input_ids, labels=...)`` times the number of labelled tokens, to rounding. Divide by
    ``labelled_tokens(batch)`` for the mean; the sum is given so that batches of different lengths can be added up.

    The head sees the labelled positions alone, some at a time. Where a gradient is wanted it is found chunk by chunk as
    the loss is added up, so no chunk's logits are kept for the backward pass. To autograd it is a constant: take the
    loss of ``model(input_ids, labels=...)`` where you want second derivatives.

    Args:
        model: a causal model of transformers whose logits ``logits_of`` knows (``check_logits`` says whether it does).
        batch: (batch, tokens) tensors on the model's device.
        positions: how many positions go through the head at once, by default as many as make 4 million logits, and 64
            at least.
    """
    return loss_at(model, *answer_positions(model, batch), positions=positions)


def loss_at(model: PreTrainedModel, hidden: Tensor, answers: Tensor, *, positions: int | None = None) -> Tensor:
    """Give ``answer_loss`` from hidden vectors, (labelled, features), and the tokens that they predict, (labelled,).

    A token that is ``IGNORED`` adds nothing.
    """
    head = functools.partial(logits_of, model)
    size = positions or _positions_at_once(model)
    weights = list(model.get_output_embeddings().parameters())
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, *weights))
    loss: Tensor = _LossInChunks.apply(head, size, answers, wanted, hidden, *weights)
    return loss


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    r"""Give the logits of hidden vectors, (…, features) to (…, vocabulary): the head's, finished as the model does it.

    Cohere's models multiply them by ``logit_scale``, Granite's divide them by ``logits_scaling``, and Gemma's keep them
    between −c and c by :math:`c \tanh(x / c)` (Gemma Team, 2024, Gemma 2). The configuration has the numbers.
    """
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def answer_positions(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the hidden vectors that predict the answer tokens, (labelled, features), and those tokens, (labelled,).

    The model gets no mask: padding stands behind an example, and no token of a causal model sees what follows it.
    """
    decoder = model.get_decoder()
    output = decoder(input_ids=batch.input_ids, use_cache=False)
    hidden = output.last_hidden_state[:, :-1]  # (batch, tokens - 1, features): position t predicts token t + 1
    following = batch.labels[:, 1:]  # (batch, tokens - 1)
    labelled = following != IGNORED
    return hidden[labelled], following[labelled]


class _LossInChunks(torch.autograd.Function):
    """The summed cross entropy of a head's logits, a chunk of positions at a time; its gradients are found with it."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        size: int,
        answers: Tensor,
        wanted: bool,
        hidden: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        learning = [weight for weight in weights if weight.requires_grad]
        by_hidden = torch.zeros_like(hidden)
        by_weights = [torch.zeros_like(weight, dtype=_at_least_float32(weight.dtype)) for weight in learning]
        total = torch.zeros((), dtype=_at_least_float32(hidden.dtype), device=hidden.device)
        for start in range(0, len(hidden), size):
            piece = hidden[start : start + size].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                loss = _cross_entropy(head(piece), answers[start : start + size])
            total += loss.detach()
            if wanted:
                by_hidden[start : start + size], *found = torch.autograd.grad(loss, [piece, *learning])
                for gradient, more in zip(by_weights, found, strict=True):
                    gradient += more
        ctx.learns = [weight.requires_grad for weight in weights]
        ctx.types = [weight.dtype for weight in learning]
        ctx.save_for_backward(by_hidden, *by_weights)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, *by_weights = ctx.saved_tensors
        scaled = (gradient.mul(upstream).to(dtype) for gradient, dtype in zip(by_weights, ctx.types, strict=True))
        by_all_weights = [next(scaled) if learns else None for learns in ctx.learns]
        return None, None, None, None, by_hidden.mul(upstream).to(by_hidden.dtype), *by_all_weights


def _cross_entropy(logits: Tensor, answers: Tensor, reduction: str = "sum") -> Tensor:
    """Give the cross entropy in float32, or in float64 for a model in float64; its sum by default."""
    return F.cross_entropy(logits.to(_at_least_float32(logits.dtype)), answers, reduction=reduction)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Give the type in which numbers of ``dtype`` are added up."""
    return torch.promote_types(dtype, torch.float32)


def logits_at_once(model: PreTrainedModel, positions: int) -> int:
    """Give the number of logits that the loss of so many labelled positions has in memory at a time."""
    return min(positions, _positions_at_once(model)) * _vocabulary(model)


def _positions_at_once(model: PreTrainedModel) -> int:
    """Give the number of positions whose logits are in memory at a time."""
    return max(POSITIONS_AT_ONCE, LOGITS_AT_ONCE // _vocabulary(model))


def _vocabulary(model: PreTrainedModel) -> int:
    """Give the number of logits of a position."""
    head: Any = model.get_output_embeddings()
    return int(head.out_features)


@dataclass(frozen=True)
class AnswerScore:
    """How well a model predicts answers whose earlier tokens it is given: loss and right tokens.

    Attributes:
        loss: mean cross entropy, in nats per answer token.
        right: answer tokens that were the model's likeliest.
        tokens: answer tokens, the ends of the answers among them.
    """

    loss: float
    right: int
    tokens: int

    @classmethod
    def combined(cls, scores: Sequence["AnswerScore"]) -> "AnswerScore":
        """Give the score of all answers together from the scores of parts of them, at least one."""
        tokens = sum(score.tokens for score in scores)
        loss = math.fsum(score.loss * (score.tokens / tokens) for score in scores)
        return cls(loss, sum(score.right for score in scores), tokens)

    @property
    def accuracy(self) -> float:
        """Give the share of answer tokens that were the model's likeliest, from 0 to 1."""
        return self.right / self.tokens

    @property
    def perplexity(self) -> float:
        """Give exp(loss): 1 is certainty, and a guess among n equally likely tokens is n."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # exp(710) is beyond a float


@torch.no_grad()
def score_answers(model: PreTrainedModel, examples: Sequence[Encoded], batch_size: int = 8) -> AnswerScore:
    """Give the loss and the right tokens of the answers of ``examples``, at least one, in evaluation mode."""
    was_training = model.training
    model.eval()
    size = _positions_at_once(model)
    total, right, tokens = 0.0, 0, 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        with attention_for(model, batch.input_ids.shape[1]):
            hidden, answers = answer_positions(model, batch.to(model.device))
        for piece, some in zip(hidden.split(size), answers.split(size), strict=True):
            logits = logits_of(model, piece)
            total += _cross_entropy(logits, some).item()
            right += int((logits.argmax(dim=-1) == some).sum())
        tokens += labelled_tokens(batch)
    model.train(was_training)
    return AnswerScore(total / tokens, right, tokens)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, examples: Sequence[Encoded], batch_size: int = 8) -> list[float]:
    r"""Give :math:`\log p(\text{answer} \mid \text{prompt})` of each example, in nats, in evaluation mode.

    It is the sum over the tokens of the answer, its end among them: the probability of saying just that.
    """
    was_training = model.training
    model.eval()
    size = _positions_at_once(model)
    found = [0.0] * len(examples)
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].tokens))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate([examples[i] for i in places])
        with attention_for(model, batch.input_ids.shape[1]):
            hidden, answers = answer_positions(model, batch.to(model.device))
        losses = torch.cat(
            [
                _cross_entropy(logits_of(model, piece), some, reduction="none")
                for piece, some in zip(hidden.split(size), answers.split(size), strict=True)
            ]
        )
        for place, part in zip(places, losses.split([examples[i].answer_tokens for i in places]), strict=True):
            found[place] = -part.sum().item()
    model.train(was_training)
    return found


def labelled_tokens(batch: Batch) -> int:
    """Give the number of tokens that ``answer_loss`` adds up."""
    return int((batch.labels[:, 1:] != IGNORED).sum())


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless the model's logits are those that ``logits_of`` makes of its decoder's output.

    Some architectures do something else with them after the head; for those ``answer_loss`` would be wrong, so it is
    tried on eight tokens before training.
    """
    was_training = model.training
    model.eval()
    tokens = torch.arange(1, 9, device=model.device).unsqueeze(0)  # (1, 8)
    padded = F.pad(tokens, (0, 8))  # (1, 16)
    whole = model(input_ids=tokens, use_cache=False).logits
    decoder = model.get_decoder()
    alone, before_padding = (
        logits_of(model, decoder(input_ids=some, use_cache=False).last_hidden_state[:, :8]) for some in (tokens, padded)
    )
    model.train(was_training)
    alike = functools.partial(torch.allclose, rtol=1e-3, atol=1e-3, equal_nan=True)
    if not alike(whole.float(), alone.float()):
        raise ValueError(
            f"model: {type(model).__name__} changes its logits after the head in a way that this loss does not know; "
            "choose a model of another architecture"
        )
    atol = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.5 * float(alone.float().std())
    is_finite = bool(before_padding.isfinite().all())  # NaN among the weights is told by the first step
    if is_finite and not alike(before_padding.float(), alone.float(), atol=atol):
        raise ValueError(
            f"model: {type(model).__name__} lets a token see what follows it, so padding would change what it says; "
            "choose a causal language model"
        )
