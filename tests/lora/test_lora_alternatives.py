"""Bottleneck adapters, BitFit, head only and full: attached, trained, counted, switched off and taken out like LoRA."""

import copy
import pickle
import re

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.autograd import gradcheck

from lora_lab.lora import (
    BitFitConfig,
    Bottleneck,
    BottleneckConfig,
    BottleneckLayer,
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    account,
    activate,
    active_adapters,
    adapters,
    attach,
    bottleneck_parameters,
    detach,
    disabled,
    fold,
    lora_layers,
    merge,
    quantize_linears,
    routed,
    unmerge,
)

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def built(kind, config, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind(config).to(dtype).eval()
        for name, parameter in model.named_parameters():  # transformers starts every bias at zero
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
    return model


def llama(dtype=torch.float64, **options):
    shape = {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}
    config = transformers.LlamaConfig(vocab_size=32, **(SIZES | shape | options))
    return built(transformers.LlamaForCausalLM, config, dtype)


def gpt2(dtype=torch.float64):
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return built(transformers.GPT2LMHeadModel, config, dtype)


def bert(dtype=torch.float64):
    return built(transformers.BertForSequenceClassification, transformers.BertConfig(vocab_size=32, **SIZES), dtype)


def vit(dtype=torch.float64):
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    return built(transformers.ViTForImageClassification, config, dtype)


def inputs(family, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    if family == "vit":
        return torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(32, (3, 7), generator=generator)


BUILD = {"llama": llama, "gpt2": gpt2, "bert": bert, "vit": vit}
SUBLAYERS = {
    "llama": ("o_proj", "down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "bert": ("output.dropout",),
    "vit": ("o_proj", "fc2"),
}
HEAD = {"llama": "lm_head", "gpt2": "lm_head", "bert": "classifier", "vit": "classifier"}
FAMILIES = pytest.mark.parametrize("family", list(BUILD))


def config_of(kind, family):
    return {
        "bottleneck": lambda: BottleneckConfig(5, SUBLAYERS[family]),
        "bottleneck and head": lambda: BottleneckConfig(5, SUBLAYERS[family], modules_to_save=(HEAD[family],)),
        "bitfit": BitFitConfig,
        "bitfit and head": lambda: BitFitConfig(modules_to_save=(HEAD[family],)),
        "head": lambda: HeadOnlyConfig((HEAD[family],)),
        "full": FullConfig,
    }[kind]()


KINDS = ["bottleneck", "bottleneck and head", "bitfit", "bitfit and head", "head", "full"]
PUT_BACK = KINDS[:-1]


def logits(model, x, grad=False):
    with torch.set_grad_enabled(grad):
        return model(x).logits


def bottlenecks(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}


def moved(model, seed=5):
    """Move everything that trains, so that nothing is near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.is_meta:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def trained(model, x, *, steps=3, parameters=None):
    """Train by AdamW, with a weight decay that would show on whatever it should not touch."""
    optimizer = torch.optim.AdamW(model.parameters() if parameters is None else parameters, lr=0.05, weight_decay=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        logits(model, x, grad=True).square().sum().backward()
        optimizer.step()
    return model


def written_out(model, ours, activation):
    """The untouched model with the bottlenecks of ours as plain torch after its modules."""
    for place, layer in bottlenecks(ours).items():
        own = layer.copies["default"]

        def change(_module, _args, output, own=own):
            z = activation(output @ own.W_down.T + own.b_down)
            return output + z @ own.W_up.T + own.b_up

        model.get_submodule(place).register_forward_hook(change)
    return model


class TestEveryKind:
    @FAMILIES
    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_changes_at_the_start(self, kind, family):
        model, x = BUILD[family](), inputs(family)
        before = logits(model, x)
        assert attach(model, config_of(kind, family)) is model
        assert torch.equal(logits(model, x), before)
        assert adapters(model) == {"default": config_of(kind, family)}

    @FAMILIES
    @pytest.mark.parametrize("kind", PUT_BACK)
    def test_detach_puts_the_very_model_back(self, kind, family, portrait):
        model, x = BUILD[family](), inputs(family)
        next(model.parameters()).requires_grad_(False)  # a flag of the user's own
        before, expected = portrait(model), logits(model, x)
        moved(attach(model, config_of(kind, family)))
        assert not torch.allclose(logits(model, x), expected)
        with disabled(model):
            assert torch.equal(logits(model, x), expected)
        assert not torch.allclose(logits(model, x), expected)
        detach(model)
        assert portrait(model) == before
        assert torch.equal(logits(model, x), expected)

    @FAMILIES
    @pytest.mark.parametrize("kind", PUT_BACK)
    def test_training_moves_all_that_trains_and_no_bit_of_the_rest(self, kind, family, bits):
        model, x = attach(BUILD[family](), config_of(kind, family)), inputs(family)
        moved(model)  # every gradient there is, is not zero
        before = {name: bits(p) for name, p in model.named_parameters()}
        trained(model, x)
        for name, parameter in model.named_parameters():
            assert (bits(parameter) != before[name]) == parameter.requires_grad, name

    @FAMILIES
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_counted(self, kind, family):
        plain = sum(p.numel() for p in BUILD[family]().parameters())
        model = attach(BUILD[family](), config_of(kind, family))
        count = account(model)
        head = BUILD[family]().get_submodule(HEAD[family])
        head_size = sum(p.numel() for p in head.parameters())
        biases = sum(p.numel() for n, p in BUILD[family]().named_parameters() if n.endswith("bias"))
        head_biases = sum(p.numel() for n, p in head.named_parameters() if n.endswith("bias"))
        four = 4 * (2 * 16 * 5 + 16 + 5)  # two blocks, two adapters each
        adapter = {"bottleneck": four, "bottleneck and head": four + head_size, "bitfit": 0, "full": 0}
        trains = {"bitfit": biases, "bitfit and head": biases - head_biases + head_size, "full": plain}
        assert count.base == plain
        assert count.adapter == adapter.get(kind, head_size)
        assert count.trainable == trains.get(kind, count.adapter)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_step_is_counted(self, kind):
        model = attach(bert(), config_of(kind, "bert"))
        before, count = account(bert(), batch=3, tokens=7).costs, account(model, batch=3, tokens=7)
        assert count.costs.gradients == 8 * count.trainable
        products = 4 * 2 * (2 * 16 * 5) if kind.startswith("bottleneck") else 0  # operations a token
        assert count.costs.forward == before.forward + 3 * 7 * products

    @FAMILIES
    @pytest.mark.parametrize("kind", KINDS)
    def test_on_the_meta_device(self, kind, family):
        with torch.device("meta"):
            model = BUILD[family](torch.float32)
        attach(model, config_of(kind, family))
        assert all(parameter.is_meta for parameter in model.parameters())
        there, here = account(model), account(attach(BUILD[family](torch.float32), config_of(kind, family)))
        assert (there.base, there.adapter, there.trainable) == (here.base, here.adapter, here.trainable)

    @pytest.mark.parametrize("kind", KINDS)
    def test_copies_pickles_and_state_dicts_compute_the_same(self, kind):
        model, x = moved(attach(bert(), config_of(kind, "bert"))), inputs("bert")
        expected = logits(model, x)
        fresh = attach(bert(), config_of(kind, "bert"))
        fresh.load_state_dict(model.state_dict())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
            assert torch.equal(logits(other, x), expected)
            assert adapters(other) == adapters(model)
            flags = {name: parameter.requires_grad for name, parameter in other.named_parameters()}
            assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
            detach(other)
            assert not hasattr(other, "_lora_lab")
        assert torch.equal(logits(model, x), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_beside_a_bfloat16_base(self, kind):
        model, x = attach(vit(torch.bfloat16), config_of(kind, "vit")), inputs("vit", torch.bfloat16)
        trained(model, x)
        assert logits(model, x).dtype == torch.bfloat16
        for name, parameter in model.named_parameters():
            own = re.search(r"copies\.default\.[Wb]_(down|up)", name)
            assert parameter.dtype == (torch.float32 if own else torch.bfloat16)

    @pytest.mark.parametrize("kind", ["bottleneck and head", "bitfit"])
    def test_compiles_without_a_graph_break(self, kind):
        model, x = moved(attach(llama(torch.float32), config_of(kind, "llama"))), inputs("llama")
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(logits(compiled, x), logits(model, x))

    def test_is_named_where_the_configuration_is_of_no_kind(self):
        with pytest.raises(TypeError, match="config must be a LoRAConfig, or one of its alternatives, got dict"):
            attach(bert(), {})


class TestBottleneck:
    @FAMILIES
    @pytest.mark.parametrize(("name", "activation"), [("gelu", F.gelu), ("tanh", torch.tanh)])
    def test_computes_and_learns_what_plain_torch_does(self, family, name, activation):
        config = BottleneckConfig(5, SUBLAYERS[family], activation=name)
        ours, x = moved(attach(BUILD[family](), config)), inputs(family)
        theirs = written_out(BUILD[family]().requires_grad_(False), ours, activation)
        own = [p for p in ours.parameters() if p.requires_grad]
        assert len(own) == 16
        mine, plain = logits(ours, x, grad=True), logits(theirs, x, grad=True)
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
        gradients = zip(*(torch.autograd.grad(y.sin().sum(), own) for y in (mine, plain)), strict=True)
        for one, other in gradients:
            assert one.abs().max() > 1e-6
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
    def test_gradients_are_those_of_finite_differences(self, activation):
        generator = torch.Generator().manual_seed(1)
        adapter = Bottleneck(6, 3, activation, "near", generator=generator).double()
        moved(adapter)
        h = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)

        def call(h, *parameters):
            names = [name for name, _ in adapter.named_parameters()]
            return torch.func.functional_call(adapter, dict(zip(names, parameters, strict=True)), (h,))

        assert gradcheck(call, (h, *adapter.parameters()))
        z = h @ adapter.W_down.T + adapter.b_down
        f = {"gelu": F.gelu, "relu": F.relu, "silu": lambda z: z * z.sigmoid(), "tanh": torch.tanh}[activation](z)
        torch.testing.assert_close(adapter(h), h + f @ adapter.W_up.T + adapter.b_up)

    def test_gpt3_by_arithmetic(self):
        """Two adapters in each of 96 blocks of width 12,288: 7.1 M and 40.1 M (Hu et al., 2021, table 4)."""
        for width, said in ((1, "7.1"), (8, "40.1")):
            with torch.device("meta"):
                block = nn.ModuleDict({name: nn.Linear(12_288, 12_288) for name in ("o_proj", "down_proj")})
            count = account(attach(block, BottleneckConfig(width)))
            assert count.trainable == 2 * bottleneck_parameters(12_288, width)
            assert f"{96 * count.trainable / 1e6:.1f}" == said

    def test_starts_as_it_is_told(self):
        state = torch.random.get_rng_state()
        zero, near = (
            Bottleneck(400, 100, "gelu", init, generator=torch.Generator().manual_seed(1)) for init in ("zero", "near")
        )
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not zero.W_up.any()
        assert 0.049 < zero.W_down.abs().max() <= 1 / 400**0.5
        for weight in (near.W_down, near.W_up):
            assert 0.0198 < weight.abs().max() <= 0.02
            assert weight.std().item() == pytest.approx(0.0088, rel=0.01)  # of a normal law cut off at two deviations
        assert not any(bias.any() for adapter in (zero, near) for bias in (adapter.b_down, adapter.b_up))

    def test_near_is_near(self):
        model, x = bert(), inputs("bert")
        before = logits(model, x)
        attach(model, BottleneckConfig(5, SUBLAYERS["bert"], init="near"))
        assert not torch.equal(logits(model, x), before)
        torch.testing.assert_close(logits(model, x), before, rtol=0.01, atol=0.01)

    def test_the_generator_says_the_numbers(self):
        models = [
            attach(bert(), BottleneckConfig(5, SUBLAYERS["bert"]), generator=torch.Generator().manual_seed(seed))
            for seed in (7, 7, 8)
        ]
        one, same, other = ([layer.copies["default"].W_down for layer in bottlenecks(m).values()] for m in models)
        assert all(map(torch.equal, one, same))
        assert not any(map(torch.equal, one, other))
        assert not torch.equal(one[0], one[1])

    def test_the_dropout_of_bert_comes_before_it(self):
        """In training each of the paper's adapters sees what the dropout left."""
        model = moved(attach(bert(), BottleneckConfig(5, SUBLAYERS["bert"]))).train()
        layer = model.bert.encoder.layer[0].output.dropout
        h = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.manual_seed(0)
        changed = layer(h)
        torch.manual_seed(0)
        dropped = F.dropout(h, 0.1)
        assert (dropped == 0).any()
        torch.testing.assert_close(changed, layer.copies["default"](dropped))

    def test_of_a_tuple_the_first_entry_is_changed(self):
        ours, x = moved(attach(llama(), BottleneckConfig(5, ("self_attn", "mlp")))), inputs("llama")
        with torch.no_grad():
            whole = ours.model.layers[0].self_attn
            entries = len(whole.base(*_attention_inputs(ours, x)))
            assert entries == len(whole(*_attention_inputs(ours, x))) == 2
        as_layers = attach(llama(), BottleneckConfig(5, SUBLAYERS["llama"]))
        with torch.no_grad():
            for to, of in zip(bottlenecks(as_layers).values(), bottlenecks(ours).values(), strict=True):
                for parameter, value in zip(to.copies.parameters(), of.copies.parameters(), strict=True):
                    parameter.copy_(value)
        torch.testing.assert_close(logits(ours, x), logits(as_layers, x), rtol=1e-12, atol=1e-12)

    def test_a_module_that_gives_no_tensor_is_named(self):
        class Gives(nn.Linear):
            def forward(self, x):
                return {"x": super().forward(x)}

        model = attach(nn.Sequential(Gives(4, 4)), BottleneckConfig(2, ("0",)))
        with pytest.raises(TypeError, match="targets must give a tensor"):
            model(torch.zeros(1, 4))

    def test_a_module_with_two_names_has_one_adapter(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"one": shared, "two": shared, "three": nn.Linear(4, 4)})
        attach(model, BottleneckConfig(2, ("one", "two", "three")))
        assert model["one"] is model["two"]
        assert account(model).adapter == 2 * bottleneck_parameters(4, 2)
        detach(model)
        assert model["one"] is model["two"] is shared

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_with_gradient_checkpointing_every_weight_gets_its_gradient(self, reentrant):
        model, x = moved(attach(llama(), BottleneckConfig(5))).train(), inputs("llama")
        own = [p for p in model.parameters() if p.requires_grad]
        expected = torch.autograd.grad(logits(model, x, grad=True).sum(), own)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        logits(model, x, grad=True).sum().backward()
        for parameter, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)

    def test_under_autocast(self):
        model = moved(attach(nn.Sequential(nn.Linear(6, 6)), BottleneckConfig(3, ("0",))))
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)
        y.sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)

    def test_cannot_be_merged(self, portrait):
        model = moved(attach(bert(), BottleneckConfig(5, SUBLAYERS["bert"]), name="small"))
        before = portrait(model)
        for verb in (merge, fold):
            with pytest.raises(ValueError, match=r"active adapter 'small', which cannot be merged: .*nonlinearity"):
                verb(model)
        assert portrait(model) == before

    def test_the_weight_of_its_layer_is_no_answer(self):
        """torch's attention reads the weight of its last layer: the adapter would be skipped without a word."""
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        attach(model, BottleneckConfig(2, ("out_proj",)))
        x = torch.randn(3, 1, 8)
        with pytest.raises(AttributeError, match=r"has a bottleneck after it.*name the module around"):
            model["attention"](x, x, x)
        with disabled(model):
            assert model["attention"](x, x, x)[0].shape == (3, 1, 8)
        detach(model)
        attach(model, BottleneckConfig(2, ("attention",), features=8))
        model["attention"](x, x, x)[0].sum().backward()
        assert all(p.grad is not None for p in model["attention"].copies.parameters())

    @pytest.mark.parametrize(
        ("targets", "count"),
        [
            (re.compile(r".*\.0\..*output\.dense"), 2),
            (lambda name, module: name.endswith("output.dense") and module.in_features == 24, 2),
            (("output.LayerNorm",), 4),
            (("attention.output",), 2),  # says nothing of its width; the model does
            (("word_embeddings",), 1),
        ],
    )
    def test_targets(self, targets, count):
        model = attach(bert(), BottleneckConfig(5, targets))
        assert len(bottlenecks(model)) == count
        assert account(model).adapter == count * bottleneck_parameters(16, 5)

    @pytest.mark.parametrize(
        ("config", "error", "match"),
        [
            (
                BottleneckConfig(5, ("output.dens",)),
                ValueError,
                r"'output\.dens' names no module of Bert.* mean 'output\.dense'",
            ),
            (BottleneckConfig(5, re.compile("nothing")), ValueError, "the expression 'nothing' names no module"),
            (BottleneckConfig(5, lambda *_: False), ValueError, "the function names no module"),
            (BottleneckConfig(17, ("output.dense",)), ValueError, "width must be at most the 16 features of 'bert"),
            (BottleneckConfig(5, ("attention.output", "output.dense")), ValueError, "is inside 'bert.*name one of the"),
            (
                BottleneckConfig(5, ("output.dense",), modules_to_save=("nothing",)),
                ValueError,
                "'nothing' names no mod",
            ),
            (
                BottleneckConfig(5, ("encoder",), modules_to_save=("output.dense",)),
                ValueError,
                "is inside 'bert.encoder",
            ),
            (BottleneckConfig(5, ("classifier",), modules_to_save=("classifier",)), ValueError, "names no module"),
        ],
    )
    def test_an_error_changes_nothing(self, config, error, match, portrait):
        model = bert()
        before = portrait(model)
        with pytest.raises(error, match=match):
            attach(model, config)
        assert portrait(model) == before

    def test_the_width_of_an_output_must_be_known(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        with pytest.raises(
            ValueError, match="'1', a ReLU, does not tell how wide its output is; say it with features="
        ):
            attach(model, BottleneckConfig(2, ("1",)))
        attach(model, BottleneckConfig(2, ("1",), features=4))
        assert account(model).adapter == bottleneck_parameters(4, 2)

    def test_a_layer_of_your_own(self):
        base = nn.Linear(4, 4).eval()
        layer = BottleneckLayer(base)
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
        assert torch.equal(layer(x), base(x))
        adapter = moved(Bottleneck(4, 2, "relu", "near", generator=torch.Generator().manual_seed(1)))
        layer.put("own", adapter)
        assert not adapter.training
        assert torch.equal(layer(x), adapter(base(x)))
        assert not torch.equal(layer(x), base(x))

    def test_the_generator_must_be_one(self):
        for init in ("zero", "near"):
            with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got 3"):
                attach(bert(), BottleneckConfig(5, ("output.dense",), init=init), generator=3)

    def test_says_what_it_is_in_print(self):
        model = attach(nn.Sequential(nn.Linear(4, 4)), BottleneckConfig(2, ("0",)))
        assert "Bottleneck(features=4, width=2, activation='gelu')" in repr(model)


def _attention_inputs(model, x):
    h = model.model.embed_tokens(x)
    return h, model.model.rotary_emb(h, torch.arange(x.shape[1])[None]), None


class TestSeveral:
    CONFIGS = {"lora": LoRAConfig(2, 3, ("query", "value")), "small": BottleneckConfig(5, ("output.dense",))}  # noqa: RUF012

    def both(self, order=("lora", "small")):
        model = bert()
        for name in order:
            moved(attach(model, self.CONFIGS[name], name=name), len(name))
        return model

    def alone(self, name):
        return moved(attach(bert(), self.CONFIGS[name], name=name), len(name))

    @pytest.mark.parametrize("order", [("lora", "small"), ("small", "lora")])
    def test_each_computes_as_if_it_were_alone(self, order):
        model, x = self.both(order), inputs("bert")
        for name in order:
            activate(model, name)
            assert active_adapters(model) == {name: 1.0}
            torch.testing.assert_close(logits(model, x), logits(self.alone(name), x), rtol=0, atol=0)
            trains = {n for n, p in model.named_parameters() if p.requires_grad}
            assert trains == {n for n, _ in model.named_parameters() if f".{name}." in n}

    def test_each_row_of_a_batch_has_its_own(self):
        model, x = self.both(), inputs("bert")
        with routed(model, ["small", None, "lora"]):
            rows = logits(model, x)
        expected = [self.alone("small"), bert(), self.alone("lora")]
        for row, (other, own) in enumerate(zip(expected, x, strict=True)):
            torch.testing.assert_close(rows[row], logits(other, own[None])[0], rtol=1e-12, atol=1e-12)
        for one in (model, self.alone("small")):
            with pytest.raises(ValueError, match="2 names for a batch of 3 rows"), routed(one, ["small", None]):
                logits(one, x)

    def test_two_count_together(self):
        model, x = self.both(), inputs("bert")
        activate(model, {"lora": 1, "small": 1})
        together = logits(model, x)
        other = attach(self.alone("lora"), self.CONFIGS["small"], name="small")
        other.load_state_dict(model.state_dict())
        activate(other, {"lora": 1, "small": 1})
        assert torch.equal(logits(other, x), together)
        for name in ("lora", "small"):
            activate(model, name)
            assert not torch.allclose(logits(model, x), together)
        with pytest.raises(ValueError, match="activate one alone"):
            activate(model, {"lora": 1, "small": 0.5})

    def test_one_is_taken_out_and_the_other_stays(self):
        for name, other in (("lora", "small"), ("small", "lora")):
            model = self.both()
            detach(model, name)
            assert torch.equal(logits(model, inputs("bert")), logits(self.alone(other), inputs("bert")))
            assert bool(lora_layers(model)) == (name == "small")

    def test_two_bottlenecks_after_one_module(self):
        model, x = self.alone("small"), inputs("bert")
        first = logits(model, x)
        moved(attach(model, BottleneckConfig(3, ("output.dense",)), name="smaller"))
        assert len(bottlenecks(model)) == 4
        assert not torch.allclose(logits(model, x), first)
        activate(model, "small")
        assert torch.equal(logits(model, x), first)

    def test_lora_is_merged_while_the_bottleneck_sleeps(self):
        model, x = self.both(), inputs("bert")
        activate(model, "lora")
        expected = logits(model, x)
        merge(model)
        torch.testing.assert_close(logits(model, x), expected)
        unmerge(model)
        activate(model, "small")
        with pytest.raises(ValueError, match="'small', which cannot be merged"):
            merge(model)

    @pytest.mark.parametrize(
        ("there", "new"),
        [
            (BottleneckConfig(5, ("output.dense",)), LoRAConfig(2, targets=("output.dense",))),
            (LoRAConfig(2, targets=("output.dense",)), BottleneckConfig(5, ("output.dense",))),
            (LoRAConfig(2, targets=("query",)), BottleneckConfig(5, ("attention",))),
            (HeadOnlyConfig(("classifier",)), BottleneckConfig(1, ("classifier",))),
            (BottleneckConfig(1, ("classifier",)), HeadOnlyConfig(("classifier",))),
            (BottleneckConfig(5, ("output.dense",)), HeadOnlyConfig(("encoder",))),
            (HeadOnlyConfig(("output.dense",)), HeadOnlyConfig(("encoder",))),
            (LoRAConfig(2, targets=("query",)), BitFitConfig()),
            (BitFitConfig(), BottleneckConfig(5, ("output.dense",))),
            (BitFitConfig(), FullConfig()),
            (LoRAConfig(2, targets=("query",)), FullConfig()),
            (HeadOnlyConfig(("classifier",)), FullConfig()),
            (FullConfig(), BitFitConfig()),
            (FullConfig(), LoRAConfig(2, targets=("query",))),
            (FullConfig(), FullConfig()),
        ],
        ids=lambda config: type(config).__name__,
    )
    def test_what_does_not_go_together_is_refused_before_anything_changes(self, there, new, portrait):
        model = moved(attach(bert(), there, name="there"))
        before = portrait(model)
        with pytest.raises((ValueError, TypeError)):
            attach(model, new, name="new")
        assert portrait(model) == before
        assert adapters(model) == {"there": there}

    def test_heads_of_several_adapters(self):
        """One head for each of two bottlenecks, and one for none of them."""
        model, x = bert(), inputs("bert")
        outputs = {}
        for name, config in {
            "one": BottleneckConfig(5, ("output.dense",), modules_to_save=("classifier",)),
            "two": BottleneckConfig(5, ("output.dense",), modules_to_save=("classifier",)),
            "head": HeadOnlyConfig(("classifier",)),
        }.items():
            moved(attach(model, config, name=name), len(outputs))
            outputs[name] = logits(model, x)
        for name, output in outputs.items():
            activate(model, name)
            assert torch.equal(logits(model, x), output)
        detach(model)
        assert torch.equal(logits(model, x), logits(bert(), x))


class TestBitFit:
    @FAMILIES
    def test_the_biases_are_those_that_peft_trains(self, family):
        ours = attach(BUILD[family](), BitFitConfig())
        base = SUBLAYERS[family] if family != "bert" else ("output.dense",)
        theirs = peft.get_peft_model(BUILD[family](), peft.LoraConfig(target_modules=list(base), bias="all"))
        names = {n.removeprefix("base_model.model.") for n, p in theirs.named_parameters() if p.requires_grad}
        names = {name.replace(".base_layer", "") for name in names if "lora_" not in name}
        assert {name for name, p in ours.named_parameters() if p.requires_grad} == names

    def test_the_shares_of_the_paper(self):
        """BERT-large: 0.08 % of the parameters, and 0.04 % for queries and the middle of the MLP (sections 1 and 4)."""
        with torch.device("meta"):
            model = transformers.BertModel(
                transformers.BertConfig(
                    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
                )
            )
        count = account(attach(model, BitFitConfig()))
        assert count.trainable == 24 * 11 * 1024 + 2 * 1024
        assert f"{count.share:.2%}" == "0.08%"
        detach(model)
        count = account(attach(model, BitFitConfig(("query", "intermediate.dense"))))
        assert count.trainable == 24 * 5 * 1024
        assert f"{count.share:.2%}" == "0.04%"

    def test_learns_what_plain_torch_does(self):
        x = inputs("bert")
        ours, theirs = attach(bert(), BitFitConfig()), bert()
        trained(ours, x)
        biases = [parameter for name, parameter in theirs.named_parameters() if name.endswith(".bias")]
        trained(theirs, x, parameters=biases)
        for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(one, other), name

    def test_finds_the_biases_of_torchs_own_layers(self):
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, add_bias_kv=True), "rnn": nn.LSTM(4, 3)})
        attach(model, BitFitConfig())  # bias_k and bias_v are one more key and value each, (1, 1, 4)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trains == {
            "attention.in_proj_bias",
            "attention.out_proj.bias",
            "rnn.bias_ih_l0",
            "rnn.bias_hh_l0",
        }

    def test_a_module_trained_in_a_copy_has_its_biases_there(self):
        model = attach(bert(), BitFitConfig(modules_to_save=("classifier",)))
        trains = {name for name, p in model.named_parameters() if p.requires_grad and "classifier" in name}
        assert trains == {"classifier.copies.default.weight", "classifier.copies.default.bias"}
        assert not any("classifier" in name for name in model._lora_lab.biases)

    @pytest.mark.parametrize(
        "targets", [re.compile(r".*\.0\..*query"), lambda name, _: ".0." in name and name.endswith("query")]
    )
    def test_targets(self, targets):
        model = attach(bert(), BitFitConfig(targets))
        trains = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trains == ["bert.encoder.layer.0.attention.self.query.bias"]

    @pytest.mark.parametrize(
        ("model", "config", "match"),
        [
            (bert, BitFitConfig(("querry",)), "'querry' names no module with a bias.* Did you mean 'query'"),
            (bert, BitFitConfig(("encoder",)), "'encoder' names no module with a bias"),
            (bert, BitFitConfig(re.compile("x")), "the expression 'x' names no module with a bias"),
            (
                lambda: nn.Sequential(nn.Linear(2, 2, bias=False)),
                BitFitConfig(),
                "must have biases .* Sequential without",
            ),
        ],
    )
    def test_an_error_changes_nothing(self, model, config, match, portrait):
        model = model()
        before = portrait(model)
        with pytest.raises(ValueError, match=match):
            attach(model, config)
        assert portrait(model) == before

    def test_nested_blocks_and_an_error_inside_put_the_trained_biases_back(self, bits):
        model = moved(attach(bert(), BitFitConfig()))
        before = {name: bits(p) for name, p in model.named_parameters()}
        with pytest.raises(RuntimeError), disabled(model), disabled(model):
            raise RuntimeError
        assert {name: bits(p) for name, p in model.named_parameters()} == before

    def test_rows_of_a_batch_share_the_biases(self):
        model = attach(bert(), BitFitConfig())
        with pytest.raises(ValueError, match="trains biases"), routed(model, ["default", None]):
            pass


