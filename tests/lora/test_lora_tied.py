"""A weight with two owners: adapting one of them never changes the other unless that is what was asked for."""

import copy
import pickle

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lora_lab.lora import LoRAConfig, account, activate, attach, detach, disabled, fold, lora_layers, merge, unmerge

pytestmark = pytest.mark.filterwarnings("ignore")

PLACES = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}


def config(target, tied):
    return LoRAConfig(2, 3, ("q_proj", target), tied=tied)


def drawn(model, seed=4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture
def tied(llama):
    return lambda: llama(tied=True)


@pytest.mark.parametrize("target", PLACES)
class TestUntie:
    def test_the_other_layer_is_what_it_was(self, target, tied, bits):
        model = tied()
        other = next(place for name, place in PLACES.items() if name != target)
        before = bits(model.get_submodule(other).weight)
        drawn(attach(model, config(target, "untie")))
        for change in (lambda m: None, merge, unmerge):
            change(model)
            assert bits(model.get_submodule(other).weight) == before

    def test_merging_changes_no_logit(self, target, tied, tokens):
        model = drawn(attach(tied(), config(target, "untie")))
        expected = logits(model, tokens)
        merge(model)
        torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-9, atol=1e-9)
        unmerge(model)
        assert torch.equal(logits(model, tokens), expected)

    def test_the_tie_is_back_after_unmerging(self, target, tied):
        model = drawn(attach(tied(), config(target, "untie")))
        bases = [getattr(layer, "base", layer) for layer in (model.get_input_embeddings(), model.lm_head)]
        assert bases[0].weight is bases[1].weight
        merge(model)
        assert bases[0].weight is not bases[1].weight
        assert model.config.tie_word_embeddings is False
        unmerge(model)
        assert bases[0].weight is bases[1].weight
        assert model.config.tie_word_embeddings is True

    def test_a_folded_model_saves_and_loads_with_both_weights(self, target, tied, tokens, tmp_path):
        model = drawn(attach(tied().float(), config(target, "untie")))
        expected = logits(model, tokens)
        fold(model)
        assert not lora_layers(model)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(logits(again, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", PLACES)
class TestShare:
    def test_both_layers_get_one_update(self, target, tied, tokens):
        model = drawn(attach(tied(), config(target, "share")))
        embed, head = model.model.embed_tokens, model.lm_head
        torch.testing.assert_close(embed.weight, head.weight, rtol=0, atol=1e-12)
        assert not torch.equal(embed.weight, embed.base.weight)
        expected = tied()
        with torch.no_grad():
            for place, layer in lora_layers(model).items():
                if "q_proj" in place:
                    expected.get_submodule(place).weight.copy_(layer.weight)
            expected.model.embed_tokens.weight.copy_(embed.weight)  # and so the head's
        torch.testing.assert_close(logits(model, tokens), logits(expected, tokens), rtol=1e-9, atol=1e-9)

    def test_is_counted_once(self, target, tied):
        model = attach(tied(), config(target, "share"))
        own = 2 * (32 + 16) + 2 * 2 * (16 + 16)  # one for both tied layers, and q_proj in two blocks
        assert account(model).adapter == account(model).trainable == own
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == own

    def test_gradients_come_from_both(self, target, tied, tokens):
        model = drawn(attach(tied(), config(target, "share")))
        source = model.model.embed_tokens.adapter
        factors = [source.lora_A, source.lora_B]
        both = torch.autograd.grad(model(tokens).logits.sin().sum(), factors)
        whole = tied()  # the same through one dense weight: d/dA of W + s (B A)ᵀ
        with torch.no_grad():
            for place, layer in lora_layers(model).items():
                if "q_proj" in place:
                    whole.get_submodule(place).weight.copy_(layer.weight)
            whole.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight)
        (G,) = torch.autograd.grad(whole(tokens).logits.sin().sum(), [whole.model.embed_tokens.weight])  # (32, 16)
        torch.testing.assert_close(both[0], 1.5 * source.lora_B.T @ G.T, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(both[1], 1.5 * G.T @ source.lora_A.T, rtol=1e-8, atol=1e-8)

    def test_merged_weights_stay_one_tensor(self, target, tied, tokens, bits):
        model = drawn(attach(tied(), config(target, "share")))
        before, expected = bits(model.model.embed_tokens.base.weight), logits(model, tokens)
        merge(model)
        assert model.model.embed_tokens.base.weight is model.lm_head.base.weight
        assert model.config.tie_word_embeddings is True
        torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-9, atol=1e-9)
        unmerge(model)
        assert model.model.embed_tokens.base.weight is model.lm_head.base.weight
        assert bits(model.lm_head.base.weight) == before
        assert torch.equal(logits(model, tokens), expected)

    def test_a_folded_model_is_tied(self, target, tied, tokens, tmp_path):
        model = drawn(attach(tied().float(), config(target, "share")))
        expected = logits(model, tokens)
        fold(model)
        assert model.model.embed_tokens.weight is model.lm_head.weight
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert again.config.tie_word_embeddings
        torch.testing.assert_close(logits(again, tokens), expected, rtol=1e-4, atol=1e-4)

    def test_copies_share_too_and_detaching_gives_back_the_very_model(self, target, tied, tokens, portrait):
        model = tied()
        before = portrait(model)
        attach(model, config(target, "share"))
        other = copy.deepcopy(drawn(model))
        expected = logits(model, tokens)
        drawn(model, seed=9)
        assert torch.equal(logits(other, tokens), expected)
        assert other.lm_head.adapter.source is other.model.embed_tokens.adapter
        detach(model)
        assert portrait(model) == before

    def test_disabled(self, target, tied, tokens):
        expected = logits(tied(), tokens)
        model = drawn(attach(tied(), config(target, "share")))
        with disabled(model):
            assert torch.equal(logits(model, tokens), expected)


class TestRefuse:
    @pytest.mark.parametrize("target", PLACES)
    def test_says_what_to_choose_from(self, target, tied, portrait):
        model = tied()
        before = portrait(model)
        with pytest.raises(ValueError, match=r"is tied.*tied='untie'.*tied='share'"):
            attach(model, config(target, "refuse"))
        assert portrait(model) == before

    def test_sharing_needs_layers_that_can_share(self, portrait):
        model = nn.Module()
        model.a, model.b = nn.Linear(4, 4), nn.Bilinear(4, 1, 4)
        model.b.weight = model.a.weight
        before = portrait(model)
        with pytest.raises(ValueError, match=r"'b.weight' is tied to 'a', and is no weight to adapt"):
            attach(model, LoRAConfig(2, targets=("a",), tied="share"))
        assert portrait(model) == before

    def test_two_linear_layers_share_without_turning(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
        model[1].weight = model[0].weight
        drawn(attach(model, LoRAConfig(2, targets=("1",), tied="share")))
        torch.testing.assert_close(model[0].weight, model[1].weight, rtol=0, atol=0)
        assert model[1].lora_A is model[0].lora_A


def test_peft_changes_the_logits_of_a_tied_model_when_it_merges_and_ours_does_not(tied, tokens):
    """PEFT writes the update of the embedding into the tensor that is the head as well."""
    base = tied()
    gaps = []
    theirs = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, lora_alpha=3, target_modules=["embed_tokens"], init_lora_weights=False),
    ).eval()
    before = logits(theirs, tokens)
    gaps.append((logits(theirs.merge_and_unload(), tokens) - before).abs().max().item())
    ours = drawn(attach(copy.deepcopy(base), LoRAConfig(2, 3, ("embed_tokens",), tied="untie")))
    before = logits(ours, tokens)
    fold(ours)
    gaps.append((logits(ours, tokens) - before).abs().max().item())
    assert gaps[0] > 0.01
    assert gaps[1] < 1e-9


