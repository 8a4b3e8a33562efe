"""Every kind of layer computes, learns and merges as its formula says, and as PEFT's does."""

import copy

import loralib
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_lab.lora import LoRAConfig, LoRAEmbedding, attach, lora_layers, merge, unmerge

pytestmark = pytest.mark.filterwarnings("ignore")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def indices(*shape, seed=0):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), lambda: draw(3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), lambda: draw(2, 3, 6)),
    "transposed": (lambda: Conv1D(5, 6), lambda: draw(2, 3, 6)),
    "embedding": (lambda: nn.Embedding(11, 5), lambda: indices(2, 3)),
    "embedding with padding": (lambda: nn.Embedding(11, 5, padding_idx=2), lambda: indices(4, 3)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda: draw(2, 4, 9)),
    "conv1d unbatched": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), lambda: draw(4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), bias=False), lambda: draw(2, 4, 5, 5)),
    "conv2d strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), lambda: draw(2, 4, 7, 7)),
    "conv2d of one pixel": (lambda: nn.Conv2d(4, 6, 1), lambda: draw(2, 4, 3, 3)),
    "conv2d as wide as the picture": (lambda: nn.Conv2d(3, 6, 4, stride=4), lambda: draw(2, 3, 8, 8)),
}
GROUPED = {
    "conv1d in groups": (lambda: nn.Conv1d(4, 6, 3, groups=2, padding=1), lambda: draw(2, 4, 9)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: draw(2, 4, 7, 7)),
    "conv2d dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), lambda: draw(2, 4, 9, 9)),
    "conv2d circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), lambda: draw(2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), lambda: draw(2, 4, 5, 5)),
}


def model_of(build, seed=1):
    """A model of one layer, '0', with drawn weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(build()).double()


def adapted(build, *, seed=7, **options):
    """A model with LoRA on its one layer, both factors drawn and the magnitude moved."""
    model = attach(model_of(build), LoRAConfig(**({"rank": 2, "alpha": 5, "targets": ("0",)} | options)))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad and not (parameter.dim() == 1 and options.get("bias")):
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def twin(build, ours, **options):
    """PEFT's model on the same base with the same factors and magnitude."""
    theirs = peft.get_peft_model(
        model_of(build), peft.LoraConfig(r=2, lora_alpha=5, target_modules=["0"], **options)
    ).base_model.model
    (layer,) = lora_layers(ours).values()
    other, mine = theirs[0], layer.adapter
    with torch.no_grad():
        if "default" in other.lora_embedding_A:
            other.lora_embedding_A["default"].copy_(mine.lora_A)
            other.lora_embedding_B["default"].copy_(mine.lora_B)
        else:
            other.lora_A["default"].weight.copy_(mine.lora_A)
            other.lora_B["default"].weight.copy_(mine.lora_B)
        if mine.magnitude is not None:
            magnitude = other.lora_magnitude_vector["default"].weight
            magnitude.copy_(mine.magnitude.view_as(magnitude))
    return theirs


def factors_of(theirs):
    layer = theirs[0]
    if "default" in layer.lora_embedding_A:
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def output_and_gradients(model, x, factors):
    x = x.clone().requires_grad_(x.is_floating_point())
    y = model(x)
    wanted = [*factors, *([x] if x.is_floating_point() else [])]
    return [y, *torch.autograd.grad(y.sin().sum(), wanted)]


def close(one, other):
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs.view_as(mine), rtol=1e-12, atol=1e-12)


# PEFT's DoRA takes a convolution's input in batches alone.
AS_IN_PEFT = [(name, dora) for name in LAYERS for dora in (False, True) if not (dora and name == "conv1d unbatched")]


@pytest.mark.parametrize(("name", "dora"), AS_IN_PEFT)
def test_output_and_gradients_are_those_of_peft(name, dora):
    build, make = LAYERS[name]
    ours = adapted(build, dora=dora)
    theirs = twin(build, ours, use_dora=dora)
    layer = lora_layers(ours)["0"]
    mine, yours = [layer.lora_A, layer.lora_B], [*factors_of(theirs)]
    if dora:
        mine.append(layer.adapter.magnitude)
        yours.append(theirs[0].lora_magnitude_vector["default"].weight)
    close(output_and_gradients(ours, make(), mine), output_and_gradients(theirs, make(), yours))


