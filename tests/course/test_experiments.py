"""A sweep measures every rank with every seed, is kept run by run, and says where it comes from."""

import json

import pytest
import torch

from lora_lab.course import experiments
from lora_lab.finetune.text_to_sql import SPLITS
from lora_lab.lora import lora_layers
from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401 (pytest finds the fixture by its name)

SMALL = {"ranks": (1, 2), "seeds": (0, 1), "examples": 16, "epochs": 1, "learning_rate": 1e-3, "test": 2}


def test_every_rank_is_trained_with_every_seed_and_the_model_comes_back_untouched(tokenizer):  # noqa: F811
    model = tiny_model(max_position_embeddings=2048)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = experiments.rank_sweep(model, tokenizer, **SMALL, progress=False)
    assert [(run["rank"], run["seed"]) for run in runs] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert runs[2]["trainable"] == 2 * runs[0]["trainable"]
    assert runs[0]["last loss"] != runs[1]["last loss"]
    assert all(list(run["correct"]) == list(SPLITS) and run["steps"] == 2 for run in runs)
    assert not lora_layers(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_sweep_that_is_stopped_leaves_the_model_without_adapters(tokenizer, monkeypatch):  # noqa: F811
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_lab.finetune.evaluate", stop)
    model = tiny_model(max_position_embeddings=2048)
    with pytest.raises(KeyboardInterrupt):
        experiments.rank_sweep(model, tokenizer, **SMALL, progress=False)
    assert not lora_layers(model)


@pytest.fixture
def stored(tmp_path, monkeypatch, tokenizer):  # noqa: F811
    """The packaged model replaced by a small one, and the results kept in a folder of the test."""
    monkeypatch.setattr(experiments, "results_folder", lambda: tmp_path)
    monkeypatch.setattr("lora_lab.finetune.load_model", lambda: tiny_model(max_position_embeddings=2048))
    monkeypatch.setattr("lora_lab.finetune.load_tokenizer", lambda: tokenizer)
    return tmp_path / "sweep.json"


def test_a_sweep_that_is_stopped_goes_on_after_the_last_run_stored(stored, monkeypatch):
    store, stops = experiments._store, 2

    def stopping(path, result):
        store(path, result)
        if len(result["runs"]) == stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "_store", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiments.run_rank_sweep("sweep", "a command", **SMALL)
    first = json.loads(stored.read_text(encoding="utf-8"))
    monkeypatch.setattr(experiments, "_store", store)
    experiments.run_rank_sweep("sweep", "a command", **SMALL)
    result = experiments.load_result("sweep")
    assert result["runs"][:2] == first["runs"]
    assert len(result["runs"]) == 4
    assert result["provenance"]["command"] == "a command"


def test_a_result_of_other_options_is_refused_and_kept(stored):
    experiments.run_rank_sweep("sweep", "a command", **SMALL)
    kept = stored.read_bytes()
    with pytest.raises(ValueError, match=r"sweep\.json was measured with other options"):
        experiments.run_rank_sweep("sweep", "a command", **{**SMALL, "epochs": 2})
    assert stored.read_bytes() == kept


def test_an_unknown_result_lists_those_there_are(stored):
    experiments.run_rank_sweep("sweep", "a command", **SMALL)
    with pytest.raises(FileNotFoundError, match=r"no stored result 'sweeep'.*there are: sweep"):
        experiments.load_result("sweeep")


def test_the_mean_score_averages_the_seeds_of_one_rank():
    runs = [{"rank": rank, "correct": {"a": right}, "test": 8} for rank, right in ((1, 2), (1, 4), (8, 8))]
    assert experiments.mean_score(runs, 1, "a") == 3 / 8
    with pytest.raises(ValueError, match=r"no run has rank 2; there are \[1, 8\]"):
        experiments.mean_score(runs, 2, "a")


RESULTS = sorted(experiments.results_folder().glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_stored_result_says_where_it_comes_from(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"command", "device", "python", "torch", "lora-lab", "date"} <= result["provenance"].keys()
    assert result["provenance"]["command"].startswith("lora-lab ")
    assert result["runs"]
    assert f"## results/{path.name}" in (path.parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in RESULTS if "sweep" in path.stem], ids=lambda path: path.stem)
def test_a_stored_sweep_is_whole_and_says_how_it_was_trained(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"options", "attention", "dtype", "transformers"} <= result["provenance"].keys()
    options = result["provenance"]["options"]
    wanted = {(rank, seed) for rank in options["ranks"] for seed in options["seeds"]}
    assert {(run["rank"], run["seed"]) for run in result["runs"]} == wanted
