"""The experiments on LoRA and its rivals measure what they say, on a small encoder in place of the real one."""

import copy
import os
import statistics
import sys
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lab.course.experiments import EXPERIMENTS, perform, rival_costs, rivals, ways
from lora_lab.course.experiments.rival_costs import against, race, served
from lora_lab.course.experiments.short_reviews import Materials, learned, score
from lora_lab.finetune import untrained_encoder
from lora_lab.lora import attach, lora_layers
from tests.course.conftest import WIDE
from tests.finetune.test_encoder import tiny_config

pytestmark = pytest.mark.usefixtures("untouched")
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


class TestRivals:
    OPTIONS: ClassVar = {"ways": ("head", "lora-1"), "examples": 16, "epochs": 2, "seeds": (0, 1)}

    def test_each_way_is_trained_at_its_own_rate_and_scored_on_the_test_sentences(self, shared):
        runs = perform(EXPERIMENTS["rivals"], self.OPTIONS, materials=shared, progress=False)
        assert [(run["way"], run["seed"]) for run in runs] == [("head", 0), ("lora-1", 0), ("head", 1), ("lora-1", 1)]
        for run in runs:
            way, seed = run["way"], run["seed"]
            assert run["learning_rate"] == ways.LEARNING_RATES[way]
            model, history = learned(
                shared,
                ways.configuration(way),
                shared.reviews.subset(16, seed=seed),
                learning_rate=ways.LEARNING_RATES[way],
                epochs=2,
                seed=seed,
            )
            assert run["score"] == score(shared, model)
            assert run["last loss"] == pytest.approx(statistics.fmean(history.losses), abs=1e-5)
            assert run["steps"] == 2
        h, i = WIDE["hidden_size"], WIDE["intermediate_size"]
        assert runs[0]["trainable"] == 2 * h + 2
        assert runs[1]["trainable"] == 2 * h + 2 + 4 * (h + h) + 2 * (h + i)

    def test_a_way_without_a_rate_of_its_own_is_refused_before_anything_is_loaded(self, monkeypatch):
        monkeypatch.setattr(rivals, "materials", lambda options: pytest.fail("the encoder was loaded"))
        with pytest.raises(ValueError, match="the best learning rate of 'lora-qv-3' is not known"):
            perform(EXPERIMENTS["rivals"], {"ways": ("head", "lora-qv-3")}, progress=False)
        with pytest.raises(ValueError, match="way: got 'prefix', takes full, head"):
            perform(EXPERIMENTS["rivals"], {"ways": ("prefix",)}, progress=False)

    def test_the_figures_of_a_way_stand_seed_by_seed(self):
        runs = [
            {"way": way, "seed": seed, "score": value} for way, seed, value in (("a", 1, 3), ("b", 0, 2), ("a", 0, 1))
        ]
        runs.append({"way": "b", "seed": 1, "score": 4})
        assert rivals.by_way(runs) == {"a": [1, 3], "b": [2, 4]}
        with pytest.raises(ValueError, match=r"the ways must have the same seeds, got \{'a': \[0, 1\], 'b': \[0\]\}"):
            rivals.by_way(runs[:3])

    @pytest.mark.parametrize("way", rivals.WAYS)
    def test_the_file_holds_what_trains_and_little_else(self, shared, way, tmp_path):
        model = attach(copy.deepcopy(shared.pretrained), ways.configuration(way))
        trained = [value for value in model.parameters() if value.requires_grad]
        numbers = sum(value.numel() for value in trained)
        header = rivals.bytes_stored(model) - 4 * numbers
        assert 0 < header < 250 * len(trained) + 300
        save_file({str(i): value.detach() for i, value in enumerate(trained)}, tmp_path / "tensors")
        assert sum(value.numel() for value in load_file(tmp_path / "tensors").values()) == numbers

    def test_nothing_trained_is_nothing_to_store(self, shared):
        model = copy.deepcopy(shared.pretrained).requires_grad_(False)
        with pytest.raises(ValueError, match="there is nothing to store"):
            rivals.bytes_stored(model)


