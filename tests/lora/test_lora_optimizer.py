"""The groups of LoRA+: every parameter that trains once, at the rate of what it does."""

import peft
import pytest
import torch
import transformers
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from lora_lab.lora import BitFitConfig, LoRAConfig, activate, attach, lora_layers, lora_plus_groups

pytestmark = pytest.mark.filterwarnings("ignore")


class Mixed(nn.Module):
    """One layer of every kind that LoRA takes, and a head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 6)
        self.transposed = transformers.pytorch_utils.Conv1D(6, 6)
        self.conv1d = nn.Conv1d(6, 6, 3, padding=1)
        self.conv2d = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = self.transposed(self.linear(self.table(x))).transpose(-1, -2)
        return self.head(self.conv2d(self.conv1d(h)[..., None])[..., 0].transpose(-1, -2))


KINDS = ("table", "linear", "transposed", "conv1d", "conv2d")


def said(groups, model):
    """The rate and the decay of each parameter by name; raises where a parameter is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    flat = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(flat) == len(dict(flat))
    return dict(flat)


def as_ours(name):
    """PEFT's name of a parameter as ours."""
    place, factor = name.removeprefix("base_model.model.").replace(".default", "").replace(".weight", "").split(".")
    return f"{place}.adapters.default.{factor.replace('embedding_', '')}"


@pytest.mark.parametrize("embedding", [None, 3e-5])
def test_groups_are_those_of_peft(embedding):
    ours = attach(Mixed(), LoRAConfig(2, targets=KINDS))
    theirs = peft.get_peft_model(Mixed(), peft.LoraConfig(r=2, target_modules=list(KINDS)))
    optimizer = create_loraplus_optimizer(
        theirs,
        torch.optim.AdamW,
        lr=1e-3,
        loraplus_lr_ratio=8,
        loraplus_weight_decay=0.2,
        loraplus_lr_embedding=embedding or 1e-3,
    )
    groups = lora_plus_groups(ours, 1e-3, ratio=8, weight_decay=0.2, embedding_learning_rate=embedding)
    expected = {as_ours(name): rates for name, rates in said(optimizer.param_groups, theirs).items()}
    assert said(groups, ours) == expected
    assert len(expected) == 10


def test_an_optimiser_takes_steps_of_these_sizes():
    """Adam's first step is the rate, whatever the gradient."""
    model = attach(Mixed(), LoRAConfig(2, targets=KINDS, modules_to_save=("head",)))
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A.normal_()
            layer.lora_B.normal_()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(lora_plus_groups(model, 1e-3), lr=9.0, eps=1e-30)
    model(torch.arange(11)[None]).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = (parameter - before[name]).abs().max().item()
        rate = 0 if not parameter.requires_grad else 16e-3 if "lora_B" in name and "table" not in name else 1e-3
        assert step == pytest.approx(rate, rel=1e-3), name


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_optimisers_take_the_groups(kind, toy):
    model = attach(toy(torch.float32), LoRAConfig(2))
    optimizer = kind(lora_plus_groups(model, 1e-3), lr=1.0)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("lora_A", 1e-3), ("lora_B", 16e-3)]


def test_vectors_do_not_decay_and_have_the_rate_of_a(toy):
    """PEFT gives them the rate of B, and lets DoRA's magnitudes decay."""
    model = attach(toy(), LoRAConfig(2, dora=True, bias="all", modules_to_save=("1.my_q_proj",)))
    for name, rates in said(lora_plus_groups(model, 1e-3, weight_decay=0.2), model).items():
        if "magnitude" in name or "bias" in name:
            assert rates == (1e-3, 0.0), name
        else:
            assert rates == (16e-3 if "lora_B" in name else 1e-3, 0.2), name


def test_every_parameter_that_trains_is_there_and_nothing_else(toy):
    model = attach(
        attach(toy(), LoRAConfig(2), name="one"), LoRAConfig(3, modules_to_save=("0.my_q_proj",)), name="two"
    )
    model[1].my_q_proj.weight.requires_grad_(True)  # unfrozen by the user
    for name in ("one", "two"):
        activate(model, name)
        model[1].my_q_proj.weight.requires_grad_(True)
        there = said(lora_plus_groups(model, 1e-3), model)
        assert set(there) == {n for n, p in model.named_parameters() if p.requires_grad}
        assert there["1.my_q_proj.weight"] == (1e-3, 0.0)


class TestTied:
    """Input embedding and head are one tensor, and the update is one: what is A in the one is B in the other."""

    def test_shared_factors_have_the_rate_of_what_they_do_in_the_head(self, llama):
        model = attach(llama(tied=True), LoRAConfig(2, targets=("embed_tokens",), tied="share"))
        rates = said(lora_plus_groups(model, 1e-3, embedding_learning_rate=5e-5), model)
        place = "model.embed_tokens.adapters.default"
        assert rates == {f"{place}.lora_A": (16e-3, 0.0), f"{place}.lora_B": (1e-3, 0.0)}
        A = model.model.embed_tokens.lora_A
        assert torch.equal(model.lm_head.lora_B, A.T)  # the head's B, which starts at zero, is the embedding's A

    def test_an_untied_embedding_has_its_own_rate(self, llama):
        model = attach(llama(tied=True), LoRAConfig(2, targets=("embed_tokens",), tied="untie"))
        (group,) = lora_plus_groups(model, 1e-3, embedding_learning_rate=5e-5)
        assert (group["name"], group["lr"], len(group["params"])) == ("embedding", 5e-5, 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"learning_rate": 0}, ValueError, "learning_rate must be a finite number, above 0, got 0"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate must be a finite number, above 0, got inf"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a finite number"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number, got '1e-3'"),
        ({"ratio": 0.5}, ValueError, "ratio must be a finite number, at least 1, got 0.5"),
        ({"ratio": True}, TypeError, "ratio must be a number, got True"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be a finite number, at least 0, got -0.1"),
        ({"embedding_learning_rate": 0}, ValueError, "embedding_learning_rate must be a finite number, above 0, got 0"),
    ],
)
def test_a_wrong_number_is_named(options, error, match, toy):
    with pytest.raises(error, match=match):
        lora_plus_groups(attach(toy(), LoRAConfig(2)), **({"learning_rate": 1e-3} | options))


def test_a_model_without_a_b_that_trains_is_refused(toy):
    with pytest.raises(ValueError, match="must have LoRA layers"):
        lora_plus_groups(attach(toy(), BitFitConfig()), 1e-3)
    model = attach(toy(), LoRAConfig(2))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="must have a lora_B that trains"):
        lora_plus_groups(model, 1e-3)
