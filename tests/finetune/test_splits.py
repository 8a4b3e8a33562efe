"""The same content always lands on the same side; subsets are balanced and nested; the majority is the baseline."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from lora_lab.finetune.splits import SPLITS, balanced_subset, majority_accuracy, split_of


def test_eight_of_ten_are_for_training_and_one_each_for_the_others():
    sides = [split_of(str(number).encode()) for number in range(10_000)]
    shares = [sides.count(split) / len(sides) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.01)  # three standard deviations


def test_a_side_never_changes():
    # `printf a | sha256sum` begins ca978112ca1bbdca, that is 14598278634844962250; g is 14774807917870167749, and 11 is
    # 5748892369479747538.
    assert [split_of(content) for content in (b"a", b"11", b"g")] == ["train", "validation", "test"]


LABELS = [0] * 30 + [1] * 12 + [2] * 20


@pytest.mark.parametrize("size", [3, 12, 36])
def test_a_subset_has_as_many_of_each_label_and_none_twice(size):
    places = balanced_subset(LABELS, size, seed=0)
    assert len(set(places)) == size
    assert np.bincount([LABELS[place] for place in places]).tolist() == [size // 3] * 3


def test_a_smaller_subset_is_the_beginning_of_a_larger_one():
    assert balanced_subset(LABELS, 36, seed=5)[:9] == balanced_subset(LABELS, 9, seed=5)


def test_the_seed_decides_and_every_example_can_be_drawn():
    drawn = [balanced_subset(LABELS, 12, seed=seed) for seed in range(40)]
    assert len({tuple(places) for places in drawn}) == 40
    assert balanced_subset(LABELS, 12, seed=7) == drawn[7]
    assert {place for places in drawn for place in places} == set(range(len(LABELS)))


@pytest.mark.parametrize("size", [0, -3, 4, 3.0, True])
def test_a_size_that_cannot_be_shared_out_is_refused(size):
    with pytest.raises(ValueError, match=r"size: got .*, takes a whole number that the 3 labels share equally"):
        balanced_subset(LABELS, size, seed=0)


def test_a_size_beyond_the_rarest_label_is_refused():
    with pytest.raises(ValueError, match="size: got 39, but only 12 examples have label 1"):
        balanced_subset(LABELS, 39, seed=0)


@pytest.mark.parametrize("train", [[1, 1, 0], [0, 2, 2, 1], [1, 0]])
def test_the_majority_is_the_one_of_scikit_learn(train):
    test = [0, 1, 1, 2, 2, 2]
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(train), 1)), train)
    assert majority_accuracy(train, test) == dummy.score(np.zeros((len(test), 1)), test)


@pytest.mark.parametrize(("train", "test", "name"), [([], [1], "train"), ([1], [], "test")])
def test_a_side_without_labels_is_refused(train, test, name):
    with pytest.raises(ValueError, match=f"{name}: got no labels"):
        majority_accuracy(train, test)
