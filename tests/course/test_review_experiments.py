"""The experiments on film reviews measure what they say, on a small encoder in place of the real one."""

import copy
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from lora_lab.cli import _parser
from lora_lab.course.experiments import EXPERIMENTS, load_result, perform
from lora_lab.course.experiments import update_rank as rank_module
from lora_lab.course.experiments.learning_rates import best_rates
from lora_lab.course.experiments.random_subspace import dimension_found
from lora_lab.course.experiments.short_reviews import learned, score
from lora_lab.course.experiments.training_examples import epochs_for
from lora_lab.course.experiments.ways import LEARNING_RATES, configuration, learning_rate, rates_tried
from lora_lab.finetune import predict
from lora_lab.lora import BottleneckConfig, LoRAConfig, SubspaceConfig, lora_layers, subspace_similarity
from lora_lab.lowrank import LowRank
from tests.course.conftest import WIDE
from tests.finetune.test_classification import examples

pytestmark = pytest.mark.usefixtures("untouched")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class TestWays:
    def test_every_way_trains_what_its_name_says(self, shared):
        trained = {}
        for way in ("full", "head", "bitfit", "bottleneck-3", "lora-2", "lora-qv-2", "subspace-5"):
            model, _ = learned(shared, configuration(way), examples(4), learning_rate=1e-3, epochs=1, seed=0)
            trained[way] = sum(value.numel() for value in model.parameters() if value.requires_grad)
        h, i = WIDE["hidden_size"], WIDE["intermediate_size"]
        head = 2 * h + 2
        assert trained["full"] == sum(value.numel() for value in shared.pretrained.parameters())
        assert trained["head"] == head
        assert trained["bitfit"] == head + 5 * h + i + 3 * h  # linear layers, and the norms' biases
        assert trained["bottleneck-3"] == head + 2 * (2 * h * 3 + h + 3)
        assert trained["lora-2"] == head + 2 * (4 * (h + h) + 2 * (h + i))
        assert trained["lora-qv-2"] == head + 2 * 2 * (h + h)
        assert trained["subspace-5"] == 5

    def test_the_scale_of_lora_is_2_at_every_rank(self):
        for way in ("lora-1", "lora-64", "lora-qv-8"):
            config = configuration(way)
            assert isinstance(config, LoRAConfig)
            assert config.alpha / config.rank == 2
        assert isinstance(configuration("bottleneck-16"), BottleneckConfig)

    def test_the_seed_draws_the_subspace(self):
        assert configuration("subspace-5", seed=3) == SubspaceConfig(
            5, parameters=("encoder.layer", "classifier"), seed=3
        )

    @pytest.mark.parametrize("way", ["lora", "lora-", "lora-x", "lora-qk-2", "Full", "subspace-1.5", ""])
    def test_an_unknown_way_is_refused(self, way):
        with pytest.raises(ValueError, match=r"way: got .*, takes full, head, bitfit, bottleneck-WIDTH"):
            configuration(way)

    def test_a_way_without_a_search_has_no_rate(self):
        with pytest.raises(ValueError, match="the best learning rate of 'lora-3' is not known; there are full"):
            learning_rate("lora-3")
        with pytest.raises(ValueError, match="no rates are tried for 'subspace-7'; they are for subspace-100"):
            rates_tried("subspace-7")

    def test_between_two_dimensions_the_rate_is_on_the_line_in_logarithms(self, monkeypatch):
        monkeypatch.setattr(
            "lora_lab.course.experiments.ways.LEARNING_RATES",
            {"full": 7, "subspace-100": 1.0, "subspace-1000": 0.1, "subspace-10000": 0.05},
        )
        assert learning_rate("subspace-1000") == 0.1
        assert learning_rate("subspace-10") == pytest.approx(10)
        assert learning_rate("subspace-3162") == pytest.approx(0.1 * 0.5**0.5, rel=1e-3)

    @pytest.mark.parametrize("name", ["learning-rates", "learning-rates-subspace", "learning-rates-rivals"])
    def test_the_rates_in_use_are_the_best_of_the_stored_search(self, name):
        found = best_rates(load_result(name)["runs"])
        assert {way: LEARNING_RATES[way] for way in found} == found
        for way, rate in found.items():
            assert min(rates_tried(way)) < rate < max(rates_tried(way)), f"{way}: its best is at the end of the search"


