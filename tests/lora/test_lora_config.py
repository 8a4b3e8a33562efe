import dataclasses
import json
import math

import numpy as np
import peft
import pytest

from lora_lab.lora import LoRAConfig


def test_defaults_are_those_of_the_course():
    assert LoRAConfig() == LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj"), dropout=0.0, rslora=False)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (8, 16), (4, 1.5), (64, 16)])
@pytest.mark.parametrize("rslora", [False, True])
def test_scale_is_that_of_peft(rank, alpha, rslora):
    from torch import nn

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], use_rslora=rslora)
    layer = peft.get_peft_model(nn.Sequential(nn.Linear(64, 64)), config).base_model.model[0]
    assert LoRAConfig(rank=rank, alpha=alpha, rslora=rslora).scale == layer.scaling["default"]


def test_is_frozen_and_a_key():
    config = LoRAConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 4
    assert len({config, LoRAConfig(), LoRAConfig(rank=4)}) == 2


def test_keeps_plain_numbers_and_a_tuple():
    config = LoRAConfig(rank=np.int64(4), alpha=np.float32(2), targets=["a"], dropout=np.float64(0.5))
    kept = json.dumps(dataclasses.asdict(config))
    assert kept.startswith('{"rank": 4, "alpha": 2.0, "targets": ["a"], "dropout": 0.5, "rslora": false')
    assert config.targets == ("a",)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("rank", 0, ValueError),
        ("rank", -1, ValueError),
        ("rank", 8.0, TypeError),
        ("rank", True, TypeError),
        ("rank", "8", TypeError),
        ("rank", None, TypeError),
        ("alpha", 0, ValueError),
        ("alpha", -16, ValueError),
        ("alpha", math.inf, ValueError),
        ("alpha", math.nan, ValueError),
        ("alpha", "16", TypeError),
        ("alpha", True, TypeError),
        ("targets", "q_proj", TypeError),
        ("targets", (), ValueError),
        ("targets", ("",), ValueError),
        ("targets", (".q_proj",), ValueError),
        ("targets", ("q_proj.",), ValueError),
        ("targets", ("q_proj", "q_proj"), ValueError),
        ("targets", ("q_proj", 3), TypeError),
        ("targets", {"q_proj"}, TypeError),
        ("targets", None, TypeError),
        ("dropout", 1, ValueError),
        ("dropout", -0.1, ValueError),
        ("dropout", math.nan, ValueError),
        ("dropout", "0.1", TypeError),
        ("rslora", 1, TypeError),
        ("rslora", None, TypeError),
    ],
)
def test_refuses(field, value, error):
    with pytest.raises(error, match=field):
        LoRAConfig(**{field: value})


def test_bare_string_is_told_what_to_write():
    with pytest.raises(TypeError, match=r"write \('q_proj',\)"):
        LoRAConfig(targets="q_proj")
