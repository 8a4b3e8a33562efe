"""A deck has the slides that the tags ask for, in order, and says what is wrong with a tag."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lora_lab import assets, cli
from lora_lab.course import slides as room
from lora_lab.course.notebooks import notebooks
from lora_lab.course.slides import slides, spoiled, write_slides

LESSONS = notebooks()
SEEN = new_output("stream", text="what it gave\n")
QUIZ = """### Check yourself

Choose.

**1.** How many?

- a) 18

<details><summary>Answer</summary>

**a.** It is 9 + 9.

</details>

**2.** And now?

- a) 36
"""


def text(name, source, *tags):
    return new_markdown_cell(source, id=name, metadata={"tags": list(tags)})


def code(name, *tags, outputs=(SEEN,)):
    return new_code_cell(f"ask({name!r})", id=name, metadata={"tags": list(tags)}, outputs=list(outputs))


@pytest.fixture
def lesson():
    """Give a small lesson with five slides."""
    cells = [
        text("title", "# 77 · Try it\n\nIt works.\n\n**You need** nothing.\n", "slide"),
        text("more", "Say this aloud."),
        text("guess", "## 1 · A guess\n\n**Predict.** How many?", "slide"),
        code("hidden", "slide", "slide-output"),
        text("why", "It is $r$.", "slide-next"),
        code("shown", "nbval-ignore-output", "slide-next"),
        text("quiz", QUIZ, "slide"),
        text("end", "## Exercises"),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def deck(lesson, tmp_path, monkeypatch):
    """Give the HTML of the deck of the small lesson, with a small thing in the place of reveal.js."""
    for name in ("reveal.js", "reveal.css", "notes.js", "LICENSE"):
        (tmp_path / name).write_text(f"the words of {name}, $1 and $reveal_js")
    monkeypatch.setattr(assets, "fetch", lambda name: {"reveal-js": tmp_path / "reveal.js"}[name])
    nbformat.write(lesson, tmp_path / "77_try.ipynb")
    [path] = write_slides([tmp_path / "77_try.ipynb"], tmp_path / "decks")
    return path.read_text(encoding="utf-8")


def test_a_slide_begins_and_goes_on_where_the_tags_say(lesson):
    names = [[cell.id for cell in slide.cells] for slide in slides(lesson)]
    assert names[:3] == [["title"], ["guess"], ["hidden", "why", "shown"]]


def test_a_slide_without_a_heading_of_its_own_has_that_of_its_section(lesson):
    assert [slide.section for slide in slides(lesson)] == ["", "", "1 · A guess", "", ""]


def test_a_quiz_is_a_slide_a_question(lesson):
    first, second = (slide.cells[0].source for slide in slides(lesson)[3:])
    assert first.startswith("## Check yourself\n\n**1.** How many?")
    assert second.startswith("## Check yourself\n\n**2.** And now?")


def test_what_is_between_slides_is_in_the_notes(lesson):
    first, *others = (slide.notes for slide in slides(lesson))
    assert "**You need** nothing." in first
    assert "Say this aloud." in first
    assert others == ["", "", "", ""], "the exercises are no notes"
    assert "nothing" not in slides(lesson)[0].cells[0].source


WRONG = [
    ("slide-out", "cell hidden: 'slide-out' is no tag of a slide; there are slide, slide-next and slide-output"),
    ("slides", "cell hidden: 'slides' is no tag of a slide"),
    ("slide-output", "cell hidden: got the tags slide-output; a slide takes one of slide and slide-next"),
    ("slide slide-next", "cell hidden: got the tags slide, slide-next; a slide takes one of"),
]


@pytest.mark.parametrize(("tags", "message"), WRONG)
def test_a_wrong_tag_is_an_error_that_names_the_cell(lesson, tags, message):
    lesson.cells[3].metadata.tags = tags.split()
    with pytest.raises(ValueError, match=message):
        slides(lesson)


def test_no_slide_can_go_on_before_one_began(lesson):
    lesson.cells[0].metadata.tags = ["slide-next"]
    with pytest.raises(ValueError, match="cell title: no slide is there that 'slide-next' could go on with"):
        slides(lesson)


def test_output_is_asked_of_a_cell_that_has_some(lesson):
    lesson.cells[3].outputs = []
    with pytest.raises(
        ValueError, match="cell hidden: 'slide-output' shows the output of a cell, and this one has none"
    ):
        slides(lesson)


def test_a_prediction_stands_before_its_result(lesson):
    assert spoiled(slides(lesson)) == []
    lesson.cells[3].metadata.tags = ["slide-next", "slide-output"]
    assert spoiled(slides(lesson)) == ["guess"]
    lesson.cells[2].source += "\n\n<details><summary>Answer</summary>\n\n18\n\n</details>"
    assert spoiled(slides(lesson)) == [], "what is folded comes with a key of its own"
    assert spoiled(slides(new_notebook(cells=[text("guess", "**Predict:** how many?", "slide")]))) == ["guess"]


def test_a_deck_shows_code_or_its_output_alone(deck):
    code = re.findall(r"ask</span>.*?</pre>", deck, re.DOTALL)
    assert len(code) == 1
    assert "shown" in code[0]
    assert deck.count("what it gave") == 2


def test_a_deck_is_one_file_with_all_that_it_needs(deck):
    assert "<script src" not in deck
    assert "<link" not in deck
    for name in ("reveal.js", "reveal.css", "notes.js", "LICENSE"):
        assert deck.count(f"the words of {name}, $1 and $reveal_js") == 1
    assert deck.count("<section>") == 5
    assert "<math" in deck


def test_what_is_folded_waits_for_a_key(deck):
    assert "<details>" not in deck
    assert deck.count('class="fragment answer"') == 1


def test_nothing_leads_to_a_part_of_a_lesson(deck):
    assert "anchor-link" not in deck
    assert ' id="' not in deck


def test_the_index_counts_the_slides(deck, tmp_path):
    index = (tmp_path / "decks" / "index.html").read_text(encoding="utf-8")
    assert '<a href="77_try.html">77 · Try it</a>, 5 slides' in index
    assert "77_try.html?print-pdf" in index


def test_a_lesson_without_slides_is_an_error(deck, tmp_path):
    nbformat.write(new_notebook(cells=[text("title", "# 78 · No")]), tmp_path / "78_no.ipynb")
    with pytest.raises(ValueError, match=r"78_no\.ipynb has no slides: give the cells that begin one the tag 'slide'"):
        write_slides([tmp_path / "78_no.ipynb"], tmp_path / "decks")


def test_an_error_names_the_lesson(deck, lesson, tmp_path):
    lesson.cells[3].metadata.tags = ["slide-out"]
    nbformat.write(lesson, tmp_path / "77_try.ipynb")
    with pytest.raises(ValueError, match=r"^77_try\.ipynb, cell hidden: "):
        write_slides([tmp_path / "77_try.ipynb"], tmp_path / "decks")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_has_a_deck(path):
    deck = slides(nbformat.read(path, as_version=4))
    questions = sum(slide.cells[0].source.startswith("## Check yourself") for slide in deck)
    assert 8 <= len(deck) - questions <= 21
    assert questions >= 3
    assert spoiled(deck) == []
    pictures = [output for slide in deck for cell in slide.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in pictures)
    assert deck[0].cells[0].source.startswith("# ")


class TestCommand:
    def test_it_makes_decks_of_the_lessons_that_are_named(self, monkeypatch, tmp_path, capsys):
        asked = []
        monkeypatch.setattr(room, "write_slides", lambda paths, folder: asked.append((paths, folder)))
        assert cli.main(["slides", "01", "--output", str(tmp_path)]) == 0
        assert asked == [([LESSONS[1]], tmp_path)]
        assert capsys.readouterr().out == f"Open {tmp_path / 'index.html'} in a browser to show the slides.\n"

    def test_it_makes_decks_of_all_lessons(self, monkeypatch):
        asked = []
        monkeypatch.setattr(room, "write_slides", lambda paths, folder: asked.extend(paths))
        assert cli.main(["slides"]) == 0
        assert asked == LESSONS

    def test_a_lesson_that_is_not_there_is_named(self, capsys):
        assert cli.main(["slides", "99"]) == 1
        assert "no notebook '99'" in capsys.readouterr().err
