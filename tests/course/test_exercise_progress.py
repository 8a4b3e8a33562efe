"""What has passed is remembered in one file: once, in order, and without ever standing in the way of an answer."""

import sys
from pathlib import Path

import pytest

from lora_lab.cli import main
from lora_lab.course import check, progress
from lora_lab.course.exercises import exercises


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "of the user" / "progress.txt"
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(path))
    return path


def test_a_right_answer_is_remembered_once_and_a_wrong_or_blank_one_never(file):
    right, (wrong, _) = exercises()["01.break_even"].right_answer(), exercises()["01.break_even"].mistakes[0]
    for answer in (wrong, ..., None):
        check("01.break_even", answer)
    assert not file.exists()
    check("01.break_even", right)
    check("01.break_even", right)
    check("00.numbers", exercises()["00.numbers"].right_answer())
    assert file.read_text(encoding="utf-8") == "01.break_even\n00.numbers\n"
    assert progress.passed() == {"01.break_even", "00.numbers"}


def test_the_report_counts_by_notebook_and_names_what_is_next(file, capsys):
    assert main(["progress"]) == 0
    assert capsys.readouterr().out.endswith(f"\n0 of {len(exercises())} exercises have passed on this machine\n")
    names = [name for name in exercises() if name.startswith("01.")]
    for name in (*names[1:], "10.bytes"):
        progress.remember(name)
    file.write_text(file.read_text(encoding="utf-8") + "an exercise of another version\n\n", encoding="utf-8")
    lines = progress.report().splitlines()
    assert lines[1].split() == ["01_rank_and_factorization", "4", "of", "5", "next:", names[0]]
    assert lines[-1].startswith(f"{len(names)} of ")
    progress.remember(names[0])
    assert progress.report().splitlines()[1].split() == ["01_rank_and_factorization", "5", "of", "5"]


def test_each_line_names_a_notebook_of_the_course(file):
    there = [path.stem for path in sorted(Path(__file__).parents[2].glob("notebooks/*.ipynb"))]
    assert [line.split()[0] for line in progress.report().splitlines()[:-1]] == there


def test_it_is_forgotten_when_asked(file, capsys):
    progress.remember("01.outer")
    assert main(["progress", "--forget"]) == 0
    assert not file.exists()
    assert "\n0 of " in capsys.readouterr().out
    assert main(["progress", "--forget"]) == 0


@pytest.mark.parametrize("place", ["relative.txt", "{}/a file/progress.txt", "{}"])
def test_a_file_that_cannot_be_written_does_not_stand_in_the_way(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("LORA_LAB_PROGRESS", place.format(tmp_path))
    check("01.break_even", exercises()["01.break_even"].right_answer())
    assert capsys.readouterr().out == "01.break_even: passed\n"
    assert main(["progress"]) == 1
    assert capsys.readouterr().err.startswith("lora-lab: ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the variable is that of Linux")
@pytest.mark.parametrize(
    ("data", "expected"), [("/data", "/data/lora-lab"), ("data", "/home/me/.local/share/lora-lab")]
)
def test_it_lies_in_the_data_folder_of_the_user(data, expected, monkeypatch):
    monkeypatch.delenv("LORA_LAB_PROGRESS", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_DATA_HOME", data)
    assert progress.progress_file() == Path(expected) / "progress.txt"
