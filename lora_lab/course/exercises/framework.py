"""What an exercise is, and the three things a learner asks of it: ``check``, ``hint``, ``solution``."""

import contextlib
import ctypes
import difflib
import functools
import importlib
import inspect
import io
import linecache
import os
import pkgutil
import re
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.course.progress import remember

Function = Callable[..., Any]

# Bytes that one call of the learner's function may take; threads that start meanwhile reserve some of them.
MEMORY = 2**32 + 2**28 * (os.cpu_count() or 1)


class NotPassed(AssertionError):
    """An answer that is marked is wrong or blank; the message says which, and why."""

    def _render_traceback_(self) -> list[str]:
        """Show in a notebook the verdict alone, in lines that a page of nbgrader does not cut."""
        return textwrap.wrap(str(self), 90)


@dataclass(frozen=True)
class Exercise:
    """One question of the course, its right answer, and the wrong ones worth an explanation.

    Args:
        name: number of the notebook, a full stop, a word or two: ``"01.break_even"``.
        goal: what the answer is, as a noun phrase.
        solution: the function asked for; with ``value=True`` a function without arguments that returns the value.
        check: takes the answer; returns None when it is right, else what is wrong with it, in a sentence or two.
        hints: two or three, from a nudge to nearly the answer.
        mistakes: pairs of a wrong answer and a part of the message that it must get.
        value: the answer is a value, not a function.
        seconds: the time one call of the learner's function may take.
        points: what it is worth where it is marked: 1 for a count or a formula, 2 where an idea must be chosen or a
            special case minded, 3 for a method of several steps.
    """

    name: str
    goal: str
    solution: Function
    check: Callable[[Any], str | None]
    hints: tuple[str, ...]
    mistakes: tuple[tuple[Any, str], ...]
    value: bool = False
    seconds: float = 5.0
    points: int = 1

    def right_answer(self) -> Any:
        """Give what a learner who knows would hand in."""
        return self.solution() if self.value else self.solution


def check(name: str, answer: Any) -> None:
    """Print whether the answer is right, not attempted yet, or wrong: then the case that shows it, and why.

    A right answer is remembered on this machine, for ``lora-lab progress``.

    Nothing that the answer does raises an error here: what goes wrong in it is part of what is printed.

    Args:
        name: the exercise, such as ``"01.break_even"``.
        answer: your function or value.

    Raises:
        ValueError: there is no exercise of that name; the message lists the names nearest to it.
    """
    verdict = _verdict(find_exercise(name), answer)
    print(f"{name}: {verdict}")
    if verdict == "passed":
        remember(name)


def grade(name: str, answer: Any) -> None:
    """Print that the answer passed, or raise what ``check`` would print: the verdict for whoever marks.

    It is not remembered for ``lora-lab progress``. What the answer writes to standard error, such as NumPy's warnings,
    is left out, because nbgrader takes it for a failure.

    Args:
        name: the exercise, such as ``"01.break_even"``.
        answer: the function or value to mark.

    Raises:
        NotPassed: the answer is wrong or blank; the message is the verdict.
        ValueError: there is no exercise of that name; the message lists the names nearest to it.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        verdict = _verdict(find_exercise(name), answer)
    if verdict != "passed":
        raise NotPassed(f"{name}: {verdict}")
    print(f"{name}: passed")


def hint(name: str) -> None:
    """Print the next hint for an exercise: the first call gives the first, the second the second, and so on.

    Raises:
        ValueError: there is no exercise of that name.
    """
    hints = find_exercise(name).hints
    given = _hints_given.get(name, 0)
    if given < len(hints):
        _hints_given[name] = given + 1
        print(f"{name}, hint {given + 1} of {len(hints)}: {hints[given]}")
    else:
        see = f'from lora_lab.course import solution; solution("{name}")'
        print(f"{name}: that was the last hint. To see a solution: {see}")


def solution(name: str) -> None:
    """Print the source of a solution to an exercise.

    Raises:
        ValueError: there is no exercise of that name.
    """
    print(textwrap.dedent(inspect.getsource(find_exercise(name).solution)).rstrip())


@functools.cache
def exercises() -> dict[str, Exercise]:
    """Give every exercise of the course by its name, in the order of the names."""
    package = "lora_lab.course.exercises"
    modules = [m.name for m in pkgutil.iter_modules(sys.modules[package].__path__) if m.name != "framework"]
    found = [e for module in modules for e in importlib.import_module(f"{package}.{module}").EXERCISES]
    return {exercise.name: exercise for exercise in sorted(found, key=lambda exercise: exercise.name)}


def called(function: Function, *arguments: Any) -> str:
    """Write a call the way the learner would: ``break_even_rank(9, 9)``, arrays by their shape."""
    return f"{_name_of(function)}({', '.join(_brief(argument) for argument in arguments)})"


_hints_given: dict[str, int] = {}


class _NotAttempted(Exception):
    """The learner's function is still the blank one."""


class _Stopped(Exception):
    """The learner's function raised an error or took too long; the message says so."""


