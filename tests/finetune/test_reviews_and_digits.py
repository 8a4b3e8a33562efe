"""The real sentences and digits, in their splits: each on one side, none twice, every label right."""

import bz2
import csv
import gzip

import numpy as np
import pytest
import torch

from lora_lab import assets
from lora_lab.finetune.digits import load_digits, split_digits
from lora_lab.finetune.reviews import LABELS, load_reviews, normalised, split_reviews
from lora_lab.finetune.splits import SPLITS


@pytest.fixture(scope="module")
def reviews():
    return load_reviews()


@pytest.fixture(scope="module")
def digits():
    return load_digits()


class TestReviews:
    def test_there_are_12808_sentences_and_59_of_them_had_been_there_before(self, reviews):
        kept = len(reviews.train) + len(reviews.validation) + len(reviews.test)
        assert (kept, reviews.duplicates) == (12_749, 59)
        assert kept + reviews.duplicates == 12_808
        assert [len(getattr(reviews, split)) for split in SPLITS] == [10_162, 1_319, 1_268]

    def test_no_sentence_stands_on_two_sides(self, reviews):
        words = [{normalised(text) for text, _ in getattr(reviews, split)} for split in SPLITS]
        assert sum(map(len, words)) == 12_749
        assert len(set.union(*words)) == 12_749

    def test_the_labels_are_those_of_the_file(self, reviews):
        with bz2.open(assets.cached_path("film-reviews"), "rt", encoding="utf-8", newline="") as file:
            words = {row["text"].strip(): row["category"] for row in csv.DictReader(file)}
        for split in SPLITS:
            assert all(LABELS[label] == words[text] for text, label in getattr(reviews, split))

    def test_the_majority_praises(self, reviews):
        for split in SPLITS:
            labels = [label for _, label in getattr(reviews, split)]
            assert reviews.majority(split) == np.mean(labels) > 0.5
        with pytest.raises(ValueError, match="split: got 'dev', takes one of train, validation, test"):
            reviews.majority("dev")

    def test_a_subset_is_balanced_and_of_training_sentences(self, reviews):
        subset = reviews.subset(32, seed=1)
        assert sum(label for _, label in subset) == 16
        assert set(subset) <= set(reviews.train)
        assert subset[:8] == reviews.subset(8, seed=1)
        assert subset != reviews.subset(32, seed=2)

    @pytest.mark.parametrize("copy", ["a  GOOD film", "“A good film!”", " a good, film", "a good \ufb01lm"])
    def test_copies_are_dropped_whatever_their_signs(self, copy):
        made = split_reviews([("A good film.", "fresh"), (copy, "fresh"), ("Not a good film.", "rotten")])
        every = made.train + made.validation + made.test
        assert sorted(every) == [("A good film.", 1), ("Not a good film.", 0)]
        assert made.duplicates == 1

    def test_a_sentence_that_praises_and_pans_is_refused(self):
        with pytest.raises(ValueError, match=r"rows: 'Fine!' is fresh once and rotten once"):
            split_reviews([("Fine.", "fresh"), ("Fine!", "rotten")])


class TestDigits:
    def test_there_are_5000_and_500_of_each(self, digits):
        labels = torch.cat([getattr(digits, split).labels for split in SPLITS])
        assert torch.bincount(labels).tolist() == [500] * 10
        assert digits.duplicates == 0
        assert [len(getattr(digits, split)) for split in SPLITS] == [4_009, 485, 506]

    def test_the_pixels_are_those_of_the_file(self, digits):
        with gzip.open(assets.cached_path("mnist-5k"), "rt") as file:
            rows = np.loadtxt(file, delimiter=",", max_rows=60)
        every = {
            image.tobytes(): label
            for split in SPLITS
            for image, label in zip(
                (getattr(digits, split).images * 255).round().byte().numpy(),
                getattr(digits, split).labels.tolist(),
                strict=True,
            )
        }
        assert len(every) == 5_000
        assert all(every[row[:-1].astype(np.uint8).tobytes()] == row[-1] for row in rows)

    def test_ink_is_1_and_paper_is_0(self, digits):
        images = digits.train.images
        assert (images.shape, images.dtype) == ((4_009, 784), torch.float32)
        assert (images.min(), images.max()) == (0, 1)
        assert images.reshape(-1, 28, 28)[:, 0].max() == 0, "the frame is paper"

    def test_a_subset_has_as_many_of_each(self, digits):
        subset = digits.subset(50, seed=0)
        assert torch.bincount(subset.labels).tolist() == [5] * 10
        assert torch.equal(subset.images[:20], digits.subset(20, seed=0).images)

    def test_the_majority_is_about_a_tenth(self, digits):
        assert digits.majority() == pytest.approx(0.1, abs=0.02)

    def test_copies_are_dropped_and_contradictions_refused(self):
        pixels = np.eye(3, 784, dtype=np.uint8)[[0, 1, 0, 2]]
        made = split_digits(pixels, np.array([4, 5, 4, 6]))
        assert made.duplicates == 1
        assert sum(len(getattr(made, split)) for split in SPLITS) == 3
        with pytest.raises(ValueError, match="labels: the image at 2 is a 7 there and a 4 before"):
            split_digits(pixels, np.array([4, 5, 7, 6]))


class Words:
    """A tokenizer of one token a word."""

    def __call__(self, texts):
        return {"input_ids": [text.split() for text in texts]}


def test_short_sentences_are_kept_in_their_splits():
    rows = [(f"word{i} " * (1 + i % 7), "fresh" if i % 2 else "rotten") for i in range(400)]
    every = split_reviews(rows)
    short = every.at_most(3, Words())
    for split in ("train", "validation", "test"):
        kept = getattr(short, split)
        assert kept == tuple(one for one in getattr(every, split) if len(one.text.split()) <= 3)
        assert 0 < len(kept) < len(getattr(every, split))
    assert short.duplicates == every.duplicates
    with pytest.raises(ValueError, match="no train sentence has fewer than 1"):
        every.at_most(0, Words())