@pytest.mark.parametrize(("name", "dora"), [pair for pair in AS_IN_PEFT if not pair[0].startswith("embedding")])
def test_dropout_draws_and_computes_as_in_peft(name, dora):
    build, make = LAYERS[name]
    ours = adapted(build, dora=dora, dropout=0.5).train()
    theirs = twin(build, ours, use_dora=dora, lora_dropout=0.5).train()
    results = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        results.append(model(make()))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_dropout_leaves_an_embedding_alone():
    build, make = LAYERS["embedding"]
    ours = adapted(build, dropout=0.9).train()
    torch.testing.assert_close(ours(make()), ours.eval()(make()), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}, {"init": "gaussian"}])
def test_is_the_layer_with_the_weight_it_says(name, variant):
    """The base with ``layer.weight`` in place of its own computes the same, which is what merging relies on."""
    build, make = (LAYERS | GROUPED)[name]
    options = {"rank": 4, **variant} if name == "depthwise" else variant
    ours, plain = adapted(build, **options), model_of(build)
    with torch.no_grad():
        plain[0].weight.copy_(lora_layers(ours)["0"].weight)
    assert not torch.allclose(plain(make()), model_of(build)(make()))
    torch.testing.assert_close(ours(make()), plain(make()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
@pytest.mark.parametrize("dora", [False, True])
def test_merges_and_comes_back(name, dora, bits):
    build, make = (LAYERS | GROUPED)[name]
    ours = adapted(build, dora=dora, rank=4 if name == "depthwise" else 2)
    before, expected = bits(ours[0].base.weight), ours(make())
    merge(ours)
    torch.testing.assert_close(ours(make()), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[0].base(make()), expected, rtol=1e-10, atol=1e-10)
    assert bits(ours[0].base.weight) != before
    unmerge(ours)
    assert bits(ours[0].base.weight) == before
    assert torch.equal(ours(make()), expected)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "conv2d of one pixel"])
@pytest.mark.parametrize("dora", [False, True])
def test_merges_as_peft_does(name, dora):
    build, _ = LAYERS[name]
    ours = adapted(build, dora=dora)
    theirs = twin(build, ours, use_dora=dora)
    theirs[0].merge()
    torch.testing.assert_close(lora_layers(ours)["0"].weight, theirs[0].base_layer.weight.data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"init": "gaussian"}])
def test_nothing_changes_at_step_0(name, variant):
    build, make = (LAYERS | GROUPED)[name]
    model = model_of(build)
    expected = model(make())
    rank = 4 if name == "depthwise" else 2
    attach(model, LoRAConfig(rank, targets=("0",), **variant))
    if variant.get("dora"):  # the magnitude over the length is 1 but for rounding
        torch.testing.assert_close(model(make()), expected, rtol=1e-14, atol=1e-14)
    else:
        assert torch.equal(model(make()), expected)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
def test_one_factor_learns_at_step_0_and_both_after_it(name):
    build, make = (LAYERS | GROUPED)[name]
    model = attach(model_of(build), LoRAConfig(4 if name == "depthwise" else 2, targets=("0",)))
    layer = lora_layers(model)["0"]
    optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.1)
    moves = []
    for _ in range(2):
        optimizer.zero_grad()
        model(make()).square().sum().backward()
        moves.append([bool(factor.grad.abs().max() > 0) for factor in (layer.lora_A, layer.lora_B)])
        optimizer.step()
    at_first = [True, False] if "embedding" in name else [False, True]
    assert moves == [at_first, [True, True]]


def test_an_embedding_starts_as_in_loralib_and_peft():
    layer = lora_layers(attach(model_of(lambda: nn.Embedding(3000, 50)), LoRAConfig(8, targets=("0",))))["0"]
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((8, 3000), (50, 8))
    assert not layer.lora_A.any()
    assert layer.lora_B.std().item() == pytest.approx(1, rel=0.1)


