"""The loss of a language model on its answers, without the cost of the rest.

A causal model's last layer, the head, turns each hidden vector into one number per word of the vocabulary: 49,152 for
SmolLM2. Only the positions that predict a token of the answer count, so only those go through the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lora_lab.finetune.encoding import IGNORED, Batch


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    r"""Give the summed cross entropy, in nats, of the answer tokens: :math:`-\sum_t \log p(y_t \mid y_{<t})`.

    It equals the loss of ``model(input_ids, labels=...)`` times the number of labelled tokens, to rounding. Divide by
    ``labelled_tokens(batch)`` for the mean; the sum is given so that batches of different lengths can be added up.

    Args:
        model: a causal model of transformers whose logits are its head applied to its decoder's output
            (``check_plain_head`` says whether they are).
        batch: (batch, tokens) tensors on the model's device.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    output = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden = output.last_hidden_state[:, :-1]  # (batch, tokens - 1, features): position t predicts token t + 1
    following = batch.labels[:, 1:]  # (batch, tokens - 1)
    labelled = following != IGNORED
    logits = head(hidden[labelled])  # (labelled, vocabulary)
    return F.cross_entropy(logits.float(), following[labelled], reduction="sum")


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
