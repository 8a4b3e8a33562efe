"""What a step costs: against torch's FLOP counter, against what autograd saves, and against the measured peak."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lora_lab.lora import (
    BitFitConfig,
    BottleneckConfig,
    Costs,
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    account,
    attach,
    attention_flops,
    convolution_flops,
    product_flops,
    quantize_linears,
)

aten = torch.ops.aten
FUSED = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}  # torch's own formulas, which it keeps for the kernels of a GPU


def build(family: str, attention: str = "eager", *, layers: int = 3, vocabulary: int = 32, **options: Any) -> nn.Module:
    """Give a small Llama, whose query heads share key heads, or a small GPT-2, which drops nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    common = {"vocab_size": vocabulary, "attn_implementation": attention, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        if family == "llama":
            shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
            return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **(common | shape | options)))
        shape = {"n_embd": 16, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_layer=layers, **(common | shape | options)))


def last_layer(name: str, module: nn.Module) -> bool:
    return (".2." in name and isinstance(module, nn.Linear)) or name == "transformer.h.2.attn.c_attn"


QV = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",)}
WAYS: dict[str, Callable[[str], Any]] = {
    "full": lambda _: None,
    "q and v": lambda family: LoRAConfig(rank=2, targets=QV[family]),
    "q and v, rank 5": lambda family: LoRAConfig(rank=5, targets=QV[family]),
    "all linear": lambda _: LoRAConfig(rank=3, targets="all-linear"),
    "last layer": lambda _: LoRAConfig(rank=2, targets=last_layer),
    "dropout": lambda _: LoRAConfig(rank=2, targets="all-linear", dropout=0.5),
    "no dropout": lambda _: LoRAConfig(rank=2, targets="all-linear"),
    "DoRA": lambda _: LoRAConfig(rank=2, targets="all-linear", dora=True),
    "DoRA, dropout": lambda family: LoRAConfig(rank=2, targets=QV[family], dora=True, dropout=0.5),
    "PiSSA": lambda family: LoRAConfig(rank=2, targets=QV[family], init="pissa"),
    "a layer as a whole": lambda family: LoRAConfig(rank=2, targets=QV[family], modules_to_save=("1.mlp",)),
    "embedding": lambda family: LoRAConfig(
        2, targets=("wte", "wpe") if family == "gpt2" else ("embed_tokens",), tied="untie"
    ),
    "shared with the head": lambda family: LoRAConfig(
        2, targets=("wte",) if family == "gpt2" else ("embed_tokens",), tied="share"
    ),
    "biases": lambda family: BitFitConfig() if family == "gpt2" else LoRAConfig(2, targets=QV[family], bias="none"),
    "bottlenecks": lambda family: BottleneckConfig(3, targets=("mlp",), features=16),
    "head": lambda _: HeadOnlyConfig(("lm_head",)),
    "full, attached": lambda _: FullConfig(),
}


def prepared(family: str, way: str, attention: str = "eager", **options: Any) -> nn.Module:
    """Give a small model, with whatever the way attaches to it."""
    model = build(family, attention, **options)
    config = WAYS[way](family)
    return model if config is None else attach(model, config)


