"""The figures of what fine-tuning changes: error curves of updates, maps of ranks, scores against rank, directions.

Every function draws numbers that you computed, and gives a Matplotlib figure in the house style, ready for ``show``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import BLACK, COLOURS, GREY, LINE_STYLES, MARKERS, canvas, write_in_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen


def curves_figure(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Draw error curves, a panel for each group: of many matrices the median as a line and a band from least to most.

    The rank is drawn on a logarithmic scale, so the curves begin at rank 1; at rank 0 every error is 1.

    Args:
        panels: For each title, for each name, the ranks and the relative errors: of one matrix (ranks,), of many
            (matrices, ranks). A rank of 0 is left out.

    Raises:
        ValueError: If a curve has not one error for each rank.
    """
    fig, axes = canvas(1, len(panels), width=WIDTH, height=4.1, sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, (ranks, errors) in curves.items():
            at, table = np.asarray(ranks), np.atleast_2d(np.asarray(errors))
            if table.shape[1] != len(at):
                raise ValueError(f"{name}: each curve takes {len(at)} errors, one a rank, got {table.shape[1]}")
            table, at, i = table[:, at > 0], at[at > 0], names.index(name)
            look = {"color": COLOURS[i], "linestyle": LINE_STYLES[i], "marker": MARKERS[i]}
            if len(table) > 1:
                ax.fill_between(at, table.min(axis=0), table.max(axis=0), color=COLOURS[i], alpha=0.2, linewidth=0)
            ax.plot(at, np.median(table, axis=0), label=name, markersize=5, markevery=_spread(at), **look)
        ax.set(title=title, xlabel="rank", xscale="log", ylim=(0, 1.03))
        ax.xaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
    axes[0, 0].set_ylabel("relative error")
    handles = {text: line for ax in axes[0] for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(handles)))
    return fig


def ranks_figure(ranks: Mapping[str, ArrayLike], noise: Mapping[str, float]) -> Figure:
    """Draw one rank for each kind of matrix and block as a map, with that of noise in the last column.

    Args:
        ranks: Ranks (blocks,) by kind, those of the first block first.
        noise: The rank of noise of the same shape, by kind.
    """
    table = np.array([[*np.asarray(ranks[kind], dtype=float), np.nan, noise[kind]] for kind in ranks])
    kinds, columns = table.shape
    fig, ax = canvas(width=WIDTH, height=0.44 * kinds + 0.9)
    mesh = ax.pcolormesh(np.ma.masked_invalid(table), vmin=0, edgecolor="white", linewidth=0.8)
    for (row, column), rank in np.ndenumerate(table):
        if not np.isnan(rank):
            write_in_cell(ax, mesh.cmap(mesh.norm(rank)), column + 0.5, row + 0.5, f"{rank:.0f}")
    places = [column + 0.5 for column in range(columns) if column != columns - 2]
    ax.set_xticks(places, [*map(str, range(1, columns - 1)), "noise"])
    ax.set_yticks(np.arange(kinds) + 0.5, list(ranks))
    ax.set(xlabel="block", ylim=(kinds, 0))
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return fig


def scores_figure(
    scores: Mapping[str, Mapping[int, Sequence[float]]],
    levels: Mapping[str, Sequence[float]],
    *,
    ylabel: str = "share of right answers",
) -> Figure:
    """Draw scores against rank: a point for each seed, and a line through their means.

    The ranks stand at even distances, so that rank 0 has a place.

    Args:
        scores: For each way, for each rank, the scores of the seeds.
        levels: Scores that belong to no rank, by name: a flat line at the mean, a band over the seeds if there are
            several.
        ylabel: What the score is.
    """
    fig, ax = canvas(width=WIDTH, height=4.6)
    ranks = sorted({rank for by_rank in scores.values() for rank in by_rank})
    shift = dict(zip(scores, np.linspace(-0.09, 0.09, len(scores)) if len(scores) > 1 else [0.0], strict=True))
    for i, (name, by_rank) in enumerate(scores.items()):
        look = {"color": COLOURS[i], "marker": MARKERS[i]}
        own = sorted(by_rank)
        at = [ranks.index(rank) + shift[name] for rank in own]
        ax.plot(at, [np.mean(by_rank[rank]) for rank in own], linestyle=LINE_STYLES[i], label=name, **look)
        for x, rank in zip(at, own, strict=True):
            ax.plot([x] * len(by_rank[rank]), by_rank[rank], linestyle="", alpha=0.45, markersize=5, **look)
    styles = ((BLACK, "-."), (GREY, ":"), (GREY, "--"))
    for (name, values), (colour, style) in zip(levels.items(), styles, strict=False):
        if len(values) > 1:
            ax.axhspan(min(values), max(values), color=colour, alpha=0.12, linewidth=0)
        ax.axhline(float(np.mean(values)), color=colour, linestyle=style, linewidth=1.5, marker="", label=name)
    ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    ax.set(xlabel="rank", ylabel=ylabel)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def directions_figure(grids: Mapping[str, ArrayLike], labels: Mapping[str, tuple[str, str]]) -> Figure:
    """Draw grids of subspace similarity φ(i, j), i down and j across, both at 1, 2, 4, …, as maps with their numbers.

    Args:
        grids: Similarities (i, j) by title.
        labels: What i counts and what j counts, by the same titles.

    Raises:
        ValueError: If the two do not name the same grids.
    """
    if list(grids) != list(labels):
        raise ValueError(f"labels must have the titles of grids, {list(grids)}, got {list(labels)}")
    tables = {title: np.asarray(grid) for title, grid in grids.items()}
    columns = min(2, len(tables))
    rows = -(-len(tables) // columns)
    tallest = max(table.shape[0] for table in tables.values())
    fig, axes = canvas(rows, columns, width=WIDTH, height=rows * (0.36 * tallest + 1.0), squeeze=False)
    for ax in axes.flat[len(tables) :]:
        ax.set_visible(False)
    for ax, (title, table) in zip(axes.flat, tables.items(), strict=False):
        mesh = ax.pcolormesh(table, vmin=0, vmax=1, edgecolor="white", linewidth=0.6)
        for (i, j), similarity in np.ndenumerate(table):
            write_in_cell(ax, mesh.cmap(mesh.norm(similarity)), j + 0.5, i + 0.5, f"{similarity:.2f}")
        ax.set_xticks(np.arange(table.shape[1]) + 0.5, [str(2**j) for j in range(table.shape[1])])
        ax.set_yticks(np.arange(table.shape[0]) + 0.5, [str(2**i) for i in range(table.shape[0])])
        down, across = labels[title]
        ax.set(xlabel=across, ylabel=down, ylim=(table.shape[0], 0))
        ax.set_title(title, fontsize=11)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def _spread(ranks: np.ndarray) -> list[int]:
    """Give the places of markers on a logarithmic scale: each at least half as far again as the last."""
    places: list[int] = []
    for place, rank in enumerate(ranks):
        if not places or rank >= 1.5 * ranks[places[-1]]:
            places.append(place)
    return places