def test_the_best_rate_is_that_of_the_best_mean():
    runs = [
        {"way": way, "learning_rate": rate, "validation": value}
        for way, rate, value in [
            ("b", 1.0, 0.9),
            ("b", 2.0, 0.7),
            ("b", 1.0, 0.5),
            ("b", 2.0, 0.8),
            ("a", 3.0, 0.6),
            ("a", 1.0, 0.6),
        ]
    ]
    assert best_rates(runs) == {"b": 2.0, "a": 1.0}


def test_a_training_begins_with_the_weights_asked_for_and_the_seed_decides_it(shared):
    ends = []
    for pretrained, seed in ((True, 0), (True, 0), (True, 1), (False, 0)):
        model, history = learned(
            shared, configuration("lora-2"), examples(8), learning_rate=1e-2, epochs=2, seed=seed, pretrained=pretrained
        )
        ends.append(weights(model))
        base = shared.pretrained if pretrained else shared.untrained
        assert len(history.losses) == 2  # a batch of 8, not of 16
        for name, layer in lora_layers(model).items():
            assert torch.equal(layer.base.weight, base.get_submodule(name).weight)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_the_score_is_that_of_the_test_sentences(shared):
    answers = predict(shared.pretrained, shared.tokenizer, [text for text, _ in shared.reviews.test])
    assert score(shared, shared.pretrained) == accuracy_score([label for _, label in shared.reviews.test], answers)
    some = shared.reviews.train[:7]
    answers = predict(shared.pretrained, shared.tokenizer, [text for text, _ in some])
    assert score(shared, shared.pretrained, some) == accuracy_score([label for _, label in some], answers)


def test_the_search_for_rates_scores_the_validation_sentences(shared, monkeypatch):
    options = {"ways": ("head", "lora-1"), "examples": 16, "epochs": 1, "seeds": (0,)}
    runs = perform(EXPERIMENTS["learning-rates"], options, materials=shared, progress=False)
    assert [(run["way"], run["learning_rate"]) for run in runs] == [
        (way, rate) for way in options["ways"] for rate in rates_tried(way)
    ]
    model, _ = learned(
        shared,
        configuration("head"),
        shared.reviews.subset(16, seed=0),
        learning_rate=rates_tried("head")[-1],
        epochs=1,
        seed=0,
    )
    assert runs[len(rates_tried("head")) - 1]["validation"] == score(shared, model, shared.reviews.validation)


SMALL_RANKS = {"examples": 16, "epochs": 2, "ranks": (1, 8, 64), "truncations": (0, 2), "seeds": (0, 1)}


def tuned_by(kept, seed):
    """Train as a whole once more."""
    model, _ = rank_module._trained(kept, EXPERIMENTS["update-rank"].chosen(SMALL_RANKS), "full", None, seed)
    return model


@pytest.fixture(scope="module")
def ranks(shared):
    """The runs of a small experiment, and what they left in memory."""
    kept = rank_module._Materials(shared)
    return perform(EXPERIMENTS["update-rank"], SMALL_RANKS, materials=kept, progress=False), kept


