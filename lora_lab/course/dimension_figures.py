"""The figures of random subspaces: where solutions appear, and scores against how much trains or how much is read.

Every function draws numbers that you computed, and gives a Matplotlib figure in the house style, ready for ``show``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.course.figures import BLACK, COLOURS, LINE_STYLES, MARKERS, VERMILLION, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Series = Mapping[str, Mapping[int, Sequence[float]]]

WIDTH = 8.4  # inches on the screen
FLOOR = 1e-12  # losses below it are zero up to rounding, and are drawn on it
LEVEL_STYLES = (":", (0, (6, 3)), (0, (1, 1)))


def cliff_figure(losses: Mapping[int, Sequence[float]], codimension: int) -> Figure:
    """Draw the least loss that a random subspace holds against its dimension, a point a draw, their median as a line.

    Args:
        losses: For each dimension the losses of all draws, at least 0; below 1e-12 they are drawn there.
        codimension: The number of conditions that a solution meets, drawn as an upright line.
    """
    fig, ax = canvas(width=7.0)
    dimensions = sorted(losses)
    drawn = [np.maximum(np.asarray(losses[d], dtype=float), FLOOR) for d in dimensions]
    for d, some in zip(dimensions, drawn, strict=True):
        ax.plot(np.full(len(some), d), some, "o", color=COLOURS[0], alpha=0.35, markersize=5)
    ax.plot(dimensions, [np.median(some) for some in drawn], color=COLOURS[0], linestyle="-", marker="")
    ax.axvline(codimension, color=VERMILLION, linestyle="--", marker="", label=f"{codimension} conditions")
    ax.set(yscale="log", xlabel="dimension d of the random subspace", ylabel="least loss in it")
    ax.set_ylim(FLOOR / 10, None)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="center right")
    return fig


def scores_figure(
    panels: Mapping[str, Series],
    *,
    xlabel: str,
    ylabel: str = "right answers",
    levels: Mapping[str, float | Sequence[float]] | None = None,
) -> Figure:
    """Draw scores against a number on a logarithmic axis: every seed as a faint point, the mean of each as a line.

    A series has the same colour, marker and dashes in every panel.

    Args:
        panels: For each panel's title (it may be empty) its series by name, and for each number the scores of all
            seeds.
        xlabel, ylabel: What the axes say.
        levels: Scores to compare with, one for all panels or one for each, drawn as flat lines.

    Raises:
        ValueError: If there is no panel, a series is empty, or a level has not one score for each panel.
    """
    if not panels or not all(scores for series in panels.values() for scores in series.values()):
        raise ValueError("panels must have one panel at least, and a score in every series")
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    height = 4.0 + 0.24 * ((len(names) + len(levels or {}) + 2) // 3)
    fig, axes = canvas(1, len(panels), width=WIDTH, height=height, sharey=True, squeeze=False)
    handles = {}
    for place, (ax, (title, series)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for name, scores in series.items():
            i = names.index(name) % len(COLOURS)
            look = {"color": COLOURS[i], "marker": MARKERS[i]}
            for number, some in scores.items():
                ax.plot(np.full(len(some), number), some, **look, linestyle="none", alpha=0.3, markersize=4)
            means = [float(np.mean(scores[number])) for number in sorted(scores)]
            (handles[name],) = ax.plot(sorted(scores), means, **look, linestyle=LINE_STYLES[i], label=name)
        for style, (name, level) in zip(LEVEL_STYLES, (levels or {}).items(), strict=False):
            each = [level] * len(panels) if isinstance(level, int | float) else list(level)
            if len(each) != len(panels):
                raise ValueError(f"levels must have one score or {len(panels)}, got {len(each)} for {name!r}")
            handles[name] = ax.axhline(each[place], color=BLACK, linestyle=style, linewidth=1.2, marker="")
        ax.set(title=title, xlabel=xlabel, xscale="log")
    axes[0, 0].set_ylabel(ylabel)
    fig.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return fig
