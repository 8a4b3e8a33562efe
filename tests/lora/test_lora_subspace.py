"""Random projections, training in a random subspace, and the intrinsic dimension of problems whose answer is known."""

import copy
import io
import itertools
import math
import pickle
import re

import numpy as np
import pytest
import scipy.linalg
import torch
import transformers
from torch import nn
from torch.autograd import gradcheck

from lora_lab.lora import (
    BitFitConfig,
    DenseProjection,
    FastfoodProjection,
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    SparseProjection,
    SubspaceConfig,
    SubspaceLayer,
    account,
    activate,
    active_adapters,
    adapters,
    attach,
    detach,
    disabled,
    find_subspace,
    intrinsic_dimension,
    merge,
    routed,
    walsh_hadamard,
)
from lora_lab.lora.subspace import _Weights
from lora_lab.lowrank import gallery

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {"fastfood": FastfoodProjection, "sparse": SparseProjection, "dense": DenseProjection}
EVERY = pytest.mark.parametrize("kind", list(KINDS))
AWARE = pytest.mark.parametrize("aware", [False, True], ids=["DID", "SAID"])

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestWalshHadamard:
    @pytest.mark.parametrize("n", [1, 2, 4, 8, 32, 64, 128, 256, 512, 1024, 2048])
    def test_is_the_product_with_the_matrix(self, n):
        x = torch.randint(-9, 10, (3, n), generator=torch.Generator().manual_seed(0))
        matrix = scipy.linalg.hadamard(n)
        assert np.array_equal(walsh_hadamard(x).numpy(), x.numpy() @ matrix)
        assert np.array_equal(walsh_hadamard(x).numpy(), x.numpy() @ gallery.hadamard(n))
        assert np.array_equal(walsh_hadamard(x.double()).numpy(), x.numpy() @ matrix)

    def test_a_long_one_is_known_at_unit_vectors_and_undoes_itself(self):
        n = 2**16  # three steps
        unit = torch.zeros(n)
        unit[37_000] = 1
        signs = [(-1) ** (37_000 & i).bit_count() for i in range(n)]
        assert torch.equal(walsh_hadamard(unit), torch.tensor(signs, dtype=torch.float32))
        x = normal(n)
        torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)) / n, x)

    def test_takes_any_shape_and_leaves_what_it_is_given(self):
        x = normal(2, 3, 4, 8)
        before = x.clone()
        y = walsh_hadamard(x.transpose(0, 2))
        assert y.shape == (4, 3, 2, 8)
        torch.testing.assert_close(y[3, 2, 1], walsh_hadamard(x[1, 2, 3]))
        assert torch.equal(x, before)
        one = torch.ones(1)
        walsh_hadamard(one).add_(1)
        assert one.item() == 1

    def test_gradients_pass(self):
        assert gradcheck(walsh_hadamard, normal(2, 256).requires_grad_())

    @pytest.mark.parametrize("shape", [(3,), (2, 6), (4, 0), ()])
    def test_refuses_what_is_no_power_of_two(self, shape):
        with pytest.raises(ValueError, match=re.escape(f"power of two (1, 2, 4, …), got {shape}")):
            walsh_hadamard(torch.zeros(shape))

    def test_refuses_what_is_no_tensor(self):
        with pytest.raises(TypeError, match="x must be a tensor, got a list"):
            walsh_hadamard([1, 2])


# rows, dimension: powers of two and not, one block and many, a last block that is cut, several parts.
SHAPES = [(1, 1), (7, 1), (5, 5), (64, 16), (100, 7), (1000, 10), (700, 300), (257, 256), (9, 3)]


