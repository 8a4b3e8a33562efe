"""What makes a step lean changes its time and its memory, and nothing else: loss, gradient and weights are the same."""

import shutil
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_lab.finetune import Encoded, Settings, answer_loss, collate, labelled_tokens, minimise, train
from lora_lab.finetune.training import GROUPED, _in_blocks, batch_indices
from lora_lab.lora import LoRAConfig, attach
from tests.finetune.conftest import tiny_lora, tiny_model

SETTINGS = Settings(epochs=2, batch_size=4, learning_rate=1e-2)


def examples(count: int = 22, seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in torch.randint(4, 40, (count,), generator=generator).tolist():
        tokens = torch.randint(3, 200, (length,), generator=generator).tolist()
        made.append(Encoded((*tokens, *tokens[:3]), answer_start=length))
    return made


def trained(model=None, **changes):
    """Give a model after training, and its history."""
    model = tiny_lora() if model is None else model
    return model, train(model, examples(), replace(SETTINGS, **changes), progress=False)


def blocks(model):
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def attach_to_one_block():
    """Give a model that is quick to compile."""
    model = tiny_model(num_hidden_layers=1)
    return attach(model, LoRAConfig(rank=2, targets=("q_proj",)), generator=torch.Generator().manual_seed(0))


def assert_same_training(one, other, **tolerance):
    (model, history), (model_too, history_too) = one, other
    torch.testing.assert_close(history.losses, history_too.losses, **tolerance)
    torch.testing.assert_close(history.gradient_norms, history_too.gradient_norms, **tolerance)
    torch.testing.assert_close(model.state_dict(), model_too.state_dict(), **tolerance)


def test_fused_adamw_takes_the_same_steps(monkeypatch):
    fused, real = trained(), torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *given, fused, **named: real(*given, fused=False, **named))
    assert_same_training(fused, trained(), rtol=1e-4, atol=1e-6)


def test_micro_batches_are_of_like_lengths_and_the_gradient_is_that_of_the_whole_batch():
    model = tiny_lora()
    sizes = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
    parts = trained(model, batch_size=11, micro_batch_size=3, epochs=1)
    rows = [size for size in sizes if size not in ((1, 8), (1, 16))]  # those of the check of the head are left out
    assert [row for row, _ in rows] == [3, 3, 3, 2] * 2
    lengths = [length for _, length in rows]
    assert lengths == [*sorted(lengths[:4]), *sorted(lengths[4:])]
    assert_same_training(parts, trained(batch_size=11, epochs=1), rtol=1e-3, atol=1e-5)


def test_grouped_by_length_every_example_is_read_once_an_epoch_with_less_padding():
    count, settings = 16 * 4 * 3 + 7, replace(SETTINGS, group_by_length=True)
    lengths = [len(example.tokens) for example in examples(count)]
    steps = -(-count // 4)

    def padding(settings, epoch):
        batches = [batch_indices(count, epoch * steps + step, settings, lengths) for step in range(steps)]
        assert Counter(place for batch in batches for place in batch) == Counter(range(count))
        assert sorted(map(len, batches)) == [3] + [4] * (steps - 1)
        return sum(len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) for batch in batches)

    assert GROUPED == 16
    for epoch in (0, 1):
        assert padding(settings, epoch) < 0.15 * padding(SETTINGS, epoch)
    first, again, later = (batch_indices(count, step, settings, lengths) for step in (0, 0, steps))
    assert first == again != later
    means = [sum(lengths[i] for i in batch_indices(count, step, settings, lengths)) for step in range(steps - 1)]
    assert means != sorted(means)  # short and long batches come mixed
    with pytest.raises(ValueError, match="lengths: group_by_length needs the length of each example"):
        batch_indices(count, 0, settings)


