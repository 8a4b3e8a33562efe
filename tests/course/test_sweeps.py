"""The sweeps of notebook 09 and its second task: their plans, and every kind of run on a tiny model."""

import json
import pickle
from dataclasses import replace

import pytest
import torch

from lora_lab.course.experiments import EXPERIMENTS, Experiment, Option, perform, results, run_experiment
from lora_lab.course.experiments import review_sentiment as sentiment
from lora_lab.course.experiments import sql_sweeps as sweeps
from lora_lab.finetune import Encoded, Reviews, Settings, loss, memory, own_data
from lora_lab.finetune.activations import keep_less
from lora_lab.finetune.text_to_sql import SPLITS
from lora_lab.lora import LoRAConfig, account, attach, lora_layers
from tests.finetune.conftest import tiny_model
from tests.finetune.conftest import tokenizer as tokenizer

SMALL = {
    "ranks": (1, 8), "targets": ("qv", "all-linear"), "sizes": (8, 480), "rates": (4e-3, 1e-2), "seeds": (0,),
    "shots": 1, "test": 2, "sentences": 4,
}  # fmt: skip


def test_the_plan_crosses_in_the_middle():
    experiment = EXPERIMENTS["sql-sweeps"]
    plan = experiment.planned(experiment.chosen({}))
    assert [sum(run["method"] == method for run in plan) for method in ("untouched", "few-shot", "LoRA")] == [1, 3, 57]
    runs = [{**run, "trainable": len(str(run["targets"]))} for run in plan]
    for setting, values in {
        "rank": [1, 2, 4, 8, 16, 64],
        "examples": [60, 120, 240, 480, 960],
        "learning_rate": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "targets": ["q", "qv", "mlp", "qkvo", "all-linear"],
    }.items():
        found = sweeps.one_sweep(runs, setting)
        assert [(run[setting], run["seed"]) for run in found] == [
            (value, seed) for value in values for seed in range(3)
        ]
    with pytest.raises(ValueError, match="setting: got 'alpha', takes one of rank, targets, examples, learning_rate"):
        sweeps.one_sweep(runs, "alpha")


def test_a_training_reads_as_many_examples_however_few_there_are():
    assert [sweeps.epochs_for(size) for size in (60, 120, 240, 480, 960)] == [8, 4, 2, 1, 1]


@pytest.fixture
def materials(tokenizer, monkeypatch):
    """Sweep a tiny model on a few examples."""
    monkeypatch.setattr("lora_lab.finetune.load_model", lambda: tiny_model(max_position_embeddings=4096))
    monkeypatch.setattr("lora_lab.finetune.load_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("lora_lab.finetune.load_reviews", lambda: some_reviews(8))
    monkeypatch.setattr(sweeps, "MIDDLE", {**sweeps.MIDDLE, "examples": 16})
    monkeypatch.setattr(sweeps, "READS", 16)
    return sweeps._prepare(EXPERIMENTS["sql-sweeps"].chosen({**SMALL, "sizes": (8, 16)}))


def some_reviews(count):
    """Make sentences that say what they think in one letter."""
    sentences = [(f"{'good' if i % 2 else 'bad'} film {i}", i % 2) for i in range(4 * count)]
    train, validation, test = sentences[: 2 * count], sentences[2 * count : 3 * count], sentences[3 * count :]
    return Reviews(tuple(train), tuple(validation), tuple(test), duplicates=0)


def test_every_kind_of_run_is_measured_and_the_model_comes_back_untouched(materials):
    before = {name: value.clone() for name, value in materials.model.state_dict().items()}
    runs = perform(EXPERIMENTS["sql-sweeps"], {**SMALL, "sizes": (8, 16)}, materials=materials, progress=False)
    assert [run["method"] for run in runs] == ["untouched", "few-shot", *["LoRA"] * 5]
    untouched, few_shot, middle, rank, targets, size, rate = runs
    assert all(list(run["correct"]) == list(SPLITS) and run["test"] == 2 for run in runs)
    assert "ordinary loss" not in few_shot
    assert (rank["rank"], targets["targets"], size["examples"], rate["learning_rate"]) == (1, "all-linear", 8, 1e-2)
    assert middle["trainable"] == 8 * rank["trainable"]
    assert middle["steps"] == size["steps"] == 2
    assert len({run["last loss"] for run in (middle, rank, targets, size, rate)}) == 5
    assert len({run["ordinary loss"] for run in (untouched, middle, rank, targets, size, rate)}) == 6
    assert targets["memory by account"] > middle["memory by account"] > rank["memory by account"]
    assert not lora_layers(materials.model)
    assert all(torch.equal(value, before[name]) for name, value in materials.model.state_dict().items())
    again = perform(EXPERIMENTS["sql-sweeps"], {**SMALL, "sizes": (8, 16)}, materials=materials, progress=False)
    assert [{**run, "seconds a step": 0} for run in again] == [{**run, "seconds a step": 0} for run in runs]


def test_memory_by_account_adds_the_moments_the_activations_and_a_chunk_of_logits(monkeypatch):
    model = attach(tiny_model(), LoRAConfig(rank=2))
    with keep_less(model):
        costs = account(model, batch=3, tokens=20).costs
    without = memory.step_bytes(model, 3, 20)
    assert without == costs.weights + costs.optimizer_states + costs.activations
    assert memory.step_bytes(model, 3, 20, labelled=5) - without == 5 * 259 * 16
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 2 * 259)
    assert memory.step_bytes(model, 3, 20, labelled=5) - without == 5 * 259 * 16  # never fewer than 64 positions
    monkeypatch.setattr(loss, "POSITIONS_AT_ONCE", 1)
    assert memory.step_bytes(model, 3, 20, labelled=5) - without == 2 * 259 * 16


