"""The figures of learned factors: landscapes, histories, clouds of rows, holes. Each draws numbers that you computed.

Every function gives a Matplotlib figure in the house style, ready for ``show`` or ``savefig``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    LINE_STYLES,
    MARKERS,
    SEQUENTIAL,
    VERMILLION,
    canvas,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen


def landscape_figure(paths: Mapping[str, ArrayLike]) -> Figure:
    """Draw f(left, right) = ½ (1 - left · right)² over the plane, its valleys of answers, and paths of descent.

    Low ground is dark. Each path begins at a large marker and ends at a small one.

    Args:
        paths: For each name the points (steps + 1, 2) that a descent passes, first its start.
    """
    reach = 2.3
    fig, ax = canvas(width=6.2, height=5.9)
    grid = np.linspace(-reach, reach, 231)
    height = 0.5 * (1 - grid[None, :] * grid[:, None]) ** 2
    ax.imshow(np.sqrt(height), extent=(-reach, reach, -reach, reach), origin="lower", vmax=2.4, alpha=0.6)
    ax.contour(grid, grid, np.sqrt(height), levels=np.arange(0.15, 2.4, 0.15), colors="white", linewidths=0.5)
    for valley in (grid[grid > 0.4], grid[grid < -0.4]):
        name = "left · right = 1" if valley[0] > 0 else None
        ax.plot(valley, 1 / valley, color=BLACK, linestyle=":", marker="none", label=name)
    for i, (name, path) in enumerate(paths.items()):
        points = np.asarray(path)
        look = {"color": COLOURS[(i + 1) % len(COLOURS)], "marker": MARKERS[(i + 1) % len(MARKERS)]}
        edge = {"markeredgecolor": BLACK, "markeredgewidth": 0.7, "linestyle": "none", "zorder": 4}
        ax.plot(*points.T, color=look["color"], linestyle="-", linewidth=2.4, marker="none")
        ax.plot(*points[0], markersize=11, label=f"from {name}", **look, **edge)
        ax.plot(*points[-1], markersize=6, **look, **edge)
    ax.set(xlabel="left", ylabel="right", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.grid(visible=False)
    ax.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    ax.set_title("dark: low; from a large marker to a small one", fontsize=10.5)
    return fig


def descent_figure(
    curves: Mapping[str, ArrayLike], *, floor: float | None = None, logarithmic: bool = False, top: float | None = None
) -> Figure:
    """Draw relative error against the iteration, one curve for each name.

    Args:
        curves: For each name the errors before the first iteration and after each one.
        floor: The error of the truncated SVD, drawn as a line across; none by default.
        logarithmic: Draw the iterations on a logarithmic scale, counted from 1.
        top: The largest error that is drawn; beyond it a curve leaves the figure.
    """
    fig, ax = canvas()
    for i, (name, curve) in enumerate(curves.items()):
        errors = np.asarray(curve)
        x = np.arange(len(errors)) + (1 if logarithmic else 0)
        ax.plot(x, errors, marker="none", color=COLOURS[i], linestyle=LINE_STYLES[i], label=name)
    if floor is not None:
        ax.axhline(floor, color=GREY, linestyle=(0, (1, 1)), linewidth=1.4, label="the truncated SVD")
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlabel("iteration, the start counted as 1")
    else:
        ax.set_xlabel("iteration")
    ax.set(ylabel="relative error", ylim=(0, top))
    ax.legend()
    return fig


def drawings_figure(drawings: Mapping[str, ArrayLike]) -> Figure:
    """Draw the rows of two-column factors as points in the plane, joined in their order, one factor a panel.

    Args:
        drawings: For each title a factor (m, 2), all with the same rows; the first row is marked.
    """
    fig, axes = canvas(1, len(drawings), width=WIDTH, height=WIDTH / len(drawings) + 0.5, squeeze=False)
    for i, (ax, (title, drawing)) in enumerate(zip(axes[0], drawings.items(), strict=True)):
        points = np.asarray(drawing)
        reach = 1.15 * np.abs(points).max()
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.fill(*points.T, color=COLOURS[i], alpha=0.12, linewidth=0)
        ax.plot(*points.T, color=COLOURS[i], linestyle=LINE_STYLES[i], marker="o", markersize=4)
        ax.plot(*points[0], marker="s", markersize=9, color=BLACK)
        ax.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="column 1")
        ax.locator_params(nbins=5)
    axes[0, 0].set_ylabel("column 2")
    return fig


def learning_figure(values: Mapping[str, ArrayLike], steps: ArrayLike, wanted: ArrayLike) -> Figure:
    """Draw the singular values of ``left @ right`` against the step, beside those that they should become.

    Args:
        values: For each panel's title an array (len(steps), k).
        steps: The steps at which they were measured.
        wanted: The k singular values of the matrix that is learned, drawn as lines across. A curve that is far above
            the largest of them leaves the figure.
    """
    fig, axes = canvas(1, len(values), width=WIDTH, height=3.9, sharey=True, squeeze=False)
    for ax, (title, curves) in zip(axes[0], values.items(), strict=True):
        for k, curve in enumerate(np.asarray(curves).T):
            ax.axhline(np.asarray(wanted)[k], color=COLOURS[k], linestyle=(0, (1, 2)), linewidth=1.2)
            ax.plot(
                np.asarray(steps),
                curve,
                color=COLOURS[k],
                linestyle=LINE_STYLES[k],
                marker=MARKERS[k],
                markevery=0.12,
                markersize=5,
                label=f"direction {k + 1}",
            )
        ax.set(title=title, xlabel="step", xlim=(0, None), ylim=(-0.02 * np.max(wanted), 1.15 * np.max(wanted)))
    axes[0, 0].set_ylabel("singular value of left @ right")
    axes[0, -1].legend(loc="upper right", bbox_to_anchor=(1, 0.85))
    return fig


def pictures_figure(pictures: Mapping[str, ArrayLike]) -> Figure:
    """Draw grey pictures (m, n), 0 black to 1 white, in a row, each with its title."""
    shapes = [np.asarray(picture).shape for picture in pictures.values()]
    width = WIDTH / len(shapes)
    height = width * max(m / n for m, n in shapes) + 0.5
    fig, axes = canvas(1, len(shapes), width=WIDTH, height=height, squeeze=False)
    for ax, (title, picture) in zip(axes[0], pictures.items(), strict=True):
        ax.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10, loc="center")
        ax.axis("off")
    return fig


def holes_figure(W: ArrayLike, mask: ArrayLike, completed: ArrayLike) -> Figure:
    """Draw a small table with holes beside the same table completed, its filled entries in bold.

    Args:
        W: Matrix (m, n), small enough to read every entry; drawn where the mask is True.
        mask: Booleans (m, n), True where W is known.
        completed: Matrix (m, n).
    """
    W, mask, completed = np.asarray(W), np.asarray(mask), np.asarray(completed)
    fig, axes = canvas(1, 2, width=WIDTH, height=4.5)
    limits = float(W[mask].min()), float(max(W[mask].max(), completed.max()))
    _draw_cells(axes[0], np.where(mask, W, np.nan), mask, limits)
    _draw_cells(axes[1], completed, mask, limits)
    axes[0].set_title(f"{mask.sum()} of {mask.size} entries are known")
    axes[1].set_title(f"the other {mask.size - mask.sum()}, filled in")
    return fig


def effort_figure(ratios: ArrayLike, counts: Mapping[str, ArrayLike]) -> Figure:
    """Draw how many iterations each method takes against the ratio of the singular values, both logarithmic."""
    fig, ax = canvas()
    for name, count in counts.items():
        ax.plot(np.asarray(ratios), np.asarray(count), label=name)
        for x, y in zip(np.asarray(ratios), np.asarray(count), strict=True):
            ax.annotate(f"{y}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="largest over smallest singular value", ylabel="iterations")
    ax.set_ylim(0.6, 3 * max(np.asarray(count).max() for count in counts.values()))
    ax.set_xticks(np.asarray(ratios), [f"{ratio:g}" for ratio in np.asarray(ratios)])
    ax.minorticks_off()
    ax.legend(loc="upper left")
    return fig


def share_figure(shares: ArrayLike, errors: ArrayLike, needed: float) -> Figure:
    """Draw the error on the entries that were not shown against the share that was, and the least share that can do.

    Args:
        shares: The shares of observed entries, from 0 to 1.
        errors: Relative errors (len(shares), tries), all above 0.
        needed: Degrees of freedom over entries: with less there are more unknowns than equations.
    """
    shares, errors = np.asarray(shares), np.asarray(errors)
    fig, ax = canvas()
    ax.axvspan(0, needed, color=VERMILLION, alpha=0.15, linewidth=0, label="fewer entries than degrees of freedom")
    ax.plot(np.repeat(shares, errors.shape[1]), errors.ravel(), "o", color=BLUE, alpha=0.35, markersize=4.5)
    ax.plot(shares, np.median(errors, axis=1), color=BLUE, marker="s", linestyle="-", label="median of the tries")
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="guessing 0 everywhere")
    ax.set(xlabel="share of entries observed", ylabel="relative error on the others", yscale="log", xlim=(0, None))
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.legend(loc="center right")
    return fig


def held_out_figure(ranks: ArrayLike, observed: Mapping[str, ArrayLike], held_out: Mapping[str, ArrayLike]) -> Figure:
    """Draw error against rank, on the entries that were fitted and on those that were kept apart, in two panels.

    Args:
        ranks: The ranks.
        observed: For each name the relative errors on the observed entries.
        held_out: For each name, the same names, those on the other entries.
    """
    fig, axes = canvas(1, 2, width=WIDTH, height=3.9, sharey=True)
    panels = {"entries that were fitted": observed, "entries that were kept apart": held_out}
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            ax.plot(np.asarray(ranks), np.asarray(curve), label=name)
        ax.set(title=title, xlabel="rank", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("relative error")
    axes[0].legend(loc="lower left")
    return fig


def _draw_cells(ax: Axes, W: np.ndarray, mask: np.ndarray, limits: Sequence[float]) -> None:
    """Draw a matrix as coloured cells with their entries: nan as an empty cell, what is not in the mask in bold."""
    m, n = W.shape
    mesh = ax.pcolormesh(np.ma.masked_invalid(W), cmap=SEQUENTIAL, vmin=limits[0], vmax=limits[1], edgecolor="white")
    for row, column in np.argwhere(np.isfinite(W)):
        red, green, blue, _ = mesh.cmap(mesh.norm(W[row, column]))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"  # luma, ITU-R BT.601
        weight = "normal" if mask[row, column] else "bold"
        ax.text(
            column + 0.5,
            row + 0.5,
            f"{W[row, column]:.0f}",
            ha="center",
            va="center",
            color=ink,
            fontsize=9,
            weight=weight,
        )
    for row, column in np.argwhere(~np.isfinite(W)):
        ax.text(column + 0.5, row + 0.5, "·", ha="center", va="center", color=GREY)
    ax.set(xlim=(0, n), ylim=(m, 0), aspect="equal")
    ax.axis("off")
