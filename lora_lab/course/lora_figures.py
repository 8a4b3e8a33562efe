"""The figures of LoRA's own lesson: shapes, gradients, scales, starts, the limit of the rank, and a comparison.

Every function gives a Matplotlib figure in the house style, ready for ``show`` or ``savefig``. Each draws numbers that
you computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import BLACK, BLUE, COLOURS, GREY, LINE_STYLES, MARKERS, VERMILLION, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen
FROZEN = "#dddddd"


def layer_figure(out_features: int, in_features: int, rank: int) -> Figure:
    """Draw W + scale · B A to scale: the frozen W hatched and grey, the two trained factors in blue.

    Args:
        out_features: Rows of W and of B.
        in_features: Columns of W and of A.
        rank: Columns of B and rows of A, 1 ≤ rank ≤ min(out_features, in_features).

    Raises:
        ValueError: If the rank does not fit.
    """
    if not 1 <= rank <= min(out_features, in_features):
        raise ValueError(f"rank must be from 1 to min(out_features, in_features), got {rank}")
    unit = max(out_features, in_features)
    gap = 0.26 * unit
    starts = (0.0, in_features + 2.2 * gap, in_features + rank + 3.0 * gap)  # of W, B, A
    total = starts[2] + in_features
    top = 0.04 * unit + 0.75 * 1.04 * total / WIDTH  # room for three lines of text
    tall = 1.04 * out_features + top
    fig, ax = canvas(width=WIDTH, height=max(1.6, WIDTH * tall / (1.04 * total)))
    blocks = (
        (starts[0], out_features, in_features, "W, frozen", FROZEN, "////", GREY),
        (starts[1], out_features, rank, "B", BLUE, "", BLUE),
        (starts[2], rank, in_features, "A", BLUE, "", BLUE),
    )
    for x, rows, columns, name, face, hatch, edge in blocks:
        _block(ax, x, rows, columns, face, hatch, edge)
        label = f"{name}\n{rows:,} × {columns:,}\n{rows * columns:,} numbers"
        ax.text(x + columns / 2, -0.03 * unit, label, ha="center", va="bottom", fontsize=10.5, linespacing=1.35)
    middle = out_features / 2
    for x, sign in (
        (in_features + 1.1 * gap - 0.12 * gap, "+  scale ·"),
        (starts[1] + rank + 0.4 * gap, "·"),
    ):
        ax.text(x, middle, sign, ha="center", va="center", fontsize=15, weight="bold")
    ax.set(xlim=(-0.02 * total, 1.02 * total), ylim=(1.04 * out_features, -top), aspect="equal")
    ax.axis("off")
    return fig


def gradients_figure(by_A: ArrayLike, by_B: ArrayLike) -> Figure:
    """Draw the size of the gradient of each factor before each of the first steps, step 0 first.

    Args:
        by_A: Norms of the gradient of A, one a step.
        by_B: Norms of the gradient of B, as many.
    """
    fig, ax = canvas()
    for name, norms in (("gradient of B", by_B), ("gradient of A", by_A)):
        ax.plot(np.arange(len(np.asarray(norms))), np.asarray(norms), label=name)
    ax.set(xlabel="step", ylabel="size of the gradient", ylim=(-0.03 * np.max([by_A, by_B]), None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return fig


def training_figure(curves: Mapping[str, ArrayLike]) -> Figure:
    """Draw how the output of a layer comes nearer to what is wanted, one curve for each name; the first is in grey.

    Args:
        curves: For each name the distance (steps,) from what is wanted, as a share of the first; step 0 first. What is
            above 1.2 leaves the figure.
    """
    fig, ax = canvas()
    for i, (name, curve) in enumerate(curves.items()):
        distance = np.asarray(curve)
        look = {"color": COLOURS[i - 1], "linestyle": "--"} if i else {"color": GREY, "linestyle": "-", "linewidth": 4}
        ax.plot(np.arange(len(distance)), distance, marker="", label=name, **look)
    ax.set(xlabel="step", ylabel="distance from the wanted output", ylim=(0, 1.2), xlim=(0, None))
    ax.legend(loc="upper right")
    return fig


def scaling_figure(ranks: ArrayLike, panels: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draw what the first step gains against the rank, one panel for each optimizer, one line for each rule.

    Each line is drawn as a multiple of its first value, both axes logarithmic.

    Args:
        ranks: The ranks, from 1 up.
        panels: For each optimizer's name, for each rule's name, the gain at each rank.
    """
    fig, axes = canvas(1, len(panels), width=WIDTH, height=3.9, sharey=True, squeeze=False)
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, gains in lines.items():
            ax.plot(np.asarray(ranks), np.asarray(gains) / np.asarray(gains)[0], label=name)
        ax.set(title=title, xlabel="rank", xscale="log", yscale="log")
        ax.set_xticks(np.asarray(ranks), [f"{rank}" for rank in np.asarray(ranks)])
        ax.yaxis.set_major_formatter(lambda gain, _: f"{gain:g}")
        ax.minorticks_off()
    axes[0, 0].set_ylabel("gain of the first step,\nrank 1 = 1")
    axes[0, 0].legend(title="scale", loc="lower left")
    return fig


