"""The experiment on the language model's update measures what it says, on a small model in place of the real one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_lab.course.experiments import load_result, perform, sql_update
from lora_lab.finetune import Settings, answer_loss, collate, evaluate, labelled_tokens, train
from lora_lab.lora import FullConfig, LoRAConfig, attach, lora_layers, updates
from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401 (pytest finds the fixture by its name)

SMALL = {"examples": 16, "validation": 4, "test": 2, "truncations": (0, 2), "seeds": (0, 1)}
OPTIONS = sql_update.EXPERIMENT.chosen(SMALL)
SIZE, WIDTH, KEYS = 32, 48, 16  # hidden size, size of the MLP, size of keys and values


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def print_of(model):
    """Give a number that tells one model from another, as the tiny one answers every question wrongly."""
    return round(model(input_ids=torch.arange(1, 40)[None]).logits.double().square().sum().item(), 3)


@pytest.fixture(scope="module")
def shared(tokenizer):  # noqa: F811
    model = tiny_model(seed=5, max_position_embeddings=2048, initializer_range=0.2)
    before = weights(model)
    yield replace(sql_update.materials(model, tokenizer, OPTIONS), precision=None)
    assert same(weights(model), before), "an experiment leaves its materials as it found them"


@pytest.fixture(scope="module")
def runs(shared):
    """The runs of a small experiment, in which a model's print stands for its right answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_update, "correct", lambda shared, model, shots=(): print_of(model) + len(shots))
        return perform(sql_update.EXPERIMENT, SMALL, materials=shared, progress=False)


@pytest.fixture(scope="module")
def tuned(shared):
    return sql_update.learned(shared, "full", OPTIONS, seed=0)[0]


def of(runs, method, **settings):
    """Give the one run with these settings."""
    [run] = [one for one in runs if settings.items() <= one.items() and one["method"] == method]
    return run


def test_the_plan_searches_first_and_ends_with_the_baselines(runs):
    searched = [(way, rate, 2) for way, rates in sql_update.RATES_TRIED.items() for rate in rates]
    assert [(run["way"], run["learning_rate"], run["seed"]) for run in runs[: len(searched)]] == searched
    wanted = [("full", None), ("LoRA", 1), ("LoRA", 8)]
    assert [(run["method"], run["rank"], run["seed"]) for run in runs[len(searched) :]] == [
        ("base", None, None),
        *((method, rank, seed) for seed in (0, 1) for method, rank in wanted),
        *((method, None, seed) for method in ("few-shot", "untrained") for seed in (0, 1)),
    ]


def test_no_two_seeds_share_an_example_and_none_is_a_question(shared):
    blocks = [[(one.question, one.schema) for one in shared.examples[seed]] for seed in (0, 1, 2)]
    assert [len(block) for block in blocks] == [16] * 3
    assert len({asked for block in blocks for asked in block}) == 48
    assert shared.examples[1] == shared.task.train(32)[16:]
    assert shared.questions == shared.task.test("questions", 2)
    assert shared.validation == shared.task.validation(4)


def test_a_way_trains_what_its_name_says():
    assert sql_update.configuration("full") == FullConfig()
    assert sql_update.configuration("lora-8") == LoRAConfig(rank=8, alpha=16, targets="all-linear")
    with pytest.raises(ValueError, match="way: got 'lora-3', takes one of full, lora-1, lora-8"):
        sql_update.configuration("lora-3")


def test_a_rank_without_a_learning_rate_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("lora_lab.finetune.load_model", lambda **_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="way: got 'lora-2'"):
        perform(sql_update.EXPERIMENT, {"ranks": (1, 2)}, progress=False)


def test_the_packaged_model_is_loaded_in_float32(monkeypatch, tokenizer):  # noqa: F811
    asked = []
    monkeypatch.setattr("lora_lab.finetune.load_model", lambda **how: asked.append(how) or tiny_model())
    monkeypatch.setattr("lora_lab.finetune.load_tokenizer", lambda: tokenizer)
    found = sql_update.EXPERIMENT.prepare(OPTIONS)
    assert asked == [{"dtype": torch.float32}]
    assert sql_update.EXPERIMENT.conditions(found).keys() == {"attention", "device", "dtype", "precision"}


