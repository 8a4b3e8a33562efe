"""The rules that every notebook of the course keeps. Each takes a notebook and gives what breaks it."""

import ast
import re
import statistics
from itertools import pairwise
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

import lora_lab
from lora_lab.course import links
from lora_lab.course.exercises import exercises
from lora_lab.course.notebooks import KERNELSPEC, LANGUAGE, WIDGET_TYPE, code_cells, is_live
from lora_lab.course.slides import slides, spoiled

PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|mnt|var|work|private|Users)/|\b[A-Z]:\\\w")
PASSING = re.compile(
    r"\b(?:19|20)\d\d-\d\d-\d\d\b"  # a date
    r"|\b\d\d?:\d\d(?::\d\d)?\b"  # a time of day, or a progress bar's
    r"|\d\s?(?:ns|µs|ms|s|sec|seconds?|minutes?|it/s|tokens/s)\b"  # a duration, a speed
    r"|\bat 0x[0-9a-f]+"  # an address
)


def cells_are_counted(notebook):
    """Execution counts are 1..n; where they are missing, strict nbval compares nothing and passes."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def outputs_are_quiet(notebook):
    """No output is an error or a warning."""
    return [
        f"{cell.id}: {output.output_type} {output.get('name', '')}"
        for cell, output in _outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def nothing_is_of_one_machine(notebook):
    """No absolute path stands in a cell or its output."""
    texts = [(cell.id, cell.source) for cell in notebook.cells]
    texts += [(cell.id, _text(output)) for cell, output in _outputs(notebook)]
    return [f"{name}: {found[0]}" for name, text in texts if (found := PATH.search(text))]


def outputs_stay_the_same(notebook):
    """No output that is compared tells a date, a time, a speed or an address."""
    compared = [(cell.id, _text(output)) for cell, output in _outputs(notebook) if not is_live(cell)]
    return [f"{name}: {found[0]}" for name, text in compared if (found := PASSING.search(text))]


def figures_have_a_sentence(notebook):
    """The text alternative of every figure is a sentence, and the sentence that nbval compares is the same one."""
    bad = []
    for cell, output in _outputs(notebook):
        for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
            alt = output.metadata.get(kind, {}).get("alt", "")
            if not alt.endswith((".", "!", "?")) or alt != output.data.get("text/plain"):
                bad.append(f"{cell.id}: {alt!r}")
    drawn = [(cell.id, alt) for cell in _prose(notebook) for alt in re.findall(r"!\[(.*?)\]\(", cell.source)]
    return bad + [f"{name}: a picture without text" for name, alt in drawn if not alt.strip()]


def no_widget_is_stored(notebook):
    """A stored widget is dead without its kernel; a progress bar belongs to a run, not to the lesson."""
    bad = ["metadata.widgets"] if "widgets" in notebook.metadata else []
    return bad + [cell.id for cell, output in _outputs(notebook) if WIDGET_TYPE in output.get("data", {})]


def metadata_is_plain(notebook):
    """The kernel is python3, no version of Python is stored, and a cell has nothing but tags."""
    bad = [] if notebook.metadata == {"kernelspec": KERNELSPEC, "language_info": LANGUAGE} else ["notebook metadata"]
    return bad + [f"{cell.id}: {set(cell.metadata)}" for cell in notebook.cells if set(cell.metadata) - {"tags"}]


def cells_have_names(notebook):
    """Identifiers are words, each used once: a change of a cell is then a change of that cell in the history."""
    names = [cell.id for cell in notebook.cells]
    return [name for name in names if names.count(name) > 1 or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)]


def package_is_not_written_again(notebook):
    """No cell defines what the package has."""
    bad = []
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):  # %pip is no Python
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in PACKAGE:
                bad.append(f"{cell.id}: {node.name} is in {PACKAGE[node.name]}")
    return bad


def no_cell_ends_with_a_semicolon(notebook):
    """IPython drops the value of such a cell, nbval fails on it."""
    return [cell.id for cell in code_cells(notebook) if cell.source.rstrip().endswith(";")]


def cells_are_short(notebook):
    """The median of the code cells is three to six lines, and none is longer than a screen."""
    lengths = {cell.id: sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(notebook)}
    median = statistics.median(lengths.values())
    bad = [] if 3 <= median <= 6 else [f"the median is {median} lines"]
    return bad + [f"{name}: {length} lines" for name, length in lengths.items() if length > 20]


def opens_with_its_aims(notebook):
    """The first cell has the title, what the reader will be able to do, what they need, and the time."""
    first = notebook.cells[0]
    wanted = {
        "a title": r"\A# \d\d · \w",
        "You will be able to": r"^\*\*You will be able to\*\*",
        "You need": r"^\*\*You need\*\*",
        "minutes": r"^\*\*Time:\*\* .*\bminutes\b",
    }
    text = first.source if first.cell_type == "markdown" else ""
    return [f"no {name} in the first cell" for name, pattern in wanted.items() if not re.search(pattern, text, re.M)]


def opens_elsewhere_too(notebook):
    """The first cell ends with the links to Colab and Binder; the next installs the course on Colab alone."""
    first, code, address = notebook.cells[0].source, code_cells(notebook), links.repository()
    lesson = re.search(r"notebooks/(\d\d_\w+\.ipynb)", first)
    named = lesson is not None and lesson[1].startswith(first[2:4])
    bad = [] if named and first.endswith(links.buttons(Path(lesson[1]), address)) else ["no links in the first cell"]
    setup = bool(code) and code[0].id == links.SETUP and code[0].source == links.setup(address)
    return bad + ([] if setup else ["the first code is not the setup"])


def asks_for_a_prediction(notebook):
    """The reader predicts at least one result before seeing it."""
    return [] if any("**Predict" in cell.source for cell in _prose(notebook)) else ["no prediction is asked for"]


def closes_with_exercises_and_sources(notebook):
    """The last three sections are the summary, the exercises and the sources."""
    sections = [m[1].strip() for cell in _prose(notebook) for m in re.finditer(r"^## (.+)$", cell.source, re.M)]
    wanted = ["Summary", "Exercises", "Sources"]
    return [] if sections[-3:] == wanted else [f"the last sections are {', '.join(sections[-3:])}"]


def has_a_quiz_with_reasons(notebook):
    """After the summary come three questions or more; each answer names the right choice and says why of each other."""
    after = [cell.id for cell, later in pairwise(notebook.cells) if later.id == "quiz" and "## Summary" in cell.source]
    text = "\n".join(cell.source for cell in _prose(notebook) if cell.id == "quiz")
    bad = [] if after and text.startswith("### Check yourself\n") else ["no quiz after the summary"]
    questions = re.split(r"^\*\*\d\.\*\* ", text, flags=re.M)[1:]
    bad += [] if len(questions) >= 3 else [f"{len(questions)} questions"]
    for question in questions:
        choices = re.findall(r"^- ([a-e])\) ", question, re.M)
        answer = re.search(r"<details><summary>Answer</summary>\n\n\*\*([a-e])\.\*\* (.+)\n\n</details>", question)
        others = set(choices) - {answer[1]} if answer else set(choices)
        if len(choices) < 3 or answer is None or answer[1] not in choices:
            bad.append(f"no choice or no answer: {question[:40]}")
        elif unsaid := sorted(choice for choice in others if f"{choice})" not in answer[2]):
            bad.append(f"no reason against {', '.join(unsaid)}: {question[:40]}")
    return bad


def every_exercise_is_asked(notebook):
    """Each exercise of the notebook is checked in it, blank, and it checks no other."""
    number = notebook.cells[0].source[2:4]
    asked = set(re.findall(r'check\("(.+?)"', "\n".join(cell.source for cell in code_cells(notebook))))
    known = {name for name in exercises() if name.startswith(f"{number}.")}
    blank = {line for _, output in _outputs(notebook) for line in _text(output).splitlines()}
    return sorted(asked ^ known) + [name for name in sorted(asked) if f"{name}: not attempted yet" not in blank]


def slides_can_be_shown(notebook):
    """The tags of slides make sense, and no slide gives away the answer to the prediction that it asks for."""
    try:
        return spoiled(slides(notebook))
    except ValueError as error:
        return [str(error)]


RULES = [
    value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
]


def _outputs(notebook):
    """Give every output with its cell."""
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def _prose(notebook):
    """Give the cells of text."""
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def _text(output):
    """Give what an output says in text: of a stream, of a result, of the sentence of a figure."""
    data = output.get("data", {})
    return output.get("text", "") + "".join(text for kind, text in data.items() if kind.startswith("text/"))


def _public_names():
    """Give where each public name of the package is: those in a room's __all__, and what draws and runs lessons."""
    root = Path(lora_lab.__file__).parent
    found = {}
    for path in [*sorted(root.glob("*/__init__.py")), *sorted((root / "course").glob("*.py"))]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
            found |= {name: path.relative_to(root.parent).as_posix() for name in names if name[0] != "_"}
    return found


PACKAGE = _public_names()
