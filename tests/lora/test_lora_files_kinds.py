"""Adapters of every kind and option go to PEFT and come from it, on models of four families."""

import copy
import json
import re
import warnings

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from lora_lab.lora import (
    LoRAConfig,
    LoRALinear,
    activate,
    active_adapters,
    adapters,
    attach,
    disabled,
    load_adapter,
    lora_layers,
    merge,
    save_adapter,
    unmerge,
)

pytestmark = pytest.mark.filterwarnings("ignore:(?!PEFT)")

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Convolutions(nn.Module):
    """A convolution in one dimension and three in two, one of them in groups and one depthwise."""

    def __init__(self, **options):
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.wide = nn.Conv2d(1, 4, (3, 2), stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2, **options)
        self.depthwise = nn.Conv2d(6, 6, 1, groups=6, bias=False)

    def forward(self, x):
        h = torch.tanh(self.line(x)).unsqueeze(1)  # (batch, 1, 6, length)
        return self.depthwise(torch.tanh(self.grouped(torch.tanh(self.wide(h)))))


def built(name, dtype=torch.float64):
    """A small model of a family, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        if name.startswith("llama"):
            config = transformers.LlamaConfig(
                **SMALL, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=name == "llama, tied"
            )
            model = transformers.LlamaForCausalLM(config)
        elif name == "gpt2":
            config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
            model = transformers.GPT2LMHeadModel(config)
        elif name == "bert":
            model = transformers.BertForSequenceClassification(
                transformers.BertConfig(**SMALL, max_position_embeddings=16, num_labels=3)
            )
        elif name == "vit":
            model = transformers.ViTForImageClassification(
                transformers.ViTConfig(
                    **{key: size for key, size in SMALL.items() if key != "vocab_size"},
                    image_size=8,
                    patch_size=4,
                    num_labels=3,
                )
            )
        else:
            model = Convolutions()
        for parameter in model.parameters():  # biases too: zeros would hide a lost one
            nn.init.normal_(parameter, std=0.3)
        return model.to(dtype).eval()


def output(model):
    """What a model of one of the families computes of a fixed input."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    dtype = next(base.parameters()).dtype
    if isinstance(base, Convolutions):
        return model(draw(2, 4, 9).to(dtype))
    if isinstance(base, transformers.ViTForImageClassification):
        return model(draw(2, 3, 8, 8).to(dtype)).logits
    tokens = torch.randint(32, (2, 7), generator=torch.Generator().manual_seed(3))
    return model(tokens).logits


def moved(model, seed=5):
    """The model with everything that trains moved: nothing is zero, nothing is what it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype), alpha=0.3)
    return model


def adapted(name, config, dtype=torch.float64):
    """A model of a family with an adapter that has trained."""
    return moved(attach(built(name, dtype), config))


def read_by_peft(base, folder):
    """PEFT's model of a folder; its own report must say that nothing is missing and nothing unexpected."""
    model = peft.PeftModel.from_pretrained(base, folder)
    report = model.load_adapter(folder, "default")  # once more over the same, for the report
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    return model.eval()


def made_by_peft(name, folder, dtype=torch.float64, **options):
    """PEFT's model of a family with an adapter that has trained, and its files."""
    options = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"]} | options
    model = moved(peft.get_peft_model(built(name, dtype), peft.LoraConfig(**options))).eval()
    model.save_pretrained(folder)
    return model


def entries_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def tensors_of(folder):
    return safetensors.torch.load((folder / "adapter_model.safetensors").read_bytes())


def rewrite(folder, entries=(), tensors=()):
    """Change entries of the configuration and tensors of the weights; None takes a tensor out."""
    (folder / "adapter_config.json").write_text(json.dumps(entries_of(folder) | dict(entries)))
    content = {key: t for key, t in (tensors_of(folder) | dict(tensors)).items() if t is not None}
    safetensors.torch.save_file(content, folder / "adapter_model.safetensors")


def close(a, b):
    room = 1e-11 if a.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(a, b, rtol=room, atol=room)


def is_query(name, module):
    return name.endswith(("q_proj", "query"))