class TestTraining:
    @pytest.mark.parametrize("way", ["full", "lora-1"])
    def test_it_is_the_training_loop_of_the_course_on_the_examples_of_the_seed(self, way, shared):
        model, history = sql_update.learned(shared, way, OPTIONS, seed=1, learning_rate=1e-2)
        other = attach(
            copy.deepcopy(shared.pretrained), sql_update.configuration(way), generator=torch.Generator().manual_seed(1)
        )
        settings = Settings(learning_rate=1e-2, seed=1)
        expected = train(other, sql_update.encoded(shared, shared.task.train(32)[16:]), settings, progress=False)
        assert history.losses == pytest.approx(expected.losses, rel=1e-5)
        for name, value in weights(model).items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-5)

    def test_in_bfloat16_each_step_reads_the_weights_that_the_last_one_left(self, shared):
        options = {**OPTIONS, "epochs": 4}
        low = replace(shared, precision=torch.bfloat16)
        exact, rounded = (
            sql_update.learned(some, "full", options, seed=0, learning_rate=1e-2) for some in (shared, low)
        )
        assert rounded[1].losses != exact[1].losses
        assert rounded[1].losses == pytest.approx(exact[1].losses, rel=0.02)
        assert exact[1].losses[-1] < 0.8 * exact[1].losses[0]
        assert rounded[0].dtype == torch.float32

    def test_the_best_rate_is_the_default(self, shared, monkeypatch):
        monkeypatch.setitem(sql_update.LEARNING_RATES, "full", 0.02)
        _, by_default = sql_update.learned(shared, "full", OPTIONS, seed=0)
        assert max(by_default.learning_rates) == pytest.approx(0.02)

    def test_random_weights_follow_from_the_seed(self, shared):
        fresh = [sql_update.untrained(shared.pretrained, seed=seed) for seed in (0, 0, 1)]
        states = [weights(model) for model in (shared.pretrained, *fresh)]
        assert same(states[1], states[2])
        assert not same(states[1], states[3])
        assert all(not torch.equal(states[0][name], states[1][name]) for name in states[0] if "proj" in name)
        assert fresh[0].lm_head.weight is fresh[0].model.embed_tokens.weight

    def test_from_random_weights_it_begins_at_just_those(self, shared):
        _, history = sql_update.learned(shared, "full", OPTIONS, seed=0, pretrained=False)
        first = torch.randperm(16, generator=torch.Generator().manual_seed(0))[:8].tolist()
        batch = collate([sql_update.encoded(shared, shared.examples[0])[place] for place in first])
        with torch.no_grad():
            loss = answer_loss(sql_update.untrained(shared.pretrained, seed=0), batch) / labelled_tokens(batch)
        assert history.losses[0] == pytest.approx(loss.item(), rel=1e-5)


class TestSearch:
    def test_it_tells_the_loss_on_the_validation_examples(self, runs, shared):
        run = of(runs, "search", way="lora-8", learning_rate=3e-3)
        model, _ = sql_update.learned(shared, "lora-8", OPTIONS, seed=2, learning_rate=3e-3)
        batch = collate(sql_update.encoded(shared, shared.task.validation(4)))
        with torch.no_grad():
            loss = answer_loss(model, batch) / labelled_tokens(batch)
        assert run["validation loss"] == pytest.approx(loss.item(), abs=2e-5)

    def test_the_best_has_the_lowest_loss_and_other_runs_do_not_count(self):
        found = [
            {"method": "search", "way": way, "learning_rate": rate, "validation loss": loss}
            for way, rate, loss in [("full", 1, 0.5), ("full", 2, 0.4), ("full", 3, 0.6), ("lora-1", 1, 0.3)]
        ]
        assert sql_update.best([*found, {"method": "full", "seed": 0}]) == {"full": 2, "lora-1": 1}