class TestUpdateRank:
    def test_the_plan(self, ranks):
        assert [(run["method"], run["rank"], run["seed"]) for run in ranks[0]] == [
            (method, rank, seed)
            for method, rank in (
                ("full", None),
                ("head", None),
                *(("LoRA", rank) for rank in (1, 8, 64)),
                *(("cut", rank) for rank in (1, 8, 64)),
                ("directions", None),
            )
            for seed in (0, 1)
        ]

    def test_an_update_added_to_the_base_gives_the_tuned_weight(self, ranks, shared):
        for seed in (0, 1):
            update = ranks[1].updates["full", None, seed]
            assert len(update) == 6
            assert all(name.startswith("bert.encoder.layer.0.") for name in update)
            tuned, _ = rank_module._trained(
                ranks[1], EXPERIMENTS["update-rank"].chosen(SMALL_RANKS), "full", None, seed
            )
            whole = rank_module.with_updates(shared.pretrained, tuned, update)
            before, after = weights(shared.pretrained), weights(tuned)
            for name, value in weights(whole).items():
                carried = name.removesuffix(".weight") in update or name.startswith("classifier")
                torch.testing.assert_close(value, after[name] if carried else before[name], rtol=0, atol=1e-7)
            assert any(not torch.equal(before[name], after[name]) for name in before if "embeddings" in name)

    def test_curves_and_ranks_are_those_of_numpy(self, ranks):
        for run in ranks[0][:2]:
            for name, layer in run["layers"].items():
                update = ranks[1].updates["full", None, run["seed"]][name]
                s = np.linalg.svd(update, compute_uv=False)
                assert layer["shape"] == list(update.shape)
                assert layer["errors"]["0"] == 1
                assert layer["errors"][str(len(s))] == 0
                for rank in (1, 8, 32):
                    expected = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
                    assert layer["errors"][str(rank)] == pytest.approx(expected, abs=1e-5)
                assert layer["numerical rank"] == np.linalg.matrix_rank(update)
                half = layer["rank for error 0.5"]
                assert (s[half:] ** 2).sum() <= 0.25 * (s**2).sum() < (s[half - 1 :] ** 2).sum()

    def test_truncated_at_no_rank_is_the_tuned_head_on_the_untouched_body(self, ranks, shared):
        run = ranks[0][0]
        assert list(run["truncated"]) == ["0", "2", "64"]
        tuned = tuned_by(ranks[1], 0)
        body = copy.deepcopy(shared.pretrained)
        body.classifier.load_state_dict(tuned.classifier.state_dict())
        assert run["truncated"]["0"] == score(shared, body)
        assert run["score"] == score(shared, tuned)
        for name, update in ranks[1].updates["full", None, 0].items():
            U, s, Vt = np.linalg.svd(update)
            body.get_submodule(name).weight.data += torch.tensor((U[:, :2] * s[:2]) @ Vt[:2], dtype=torch.float32)
        assert run["truncated"]["2"] == score(shared, body)

    def test_an_update_is_cut_to_its_largest_part(self):
        matrix = np.random.default_rng(0).normal(size=(6, 4))
        svds = {"one": LowRank.from_svd(matrix, 4)}
        assert rank_module.truncated(svds, 0) == {}
        assert np.allclose(rank_module.truncated(svds, 2)["one"].dense(), LowRank.from_svd(matrix, 2).dense())
        assert np.allclose(rank_module.truncated(svds, 9)["one"].dense(), matrix)

    def test_lora_changes_the_weights_by_what_its_factors_multiply_to(self, ranks, shared):
        for run in ranks[0][4:10]:
            for name, change in run["change"].items():
                update = np.asarray(ranks[1].updates["LoRA", run["rank"], run["seed"]][name])
                assert np.linalg.matrix_rank(update) <= run["rank"]
                base = shared.pretrained.get_submodule(name).weight.detach().numpy()
                assert change == pytest.approx(np.linalg.norm(update) / np.linalg.norm(base), abs=1e-4)

    def test_the_head_alone_changes_no_matrix(self, ranks, shared):
        for run in ranks[0][2:4]:
            assert "change" not in run
            assert run["trainable"] == 2 * WIDE["hidden_size"] + 2
            some = shared.reviews.subset(16, seed=run["seed"])
            rate = learning_rate("head")
            model, _ = learned(shared, configuration("head"), some, learning_rate=rate, epochs=2, seed=run["seed"])
            assert run["score"] == score(shared, model)

    def test_a_cut_update_gets_a_head_of_its_own(self, ranks, shared):
        run = next(run for run in ranks[0] if run["method"] == "cut" and run["rank"] == 8)
        body = copy.deepcopy(shared.pretrained)
        for name, update in ranks[1].updates["full", None, 0].items():
            U, s, Vt = np.linalg.svd(update)
            body.get_submodule(name).weight.data += torch.tensor((U[:, :8] * s[:8]) @ Vt[:8], dtype=torch.float32)
        some, rate = shared.reviews.subset(16, seed=0), learning_rate("head")
        own = replace(shared, pretrained=body)
        model, history = learned(own, configuration("head"), some, learning_rate=rate, epochs=2, seed=0)
        assert run["score"] == score(shared, model)
        assert run["last loss"] == pytest.approx(sum(history.losses) / len(history.losses), abs=1e-5)  # two steps
        assert run["trainable"] == 2 * WIDE["hidden_size"] + 2

    def test_directions_are_compared_as_they_are_named(self, ranks):
        similarity = ranks[0][-2]["similarity"]
        assert len(similarity) == 5
        name = "bert.encoder.layer.0.attention.self.value"
        assert all(list(by_name) == [name.replace("value", "query"), name] for by_name in similarity.values())
        eight, other = (ranks[1].updates["LoRA", rank, 0][name] for rank in (8, 64))
        grid = subspace_similarity(eight.right, other.right)
        assert similarity["A of rank 8 and A of rank 64"][name][3][2] == pytest.approx(grid[7, 3], abs=1e-4)
        grid = subspace_similarity(eight, ranks[1].updates["full", None, 0][name])
        assert similarity["rank 8 and full"][name][0][6] == pytest.approx(grid[0, 63], abs=1e-4)

    def test_directions_of_a_resumed_experiment_are_those_of_one_that_was_not_stopped(self, ranks, shared):
        fresh = rank_module._Materials(shared)
        again = perform(
            EXPERIMENTS["update-rank"], SMALL_RANKS, materials=fresh, done=tuple(ranks[0][:-1]), progress=False
        )
        assert again[-1] == ranks[0][-1]