def measured(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[int, int, int]:
    """Run a real step, and give its operations forward and backward, and the bytes that autograd saved."""
    own = {storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage()
        return tensor

    model.train()
    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False, custom_mapping=FUSED) as forward, saving:
        output = model(*args, **kwargs)
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
        getattr(output, "logits", output).sum().backward()
    return forward.get_total_flops(), backward.get_total_flops(), sum(part.nbytes() for part in kept.values())


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def counted(costs: Costs | None) -> tuple[int, int, int]:
    assert costs is not None
    return costs.forward, costs.backward, costs.activations


def ids(batch: int, tokens: int, vocabulary: int = 32) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_operations_and_activations_are_those_of_torch_to_the_last_one(family, way):
    model = prepared(family, way)
    costs = account(model, batch=2, tokens=7).costs
    assert counted(costs) == measured(model, input_ids=ids(2, 7), use_cache=False)
    assert costs.not_counted == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["full", "last layer"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fused_attention_keeps_no_scores_and_computes_them_again(family, way, dtype):
    model = prepared(family, way, "sdpa").to(dtype)
    costs = account(model, batch=3, tokens=5).costs
    forward, backward, activations = measured(model, input_ids=ids(3, 5), use_cache=False)
    assert (costs.forward, costs.backward) == (forward, backward)
    # Mean and deviation of a layer norm are bfloat16 on a CPU alone; other devices keep them in float32.
    norms = {"full": 7, "last layer": 2}[way] if family == "gpt2" and dtype == torch.bfloat16 else 0
    assert costs.activations == activations + norms * 2 * (3 * 5) * (4 - 2)
    eager = account(prepared(family, way).to(dtype), batch=3, tokens=5).costs
    assert costs.forward == eager.forward
    assert costs.backward > eager.backward


def test_the_formulas_of_a_frozen_layer_a_lora_path_and_attention():
    """Width 16, rank 2, 4 heads; keys and values are 8 wide, the MLP 24, the vocabulary 32."""
    batch, tokens, d, r = 2, 7, 16, 2
    costs = account(prepared("llama", "q and v"), batch=batch, tokens=tokens).costs
    rows = {(row.name, row.role): (row.forward, row.backward) for row in costs.layers if row.forward}
    one = batch * tokens
    block = "model.layers.{}.self_attn"
    path, layer = 2 * r * (d + d) * one, 2 * d * d * one
    assert rows[block.format(0) + ".q_proj", "layer"] == (layer, 0)  # nothing that trains lies below
    assert rows[block.format(1) + ".q_proj", "layer"] == (layer, layer)  # the gradient of its input
    assert rows[block.format(0) + ".q_proj", "adapter"] == (path, path + 2 * r * d * one)  # A, B, and what is between
    assert rows[block.format(1) + ".q_proj", "adapter"] == (path, 2 * path)
    assert rows[block.format(0) + ".k_proj", "layer"] == (2 * d * 8 * one, 0)
    attention = 2 * (2 * tokens * d) * one  # two products
    assert rows[block.format(0), "products"] == (attention, attention * 3 // 2)  # keys of the first layer need none
    assert rows[block.format(1), "products"] == (attention, 2 * attention)
    assert rows["model.layers.2.mlp.up_proj", "layer"] == (2 * d * 24 * one, 2 * d * 24 * one)
    assert rows["lm_head", "layer"] == (2 * d * 32 * one, 2 * d * 32 * one)
    assert costs.forward == sum(forward for forward, _ in rows.values())
    assert costs.backward == sum(backward for _, backward in rows.values())
    assert costs.forward_per_token == costs.forward / one


def test_nothing_below_the_first_adapter_is_in_the_backward_pass():
    costs = account(prepared("llama", "last layer"), batch=2, tokens=7).costs
    below = [row for row in costs.layers if ".0." in row.name or ".1." in row.name]
    assert sum(row.forward for row in below) > 0
    assert all(row.backward == row.activations == 0 for row in below)


def test_full_fine_tuning_is_three_times_the_forward_pass():
    """The 6 N operations a token of Kaplan et al. (2020), table 1: 2 N forward, 4 N backward, N without embeddings."""
    model = build("gpt2")
    N = sum(
        p.numel() for name, p in model.named_parameters() if ".h." in name and "weight" in name and "ln" not in name
    )
    costs = account(model, batch=2, tokens=7).costs
    products = sum(row.forward for row in costs.layers if row.role == "products")
    head = next(row for row in costs.layers if row.name == "lm_head")
    assert costs.forward - products - head.forward == 2 * N * 14
    assert costs.backward == 2 * costs.forward


def profiled(step: Callable[[], None]) -> int:
    """Give the most bytes that were allocated at once in a step, beyond what there was before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert peak > 0
    return peak


def step_in_bytes(model: nn.Module, batch: int, tokens: int, vocabulary: int, *, drop: bool = True) -> int:
    """Give the measured peak of a step with AdamW that is not the first; with ``drop=False`` gradients are kept."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    text = ids(batch, tokens, vocabulary)

    def step() -> None:
        if drop:
            optimizer.zero_grad()
        output = model(input_ids=text, labels=text, use_cache=False)
        output.loss.backward()
        if drop:
            optimizer.step()

    model.train()
    step()
    optimizer.zero_grad() if drop else optimizer.step()
    there = [*model.parameters(), *model.buffers(), *(p.grad for p in trained if p.grad is not None)]
    there += [part for state in optimizer.state.values() for part in state.values() if part.dim()]
    return sum({storage(part): part.untyped_storage().nbytes() for part in there}.values()) + profiled(step)


WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 64, "n_head": 4},
}


@pytest.mark.parametrize("vocabulary", [64, 2000])
@pytest.mark.parametrize("way", ["full", "q and v", "last layer"])
@pytest.mark.parametrize(
    ("family", "attention", "dtype"),
    [("llama", "eager", torch.float32), ("llama", "sdpa", torch.bfloat16), ("gpt2", "eager", torch.float32)],
    ids=str,
)
def test_the_measured_peak_lies_in_the_band_that_account_states(family, attention, dtype, way, vocabulary):
    model = prepared(family, way, attention, vocabulary=vocabulary, **WIDE[family]).to(dtype)
    costs = account(model, batch=4, tokens=64).costs
    peak = step_in_bytes(model, 4, 64, vocabulary)
    if vocabulary == 2000:  # the logits are most of it
        assert 0.99 <= peak / costs.peak <= 1.01
    assert 0.98 <= peak / costs.peak <= 1.25


@pytest.mark.parametrize("way", ["full", "all linear"])
def test_the_end_of_the_backward_pass_is_the_peak_where_tokens_are_few(way):
    model = prepared("llama", way, vocabulary=500, **WIDE["llama"])
    costs = account(model, batch=1, tokens=8).costs
    assert (costs.gradients > costs.activations + costs.logits) == (way == "full")
    assert 0.98 <= step_in_bytes(model, 1, 8, 500) / costs.peak <= 1.25


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_gradients_kept_the_measured_peak_is_the_total(family):
    model = prepared(family, "full", vocabulary=500, **WIDE[family])
    costs = account(model, batch=4, tokens=64).costs
    assert costs.total > 1.05 * costs.peak
    assert 0.98 <= step_in_bytes(model, 4, 64, 500, drop=False) / costs.total <= 1.25


def test_weights_gradients_and_moments_have_the_bytes_that_torch_gives_them():
    model = prepared("llama", "q and v").to(torch.bfloat16)
    text = ids(2, 7)
    for name, make in {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
        "sgd": torch.optim.SGD,
    }.items():
        costs = account(model, batch=2, tokens=7, optimizer=name).costs
        optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        states = [part for state in optimizer.state.values() for part in state.values() if torch.is_tensor(part)]
        assert costs.optimizer_states == sum(part.nbytes for part in states if part.dim())
        assert costs.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        assert costs.weights == sum(part.nbytes for part in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_logits_take_their_type_and_three_times_float32(dtype):
    costs = account(build("llama").to(dtype), batch=2, tokens=7).costs
    assert costs.logits == 2 * 7 * 32 * (dtype.itemsize + 12)


def convolutions(groups: int = 1) -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, (1, 3), groups=groups, dilation=1),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(2, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(4 * 32, 3),
    )
    return model, torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("targets", [None, ("0", "4", "7", "9"), ("4",), ("7", "9")])
def test_convolutions_of_a_plain_module(targets):
    model, x = convolutions()
    if targets is not None:
        attach(model, LoRAConfig(rank=2, targets=targets))
    costs = account(model, inputs=x).costs
    assert counted(costs) == measured(model, x)
    assert (costs.batch, costs.tokens, costs.positions) == (2, None, 2)
    assert costs.not_counted == ("the loss, since the model's output has no logits",)


def test_groups_make_a_kernel_cheaper_in_both_directions():
    """torch's counter takes the gradient of a grouped weight for that of a whole one, ``groups`` times too much."""
    model, x = convolutions(groups=4)
    costs = account(model, inputs=x).costs
    forward, backward, activations = measured(model, x)
    grouped = next(row for row in costs.layers if row.name == "4")
    assert (costs.forward, costs.activations) == (forward, activations)
    assert costs.backward == backward - (4 - 1) * grouped.forward
    assert grouped.backward == 2 * grouped.forward


class Parts(nn.Module):
    """An embedding, a head, a branch that leads nowhere, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice, self.lost = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.twice(torch.tanh(self.twice(self.table(x))))
        torch.tanh(self.lost(h))
        return self.head(h)


@pytest.mark.parametrize("targets", [None, ("twice",), ("table", "head"), ("head",), ("lost", "table")])
def test_a_branch_that_reaches_no_output_has_no_backward_pass(targets):
    model = Parts()
    if targets is not None:
        attach(model, LoRAConfig(rank=2, targets=targets))
    costs = account(model, batch=2, tokens=5).costs
    assert costs.forward == measured(model, ids(2, 5, 11))[0]
    assert costs.backward == measured(model, ids(2, 5, 11))[1]
    assert all(row.backward == row.activations == 0 for row in costs.layers if row.name == "lost")


def test_a_base_in_four_bits_is_counted_with_what_it_dequantizes():
    model = attach(quantize_linears(Parts()), LoRAConfig(rank=2, targets=("twice",)))
    whole = account(attach(Parts(), LoRAConfig(rank=2, targets=("twice",))))
    count = account(model, batch=2, tokens=5)
    assert (count.base, count.adapter, count.layers) == (whole.base, whole.adapter, whole.layers)
    assert count.base_bytes < whole.base_bytes
    assert count.costs.weights == count.base_bytes + count.adapter_bytes
    assert counted(count.costs)[:2] == measured(model, ids(2, 5, 11))[:2]


def test_several_adapters_cost_what_the_active_ones_do():
    model = prepared("llama", "q and v")
    alone = account(model, batch=2, tokens=7)
    attach(model, LoRAConfig(rank=5, targets="all-linear"), name="second")
    both = account(model, batch=2, tokens=7)
    assert counted(both.costs) == measured(model, input_ids=ids(2, 7), use_cache=False)
    assert both.adapter > alone.adapter
    assert both.costs.weights - alone.costs.weights == both.adapter_bytes - alone.adapter_bytes
    one = attach(build("llama"), LoRAConfig(rank=5, targets="all-linear"))
    assert counted(both.costs) == counted(account(one, batch=2, tokens=7).costs)


@pytest.mark.parametrize("kind", ["bottlenecks", "head", "biases", "full, attached"])
def test_the_alternatives_are_counted_too(kind):
    model = prepared("gpt2", kind)
    count = account(model)
    base = account(build("gpt2"))
    assert count.base == base.base
    assert count.adapter == {"bottlenecks": 3 * (2 * 16 * 3 + 16 + 3), "head": 16 * 32}.get(kind, 0)
    assert account(model, batch=2, tokens=7).costs.gradients == 4 * count.trainable


def test_the_model_does_not_run_and_nothing_of_it_changes(portrait):
    model = prepared("llama", "dropout")
    model.eval()
    before, state = portrait(model), torch.random.get_rng_state()
    account(model, batch=2, tokens=7)
    assert portrait(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.use_cache


def test_the_meta_device_serves_and_gives_the_same_costs():
    for way in ("full", "q and v"):
        assert account(prepared("llama", way).to("meta"), batch=2, tokens=7) == account(
            prepared("llama", way), batch=2, tokens=7
        )


def test_the_step_is_one_of_training_though_the_model_is_in_evaluation_mode():
    training = account(prepared("llama", "dropout").train(), batch=2, tokens=7)
    assert account(prepared("llama", "dropout").eval(), batch=2, tokens=7) == training
    assert training.costs.activations > account(prepared("llama", "no dropout"), batch=2, tokens=7).costs.activations


class Asks(nn.Module):
    """A model that asks of its data whether all of it is in order, and whether any of it is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.more = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) if (x >= 0).all() else self.more(x)
        return self.more(y) if (x == 0).any() else y


