"""What a fine-tune on your own data is scored by, before and after: loss, exact answers, right choices among a few."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lab.finetune import processes
from lora_lab.finetune.choices import Answer, answer_choices, likeliest
from lora_lab.finetune.corpus import Corpus, with_shots
from lora_lab.finetune.data import counted
from lora_lab.finetune.encoding import Encoded
from lora_lab.finetune.evaluation import generate
from lora_lab.finetune.loss import AnswerScore, score_answers
from lora_lab.finetune.model import context_length
from lora_lab.lora import disabled

if TYPE_CHECKING:
    from lora_lab.finetune.own_data import Job


@dataclass(frozen=True)
class Score:
    """How a model does on the test examples: token by token, and how many of some answers are right.

    Attributes:
        tokens: loss and right tokens on all of them.
        exact: answers that it wrote to the letter, among those asked for.
        asked: answers asked for.
        chosen: prompts for which the right answer is the likeliest of those in the training examples, where these are
            a few and each is given more than once; else ``None``.
    """

    tokens: AnswerScore
    exact: int
    asked: int
    chosen: int | None = None

    def facts(self) -> dict[str, Any]:
        """Give the figures as plain JSON values."""
        return {
            "loss": self.tokens.loss,
            "perplexity": self.tokens.perplexity,
            "token accuracy": self.tokens.accuracy,
            "exact answers": self.exact,
            **({} if self.chosen is None else {"right choices": self.chosen}),
            "asked": self.asked,
        }


@dataclass(frozen=True)
class Questions:
    """What the model is scored on, as it reads it.

    ``shots`` has the same examples after solved ones, or none; ``choices`` the answers that it may choose among.
    """

    examples: Sequence[Encoded]
    shots: Sequence[Encoded]
    choices: tuple[Answer, ...]

    def commonest(self, asked: int) -> int | None:
        """Give how many of the first ``asked`` examples have the commonest answer of the training examples."""
        return sum(one.answer == self.choices[0] for one in self.examples[:asked]) if self.choices else None


def questions_of(job: Job, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, limit: int | None) -> Questions:
    """Give what the model is scored on, or raise ``ValueError`` if solved examples make a prompt too long for it."""
    examples = corpus.test or corpus.validation
    encoded = [example.encoded for example in examples]
    shots: list[Encoded] = []
    if job.shots:
        if job.shots > len(corpus.train):
            raise ValueError(f"shots: got {job.shots}, and there are {len(corpus.train)} training examples")
        solved = [example.record for example in random.Random(job.seed).sample(corpus.train, job.shots)]
        template = corpus.source.template
        shots = [with_shots(tokenizer, example.record, solved, template=template) for example in examples]
        longest = max((len(example.tokens) for example in shots), default=0)
        if limit is not None and longest > limit:
            raise ValueError(
                f"shots: with {job.shots} solved examples the longest prompt and its answer have {longest} tokens, and "
                f"the model reads at most {limit}; take fewer"
            )
    choices = answer_choices([example.encoded for example in corpus.train])
    prompts, answers = [one.prompt for one in shots or encoded], choices
    room = max(map(len, prompts), default=0) + max(map(len, answers), default=0)
    return Questions(encoded, shots, choices if limit is None or room <= limit else ())


def all_scores(
    job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Questions, progress: bool
) -> dict[str, Score]:
    """Give the scores of the base model, ``"before"``, and of the adapter, ``"after"``; none without examples."""
    scores: dict[str, Score] = {}
    if not questions.examples:
        return scores

    def score(examples: Sequence[Encoded]) -> Score:
        return _score(job, model, tokenizer, examples, questions.choices, progress)

    with disabled(model):
        scores["before"] = score(questions.examples)
        if questions.shots:
            scores[f"before, {counted(job.shots, 'example')} in the prompt"] = score(questions.shots)
    scores["after"] = score(questions.examples)
    return scores


def _score(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    choices: Sequence[Answer],
    progress: bool,
) -> Score:
    """Give the loss on all examples, and the right answers among the first ``job.test``."""
    size = job.micro_batch_size or job.batch_size
    mine, asked = processes.share(examples), processes.share(examples[: job.test])
    said = greedy_answers(model, tokenizer, asked, batch_size=size, progress=progress)
    expected = [tokenizer.decode(example.answer, skip_special_tokens=True).strip() for example in asked]
    exact = processes.collected([one == other for one, other in zip(said, expected, strict=True)])
    tokens = processes.collected([score_answers(model, mine, size)] if mine else [])
    chosen = None
    if choices:
        best = likeliest(model, asked, choices, size)
        right = [choice == example.answer for choice, example in zip(best, asked, strict=True)]
        chosen = sum(processes.collected(right))
    return Score(AnswerScore.combined(tokens), sum(exact), len(exact), chosen)


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    *,
    batch_size: int,
    progress: bool = True,
) -> list[str]:
    """Give the model's answer to the prompt of each example, always taking the likeliest next token.

    An answer has room for the longest expected one among those that are asked together, and at least for its own. Asked
    together are answers of similar length that fit the model's context.
    """
    limit, groups = context_length(model), list[list[int]]()
    for place in sorted(range(len(examples)), key=lambda i: examples[i].answer_tokens):
        group = [*groups[-1], place] if groups else [place]
        needed = max(len(examples[i].prompt) for i in group) + max(examples[i].answer_tokens for i in group)
        if groups and len(group) <= batch_size and (limit is None or needed <= limit):
            groups[-1] = group
        else:
            groups.append([place])
    answers = [""] * len(examples)
    for group in groups:
        room = max(examples[i].answer_tokens for i in group)
        prompts = [examples[i].prompt for i in group]
        said = generate(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=room, progress=progress)
        for i, answer in zip(group, said, strict=True):
            answers[i] = answer
    return answers
