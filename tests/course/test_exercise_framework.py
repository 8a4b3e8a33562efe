"""What ``check`` says about any answer at all: it never raises, never hangs, and says the same thing each time."""

import functools
import itertools
import sys
import threading

import numpy as np
import pytest

from lora_lab.course.exercises import Exercise, framework
from lora_lab.course.exercises.framework import called


def rank_at_break_even(m, n):
    """Give the largest rank at which factors are smaller than the matrix."""
    return (m * n - 1) // (m + n)


def check_rank(answer):
    if (got := answer(9, 9)) != 4:
        return f"{called(answer, 9, 9)} gives {got}, but rank 4 takes 72 numbers."
    return None


def check_shape(answer):
    return None if answer.shape == (9, 1) else f"The shape is {answer.shape}."


FUNCTION = Exercise("77.rank", "a rank", rank_at_break_even, check_rank, ("Count.", "Count again."), (), seconds=0.2)
VALUE = Exercise("77.column", "a column of 9 numbers", lambda: np.ones((9, 1)), check_shape, (), (), value=True)


@pytest.fixture
def said(monkeypatch, capsys):
    """Give what ``check`` prints about an answer to the exercise of this test."""
    monkeypatch.setattr(framework, "exercises", lambda: {"77.rank": FUNCTION, "77.column": VALUE})

    def ask(answer, name="77.rank"):
        framework.check(name, answer)
        return capsys.readouterr().out.rstrip("\n").removeprefix(f"{name}: ")

    return ask


def test_right_answers_pass(said):
    assert said(rank_at_break_even) == "passed"
    assert said(functools.partial(rank_at_break_even)) == "passed"
    assert said(np.ones((9, 1)), "77.column") == "passed"


def test_wrong_answer_gets_the_words_of_its_check(said):
    assert said(max) == "not yet. max(9, 9) gives 9, but rank 4 takes 72 numbers."
    assert said(np.ones(9), "77.column") == "not yet. The shape is (9,)."


def blank_function(m, n): ...


def unwritten_function(m, n):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("blank", "words"),
    [
        (None, "not attempted yet"),
        (..., "not attempted yet"),
        ((None, ...), "not attempted yet"),
        (blank_function, "not attempted yet: blank_function returns None; is a return missing at its end?"),
        (lambda m, n: ..., "not attempted yet"),
        (lambda m, n: (..., ...), "not attempted yet"),
        (unwritten_function, "not attempted yet"),
    ],
)
def test_blanks_are_not_attempted(said, blank, words):
    assert said(blank) == words


def test_none_after_an_answer_is_no_blank(monkeypatch, capsys):
    once = Exercise("77.twice", "a function", max, lambda answer: answer(1) and answer(2), (), ())
    monkeypatch.setattr(framework, "exercises", lambda: {"77.twice": once})

    def one_case(n):
        return n if n == 1 else None

    framework.check("77.twice", one_case)
    assert "not yet. one_case(2) returns None, and for other arguments it did not." in capsys.readouterr().out


@pytest.mark.parametrize("answer", [0, False, "", (), [], np.array(None)])
def test_an_empty_value_is_an_answer(said, answer):
    assert said(answer).startswith("not yet. ")


def divides_by_zero(m, n):
    return m / (n - n)


def calls_itself(m, n):
    return calls_itself(m, n)


def leaves(m, n):
    sys.exit()


class Unusual(BaseException):
    """No Exception, as an error of one's own should be."""


def raises_unusually(m, n):
    raise Unusual("mine")


@pytest.mark.parametrize(
    ("function", "kind", "line"),
    [
        (divides_by_zero, "ZeroDivisionError: division by zero", "return m / (n - n)"),
        (calls_itself, "RecursionError: maximum recursion depth exceeded", "return calls_itself(m, n)"),
        (leaves, "SystemExit", "sys.exit()"),
        (raises_unusually, "Unusual: mine", 'raise Unusual("mine")'),
    ],
)
def test_error_in_the_answer_is_told_with_its_line(said, function, kind, line):
    words = said(function)
    assert words.startswith(f"not yet. {function.__name__}(9, 9) stopped with {kind}")
    first = function.__code__.co_firstlineno
    assert words.endswith(f"(line {first + 1}: {line})")


