"""The encoder is the published one, its random twin has the same shape, and padding counts for nothing."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from lora_lab import assets
from lora_lab.finetune import load_encoder, untrained_encoder
from lora_lab.finetune.encoder import MeanPooledClassifier
from lora_lab.lora import LoRAConfig, attach, lora_layers

SIZES = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def tiny_config(**changes) -> BertConfig:
    return BertConfig(**{**SIZES, "num_attention_heads": 2, "max_position_embeddings": 64, **changes})


@pytest.fixture
def package(tmp_path, tokenizer, monkeypatch):
    """A small model in place of the package: its folder, as the cache keeps it."""
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = "<|endoftext|>"
    padded.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    torch.manual_seed(3)
    weights = BertModel(tiny_config()).state_dict()
    save_file({**weights, "embeddings.position_ids": torch.arange(64)[None]}, tmp_path / "model.safetensors")
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path / "model.safetensors")
    return tmp_path


def test_pretrained_weights_are_those_of_the_file(package):
    model, _ = load_encoder()
    stored, mine = load_file(package / "model.safetensors"), model.bert.state_dict()
    assert stored.keys() - mine.keys() == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert all(torch.equal(mine[name], stored[name]) for name in mine)
    assert not model.training
    assert model.name_or_path == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_random_twin_has_the_same_shapes_the_same_head_and_no_weight_of_the_other(package):
    model, _ = load_encoder(seed=4)
    twin, _ = load_encoder(pretrained=False, seed=4)
    mine, theirs = model.state_dict(), twin.state_dict()
    assert {name: value.shape for name, value in mine.items()} == {n: value.shape for n, value in theirs.items()}
    same = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert {"classifier.weight", "classifier.bias"} <= same
    assert not [name for name in same if name.endswith("weight") and "LayerNorm" not in name and "bert" in name]
    drawn = theirs["bert.encoder.layer.0.intermediate.dense.weight"]
    assert drawn.std().item() == pytest.approx(0.02, rel=0.15)


def test_the_seed_alone_decides(package):
    for pretrained in (True, False):
        made = []
        for seed in (0, 0, 1):
            torch.rand(1)  # the global state must not matter, nor be changed
            state = torch.get_rng_state()
            made.append(load_encoder(pretrained=pretrained, seed=seed, classes=3)[0].state_dict())
            assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
        assert not torch.equal(made[0]["classifier.weight"], made[2]["classifier.weight"])
        assert made[0]["classifier.weight"].shape == (3, 16)


def test_scores_are_a_linear_map_of_the_mean_token_vector():
    model = untrained_encoder(tiny_config(), seed=0)
    ids = torch.arange(6)[None]
    hidden = model.bert(ids).last_hidden_state[0]
    expected = model.classifier.weight @ hidden.mean(0) + model.classifier.bias
    torch.testing.assert_close(model(ids).logits[0], expected)


def test_padding_changes_no_score():
    model = untrained_encoder(tiny_config(), seed=0)
    texts = [torch.arange(1, 4), torch.arange(5, 14)]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    together = model(ids, attention_mask=mask).logits
    for alone, text in zip(together, texts, strict=True):
        torch.testing.assert_close(model(text[None]).logits[0], alone)


def test_the_loss_is_the_mean_cross_entropy():
    model = untrained_encoder(tiny_config(num_labels=3), seed=0)
    out = model(torch.arange(12).reshape(3, 4), labels=torch.tensor([0, 2, 1]))
    chosen = out.logits.log_softmax(-1)[[0, 1, 2], [0, 2, 1]]
    torch.testing.assert_close(out.loss, -chosen.mean())
    assert model(torch.arange(4)[None]).loss is None


def test_lora_finds_the_layers_and_leaves_the_head_out_of_all_linear():
    layers = lora_layers(attach(untrained_encoder(tiny_config(), seed=0), LoRAConfig(targets="all-linear")))
    assert len(layers) == 2 * 6
    assert all(name.startswith("bert.encoder.layer.") for name in layers)


def test_a_saved_encoder_comes_back(tmp_path):
    model = untrained_encoder(tiny_config(), seed=0)
    model.save_pretrained(tmp_path)
    again = MeanPooledClassifier.from_pretrained(tmp_path).eval()
    ids = torch.arange(6)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "bert"}, "name: got 'bert', takes one of minilm-l6"),
        ({"classes": 1}, "classes: got 1, takes a whole number of at least 2"),
        ({"classes": True}, "classes: got True"),
        ({"device": "cuda:99"}, "device: got 'cuda:99', which cannot be used here"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message, package):
    with pytest.raises(ValueError, match=message):
        load_encoder(**wrong)


def test_weights_that_the_network_does_not_take_are_refused(package):
    weights = load_file(package / "model.safetensors")
    for odd in ({"encoder.layer.9.weight": torch.zeros(1)}, {"encoder.layer.0.output.dense.bias": torch.zeros(3)}):
        save_file({**weights, **odd}, package / "model.safetensors")
        with pytest.raises(ValueError, match=r"name: the weights in model\.safetensors are not those of this network"):
            load_encoder()


def test_the_packaged_encoder_is_the_published_one():
    """The similarities are those that the documentation of sentence-transformers prints for this model."""
    model, tokenizer = load_encoder()
    assert sum(p.numel() for p in model.bert.parameters()) == 22_565_376
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model.pooled(**batch))
    published = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, published, atol=6e-5, rtol=0)
    assert len(tokenizer("good " * 200)["input_ids"]) == 202, "nothing is cut off"