class TestHeadOnly:
    def test_learns_what_plain_torch_does(self):
        x = inputs("bert")
        ours, theirs = attach(bert(), HeadOnlyConfig(("classifier",))), bert()
        trained(ours, x)
        trained(theirs, x, parameters=theirs.classifier.parameters())
        assert torch.equal(ours.classifier.weight, theirs.classifier.weight)
        assert torch.equal(ours.classifier.bias, theirs.classifier.bias)
        assert torch.equal(logits(ours, x), logits(theirs, x))

    def test_learns_what_pefts_copy_does(self):
        x = inputs("vit")
        ours = attach(vit(), HeadOnlyConfig(("classifier",)))
        theirs = peft.get_peft_model(vit(), peft.LNTuningConfig(target_modules=["classifier"]))
        trained(ours, x)
        trained(theirs, x)
        assert torch.equal(logits(ours, x), logits(theirs, x))

    def test_a_tied_head_learns_alone(self):
        model, x = llama(tie_word_embeddings=True), inputs("llama")
        table = model.model.embed_tokens.weight
        before = table.clone()
        trained(attach(model, HeadOnlyConfig(("lm_head",))), x)
        assert torch.equal(table, before)
        assert not torch.equal(model.lm_head.weight, before)
        detach(model)
        assert model.lm_head.weight is table

    def test_a_name_that_is_none_or_inside_another_is_refused(self, portrait):
        model = bert()
        before = portrait(model)
        with pytest.raises(ValueError, match=r"'clasifier' names no module. Did you mean 'classifier'"):
            attach(model, HeadOnlyConfig(("clasifier",)))
        with pytest.raises(ValueError, match=r"'bert\.pooler\.dense' is inside 'bert.pooler'"):
            attach(model, HeadOnlyConfig(("pooler", "pooler.dense")))
        assert portrait(model) == before