class _OutOfTime(BaseException):
    """Raised inside the learner's function; no ``except Exception`` of theirs can swallow it."""


def find_exercise(name: str) -> Exercise:
    """Give the exercise of that name.

    Raises:
        ValueError: there is none; the message lists the names nearest to it.
    """
    known = exercises()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or list(known)
    raise ValueError(f"name takes the name of an exercise, got {name!r}; did you mean {' or '.join(near)}?")


def _verdict(exercise: Exercise, answer: Any) -> str:
    """Say in words how the answer does; memory addresses are left out, so that the words are always the same."""
    if _is_blank(answer):
        return "not attempted yet"
    if not exercise.value and not callable(answer):
        kind = type(answer).__name__
        return f"not yet. A function is asked for, yours is {kind}. Give its name alone, without brackets behind it."
    try:
        wrong = exercise.check(answer if exercise.value else _watched(answer, exercise.seconds))
    except _NotAttempted as blank:
        return f"not attempted yet{blank}"
    except _Stopped as stopped:
        wrong = str(stopped)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the check could not even look at the answer: it is of another kind
        wrong = f"The answer is {exercise.goal}; yours cannot be read as one ({type(error).__name__}: {error})."
    return "passed" if wrong is None else "not yet. " + re.sub(r" at 0x[0-9A-Fa-f]+", "", wrong)


def _is_blank(answer: Any) -> bool:
    """Tell whether nothing has been filled in: None, ``...``, or a collection of nothing else."""
    if isinstance(answer, (tuple, list)):
        return len(answer) > 0 and all(_is_blank(item) for item in answer)
    return answer is None or answer is Ellipsis


def _watched(function: Function, seconds: float) -> Function:
    """Wrap the learner's function: its blanks, errors and endless loops become words."""

    answered = False

    @functools.wraps(function)
    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal answered
        try:
            result = _within(seconds, function, *arguments, **options)
        except NotImplementedError:
            raise _NotAttempted from None
        except _OutOfTime:
            message = f"{called(function, *arguments)} did not come back within {seconds:g} seconds."
            raise _Stopped(f"{message} Does a loop in it never end?") from None
        except KeyboardInterrupt:  # the stop button
            raise
        except BaseException as error:
            large = " Does it make something far larger than the answer?" if isinstance(error, MemoryError) else ""
            told = f"{called(function, *arguments)} stopped with {_describe(error, function)}"
            raise _Stopped(f"{told}.{large}" if large else told) from None
        if result is None and answered:
            raise _Stopped(f"{called(function, *arguments)} returns None, and for other arguments it did not.")
        if result is None:
            raise _NotAttempted(f": {_name_of(function)} returns None; is a return missing at its end?")
        if _is_blank(result):
            raise _NotAttempted
        answered = True
        return result

    return watched


def _within(seconds: float, function: Function, *arguments: Any, **options: Any) -> Any:
    """Call the function, and raise _OutOfTime inside it when its time is over.

    Another thread rings the alarm, since signals reach only the main thread and are not what they are on Windows. It
    rings on, since an ``except:`` of the learner's may swallow one. A single call into compiled code, such as
    ``time.sleep``, hears it only at its end.
    """
    caller = ctypes.c_ulong(threading.get_ident())
    ring = ctypes.pythonapi.PyThreadState_SetAsyncExc
    over = False
    returned = threading.Event()

    def alarm() -> None:
        pause = seconds
        while not returned.wait(pause) and not over:
            ring(caller, ctypes.py_object(_OutOfTime))
            pause = 0.01

    thread = threading.Thread(target=alarm, daemon=True)
    with _room_for_more(MEMORY):
        thread.start()
        try:
            return function(*arguments, **options)
        finally:
            over = True  # the alarm may ring within the next line, and then must not ring again
            returned.set()
            thread.join()  # one that rings at this very moment is heard here, and not somewhere later


@contextlib.contextmanager
def _room_for_more(size: int) -> Iterator[None]:
    """Let this process take ``size`` more bytes and no more, for a while: beyond that a MemoryError is raised.

    So a huge allocation ends in an error of the learner's function, and not in the end of the kernel. Only Linux says
    how much a process has and keeps such a limit; elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (soft, hard, has + size) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _describe(error: BaseException, function: Function) -> str:
    """Say the error and the line of the learner's code where it happened."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    code = getattr(inspect.unwrap(function), "__code__", None)
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if code and frame.f_code.co_filename == code.co_filename:
            return f"{text} (line {line}: {linecache.getline(code.co_filename, line).strip()})"
    return text


def _name_of(function: Function) -> str:
    """Give the name of a function; a lambda has none."""
    name = getattr(function, "__name__", "<lambda>")
    return "your_function" if name == "<lambda>" else name


def _brief(argument: Any) -> str:
    """Write an argument in a few characters: an array or a matrix by its kind and shape."""
    if getattr(argument, "shape", ()):
        return f"{type(argument).__name__} {' × '.join(map(str, argument.shape))}"
    return textwrap.shorten(repr(argument), 40, placeholder="...")