def test_the_largest_batch_has_most_tokens_with_its_padding():
    examples = [Encoded(tuple(range(3, 3 + length)), length - 3) for length in (9, 20, 10, 8, 17, 11)]
    settings = Settings(batch_size=2, group_by_length=True)  # 8 and 9, 10 and 11, 17 and 20
    assert sweeps.largest_batch(examples, settings, padded=False) == (2, 20, 6)
    assert sweeps.largest_batch(examples, settings, padded=True) == (2, 20, 6)
    long = [Encoded(tuple(range(3, 36)), 22)] * 2
    assert sweeps.largest_batch([*examples, *long], settings, padded=False) == (2, 33, 22)
    assert sweeps.largest_batch([*examples, *long], settings, padded=True) == (2, 36, 24)


# Several runs side by side


def squares(materials, options, settings, progress):
    """Measure a run that needs no model."""
    if settings["number"] == options["forbidden"]:
        raise ValueError(f"{settings['number']} is forbidden")
    return {"square": settings["number"] ** 2, "threads": torch.get_num_threads(), "materials": materials}


def numbers(options):
    return [{"number": number} for number in options["numbers"]]


def eleven(options):
    return 11


COUNTING = Experiment(
    name="counting",
    purpose="numbers and their squares",
    options={"numbers": Option((3, 1, 2, 5, 4), "numbers"), "forbidden": Option(0, "a number that cannot be measured")},
    plan=numbers,
    prepare=eleven,
    measure=squares,
)


def test_jobs_measure_what_one_process_does(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    alone = perform(COUNTING, progress=False)
    reported = []
    together = perform(COUNTING, jobs=2, report=reported.append, done=alone[:1], progress=False)
    assert [{**run, "threads": 0} for run in together] == [{**run, "threads": 0} for run in alone]
    assert sorted(run["number"] for run in reported) == [1, 2, 4, 5]
    path = run_experiment(COUNTING, "counting", "a command", jobs=2, progress=False)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["provenance"]["jobs"] == 2
    assert [run["square"] for run in stored["runs"]] == [9, 1, 4, 25, 16]
    with pytest.raises(ValueError, match="jobs: got 0, takes a whole number of at least 1"):
        perform(COUNTING, jobs=0)


def test_what_was_measured_before_a_job_failed_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="4 is forbidden"):
        run_experiment(COUNTING, "counting", "a command", jobs=1, progress=False, forbidden=4)
    assert len(json.loads((tmp_path / "counting.json").read_text(encoding="utf-8"))["runs"]) == 4
    with pytest.raises(ValueError, match="4 is forbidden"):
        run_experiment(COUNTING, "counting", "a command", jobs=2, progress=False, forbidden=4)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_experiment_can_be_sent_to_another_process(name):
    assert pickle.loads(pickle.dumps(EXPERIMENTS[name])).name == name


# The second task


def test_reviews_are_asked_about_as_the_command_would(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    carry_out, jobs = own_data.run, []

    def on_a_tiny_model(job, **how):
        jobs.append(job)
        return carry_out(replace(job, model=str(folder)), **how)

    monkeypatch.setattr(own_data, "run", on_a_tiny_model)
    materials = sentiment.Materials(some_reviews(24), {"device": "cpu", "dtype": "float32"})
    options = {"sizes": (8, 16), "validation": 4, "test": 6, "seeds": (0,), "rank": 2}
    runs = perform(EXPERIMENTS["review-sentiment"], options, materials=materials, progress=False)
    assert [(run["examples"], run["steps"]) for run in runs] == [(8, 1), (16, 2)]
    assert all(list(run["scores"]) == ["before", "before, 8 examples in the prompt", "after"] for run in runs)
    assert all(0 <= score["right choices"] <= score["asked"] == 6 for run in runs for score in run["scores"].values())
    assert [run["commonest answer"] for run in runs] == [3, 3]  # of six sentences, half praise
    assert [job.shots for job in jobs] == [8, 8]
    assert json.loads(json.dumps(runs)) == runs
