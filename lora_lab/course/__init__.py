"""What only a lesson needs: figures that speak, exercises that answer at once, and the tools that run the course.

- ``show(fig, alt)`` displays a figure together with the sentence that says what it shows
- ``check(name, answer)``, ``hint(name)``, ``solution(name)`` are the three things you can ask of an exercise
- ``grade(name, answer)`` is ``check`` for whoever marks: it raises what is wrong
- ``course.figures`` is the house style and the drawing of every figure
- ``course.exercises`` holds the exercises, one module a notebook
- ``course.notebooks`` runs the notebooks and turns them into pages
- ``course.release`` makes versions of them for a class

Importing this room loads neither torch nor Matplotlib.
"""

from lora_lab.course.exercises import check, grade, hint, solution
from lora_lab.course.figures import show

__all__ = ["check", "grade", "hint", "show", "solution"]
