"""Who learns, who chooses, who judges: splits that a hash of the content fixes, balanced subsets, the majority's share.

A hash needs no list and no seed: the same content lands on the same side on every machine and in every version of the
data, so nothing that was learned from can turn up in the test.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch

SPLITS = ("train", "validation", "test")


def split_of(content: bytes) -> str:
    """Give the split that ``content`` belongs to: ``"train"`` for 8 of 10, ``"validation"`` and ``"test"`` for 1 each.

    The first 8 bytes of its SHA-256, read as a number, leave a remainder 0 to 9 when divided by 10: 8 is validation,
    9 is test, anything below is train.
    """
    remainder = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % 10
    return {8: "validation", 9: "test"}.get(remainder, "train")


def balanced_subset(labels: Sequence[int], size: int, *, seed: int) -> list[int]:
    """Give the places of ``size`` examples, as many of each label, drawn at random without repetition.

    The draws are nested: with one seed, the 8 are the first 8 of the 32. So a learner that is given more examples
    keeps those it had.

    Args:
        labels: the label of every example there is.
        size: how many to draw, a multiple of the number of distinct labels.
        seed: decides which.

    Raises:
        ValueError: a size that cannot be shared out equally, or a label with too few examples.
    """
    classes = sorted(set(labels))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or not classes or size % len(classes):
        raise ValueError(f"size: got {size!r}, takes a whole number that the {len(classes)} labels share equally")
    wanted = size // len(classes)
    rarest, available = min(Counter(labels).items(), key=lambda pair: pair[1])
    if wanted > available:
        raise ValueError(f"size: got {size}, but only {available} examples have label {rarest}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    drawn = [[place for place in order if labels[place] == label][:wanted] for label in classes]
    return [place for one_of_each in zip(*drawn, strict=True) for place in one_of_each]


def majority_accuracy(train: Sequence[int], test: Sequence[int]) -> float:
    """Give the share of ``test`` labels that are right if the most frequent label of ``train`` is always the answer.

    It is what a classifier has to beat before it has learned anything. Of equally frequent labels the smallest counts.

    Raises:
        ValueError: there is no label on one side.
    """
    for name, labels in (("train", train), ("test", test)):
        if not labels:
            raise ValueError(f"{name}: got no labels, takes at least one")
    counts = Counter(train)
    majority = min(counts, key=lambda label: (-counts[label], label))
    return sum(label == majority for label in test) / len(test)