class TestFull:
    def test_learns_what_plain_torch_does_and_detach_puts_back_flags_alone(self):
        x = inputs("bert")
        ours, theirs = bert(), bert()
        ours.classifier.requires_grad_(False)
        attach(ours, FullConfig())
        assert account(ours).share == 1
        trained(ours, x)
        trained(theirs, x)
        detach(ours)
        for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(one, other)
            assert one.requires_grad == (not name.startswith("classifier"))

    def test_cannot_be_switched_off_or_shared_among_rows(self):
        model = attach(bert(), FullConfig())
        with pytest.raises(ValueError, match=r"trains as a whole.* nothing can be disabled"), disabled(model):
            pass
        with pytest.raises(ValueError, match="trains as a whole"), routed(model, ["default", None]):
            pass

    def test_stays_whole_when_it_is_activated_again(self):
        model = attach(bert(), FullConfig(), name="all")
        activate(model, "all")
        assert active_adapters(model) == {"all": 1.0}
        assert all(p.requires_grad for p in model.parameters())

    def test_integer_weights_are_refused_by_name(self, portrait):
        model = nn.Sequential(nn.Linear(2, 2))
        model.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
        with pytest.raises(TypeError, match=r"floating weights .* 'codes' is torch.uint8"):
            attach(model, FullConfig())
        assert not hasattr(model, "_lora_lab")

    def test_a_base_in_4_bits_takes_everything_else(self):
        """Its codes get no gradient: full fine-tuning would train what is left of it, without a word."""
        model, x = llama(torch.float32, hidden_size=64, intermediate_size=64), inputs("llama")
        quantize_linears(model)
        with pytest.raises(TypeError, match=r"but 'model\.layers\.0\.self_attn\.q_proj' has them in 4 bits"):
            attach(model, FullConfig())
        assert not hasattr(model, "_lora_lab")
        before = logits(model, x)
        moved(attach(model, BottleneckConfig(5)))
        assert account(model).adapter == 4 * bottleneck_parameters(64, 5)
        assert not torch.allclose(logits(model, x), before)
        detach(model)
        assert torch.equal(logits(model, x), before)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: BottleneckConfig(0), ValueError, "width must be at least 1, got 0"),
        (lambda: BottleneckConfig(2.0), TypeError, "width must be a whole number, got 2.0"),
        (lambda: BottleneckConfig(True), TypeError, "width must be a whole number, got True"),
        (lambda: BottleneckConfig(2, features=0), ValueError, "features must be at least 1, got 0"),
        (lambda: BottleneckConfig(2, "o_proj"), TypeError, r"write \('o_proj',\)"),
        (lambda: BottleneckConfig(2, ()), ValueError, "targets must name at least one"),
        (lambda: BottleneckConfig(2, re.compile(b"x")), TypeError, "regular expression of text"),
        (lambda: BottleneckConfig(2, nn.Linear), TypeError, "targets must be a tuple"),
        (lambda: BottleneckConfig(2, activation="swish"), ValueError, "activation must be one of gelu, .* got 'swish'"),
        (lambda: BottleneckConfig(2, init=0), ValueError, "init must be one of zero, near, got 0"),
        (lambda: BottleneckConfig(2, modules_to_save="head"), TypeError, "modules_to_save must be a tuple"),
        (lambda: BitFitConfig("query"), TypeError, r"write \('query',\)"),
        (lambda: BitFitConfig(modules_to_save=("a", "a")), ValueError, "modules_to_save must name each"),
        (lambda: HeadOnlyConfig("classifier"), TypeError, r"write \('classifier',\)"),
        (lambda: HeadOnlyConfig(()), ValueError, "at least one"),
    ],
)
def test_a_wrong_field_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_lists_are_kept_as_tuples():
    assert BottleneckConfig(2, ["a"], modules_to_save=["b"]) == BottleneckConfig(2, ("a",), modules_to_save=("b",))
    assert BitFitConfig(["a"]) == BitFitConfig(("a",))
    assert HeadOnlyConfig(["a"]) == HeadOnlyConfig(("a",))


