"""Several adapters on one base: added, switched, mixed, routed row by row, taken out one by one."""

import copy
import pickle

import peft
import pytest
import torch
from torch import nn

from lora_lab.lora import (
    LoRAConfig,
    activate,
    active_adapters,
    adapters,
    attach,
    detach,
    disabled,
    lora_layers,
    merge,
    routed,
    unmerge,
)

pytestmark = pytest.mark.filterwarnings("ignore")

SQL = LoRAConfig(2, 3, ("q_proj", "v_proj"))
CHAT = LoRAConfig(3, 5, ("v_proj", "o_proj", "down_proj"), rslora=True)


def drawn(model, name, seed):
    """Draw every factor of one adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            if name in layer.adapters:
                for factor in layer.adapters[name].parameters():
                    factor.copy_(torch.randn(factor.shape, generator=generator, dtype=factor.dtype))
    return model


@pytest.fixture
def two(llama):
    """A Llama with the adapters 'sql' and 'chat', all factors drawn."""
    model = attach(attach(llama(), SQL, name="sql"), CHAT, name="chat")
    return drawn(drawn(model, "sql", 1), "chat", 2)


@pytest.fixture
def alone(llama):
    """Builder of a Llama with one of the two: ``alone('sql')``."""

    def build(name):
        config, seed = {"sql": (SQL, 1), "chat": (CHAT, 2)}[name]
        return drawn(attach(llama(), config, name=name), name, seed)

    return build


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


class TestAdding:
    def test_each_computes_as_if_it_were_alone(self, two, alone, tokens):
        for name in ("sql", "chat"):
            activate(two, name)
            torch.testing.assert_close(logits(two, tokens), logits(alone(name), tokens), rtol=0, atol=0)

    def test_the_last_one_attached_counts(self, two):
        assert active_adapters(two) == {"chat": 1.0}
        assert adapters(two) == {"sql": SQL, "chat": CHAT}

    def test_changes_nothing_of_the_first(self, llama, tokens):
        model = drawn(attach(llama(), SQL, name="sql"), "sql", 1)
        expected, layers = logits(model, tokens), lora_layers(model)
        attach(model, CHAT, name="chat")
        assert all(lora_layers(model)[name] is layer for name, layer in layers.items())
        activate(model, "sql")
        assert torch.equal(logits(model, tokens), expected)

    def test_the_active_one_trains_alone(self, two, tokens):
        for name, other in (("sql", "chat"), ("chat", "sql")):
            activate(two, name)
            two.zero_grad()
            two(tokens).logits.sum().backward()
            for parameter_name, parameter in two.named_parameters():
                assert parameter.requires_grad == (f".adapters.{name}." in parameter_name)
                assert (parameter.grad is not None) == parameter.requires_grad
            assert any(f".adapters.{other}." in parameter_name for parameter_name, _ in two.named_parameters())

    def test_a_name_must_be_new_and_a_name(self, two, portrait):
        before = portrait(two)
        for name, error in (
            ("sql", ValueError),
            ("a.b", ValueError),
            ("", ValueError),
            ("keys", ValueError),
            (3, TypeError),
        ):
            with pytest.raises(error, match="name must"):
                attach(two, SQL, name=name)
        assert portrait(two) == before

    def test_nothing_changes_if_the_second_does_not_fit(self, two, portrait):
        before = portrait(two)
        with pytest.raises(ValueError, match="names no layer"):
            attach(two, LoRAConfig(2, targets=("q_proj", "nothing")), name="third")
        with pytest.raises(ValueError, match="rank must be at most"):
            attach(two, LoRAConfig(9, targets=("q_proj", "v_proj")), name="third")
        assert portrait(two) == before

    def test_not_while_merged(self, two):
        merge(two)
        with pytest.raises(ValueError, match="must not be merged"):
            attach(two, SQL, name="third")

    def test_to_a_part_of_an_attached_model_is_an_error(self, two):
        with pytest.raises(ValueError, match="attach the whole"):
            attach(two.model, SQL, name="third")


class TestMixing:
    @pytest.mark.parametrize("shares", [{"sql": 1, "chat": 1}, {"sql": 0.7, "chat": 0.3}, {"sql": -2.0}])
    def test_is_the_weighted_sum_of_the_updates(self, shares, two, alone, llama, tokens):
        activate(two, shares)
        mixed = llama()
        with torch.no_grad():
            for name, share in shares.items():
                for place, layer in lora_layers(alone(name)).items():
                    update = layer.scale * layer.lora_B @ layer.lora_A
                    mixed.get_submodule(place).weight.add_(share * update)
        torch.testing.assert_close(logits(two, tokens), logits(mixed, tokens), rtol=1e-9, atol=1e-9)

    def test_is_what_merging_merges(self, two, tokens):
        activate(two, {"sql": 0.5, "chat": 2})
        expected = logits(two, tokens)
        merge(two)
        torch.testing.assert_close(logits(two, tokens), expected, rtol=1e-9, atol=1e-9)
        unmerge(two)
        assert torch.equal(logits(two, tokens), expected)

    def test_both_train(self, two, tokens):
        activate(two, {"sql": 0.5, "chat": 0.5})
        two(tokens).logits.sum().backward()
        grads = {name: p.grad is not None for name, p in two.named_parameters() if ".adapters." in name}
        assert all(grads.values())

    @pytest.mark.parametrize(
        ("shares", "error", "match"),
        [
            ("nothing", ValueError, "must be of the model's, sql, chat, got 'nothing'"),
            ({}, ValueError, "at least"),
            ({"sql": float("nan")}, ValueError, "finite"),
            ({"sql": "1"}, TypeError, "number"),
            ({"sql": True}, TypeError, "number"),
        ],
    )
    def test_refuses(self, shares, error, match, two, portrait):
        before = portrait(two), active_adapters(two)
        with pytest.raises(error, match=match):
            activate(two, shares)
        assert (portrait(two), active_adapters(two)) == before

    def test_dora_is_not_mixed(self, llama, tokens):
        model = attach(attach(llama(), SQL, name="sql"), LoRAConfig(2, dora=True), name="dora")
        logits(model, tokens)
        for shares in ({"sql": 1, "dora": 1}, {"dora": 0.5}):
            with pytest.raises(ValueError, match=r"'dora' is DoRA.*activate it alone"):
                activate(model, shares)
        activate(model, "sql")

    def test_not_while_merged(self, two):
        merge(two)
        with pytest.raises(ValueError, match="must not be merged"):
            activate(two, "sql")


class TestRouting:
    def test_each_row_gets_its_own_adapter(self, two, alone, llama):
        batch = torch.randint(32, (5, 7), generator=torch.Generator().manual_seed(5))
        names = ["sql", "chat", None, "chat", "sql"]
        with routed(two, names):
            together = logits(two, batch)
        one_by_one = {"sql": alone("sql"), "chat": alone("chat"), None: llama()}
        for row, name in enumerate(names):
            expected = logits(one_by_one[name], batch[row : row + 1])[0]
            torch.testing.assert_close(together[row], expected, rtol=1e-10, atol=1e-10)

    def test_is_that_of_peft(self, two, llama):
        batch = torch.randint(32, (3, 7), generator=torch.Generator().manual_seed(5))
        theirs = None
        for name, config in (("sql", SQL), ("chat", CHAT)):
            theirs_config = peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), use_rslora=config.rslora
            )
            if theirs is None:
                theirs = peft.get_peft_model(llama(), theirs_config, adapter_name=name)
            else:
                theirs.add_adapter(name, theirs_config)
        with torch.no_grad():
            for place, layer in lora_layers(two).items():
                other = theirs.base_model.model.get_submodule(place)
                for name, adapter in layer.adapters.items():
                    other.lora_A[name].weight.copy_(adapter.lora_A)
                    other.lora_B[name].weight.copy_(adapter.lora_B)
            expected = theirs.eval()(batch, adapter_names=["chat", "__base__", "sql"]).logits
        with routed(two, ["chat", None, "sql"]):
            torch.testing.assert_close(logits(two, batch), expected, rtol=1e-10, atol=1e-10)

    def test_both_learn_from_one_batch(self, two):
        activate(two, {"sql": 1, "chat": 1})
        batch = torch.randint(32, (2, 7), generator=torch.Generator().manual_seed(5))
        with routed(two, ["sql", "chat"]):
            two(batch).logits.sum().backward()
        assert all(p.grad.abs().max() > 0 for name, p in two.named_parameters() if ".adapters." in name)

    def test_the_weight_of_a_routed_layer_is_not_one_matrix(self, two):
        layer = next(iter(lora_layers(two).values()))
        with routed(two, ["sql"]), pytest.raises(ValueError, match="differs from row to row"):
            _ = layer.weight

    def test_embeddings_and_convolutions(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(9, 4)
                self.conv = nn.Conv1d(4, 4, 3, padding=1, groups=2)

            def forward(self, x):
                return self.conv(self.embed(x).mT)

        net = Net().double()
        for name, dora in (("a", False), ("b", True)):
            drawn(attach(net, LoRAConfig(2, targets=("embed", "conv"), dora=dora), name=name), name, len(name))
        x = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(1))
        with routed(net, ["b", None, "a"]):
            together = net(x)
        for row, name in ((0, "b"), (2, "a")):
            activate(net, name)
            torch.testing.assert_close(together[row], net(x[row : row + 1])[0], rtol=1e-10, atol=1e-10)
        with disabled(net):
            torch.testing.assert_close(together[1], net(x[1:2])[0], rtol=1e-10, atol=1e-10)

    def test_ends_with_the_block(self, two, tokens):
        expected = logits(two, tokens)
        with pytest.raises(RuntimeError), routed(two, ["sql"] * 2):
            raise RuntimeError
        assert torch.equal(logits(two, tokens), expected)

    def test_refuses(self, two, tokens):
        with (
            pytest.raises(ValueError, match=r"must be of the model's adapters, sql, chat, or None; got 'x'"),
            routed(two, ["x"]),
        ):
            pass
        with pytest.raises(ValueError, match="3 names for a batch of 2 rows"), routed(two, ["sql"] * 3):
            two(tokens)
        merge(two)
        with pytest.raises(ValueError, match="merged"), routed(two, ["sql"]):
            pass


class TestDetaching:
    def test_one_leaves_the_other(self, two, alone, tokens):
        detach(two, "chat")
        assert adapters(two) == {"sql": SQL}
        assert list(lora_layers(two)) == list(lora_layers(alone("sql")))
        activate(two, "sql")
        assert torch.equal(logits(two, tokens), logits(alone("sql"), tokens))

    def test_the_one_that_counts_leaves_the_first_that_is_left(self, two):
        detach(two, "chat")
        assert active_adapters(two) == {"sql": 1.0}
        assert all(p.requires_grad == (".adapters.sql." in name) for name, p in two.named_parameters())

    def test_one_that_does_not_count_leaves_the_mix_as_it_is(self, two, llama):
        attach(two, LoRAConfig(1, targets=("k_proj",)), name="third")
        activate(two, {"sql": 0.5, "chat": 0.25})
        detach(two, "third")
        assert active_adapters(two) == {"sql": 0.5, "chat": 0.25}

    @pytest.mark.parametrize("names", [(None,), ("sql", "chat"), ("chat", "sql")])
    def test_all_give_back_the_very_model(self, names, llama, portrait):
        model = llama()
        before = portrait(model)
        attach(attach(model, SQL, name="sql"), CHAT, name="chat")
        for name in names:
            detach(model, name)
        assert portrait(model) == before
        assert adapters(model) == {}

    def test_an_unknown_one(self, two):
        with pytest.raises(ValueError, match="one of the model's adapters, sql, chat, got 'x'"):
            detach(two, "x")


class TestState:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_have_both(self, copied, two, tokens):
        activate(two, {"sql": 0.5, "chat": 0.5})
        other = copied(two)
        expected = logits(two, tokens)
        drawn(two, "sql", 9)
        assert torch.equal(logits(other, tokens), expected)
        activate(other, "chat")
        detach(other)
        assert not lora_layers(other)

    def test_the_names_of_one_do_not_depend_on_the_other(self, two, alone):
        ours = {name for name in two.state_dict() if ".adapters.sql." in name}
        assert ours == {name for name in alone("sql").state_dict() if ".adapters.sql." in name}

    def test_a_layer_says_which_adapters_it_has(self, two):
        layer = lora_layers(two)["model.layers.0.self_attn.v_proj"]
        assert "sql(rank=2, alpha=3, scale=1.5), chat(rank=3, alpha=5, scale=2.887)" in repr(layer)
        assert layer.adapter is layer.adapters["chat"]
        activate(two, {"sql": 1, "chat": 1})
        with pytest.raises(LookupError, match=r"has sql, chat: read layer\.adapters\[name\]"):
            _ = layer.lora_A


class TestCopiesAndBiases:
    @pytest.fixture
    def net(self):
        def build():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()

        return build

    def train(self, model, steps=3):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - 1).square().sum().backward()
            optimizer.step()
        return x

    def test_a_copy_trains_and_the_module_stays(self, net, bits, portrait):
        model = net()
        before, head = portrait(model), bits(model[2].weight)
        x = torch.ones(2, 5, dtype=torch.float64)
        expected = model(x)
        attach(model, LoRAConfig(2, targets=("0",), modules_to_save=("2",)))
        assert torch.equal(model(x), expected)
        self.train(model)
        assert bits(model[2].base.weight) == head
        assert bits(model[2].weight) != head
        assert not torch.equal(model(x), expected)
        with disabled(model):
            assert torch.equal(model(x), expected)
        detach(model)
        assert portrait(model) == before

    def test_each_adapter_has_a_copy(self, net):
        model = net()
        for name in ("a", "b"):
            attach(model, LoRAConfig(2, targets=("0",), modules_to_save=("2",)), name=name)
            self.train(model, steps=len(name) + ord(name) % 2)
        x, outputs = torch.ones(2, 5, dtype=torch.float64), {}
        for name in ("a", "b"):
            activate(model, name)
            outputs[name] = model(x)
        assert not torch.allclose(outputs["a"], outputs["b"])
        with routed(model, ["b", "a"]):
            both = model(x)
        torch.testing.assert_close(both, torch.stack([outputs["b"][0], outputs["a"][1]]), rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="a and b train a copy of '2'; activate one"):
            activate(model, {"a": 1, "b": 1})

    def test_a_target_is_not_a_copy_as_well(self, net, portrait):
        model = net()
        before = portrait(model)
        with pytest.raises(ValueError, match="outside modules_to_save"):
            attach(model, LoRAConfig(2, targets=("2",), modules_to_save=("2",)))
        with pytest.raises(ValueError, match="'3' names no module"):
            attach(model, LoRAConfig(2, targets=("0",), modules_to_save=("3",)))
        assert portrait(model) == before

    @pytest.mark.parametrize(("bias", "trained"), [("all", {0, 2}), ("lora_only", {0})])
    def test_biases_train_and_come_back(self, bias, trained, net, portrait, bits):
        model = net()
        before, start = portrait(model), {place: bits(model[place].bias) for place in (0, 2)}
        x = torch.ones(2, 5, dtype=torch.float64)
        expected = model(x)
        attach(model, LoRAConfig(2, targets=("0",), bias=bias))
        self.train(model)
        assert {place for place in (0, 2) if bits(model[place].bias) != start[place]} == trained
        after = model(x)
        with disabled(model), disabled(model):
            assert torch.equal(model(x), expected)
        assert torch.equal(model(x), after)
        detach(model)
        assert portrait(model) == before

    def test_biases_belong_to_one_adapter(self, net, portrait):
        model = attach(net(), LoRAConfig(2, targets=("0",), bias="all"), name="a")
        before = portrait(model)
        with pytest.raises(ValueError, match="belong to one adapter alone, and the model has a"):
            attach(model, LoRAConfig(2, targets=("0",)), name="b")
        with pytest.raises(ValueError, match="all rows of a batch share"), routed(model, ["a"]):
            pass
        assert portrait(model) == before

    def test_there_must_be_a_bias(self, portrait):
        model = nn.Sequential(nn.Linear(5, 6, bias=False))
        before = portrait(model)
        with pytest.raises(ValueError, match="bias='all' must find a bias"):
            attach(model, LoRAConfig(2, targets=("0",), bias="all"))
        assert portrait(model) == before

    @pytest.mark.parametrize("block", [disabled, lambda model: routed(model, [None])])
    def test_nothing_is_attached_or_detached_inside_a_block(self, block, net, portrait):
        model = attach(net(), LoRAConfig(2, targets=("0",)), name="a")
        before = portrait(model)
        with block(model):
            for change in (lambda: attach(model, LoRAConfig(2, targets=("2",)), name="b"), lambda: detach(model)):
                with pytest.raises(ValueError, match=r"outside disabled\(model\) and routed\(model, …\)"):
                    change()
        assert portrait(model) == before
        detach(attach(model, LoRAConfig(2, targets=("2",)), name="b"))

    def test_biases_are_not_detached_inside_disabled(self, net, bits):
        model = net()
        before = bits(model[2].bias)
        attach(model, LoRAConfig(2, targets=("0",), bias="all"))
        self.train(model)
        with disabled(model), pytest.raises(ValueError, match="outside disabled"):
            detach(model)
        detach(model)
        assert bits(model[2].bias) == before

    def test_a_weight_read_from_a_copy_differs_from_row_to_row(self, net):
        model = attach(net(), LoRAConfig(2, targets=("0",), modules_to_save=("2",)))
        with routed(model, ["default", None]), pytest.raises(ValueError, match="weight of this module differs"):
            _ = model[2].weight
        assert model[2].weight is model[2].copies["default"].weight

    def test_disabled_leaves_the_switches_of_others_alone(self, net):
        model = net()
        model[1].enabled = True
        attach(model, LoRAConfig(2, targets=("0",)))
        with disabled(model):
            assert model[1].enabled


@pytest.mark.parametrize("wrong", [["sql", "chat"], None, 3])
def test_what_to_activate_is_a_name_or_a_dict(two, wrong, portrait):
    before = portrait(two)
    with pytest.raises(TypeError, match="adapters must be the name of one adapter, or a dict"):
        activate(two, wrong)
    assert portrait(two) == before


@pytest.mark.parametrize("wrong", ["sql", None, 3])
def test_the_names_of_rows_are_a_list(two, wrong):
    with pytest.raises(TypeError, match="names must be a list"), routed(two, wrong):
        pass


def test_the_names_of_rows_may_come_one_by_one(two, tokens):
    with routed(two, ["sql", "chat"]):
        expected = logits(two, tokens)
    with routed(two, iter(["sql", "chat"])):
        assert torch.equal(logits(two, tokens), expected)
