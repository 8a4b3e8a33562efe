"""From conversations to tensors: token ids, and which of them the model is asked to learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_PROBE = "answer"  # stands for an answer where the chat template is asked what comes after one
IGNORED = -100  # the label that marks 'no loss here', as in PyTorch's cross entropy


@dataclass(frozen=True)
class Encoded:
    """One training example: its token ids, and the index of the first token of the answer.

    The model reads all of ``tokens``; the loss counts ``tokens[answer_start:]`` alone.

    Raises:
        ValueError: there is nothing before the answer to predict it from, or no answer.
    """

    tokens: tuple[int, ...]
    answer_start: int

    def __post_init__(self) -> None:
        """Refuse an example that teaches nothing, or whose first token nothing predicts."""
        if not 1 <= self.answer_start < len(self.tokens):
            raise ValueError(
                f"answer_start: got {self.answer_start}, takes a place from 1 to {len(self.tokens) - 1}, "
                f"for there are {len(self.tokens)} tokens"
            )

    @property
    def prompt(self) -> tuple[int, ...]:
        """Give the tokens before the answer."""
        return self.tokens[: self.answer_start]

    @property
    def answer(self) -> tuple[int, ...]:
        """Give the tokens the loss counts."""
        return self.tokens[self.answer_start :]

    @property
    def answer_tokens(self) -> int:
        """Give the number of tokens the loss counts, the end-of-turn token among them."""
        return len(self.tokens) - self.answer_start


@dataclass(frozen=True)
class Batch:
    """Examples as three (batch, tokens) tensors, padded on the right to the longest."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Give the same batch on ``device``; a GPU fetches it from pinned memory while the program goes on."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        if torch.device(device).type == "cuda":
            return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors))
        return Batch(*(tensor.to(device) for tensor in tensors))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    answer: str,
    *,
    max_tokens: int | None = None,
) -> Encoded:
    """Give a conversation and its answer as one token sequence, through the model's own chat template.

    Args:
        tokenizer: a tokenizer with a chat template, and a token that ends an answer (see ``end_token``).
        messages: the conversation so far, as ``{"role": ..., "content": ...}``; the answer is the next turn.
        answer: what the model should say; the token of ``end_token`` is added, so that it learns to stop.
        max_tokens: the longest sequence allowed, by default without a limit.

    Raises:
        ValueError: the answer is empty, the sequence is longer than ``max_tokens`` (nothing is cut), the tokenizer has
            no chat template or one that refuses the conversation, or no token ends an answer.
    """
    if not answer.strip():
        raise ValueError("answer: got an empty text; an example without an answer teaches nothing")
    prompt = encode_prompt(tokenizer, messages)
    tokens = [*prompt, *tokenizer.encode(answer, add_special_tokens=False), end_token(tokenizer)]
    if max_tokens is not None and len(tokens) > max_tokens:
        raise ValueError(f"messages and answer: {len(tokens)} tokens, and max_tokens is {max_tokens}")
    return Encoded(tuple(tokens), answer_start=len(prompt))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Give the token ids of a conversation up to the point where the model is to answer.

    Raises:
        ValueError: the tokenizer has no chat template, or one that refuses the conversation.
    """
    text = _rendered(tokenizer, messages, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Encoded:
    """Give a text and how it goes on as one token sequence: for a model without a chat template.

    The two are encoded apart, as they are when the model is asked, and joined as they are: a space between them must be
    in one of them. A beginning-of-sequence token comes first if the tokenizer writes one.

    Args:
        tokenizer: a tokenizer with an end-of-sequence token.
        prompt: the text so far.
        completion: how it goes on; the end-of-sequence token is added, so that the model learns to stop.

    Raises:
        ValueError: one of the two is empty, or the tokenizer has no end-of-sequence token.
    """
    if not prompt.strip() or not completion.strip():
        raise ValueError("prompt and completion: one is empty; an example needs both")
    before = [tokenizer.bos_token_id] if tokenizer.bos_token_id in tokenizer.encode("")[:1] else []
    before += tokenizer.encode(prompt, add_special_tokens=False)
    after = [*tokenizer.encode(completion, add_special_tokens=False), end_token(tokenizer)]
    return Encoded((*before, *after), answer_start=len(before))


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the id of the token that ends an answer.

    It is the special token that the chat template writes after an answer, such as ``<end_of_turn>``; where there is no
    template, or it writes none, the end-of-sequence token.

    Raises:
        ValueError: the tokenizer has neither, or a chat template that refuses a question and its answer.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
        _, said, rest = _rendered(tokenizer, turns).rpartition(_PROBE)
        first, special = tokenizer.encode(rest.lstrip(), add_special_tokens=False)[:1], tokenizer.added_tokens_decoder
        if said and first and first[0] in special and special[first[0]].special:
            return first[0]
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer: neither an end-of-sequence token (eos_token) nor its chat template ends an answer, "
            "so none would ever end; set its eos_token"
        )
    return tokenizer.eos_token_id


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Give the text that the chat template makes of a conversation, or raise ``ValueError`` if it refuses to."""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the model's chat template refuses the turns {roles}: {error}") from error
    return text


def collate(examples: Sequence[Encoded]) -> Batch:
    """Give ``examples``, at least one, as one batch; padding is masked out of the attention and of the loss."""
    longest = max(len(example.tokens) for example in examples)
    shape = (len(examples), longest)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        length, start = len(example.tokens), example.answer_start
        input_ids[row, :length] = torch.tensor(example.tokens)
        attention_mask[row, :length] = 1
        labels[row, start:length] = input_ids[row, start:length]
    return Batch(input_ids, attention_mask, labels)