OURS = {
    "llama, a pattern for each": (
        "llama",
        {"targets": ("q_proj", "down_proj"), "rank_pattern": {"0.self_attn.q_proj": 4}, "alpha_pattern": {"down.*": 9}},
    ),
    "llama, patterns of which the first counts": (
        "llama",
        {"rank_pattern": {"self_attn.q_proj": 4, "0.*": 1, "v_proj": 3}, "rslora": True},
    ),
    "llama, dora": ("llama", {"targets": ("q_proj", "up_proj"), "dora": True, "rslora": True, "dropout": 0.1}),
    "llama, embedding": ("llama", {"targets": ("embed_tokens", "q_proj")}),
    "llama, embedding and head": ("llama", {"targets": ("embed_tokens", "lm_head")}),
    "llama, dora on the embedding": ("llama", {"targets": ("embed_tokens",), "dora": True}),
    "llama, expression": ("llama", {"targets": re.compile(r".*\.1\..*[qk]_proj")}),
    "llama, expression that names containers": ("llama", {"targets": re.compile(r".*\.1\..*", re.IGNORECASE)}),
    "llama, predicate": ("llama", {"targets": is_query}),
    "llama, all-linear": ("llama", {"targets": "all-linear", "init": "gaussian"}),
    "llama, all biases": ("llama", {"bias": "all"}),
    "llama, own biases": ("llama", {"targets": ("q_proj", "up_proj"), "bias": "lora_only"}),
    "llama, head and norms in a copy": ("llama", {"modules_to_save": ("lm_head", "input_layernorm", "model.norm")}),
    "llama, pissa": ("llama", {"targets": ("q_proj", "down_proj"), "init": "pissa", "rank_pattern": {"down_proj": 3}}),
    "llama, pissa with rslora": (
        "llama",
        {"init": "pissa", "rslora": True, "alpha_pattern": {"v_proj": 7.3}, "dropout": 0.1},
    ),
    "llama, pissa of full rank": ("llama", {"targets": ("q_proj",), "rank": 16, "init": "pissa"}),
    "tied llama, head alone": ("llama, tied", {"targets": ("lm_head",), "tied": "untie"}),
    "tied llama, embedding alone": ("llama, tied", {"targets": ("embed_tokens", "q_proj"), "tied": "untie"}),
    "tied llama, both apart": ("llama, tied", {"targets": ("embed_tokens", "lm_head"), "tied": "untie", "dora": True}),
    "tied llama, shared by the head": ("llama, tied", {"targets": ("lm_head", "q_proj"), "tied": "share"}),
    "tied llama, shared by an expression": (
        "llama, tied",
        {"targets": re.compile(r".*embed_tokens"), "tied": "share", "rslora": True},
    ),
    "tied llama, shared with a pattern for one": (
        "llama, tied",
        {"targets": ("embed_tokens",), "tied": "share", "rank_pattern": {"embed_tokens": 3}},
    ),
    "gpt2": ("gpt2", {"targets": ("c_attn", "c_proj")}),
    "gpt2, dora": ("gpt2", {"targets": ("c_attn", "c_fc"), "dora": True}),
    "gpt2, all-linear": ("gpt2", {"targets": "all-linear", "bias": "all"}),
    "gpt2, own biases": ("gpt2", {"targets": ("c_attn", "wpe"), "bias": "lora_only"}),
    "gpt2, pissa": ("gpt2", {"targets": ("c_attn", "c_fc"), "init": "pissa"}),
    "gpt2, linear and transposed": ("gpt2", {"targets": ("lm_head", "c_fc"), "tied": "untie"}),
    "gpt2, shared": ("gpt2", {"targets": ("wte", "c_attn"), "tied": "share"}),
    "bert, classifier": ("bert", {"targets": ("query", "value"), "modules_to_save": ("classifier",)}),
    "bert, classifier and biases": (
        "bert",
        {"targets": ("query", "word_embeddings"), "modules_to_save": ("classifier", "pooler"), "bias": "all"},
    ),
    "bert, no classifier": ("bert", {"targets": ("output.dense",), "dora": True}),
    "vit, patches": ("vit", {"targets": ("patch_embeddings.projection", "q_proj")}),
    "vit, patches with dora": (
        "vit",
        {"targets": ("projection",), "dora": True, "modules_to_save": ("classifier",), "bias": "lora_only"},
    ),
    "convolutions": (
        "convolutions",
        {"targets": ("line", "wide", "grouped", "depthwise"), "rank_pattern": {"depthwise": 6}, "bias": "all"},
    ),
    "convolutions, dora": ("convolutions", {"targets": ("line", "wide"), "dora": True, "rslora": True}),
}


def config_of(options):
    return LoRAConfig(**({"rank": 2, "alpha": 5} | options))


# What a file has other words for.
READ_AS = {
    "llama, expression that names containers": {"targets": None},  # None stands for the full names
    "llama, predicate": {"targets": None},
    "llama, all-linear": {"targets": None},
    "gpt2, all-linear": {"targets": None},
    "gpt2, shared": {"targets": None},  # PEFT ties wte to the head only where the head is named
    "tied llama, shared with a pattern for one": {"rank_pattern": {"^lm_head": 3, "embed_tokens": 3}},
}


@pytest.fixture(scope="module", params=OURS)
def written(request, tmp_path_factory):
    """A model with an adapter, a builder of its base, what its adapter is read as, and a folder with its files."""
    family, options = OURS[request.param]
    ours, folder = adapted(family, config_of(options)), tmp_path_factory.mktemp("adapter")
    save_adapter(ours, folder, base_model="tiny")
    changes = READ_AS.get(request.param, {})
    if "targets" in changes:
        changes = {"targets": tuple(lora_layers(ours))}
    return ours, lambda: built(family), config_of(options | changes), folder


def files(folder):
    return [(folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]


class TestWhatWeWrite:
    def test_peft_reads_it(self, written):
        ours, base, _, folder = written
        close(output(read_by_peft(base(), folder)), output(ours))
        assert not torch.allclose(output(ours), output(base()))

    def test_we_read_it(self, written, bits, tmp_path):
        ours, base, config, folder = written
        again = load_adapter(base(), folder)
        assert {n: bits(t) for n, t in again.state_dict().items()} == {n: bits(t) for n, t in ours.state_dict().items()}
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in ours.parameters()]
        assert adapters(again) == {"default": config}
        save_adapter(again, tmp_path, base_model="tiny")
        assert files(tmp_path) == files(folder)

    def test_merged_or_not_it_is_the_same(self, written, tmp_path):
        ours, _, _, folder = written
        merge(ours)
        try:
            save_adapter(ours, tmp_path, base_model="tiny")
        finally:
            unmerge(ours)
        assert files(tmp_path) == files(folder)

    def test_over_an_adapter_that_is_there(self, written, bits):
        ours, _, _, folder = written
        other = moved(copy.deepcopy(ours), seed=9)
        assert not torch.allclose(output(other), output(ours))
        load_adapter(other, folder)
        assert {n: bits(t) for n, t in other.state_dict().items()} == {n: bits(t) for n, t in ours.state_dict().items()}


