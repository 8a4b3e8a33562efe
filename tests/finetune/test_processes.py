"""Several processes train one model as one process does: same weights, one voice, and a clear end when one is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_lab.finetune import Settings, processes, train
from lora_lab.finetune.encoding import Encoded
from lora_lab.finetune.loss import AnswerScore
from lora_lab.finetune.text_to_sql import TextToSQL
from tests.finetune.conftest import tiny_lora, tiny_model

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_MACHINE = [*TORCHRUN, "--standalone", "--nproc_per_node=2"]
TIMEOUT = 240

# What each process does in the tests of the library: a file, for torchrun starts files. It gets the folder for results.
WORKER = """
import sys
from pathlib import Path

import torch

from lora_lab.finetune import processes
from tests.finetune import test_processes

torch.set_num_threads(1)
with processes.joined():
    test_processes.{function}(Path(sys.argv[1]))
"""


def in_two_processes(function, folder, *, ok=True):
    """Carry out a function of this module in two processes, and give what they printed."""
    script = folder / "worker.py"
    script.write_text(WORKER.format(function=function.__name__), encoding="utf-8")
    done = started([*ONE_MACHINE, str(script), str(folder)])
    output = done.communicate(timeout=TIMEOUT)[0]
    assert (done.returncode == 0) is ok, output
    return output


def started(command, **environment):
    """Start a command from the root of the repository, one thread a process, with its errors among its output."""
    root = Path(__file__).parents[2]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment}
    return subprocess.Popen(
        command, cwd=root, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def examples(count=22, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in torch.randint(4, 40, (count,), generator=generator).tolist():
        tokens = torch.randint(3, 200, (length,), generator=generator).tolist()
        made.append(Encoded((*tokens, *tokens[:3]), answer_start=length))
    return made


def trained(**changes):
    """Train in float64, where rounding is far below what a wrong sum would show, with a last batch of one example."""
    model = tiny_lora().double()
    settings = Settings(**{"epochs": 2, "batch_size": 7, "learning_rate": 1e-2, "validate_every": 3, **changes})
    history = train(model, examples(), settings, validation=examples(5, seed=1), progress=False)
    return model, history


def facts(model, history):
    return {"weights": model.state_dict(), "history": {**vars(history), "seconds": None}}


def save_facts(folder, **changes):
    torch.save(facts(*trained(**changes)), folder / f"{processes.rank()}.pt")


def plain(folder):
    save_facts(folder)


def with_everything(folder):
    save_facts(folder, micro_batch_size=2, group_by_length=True, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("function", "changes"),
    [(plain, {}), (with_everything, {"micro_batch_size": 2, "group_by_length": True, "gradient_checkpointing": True})],
)
def test_two_processes_end_at_the_weights_of_one(tmp_path, function, changes):
    in_two_processes(function, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = facts(*trained(**changes))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(first["history"], alone["history"], rtol=1e-6, atol=1e-9)


def with_dropout(folder):
    model, seeds = tiny_lora(dropout=0.5), []
    model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()) if model.training else None)
    model.get_decoder().register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    train(model, examples(), Settings(batch_size=8, learning_rate=1e-2), progress=False)
    torch.save({"weights": model.state_dict(), "seeds": seeds}, folder / f"{processes.rank()}.pt")


def test_processes_draw_dropout_masks_of_their_own_and_still_agree(tmp_path):
    in_two_processes(with_dropout, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    steps = [(one, other) for one, other in zip(first["seeds"][-3:], second["seeds"][-3:], strict=True)]
    assert all(one != other for one, other in steps)
    assert len({seed for pair in steps for seed in pair}) == 6


def messages(folder):
    mine = list(processes.share(range(5)))
    facts = {
        "share": mine,
        "collected": processes.collected(mine),
        "nobody": processes.collected([]),
        "from first": processes.from_first({"rank": processes.rank()}),
        "count": processes.count(),
    }
    numbers = [torch.full((2, 1), 1.0 + processes.rank()), torch.tensor(0.5, dtype=torch.bfloat16)]
    processes.add_up(numbers)
    facts["sums"] = [number.tolist() for number in numbers]
    facts["types"] = [str(number.dtype) for number in numbers]
    order = folder / "order"
    with processes.first_here_first():
        time.sleep(0.5 * (1 - processes.rank()))
        with order.open("a") as file:
            file.write(f"{processes.rank()}\n")
    (folder / f"{processes.rank()}.json").write_text(json.dumps(facts))


def test_what_processes_tell_each_other(tmp_path):
    in_two_processes(messages, tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one.pop("share") for one in told] == [[0, 2, 4], [1, 3]]
    assert told[0] == told[1]
    assert told[0] == {
        "collected": [0, 1, 2, 3, 4],
        "nobody": [],
        "from first": {"rank": 0},
        "count": 2,
        "sums": [[[3.0], [3.0]], 1.0],
        "types": ["torch.float32", "torch.bfloat16"],
    }
    assert (tmp_path / "order").read_text().split() == ["0", "1"]


def other_data(folder):
    train(tiny_lora(), examples(seed=processes.rank()), Settings(batch_size=4), progress=False)


def other_weights(folder):
    model = tiny_lora()
    model.lm_head.weight.data += processes.rank()
    train(model, examples(), Settings(batch_size=4), progress=False)


def too_few(folder):
    train(tiny_lora(), examples(), Settings(batch_size=1), progress=False)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (other_data, "process 1 differs from process 0 in examples"),
        (other_weights, "process 1 differs from process 0 in frozen weights"),
        (too_few, "batch_size: got 1, takes at least one example for each of the 2 processes"),
    ],
)
def test_processes_that_cannot_train_together_say_why(tmp_path, function, message):
    output = in_two_processes(function, tmp_path, ok=False)
    assert output.count(f"ValueError: {message}") + output.count(f"ValueError: this run: {message}") == 1


def test_without_torchrun_nothing_changes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.joined():
        assert processes.count() == 1
        assert processes.is_first()
        assert processes.share([1, 2, 3]) == [1, 2, 3]
        assert processes.collected([1, 2]) == [1, 2]
        assert processes.from_first("x") == "x"
        processes.check_same({"a": 1}, "this")
        number = torch.ones(2)
        processes.add_up([number])
        assert number.tolist() == [1, 1]
        with processes.first_here_first():
            pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match=r"there are 2 GPUs for 4 processes .* lower --nproc_per_node"),
        processes.joined(),
    ):
        pass


def test_scores_of_parts_make_the_score_of_the_whole():
    one, other = AnswerScore(1.0, 3, 4), AnswerScore(2.0, 1, 12)
    assert AnswerScore.combined([one, other]) == AnswerScore(1.75, 4, 16)
    assert AnswerScore.combined([one]) == one


# The command


@pytest.fixture
def job(tmp_path, tokenizer):
    """Give the options of a job on a tiny model, without those of the output."""
    folder, data = tmp_path / "model", tmp_path / "mine.jsonl"
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    letters = "abcdefghijklmnopqrst"
    lines = [
        json.dumps({"prompt": f"Say {letter}" * (1 + i % 3), "completion": letter}) for i, letter in enumerate(letters)
    ]
    data.write_text("\n".join(lines), encoding="utf-8")
    options = {
        "data": data, "model": folder, "device": "cpu", "dtype": "float32", "rank": 2, "epochs": 4, "batch-size": 4,
        "validation": 4, "test": 4, "samples": 1, "learning-rate": 0.01,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_command_under_torchrun_does_what_it_does_alone(tmp_path, job):
    command = ["-m", "lora_lab.finetune", *job]
    alone, together = (
        started([*launcher, *command, "--output", str(tmp_path / name)])
        for launcher, name in (([sys.executable], "one"), (ONE_MACHINE, "two"))
    )
    said, said_together = alone.communicate(timeout=TIMEOUT)[0], together.communicate(timeout=TIMEOUT)[0]
    assert alone.returncode == 0, said
    assert together.returncode == 0, said_together
    one, two = tmp_path / "one", tmp_path / "two"
    torch.testing.assert_close(adapter(one), adapter(two), rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    measured, measured_together = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert measured_together["ran on"]["processes"] == 2
    assert measured["ran on"]["processes"] == 1
    for name in ("before", "after"):
        assert measured_together["scores"][name] == pytest.approx(measured["scores"][name], rel=1e-4)
    assert len((two / "samples.jsonl").read_text().splitlines()) == len(
        (one / "samples.jsonl").read_text().splitlines()
    )
    assert said_together.count("parameters trained") == 1
    assert said_together.count("20 examples, read through the model's chat template") == 1


def test_text_to_sql_under_torchrun_asks_every_question_once(tmp_path, tokenizer):
    folder, output = tmp_path / "model", tmp_path / "run"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {
        "model": folder, "device": "cpu", "dtype": "float32", "examples": 8, "validation": 3, "test": 3, "shots": 1,
        "batch-size": 4, "output": output,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run = started([*ONE_MACHINE, "-m", "lora_lab.finetune", *words])
    said = run.communicate(timeout=TIMEOUT)[0]
    assert run.returncode == 0, said
    scores = json.loads((output / "metrics.json").read_text())["scores"]
    assert {score["total"] for splits in scores.values() for score in splits.values()} == {3}
    asked = sorted(example.kind for example in TextToSQL(seed=0).test("schemas", 3))
    assert sorted(scores["after LoRA"]["schemas"]["by kind"]) == asked


def test_an_error_is_said_once(tmp_path, job):
    job[job.index("--rank") + 1] = "0"
    run = started([*ONE_MACHINE, "-m", "lora_lab.finetune", *job, "--output", str(tmp_path / "run")])
    said = run.communicate(timeout=TIMEOUT)[0]
    assert run.returncode != 0
    assert said.count("lora-lab: rank must be at least 1, got 0") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_worker_ends_the_run_and_a_resume_ends_at_the_weights_of_an_unbroken_one(tmp_path, job, lost):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job += ["--epochs", "40"]
    command = [*ONE_MACHINE, "-m", "lora_lab.finetune", *job]
    run = started([*command, "--output", str(broken)])
    until(lambda: (broken / "checkpoint.safetensors").exists(), run)
    os.kill(worker(run.pid, lost), signal.SIGKILL)
    said = run.communicate(timeout=TIMEOUT)[0]
    assert run.returncode != 0
    assert not (broken / "metrics.json").exists()
    assert re.search(rf"local_rank: {lost}\b", said)  # torchrun's own report names the one that was lost
    assert len(re.findall(r"lora-lab: step \d+ of 160: .*(?:another process|SIGTERM)", said)) == 1
    assert "checkpoint in" in said
    assert "goes on from there" in said
    for folder in (broken, whole):
        run = started([*command, "--output", str(folder)])
        said = run.communicate(timeout=TIMEOUT)[0]
        assert run.returncode == 0, said
    torch.testing.assert_close(adapter(broken), adapter(whole), rtol=0, atol=0)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, job):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    command = ["-m", "lora_lab.finetune", *job, "--epochs", "40"]
    first = started([*ONE_MACHINE, *command, "--output", str(run)])
    until(lambda: (run / "checkpoint.safetensors").exists(), first)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=TIMEOUT)[0]
    assert not (run / "metrics.json").exists(), said
    for folder in (run, unbroken):
        alone = started([sys.executable, *command, "--output", str(folder)])
        said = alone.communicate(timeout=TIMEOUT)[0]
        assert alone.returncode == 0, said
    torch.testing.assert_close(adapter(run), adapter(unbroken), rtol=0.05, atol=1e-3)


def test_two_machines_meet(tmp_path, job):
    endpoint = f"localhost:{free_port()}"
    rendezvous = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}"]
    machines = [
        started([*TORCHRUN, *rendezvous, "-m", "lora_lab.finetune", *job, "--output", str(tmp_path / f"machine-{i}")])
        for i in range(2)
    ]
    said = [machine.communicate(timeout=TIMEOUT)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    written = [tmp_path / f"machine-{i}" for i in range(2) if (tmp_path / f"machine-{i}" / "metrics.json").exists()]
    assert len(written) == 1  # the first process writes, on its machine
    assert json.loads((written[0] / "metrics.json").read_text())["ran on"]["processes"] == 2


def until(true, run):
    """Wait until something is true, while a run goes on."""
    ends = time.monotonic() + TIMEOUT
    while not true():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.02)


def worker(launcher, rank):
    """Give the process id of one of the processes that a launcher started."""
    import psutil

    for process in psutil.Process(launcher).children(recursive=True):
        if process.environ().get("LOCAL_RANK") == str(rank):
            return process.pid
    raise AssertionError(f"no process {rank}")


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
