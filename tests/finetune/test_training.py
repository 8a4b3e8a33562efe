"""The loop learns, changes only what it should, and can be stopped and started anywhere."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from lora_lab.finetune import (
    DivergedError,
    Encoded,
    History,
    OutOfMemoryError,
    Settings,
    collate,
    mean_loss,
    train,
    training,
)
from lora_lab.finetune.activations import keep_less
from lora_lab.finetune.checkpoint import FILE_NAME, load_checkpoint
from lora_lab.finetune.loss import AnswerScore
from lora_lab.finetune.training import batch_indices, learning_rate_at
from lora_lab.lora import LoRAConfig, account, attach, disabled, lora_layers, merge, quantize_linears
from tests.finetune.conftest import tiny_lora, tiny_model


def examples(count: int = 24, seed: int = 0) -> list[Encoded]:
    """Make sequences whose last one to four tokens repeat their first, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, length in enumerate(torch.randint(5, 12, (count,), generator=generator).tolist()):
        tokens = torch.randint(3, 40, (length,), generator=generator).tolist()
        made.append(Encoded((*tokens, *tokens[:1] * (1 + i % 4)), answer_start=length))
    return made


SETTINGS = Settings(epochs=3, batch_size=4, learning_rate=1e-2, checkpoint_every=2)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss_and_changes_only_the_factors(model):
    before, start = weights(model), mean_loss(model, examples())
    history = train(model, examples(), replace(SETTINGS, epochs=12), progress=False)
    after = weights(model)
    assert mean_loss(model, examples()) < 0.99 * start
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    factors = {f"{layer}.adapters.default.{factor}" for layer in lora_layers(model) for factor in ("lora_A", "lora_B")}
    assert changed == factors
    assert len(history.losses) == len(history.tokens) == 12 * 6
    assert sum(history.tokens) == 12 * sum(len(example.tokens) for example in examples())


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not():
    runs = [tiny_lora(dropout=0.2) for _ in range(3)]
    for model, seed in zip(runs, (0, 0, 1), strict=True):
        torch.manual_seed(time.monotonic_ns() % 2**31)  # the global state must not matter
        train(model, examples(), replace(SETTINGS, seed=seed), progress=False)
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_dropout_is_on_and_draws_another_mask_at_every_step():
    """The same example at a rate too small to change a weight: what differs between losses is the mask."""
    model, one = tiny_lora(dropout=0.5), examples(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_()
    history = train(model, one, Settings(epochs=4, batch_size=1, learning_rate=1e-30), progress=False)
    assert len({*history.losses, mean_loss(model, one)}) == 5


def test_training_leaves_the_global_random_state_and_the_mode_alone(model):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(model, examples(), SETTINGS, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    """Answers differ in length, so averaging the averages of micro-batches would give another gradient."""
    runs = [tiny_lora().double() for _ in range(2)]
    for model, size in zip(runs, (None, 1), strict=True):
        train(model, examples(), replace(SETTINGS, micro_batch_size=size), progress=False)
    for one, other in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loop_is_adamw_on_the_mean_loss_of_each_batch():
    """The oracle is written out with the loss of transformers and the optimiser of PyTorch."""
    settings = replace(SETTINGS, micro_batch_size=3, weight_decay=0.3, warmup=0.3, max_gradient_norm=0.5)
    data, steps = examples(), 18
    expected, model = tiny_lora().double(), tiny_lora().double()
    factors = [parameter for parameter in expected.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, weight_decay=settings.weight_decay)
    norms = []
    for step in range(steps):
        batch = collate([data[i] for i in batch_indices(len(data), step, settings)])
        optimizer.zero_grad()
        expected(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(factors, settings.max_gradient_norm).item())
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, steps, settings)
        optimizer.step()
    history = train(model, data, settings, progress=False)
    assert history.gradient_norms == pytest.approx(norms, rel=1e-3)
    assert history.learning_rates == [learning_rate_at(step, steps, settings) for step in range(steps)]
    for one, other in zip(expected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_every_epoch_reads_every_example_once_in_an_order_of_its_own():
    settings = Settings(batch_size=4)
    epochs = [[i for step in range(3) for i in batch_indices(10, 3 * epoch + step, settings)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_the_learning_rate_rises_to_its_largest_and_falls_towards_zero():
    settings = Settings(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate_at(step, 10, settings) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_gradients_are_clipped_and_their_norm_before_that_is_recorded():
    step_norms = []
    model = tiny_lora()
    optimizer_step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        step_norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return optimizer_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        history = train(model, examples(), replace(SETTINGS, max_gradient_norm=1e-3), progress=False)
    assert max(step_norms) <= 1.01e-3
    assert min(history.gradient_norms) > 1e-3


# --- stopping and going on


def interrupt_at(step: int, monkeypatch) -> None:
    """Make the run stop, as Control-C would, before it takes ``step``."""
    from lora_lab.finetune import training

    original = training._Run.step

    def stopping(self):
        if self.done == step:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(training._Run, "step", stopping)


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 17])
def test_a_run_stopped_at_any_step_ends_at_the_same_weights(stop, tmp_path, monkeypatch):
    held_out = examples(8, seed=9)
    settings = replace(SETTINGS, validate_every=4)
    whole = tiny_lora(dropout=0.3)
    expected = train(whole, examples(), settings, validation=held_out, progress=False)

    with monkeypatch.context() as patch:
        interrupt_at(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_lora(dropout=0.3), examples(), settings, validation=held_out, folder=tmp_path, progress=False)
    resumed = tiny_lora(dropout=0.3, seed=77)  # other factors at first: the checkpoint's must replace them
    if stop < settings.checkpoint_every:
        resumed = tiny_lora(dropout=0.3)  # nothing was saved yet
    history = train(resumed, examples(), settings, validation=held_out, folder=tmp_path, progress=False)
    assert same(weights(resumed), weights(whole))
    assert history.losses == expected.losses
    assert history.validation == expected.validation
    assert history.best_step == expected.best_step


SCRIPT = """
import sys
from tests.finetune.test_training import SETTINGS, examples, replace, tiny_lora, train
train(tiny_lora(), examples(), replace(SETTINGS, epochs=400, checkpoint_every=1), folder=sys.argv[1], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_killed_process_leaves_a_checkpoint_that_goes_on_to_the_same_weights(tmp_path):
    """Killed wherever it happens to be, often in the middle of writing, since it saves at every step."""
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=os.environ)
        deadline = time.monotonic() + 60
        seen = (tmp_path / FILE_NAME).stat().st_mtime_ns if attempt else None
        while time.monotonic() < deadline and process.poll() is None:
            if (tmp_path / FILE_NAME).exists() and (tmp_path / FILE_NAME).stat().st_mtime_ns != seen:
                break
            time.sleep(0.01)
        time.sleep(0.05 * attempt)
        process.kill()
        process.wait()
    checkpoint = load_checkpoint(tmp_path)
    done = checkpoint.record["done"]
    assert 0 < done < 400 * 6
    settings = replace(SETTINGS, epochs=400, checkpoint_every=1)
    straight = tiny_lora()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(done, patch)
        with pytest.raises(KeyboardInterrupt):
            train(straight, examples(), settings, progress=False)
    for name, parameter in straight.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(checkpoint.tensors[f"parameter.{name}"], parameter)


def test_a_run_ends_with_a_validation_and_a_checkpoint_however_rare_they_are(tmp_path):
    settings = replace(SETTINGS, validate_every=100, checkpoint_every=100)
    model, held_out = tiny_lora(), examples(8, seed=9)
    history = train(model, examples(), settings, validation=held_out, folder=tmp_path, progress=False)
    assert history.validation == [(18, mean_loss(model, held_out, 4))]
    again = train(tiny_lora(), examples(), replace(settings, checkpoint_every=7), validation=held_out, folder=tmp_path)
    assert again == history  # how often it is saved makes no other run of it


def test_a_finished_run_is_not_run_again(tmp_path):
    first, second = tiny_lora(), tiny_lora()
    history = train(first, examples(), SETTINGS, folder=tmp_path, progress=False)
    again = train(second, examples(), SETTINGS, folder=tmp_path, progress=False)
    assert again == history
    assert same(weights(first), weights(second))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"settings": replace(SETTINGS, learning_rate=1e-3)},
            "another run, which differs in learning_rate .0.01, not 0.001.",
        ),
        ({"examples": examples(23)}, "differs in examples"),
        ({"validation": examples(2)}, "differs in validation"),
        ({"rank": 2}, r"differs in ranks \(\[4\], not \[2\]\)"),
        ({"base": 1}, "differs in frozen weights"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_kept(change, what, tmp_path):
    from lora_lab.lora import LoRAConfig, attach

    train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    kept = (tmp_path / FILE_NAME).read_bytes()
    config = LoRAConfig(rank=change.get("rank", 4), alpha=8)
    model = attach(tiny_model(seed=change.get("base", 0)), config, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=what):
        train(
            model,
            change.get("examples", examples()),
            change.get("settings", SETTINGS),
            validation=change.get("validation", ()),
            folder=tmp_path,
            progress=False,
        )
    assert (tmp_path / FILE_NAME).read_bytes() == kept


def test_what_a_killed_run_half_wrote_is_cleared_away_by_the_next(tmp_path):
    (tmp_path / ".checkpoint-killed.part").write_bytes(b"half a checkpoint")
    (tmp_path / "notes.part").write_text("of somebody else")
    train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, "notes.part"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: whole[:-9] + b"\x7f" + whole[-8:]])
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path, damage):
    train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    path = tmp_path / FILE_NAME
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors cannot be read as a checkpoint"):
        train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    assert path.read_bytes() == damaged


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_up_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    import resource

    interrupt_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    kept = (tmp_path / FILE_NAME).read_bytes()
    monkeypatch.undo()

    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, before[0][1]))
        with pytest.raises(OSError, match="File too large"):
            train(tiny_lora(), examples(), SETTINGS, folder=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == kept


# --- no memory left

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_where_no_memory_is_left_the_step_the_numbers_and_the_remedies_are_told(error, tmp_path, monkeypatch):
    loss, calls = training.answer_loss, []

    def full(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return loss(model, batch)

    monkeypatch.setattr(training, "answer_loss", full)
    settings, model = replace(SETTINGS, checkpoint_every=2), tiny_lora()
    with pytest.raises(OutOfMemoryError) as caught:
        train(model, examples(), settings, folder=tmp_path, progress=False)
    longest = max(len(examples()[place].tokens) for place in batch_indices(24, 3, settings))
    told = str(caught.value)
    assert told.startswith(
        f"step 4 of 18: out of memory. 4 examples of up to {longest} tokens went through the model at"
    )
    with keep_less(model):
        needs = [account(model, batch=rows, tokens=longest).costs for rows in (4, 2)]
    for cost in needs:
        assert f"{cost.activations / 1e9:.3g} GB of it activations" in told
    assert needs[0].activations > needs[1].activations
    assert "lower micro_batch_size to 2 (" in told
    assert "switch gradient_checkpointing on; leave out the longest examples (max_tokens, with your own data)" in told
    assert told.endswith(f"The last checkpoint in {tmp_path} is untouched")
    assert caught.value.__cause__ is error

    monkeypatch.undo()
    whole = tiny_lora()
    train(whole, examples(), settings, progress=False)
    assert len(train(model, examples(), settings, folder=tmp_path, progress=False).losses) == 18
    assert same(weights(model), weights(whole))


def test_the_remedies_leave_out_what_is_done_already(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "answer_loss", full)
    settings = replace(SETTINGS, micro_batch_size=1, gradient_checkpointing=True)
    with pytest.raises(OutOfMemoryError) as caught:
        train(tiny_lora(), examples(), settings, progress=False)
    assert "out of memory. 1 example of up to" in str(caught.value)
    assert "GB by account" in str(caught.value)  # the blocks are as they were again
    assert str(caught.value).endswith("What helps: leave out the longest examples (max_tokens, with your own data)")


def test_memory_that_ends_in_validation_names_the_validation_examples(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "score_answers", full)
    settings, judges = replace(SETTINGS, validate_every=2, checkpoint_every=1), examples(3)
    with pytest.raises(OutOfMemoryError) as caught:
        train(tiny_lora(), examples(), settings, validation=judges, folder=tmp_path, progress=False)
    longest = max(len(example.tokens) for example in judges)
    told = str(caught.value)
    assert told.startswith(f"after step 2, in validation: out of memory. 3 validation examples of up to {longest} ")
    assert "lower micro_batch_size to 1; leave out the longest validation examples" in told
    assert told.endswith("is untouched")


@pytest.mark.parametrize("at", [0, 2])
def test_memory_that_ends_in_the_watcher_is_not_put_down_to_a_step(at):
    def watch(history):
        if len(history.losses) == at:
            raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemoryError, match=rf"^after step {at}: out of memory in what was called to watch"):
        train(tiny_lora(), examples(), SETTINGS, watch=watch, progress=False)


def test_the_codes_of_a_quantized_base_tell_runs_apart(tmp_path):
    def learner(seed):
        torch.manual_seed(seed)
        return attach(quantize_linears(tiny_model(seed)), LoRAConfig(rank=4), generator=torch.Generator())

    train(learner(0), examples(), SETTINGS, folder=tmp_path, progress=False)
    other = learner(0)
    next(buffer for name, buffer in other.named_buffers() if "codes" in name).add_(1)
    with pytest.raises(ValueError, match="differs in frozen weights"):
        train(other, examples(), SETTINGS, folder=tmp_path, progress=False)
    assert train(learner(0), examples(), SETTINGS, folder=tmp_path, progress=False).losses


def test_another_runtime_error_is_left_as_it_is(monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(training, "answer_loss", wrong)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        train(tiny_lora(), examples(), SETTINGS, progress=False)


# --- patience, and a watcher

PATIENT = replace(SETTINGS, epochs=6, validate_every=3, patience=2)


@pytest.fixture
def best_in_the_middle(monkeypatch):
    """Put in place of the validation loss how far the factors are from a size that they grow through."""

    def score(model, *_):
        size = sum(layer.lora_B.norm().item() for layer in lora_layers(model).values())
        return AnswerScore(abs(size - 1.2), 1, 2)

    monkeypatch.setattr("lora_lab.finetune.training.score_answers", score)


def test_a_run_out_of_patience_stops_at_the_weights_it_had_found_best(best_in_the_middle):
    held_out = examples(8, seed=9)
    whole, model = tiny_lora(), tiny_lora()
    expected = train(whole, examples(), replace(PATIENT, patience=None), validation=held_out, progress=False)
    history = train(model, examples(), PATIENT, validation=held_out, progress=False)

    losses = [loss for _, loss in expected.validation]
    best = losses.index(min(losses))
    assert 0 < best < len(losses) - 3, losses
    assert history.validation == expected.validation[: best + 3]
    assert history.losses == expected.losses[: 3 * (best + 3)]
    assert history.best_step == 3 * (best + 1)
    assert history.looks_since_best == 2
    assert training.score_answers(model, held_out).loss == losses[best]


@pytest.mark.parametrize("back", [0, 1, 2, 5])
def test_a_run_that_stops_early_ends_at_the_same_weights_wherever_it_was_interrupted(
    back, tmp_path, monkeypatch, best_in_the_middle
):
    held_out = examples(8, seed=9)
    whole = tiny_lora(dropout=0.3)
    expected = train(whole, examples(), PATIENT, validation=held_out, progress=False)
    stop = len(expected.losses) - back
    assert 5 < stop < 6 * 6

    with monkeypatch.context() as patch:
        interrupt_at(stop, patch)
        if back:
            with pytest.raises(KeyboardInterrupt):
                train(tiny_lora(dropout=0.3), examples(), PATIENT, validation=held_out, folder=tmp_path, progress=False)
        else:  # it has stopped by itself
            train(tiny_lora(dropout=0.3), examples(), PATIENT, validation=held_out, folder=tmp_path, progress=False)
    resumed = tiny_lora(dropout=0.3, seed=77)
    history = train(resumed, examples(), PATIENT, validation=held_out, folder=tmp_path, progress=False)
    assert same(weights(resumed), weights(whole))
    assert (history.losses, history.validation) == (expected.losses, expected.validation)
    assert (history.accuracy, history.best_step) == (expected.accuracy, expected.best_step)
    with pytest.raises(ValueError, match=r"differs in patience .2, not 3."):
        train(resumed, examples(), replace(PATIENT, patience=3), validation=held_out, folder=tmp_path, progress=False)


def test_patience_without_anything_to_look_at_is_refused(model):
    with pytest.raises(ValueError, match="patience is 2, and there are no validation examples"):
        train(model, examples(), replace(SETTINGS, patience=2), progress=False)


def test_the_accuracy_of_each_look_is_the_share_of_right_tokens(model):
    held_out = examples(8, seed=9)
    history = train(model, examples(), replace(SETTINGS, epochs=20), validation=held_out, progress=False)
    batch = collate(held_out)
    likeliest = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].argmax(dim=-1)
    labelled = batch.labels[:, 1:] != -100
    right = (likeliest == batch.labels[:, 1:])[labelled]
    shares = dict(history.accuracy)
    assert list(shares) == [step for step, _ in history.validation]
    assert shares[history.best_step] == pytest.approx(right.float().mean().item())
    assert len(set(shares.values())) > 1


def test_a_watcher_sees_each_step_once_it_is_measured_and_before_it_is_saved(tmp_path):
    seen = []

    def watch(history):
        saved = load_checkpoint(tmp_path)
        seen.append((len(history.losses), len(history.validation), saved.record["done"] if saved else 0))

    settings = replace(SETTINGS, epochs=1, validate_every=4)
    train(tiny_lora(), examples(), settings, validation=examples(4, 9), folder=tmp_path, watch=watch, progress=False)
    assert seen == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 2), (4, 1, 2), (5, 1, 4), (6, 2, 4)]
    train(tiny_lora(), examples(), settings, validation=examples(4, 9), folder=tmp_path, watch=watch, progress=False)
    assert len(seen) == 7  # a finished run has no step to watch


# --- validation, divergence, bad input


def test_the_mean_loss_weighs_every_answer_token_the_same(model):
    held_out = examples(10, seed=9)
    whole = collate(held_out)
    theirs = model(input_ids=whole.input_ids, attention_mask=whole.attention_mask, labels=whole.labels).loss.item()
    assert mean_loss(model, held_out, batch_size=3) == pytest.approx(theirs, rel=1e-5)


def test_the_weights_of_the_lowest_validation_loss_are_kept(model):
    """A learning rate far too high for the second half makes the last weights worse than the best ones."""
    held_out = examples(8, seed=9)
    settings = replace(SETTINGS, epochs=20, learning_rate=0.3, validate_every=5)
    history = train(model, examples(), settings, validation=held_out, progress=False)
    losses = dict(history.validation)
    assert losses[history.best_step] == min(losses.values())
    assert losses[history.best_step] < history.validation[-1][1]
    assert mean_loss(model, held_out, 4) == losses[history.best_step]


def test_a_loss_that_is_no_number_ends_the_run_at_the_last_good_weights(model, tmp_path):
    train(model, examples(), SETTINGS, progress=False)
    good = weights(model)
    with torch.no_grad():
        layer = next(iter(lora_layers(model).values()))
        layer.base.weight[0, 0] = math.nan
    bad = weights(model)
    with pytest.raises(DivergedError, match=r"step 1 of 18: the loss is .*nan.*it is the model's own weights"):
        train(model, examples(), SETTINGS, folder=tmp_path, progress=False)
    after = weights(model)
    assert all(torch.equal(after[name], bad[name]) for name in bad if "lora_" in name)
    assert good.keys() == after.keys()
    assert not model.training


def test_no_examples_and_nothing_to_train_are_refused(model):
    with pytest.raises(ValueError, match="examples: got none"):
        train(model, [], SETTINGS, progress=False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        train(model.requires_grad_(False), examples(), SETTINGS, progress=False)


def test_weights_that_overflow_in_the_middle_name_the_learning_rate(model):
    with pytest.raises(DivergedError, match=r"The weights are those of step \d+\. Lower learning_rate \(now 1e\+38\)"):
        train(model, examples(), replace(SETTINGS, learning_rate=1e38), progress=False)


@pytest.mark.parametrize("every", [1, 25])
def test_a_checkpoint_is_spoken_of_only_where_there_is_one(every, tmp_path):
    settings = replace(SETTINGS, learning_rate=1e38, checkpoint_every=every)
    with pytest.raises(DivergedError) as caught:
        train(tiny_lora(), examples(), settings, folder=tmp_path, progress=False)
    there = (tmp_path / FILE_NAME).exists()
    assert there == (every == 1)
    assert str(caught.value).endswith(f"The last checkpoint in {tmp_path} is untouched") == there


def test_base_weights_that_are_all_nan_are_named_and_not_the_head(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match="it is the model's own weights"):
        train(model, examples(), SETTINGS, progress=False)


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        ((5,) * 513, "the longest has 513 tokens, and the model reads at most 512"),
        ((5, 259), "token 259 is in one, and the model knows 0 to 258"),
        ((-1, 5), "token -1 is in one"),
    ],
)
def test_examples_that_the_model_cannot_read_are_refused_and_not_cut(model, tokens, what):
    with pytest.raises(ValueError, match=f"examples: {what}"):
        train(model, [*examples(), Encoded(tokens, 1)], SETTINGS, progress=False)
    with pytest.raises(ValueError, match=f"validation: {what}"):
        train(model, examples(), SETTINGS, validation=[Encoded(tokens, 1)], progress=False)


def test_merged_and_disabled_layers_are_refused(model):
    with disabled(model), pytest.raises(ValueError, match="model: its LoRA layers are merged or disabled"):
        train(model, examples(), SETTINGS, progress=False)
    merge(model)
    with pytest.raises(ValueError, match="model: its LoRA layers are merged or disabled"):
        train(model, examples(), SETTINGS, progress=False)


def test_a_folder_that_cannot_be_written_ends_the_run_before_its_first_step(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = weights(model)
    with pytest.raises(OSError, match="file"):
        train(model, examples(), SETTINGS, folder=tmp_path / "file" / "run", progress=False)
    assert same(weights(model), before)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 2.5},
        {"micro_batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup": 1.0},
        {"weight_decay": -0.1},
        {"checkpoint_every": 0},
        {"validate_every": -1},
        {"patience": 0},
        {"epochs": True},
        {"learning_rate": "fast"},
        {"seed": 1.5},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_settings_that_make_no_run_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}: got"):
        Settings(**bad)


def test_tokens_per_second_counts_the_training_time():
    assert History(tokens=[10, 20], seconds=[2.0, 1.0]).tokens_per_second == 10.0
    assert History().tokens_per_second == 0.0
