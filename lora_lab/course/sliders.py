"""Sliders above a figure: move one, and the figure is drawn again. They move where a kernel runs, as in JupyterLab.

One function draws the figure for given values and says in a sentence what it shows. So the figure that stands on a
page and the one that moves are the same::

    def cut(rank=10):
        fig, ax = canvas()
        ...
        return fig, f"At rank {rank} {errors[rank]:.0%} is lost."

    show(*cut())
    vary(cut, rank=range(1, 61))

ipywidgets and Matplotlib are imported at the first slider, not before.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from lora_lab.course.figures import image_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = 0.25  # seconds: a figure that takes longer is drawn when its slider rests, not on the way


def vary(draw: Callable[..., tuple[Figure, str]], /, **values: Iterable[Any]) -> None:
    """Display a slider for each named argument of ``draw``, and below them what it draws for their present values.

    A slider starts at the default that ``draw`` has for its argument, or else at the first value. Each combination is
    drawn once and then remembered. An error of the first drawing is raised; one of a later drawing is told in place of
    the picture, and the next value replaces it. Where no kernel runs, a sentence stands in place of the sliders.

    Args:
        draw: takes the values by their names and gives a Matplotlib figure and the sentence that says what it shows,
            as ``show`` takes them.
        values: for each slider the argument of ``draw`` that it sets, and its values in their order, two or more:
            ``rank=range(1, 10)``, ``noise=[0, 0.1, 1]``.

    Raises:
        TypeError: ``draw`` is no function, takes no argument of such a name, needs one that has no values, or gives no
            figure with a sentence; or what should be values is neither a range nor a list.
        ValueError: there is no slider, one has fewer than two values or the same one twice, or the default of ``draw``
            is not among them; or the sentence is none.
    """
    choices, starts = _choices(draw, values)
    pictures: dict[tuple[str, ...], str] = {}

    def picture(**chosen: Any) -> str:
        key = tuple(map(_label, chosen.values()))
        if key not in pictures:
            pictures[key] = image_html(*_pair(draw(**chosen)))
        return pictures[key]

    begin = time.perf_counter()
    picture(**starts)
    _display(picture, choices, starts, quick=time.perf_counter() - begin < QUICK)


def _display(
    picture: Callable[..., str], choices: dict[str, Sequence[Any]], starts: dict[str, Any], *, quick: bool
) -> None:
    """Display the sliders and the picture, with a sentence for where they cannot move."""
    import ipywidgets
    from IPython.display import publish_display_data

    from lora_lab.course.notebooks import WIDGET_TYPE

    look = {
        "continuous_update": quick,
        "style": {"description_width": f"{max(map(len, choices)) + 1}ch"},
        "layout": {"width": "100%", "max_width": "640px"},
    }
    sliders = {name: _slider(name, options, starts[name], **look) for name, options in choices.items()}
    below = ipywidgets.HTML(picture(**starts))

    def redraw(_: object) -> None:
        chosen = {name: slider.value for name, slider in sliders.items()}
        try:
            below.value = picture(**chosen)
        except Exception as error:
            where = ", ".join(f"{_words(name)} {_label(value)}" for name, value in chosen.items())
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            below.value = f'<p role="alert">No picture for {escape(where)}. {escape(reason)}</p>'

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    box = ipywidgets.VBox([*sliders.values(), below])
    ends = [f"{_words(name)}, {_label(options[0])} to {_label(options[-1])}" for name, options in choices.items()]
    said = f"Run this cell in JupyterLab to move {'a slider' if len(sliders) == 1 else 'sliders'}: {'; '.join(ends)}."
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}  # of ipywidgets 7, which Colab has, and 8
    publish_display_data({WIDGET_TYPE: view, "text/markdown": said})


def _slider(name: str, options: Sequence[Any], start: Any, **look: Any) -> Any:
    """Give a slider: one for whole numbers, which takes a number by typing too, or one for a list of values."""
    import ipywidgets

    look["description"] = _words(name)
    if isinstance(options, range) and options.step > 0:
        return ipywidgets.IntSlider(value=start, min=options[0], max=options[-1], step=options.step, **look)
    labelled = [(_label(option), option) for option in options]
    return ipywidgets.SelectionSlider(options=labelled, value=start, **look)


def _choices(
    draw: Callable[..., Any], values: dict[str, Iterable[Any]]
) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
    """Give the values of each slider and the one that it starts at, or say what is wrong with them."""
    if not callable(draw):
        raise TypeError(f"draw takes a function that gives a figure and its sentence, got {type(draw).__name__}")
    if not values:
        raise ValueError("vary takes the values of one argument of draw or more, such as rank=range(1, 10), got none")
    defaults = {name: parameter.default for name, parameter in inspect.signature(draw).parameters.items()}
    if unknown := sorted(values.keys() - defaults.keys()):
        raise TypeError(f"draw takes {', '.join(defaults) or 'no argument'}, got values for {', '.join(unknown)}")
    for name, default in defaults.items():
        if default is inspect.Parameter.empty and name not in values:
            raise TypeError(f"draw needs {name}, which has neither values nor a default")
    choices = {name: _options(name, given) for name, given in values.items()}
    return choices, {name: _start(name, options, defaults[name]) for name, options in choices.items()}


def _options(name: str, given: Iterable[Any]) -> Sequence[Any]:
    """Give the values of one slider, or say that they are no values for a slider."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{name} takes a range or a list of values, got {type(given).__name__}")
    options = given if isinstance(given, range) else list(given)
    if len(options) < 2:
        raise ValueError(f"{name} takes two values or more, got {len(options)}")
    labels = [_label(option) for option in options]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{name} takes values that differ, got {', '.join(twice)} more than once")
    return options


def _start(name: str, options: Sequence[Any], default: Any) -> Any:
    """Give the value that a slider starts at: the default of its argument, or the first."""
    if default is inspect.Parameter.empty:
        return options[0]
    labels = [_label(option) for option in options]
    if _label(default) not in labels:
        ends = f"{labels[0]} to {labels[-1]}"
        raise ValueError(f"{name} takes values with draw's default {_label(default)} among them, got {ends}")
    return options[labels.index(_label(default))]


def _pair(drawn: Any) -> tuple[Figure, str]:
    """Give a figure and its sentence, or say that ``draw`` gave something else."""
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(f"draw must give a figure and its sentence, a pair, got {type(drawn).__name__}")
    return drawn


def _label(value: Any) -> str:
    """Write a value as its slider shows it: 0.1, 10, disc."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    """Write the name of an argument as words."""
    return name.replace("_", " ")
