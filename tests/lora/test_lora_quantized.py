"""A base in 4 bits: the levels are those of the paper, the rounding is to the nearest, and LoRA learns on top."""

import copy

import pytest
import torch
from torch import nn

from lora_lab.lora import (
    LoRAConfig,
    QuantizedLinear,
    attach,
    dequantize,
    detach,
    disabled,
    lora_layers,
    merge,
    nf4_levels,
    quantize,
    quantize_linears,
)

# Dettmers et al. (2023), appendix E.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_levels_are_those_of_the_paper():
    torch.testing.assert_close(nf4_levels(), torch.tensor(NF4), rtol=0, atol=2e-7)


@pytest.mark.parametrize("shape", [(64,), (5, 7), (3, 64), (130, 33), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_number_becomes_the_nearest_level_of_its_block(shape, dtype):
    weight = draw(*shape, dtype=dtype)
    quantized = quantize(weight)
    back = dequantize(quantized)
    assert (back.shape, back.dtype) == (weight.shape, dtype)
    for block, got in zip(weight.float().flatten().split(64), back.double().flatten().split(64), strict=True):
        choices = torch.tensor(NF4).double() * block.abs().max()  # (16,)
        nearest = choices[(block.double()[:, None] - choices).abs().argmin(dim=1)]
        torch.testing.assert_close(got, nearest, rtol=4e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_levels_themselves_come_back():
    weight = torch.cat([3 * nf4_levels(), torch.zeros(48)])
    torch.testing.assert_close(dequantize(quantize(weight)), weight, rtol=1e-6, atol=0)
    assert not dequantize(quantize(torch.zeros(64))).any()


def test_normal_numbers_lose_less_than_with_even_levels():
    weight = draw(1024, 64)
    sizes = weight.abs().amax(dim=1, keepdim=True)
    even = (weight / sizes * 7.5 - 0.5).round().clamp(-8, 7).add(0.5) / 7.5 * sizes  # 16 levels from -1 to 1
    ours, theirs = ((other - weight).norm() / weight.norm() for other in (dequantize(quantize(weight)), even))
    assert ours < 0.97 * theirs
    assert ours < 0.1


def test_takes_four_and_a_half_bits_a_number():
    quantized = quantize(draw(128, 64))
    assert 8 * quantized.nbytes == 4.5 * 128 * 64


@pytest.mark.parametrize(
    ("weight", "options", "error", "match"),
    [
        (torch.ones(4, dtype=torch.int64), {}, TypeError, "floating type, got torch.int64"),
        ([1.0], {}, TypeError, "floating type"),
        (torch.tensor([1.0, torch.nan]), {}, ValueError, "NaN"),
        (torch.tensor([1.0, torch.inf]), {}, ValueError, "infinity"),
        (torch.zeros(0), {}, ValueError, "nothing"),
        (torch.zeros(4), {"block": 0}, ValueError, "block must be at least 1, got 0"),
    ],
)
def test_refuses(weight, options, error, match):
    with pytest.raises(error, match=match):
        quantize(weight, **options)


class TestLayer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_computes_with_the_rounded_weight(self, dtype):
        linear, x = nn.Linear(70, 5, dtype=dtype), draw(2, 3, 70, dtype=dtype)
        layer = QuantizedLinear(linear)
        expected = x @ dequantize(quantize(linear.weight)).T + linear.bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
        assert layer(x).dtype == dtype
        assert not list(layer.parameters(recurse=False))[1:]  # the bias alone

    def test_state_dict_and_copies(self):
        layer, other, x = QuantizedLinear(nn.Linear(70, 5)), QuantizedLinear(nn.Linear(70, 5)), draw(4, 70)
        assert not torch.allclose(layer(x), other(x))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), other(x))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))

    def test_is_made_of_a_plain_linear_layer(self):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Linear itself, got .*Embedding"):
            QuantizedLinear(nn.Embedding(3, 4))

    def test_says_its_bits(self):
        assert "in_features=128, out_features=64, 4.5 bits a weight" in repr(QuantizedLinear(nn.Linear(128, 64)))


class TestModel:
    @pytest.fixture
    def model(self, llama):
        return quantize_linears(llama(torch.float32))

    def test_all_linear_layers_but_the_head(self, model):
        kinds = {name: type(module) for name, module in model.named_modules()}
        assert sum(kind is QuantizedLinear for kind in kinds.values()) == 14
        assert kinds["lm_head"] is nn.Linear

    def test_lora_changes_nothing_at_step_0_and_learns(self, model, tokens):
        expected = model(tokens).logits
        attach(model, LoRAConfig(2, targets=("q_proj", "v_proj")))
        assert len(lora_layers(model)) == 4
        assert torch.equal(model(tokens).logits, expected)
        codes = {name: buffer.clone() for name, buffer in model.named_buffers() if "codes" in name}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1
        assert all(torch.equal(buffer, codes[name]) for name, buffer in model.named_buffers() if name in codes)
        with disabled(model):
            assert torch.equal(model(tokens).logits, expected)

    @pytest.mark.parametrize("variant", [{"dora": True}, {"rslora": True}])
    def test_variants(self, variant, model, tokens):
        expected = model(tokens).logits
        attach(model, LoRAConfig(2, **variant))
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)
        detach(model)
        assert torch.equal(model(tokens).logits, expected)

    def test_pissa_needs_the_weight_itself(self, model):
        with pytest.raises(TypeError, match="init='pissa' is for linear layers"):
            attach(model, LoRAConfig(2, init="pissa"))

    def test_cannot_be_merged_and_says_what_to_do(self, model):
        attach(model, LoRAConfig(2))
        with pytest.raises(ValueError, match="is a QuantizedLinear; save the adapter, load it onto the base in full"):
            merge(model)

    def test_refuses_other_layers(self, llama, portrait):
        model = llama(torch.float32)
        before = portrait(model)
        with pytest.raises(TypeError, match=r"embed_tokens is a .*Embedding"):
            quantize_linears(model, ("q_proj", "embed_tokens"))
        with pytest.raises(ValueError, match="names no layer"):
            quantize_linears(model, ("q_prj",))
        assert portrait(model) == before

    def test_refuses_a_model_with_adapters(self, llama, portrait):
        model = attach(llama(torch.float32), LoRAConfig(2))
        before = portrait(model)
        with pytest.raises(ValueError, match=r"no adapters yet, but 'model\.layers\.0\.self_attn\.q_proj' has one"):
            quantize_linears(model, ("k_proj",))
        assert portrait(model) == before


@pytest.mark.parametrize(("block", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError), ("64", TypeError)])
def test_a_block_is_a_whole_number_from_1(block, error):
    with pytest.raises(error, match="block must be"):
        quantize(torch.ones(4), block=block)