class TestTheWordsOfTheFile:
    """What the configuration and the names of the tensors say."""

    def saved(self, folder, family, **options):
        save_adapter(adapted(family, config_of(options)), folder, base_model="tiny")
        return entries_of(folder)

    @pytest.mark.parametrize(
        ("targets", "said"),
        [
            (("q_proj", "1.mlp.up_proj"), ["q_proj", "1.mlp.up_proj"]),
            (re.compile(r".*\.0\..*q_proj"), r".*\.0\..*q_proj"),
            (
                re.compile(r".*Q_PROJ", re.IGNORECASE),
                ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"],
            ),
            (is_query, ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ],
        ids=str,
    )
    def test_targets(self, targets, said, tmp_path):
        assert self.saved(tmp_path, "llama", targets=targets)["target_modules"] == said

    def test_all_linear_becomes_names_without_the_head(self, tmp_path):
        names = self.saved(tmp_path, "bert", targets="all-linear")["target_modules"]
        assert len(names) == 13
        assert "classifier" not in names

    def test_a_target_inside_what_peft_saves_whole_is_named_otherwise(self, tmp_path):
        """PEFT leaves out whatever has 'pooler' among its parts; we leave out the same."""
        entries = self.saved(tmp_path, "bert", targets=("query", "pooler.dense"), modules_to_save=("pooler",))
        assert entries["target_modules"] == ["query", "pooler.dense"]
        assert "base_model.model.bert.pooler.dense.weight" in tensors_of(tmp_path)

    def test_names_of_which_one_is_the_end_of_another(self, tmp_path):
        def base():
            with torch.random.fork_rng():
                torch.manual_seed(1)
                return nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.ModuleDict({"a": nn.Linear(4, 4)})})

        model = base().requires_grad_(False)
        model["a"] = moved(LoRALinear(model["a"], LoRAConfig(2)))
        save_adapter(model, tmp_path, base_model="toy")
        assert entries_of(tmp_path)["target_modules"] == "a"
        x = torch.ones(4)
        close(read_by_peft(base(), tmp_path).base_model.model["a"](x), model["a"](x))
        close(load_adapter(base(), tmp_path)["a"](x), model["a"](x))

    def test_modules_that_peft_would_save_beside_these(self, tmp_path):
        model = nn.ModuleDict({"a": nn.Linear(4, 4), "head": nn.Linear(4, 4), "my_head": nn.Linear(4, 4)})
        attach(model, config_of({"targets": ("a",), "modules_to_save": ("head",)}))
        with pytest.raises(ValueError, match="would copy my_head beside head"):
            save_adapter(model, tmp_path / "none", base_model="toy")
        assert not (tmp_path / "none").exists()

    def test_modules_that_peft_knows_by_full_names_only(self, tmp_path):
        model = nn.ModuleDict(
            {"a": nn.Linear(4, 4), "b": nn.ModuleDict({"head": nn.Linear(4, 4)}), "my_head": nn.Linear(4, 4)}
        )
        attach(model, config_of({"targets": ("a",), "modules_to_save": ("head",)}))
        save_adapter(model, tmp_path, base_model="toy")
        assert entries_of(tmp_path)["modules_to_save"] == ["b.head"]

    @pytest.mark.parametrize(
        ("family", "options", "said"),
        [
            ("llama", {}, "CAUSAL_LM"),
            ("bert", {"targets": ("query",)}, None),  # PEFT would look for a classifier in the file
            ("bert", {"targets": ("query",), "modules_to_save": ("classifier",)}, "SEQ_CLS"),
            ("vit", {"targets": ("q_proj",), "modules_to_save": ("classifier",)}, None),
        ],
    )
    def test_task(self, family, options, said, tmp_path):
        assert self.saved(tmp_path, family, **options)["task_type"] == said

    def test_pissa_is_plain_lora_of_twice_the_rank_on_the_base_as_it_is(self, tmp_path):
        entries = self.saved(tmp_path, "llama", init="pissa", rank_pattern={"v_proj": 3}, alpha_pattern={"v_proj": 7})
        said = {key: entries[key] for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights")}
        assert said == {
            "r": 4,
            "lora_alpha": 10,
            "rank_pattern": {"v_proj": 6},
            "alpha_pattern": {"v_proj": 14},
            "init_lora_weights": True,
        }
        assert entries["base_model_name_or_path"] == "tiny"
        model = attach(built("llama"), config_of({"init": "pissa"}))
        A = tensors_of(tmp_path)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
        close(A[2:], lora_layers(model)["model.layers.0.self_attn.q_proj"].lora_A)  # what it started from

    @pytest.mark.parametrize("alpha", [16, 7.3, 7, 3.3, 1 / 3])
    def test_pissas_alpha_comes_back(self, alpha, tmp_path):
        config = config_of({"init": "pissa", "rslora": True, "alpha": alpha})
        save_adapter(attach(built("llama"), config), tmp_path, base_model="tiny")
        assert adapters(load_adapter(built("llama"), tmp_path))["default"].alpha == pytest.approx(alpha, rel=3e-16)
        if alpha != 1 / 3:
            assert adapters(load_adapter(built("llama"), tmp_path)) == {"default": config}

    def test_pissa_without_its_note_is_plain_lora(self, tmp_path):
        ours = adapted("llama", config_of({"init": "pissa"}))
        save_adapter(ours, tmp_path, base_model="tiny")
        content = (tmp_path / "adapter_model.safetensors").read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0  # where the tensors begin
        rewrite(tmp_path)  # as it is after PEFT read and saved it
        again = load_adapter(built("llama"), tmp_path)
        assert adapters(again) == {"default": config_of({"rank": 4, "alpha": 10})}
        close(output(again), output(ours))

    def test_a_grouped_convolution_reaches_over_all_channels(self, tmp_path):
        self.saved(tmp_path, "convolutions", targets=("grouped",))
        A = tensors_of(tmp_path)["base_model.model.grouped.lora_A.weight"]  # 2 groups of 2 channels, of rank 1 each
        assert A.shape == (2, 4, 3, 3)
        assert [A[g, c].count_nonzero().item() for g in range(2) for c in range(4)] == [9, 9, 0, 0, 0, 0, 9, 9]

    @pytest.mark.parametrize(
        ("options", "config", "left_out"),
        [
            ({"dilation": 2}, {}, r"its dilation \(2, 2\)"),
            ({"padding_mode": "circular"}, {}, "its padding_mode 'circular'"),
            ({}, {"dora": True}, "its 2 groups in the lengths that DoRA divides by"),
        ],
    )
    def test_it_warns_where_peft_computes_something_else(self, options, config, left_out, bits, portrait, tmp_path):
        ours = moved(attach(Convolutions(**options).double(), config_of({"targets": ("grouped",)} | config)))
        base = Convolutions(**options).double()
        with torch.no_grad():
            for place in ("line", "wide", "depthwise", "grouped"):
                other = getattr(ours, place)
                getattr(base, place).load_state_dict((other.base if place == "grouped" else other).state_dict())
        with pytest.warns(
            UserWarning, match=f"PEFT will compute something else with grouped: it leaves out {left_out}"
        ):
            save_adapter(ours, tmp_path, base_model="toy")
        again = load_adapter(copy.deepcopy(base), tmp_path)
        assert {n: bits(t) for n, t in again.state_dict().items()} == {n: bits(t) for n, t in ours.state_dict().items()}
        if "dilation" not in options:  # there PEFT does not even get the shapes right
            assert not torch.allclose(output(read_by_peft(copy.deepcopy(base), tmp_path)), output(ours))
        rewrite(tmp_path)  # without our note it is PEFT's, and PEFT's update is another
        before = portrait(base)
        with pytest.raises(ValueError, match=f"grouped is a convolution .*leaves out {left_out}"):
            load_adapter(base, tmp_path)
        assert portrait(base) == before

    def test_where_peft_computes_the_same_it_does_not_warn(self, tmp_path):
        ours = adapted("convolutions", config_of({"targets": ("line", "wide", "grouped")}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_adapter(ours, tmp_path, base_model="toy")

    def test_a_tie_that_peft_does_not_know(self, tmp_path):
        def base():
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)).double()
            model[1].weight = model[0].weight
            return model

        ours = moved(attach(base(), config_of({"targets": ("0",), "tied": "share"})))
        with pytest.warns(UserWarning, match="PEFT has no tied='share' for 1: it will read an update for each"):
            save_adapter(ours, tmp_path, base_model="toy")
        assert entries_of(tmp_path)["ensure_weight_tying"] is False
        x = torch.arange(8)
        close(read_by_peft(base(), tmp_path)(x), ours(x))
        again = load_adapter(base(), tmp_path)
        close(again(x), ours(x))
        assert adapters(again)["default"].tied == "untie"

    def test_a_tie_that_peft_does_not_see_by_its_name(self, tmp_path):
        """In BERT the head is 'decoder', and PEFT looks for 'embed_tokens' and 'lm_head'."""

        def base():
            with torch.random.fork_rng():
                torch.manual_seed(1)
                config = transformers.BertConfig(**SMALL, max_position_embeddings=16)
                return transformers.BertForMaskedLM(config).double().eval()

        ours = moved(attach(base(), config_of({"targets": ("decoder",), "tied": "share", "bias": "all"})))
        with pytest.warns(UserWarning, match="PEFT has no tied='share' for cls.predictions.decoder"):
            save_adapter(ours, tmp_path, base_model="tiny")
        close(output(read_by_peft(base(), tmp_path)), output(ours))
        close(output(load_adapter(base(), tmp_path)), output(ours))

    @pytest.mark.parametrize(("family", "said"), [("gpt2", True), ("llama", False)])
    def test_peft_is_told_of_transposed_weights(self, family, said, tmp_path):
        targets = ("c_attn",) if family == "gpt2" else ("q_proj",)
        assert self.saved(tmp_path, family, targets=targets)["fan_in_fan_out"] is said
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "fan_in_fan_out")
            read_by_peft(built(family), tmp_path)

    def test_a_layer_wrapped_by_hand_trains_its_factors_alone(self, tmp_path):
        config = LoRAConfig(2, bias="all", modules_to_save=("q_proj",), rank_pattern={"up_proj": 3})
        model = built("llama").requires_grad_(False)
        layer = model.model.layers[0].mlp
        layer.up_proj = LoRALinear(layer.up_proj, config)
        save_adapter(moved(model), tmp_path, base_model="tiny")
        assert set(entries_of(tmp_path)) & {"modules_to_save", "rank_pattern"} == set()
        close(output(load_adapter(built("llama"), tmp_path)), output(model))


