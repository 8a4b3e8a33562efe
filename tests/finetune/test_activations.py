"""Norms and gated layers that keep less: the same numbers and gradients, less memory, and nothing changed for good."""

import contextlib
import copy
from types import MethodType

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lora_lab.finetune import Encoded, Settings, answer_loss, collate, train
from lora_lab.finetune.activations import keep_less
from lora_lab.lora import LoRAConfig, account, attach, quantize_linears
from lora_lab.lora.targets import plain
from tests.finetune.conftest import tiny_lora, tiny_model

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 200, (length,), generator=generator).tolist() for length in (9, 14, 20)]
    return collate([Encoded(tuple(row), len(row) - 4) for row in rows])


def opened(model):
    """Let the factors B be other than zero, so that every gradient is."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) / 10
    return model


def passed(model):
    """Give the loss of a batch and the gradients of what trains."""
    model.zero_grad()
    loss = answer_loss(model, batch())
    loss.backward()
    learning = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.detach(), {name: gradient.clone() for name, gradient in learning.items()}


@pytest.mark.parametrize("targets", [("q_proj",), ("gate_proj", "down_proj"), "all-linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same(targets, dtype):
    model = opened(attach(tiny_model().to(dtype), LoRAConfig(rank=4, targets=targets)))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = torch.linspace(0.5, 2, 32, dtype=dtype)
    loss, gradients = passed(model)
    with keep_less(model) as count:
        loss_too, gradients_too = passed(model)
    assert count == 2 * 3 + 1
    assert loss_too == loss
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for name, gradient in gradients.items():
        assert gradient.any()
        torch.testing.assert_close(gradients_too[name], gradient, **close)


def test_the_gradient_of_a_norm_is_that_of_its_formula():
    model = tiny_model()
    norm = model.model.norm.requires_grad_(False)
    norm.weight.data = torch.linspace(-1, 2, 32)
    x = (3 * torch.randn(4, 5, 32)).requires_grad_()
    upstream = torch.randn(4, 5, 32)
    exact = x.detach().double().requires_grad_()
    scaled = norm.weight.double() * exact / (exact.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    (expected,) = torch.autograd.grad(scaled, exact, upstream.double())
    with keep_less(norm) as count:
        (found,) = torch.autograd.grad(norm(x), x, upstream)
    assert count == 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def kept(model):
    """Give the bytes that a forward pass keeps beside the weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(input_ids=batch().input_ids, use_cache=False)
    return sum(storage.nbytes() for place, storage in held.items() if place not in own)


def test_half_of_a_norm_and_a_third_of_a_gated_layer_is_kept_no_longer():
    model = attach(tiny_model().to(torch.bfloat16), LoRAConfig(rank=2, targets=("q_proj", "k_proj")))
    whole = kept(model)
    places = batch().input_ids.numel()
    norms = 4 * places * 32 * 2  # a number of the input in bfloat16 in place of float32; the first has no gradient
    with keep_less(model):
        assert whole - kept(model) == norms + 2 * places * 48 * 2
        by_account = account(model, batch=3, tokens=20).costs.activations
    assert account(model, batch=3, tokens=20).costs.activations - by_account == norms + 2 * places * 48 * 2


def test_a_run_ends_at_the_weights_of_a_plain_one(monkeypatch):
    examples = [Encoded(tuple(range(3 + i, 15 + i)), 8) for i in range(12)]
    settings = Settings(epochs=3, batch_size=4, learning_rate=1e-2)
    model, other = tiny_lora(), tiny_lora()
    seen = []
    norm = model.model.norm
    train(model, examples, settings, watch=lambda _: seen.append("forward" in vars(norm)), progress=False)
    assert all(seen)
    assert "forward" not in vars(norm)
    monkeypatch.setattr("lora_lab.finetune.training.keep_less", lambda model: contextlib.nullcontext(0))
    train(other, examples, settings, progress=False)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def adapted(model):
    return attach(model, LoRAConfig(rank=2, targets="all-linear"))


