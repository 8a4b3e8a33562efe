"""What README.md and data/README.md say can be done, can be done; what they point to is there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lora_lab.finetune
from lora_lab import assets
from lora_lab.course.benchmarks import TOLERANCE
from lora_lab.course.experiments import load_result
from lora_lab.course.notebooks import notebooks
from lora_lab.course.readme_figures import FIGURES, stored_figure
from lora_lab.course.step_benchmark import FULL, LOOP, OURS, TRAINER, WAYS, ratios, tokens_per_second

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA_README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


class Letters:
    """A tokenizer of 128 tokens, one a character."""

    eos_token_id = 0
    chat_template = None  # nothing ends an answer but the end-of-sequence token

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def encode(self, text, add_special_tokens):
        return list(text.encode("ascii"))


def tiny_model():
    """Give a Llama of two layers with random weights, the same ones every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128, tie_word_embeddings=True, **shape)).eval()
    model.name_or_path = "tiny"
    return model


def test_low_rank_example_finds_the_rank_and_stores_what_it_says():
    names = {}
    exec(BLOCKS[3], names)
    W, low = names["W"], names["low"]
    assert (names["rank"], low.size, W.size) == (5, 3_500, 120_000)
    assert "3,500 numbers instead of 120,000" in BLOCKS[3]
    np.testing.assert_allclose(names["lost"], np.linalg.norm(W - low.dense()) / np.linalg.norm(W))
    np.testing.assert_allclose(names["U"] * names["s"] @ names["Vt"], low.dense(), atol=1e-6)