class TestRace:
    def test_everyone_has_one_turn_a_round_in_changing_orders(self):
        log = []

        def turn(name):
            return lambda: log.append(name) or float(len(log))

        figures = race({name: turn(name) for name in "abc"}, 20, seed=0)
        rounds = [tuple(log[3 * i : 3 * i + 3]) for i in range(20)]
        assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
        assert len(set(rounds)) == 6
        for name in "abc":
            assert figures[name] == [3 * i + one.index(name) + 1 for i, one in enumerate(rounds)]

    def test_a_ratio_is_taken_within_its_round(self):
        seconds = {"plain": [1.0, 10.0, 100.0], "slow": [2.0, 20.0, 200.0], "odd": [1.0, 30.0, 200.0]}
        assert against(seconds, "slow") == {"lower": 2, "median": 2, "upper": 2}
        assert against(seconds, "odd") == {"lower": 1.5, "median": 2, "upper": 2.5}
        assert against(seconds, "plain", "slow")["median"] == 0.5
        with pytest.raises(ValueError, match="name: got 'fast', and the race had plain, slow, odd"):
            against(seconds, "fast")

    def test_races_of_one_kind_are_put_together(self):
        runs = [
            {"measure": measure, "batch": batch, "seconds": {"a": [first, 2.0], "b": [3.0, 4.0]}}
            for measure, batch, first in (("training", 16, 1.0), ("latency", 1, 5.0), ("latency", 1, 7.0))
        ]
        runs += [
            {"measure": "memory", "batch": 16, "way": "full", "measured": value, "predicted": 8}
            for value in (9, 12, 10)
        ]
        assert rival_costs.rounds_of(runs, "latency", 1) == {"a": [5.0, 2.0, 7.0, 2.0], "b": [3.0, 4.0, 3.0, 4.0]}
        assert rival_costs.rounds_of(runs, "training")["a"] == [1.0, 2.0]
        assert rival_costs.memory_of(runs) == {"full": (10, 8)}
        with pytest.raises(ValueError, match="got 'latency' of 32, and the races were latency of 1, training of 16"):
            rival_costs.rounds_of(runs, "latency", 32)


class TestServed:
    def test_plain_is_the_model_itself(self, shared):
        with torch.no_grad():
            expected = shared.pretrained(input_ids=IDS).logits
            for name in ("plain", "plain-again"):
                model = served(shared.pretrained, name)
                assert model is not shared.pretrained
                assert torch.equal(model(input_ids=IDS).logits, expected)

    def test_folded_has_no_layer_more_than_plain_and_answers_as_the_adapter_does(self, shared):
        plain, beside, folded = (served(shared.pretrained, name) for name in ("plain", "lora-8", "lora-8-folded"))
        assert len(lora_layers(beside)) == 6
        kinds = [[type(module) for module in model.modules()] for model in (plain, folded)]
        assert kinds[0] == kinds[1]
        with torch.no_grad():
            answers = [model(input_ids=IDS).logits for model in (plain, beside, folded)]
        torch.testing.assert_close(answers[1], answers[2], rtol=1e-4, atol=1e-5)
        assert (answers[0] - answers[1]).abs().max() > 1e-3

    def test_an_adapter_computes_something(self, shared):
        with torch.no_grad():
            plain, adapted = (
                served(shared.pretrained, name)(input_ids=IDS).logits for name in ("plain", "bottleneck-4")
            )
        assert (plain - adapted).abs().max() > 1e-3


COSTS = {
    "ways": ("full", "lora-1"),
    "served": ("plain", "plain-again", "lora-8", "lora-8-folded"),
    "batches": (1, 4),
    "rounds": 2,
    "steps": 1,
    "calls": 2,
    "seeds": (0,),
}


def test_costs_are_measured_in_races_and_memory_way_by_way(shared, monkeypatch):
    asked = []

    def rise(_shared, settings):
        asked.append(settings["way"])
        return {"measured": 2, "predicted": 1}

    monkeypatch.setattr(rival_costs, "_memory", rise)
    runs = perform(EXPERIMENTS["rival-costs"], COSTS, materials=shared, progress=False)
    assert [(run["measure"], run["batch"]) for run in runs] == [
        ("training", 16),
        ("latency", 1),
        ("latency", 4),
        ("memory", 16),
        ("memory", 16),
    ]
    assert asked == ["full", "lora-1"]
    for run, names in zip(runs, (COSTS["ways"], COSTS["served"], COSTS["served"]), strict=False):
        assert tuple(run["seconds"]) == names
        assert all(len(some) == 2 and min(some) > 0 for some in run["seconds"].values())
    assert all(run["threads"] == torch.get_num_threads() for run in runs)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak since a moment")
def test_the_rise_of_memory_is_that_of_full_training_as_account_says(shared):
    config = tiny_config(vocab_size=40_000, hidden_size=128, intermediate_size=128)  # 5 million embedding weights
    base = untrained_encoder(config, seed=0)
    before = dict(os.environ)
    figures = rival_costs._memory(
        Materials(base, base, shared.tokenizer, shared.reviews, None), {"way": "full", "batch": 2, "seed": 0}
    )
    assert dict(os.environ) == before
    numbers = sum(value.numel() for value in base.parameters())
    assert figures["trained bytes"] == 4 * numbers
    assert figures["predicted"] >= 3 * 4 * numbers  # a gradient and two moments
    assert 0.9 < figures["measured"] / figures["predicted"] < 1.5
