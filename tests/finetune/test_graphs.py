"""Batches in few shapes, recorded and replayed: the same loss and gradients, on a GPU and, played through, on a CPU."""

import contextlib
from copy import deepcopy

import pytest
import torch

from lora_lab.finetune import Settings, train
from lora_lab.finetune.encoding import IGNORED, Encoded, collate
from lora_lab.finetune.graphs import Recorder, can_record, rounded, shaped
from lora_lab.finetune.loss import answer_loss, check_logits
from lora_lab.finetune.training import _Run
from tests.finetune.conftest import tiny_lora, tiny_model

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def some(count, lengths=(20, 28), seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in torch.randint(*lengths, (count,), generator=generator).tolist():
        made.append(Encoded(tuple(torch.randint(3, 200, (length,), generator=generator).tolist()), length - 4))
    return made


def test_numbers_are_rounded_up_to_a_few():
    assert [rounded(number) for number in (1, 2, 3, 7, 8, 9, 128, 129, 160, 161, 255, 256)] == [
        1, 2, 3, 7, 8, 10, 128, 160, 160, 192, 256, 256,
    ]  # fmt: skip
    assert len({rounded(number) for number in range(128, 256)}) == 5
    assert len({rounded(number, steps=8) for number in range(128, 256)}) == 9
    for number in range(1, 3000):
        assert number <= rounded(number) < number * 1.25
        assert number <= rounded(number, steps=8) < number * 1.125


def test_a_shaped_batch_has_the_same_answers_after_the_same_tokens():
    batch = collate([Encoded(tuple(range(3, 24)), 18), Encoded(tuple(range(30, 40)), 7)])
    found = shaped(batch)
    assert found.key == (2, 22, 6)
    flat = found.input_ids.flatten()
    assert found.input_ids[:, :21].equal(batch.input_ids)
    assert found.answers.tolist() == [21, 22, 23, 37, 38, 39]
    assert flat[found.positions].tolist() == [20, 21, 22, 36, 37, 38]
    assert shaped(batch, limit=21).key == (2, 21, 6)
    more = shaped(collate([Encoded(tuple(range(3, 40)), 28)]))
    assert more.key == (1, 40, 10)
    assert more.answers.tolist() == [*range(31, 40), IGNORED]


@pytest.fixture
def played(monkeypatch):
    """Let a CPU play a graph: what is recorded is computed again at each replay, from the tensors that it holds."""
    calls = []

    def captured(self, work):
        def replay():
            calls.append("replayed")
            return work()

        calls.append("recorded")
        return replay

    monkeypatch.setattr(Recorder, "_captured", captured)
    monkeypatch.setattr("lora_lab.finetune.training.can_record", lambda model: True)
    return calls


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_replay_adds_the_gradient_of_its_own_batch(played):
    model, plain = tiny_lora().double(), tiny_lora().double()
    recorder = Recorder(model, [parameter for parameter in model.parameters() if parameter.requires_grad])
    batches = [collate(some(3, lengths=(24, 25), seed=seed)) for seed in range(3)]
    losses = [recorder.backward(shaped(batch), 10 + i).item() for i, batch in enumerate(batches)]
    expected = []
    for i, batch in enumerate(batches):
        loss = answer_loss(plain, batch) / (10 + i)
        loss.backward()
        expected.append(loss.item())
    assert played == ["recorded", "replayed", "replayed", "replayed"]
    assert losses == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2}, {"group_by_length": True}])
def test_a_recorded_run_ends_at_the_weights_of_a_plain_one(played, changes):
    settings = {"epochs": 3, "batch_size": 5, "learning_rate": 1e-2, **changes}
    model, plain = tiny_lora().double(), tiny_lora().double()
    history = train(model, some(13), Settings(**settings), validation=some(3, seed=1), progress=False)
    expected = train(
        plain, some(13), Settings(**settings, cuda_graphs=False), validation=some(3, seed=1), progress=False
    )
    assert "replayed" in played
    assert history.losses == pytest.approx(expected.losses, rel=1e-9)
    assert dict(history.validation) == pytest.approx(dict(expected.validation), rel=1e-9)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-9)


