"""The loss of a language model on its answers, without the cost of the rest.

A causal model's last layer, the head, turns each hidden vector into one number per word of the vocabulary: 49,152 for
SmolLM2. Only the positions that predict a token of the answer count, so only those go through the head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lora_lab.finetune.encoding import IGNORED, Batch, Encoded, collate


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    r"""Give the summed cross entropy, in nats, of the answer tokens: :math:`-\sum_t \log p(y_t \mid y_{<t})`.

    It equals the loss of ``model(input_ids, labels=...)`` times the number of labelled tokens, to rounding. Divide by
    ``labelled_tokens(batch)`` for the mean; the sum is given so that batches of different lengths can be added up.

    Args:
        model: a causal model of transformers whose logits are its head applied to its decoder's output
            (``check_plain_head`` says whether they are).
        batch: (batch, tokens) tensors on the model's device.
    """
    logits, answers = answer_logits(model, batch)
    return F.cross_entropy(logits.float(), answers, reduction="sum")


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the logits that predict the answer tokens, (labelled, vocabulary), and those tokens, (labelled,)."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    output = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden = output.last_hidden_state[:, :-1]  # (batch, tokens - 1, features): position t predicts token t + 1
    following = batch.labels[:, 1:]  # (batch, tokens - 1)
    labelled = following != IGNORED
    return head(hidden[labelled]), following[labelled]


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
    total, right, tokens = 0.0, 0, 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        logits, answers = answer_logits(model, batch.to(model.device))
        total += F.cross_entropy(logits.float(), answers, reduction="sum").item()
        right += int((logits.argmax(dim=-1) == answers).sum())
        tokens += labelled_tokens(batch)
    model.train(was_training)
    return AnswerScore(total / tokens, right, tokens)


def labelled_tokens(batch: Batch) -> int:
    """Give the number of tokens that ``answer_loss`` adds up."""
    return int((batch.labels[:, 1:] != IGNORED).sum())


@torch.no_grad()
def check_plain_head(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless the model's logits are its head applied to its decoder's output.

    Some architectures scale or cap their logits after the head; for those ``answer_loss`` would be wrong, so it is
    tried on eight tokens before training.
    """
    was_training = model.training
    model.eval()
    tokens = torch.arange(1, 9, device=model.device).unsqueeze(0)  # (1, 8)
    whole = model(input_ids=tokens, use_cache=False).logits
    parts = model.get_output_embeddings()(model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state)
    model.train(was_training)
    if not torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            f"model: {type(model).__name__} changes its logits after the head (scaling or a cap), "
            "which this loss does not do; choose a model without it"
        )
