"""The benchmark of a step: what it makes of times that are made up, and one turn of each way on a tiny model."""

import json

import pytest
import torch

from lora_lab.course import step_benchmark
from lora_lab.course.step_benchmark import FULL, LOOP, OURS, PIECES, TRAINER, WAYS, Plan, bench_step, measure
from lora_lab.finetune import Encoded, TextToSQL, collate, encode, load_model, load_tokenizer, train, training
from lora_lab.lora import LoRAConfig, attach
from lora_lab.lora.layers import LoRALinear
from tests.finetune.conftest import tiny_model
from tests.finetune.conftest import tokenizer as tokenizer


@pytest.fixture(scope="module")
def plan(tokenizer, tmp_path_factory):
    """Give a plan with a tiny model in a folder, which reads a prompt byte by byte."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Plan(str(folder), "folder", "float32", rank=2, batch=2, steps=4, warm_up=1, rate=1e-2, threads=1)


@pytest.fixture(autouse=True)
def _threads():
    """Leave the threads of the other tests alone: a turn has a process of its own, but here."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def turn(way, round_, seconds, memory=300, loss=0.5):
    """Give a made-up turn of three steps with 10, 20 and 30 tokens."""
    fixed = {"tokens": [10, 20, 30], "loss": loss, "flops": 100, "products": 1000.0, "dtype": "float32"}
    return {"way": way, "round": round_, "seconds": seconds, "memory": memory, **fixed}


RUNS = [
    turn(TRAINER, 0, [1.0, 2.0, 3.0], memory=300_000_000),  # 10 tokens a second
    turn(OURS, 0, [0.5, 1.0, 1.5], memory=150_000_000),  # 20
    turn(OURS, 1, [1.0, 0.5, 1.0], memory=150_000_000),  # 24
    turn(TRAINER, 1, [1.0, 2.0, 1.0], memory=300_000_000),  # 15
    turn(OURS, 2, [2.0, 2.0, 2.0], memory=150_000_000),  # 10
    turn(TRAINER, 2, [4.0, 4.0, 4.0], memory=300_000_000),  # 5
]


def test_speeds_are_compared_within_a_round():
    assert step_benchmark.tokens_per_second(RUNS[2]) == 24
    assert step_benchmark.ratios(RUNS, OURS, TRAINER) == pytest.approx([2.0, 1.6, 2.0])
    assert step_benchmark.ratios(RUNS, TRAINER, OURS) == pytest.approx([0.5, 0.625, 0.5])
    with pytest.raises(ValueError, match="way: got 'full fine-tuning', which did not run; there are lora-lab, PEFT"):
        step_benchmark.ratios(RUNS, OURS, FULL)


def test_the_verdict_names_the_median_the_range_and_the_memory():
    assert step_benchmark.verdict(RUNS) == (
        "against PEFT, Trainer: 2.00 times the tokens a second (1.60 to 2.00 in 3 rounds), "
        "0.50 of the memory above the weights"
    )


def test_the_table_has_medians_and_the_share_of_the_products():
    head, ours, trainer = step_benchmark.table(RUNS).splitlines()
    assert head.split() == ["tokens/s", "of", "products", "memory", "held-out", "loss"]
    assert ours.split() == ["lora-lab", "20", "10.0%", "150", "MB", "0.500"]  # 3 · 100 operations in 3 s, of 1,000 a s
    assert trainer.split() == ["PEFT,", "Trainer", "10", "5.0%", "300", "MB", "0.500"]


def test_the_figure_draws_every_turn_and_the_memory():
    fig = step_benchmark.step_bench_figure(RUNS)
    left, right = fig.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [OURS, TRAINER]
    drawn = [list(line.get_xdata()) for line in left.lines]
    assert drawn == [[20, 24, 10], [20], [10, 15, 5], [10]]
    assert [bar.get_width() for bar in right.patches] == [150, 300]
    with pytest.raises(ValueError, match="runs must hold a run at least"):
        step_benchmark.step_bench_figure([])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_on_the_same_tokens(way, plan):
    pytest.importorskip("peft")
    run = measure(way, plan)
    task, tokenizer = TextToSQL(seed=0), load_tokenizer(plan.model, source="folder")
    examples = [encode(tokenizer, task.messages(one), one.query) for one in task.train(8)]
    model = attach(load_model(plan.model, source="folder", device="cpu"), LoRAConfig(rank=2, targets=("q_proj",)))
    history = train(model, examples, step_benchmark._settings(plan, way), progress=False)
    assert run["tokens"] == history.tokens[1:]
    assert len(run["seconds"]) == 3
    assert min(run["seconds"]) > 0
    assert (run["dtype"], run["threads"], run["way"]) == ("float32", 1, way)
    assert run["first"] > 0
    assert run["products"] > 1e6
    assert json.loads(json.dumps(run)) == run


@pytest.fixture
def _changed_for_a_while(monkeypatch):
    """Put back after the test what a piece changes for good in the process of its turn."""
    for place, name in (
        (training, "answer_loss"),
        (training, "keep_less"),
        (LoRALinear, "path"),
        (torch.optim, "AdamW"),
        (training._Run, "look_ahead"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))


