import copy
import math
import pickle

import loralib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_lab.lora import (
    LoRAConfig,
    LoRALinear,
    attach,
    disabled,
    initial_lora_A,
    initial_lora_B,
    lora_delta,
    lora_layers,
    merged_weight,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def layer_of(out_features=5, in_features=7, *, bias=True, dtype=torch.float64, b_seed=9, **options):
    """A layer whose weight, bias, A and B are all non-zero."""
    base = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    layer = LoRALinear(base, LoRAConfig(**({"rank": 3, "alpha": 5} | options)), generator=seeded(8))
    with torch.no_grad():
        for number, parameter in enumerate(base.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
        if b_seed is not None:
            layer.lora_B.copy_(draw(*layer.lora_B.shape, seed=b_seed))
    return layer


class TestPieces:
    def test_delta_is_scale_times_b_a(self):
        A, B = draw(3, 7), draw(5, 3, seed=1)
        np.testing.assert_allclose(lora_delta(A, B, 2.5), 2.5 * B.numpy() @ A.numpy(), rtol=1e-14)

    def test_delta_has_the_rank_of_its_factors(self):
        assert torch.linalg.matrix_rank(lora_delta(draw(3, 7), draw(5, 3, seed=1), 2.5)) == 3

    def test_initial_a_is_kaimings_with_the_same_generator(self):
        expected = nn.init.kaiming_uniform_(torch.empty(4, 50), a=math.sqrt(5), generator=seeded(3))
        assert torch.equal(initial_lora_A(4, 50, generator=seeded(3)), expected)

    def test_initial_a_fills_its_range_whatever_the_rank(self):
        for rank in (1, 64):
            A = initial_lora_A(rank, 10_000, generator=seeded())
            assert A.abs().max() <= 0.01
            assert A.std().item() == pytest.approx(0.01 / math.sqrt(3), rel=0.05)

    def test_initial_b_is_zero(self):
        assert torch.equal(initial_lora_B(5, 3), torch.zeros(5, 3))

    def test_draws_leave_the_global_generator_alone(self):
        state = torch.get_rng_state()
        base = nn.Linear(7, 5)
        torch.set_rng_state(state)
        first, second = (LoRALinear(base, LoRAConfig(rank=3)) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.lora_A, second.lora_A)

    def test_merged_weight_keeps_the_type(self):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            assert merged_weight(draw(5, 7, dtype=dtype), draw(3, 7), draw(5, 3), 1.0).dtype == dtype

    def test_the_default_type_of_torch_does_not_matter(self):
        A, B = initial_lora_A(3, 7, generator=seeded()), initial_lora_B(5, 3)
        torch.set_default_dtype(torch.float64)
        try:
            again = initial_lora_A(3, 7, generator=seeded()), initial_lora_B(5, 3)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(again, (A, B), rtol=0, atol=0)


class TestForward:
    @pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7), (0, 7), (2, 3, 4, 7)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_is_the_formula(self, shape, bias):
        layer, x = layer_of(bias=bias), draw(*shape, seed=5)
        W, A, B = (tensor.detach().numpy() for tensor in (layer.base.weight, layer.lora_A, layer.lora_B))
        expected = x.numpy() @ (W + 5 / 3 * B @ A).T + (layer.base.bias.detach().numpy() if bias else 0)
        assert layer(x).shape == (*shape[:-1], 5)
        np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_nothing_changes_at_step_0(self, dtype):
        layer, x = layer_of(dtype=dtype, b_seed=None), draw(4, 7, dtype=dtype)
        assert torch.equal(layer(x), layer.base(x))

    def test_at_step_0_b_gets_a_gradient_and_a_none(self):
        layer = layer_of(b_seed=None)
        layer(draw(4, 7)).square().sum().backward()
        assert layer.lora_B.grad.abs().min() > 0
        assert layer.lora_A.grad.abs().max() == 0

    @pytest.mark.parametrize("rslora", [False, True])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7)])
    def test_output_and_gradients_are_those_of_peft(self, shape, bias, rslora, twin):
        layer = layer_of(bias=bias, rslora=rslora)
        config = LoRAConfig(rank=3, alpha=5, targets=("0",), rslora=rslora)
        ours = nn.Sequential(layer)
        theirs = twin(nn.Sequential(layer.base), ours, config)
        results = []
        for model in (ours, theirs):
            x = draw(*shape, seed=5).requires_grad_()
            y = model(x)
            y.sin().sum().backward()
            results.append([y, x.grad])
        other = theirs.base_model.model[0]
        results[0] += [layer.lora_A.grad, layer.lora_B.grad]
        results[1] += [other.lora_A["default"].weight.grad, other.lora_B["default"].weight.grad]
        for mine, yours in zip(*results, strict=True):
            torch.testing.assert_close(mine, yours, rtol=1e-12, atol=1e-12)

    def test_output_and_gradients_are_those_of_loralib(self):
        layer = layer_of()
        other = loralib.Linear(7, 5, r=3, lora_alpha=5, merge_weights=False).double()
        other.load_state_dict(
            {"weight": layer.base.weight, "bias": layer.bias, "lora_A": layer.lora_A, "lora_B": layer.lora_B}
        )
        for model in (layer, other):
            model(draw(4, 7, seed=5)).sin().sum().backward()
        torch.testing.assert_close(layer(draw(4, 7)), other(draw(4, 7)), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.lora_A.grad, other.lora_A.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.lora_B.grad, other.lora_B.grad, rtol=1e-12, atol=1e-12)

    def test_gradients_pass_torchs_own_check(self):
        layer = layer_of()
        inputs = draw(2, 7).requires_grad_(), layer.lora_A, layer.lora_B

        def run(x, A, B):
            return torch.func.functional_call(layer, {"adapters.default.lora_A": A, "adapters.default.lora_B": B}, x)

        assert torch.autograd.gradcheck(run, inputs)