class TestProjections:
    @EVERY
    @pytest.mark.parametrize(("rows", "dimension"), SHAPES)
    def test_products_are_those_of_its_matrix(self, kind, rows, dimension):
        projection = KINDS[kind](rows, dimension, 5)
        matrix = projection.matrix()
        v, g = normal(dimension), normal(rows, seed=1)
        assert matrix.shape == (rows, dimension)
        torch.testing.assert_close(projection @ v, matrix @ v)
        torch.testing.assert_close(projection.transposed(g), matrix.T @ g)
        if rows > dimension or kind != "sparse":  # a sparse square has few entries and may be singular
            assert torch.linalg.matrix_rank(matrix) == dimension

    @pytest.mark.parametrize(("rows", "dimension"), [(100, 7), (64, 16), (700, 300), (200, 130), (7, 1)])
    def test_fastfood_is_the_product_of_its_five_matrices(self, rows, dimension):
        """H G Π H B, each written out as a matrix by SciPy and NumPy."""
        projection = FastfoodProjection(rows, dimension, 3)
        n = 2 ** math.ceil(math.log2(dimension))
        projection @ torch.zeros(dimension)
        hadamard, blocks = scipy.linalg.hadamard(n), []
        for normal_, _, shuffle, signs in zip(*(kept.numpy() for kept in projection._kept), strict=True):
            assert sorted(shuffle) == list(range(n))
            assert set(signs) <= {-1, 1}
            permutation, g = np.eye(n)[shuffle], normal_.astype(float)
            g *= math.sqrt(n) / np.linalg.norm(g)
            blocks.append(hadamard @ np.diag(g) @ permutation @ hadamard @ np.diag(signs))
        expected = np.vstack(blocks)[:rows, :dimension] / math.sqrt(n * rows)
        np.testing.assert_allclose(projection.matrix().numpy(), expected, atol=1e-12)

    @EVERY
    @pytest.mark.parametrize(("rows", "dimension"), SHAPES)
    def test_columns_have_length_one(self, kind, rows, dimension):
        lengths = KINDS[kind](rows, dimension, 1).matrix().norm(dim=0)
        n = 2 ** math.ceil(math.log2(dimension))
        cut = rows % n if kind == "fastfood" else 0  # only what a block that is cut off adds may vary
        assert (lengths**2 - 1).abs().max() <= 5 * math.sqrt(6 * cut) / rows + 1e-6

    def test_fastfood_rows_have_one_length_too(self):
        lengths = FastfoodProjection(1000, 64, 1).matrix().norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(64 / 1000)))

    def test_sparse_has_one_entry_of_each_column_in_each_stretch(self):
        matrix = SparseProjection(1000, 40, 1).matrix()  # √1000 = 31.6, so 32 stretches
        full = matrix != 0
        assert full.sum() == 32 * 40
        for i in range(32):
            assert (full[i * 1000 // 32 : (i + 1) * 1000 // 32].sum(0) == 1).all()
        assert set(matrix[full].tolist()) == {matrix.max().item(), -matrix.max().item()}
        places = torch.cat([SparseProjection(1000, 40, seed).matrix() for seed in range(20)], dim=1).sign()
        counts = places.abs().sum(1)  # 800 columns, so 25.6 entries in a row, give or take 5
        assert 8 <= counts.min() <= counts.max() <= 50
        assert abs(places.sum()) < 5 * math.sqrt(32 * 800)

    @EVERY
    @pytest.mark.parametrize("spread", ["even", "one", "few"])
    @pytest.mark.parametrize(("rows", "dimension"), [(4096, 16), (2500, 100), (600, 550)])
    def test_keeps_norms(self, kind, spread, rows, dimension):
        """‖P v‖² / ‖v‖² varies about 1 with the standard deviation that the docstrings bound."""
        v = {
            "even": torch.ones(dimension, dtype=torch.float64),
            "one": torch.eye(dimension, dtype=torch.float64)[3],
            "few": torch.eye(dimension, dtype=torch.float64)[:3].sum(0),
        }[spread]
        ratios = torch.tensor([(KINDS[kind](rows, dimension, s) @ v).square().sum() / (v @ v) for s in range(40)])
        bound = math.sqrt((6 if kind == "fastfood" else 2) / rows)
        assert (ratios - 1).abs().max() < 4 * bound
        assert (ratios - 1).square().mean().sqrt() < 1.3 * bound  # 1.3: the spread of 40 draws is itself a draw
        assert abs(ratios.mean() - 1) < 4 * bound / math.sqrt(40)

    @EVERY
    def test_columns_are_nearly_orthogonal(self, kind):
        gram = torch.stack([(m := KINDS[kind](4000, 60, s).matrix()).T @ m for s in range(5)]) - torch.eye(60)
        assert gram.square().mean().sqrt() < 1.5 / math.sqrt(4000)
        assert gram.abs().max() < 6 / math.sqrt(4000)

    @EVERY
    def test_follows_from_its_seed(self, kind):
        one, again, other = (KINDS[kind](500, 20, seed).matrix() for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert abs((one * other).sum(0)).max() < 0.5
        projection = KINDS[kind](500, 20, 1)
        assert torch.equal(copy.deepcopy(projection).matrix(), one)
        words = pickle.dumps(projection)
        assert len(words) < 200
        assert torch.equal(pickle.loads(words).matrix(), one)

    @EVERY
    def test_is_the_same_in_both_precisions(self, kind):
        projection = KINDS[kind](900, 33, 1)
        double = projection.matrix()
        torch.testing.assert_close(projection.matrix(torch.float32).double(), double, atol=1e-6, rtol=0)
        assert (projection @ torch.ones(33)).dtype == torch.float32

    def test_many_parts_are_one_matrix(self, monkeypatch):
        whole = [kind(1000, 40, 1).matrix() for kind in KINDS.values()]
        monkeypatch.setattr("lora_lab.lora.projections._CHUNK", 300)
        for kind, matrix in zip(KINDS.values(), whole, strict=True):
            projection = kind(1000, 40, 1)
            if kind is not FastfoodProjection:  # which draws by parts
                torch.testing.assert_close(projection.matrix(), matrix)
            parts = list(projection.parts(torch.device("cpu")))
            assert len(parts) > 3
            assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
            assert (parts[0].start, parts[-1].stop) == (0, 1000)
            v, g, same = normal(40), normal(1000), projection.matrix()
            torch.testing.assert_close(projection @ v, same @ v)
            torch.testing.assert_close(projection.transposed(g), same.T @ g)

    def test_keeps_few_bytes(self):
        for kind, count in (("fastfood", 5 * 2**18 + 8 * 2**8), ("sparse", 2 * 512 * 1000)):
            projection = KINDS[kind](2**18, 1000, 0)
            assert projection.nbytes == 0
            projection @ torch.zeros(1000)
            assert projection.nbytes == count
        with pytest.raises(ValueError, match=r"'dense' keeps 20,000,000 × 10,000 numbers, 800 GB, .* 'fastfood'"):
            DenseProjection(20_000_000, 10_000, 0)

    def test_fastfood_draws_no_zero(self, monkeypatch):
        """One in 10⁷ normal numbers is 0 in float16; as a whole block of size 1 it would give NaN."""
        monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(shape))
        y = FastfoodProjection(64, 1, 0) @ torch.ones(1)
        torch.testing.assert_close(y.abs(), torch.full((64,), 1 / 8))

    @EVERY
    def test_refuses_more_columns_than_rows(self, kind):
        with pytest.raises(ValueError, match="dimension must be from 1 to the 5 numbers it stands for, got 6"):
            KINDS[kind](5, 6, 0)


class Scaled(nn.Module):
    """A module with a parameter of its own beside a layer inside it, and a method that is no forward."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.gain * self.inner(x)

    def gained(self, x):
        return self.gain * x


def built(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return kind(config).double().eval()


def llama(**options):
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, **SIZES, **options)
    return built(transformers.LlamaForCausalLM, config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, n_positions=16
    )
    return built(transformers.GPT2LMHeadModel, config)


def bert():
    return built(
        transformers.BertForSequenceClassification,
        transformers.BertConfig(vocab_size=32, max_position_embeddings=16, **SIZES),
    )


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    return built(transformers.ViTForImageClassification, config)


MODELS = {
    "llama": llama,
    "tied llama": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
}
FAMILIES = pytest.mark.parametrize("family", list(MODELS))


def inputs(family):
    generator = torch.Generator().manual_seed(3)
    if family == "vit":
        return torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    return torch.randint(32, (3, 7), generator=generator)


def moved(model, seed=5):
    """Move v away from 0 and the scales from 1."""
    subspace = find_subspace(model)
    with torch.no_grad():
        for number, parameter in enumerate(subspace.parameters()):
            parameter.add_(normal(*parameter.shape, seed=seed + number))
    return model


def in_full(base, model):
    """Give a plain copy of the base whose weights are θ0 + λ P v, by the dense matrix, and how its rows are scaled."""
    subspace, full = find_subspace(model), copy.deepcopy(base)
    update = subspace.projection.matrix() @ subspace.v.detach()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in subspace.names))
    scales, start = torch.ones_like(update), 0
    for name in subspace.names:
        weight = full.get_parameter(name)
        rows = slice(start, start + weight.numel())
        if subspace.scales is not None:
            scales[rows] = subspace.scales[layers.index(name.rpartition(".")[0])].detach()
        with torch.no_grad():
            weight += (scales * update)[rows].view_as(weight)
        start = rows.stop
    assert start == len(update)
    return full, scales, update, layers


def loss_of(model, x):
    return model(x).logits.square().mean()


class TestSubspace:
    @FAMILIES
    @EVERY
    @AWARE
    def test_computes_with_the_weights_that_the_dense_matrix_gives_and_their_gradient(self, family, kind, aware):
        base, x = MODELS[family](), inputs(family)
        model = attach(copy.deepcopy(base), SubspaceConfig(70, kind, aware, seed=1))
        assert torch.equal(model(x).logits, base(x).logits)

        full, scales, update, layers = in_full(base, moved(model))
        torch.testing.assert_close(model(x).logits, full(x).logits)
        loss_of(model, x).backward()
        loss_of(full, x).backward()
        subspace = find_subspace(model)
        grads = [full.get_parameter(name).grad for name in subspace.names]
        g = torch.cat([torch.zeros(full.get_parameter(n).shape).flatten() if d is None else d.flatten()
                       for n, d in zip(subspace.names, grads, strict=True)]).double()  # fmt: skip
        torch.testing.assert_close(subspace.v.grad, subspace.projection.matrix().T @ (scales * g))
        if aware:
            of_layer = torch.tensor([layers.index(name.rpartition(".")[0]) for name in subspace.names])
            sizes = torch.tensor([full.get_parameter(name).numel() for name in subspace.names])
            expected = torch.zeros(len(layers)).double()
            expected.index_add_(0, of_layer.repeat_interleave(sizes), g * update)
            torch.testing.assert_close(subspace.scales.grad, expected)
        assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith((".v", ".scales")))

    @AWARE
    @EVERY
    def test_gradcheck(self, kind, aware):
        model = attach(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), SubspaceConfig(6, kind, aware))
        subspace = find_subspace(moved(model))
        base, layout = subspace._base(), subspace._layout
        scales = [subspace.scales.detach().clone().requires_grad_()] if aware else []

        def weights(v, scales=None):
            return _Weights.apply(layout, v, scales, *base)

        assert gradcheck(weights, (subspace.v.detach().clone().requires_grad_(), *scales))

    @FAMILIES
    @AWARE
    def test_counts_d_numbers_that_train_and_the_base_as_it_is(self, family, aware):
        model = MODELS[family]()
        count = sum(p.numel() for p in model.parameters())
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        attach(model, SubspaceConfig(70, structure_aware=aware))
        counted = account(model)
        assert (counted.base, counted.adapter, counted.trainable) == (count, 70, 70)
        trains = [name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad]
        assert trains == (["v", "scales"] if aware else ["v"])
        assert find_subspace(model).projection.rows == count
        assert sum(name.endswith(".v") for name in model.state_dict()) == 1
        detach(model)
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags

    def test_said_splits_d(self):
        model = attach(bert(), SubspaceConfig(100, structure_aware=True))
        owners = {name.rpartition(".")[0] for name, _ in bert().named_parameters()}
        subspace = find_subspace(model)
        assert len(subspace.scales) == len(owners)
        assert len(subspace.v) == 100 - len(owners)
        assert torch.equal(subspace.scales, torch.ones(len(owners)).double())

    def test_said_with_layers_of_its_own(self):
        def block(name):
            return re.sub(r"^bert\.encoder\.layer\.(\d).*$", r"\1", name) if ".layer." in name else "rest"

        subspace = find_subspace(attach(bert(), SubspaceConfig(10, structure_aware=block)))
        assert (len(subspace.scales), len(subspace.v)) == (3, 7)

    @FAMILIES
    def test_detach_gives_the_very_model_back(self, family, portrait):
        model = MODELS[family]()
        before = portrait(model)
        attach(model, SubspaceConfig(30))
        moved(model)
        loss_of(model, inputs(family)).backward()
        detach(model)
        assert portrait(model) == before
        assert adapters(model) == {}

    @FAMILIES
    def test_disabled_gives_the_base_and_comes_back(self, family):
        base, x = MODELS[family](), inputs(family)
        model = moved(attach(copy.deepcopy(base), SubspaceConfig(30)))
        other = model(x).logits
        with disabled(model):
            assert torch.equal(model(x).logits, base(x).logits)
            with disabled(model):
                assert torch.equal(model(x).logits, base(x).logits)
        assert not torch.allclose(other, base(x).logits)
        assert torch.equal(model(x).logits, other)

    def test_trains_as_plain_torch_does(self):
        """Adam on v gives what Adam gives on v in θ0 + P v written out."""
        x, y = normal(20, 3), normal(20, 2, seed=1)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        attach(model, SubspaceConfig(9, seed=4))
        matrix = find_subspace(model).projection.matrix()
        v = torch.zeros(9, dtype=torch.float64, requires_grad=True)
        one = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        two = torch.optim.Adam([v], lr=0.1)
        for _ in range(20):
            theta = start + matrix @ v
            w1, b1, w2, b2 = theta.split([24, 8, 16, 2])
            by_hand = torch.tanh(x @ w1.view(8, 3).T + b1) @ w2.view(2, 8).T + b2
            for optimizer, output in ((one, model(x)), (two, by_hand)):
                optimizer.zero_grad()
                (output - y).square().mean().backward()
                optimizer.step()
        assert v.norm() > 0.3
        torch.testing.assert_close(find_subspace(model).v, v)

    def test_computes_weights_once_for_each_v(self, monkeypatch):
        model, x = attach(llama(), SubspaceConfig(20)), inputs("llama")
        calls = []
        forward = _Weights.forward
        monkeypatch.setattr(_Weights, "forward", lambda ctx, *args: calls.append(1) or forward(ctx, *args))
        with torch.no_grad():
            model(x), model(x)
        assert len(calls) == 1
        for _ in range(2):  # two batches, gradients added up: one graph back to v
            loss_of(model, x).backward()
        assert len(calls) == 2
        with torch.no_grad():
            model(x)
            find_subspace(model).v.data.add_(0.5)  # not even noted by autograd
            model(x)
        assert len(calls) == 3
        model.generate(x[:1], max_new_tokens=3, do_sample=False)
        assert len(calls) == 3
        with torch.no_grad():
            find_subspace(model).v.fill_(math.nan)  # a training that diverged
            model(x)
        assert len(calls) == 4

    def test_gradients_of_two_batches_add_up(self):
        one, two = inputs("llama").chunk(2)
        model = moved(attach(llama(), SubspaceConfig(20, structure_aware=lambda _: "all")))
        loss_of(model, one).backward()
        loss_of(model, two).backward()
        subspace = find_subspace(model)
        expected = [0, 0]
        for x in (one, two):
            grads = torch.autograd.grad(loss_of(model, x), [subspace.v, subspace.scales])
            expected = [a + b for a, b in zip(expected, grads, strict=True)]
        torch.testing.assert_close([subspace.v.grad, subspace.scales.grad], expected)

    def test_a_step_between_forward_and_backward_leaves_the_gradient_alone(self):
        model = moved(attach(nn.Sequential(nn.Linear(3, 2)).double(), SubspaceConfig(4, structure_aware=True)))
        subspace, x = find_subspace(model), normal(5, 3)
        expected = torch.autograd.grad(model(x).square().sum(), [subspace.v, subspace.scales])
        loss = model(x).square().sum()
        with torch.no_grad():
            subspace.v.mul_(3)
            subspace.scales.mul_(3)
        torch.testing.assert_close(torch.autograd.grad(loss, [subspace.v, subspace.scales]), expected)

    @FAMILIES
    def test_copies_and_pickles(self, family):
        model, x = moved(attach(MODELS[family](), SubspaceConfig(30))), inputs(family)
        expected = model(x).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x).logits, expected)
            moved(other)
            assert not torch.allclose(other(x).logits, expected)
            assert torch.equal(model(x).logits, expected)
            assert find_subspace(other)._owners[0][0] is not find_subspace(model)._owners[0][0]
            detach(other)

    def test_state_dict_holds_the_base_and_v(self):
        model, x = moved(attach(bert(), SubspaceConfig(30, structure_aware=False, seed=3))), inputs("bert")
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        stored.seek(0)
        other = attach(bert(), SubspaceConfig(30, seed=3))
        other(x)
        other.load_state_dict(torch.load(stored))
        assert torch.equal(other(x).logits, model(x).logits)
        wrong = attach(bert(), SubspaceConfig(30, seed=4))
        wrong.load_state_dict(model.state_dict())
        assert not torch.allclose(wrong(x).logits, model(x).logits)

    def test_another_base_and_another_type_are_noticed(self):
        base, x = bert(), inputs("bert")
        model = moved(attach(copy.deepcopy(base), SubspaceConfig(30)))
        before = model(x).logits
        with torch.no_grad():
            base.classifier.weight.mul_(2)
            model.classifier.base.weight.mul_(2)
        assert not torch.allclose(model(x).logits, before)
        expected = in_full(base, model)[0](x).logits
        torch.testing.assert_close(model(x).logits, expected)
        single = model.float()(x).logits
        torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)

    def test_half_precision_is_rounded_once(self):
        base = nn.Sequential(nn.Linear(30, 40)).bfloat16()
        model = attach(copy.deepcopy(base), SubspaceConfig(5))
        subspace = find_subspace(model)
        assert subspace.v.dtype == torch.float32
        with torch.no_grad():
            subspace.v.copy_(normal(5))
        update = (subspace.projection @ subspace.v)[:1200].view(40, 30)
        assert torch.equal(model[0].weight, (base[0].weight.float() + update).bfloat16())
        model(torch.ones(2, 30).bfloat16()).sum().backward()
        assert subspace.v.grad.norm() > 0

    def test_generates_as_the_plain_model_does(self):
        base, x = llama(), inputs("llama")
        model = moved(attach(copy.deepcopy(base), SubspaceConfig(30)))
        options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(x), "pad_token_id": 0}
        expected = in_full(base, model)[0].generate(x, **options)
        assert torch.equal(model.generate(x, **options), expected)
        assert not torch.equal(base.generate(x, **options), expected)

    def test_a_part_that_is_called_or_read_alone_is_in_the_subspace_too(self):
        base, x = llama(), inputs("llama")
        model = moved(attach(copy.deepcopy(base), SubspaceConfig(30)))
        full = in_full(base, model)[0]
        torch.testing.assert_close(model.model(x).last_hidden_state, full.model(x).last_hidden_state)
        torch.testing.assert_close(model.lm_head.weight, full.lm_head.weight.detach())
        with disabled(model):
            assert torch.equal(model.lm_head.weight, base.lm_head.weight)

    def test_gradient_checkpointing(self):
        model, x = moved(attach(llama(), SubspaceConfig(30))).train(), inputs("llama")
        (expected,) = torch.autograd.grad(loss_of(model, x), [find_subspace(model).v])
        model.gradient_checkpointing_enable()
        loss_of(model, x).backward()
        torch.testing.assert_close(find_subspace(model).v.grad, expected)

    def test_inference_mode_and_back(self):
        model, x = moved(attach(llama(), SubspaceConfig(30))), inputs("llama")
        with torch.inference_mode():
            first = model(x).logits
        loss_of(model, x).backward()
        assert torch.equal(model(x).logits, first)
        layer = moved(attach(nn.Sequential(nn.Linear(3, 2)).double(), SubspaceConfig(4))).requires_grad_(False)
        x = normal(2, 3).requires_grad_()
        with torch.inference_mode():
            layer(x)
        assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0][0], layer[0].weight.sum(0))

    def test_training_and_evaluation_mode_reach_the_layers(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
        attach(model, SubspaceConfig(4))
        model.eval()
        assert not model[1].base.training
        x = normal(6, 3)
        assert torch.equal(model(x), model(x))
        model.train()
        assert model[1].base.training
        assert not torch.equal(model(x), model(x))

    def test_an_interrupted_forward_pass_leaves_the_base(self):
        class Stops(nn.Linear):
            def forward(self, x):
                raise KeyboardInterrupt

        model = attach(nn.Sequential(Stops(2, 2)), SubspaceConfig(2))
        with pytest.raises(KeyboardInterrupt):
            model(torch.ones(1, 2))
        assert isinstance(model[0].base.weight, nn.Parameter)
        copy.deepcopy(model)

    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_torchs_own_transformer(self, grad, training):
        """Attention reads the weight of its output layer without calling it, and takes a fused path in evaluation."""
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        base = nn.Sequential(nn.TransformerEncoder(layer, 2)).double().train(training)
        model = moved(attach(copy.deepcopy(base), SubspaceConfig(20)))
        full, x = in_full(base, model)[0], normal(2, 5, 8)
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(x), full(x))
            assert not torch.allclose(model(x), base(x))
            with disabled(model):
                torch.testing.assert_close(model(x), base(x))

    def test_recurrent_networks_that_keep_a_list_of_their_weights(self):
        class Last(nn.Sequential):
            def forward(self, x):
                return self[1](self[0](x)[0])

        base = Last(nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 1)).double()
        model, x = moved(attach(copy.deepcopy(base), SubspaceConfig(20))), normal(2, 5, 3)
        full = in_full(base, model)[0]
        torch.testing.assert_close(model(x), full(x))
        model(x).square().sum().backward()
        full(x).square().sum().backward()
        g = torch.cat([p.grad.flatten() for p in full.parameters()])
        torch.testing.assert_close(find_subspace(model).v.grad, find_subspace(model).projection.transposed(g))
        assert all(isinstance(weight, nn.Parameter) for weight in model[0].base._flat_weights)
        with disabled(model):
            torch.testing.assert_close(model(x), base(x))
        detach(model)
        assert torch.equal(model(x), base(x))

    def test_a_module_with_a_parameter_beside_a_layer(self):
        base = nn.Sequential(Scaled()).double()
        model, x = moved(attach(copy.deepcopy(base), SubspaceConfig(10))), normal(2, 4)
        full = in_full(base, model)[0]
        assert [name for name, m in model.named_modules() if isinstance(m, SubspaceLayer)] == ["0"]
        torch.testing.assert_close(model(x), full(x))
        torch.testing.assert_close(model[0].inner(x), full[0].inner(x))
        torch.testing.assert_close(model[0].inner.bias, full[0].inner.bias.detach())
        torch.testing.assert_close(model[0].gained(x), full[0].gained(x))
        with disabled(model):
            for part in ("inner", "gained"):
                assert torch.equal(getattr(model[0], part)(x), getattr(base[0], part)(x))

    def test_a_module_with_two_names(self):
        shared = nn.Linear(4, 4)
        base = nn.Sequential(shared, nn.Tanh(), shared).double()
        model, x = moved(attach(copy.deepcopy(base), SubspaceConfig(10))), normal(2, 4)
        assert model[0] is model[2]
        assert find_subspace(model).projection.rows == 20
        torch.testing.assert_close(model(x), in_full(base, model)[0](x))
        detach(model)
        assert model[0] is model[2]
        assert torch.equal(model(x), base(x))

    def test_meta_device(self):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10))
        attach(model, SubspaceConfig(50, structure_aware=True))
        model(torch.ones(2, 100, device="meta")).sum().backward()
        assert find_subspace(model).v.grad.shape == (48,)
        assert account(model).trainable == 50

    def test_the_cost_of_a_step_says_what_it_leaves_out(self):
        costs = account(attach(llama().float(), SubspaceConfig(30)), batch=2, tokens=5).costs
        plain = account(llama().float(), batch=2, tokens=5).costs
        assert costs.forward == plain.forward
        assert costs.gradients == 30 * 4
        assert any("_Weights" in left_out for left_out in costs.not_counted)

    @pytest.mark.parametrize(
        ("parameters", "expected"),
        [
            (("classifier",), ["classifier.weight", "classifier.bias"]),
            (("layer.1.output.dense.weight",), ["bert.encoder.layer.1.output.dense.weight"]),
            (
                ["query"],
                [f"bert.encoder.layer.{i}.attention.self.query.{p}" for i in (0, 1) for p in ("weight", "bias")],
            ),
            (lambda name, p: p.dim() == 1 and "pooler" in name, ["bert.pooler.dense.bias"]),
        ],
    )
    def test_parameters_are_chosen_by_name_or_by_a_function(self, parameters, expected):
        model, x = moved(attach(bert(), SubspaceConfig(3, parameters=parameters))), inputs("bert")
        assert list(find_subspace(model).names) == expected
        torch.testing.assert_close(model(x).logits, in_full(bert(), model)[0](x).logits)
        assert not torch.allclose(model(x).logits, bert()(x).logits)

    def test_a_tied_weight_moves_under_both_its_names(self):
        model = moved(attach(llama(tie_word_embeddings=True), SubspaceConfig(5, parameters=("lm_head",))))
        assert find_subspace(model).projection.rows == 32 * 16
        assert model.lm_head.weight is model.model.embed_tokens.weight
        x = inputs("llama")
        full = llama(tie_word_embeddings=True)
        with torch.no_grad():
            full.lm_head.weight.copy_(model.lm_head.weight)
        torch.testing.assert_close(model(x).logits, full(x).logits)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"dimension": 0}, ValueError, "dimension must be at least 1, got 0"),
            ({"dimension": 2.0}, TypeError, "dimension must be a whole number, got 2.0"),
            ({"dimension": True}, TypeError, "dimension must be a whole number, got True"),
            ({"projection": "gauss"}, ValueError, "projection must be one of fastfood, sparse, dense, got 'gauss'"),
            ({"projection": 3}, ValueError, "projection must be one of .* got 3"),
            ({"structure_aware": 1}, TypeError, "structure_aware must be True, False or a function, got 1"),
            ({"parameters": "weight"}, TypeError, r"write \('weight',\)"),
            ({"parameters": ()}, ValueError, "parameters must name at least one"),
            ({"parameters": ("a", "a")}, ValueError, "parameters must name each"),
            ({"parameters": nn.Linear}, TypeError, "parameters must be a tuple"),
            ({"seed": "0"}, TypeError, "seed must be a whole number, got '0'"),
        ],
    )
    def test_a_wrong_field_is_named(self, options, error, match):
        with pytest.raises(error, match=match):
            SubspaceConfig(**({"dimension": 3} | options))

    @pytest.mark.parametrize(
        ("model", "config", "error", "match"),
        [
            (bert, SubspaceConfig(3, parameters=("querry",)), ValueError, "'querry' names no parameter .* 'query'"),
            (bert, SubspaceConfig(3, parameters=("uery.weight",)), ValueError, "Did you mean 'query.weight'"),
            (bert, SubspaceConfig(3, parameters=lambda *_: False), ValueError, "the function names no parameter"),
            (bert, SubspaceConfig(10**6), ValueError, "dimension must be from 1 to the .* numbers"),
            (bert, SubspaceConfig(20, structure_aware=True), ValueError, "above the 2. layers, .* got 20"),
            (Own, SubspaceConfig(2), TypeError, r"'w' is its own; .* nn.Sequential\(model\)"),
            (nn.Tanh, SubspaceConfig(2), ValueError, "model must have parameters, got a Tanh without"),
            (
                lambda: nn.Sequential(nn.Linear(2**16, 2**10)),
                SubspaceConfig(2**6, "dense"),
                ValueError,
                "'dense' keeps",
            ),
        ],
    )
    def test_an_error_changes_nothing(self, model, config, error, match, portrait):
        model = model()
        before = portrait(model)
        with pytest.raises(error, match=match):
            attach(model, config)
        assert portrait(model) == before

    def test_integer_weights_are_refused_by_name(self):
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].codes = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
        with pytest.raises(TypeError, match=r"'0.codes' is torch.uint8"):
            attach(model, SubspaceConfig(2))

    def test_a_model_without_a_subspace(self):
        with pytest.raises(ValueError, match="model must have a subspace, got a Tanh without"):
            find_subspace(nn.Tanh())

    @pytest.mark.parametrize(
        "config",
        [
            LoRAConfig(targets=("q_proj",)),
            LoRAConfig(targets="all-linear"),
            BitFitConfig(),
            HeadOnlyConfig(("lm_head",)),
            FullConfig(),
            SubspaceConfig(4),
        ],
        ids=lambda config: type(config).__name__,
    )
    def test_no_other_adapter_beside_it(self, config, portrait):
        model = attach(llama(attention_bias=True), SubspaceConfig(3))
        before = portrait(model)
        with pytest.raises((ValueError, TypeError)):
            attach(model, config, name="other")
        assert portrait(model) == before
        if not isinstance(config, SubspaceConfig):
            model = attach(llama(attention_bias=True), config)
            before = portrait(model)
            with pytest.raises(ValueError, match=r"no adapter beside a subspace|train as a whole|biases belong"):
                attach(model, SubspaceConfig(3), name="other")
            assert portrait(model) == before

    def test_rows_of_a_batch_share_it_and_it_is_not_merged(self):
        model = attach(llama(), SubspaceConfig(3), name="low")
        assert active_adapters(model) == {"low": 1.0}
        activate(model, "low")
        assert account(model).trainable == 3
        with pytest.raises(TypeError, match="all rows of a batch share"), routed(model, ["low", None, None]):
            model(inputs("llama"))
        with pytest.raises(ValueError, match="cannot be merged: all weights are computed from v"):
            merge(model)


class Segments(nn.Module):
    """Li et al. (2018), section 2: 1000 numbers in ten segments; segment i must sum to i. The rest is free."""

    def __init__(self, rows=1000, constraints=10):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(rows, dtype=torch.float64))
        self.sums = torch.arange(1, constraints + 1, dtype=torch.float64)

    def forward(self):
        return 0.5 * (self.theta.view(len(self.sums), -1).sum(1) - self.sums).square().sum()


def solved(dimension, seed, kind, rows=1000, constraints=10):
    """Train θ in a subspace by L-BFGS, and give exp(−loss), as the paper scores it: 1 where all is solved."""
    model = attach(nn.Sequential(Segments(rows, constraints)), SubspaceConfig(dimension, kind, seed=seed))
    optimizer = torch.optim.LBFGS([find_subspace(model).v], max_iter=200, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-14)  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = model[0]()
        loss.backward()
        return loss

    optimizer.step(closure)
    return math.exp(-model[0]().item())


class TestIntrinsicDimension:
    @EVERY
    def test_of_a_quadratic_is_the_codimension_of_its_solutions(self, kind):
        found = intrinsic_dimension(lambda d, seed: solved(d, seed, kind), 1.0, largest=100, steps_per_decade=30)
        assert found.value == 10
        assert found.interval == (9, 10)
        assert all(bracket.holds for bracket in found.brackets)
        assert found.threshold == 0.9

    @pytest.mark.parametrize(("rows", "constraints"), [(1000, 4), (600, 25)])
    def test_follows_the_codimension_and_not_the_size(self, rows, constraints):
        found = intrinsic_dimension(
            lambda d, seed: solved(d, seed, "fastfood", rows, constraints),
            1.0,
            largest=40,
            start=20,
            steps_per_decade=40,
            seeds=(0, 1),
        )
        assert found.value == constraints

    def test_search_finds_every_place_of_a_grid_in_few_runs(self):
        for at, start in itertools.product(range(1, 65), (1, 7, 64)):
            runs = []
            found = intrinsic_dimension(
                lambda d, _, at=at, runs=runs: runs.append(d) or float(d >= at),
                1.0, smallest=1, largest=64, start=start, seeds=(0,), steps_per_decade=200,
            )  # fmt: skip
            (bracket,) = found.brackets
            assert bracket.enough == at
            assert bracket.too_small == (at - 1 or None)
            assert len(runs) == len(set(runs)) <= 16
            assert found.scores == {(d, 0): float(d >= at) for d in runs}

    def test_seeds_give_an_interval_and_a_median(self):
        at = {0: 20, 1: 50, 2: 30}
        found = intrinsic_dimension(
            lambda d, s: float(d >= at[s]), 1.0, largest=100, seeds=(0, 1, 2), steps_per_decade=300
        )
        assert found.value == 30
        assert found.interval == (19, 50)
        assert str(found).startswith("intrinsic dimension 30, between 19 and 50 (threshold 0.9, 3 seeds,")
        assert "seed 1: 50 is enough, 49 is too small" in str(found)
        even = intrinsic_dimension(lambda d, s: float(d >= at[s]), 1.0, largest=100, seeds=(0, 1), steps_per_decade=300)
        assert even.value == 20

    def test_the_grid_is_even_in_ratios(self):
        tried = set()
        for at in (5, 100, 10_000, 99_999):
            intrinsic_dimension(
                lambda d, _, at=at: tried.add(d) or float(d >= at), 1.0, largest=10_000, steps_per_decade=1
            )
        assert tried == {1, 10, 100, 1000, 10_000}

    def test_never_reached_is_said(self):
        found = intrinsic_dimension(lambda d, s: 0.5 + 0.4 * (d >= 30) * (s == 0), 1.0, largest=100, seeds=(0, 1))
        assert found.value is None
        assert found.interval[0] < 30
        assert found.interval[1] is None
        assert found.brackets[1].enough is None
        assert found.brackets[1].too_small == 100
        assert "was not found: it is above" in str(found)
        assert "seed 1: not reached, 100 is too small" in str(found)

    def test_reached_by_the_smallest_is_said(self):
        found = intrinsic_dimension(lambda d, s: 1.0, 1.0, smallest=10, largest=100)
        assert found.value is None
        assert found.interval == (None, 10)
        assert "was not found: it is at most 10" in str(found)
        assert "seed 0: 10 or fewer, the smallest tried is enough" in str(found)

    def test_a_score_that_falls_back_is_said(self):
        found = intrinsic_dimension(lambda d, s: float(d >= 30 and d != 31), 1.0, largest=100, steps_per_decade=300)
        assert found.value is None
        assert found.interval == (29, None)
        assert found.brackets[0].falls_back == (31,)
        assert "seed 0: 30 is enough, 29 is too small; but 31 is under the threshold again" in str(found)

    def test_threshold(self):
        def at(**options):
            return intrinsic_dimension(lambda d, _: float(d >= 5), 0.9, largest=10, **options).threshold

        assert at() == pytest.approx(0.81)  # 90 % of the score
        assert at(baseline=0.5) == pytest.approx(0.86)  # 90 % of the way
        assert at(baseline=0.5, share=0.5) == pytest.approx(0.7)

    def test_a_given_grid_is_the_one_that_is_searched(self):
        grid = (3, 10, 40, 41, 500)
        found = intrinsic_dimension(lambda d, _: float(d >= 40), 1.0, grid=grid, seeds=(0,))
        assert (found.value, found.interval) == (40, (10, 40))
        assert {dimension for dimension, _ in found.scores} <= set(grid)

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"largest": None}, TypeError, "give either largest, .* or grid alone"),
            ({"grid": (1, 2)}, TypeError, "or grid alone"),
            ({"largest": None, "grid": (1, 2), "smallest": 2}, TypeError, "or grid alone"),
            ({"largest": None, "grid": (1, 2), "steps_per_decade": 3}, TypeError, "or grid alone"),
            ({"largest": None, "grid": (1,)}, ValueError, r"grid must have two dimensions at least, .* got \[1\]"),
            ({"largest": None, "grid": (1, 3, 3)}, ValueError, "each larger than the one before"),
            ({"largest": None, "grid": (0, 3)}, ValueError, "grid must be at least 1"),
            ({"score": 3}, TypeError, "score must be a function .* got 3"),
            ({"full_score": math.nan}, ValueError, "full_score must be finite"),
            ({"full_score": "1"}, TypeError, "full_score must be a number, got '1'"),
            ({"full_score": 0.5, "baseline": 0.5}, ValueError, "full_score must be above the baseline 0.5, got 0.5"),
            ({"share": 0}, ValueError, "share must be above 0 and at most 1, got 0"),
            ({"share": 1.1}, ValueError, "share must be above 0"),
            ({"largest": 1}, ValueError, "largest must be above smallest=1, got 1"),
            ({"smallest": 0}, ValueError, "smallest must be at least 1"),
            ({"largest": 2.5}, TypeError, "largest must be a whole number"),
            ({"start": 11}, ValueError, "start must be from smallest=1 to largest=10, got 11"),
            ({"seeds": ()}, ValueError, r"seeds must be one at least, and each once, got \(\)"),
            ({"seeds": (1, 1)}, ValueError, "each once"),
            ({"seeds": ("a",)}, TypeError, "seeds must be whole numbers"),
            ({"steps_per_decade": 0}, ValueError, "steps_per_decade must be at least 1"),
            ({"score": lambda d, s: math.nan}, ValueError, r"score\(\d+, 0\) must be finite, got nan"),
            ({"score": lambda d, s: None}, TypeError, r"score\(\d+, 0\) must be a number, got None"),
        ],
    )
    def test_wrong_arguments(self, options, error, match):
        defaults = {"score": lambda d, s: 1.0, "full_score": 1.0, "largest": 10}
        with pytest.raises(error, match=match):
            intrinsic_dimension(**(defaults | options))