class TestSeveralAdapters:
    @pytest.fixture
    def model(self):
        """A BERT with two adapters, each trained, mixed half and half."""
        model = attach(built("bert"), config_of({"targets": ("query", "value"), "modules_to_save": ("classifier",)}))
        attach(moved(model), config_of({"targets": ("value", "key"), "rank": 3}), name="second")
        return moved(model, seed=6)

    def test_each_is_saved_by_its_name(self, model, tmp_path):
        for name in ("default", "second"):
            save_adapter(model, tmp_path / name, base_model="tiny", name=name)
            activate(model, name)
            close(output(read_by_peft(built("bert"), tmp_path / name)), output(model))

    def test_the_name_must_be_said_and_known(self, model, tmp_path):
        with pytest.raises(ValueError, match="name must say which adapter is meant, for the model has default, second"):
            save_adapter(model, tmp_path / "none", base_model="tiny")
        with pytest.raises(ValueError, match="name must be one of the model's adapters, default, second, got 'third'"):
            save_adapter(model, tmp_path / "none", base_model="tiny", name="third")
        assert not (tmp_path / "none").exists()

    def test_one_is_loaded_beside_the_others(self, model, tmp_path):
        save_adapter(model, tmp_path, base_model="tiny", name="default")
        model = load_adapter(model, tmp_path, name="third")
        assert list(adapters(model)) == ["default", "second", "third"]
        assert active_adapters(model) == {"third": 1.0}
        third = output(model)
        activate(model, "default")
        assert torch.equal(third, output(model))

    def test_an_error_leaves_the_mix_and_the_flags(self, model, portrait, tmp_path):
        save_adapter(model, tmp_path, base_model="tiny", name="second")
        rewrite(tmp_path, tensors={"base_model.model.bert.encoder.layer.1.attention.self.key.lora_A.weight": None})
        activate(model, {"default": 1.0, "second": 0.5})
        model.bert.pooler.dense.weight.requires_grad_(True)
        before, shares = portrait(model), active_adapters(model)
        for name in ("third", "second"):
            with pytest.raises(ValueError, match=r"key\.lora_A\.weight is missing"):
                load_adapter(model, tmp_path, name=name)
            assert (portrait(model), active_adapters(model)) == (before, shares)

    def test_names_that_cannot_be(self, model, tmp_path):
        save_adapter(model, tmp_path, base_model="tiny", name="second")
        with pytest.raises(ValueError, match="must not be empty, hold a dot"):
            load_adapter(model, tmp_path, name="a.b")

    def test_biases_belong_to_one_adapter(self, model, portrait, tmp_path):
        save_adapter(adapted("bert", config_of({"targets": ("key",), "bias": "all"})), tmp_path, base_model="tiny")
        before = portrait(model)
        with pytest.raises(ValueError, match="biases belong to one adapter alone"):
            load_adapter(model, tmp_path, name="third")
        assert portrait(model) == before

    def test_trained_biases_are_not_lost_inside_disabled(self, tmp_path):
        model = adapted("llama", config_of({"bias": "lora_only"}))
        save_adapter(model, tmp_path / "before", base_model="tiny")
        with disabled(model):
            with pytest.raises(ValueError, match="outside disabled"):
                save_adapter(model, tmp_path / "none", base_model="tiny")
            with pytest.raises(ValueError, match="outside disabled"):
                load_adapter(model, tmp_path / "before")
        without = adapted("llama", config_of({}))
        with disabled(without):
            save_adapter(without, tmp_path / "inside", base_model="tiny")
        save_adapter(without, tmp_path / "outside", base_model="tiny")
        assert files(tmp_path / "inside") == files(tmp_path / "outside")


