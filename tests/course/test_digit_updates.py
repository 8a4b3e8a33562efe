"""The live experiment of notebook 06 turns, trains and cuts as it says."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lora_lab.course.experiments import digit_updates
from lora_lab.finetune import Digits, DigitSet
from lora_lab.lora import updates
from lora_lab.lowrank import LowRank, numerical_rank


@pytest.fixture(scope="module")
def digits():
    """Bars in ten places stand in for the digits: bar k is two rows of ink, and noise is on every image."""
    generator = torch.Generator().manual_seed(0)

    def some(count):
        labels = torch.arange(count) % 10
        images = 0.2 * torch.rand(count, 28, 28, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label + 3 : 2 * label + 5] += 0.8
        return DigitSet(images.reshape(count, 784), labels)

    return Digits(some(200), some(50), some(60), 0)


@pytest.fixture(scope="module")
def base(digits):
    return digit_updates.with_new_head(digit_updates.pretrained(digits, seed=0), seed=0)


@pytest.fixture(scope="module")
def tuned(base, digits):
    return digit_updates.learned(base, digit_updates.task(digits, size=100, seed=0), "full", seed=0)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_networks_have_three_layers_and_follow_from_their_seed():
    network = digit_updates.digit_network(5, seed=3)
    linear = {name: tuple(m.weight.shape) for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    assert linear == {"first": (256, 784), "second": (128, 256), "classifier": (5, 128)}
    assert torch.equal(network.first.weight, digit_updates.digit_network(10, seed=3).first.weight)
    assert not torch.equal(network.first.weight, digit_updates.digit_network(5, seed=4).first.weight)


def test_turned_is_numpys_quarter_turn(digits):
    turned = digit_updates.turned(digits.test)
    assert np.array_equal(turned.images[7].reshape(28, 28), np.rot90(digits.test.images[7].reshape(28, 28).numpy()))
    assert torch.equal(turned.labels, digits.test.labels)


def test_below_keeps_the_first_classes_alone(digits):
    few = digit_updates.below(digits.test, 3)
    assert set(few.labels.tolist()) == {0, 1, 2}
    assert len(few) == 18
    for wrong in (1, 11):
        with pytest.raises(ValueError, match=f"classes: got {wrong}"):
            digit_updates.below(digits.test, wrong)


def test_a_task_is_turned_balanced_and_drawn_by_its_seed(digits):
    chosen = digit_updates.task(digits, size=20, classes=4, seed=1)
    assert chosen.labels.bincount().tolist() == [5, 5, 5, 5]
    upright = torch.rot90(chosen.images.reshape(-1, 28, 28), -1, (1, 2)).reshape(-1, 784)
    assert all((digits.train.images == image).all(1).any() for image in upright)
    assert not torch.equal(chosen.images, digit_updates.task(digits, size=20, classes=4, seed=2).images)


def test_pretraining_learns(digits):
    assert digit_updates.share_right(digit_updates.pretrained(digits, seed=0), digits.test) > 0.9


def test_a_new_head_is_all_that_is_new(digits, base):
    first = digit_updates.pretrained(digits, seed=0)
    again = digit_updates.with_new_head(first, 4, seed=0)
    assert again.classifier.weight.shape == (4, 128)
    assert torch.equal(again.second.weight, first.second.weight)
    assert first.classifier.weight.shape == (10, 128)


@pytest.mark.parametrize("way", digit_updates.LEARNING_RATES)
def test_every_way_trains_what_its_name_says(way, base, digits):
    before = state(base)
    model = digit_updates.learned(base, digit_updates.task(digits, size=20, seed=0), way, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in state(base).items())
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    everything, head = sum(value.numel() for value in base.parameters()), 128 * 10 + 10
    rank = int(way.partition("-")[2] or 0)
    wanted = {"full": everything, "sgd": everything, "head": head}.get(way, head + rank * (784 + 256 + 256 + 128))
    assert trained == wanted
    if rank:
        assert [numerical_rank(update) for update in updates(model).values()] == [rank, rank]


def test_ways_are_named_in_the_message(base, digits):
    with pytest.raises(ValueError, match="way: got 'lora-3', takes one of full, sgd, head, lora-1"):
        digit_updates.learned(base, digits.train, "lora-3", seed=0)


def test_one_step_of_sgd_is_the_gradient_times_the_rate(base, digits):
    few, model = digits.train[range(8)], copy.deepcopy(base)
    nn.functional.cross_entropy(model(few.images), few.labels).backward()
    wanted = base.first.weight - 0.25 * model.first.weight.grad
    stepped = digit_updates.descend(
        copy.deepcopy(base), few, learning_rate=0.25, seed=0, epochs=1, batch_size=8, sgd=True
    )
    assert torch.allclose(stepped.first.weight, wanted, atol=1e-7)
    assert not torch.equal(stepped.first.weight, base.first.weight)


def test_change_is_the_difference_of_the_weights(base, tuned):
    delta = digit_updates.change(base, tuned, "second")
    assert delta.shape == (128, 256)
    assert delta.dtype == np.float64
    assert np.array_equal(delta, tuned.second.weight.detach().double().numpy() - base.second.weight.detach().numpy())
    assert delta.any()


def test_cut_scores_are_those_of_weights_put_together_by_hand(base, tuned, digits):
    test = digit_updates.turned(digits.test)
    scores = digit_updates.cut_scores(base, tuned, test, (0, 2, 256))
    for rank, score in scores.items():
        model = copy.deepcopy(base)
        model.classifier.load_state_dict(tuned.classifier.state_dict())
        for name in digit_updates.LAYERS:
            delta, weight = digit_updates.change(base, tuned, name), model.get_submodule(name).weight
            cut = LowRank.from_svd(delta, min(rank, *delta.shape)).dense() if rank else 0 * delta
            weight.data = (weight.data.double() + torch.from_numpy(cut)).float()
        assert score == pytest.approx(digit_updates.share_right(model, test), abs=1 / len(test) + 1e-9)
    assert scores[0] < scores[256]


def test_scores_do_not_fall_far_as_the_rank_rises(base, tuned, digits):
    scores = digit_updates.cut_scores(base, tuned, digit_updates.turned(digits.test), (0, 4, 16, 256))
    assert all(higher > lower - 0.1 for lower, higher in pairwise(scores.values()))


def test_a_head_trained_anew_on_a_cut_is_trained_on_just_that_cut(base, tuned, digits):
    test, some = digit_updates.turned(digits.test), digit_updates.task(digits, size=100, seed=0)
    scores = digit_updates.cut_scores(base, tuned, test, (0, 2), task=some, seed=3)
    by_hand = copy.deepcopy(base)
    assert scores[0] == digit_updates.share_right(digit_updates.learned(by_hand, some, "head", seed=3), test)
    for layer in digit_updates.LAYERS:
        weight = by_hand.get_submodule(layer).weight
        U, s, Vt = np.linalg.svd(digit_updates.change(base, tuned, layer))
        weight.data += torch.tensor((U[:, :2] * s[:2]) @ Vt[:2], dtype=torch.float32)
    expected = digit_updates.share_right(digit_updates.learned(by_hand, some, "head", seed=3), test)
    assert scores[2] == pytest.approx(expected, abs=2 / len(test))