def starts_figure(curves: Mapping[str, ArrayLike], *, limit: float | None = None, bottom: float = 5e-3) -> Figure:
    """Draw the error of the update against the step for several starts: a band over the seeds, their median as a line.

    The step is drawn on a logarithmic scale, counted from 1, and so is the error.

    Args:
        curves: For each start the errors (seeds, steps + 1), all above 0.
        limit: An error to draw as a line across; none by default.
        bottom: The least error that is drawn; a curve whose median falls below it ends there.
    """
    fig, ax = canvas(width=7.4, height=4.4)
    for i, (name, errors) in enumerate(curves.items()):
        errors = np.atleast_2d(np.asarray(errors))
        below = np.flatnonzero(np.median(errors, axis=0) < bottom)
        errors = errors[:, : below[0] + 1] if len(below) else errors
        steps = np.arange(1, errors.shape[1] + 1)
        look = {"color": COLOURS[i], "linestyle": LINE_STYLES[i], "marker": MARKERS[i]}
        marked = np.unique(np.geomspace(1, len(steps), 9).astype(int) - 1)
        ax.fill_between(steps, errors.min(axis=0), errors.max(axis=0), color=COLOURS[i], alpha=0.2, linewidth=0)
        ax.plot(steps, np.median(errors, axis=0), markevery=list(marked), label=name, **look)
    if limit is not None:
        ax.axhline(limit, color=GREY, linestyle="-", linewidth=1.2, marker="", label=f"{limit:.3f}")
    ax.set(xscale="log", yscale="log", xlabel="step, the start counted as 1", ylabel="relative error of the update")
    ax.set_ylim(bottom, None)
    ax.yaxis.set_major_formatter(lambda error, _: f"{error:g}")
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    ax.legend(loc="lower left", fontsize=9.5)
    return fig


def limit_figure(bounds: Mapping[str, ArrayLike], ranks: Sequence[int], reached: Mapping[str, ArrayLike]) -> Figure:
    """Draw the least error of each rank, from the singular values, and the errors that training reached.

    Args:
        bounds: For each target the relative errors of the best matrices of rank 0, 1, 2, …, as ``rank_errors`` gives.
        ranks: The ranks that were trained.
        reached: For each target, the same names, the error at each of these ranks.

    Raises:
        ValueError: If the two do not name the same targets.
    """
    if list(bounds) != list(reached):
        raise ValueError(f"reached must have the targets of bounds, {list(bounds)}, got {list(reached)}")
    fig, ax = canvas(width=7.0, height=4.2)
    last = max(ranks) + 1
    for i, (name, errors) in enumerate(bounds.items()):
        errors = np.asarray(errors)[: last + 1]
        ax.plot(
            np.arange(len(errors)),
            errors,
            color=COLOURS[i],
            linestyle=LINE_STYLES[i],
            marker="",
            label=f"{name}: least error",
        )
        ax.plot(
            ranks,
            np.asarray(reached[name]),
            color=COLOURS[i],
            linestyle="none",
            marker=MARKERS[i],
            markersize=9,
            markeredgecolor=BLACK,
            label=f"{name}: reached by training",
        )
    ax.set(xlabel="rank", ylabel="relative error of the update", ylim=(-0.03, 1.08))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.88))
    return fig


def comparison_figure(losses: Mapping[str, ArrayLike], trained: Mapping[str, int], *, frozen: float) -> Figure:
    """Draw the held-out loss of each method, a point a seed, beside the loss of the untouched network.

    Args:
        losses: For each method the losses of its seeds.
        trained: For each method, the same names, how many numbers it trains.
        frozen: The loss of the untouched network, drawn as a line.

    Raises:
        ValueError: If the two do not name the same methods.
    """
    if list(losses) != list(trained):
        raise ValueError(f"trained must have the methods of losses, {list(losses)}, got {list(trained)}")
    fig, ax = canvas(width=7.4, height=0.9 + 0.62 * len(losses))
    for i, values in enumerate(losses.values()):
        values = np.asarray(values)
        ax.plot(values, np.full(len(values), i), "o", color=BLUE, alpha=0.55, markersize=7)
        ax.plot(values.mean(), i, "|", color=BLACK, markersize=20, markeredgewidth=2.5)
    ax.axvline(frozen, color=VERMILLION, linestyle="--", marker="", label="the network as it was")
    ax.set_yticks(range(len(losses)), [f"{name}\n{trained[name]:,} numbers" for name in losses])
    ax.set(xlabel="loss on names it never saw, nats a letter", ylim=(len(losses) - 0.5, -0.5))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return fig


def _block(ax: Axes, x: float, rows: float, columns: float, face: str, hatch: str, edge: str) -> None:
    """Draw a matrix as a rectangle whose upper left corner is at (x, 0)."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, 0), columns, rows, facecolor=face, hatch=hatch, edgecolor=edge, linewidth=1))
