"""The loop trains what requires a gradient and nothing else, the same way for the same seed, and its score is right."""

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from lora_lab.finetune import DivergedError, Settings, accuracy, minimise, predict, train_classifier, untrained_encoder
from lora_lab.finetune.classification import Labelled
from lora_lab.finetune.training import batch_indices, learning_rate_at
from lora_lab.lora import (
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    SubspaceConfig,
    attach,
    merge,
)
from tests.finetune.test_encoder import tiny_config

SETTINGS = Settings(epochs=2, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def letters(tokenizer):
    """The tokenizer of bytes, with a padding token."""
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = "<|endoftext|>"
    return padded


def examples(count: int = 24, seed: int = 0) -> list[Labelled]:
    """Make texts of unlike length, most letters of which say the label."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(3, 12, (), generator=generator))
        noise = "".join("xyz"[i] for i in torch.randint(0, 3, (length // 3,), generator=generator))
        made.append(Labelled("ab"[number % 2] * length + noise, number % 2))
    return made


def encoder(dropout: float = 0.0, seed: int = 0):
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return untrained_encoder(tiny_config(initializer_range=0.2, **rates), seed=seed)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def with_lora(model):
    config = LoRAConfig(rank=2, alpha=8, targets=("query", "value"), modules_to_save=("classifier",))
    return attach(model, config, generator=torch.Generator().manual_seed(0))


HEAD = {"modules_to_save": ("classifier",)}
WAYS = {
    "full": FullConfig(),
    "head only": HeadOnlyConfig(**HEAD),
    "biases": BitFitConfig(**HEAD),
    "adapters": BottleneckConfig(width=4, targets=("output.dropout",), **HEAD),
    "lora": LoRAConfig(rank=2, alpha=8, targets=("query", "value"), **HEAD),
    "subspace": SubspaceConfig(dimension=300),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_way_learns_and_changes_what_requires_a_gradient_alone(way, letters):
    model = attach(encoder(dropout=0.1), way, generator=torch.Generator().manual_seed(0))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = weights(model)
    history = train_classifier(model, letters, examples(48), replace(SETTINGS, epochs=6), progress=False)
    assert changed(before, weights(model)) <= trainable
    still = trainable - changed(before, weights(model))
    # A key's bias shifts all scores of a query alike, so its gradient is nothing but rounding.
    assert not [name for name in still if "key" not in name]
    assert accuracy(model, letters, examples(40, seed=1)) > 0.9
    assert len(history.losses) == 6 * 12
    assert history.losses[-1] < history.losses[0]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_steps_are_those_of_a_plain_loop(letters):
    mine, theirs = encoder(), encoder()
    data = examples(10)
    history = train_classifier(mine, letters, data, SETTINGS, progress=False)
    optimizer = torch.optim.AdamW(theirs.parameters(), weight_decay=0, fused=True)
    losses = []
    for step in range(6):
        chosen = [data[place] for place in batch_indices(10, step, SETTINGS)]
        batch = letters([text for text, _ in chosen], padding=True, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = theirs(**inputs, labels=torch.tensor([label for _, label in chosen])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 6, SETTINGS)
        optimizer.step()
        losses.append(loss.item())
    assert history.losses == pytest.approx(losses, rel=1e-5)
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    assert sum(history.tokens) == 2 * sum(len(letters(text)["input_ids"]) for text, _ in data)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(letters):
    ends = []
    for seed in (0, 0, 1):
        model = encoder(dropout=0.3)
        torch.rand(1)  # the global state must not matter, nor be changed
        state = torch.get_rng_state()
        train_classifier(model, letters, examples(), replace(SETTINGS, seed=seed), progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append(weights(model))
    assert not changed(ends[0], ends[1])
    assert changed(ends[0], ends[2])


def test_micro_batches_give_the_same_gradient(letters):
    one, other = encoder(), encoder()
    history = train_classifier(one, letters, examples(), SETTINGS, progress=False)
    parts = train_classifier(other, letters, examples(), replace(SETTINGS, micro_batch_size=3), progress=False)
    assert history.losses == pytest.approx(parts.losses, rel=1e-4)
    assert history.gradient_norms == pytest.approx(parts.gradient_norms, rel=1e-3)


def test_bfloat16_products_learn_the_same_to_its_precision(letters):
    one, other = encoder(), encoder()
    settings = replace(SETTINGS, epochs=6)
    history = train_classifier(one, letters, examples(), settings, progress=False)
    rounded = train_classifier(other, letters, examples(), settings, precision=torch.bfloat16, progress=False)
    assert rounded.losses != history.losses
    assert rounded.losses == pytest.approx(history.losses, abs=0.1)
    assert other.classifier.weight.dtype == torch.float32
    assert accuracy(other, letters, examples(20, seed=1), precision=torch.bfloat16) > 0.9


def test_autocast_around_the_training_is_refused(letters):
    message = "autocast is on around the whole training"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=message):
        train_classifier(encoder(), letters, examples(), SETTINGS, progress=False)


def test_predictions_do_not_depend_on_the_order_or_the_batches(letters):
    model = train_and_give(encoder(), letters)
    texts = [text for text, _ in examples(30, seed=2)]
    answers = predict(model, letters, texts, batch_size=7)
    assert set(answers) == {0, 1}
    assert answers == [predict(model, letters, [text])[0] for text in texts]
    assert answers[::-1] == predict(model, letters, texts[::-1], batch_size=30)
    assert predict(model, letters, []) == []


def train_and_give(model, letters):
    train_classifier(model, letters, examples(8), replace(SETTINGS, epochs=1), progress=False)
    return model


def test_accuracy_is_the_one_of_scikit_learn_and_dropout_is_off(letters):
    model = encoder(dropout=0.5).train()
    data = examples(31, seed=3)
    answers = predict(model, letters, [text for text, _ in data])
    assert accuracy(model, letters, data) == accuracy_score([label for _, label in data], answers)
    assert answers == predict(model.eval(), letters, [text for text, _ in data])
    assert predict(model.train(), letters, ["ab"]) is not None
    assert model.training, "it comes back in the mode it was in"


def test_what_cannot_be_trained_is_refused(letters):
    some, model = examples(4), encoder()

    def refused(message, model=model, tokenizer=letters, data=some, settings=SETTINGS):
        with pytest.raises(ValueError, match=message):
            train_classifier(model, tokenizer, data, settings, progress=False)

    refused("examples: got none", data=[])
    refused("examples: one has label 2, and the model's head tells 0 to 1 apart", data=[Labelled("a", 2)])
    refused("examples: the longest has 70 tokens, and the model reads at most 64", data=[Labelled("a" * 70, 0)])
    refused("settings: validate_every is 3", settings=replace(SETTINGS, validate_every=3))
    refused("settings: patience is 2", settings=replace(SETTINGS, patience=2))
    bare = copy.deepcopy(letters)
    bare.pad_token = None
    refused("tokenizer: it has no padding token", tokenizer=bare)
    refused("model: no parameter requires a gradient", model=encoder().requires_grad_(False))
    merged = with_lora(encoder())
    merge(merged)
    refused("model: its LoRA layers are merged or disabled", model=merged)
    with pytest.raises(ValueError, match="examples: got none"):
        accuracy(model, letters, [])


def test_a_loss_that_is_no_number_changes_nothing(letters):
    model = encoder()
    with torch.no_grad():
        model.classifier.bias[0] = torch.inf
    before = weights(model)
    with pytest.raises(DivergedError, match=r"step 1 of 12: the loss is nan .* Lower learning_rate \(now 0\.01\)"):
        train_classifier(model, letters, examples(), SETTINGS, progress=False)
    assert not changed(before, weights(model))


def test_minimise_finds_the_least_squares_of_any_network():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    y = x @ torch.randn(5, 2, generator=generator) + 0.1 * torch.randn(64, 2, generator=generator)
    net = nn.Linear(5, 2, bias=False)
    settings = Settings(epochs=400, batch_size=64, learning_rate=0.1, max_gradient_norm=1e9)
    history = minimise(net, lambda places: (net(x[places]) - y[places]).square().mean(), 64, settings, progress=False)
    torch.testing.assert_close(net.weight.data.T, torch.linalg.lstsq(x, y).solution, atol=1e-4, rtol=1e-3)
    assert len(history.losses) == 400
    assert history.tokens == []
