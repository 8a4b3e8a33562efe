import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_lab.lora import LoRAConfig, LoRALinear, attach, detach, disabled, lora_layers, merge, unmerge

CONFIG = LoRAConfig(rank=2, alpha=3)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def attached_layer(dtype, size=64, update=0.1):
    """One layer in a model, with a weight and factors that are all non-zero."""
    model = nn.Sequential(nn.Linear(size, size, dtype=dtype))
    attach(model, LoRAConfig(rank=8, alpha=16, targets=("0",)))
    with torch.no_grad():
        model[0].base.weight.copy_(draw(size, size))
        model[0].lora_B.copy_(update * draw(size, 8, seed=1))
    return model


def exact_sum(layer):
    """W + scale · B A in the longest floats that NumPy has."""
    W, A, B = (
        tensor.detach().double().numpy().astype(np.longdouble)
        for tensor in (layer.base.weight, layer.lora_A, layer.lora_B)
    )
    return W + np.longdouble(layer.scale) * (B @ A)


class TestMergedWeight:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_the_exact_sum_rounded_once(self, dtype):
        model = attached_layer(dtype)
        exact = exact_sum(model[0])
        merge(model)
        merged = model[0].base.weight.detach()
        assert merged.dtype == dtype
        # Rounding once leaves at most half a unit in the last place, and forming the sum a little of float64's own.
        unit = 2.0 ** np.floor(np.log2(np.abs(exact))) * torch.finfo(dtype).eps
        assert (np.abs(merged.double().numpy() - exact) <= 0.501 * unit + 1e-15).all()

    def test_is_that_of_peft(self, llama, twin, fill):
        config = LoRAConfig(rank=2, alpha=3, targets=("q_proj", "down_proj"), rslora=True)
        ours = fill(attach(llama(), config))
        theirs = twin(llama(), ours, config).merge_and_unload()
        merge(ours)
        for name, layer in lora_layers(ours).items():
            torch.testing.assert_close(layer.base.weight, theirs.get_submodule(name).weight, rtol=1e-12, atol=1e-12)

    def test_autocast_does_not_touch_it(self, bits):
        plain, cast = attached_layer(torch.float32), attached_layer(torch.float32)
        merge(plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            merge(cast)
        assert bits(plain[0].base.weight) == bits(cast[0].base.weight)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_factors_in_bfloat16_still_merge_in_full(self, dtype):
        model = attached_layer(dtype)
        model[0].lora_A.data, model[0].lora_B.data = model[0].lora_A.bfloat16(), model[0].lora_B.bfloat16()
        exact = exact_sum(model[0]).astype(np.float64)
        merge(model)
        np.testing.assert_allclose(
            model[0].base.weight.detach().double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7
        )


class TestMergedModel:
    def test_computes_what_it_computed_before(self, llama, tokens, fill):
        model = fill(attach(llama(), LoRAConfig(rank=2, alpha=3)))
        before = model(tokens).logits
        merge(model)
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-11, atol=1e-11)

    def test_is_the_base_layer_and_nothing_else(self):
        model, x = attached_layer(torch.float32), draw(4, 64, dtype=torch.float32)
        merge(model)
        layer = model[0]
        assert torch.equal(layer(x), F.linear(x, layer.base.weight, layer.base.bias))
        assert layer.weight is layer.base.weight
        assert "merged" in repr(layer)

    def test_gives_the_factors_no_gradient_in_training_and_ignores_dropout(self):
        model = nn.Sequential(nn.Linear(6, 6))
        attach(model, LoRAConfig(rank=2, targets=("0",), dropout=0.5)).train()
        merge(model)
        x = torch.ones(3, 6, requires_grad=True)
        model(x).sum().backward()
        assert model[0].lora_B.grad is None
        assert torch.equal(model(x), model(x))

    def test_train_and_eval_do_not_unmerge(self, bits):
        model = attached_layer(torch.float32)
        merge(model)
        merged = bits(model[0].base.weight)
        model.train().eval().train()
        assert bits(model[0].base.weight) == merged
        assert model[0].merged

    def test_counts_and_names_of_parameters_stay(self):
        model = attached_layer(torch.float32)
        before = [(name, parameter.shape, parameter.requires_grad) for name, parameter in model.named_parameters()]
        keys = list(model.state_dict())
        merge(model)
        assert [(n, parameter.shape, parameter.requires_grad) for n, parameter in model.named_parameters()] == before
        assert list(model.state_dict()) == keys

    def test_a_graph_made_before_gives_its_own_gradients(self):
        model, x = attached_layer(torch.float64), draw(4, 64).requires_grad_()
        y = model(x)
        expected = torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0]
        merge(model)
        torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), x)[0], expected, rtol=0, atol=0)

    def test_one_layer_merges_by_itself(self):
        layer, x = LoRALinear(nn.Linear(6, 6), LoRAConfig(rank=2)), torch.ones(6)
        with torch.no_grad():
            layer.lora_B.fill_(0.5)
            before = layer(x)
            merge(layer)
            torch.testing.assert_close(layer(x), before)
        assert layer.base.weight.requires_grad
        unmerge(layer)
        assert layer.base.weight.requires_grad