def test_a_model_that_refuses_is_trained_without(monkeypatch, played):
    def refusing(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(Recorder, "_captured", refusing)
    model, plain = tiny_lora(), tiny_lora()
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-2}
    with pytest.warns(UserWarning, match=r"cannot be recorded as CUDA graphs: operation not permitted .* capturing$"):
        history = train(model, some(10, (24, 25)), Settings(**settings), progress=False)
    expected = train(plain, some(10, (24, 25)), Settings(**settings, cuda_graphs=False), progress=False)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)


def test_what_draws_random_numbers_or_computes_its_blocks_twice_is_not_recorded(monkeypatch):
    class Elsewhere:
        def __init__(self, model):
            self.modules, self.config, self.device = model.modules, model.config, torch.device("cuda")

    assert can_record(Elsewhere(tiny_lora()))
    assert not can_record(Elsewhere(tiny_lora(dropout=0.1)))
    assert not can_record(Elsewhere(tiny_model(attention_dropout=0.1)))
    assert not can_record(tiny_lora())
    monkeypatch.setattr("lora_lab.finetune.training.can_record", lambda model: True)
    settings = Settings(gradient_checkpointing=True)
    model = tiny_lora()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert _Run(model, parameters, some(3), [], settings, None).recorder is None
    assert _Run(model, parameters, some(3), [], Settings(), None).recorder is not None


def test_a_model_whose_tokens_see_what_follows_is_refused():
    model = tiny_model()
    decoder = model.get_decoder()
    forward = decoder.forward

    def looks_around(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(dim=1, keepdim=True)
        return output

    decoder.forward = looks_around
    with pytest.raises(ValueError, match="lets a token see what follows it"):
        check_logits(model)


# On a GPU


def on_the_gpu(dtype):
    return tiny_lora().to("cuda", dtype)


@on_gpu
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2}, {"group_by_length": True}])
def test_recorded_steps_are_plain_steps(changes):
    settings = {"epochs": 4, "batch_size": 5, "learning_rate": 1e-2, **changes}
    model, plain = on_the_gpu(torch.float32), on_the_gpu(torch.float32)
    history = train(model, some(13), Settings(**settings), validation=some(3, seed=1), progress=False)
    settings["cuda_graphs"] = False
    expected = train(plain, some(13), Settings(**settings), validation=some(3, seed=1), progress=False)
    assert history.losses == pytest.approx(expected.losses, rel=1e-4)
    assert dict(history.validation) == pytest.approx(dict(expected.validation), rel=1e-4)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_run_that_was_stopped_goes_on_to_the_same_losses_to_rounding(dtype, tmp_path):
    settings = Settings(epochs=6, batch_size=5, learning_rate=1e-2, checkpoint_every=4)

    class Stop(Exception):
        """What stops the run."""

    def stop(history):
        if len(history.losses) == 10:
            raise Stop

    model, whole = on_the_gpu(dtype), on_the_gpu(dtype)
    with contextlib.suppress(Stop):
        train(deepcopy(model), some(13), settings, folder=tmp_path, watch=stop, progress=False)
    resumed = train(model, some(13), settings, folder=tmp_path, progress=False)
    unbroken = train(whole, some(13), settings, progress=False)
    assert resumed.losses == pytest.approx(unbroken.losses, rel=1e-4 if dtype == torch.float32 else 1e-2)
    assert resumed.seconds != unbroken.seconds


@on_gpu
def test_a_replay_has_the_loss_of_the_plain_step():
    model = on_the_gpu(torch.bfloat16).train()
    recorder = Recorder(model, [parameter for parameter in model.parameters() if parameter.requires_grad])
    batch = collate(some(3))
    expected = answer_loss(model, batch.to(model.device)).item() / 7
    found = [recorder.backward(shaped(batch).to(model.device), 7).item() for _ in range(2)]
    assert len(recorder.graphs) == 1
    assert found == pytest.approx([expected, expected], rel=1e-2)
