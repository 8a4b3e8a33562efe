import dataclasses

import pytest
import torch
from torch import nn

from lora_lab.lora import LayerAccount, LoRAConfig, account, attach, merge, unmerge


@pytest.fixture(scope="module")
def smol():
    """SmolLM2-135M without its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                tie_word_embeddings=True,
            )
        ).bfloat16()


def test_the_figures_of_the_course(smol):
    before = account(smol)
    assert (before.base, before.adapter, before.trainable, before.share) == (134_515_008, 0, 134_515_008, 1.0)
    count = account(attach(smol, LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj"))))
    assert (count.base, count.adapter, count.trainable) == (134_515_008, 460_800, 460_800)
    assert count.total == 134_975_808
    assert count.share == 460_800 / 134_515_008
    assert f"{count.share:.2%}" == "0.34%"
    assert (count.base_bytes, count.adapter_bytes) == (2 * 134_515_008, 4 * 460_800)
    assert len(count.layers) == 60
    assert str(count).splitlines() == [
        "adapted layer                    count   in → out  rank  base each  adapter each",
        "model.layers.*.self_attn.q_proj     30  576 → 576     8    331,776         9,216",
        "model.layers.*.self_attn.v_proj     30  576 → 192     8    110,592         6,144",
        "base       134,515,008 parameters, 269 MB",
        "adapter        460,800 parameters, 1.843 MB",
        "trainable      460,800 parameters, 0.343 % of the base",
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_peft(tied, llama, peft_model):
    config = LoRAConfig(rank=2, targets=("q_proj", "down_proj"))
    count = account(attach(llama(tied=tied), config))
    assert (count.trainable, count.total) == peft_model(llama(tied=tied), config).get_nb_trainable_parameters()


def test_one_row_for_each_layer(toy):
    count = account(attach(toy(torch.float32), LoRAConfig(rank=2)))
    rows = [LayerAccount("0.q_proj", 6, 5, 2, 35, 22), LayerAccount("0.v_proj", 5, 6, 2, 30, 22)]
    assert count.layers[:2] == tuple(rows)
    assert sum(row.adapter for row in count.layers) == count.adapter == count.trainable
    assert count.base_bytes == 4 * count.base


def test_the_table_joins_layers_whose_whole_component_is_a_number():
    model = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4), "more": nn.ModuleList([nn.Linear(4, 4)])})
    lines = str(account(attach(model, LoRAConfig(rank=2, targets=("fc1", "fc2", "0"))))).splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["fc1", "1"], ["fc2", "1"], ["more.*", "1"]]


def test_gpt3_by_arithmetic():
    """96 layers of width 12,288, rank 1 on query and value: 4.7 million of 175 billion (Hu et al., 2021, table 4)."""
    layer = LayerAccount("q", 12_288, 12_288, 1, 12_288**2, 2 * 12_288)
    with torch.device("meta"):
        one = account(
            attach(nn.ModuleDict({"q": nn.Linear(12_288, 12_288, bias=False)}), LoRAConfig(1, targets=("q",)))
        )
    assert one.layers == (layer,)
    whole = dataclasses.replace(one, base=175_000_000_000, adapter=192 * one.adapter, trainable=192 * one.trainable)
    assert whole.trainable == 4_718_592
    assert str(whole).endswith("0.0027 % of the base")


def test_shared_tensors_and_layers_count_once(toy):
    model = toy()
    alone = account(model).base
    model[1].q_proj = model[0].q_proj
    assert account(model).base == alone - 35
    count = account(attach(model, LoRAConfig(rank=2, targets=("q_proj",))))
    assert (count.base, count.adapter, len(count.layers)) == (alone - 35, 22, 1)


def test_merging_changes_no_count(toy):
    model = attach(toy(), LoRAConfig(rank=2))
    before = account(model)
    merge(model)
    assert account(model) == before
    unmerge(model)
    assert account(model) == before


def test_trainable_is_what_requires_a_gradient(toy):
    model = attach(toy(), LoRAConfig(rank=2))
    model[0].my_q_proj.requires_grad_(True)
    assert account(model).trainable == account(model).adapter + 42


def test_small_models_are_counted_in_bytes():
    text = str(account(nn.Linear(9, 9, bias=False)))
    assert text.startswith("no adapted layer")
    assert "81 parameters, 324 bytes" in text
    assert "100 % of the base" in text


def test_refuses_what_cannot_be_counted():
    with pytest.raises(TypeError, match=r"model must be .*Module, got list"):
        account([])
    with pytest.raises(ValueError, match="got a ReLU without"):
        account(nn.ReLU())
