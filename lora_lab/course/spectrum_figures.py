"""The figures of errors against rank: families of curves, pictures at several ranks, minima, the layers of a model.

Every function draws numbers that you computed, and gives a Matplotlib figure in the house style, ready for ``show``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import BLACK, BLUE, GREY, VERMILLION, canvas, write_in_cell
from lora_lab.lowrank import break_even_rank, parameter_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen


def curves_figure(errors: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int, int]]) -> Figure:
    """Draw the errors of many matrices against what their factors store, once in plain and once in log scale.

    The axis of the storage is rank · (m + n) over m · n, so that matrices of all shapes break even at 1. What lies
    beyond is shaded. It goes on to the full rank of all of them.

    Args:
        errors: The relative errors of ranks 0, 1, 2, ... by name.
        shapes: The shape (m, n) of each matrix, by the same names.
    """
    fig, (plain, log) = canvas(1, 2, width=WIDTH, height=4.4)
    end = max(min(m, n) * (m + n) / (m * n) for m, n in shapes.values())
    for name, curve in errors.items():
        m, n = shapes[name]
        curve = np.asarray(curve)
        stored = np.arange(len(curve)) * (m + n) / (m * n)
        for ax in (plain, log):
            ax.plot(stored, curve, label=name, markevery=_every(stored, 0.12), markersize=5)
    for ax in (plain, log):
        ax.axvspan(1, end, color=GREY, alpha=0.15, linewidth=0)
        ax.set(xlim=(0, end), xlabel="numbers stored, share of the matrix", ylabel="relative error")
    plain.set(ylim=(0, 1.04), title="plain")
    plain.text((1 + end) / 2, 0.97, "no saving", ha="center", va="top", color=GREY)
    log.set(yscale="log", ylim=(1e-6, 1.5), title="the same, in powers of ten")
    fig.legend(*plain.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def pictures_figure(rows: Mapping[str, Sequence[ArrayLike]], titles: Sequence[str]) -> Figure:
    """Draw rows of pictures, with a title over each column and a name before each row.

    What an approximation puts below 0 is drawn as 0, and what it puts above 1 as 1.

    Args:
        rows: For each name (it may be empty) its pictures, grey (m, n) or coloured (m, n, 3), from 0 to 1.
        titles: One for each column; a line break makes two lines.
    """
    shapes = [np.asarray(pictures[0]).shape for pictures in rows.values()]
    ratios = [shape[0] / shape[1] for shape in shapes]
    width = (WIDTH - (0.9 if any(rows) else 0)) / len(titles) - 0.06
    lines = max(title.count("\n") + 1 for title in titles)
    height = width * sum(ratios) + 0.07 * len(rows) + 0.2 * lines
    options = {"squeeze": False, "height_ratios": ratios}
    fig, axes = canvas(len(rows), len(titles), width=WIDTH, height=height, **options)
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        for picture, ax in zip(pictures, line, strict=True):
            ax.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            ax.set(xticks=[], yticks=[], anchor="N")
            ax.grid(False)
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for title, ax in zip(titles, axes[0], strict=True):
        ax.set_title(title, fontsize=10, loc="center", linespacing=1.4)
    return fig


def place_figure(picture: ArrayLike, errors: ArrayLike, rank: int) -> Figure:
    """Draw a picture at one rank beside the error curve, with its place on it; what lies past break-even is shaded.

    What the approximation puts below 0 is drawn as 0, and what it puts above 1 as 1.

    Args:
        picture: The best approximation (m, n) of that rank, grey, from 0 to 1.
        errors: The relative errors of ranks 0, 1, 2, ..., min(m, n).
        rank: Its rank, a place of ``errors``.
    """
    picture, errors = np.asarray(picture), np.asarray(errors)
    m, n = picture.shape
    count, end = parameter_count(m, n, rank), break_even_rank(m, n)
    fig, (left, right) = canvas(1, 2, width=WIDTH, height=4.0, width_ratios=[n / m * 0.9, 1.3])
    left.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    left.set(xticks=[], yticks=[], title=f"rank {rank}")
    left.grid(False)
    left.spines[:].set_visible(False)
    right.plot(errors, marker="", color=BLUE)
    right.plot(rank, errors[rank], marker="o", markersize=11, color=VERMILLION, clip_on=False, zorder=3)
    for place, style in ((rank, {"ymax": errors[rank] / 1.04}), (end, {})):
        colour, dashes = (VERMILLION, ":") if style else (GREY, "--")
        right.axvline(place, color=colour, linestyle=dashes, linewidth=1.3, **style)
    right.axvspan(end, len(errors) - 1, color=GREY, alpha=0.15, linewidth=0)
    right.text((end + len(errors)) / 2, 0.97, "no saving", ha="center", va="top", color=GREY)
    right.set(xlim=(0, len(errors) - 1), ylim=(0, 1.04), xlabel="rank", ylabel="relative error")
    right.set_title(f"{count / (m * n):.0%} of the numbers, {errors[rank]:.1%} lost")
    return fig


def minima_figure(
    curves: Mapping[str, ArrayLike],
    *,
    ranks: ArrayLike | None = None,
    levels: Mapping[str, float] | None = None,
    choices: Mapping[str, int] | None = None,
    ylabel: str = "relative error",
) -> Figure:
    """Draw errors against rank, with a ring around each minimum that is not at the end of its curve.

    Args:
        curves: Errors by name, of ranks 0, 1, 2, ... or of ``ranks``.
        ranks: The rank of each entry of the curves, by default 0, 1, 2, ...
        levels: Errors to compare with, which have no rank: a flat line for each.
        choices: Ranks to point out, by the name of what chose them: an upright line for each.
        ylabel: What the errors are.
    """
    fig, ax = canvas(height=4.0)
    for name, curve in curves.items():
        errors = np.asarray(curve)
        at = np.arange(len(errors)) if ranks is None else np.asarray(ranks)
        (line,) = ax.plot(at, errors, label=name, markevery=_every(at, 0.08 * at.max() if ranks is None else 0))
        lowest = int(errors.argmin())
        if lowest < len(errors) - 1:
            ax.plot(at[lowest], errors[lowest], "o", markersize=13, fillstyle="none", color=line.get_color())
            ax.annotate(
                f"rank {at[lowest]}",
                (at[lowest], errors[lowest]),
                xytext=(8, -15),
                textcoords="offset points",
                color=line.get_color(),
            )
    for (name, level), style in zip((levels or {}).items(), ("--", ":", "-."), strict=False):
        ax.axhline(level, color=BLACK, linestyle=style, linewidth=1.3, label=name)
    for name, rank in (choices or {}).items():
        ax.axvline(rank, color=GREY, linestyle=":", linewidth=1.2)
        ax.annotate(
            name,
            (rank, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=9,
            color=GREY,
        )
    ax.set(xlabel="rank", ylabel=ylabel, xlim=(0, None))
    ax.margins(y=0.1)
    if min(map(np.min, curves.values())) < 0.5 * max(map(np.max, curves.values())):
        ax.set_ylim(bottom=0)  # where errors fall far, a height is to be read as their size
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=10)
    ax.legend()
    return fig


def bands_figure(errors: Mapping[str, ArrayLike], noise: Mapping[str, ArrayLike], ends: Mapping[str, int]) -> Figure:
    """Draw the errors of a model's layers as a band for each kind of matrix, beside noise of the same shape.

    Args:
        errors: Relative errors (layers, ranks) of ranks 0, 1, 2, ..., by kind.
        noise: Relative errors (ranks,) of a random matrix of that shape, by kind.
        ends: The break-even rank of that shape, by kind; what lies beyond is shaded.
    """
    fig, axes = canvas(1, len(errors), width=WIDTH, height=3.6, sharey=True, squeeze=False)
    for (kind, layers), ax in zip(errors.items(), axes[0], strict=True):
        layers = np.asarray(layers)
        ranks = np.arange(layers.shape[1])
        lowest, highest = layers.min(axis=0), layers.max(axis=0)
        ax.fill_between(
            ranks, lowest, highest, color=BLUE, alpha=0.25, linewidth=0, label=f"trained, {len(layers)} layers"
        )
        ax.plot(ranks, np.median(layers, axis=0), color=BLUE, marker="", label="trained, their median")
        ax.plot(ranks, np.asarray(noise[kind]), color=VERMILLION, marker="", linestyle="--", label="noise")
        ax.axvspan(ends[kind], ranks[-1], color=GREY, alpha=0.15, linewidth=0)
        ax.set(title=kind, xlabel="rank", xlim=(0, ranks[-1]), ylim=(0, 1.02))
    axes[0, 0].set_ylabel("relative error")
    axes[0, 0].text(0.98, 0.97, "no saving", transform=axes[0, 0].transAxes, ha="right", va="top", color=GREY)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def layers_figure(errors: Mapping[str, ArrayLike], layers: Sequence[int], noise: Mapping[str, float]) -> Figure:
    """Draw one error for each layer and kind of matrix as a map, in percent, with noise in the last column.

    Args:
        errors: Errors (layers,) by kind.
        layers: The number of each layer.
        noise: The error of a random matrix of the same shape, by kind.
    """
    table = np.array([[*np.asarray(errors[kind]), np.nan, noise[kind]] for kind in errors])  # a gap before the noise
    kinds, columns = table.shape
    fig, ax = canvas(width=WIDTH, height=0.42 * kinds + 0.9)
    mesh = ax.pcolormesh(np.ma.masked_invalid(table), vmin=0, vmax=np.nanmax(table), edgecolor="white", linewidth=0.8)
    for (row, column), error in np.ndenumerate(table):
        if not np.isnan(error):
            write_in_cell(ax, mesh.cmap(mesh.norm(error)), column + 0.5, row + 0.5, f"{100 * error:.0f}")
    places = [column + 0.5 for column in range(columns) if column != len(layers)]
    ax.set_xticks(places, [*map(str, layers), "noise"])
    ax.set_yticks(np.arange(kinds) + 0.5, list(errors))
    ax.set(xlabel="layer", ylim=(kinds, 0), title="relative error, in percent")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return fig


def _every(x: np.ndarray, distance: float) -> list[int]:
    """Give the places of markers: the first, and then each that is ``distance`` or more away from the last."""
    places: list[int] = []
    for place, value in enumerate(x):
        if not places or value - x[places[-1]] >= distance:
            places.append(place)
    return places
