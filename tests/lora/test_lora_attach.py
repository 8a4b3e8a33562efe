import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lora_lab.lora import (
    FullConfig,
    LoRAConfig,
    LoRALinear,
    attach,
    detach,
    disabled,
    load_adapter,
    lora_layers,
    merge,
)

TOY = LoRAConfig(rank=2, alpha=3)
LLAMA = LoRAConfig(rank=2, alpha=3, targets=("q_proj", "v_proj", "down_proj"))

FACTORS = ("adapters.default.lora_A", "adapters.default.lora_B")


class TestWhatIsAttached:
    def test_wraps_the_targets_in_place_and_gives_the_model(self, toy):
        model = toy()
        bases = {name: model.get_submodule(name) for name in ("0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj")}
        assert attach(model, TOY) is model
        assert {name: layer.base for name, layer in lora_layers(model).items()} == bases
        assert type(model[0].my_q_proj) is nn.Linear

    def test_freezes_all_but_the_factors(self, toy):
        model = attach(toy(), TOY)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {f"{name}.{factor}" for name in lora_layers(model) for factor in FACTORS}

    def test_changes_no_bit_of_the_output(self, llama, tokens):
        model = llama(torch.float32)
        before = model(tokens).logits
        assert torch.equal(attach(model, LLAMA)(tokens).logits, before)

    @pytest.mark.parametrize(
        "targets",
        [
            ("q_proj",),
            ("self_attn.q_proj",),
            ("layers.1.self_attn.q_proj",),
            ("1.self_attn.q_proj", "up_proj"),
            ("model.layers.0.mlp.down_proj",),
            ("lm_head", "o_proj"),
        ],
    )
    def test_targets_are_those_of_peft(self, targets, llama, peft_model):
        config = LoRAConfig(rank=2, targets=targets)
        theirs = peft_model(llama(), config).base_model.model
        expected = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
        assert list(lora_layers(attach(llama(), config))) == expected

    def test_a_target_is_compared_in_whole_components(self, toy):
        assert list(lora_layers(attach(toy(), LoRAConfig(2, targets=("q_proj",))))) == ["0.q_proj", "1.q_proj"]
        assert list(lora_layers(attach(toy(), LoRAConfig(2, targets=("0.q_proj",))))) == ["0.q_proj"]

    def test_containers(self):
        model = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(4, 4)]), "chain": nn.Sequential(nn.Linear(4, 4))})
        assert list(lora_layers(attach(model, LoRAConfig(2, targets=("0",))))) == ["list.0", "chain.0"]
        assert isinstance(model["list"][0], LoRALinear)
        assert isinstance(model["chain"][0], LoRALinear)

    def test_keeps_training_mode(self, toy):
        config = LoRAConfig(2, dropout=0.5)
        for mode in (True, False):
            model = attach(toy().train(mode), config)
            assert {module.training for module in model.modules()} == {mode}


