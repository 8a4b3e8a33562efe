"""The experiment on odd and even digits trains what it says, from the starts it says, on digits that are apart."""

import dataclasses

import pytest
import torch
from sklearn.metrics import accuracy_score

from lora_lab.course.experiments import EXPERIMENTS, digit_dimension, perform
from lora_lab.finetune import Digits, DigitSet
from lora_lab.finetune.splits import SPLITS

EXPERIMENT = EXPERIMENTS["digit-dimension"]
SMALL = {"dimensions": (3, 20), "examples": 20, "epochs": 2, "seeds": (0, 1)}
NUMBERS = 784 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2


def digit_set(each, seed):
    """Draw as many of each digit: a bright bar whose place is the digit, in noise, all on the left half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(each)
    images = torch.rand(len(labels), 28, 28, generator=generator) * 0.2
    for image, label in zip(images, labels.tolist(), strict=True):
        image[2 * label : 2 * label + 2, :14] = 1
    return DigitSet(images.reshape(-1, 784), labels)


@pytest.fixture(scope="module")
def shared():
    with pytest.MonkeyPatch.context() as patch:
        splits = {split: digit_set(10, seed) for seed, split in enumerate(SPLITS)}
        patch.setattr("lora_lab.finetune.load_digits", lambda: Digits(**splits, duplicates=0))
        patch.setattr(digit_dimension, "PRETRAINING", 50)
        return EXPERIMENT.prepare(EXPERIMENT.chosen(SMALL))


@pytest.fixture(scope="module")
def runs(shared):
    return perform(EXPERIMENT, SMALL, materials=shared, progress=False)


def test_the_starts_have_one_head_and_three_bodies(shared):
    assert list(shared.starts) == ["untrained", "pretrained", "pretrained on mirrored digits"]
    heads = [model[4].weight for model in shared.starts.values()]
    bodies = [model[0].weight for model in shared.starts.values()]
    assert all(torch.equal(heads[0], head) for head in heads[1:])
    assert not any(torch.equal(bodies[i], bodies[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_pretraining_has_learned_to_name_digits(shared):
    assert shared.named > 0.5
    assert shared.majority == 0.5


def test_mirrored_exchanges_left_and_right():
    image = torch.zeros(28, 28)
    image[3, 0] = 1
    [turned] = digit_dimension.mirrored(image.reshape(1, 784))
    assert turned.reshape(28, 28).nonzero().tolist() == [[3, 27]]


def test_the_digits_to_learn_from_are_not_those_of_pretraining(monkeypatch):
    trained_on = []
    learn = digit_dimension._learn

    def noting(model, images, answers, **options):
        trained_on.append(images)
        learn(model, images, answers, **options)

    monkeypatch.setattr(digit_dimension, "_learn", noting)
    splits = {split: digit_set(10, seed) for seed, split in enumerate(SPLITS)}
    monkeypatch.setattr("lora_lab.finetune.load_digits", lambda: Digits(**splits, duplicates=0))
    monkeypatch.setattr(digit_dimension, "PRETRAINING", 50)
    options = EXPERIMENT.chosen({**SMALL, "starts": ("pretrained", "pretrained on mirrored digits")})
    made = EXPERIMENT.prepare(options)
    upright, turned = trained_on
    assert len(upright) == 50
    assert len(made.train) == 20
    assert torch.equal(digit_dimension.mirrored(turned), upright)
    assert not any((upright == image).all(1).any() for image in made.train.images)


def test_every_start_trains_as_a_whole_and_in_every_subspace(runs):
    assert [(run["start"], run["dimension"], run["seed"]) for run in runs] == [
        (start, dimension, seed) for start in digit_dimension.STARTS for dimension in (None, 3, 20) for seed in (0, 1)
    ]
    assert all(run["trainable"] == (run["dimension"] or NUMBERS) for run in runs)
    assert len({run["score"] for run in runs}) > 2


def test_the_scores_are_shares_of_right_answers(shared):
    model, test = shared.starts["pretrained"], shared.test
    with torch.no_grad():
        answers = model(test.images).argmax(-1)
    right = accuracy_score(test.labels % 2, answers)
    assert digit_dimension.share_right(model, test.images, test.labels % 2) == pytest.approx(right)


def test_a_run_leaves_the_starts_as_they_were(shared):
    before = {key: value.clone() for key, value in shared.starts["untrained"].state_dict().items()}
    perform(EXPERIMENT, {**SMALL, "starts": ("untrained",)}, materials=shared, progress=False)
    after = shared.starts["untrained"].state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_same_run_gives_the_same_scores(shared, runs):
    again = perform(EXPERIMENT, {**SMALL, "starts": ("pretrained",)}, materials=shared, progress=False)
    assert again == runs[: len(again)]


def scored(start, scores):
    """Make runs of one start, by dimension; None is full training."""
    return [{"start": start, "dimension": d, "seed": s, "score": one} for d, some in scores.items() for s, one in some]


def test_the_dimension_is_that_of_the_start_asked_for():
    two = [(0, 0.9), (1, 0.9)]
    runs = scored("pretrained", {None: two, 3: [(0, 0.5), (1, 0.8)], 20: [(0, 0.88), (1, 0.89)], 50: two})
    runs += scored("untrained", {None: [(0, 0.7)], 3: [(0, 0.5)], 20: [(0, 0.6)], 50: [(0, 0.69)]})
    found = digit_dimension.digit_dimension(runs, "pretrained", baseline=0.5)
    assert (found.value, found.interval) == (20, (3, 20))
    assert digit_dimension.digit_dimension(runs, "untrained", baseline=0.5).value == 50
    assert digit_dimension.digit_dimension(runs, "untrained", baseline=0.5, full_score=0.9).value is None
    with pytest.raises(ValueError, match="start: got 'random', and the runs begin"):
        digit_dimension.digit_dimension(runs, "random", baseline=0.5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="starts: got 'random', takes pretrained, "):
        EXPERIMENT.prepare(EXPERIMENT.chosen({"starts": ("random",)}))
    with pytest.raises(ValueError, match="examples: got 1951, takes at most 1950"):
        EXPERIMENT.prepare(EXPERIMENT.chosen({"examples": 1951}))


def test_the_materials_are_not_written_to(shared):
    with pytest.raises(dataclasses.FrozenInstanceError):
        shared.majority = 1.0