class TestUpdates:
    def test_matrices_are_those_of_the_blocks(self, shared):
        shapes = [matrix.shape for matrix in sql_update.matrices(shared.pretrained, sql_update.BLOCKS).values()]
        one = [(SIZE, SIZE), (KEYS, SIZE), (KEYS, SIZE), (SIZE, SIZE), (WIDTH, SIZE), (WIDTH, SIZE), (SIZE, WIDTH)]
        assert shapes == 2 * one

    def test_curves_sizes_and_ranks_are_those_of_numpy(self, runs, shared, tuned):
        run, base = of(runs, "full", seed=0), shared.pretrained
        assert run["trainable"] == sum(value.numel() for value in base.parameters())
        assert len(run["layers"]) == len(run["change"]) == 14
        for name, layer in run["layers"].items():
            before, after = (model.get_submodule(name).weight.detach().double().numpy() for model in (base, tuned))
            s = np.linalg.svd(after - before, compute_uv=False)
            assert layer["shape"] == list(before.shape)
            assert layer["numerical rank"] == np.linalg.matrix_rank(after - before)
            assert layer["errors"]["4"] == pytest.approx(np.sqrt((s[4:] ** 2).sum() / (s**2).sum()), abs=1e-5)
            assert layer["errors"][str(len(s))] == 0
            half = layer["rank for error 0.5"]
            assert (s[half:] ** 2).sum() <= 0.25 * (s**2).sum() < (s[half - 1 :] ** 2).sum()
            assert run["change"][name] == pytest.approx(np.linalg.norm(s) / np.linalg.norm(before), abs=1e-5)

    def test_the_weights_themselves_have_curves_beside_it(self, runs, shared):
        for name, layer in of(runs, "base")["layers"].items():
            s = np.linalg.svd(shared.pretrained.get_submodule(name).weight.detach().double().numpy())[1]
            assert layer["errors"]["8"] == pytest.approx(np.sqrt((s[8:] ** 2).sum() / (s**2).sum()), abs=1e-5)
        assert of(runs, "base")["layers"].keys() == of(runs, "full", seed=1)["layers"].keys()

    def test_a_cut_model_has_the_cut_matrices_and_all_else_as_in_the_base(self, runs, shared, tuned):
        run, before, after = of(runs, "full", seed=0), weights(shared.pretrained), weights(tuned)
        assert list(run["truncated"]) == ["0", "2", "32"]
        for rank in (0, 2, 32):
            body = copy.deepcopy(shared.pretrained)
            for name, value in before.items():
                if "proj" in name:
                    U, s, Vt = np.linalg.svd((after[name].double() - value.double()).numpy(), full_matrices=False)
                    cut = torch.tensor((U[:, :rank] * s[:rank]) @ Vt[:rank])
                    body.get_parameter(name).data = (value.double() + cut).float()
            assert run["truncated"][str(rank)] == pytest.approx(print_of(body), rel=1e-5)
        found = {rank: run["truncated"][rank] for rank in run["truncated"]}
        assert found["0"] == print_of(shared.pretrained)
        assert run["correct"] == print_of(tuned)
        assert len({round(value, 1) for value in (*found.values(), run["correct"], run["rest alone"])}) == 5

    def test_the_rest_alone_is_the_tuned_model_without_its_updates(self, runs, shared, tuned):
        body, after = copy.deepcopy(shared.pretrained), weights(tuned)
        for name in after:
            if "proj" not in name:
                body.get_parameter(name).data = after[name]
        assert of(runs, "full", seed=0)["rest alone"] == pytest.approx(print_of(body), rel=1e-6)

    def test_lora_changes_all_matrices_of_the_blocks_by_its_factors(self, runs, shared):
        for rank in (1, 8):
            run = of(runs, "LoRA", rank=rank, seed=1)
            model, _ = sql_update.learned(shared, f"lora-{rank}", OPTIONS, seed=1)
            assert run["correct"] == print_of(model)
            assert len(lora_layers(model)) == len(run["change"]) == 14
            for name, update in updates(model).items():
                base = shared.pretrained.get_submodule(name).weight.detach().numpy()
                assert np.linalg.matrix_rank(update.dense()) <= rank
                size = np.linalg.norm(update.dense()) / np.linalg.norm(base)
                assert run["change"][name] == pytest.approx(size, abs=1e-5)


class TestAnswers:
    def test_right_answers_are_those_to_the_held_out_questions(self, shared, monkeypatch):
        asked = []

        def answering(model, tokenizer, task, questions, *, shots, progress):  # noqa: F811
            asked.append((questions, shots))
            found = evaluate(model, tokenizer, task, questions, shots=shots, progress=progress, max_new_tokens=4)
            right = [replace(one, correct=place == 0) for place, one in enumerate(found.answered)]
            return replace(found, answered=tuple(right))

        monkeypatch.setattr("lora_lab.finetune.evaluate", answering)
        assert sql_update.correct(shared, shared.pretrained) == 1
        assert sql_update.correct(shared, shared.pretrained, shared.examples[0][:1]) == 1
        assert asked == [(shared.questions, ()), (shared.questions, shared.examples[0][:1])]

    def test_without_training_the_base_answers_with_and_without_solved_examples(self, runs, shared):
        assert of(runs, "base")["correct"] == print_of(shared.pretrained)
        for seed in (0, 1):
            shown = of(runs, "few-shot", seed=seed)["correct"]
            assert shown == pytest.approx(print_of(shared.pretrained) + sql_update.SHOTS)

    def test_the_same_network_is_trained_from_random_weights(self, runs, shared):
        model, history = sql_update.learned(shared, "full", OPTIONS, seed=1, pretrained=False)
        run = of(runs, "untrained", seed=1)
        assert run["correct"] == print_of(model)
        assert run["last loss"] == pytest.approx(sum(history.losses) / 2, abs=1e-5)


@pytest.fixture(scope="module")
def stored():
    return load_result("sql-update")


class TestStored:
    def test_it_is_whole(self, stored):
        plan = sql_update.EXPERIMENT.planned(stored["provenance"]["options"])
        assert [{name: run[name] for name in plan[place]} for place, run in enumerate(stored["runs"])] == plan

    def test_the_rates_in_use_are_the_best_of_its_search_and_not_at_an_end(self, stored):
        assert sql_update.best(stored["runs"]) == sql_update.LEARNING_RATES
        for way, rate in sql_update.LEARNING_RATES.items():
            assert min(sql_update.RATES_TRIED[way]) < rate < max(sql_update.RATES_TRIED[way])

    def test_it_has_all_210_matrices_of_each_seed(self, stored):
        full = [run for run in stored["runs"] if run["method"] == "full"]
        assert [len(run["layers"]) for run in full] == [210] * len(stored["provenance"]["options"]["seeds"])