class TestNumbers:
    @pytest.mark.parametrize("rslora", [False, True])
    def test_logits_and_gradients_are_those_of_peft(self, rslora, llama, tokens, twin, fill):
        config = LoRAConfig(rank=2, alpha=3, targets=LLAMA.targets, rslora=rslora)
        ours = fill(attach(llama(), config))
        theirs = twin(llama(), ours, config)
        for model in (ours, theirs):
            model(tokens, labels=tokens).loss.backward()
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)
        for name, layer in lora_layers(ours).items():
            other = theirs.base_model.model.get_submodule(name)
            assert layer.lora_A.grad.abs().max() > 0
            torch.testing.assert_close(layer.lora_A.grad, other.lora_A["default"].weight.grad, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(layer.lora_B.grad, other.lora_B["default"].weight.grad, rtol=1e-12, atol=1e-12)

    def test_training_is_that_of_peft(self, llama, tokens, twin, fill):
        ours = fill(attach(llama(), LLAMA))
        theirs = twin(llama(), ours, LLAMA)
        for model in (ours, theirs):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
            for _ in range(5):
                optimizer.zero_grad()
                model(tokens, labels=tokens).loss.backward()
                optimizer.step()
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-9, atol=1e-9)

    def test_base_bits_are_the_same_after_training_with_weight_decay(self, llama, tokens, bits):
        model = attach(llama(torch.bfloat16), LLAMA)
        before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
        after = {name: bits(tensor) for name, tensor in model.state_dict().items()}
        factors = {name for name in after if "lora_" in name}
        assert {name for name in after if after[name] != before[name]} == factors
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in factors)

    def test_the_generator_alone_decides_what_is_drawn(self, toy):
        def factors(**options):
            return [layer.lora_A for layer in lora_layers(attach(toy(), TOY, **options)).values()]

        first = factors(generator=torch.Generator().manual_seed(7))
        torch.manual_seed(99)
        again = factors(generator=torch.Generator().manual_seed(7))
        other = factors(generator=torch.Generator().manual_seed(8))
        assert all(map(torch.equal, first, again))
        assert not any(map(torch.equal, first, other))
        assert all(map(torch.equal, factors(), factors()))
        for drawn in (first, factors()):
            assert len({tuple(A.flatten().tolist()) for A in drawn}) == 4

    def test_factors_are_drawn_on_the_generators_device_and_live_on_the_bases(self, toy):
        expected = [layer.lora_A for layer in lora_layers(attach(toy(), TOY)).values()]
        model = toy()
        with torch.device("meta"):  # a default device that is not the base's
            attach(model, TOY)
        assert all(map(torch.equal, [layer.lora_A for layer in lora_layers(model).values()], expected))

    def test_meta_device(self, llama):
        with torch.device("meta"):
            model = attach(llama(), LLAMA)
            assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
            assert model(torch.zeros(2, 7, dtype=torch.long)).logits.shape == (2, 7, 32)
        detach(model)
        assert not lora_layers(model)

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing(self, reentrant, llama, tokens, fill):
        model = fill(attach(llama(), LLAMA)).train()
        model(tokens, labels=tokens).loss.backward()
        expected = [layer.lora_B.grad for layer in lora_layers(model).values()]
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        model(tokens, labels=tokens).loss.backward()
        for layer, gradient in zip(lora_layers(model).values(), expected, strict=True):
            torch.testing.assert_close(layer.lora_B.grad, gradient, rtol=1e-12, atol=1e-12)

    def test_generates(self, llama, tokens, fill):
        model = fill(attach(llama(), LLAMA))
        with_adapter = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
        with disabled(model):
            without = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert torch.equal(without, llama().generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0))
        assert not torch.equal(with_adapter, without)


