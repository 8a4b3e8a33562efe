"""What a class gets: three versions of each lesson; and what the real nbgrader hands out, marks and tells learners."""

import ast
import contextlib
import copy
import html
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from lora_lab.cli import main
from lora_lab.course import check, grade
from lora_lab.course.exercises import NotPassed, exercises
from lora_lab.course.notebooks import code_cells, notebooks
from lora_lab.course.release import (
    FOR_ANSWERS,
    REASON_POINTS,
    assignment,
    instructor,
    release,
    solved,
    student,
    tasks,
)

LESSONS = {path.stem: nbformat.read(path, as_version=4) for path in notebooks()}
LESSON = "01_rank_and_factorization"

MISTAKES = {  # what a learner hands in, and what they are told
    "largest_rank": ("largest_rank = 576 * 1536 / (576 + 1536)", "That is where the two counts are equal"),
    "ranks": ("ranks = [4, 2, 3, 9, 2]", "four terms are not four layers yet"),
    "factors": ("def factors(W):\n    return W[:, [0]], W[[0], :].T", "columns of left must equal the ROWS of right"),
    "multiply": ("def multiply(left, right, x):\n    return left @ right @ x", "it formed the 1000 × 1200 matrix"),
    "repair": ("def repair(W):\n    return W", "yours says 54 there"),
}


@pytest.fixture(params=LESSONS.values(), ids=LESSONS)
def lesson(request):
    return request.param


def points_of(lesson):
    return {task.identifier: task.exercise.points for task in tasks(lesson)}


def imports_of(lesson):
    """Give the import statements of a lesson, and nothing else of it."""
    sources = [TransformerManager().transform_cell(cell.source) for cell in code_cells(lesson)]
    statements = [statement for source in sources for statement in ast.parse(source).body]
    return "\n".join(ast.unparse(one) for one in statements if isinstance(one, ast.Import | ast.ImportFrom))


def _of_this_module():
    """Stand for what a module of exercises defines beside its solutions."""


def _solution_with_helper(left, right, x):
    return _of_this_module()


def marks(notebook):
    """Give the cells that nbgrader knows, by its name for them."""
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