def test_quickstart_trains_an_adapter_that_peft_loads(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lora_lab.finetune, "load_model", tiny_model)
    monkeypatch.setattr(lora_lab.finetune, "load_tokenizer", Letters)
    names = {}
    for block in BLOCKS[:3]:
        exec(block, names)
    assert len(BLOCKS) == 4
    assert sum(bool(line) for line in BLOCKS[0].splitlines()) == 9, "fewer than ten lines"
    assert sorted(path.name for path in Path("singer-adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert names["history"].losses[-1] < names["history"].losses[0]
    tokens = torch.tensor([names["examples"][0].tokens])
    with torch.no_grad():
        ours, theirs, untrained = (m(tokens).logits for m in (names["model"], names["tuned"], tiny_model()))
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(theirs, untrained)


def test_notebooks_of_the_readme_are_the_notebooks():
    assert re.findall(r"\]\(notebooks/(.+?\.ipynb)\)", README) == [path.name for path in notebooks()]


@pytest.mark.parametrize("text", [README, DATA_README], ids=["README", "data/README"])
def test_links_lead_to_files(text):
    for target in re.findall(r"\]\((?!http|#)(.+?)\)", text):
        assert (ROOT / target).is_file(), target


def test_every_stored_file_is_explained():
    stored = [p.relative_to(ROOT / "data").as_posix() for p in (ROOT / "data").rglob("*") if p.is_file()]
    explained = re.findall(r"^## (.+)$", DATA_README, re.M)
    assert sorted(explained) == sorted(name for name in stored if name != "README.md")


def test_figure_is_what_its_command_draws(tmp_path):
    (tmp_path / "data" / "figures").mkdir(parents=True)
    [command] = re.findall(r"^```\npython (.+)\n```", DATA_README, re.M)
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    new, stored = (matplotlib.image.imread(place / "data/figures/factorization.png") for place in (tmp_path, ROOT))
    assert new.shape == stored.shape
    assert np.abs(new - stored).mean() < 0.002, "letters may differ by a shade from machine to machine, the figure not"


@pytest.mark.parametrize("name", FIGURES)
def test_borrowed_figure_is_the_one_that_the_lesson_stores(name):
    assert f"](data/figures/{name})" in README
    assert (ROOT / "data" / "figures" / name).read_bytes() == stored_figure(*FIGURES[name])


def test_a_figure_that_no_lesson_stores_is_an_error():
    for place in (("03", "no-such-cell"), ("03", "imports"), ("03", "title")):
        with pytest.raises(ValueError, match="store its outputs first"):
            stored_figure(*place)
    with pytest.raises(FileNotFoundError, match="no notebook '77'"):
        stored_figure("77", "family-figure")


def test_before_and_after_are_what_lesson_09_stores():
    lesson = nbformat.read(next((ROOT / "notebooks").glob("09_*.ipynb")), as_version=4)
    said = {cell.id: "".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in lesson.cells}
    rows = re.findall(r"^\| (.*?) ?\| \*(before|after|after, and wrong):\* (.+) \|$", README, re.M)
    assert [when for _, when, _ in rows] == ["before", "after", "after", "after, and wrong"]
    question = rows[0][0]
    assert said["ask-before"].startswith(rows[0][2].removesuffix(" …"))
    for asked, when, answer in rows[1:]:
        verdict = "WRONG" if "wrong" in when else "right"
        assert f"{verdict} | {asked or question}\n      | {answer.strip('`')}\n" in said["answers"]
    assert "460,800 of 134,515,008 parameters: 0.34%" in said["attach"]
    assert "480 examples" in said["encode-all"]
    assert said["size"].startswith("1.9 MB")
    for text in ("480 examples", "460,800\ntrained parameters", "adapter of 1.9 MB", "0.34 % of its parameters"):
        assert text in README
    after = ast.literal_eval(said["evaluate-after"].splitlines()[-1])
    before = [ast.literal_eval(said[cell].splitlines()[-1]) for cell in ("evaluate-before", "evaluate-shots")]
    assert all(right.startswith("0 of ") for scores in before for right in scores.values()), "the figure's sentence"
    assert all(2 * int(right.split()[0]) > int(right.split()[2]) for right in after.values()), "the figure's sentence"


def test_minutes_are_those_that_the_lessons_say():
    rows = re.findall(r"\]\(notebooks/(\d\d)_\S+\) \| (\d+)(?: \+ (\d+))? \|", README)
    assert len(rows) == len(notebooks())
    for (number, minutes, more), path in zip(rows, notebooks(), strict=True):
        [time] = re.findall(r"\*\*Time:\*\* (.+)", nbformat.read(path, as_version=4).cells[0].source)
        found = re.match(r"(\d+) minutes(?:, and (\d+) more for the exercises)?", time)
        assert (number, minutes, more) == (path.name[:2], found[1], found[2] or "")


def test_figure_has_its_sentence_in_both_places():
    [sentence] = re.findall(r"!\[(.+?)\]\(data/figures/factorization.png\)", README)
    assert sentence.startswith("The 9 × 9 multiplication table, 81 numbers, is a 9 × 1 column times a 1 × 9 row, 18")
    assert sentence.removeprefix("The ") in DATA_README.replace("\n", " ")


def test_speed_is_what_was_measured():
    cells = {}
    for run in load_result("svd-bench-cpu")["runs"]:
        where = (run["case"], run["dtype"], run["rank"], run["threads"])
        cells.setdefault(where, {})[run["method"]] = run

    def times(rival, threads=(1, 2)):
        pairs = [(c[rival], c["lora-lab randomized_svd"]) for where, c in cells.items() if where[3] in threads]
        return [np.median(theirs["seconds"]) / np.median(ours["seconds"]) for theirs, ours in pairs]

    rival, text = "scikit-learn randomized_svd", " ".join(README.split())
    mean, one, two = (np.exp(np.mean(np.log(times(rival, threads)))) for threads in ((1, 2), (1,), (2,)))
    assert f"measured in [{len(cells)} cells]" in text
    assert (
        f"takes 1/{mean:.1f} of the time of scikit-learn's (1/{one:.1f} with one thread, 1/{two:.1f} with two)" in text
    )
    assert f"is faster in {sum(ratio < 1 for ratio in times('scipy svds'))} of the cells" in text
    assert min(times(rival, (2,))) > 1, "the figure's sentence says so"
    for (_, dtype, _, _), cell in cells.items():
        ours, theirs = (1 + np.median(cell[method]["excess"]) for method in ("lora-lab randomized_svd", rival))
        assert ours <= theirs * (1 + TOLERANCE[dtype])


def test_the_speed_of_a_step_is_what_was_measured():
    text = " ".join(README.split())
    for name, words in {
        "step-bench-cpu": "{:.1f} times the tokens a second ({:.1f} to {:.1f} in {} rounds) in {:.2f} of the memory",
        "step-bench-h200": "{:.1f} times ({:.1f} to {:.1f} in {} rounds) in {:.2f}, at a held-out loss",
    }.items():
        runs = load_result(name)["runs"]
        found = ratios(runs, OURS, TRAINER)
        ours, theirs = ([run for run in runs if run["way"] == way] for way in (OURS, TRAINER))
        memory = ours[0]["memory"] / theirs[0]["memory"]
        assert words.format(np.median(found), min(found), max(found), len(found), memory) in text
        assert max(run["loss"] for run in ours) <= min(run["loss"] for run in theirs)
        everywhere = {way: np.median([tokens_per_second(run) for run in runs if run["way"] == way]) for way in WAYS}
        assert max((OURS, TRAINER, LOOP), key=everywhere.get) == OURS
        assert (everywhere[FULL] > everywhere[OURS]) == (name == "step-bench-h200"), "the README says where it is"
        assert min((run["memory"], run["way"]) for run in runs)[1] == OURS


def test_licence_and_rounding_of_the_model_are_told():
    asset = assets.ASSETS["smollm2-135m-instruct"]
    assert f"SmolLM2-135M-Instruct has the {asset.licence} licence" in README
    assert "Q4_1" in asset.purpose
    assert "rounded to 4 bits (Q4_1)" in README
