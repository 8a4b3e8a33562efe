"""Every notebook keeps every rule, and every rule can be broken."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rules import PACKAGE, RULES

from lora_lab.course import links
from lora_lab.course.notebooks import KERNELSPEC, LANGUAGE, WIDGET_TYPE, notebooks

NOTEBOOKS = notebooks()
OPENING = "# 77 · Try it\n\n**You will be able to**\n- try\n\n**You need** nothing.\n\n**Time:** 5 minutes.\n\n"
OPENING += links.buttons(Path("77_try_it.ipynb"), links.repository())
CLOSING = "## Summary\n\n## Exercises\n\n## Sources\n\n- C. Eckart and G. Young (1936)."
SENTENCE = "Rank 1 is enough."


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rule(path, rule):
    assert rule(nbformat.read(path, as_version=4)) == []


QUESTION = """**{}.** How many?

- a) 18
- b) 81
- c) 162

<details><summary>Answer</summary>

**a.** It is 9 + 9. b) is the whole table. c) is twice that.

</details>
"""
QUIZ = "### Check yourself\n\nChoose.\n\n" + "\n".join(QUESTION.format(number) for number in (1, 2, 3))


@pytest.fixture
def good():
    """Give a small notebook that keeps every rule."""
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": SENTENCE}
    figure = new_output("display_data", picture, metadata={"image/png": {"alt": SENTENCE, "width": 614}})
    said = new_output("stream", name="stdout", text="numbers: 18 of 81, at 9:1\nlast step: 0.34 %\n")
    cells = [
        new_markdown_cell(OPENING, id="title"),
        new_code_cell(links.setup(links.repository()), id="setup", execution_count=1),
        new_markdown_cell("**Predict:** how many? 1/2 or 2/tmp?", id="predict"),
        new_code_cell("x = 1\ny = 2\nprint(x, y)", id="print", outputs=[said], execution_count=2),
        new_code_cell("x = 1\ny = 2\nshow(x, y)", id="draw-2", outputs=[figure], execution_count=3),
        new_code_cell("\n", id="empty"),
        new_markdown_cell(CLOSING, id="closing"),
        new_markdown_cell(QUIZ, id="quiz"),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": dict(KERNELSPEC), "language_info": dict(LANGUAGE)})


def test_good_notebook_keeps_every_rule(good):
    assert {rule.__name__: rule(good) for rule in RULES} == {rule.__name__: [] for rule in RULES}


def printing(text):
    """Give a change of a notebook: its first code cell prints something else."""
    return lambda notebook: notebook.cells[3].outputs[0].update(text=text)


def writing(source, place=3):
    """Give a change of a notebook: the source of a cell."""
    return lambda notebook: notebook.cells[place].update(source=source)


def showing(**changes):
    """Give a change of a notebook: what its figure carries, where None takes something away."""

    def change(notebook):
        output = notebook.cells[4].outputs[0]
        output.data["text/plain"] = changes.get("text", SENTENCE)
        output.metadata["image/png"]["alt"] = changes.get("alt", SENTENCE)

    return change


WIDGET = new_output("display_data", {WIDGET_TYPE: {"model_id": "1"}, "text/plain": "0%"})
ERROR = new_output("error", ename="ValueError", evalue="", traceback=[])
WARNING = new_output("stream", name="stderr", text="UserWarning")

BROKEN = {
    "cells_are_counted": [
        lambda notebook: notebook.cells[4].update(execution_count=4),
        lambda notebook: notebook.cells[3].update(execution_count=None),
    ],
    "outputs_are_quiet": [
        lambda notebook: notebook.cells[3].outputs.append(ERROR),
        lambda notebook: notebook.cells[3].outputs.append(WARNING),
    ],
    "nothing_is_of_one_machine": [
        printing("saved in /home/ada/adapter"),
        printing(r"saved in C:\Users\ada"),
        writing("folder = '/tmp/adapter'"),
        showing(text="It is in /home/someone/x.png."),
    ],
    "outputs_stay_the_same": [
        printing("took 3.2 s"),
        printing("12 it/s"),
        printing("1,024 tokens/s"),
        printing("2026-11-23"),
        printing("00:01<00:02"),
        printing("<object at 0x7f00>"),
    ],
    "figures_have_a_sentence": [
        showing(alt=""),
        showing(alt="Rank 2 is enough."),
        showing(alt="figure", text="figure"),
        writing("![](picture.png)", place=2),
    ],
    "no_widget_is_stored": [
        lambda notebook: notebook.metadata.update(widgets={}),
        lambda notebook: notebook.cells[3].outputs.append(WIDGET),
    ],
    "metadata_is_plain": [
        lambda notebook: notebook.metadata.kernelspec.update(name="my-env"),
        lambda notebook: notebook.metadata.language_info.update(version="3.11.7"),
        lambda notebook: notebook.cells[3].metadata.update(execution={}),
    ],
    "cells_have_names": [
        lambda notebook: notebook.cells[3].update(id="title"),
        lambda notebook: notebook.cells[3].update(id="1f2e3d4c"),
    ],
    "package_is_not_written_again": [
        writing("def truncated_svd(W, rank):\n    return W"),
        writing("class LoRALinear:\n    pass"),
        writing("if True:\n    def check():\n        pass"),
    ],
    "no_cell_ends_with_a_semicolon": [writing("x = 1\ny = 2\nx;"), writing("x = 1\ny = 2\nx; \n")],
    "cells_are_short": [
        writing("\n".join(["x = 1"] * 21)),
        lambda notebook: [cell.update(source="x = 1") for cell in notebook.cells[3:5]],
        lambda notebook: [cell.update(source="x = 1\n" * 7) for cell in notebook.cells[3:5]],
    ],
    "opens_with_its_aims": [
        writing(OPENING.replace("# 77 · Try it", "# Try it"), place=0),
        writing(OPENING.replace("**You will be able to**", ""), place=0),
        writing(OPENING.replace("**You need**", "You need"), place=0),
        writing(OPENING.replace("5 minutes", "soon"), place=0),
        lambda notebook: notebook.cells.insert(0, new_code_cell("x = 1")),
    ],
    "opens_elsewhere_too": [
        writing(OPENING.replace("/blob/main/notebooks/77", "/blob/main/notebooks/76"), place=0),
        writing(OPENING.replace("colab.research.google.com/github/", "colab.research.google.com/github/x"), place=0),
        writing(OPENING.partition("[Open")[0], place=0),
        writing("import sys", place=1),
        lambda notebook: notebook.cells[1].update(id="colab"),
        lambda notebook: notebook.cells.insert(1, new_code_cell("x = 1")),
    ],
    "asks_for_a_prediction": [writing("Predict nothing.", place=2)],
    "closes_with_exercises_and_sources": [
        writing(CLOSING.replace("## Sources", "## More"), place=6),
        writing(CLOSING + "\n\n## Appendix", place=6),
    ],
    "has_a_quiz_with_reasons": [
        lambda notebook: notebook.cells.pop(),
        lambda notebook: notebook.cells.insert(0, notebook.cells.pop()),
        writing(QUIZ.replace("### Check yourself", "### Quiz"), place=7),
        writing(QUIZ.replace("**3.**", "3."), place=7),
        writing(QUIZ.replace("- c) 162\n", ""), place=7),
        writing(QUIZ.replace("**a.**", "**d.**"), place=7),
        writing(QUIZ.replace(" c) is twice that.", ""), place=7),
        writing(QUIZ.replace("<details>", ""), place=7),
    ],
    "every_exercise_is_asked": [
        writing('check("77.nothing", ...)'),
        writing(OPENING.replace("# 77", "# 00"), place=0),
        lambda notebook: notebook.cells[3].update(source='check("00.numbers", 45)'),
    ],
    "slides_can_be_shown": [
        lambda notebook: notebook.cells[1].metadata.update(tags=["slide-left"]),
        lambda notebook: notebook.cells[1].metadata.update(tags=["slide-next"]),
        lambda notebook: [
            notebook.cells[place].metadata.update(tags=[tag]) for place, tag in ((1, "slide"), (2, "slide-next"))
        ],
    ],
}


def test_every_rule_has_notebooks_that_break_it():
    assert list(BROKEN) == [rule.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_can_be_broken(good, rule):
    for change in BROKEN[rule.__name__]:
        notebook = copy.deepcopy(good)
        change(notebook)
        assert rule(notebook), "the notebook breaks the rule, and nothing is said"


def test_live_cell_may_tell_the_time(good):
    good.cells[3].metadata["tags"] = ["nbval-ignore-output"]
    printing("took 3.2 s")(good)
    assert [rule.__name__ for rule in RULES if rule(good)] == []


def test_public_names_are_known():
    assert {"truncated_svd", "LoRALinear", "attach", "show", "check", "canvas", "train"} <= set(PACKAGE)