def test_whatever_is_written_like_llama_is_served():
    with keep_less(adapted(MistralForCausalLM(MistralConfig(**SIZES)))) as count:
        assert count == 2 * 3 + 1
    with keep_less(adapted(Qwen3ForCausalLM(Qwen3Config(**SIZES)))) as count:
        assert count == 2 * 5 + 1  # the norms of queries and keys too
    with keep_less(adapted(Gemma2ForCausalLM(Gemma2Config(**SIZES)))) as count:
        assert count == 2  # its gated layers; its norms multiply by 1 + weight
    with keep_less(adapted(GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4)))) as count:
        assert count == 0


@pytest.mark.parametrize("targets", [("q_proj",), ("gate_proj",)])
def test_gated_layers_of_codes_are_served(targets):
    model = opened(attach(quantize_linears(tiny_model()), LoRAConfig(rank=2, targets=targets)))
    assert not list(plain(model.model.layers[0].mlp.gate_proj).parameters())
    loss, gradients = passed(model)
    with keep_less(model) as count:
        assert count == 2 * 3 + 1
        loss_too, gradients_too = passed(model)
    assert loss_too == loss
    torch.testing.assert_close(gradients_too, gradients, rtol=1e-4, atol=1e-6)


def test_layers_whose_weights_cannot_be_told_are_left_alone():
    model = attach(tiny_model(), LoRAConfig(rank=2, targets=("q_proj",)))
    for layer in model.model.layers:
        layer.mlp.gate_proj = nn.Identity()
    with keep_less(model) as count:
        assert count == 2 * 2 + 1


def test_what_trains_or_draws_otherwise_or_is_replaced_is_left_alone():
    model = attach(tiny_model(), LoRAConfig(rank=2, targets=("q_proj",)))
    first, second = (layer.mlp for layer in model.model.layers)
    model.model.norm.weight.requires_grad_(True)
    model.model.layers[0].input_layernorm.forward = MethodType(lambda self, x: 2 * x, model.model.norm)
    first.act_fn = nn.PReLU()
    own = type(second).forward
    second.dropout = nn.Dropout(0.5)
    second.__class__ = type("Noisy", (type(second),), {"forward": lambda self, x: self.dropout(own(self, x))})
    state = torch.get_rng_state()
    with keep_less(model) as count:
        assert count == 3
        assert "forward" not in {*vars(model.model.norm), *vars(first), *vars(second)}
    assert torch.get_rng_state().equal(state)
    assert "forward" in vars(model.model.layers[0].input_layernorm)


def _clamped(self, x):
    return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))


def _two_results(self, x):
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)), None


def _twice_as_wide(self, x):
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)).double()


@pytest.mark.parametrize("forward", [_clamped, _two_results, _twice_as_wide])
def test_gated_layers_that_do_otherwise_are_left_alone(forward):
    model = attach(tiny_model(), LoRAConfig(rank=2, targets=("q_proj",)))
    for layer in model.model.layers:
        layer.mlp.__class__ = type("Other", (type(layer.mlp),), {"forward": forward})
    with keep_less(model) as count:
        assert count == 2 * 2 + 1


def test_a_norm_with_more_than_a_weight_is_left_alone():
    model = attach(tiny_model(), LoRAConfig(rank=2, targets=("q_proj",)))
    model.model.norm.bias = nn.Parameter(torch.zeros(64))
    with keep_less(model) as count:
        assert count == 2 * 3


def test_a_model_whose_norms_have_gates_learns():
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1, "chunk_size": 8}
    model = Mamba2ForCausalLM(Mamba2Config(vocab_size=259, num_hidden_layers=2, **sizes))
    attach(model, LoRAConfig(rank=2, targets="all-linear"))
    history = train(model, [Encoded((5, 6, 7, 8), 2)] * 4, Settings(epochs=2, batch_size=2), progress=False)
    assert len(history.losses) == 4


def test_an_error_in_between_and_a_copy_leave_the_model_as_it_was():
    def lose(model):
        with keep_less(model):
            twins.append(copy.deepcopy(model))
            raise RuntimeError("lost")

    model, twins = tiny_lora(), []
    with pytest.raises(RuntimeError, match="lost"):
        lose(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert twins[0].model.norm.forward.__self__ is twins[0].model.norm
