"""One option for each field of the two jobs, on the command line or in a file; what a job does not have is refused."""

import argparse
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from lora_lab.finetune import job, job_options, own_data


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    job_options.add_arguments(parser)
    return parser.parse_args(words)


def chosen(*words: str):
    return job_options.chosen(options(*words))


def toml(folder, text: str) -> str:
    path = folder / "job.toml"
    path.write_bytes(text.encode())
    return str(path)


def test_without_data_it_is_the_text_to_sql_task_with_its_defaults():
    assert chosen() == (job, job.Job())
    words = ["--rank", "4", "--targets", "q_proj", "k_proj", "--no-baselines", "--alpha", "2.5", "--device", "cpu"]
    expected = job.Job(rank=4, targets=("q_proj", "k_proj"), baselines=False, alpha=2.5, device="cpu")
    assert chosen(*words) == (job, expected)


def test_with_data_it_is_your_own_data_with_its_defaults():
    assert chosen("--data", "a.csv") == (own_data, own_data.Job(data=Path("a.csv")))
    words = "--validation 0.25 --patience 3 --ranks q_proj=4 mlp.down_proj=2 --validation-data b.jsonl --alpha 3"
    expected = own_data.Job(
        data=Path("a.csv"), validation=0.25, patience=3, ranks=(("q_proj", 4), ("mlp.down_proj", 2)),
        validation_data=Path("b.jsonl"), alpha=3.0,
    )  # fmt: skip
    assert chosen("--data", "a.csv", *words.split()) == (own_data, expected)
    whole = chosen("--data", "a.csv", "--validation", "12")[1].validation
    assert (whole, type(whole)) == (12, int)


def test_every_field_is_an_option_and_the_help_says_what_the_docstring_says():
    parser = argparse.ArgumentParser()
    job_options.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for module in (job, own_data):
        for field in fields(module.Job):
            assert f"--{field.name.replace('_', '-')} " in text
    assert "rank of each update (8)" in text
    assert "AdamW's largest learning rate (0.001 for your own data, 0.004 for the text-to-SQL task)" in text


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--data", "a.csv", "--examples", "2"], "--examples is for the text-to-SQL task, and --data was given"),
        (["--data", "a.csv", "--no-baselines"], "--baselines is for the text-to-SQL task, and --data was given"),
        (["--patience", "2"], "--patience is for your own data, and no --data was given"),
        (["--validation", "0.1"], "validation: got 0.1, takes a whole number"),
        (["--data", "a.csv", "--ranks", "q_proj"], "ranks: got 'q_proj' for '', takes NAME=RANK"),
        (["--data", "a.csv", "--ranks", "q_proj=x"], "ranks: got 'x' for 'q_proj', takes NAME=RANK"),
    ],
)
def test_what_the_chosen_job_does_not_have_is_refused(words, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        chosen(*words)


def test_the_file_has_the_options_under_their_names_and_the_command_line_goes_before_it(tmp_path):
    file = toml(
        tmp_path,
        '\ufeffdata = "a.csv"\nlearning-rate = 1\nbatch_size = 2\nrank = 16\ntargets = "all-linear"\n'
        "validation = 0.5\n[ranks]\ndown_proj = 4\n",
    )
    expected = {"data": Path("a.csv"), "learning_rate": 1.0, "batch_size": 2, "validation": 0.5}
    assert chosen("--config", file)[1] == own_data.Job(**expected, rank=16, ranks=(("down_proj", 4),))
    job_ = chosen("--config", file, "--rank", "2", "--targets", "q_proj", "--validation", "3")[1]
    changed = {**expected, "validation": 3}
    assert job_ == own_data.Job(**changed, rank=2, targets=("q_proj",), ranks=(("down_proj", 4),))
    assert type(job_.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('data = "a.csv"\nlerning-rate = 1', "has 'lerning-rate', which is no option; did you mean 'learning-rate'?"),
        ('data = "a.csv"\nbatchsize = 1', "did you mean 'batch-size'?"),
        ("zzz = 1", "job.toml has 'zzz', which is no option; there are data, output, model"),
        ('data = "a.csv"\nbatch-size = 1\nbatch_size = 2', "has 'batch_size' twice, with a hyphen and"),
        ("rank = ", "--config: job.toml is not TOML"),
        ("rank = 2.5", "rank: got 2.5, takes a whole number"),
        ("rank = true", "rank: got True, takes a whole number"),
        ('rank = "8"', "rank: got '8', takes a whole number"),
        ("model = 3", "model: got 3, takes a text"),
        ("targets = [1]", "targets: got [1], takes names"),
        ("baselines = 1", "baselines: got 1, takes true or false"),
        ('dtype = "float8"', "dtype: got 'float8', takes one of float32, bfloat16"),
        ('data = "a.csv"\nranks = 3', "ranks: got 3, takes NAME=RANK, as q_proj=4, or in a file a table [ranks]"),
        ('data = "a.csv"\n[ranks]\nq_proj = "x"', "ranks: got 'x' for 'q_proj'"),
        ("examples = 1\ndata = 'a.csv'", "--examples is for the text-to-SQL task"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_job_is_refused(text, what, tmp_path):
    with pytest.raises(ValueError, match=re.escape(what)):
        chosen("--config", toml(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        chosen("--config", str(tmp_path / "absent.toml"))


def test_the_command_of_a_job_makes_the_same_job(tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    whole = own_data.Job(
        data=Path("my data.jsonl"), validation=0.25, targets=("q_proj", "v_proj"), ranks=(("q_proj", 4),), patience=2,
        learning_rate=5e-4, output=Path("out"), model="someone/model",
    )  # fmt: skip
    words = shlex.split(whole.command())
    assert words[:2] == ["lora-lab", "finetune"]
    assert chosen(*words[2:])[1] == whole


def test_the_command_of_a_job_gives_the_job_again():
    mine = own_data.Job(Path("a.csv"), ranks=(("q_proj", 4),), targets=("q_proj",), alpha=0.5, group_by_length=True)
    assert shlex.split(mine.command()).count("--group-by-length") == 1
    assert chosen(*shlex.split(mine.command())[2:]) == (own_data, mine)
    slow = own_data.Job(Path("a.csv"), cuda_graphs=False)
    assert chosen(*shlex.split(slow.command())[2:]) == (own_data, slow)