def test_a_run_grouped_by_length_goes_on_where_it_was(tmp_path):
    settings = replace(SETTINGS, group_by_length=True, checkpoint_every=1)
    whole = tiny_lora()
    train(whole, examples(), settings, progress=False)

    class Stop(Exception):
        pass

    def stop(history):
        if len(history.losses) == 5:
            raise Stop

    for watch in (stop, None):
        model = tiny_lora()
        try:
            train(model, examples(), settings, folder=tmp_path, watch=watch, progress=False)
        except Stop:
            assert watch is stop
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_bit_and_is_undone(dropout):
    model = tiny_lora(dropout)
    recomputed = trained(model, gradient_checkpointing=True)
    assert_same_training(recomputed, trained(tiny_lora(dropout)), rtol=0, atol=0)
    assert not any(block.gradient_checkpointing for block in blocks(model))


def test_gradient_checkpointing_computes_each_block_twice_and_keeps_less():
    def look(settings):
        model, calls, seen = tiny_lora().train(), [], []
        for block in blocks(model):
            block.self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))

        def keep(tensor):
            seen.append(weakref.ref(tensor))
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with _in_blocks(model, settings), hooks:
            loss = answer_loss(model, collate(examples()))
        kept = {tensor.data_ptr(): tensor.numel() for one in seen if (tensor := one()) is not None}
        loss.backward()
        return len(calls), sum(kept.values())

    once, everything = look(SETTINGS)
    twice, inputs = look(replace(SETTINGS, gradient_checkpointing=True))
    assert (once, twice) == (2, 4)
    assert inputs < 0.3 * everything


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_below_the_first_adapter_gets_a_gradient(recompute):
    model, needed = tiny_model(), {}
    attach(model, LoRAConfig(rank=2, targets=("layers.1.mlp.down_proj",)), generator=torch.Generator().manual_seed(0))
    for name in ("model.layers.0", "model.layers.1.self_attn", "model.layers.1"):
        module = model.get_submodule(name)
        module.register_forward_hook(
            lambda _, __, output, name=name: needed.setdefault(name, []).append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    train(model, examples(4), replace(SETTINGS, epochs=1, gradient_checkpointing=recompute), progress=False)
    assert not any(needed["model.layers.0"])
    assert not any(needed["model.layers.1.self_attn"])
    assert needed["model.layers.1"][-1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same_to_rounding_and_are_undone():
    model, plain = (attach_to_one_block() for _ in range(2))
    compiled = trained(model, compile=True, epochs=1)
    assert_same_training(compiled, trained(plain, epochs=1), rtol=1e-3, atol=1e-4)
    assert all(block._compiled_call_impl is None for block in blocks(model))


def test_compile_compiles_each_block_while_it_trains(monkeypatch):
    compiled = []
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", lambda block, **how: compiled.append((block, how)))
    model, _ = trained(epochs=1, compile=True)
    assert compiled == [(block, {"dynamic": True}) for block in blocks(model)]


def test_the_next_batches_are_made_ahead_and_are_those_of_the_next_step(monkeypatch):
    from lora_lab.finetune import training

    made, real = [], training.collate
    monkeypatch.setattr(training, "collate", lambda some: made.append(tuple(some)) or real(some))
    order = []
    monkeypatch.setattr(training, "learning_rate_at", lambda step, *_: order.append((step, len(made))) or 1e-3)
    trained(epochs=1)
    data, steps = examples(), 6
    assert made == [tuple(data[i] for i in batch_indices(22, step, SETTINGS)) for step in range(steps)]
    assert order == [(step, min(step + 2, steps)) for step in range(steps)]  # two are ready when the first is learned


@pytest.mark.parametrize("name", ["group_by_length", "gradient_checkpointing", "compile"])
def test_each_is_on_or_off_and_belongs_to_a_language_model(name):
    with pytest.raises(ValueError, match=f"{name}: got 1, takes True or False"):
        Settings(**{name: 1})
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"settings: {name} is on, which is for a language model"):
        minimise(net, lambda places: net.weight.sum(), 4, Settings(**{name: True}), progress=False)


def test_a_model_without_blocks_says_so():
    model = tiny_lora()
    model.model.layers = torch.nn.ModuleList()
    model.model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="compile is on, and LlamaForCausalLM has no blocks"):
        train(model, examples(), replace(SETTINGS, compile=True), progress=False)
    assert labelled_tokens(collate(examples(1))) == 3