THEIRS = {
    "llama, list": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "llama, expression": ("llama", {"target_modules": r".*\.[01]\..*(q_proj|up_proj)"}),
    "llama, without some": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "exclude_modules": ["0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"],
        },
    ),
    "llama, without an expression": (
        "llama",
        {"target_modules": r".*(q_proj|v_proj)", "exclude_modules": r".*\.0\..*v_proj"},
    ),
    "llama, one block": ("llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]}),
    "llama, block 0 as a number": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 0}),
    "llama, block 1 by its pattern": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "llama, a full name beside a block": (
        "llama",
        {"target_modules": ["v_proj", "model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
    ),
    "llama, ranks and alphas": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"0.self_attn.q_proj": 4, "v_proj": 3},
            "alpha_pattern": {"^model.layers.1.*": 9},
            "use_rslora": True,
        },
    ),
    "llama, a pattern without a target": ("llama", {"rank_pattern": {"k_proj": 1}}),
    "llama, dora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "lora_dropout": 0.1}),
    "llama, all biases": ("llama", {"bias": "all"}),
    "llama, own biases": ("llama", {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"}),
    "llama, own biases where there are none": ("llama", {"target_modules": ["down_proj"], "bias": "lora_only"}),
    "llama, embedding and its base": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "llama, head and its base": ("llama", {"target_modules": ["lm_head"]}),
    "llama, copies": ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    "llama, for its task": ("llama", {"task_type": "CAUSAL_LM", "init_lora_weights": "gaussian"}),
    "tied llama, embedding alone": ("llama, tied", {"target_modules": ["embed_tokens"]}),
    "tied llama, head alone": ("llama, tied", {"target_modules": ["lm_head"]}),
    "tied llama, tied": ("llama, tied", {"target_modules": ["lm_head", "q_proj"], "ensure_weight_tying": True}),
    "tied llama, tied by an expression": (
        "llama, tied",
        {"target_modules": r".*embed_tokens|embed_tokens", "ensure_weight_tying": True},
    ),
    "tied llama, nothing to tie": ("llama, tied", {"target_modules": ["q_proj"], "ensure_weight_tying": True}),
    "llama, nothing tied": ("llama", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "all"}),
    "gpt2, dora": ("gpt2", {"target_modules": ["c_proj", "lm_head"], "use_dora": True}),
    "gpt2, embedding alone": ("gpt2", {"target_modules": ["wte"], "ensure_weight_tying": True}),  # PEFT does not tie it
    "gpt2, tied": ("gpt2", {"target_modules": ["lm_head", "wte"], "ensure_weight_tying": True}),
    "bert, for its task": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "bert, for its task and by name": (
        "bert",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
    ),
    "bert, for its task with all biases": (
        "bert",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"},
    ),
    "bert, a copy that has parts": (
        "bert",
        {"target_modules": ["query"], "modules_to_save": ["bert.pooler"], "bias": "all"},
    ),
    "bert, copies by the end of a name": (
        "bert",
        {"target_modules": ["query"], "modules_to_save": ["er.dense", "sifier"]},
    ),
    "bert, all linear": ("bert", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
    "vit": ("vit", {"target_modules": ["projection", "q_proj"], "modules_to_save": ["classifier"], "use_dora": True}),
    "convolutions": ("convolutions", {"target_modules": ["line", "wide"], "bias": "all"}),
    "convolutions, dora": ("convolutions", {"target_modules": ["line", "wide"], "use_dora": True}),
}


class TestWhatPeftWrites:
    @pytest.mark.parametrize("name", THEIRS)
    def test_we_read_it(self, name, tmp_path):
        family, options = THEIRS[name]
        theirs = made_by_peft(family, tmp_path, **options)
        ours = load_adapter(built(family), tmp_path)
        close(output(ours), output(theirs))
        assert not torch.allclose(output(ours), output(built(family)))
        adapted_by_peft = {
            n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")
        }
        assert set(lora_layers(ours)) == adapted_by_peft

    @pytest.mark.parametrize("name", ["gpt2, dora", "tied llama, tied", "bert, for its task with all biases", "vit"])
    def test_over_an_adapter_that_is_there(self, name, bits, tmp_path):
        family, options = THEIRS[name]
        theirs = made_by_peft(family, tmp_path, **options)
        ours = moved(load_adapter(built(family), tmp_path), seed=8)
        assert not torch.allclose(output(ours), output(theirs))
        load_adapter(ours, tmp_path)
        close(output(ours), output(theirs))

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("llama, expression", {"targets": re.compile(r".*\.[01]\..*(q_proj|up_proj)")}),
            (
                "llama, one block",
                {"targets": ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")},
            ),
            ("llama, for its task", {"targets": ("q_proj",), "init": "gaussian"}),
            ("llama, own biases where there are none", {"targets": ("down_proj",), "bias": "none"}),
            ("tied llama, head alone", {"targets": ("lm_head",), "tied": "untie"}),
            ("tied llama, nothing to tie", {"targets": ("q_proj",)}),
            (
                "bert, copies by the end of a name",
                {"targets": ("query",), "modules_to_save": ("bert.pooler.dense", "classifier")},
            ),
        ],
    )
    def test_as_a_configuration(self, name, config, tmp_path):
        family, options = THEIRS[name]
        made_by_peft(family, tmp_path, **options)
        assert adapters(load_adapter(built(family), tmp_path)) == {"default": config_of(config)}

    @pytest.mark.parametrize(
        ("family", "options"),
        [
            ("llama", {"target_modules": ["q_proj", "down_proj"]}),
            ("llama", {"use_rslora": True, "rank_pattern": {"0.self_attn.q_proj": 4}, "alpha_pattern": {"q_proj": 3}}),
            ("gpt2", {"target_modules": ["c_attn"]}),
        ],
    )
    def test_pissa(self, family, options, tmp_path):
        theirs = made_by_peft(family, tmp_path, torch.float32, init_lora_weights="pissa", **options)
        base = built(family, torch.float32)
        ours = load_adapter(copy.deepcopy(base), tmp_path)
        close(output(ours), output(theirs))
        assert adapters(ours)["default"].init == "pissa"
        with disabled(ours):
            assert torch.equal(output(ours), output(base))  # the base is what it was
        save_adapter(ours, tmp_path / "ours", base_model="tiny")
        close(output(read_by_peft(base, tmp_path / "ours")), output(theirs))
        moved(ours, seed=8)
        close(output(load_adapter(ours, tmp_path)), output(theirs))

    def test_pissa_that_peft_made_plain(self, tmp_path):
        """PEFT can write PiSSA as plain LoRA of twice the rank too, given what it started from."""
        base = built("llama", torch.float32)
        theirs = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
        )
        theirs.save_pretrained(tmp_path / "start")
        moved(theirs.eval()).save_pretrained(
            tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
        ours = load_adapter(base, tmp_path / "plain")
        assert adapters(ours)["default"].rank == 4
        close(output(ours), output(theirs))

    def test_pissa_of_a_tied_weight_is_refused(self, portrait, tmp_path):
        """PEFT takes the start from the one tensor, so that the other layer changes as well."""
        made_by_peft("llama, tied", tmp_path, torch.float32, init_lora_weights="pissa", target_modules=["lm_head"])
        model = built("llama, tied", torch.float32)
        before = portrait(model)
        with pytest.raises(ValueError, match="the weight of 'lm_head' is tied"):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    def test_grouped_convolutions_within_their_groups(self, portrait, tmp_path):
        theirs = peft.get_peft_model(
            built("convolutions"), peft.LoraConfig(r=2, target_modules=["grouped"], init_lora_weights=False)
        )
        A = theirs.base_model.model.grouped.lora_A["default"].weight
        with torch.no_grad():
            A[0, 2:], A[1, :2] = 0, 0
        theirs.save_pretrained(tmp_path)
        close(output(load_adapter(built("convolutions"), tmp_path)), output(theirs))
        with torch.no_grad():
            A[1, 0, 2, 2] = 1e-30
        theirs.save_pretrained(tmp_path)
        model = built("convolutions")
        before = portrait(model)
        with pytest.raises(ValueError, match=r"grouped has 2 groups, but .* no place in the weight"):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    def test_eva(self, tmp_path):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="eva", eva_config=peft.EvaConfig())
        theirs = moved(peft.get_peft_model(built("llama"), config)).eval()
        theirs.save_pretrained(tmp_path)
        assert entries_of(tmp_path)["eva_config"]
        close(output(load_adapter(built("llama"), tmp_path)), output(theirs))


