"""Which layers are adapted: four ways to say it, patterns for rank and alpha, and errors that list near misses."""

import re

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from lora_lab.lora import LoRAConfig, attach, lora_layers

pytestmark = pytest.mark.filterwarnings("ignore")


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def bert():
    return BertForSequenceClassification(
        BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    )


def vit():
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
        )
    )


def adapted(model, targets, **options):
    return set(lora_layers(attach(model, LoRAConfig(2, targets=targets, **options))))


def theirs(model, targets, **options):
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, **options))
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize("pattern", [r".*\.1\.self_attn\.[qk]_proj", r"model\.layers\.[01]\.mlp\.\w+_proj", "lm_head"])
def test_an_expression_matches_whole_names_as_in_peft(pattern, llama):
    names = adapted(llama(), re.compile(pattern))
    assert names
    assert names == theirs(llama(), pattern)


def test_an_expression_that_matches_a_part_alone_is_no_match(llama):
    with pytest.raises(ValueError, match=r"the expression 'q_proj' names no layer of LlamaForCausalLM.*q_proj ×2"):
        attach(llama(), LoRAConfig(2, targets=re.compile("q_proj")))


def test_a_predicate_sees_names_and_layers(llama):
    wide = adapted(llama(), lambda name, layer: isinstance(layer, nn.Linear) and layer.out_features == 24)
    assert wide == {f"model.layers.{i}.mlp.{kind}" for i in (0, 1) for kind in ("gate_proj", "up_proj")}
    with pytest.raises(ValueError, match="the function names no layer"):
        attach(llama(), LoRAConfig(2, targets=lambda name, layer: False))


@pytest.mark.parametrize("build", [gpt2, vit])
def test_all_linear_is_that_of_peft(build):
    assert adapted(build(), "all-linear") == theirs(build(), "all-linear", task_type=None) - {"classifier"}


def test_all_linear_leaves_the_head_out(llama):
    assert "lm_head" not in adapted(llama(), "all-linear")
    names = adapted(bert(), "all-linear")
    assert "classifier" not in names
    assert "bert.encoder.layer.0.attention.self.query" in names
    assert names == theirs(bert(), "all-linear", task_type="SEQ_CLS")


def test_all_linear_of_a_second_adapter_is_the_same(llama):
    model = attach(llama(), LoRAConfig(2, targets=("q_proj",)), name="first")
    attach(model, LoRAConfig(2, targets="all-linear"), name="second")
    names = {name for name, layer in lora_layers(model).items() if "second" in layer.adapters}
    assert names == adapted(llama(), "all-linear")


def test_all_linear_of_a_plain_module_is_every_linear_layer(toy):
    assert len(adapted(toy(), "all-linear")) == 6


def test_kinds_may_be_mixed():
    names = adapted(gpt2(), ("c_attn", "wte", "wpe"), tied="untie")
    assert names == {"transformer.wte", "transformer.wpe", *(f"transformer.h.{i}.attn.c_attn" for i in (0, 1))}
    layers = lora_layers(attach(vit(), LoRAConfig(2, targets=("projection",))))
    assert [type(layer).__name__ for layer in layers.values()] == ["LoRAConv2d"]