class TestTypes:
    @pytest.mark.parametrize(
        ("base", "factors"),
        [
            (torch.float64, torch.float64),
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
        ],
    )
    def test_factors_are_float32_or_better_and_the_output_is_the_bases(self, base, factors):
        layer = layer_of(dtype=base)
        y = layer(draw(4, 7, dtype=base))
        y.sum().backward()
        assert (y.dtype, layer.base.weight.dtype) == (base, base)
        assert layer.lora_A.dtype == layer.lora_B.dtype == layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == factors

    def test_the_input_is_never_copied_to_float32(self):
        layer = layer_of(out_features=4, in_features=64, dtype=torch.bfloat16)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            layer(draw(100, 64, dtype=torch.bfloat16))
        assert {tensor.dtype for tensor in kept if tensor.shape[0] == 100} == {torch.bfloat16}

    def test_bfloat16_is_near_float64(self):
        layer = layer_of()
        narrow = copy.deepcopy(layer)
        narrow.base.bfloat16()
        x = draw(50, 7, dtype=torch.bfloat16)
        torch.testing.assert_close(narrow(x).double(), layer(x.double()), rtol=0.05, atol=0.2)

    @pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
    def test_autocast(self, base):
        layer = layer_of(dtype=base)
        x = draw(4, 7, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16
        assert layer.lora_A.grad.dtype == torch.float32
        torch.testing.assert_close(y.float(), layer.float()(x), rtol=0.05, atol=0.2)

    def test_factors_follow_the_layer_to_another_type(self):
        layer = layer_of(dtype=torch.float32).double()
        assert layer.lora_A.dtype == torch.float64
        assert layer(draw(4, 7)).dtype == torch.float64


class TestDropout:
    def test_drops_inputs_of_the_adapter_alone_and_keeps_the_mean(self):
        layer = layer_of(dropout=0.5).train()
        x = draw(1, 7).expand(40_000, 7)
        torch.manual_seed(0)
        update = layer(x) - layer.base(x)
        exact = layer.eval()(x[:1]) - layer.base(x[:1])
        # Each of the 7 inputs is doubled or dropped: the mean stays, the variance is the sum of the squared terms.
        terms = x[0] * lora_delta(layer.lora_A, layer.lora_B, layer.scale)  # (5, 7)
        torch.testing.assert_close(update.mean(0, keepdim=True), exact, rtol=0, atol=0.1)
        torch.testing.assert_close(update.var(0), terms.square().sum(1), rtol=0.03, atol=0)

    def test_every_token_gets_its_own_mask(self):
        layer = layer_of(dropout=0.5).train()
        assert len({tuple(row.tolist()) for row in layer(draw(7).expand(2, 8, 7)).detach().flatten(0, 1)}) > 8

    def test_does_nothing_to_an_untrained_layer(self):
        layer = layer_of(dropout=0.5, b_seed=None).train()
        x = draw(4, 7)
        assert torch.equal(layer(x), layer.base(x))

    def test_does_nothing_in_evaluation(self):
        layer = layer_of(dropout=0.5).eval()
        x = draw(4, 7)
        assert torch.equal(layer(x), layer(x))
        assert torch.equal(layer(x), layer_of()(x))

    def test_a_layer_in_evaluation_is_wrapped_in_evaluation(self):
        assert not LoRALinear(nn.Linear(7, 5).eval(), LoRAConfig(rank=3, dropout=0.5)).dropout.training
        assert LoRALinear(nn.Linear(7, 5), LoRAConfig(rank=3, dropout=0.5)).dropout.training

    def test_masks_and_gradients_are_those_of_peft(self, twin):
        layer = layer_of(dropout=0.5).train()
        theirs = twin(nn.Sequential(layer.base), nn.Sequential(layer), LoRAConfig(3, 5, ("0",), 0.5)).train()
        results = []
        for model in (layer, theirs):
            torch.manual_seed(0)
            results.append(model(draw(4, 7)))
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


class TestWeight:
    def test_is_what_the_layer_multiplies_by(self):
        layer, x = layer_of(), draw(4, 7)
        torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), layer(x), rtol=1e-12, atol=1e-12)

    def test_gradients_reach_the_factors_through_it(self):
        layer, other, x = layer_of(), layer_of(), draw(4, 7)
        F.linear(x, layer.weight, layer.bias).sin().sum().backward()
        other(x).sin().sum().backward()
        torch.testing.assert_close(layer.lora_A.grad, other.lora_A.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.lora_B.grad, other.lora_B.grad, rtol=1e-12, atol=1e-12)

    def test_is_that_of_the_base_when_disabled(self):
        layer = layer_of()
        with disabled(layer):
            assert layer.weight is layer.base.weight
        assert not torch.equal(layer.weight, layer.base.weight)

    def test_the_layer_reads_like_the_linear_it_stands_for(self):
        layer = layer_of(bias=False, dtype=torch.bfloat16)
        assert (layer.in_features, layer.out_features, layer.bias) == (7, 5, None)
        assert (layer.weight.dtype, layer.weight.device, layer.weight.shape) == (
            torch.bfloat16,
            torch.device("cpu"),
            (5, 7),
        )

    def test_code_that_reads_the_weight_does_not_lose_the_update(self, fill, peft_model):
        """In evaluation torch's own encoder layer hands ``linear1.weight`` to a fused kernel; PEFT's update is lost."""
        config = LoRAConfig(rank=2, targets=("linear1", "linear2"))
        encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
        x = draw(2, 5, 16)

        def gap(model):
            slow = model.train()(x)
            with torch.no_grad():
                return (model.eval()(x) - slow).abs().max().item()

        assert gap(peft_model(copy.deepcopy(encoder), config, init_lora_weights=False)) > 0.01
        assert gap(fill(attach(encoder, config))) < 1e-12


