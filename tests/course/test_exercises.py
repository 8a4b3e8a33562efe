"""Every exercise of the course: its solution passes, its blank does not count, each mistake is explained."""

import ast
import inspect
import re

import pytest

from lora_lab.course import check, hint, solution
from lora_lab.course.exercises import exercises

EXERCISES = exercises()
MISTAKES = [(name, n) for name, exercise in EXERCISES.items() for n in range(len(exercise.mistakes))]


@pytest.fixture(params=EXERCISES.values(), ids=EXERCISES)
def exercise(request):
    return request.param


def said(capsys, name, answer):
    """Give what ``check`` prints, without the name in front of it."""
    check(name, answer)
    return capsys.readouterr().out.removeprefix(f"{name}: ").rstrip()


def test_there_are_exercises_with_names_of_their_notebooks():
    assert EXERCISES
    assert all(re.fullmatch(r"\d\d\.[a-z][a-z0-9_]*", name) for name in EXERCISES)


def test_solution_passes(exercise, capsys):
    assert said(capsys, exercise.name, exercise.right_answer()) == "passed"


def test_blank_is_not_attempted(exercise, capsys):
    blanks = [None, ..., (None, ...)]
    if not exercise.value:
        blanks += [lambda *arguments, **options: None, lambda *arguments, **options: ...]
    for blank in blanks:
        assert said(capsys, exercise.name, blank).startswith("not attempted yet")


@pytest.mark.parametrize(("name", "n"), MISTAKES, ids=[f"{name}-{n}" for name, n in MISTAKES])
def test_mistake_gets_its_own_message(name, n, capsys):
    answer, fragment = EXERCISES[name].mistakes[n]
    message = said(capsys, name, answer)
    assert message.startswith("not yet. ")
    assert fragment in message
    assert message == said(capsys, name, answer), "the message changes from call to call"


def test_mistakes_are_four_and_told_apart(exercise, capsys):
    assert len({said(capsys, exercise.name, answer) for answer, _ in exercise.mistakes}) >= 4


def test_words_of_the_exercise_are_complete(exercise):
    assert exercise.goal.strip(" .") == exercise.goal, "the goal is a noun phrase"
    assert 2 <= len(exercise.hints) <= 3
    assert all(text.endswith((".", "?", "!", "`")) for text in exercise.hints)


def test_hints_come_one_after_the_other(exercise, capsys):
    for n, text in enumerate(exercise.hints, start=1):
        hint(exercise.name)
        assert capsys.readouterr().out.strip() == f"{exercise.name}, hint {n} of {len(exercise.hints)}: {text}"
    hint(exercise.name)
    assert "last hint" in capsys.readouterr().out


def test_solution_shows_source_that_runs(exercise, capsys):
    solution(exercise.name)
    source = capsys.readouterr().out
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    assert definition.name == exercise.solution.__name__
    if exercise.value:
        assert not inspect.signature(exercise.solution).parameters