class TestGrade:
    def test_a_right_answer_is_silent_but_for_a_line(self, capsys):
        assert grade("01.break_even", 418) is None  # nbgrader would read a value as points
        assert capsys.readouterr().out == "01.break_even: passed\n"

    @pytest.mark.parametrize(
        ("answer", "words"),
        [(..., r"01\.break_even: not attempted yet$"), (419, r"01\.break_even: not yet\. .*: that is no saving")],
    )
    def test_any_other_is_an_assertion_with_the_words_of_the_check(self, answer, words, capsys):
        with pytest.raises(AssertionError, match=words) as raised:
            grade("01.break_even", answer)
        check("01.break_even", answer)
        assert f"{raised.value}\n" == capsys.readouterr().out

    def test_warnings_of_a_right_answer_are_left_out(self, capsys):
        def multiply(left, right, x):
            print("an error?", file=sys.stderr)
            return left @ (right @ x)

        grade("01.multiply", multiply)
        assert capsys.readouterr().err == ""

    def test_nothing_is_remembered(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LORA_LAB_PROGRESS", str(tmp_path / "progress"))
        grade("01.break_even", 418)
        assert not (tmp_path / "progress").exists()
        check("01.break_even", 418)
        assert (tmp_path / "progress").exists()

    def test_an_unknown_name_is_no_failed_answer(self):
        with pytest.raises(ValueError, match=r"did you mean 01\.break_even"):
            grade("01.breakeven", 418)


class TestVersions:
    def test_every_exercise_is_in_each_with_its_points(self):
        asked = [task.exercise.name for lesson in LESSONS.values() for task in tasks(lesson)]
        assert sorted(asked) == list(exercises())
        assert {task.exercise.points for lesson in LESSONS.values() for task in tasks(lesson)} == {1, 2, 3}
        assert {task.question.cell_type for lesson in LESSONS.values() for task in tasks(lesson)} == {"markdown"}

    def test_the_learners_is_the_lesson_without_outputs(self, lesson):
        version = student(lesson)
        assert [cell.source for cell in version.cells] == [cell.source for cell in lesson.cells]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in version.cells)
        for task in tasks(version):
            code = next(line for line in solved(task, set()).splitlines() if re.match(r"    return|\w+ = ", line))
            assert code not in task.cell.source

    def test_the_teachers_cells_pass_after_the_imports_of_the_lesson_alone(self, lesson, capsys):
        names = {}
        exec(imports_of(lesson), names)
        for task in tasks(instructor(lesson)):
            exec(task.cell.source, names)
            assert capsys.readouterr().out == task.cell.outputs[0].text == f"{task.exercise.name}: passed\n"
            points = task.exercise.points
            assert task.question.source.endswith(f"\n\n*{points} {'points' if points > 1 else 'point'}*")

    def test_the_rest_of_the_teachers_is_the_lesson(self, lesson):
        changed = {cell.id for task in tasks(lesson) for cell in (task.question, task.cell)}
        pairs = zip(instructor(lesson).cells, lesson.cells, strict=True)
        assert {before.id for after, before in pairs if after != before} == changed

    def test_an_assignment_has_a_mark_for_each_exercise_and_one_for_a_reason(self, lesson):
        version = assignment(lesson, "00 · A title", "00_file.ipynb")
        nbformat.validate(version)
        worth = {
            name: cell.metadata.nbgrader.points for name, cell in marks(version).items() if cell.metadata.nbgrader.grade
        }
        assert worth == points_of(lesson) | {f"{version.cells[2].id[:2]}_reason": REASON_POINTS}
        for task in tasks(lesson):
            test, answer = marks(version)[task.identifier], marks(version)[f"{task.identifier}_answer"]
            assert test.source == f'from lora_lab.course import grade\n\ngrade("{task.exercise.name}", {task.answer})'
            assert test.metadata.nbgrader.locked
            assert test.metadata.tags == ["raises-exception"], "the first wrong answer stops Run All"
            assert answer.metadata.nbgrader.solution
            assert answer.source.startswith(f"{task.blank}\n### BEGIN SOLUTION\n")

    def test_an_assignment_runs_by_itself(self, lesson, capsys):
        names = {}
        for cell in assignment(lesson, "00 · A title", "00_file.ipynb").cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
        assert capsys.readouterr().out == "".join(f"{task.exercise.name}: passed\n" for task in tasks(lesson))

    def test_it_imports_what_answers_build_on_and_draws_nothing(self, lesson):
        imports = assignment(lesson, "00 · A title", "00_file.ipynb").cells[1].source
        modules = re.findall(r"^(?:from|import) (\S+)", imports, re.M)
        assert all(module.startswith((*FOR_ANSWERS, "lora_lab.course")) for module in modules)
        assert "import hint" in imports


class TestSolved:
    def test_a_value_is_assigned_after_the_way_to_it(self):
        [task, *_] = tasks(LESSONS[LESSON])
        assert solved(task, set()) == (
            "# Give the largest r with r · (576 + 1536) < 576 · 1536.\nlargest_rank = (576 * 1536 - 1) // (576 + 1536)"
        )

    def test_a_function_has_the_learners_name_and_the_imports_that_are_missing(self):
        repair = tasks(LESSONS[LESSON])[-1]
        assert solved(repair, {"np", "LowRank"}).startswith('def repair(W):\n    """Give W, a matrix of rank 1')
        assert solved(repair, {"np"}).startswith("from lora_lab.lowrank import LowRank\n\n\ndef repair(W):")

    def test_a_solution_that_needs_its_module_is_refused(self):
        [task] = [task for task in tasks(LESSONS[LESSON]) if task.answer == "multiply"]
        needy = replace(task, exercise=replace(task.exercise, solution=_solution_with_helper))
        with pytest.raises(
            ValueError, match=r"^01\.multiply: its solution uses _of_this_module, which its module defines"
        ):
            solved(needy, set())

    def test_an_exercise_that_there_is_not_is_named(self):
        notebook = copy.deepcopy(LESSONS[LESSON])
        cell = next(cell for cell in notebook.cells if 'check("01.multiply"' in cell.source)
        cell.source = cell.source.replace("01.multiply", "01.multipy")
        with pytest.raises(ValueError, match=r"got '01\.multipy'; did you mean 01\.multiply"):
            tasks(notebook)

    def test_a_solution_that_fails_is_not_released(self, monkeypatch, tmp_path):
        monkeypatch.setattr("lora_lab.course.release.solved", lambda task, known: f"{task.answer} = -1")
        with pytest.raises(NotPassed, match="a rank is at least 0"):
            release([LESSON], output=tmp_path / "class")
        assert not (tmp_path / "class").exists()