def test_answer_of_another_kind_is_told_what_the_answer_is(said):
    words = said("a word", "77.column")
    assert words.startswith("not yet. The answer is a column of 9 numbers; yours cannot be read as one (AttributeError")
    assert said(lambda: 4).startswith("not yet. your_function(9, 9) stopped with TypeError")
    words = said(rank_at_break_even(9, 9))
    assert words == "not yet. A function is asked for, yours is int. Give its name alone, without brackets behind it."


def loops(m, n):
    while True:
        pass


def loops_and_catches(m, n):
    while True:
        try:
            sum(range(10))
        except Exception:
            continue


def loops_and_catches_everything(m, n):
    while True:
        try:
            sum(range(10))
        except:  # noqa: E722 - as learners write it
            continue


def loops_in_a_generator(m, n):
    return sum(1 for _ in itertools.count())


@pytest.mark.parametrize("function", [loops, loops_and_catches, loops_and_catches_everything, loops_in_a_generator])
def test_endless_loop_is_stopped(said, function):
    assert said(function) == (
        f"not yet. {function.__name__}(9, 9) did not come back within 0.2 seconds. Does a loop in it never end?"
    )


class Loops:
    def __call__(self, m, n):
        return loops(m, n)


@pytest.mark.parametrize("function", [Loops(), functools.partial(loops)], ids=["object", "partial"])
def test_endless_loop_is_stopped_in_whatever_can_be_called(said, function):
    assert said(function).startswith("not yet. your_function(9, 9) did not come back within 0.2 seconds.")


def test_endless_loop_is_stopped_in_another_thread(said):
    words = []
    thread = threading.Thread(target=lambda: words.append(said(loops)), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert "did not come back" in words[0]


def test_no_alarm_is_left_behind(said):
    before = threading.active_count()
    for _ in range(50):
        said(rank_at_break_even)
    assert threading.active_count() == before


def test_words_hold_no_address(said):
    assert (
        said(lambda m, n: object())
        == "not yet. your_function(9, 9) gives <object object>, but rank 4 takes 72 numbers."
    )


def test_stop_button_is_not_swallowed(said):
    def interrupted(m, n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        said(interrupted)


def test_unknown_name_lists_the_nearest(said):
    with pytest.raises(ValueError, match=r"got '77.rnak'; did you mean 77\.rank"):
        framework.check("77.rnak", 4)
    with pytest.raises(ValueError, match=r"77\.rank or 77\.column"):
        framework.hint("nothing like it")
    with pytest.raises(ValueError, match="takes the name of an exercise"):
        framework.solution("77.")


def test_hints_and_solution(said, capsys):
    for words in ("hint 1 of 2: Count.", "hint 2 of 2: Count again.", 'import solution; solution("77.rank")'):
        framework.hint("77.rank")
        assert words in capsys.readouterr().out
    framework.solution("77.rank")
    assert capsys.readouterr().out.startswith("def rank_at_break_even(m, n):\n")


def test_called_is_short():
    assert called(rank_at_break_even, 9, 9) == "rank_at_break_even(9, 9)"
    assert called(np.dot, np.ones((9, 1)), np.float64(2)) == "dot(ndarray 9 × 1, np.float64(2.0))"
    assert len(called(max, "x" * 1000)) < 60


# --- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is no such limit")
@pytest.mark.parametrize("huge", [lambda m, n: np.ones(10**11), lambda m, n: [0] * 10**11, lambda m, n: bytes(10**12)])
def test_a_huge_allocation_ends_in_words_and_leaves_no_limit(said, huge):
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    told = said(huge)
    assert told.startswith("not yet. your_function(9, 9) stopped with ")
    assert "Memory" in told
    assert told.endswith(". Does it make something far larger than the answer?")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is no such limit")
def test_a_limit_that_is_there_already_is_not_raised():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low = framework.MEMORY * 8
    resource.setrlimit(resource.RLIMIT_AS, (low, hard))
    try:
        with framework._room_for_more(2 * low):
            assert resource.getrlimit(resource.RLIMIT_AS) == (low, hard)
        with framework._room_for_more(1):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] < low
        assert resource.getrlimit(resource.RLIMIT_AS) == (low, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