class TestRefusals:
    @pytest.fixture
    def refuses(self, portrait):
        """Check that attaching raises what it should and changes nothing."""

        def check(model, config, error, match):
            before = portrait(model)
            with pytest.raises(error, match=match):
                attach(model, config)
            assert portrait(model) == before

        return check

    def test_a_target_without_a_match_lists_near_misses(self, refuses, llama):
        refuses(llama(), LoRAConfig(2, targets=("q_prj",)), ValueError, r"'q_prj' .* LlamaForCausalLM.*mean 'q_proj'")
        refuses(llama(), LoRAConfig(2, targets=("c_attn",)), ValueError, r"q_proj ×2, k_proj ×2, .*lm_head ×1")
        refuses(llama(), LoRAConfig(2, targets=("self_atn.q_proj",)), ValueError, "'self_atn.q_proj' names no layer")
        refuses(nn.Sequential(nn.ReLU()), LoRAConfig(2, targets=("q",)), ValueError, "layers: none")

    def test_every_target_must_match(self, refuses, toy):
        refuses(toy(), LoRAConfig(2, targets=("q_proj", "x_proj")), ValueError, "'x_proj'")
        refuses(toy(), LoRAConfig(2, targets=("proj",)), ValueError, "'proj'")

    def test_a_target_that_is_no_linear(self, refuses, llama):
        refuses(llama(), LoRAConfig(2, targets=("q_proj", "self_attn")), TypeError, "got .*LlamaAttention")
        refuses(nn.Sequential(nn.Bilinear(4, 4, 4)), LoRAConfig(2, targets=("0",)), TypeError, "got .*Bilinear")

    def test_a_linear_that_is_read_without_being_called(self, refuses):
        model = nn.TransformerEncoderLayer(16, 2, 32)
        refuses(model, LoRAConfig(2, targets=("out_proj",)), TypeError, "got .*NonDynamicallyQuantizableLinear")

    def test_a_rank_that_does_not_fit_one_of_the_layers(self, refuses, toy, llama):
        refuses(toy(), LoRAConfig(6), ValueError, r"= 5 for '0\.q_proj', got 6")
        refuses(llama(), LoRAConfig(9), ValueError, r"= 8 for 'model\.layers\.0\.self_attn\.v_proj', got 9")

    def test_attaching_twice(self, refuses, toy):
        refuses(attach(toy(), TOY), TOY, ValueError, "name must be new, got 'default'.*detach")

    def test_what_is_no_model(self, refuses):
        refuses(nn.Linear(4, 4), TOY, TypeError, r"wrap it with LoRALinear\(layer, config\)")
        with pytest.raises(TypeError, match=r"model must be .*Module, got str"):
            attach("model", TOY)

    def test_what_is_no_config_or_generator(self, toy):
        with pytest.raises(TypeError, match=r"config must be a LoRAConfig, .* got dict"):
            attach(toy(), {"rank": 8})
        with pytest.raises(TypeError, match=r"generator must be .*, got 0"):
            attach(toy(), TOY, generator=0)

    @pytest.mark.parametrize("meta", [False, True])
    def test_a_tied_weight(self, refuses, llama, meta):
        with torch.device("meta" if meta else "cpu"):
            model = llama(tied=True)
        match = r"tied, one tensor is model\.embed_tokens\.weight and lm_head\.weight"
        refuses(model, LoRAConfig(2, targets=("q_proj", "lm_head")), ValueError, match)
        assert len(lora_layers(attach(model, LoRAConfig(2, targets=("q_proj",))))) == 2

    def test_a_weight_tied_by_its_memory(self, refuses, toy):
        model = toy()
        model[1].q_proj.weight.data = model[0].q_proj.weight.data
        refuses(model, LoRAConfig(2, targets=("q_proj",)), ValueError, r"0\.q_proj\.weight and 1\.q_proj\.weight")

    def test_two_names_of_one_layer_of_which_one_is_a_target(self, refuses, toy):
        model = toy()
        model[1].k_proj = model[0].q_proj
        refuses(model, LoRAConfig(2, targets=("q_proj",)), ValueError, r"'0\.q_proj' and '1\.k_proj' are one layer")

    @pytest.mark.parametrize("verb", [detach, merge, lambda model: disabled(model).__enter__()])
    def test_verbs_need_an_attached_model(self, verb, toy):
        with pytest.raises(ValueError, match="model must"):
            verb(toy())


class TestSharedLayers:
    def test_one_layer_under_two_target_names_is_wrapped_once(self, toy):
        model = toy()
        model[1].q_proj = model[0].q_proj
        base = model[0].q_proj
        attach(model, LoRAConfig(2, targets=("q_proj",)))
        assert model[0].q_proj is model[1].q_proj
        assert list(lora_layers(model)) == ["0.q_proj"]
        detach(model)
        assert model[0].q_proj is model[1].q_proj is base

    def test_a_layer_inside_a_shared_block(self, toy):
        block = toy()[0]
        model = attach(nn.Sequential(block, block), TOY)
        assert list(lora_layers(model)) == ["0.q_proj", "0.v_proj"]
        assert detach(model) is None
        assert model[0] is model[1] is block