class TestUnmerge:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gives_back_the_very_bits(self, dtype, bits):
        model = attached_layer(dtype)
        with torch.no_grad():
            model[0].base.weight[0, :3] = torch.tensor([0.0, -0.0, torch.finfo(dtype).smallest_normal])
        before, x = bits(model[0].base.weight), draw(4, 64, dtype=dtype)
        output = bits(model(x))
        merge(model)
        assert bits(model[0].base.weight) != before
        unmerge(model)
        assert bits(model[0].base.weight) == before
        assert bits(model(x)) == output
        assert not model[0].merged

    def test_many_times(self, bits):
        model = attached_layer(torch.float16)
        before = bits(model[0].base.weight)
        for _ in range(5):
            merge(model)
            unmerge(model)
        assert bits(model[0].base.weight) == before

    def test_keeps_the_whole_model(self, llama, portrait, fill):
        model = fill(attach(llama(torch.bfloat16), LoRAConfig(rank=2)))
        merged_and_back = copy.deepcopy(model)
        merge(merged_and_back)
        unmerge(merged_and_back)

        def without_identities(description):
            modules, parameters, attributes = description
            return [(n, mode) for n, _, mode in modules], [(n, *rest) for n, _, *rest in parameters], attributes

        assert without_identities(portrait(merged_and_back)) == without_identities(portrait(model))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_of_a_copy_made_while_merged(self, copied, bits):
        model = attached_layer(torch.bfloat16)
        before = bits(model[0].base.weight)
        merge(model)
        other = copied(model)
        unmerge(other)
        assert bits(other[0].base.weight) == before
        assert model[0].merged

    def test_of_a_model_that_moved_to_another_type_while_merged(self):
        model = attached_layer(torch.float64)
        expected = model[0].base.weight.float()
        merge(model)
        model.float()
        unmerge(model)
        assert torch.equal(model[0].base.weight, expected)

    def test_training_goes_on_afterwards(self):
        model = attached_layer(torch.float32)
        merge(model)
        unmerge(model)
        model(draw(4, 64, dtype=torch.float32)).sum().backward()
        assert model[0].lora_B.grad is not None
        assert model[0].base.weight.grad is None
        detach(model)


class TestRefusals:
    def test_merging_twice(self, bits):
        model = attached_layer(torch.float32)
        merge(model)
        merged = bits(model[0].base.weight)
        with pytest.raises(ValueError, match="'0' is; call unmerge"):
            merge(model)
        assert bits(model[0].base.weight) == merged

    def test_unmerging_what_is_not_merged(self):
        with pytest.raises(ValueError, match="'0' is not; call merge"):
            unmerge(attached_layer(torch.float32))

    @pytest.mark.parametrize("verb", [merge, unmerge])
    def test_a_model_merged_in_part_stays_so(self, verb, toy, fill, portrait):
        model = fill(attach(toy(), CONFIG))
        merge(model[1])
        before = portrait(model)
        with pytest.raises(ValueError, match=r"1\.q_proj' is;|0\.q_proj' is not;"):
            verb(model)
        assert portrait(model) == before

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_all_or_nothing(self, bad, toy, fill, portrait):
        model = fill(attach(toy(), CONFIG))
        with torch.no_grad():
            model[1].v_proj.lora_B[0, 0] = bad
        before = portrait(model)
        with pytest.raises(ValueError, match=r"finite, but '1\.v_proj' would"):
            merge(model)
        assert portrait(model) == before

    def test_a_sum_too_large_for_the_type(self):
        model = attached_layer(torch.float16, update=1e6)
        with pytest.raises(ValueError, match="infinity"):
            merge(model)

    def test_inside_disabled(self, toy):
        model = attach(toy(), CONFIG)
        with disabled(model), pytest.raises(ValueError, match="outside disabled"):
            merge(model)
        merge(model)

    def test_on_the_meta_device(self, toy):
        model = attach(toy().to("meta"), CONFIG)
        with pytest.raises(ValueError, match="meta"):
            merge(model)

    def test_a_state_dict_across_the_two_states(self, toy, fill):
        model, other = fill(attach(toy(), CONFIG)), attach(toy(), CONFIG)
        plain = copy.deepcopy(model.state_dict())
        merge(model)
        with pytest.raises(RuntimeError, match=r"0\.q_proj: the state_dict was saved while merged"):
            other.load_state_dict(model.state_dict())
        with pytest.raises(RuntimeError, match=r"0\.q_proj: this layer is merged"):
            model.load_state_dict(plain)
        unmerge(model)
        assert model.load_state_dict(plain) == ([], [])


