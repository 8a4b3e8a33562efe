'''The exercises of the course: one module a notebook, and three verbs for the learner.

``check("01.break_even", answer)`` says passed, not attempted yet, or what failed and why; ``hint("01.break_even")``
gives the next hint; ``solution("01.break_even")`` shows a solution.

How to write the exercises of a notebook
----------------------------------------
Add a module to this folder, named like the notebook without its number (``rank_and_factorization.py``), with one tuple
``EXERCISES``. It is found by itself. Import torch inside the functions that need it, never at the top of the module::

    import numpy as np

    from lora_lab.course.exercises.framework import Exercise, Function, called

    def break_even_rank(m: int, n: int) -> int:      # the solution: its source is what the learner is shown
        """Give the largest rank at which two factors hold fewer numbers than the m × n matrix."""
        return (m * n - 1) // (m + n)

    def _check_break_even(answer: Function) -> str | None:
        """None when the answer is right; otherwise the case that shows it is not, and the misconception behind it."""
        for m, n, right in ((9, 9, 4), (4, 4, 1), (100, 10, 9)):
            if (got := answer(m, n)) != right:
                return f"{called(answer, m, n)} gives {got}, but rank {right} is ..."
        return None

    EXERCISES = (
        Exercise(
            name="01.break_even",
            goal="the largest rank at which the factors hold fewer numbers than the matrix",
            solution=break_even_rank,
            check=_check_break_even,
            hints=("Count the numbers in an m × r and an r × n matrix.", "..."),
            mistakes=(                                # what learners really answer, and a part of what they are told
                (lambda m, n: min(m, n), "rank 9 costs 162"),
                ...                                   # four or more
            ),
        ),
    )

Where the answer is a value (a number, a matrix, a tuple), set ``value=True``: ``solution`` is then a function without
arguments that returns it, and ``check`` gets the value itself. An exercise is worth one point; set ``points`` where it
is more. ``lora-lab release`` puts the source of the solution into a notebook, after the imports of your module that it
needs; so it may use what your module imports, and nothing else that your module defines.

What ``check`` of the framework does for you: an answer that is ``None`` or ``...``, or a function that returns either,
is "not attempted yet"; an exception in the learner's function is reported with its type, its line and the call that met
it; a function that does not come back is stopped. So a check function only compares. Give the learner's function fresh
arrays, for it may change them. The tests prove for every exercise that its solution passes, that a blank is not
attempted, and that each mistake fails with its own message.
'''

from lora_lab.course.exercises.framework import Exercise, NotPassed, check, exercises, grade, hint, solution

__all__ = ["Exercise", "NotPassed", "check", "exercises", "grade", "hint", "solution"]
