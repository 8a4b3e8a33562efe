"""Tasks whose answer is one of a few: a sentiment, a topic, yes or no.

There a model can be asked which of the answers is the likeliest, and not only what it would write: a model that was
never taught the task knows more than it says.
"""

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel

from lora_lab.finetune.encoding import Encoded
from lora_lab.finetune.loss import log_probabilities

MOST = 10  # different answers that are still a choice

Answer = tuple[int, ...]


def answer_choices(examples: Sequence[Encoded]) -> tuple[Answer, ...]:
    """Give the different answers of training examples as tokens, the commonest first; none if they are no choice.

    They are one if there are two to ten, and each is given at least twice.
    """
    counts = Counter(example.answer for example in examples)
    few = 2 <= len(counts) <= MOST and min(counts.values()) >= 2
    return tuple(answer for answer, _ in counts.most_common()) if few else ()


def likeliest(
    model: PreTrainedModel, examples: Sequence[Encoded], choices: Sequence[Answer], batch_size: int = 8
) -> list[Answer]:
    r"""Give for the prompt of each example the likeliest of ``choices``, \(\arg\max_c p(c \mid prompt)\).

    The probability is that of the whole answer, its end included, so a short one has no advantage over a long one
    beyond what the model gives it.
    """
    asked = [
        Encoded((*example.prompt, *choice), answer_start=len(example.prompt))
        for example in examples
        for choice in choices
    ]
    scores = log_probabilities(model, asked, batch_size)
    best = []
    for place in range(len(examples)):
        of_this = scores[place * len(choices) : (place + 1) * len(choices)]
        best.append(choices[max(range(len(choices)), key=of_this.__getitem__)])
    return best
