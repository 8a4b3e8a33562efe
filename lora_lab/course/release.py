"""Makes three versions of the lessons for a class: the learners', the teacher's, and one that nbgrader marks.

All three are made of the notebooks and of ``course.exercises``, so that nothing is written twice:

- ``student/``: the lessons, blank and without outputs
- ``instructor/``: the lessons with a solution in each exercise, and its points
- ``nbgrader/``: a course folder of nbgrader, with one assignment a lesson

An assignment holds the exercises of a lesson and not the lesson: marking it takes seconds, and not the minutes that a
lesson trains. Each answer is marked by the cell below it, which calls ``grade``; one reason in words is for a human.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.course.exercises import Exercise, grade
from lora_lab.course.exercises.framework import find_exercise
from lora_lab.course.notebooks import KERNELSPEC, LANGUAGE, code_cells, find, notebooks
from lora_lab.course.pages import GLOSSARY, title

if TYPE_CHECKING:
    from nbformat import NotebookNode

REASON_POINTS = 3  # of the reason in words, which a human marks

# What an answer may build on: an assignment imports it as its lesson does. The rest draws, loads, trains, or answers.
FOR_ANSWERS = ("math", "numpy", "torch", "lora_lab.lowrank")

CONFIG = '''\
"""How nbgrader runs this course; `lora-lab release` wrote it."""

import os

os.environ["LORA_LAB_PROGRESS"] = os.devnull  # what passes in marking is no progress of yours

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "lora-lab"
c.ClearSolutions.code_stub = {"python": ""}  # an answer cell begins with the blank of the lesson, and that is enough
c.Execute.timeout = 120  # seconds for a cell: the first that imports torch may take its time
'''


@dataclass(frozen=True)
class Task:
    """An exercise as a lesson asks it.

    Args:
        exercise: the exercise.
        question: the cell of text before it.
        cell: the cell that the learner fills in, which ends in a call of ``check``.
        answer: the name that the learner's function or value has there.
        blank: the source of the cell without that call.
    """

    exercise: Exercise
    question: NotebookNode
    cell: NotebookNode
    answer: str
    blank: str

    @property
    def identifier(self) -> str:
        """The name of the exercise in the letters that nbgrader takes: ``01_break_even``."""
        return self.exercise.name.replace(".", "_")


def release(names: Sequence[str | Path] = (), *, output: str | Path = "release", force: bool = False) -> int:
    """Write the three versions of notebooks, and print a line with the points for each.

    Each solution is run first, as its cells have it, and must pass. Nothing is written before all is made, and a file
    that is there already and differs is not touched.

    Args:
        names: which notebooks: paths, or the beginnings of names such as ``"01"``; by default the whole course.
        output: the folder that gets ``student/``, ``instructor/`` and ``nbgrader/``.
        force: overwrite the files that differ.

    Returns:
        0, the exit status of the command.

    Raises:
        FileExistsError: files in ``output`` differ from what would be written; the message names them.
        FileNotFoundError: there is no such notebook.
        ValueError: the beginning of a name fits several notebooks, a notebook has no exercises, or a solution cannot
            stand in a cell of its own.
        NotPassed: a solution does not pass; an exercise of a notebook is wrong.
    """
    import nbformat

    folder, files = Path(output), {Path("nbgrader") / "nbgrader_config.py": CONFIG}
    for path in [find(name) for name in names] or notebooks():
        notebook = nbformat.read(path, as_version=4)
        if not tasks(notebook):
            raise ValueError(f"{path.name} has no exercises, so it takes no versions for a class")
        _prove(notebook)
        source = Path("nbgrader") / "source" / path.stem
        for place, version in (
            (Path("student"), student(notebook)),
            (Path("instructor"), instructor(notebook)),
            (source, assignment(notebook, title(path), path.name)),
        ):
            nbformat.validate(version)
            files[place / path.name] = nbformat.writes(version).rstrip("\n") + "\n"
        if (glossary := path.parent / GLOSSARY).exists():  # the lessons link to it
            for name in ("student", "instructor"):
                files[Path(name) / GLOSSARY] = glossary.read_text(encoding="utf-8")
        points = [task.exercise.points for task in tasks(notebook)]
        worth = f"{len(points)} exercises, {sum(points):2} points, and {REASON_POINTS} for a reason"
        print(f"{path.stem:32}{worth}", flush=True)
    _write({folder / place: text for place, text in files.items()}, force=force)
    print(f"Three versions are in {folder}: student, instructor, and nbgrader, where nbgrader runs.")
    return 0


def student(notebook: NotebookNode) -> NotebookNode:
    """Give a lesson as learners get it: the exercises are blank, and no cell has run."""
    version = copy.deepcopy(notebook)
    for cell in version.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return version


def instructor(notebook: NotebookNode) -> NotebookNode:
    """Give a lesson with its outputs, and in each exercise a solution, that it passed, and its points."""
    version = copy.deepcopy(notebook)
    known = _names(_imports(version))
    for task in tasks(version):
        task.question.source = _with_points(task)
        call = task.cell.source.removeprefix(task.blank).strip()
        task.cell.source = f"{solved(task, known)}\n\n\n{call}"
        task.cell.outputs = [_printed(f"{task.exercise.name}: passed\n")]
    return version


def assignment(notebook: NotebookNode, name: str, file: str) -> NotebookNode:
    """Give the source of nbgrader's assignment on a lesson: its exercises, a cell that marks each, and a reason.

    Args:
        notebook: the lesson.
        name: its title.
        file: the name of its file.
    """
    from nbformat import v4

    asked = tasks(notebook)
    number, setup = asked[0].exercise.name.split(".")[0], _imports(notebook, FOR_ANSWERS)
    example, known = asked[0].exercise.name, _names(setup)
    opening = _OPENING.format(name=name, file=file, example=example)
    imports = "\n".join(_statements([*setup, ("lora_lab.course", "hint", "hint")]))
    cells = [
        v4.new_markdown_cell(opening, id="opening"),
        v4.new_code_cell(imports, id="imports", metadata=_marked(f"{number}_imports", locked=True)),
    ]
    for task in asked:
        solution = f"{task.blank}\n### BEGIN SOLUTION\n{solved(task, known)}\n### END SOLUTION"
        test = f'from lora_lab.course import grade\n\ngrade("{task.exercise.name}", {task.answer})'
        answer, marks = f"{task.identifier}_answer", _marked(task.identifier, locked=True, points=task.exercise.points)
        marks["tags"] = ["raises-exception"]  # so that Jupyter's "run all" goes on after an answer that fails
        cells += [
            v4.new_markdown_cell(_with_points(task), id=f"{task.identifier}_question"),
            v4.new_code_cell(solution, id=answer, metadata=_marked(answer, solution=True)),
            v4.new_code_cell(test, id=task.identifier, metadata=marks),
        ]
    reason = f"{number}_reason"
    marks = _marked(reason, solution=True, points=REASON_POINTS)
    cells += [
        v4.new_markdown_cell(_REASON.format(points=REASON_POINTS), id=f"{reason}_question"),
        v4.new_markdown_cell(_HOW_TO_MARK, id=reason, metadata=marks),
    ]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC, "language_info": LANGUAGE})


_OPENING = """\
# Exercises of lesson {name}