@pytest.mark.usefixtures("_changed_for_a_while")
@pytest.mark.parametrize("name", [name for name in PIECES if name != "blocks compiled"])  # it takes a minute
def test_a_piece_changes_nothing_that_is_learned(name, plan):
    ours, changed = measure(OURS, plan), measure(name, plan)
    assert (
        sorted(changed["tokens"]) != ours["tokens"]
        if name == "grouped by length"
        else changed["tokens"] == ours["tokens"]
    )
    still = measure(OURS, Plan(**{**vars(plan), "rate": 1e-9}))["loss"]
    tolerance = 0.5 if name == "grouped by length" else 2e-2  # losses are told to four digits
    assert still - changed["loss"] == pytest.approx(still - ours["loss"], rel=tolerance)
    assert still - ours["loss"] > 0.01


@pytest.mark.usefixtures("_changed_for_a_while")
def test_a_piece_takes_out_what_it_says(plan):
    model = load_model(plan.model, source="folder", device="cpu")
    attach(model, LoRAConfig(rank=2, targets=("q_proj",)))
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    batch = collate([Encoded((5, 6, 7, 8), 2), Encoded((9, 10), 1)])
    losses = []
    for name in (None, "all logits at once", "head at every position"):
        if name:
            PIECES[name].change(model)
        losses.append(training.answer_loss(model, batch).item())
    assert rows == [3, 3, 8]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

    PIECES["input copied to float32"].change(model)
    layer = attach(
        torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16)), LoRAConfig(2, targets="all-linear")
    )
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(7, 4, dtype=torch.bfloat16))
    assert (torch.float32, 28) in {(tensor.dtype, tensor.numel()) for tensor in kept}

    assert not model.get_input_embeddings()(batch.input_ids).requires_grad
    PIECES["gradient to the embedding"].change(model)
    assert model.get_input_embeddings()(batch.input_ids).requires_grad

    with training.keep_less(model) as count:
        assert count == sum(1 for name, _ in model.named_modules() if name.endswith(("norm", "mlp")))
    PIECES["norms and gates kept whole"].change(model)
    with training.keep_less(model) as count:
        assert count == 0

    PIECES["AdamW one by one"].change(model)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    (group,) = torch.optim.AdamW(factors, fused=True).param_groups
    assert (group["foreach"], group["fused"]) == (False, None)


def test_the_three_loras_learn_as_much(plan):
    """They have the same numbers of AdamW, the same order and the same start but for what is drawn in A."""
    pytest.importorskip("peft")
    still = measure(OURS, Plan(**{**vars(plan), "rate": 1e-9}))["loss"]
    learned = {way: still - measure(way, plan)["loss"] for way in (OURS, TRAINER, LOOP)}
    assert min(learned.values()) > 0
    assert max(learned.values()) < 1.6 * min(learned.values()), learned


def test_memory_is_measured_alone(plan):
    run = measure(OURS, plan, memory=True)
    assert set(run) == {"way", "device", "dtype", "threads", "memory"}
    assert run["memory"] >= 0


def test_the_ways_take_turns_and_are_stored(monkeypatch, tmp_path):
    asked = []

    def in_process(way, plan, *, memory=False):
        asked.append((way, memory))
        if memory:
            return {"memory": 7}
        timed = {**turn(way, None, [1.0, 1.0, 1.0]), "device": "cpu", "threads": 1}
        del timed["memory"]
        return timed

    (tmp_path / "results").mkdir()
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(step_benchmark, "_in_process", in_process)
    monkeypatch.setattr(step_benchmark, "_flops", lambda way, plan, tokens: 100)
    monkeypatch.setattr(step_benchmark, "results_folder", lambda: tmp_path / "results")
    runs = bench_step("the command", rounds=2, ways=(OURS, FULL), output="mine")
    assert asked == [(OURS, False), (FULL, False), (FULL, False), (OURS, False), (OURS, True), (FULL, True)]
    assert [(run["way"], run["round"], run["memory"]) for run in runs[:3]] == [(OURS, 0, 7), (FULL, 0, 7), (FULL, 1, 7)]
    stored = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert stored["provenance"]["command"] == "the command"
    assert stored["provenance"]["plan"]["batch"] == 8
    assert len(stored["runs"]) == 4
    assert (tmp_path / "figures" / "mine.png").stat().st_size > 1000


def test_memory_that_a_gpu_counts_in_every_turn_needs_no_turn_of_its_own(monkeypatch):
    asked = []

    def in_process(way, plan, *, memory=False):
        asked.append((way, memory))
        return turn(way, None, [1.0, 1.0, 1.0], memory=len(asked))

    monkeypatch.setattr(step_benchmark, "_in_process", in_process)
    monkeypatch.setattr(step_benchmark, "_flops", lambda way, plan, tokens: 100)
    runs = bench_step("", rounds=2, ways=(OURS, FULL))
    assert asked == [(OURS, False), (FULL, False), (FULL, False), (OURS, False)]
    assert [run["memory"] for run in runs] == [1, 2, 3, 4]


def test_a_turn_that_fails_is_an_error(plan):
    with pytest.raises(ChildProcessError, match="the turn of 'lora-lab' ended with status 1"):
        bench_step("", rounds=1, plan=Plan(**{**vars(plan), "model": "nowhere"}), ways=(OURS,))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rounds": 0}, "a round at least"),
        ({"ways": ()}, "a round at least"),
        ({"ways": ("theirs",)}, "got .'theirs'."),
        ({"plan": Plan(steps=2)}, "got 2 of 2 steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        bench_step("", **options)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="way: got 'theirs', takes one of lora-lab, PEFT"):
        measure("theirs", Plan())


def test_products_are_counted(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(step_benchmark.time, "perf_counter", lambda: float(next(ticks)))
    assert step_benchmark.products_per_second(torch.device("cpu"), torch.float32, side=8, repeats=2) == 2 * 8**3