def test_two_adapters_of_which_one_is_shared(tied, tokens):
    model = drawn(attach(tied(), config("embed_tokens", "share"), name="a"))
    expected = logits(model, tokens)
    attach(model, LoRAConfig(2, targets=("q_proj",)), name="b")
    merge(model)
    unmerge(model)
    detach(model, "b")
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("way", ["untie", "share"])
@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: model.half().double()],
    ids=["deepcopy", "pickle", "cast"],
)
def test_the_tie_is_back_though_the_merged_model_was_copied_or_cast(target, way, change, tied, tokens):
    model = drawn(attach(tied(), config(target, way)))
    merge(model)
    model = change(model)
    unmerge(model)
    bases = [getattr(layer, "base", layer) for layer in (model.get_input_embeddings(), model.lm_head)]
    assert bases[0].weight is bases[1].weight
    assert model.config.tie_word_embeddings is True


@pytest.mark.parametrize("change", [lambda model: model, copy.deepcopy], ids=["itself", "copy"])
def test_a_tie_with_what_is_frozen_in_a_trained_copy_is_back(change, tied):
    model = attach(tied(), LoRAConfig(2, targets=("embed_tokens",), modules_to_save=("lm_head",), tied="untie"))
    merge(drawn(model))
    model = change(model)
    unmerge(model)
    assert model.model.embed_tokens.base.weight is model.lm_head.base.weight


def test_a_weight_that_was_changed_since_is_not_tied_again(tied, bits):
    model = drawn(attach(tied(), config("lm_head", "untie")))
    before = bits(model.lm_head.base.weight)
    merge(model)
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
    unmerge(model)
    assert bits(model.lm_head.base.weight) == before
    assert model.config.tie_word_embeddings is False


def test_a_shared_update_beside_one_of_the_embedding_alone_merges_into_two_weights(tied, tokens):
    model = attach(tied(), config("embed_tokens", "share"), name="both")
    drawn(attach(drawn(model), config("embed_tokens", "untie"), name="one"), seed=9)
    activate(model, {"both": 0.5, "one": 2.0})
    expected = logits(model, tokens)
    merge(model)
    assert model.model.embed_tokens.base.weight is not model.lm_head.base.weight
    assert model.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-9, atol=1e-9)
    unmerge(model)
    assert model.model.embed_tokens.base.weight is model.lm_head.base.weight
    assert torch.equal(logits(model, tokens), expected)