class TestTrainingExamples:
    def test_small_sets_are_read_more_often(self):
        options = {"epochs": 2, "reads": 12}
        assert [epochs_for(size, options) for size in (2, 4, 5, 6, 100)] == [6, 3, 3, 2, 2]

    def test_every_way_learns_from_both_starts_and_from_the_first_of_the_same_sentences(self, shared):
        options = {"sizes": (4, 16), "ways": ("head", "lora-8"), "epochs": 2, "reads": 12, "seeds": (0, 1)}
        runs = perform(EXPERIMENTS["training-examples"], options, materials=shared, progress=False)
        assert [(r["pretrained"], r["way"], r["examples"], r["seed"]) for r in runs][:5] == [
            (True, "head", 4, 0),
            (True, "lora-8", 4, 0),
            (False, "head", 4, 0),
            (False, "lora-8", 4, 0),
            (True, "head", 16, 0),
        ]
        assert {run["examples"]: run["steps"] for run in runs} == {4: 3, 16: 2}
        run = runs[2]
        some = shared.reviews.subset(4, seed=0)
        model, _ = learned(
            shared,
            configuration("head"),
            some,
            learning_rate=learning_rate("head"),
            epochs=3,
            seed=0,
            pretrained=False,
        )
        assert (run["score"], run["training score"]) == (score(shared, model), score(shared, model, some))


