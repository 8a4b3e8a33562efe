"""The page for teachers agrees with the lessons: their minutes, their sections, and where its links lead."""

import re
from pathlib import Path

import nbformat
import pytest

from lora_lab import assets
from lora_lab.course.notebooks import notebooks

PAGE = (notebooks()[0].parent / "TEACHING.md").read_text(encoding="utf-8")
LESSONS = {path.stem[:2]: path for path in notebooks()}


def prose(path):
    """Give the text of a lesson."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("number", LESSONS)
def test_the_minutes_are_those_that_the_lesson_says(number):
    [row] = re.findall(rf"^\| \[{number}\]\({LESSONS[number].name}\) \| ([^|]+) \|", PAGE, re.M)
    time = re.search(r"\*\*Time:\*\* (\d+) minutes(?:, and (\d+) more for the exercises)?", prose(LESSONS[number]))
    assert row == " + ".join(part for part in time.groups() if part)


def test_every_section_that_it_names_is_there():
    named = re.findall(r"[Ll]esson (\d\d), sections? ((?:\d+|, | to | and )+)", PAGE)
    named += [(lesson, section) for section, lesson in re.findall(r"sections? (\d+) of lesson (\d\d)", PAGE)]
    assert len(named) > 20
    for lesson, sections in named:
        there = re.findall(r"^## (\d+) ·", prose(LESSONS[lesson]), re.M)
        assert set(re.findall(r"\d+", sections)) <= set(there), f"lesson {lesson}"


def test_a_session_is_as_long_as_it_says():
    [table] = re.findall(r"\| minutes \| what \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert sum(map(int, re.findall(r"^\| (\d+) \|", table, re.M))) == 90


def test_the_sizes_are_those_of_the_assets():
    sizes = {name: round(asset.size / 1e6) for name, asset in assets.ASSETS.items()}
    words = {"smollm2-135m-instruct": "language model is", "minilm-l6": "encoder", "film-reviews": "film reviews"}
    words |= {"movielens-100k": "film ratings", "mnist-5k": "digits", "reveal-js": "turns the slides"}
    assert words.keys() == sizes.keys()
    for name, word in words.items():
        assert f"{word} {sizes[name]} MB" in PAGE


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (Path(LESSONS["00"]).parent / link).exists(), link