def test_a_convolution_starts_as_in_peft():
    ours = attach(model_of(lambda: nn.Conv2d(64, 8, 5)), LoRAConfig(4, targets=("0",)))
    theirs = peft.get_peft_model(model_of(lambda: nn.Conv2d(64, 8, 5)), peft.LoraConfig(r=4, target_modules=["0"]))
    layer, other = lora_layers(ours)["0"], theirs.base_model.model[0]
    assert layer.lora_A.shape == other.lora_A["default"].weight.shape
    assert layer.lora_A.abs().max() <= 1 / (64 * 25) ** 0.5
    assert layer.lora_A.std().item() == pytest.approx(other.lora_A["default"].weight.std().item(), rel=0.1)
    assert not layer.lora_B.any()


def test_the_update_of_a_convolution_is_a_product_of_matrices():
    layer = lora_layers(adapted(LAYERS["conv2d"][0]))["0"]
    update = (layer.weight - layer.base.weight).flatten(1)  # (6, 4 · 3 · 2)
    expected = 5 / 2 * layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)
    torch.testing.assert_close(update, expected, rtol=1e-10, atol=1e-10)
    assert torch.linalg.matrix_rank(update) == 2


def test_each_group_of_a_convolution_has_an_update_of_its_own():
    """With two groups the first three outputs are those of a convolution of the first two inputs alone."""
    build, make = GROUPED["conv2d in groups"]
    ours, x = adapted(build), make()
    layer = lora_layers(ours)["0"]
    kernel = layer.base.weight[:3] + 5 / 2 * (layer.lora_B[:3].flatten(1) @ layer.lora_A[:1].flatten(1)).view(
        3, 2, 3, 3
    )
    expected = F.conv2d(x[:, :2], kernel, layer.bias[:3])
    torch.testing.assert_close(ours(x)[:, :3], expected, rtol=1e-10, atol=1e-10)


def test_a_row_of_dora_keeps_its_length():
    """B A turns the rows; how long they are is up to the magnitude alone."""
    ours = adapted(LAYERS["linear"][0], dora=True)
    layer = lora_layers(ours)["0"]
    torch.testing.assert_close(layer.weight.norm(dim=1), layer.adapter.magnitude.abs(), rtol=1e-12, atol=1e-12)


def test_dora_starts_with_the_lengths_of_the_rows():
    model = model_of(LAYERS["linear"][0])
    lengths = model[0].weight.norm(dim=1)
    layer = lora_layers(attach(model, LoRAConfig(2, targets=("0",), dora=True)))["0"]
    torch.testing.assert_close(layer.adapter.magnitude, lengths, rtol=1e-14, atol=0)


class TestPissa:
    @pytest.fixture(params=["linear", "transposed"])
    def build(self, request):
        return LAYERS[request.param][0]

    def options(self, **more):
        return LoRAConfig(**({"rank": 2, "alpha": 5, "targets": ("0",), "init": "pissa"} | more))

    def test_starts_from_the_leading_singular_vectors(self, build):
        layer = lora_layers(attach(model_of(build), self.options()))["0"]
        weight = layer.base.weight if not layer.transposed else layer.base.weight.T
        U, s, Vt = torch.linalg.svd(weight)
        torch.testing.assert_close(layer.scale * layer.lora_B @ layer.lora_A, U[:, :2] * s[:2] @ Vt[:2])
        sizes = layer.lora_A.norm(dim=1), layer.lora_B.norm(dim=0)
        torch.testing.assert_close(*sizes)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_leaves_base_and_output_as_they_are(self, build, dtype, bits):
        model, x = model_of(build).to(dtype), draw(2, 3, 6).to(dtype)
        before, expected = bits(model[0].weight), model(x)
        attach(model, self.options())
        assert bits(model[0].base.weight) == before
        assert torch.equal(model(x), expected)

    def test_computes_and_learns_as_in_peft(self, build):
        """PEFT takes the start out of the base weight; ours takes it away in the sum. After a step both are equal."""
        model = model_of(build).float()
        theirs = peft.get_peft_model(
            copy.deepcopy(model),
            peft.LoraConfig(r=2, lora_alpha=5, target_modules=["0"], init_lora_weights="pissa"),
        ).base_model.model
        base = model[0].weight.detach().clone()
        attach(model, self.options())
        assert torch.equal(model[0].base.weight, base)
        assert not torch.allclose(theirs[0].base_layer.weight, base)  # PEFT changed the base
        x = draw(2, 3, 6).float()
        for one in (model, theirs):
            optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.05)
            for _ in range(3):
                optimizer.zero_grad()
                one(x).sin().sum().backward()
                optimizer.step()
        assert not torch.allclose(model(x), model[0].base(x))
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-5)

    def test_the_start_does_not_train(self, build):
        model = attach(model_of(build), self.options())
        start = model[0].adapter.start_A.clone(), model[0].adapter.start_B.clone()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        model(draw(2, 3, 6)).sum().backward()
        optimizer.step()
        assert torch.equal(model[0].adapter.start_A, start[0])
        assert torch.equal(model[0].adapter.start_B, start[1])
        assert not torch.equal(model[0].lora_A, start[0])

    def test_merges_to_what_it_computes(self, build):
        model, x = adapted(build, init="pissa"), draw(2, 3, 6)
        expected = model(x)
        merge(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)

    def test_is_for_linear_layers(self):
        with pytest.raises(TypeError, match=r"init='pissa' is for linear layers, but '0' is a torch.nn.Embedding"):
            attach(model_of(LAYERS["embedding"][0]), self.options())

    def test_needs_a_finite_weight(self, build):
        model = model_of(build)
        model[0].weight.data[0, 0] = torch.inf
        with pytest.raises(ValueError, match="targets: '0': init='pissa' needs a finite weight"):
            attach(model, self.options())