class TestRandomSubspace:
    def test_both_starts_move_in_subspaces_and_as_a_whole(self, shared):
        options = {"dimensions": (5, 50), "untrained_dimensions": (20,), "examples": 16, "epochs": 1, "seeds": (0,)}
        runs = perform(EXPERIMENTS["random-subspace"], options, materials=shared, progress=False)
        assert [(run["pretrained"], run["dimension"]) for run in runs] == [
            (True, None),
            (True, 5),
            (True, 50),
            (False, None),
            (False, 20),
        ]
        whole = sum(value.numel() for value in shared.pretrained.parameters())
        assert [run["trainable"] for run in runs] == [whole, 5, 50, whole, 20]

    def runs(self, scores, full=0.9):
        made = [{"pretrained": True, "dimension": None, "seed": seed, "score": full} for seed in (0, 1)]
        made += [{"pretrained": False, "dimension": d, "seed": 0, "score": 1.0} for d in (None, 1, 2)]
        for dimension, both in scores.items():
            made += [
                {"pretrained": True, "dimension": dimension, "seed": s, "score": one} for s, one in enumerate(both)
            ]
        return made

    def test_the_dimension_found_is_the_one_between_the_scores(self):
        runs = self.runs({10: (0.5, 0.5), 100: (0.6, 0.87), 1000: (0.88, 0.9), 10000: (0.9, 0.9)})
        found = dimension_found(runs, pretrained=True, baseline=0.5)
        assert found.threshold == pytest.approx(0.86)
        assert [(one.too_small, one.enough) for one in found.brackets] == [(100, 1000), (10, 100)]
        assert (found.value, found.interval) == (100, (10, 1000))

    def test_a_score_that_is_never_reached_is_not_found(self):
        runs = self.runs({10: (0.5, 0.5), 100: (0.6, 0.7)})
        assert dimension_found(runs, pretrained=True, baseline=0.5).value is None
        lower = dimension_found(runs, pretrained=True, baseline=0.4, full_score=0.6)
        assert lower.threshold == pytest.approx(0.58)
        assert lower.value == 100

    def test_too_few_runs_are_refused(self):
        runs = self.runs({10: (0.5, 0.5)})
        with pytest.raises(ValueError, match="full fine-tuning and two dimensions with all seeds are needed, got 4"):
            dimension_found(runs, pretrained=True, baseline=0.5)


def test_the_plans_tell_their_runs_apart():
    for name in ("learning-rates", "update-rank", "training-examples", "random-subspace"):
        plan = EXPERIMENTS[name].planned(EXPERIMENTS[name].chosen({}))
        assert len({json.dumps(run) for run in plan}) == len(plan) > 10


def explained():
    """Give, for each stored result, the command of the data's README that measures it again."""
    text = (Path(__file__).resolve().parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## results/(.+?)\.json$(.*?)(?=^## )", text, re.M | re.S)
    commands = {name: re.search(r"^(?:\w+=\S+ )*(lora-lab experiment .+)$", words, re.M) for name, words in sections}
    return {name: found[1] for name, found in commands.items() if found and name != "rank-sweep-cpu"}


@pytest.mark.parametrize("name", list(explained()))
def test_the_command_of_the_readme_measures_every_run_of_the_stored_result(name):
    """The sweep of lesson 09 is left out: it was measured by an earlier command, as its section says."""
    asked = shlex.split(explained()[name])[1:]
    options = _parser(asked).parse_args(asked)
    experiment, stored = options.experiment, load_result(name)
    chosen = experiment.chosen({option: getattr(options, option) for option in experiment.options})
    assert options.result == name
    assert json.loads(json.dumps(chosen)) == stored["provenance"]["options"]
    plan = experiment.planned(chosen)
    assert [{key: run[key] for key in settings} for run, settings in zip(stored["runs"], plan, strict=True)] == plan


def test_every_stored_experiment_has_a_command():
    assert set(explained()) == {
        "learning-rates",
        "learning-rates-subspace",
        "learning-rates-rivals",
        "update-rank",
        "sql-update",
        "random-subspace",
        "training-examples",
        "rivals",
        "rival-costs",
        "sql-sweeps-h200",
        "review-sentiment-h200",
    }
