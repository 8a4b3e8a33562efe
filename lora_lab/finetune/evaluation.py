"""Asking a model questions, and counting the right answers."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lab.finetune.attention import attention_for
from lora_lab.finetune.encoding import encode_prompt, end_token
from lora_lab.finetune.model import context_length
from lora_lab.finetune.progress import Progress
from lora_lab.finetune.text_to_sql import Example, TextToSQL

MAX_NEW_TOKENS = 48  # an answer in SQL is shorter


@dataclass(frozen=True)
class Answered:
    """One question, what the model said, and whether that is right, with the reason."""

    example: Example
    answer: str
    correct: bool
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """The answers to a set of questions, and their score."""

    answered: tuple[Answered, ...]

    @property
    def correct(self) -> int:
        """Give the number of right answers."""
        return sum(one.correct for one in self.answered)

    @property
    def total(self) -> int:
        """Give the number of questions."""
        return len(self.answered)

    @property
    def score(self) -> float:
        """Give the share of right answers, from 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Give the 95 % interval of the score: what it may be on other questions of the same kind (Wilson, 1927)."""
        z, n, p = 1.96, self.total, self.score
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Give ``(right, asked)`` for each kind of question, in alphabetical order."""
        kinds = sorted({one.example.kind for one in self.answered})
        chosen = {kind: [one.correct for one in self.answered if one.example.kind == kind] for kind in kinds}
        return {kind: (sum(right), len(right)) for kind, right in chosen.items()}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TextToSQL,
    examples: Sequence[Example],
    *,
    shots: Sequence[Example] = (),
    batch_size: int = 48,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> Evaluation:
    """Let ``model`` answer every question, and score each answer by running it.

    Args:
        model: a causal model; it is asked in evaluation mode and given back in the mode it was in.
        tokenizer: its tokenizer, with a chat template.
        task: what made the examples; it says what the model reads and whether an answer is right.
        examples: the questions.
        shots: solved examples that stand before each question, for the few-shot baseline.
        batch_size: questions answered at once.
        max_new_tokens: where an answer that does not end by itself is cut off.
        progress: show a progress bar.

    Raises:
        ValueError: there are no examples, or ``generate`` refuses a number or a prompt.
    """
    if not examples:
        raise ValueError("examples: got none; a score needs at least one question")
    prompts = [encode_prompt(tokenizer, task.messages(example, shots)) for example in examples]
    answers = generate(
        model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=progress
    )
    scores = [task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]
    return Evaluation(
        tuple(
            Answered(example, answer, score.correct, score.reason)
            for example, answer, score in zip(examples, answers, scores, strict=True)
        )
    )


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """Give the model's answer to one conversation, always taking the likeliest next token."""
    prompt = encode_prompt(tokenizer, messages)
    return generate(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, progress=False)[0]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 48,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> list[str]:
    """Give the answer to each prompt, always taking the likeliest next token.

    Prompts of similar length are answered together, padded on the left; answers come back in the order of ``prompts``.

    Args:
        model: a causal model; it runs in evaluation mode and is given back in the mode it was in.
        tokenizer: its tokenizer; its end-of-sequence token ends an answer.
        prompts: token ids, from ``encode_prompt``.
        batch_size: prompts answered at once.
        max_new_tokens: the most tokens an answer has.
        progress: show a progress bar.

    Raises:
        ValueError: ``batch_size`` or ``max_new_tokens`` is below 1; a prompt is empty, or with its answer too long for
            the model's context; the tokenizer has no end-of-sequence token.
    """
    for name, value in {"batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, takes a whole number of at least 1")
    if not all(prompts):
        raise ValueError("prompts: one is empty; an answer needs at least one token to follow")
    limit = context_length(model)
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if limit is not None and longest > limit:
        raise ValueError(f"prompts: one has {longest} tokens with its answer, and the model reads at most {limit}")
    end = end_token(tokenizer)
    was_training = model.training
    model.eval()
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with (
        attention_for(model, max(map(len, prompts), default=0)),
        _head_reads_one_piece(model),
        Progress(len(prompts), "answering", shown=progress) as bar,
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = max(len(prompts[i]) for i in rows)
            input_ids = torch.full((len(rows), longest), end)
            attention_mask = torch.zeros_like(input_ids)
            for row, i in enumerate(rows):
                input_ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
                attention_mask[row, longest - len(prompts[i]) :] = 1
            tokens = model.generate(
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models bring their own, and then it would not be the likeliest token
                eos_token_id=end,
                pad_token_id=end,
            )  # (rows, longest + new tokens)
            for row, i in enumerate(rows):
                answers[i] = tokenizer.decode(tokens[row, longest:], skip_special_tokens=True).strip()
            bar.advance(len(rows))
    model.train(was_training)
    return answers


@contextlib.contextmanager
def _head_reads_one_piece(model: PreTrainedModel) -> Iterator[None]:
    """Give the head its input in one piece of memory for a while.

    transformers hands it a slice, of which PyTorch makes one product a row on a CPU, each with a copy of the head.
    """
    head = model.get_output_embeddings()
    if head is None:  # the model has its own way to the logits
        yield
        return
    hook = head.register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
