"""An update is a LowRank: out of an adapter and back, out of a full fine-tune, added and cut down."""

import copy

import numpy as np
import peft
import pytest
import torch
from torch import nn

from lora_lab.lora import (
    LoRAConfig,
    activate,
    attach,
    attach_updates,
    disabled,
    extract,
    fold,
    load_adapter,
    lora_layers,
    merge,
    quantize_linears,
    recompress,
    save_adapter,
    updates,
)
from lora_lab.lowrank import LowRank, choose_rank

CONFIG = LoRAConfig(rank=2, alpha=3, targets=("q_proj", "v_proj"))


def gpt2(**options):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, **options)
        return GPT2LMHeadModel(config).double().eval()


def fill_all(model, name="default", seed=4):
    """Draw both factors of an adapter, which no start hides then."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        if name in layer.adapters:
            nn.init.normal_(layer.adapters[name].lora_A, std=0.3, generator=generator)
            nn.init.normal_(layer.adapters[name].lora_B, std=0.3, generator=generator)
    return model


def weight_changes(model):
    """What merging adds to each weight, as the weight lies."""
    before = {name: layer.base.weight.detach().clone() for name, layer in lora_layers(model).items()}
    merge(model)
    return {name: (layer.base.weight - before[name]).detach().numpy() for name, layer in lora_layers(model).items()}


def random_updates(model, ranks, seed=0):
    """A LowRank of each rank for the layers of these names."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, rank in ranks.items():
        out_features, in_features = model.get_submodule(name).weight.shape
        found[name] = LowRank(rng.normal(size=(out_features, rank)), 0.1 * rng.normal(size=(rank, in_features)))
    return found