class TestPatterns:
    def test_give_layers_their_own_rank_and_alpha_as_in_peft(self, llama):
        patterns = {"rank_pattern": {"q_proj": 3, r"1\.self_attn\.k_proj": 1}, "alpha_pattern": {"k_proj": 7.5}}
        model = attach(llama(), LoRAConfig(2, 4, ("q_proj", "k_proj"), **patterns))
        other = peft.get_peft_model(
            llama(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"], **patterns)
        )
        scales = {}
        for name, layer in lora_layers(model).items():
            twin = other.base_model.model.get_submodule(name)
            assert layer.lora_A.shape == twin.lora_A["default"].weight.shape
            assert layer.scale == twin.scaling["default"]
            scales[name.split("layers.")[1]] = (layer.config.rank, layer.config.alpha)
        assert scales == {
            "0.self_attn.q_proj": (3, 4),
            "0.self_attn.k_proj": (2, 7.5),
            "1.self_attn.q_proj": (3, 4),
            "1.self_attn.k_proj": (1, 7.5),
        }

    def test_the_first_that_matches_counts(self, toy):
        model = attach(toy(), LoRAConfig(2, rank_pattern={r"0\.q_proj": 1, "q_proj": 3}))
        assert [layer.config.rank for layer in lora_layers(model).values()] == [1, 2, 3, 2]

    def test_must_match_a_layer(self, toy, portrait):
        model = toy()
        before = portrait(model)
        for field in ("rank_pattern", "alpha_pattern"):
            with pytest.raises(ValueError, match=rf"{field}: 'q_prj' matches no adapted layer. Did you mean 'q_proj'"):
                attach(model, LoRAConfig(2, **{field: {"q_prj": 1}}))
        assert portrait(model) == before

    def test_must_match_a_layer_that_is_adapted(self, toy, portrait):
        model = toy()
        before = portrait(model)
        for pattern, hint in (("my_q_proj", "Did you mean 'q_proj'"), ("zzz", "There are q_proj ×2, v_proj ×2")):
            with pytest.raises(ValueError, match=f"rank_pattern: '{pattern}' matches no adapted layer.*{hint}"):
                attach(model, LoRAConfig(2, rank_pattern={pattern: 1}))
        assert portrait(model) == before

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            ({"q": 0}, ValueError),
            ({"q": 1.5}, TypeError),
            ({"q": True}, TypeError),
            ({"(": 1}, ValueError),
            ({1: 1}, ValueError),
            ([("q", 1)], TypeError),
            ("q", TypeError),
        ],
    )
    def test_are_checked(self, value, error):
        with pytest.raises(error, match="rank_pattern"):
            LoRAConfig(rank_pattern=value)

    def test_a_configuration_with_patterns_is_a_key(self):
        one, other = (LoRAConfig(rank_pattern={"q": 1}, alpha_pattern={"v": 2.0}) for _ in range(2))
        assert len({one, other, LoRAConfig()}) == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"targets": re.compile(b"q")}, TypeError, "targets must be a regular expression of text"),
        ({"targets": nn.Linear}, TypeError, "targets must be a tuple"),
        ({"targets": "all_linear"}, TypeError, r"targets must be a tuple.* or 'all-linear', .*write \('all_linear',\)"),
        ({"init": "zeros"}, ValueError, "init must be one of kaiming, gaussian, pissa, got 'zeros'"),
        ({"init": True}, ValueError, "init must be one of"),
        ({"bias": "some"}, ValueError, "bias must be one of none, all, lora_only"),
        ({"tied": None}, ValueError, "tied must be one of refuse, untie, share"),
        ({"dora": 1}, TypeError, "dora must be True or False"),
        ({"dora": True, "init": "pissa"}, ValueError, "choose one of the two"),
        ({"tied": "share", "dora": True}, ValueError, "plain LoRA alone"),
        ({"modules_to_save": "score"}, TypeError, r"write \('score',\)"),
    ],
)
def test_a_configuration_refuses(options, error, match):
    with pytest.raises(error, match=match):
        LoRAConfig(**options)


def test_printing_a_configuration_says_what_is_not_usual():
    assert repr(LoRAConfig()) == "LoRAConfig(rank=8, alpha=16, targets=('q_proj', 'v_proj'))"
    assert repr(LoRAConfig(dora=True)).endswith("('q_proj', 'v_proj'), dora=True)")


def test_the_head_is_a_target_when_it_is_named(llama):
    assert adapted(llama(), ("lm_head",)) == {"lm_head"}
    assert torch.is_tensor(lora_layers(attach(bert(), LoRAConfig(2, targets=("classifier",))))["classifier"].lora_A)