They go with `{file}`, and stand on their own. Write each answer in place of the `...` and run the cell. Then run the
cell below it, which marks the answer: it prints that you passed, or tells what is wrong, and you may try again.

If you are stuck, run `hint("{example}")` in a new cell, more than once for more hints. The names of the exercises are
in the calls of `grade`."""

_REASON = """\
**Give the reason.** Take the exercise above that taught you most. Say in three to five sentences why your answer is
right, name a wrong answer that looks right, and give a case that tells the two apart, with its numbers or shapes.

*{points} points, read by your teacher*"""

_HOW_TO_MARK = """\
For whoever marks, one point for each:

1. The reason is the idea of the lesson, and not the code read out line by line.
2. The wrong answer is one that somebody could believe.
3. The case has numbers or shapes, and they do tell the two apart."""


def tasks(notebook: NotebookNode) -> list[Task]:
    """Give the exercises of a lesson, in its order, with the cells that ask them."""
    return [
        Task(find_exercise(name), before, cell, answer, blank)
        for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False)
        if cell.cell_type == "code"
        for name, answer, blank in _checked(cell.source)
    ]


def _checked(source: str) -> Iterator[tuple[str, str, str]]:
    """Give the exercise that a cell checks, the name of the answer, and the source before: for a name, not a value."""
    for statement in _parsed(source).body:
        match statement:
            case ast.Expr(ast.Call(function, [ast.Constant(str(name)), ast.Name(answer)])):
                if ast.unparse(function) in ("check", "course.check"):
                    yield name, answer, "\n".join(source.splitlines()[: statement.lineno - 1]).rstrip()


def solved(task: Task, known: set[str]) -> str:
    """Give the source of a solution under the learner's name for it, after the imports that it needs.

    The source of a function goes below the learner's own ``def``. A value is assigned, after a comment that says how
    it is found.

    Args:
        task: the exercise.
        known: the names that the notebook has imported already.

    Raises:
        ValueError: the solution uses something of its module that is not imported there.
    """
    source = textwrap.dedent(inspect.getsource(task.exercise.solution))
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    body = source.splitlines()[definition.body[0].lineno - 1 :]
    if task.exercise.value:
        words = ast.get_docstring(definition) or ""
        rest = textwrap.dedent("\n".join(source.splitlines()[definition.body[1].lineno - 1 :]))
        code = [f"# {words}", rest.replace("return ", f"{task.answer} = ", 1).rstrip()]
    else:
        [learners] = [node for node in ast.parse(task.blank).body if isinstance(node, ast.FunctionDef)]
        code = [*task.blank.splitlines()[: learners.body[0].lineno - 1], *body]
    needed = _needed(task.exercise, definition, known)
    return "\n".join([*needed, *[""] * (2 if needed else 0), *code])


def _needed(exercise: Exercise, definition: ast.FunctionDef, known: set[str]) -> list[str]:
    """Give the imports for what the body of a solution takes from its module and nobody has imported yet."""
    inside = [node for statement in definition.body for node in ast.walk(statement) if isinstance(node, ast.Name)]
    own = {node.id for node in inside if isinstance(node.ctx, ast.Store)} | {a.arg for a in definition.args.args}
    used = {node.id for node in inside} - own
    taken = sorted(name for name in used if name in exercise.solution.__globals__ and name not in known)
    module = inspect.getmodule(exercise.solution)
    assert module is not None
    found = _bindings(ast.parse(inspect.getsource(module)))
    if missing := [name for name in taken if name not in found]:
        raise ValueError(
            f"{exercise.name}: its solution uses {missing[0]}, which its module defines; it takes what that imports"
        )
    return _statements([found[name] for name in taken])


Binding = tuple[str, str, str]  # the module, or "" for a plain import; the name in it; the name here


def _imports(notebook: NotebookNode, places: Sequence[str] = ()) -> list[Binding]:
    """Give what a lesson imports at the top level of its cells, from these modules or from any."""
    found = {name: one for cell in code_cells(notebook) for name, one in _bindings(_parsed(cell.source)).items()}
    modules = {one: one[0] or one[1] for one in found.values()}
    return [
        one for one, module in modules.items() if not places or f"{module}.".startswith(tuple(f"{p}." for p in places))
    ]


def _parsed(source: str) -> ast.Module:
    """Parse the source of a cell, in which a line may be a command of IPython, such as ``%pip``."""
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(source))


def _bindings(tree: ast.Module) -> dict[str, Binding]:
    """Give the imports at the top level of a source by the names that they bind."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found[alias.asname or alias.name] = (module, alias.name, alias.asname or alias.name)
    return found