class TestErrors:
    @pytest.mark.parametrize(
        "base", [nn.Embedding(7, 5), nn.Bilinear(7, 7, 5), nn.MultiheadAttention(8, 2).out_proj, 3]
    )
    def test_base_must_be_a_linear(self, base):
        with pytest.raises(TypeError, match=rf"base must be a torch\.nn\.Linear itself, got .*{type(base).__name__}"):
            LoRALinear(base, LoRAConfig(rank=1))

    def test_base_must_not_be_a_linear_of_another_library(self):
        with pytest.raises(TypeError, match=r"got loralib\.layers\.Linear"):
            LoRALinear(loralib.Linear(7, 5), LoRAConfig(rank=1))

    def test_base_must_not_be_a_lora_layer(self):
        with pytest.raises(TypeError, match=r"got lora_lab\.lora\.layers\.LoRALinear"):
            LoRALinear(layer_of(), LoRAConfig(rank=1))

    def test_weight_must_be_a_parameter(self):
        with pytest.warns(FutureWarning):
            base = nn.utils.weight_norm(nn.Linear(7, 5))
        with pytest.raises(TypeError, match="base must hold its weight as a parameter"):
            LoRALinear(base, LoRAConfig(rank=1))

    def test_weight_must_be_floating(self):
        base = nn.Linear(7, 5)
        base.weight = nn.Parameter(base.weight.to(torch.int8), requires_grad=False)
        with pytest.raises(TypeError, match=r"floating type, got torch.int8"):
            LoRALinear(base, LoRAConfig(rank=1))

    def test_rank_must_fit(self):
        LoRALinear(nn.Linear(7, 5), LoRAConfig(rank=5))
        with pytest.raises(ValueError, match=r"rank must be at most .* = 5 for base, got 6"):
            LoRALinear(nn.Linear(7, 5), LoRAConfig(rank=6))

    def test_config_and_generator_must_be_what_they_say(self):
        with pytest.raises(TypeError, match="config must be a LoRAConfig, got int"):
            LoRALinear(nn.Linear(7, 5), 8)
        with pytest.raises(TypeError, match=r"generator must be a torch.Generator, got 0"):
            LoRALinear(nn.Linear(7, 5), LoRAConfig(rank=1), generator=0)