def test_what_a_model_asks_of_its_data_is_answered_as_for_whole_texts():
    assert [row.name for row in account(Asks(), batch=2, tokens=3).costs.layers] == ["layer"]


def test_padding_is_taken_for_absent_and_positions_for_consecutive():
    model = build("gpt2", pad_token_id=0)
    assert counted(account(model, batch=2, tokens=7).costs) == counted(account(build("gpt2"), batch=2, tokens=7).costs)


class Doubled(torch.autograd.Function):
    """A function with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad


class Odd(nn.Module):
    """A layer, and then something that this package knows nothing of."""

    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(4, 4), what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.what(self.layer(x))


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (torch.linalg.inv, "aten::linalg_inv_ex in the model itself (Odd)"),
        (lambda x: torch.fft.fft(x).real, "aten::_fft_r2c in the model itself (Odd)"),
        (Doubled.apply, "the backward pass of Doubled"),
    ],
)
def test_what_is_not_counted_is_named(what, line):
    count = account(Odd(what), inputs=torch.zeros(3, 4, 4))
    assert line in count.costs.not_counted
    assert f"not counted: {line}" in str(count)


def test_an_attention_that_may_be_fused_is_named():
    """Inside ``nn.MultiheadAttention`` the call cannot be seen, so it is counted as its two products, by this name."""
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    assert (
        "aten::_safe_softmax in 0.self_attn (MultiheadAttention)" in account(model, batch=2, tokens=3).costs.not_counted
    )


def test_other_families_of_transformers():
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}
    bert = BertForSequenceClassification(BertConfig(vocab_size=32, **shape, **quiet))
    attach(bert, LoRAConfig(rank=2, targets=("query", "value"), modules_to_save=("classifier",)))
    assert counted(account(bert, batch=2, tokens=7).costs) == measured(bert, input_ids=ids(2, 7))
    vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **shape, **quiet))
    attach(vit, LoRAConfig(rank=2, targets="all-linear"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert counted(account(vit, inputs={"pixel_values": pixels}).costs) == measured(vit, pixel_values=pixels)
    with pytest.raises(ValueError, match=r"inputs must be an example, since ViT.* takes pixel_values"):
        account(vit, batch=2, tokens=7)


def test_single_formulas():
    assert product_flops((3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert product_flops((2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7
    assert product_flops((3, 5), (5,)) == 2 * 3 * 5
    assert convolution_flops((6, 6), (8, 4, 3, 3), 2) == 2 * 2 * 36 * 8 * 4 * 9
    shapes = (2, 4, 7, 8), (2, 2, 9, 8), (2, 2, 9, 5)
    gradient = (2, 4, 7, 5)
    assert attention_flops(*shapes) == (sdpa_flop_count(*shapes), sdpa_backward_flop_count(gradient, *shapes))


def test_the_table_of_a_step():
    model = nn.Sequential(nn.Embedding(11, 6), nn.ModuleDict({"0": nn.Linear(6, 6)})["0"], nn.Tanh(), nn.Linear(6, 11))
    text = str(account(attach(model, LoRAConfig(rank=2, targets=("1", "3"))), batch=2, tokens=5))
    before, _, after = text.partition("\n\n")
    assert before == str(account(model))
    assert after.splitlines() == [
        "one step of 2 × 5 tokens",
        "operations a token           count  forward  backward  bytes kept",
        "*, adapter                       2      116       208   400 bytes",
        "*                                2      204       132     0 bytes",
        "what multiplies no matrices      1        0         0   240 bytes",
        "together                                320       340   640 bytes",
        "weights         972 bytes",
        "gradients       232 bytes",
        "adamw           464 bytes",
        "activations     640 bytes",
        "logits            0 bytes",
        "peak             2.076 kB",
        "not counted: the loss, since the model's output has no logits",
    ]


class Reads(nn.Module):
    """A model whose path depends on its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y if y.sum() > 0 else -y