class TestLoadingRefuses:
    """Every error says what is wrong and leaves the model as it was, without an adapter or with one."""

    @pytest.fixture(params=["untouched", "attached", "beside another"])
    def refuses(self, request, portrait, tmp_path):
        def check(family, match, options=None):
            model = built(family)
            if request.param == "attached" and options is not None:
                moved(attach(model, config_of(options)))
            elif request.param == "beside another":
                moved(attach(model, LoRAConfig(1, 1, (next(iter(OTHERS[family])),))), seed=1)
                activate(model, {"default": 0.5})
            before, shares = portrait(model), active_adapters(model) if adapters(model) else {}
            with pytest.raises(ValueError, match=match):
                load_adapter(model, tmp_path, name="other" if request.param == "beside another" else "default")
            assert portrait(model) == before
            assert (active_adapters(model) if adapters(model) else {}) == shares

        return check

    @pytest.mark.parametrize(
        ("family", "options", "key", "change", "match"),
        [
            ("llama", {"dora": True}, "layers.0.self_attn.q_proj.lora_magnitude_vector", None, "is missing"),
            (
                "llama",
                {"dora": True},
                "layers.0.self_attn.q_proj.lora_magnitude_vector",
                lambda t: t[:-1],
                r"shape \(16,\)",
            ),
            ("llama", {"dora": True}, "layers.0.self_attn.q_proj.lora_magnitude_vector", lambda t: t / 0, "finite"),
            ("llama", {"dora": True}, "layers.0.self_attn.k_proj.lora_magnitude_vector", torch.ones(8), "left over"),
            (
                "llama",
                {"targets": ("embed_tokens",)},
                "embed_tokens.lora_embedding_A",
                lambda t: t.T.contiguous(),
                r"shape \(2, 32\)",
            ),
            ("llama", {"targets": ("embed_tokens",)}, "embed_tokens.lora_embedding_B", None, "is missing"),
            (
                "llama",
                {"init": "pissa"},
                "layers.0.self_attn.q_proj.lora_A.weight",
                lambda t: t[:2],
                r"shape \(4, 16\)",
            ),
            (
                "bert",
                {"targets": ("query",), "modules_to_save": ("classifier",)},
                "classifier.weight",
                None,
                "is missing",
            ),
            (
                "bert",
                {"targets": ("query",), "modules_to_save": ("classifier",)},
                "classifier.bias",
                lambda t: t / 0,
                "finite",
            ),
            (
                "bert",
                {"targets": ("query",), "modules_to_save": ("classifier",)},
                "classifier.weight",
                lambda t: t.T.contiguous(),
                r"shape \(3, 16\)",
            ),
            (
                "bert",
                {"targets": ("query",), "modules_to_save": ("classifier",)},
                "classifier.scale",
                torch.ones(3),
                "left over",
            ),
            ("convolutions", {"targets": ("line",)}, "line.lora_B.weight", lambda t: t[..., 0], r"shape \(6, 2, 1\)"),
            (
                "convolutions",
                {"targets": ("grouped",)},
                "grouped.lora_A.weight",
                lambda t: t[:, :2],
                r"shape \(2, 4, 3, 3\)",
            ),
            (
                "convolutions",
                {"targets": ("grouped",)},
                "grouped.lora_A.weight",
                torch.ones_like,
                "no place in the weight",
            ),
        ],
    )
    def test_tensors(self, family, options, key, change, match, refuses, tmp_path):
        save_adapter(adapted(family, config_of(options)), tmp_path, base_model="tiny")
        (full,) = {k for k in tensors_of(tmp_path) if k.endswith(key)} or {f"base_model.model.model.{key}"}
        value = change(tensors_of(tmp_path)[full]).contiguous() if callable(change) else change
        content = (tmp_path / "adapter_model.safetensors").read_bytes()
        notes = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        tensors = {k: t for k, t in (tensors_of(tmp_path) | {full: value}).items() if t is not None}
        safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors", metadata=notes)
        refuses(family, match, options)

    @pytest.mark.parametrize(
        ("key", "change", "match"),
        [
            ("base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias", None, "is missing"),
            ("base_model.model.bert.embeddings.LayerNorm.bias", torch.zeros(15), r"shape \(16,\), got \(15,\)"),
            ("base_model.model.bert.embeddings.LayerNorm.weight", torch.zeros(16), "left over"),
            ("base_model.model.classifier.original_module.bias", torch.zeros(3), "the model's own, but differs"),
            ("base_model.model.classifier.modules_to_save.bias", torch.zeros(3), "classifier.bias, but differs"),
        ],
    )
    def test_biases(self, key, change, match, portrait, tmp_path):
        made_by_peft("bert", tmp_path, target_modules=["query"], modules_to_save=["classifier"], bias="all")
        rewrite(tmp_path, tensors={key: change})
        model = built("bert")
        before = portrait(model)
        with pytest.raises(ValueError, match=match):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    @pytest.mark.parametrize(
        ("here", "there", "match"),
        [
            ({"dora": True}, {}, "dora must agree: layer .* has True, .* has False"),
            ({}, {"dora": True}, "dora must agree: layer .* has False, .* has True"),
            ({"init": "pissa"}, {}, "init must agree: layer .* has pissa"),
            ({}, {"init": "pissa"}, "init must agree: layer .* has kaiming"),
            ({"bias": "all"}, {}, "bias must agree: the model's adapter has 'all', .* has 'none'"),
            ({}, {"bias": "all"}, "bias must agree: the model's adapter has 'none', .* has 'all'"),
            ({"modules_to_save": ("lm_head",)}, {}, "modules_to_save must agree: .* has lm_head, .* has none"),
            ({}, {"modules_to_save": ("lm_head",)}, "modules_to_save must agree: .* has none, .* has lm_head"),
            ({"rank_pattern": {"v_proj": 3}}, {}, "rank must agree: .*v_proj' has 3, .* has 2"),
            ({"alpha_pattern": {"v_proj": 3}}, {}, "alpha must agree: .*v_proj' has 3, .* has 5"),
        ],
    )
    def test_an_adapter_of_another_kind(self, here, there, match, portrait, tmp_path):
        save_adapter(adapted("llama", config_of(there)), tmp_path, base_model="tiny")
        model = adapted("llama", config_of(here))
        before = portrait(model)
        with pytest.raises(ValueError, match=match):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    @pytest.mark.parametrize("key", ["embed_tokens.base_layer.weight", "embed_tokens.lora_embedding_A"])
    def test_an_embedding_of_another_base(self, key, portrait, tmp_path):
        made_by_peft("llama", tmp_path, target_modules=["embed_tokens"])
        full = f"base_model.model.model.{key}"
        changed = tensors_of(tmp_path)[full].clone()
        changed[0, 0] += 1
        model = built("llama")
        rewrite(tmp_path, tensors={full: changed})
        if "lora" in key:  # the adapter itself may differ
            load_adapter(model, tmp_path)
            return
        before = portrait(model)
        for base in (changed, changed[:-1]):
            rewrite(tmp_path, tensors={full: base.contiguous()})
            with pytest.raises(ValueError, match="the model's own, but differs: the adapter is for another base"):
                load_adapter(model, tmp_path)
            assert portrait(model) == before

    def test_an_embedding_of_the_base_in_another_type(self, tmp_path):
        made_by_peft("llama", tmp_path, torch.float32, target_modules=["embed_tokens"])
        load_adapter(built("llama", torch.bfloat16), tmp_path)  # its base, rounded
        rewrite(tmp_path, tensors={"base_model.model.model.embed_tokens.base_layer.weight": torch.ones(32, 16)})
        with pytest.raises(ValueError, match="for another base"):
            load_adapter(built("llama", torch.bfloat16), tmp_path)

    def test_two_values_for_one_bias(self, portrait, tmp_path):
        def base():
            model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4)).double()
            model[2].bias = model[1].bias
            return model

        save_adapter(moved(attach(base(), config_of({"targets": ("0",), "bias": "all"}))), tmp_path, base_model="toy")
        load_adapter(base(), tmp_path)
        rewrite(tmp_path, tensors={"base_model.model.2.bias": torch.ones(4, dtype=torch.float64)})
        model = base()
        before = portrait(model)
        with pytest.raises(ValueError, match=r"2\.bias is one bias with another of the file, but differs"):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    def test_two_updates_for_one_that_is_shared(self, portrait, tmp_path):
        save_adapter(
            adapted("llama, tied", config_of({"targets": ("embed_tokens",), "tied": "share"})), tmp_path, base_model="t"
        )
        key = "base_model.model.lm_head.lora_A.weight"
        rewrite(tmp_path, tensors={key: tensors_of(tmp_path)[key] * 2})
        model = built("llama, tied")
        before = portrait(model)
        with pytest.raises(ValueError, match=r"lm_head must share the update of model\.embed_tokens"):
            load_adapter(model, tmp_path)
        rewrite(tmp_path, tensors={key: None, "base_model.model.lm_head.lora_B.weight": None})
        with pytest.raises(ValueError, match=r"lm_head.* are missing"):
            load_adapter(model, tmp_path)
        assert portrait(model) == before

    def test_copies_that_peft_ties(self, tmp_path):
        made_by_peft("llama, tied", tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
        with pytest.raises(ValueError, match="ensure_weight_tying is not supported for modules_to_save"):
            load_adapter(built("llama, tied"), tmp_path)

    def test_an_odd_rank_where_twice_one_is_noted(self, tmp_path):
        save_adapter(adapted("llama", config_of({"init": "pissa"})), tmp_path, base_model="tiny")
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(entries_of(tmp_path) | {"r": 3}))
        with pytest.raises(ValueError, match="r must be even"):
            load_adapter(built("llama"), tmp_path)


OTHERS = {"llama": ["o_proj"], "bert": ["key"], "convolutions": ["wide"]}  # targets of an adapter that is there already
