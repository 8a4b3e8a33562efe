"""What only a lesson needs: figures that speak, exercises that answer at once, and the tools that run the course.

- ``show(fig, alt)`` displays a figure together with the sentence that says what it shows
- ``vary(draw, rank=range(1, 10))`` displays a figure under sliders, and draws it again when one moves
- ``check(name, answer)``, ``hint(name)``, ``solution(name)`` are the three things you can ask of an exercise
- ``grade(name, answer)`` is ``check`` for whoever marks: it raises what is wrong
- ``course.figures`` is the house style and the drawing of every figure
- ``course.exercises`` holds the exercises, one module a notebook
- ``course.notebooks`` runs the notebooks and turns them into pages
- ``course.release`` makes versions of them for a class

Importing this room loads neither torch nor Matplotlib nor ipywidgets.
"""

from lora_lab.course.exercises import check, grade, hint, solution
from lora_lab.course.figures import show
from lora_lab.course.sliders import vary

__all__ = ["check", "grade", "hint", "show", "solution", "vary"]