def test_refuses_what_cannot_be_counted():
    model = build("llama")
    with pytest.raises(TypeError, match=r"tokens must be a whole number, got None; or give inputs"):
        account(model, batch=2)
    with pytest.raises(TypeError, match=r"batch must be a whole number, got 2\.0"):
        account(model, batch=2.0, tokens=3)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        account(model, batch=0, tokens=3)
    with pytest.raises(ValueError, match="tokens must be at most the model's max_position_embeddings, 64, got 65"):
        account(build("gpt2"), batch=1, tokens=65)
    with pytest.raises(ValueError, match="optimizer must be one of adamw, adam, sgd-momentum, sgd, got 'lion'"):
        account(model, batch=1, tokens=3, optimizer="lion")
    with pytest.raises(ValueError, match="optimizer='sgd' says something of a training step: give batch"):
        account(model, optimizer="sgd")
    with pytest.raises(ValueError, match="got both"):
        account(model, batch=1, inputs=ids(1, 3))
    with pytest.raises(TypeError, match="inputs must be a tensor, a tuple or a mapping, got list"):
        account(model, inputs=[ids(1, 3)])
    with pytest.raises(ValueError, match="inputs must hold a tensor"):
        account(model, inputs=())
    with pytest.raises(ValueError, match="Conv2d takes: batch and tokens do not say it"):
        account(nn.Conv2d(3, 3, 3), batch=1, tokens=3)
    with pytest.raises(ValueError, match="Reads cannot be counted from shapes alone: it reads a number in the model"):
        account(Reads(), batch=1, tokens=3)
    with pytest.raises(ValueError, match="Linear does not run on these shapes"):
        account(nn.Linear(3, 3), inputs=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must have a parameter that trains, got a LlamaForCausalLM with none"):
        account(build("llama").requires_grad_(False), batch=1, tokens=3)
    with pytest.raises(ValueError, match="nothing that trains in Parts has a part in its output"):
        account(attach(Parts(), LoRAConfig(rank=2, targets=("lost",))), batch=1, tokens=3)
    model.model.gradient_checkpointing = True
    with pytest.raises(ValueError, match="has gradient checkpointing on, and what that computes again is not counted"):
        account(model, batch=1, tokens=3)