def _names(bindings: Sequence[Binding]) -> set[str]:
    """Give the names that imports bind."""
    return {name for _, _, name in bindings}


def _statements(bindings: Sequence[Binding]) -> list[str]:
    """Write imports as statements: plain ones first, then one for each module, over several lines if it is long."""
    names: dict[str, list[str]] = {}
    for module, name, here in sorted(set(bindings)):
        names.setdefault(module, []).append(name if name == here else f"{name} as {here}")
    plain = [f"import {name}" for name in names.pop("", [])]
    short = {module: f"from {module} import {', '.join(some)}" for module, some in names.items()}
    long = {
        module: "\n    ".join([f"from {module} import (", *(f"{n}," for n in some)]) for module, some in names.items()
    }
    return plain + [line if len(line) < 100 else f"{long[module]}\n)" for module, line in short.items()]


def _with_points(task: Task) -> str:
    """Give the question with the points of its exercise."""
    points = task.exercise.points
    return f"{task.question.source}\n\n*{points} {'point' if points == 1 else 'points'}*"


def _printed(text: str) -> NotebookNode:
    """Give the output of a cell that printed this."""
    from nbformat import v4

    return v4.new_output("stream", name="stdout", text=text)


def _marked(name: str, *, solution: bool = False, locked: bool = False, points: int | None = None) -> dict[str, Any]:
    """Give the metadata of a cell that nbgrader knows by a name; with points it is one that gets them."""
    marks = {"schema_version": 3, "grade_id": name, "grade": points is not None, "solution": solution, "locked": locked}
    return {"nbgrader": marks | {"task": False} | ({} if points is None else {"points": points})}


def _prove(notebook: NotebookNode) -> None:
    """Run the solutions of a lesson as an assignment has them, after its imports alone, and require that they pass."""
    setup = _imports(notebook, FOR_ANSWERS)
    names: dict[str, Any] = {}
    exec("\n".join(_statements(setup)), names)
    for task in tasks(notebook):
        exec(solved(task, _names(setup)), names)
        with contextlib.redirect_stdout(io.StringIO()):
            grade(task.exercise.name, names[task.answer])


def _write(texts: dict[Path, str], *, force: bool) -> None:
    """Write files, unless one is there with another text."""
    files = {path: text.encode() for path, text in texts.items()}
    changed = [str(path) for path, content in files.items() if path.exists() and path.read_bytes() != content]
    if changed and not force:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise FileExistsError(f"{shown}: there is another text; choose another --output, or --force to overwrite")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
