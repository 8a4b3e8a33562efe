"""A small real encoder with a head that tells texts apart: all-MiniLM-L6-v2, or the same network at random weights.

It is a BERT of 6 layers, 384 features and 22.6 million weights, distilled from a larger one (Wang et al., 2020) and
tuned on a billion pairs of sentences so that the mean of its token vectors stands for the text (Reimers and Gurevych,
2019). It fine-tunes in a minute or two on two cores.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, BertPreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from lora_lab import assets
from lora_lab.finetune.model import _quiet_transformers, _usable, default_device

ENCODERS = {"minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}  # the asset, and its name on the hub
NOT_READ = ("pooler.", "embeddings.position_ids")  # of the file: a pooler that mean pooling replaces, and 0, 1, 2, …


class MeanPooledClassifier(BertPreTrainedModel):
    """A BERT whose class scores are a linear map of the mean of its token vectors.

    ``logits = W mean(h_1, …, h_t) + b`` over the t tokens of a text that are not padding; h is (batch, tokens,
    features), logits are (batch, classes). BERT's own classifier reads the first token's vector instead, which
    sentence encoders are not trained to fill.
    """

    def __init__(self, config: BertConfig) -> None:
        """Build the network at random weights; ``config.num_labels`` is the number of classes."""
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **rest: Any
    ) -> SequenceClassifierOutput:
        """Give the class scores, and their mean cross entropy in nats if ``labels`` (batch,) are given."""
        pooled = self.pooled(input_ids, attention_mask, **rest)  # (batch, features)
        logits = self.classifier(self.dropout(pooled))  # (batch, classes)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Tensor:
        """Give the mean token vector of each text, (batch, features); padding does not count."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.bert(input_ids, attention_mask=mask, **rest).last_hidden_state  # (batch, tokens, features)
        counts = mask.unsqueeze(-1).to(hidden.dtype)  # (batch, tokens, 1)
        return (hidden * counts).sum(1) / counts.sum(1)


def load_encoder(
    name: str = "minilm-l6",
    *,
    pretrained: bool = True,
    classes: int = 2,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> tuple[MeanPooledClassifier, PreTrainedTokenizerBase]:
    """Give an encoder with an untrained head, in float32 and in evaluation mode, and its tokenizer.

    Args:
        name: a key of ``ENCODERS``.
        pretrained: take the weights of the package; False draws them as BERT's were drawn before its training, from
            a normal law of standard deviation 0.02.
        classes: number of classes the head tells apart.
        seed: decides the head, which is the same with and without ``pretrained``, and the random weights.
        device: where the model goes; by default ``default_device()``.

    Raises:
        ValueError: an unknown name, fewer than two classes, a device that is not there, or weights in the file that
            the network does not take.
        lora_lab.assets.AssetError: the package cannot be fetched, or is not what it should be.
    """
    if name not in ENCODERS:
        raise ValueError(f"name: got {name!r}, takes one of {', '.join(ENCODERS)}")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes: got {classes!r}, takes a whole number of at least 2")
    device = _usable(device) if device is not None else default_device()
    weights = assets.fetch(name)
    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent)
        config = BertConfig.from_pretrained(weights.parent, num_labels=classes)
    model = untrained_encoder(config, seed=seed)
    if pretrained:
        _fill(model.bert, weights)
        model.name_or_path = model.config._name_or_path = ENCODERS[name]
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # which trains faster on short texts, as in load_model
    return model.to(device).eval(), tokenizer


def untrained_encoder(config: BertConfig, *, seed: int) -> MeanPooledClassifier:
    """Give a network of this configuration at random weights; its head depends on ``seed`` and its own shape alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MeanPooledClassifier(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.classifier.weight.normal_(0, config.initializer_range, generator=generator)
    return model.eval()


def _fill(bert: BertModel, weights: Path) -> None:
    """Copy the weights of a safetensors file into ``bert``; names and shapes must agree exactly."""
    tensors = {key: tensor for key, tensor in load_file(weights).items() if not key.startswith(NOT_READ)}
    try:
        bert.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"name: the weights in {weights.name} are not those of this network: {error}") from error