class TestCommand:
    def test_it_writes_three_versions_and_says_what_they_are_worth(self, tmp_path, capsys):
        assert main(["release", "01", "--output", str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "01_rank_and_factorization       5 exercises,  9 points, and 3 for a reason",
            f"Three versions are in {tmp_path}: student, instructor, and nbgrader, where nbgrader runs.",
        ]
        assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == {
            "student/GLOSSARY.md",
            f"student/{LESSON}.ipynb",
            "instructor/GLOSSARY.md",
            f"instructor/{LESSON}.ipynb",
            "nbgrader/nbgrader_config.py",
            f"nbgrader/source/{LESSON}/{LESSON}.ipynb",
        }

    def test_what_is_there_and_differs_is_kept_unless_told(self, tmp_path, capsys):
        release(["00"], output=tmp_path)
        kept, own = tmp_path / "nbgrader" / "nbgrader_config.py", tmp_path / "nbgrader" / "gradebook.db"
        first = kept.read_text(encoding="utf-8")
        kept.write_text("mine", encoding="utf-8")
        own.write_text("scores", encoding="utf-8")
        assert main(["release", "00", "01", "--output", str(tmp_path)]) == 1
        assert f"{kept}: there is another text; choose another --output" in capsys.readouterr().err
        assert kept.read_text(encoding="utf-8") == "mine"
        assert not (tmp_path / "student" / f"{LESSON}.ipynb").exists(), "half of it was written"
        assert main(["release", "00", "--output", str(tmp_path), "--force"]) == 0
        assert kept.read_text(encoding="utf-8") == first
        assert own.read_text(encoding="utf-8") == "scores"

    def test_a_second_release_changes_no_byte(self, tmp_path):
        release(["00"], output=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        release(["00"], output=tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before

    def test_a_notebook_without_exercises_is_one_line(self, tmp_path, capsys):
        own = tmp_path / "own.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), own)
        assert main(["release", str(own), "--output", str(tmp_path / "class")]) == 1
        assert capsys.readouterr().err == "lora-lab: own.ipynb has no exercises, so it takes no versions for a class\n"

    def test_a_lesson_that_is_not_there_is_one_line(self, tmp_path, capsys):
        assert main(["release", "77", "--output", str(tmp_path / "class")]) == 1
        assert capsys.readouterr().err.startswith("lora-lab: no notebook '77'; there are 00_start_here")
        assert not (tmp_path / "class").exists()


def test_the_page_for_teachers_names_what_there_is(tmp_path):
    release([LESSON], output=tmp_path)
    page = (notebooks()[0].parent / "TEACHING.md").read_text(encoding="utf-8")
    section = page.partition("## Grade with nbgrader\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == {path.name for path in tmp_path.iterdir()}
    assert set(re.findall(r"\b\d\d_\w+", section)) == {LESSON}
    assert f"{['No', 'One', 'Two', 'Three'][REASON_POINTS]} more points are for a reason" in section


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    """Release lesson 01, hand it out with nbgrader, hand in four answers to it, and have them marked and explained."""
    home = tmp_path_factory.mktemp("class")
    with contextlib.redirect_stdout(io.StringIO()):
        release([LESSON], output=home)
    course = home / "nbgrader"
    settings = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    here = Path(sys.executable).parent  # nbgrader calls alembic by its name
    settings["PATH"] = os.pathsep.join([str(here), os.environ["PATH"]])
    progress = {"LORA_LAB_PROGRESS": str(home / "progress")}

    def nbgrader(command):
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", command, LESSON],
            cwd=course,
            env=os.environ | settings | progress,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment")
    sheet = course / "release" / LESSON / f"{LESSON}.ipynb"
    right = {task.answer: solved(task, {"np", "LowRank"}) for task in tasks(LESSONS[LESSON])}
    warning = right["factors"].replace("    row, ", "    np.divide(1, 0)\n    row, ")
    cheat = "grade = check = print\nlargest_rank = 7"
    hand_in(sheet, course, "right", right, reason="Because the rank counts the layers.")
    hand_in(sheet, course, "partly", {"factors": warning, "ranks": right["ranks"], "largest_rank": cheat})
    hand_in(sheet, course, "wrong", {answer: source for answer, (source, _) in MISTAKES.items()})
    hand_in(sheet, course, "blank", {})
    nbgrader("autograde")
    nbgrader("generate_feedback")
    return course


def hand_in(sheet: Path, course: Path, learner: str, answers: dict[str, str], reason: str = "") -> None:
    """Write the answers of a learner into a sheet, where nbgrader collects it."""
    notebook = nbformat.read(sheet, as_version=4)
    known = marks(notebook)
    for task in tasks(LESSONS[LESSON]):
        if task.answer in answers:
            known[f"{task.identifier}_answer"].source = answers[task.answer]
    if learner == "partly":
        known["01_break_even"].source = "pass  # I mark myself"
    known["01_reason"].source = reason or known["01_reason"].source
    place = course / "submitted" / learner / LESSON
    place.mkdir(parents=True)
    nbformat.write(notebook, place / sheet.name)


def scores(course: Path, learner: str) -> dict[str, float | None]:
    """Give the marks of a learner that need no human, by the name of the cell."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        [notebook] = book.find_submission(LESSON, learner).notebooks
        return {one.name: one.auto_score for one in notebook.grades}


def feedback(course: Path, learner: str) -> str:
    """Give the words of the page that a learner gets back."""
    page = (course / "feedback" / learner / LESSON / f"{LESSON}.html").read_text(encoding="utf-8")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


@pytest.mark.timeout(300)
class TestNbgrader:
    def test_the_sheet_has_the_blanks_of_the_lesson_and_no_solution(self, classroom):
        sheet = nbformat.read(classroom / "release" / LESSON / f"{LESSON}.ipynb", as_version=4)
        for task in tasks(LESSONS[LESSON]):
            assert marks(sheet)[f"{task.identifier}_answer"].source.rstrip() == task.blank
        assert "SOLUTION" not in "".join(cell.source for cell in sheet.cells)
        assert marks(sheet)["01_reason"].source == "YOUR ANSWER HERE"

    @pytest.mark.parametrize(
        ("learner", "marks"),
        [
            ("right", {"break_even": 1, "rank_of": 2, "outer": 2, "multiply": 1, "repair": 3, "reason": None}),
            ("partly", {"break_even": 0, "rank_of": 2, "outer": 2, "multiply": 0, "repair": 0, "reason": 0}),
            ("wrong", {"break_even": 0, "rank_of": 0, "outer": 0, "multiply": 0, "repair": 0, "reason": 0}),
            ("blank", {"break_even": 0, "rank_of": 0, "outer": 0, "multiply": 0, "repair": 0, "reason": 0}),
        ],
    )
    def test_the_gradebook_has_the_points_that_were_earned(self, learner, marks, classroom):
        assert scores(classroom, learner) == {f"01_{name}": points for name, points in marks.items()}

    def test_a_wrong_answer_is_explained_on_the_page_that_comes_back(self, classroom):
        words = feedback(classroom, "wrong")
        assert [message for _, message in MISTAKES.values() if message not in words] == []
        assert "Traceback (most recent call last)" not in words

    def test_a_blank_is_said_to_be_one(self, classroom):
        assert feedback(classroom, "blank").count("not attempted yet") == 5

    def test_marking_is_no_progress_of_the_teachers(self, classroom):
        assert not (classroom.parent / "progress").exists()