@pytest.mark.parametrize(
    ("build", "rank", "error", "match"),
    [
        (lambda: nn.Embedding(11, 5), 6, ValueError, "at most .* = 5 for '0', got 6"),
        (lambda: nn.Embedding(11, 5, max_norm=1.0), 2, ValueError, "without max_norm"),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), 3, ValueError, "divisible by the groups of '0', which are 2, got 3"),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), 8, ValueError, "= 6 for '0', got 8"),
        (lambda: nn.Conv2d(1, 6, 1), 2, ValueError, "= 1 for '0', got 2"),
        (lambda: nn.ConvTranspose2d(4, 6, 3), 2, TypeError, "got .*ConvTranspose2d"),
        (lambda: nn.Conv3d(4, 6, 3), 2, TypeError, "got .*Conv3d"),
        (lambda: nn.EmbeddingBag(11, 5), 2, TypeError, "got .*EmbeddingBag"),
        (lambda: nn.LayerNorm(5), 2, TypeError, "got .*LayerNorm"),
    ],
)
def test_refuses_what_it_cannot_adapt(build, rank, error, match, portrait):
    model = nn.Sequential(build())
    before = portrait(model)
    with pytest.raises(error, match=match):
        attach(model, LoRAConfig(rank, targets=("0",)))
    assert portrait(model) == before


class TestLoralib:
    """The first implementation of LoRA computes, learns and merges the same."""

    @pytest.fixture(params=["linear", "embedding"])
    def pair(self, request):
        build, make = LAYERS[request.param]
        ours = adapted(build)
        if request.param == "linear":
            theirs = loralib.Linear(6, 5, r=2, lora_alpha=5).double()
        else:
            theirs = loralib.Embedding(11, 5, r=2, lora_alpha=5).double()
        layer = ours[0]
        state = {"weight": layer.base.weight, "lora_A": layer.lora_A, "lora_B": layer.lora_B}
        theirs.load_state_dict(state | ({"bias": layer.bias} if layer.bias is not None else {}))
        return ours, theirs, make()

    def test_output_and_gradients(self, pair):
        ours, theirs, x = pair
        close(
            output_and_gradients(ours, x, [ours[0].lora_A, ours[0].lora_B]),
            output_and_gradients(theirs, x, [theirs.lora_A, theirs.lora_B]),
        )

    def test_merging(self, pair):
        ours, theirs, x = pair
        theirs.eval()  # loralib merges here
        torch.testing.assert_close(ours[0].weight, theirs.weight, rtol=1e-12, atol=1e-12)
        merge(ours)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_the_index_of_padding_learns_nothing_as_in_the_base():
    layer = LoRAEmbedding(nn.Embedding(11, 5, padding_idx=2).double(), LoRAConfig(2))
    with torch.no_grad():
        layer.lora_A.normal_(generator=torch.Generator().manual_seed(0))
    layer(torch.tensor([[1, 2, 3]])).sum().backward()
    assert [index for index in range(11) if layer.lora_A.grad[:, index].any()] == [1, 3]