class TestCitizenship:
    def test_the_base_is_the_very_layer_left_as_it_was(self, portrait):
        base = nn.Linear(7, 5)
        before = portrait(base)
        assert LoRALinear(base, LoRAConfig(rank=3)).base is base
        assert portrait(base) == before

    def test_state_dict_round_trip(self):
        layer, other = layer_of(), LoRALinear(nn.Linear(7, 5).double(), LoRAConfig(rank=3, alpha=5))
        names = ["base.weight", "base.bias", "adapters.default.lora_A", "adapters.default.lora_B"]
        assert list(layer.state_dict()) == names
        assert other.load_state_dict(layer.state_dict()) == ([], [])
        assert torch.equal(other(draw(4, 7)), layer(draw(4, 7)))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
    def test_copies_compute_the_same_and_are_apart(self, copied):
        layer, x = layer_of(dropout=0.5).eval(), draw(4, 7)
        other = copied(layer)
        expected = layer(x)
        with torch.no_grad():
            layer.lora_B.zero_()
        assert torch.equal(other(x), expected)
        assert not torch.equal(layer(x), expected)

    def test_printing_says_rank_alpha_and_scale(self):
        layer = layer_of()
        assert "rank=3, alpha=5, scale=1.667" in repr(layer)
        with disabled(layer):
            assert "scale=1.667, disabled" in repr(layer)

    def test_the_optimiser_moves_the_factors_alone(self):
        layer = layer_of()
        layer.base.requires_grad_(False)
        before = copy.deepcopy(layer.state_dict())
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(draw(4, 7)).square().sum().backward()
            optimizer.step()
        changed = [name for name, tensor in layer.state_dict().items() if not torch.equal(tensor, before[name])]
        assert changed == ["adapters.default.lora_A", "adapters.default.lora_B"]

    def test_vmap_and_functional_call(self):
        layer, x = layer_of(), draw(3, 4, 7)
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x), rtol=1e-12, atol=1e-12)

    @pytest.mark.timeout(120)
    def test_compiles_without_a_graph_break(self):
        layer, x = layer_of(dropout=0.0), draw(4, 7)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
        compiled(x).sum().backward()
        assert layer.lora_A.grad is not None
        with disabled(layer):
            assert torch.equal(compiled(x), layer.base(x))
        assert lora_layers(compiled)