class TestReport:
    """How large the update is, and what rounding takes of it."""

    def layer(self, dtype, size):
        """A layer whose update is about ``size`` times as large as its weight."""
        base = nn.Linear(64, 64, bias=False, dtype=dtype)
        layer = LoRALinear(base, LoRAConfig(rank=4, alpha=4))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            base.weight.copy_(torch.randn(64, 64, generator=generator))
            layer.lora_B.copy_(torch.randn(64, 4, generator=generator))
            update = layer.lora_B.double() @ layer.lora_A.double()
            layer.lora_B.mul_(size * base.weight.double().norm() / update.norm())
        return layer

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("size", [0.3, 1e-3])
    def test_is_what_the_weights_say(self, dtype, size):
        layer = self.layer(dtype, size)
        W = layer.base.weight.double().clone()
        update = layer.lora_B.double() @ layer.lora_A.double()
        (row,) = merge(layer).layers
        after = layer.base.weight.double()
        assert row.change == pytest.approx((update.norm() / W.norm()).item(), rel=1e-9)
        assert row.change == pytest.approx(size, rel=0.01)
        assert row.lost == pytest.approx(((after - W - update).norm() / update.norm()).item(), rel=1e-6)
        assert row.unchanged == (after == W).double().mean().item()

    def test_bfloat16_takes_most_of_a_small_update_and_float32_nearly_nothing(self):
        lost = {dtype: merge(self.layer(dtype, 2e-4)).layers[0] for dtype in (torch.bfloat16, torch.float32)}
        assert lost[torch.bfloat16].lost > 0.9
        assert lost[torch.bfloat16].unchanged > 0.9
        assert lost[torch.float32].lost < 1e-3

    def test_an_update_of_nothing_loses_nothing(self):
        layer = LoRALinear(nn.Linear(7, 5), LoRAConfig(rank=3))
        (row,) = merge(layer).layers
        assert (row.change, row.lost, row.unchanged) == (0, 0, 1)

    def test_has_a_row_for_each_layer_and_prints_a_table(self, toy, fill):
        model = fill(attach(toy(torch.bfloat16), LoRAConfig(2)))
        report = merge(model)
        assert [row.name for row in report.layers] == list(lora_layers(model))
        lines = str(report).splitlines()
        assert len(lines) == 5
        assert lines[0].split() == ["layer", "update", "/", "weight", "lost", "in", "rounding", "entries", "unchanged"]
        assert lines[1].startswith("0.q_proj")
        assert len({len(line) for line in lines}) == 1


class TestFold:
    @pytest.mark.parametrize("merged_before", [False, True])
    def test_leaves_a_plain_model_that_computes_the_same(self, merged_before, llama, tokens, fill):
        from lora_lab.lora import adapters, fold

        model = fill(attach(llama(), LoRAConfig(2, 3)))
        plain, expected = llama(), model(tokens).logits
        if merged_before:
            merge(model)
        fold(model)
        assert not lora_layers(model)
        assert adapters(model) == {}
        assert list(model.state_dict()) == list(plain.state_dict())
        assert all(parameter.requires_grad for parameter in model.parameters())
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-9, atol=1e-9)
        attach(model, LoRAConfig(2))

    def test_keeps_copies_and_biases(self):
        from lora_lab.lora import fold

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
        attach(model, LoRAConfig(2, targets=("0",), bias="lora_only", modules_to_save=("1",)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        x = torch.ones(2, 5, dtype=torch.float64)
        expected = model(x)
        fold(model)
        assert [type(module) for module in model] == [nn.Linear, nn.Linear]
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)

    def test_needs_the_model_that_attach_was_called_on(self, toy):
        from lora_lab.lora import fold

        with pytest.raises(ValueError, match=r"model must be the one that attach"):
            fold(attach(toy(), LoRAConfig(2))[0])

    def test_prints_a_report_also_where_the_model_was_merged_already(self, toy, fill):
        from lora_lab.lora import fold

        model = fill(attach(toy(), LoRAConfig(2)))
        merge(model)
        assert str(fold(model)).splitlines() == ["layer  update / weight  lost in rounding  entries unchanged"]


def test_what_is_merged_in_inference_mode_lets_gradients_through(toy, fill, bits):
    model = fill(attach(toy(), CONFIG))
    before = bits(model[0].q_proj.base.weight)
    for change in (merge, unmerge):
        with torch.inference_mode():
            change(model)
        x = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
        model(x).sum().backward()
        assert x.grad.abs().sum() > 0
    assert bits(model[0].q_proj.base.weight) == before