class TestDetach:
    def test_gives_back_the_very_model(self, llama, portrait, fill):
        model = llama(tied=True)
        model.model.embed_tokens.weight.requires_grad_(False)
        model.model.layers[1].self_attn.q_proj.weight.requires_grad_(False)
        before = portrait(model)
        detach(fill(attach(model, LLAMA)))
        assert portrait(model) == before

    def test_gives_back_the_flags_that_were_changed_meanwhile(self, toy):
        model = attach(toy(), TOY)
        model[0].my_q_proj.requires_grad_(True)
        model[0].q_proj.base.requires_grad_(True)
        detach(model)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_then_attach_again(self, toy):
        model = attach(toy(), TOY)
        detach(model)
        assert len(lora_layers(attach(model, LoRAConfig(1)))) == 4
        detach(model)
        assert not lora_layers(model)

    def test_twice_is_an_error(self, toy):
        model = attach(toy(), TOY)
        detach(model)
        with pytest.raises(ValueError, match="attach"):
            detach(model)

    def test_of_a_part_is_an_error(self, toy):
        model = attach(toy(), TOY)
        with pytest.raises(ValueError, match="the one that attach"):
            detach(model[0])
        assert len(lora_layers(model)) == 4

    def test_while_merged_is_an_error(self, toy):
        model = attach(toy(), TOY)
        merge(model)
        with pytest.raises(ValueError, match="call unmerge"):
            detach(model)
        assert len(lora_layers(model)) == 4


class TestDisabled:
    def test_is_the_base_inside_and_the_adapter_outside(self, llama, tokens, fill):
        model = fill(attach(llama(), LLAMA))
        adapted, base = model(tokens).logits, llama()(tokens).logits
        with disabled(model):
            assert torch.equal(model(tokens).logits, base)
        assert torch.equal(model(tokens).logits, adapted)
        assert not torch.equal(adapted, base)

    def test_nests(self, toy, fill):
        model, x = fill(attach(toy(), TOY)), torch.ones(6, dtype=torch.float64)
        adapted, base = model(x), toy()(x)
        with disabled(model):
            with disabled(model[0]):
                assert torch.equal(model(x), base)
            assert torch.equal(model(x), base)
        assert torch.equal(model(x), adapted)

    def test_ends_when_the_block_raises(self, toy):
        model = attach(toy(), TOY)
        with pytest.raises(RuntimeError, match="inside"), disabled(model):
            raise RuntimeError("inside")
        assert all(layer.enabled for layer in lora_layers(model).values())

    def test_of_a_merged_model_is_an_error(self, toy):
        model = attach(toy(), TOY)
        merge(model)
        with pytest.raises(ValueError, match="call unmerge"), disabled(model):
            pass


class TestCopies:
    @staticmethod
    def saved(model):
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_compute_the_same_and_detach(self, way, toy, fill):
        ways = {
            "deepcopy": copy.deepcopy,
            "pickle": lambda model: pickle.loads(pickle.dumps(model)),
            "torch.save": self.saved,
        }
        model, x = fill(attach(toy(), TOY)), torch.ones(6, dtype=torch.float64)
        other = ways[way](model)
        assert torch.equal(other(x), model(x))
        detach(other)
        assert torch.equal(other(x), toy()(x))
        assert all(parameter.requires_grad for parameter in other.parameters())
        assert len(lora_layers(model)) == 4

    def test_state_dict_round_trip(self, llama, tokens, fill):
        model = fill(attach(llama(), LLAMA))
        other = attach(llama(), LLAMA, generator=torch.Generator().manual_seed(5))
        assert other.load_state_dict(model.state_dict()) == ([], [])
        assert torch.equal(other(tokens).logits, model(tokens).logits)

    def test_loading_needs_a_folder(self, toy, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_adapter(toy(), tmp_path / "none")


@pytest.mark.parametrize(
    "options", [{}, {"dora": True}, {"init": "pissa"}, {"bias": "all", "modules_to_save": ("q_proj",)}]
)
def test_what_is_attached_in_inference_mode_trains(options, toy):
    targets = ("my_q_proj",) if "modules_to_save" in options else ("q_proj", "v_proj")
    model = toy()
    with torch.inference_mode():
        attach(model, LoRAConfig(2, targets=targets, **options))
    x = torch.ones(2, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    before = model(x)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize("config", [TOY, LoRAConfig(2, init="pissa"), FullConfig()], ids=lambda config: repr(config))
def test_a_generator_is_a_generator(config, toy, portrait):
    model = toy()
    before = portrait(model)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got 3"):
        attach(model, config, generator=3)
    assert portrait(model) == before
