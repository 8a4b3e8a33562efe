"""An experiment measures every run of its plan once, is kept run by run, and says where it comes from."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch

from lora_lab.cli import main
from lora_lab.course import experiments
from lora_lab.course.experiments import EXPERIMENTS, Experiment, Option, perform, results, run_experiment
from lora_lab.finetune import Progress
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
def folder(tmp_path, monkeypatch):
    """The results kept in a folder of the test."""
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def stored(folder, monkeypatch, tokenizer):  # noqa: F811
    """The packaged model replaced by a small one."""
    monkeypatch.setattr("lora_lab.finetune.load_model", lambda: tiny_model(max_position_embeddings=2048))
    monkeypatch.setattr("lora_lab.finetune.load_tokenizer", lambda: tokenizer)
    return folder / "sweep.json"


def stop_after(runs, monkeypatch):
    """Let the process be stopped once so many runs are on the disk."""
    store = results._store

    def stopping(path, result):
        store(path, result)
        if len(result["runs"]) == runs:
            raise KeyboardInterrupt

    monkeypatch.setattr(results, "_store", stopping)
    return lambda: monkeypatch.setattr(results, "_store", store)


def test_a_sweep_that_is_stopped_goes_on_after_the_last_run_stored(stored, monkeypatch):
    go_on = stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        experiments.run_rank_sweep("sweep", "a command", **SMALL)
    first = json.loads(stored.read_text(encoding="utf-8"))
    go_on()
    experiments.run_rank_sweep("sweep", "a command", **SMALL)
    result = experiments.load_result("sweep")
    assert result["runs"][:2] == first["runs"]
    assert len(result["runs"]) == 4
    assert result["provenance"]["command"] == "a command"


def test_the_command_stores_a_sweep_as_it_always_was(stored, capsys):
    options = ["--ranks", "2", "1", "--seeds", "0", "--examples", "8", "--test", "1"]
    assert main(["experiment", "rank-sweep", "--name", "sweep", *options]) == 0
    assert capsys.readouterr().out == f"{stored}\n"
    mine, old = (experiments.load_result("sweep"), json.loads(RANK_SWEEP.read_text(encoding="utf-8")))
    assert [(run["rank"], run["seed"]) for run in mine["runs"]] == [(1, 0), (2, 0)]
    assert list(mine["provenance"]) == list(old["provenance"])
    assert list(mine["provenance"]["options"]) == list(old["provenance"]["options"])
    assert [list(run) for run in mine["runs"]] == [list(old["runs"][0])] * 2
    assert mine["provenance"]["command"] == f"lora-lab experiment rank-sweep --name sweep {' '.join(options)}"


@dataclass
class Toy:
    """A small experiment, and what was asked of it."""

    measured: list[dict] = field(default_factory=list)
    prepared: int = 0

    @property
    def experiment(self) -> Experiment:
        return Experiment(
            name="toy",
            purpose="how long a toy is",
            options={
                "sizes": Option((1, 2), "sizes to try"),
                "seeds": Option((0, 1), "one run each"),
                "rate": Option(0.5, "% of it"),
                "rough": Option(False, "do not look closely"),
            },
            plan=lambda o: [{"size": size, "seed": seed} for size in o["sizes"] for seed in o["seeds"]],
            prepare=self.prepare,
            measure=self.measure,
        )

    def prepare(self, options):
        self.prepared += 1
        return 10

    def measure(self, materials, options, settings, progress):
        self.measured.append(settings)
        return {"length": materials * options["rate"] * settings["size"]}


@pytest.fixture
def toy():
    return Toy()


class TestPerform:
    def test_every_run_of_the_plan_is_measured_with_what_was_prepared_once(self, toy):
        runs = perform(toy.experiment, {"rate": 2, "seeds": (3,)})
        assert runs == [{"size": 1, "seed": 3, "length": 20}, {"size": 2, "seed": 3, "length": 40}]
        assert toy.prepared == 1

    def test_runs_that_are_done_are_kept_and_nothing_is_prepared_for_them(self, toy):
        done = json.loads(json.dumps(perform(toy.experiment)))
        again = Toy()
        assert perform(again.experiment, done=done[::-1]) == done
        assert (again.measured, again.prepared) == ([], 0)
        perform(again.experiment, done=[done[2]])
        assert again.measured == [{"size": 1, "seed": 0}, {"size": 1, "seed": 1}, {"size": 2, "seed": 1}]

    def test_each_run_is_reported_as_soon_as_it_is_measured(self, toy):
        seen = []
        perform(toy.experiment, report=lambda run: seen.append((run["size"], run["seed"], len(toy.measured))))
        assert seen == [(1, 0, 1), (1, 1, 2), (2, 0, 3), (2, 1, 4)]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"size": (1,)}, "size: toy has no such option; it takes sizes, seeds, rate, rough"),
            ({"sizes": 1}, r"sizes: got 1, takes a value like \(1, 2\)"),
            ({"sizes": ()}, r"sizes: got \(\), takes"),
            ({"sizes": (1, 2.5)}, r"sizes: got \(1, 2.5\), takes"),
            ({"rate": "0.5"}, "rate: got '0.5', takes a value like 0.5"),
            ({"rate": True}, "rate: got True, takes"),
            ({"rough": 1}, "rough: got 1, takes a value like False"),
            ({"seeds": (0, 0)}, "toy: its options ask for the run {'size': 1, 'seed': 0} twice"),
        ],
    )
    def test_options_that_make_no_experiment_are_refused(self, wrong, message, toy):
        with pytest.raises(ValueError, match=message):
            perform(toy.experiment, wrong)
        assert toy.measured == []

    def test_runs_that_cannot_be_told_apart_are_refused(self, toy):
        plan = [{"method": "lora"}, {"method": "lora", "rank": 1}]
        with pytest.raises(ValueError, match="twice, or for one like it"):
            perform(replace(toy.experiment, plan=lambda _: plan))

    def test_a_figure_with_the_name_of_a_setting_is_refused(self, toy):
        with pytest.raises(ValueError, match="toy: size is a setting and a figure of one run"):
            perform(replace(toy.experiment, measure=lambda *_: {"size": 3}))

    def test_a_run_of_another_plan_is_refused(self, toy):
        with pytest.raises(ValueError, match=r"done: {'size': 9, 'seed': 0} is no run of this plan"):
            perform(toy.experiment, done=[{"size": 9, "seed": 0}])

    def test_a_bar_counts_the_runs(self, toy, monkeypatch):
        bars = []

        class Bar(Progress):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                self.seen = []
                bars.append((arguments, options, self.seen))

            def advance(self, steps=1, note=""):
                self.seen.append((steps, note))

        monkeypatch.setattr("lora_lab.finetune.progress.Progress", Bar)
        perform(toy.experiment, {"sizes": (1,)}, done=[{"size": 1, "seed": 0}], progress=False)
        assert bars == [((2, "toy"), {"shown": False}, [(1, ""), (1, "size 1, seed 1")])]


class TestStored:
    def test_a_result_has_its_origin_all_options_and_the_runs(self, toy, folder):
        path = run_experiment(toy.experiment, "mine", "lora-lab experiment toy", sizes=[2])
        assert path == folder / "mine.json"
        result = experiments.load_result("mine")
        assert result["runs"] == [{"size": 2, "seed": seed, "length": 10.0} for seed in (0, 1)]
        origin = result["provenance"]
        assert origin["options"] == {"sizes": [2], "seeds": [0, 1], "rate": 0.5, "rough": False}
        assert origin["command"] == "lora-lab experiment toy"
        assert origin["dtype"] == "float32"
        assert origin["torch"] == torch.__version__
        assert {"device", "python", "transformers", "lora-lab", "date"} <= origin.keys()

    @pytest.mark.parametrize("runs", [1, 2, 3, 4])
    def test_stopped_anywhere_it_ends_as_if_it_had_not_been(self, runs, toy, folder, monkeypatch):
        run_experiment(toy.experiment, "whole", "a command")
        go_on = stop_after(runs, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(toy.experiment, "stopped", "a command")
        assert len(json.loads((folder / "stopped.json").read_text())["runs"]) == runs
        go_on()
        toy.measured.clear()
        run_experiment(toy.experiment, "stopped", "a command")
        assert len(toy.measured) == 4 - runs
        assert (folder / "stopped.json").read_bytes() == (folder / "whole.json").read_bytes()

    def test_settings_that_json_writes_otherwise_are_found_again(self, toy, folder):
        experiment = replace(toy.experiment, plan=lambda _: [{"size": 1, "layers": (0, n)} for n in (1, 2)])
        for _ in range(2):
            run_experiment(experiment, "mine", "a command")
        assert toy.measured == [{"size": 1, "layers": [0, 1]}, {"size": 1, "layers": [0, 2]}]

    @pytest.mark.parametrize(
        ("change", "what"),
        [({"rate": 0.25}, "options"), ({"sizes": (1, 2, 3)}, "options"), ({}, "dtype"), ({}, "torch")],
    )
    def test_a_result_measured_otherwise_is_refused_and_kept(self, change, what, toy, folder, monkeypatch):
        path = run_experiment(toy.experiment, "mine", "a command")
        kept, experiment = path.read_bytes(), toy.experiment
        if what == "dtype":
            experiment = replace(experiment, conditions=lambda _: {"device": "cpu", "dtype": "torch.bfloat16"})
        if what == "torch":
            monkeypatch.setattr(results, "version", lambda _: "0.0")
        with pytest.raises(ValueError, match=rf"mine\.json was measured with other {what}: .*move it away"):
            run_experiment(experiment, "mine", "a command", **change)
        assert path.read_bytes() == kept


class TestCommand:
    @pytest.fixture(autouse=True)
    def listed(self, toy, folder, monkeypatch):
        monkeypatch.setattr(experiments, "EXPERIMENTS", {"toy": toy.experiment})

    def test_its_options_are_those_of_the_experiment(self, toy, folder, capsys):
        options = ["--sizes", "3", "4", "--rate", "0.1", "--rough", "--seeds", "7"]
        assert main(["experiment", "toy", "--name", "mine", *options]) == 0
        assert capsys.readouterr().out == f"{folder / 'mine.json'}\n"
        origin = experiments.load_result("mine")["provenance"]
        assert origin["options"] == {"sizes": [3, 4], "seeds": [7], "rate": 0.1, "rough": True}
        assert origin["command"] == f"lora-lab experiment toy --name mine {' '.join(options)}"

    def test_by_default_it_is_stored_under_its_own_name(self, folder):
        assert main(["experiment", "toy"]) == 0
        assert len(experiments.load_result("toy")["runs"]) == 4

    def test_the_help_pages_name_the_experiments_their_options_and_defaults(self, capsys):
        for arguments in (["--help"], ["toy", "--help"]):
            with pytest.raises(SystemExit, match="0"):
                main(["experiment", *arguments])
        out = " ".join(capsys.readouterr().out.split())
        assert all(words in out for words in ("how long a toy is", "sizes to try (1 2)", "% of it (0.5)", "--no-rough"))

    @pytest.mark.parametrize("wrong", [[], ["dance"], ["toy", "--rate", "fast"], ["toy", "--sizes"]])
    def test_wrong_usage_ends_in_2(self, wrong, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["experiment", *wrong])
        assert "usage: lora-lab experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "one"), [("rival-costs", "--batches BATCH [BATCH ...]"), ("update-rank", "--ranks RANK [RANK ...]")]
)
def test_a_help_page_names_one_of_several_in_english(name, one, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["experiment", name, "--help"])
    assert one in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_experiment_has_a_plan_with_seeds_and_says_what_it_measures(experiment):
    options = experiment.chosen({})
    plan = experiment.plan(options)
    assert plan == json.loads(json.dumps(plan))
    assert all("seed" in settings for settings in plan)
    assert experiment.purpose.isascii()
    assert all(option.help for option in experiment.options.values())
    assert EXPERIMENTS[experiment.name] is experiment


def test_an_unknown_result_lists_those_there_are(toy, folder):
    run_experiment(toy.experiment, "sweep", "a command")
    with pytest.raises(FileNotFoundError, match=r"no stored result 'sweeep'.*there are: sweep"):
        experiments.load_result("sweeep")


def test_the_mean_score_averages_the_seeds_of_one_rank():
    runs = [{"rank": rank, "correct": {"a": right}, "test": 8} for rank, right in ((1, 2), (1, 4), (8, 8))]
    assert experiments.mean_score(runs, 1, "a") == 3 / 8
    with pytest.raises(ValueError, match=r"no run has rank 2; there are \[1, 8\]"):
        experiments.mean_score(runs, 2, "a")


RESULTS = sorted(experiments.results_folder().glob("*.json"))
RANK_SWEEP = experiments.results_folder() / "rank-sweep-cpu.json"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_stored_result_says_where_it_comes_from(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"command", "device", "python", "torch", "lora-lab", "date"} <= result["provenance"].keys()
    assert result["provenance"]["command"].startswith("lora-lab ")
    assert result["runs"]
    assert f"## results/{path.name}" in (path.parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_stored_rank_sweep_is_whole_and_says_how_it_was_trained():
    result = json.loads(RANK_SWEEP.read_text(encoding="utf-8"))
    assert {"options", "attention", "dtype", "transformers"} <= result["provenance"].keys()
    options = result["provenance"]["options"]
    wanted = {(rank, seed) for rank in options["ranks"] for seed in options["seeds"]}
    assert {(run["rank"], run["seed"]) for run in result["runs"]} == wanted