class TestFold:
    """Folding what has no low-rank update: what was trained stays, and nothing of the adapter is left."""

    @pytest.mark.parametrize("config", [HeadOnlyConfig(("classifier",)), BitFitConfig(), FullConfig()], ids=repr)
    def test_what_was_trained_stays(self, config):
        model = attach(bert(), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        expected = logits(model, inputs("bert"))
        assert fold(model).layers == ()
        assert torch.equal(logits(model, inputs("bert")), expected)
        assert list(model.state_dict()) == list(bert().state_dict())
        assert adapters(model) == {}

    def test_a_bottleneck_cannot_be_folded(self, portrait):
        model = attach(bert(), BottleneckConfig(4, ("output.dropout",)))
        before = portrait(model)
        with pytest.raises(ValueError, match="nonlinearity between its two factors"):
            fold(model)
        assert portrait(model) == before

    def test_nothing_is_folded_inside_a_block(self, portrait):
        model = attach(bert(), HeadOnlyConfig(("classifier",)))
        before = portrait(model)
        with disabled(model), pytest.raises(ValueError, match="outside disabled"):
            fold(model)
        assert portrait(model) == before

    def test_merging_says_why_there_is_nothing_to_merge(self):
        with pytest.raises(ValueError, match="with 'default', a HeadOnlyConfig, which has none"):
            merge(attach(bert(), HeadOnlyConfig(("classifier",))))