def nudge(model, names, rank=None, size=0.1, seed=6):
    """Give a copy of a model with some parameters changed: all numbers, or by a matrix of a rank."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            parameter = tuned.get_parameter(name)
            if rank is None:
                change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            else:
                left = torch.randn(parameter.shape[0], rank, generator=generator, dtype=torch.float64)
                change = left @ torch.randn(rank, parameter.shape[1], generator=generator, dtype=torch.float64)
            parameter += (size * change).to(parameter.dtype)
    return tuned


class TestUpdates:
    def test_left_is_scale_times_B_and_right_is_A(self, toy):
        model = fill_all(attach(toy(), CONFIG))
        found = updates(model)
        assert list(found) == ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj"]
        for name, layer in lora_layers(model).items():
            assert np.array_equal(found[name].left, 1.5 * layer.lora_B.detach().numpy())
            assert np.array_equal(found[name].right, layer.lora_A.detach().numpy())
            assert found[name].shape == (layer.out_features, layer.in_features)

    @pytest.mark.parametrize("options", [{}, {"rslora": True}, {"init": "pissa"}])
    def test_they_are_what_merging_adds(self, toy, options):
        model = fill_all(attach(toy(), LoRAConfig(rank=2, alpha=3, targets=("q_proj", "v_proj"), **options)))
        found = updates(model)
        for name, change in weight_changes(model).items():
            np.testing.assert_allclose(found[name].dense(), change, atol=1e-13)
            assert np.abs(change).max() > 0.01

    def test_of_conv1D_and_embeddings_are_transposed_against_the_weight(self):
        model = fill_all(attach(gpt2(), LoRAConfig(rank=2, alpha=3, targets=("c_attn", "c_fc", "wpe"))))
        found = updates(model)
        assert found["transformer.h.0.attn.c_attn"].shape == (48, 16)
        assert found["transformer.wpe"].shape == (16, 16)
        for name, change in weight_changes(model).items():
            np.testing.assert_allclose(found[name].T.dense(), change, atol=1e-13)

    def test_pissa_is_zero_at_the_start_and_of_rank_2r(self, toy):
        model = attach(toy(), LoRAConfig(rank=2, alpha=3, targets=("q_proj",), init="pissa"))
        update = updates(model)["0.q_proj"]
        assert update.rank == 4
        assert update.norm() < 1e-13
        assert np.linalg.norm(update.left) > 0.1

    def test_are_copies_also_of_float64(self, toy):
        model = fill_all(attach(toy(), CONFIG))
        before = updates(model)["0.q_proj"].right.copy()
        found = updates(model)
        with torch.no_grad():
            lora_layers(model)["0.q_proj"].lora_A.add_(1)
        assert np.array_equal(found["0.q_proj"].right, before)

    def test_of_float32_are_float64_with_the_same_numbers(self, toy):
        model = fill_all(attach(toy(torch.float32), CONFIG))
        update = updates(model)["1.v_proj"]
        assert update.dtype == np.float64
        assert np.array_equal(update.right, lora_layers(model)["1.v_proj"].lora_A.detach().numpy())

    def test_one_of_several_is_asked_for_by_name(self, toy):
        model = fill_all(attach(toy(), CONFIG))
        fill_all(attach(model, LoRAConfig(rank=1, alpha=1, targets=("q_proj",)), name="second"), "second", seed=7)
        with pytest.raises(ValueError, match="name must say which adapter is meant, for the model has default, second"):
            updates(model)
        assert {name: update.rank for name, update in updates(model, "second").items()} == {
            "0.q_proj": 1,
            "1.q_proj": 1,
        }
        assert updates(model, "default")["0.q_proj"].rank == 2
        with pytest.raises(ValueError, match="name must be one of the model's adapters, default, second, got 'third'"):
            updates(model, "third")

    def test_a_shared_update_is_listed_once(self, llama):
        model = attach(llama(tied=True), LoRAConfig(rank=2, targets=("embed_tokens",), tied="share"))
        assert set(lora_layers(model)) == {"model.embed_tokens", "lm_head"}
        assert list(updates(fill_all(model))) == ["model.embed_tokens"]

    def test_dora_convolutions_and_numbers_that_are_not_there_are_refused(self, toy):
        dora = attach(toy(), LoRAConfig(rank=2, targets=("q_proj",), dora=True))
        with pytest.raises(ValueError, match=r"'0\.q_proj' has a DoRA adapter, which stretches every row"):
            updates(dora)
        conv = attach(nn.Sequential(nn.Conv2d(3, 4, 3)), LoRAConfig(rank=2, targets=("0",)))
        with pytest.raises(TypeError, match=r"'0' must have a matrix as its weight, got a .*Conv2d"):
            updates(conv)
        meta = attach(toy().to("meta"), CONFIG)
        with pytest.raises(ValueError, match=r"of '0\.q_proj' is on the meta device"):
            updates(meta)
        broken = fill_all(attach(toy(), CONFIG))
        with torch.no_grad():
            lora_layers(broken)["1.q_proj"].lora_A[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"1\.q_proj: right must be finite"):
            updates(broken)
        with pytest.raises(ValueError, match="model must have LoRA layers"):
            updates(toy())


class TestAttachUpdates:
    def test_is_the_reverse_of_updates(self, llama, tokens):
        theirs = fill_all(attach(llama(), LoRAConfig(rank=3, alpha=5, targets="all-linear", rslora=True)))
        ours = attach_updates(llama(), updates(theirs))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)
            with disabled(ours):
                assert (ours(tokens).logits - theirs(tokens).logits).abs().max() > 0.01
        assert all(layer.scale == 1 for layer in lora_layers(ours).values())

    def test_of_conv1D_and_embeddings_too(self, tokens):
        config = LoRAConfig(rank=2, alpha=3, targets=("c_attn", "c_proj", "wpe"))
        theirs = fill_all(attach(gpt2(), config))
        ours = attach_updates(gpt2(), updates(theirs))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)

    def test_a_pissa_adapter_becomes_a_plain_one(self, toy):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        theirs = fill_all(attach(toy(), LoRAConfig(rank=2, targets=("q_proj", "my_q_proj"), init="pissa")))
        ours = attach_updates(toy(), updates(theirs))
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)

    def test_each_layer_has_its_own_rank_in_one_configuration(self, toy):
        wanted = {"0.q_proj": 1, "0.v_proj": 2, "1.q_proj": 2, "1.my_q_proj": 4}
        model = toy()
        found = random_updates(model, wanted)
        attach_updates(model, found)
        layers = lora_layers(model)
        assert {name: layer.config.rank for name, layer in layers.items()} == wanted
        assert {name: layer.config.alpha for name, layer in layers.items()} == wanted
        config = model._lora_lab.configs["default"]
        assert (config.rank, config.alpha) == (2, 2)
        assert [number for _, number in config.rank_pattern] == [1, 4]
        for name, update in updates(model).items():
            np.testing.assert_allclose(update.dense(), found[name].dense(), atol=1e-13)

    def test_the_configuration_is_one_that_peft_understands(self, llama, tokens, peft_model):
        ranks = {
            "model.layers.0.self_attn.q_proj": 3,
            "model.layers.1.self_attn.q_proj": 2,
            "model.layers.0.mlp.down_proj": 2,
        }
        ours = attach_updates(llama(), random_updates(llama(), ranks))
        config = ours._lora_lab.configs["default"]
        theirs = peft_model(
            llama(), config, rank_pattern=dict(config.rank_pattern), alpha_pattern=dict(config.alpha_pattern)
        )
        assert {name.removeprefix("base_model.model.") for name in peft_layers(theirs)} == set(ranks)
        with torch.no_grad():
            for name, layer in lora_layers(ours).items():
                other = theirs.base_model.model.get_submodule(name)
                other.lora_A["default"].weight.copy_(layer.lora_A)  # fails where PEFT gives it another rank
                other.lora_B["default"].weight.copy_(layer.lora_B)
            torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-12, atol=1e-12)

    def test_an_extracted_adapter_is_saved_and_loaded_by_peft_and_by_us(self, llama, tokens, tmp_path):
        base = llama()
        tuned = nudge(base, ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"], rank=3)
        tuned = nudge(tuned, ["model.layers.1.self_attn.o_proj.weight"], rank=1)
        found = extract(base, tuned, error=1e-6)
        assert sorted(found.ranks.values()) == [1, 3, 3]
        save_adapter(found.attach(llama()), tmp_path, base_model="tiny")
        theirs = peft.PeftModel.from_pretrained(llama(), tmp_path)
        ours = load_adapter(llama(), tmp_path)
        with torch.no_grad():
            for model in (theirs, ours):
                torch.testing.assert_close(model(tokens).logits, tuned(tokens).logits, rtol=1e-5, atol=1e-5)

    def test_a_name_that_ends_another_name_is_that_layer_alone(self):
        """'0' is a layer, and 'nested.0' is another one."""

        class Nested(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_module("0", nn.Linear(4, 4))
                self.nested = nn.ModuleDict({"0": nn.Linear(4, 4), "1": nn.Linear(4, 4)})

        alone = attach_updates(Nested(), random_updates(Nested(), {"0": 2}))
        assert list(lora_layers(alone)) == ["0"]
        both = attach_updates(Nested(), random_updates(Nested(), {"0": 2, "nested.0": 3, "nested.1": 3}))
        assert {name: layer.config.rank for name, layer in lora_layers(both).items()} == {
            "0": 2,
            "nested.0": 3,
            "nested.1": 3,
        }

    def test_a_layer_with_two_names_is_one(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        model.append(model[0])
        attach_updates(model, random_updates(model, {"0": 2}))
        assert model[0] is model[2]
        assert model[0].config.rank == 2

    def test_factors_are_balanced_or_as_they_are_given(self, toy):
        model = toy()
        given = random_updates(model, {"0.q_proj": 2})
        attach_updates(model, given)
        layer = lora_layers(model)["0.q_proj"]
        assert torch.linalg.norm(layer.lora_A).item() == pytest.approx(torch.linalg.norm(layer.lora_B).item())
        gram_A, gram_B = (layer.lora_A @ layer.lora_A.T).detach(), (layer.lora_B.T @ layer.lora_B).detach()
        torch.testing.assert_close(gram_A, gram_B, rtol=1e-12, atol=1e-12)
        model = attach_updates(toy(), given, balanced=False)
        layer = lora_layers(model)["0.q_proj"]
        assert np.array_equal(layer.lora_A.detach().numpy(), given["0.q_proj"].right)
        assert np.array_equal(layer.lora_B.detach().numpy(), given["0.q_proj"].left)

    def test_a_rank_above_the_matrix_is_brought_down_without_loss(self, toy):
        model = toy()
        given = random_updates(model, {"0.q_proj": 9})
        attach_updates(model, given)
        assert lora_layers(model)["0.q_proj"].config.rank == 5
        np.testing.assert_allclose(updates(model)["0.q_proj"].dense(), given["0.q_proj"].dense(), atol=1e-13)

    def test_it_is_an_adapter_beside_others_and_trains(self, toy):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model = fill_all(attach(toy(), CONFIG))
        second = random_updates(toy(), {"0.v_proj": 1, "1.my_q_proj": 3})
        attach_updates(model, second, name="second")
        alone = attach_updates(toy(), second)
        torch.testing.assert_close(model(x), alone(x), rtol=1e-12, atol=1e-12)
        model(x).square().mean().backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert len(trained) == 4
        assert all(".second." in name for name in trained)

    def test_a_shared_update_is_shared_again(self, llama, tokens):
        theirs = fill_all(attach(llama(tied=True), LoRAConfig(rank=2, targets=("embed_tokens",), tied="share")))
        with pytest.raises(ValueError, match="tied"):
            attach_updates(llama(tied=True), updates(theirs))
        ours = attach_updates(llama(tied=True), updates(theirs), tied="share")
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)

    def test_a_base_in_4_bits_takes_them_too(self):
        base = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
        given = random_updates(base, {"2": 3})
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        quantize_linears(base)
        before = base(x)
        attach_updates(base, given)
        change = torch.tanh(base[0](x)).double() @ torch.from_numpy(given["2"].dense()).T
        torch.testing.assert_close((base(x) - before).double(), change, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(updates(base)["2"].dense(), given["2"].dense(), atol=1e-5)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({}, ValueError, "must hold a LowRank for one layer"),
            ([], TypeError, "updates must be a dict from layer names to LowRanks, got a list"),
            ({"0.q_proj": np.ones((5, 6))}, TypeError, r"updates\['0.q_proj'\] must be a LowRank, got a ndarray"),
            ({"q_proj": LowRank(np.ones((5, 1)), np.ones((1, 6)))}, ValueError, "name layers of the model in full"),
            ({"0.q_prj": LowRank(np.ones((5, 1)), np.ones((1, 6)))}, ValueError, "Did you mean '0.q_proj'"),
            ({"0.q_proj": LowRank(np.ones((6, 1)), np.ones((1, 5)))}, ValueError, "must be 5×6 for its layer"),
            ({"0.q_proj": LowRank(np.ones((5, 0)), np.ones((0, 6)))}, ValueError, "rank 0 and changes nothing"),
            ({"0": LowRank(np.ones((5, 1)), np.ones((1, 6)))}, TypeError, "0 must be one of"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_the_model_untouched(self, toy, portrait, given, error, message):
        model = toy()
        before = portrait(model)
        with pytest.raises(error, match=message):
            attach_updates(model, given)
        assert portrait(model) == before


class TestExtract:
    NAMES = ("0.q_proj.weight", "1.my_q_proj.weight")

    def test_gives_the_adapter_back_that_was_folded_in(self, llama, tokens):
        theirs = fill_all(attach(llama(), LoRAConfig(rank=3, alpha=5, targets=("q_proj", "down_proj"))))
        wanted = updates(theirs)
        with torch.no_grad():
            logits = theirs(tokens).logits
        fold(theirs)
        found = extract(llama(), theirs, 3)
        assert found.ranks == dict.fromkeys(wanted, 3)
        assert not found.not_carried
        assert len(found.unchanged) == 10
        for name, update in found.updates.items():
            np.testing.assert_allclose(update.dense(), wanted[name].dense(), atol=1e-13)
        ours = found.attach(llama())
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens).logits, logits, rtol=1e-11, atol=1e-11)

    def test_a_lower_rank_is_the_best_and_the_curve_says_how_good(self, toy):
        base = toy()
        tuned = nudge(base, self.NAMES)
        found = extract(base, tuned, 2)
        for name in ("0.q_proj", "1.my_q_proj"):
            delta = (tuned.get_submodule(name).weight - base.get_submodule(name).weight).detach().numpy()
            s = np.linalg.svd(delta, compute_uv=False)
            curve = [np.linalg.norm(s[rank:]) / np.linalg.norm(s) for rank in range(s.size + 1)]
            np.testing.assert_allclose(found.errors[name], curve, atol=1e-14)
            left_out = np.linalg.norm(delta - found.updates[name].dense()) / np.linalg.norm(delta)
            assert left_out == pytest.approx(curve[2], rel=1e-12)
            weight = base.get_submodule(name).weight.detach().numpy()
            assert found.changes[name] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight))

    @pytest.mark.parametrize("way", [{"error": 0.3}, {"energy": 0.8}, {"budget": 35}, {"noise": 0.1}])
    def test_each_rank_is_that_of_choose_rank(self, toy, way):
        base = toy()
        tuned = nudge(nudge(base, self.NAMES), ["1.v_proj.weight"], rank=1, size=1.0)
        found = extract(base, tuned, **way)
        wanted = {}
        for name in ("0.q_proj", "1.v_proj", "1.my_q_proj"):
            delta = (tuned.get_submodule(name).weight - base.get_submodule(name).weight).detach().numpy()
            wanted[name] = choose_rank(delta, **way)
        assert found.ranks == wanted
        assert len(set(wanted.values())) > 1
        assert {name: update.rank for name, update in found.updates.items()} == {n: r for n, r in wanted.items() if r}
        if "error" in way:
            assert all(found.errors[name][rank] <= 0.3 for name, rank in wanted.items())

    def test_what_it_does_not_carry_is_named_with_its_size(self, llama, tokens):
        base = llama()
        names = [
            "model.layers.0.self_attn.q_proj.weight",
            "model.norm.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
        ]
        tuned = nudge(base, names)
        found = extract(base, tuned, error=0)
        assert set(found.updates) == {"model.layers.0.self_attn.q_proj"}
        assert list(found.not_carried) == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        change = (tuned.lm_head.weight - base.lm_head.weight).norm() / base.lm_head.weight.norm()
        assert found.not_carried["lm_head.weight"] == pytest.approx(change.item())
        largest = max(found.not_carried, key=found.not_carried.get)
        assert f"NOT CARRIED, though they differ (by so much): {largest} (" in str(found)
        with torch.no_grad():
            assert (found.attach(base)(tokens).logits - tuned(tokens).logits).abs().max() > 0.01

    def test_biases_and_buffers_are_among_what_is_not_carried(self):
        base = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
        tuned = nudge(base, ["0.weight", "0.bias"])
        tuned[1].running_mean += 1
        found = extract(base, tuned, 2)
        assert list(found.not_carried) == ["0.bias", "1.running_mean"]
        assert found.not_carried["1.running_mean"] == float("inf")

    def test_layers_that_are_the_same_are_left_out_and_named(self, toy):
        base = toy()
        found = extract(base, nudge(base, ["0.q_proj.weight"]), 1)
        assert found.unchanged == ("0.v_proj", "0.my_q_proj", "1.q_proj", "1.v_proj", "1.my_q_proj")
        assert "the same in both models, and left out: 0.v_proj, 0.my_q_proj" in str(found)
        same = extract(base, copy.deepcopy(base), 1)
        assert (same.updates, same.ranks, len(same.unchanged)) == ({}, {}, 6)
        assert "0 layers" in str(same)
        with pytest.raises(ValueError, match="updates must hold a LowRank for one layer at least"):
            same.attach(base)

    def test_a_layer_of_rank_0_stands_in_the_table_and_not_in_the_updates(self, toy):
        base = toy()
        found = extract(base, nudge(base, self.NAMES), budget=11)
        assert found.ranks == {"0.q_proj": 1, "1.my_q_proj": 0}
        assert list(found.updates) == ["0.q_proj"]
        assert found.errors["1.my_q_proj"][0] == 1

    def test_the_table_shows_rank_error_and_size_of_each_layer(self, toy):
        base = toy()
        head, first, second, total = str(
            extract(base, nudge(base, self.NAMES), 2, targets=("q_proj", "my_q_proj"))
        ).splitlines()[:4]
        assert head.split() == ["layer", "update", "/", "weight", "rank", "error", "numbers"]
        assert first.split()[0] == "0.q_proj"
        assert first.split()[2] == "2"
        assert first.split()[4] == "22"
        assert second.split()[4] == "24"
        assert total == "2 layers: 46 numbers instead of 66"

    def test_weights_that_lie_transposed_and_embeddings(self, tokens):
        base = gpt2(tie_word_embeddings=False)
        names = ["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight", "transformer.wpe.weight"]
        tuned = nudge(base, names, rank=2)
        found = extract(base, tuned, 2, targets=("c_attn", "c_proj", "wte", "wpe"))
        assert found.updates["transformer.h.0.attn.c_attn"].shape == (48, 16)
        assert found.updates["transformer.wte"].shape == (16, 32)
        assert not found.not_carried
        ours = found.attach(gpt2(tie_word_embeddings=False))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens).logits, tuned(tokens).logits, rtol=1e-11, atol=1e-11)

    def test_tied_weights_are_refused_shared_or_said_not_to_be_carried(self, llama, tokens):
        base = llama(tied=True)
        tuned = nudge(base, ["model.embed_tokens.weight"], rank=2)
        with pytest.raises(ValueError, match="is tied"):
            extract(base, tuned, 2, targets=("embed_tokens",))
        shared = extract(base, tuned, 2, targets=("embed_tokens",), tied="share")
        assert list(shared.updates) == ["model.embed_tokens"]
        assert not shared.not_carried
        with torch.no_grad():
            ours = shared.attach(llama(tied=True))
            torch.testing.assert_close(ours(tokens).logits, tuned(tokens).logits, rtol=1e-11, atol=1e-11)
        alone = extract(base, tuned, 2, targets=("embed_tokens",), tied="untie")
        assert list(alone.not_carried) == ["lm_head.weight"]

    def test_a_tie_that_was_cut_while_tuning_is_not_shared(self, llama):
        base = llama(tied=True)
        tuned = nudge(base, ["model.embed_tokens.weight"])
        tuned.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
        with pytest.raises(ValueError, match=r"'lm_head\.weight' and .* are one tensor in base, but differ in tuned"):
            extract(base, tuned, 2, targets=("embed_tokens",), tied="share")

    def test_the_difference_of_half_precision_weights_is_exact(self, toy):
        base = toy(torch.bfloat16)
        tuned = nudge(base, self.NAMES)
        found = extract(base, tuned, error=0)
        delta = tuned[0].q_proj.weight.double() - base[0].q_proj.weight.double()
        np.testing.assert_allclose(found.updates["0.q_proj"].dense(), delta.detach().numpy(), atol=1e-14)

    def test_the_models_are_untouched(self, toy, portrait):
        base = toy()
        tuned = nudge(base, self.NAMES)
        before = portrait(base), portrait(tuned)
        extract(base, tuned, 2)
        assert (portrait(base), portrait(tuned)) == before

    @pytest.mark.parametrize(
        ("ways", "message"),
        [
            ({}, "give exactly one of rank, error, energy, budget and noise, got none"),
            ({"rank": 2, "error": 0.1}, "got rank and error"),
            ({"rank": 0}, "rank must be at least 1, got 0"),
            ({"rank": 6}, r"rank must be at most 5 for '0\.q_proj', whose weight is 5×6, got 6"),
            ({"error": 2.0}, "error must be at most 1"),
        ],
    )
    def test_exactly_one_way_to_a_rank_in_range(self, toy, ways, message):
        base = toy()
        with pytest.raises(ValueError, match=message):
            extract(base, nudge(base, self.NAMES), **ways)

    def test_models_that_do_not_compare_are_refused(self, toy, llama):
        with pytest.raises(ValueError, match=r"must be of one architecture, but only base has '0\.my_q_proj\.bias'"):
            extract(toy(), llama(), 2)
        wider = llama(intermediate_size=28)
        with pytest.raises(ValueError, match=r"gate_proj.weight' is \(24, 16\) in base and \(28, 16\) in tuned"):
            extract(llama(), wider, 2)
        with pytest.raises(ValueError, match=r"tuned must be without adapters, got 4 LoRA layers: fold\(model\)"):
            extract(toy(), attach(toy(), CONFIG), 2)
        with pytest.raises(TypeError, match=r"tuned must be a torch\.nn\.Module, got dict"):
            extract(toy(), {}, 2)
        broken = toy()
        broken[0].q_proj.weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"0\.q_proj\.weight must be finite"):
            extract(toy(), broken, 2)
        four_bits = nn.Sequential(quantize_linears(nn.Sequential(nn.Linear(64, 64)))[0])
        with pytest.raises(TypeError, match="targets: '0' must hold its weight as a parameter"):
            extract(four_bits, copy.deepcopy(four_bits), 2, targets=("0",))
        convolution = nn.Sequential(nn.Conv1d(3, 4, 2))
        with pytest.raises(TypeError, match="targets: '0' must have a matrix as its weight"):
            extract(convolution, nudge(convolution, ["0.weight"]), 1, targets=("0",))


class TestArithmetic:
    """What LowRank does for matrices, seen in the outputs of models."""

    def test_the_sum_of_two_adapters_is_both_at_once(self, llama, tokens):
        model = fill_all(attach(llama(), LoRAConfig(rank=2, alpha=3, targets="all-linear")))
        fill_all(attach(model, LoRAConfig(rank=1, alpha=2, targets="all-linear"), name="second"), "second", seed=9)
        activate(model, {"default": 1.0, "second": -0.5})
        one, two = updates(model, "default"), updates(model, "second")
        summed = attach_updates(llama(), {name: one[name] - 0.5 * two[name] for name in one})
        assert all(layer.config.rank == 3 for layer in lora_layers(summed).values())
        with torch.no_grad():
            torch.testing.assert_close(summed(tokens).logits, model(tokens).logits, rtol=1e-12, atol=1e-12)

    def test_the_sum_of_an_adapter_with_itself_recompresses_to_its_own_rank(self, toy):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model = fill_all(attach(toy(), CONFIG))
        own = updates(model)
        twice = recompress({name: update + update for name, update in own.items()}, error=1e-9)
        assert {update.rank for update in twice.values()} == {2}
        ours = attach_updates(toy(), twice)
        activate(model, {"default": 2.0})
        torch.testing.assert_close(ours(x), model(x), rtol=1e-11, atol=1e-11)

    def test_a_lower_rank_is_the_best_one(self, toy):
        model = fill_all(attach(toy(), LoRAConfig(rank=4, targets=("my_q_proj",))))
        smaller = recompress(model, 2)
        for name, update in updates(model).items():
            U, s, Vt = np.linalg.svd(update.dense())
            np.testing.assert_allclose(smaller[name].dense(), U[:, :2] * s[:2] @ Vt[:2], atol=1e-13)
            assert smaller[name].rank == 2

    def test_the_rank_is_chosen_by_a_tolerance(self, toy):
        model = fill_all(attach(toy(), LoRAConfig(rank=4, targets=("my_q_proj",))))
        for name, update in recompress(model, error=0.5).items():
            whole = updates(model)[name]
            assert update.rank == choose_rank(whole.dense(), error=0.5) < 4
            assert (whole - update).norm() <= 0.5 * whole.norm()

    def test_an_untrained_adapter_has_rank_0(self, toy):
        assert {update.rank for update in recompress(attach(toy(), CONFIG), error=0.1).values()} == {0}

    def test_a_rank_that_is_no_lower_or_no_choice_is_refused(self, toy):
        model = fill_all(attach(toy(), CONFIG))
        with pytest.raises(ValueError, match=r"0\.q_proj: rank must be at most 2 to recompress"):
            recompress(model, 3)
        with pytest.raises(ValueError, match="give exactly one of rank, error"):
            recompress(model)
        with pytest.raises(TypeError, match="must be a dict"):
            recompress(3, 1)


def peft_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
